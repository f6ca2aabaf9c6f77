"""Trees as files: what comes back, what a broken save leaves, and what does not fit."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict, FrameArray
from parllel.storages.mapped import Mapped
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import open_tree, part_files, save_tree

T, B = 4, 3
DTYPES: list[Any] = ["?", "u1", "<i2", ">i4", "f4", "c16", "M8[s]", "S3", [("a", "<i4", (2,))]]


def make_tree(storage: str = "local", seed: int = 0) -> ArrayDict:
    tree = ArrayDict(
        {
            "deep": {"er": {"image": make_leaf("u1", (5, 2), 2, 3 * T, storage)}},
            "flag": make_leaf("?", (), 0, T, storage),
            "with.dots and/slashes": make_leaf("f4", (3,), 1, 2 * T, storage),
            "frames": FrameArray(
                (T, B),
                "u1",
                (2,),
                stack=3,
                fill="zero",
                padding=1,
                full_size=2 * T,
                storage=storage,
            ),
        }
    )
    fill(tree, seed)
    return tree


def make_leaf(dtype: Any, shape: tuple[int, ...], padding: int, size: int, storage: str) -> Array:
    return Array(
        (T, B), dtype, feature_shape=shape, padding=padding, full_size=size, storage=storage
    )


def fill(tree: ArrayDict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _, leaf in tree.walk():
        for _ in range(leaf.full_size // T - 1):
            leaf.rotate()
        rows = leaf.full[-leaf.padding : leaf.full_size + leaf.padding]
        if isinstance(rows, FrameArray):
            frames = rng.integers(0, 256, rows.frames.shape, np.uint8)
            rows.write_frames(..., frames, is_first=rng.random(rows.batch_shape) < 1 / 4)
        else:
            rows[...] = rng.integers(0, 2, rows.shape).astype(leaf.dtype)


def everything(tree: ArrayDict) -> dict[str, Any]:
    """Return all rows of all leaves, ring and padding, and where the windows are."""
    return {
        path: (
            leaf.full[-leaf.padding : leaf.full_size + leaf.padding].to_ndarray().tolist(),
            leaf.window_begin,
        )
        for path, leaf in leaves(tree).items()
    }


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_rings_paddings_and_windows_come_back(tmp_path: Path, storage: str) -> None:
    tree, other = make_tree(storage), make_tree(storage, seed=1)
    assert everything(tree) != everything(other)
    save_tree(tree, tmp_path, {"n": 3, "text": "x"})
    saved = open_tree(str(tmp_path))
    saved.load_into(other)
    assert everything(other) == everything(tree)
    assert saved.numbers == {"n": 3, "text": "x"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, dtype: Any) -> None:
    tree = ArrayDict({"leaf": Array((T,), dtype, feature_shape=(3,))})
    raw = tree["leaf"].to_ndarray().reshape(-1).view(np.uint8)
    raw[:] = np.random.default_rng(0).integers(0, 2, raw.shape)
    save_tree(tree, tmp_path, {})
    mapped = open_tree(tmp_path).map()["leaf"].to_ndarray()
    assert mapped.dtype == tree["leaf"].dtype
    assert mapped.tobytes() == raw.tobytes()


@pytest.mark.parametrize("storage", ["device", "pinned", "managed"])
def test_memory_of_a_gpu_is_saved_and_loaded(
    cuda_device: torch.device, tmp_path: Path, storage: str
) -> None:
    save_tree(make_tree().to(storage), tmp_path, {})
    tree = make_tree(seed=1).to(storage)
    open_tree(tmp_path).load_into(tree)
    assert everything(tree) == everything(make_tree())


@pytest.mark.parametrize("nbytes", [1, 30, 31, 10**6])
def test_large_leaves_go_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    monkeypatch.setattr(part_files, "_CHUNK_NBYTES", nbytes)
    tree, other = make_tree(), make_tree(seed=1)
    save_tree(tree, tmp_path, {})
    open_tree(tmp_path).load_into(other)
    assert everything(other) == everything(tree)


def test_a_mapped_tree_is_read_from_the_files_and_never_writes_them(tmp_path: Path) -> None:
    tree = make_tree()
    save_tree(tree, tmp_path, {})
    mapped = open_tree(tmp_path).map()
    assert everything(mapped) == everything(tree)
    assert {leaf.storage for _, leaf in mapped.walk()} == {"mapped"}
    mapped["flag"][...] = True
    assert everything(open_tree(tmp_path).map()) == everything(tree)
    assert mapped["flag"].to_ndarray().all()
    copied = mapped.to("local")
    save_tree(make_tree(seed=1), tmp_path, {})  # deletes the files
    image = mapped["deep"]["er"]["image"]
    assert_array_equal(image.full.to_ndarray(), tree["deep"]["er"]["image"].full.to_ndarray())
    assert copied["flag"].to_ndarray().all()


def test_empty_leaves_and_trees_come_back(tmp_path: Path) -> None:
    tree = ArrayDict({"none": Array((T, 0), np.float32), "features": Array((T,), "u1")})
    save_tree(tree, tmp_path, {})
    assert open_tree(tmp_path).map()["none"].shape == (T, 0)
    save_tree(ArrayDict(), tmp_path / "empty", {})
    assert list(open_tree(tmp_path / "empty").map()) == []


def test_mapped_memory_is_not_sent_to_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "file.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="mapped memory can't be sent to another process"):
        Mapped([path]).__reduce__()


def test_files_are_what_numpy_opens(tmp_path: Path) -> None:
    """The whole ring with its padding; each part of a leaf that has several in its own file."""
    tree = make_tree()
    save_tree(tree, tmp_path, {})
    names = {
        ("deep", "er", "image"): {"rows": "000-deep.er.image.rows.1.npy"},
        ("flag",): {"rows": "001-flag.rows.1.npy"},
        ("with.dots and/slashes",): {"rows": "002-with.dots%20and%2Fslashes.rows.1.npy"},
        ("frames",): {
            "frames": "003-frames.frames.1.npy",
            "is_first": "003-frames.is_first.1.npy",
        },
    }
    assert {leaf.path: leaf.files for leaf in open_tree(tmp_path).leaves} == names
    for path, leaf in tree.walk():
        for part, values in leaf.memory_parts.items():
            loaded = np.load(tmp_path / names[path][part])
            assert_array_equal(loaded, values, strict=True)
    image = tree["deep"]["er"]["image"]
    loaded = np.load(tmp_path / names["deep", "er", "image"]["rows"])
    assert_array_equal(loaded[2:-2], image.full)
    assert len(loaded) == 3 * T + 2 * 2


def test_a_dtype_that_numpy_does_not_read_back_is_refused(tmp_path: Path) -> None:
    """bfloat16 of another package would come back as two bytes without a meaning."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    save_tree(make_tree(), tmp_path, {})
    tree = ArrayDict({"a": {"leaf": Array((T,), np.dtype(ml_dtypes.bfloat16))}})
    with pytest.raises(TypeError, match=r"a\.leaf: dtype: got bfloat16, which NumPy reads back as"):
        save_tree(tree, tmp_path, {})
    assert everything(open_tree(tmp_path).map()) == everything(make_tree())


@pytest.mark.parametrize("name", ["frames", "is_first"])
def test_a_part_of_another_shape_is_refused_before_anything_is_read(
    tmp_path: Path, name: str
) -> None:
    tree = make_tree()
    save_tree(tree, tmp_path, {})
    path = tmp_path / f"003-frames.{name}.1.npy"
    np.save(path, np.load(path).reshape(-1))
    other = make_tree(seed=1)
    before = everything(other)
    with pytest.raises(ValueError, match=rf"003-frames\.{name}\.1\.npy: .*; the file is not what"):
        open_tree(tmp_path).load_into(other)
    assert everything(other) == before


# Saves that fail


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_save_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    save_tree(make_tree(), tmp_path, {})
    first = names_in(tmp_path)
    save_tree(make_tree(seed=1), tmp_path, {})
    second = names_in(tmp_path)
    assert len(first) == len(second) == 6
    assert first & second == {"tree.json"}
    assert "002-with.dots%20and%2Fslashes.rows.2.npy" in second


class PowerCutError(Exception):
    pass


def fail(*arguments: Any) -> Any:
    raise PowerCutError


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_save_that_is_cut_off_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    tree = make_tree()
    save_tree(tree, tmp_path, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(PowerCutError):
            save_tree(make_tree(seed=1), tmp_path, {})
    assert everything(open_tree(tmp_path).map()) == everything(tree)
    save_tree(make_tree(seed=2), tmp_path, {})
    assert everything(open_tree(tmp_path).map()) == everything(make_tree(seed=2))
    assert len(names_in(tmp_path)) == 6


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.npy").write_text("mine")
    save_tree(make_tree(), tmp_path, {})
    save_tree(make_tree(), tmp_path, {})
    assert {"notes.txt", "model.npy"} < names_in(tmp_path)


def test_a_folder_whose_json_is_broken_can_be_saved_to(tmp_path: Path) -> None:
    save_tree(make_tree(), tmp_path, {})
    (tmp_path / "tree.json").write_text("{")
    save_tree(make_tree(seed=1), tmp_path, {})
    assert everything(open_tree(tmp_path).map()) == everything(make_tree(seed=1))


# Refusals


def test_a_folder_without_a_save_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tree\.json: no such file, expected a folder of"):
        open_tree(tmp_path)


def cut_file(folder: Path) -> None:
    path = folder / "001-flag.rows.1.npy"
    path.write_bytes(path.read_bytes()[:-1])


def delete_file(folder: Path) -> None:
    (folder / "001-flag.rows.1.npy").unlink()


def put_other_rows(folder: Path) -> None:
    np.save(folder / "001-flag.rows.1.npy", np.zeros((5, 3), bool))


def put_fewer_rows(folder: Path) -> None:
    np.save(folder / "001-flag.rows.1.npy", np.zeros((3, 3), bool))


def put_another_header(folder: Path) -> None:
    np.save(folder / "001-flag.rows.1.npy", np.zeros((3, 4), bool))


def put_objects(folder: Path) -> None:
    np.save(folder / "001-flag.rows.1.npy", np.array([[None] * 3] * 4))


def put_a_pickle(folder: Path) -> None:
    (folder / "001-flag.rows.1.npy").write_bytes(pickle.dumps(np.zeros((4, 3), bool)))


def change_json(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tree.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def break_json(folder: Path) -> None:
    (folder / "tree.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_file, r"001-flag\.rows\.1\.npy: .*; the file is not what was saved"),
        (delete_file, r"001-flag\.rows\.1\.npy: .*No such file.*; the file is not what was saved"),
        (put_fewer_rows, r"001-flag\.rows\.1\.npy: 137 bytes, expected 140; the file is not"),
        (put_other_rows, r"001-flag\.rows\.1\.npy: 143 bytes, expected 140; the file is not"),
        (
            put_another_header,
            r"001-flag\.rows\.1\.npy: 128 bytes with CRC-32 .*, expected 128 with",
        ),
        (put_objects, r"001-flag\.rows\.1\.npy: .*; the file is not what"),
        (put_a_pickle, r"001-flag\.rows\.1\.npy: .*; the file is not what was saved"),
        (change_json(version=1), r"tree\.json: expected parllel tree 3: it is parllel tree 1"),
        (change_json(leaves=3), r"tree\.json: expected parllel tree 3: its bytes are not .*CRC-32"),
        (break_json, r"tree\.json: expected parllel tree 3"),
    ],
)
def test_a_damaged_save_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save_tree(make_tree(), tmp_path, {})
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_tree(tmp_path)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (Array((T, B), np.uint8), r"flag: saved bool \(4, 3\), .*expected uint8 \(4, 3\)"),
        (Array((T, B), bool, full_size=2 * T), "flag: saved .*full_size 4, expected .*full_size 8"),
        (Array((T, B), bool, padding=1), "flag: saved .*padding 0, .*, expected .*padding 1"),
        (
            FrameArray((T, B), bool, stack=2),
            r"flag: saved bool \(4, 3\), .*, expected .*, full_size 4, stacks of 2, fill 'first'",
        ),
        (Array((T, B, 1), bool), r"flag: saved bool \(4, 3\), .*expected bool \(4, 3, 1\)"),
    ],
)
def test_a_leaf_of_another_shape_is_refused_before_anything_is_read(
    tmp_path: Path, leaf: Array, message: str
) -> None:
    save_tree(make_tree(), tmp_path, {})
    tree = make_tree(seed=1)
    tree["flag"] = leaf
    before = everything(tree)
    with pytest.raises(ValueError, match=message):
        open_tree(tmp_path).load_into(tree)
    assert everything(tree) == before


def test_another_tree_is_refused(tmp_path: Path) -> None:
    save_tree(make_tree(), tmp_path, {})
    tree = make_tree()
    tree["more"] = tree["flag"]
    del tree["flag"]
    with pytest.raises(KeyError, match=r"not in the tree \['flag'\], in the tree .* \['more'\]"):
        open_tree(tmp_path).load_into(tree)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.zeros(3), "leaf: got a ndarray, expected an Array"),
        (Array((3, 2), bool)[1], "leaf: window_begin: this Array is a view"),
    ],
)
def test_what_is_no_array_of_its_own_is_refused(tmp_path: Path, leaf: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_tree(ArrayDict({"leaf": leaf}), tmp_path, {})
