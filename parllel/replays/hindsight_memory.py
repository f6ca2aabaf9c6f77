"""HindsightMemory: memory of a minibatch whose first transitions get other goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from parllel.arrays import Array
from parllel.cuda import AnyArray
from parllel.kernels.image_shift import NO_IMAGE
from parllel.ops.sequences import WindowGather, WindowSource
from parllel.ops.stack_gather import RowSource
from parllel.replays.appended_step import value_at
from parllel.replays.transition_memory import NEXT, TransitionMemory, read
from parllel.tree import ArrayDict, leaves_of, path_text

if TYPE_CHECKING:
    from torch import Tensor

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"

# Of the achieved and the desired goals, tensors [n, ...] or trees of them.
GoalFunction: TypeAlias = "Callable[[Any, Any], Tensor]"


class GoalFunctions(NamedTuple):
    """What depends on the goal, as functions of what was achieved and of what was desired.

    Args:
        compute_reward: returns rewards, float32 [n].
        compute_terminated: returns whether the episode ends, bool [n]; None where the goal does
            not decide on that.
    """

    compute_reward: GoalFunction
    compute_terminated: GoalFunction | None


class HindsightMemory(TransitionMemory):
    """One minibatch of transitions of one step, whose first ones are given other goals.

    Args:
        sources: the sources that `find_sources` returned, of observations with goals.
        batch_size: number of transitions.
        storage: as for `TransitionMemory`.
        n_relabelled: so many of them, the first ones, get goals of a draw.
        functions: what depends on the goal.
        discount: `n_step_discount` of a transition that does not terminate.

    Attributes:
        identity: int64 [n_relabelled], a part of the branch `index`: which transitions get goals.
        code: int64 [n_relabelled], which a draw of goals writes (`ops.hindsight.draw_goals`).

    A replay buffer makes it: `HindsightReplayBuffer.make_memory`.

    >>> goals = {ACHIEVED: RowSource(np.float32([5, 6, 7])), DESIRED: RowSource(np.zeros(3, "f4"))}
    >>> rewards = RowSource(np.float32([-1, -1, -1]))
    >>> beside = {name: RowSource(each.frames, beside=each.frames) for name, each in goals.items()}
    >>> sources = ArrayDict({"observation": goals, NEXT: beside, "reward": rewards})
    >>> functions = GoalFunctions(lambda achieved, desired: -(achieved - desired).abs(), None)
    >>> memory = HindsightMemory(
    ...     sources, 2, "local", n_relabelled=1, functions=functions, discount=0.9
    ... )
    >>> memory.code[0] = 2  # no draw has written it yet, nor another row than 0
    >>> memory.gather()
    >>> memory.tensors["observation"][DESIRED], memory.tensors["reward"]
    (tensor([7., 0.]), tensor([-2., -1.]))
    """

    def __init__(
        self,
        sources: ArrayDict,
        batch_size: int,
        storage: str,
        *,
        n_relabelled: int,
        functions: GoalFunctions,
        discount: float,
    ) -> None:
        self._functions, self._discount = functions, discount
        first = next(source for _, source in sources.walk())
        on_gpu = not isinstance(first.frames, np.ndarray)
        codes = Array((n_relabelled,), np.int64, storage=storage if on_gpu else "local")
        self.code: AnyArray = read(codes, on_gpu)
        super().__init__(sources, batch_size, storage, extra={})
        self.identity: AnyArray = read(self.tree["index"], on_gpu)[:n_relabelled]
        relabelled: ArrayDict = self.tensors.apply(lambda leaf: leaf[:n_relabelled])
        self._relabelled = relabelled

    def bind(self, sources: ArrayDict) -> None:
        """Gather from other sources of the same rows from now on, goals too."""
        super().bind(sources)
        achieved = leaves_of(sources[NEXT][ACHIEVED])
        self._gather_goals = WindowGather(
            [
                WindowSource(RowSource(source.frames), source.beside, self.code, self._goals(*at))
                for path, source in achieved
                for at in (("observation", DESIRED, *path), (NEXT, DESIRED, *path))
            ]
        )

    def _goals(self, *path: str) -> AnyArray:
        """Return the rows of a leaf that other goals are written to."""
        return read(value_at(self.tree, path), self._is_on_gpu)[: len(self.code)]

    def gather(self, seed: AnyArray | None = None) -> None:
        """Gather what was drawn, then the other goals, and compute what depends on these.

        In host memory it is there when this returns. On a device it is two launches in the
        caller's current stream, beside those of the functions; the host does not wait.

        Raises:
            TypeError: a function returns no tensor.
            ValueError: what it returns has another shape, dtype or device, or, in host memory, is
                not finite; or torch has written to the goals in it.
        """
        super().gather(seed)
        if len(self.code):
            self._gather_goals.run()
            self._compute()

    def _compute(self) -> None:
        """Overwrite what depends on the goal."""
        import torch

        rows, discount = self._relabelled, self._relabelled["n_step_discount"]
        with torch.no_grad():
            # The host of a device does not know whether anything was drawn: NaN shows it.
            is_nothing = discount.isnan() if self._is_on_gpu else None
            reward = self._call("compute_reward", rows["reward"])
            rows["reward"].copy_(reward)
            rows["n_step_return"].copy_(reward)
            if self._functions.compute_terminated is not None:
                terminated = self._call("compute_terminated", rows["terminated"])
                rows["terminated"].copy_(terminated)
                discount.fill_(self._discount).masked_fill_(terminated, 0.0)
            if is_nothing is not None:
                rows["n_step_return"].masked_fill_(is_nothing, math.nan)
                discount.masked_fill_(is_nothing, math.nan)

    def _call(self, name: str, like: Tensor) -> Tensor:
        """Return what a function returns, if it can be written to `like` without a conversion."""
        import torch

        achieved, desired = (self._relabelled[NEXT][each] for each in (ACHIEVED, DESIRED))
        before = _versions(achieved, desired)
        result = getattr(self._functions, name)(achieved, desired)
        if _versions(achieved, desired) != before:
            raise ValueError(
                f"{name}: it has written to the goals that it was given, which are those of the"
                " minibatch; expected a function that leaves them as they are, of copies (clone())"
            )
        if not isinstance(result, torch.Tensor):
            raise TypeError(
                f"{name}: it returned a {type(result).__name__}, expected a torch.Tensor"
            )
        found = result.dtype, tuple(result.shape), result.device
        expected = like.dtype, tuple(like.shape), like.device
        if found != expected:
            raise ValueError(
                f"{name}: it returned dtype, shape and device {found}, expected {expected}: one"
                " number for each transition that gets another goal, of the goals' device"
            )
        if not self._is_on_gpu and result.is_floating_point() and not result.isfinite().all():
            raise ValueError(f"{name}: it returned a NaN or an infinity, expected finite rewards")
        return result


def _versions(*goals: Any) -> list[int]:
    """Return for each leaf how often torch has written to it, where torch counts that."""
    leaves = [leaf for branch in goals for _, leaf in leaves_of(branch)]
    return [leaf._version for leaf in leaves if not leaf.is_inference()]


def check_goals(samples: ArrayDict, sources: ArrayDict) -> None:
    """Raise unless observations have goals that can be put in the place of each other.

    Args:
        samples: the sample tree.
        sources: the sources of a minibatch.

    Raises:
        ValueError: one of the two branches is not there; their leaves have other names, shapes or
            dtypes; or they are stacks of frames, or images that are to be shifted.
    """
    observation = samples["observation"]
    names = sorted(observation) if isinstance(observation, ArrayDict) else []
    if missing := [name for name in (ACHIEVED, DESIRED) if name not in names]:
        raise ValueError(
            f"observation: branches {missing} are missing, expected goals as a gymnasium_robotics"
            f" GoalEnv gives them: {ACHIEVED}, {DESIRED}; got {names or 'a single leaf'}"
        )
    goals = {
        name: dict(ArrayDict({"goal": sources["observation"][name]}).walk())
        for name in (ACHIEVED, DESIRED)
    }
    forms = [
        {path: (source.dtype.name, source.shape[1:]) for path, source in leaves.items()}
        for leaves in goals.values()
    ]
    if forms[0] != forms[1]:
        raise ValueError(
            f"observation.{DESIRED}: got {_shown(forms[1])}, expected {_shown(forms[0])} as"
            f" {ACHIEVED} has it: one is put in the place of the other"
        )
    for name, leaves in goals.items():
        for path, source in leaves.items():
            text = path_text(("observation", name, *path[1:]))
            if source.lengths is not None:
                raise ValueError(
                    f"{text}: got elements of different length, expected an Array: a goal is one"
                    " row of the ring"
                )
            if source.is_first is not None:
                raise ValueError(
                    f"{text}: got stacks of frames, expected an Array: a goal is one row of the"
                    " ring"
                )
            if source.image != NO_IMAGE:
                raise ValueError(
                    f"{text}: got images that shift= would move, so that no goal is achieved any"
                    " more; expected goals of another dtype or shape, or no shift"
                )


def _shown(forms: Mapping[tuple[str, ...], tuple[str, tuple[int, ...]]]) -> str:
    """Return dtypes and shapes of leaves as a text."""
    parts = [
        f"{'.'.join(path[1:])} {dtype} {shape}".strip() for path, (dtype, shape) in forms.items()
    ]
    return ", ".join(parts) or "no leaf"
