"""What a call hands to a GPU: launches, copies, and waits of the host; parllel's and torch's."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

from parllel import cuda

# Of torch's operations, these copy between memories, and these only allocate.
COPIES = ("aten.copy_", "aten._to_copy")
ALLOCATIONS = ("aten.empty", "aten.new_empty")


class Work(NamedTuple):
    """What calls handed to the GPU.

    Args:
        launches: kernels of parllel, and operations of torch that compute; each of these launches
            at least one kernel.
        copies: copies to or from the host, and torch's copies of any kind.
        waits: how often the host waited for an event or a stream of parllel.
    """

    launches: int
    copies: int
    waits: int


class _Operations(TorchDispatchMode):
    """Counts torch's operations; views of tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.n_launches = self.n_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(COPIES):
            self.n_copies += 1
        elif not name.startswith(ALLOCATIONS) and not is_view(func):
            self.n_launches += 1
        return func(*args, **(kwargs or {}))


def is_view(func: Any) -> bool:  # Any: torch._ops.OpOverload
    """Tell whether an operation returns memory that it was given, and writes nothing."""
    schema = func._schema
    return not schema.is_mutable and any(each.alias_info is not None for each in schema.returns)


def count_work(call: Callable[[], object]) -> Work:
    """Make a call, and count what it hands to the GPU."""
    before = copy.copy(cuda.counters)
    with _Operations() as torchs:
        call()
    ours = cuda.counters.since(before)
    return Work(
        ours.launches + torchs.n_launches,
        ours.copies_to_device + ours.copies_to_host + torchs.n_copies,
        ours.event_synchronizations + ours.stream_synchronizations,
    )
