"""DeviceTransfer: brings environments' own tensors to a tree that is where the tensors are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.cages import DeviceStep
from parllel.cages.device.tensors import is_rows, side_of_tensor
from parllel.samplers.ahead_copy import nbytes_of_tree
from parllel.samplers.step_copy import Place, StepCopy
from parllel.storages import allocate
from parllel.tree import ArrayDict, Rows, TreePath, dict_map, leaves_of, path_text
from parllel.tree.errors import raise_at
from parllel.tree.fitting import MisfitError

_FLAGS = ("reward", "terminated", "truncated")


class BatchEnds(NamedTuple):
    """What the host looks at once in a batch, in host memory.

    Args:
        reward: [T, B].
        terminated, truncated: bool [T, B].
    """

    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class DeviceTransfer:
    """A `Transfer` whose environments read and write no rows of the host.

    For each time step, one launch takes the agent's results to the tree, and one takes the
    environments' own tensors there, wherever they lie in this step; nothing is copied to the host,
    and nothing waits. The second launch also takes rewards and flags to a block of their own, which
    `fetch` copies to page-locked memory: one copy and one wait for each batch. Where the tree is in
    host memory, all of this is done by NumPy at once.

    If true last observations are wanted, they are kept in memory of the tree's kind: as much again
    as the batch's observations take, from the first step on that gives some.

    Args:
        samples: the sampler's tree: all of it in device memory, or in memory of the host.

    Raises:
        ValueError: rows of a leaf are stored in parts.

    Example:
        >>> samples = ArrayDict({"action": Array((4, 2), np.int64), "env_info": ArrayDict()})
        >>> for name, dtype in (("reward", "f4"), ("terminated", bool), ("truncated", bool)):
        ...     samples[name] = Array((4, 2), dtype)
        >>> samples["observation"] = Array((4, 2), np.float32, padding=1)
        >>> transfer = DeviceTransfer(samples)
        >>> transfer.move()
        False
        >>> observation, flags = np.array([3.0, 4.0], np.float32), np.array([False, True])
        >>> transfer.take_step(0, DeviceStep(observation, observation, flags, ~flags, {}))
        >>> samples["observation"][1].to_ndarray(), samples["terminated"][0].to_ndarray()
        (array([3., 4.], dtype=float32), array([False,  True]))
    """

    copies_ahead = False

    def __init__(self, samples: ArrayDict) -> None:
        _refuse_parts(samples)
        self.host_rows: list[ArrayDict] = []
        self.action: Any = None  # what the environments are given
        self._samples = samples
        self._batch_T, self._batch_B = samples["reward"].batch_shape[:2]
        self._is_on_host: bool = samples["reward"].is_on_host
        self._kind = "local" if self._is_on_host else "device"
        self._block = self._make_block()
        self._results = StepCopy(
            [*_places(samples, "action"), *_places(samples, "agent_info")], self._batch_T
        )
        self._n_actions = len(_places(samples, "action"))
        self._to_tree = self._find_places()
        self._outputs = StepCopy(self._to_tree, self._batch_T)
        self._final: Array | ArrayDict | None = None  # [T, B, ...], when there are some
        self._with_final: StepCopy | None = None
        self._between: Any = None  # rows of an action that is elsewhere, or of another form
        self._nothing = dict_map(self._new_rows, samples["env_info"])
        self._known = {path for path, _ in leaves_of(samples["env_info"])}
        self.left_out: list[TreePath] = []  # entries of infos that the tree has no branch for
        self._gave_final = np.zeros(self._batch_T, bool)
        self._told_final = np.zeros(self._batch_T, bool)  # with a mask
        self._is_closed = False
        self._action_dtypes = [leaf.dtype.name for _, leaf in leaves_of(samples["action"])]
        self._is_fetched = None if self._is_on_host else cuda.Event()

    def _make_block(self) -> ArrayDict:
        """Allocate the rows that the host looks at, in one block, and its twin of the host."""
        n = self._batch_T, self._batch_B
        specs = ArrayDict({name: ArraySpec.of(n, self._samples[name].dtype) for name in _FLAGS})
        specs["has_final"] = ArraySpec.of(n, np.bool_)
        n_bytes = nbytes_of_tree(specs)
        memory = allocate(self._kind, n_bytes)
        block: ArrayDict = specs.apply(Array.from_spec, memory)
        if self._is_on_host:
            self._seen = block
        else:
            pinned = allocate("pinned", n_bytes)
            self._seen = specs.apply(Array.from_spec, pinned)
            whole = (n_bytes,), np.dtype(np.uint8)
            self._copied = memory.array(0, *whole), pinned.array(0, *whole)
        return block

    def _find_places(self) -> list[Place]:
        return [
            *_places(self._samples, "observation", shift=1),
            *(Place((name,), self._samples[name]) for name in _FLAGS),
            *(Place((name,), self._block[name]) for name in _FLAGS),
            *_places(self._samples, "env_info"),
        ]

    def settle(self) -> None:
        """Wait until the launches of the last batch ran, which they did unless it was cut short."""
        for copy in self._copies():
            copy.settle()

    def _copies(self) -> list[StepCopy]:
        copies = self._results, self._outputs, self._with_final
        return [copy for copy in copies if copy is not None]

    def move(self) -> bool:
        """Follow the tree's window, and forget the last batch."""
        self.settle()
        for copy in self._copies():
            copy.begin_batch()
        self._gave_final[:] = self._told_final[:] = False
        return False

    def send_actions(self, t: int, action: object, agent_info: Mapping[str, object]) -> bool:
        """Launch the copy of the agent's results to row t of the tree. Returns at once."""
        values = self._find_action(action)
        n_actions = len(values)
        info = self._find_rows(self._samples.get("agent_info", ArrayDict()), agent_info)
        self._results.run(t, [*values, *(info or ())], None if info else n_actions)
        return info is not None

    def _find_action(self, action: object) -> list[Any]:
        """Return the leaves of an action where the tree's side can read them."""
        found = self._find_rows(self._samples["action"], action)
        if found and not _are_of_kinds(found, self._action_dtypes):
            found = None  # the environments would index by a mask what they index by a number
        self.action = action
        if found is None:
            if self._between is None:
                self._between = dict_map(self._new_rows, self._samples["action"])
            try:
                self._between[...] = action
            except Exception as error:
                raise_at(("action",), error)
            self.action = self._between
            found = [leaf for _, leaf in leaves_of(self._between)]
        return found

    def _find_rows(self, branch: Rows, value: object) -> list[Any] | None:
        """Return a value's leaves in a branch's order; None where one is elsewhere or misfits."""
        given = _leaves(value)
        found = []
        for path, leaf in leaves_of(branch):
            rows = given.get(path)
            shape = getattr(rows, "shape", None)
            if shape is None or tuple(shape) != leaf.shape[1:]:
                return None
            if self._is_elsewhere(rows):
                return None
            found.append(rows)
        return found

    def _is_elsewhere(self, rows: Any) -> bool:  # Any: an array of any library
        if isinstance(rows, Array):
            return rows.is_on_host != self._is_on_host
        return (side_of_tensor(rows) == "host") != self._is_on_host

    def await_actions(self, t: int) -> None:
        """Do nothing: environments read the action behind what has made it."""

    def start_outputs(self, t: int) -> None:
        """Do nothing: `take_step` does all."""

    def take_outputs(self, t: int) -> None:
        """Do nothing: `take_step` does all."""

    def take_step(self, t: int, step: DeviceStep) -> None:
        """Launch the copy of the environments' results to the tree. Returns at once.

        The observation goes to row t + 1, all else to row t.

        Raises:
            MisfitError: a result is missing, is of another kind than its rows, or has another
                shape.
        """
        flags = step.reward, step.terminated, step.truncated
        values = [
            *_members(self._samples["observation"], step.observation, ("observation",)),
            *flags,
            *flags,
            *self._find_info(step.info),
        ]
        if step.final_obs is None:
            self._outputs.run(t, values)
        else:
            self._take_final(t, step, values)

    def _take_final(self, t: int, step: DeviceStep, values: list[Any]) -> None:
        if self._with_final is None:
            self._keep_final()
        assert self._with_final is not None
        assert self._final is not None
        values += _members(self._final, step.final_obs, ("final_obs",))
        self._gave_final[t] = True
        if step.has_final is not None:
            self._told_final[t] = True
            values.append(step.has_final)
        self._with_final.run(t, values, len(values))

    def _keep_final(self) -> None:
        """Allocate rows for true last observations: as many as the batch has observations."""
        self._final = dict_map(self._new_batch, self._samples["observation"])
        final = [Place(("final_obs", *path), leaf) for path, leaf in leaves_of(self._final)]
        told = Place(("final_obs", "mask"), self._block["has_final"])
        self._with_final = StepCopy([*self._to_tree, *final, told], self._batch_T)
        self._with_final.begin_batch()

    def _find_info(self, info: Mapping[str, Any]) -> list[Any]:
        """Return the entries that the tree has a branch for; zeros for those that are missing."""
        given = _leaves(info)
        if not given.keys() <= self._known:
            self.left_out += [
                path
                for path in given.keys() - self._known
                if is_rows(given[path], self._batch_B) and not _is_mask(path, given)
            ]
            self._known |= given.keys()
        return [given.get(path, zeros) for path, zeros in leaves_of(self._nothing)]

    def fetch(self) -> BatchEnds:
        """Return rewards and flags of the batch, when all of its steps are done: one wait.

        Raises:
            RuntimeError: a truncated episode's last observation is wanted, and was not given.
        """
        if self._is_fetched is not None:
            device, host = self._copied
            cuda.copy_to_host(device, out_host=host)
            self._is_fetched.record()
            self._is_fetched.synchronize()
        ends = BatchEnds(*(self._seen[name].to_ndarray() for name in _FLAGS))
        return ends

    def check_final(self, steps: NDArray[np.intp], columns: NDArray[np.intp]) -> Array | ArrayDict:
        """Return last observations, [T, B, ...], which mean something where an episode ended.

        Args:
            steps, columns: intp [k], where these are wanted.

        Raises:
            RuntimeError: there is none.
        """
        told = self._seen["has_final"].to_ndarray()
        is_given = self._gave_final[steps]
        is_given = is_given & (told[steps, columns] | ~self._told_final[steps])
        if not is_given.all():
            first = int(np.argmin(is_given))
            raise RuntimeError(
                f"final_obs: got nothing for environment {columns[first]} at step {steps[first]} of"
                " the batch, expected its last observation: its episode ended there, and the"
                " environments say that they keep these"
            )
        assert self._final is not None  # some were given
        return self._final

    def first_rows(self) -> Array | ArrayDict:
        """Return rows [B, ...] in host memory for first observations."""
        row: Array | ArrayDict = self._samples["observation"][self._batch_T]
        self._first = row if self._is_on_host else dict_map(_host_rows, row)
        return self._first

    def take_first(self) -> None:
        """Bring first observations to the row after the batch, which `rotate` moves to row 0."""
        if not self._is_on_host:
            self._samples["observation"][self._batch_T] = self._first.to_ndarray()

    def take_up(self) -> None:
        """Do nothing: all is in the tree."""

    def close(self) -> None:
        """Wait until the launches ran, and give back the memory that is not the tree's."""
        self.settle()
        for copy in self._copies():
            copy.close()
        if not self._is_closed:
            self._is_closed = True
            self._seen.close()
            if not self._is_on_host:
                self._block.close()
                del self._copied  # arrays over the same memory
        self._with_final = self._final = None

    def _new_rows(self, leaf: Array) -> Array:
        return Array((self._batch_B,), leaf.dtype, feature_shape=leaf.shape[2:], storage=self._kind)

    def _new_batch(self, leaf: Array) -> Array:
        shape = self._batch_T, self._batch_B
        return Array(shape, leaf.dtype, feature_shape=leaf.shape[2:], storage=self._kind)


def _are_of_kinds(values: Sequence[Any], expected: Sequence[str]) -> bool:
    """Whether no value is bool, or of bytes without sign, where another dtype is expected."""
    found = [str(each.dtype).removeprefix("torch.") for each in values]
    return all(
        one == other or one not in _MASKS for one, other in zip(found, expected, strict=True)
    )


_MASKS = ("bool", "uint8")  # torch reads an index of either as a mask


def _host_rows(leaf: Array) -> Array:
    return Array(leaf.shape[:1], leaf.dtype, feature_shape=leaf.shape[1:])


def _places(samples: ArrayDict, name: str, shift: int = 0) -> list[Place]:
    branch = samples.get(name, ArrayDict())
    return [Place((name, *path), leaf, shift) for path, leaf in leaves_of(branch)]


def _leaves(value: object) -> dict[TreePath, Any]:
    """Return the leaves of mappings and tuples by their paths."""
    return dict(_walk(value, ()))


def _walk(value: Any, path: TreePath) -> Iterator[tuple[TreePath, Any]]:
    if isinstance(value, tuple):
        value = {str(number): member for number, member in enumerate(value)}
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, member in value.items():
        yield from _walk(member, (*path, str(name)))


def _is_mask(path: TreePath, given: Mapping[TreePath, Any]) -> bool:
    """Whether an entry tells which environments have another entry, as gymnasium's vectors do."""
    name = path[-1]
    return name.startswith("_") and any(
        other[: len(path)] == (*path[:-1], name[1:]) for other in given
    )


def _members(branch: Rows, value: object, path: TreePath) -> list[Any]:
    """Return a value's leaves in a branch's order."""
    given = _leaves(value)
    names = [name for name, _ in leaves_of(branch)]
    missing = [path_text((*path, *name)) for name in names if name not in given]
    if missing:
        found = [path_text((*path, *name)) for name in given]
        raise MisfitError(f"{found}", f"{missing} too: the tree has these", path=path)
    return [given[name] for name in names]


def _refuse_parts(samples: ArrayDict) -> None:
    for path, leaf in samples.walk():
        if leaf.row_writer is not None:
            raise ValueError(
                f"samples: {path_text(path)} is a {type(leaf).__name__}, whose rows are stored in"
                " parts, expected an Array: environments on a device write whole rows; leave out"
                " `frames` when the tree is built"
            )
