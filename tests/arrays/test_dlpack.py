"""Array.__dlpack__ and __dlpack_device__, held to the array API standard 2023.12 and to DLPack 1.

What is in a capsule is read by a reader of its own here. Device, managed and pinned memory are
simulated: a simulated device's capsules are the host's, because torch's tensors are.
"""

import ctypes
import enum
import inspect
import math
import multiprocessing as mp
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from optional import needs
from parllel import Array, ArrayDict, cuda
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

HOST_KINDS = ("local", "shared", "inherited", "pinned")
DEVICE_KINDS = ("device", "managed")
ALL_KINDS = (*HOST_KINDS, *DEVICE_KINDS)
HOST = (1, 0)
READ_ONLY, IS_COPIED = 1, 2

VIEWS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda array: array,
    "rows": lambda array: array[1:3],
    "padding": lambda array: array[-1:6],
    "column": lambda array: array[:, 2],
    "steps": lambda array: array[::2, 1:],
    "row": lambda array: array[2],
    "element": lambda array: array[2, 2],
    "nothing": lambda array: array[2:2],
}
each_view = pytest.mark.parametrize("view_of", VIEWS.values(), ids=VIEWS)


@pytest.fixture(params=ALL_KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with simulated_cuda("eager"):
        yield request.param


def counted(storage: str) -> Array:
    array = Array((5, 4), np.int32, padding=1, storage=storage)
    array[-1:6] = np.arange(28).reshape(7, 4)
    return array


def is_on_device(array: Array) -> bool:
    return array.storage in DEVICE_KINDS


# A reader of capsules


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Content(NamedTuple):
    """What a capsule holds; version and flags are None before DLPack 1."""

    version: tuple[int, int] | None
    flags: int | None
    address: int
    device: tuple[int, int]
    dtype: tuple[int, int, int]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(capsule: Any) -> Content:
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_pointer_in(capsule, b"dltensor_versioned"))
        version, flags, tensor = (managed.major, managed.minor), managed.flags, managed.tensor
    else:
        tensor = _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
        version = flags = None
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple(tensor.strides[: tensor.ndim])
    else:  # NumPy before 2.3 leaves them out where they are C's
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(tensor.ndim))
    return Content(
        version,
        flags,
        (tensor.data or 0) + tensor.byte_offset,
        (tensor.device_type, tensor.device_id),
        (tensor.code, tensor.bits, tensor.lanes),
        shape,
        strides,
    )


class Consumer:
    """Hands a capsule on to a library."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return HOST


def as_numpy(capsule: Any) -> np.ndarray:
    return np.from_dlpack(Consumer(capsule))


def place_of(array: Array) -> tuple[int, tuple[int, ...]]:
    """Return the address of the first element of an Array, and its strides in elements."""
    if is_on_device(array):
        view = array.to_cupy()
        address, strides = view.data.ptr, view.strides
    else:
        values = array.to_ndarray()
        address, strides = values.ctypes.data, values.strides
    return address, tuple(stride // 4 for stride in strides)


# The capsule


def test_the_signature_is_the_standards() -> None:
    parameters = inspect.signature(Array.__dlpack__).parameters.values()
    assert [(each.name, each.kind, each.default) for each in parameters][1:] == [
        (name, inspect.Parameter.KEYWORD_ONLY, None)
        for name in ("stream", "max_version", "dl_device", "copy")
    ]
    assert list(inspect.signature(Array.__dlpack_device__).parameters) == ["self"]


@each_view
@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_a_view_goes_out_as_it_lies(
    kind: str, view_of: Callable[[Array], Array], max_version: Any
) -> None:
    view = view_of(counted(kind))
    capsule = view.__dlpack__(max_version=max_version)
    content = read(capsule)
    address, strides = place_of(view)
    assert content.shape == view.shape
    assert content.dtype == (0, 32, 1)  # kDLInt
    assert content.flags in (None, 0)
    if view.size:
        assert (content.address, content.strides) == (address, strides)
    out = as_numpy(capsule)
    assert_array_equal(out, view.to_ndarray())
    view[...] = -7
    assert (out == -7).all()


@pytest.mark.parametrize(
    ("max_version", "version"),
    [(None, None), ((0, 8), None), ((1, 0), (1, 0)), ((1, 3), (1, 0)), ((2, 0), (1, 0))],
)
def test_who_knows_dlpack_1_gets_a_capsule_of_it(kind: str, max_version: Any, version: Any) -> None:
    assert read(counted(kind).__dlpack__(max_version=max_version)).version == version


def test_a_capsule_keeps_the_memory(kind: str) -> None:
    array = counted(kind)
    capsule = array[1:3].__dlpack__(max_version=(1, 0))
    array.close()
    del array
    assert_array_equal(as_numpy(capsule), np.arange(8, 16).reshape(2, 4))


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f8", "c8"])
def test_a_capsule_tells_the_type(kind: str, dtype: str) -> None:
    array = Array((3,), dtype, storage=kind)
    code = {"?": 6, "u": 1, "i": 0, "f": 2, "c": 5}[dtype[0]]
    assert read(array.__dlpack__()).dtype == (code, 8 * array.dtype.itemsize, 1)


def test_a_type_that_dlpack_does_not_know_is_a_buffer_error() -> None:
    for dtype in ("S3", "M8[s]"):
        with pytest.raises(BufferError):
            Array((3,), dtype).__dlpack__()


# Copies


def outcome(call: Callable[[], Any]) -> Any:
    """Return the flags of a capsule, or the kind of error."""
    try:
        return read(call()).flags
    except BufferError as error:
        return "refused" if isinstance(error, ValueError) else "can't say so"


@pytest.mark.parametrize("is_gathered", [False, True])
@pytest.mark.parametrize("max_version", [None, (1, 0)])
@pytest.mark.parametrize("dl_device", [None, HOST])
@pytest.mark.parametrize("copy", [None, False, True])
def test_a_copy_is_made_where_it_is_asked_for_or_necessary(
    kind: str, is_gathered: bool, max_version: Any, dl_device: Any, copy: bool | None
) -> None:
    array = counted(kind)
    view = array[[0, 2, 2], [1, 3, 0]] if is_gathered else array[1:3]
    is_necessary = is_gathered or (kind == "device" and dl_device == HOST)
    if copy is False and is_necessary:
        expected: Any = "refused"
    elif is_necessary and copy is None:
        expected = IS_COPIED | READ_ONLY if max_version else "can't say so"
    else:
        expected = (IS_COPIED if copy else 0) if max_version else None

    def call() -> Any:
        return view.__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)

    assert outcome(call) == expected
    if isinstance(expected, str):
        return
    out = as_numpy(call())
    assert_array_equal(out, view.to_ndarray())
    assert out.flags.writeable == (max_version is not None and not (expected or 0) & READ_ONLY)
    before = out.copy()
    view[...] = -7
    assert_array_equal(out, before if copy or is_necessary else -7)


@pytest.mark.parametrize("copy", [None, True, False])
def test_the_error_of_a_copy_says_why_and_what_to_do(kind: str, copy: bool | None) -> None:
    view = counted(kind)[[0, 2]]
    if copy is False:
        with pytest.raises(BufferError, match="made with integer arrays or a mask"):
            view.__dlpack__(copy=False)
    elif copy is None:
        with pytest.raises(BufferError, match=r"ask with max_version=\(1, 0\).*copy=True"):
            view.__dlpack__()
    else:
        assert as_numpy(view.__dlpack__(copy=True)).tolist() == view.to_ndarray().tolist()


def test_read_only_memory_of_others_stays_read_only() -> None:
    source = np.arange(6)
    source.flags.writeable = False
    array = Array.from_dlpack(source)
    assert read(array.__dlpack__(max_version=(1, 0))).flags == READ_ONLY
    with pytest.raises(BufferError):
        array.__dlpack__()
    assert read(array.__dlpack__(max_version=(1, 0), copy=True)).flags == IS_COPIED


@pytest.mark.parametrize("copy", [1, 0, "always", np.True_])
def test_what_is_no_answer_is_a_type_error(kind: str, copy: Any) -> None:
    with pytest.raises(TypeError, match=r"copy: got .*expected True, False or None"):
        counted(kind).__dlpack__(copy=copy)


# Devices


def test_the_device_is_where_the_memory_is(kind: str) -> None:
    array = counted(kind)
    for view in (array, array[2], array[[1, 2]]):
        assert view.__dlpack_device__() == HOST  # where simulated memory is


def test_managed_and_device_memory_give_the_device_that_cupy_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulated_cuda("eager"):
        ndarray = cuda.library().ndarray
        monkeypatch.setattr(ndarray, "__dlpack_device__", lambda array: (np.int64(13), 1))
        assert counted("managed").__dlpack_device__() == (13, 1)
        assert type(counted("device").__dlpack_device__()[0]) is int
        assert counted("pinned").__dlpack_device__() == HOST


class Type(enum.Enum):
    CPU = 1
    CUDA = 2


class TypeNumber(enum.IntEnum):
    CPU = 1
    CUDA = 2


@pytest.mark.parametrize("cpu", [HOST, (Type.CPU, 0), (TypeNumber.CPU, 0)])
def test_a_device_type_may_be_a_member_of_an_enumeration(kind: str, cpu: Any) -> None:
    values = as_numpy(counted(kind).__dlpack__(dl_device=cpu, max_version=(1, 0)))
    assert_array_equal(values, np.arange(4, 24).reshape(5, 4))


@pytest.mark.parametrize("device", [(2, 0), (Type.CUDA, 0), (13, 0), (1, 1), (3, 0)])
def test_a_device_that_the_memory_is_not_on_is_a_buffer_error(kind: str, device: Any) -> None:
    for copy in (None, True, False):
        with pytest.raises(BufferError, match=r'expected \(1, 0\), where the memory is.*to\("dev'):
            counted(kind).__dlpack__(dl_device=device, copy=copy)


@pytest.mark.parametrize("device", [1, "cpu", [1, 0], (1,), (1, 0, 0), (1.0, 0), (Type.CPU,)])
def test_what_is_no_device_is_a_type_error(kind: str, device: Any) -> None:
    with pytest.raises(TypeError, match=r"dl_device: got .*expected a device type and a number"):
        counted(kind).__dlpack__(dl_device=device)


@pytest.mark.parametrize("version", [1, "1.0", [1, 0], (1,), (1.0, 0)])
def test_what_is_no_version_is_a_type_error(kind: str, version: Any) -> None:
    with pytest.raises(TypeError, match=r"max_version: got .*expected two integers"):
        counted(kind).__dlpack__(max_version=version)


@pytest.mark.parametrize("copy", [None, True])
def test_device_memory_goes_to_the_host_by_one_copy_and_one_wait(copy: bool | None) -> None:
    with simulated_cuda("lazy") as simulation:
        array = counted("device")
        simulation.counters.reset()
        capsule = array[1:3, ::2].__dlpack__(max_version=(1, 0), dl_device=HOST, copy=copy)
        counted_now = simulation.counters.as_dict()
        assert_array_equal(as_numpy(capsule), [[8, 10], [12, 14]])
    expected = {"copies_to_host": 1, "bytes_to_host": 16, "stream_synchronizations": 1}
    assert {name: n for name, n in counted_now.items() if n} == expected


def test_managed_memory_that_the_host_asks_for_is_there() -> None:
    with simulated_cuda("lazy"):
        array = counted("managed")
        array.to_cupy()[1:3] = 5
        capsule = array.__dlpack__(max_version=(1, 0), dl_device=HOST)
        assert read(capsule).address == array.to_ndarray().ctypes.data
        assert (as_numpy(capsule)[1:3] == 5).all()


# Streams


@pytest.mark.parametrize("stream", [-1, 0, 1, 2, 0x7000, "1"])
def test_memory_of_the_host_has_no_stream(kind: str, stream: Any) -> None:
    array = counted(kind)
    dl_device = HOST if is_on_device(array) else None
    with pytest.raises(ValueError, match=r"stream: got .*expected None: memory of the host"):
        array.__dlpack__(stream=stream, dl_device=dl_device, copy=True)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
@pytest.mark.parametrize(
    ("stream", "error"), [(0, ValueError), (-2, ValueError), (True, TypeError), (1.0, TypeError)]
)
def test_what_is_no_stream_is_an_error(kind: str, stream: Any, error: type[Exception]) -> None:
    with simulated_cuda(), pytest.raises(error, match="stream: got"):
        counted(kind).__dlpack__(stream=stream)
    with simulated_cuda(), pytest.raises(TypeError, match="expected the integer of a stream"):
        counted(kind).__dlpack__(stream=cuda.current_stream())  # type: ignore[arg-type]


def new_stream() -> Any:
    return cuda.library().cuda.Stream(non_blocking=True)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
@pytest.mark.parametrize("receiver", [None, 1, 2, "another"])
@pytest.mark.parametrize("copy", [None, True])
def test_the_receivers_stream_waits_for_the_callers_and_the_host_does_not(
    kind: str, receiver: Any, copy: bool | None
) -> None:
    with simulated_cuda("lazy") as simulation:
        array = counted(kind)
        cuda.synchronize()
        stream = new_stream().ptr if receiver == "another" else receiver
        with cuda.use_stream(new_stream()):
            array.to_cupy().fill(3)
            simulation.counters.reset()
            cuda.counters.reset()
            capsule = array.__dlpack__(stream=stream, max_version=(1, 0), copy=copy)
        assert simulation.n_pending >= 3  # the fill, the event, the wait
        n_events = 2 if copy else 1  # the second one holds the caller's writes back
        assert simulation.counters == cuda.Counters(event_records=n_events, event_waits=n_events)
        assert cuda.counters == simulation.counters
        cuda.synchronize(cuda.library().cuda.Stream.from_external(Handle(stream or 1)))
        assert (as_numpy(capsule) == 3).all()


class Handle:
    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_where_no_order_is_asked_for_or_needed_there_is_no_event(kind: str) -> None:
    with simulated_cuda("lazy") as simulation:
        array = counted(kind)
        stream = new_stream()
        simulation.counters.reset()
        array.__dlpack__(stream=-1)
        array.__dlpack__(stream=None)
        array.__dlpack__(stream=1)
        with cuda.use_stream(stream):
            array.__dlpack__(stream=stream.ptr)
            array.__dlpack__(stream=-1)
        assert simulation.counters == cuda.Counters()


@pytest.mark.parametrize("drained", ["receiver", "caller"])
@pytest.mark.parametrize("is_gathered", [False, True])
@each_schedule
def test_a_copy_is_made_in_the_receivers_stream_and_holds_what_was_there(
    is_gathered: bool, drained: str, schedule: str, seed: int
) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        array = counted("device")
        cuda.synchronize()
        receiver = new_stream()
        view = array[[1, 2]] if is_gathered else array[1:3]
        capsule = view.__dlpack__(stream=receiver.ptr, max_version=(1, 0), copy=True)
        values = as_numpy(capsule)
        assert schedule != "lazy" or (values == -1).all()  # new memory: 0xFF in every byte
        if drained == "receiver":
            cuda.synchronize(receiver)
            assert_array_equal(values, np.arange(8, 16).reshape(2, 4))
        array[...] = 0  # which waits for the copy
        cuda.synchronize()
        assert_array_equal(values, np.arange(8, 16).reshape(2, 4))
        assert simulation.counters.device_synchronizations == 0


# Negative steps


@pytest.mark.parametrize(
    "view_of",
    [lambda array: array[::-1, ::-2], lambda array: array[3:1:-1], lambda array: array[2:1:-1]],
)
def test_a_view_with_a_negative_step_is_handed_out_as_a_copy(
    kind: str, view_of: Callable[[Array], Array]
) -> None:
    """torch.from_dlpack ends the process at a negative stride: pytorch issue 188023."""
    view = view_of(counted(kind))
    expected = np.array(view.to_ndarray())
    for copied, flags in ((None, READ_ONLY | IS_COPIED), (True, IS_COPIED)):
        capsule = view.__dlpack__(max_version=(1, 0), copy=copied)
        content = read(capsule)
        assert content.flags == flags
        assert min(content.strides) > 0
        assert_array_equal(as_numpy(capsule), expected)
    with pytest.raises(BufferError, match="negative step can't be handed out without a copy"):
        view.__dlpack__(copy=False)
    with pytest.raises(BufferError, match="read-only"):
        view.__dlpack__()


def take_negative_steps() -> None:
    array = Array((4, 3), np.float32)
    array[...] = np.arange(12).reshape(4, 3)
    for take in (torch.from_dlpack, torch.as_tensor, torch.asarray, torch.tensor):
        for view in (array[::-1], array[:, ::-1], Array.from_dlpack(np.arange(3.0)[::-1])):
            assert_array_equal(take(view).numpy(), view.to_ndarray(), err_msg=str(take))


# Python 3.12 and later warn of every fork beside threads; NumPy's own threads are enough for it.
@pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")
def test_torch_survives_negative_steps() -> None:
    child = mp.get_context("fork").Process(target=take_negative_steps)
    child.start()
    child.join(60)
    assert child.exitcode == 0


# Other libraries


@pytest.mark.parametrize("library", ["numpy", "torch"])
@each_view
def test_libraries_take_memory_of_the_host(library: str, view_of: Callable[[Array], Array]) -> None:
    view = view_of(counted("local"))
    if library == "numpy":
        assert np.shares_memory(np.from_dlpack(view), view.to_ndarray()) or not view.size
    else:
        tensor = torch.from_dlpack(view)
        assert tensor.data_ptr() == view.to_ndarray().ctypes.data or not view.size
        assert tensor.tolist() == view.to_ndarray().tolist()


def check_jax() -> None:
    from jax import dlpack

    for view_of in VIEWS.values():
        view = view_of(counted("local"))
        if view.to_ndarray().flags.c_contiguous:  # it takes no other strides
            assert_array_equal(np.asarray(dlpack.from_dlpack(view)), view.to_ndarray())
    recorder = Recorder(HOST)
    with pytest.raises(BufferError, match="recorded"):
        dlpack.from_dlpack(recorder)
    assert read(counted("local").__dlpack__(**recorder.asked[0])).shape == (5, 4)


def check_jax_leaves() -> None:
    """Use a tree of JAX arrays."""
    import jax

    warnings.simplefilter("error")
    tree = ArrayDict({"x": jax.numpy.arange(6.0).reshape(3, 2), "y": {"z": jax.numpy.ones(3)}})
    assert_array_equal(tree[1]["x"], [2, 3])
    assert leaves(tree.sum()) == {"x": 15, "y.z": 3}
    assert leaves(tree.apply(jax.numpy.max)) == {"x": 5, "y.z": 1}
    assert type(tree.to_ndarray()["x"]) is np.ndarray
    tensors = tree.to_torch()
    assert_array_equal(tensors["x"], np.arange(6.0).reshape(3, 2))
    assert tensors["x"].data_ptr() == tree["x"].unsafe_buffer_pointer()
    samples = ArrayDict({"x": Array((3, 2), np.float32), "y": {"z": Array((3,), np.float32)}})
    samples[...] = tree
    assert leaves(samples.to_ndarray().apply(np.ndarray.tolist)) == leaves(
        tree.to_ndarray().apply(np.ndarray.tolist)
    )
    with pytest.raises(TypeError, match=r"^x: JAX arrays are immutable"):
        tree[0] = 1


def use_jax() -> None:
    check_jax()
    check_jax_leaves()


@pytest.mark.long
@needs("jax")  # whose import takes seconds
def test_jax_takes_memory_of_the_host_and_its_arrays_are_leaves() -> None:
    """In a process of its own: JAX starts threads, beside which no other test may fork."""
    child = mp.get_context("spawn").Process(target=use_jax)
    child.start()
    child.join(120)
    assert child.exitcode == 0


def test_libraries_take_gathered_views() -> None:
    view = counted("local")[[0, 2]]
    assert not np.from_dlpack(view).flags.writeable
    assert np.from_dlpack(view, copy=True).flags.writeable
    assert torch.from_dlpack(view).tolist() == view.to_ndarray().tolist()
    assert torch.from_dlpack(view, copy=True).tolist() == view.to_ndarray().tolist()
    for from_dlpack in (np.from_dlpack, torch.from_dlpack):
        with pytest.raises((BufferError, ValueError), match="without a copy"):
            from_dlpack(view, copy=False)


def test_torch_takes_device_memory_to_the_host() -> None:
    with simulated_cuda("lazy") as simulation:
        array = counted("device")
        tensor = torch.from_dlpack(array, device="cpu")
        assert simulation.counters.copies_to_host == 1
        assert tensor.tolist() == np.arange(4, 24).reshape(5, 4).tolist()


class Recorder:
    """Looks like memory of a device, and keeps what a library asks it."""

    def __init__(self, device: tuple[int, int]) -> None:
        self.device = device
        self.asked: list[dict[str, Any]] = []

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        raise BufferError("recorded")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize(("address", "number"), [(0, 1), (0x7000, 0x7000)])
def test_what_torch_asks_of_device_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch, address: int, number: int
) -> None:
    current = SimpleNamespace(cuda_stream=address)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    recorder = Recorder((2, 0))
    with pytest.raises(BufferError, match="recorded"):
        torch.from_dlpack(recorder)
    (options,) = recorder.asked
    assert options["stream"] == number
    with simulated_cuda():
        assert read(counted("device").__dlpack__(**options)).version == (1, 0)


def test_what_numpy_asks_is_taken() -> None:
    recorder = Recorder(HOST)
    with pytest.raises(BufferError, match="recorded"):
        np.from_dlpack(recorder)
    assert read(counted("local").__dlpack__(**recorder.asked[0])).version == (1, 0)


def test_a_closed_array_hands_nothing_out(kind: str) -> None:
    array = counted(kind)
    array.close()
    for use in (array.__dlpack__, array.__dlpack_device__):
        with pytest.raises(ValueError, match="closed"):
            use()
