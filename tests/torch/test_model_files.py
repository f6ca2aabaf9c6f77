"""A model's parameters as a file: whole or not there, checked, and no file of another model."""

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.distributions import Categorical, DistParams

pytest.importorskip("safetensors", reason="no safetensors, of which the files are")
from safetensors.torch import load_file, save_file


class Model(nn.Module):
    """A linear policy and value, with a layer of some width before."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 3)

    def forward(self, observation: Tensor) -> ModelOutputs:
        logits, value = self.last(self.first(observation)).split([2, 1], dim=-1)
        return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))


def make_agent(seed: int = 0, model: Any = None) -> CategoricalPgAgent:
    torch.manual_seed(seed)
    return CategoricalPgAgent(
        Model() if model is None else model, Categorical(2), np.zeros((1, 3), np.float32)
    )


def parameters(agent: CategoricalPgAgent) -> list[Tensor]:
    return [value.clone() for value in agent.model.state_dict().values()]


def assert_refused(agent: CategoricalPgAgent, path: Path, message: str) -> None:
    before = parameters(agent)
    with pytest.raises(ValueError, match=message):
        agent.load(path)
    assert all(map(torch.equal, parameters(agent), before))


def test_each_flipped_bit_is_found(tmp_path: Path) -> None:
    path, damaged = tmp_path / "agent.safetensors", tmp_path / "damaged.safetensors"
    make_agent().save(path)
    content, other = path.read_bytes(), make_agent(1)
    other.load(path)
    rng = np.random.default_rng(0)
    n_header = 8 + int.from_bytes(content[:8], "little")
    flips = [(place, bit) for place in range(n_header) for bit in range(0 if place < 120 else 7, 8)]
    flips += [(place, int(rng.integers(8))) for place in range(n_header, len(content))]
    for place, bit in flips:
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        damaged.write_bytes(flipped)
        assert_refused(other, damaged, r"damaged\.safetensors: it is damaged")
    for length in (0, 1, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        assert_refused(other, damaged, r"damaged\.safetensors: it is damaged")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Model(5), r"first\.weight is float32 of shape \(4, 3\), expected .* \(5, 3\)"),
        (lambda: Model().double(), r"first\.weight is float32 .*, expected float64"),
        (lambda: _with_more(Model()), r"not in the file \['more\.bias', 'more\.weight'\]"),
    ],
)
def test_a_file_of_another_model_changes_nothing(model: Any, message: str, tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent.safetensors")
    agent = CategoricalPgAgent.__new__(CategoricalPgAgent)
    agent.model = model()
    assert_refused(agent, tmp_path / "agent.safetensors", message)


def _with_more(model: nn.Module) -> nn.Module:
    model.more = nn.Linear(1, 1)
    return model


def test_a_file_of_more_than_the_model_has_changes_nothing(tmp_path: Path) -> None:
    make_agent(model=_with_more(Model())).save(tmp_path / "agent.safetensors")
    message = r"not in the model \['more\.bias', 'more\.weight'\]"
    assert_refused(make_agent(1), tmp_path / "agent.safetensors", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.to_sparse, r"last\.weight is .*\(3, 4\), sparse_coo, expected float32 of shape"),
        (lambda value: value.to("meta"), r"last\.weight is .*, without values, expected float32"),
    ],
)
def test_tensors_of_other_forms_change_nothing(change: Any, message: str, tmp_path: Path) -> None:
    state = make_agent(1).model.state_dict()
    torch.save(
        {**state, "last.weight": change(state["last.weight"])}, tmp_path / "agent.safetensors"
    )
    assert_refused(make_agent(), tmp_path / "agent.safetensors", message)


def test_a_buffer_that_was_expanded_changes_nothing(tmp_path: Path) -> None:
    agents = [make_agent(seed) for seed in (0, 1)]
    for agent in agents:
        agent.model.register_buffer("mask", torch.ones(1).expand(4))
    agents[0].save(tmp_path / "agent.safetensors")
    assert_refused(
        agents[1], tmp_path / "agent.safetensors", "mask of the model is one element many times"
    )


def test_a_buffer_of_one_element_is_loaded_whatever_its_stride(tmp_path: Path) -> None:
    agents = [make_agent(seed) for seed in (0, 1)]
    for agent in agents:
        agent.model.register_buffer("scale", torch.ones(()).expand(1))
    agents[0].save(tmp_path / "agent.safetensors")
    agents[1].load(tmp_path / "agent.safetensors")


def test_names_that_differ_by_the_mark_of_compiled_models_are_not_saved(tmp_path: Path) -> None:
    agent = make_agent()
    agent.model.register_module("_orig_mod", nn.ModuleDict({"first": nn.Linear(3, 4)}))
    with pytest.raises(ValueError, match="parameters of one name but for"):
        agent.save(tmp_path / "agent.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_of_parameters_is_refused(tmp_path: Path) -> None:
    agent, path = make_agent(), tmp_path / "other.pt"
    torch.save([1, 2], path)
    assert_refused(agent, path, "it holds a list, expected parameters by their names")
    assert_refused(agent, tmp_path, "no file, expected one that save wrote")
    os.mkfifo(tmp_path / "fifo")
    assert_refused(agent, tmp_path / "fifo", "no file, expected one that save wrote")
    with pytest.raises(FileNotFoundError):
        agent.load(tmp_path / "missing.safetensors")


def test_a_file_that_torch_wrote_is_read_and_checked_too(tmp_path: Path) -> None:
    agent, other, path = make_agent(), make_agent(1), tmp_path / "plain.pt"
    torch.save(agent.model.state_dict(), path)
    other.load(path)
    assert all(map(torch.equal, parameters(agent), parameters(other)))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = next(each for each in file.infolist() if each.filename.endswith("data/0"))
    content[entry.header_offset + 200] ^= 1
    path.write_bytes(content)
    assert_refused(make_agent(2), path, r"plain\.pt: it is damaged")


def test_a_file_that_safetensors_wrote_is_read_too(tmp_path: Path) -> None:
    agent, path = make_agent(), tmp_path / "plain.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file(agent.model.state_dict(), path, metadata)
        other = make_agent(1)
        other.load(path)
        assert all(map(torch.equal, parameters(agent), parameters(other)))


def test_safetensors_reads_what_save_wrote(tmp_path: Path) -> None:
    agent, path = make_agent(), tmp_path / "agent.safetensors"
    agent.save(path)
    own = agent.model.state_dict()
    saved = load_file(path)
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], value) for name, value in own.items())


class Odd(Model):
    """Tensors of many forms beside the layers: tied, transposed, of other dtypes, empty, scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = self.first.weight
        self.transposed = nn.Parameter(torch.randn(2, 3).t())
        self.register_buffer("of_16_bits", torch.randn(3).bfloat16())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("every_second", torch.randn(6)[::2])
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer(
            "images", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
        )


def test_tensors_of_all_forms_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    agent, other = make_agent(0, Odd()), make_agent(1, Odd())
    agent.save(path)
    other.load(path)
    for one, two in zip(parameters(agent), parameters(other), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert other.model.tied is other.model.first.weight
    assert other.model.transposed.stride() == (1, 3)


def test_two_values_for_a_tied_tensor_change_nothing(tmp_path: Path) -> None:
    agent, path = make_agent(0, Odd()), tmp_path / "agent.safetensors"
    state = {name: value.clone().contiguous() for name, value in agent.model.state_dict().items()}
    state["tied"] += 1
    save_file(state, path)
    assert_refused(agent, path, r"tied and first\.weight differ, and are one tensor of the model")


class WithExtra(Model):
    """A model with state that is no tensor."""

    def get_extra_state(self) -> object:
        return {"step": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def _quantized() -> Tensor:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch deprecates them
        return torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)


def _with_buffer(name: str, value: Tensor) -> nn.Module:
    model = Model()
    model.register_buffer(name, value)
    return model


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (WithExtra, r"_extra_state of its state is a dict, expected a dense tensor"),
        (lambda: _with_buffer("x", torch.eye(2).to_sparse()), r"x .* is float32 .*, sparse_coo"),
        (lambda: _with_buffer("x", torch.zeros(2, device="meta")), r"x .* \(2,\), without values"),
        (lambda: _with_buffer("x", _quantized()), r"x of its state is quantized"),
        (
            lambda: _with_buffer("x", torch.zeros(2, dtype=torch.complex128)),
            r"x of its state is torch\.complex128",
        ),
        (lambda: _with_buffer("__metadata__", torch.zeros(2)), r"__metadata__ .* of a name that"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(
    make_model: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=message):
        make_agent(0, make_model()).save(tmp_path / "agent.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_compiled_model_is_that_of_the_plain_one(tmp_path: Path) -> None:
    plain, other = make_agent(), make_agent(1)
    compiled = torch.compile(plain.model, backend="eager")
    agent = make_agent(model=compiled)
    agent.save(tmp_path / "agent.safetensors")
    other.load(tmp_path / "agent.safetensors")
    assert all(map(torch.equal, parameters(plain), parameters(other)))
    make_agent(2).save(tmp_path / "plain.safetensors")
    agent.load(tmp_path / "plain.safetensors")
    assert all(map(torch.equal, parameters(agent), parameters(make_agent(2))))


def test_a_file_from_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    path, moved, other = tmp_path / "cpu.pt", tmp_path / "gpu.pt", make_agent(1)
    agent = make_agent()
    torch.save(agent.model.state_dict(), path)
    # torch writes where a storage was as a word of its pickle.
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(moved, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"X\x03\0\0\0cpu" in content
                content = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            new.writestr(entry, content)
    other.load(moved)
    assert all(map(torch.equal, parameters(agent), parameters(other)))


@pytest.mark.long
def test_a_program_that_saves_nothing_imports_no_safetensors() -> None:
    program = """if True:
        import sys
        import parllel.runners
        import parllel.torch.agents
        assert "safetensors" not in sys.modules
    """
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
