"""Saves that accidents or strangers have changed: refused by name, and nothing is changed."""

import contextlib
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from long_run import all_but_first
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import open_tree
from parllel.tree.saved_json import from_data, to_data
from step_list import Chances, Model, Shape

SHAPE = Shape(T=3, B=2, n_windows=3, n_steps=2, n_final_obs=7, stack=2)
KINDS = (ReplayBuffer, PrioritizedReplayBuffer)
WORDS: list[Any] = [
    *(-1, 0, 1, 2, 7, 2**31, 2**32, 2**62, 2**63, 10**30, 0.5, 1e300, float("nan"), float("inf")),
    *(None, True, "", "x", "..", "0", [], [1], {}, {"x": 1}, [[]] * 3),
]


def make_model(kind: type[ReplayBuffer], seed: int = 0) -> Model:
    model = Model(SHAPE, Chances(reset=2), seed=seed, kind=kind, storage="local")
    for _ in range(4):
        model.write_batch()
    return model


def everything(replay: ReplayBuffer) -> Any:
    """Return all bytes and numbers that a buffer goes on from."""
    trees = replay.samples, replay._own_tree()
    return replay._state(), [
        (path, leaf.window_begin, [part.tobytes() for part in leaf.memory_parts.values()])
        for tree in trees
        for path, leaf in leaves(tree).items()
    ]


def read_json(folder: Path) -> dict[str, Any]:
    return from_data((folder / "tree.json").read_bytes())


def write_json(folder: Path, content: dict[str, Any]) -> None:
    """Write the JSON with the checksum that belongs to it."""
    (folder / "tree.json").write_bytes(to_data(content))


def sign_part(folder: Path, name: str) -> None:
    """Put the checksums of a changed file into the JSON, as no accident would."""
    content, data = read_json(folder), (folder / name).read_bytes()
    for leaf in content["leaves"]:
        for part in leaf["files"].values():
            if part["name"] == name:
                length = part["header"][0]
                part["header"] = [length, zlib.crc32(data[:length])]
                part["whole"] = [len(data), zlib.crc32(data)]
    write_json(folder, content)


# One number, or one table


def change_state(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = read_json(folder)
        content["numbers"]["state"].update(changes)
        write_json(folder, content)

    return change


def change_table(name: str, value: int, place: int = 0) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next(folder.glob(f"*-replay.{name}.rows.1.npy"))
        rows = np.load(path)
        rows.reshape(-1)[place] = value
        np.save(path, rows)
        sign_part(folder, path.name)

    return change


def drop_key(folder: Path) -> None:
    content = read_json(folder)
    del content["numbers"]["state"]["key"]
    write_json(folder, content)


def move_one_window(folder: Path) -> None:
    content = read_json(folder)
    content["leaves"][0]["window_begin"] += 3 * (-1 if content["leaves"][0]["window_begin"] else 1)
    write_json(folder, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_state(first=-1), r"state\.first: got -1, expected an integer from \d+ to 15"),
        (change_state(first=16), r"state\.first: got 16"),
        (change_state(stop=13), r"state\.stop: 13, expected a multiple of 3"),
        (change_state(stop=2**62), r"state\.stop: got 4611686018427387904, expected .* 0 to"),
        (change_state(stop=12.0), r"state\.stop: got 12\.0, expected an integer"),
        (change_state(n_drawn=2**64), r"state\.n_drawn: got 18446744073709551616"),
        (change_state(n_final_obs=None), r"state\.n_final_obs: got NoneType"),
        (change_state(key=[1]), r"state\.key: expected a list of two integers"),
        (change_state(key=[1, 2**32]), r"state\.key: got 4294967296"),
        (change_state(beta=float("nan")), r"state\.beta: got nan, expected a finite number"),
        (change_state(beta=True), r"state\.beta: got True"),
        (change_state(more=1), r"numbers\.state: got keys .*'more'.*, expected"),
        (drop_key, r"numbers\.state: got keys .*, expected .*'key'"),
        (move_one_window, r"tree\.json: windows at \[\d, \d\], expected one row"),
        (change_table("slot", 7), r"replay\.slot: got numbers from -1 to 7, expected -2 to 6"),
        (change_table("slot", -3), r"replay\.slot: got numbers from -3"),
        (change_table("place", 18), r"replay\.place: got numbers .* to 18, expected 0 to 17"),
        (change_table("place", -(2**40)), r"replay\.place: got numbers from -1099511627776"),
        (change_table("owner", 15), r"replay\.owner: got numbers .* to 15, expected -1 to 14"),
        (change_table("priorities.sums", -1), r"priorities\.sums: got numbers from -1"),
        (change_table("priorities.sums", 1, 20), r"priorities\.sums: got numbers from 0 to 1"),
        (change_table("priorities.sums", 1, -1), r"sums: numbers of level \d are not the sums"),
        (change_table("priorities.largest", 0), r"priorities\.largest: priority: got 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_changes(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    make_model(PrioritizedReplayBuffer).replay.save(tmp_path)
    damage(tmp_path)
    replay = make_model(PrioritizedReplayBuffer, seed=1).replay
    before = everything(replay)
    with pytest.raises(ValueError, match=message):
        replay.load(tmp_path)
    assert everything(replay) == before
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer.open(tmp_path)


@pytest.mark.parametrize("name", ["n_steps", "discount", "alpha", "epsilon"])
def test_settings_of_other_types_are_refused(tmp_path: Path, name: str) -> None:
    make_model(PrioritizedReplayBuffer).replay.save(tmp_path)
    for value in ("1", None, True, -1, float("nan"), 10**400, []):
        content = read_json(tmp_path)
        content["numbers"]["settings"][name] = value
        write_json(tmp_path, content)
        with pytest.raises(ValueError, match=rf"numbers\.settings\.{name}: got .*, expected a fin"):
            PrioritizedReplayBuffer.open(tmp_path)


def test_a_changed_byte_of_the_ring_is_found_by_load_and_check(tmp_path: Path) -> None:
    """And not by open, which does not read the ring."""
    make_model(ReplayBuffer).replay.save(tmp_path)
    open_tree(tmp_path).check()
    path = next(tmp_path.glob("*-samples.reward.rows.1.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    ReplayBuffer.open(tmp_path)
    with pytest.raises(ValueError, match=r"samples\.reward\.rows\.1\.npy: .* CRC-32 .*, expected"):
        open_tree(tmp_path).check()
    with pytest.raises(ValueError, match=r"samples\.reward\.rows\.1\.npy: .* CRC-32 .*, expected"):
        make_model(ReplayBuffer).replay.load(tmp_path)


# Random damage


class Mutations:
    """Random changes of a save, as accidents or strangers make them."""

    def __init__(self, seed: int, good: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.folder = good.with_name("copy")
        shutil.copytree(good, self.folder)
        self.good = {path: path.read_bytes() for path in sorted(self.folder.iterdir())}
        self.changed: set[Path] = set()

    def choose(self, values: list[Any]) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def make(self) -> bool:
        """Damage the copy of the save anew; return whether its checksums were made to fit."""
        for path in self.changed:
            path.unlink()  # a former one may be mapped
            path.write_bytes(self.good[path])
        assert sorted(self.folder.iterdir()) == list(self.good)
        is_signed = bool(self.rng.integers(2))
        path = self.choose(list(self.good))
        self.changed = {path, self.folder / "tree.json"} if is_signed else {path}
        if is_signed and self.rng.integers(3):
            content = read_json(self.folder)
            self.change_value(content)
            write_json(self.folder, content)
        elif is_signed and path.suffix == ".npy":
            path.write_bytes(self.change_bytes(path.read_bytes()))
            sign_part(self.folder, path.name)
        else:
            path.write_bytes(self.change_bytes(path.read_bytes()))
            is_signed = False
        return is_signed

    def change_bytes(self, data: bytes) -> bytes:
        """Flip a bit, cut the data, put bytes in or overwrite some."""
        at = int(self.rng.integers(len(data)))
        some = self.rng.bytes(int(self.rng.integers(1, 9)))
        flipped = bytes([data[at] ^ 1 << int(self.rng.integers(8))])
        changed = self.choose(
            [
                data[:at] + flipped + data[at + 1 :],
                data[:at],
                data[:at] + some + data[at:],
                data[:at] + some + data[at + len(some) :],
                data + some,
            ]
        )
        return changed if changed != data else data[:-1]  # type: ignore[no-any-return]

    def change_value(self, content: Any) -> None:
        """Replace, delete or double a value somewhere in the JSON's content."""
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = self.choose(keys)
        if isinstance(content[key], dict | list) and content[key] and self.rng.integers(6):
            self.change_value(content[key])
        elif self.rng.integers(4):
            content[key] = self.choose([*WORDS, content[self.choose(keys)]])
        elif isinstance(content, list) and self.rng.integers(2):
            content.append(content[key])
        else:
            del content[key]


def use(replay: ReplayBuffer) -> None:
    """Sample, and go on, with whatever numbers a stranger chose within their ranges."""
    for _ in range(2):
        with contextlib.suppress(RuntimeError):  # no transition can be sampled
            replay.sample(8)
        replay.restart()
        replay.begin_batch()
        replay.samples.rotate()
        replay.end_batch()


def message_of(call: Callable[[], object]) -> str | None:
    """Return the message of an error that is documented; None if there was none."""
    try:
        call()
    except (FileNotFoundError, KeyError, ValueError) as error:
        return str(error)
    return None


def try_mutations(tmp_path: Path, kind: type[ReplayBuffer], n: int, seed: int) -> None:
    make_model(kind).replay.save(tmp_path / "good")
    mutations = Mutations(seed, tmp_path / "good")
    replay = make_model(kind, seed=1).replay
    opened: list[ReplayBuffer] = []
    n_refused = 0
    before = everything(replay)
    for _ in range(n):
        is_signed = mutations.make()
        message = message_of(lambda: replay.load(mutations.folder))
        if message is None:
            assert is_signed
            use(replay)
            before = everything(replay)
        else:
            assert str(mutations.folder) in message or "samples." in message or "replay." in message
            assert everything(replay) == before
            n_refused += 1
        message_of(lambda: opened.append(kind.open(mutations.folder)))
        for each in opened:
            use(each)
        opened.clear()
    assert n_refused > n // 2


@pytest.mark.parametrize("kind", all_but_first(KINDS[::-1]))
def test_damaged_saves_are_refused_or_harmless(tmp_path: Path, kind: type[ReplayBuffer]) -> None:
    try_mutations(tmp_path, kind, n=120, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_saves_are_refused_or_harmless(
    tmp_path: Path, kind: type[ReplayBuffer], seed: int
) -> None:
    try_mutations(tmp_path, kind, n=1000, seed=seed)
