"""Torch's CUDA graphs: the stand-ins for torch.cuda.graph and CUDAGraph, and recorded operations.

While the current stream is captured, an operation of torch writes nothing, as on a GPU: its results
are NaN, and what it writes in place keeps its values. Each replay runs it, on its place in the
order. Torch's private pool is not imitated: what is made during a capture stays.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from parllel.testing.simulated_cuda import streams
from parllel.testing.simulated_cuda.active import Machine, current_stream, machine
from parllel.testing.simulated_cuda.capture import GLOBAL, RELAXED, THREAD_LOCAL
from parllel.testing.simulated_cuda.errors import NotImitatedError
from parllel.testing.simulated_cuda.runtime_errors import CAPTURE_UNSUPPORTED

_MODES = {"global": GLOBAL, "thread_local": THREAD_LOCAL, "relaxed": RELAXED}


class CUDAGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False) -> None:
        if keep_graph:
            raise NotImitatedError("a CUDAGraph with keep_graph is not imitated")
        self._stream: streams.Stream | None = None
        self._graph: streams.Graph | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        """Record what is queued in the current stream from now on."""
        self._stream = streams.get_current_stream()
        self._stream.begin_capture(_MODES[capture_error_mode])

    def capture_end(self) -> None:
        """End the recording."""
        if self._stream is None:
            raise RuntimeError("capture_end: no capture was begun")
        self._graph = self._stream.end_capture()

    def replay(self) -> None:
        """Queue what was recorded, in the current stream."""
        if self._graph is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._graph.launch()

    def reset(self) -> None:
        """Forget what was recorded."""
        self._graph = None

    def pool(self) -> tuple[int, int]:
        """Return a name of the graph's memory pool, which is not imitated."""
        return 0, 0


class graph:  # noqa: N801  # torch's name
    """Stands in for torch.cuda.graph: a context that captures a stream of its own."""

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: object = None,
        stream: object = None,
        capture_error_mode: str = "global",
    ) -> None:
        if stream is not None:
            raise NotImitatedError("torch.cuda.graph with a stream is not imitated")
        self.cuda_graph = cuda_graph
        self.capture_error_mode = capture_error_mode
        self._stream = streams.Stream(non_blocking=True)

    def __enter__(self) -> Self:
        streams.synchronize_device()
        gc.collect()
        self._stream.__enter__()
        self.cuda_graph.capture_begin(capture_error_mode=self.capture_error_mode)
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self.cuda_graph.capture_end()
        finally:
            self._stream.__exit__(*args)


@contextmanager
def torch_graphs() -> Iterator[None]:
    """Put the stand-ins into the place of torch's own classes."""
    import torch

    former = torch.cuda.CUDAGraph, torch.cuda.graph
    torch.cuda.CUDAGraph, torch.cuda.graph = CUDAGraph, graph  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.cuda.CUDAGraph, torch.cuda.graph = former  # type: ignore[misc]


def is_recorded(simulated: Machine) -> bool:
    """Tell whether torch's operations of this thread are recorded now."""
    return bool(simulated.engine.captures) and streams.is_capturing(current_stream())


def refuse_values() -> None:
    """Raise, because the host wants values of a stream that is being captured."""
    engine = machine().engine
    capture = engine.captures.of(engine.stream_at(current_stream()))
    if capture is not None:
        raise capture.fail(CAPTURE_UNSUPPORTED)


def record(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # Any: torch's
    """Record an operation of torch, and return what it gives, without its values.

    Args:
        function: an overload of one of torch's operators.
        args, kwargs: its arguments.
    """
    if str(function) == "aten._local_scalar_dense.default":  # tensor.item()
        refuse_values()
    kept = [(tensor, tensor.clone()) for tensor in _written(function, args, kwargs)]
    result = function(*args, **kwargs)
    for tensor, values in kept:
        tensor.copy_(values)
    made = list(_made(function, result))
    for tensor in made:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    if made or kept:
        run = functools.partial(_replay, function, args, kwargs, made)
        machine().engine.queue(current_stream(), f"torch: {function}", run)
    return result


def _replay(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Any]
) -> None:
    """Run a recorded operation, and write its results where those of the capture are."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with torch._C._AutoDispatchBelowAutograd(), _disable_current_modes():
        for tensor, values in zip(made, _made(function, function(*args, **kwargs)), strict=True):
            tensor.copy_(values)


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield the tensors that an operator writes in place."""
    for number, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from _tensors(given)


def _made(function: Any, result: Any) -> Iterator[Any]:
    """Yield the new tensors among an operator's results: neither views nor what it has written."""
    results = result if len(function._schema.returns) > 1 else (result,)
    for declared, found in zip(function._schema.returns, results, strict=False):
        if declared.alias_info is None:
            yield from _tensors(found)


def _tensors(value: Any) -> Iterable[Any]:
    from torch import Tensor
    from torch.utils._pytree import tree_iter

    return [leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor)]
