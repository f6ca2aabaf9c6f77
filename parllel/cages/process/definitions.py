"""How functions, classes and handles of the program are packed for a worker, and unpacked there.

What can be imported is sent by its name. Functions and classes of `__main__`, local ones, and those
of modules that only the program can import are sent by their definitions, and found by their names
in the other process, too.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from multiprocessing import connection, context
from multiprocessing.reduction import ForkingPickler
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

assert connection  # registers how connections are pickled


class Handles:
    """The descriptors of what is packed, which go to the worker beside the pickled bytes.

    multiprocessing asks this object, as it asks a process that is being started. Otherwise it
    would hand each descriptor out once, and keep those that nothing fetches.

    >>> with packing("forkserver") as handles:
    ...     packed = pack([1, 2])
    >>> handles.descriptors
    []

    Args:
        method: the start method of the worker, which decides whether it inherits memory.

    Attributes:
        descriptors: in the order of packing. They belong to the objects that were packed.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        """Return the place of a descriptor among those that are sent."""
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1

    @staticmethod
    def DupFd(place: int) -> SentDescriptor:  # noqa: N802  # multiprocessing's own name
        """Return what is pickled for a descriptor."""
        return SentDescriptor(place)


class SentDescriptor:
    """A descriptor that a worker has got with its task.

    >>> take_descriptors([7])
    >>> SentDescriptor(0).detach()
    7
    """

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """Return the descriptor in this process, which then belongs to the caller."""
        return _received[self._place]


_received: list[int] = []  # of this worker


def take_descriptors(descriptors: list[int]) -> None:
    """Keep the descriptors that came with this worker's task, for objects that are unpacked."""
    _received[:] = descriptors


@contextmanager
def packing(method: str) -> Iterator[Handles]:
    """Collect the handles of all that is packed in this context, for a new worker."""
    handles, before = Handles(method), context.get_spawning_popen()
    context.set_spawning_popen(handles)  # type: ignore[arg-type]  # it asks for no more than that
    try:
        yield handles
    finally:
        context.set_spawning_popen(before)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no annotations
    """Notes which names of modules are sent by their definitions."""

    def __init__(self, file: io.BytesIO) -> None:
        # Sockets and pipes, which cloudpickle would refuse, or send as numbers that mean nothing.
        handles = {
            kind: reduce
            for kind, reduce in ForkingPickler._extra_reducers.items()  # type: ignore[attr-defined]
            if reduce.__module__.partition(".")[0] == "multiprocessing"
        }
        self.dispatch_table = ChainMap(handles, cloudpickle.Pickler.dispatch_table)
        self.named: dict[str, dict[str, Any]] = {}  # by module. Any: a function, class or file
        self.by_value: list[ModuleType] = []
        self._can_be_imported: dict[str, bool] = {}
        super().__init__(file, 5)

    def reducer_override(self, value: Any) -> Any:  # Any: as pickle has it
        if isinstance(value, type | FunctionType | ModuleType):
            self._look_at(value)
        return super().reducer_override(value)

    def _look_at(self, value: type | FunctionType | ModuleType) -> None:
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
        if name not in sys.modules or (name != "__main__" and self._is_importable(name)):
            return
        module = sys.modules[name]
        if name != "__main__" and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self.by_value.append(module)
        if not isinstance(value, ModuleType) and vars(module).get(value.__qualname__) is value:
            self.named.setdefault(name, {})[value.__qualname__] = value
            if name != "__main__":  # the file decides on whether it can be imported there
                self.named[name]["__file__"] = _file_of(name)

    def _is_importable(self, name: str) -> bool:
        if name not in self._can_be_imported:
            self._can_be_imported[name] = can_be_imported(name)
        return self._can_be_imported[name]


def pack(value: object) -> bytes:
    """Pickle a value for `unpack` in another process; handles only in a context of `packing`.

    Raises:
        Exception: it can't be pickled.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump((value, pickler.named))  # the names come last, when all of them are known
    finally:
        for module in pickler.by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue()


def unpack(packed: bytes) -> Any:  # Any: what was packed
    """Return what was packed, and give modules of this process the names that came with it.

    These are `__main__`, and modules that only the sender can import: here they are made of the
    names alone. So pickle finds them by their names in this process, too. In processes that this
    one starts by multiprocessing, it does not look for them there: they get the definitions.
    """
    value, named = pickle.loads(packed)
    for module, names in named.items():
        if module not in sys.modules:
            _make_module(module)
        if module == "__main__" or sys.modules[module] is _made.get(module):
            vars(sys.modules[module]).update(names)
    if named:
        setattr(ForkingPickler, "reducer_override", _reduce_definition)  # noqa: B010  # of a class
    return value


_made: dict[str, ModuleType] = {}


def _make_module(name: str) -> None:
    """Make a module, and those above it that can't be imported, since pickle imports them, too."""
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules and _find(parent) is None:
        _make_module(parent)
    _made[name] = sys.modules[name] = ModuleType(name)


def _reduce_definition(_: ForkingPickler, value: Any) -> Any:  # Any: as pickle has it
    if isinstance(value, type | FunctionType) and value.__module__ in {"__main__", *_made}:
        return unpack, (pack(value),)
    return NotImplemented


def can_be_imported(name: str) -> bool:
    """Return whether another process with the same `sys.path` would import the same module.

    Args:
        name: name of a module that this process has imported.
    """
    file = _file_of(name)
    if name.partition(".")[0] in sys.stdlib_module_names or (file and not file.endswith(".py")):
        return True
    parent = name.rpartition(".")[0]
    if parent and file is None:  # its parent makes it
        return True
    if parent in sys.modules and not can_be_imported(parent):
        return False
    try:
        spec = _find(name)
    except Exception:  # a finder of another library fails: pickle it by its name, as ever
        return True
    if spec is None:
        return False
    origin = spec.origin
    if origin is None or file is None or not (os.path.exists(origin) and os.path.exists(file)):
        return True
    return os.path.samefile(origin, file)


def _find(name: str) -> ModuleSpec | None:
    """Return where the import system finds a module that was not imported yet."""
    path, parent = None, name.rpartition(".")[0]
    if parent in sys.modules and _file_of(parent) is not None:
        path = sys.modules[parent].__path__
    elif parent:  # a namespace, which a program may have extended, or one that was not imported
        parent_spec = _find(parent)
        path = None if parent_spec is None else parent_spec.submodule_search_locations
        if path is None:
            return None
    specs = (finder.find_spec(name, path, None) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)


def _file_of(name: str) -> str | None:
    return getattr(sys.modules[name], "__file__", None)
