"""CUDARuntimeError: what the stand-in for the CUDA runtime raises, with CUDA's numbers."""

from __future__ import annotations

from typing import Final

INVALID_VALUE: Final = 1
INVALID_DEVICE: Final = 101
INVALID_HANDLE: Final = 400
ALREADY_REGISTERED: Final = 712
NOT_REGISTERED: Final = 713
CAPTURE_UNSUPPORTED: Final = 900
CAPTURE_INVALIDATED: Final = 901
CAPTURE_MERGE: Final = 902
CAPTURE_UNMATCHED: Final = 903
CAPTURE_UNJOINED: Final = 904
CAPTURE_ISOLATION: Final = 905
CAPTURE_IMPLICIT: Final = 906
CAPTURED_EVENT: Final = 907

_ERRORS = {
    INVALID_VALUE: "cudaErrorInvalidValue: invalid argument",
    INVALID_DEVICE: "cudaErrorInvalidDevice: invalid device ordinal",
    INVALID_HANDLE: "cudaErrorInvalidResourceHandle: invalid resource handle",
    ALREADY_REGISTERED: "cudaErrorHostMemoryAlreadyRegistered: part or all of the requested memory"
    " range is already mapped",
    NOT_REGISTERED: "cudaErrorHostMemoryNotRegistered: pointer does not correspond to a registered"
    " memory region",
    CAPTURE_UNSUPPORTED: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is"
    " capturing",
    CAPTURE_INVALIDATED: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous"
    " error during capture",
    CAPTURE_MERGE: "cudaErrorStreamCaptureMerge: operation would result in a merge of separate"
    " capture sequences",
    CAPTURE_UNMATCHED: "cudaErrorStreamCaptureUnmatched: capture was not ended in the same stream"
    " as it began",
    CAPTURE_UNJOINED: "cudaErrorStreamCaptureUnjoined: capturing stream has unjoined work",
    CAPTURE_ISOLATION: "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in"
    " another stream",
    CAPTURE_IMPLICIT: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream"
    " depend on a capturing blocking stream",
    CAPTURED_EVENT: "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a"
    " capturing stream",
}


class CUDARuntimeError(RuntimeError):
    """Stands in for cupy.cuda.runtime.CUDARuntimeError."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS.get(status, f"error {status}"))
