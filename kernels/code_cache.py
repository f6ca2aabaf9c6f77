"""The disk cache of compiled kernels: it never stops a program. It says once what takes time."""

# mypy: allow-untyped-calls
import contextlib
import functools
import logging
import pickle
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from numba.core import config, event, ir
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

from parllel.kernels.inlining import with_shared_scopes

Dispatcher: TypeAlias = Any  # numba.core.registry.CPUDispatcher; Numba's classes are not typed
_CONFIG: Any = config  # Any: its names are made when it is imported

_logger = logging.getLogger(__name__)

_CHECKSUM_NBYTES = 4


@contextlib.contextmanager
def with_compiler() -> Iterator[None]:
    """Hold Numba's lock, and let it compile although NUMBA_DISABLE_JIT is set.

    The variable is for a program's own functions, in a debugger. It gives plain functions back,
    also to those inside Numba that a compilation asks for.
    """
    with global_compiler_lock:
        is_disabled = _CONFIG.DISABLE_JIT
        _CONFIG.DISABLE_JIT = 0
        try:
            with with_shared_scopes(ir.Scope):
                yield
        finally:
            _CONFIG.DISABLE_JIT = is_disabled


def compile_or_load(dispatcher: Dispatcher, signature: str) -> None:
    """Give a dispatcher its machine code: that of the disk cache, or newly compiled and kept there.

    A cache that is damaged, full, read-only or nowhere costs time, and a warning; the kernel is
    compiled again. The first kernel of a process that is compiled is told on stderr.

    Args:
        dispatcher: it has no code yet, and takes no other types afterwards.
        signature: in Numba's notation.
    """
    try:
        dispatcher._cache = _DiskCache(dispatcher.py_func)
    except Exception as error:  # whatever the search for a folder comes upon
        _warn_once(str(error))
    with event.install_listener("numba:compile", _Announcer(dispatcher)):
        dispatcher.compile(signature)
    dispatcher.disable_compile()


class _Announcer(event.Listener):
    """Tells that a dispatcher is compiled, before it is."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def on_start(self, event: Any) -> None:  # Any: numba.core.event.Event
        if event.data["dispatcher"] is self._dispatcher:
            _announce(self._dispatcher._cache.cache_path)

    def on_end(self, event: Any) -> None:  # Any: as above
        pass


@functools.cache  # once for each folder: there is one
def _announce(folder: str | None) -> None:
    """Print that kernels are compiled. It is no warning: it tells the user what the wait is for."""
    if sys.stderr is None:
        return
    kept = "later programs find them there" if folder else "they can't be kept"
    place = f" to {folder}" if folder else ""
    try:
        print(
            f"parllel: compiling kernels{place}, which takes seconds; {kept}"
            " (`python -m parllel compile` does it ahead)",
            file=sys.stderr,
            flush=True,
        )
    except (OSError, ValueError):  # a stream that is closed or full is not worth a run
        _logger.debug("stderr takes no text", exc_info=True)


@functools.cache
def _warn_once(reason: str) -> None:
    _logger.warning(
        "compiled kernels are not kept, every process compiles them again (%s); "
        "set NUMBA_CACHE_DIR to a writable directory",
        reason,
    )


class _DiskCache(FunctionCache):
    """Numba's cache of a function, whose faults are told and not raised."""

    def __init__(self, function: Any) -> None:  # Any: whatever the entry is
        super().__init__(function)
        base, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFiles(self.cache_path, base, stamp)

    def load_overload(self, signature: str, context: Any) -> Any:  # Any: Numba's own
        """Return what is kept, or None: damaged files are as good as none."""
        try:
            return super().load_overload(signature, context)
        except Exception as error:  # what was damaged in the file decides
            _logger.warning("%s: a kernel is compiled again (%s)", self.cache_path, _text(error))
            return None

    def save_overload(self, signature: str, compiled: Any) -> None:  # Any: Numba's own
        """Keep what was compiled, where there is place for it."""
        try:
            super().save_overload(signature, compiled)
        except Exception as error:  # a full disk, a folder that lost its permissions
            _warn_once(_text(error))


class _CheckedFiles(IndexDataCacheFile):
    """Numba's files of one function, each with a checksum behind what Numba reads.

    Machine code with a flipped bit would run. The checksum is of accidents, not of attacks: the
    folder is trusted with code, as that of the sources.
    """

    def _dump(self, content: object) -> bytes:
        data: bytes = super()._dump(content)
        return data + zlib.crc32(data).to_bytes(_CHECKSUM_NBYTES, "little")

    def _load_index(self) -> dict[object, str]:
        path, version = Path(self._index_path), pickle.dumps(self._version, protocol=-1)
        try:
            data = path.read_bytes() if path.exists() else b""
            if not data.startswith(version):  # of no Numba, or of another one
                return {}
            _check(path, data.removeprefix(version))
            overloads: dict[object, str] = super()._load_index()
        except Exception as error:  # as in load_overload; saving begins a new index then
            _logger.warning("%s: the kernel is compiled again (%s)", path, _text(error))
            return {}
        return overloads

    def _load_data(self, name: str) -> Any:  # Any: Numba's own
        path = Path(self._data_path(name))
        _check(path, path.read_bytes())
        return super()._load_data(name)


def _check(path: Path, data: bytes) -> None:
    kept, checksum = data[:-_CHECKSUM_NBYTES], data[-_CHECKSUM_NBYTES:]
    if zlib.crc32(kept).to_bytes(_CHECKSUM_NBYTES, "little") != checksum:
        raise ValueError(f"{path.name} is damaged")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
