"""to_hub.py against a hub of the test's own, on this machine: files go there and come back."""

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import torch

from example_runs import EXAMPLES, load
from optional import needs

pytestmark = needs("huggingface_hub")
REPO = "somebody/cartpole-ppo"  # user and model, as the hub names them
COMMIT = "0" * 40  # the hub names commits by their hashes


class Hub(ThreadingHTTPServer):
    """A hub that keeps files in memory, as far as the example asks one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._say({"url": f"http://127.0.0.1/{REPO}", "id": REPO})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            self._say({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path == f"/api/models/{REPO}/commit/main":
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://127.0.0.1/{REPO}/commit/{COMMIT}"
            self._say({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self.send_error(404, self.path)

    def do_HEAD(self) -> None:
        self._give(with_body=False)

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/{REPO}"):
            self._say({"id": REPO, "sha": COMMIT, "siblings": []})
        else:
            self._give(with_body=True)

    def _give(self, *, with_body: bool) -> None:
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404, self.path)
            return
        self.send_response(200)
        for name, value in (
            ("X-Repo-Commit", COMMIT),
            ("ETag", f'"{len(content)}"'),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _say(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load("to_hub")


@pytest.fixture
def run(example: ModuleType, tmp_path: Path) -> Path:
    """A run's folder, as cartpole_ppo.py leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(3)
    example.make_agent().save(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"seed": 3, "steps": 9000, "out": None}))
    return folder


def arguments(example: ModuleType, run: Path, hub: Hub, **changes: Any) -> Any:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    return example.Config(run=run, repo=REPO, endpoint=endpoint, **changes)


def score_of(text: str) -> float:
    name, number = text.splitlines()[-1].split()
    assert name == "score"
    return float(number)


def test_a_model_goes_to_the_hub_with_a_card_and_comes_back(
    example: ModuleType, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(arguments(example, run, hub, private=True))
    assert sorted(hub.files) == ["README.md", "model.safetensors"]
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    (created,) = hub.created
    assert (created["organization"], created["name"]) == tuple(REPO.split("/"))
    assert "private" in (*created.values(), *(name for name, value in created.items() if value))
    card = hub.files["README.md"].decode()
    score = score_of(capsys.readouterr().out)
    assert f"**{score:.1f}**" in card
    assert re.search(rf"value: {score:.1f}\b", card)  # which the hub's pages show
    assert "python examples/cartpole_ppo.py --seed 3 --steps 9000" in card


@pytest.mark.long
def test_another_model_that_comes_back_is_found(
    example: ModuleType, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    other = tmp_path / "other.safetensors"
    example.make_agent().save(other)
    monkeypatch.setattr(example, "hf_hub_download", lambda *_, **__: str(other))
    with pytest.raises(RuntimeError, match="another one"):
        example.main(arguments(example, run, hub))


@pytest.mark.long
def test_a_dry_run_sends_nothing(
    example: ModuleType, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(arguments(example, run, hub, dry_run=True))
    assert (hub.created, hub.files) == ([], {})
    assert sorted(path.name for path in (run / "hub").iterdir()) == [
        "README.md",
        "model.safetensors",
    ]
