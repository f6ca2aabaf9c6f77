"""save_run and load_run: all parts of a run in a folder, whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from parllel.generator_states import set_generator_state
from parllel.ranks import gather, n_ranks, rank
from parllel.replays.base_replay import BaseReplay
from parllel.runners.generators import GlobalGenerators
from parllel.runners.state_data import from_data, to_data
from parllel.tree import ArrayDict, open_tree, save_tree, saved_json
from parllel.tree.file_locks import try_lock
from parllel.tree.whole_files import (
    CheckedWriter,
    FileCheck,
    check_of,
    make_folders,
    open_plain_file,
    sync_folder,
    write_new_file,
)

_NUMBERED = re.compile(r"checkpoint-(\d{6,12})", re.ASCII)
_UNFINISHED = re.compile(r"checkpoint-\d{6,12}\.unfinished", re.ASCII)
_GENERATORS = "generators"  # the name of a part that each run has
_JSON_NAME = "run.json"
_FORMAT = 1
# The errors of parts that are given a state of another form.
_NOT_TAKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError)

_Gather: TypeAlias = Callable[[str, Any], list[Any]]  # Any: plain data, of any kind
_About: TypeAlias = Mapping[str, int]


@runtime_checkable
class HasState(Protocol):
    """A part of a run that says what its state is, as torch's modules and optimizers do.

    >>> isinstance(torch.nn.Linear(2, 2), HasState)
    True
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: nested dictionaries and lists of tensors, arrays and numbers."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Set the state that `state_dict` returned."""


def save_run(folder: str | Path, /, **parts: Any) -> Path:  # Any: a part of any of these kinds
    """Save all parts of a run as the newest checkpoint in a folder, and delete the ones before.

    A checkpoint is a folder, `checkpoint-000001` and so on. It is written under another name, which
    is changed when all is on the disk: a process that is killed, and a power cut, leave the newest
    checkpoint that was whole. The states of the global generators of Python, NumPy and torch
    are a part of each run.

    Trees and replay buffers are written as `tree.save_tree` does, from the memory that they have;
    of other states there is a second copy in memory as long as this takes.

    Args:
        folder: the folder of the checkpoints, which is made if there is none.
        parts: objects by names of your choice: those with `state_dict` and `load_state_dict`
            (agents, algorithms, optimizers, running moments, an `RLRunner`), generators of NumPy
            and torch, replay buffers, and ArrayDicts of Arrays.

    Returns:
        The checkpoint's folder.

    Raises:
        BlockingIOError: another process saves there.
        OSError: the disk is full, or the like. The checkpoint before is what it was.
        TypeError: a part is of another kind, or its state has something that is no number.

    >>> import tempfile
    >>> folder, model = tempfile.mkdtemp(), torch.nn.Linear(2, 1)
    >>> save_run(folder, model=model).name
    'checkpoint-000001'
    >>> load_run(folder, model=torch.nn.Linear(2, 1))
    True
    """
    return _save(Path(folder), check_parts(parts), _of_one, {})


def save_run_of_ranks(folder: Path, parts: Mapping[str, Any], settings: _About) -> Path:
    """Save a run as `save_run`, by all ranks together: each in a folder of its own.

    A checkpoint has the same number on all ranks. The ones before are deleted after all have theirs
    on the disk under its final name: so there is always one that all ranks have.

    Args:
        folder, parts: as for `save_run`.
        settings: numbers by names, which the run that goes on has to have, too.

    Raises:
        RankError: another rank has ended, or did not come in time. The checkpoint before is what
            it was.
    """
    about = {"n_ranks": n_ranks(), "rank": rank()} if n_ranks() > 1 else {}
    return _save(folder, check_parts(parts), gather, {**settings, **about})


def _of_one(what: str, value: Any) -> list[Any]:
    """Return what `gather` returns where there is one rank."""
    return [value]


def _save(folder: Path, parts: Mapping[str, Any], gathered: _Gather, about: _About) -> Path:
    """Write a checkpoint, and let it be the newest one when all ranks have written theirs.

    Args:
        folder: the folder of the checkpoints.
        parts: what is saved, with the generators.
        gathered: returns the values of all ranks, as `gather`.
        about: what else is written about the checkpoint.
    """
    make_folders(folder)
    with ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        _lock(folder, descriptor)
        before = _numbers_of(folder)
        _delete(folder, [name for name in os.listdir(folder) if _UNFINISHED.fullmatch(name)])
        newest = max(gathered("numbers of checkpoints to save", max(before, default=0)))
        name = f"checkpoint-{newest + 1:06d}"
        unfinished = folder / f"{name}.unfinished"
        unfinished.mkdir()
        try:
            _write(unfinished, parts, about)
            sync_folder(unfinished)
            gathered(f"{name} is written", None)
            unfinished.rename(folder / name)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_folder(folder)
        gathered(f"{name} has its name", None)
        _delete(folder, list(before.values()))
    return folder / name


def load_run(folder: str | Path, /, **parts: Any) -> bool:  # Any: as for save_run
    """Set all parts of a run to the newest checkpoint in a folder; return whether there is one.

    No code in a file runs; but states of environments are given to these (`Checkpoints`). All
    files but those of trees and replay buffers are read and compared with their checksums before
    anything is changed; those are compared before they change.

    Args:
        folder: the folder of the checkpoints.
        parts: objects like those that were saved, by the same names.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        KeyError: other parts were saved.
        TypeError: a part is of a kind that can't be saved.
        ValueError: a file is damaged; or a part does not take what was saved, whatever it raises
            itself.
    """
    return _load(Path(folder), check_parts(parts), _of_one, {})


def load_run_of_ranks(folder: Path, parts: Mapping[str, Any], settings: _About) -> bool:
    """Set all parts to the newest checkpoint that all ranks have; return whether there is one.

    Raises:
        RankError: another rank has ended, or did not come in time.
        ValueError: it was saved by another number of ranks, or by another rank, or with other
            settings; or as for `load_run`.
    """
    about = {"n_ranks": n_ranks(), "rank": rank()} if n_ranks() > 1 else {}
    return _load(folder, check_parts(parts), gather, {**settings, **about})


def _load(folder: Path, parts: Mapping[str, Any], gathered: _Gather, about: _About) -> bool:
    """Set all parts to the newest checkpoint that all ranks have; arguments are as for `_save`."""
    numbered = _numbers_of(folder)
    found = gathered("numbers of checkpoints to load", sorted(numbered))
    if not any(found):
        return False
    common = set(found[0]).intersection(*found)
    if not common:
        raise ValueError(
            f"{folder}: got the checkpoints {found} by ranks, expected one that all of them have;"
            " resume with as many ranks as the run was begun with, and with the folders of all"
        )
    _load_one(folder / numbered[max(common)], parts, about)
    return True


def _load_one(checkpoint: Path, parts: Mapping[str, Any], about: _About) -> None:
    """Set all parts to what a checkpoint has."""
    json_path = checkpoint / _JSON_NAME
    try:
        saved = saved_json.from_data(saved_json.read_data(json_path))
    except saved_json.DamagedError as error:
        raise ValueError(f"{json_path}: damaged: {error}") from error
    _check_about(checkpoint, saved, about)
    entries = saved.get("parts")
    if saved.get("format") != _FORMAT or not isinstance(entries, dict):
        raise ValueError(
            f"{json_path}: format {saved.get('format')!r}, expected {_FORMAT}, as this version of"
            " parllel writes it"
        )
    if entries.keys() != parts.keys():
        raise KeyError(
            f"{checkpoint}: saved with the parts {sorted(entries)}, expected {sorted(parts)}"
        )
    states = {
        name: _read_state(checkpoint / f"{name}.safetensors", entry)
        for name, entry in entries.items()
        if not _is_of_tree(entry)
    }
    for name, part in parts.items():
        if _is_tree(part) is (name in states):
            raise ValueError(f"{checkpoint}: {name} was saved as a part of another kind")
    for name, part in parts.items():  # the generators are the last: another part may draw
        try:
            if name in states:
                _set_state(part, states[name])
            else:
                _load_tree(part, checkpoint / name, entries[name])
        except _NOT_TAKEN as error:
            raise ValueError(
                f"{checkpoint}: part {name!r} does not take what was saved: {type(error).__name__}:"
                f" {error}; load it into parts that were made as those that were saved"
            ) from error
        except Exception as error:
            error.add_note(f"part {name!r} of {checkpoint}")
            raise


def _check_about(checkpoint: Path, saved: Mapping[str, Any], about: _About) -> None:
    """Refuse a checkpoint of another number of ranks, of another rank, or of other settings."""
    got, expected = ([each.get("rank", 0), each.get("n_ranks", 1)] for each in (saved, about))
    if got != expected:
        raise ValueError(
            f"{checkpoint}: saved by rank {got[0]} of {got[1]}, and this is rank {expected[0]} of"
            f" {expected[1]}; go on with as many ranks (torchrun --nproc-per-node {got[1]}), each"
            " with its own folder"
        )
    differing = {
        name: (saved[name], number)
        for name, number in about.items()
        if saved.get(name, number) != number
    }
    if differing:
        raise ValueError(
            f"{checkpoint}: saved with other settings (then, now): {differing}; go on with the"
            " same, or begin another run in another folder"
        )


def _lock(folder: Path, descriptor: int) -> None:
    try:
        try_lock(descriptor)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{folder}: another process saves there; give each run a folder of its own"
        ) from error


def check_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run, with the global generators behind them.

    Raises:
        TypeError: a part can't be saved, or its name is another one's.
    """
    if _GENERATORS in parts:
        raise TypeError(f"{_GENERATORS}: it is saved in any case; rename the part of that name")
    kinds = (BaseReplay, ArrayDict, HasState, np.random.Generator, torch.Generator)
    for name, part in parts.items():
        if not name.isidentifier():
            raise TypeError(f"{name!r}: the name of a part has to be one as of a variable")
        if not isinstance(part, kinds):
            raise TypeError(
                f"{name}: got a {type(part).__name__}, expected an object with state_dict and"
                " load_state_dict, a generator, a replay buffer or an ArrayDict"
            )
    return {**parts, _GENERATORS: GlobalGenerators()}


def _is_tree(part: object) -> bool:
    return isinstance(part, BaseReplay | ArrayDict)


def _numbers_of(folder: Path) -> dict[int, str]:
    """Return the names of the whole checkpoints in a folder, by their numbers."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return {}
    return {int(match[1]): match[0] for name in names if (match := _NUMBERED.fullmatch(name))}


def _delete(folder: Path, names: list[str]) -> None:
    """Delete checkpoints; one that can't be deleted stays."""
    for name in names:
        unfinished = folder / f"{name.removesuffix('.unfinished')}.unfinished"
        with suppress(OSError):
            if not name.endswith(".unfinished"):
                (folder / name).rename(unfinished)  # half of a checkpoint must not look like one
            shutil.rmtree(unfinished)


def _write(folder: Path, parts: Mapping[str, Any], about: _About) -> None:
    entries: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, BaseReplay):
            part.save(folder / name)
            entries[name] = _check_of_tree(folder / name)
        elif isinstance(part, ArrayDict):
            save_tree(part, folder / name, {})
            entries[name] = _check_of_tree(folder / name)
        else:
            from safetensors.torch import save  # only what is saved needs it

            data, tensors = to_data(_state_of(part))
            path = folder / f"{name}.safetensors"
            check = write_new_file(path, _writer_of(save(tensors)))
            entries[name] = {"state": data, "nbytes": check.nbytes, "crc32": check.crc32}
    content = saved_json.to_data({"format": _FORMAT, **about, "parts": entries})
    write_new_file(folder / _JSON_NAME, _writer_of(content))


def _writer_of(content: bytes) -> Callable[[CheckedWriter], object]:
    return lambda file: file.write(content)


def _read_state(path: Path, entry: Mapping[str, Any]) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open_plain_file(path) as file:
        try:
            if check_of(file) != FileCheck(entry["nbytes"], entry["crc32"]):
                raise ValueError("damaged: its bytes are not those that were saved (CRC-32)")
            file.seek(0)
            return from_data(entry["state"], load(file.read()))
        except (SafetensorError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no state of a run: {error}") from error


def _state_of(part: Any) -> Any:
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict()


def _set_state(part: Any, state: Any) -> None:
    if isinstance(part, np.random.Generator):
        set_generator_state(part, state)
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def _check_of_tree(folder: Path) -> dict[str, list[int]]:
    """Return the check of the file that names all others of a tree, with their checksums."""
    with open_plain_file(folder / "tree.json") as file:
        return {"tree": list(check_of(file))}


def _is_of_tree(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"tree"}


def _load_tree(part: BaseReplay[Any] | ArrayDict, folder: Path, entry: object) -> None:
    if _check_of_tree(folder) != entry:
        raise ValueError(f"{folder}: damaged: it is another tree than the one that was saved")
    if isinstance(part, BaseReplay):
        part.load(folder)
    else:
        open_tree(folder).load_into(part)
