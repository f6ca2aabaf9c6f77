"""Whether a stream is being captured in a CUDA graph, and the refusal of what can't be captured."""

from __future__ import annotations

from parllel.cuda.library import Stream
from parllel.cuda.streams import current_stream

CAN_BE_CAPTURED = (
    "what can be captured: ReplayBuffer.sample and update_priorities, gathers by a device array,"
    " gather_rows,"
    " EstimateAdvantage, and NormalizeAdvantage of a batch without `valid`, each after a first call"
    " that was not captured"
)


def is_capturing(stream: Stream | None = None) -> bool:
    """Tell whether a stream is being captured, the caller's current one by default.

    What is queued in it becomes a part of a CUDA graph then, and runs when the graph is launched
    (`cupy.cuda.Stream.begin_capture`, `torch.cuda.graph`). Waits for nothing.

    Args:
        stream: a stream of CuPy's kind.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: a call that CUDA refused has ended the capture.
    """
    used = current_stream() if stream is None else stream
    is_captured: bool = used.is_capturing()
    return is_captured


def refuse_capture(what: str, *, stream: Stream | None = None) -> None:
    """Raise if a stream is being captured: a replay would miss a part of what is done now.

    Args:
        what: what can't be captured, as the beginning of a sentence.
        stream: a stream of CuPy's kind, the caller's current one by default.

    Raises:
        CudaUnavailableError: there is no usable device.
        RuntimeError: the stream is being captured. The capture stays valid.
    """
    if is_capturing(stream):
        raise RuntimeError(
            f"{what} can't be captured in a CUDA graph: call it before the capture, or between"
            f" replays; {CAN_BE_CAPTURED}"
        )
