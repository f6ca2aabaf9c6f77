"""What agents return goes to a tree in device memory as it goes to one of the host, in any form.

Nothing here ran on a GPU. On simulated CUDA, a result that is read too late or too early is poison.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from long_run import all_but_first
from optional import needs
from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.arrays import device_rows
from parllel.arrays.device_rows import locate_rows
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.samplers.staging import Staging
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk

T, B = 5, 4
on_a_device = pytest.mark.usefixtures("cuda_device")
ACTIONS = np.random.default_rng(0).integers(0, 4, (97, B))
VALUES = np.random.default_rng(1).normal(size=(97, B)).astype(np.float32)


class CudaTensor(torch.Tensor):
    """Stands in for a tensor on a GPU: in a simulation those are tensors of the host."""

    is_cuda = True

    def get_device(self) -> int:
        return 0


def as_cuda_tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    return cuda.tensor_over(cuda.to_device(values)).as_subclass(CudaTensor)


def with_gaps(values: np.ndarray[Any, Any]) -> Any:
    return cuda.to_device(np.stack([values, values + 1], axis=-1))[:, 0]


def in_array(storage: str) -> Callable[[np.ndarray[Any, Any]], Array]:
    return lambda values: Array.from_numpy(values, storage=storage, force_32bit=False)


def gathered(values: np.ndarray[Any, Any]) -> Array:
    order = np.arange(len(values))[::-1].copy()
    return Array.from_numpy(values[::-1].copy(), storage="device", force_32bit=False)[order]


Form = Callable[[np.ndarray[Any, Any]], Any]
READ_IN_PLACE: dict[str, Form] = {
    "CuPy's array": cuda.to_device,
    "with gaps between rows": with_gaps,
    "tensor": as_cuda_tensor,
    "tensor with gaps": lambda values: as_cuda_tensor(np.stack([values] * 3, 1))[:, 1],
    "Array": in_array("device"),
    "pinned Array": in_array("pinned"),
    "managed Array": in_array("managed"),
}
CONVERTED: dict[str, Form] = {
    "gathered Array": gathered,
    "array of the host": np.array,
    "list": np.ndarray.tolist,
}
FORMS = READ_IN_PLACE | CONVERTED


class Agent:
    """Returns rows of tables, whatever it observes, in a given form."""

    def __init__(self, of_action: Form, of_info: Form) -> None:
        self._forms, self._n_calls = (of_action, of_info), 0

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        number, n = self._n_calls % len(ACTIONS), len(observation)
        self._n_calls += 1
        of_action, of_info = self._forms
        value = VALUES[number, :n]
        info = {"value": of_info(value), "log_prob": of_info(-value)}
        return of_action(ACTIONS[number, :n]), info

    def value(self, observation: Any) -> Any:
        return np.zeros(len(observation), np.float32)


def make_tree(**window: int) -> ArrayDict:
    """Return a tree in memory of the host, whose actions are int32."""
    example = build_example(Walk, storage="local")
    return build_sample_tree(example, Agent(np.array, np.array), batch_shape=(T, B), **window)


def make_sampler(
    agent: Any, samples: ArrayDict, kind: Any = BasicSampler, *, check: bool = False
) -> BasicSampler:
    sizes = (1, 3) if kind is AlternatingSampler else (B,)
    sampler: BasicSampler = kind(
        [SerialCage(Walk, n_envs=size, seed=size) for size in sizes], agent, samples, check=check
    )
    return sampler


def rows_of(sampler: BasicSampler, n_batches: int = 3) -> list[Any]:
    """Return what the branches that an agent fills hold after each batch, and what followed."""
    found = []
    for _ in range(n_batches):
        samples, _ = sampler.collect_batch()
        for name in ("action", "observation"):
            found.append(samples[name].to_ndarray().tolist())
        found += [leaf.to_ndarray().tolist() for _, leaf in samples["agent_info"].walk()]
    return found


@on_a_device
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
@pytest.mark.parametrize("window", all_but_first([{"full_size": 3 * T}, {}]))
@pytest.mark.parametrize("form", FORMS)
def test_results_in_any_form_are_those_of_the_host(
    form: str, window: dict[str, int], kind: type[BasicSampler]
) -> None:
    host = make_tree(**window)
    expected = rows_of(make_sampler(Agent(np.array, np.array), host, kind))
    of_rows = FORMS[form]
    for forms in ((of_rows, of_rows), (of_rows, np.array), (np.array, of_rows)):
        samples = host.new_array(storage="device")
        assert rows_of(make_sampler(Agent(*forms), samples, kind)) == expected


def count_operations(of_action: Form, of_info: Form) -> int:
    """Return what a step queues, without the making of its results."""
    with simulated_cuda("lazy") as simulation:
        agent = Agent(of_action, of_info)
        sampler = make_sampler(agent, make_tree().to("device"))
        sampler.collect_batch()
        sampler._rotate()
        (group,) = sampler._groups
        result = agent.step(sampler.samples["observation"][0])
        agent.step = lambda *_, **__: result  # type: ignore[method-assign]
        before = simulation.n_operations
        group.act(agent, 0)
        group.finish(0)
        return simulation.n_operations - before


@pytest.mark.parametrize("form", FORMS)
def test_results_on_the_device_are_read_in_place(form: str) -> None:
    is_in_place = form in READ_IN_PLACE
    assert (count_operations(FORMS[form], cuda.to_device) == 2) is is_in_place
    assert (count_operations(cuda.to_device, FORMS[form]) == 2) is is_in_place


@on_a_device
def test_values_of_another_dtype_are_converted() -> None:
    def wide(values: np.ndarray[Any, Any]) -> Any:
        return cuda.to_device(values.astype(np.float64))

    host = make_tree()
    expected = rows_of(make_sampler(Agent(np.array, np.array), host))
    agent = Agent(lambda values: cuda.to_device(values.astype(np.int8)), wide)
    assert rows_of(make_sampler(agent, host.new_array(storage="device"))) == expected


def test_forms_may_change_from_step_to_step() -> None:
    host = make_tree()
    expected = rows_of(make_sampler(Agent(np.array, np.array), host))
    forms = [*FORMS.values()]
    with simulated_cuda("lazy"):
        agent, rng = Agent(np.array, np.array), np.random.default_rng(0)
        step = agent.step

        def change(observation: Any, **kwargs: Any) -> Any:
            agent._forms = tuple(forms[n] for n in rng.integers(len(forms), size=2))
            return step(observation, **kwargs)

        agent.step = change  # type: ignore[method-assign]
        assert rows_of(make_sampler(agent, host.to("device"))) == expected


# Results that a launch can't take


class Shifting(Agent):
    """Returns values that lie in the tree, one place before the rows where they go."""

    samples: ArrayDict

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, info = super().step(observation)
        place = (self._n_calls - 1) % T * B
        info["value"] = self._flat()[place + 3 : place + 3 + B]
        return action, info

    def _flat(self) -> Any:
        leaf = self.samples["agent_info"]["value"]
        rows = leaf[-1 : T + 1]  # the padding too
        return (rows.to_ndarray() if leaf.is_on_host else rows.to_cupy()).reshape(-1)


@on_a_device
def test_results_that_overlap_the_rows_where_they_go_are_copied_before() -> None:
    found = []
    for storage, form in (("local", np.array), ("device", cuda.to_device)):
        agent = Shifting(form, form)
        agent.samples = make_tree().to(storage)
        agent.samples["agent_info"]["value"][-1:][...] = np.arange(B) + 1
        found.append(rows_of(make_sampler(agent, agent.samples)))
    assert found[0] == found[1]
    assert len({*map(str, found[0])}) > 3


WRONG: dict[str, Callable[[Any, Any], Any]] = {
    "a column": lambda action, info: (action, info | {"value": info["value"].reshape(-1, 1)}),
    "too few": lambda action, info: (action, info | {"value": info["value"][:3]}),
    "a name more": lambda action, info: (action, info | {"entropy": info["value"]}),
    "a name less": lambda action, info: (action, {"value": info["value"]}),
    "actions of another shape": lambda action, info: (action.reshape(2, 2), info),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told_as_of_a_tree_of_the_host(what: str) -> None:
    messages = []
    for storage, form in (("local", np.array), ("device", cuda.to_device)):
        with simulated_cuda("lazy"):
            agent = Agent(form, form)
            sampler = make_sampler(agent, make_tree().to(storage))
            sampler.collect_batch()
            step = agent.step
            agent.step = lambda *args, step=step, **kwargs: WRONG[what](*step(*args, **kwargs))  # type: ignore[method-assign]
            with pytest.raises((ValueError, KeyError, TypeError)) as caught:
                sampler.collect_batch()
            messages.append((type(caught.value), str(caught.value)))
    assert messages[0][0] is messages[1][0]
    assert messages[0][1][:30] == messages[1][1][:30]


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("check", [False, True])
def test_an_action_that_can_not_be_read_is_told_with_its_branch(storage: str, check: bool) -> None:
    with simulated_cuda("lazy"):
        agent = Agent(np.array, np.array)
        sampler = make_sampler(agent, make_tree().to(storage), check=check)
        sampler.collect_batch()
        sparse = torch.ones(B, dtype=torch.int64).to_sparse()
        agent.step = lambda *_, **__: (sparse, {"value": VALUES[0]})  # type: ignore[method-assign]
        with pytest.raises((TypeError, NotImplementedError)) as caught:
            sampler.collect_batch()
    told = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert told[0].startswith("action: ") or told[1:] == ["at the leaf action"]


def test_memory_of_another_device_is_not_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_cuda("lazy") as simulation:
        agent = Agent(as_cuda_tensor, as_cuda_tensor)
        sampler = make_sampler(agent, make_tree().to("device"))
        sampler.collect_batch()
        (group,) = sampler._groups
        results = group.transfer._results  # type: ignore[attr-defined]
        observation = sampler.samples["observation"][0]
        action, info = agent.step(observation)
        assert results.run(0, 0, action, info)[1]
        monkeypatch.setattr(CudaTensor, "get_device", lambda _: 1)
        found = results._locate(results._info, results._to_info, info)
        assert found is None
        assert simulation.n_pending


def test_rows_that_are_stored_in_parts_are_written_by_the_tree() -> None:
    rows = np.random.default_rng(0).integers(0, 255, (97, B, 2), np.uint8)
    found = []
    for storage, form in (("local", np.array), ("device", cuda.to_device)):
        with simulated_cuda("lazy"):
            samples = make_tree()
            seen = FrameArray((T, B), "uint8", (2,), stack=1)
            samples["agent_info"] = ArrayDict({"value": samples["agent_info"]["value"]})
            samples["agent_info"]["seen"] = seen
            samples = samples.to(storage)
            agent = Agent(form, form)
            step = agent.step

            def look(observation: Any, *, step: Any = step, form: Any = form, **_: Any) -> Any:
                action, info = step(observation)
                return action, {"value": info["value"], "seen": form(rows[0])[:, None]}

            agent.step = look  # type: ignore[method-assign]
            batch, _ = make_sampler(agent, samples).collect_batch()
            found.append(batch["agent_info"]["seen"].to_ndarray().tolist())
    assert found[0] == found[1]
    assert found[0][0] == rows[0][:, None].tolist()


# Waits


@pytest.mark.parametrize("goes_on", ["first_rows", "take_up", "close"])
def test_a_step_that_was_cut_off_is_awaited_before_its_memory_is_used(goes_on: str) -> None:
    """Where another stream is the current one: it is the step's own that counts."""
    with simulated_cuda("lazy") as simulation:
        samples = make_tree().to("device")
        agent = Agent(cuda.to_device, cuda.to_device)
        action, info = agent.step(samples["observation"][0])
        side = cuda.new_stream()
        cuda.synchronize()
        with cuda.use_stream(side):
            staging = Staging(samples)
            assert staging.send_actions(0, action, info)
        queue = simulation._machine.engine.stream_at(side.ptr)
        assert any(each.name.startswith("kernel rows") for each in queue.pending)
        getattr(staging, goes_on)()
        assert not any(each.name.startswith("kernel rows") for each in queue.pending)
        assert samples["action"][0].to_ndarray().tolist() == ACTIONS[0].tolist()


# Where a value lies


@on_a_device
def test_what_needs_no_conversion_is_found_where_it_lies() -> None:
    rows = cuda.to_device(np.arange(12, dtype=np.float32).reshape(4, 3))
    view = rows[:, 1]
    expected = (view.data.ptr, (4,), (12,), np.dtype(np.float32), 0)
    assert locate_rows(view) == expected
    array = Array((4, 3), np.float32, storage="device")
    place = array.to_cupy().data.ptr
    assert locate_rows(array) == (place, (4, 3), (12, 4), np.dtype(np.float32), 0)
    tensor = as_cuda_tensor(np.zeros((4, 3), np.float32)).requires_grad_()
    assert locate_rows(tensor[:, 1]) == (
        tensor.data_ptr() + 4, (4,), (12,), np.dtype(np.float32), 0,
    )  # fmt: skip


@on_a_device
@pytest.mark.parametrize(
    "make",
    [
        lambda: as_cuda_tensor(np.zeros(4, np.float32)).bfloat16(),
        lambda: as_cuda_tensor(np.zeros(4, np.complex64)).conj(),
        lambda: as_cuda_tensor(np.ones(4, np.complex64)).conj().imag,
        lambda: torch.zeros(4),
        lambda: np.zeros(4),
        lambda: [0, 1],
        lambda: 1.5,
        lambda: Array((4,), np.float32),
        lambda: Array((4,), np.float32, storage="device")[np.array([0, 1])],
        lambda: FrameArray((4, 2), "uint8", (3,), storage="device")[0],
    ],
)
def test_what_needs_a_conversion_is_not_found(make: Callable[[], Any]) -> None:
    assert locate_rows(make()) is None


class SparseTensor(CudaTensor):
    layout = torch.sparse_coo


def test_a_sparse_tensor_is_not_found() -> None:
    assert locate_rows(torch.eye(4).as_subclass(CudaTensor)) is not None
    assert locate_rows(torch.eye(4).as_subclass(SparseTensor)) is None


@needs("ml_dtypes")
@on_a_device
def test_a_dtype_that_another_library_registered_is_not_numpys() -> None:
    import ml_dtypes  # noqa: F401

    device_rows._numpys.cache_clear()  # asked before it was registered
    assert np.dtype("bfloat16").itemsize == 2
    assert locate_rows(as_cuda_tensor(np.zeros(4, np.float32)).bfloat16()) is None


@on_a_device
def test_a_closed_array_is_not_found() -> None:
    array = Array((4,), np.float32, storage="device")
    array.close()
    assert locate_rows(array) is None
