"""ReplayBuffer: random transitions out of the ring of a sample tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parllel.ops.transitions import DrawState, draw_transitions
from parllel.replays.base_replay import BaseReplay, check_names
from parllel.replays.random_shift import RandomShift, shift_images
from parllel.replays.transition_memory import (
    DRAWN,
    NEXT,
    TransitionMemory,
    find_sources,
)
from parllel.tree import ArrayDict

_SHIFT, _CHANNELS_LAST = "shift_pixels", "shift_channels_last"  # of saved settings
_KEEP = "keep_terminated"
_STREAMS = {"observation": 0, NEXT: 1}  # of random shifts


class ReplayBuffer(BaseReplay[TransitionMemory]):
    """Draw minibatches of transitions, each with the same probability, from a sample tree's ring.

    The sample tree is the storage. Its leaves are rings of `full_size` rows, into which a sampler
    writes batches of T steps, one after the other. A sampler that is given the buffer (`replay=`)
    tells it which steps are there. Each observation is stored once, and each frame of stacked
    observations too (`FrameArray`). The observation that follows a step is the next row of the
    same leaf. Where an episode ended, that row belongs to the next episode, so the buffer keeps
    the final observation in a table. Where it ended because the task was done, nothing follows that
    could be learned from (`n_step_discount` is 0), and the sampler gives no final observation:
    `next_observation` is the observation of the last step itself.

    A transition begins at a step and has `n_steps` steps, or fewer where the episode ends. It
    can't be sampled in four cases: one of its steps was not written yet; one of them is being
    overwritten; the tree has a branch `valid`, and one of its steps is not valid; or it ends with a
    truncation whose final observation was not given. The branch `valid` is about steps, not about
    their observations.

    Several agents: `reward`, flags and `valid` have an agent axis [T, B, N], or are dictionaries by
    agents (flags and `valid` may be [T, B], too). A transition is one of an environment, with the
    columns of all agents: its episode ends where all of them have ended, and only there is it
    followed by a final observation of the table. `n_step_return`, `n_step_discount`, `terminated`,
    `truncated` and `valid` then are those of each agent, in the form of `reward`: an agent that
    ended before the others has its own return up to there. It is not `valid`, and has 0 in both,
    where it was not alive in the first step, or was truncated in the middle of a transition of
    several steps, as the observation that its value would go on with is not in the minibatch.

    A buffer belongs to one thread. A `Prefetcher` draws in another thread; the buffer waits for it
    before it changes.

    The time of a draw is in proportion to the minibatch, whatever the size of the ring: a step is
    drawn at random until one can be sampled. Only where hardly any can be, a walk through all
    steps finds one.

    Args:
        samples: tree of Arrays [T, B, ...] with the same T, B and `full_size`. It has the branches
            `observation` (padding of 1 or more), `reward` (float32 [T, B]), `terminated` and
            `truncated` (bool [T, B]), and any others.
        rng: generator of a key, which is drawn once. A minibatch is a function of the key and of
            its own number, by Philox4x32-10, and the same in every kind of memory.
        n_steps: number of steps of a transition.
        discount: factor for each step, in [0, 1].
        n_final_obs: number of rows of the table of final observations, for which it is allocated.
            By default there is one for each 16 steps of the ring, or for each 80 where observations
            have more than 1 KiB; where more episodes are truncated, the table grows up to one for
            each step of the ring, or for each 4 of large observations: a quarter of their bytes.
            If it is full all the same, the oldest steps are forgotten earlier, with a warning.
        shift: how the images of `observation` and `next_observation` are shifted at random in each
            minibatch; None for not at all. Shifts are a function of the same key and number.
        keep_terminated: whether the final observations of episodes that terminated are needed and
            kept, too, so that the ring has whole episodes (`episodes_of`, `data.to_minari`). A
            sampler gives them then. Learning does not need them.

    Raises:
        TypeError, ValueError: the tree is not like that, or a number is out of range.
        MemoryError: there is no memory for the table.

    >>> from parllel import Array
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> len(replay), sorted(replay.sample(batch_size=8))[:3]
    (2, ['index', 'n_step_discount', 'n_step_return'])
    """

    _extra: ClassVar[Mapping[str, np.dtype[Any]]] = {}  # branches of minibatches beside `DRAWN`
    _takes_agents: ClassVar[bool] = True
    _takes_stacks_of_agents: ClassVar[bool] = True
    _setting_names: ClassVar[tuple[str, ...]] = ("n_steps", "discount")  # of `_settings`
    _optional_names: ClassVar[tuple[tuple[str, ...], ...]] = ((_SHIFT, _CHANNELS_LAST), (_KEEP,))

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        n_steps: int = 1,
        discount: float = 0.99,
        n_final_obs: int | None = None,
        shift: RandomShift | None = None,
        keep_terminated: bool = False,
    ) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: got {discount}, expected a number in [0, 1]")
        check_names(samples, (NEXT, *DRAWN, *self._extra))
        self.discount = float(discount)  # what JSON can hold
        self._shift = shift
        self.keeps_terminated = bool(keep_terminated)
        super().__init__(
            samples, rng=rng, n_steps=n_steps, n_final_obs=n_final_obs, discount=self.discount
        )

    def _bind_table(self) -> None:
        self._sources = find_sources(self.samples, self.final_obs, on_gpu=self._is_on_gpu)
        if self._shift is not None:
            self._sources = shift_images(self._sources, self._shift, _STREAMS)
        self._ring = self._find_ring(self.samples)

    # Read by an algorithm

    def sample(self, batch_size: int) -> ArrayDict:
        """Return a minibatch of transitions, in memory that the next call overwrites.

        In host memory it is complete when this returns. On a device it is queued in the caller's
        current stream as two launches, the draw and the gather of the whole tree; no byte is
        copied to or from the host, and the host does not wait. The two launches can be captured in
        a CUDA graph after a first call with this batch size: each replay draws the next minibatch
        out of the steps that are there then, as a call does.

        Args:
            batch_size: number of transitions.

        Returns:
            Tree of torch tensors [batch_size, ...]. It has the sample tree's branches, which are
            those of the first step of each transition, and

            - `next_observation`: the observation after the last step; after a termination, that
              of the last step itself;
            - `n_step_return`: float32, the sum of discount**k * reward of the k-th step;
            - `n_step_discount`: float32, the factor for the value of `next_observation`:
              discount ** (number of steps), and 0 where the last step terminated;
            - `terminated`, `truncated`: bool, the flags of the last step;
            - `index`: int64, the number of the transition;
            - `valid`, of several agents: bool, what is to be learned from, as the class says. All
              but `index` are those of each agent then: [batch_size, N], or dictionaries.

            On a device, it is a third launch for several agents.

        Raises:
            RuntimeError: there are fewer than `n_steps` steps; the buffer is closed; or, in host
                memory, no transition can be sampled. On a device, `n_step_return` and
                `n_step_discount` are NaN in this case. While a stream is captured, the first call
                with another batch size raises, as it allocates.
            ValueError: batch_size is not positive.
        """
        return super().sample(batch_size)

    def make_memory(self, batch_size: int, storage: str | None = None) -> TransitionMemory:
        """Return memory for `sample_into`.

        Args:
            batch_size: number of transitions.
            storage: kind of the memory; by default the kind that `sample` uses.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        return TransitionMemory(
            self._sources,
            batch_size,
            storage or self.storage,
            extra=self._extra,
            agents=self.agents,
            discount=self.discount,
        )

    def _draw(self, outputs: TransitionMemory, state: DrawState) -> int:
        return draw_transitions(self._ring, state, outputs.drawn)

    def _explain_nothing(self) -> str:
        return (
            "replay: no transition can be sampled: each one has a step that is not valid, or"
            " ends at a truncation whose final observation was not given (add_final_obs)"
        )

    # Saved and resumed

    def _settings(self) -> dict[str, Any]:
        settings = {"n_steps": self.n_steps, "discount": self.discount}
        if self._shift is not None:  # else as before there were shifts
            settings[_SHIFT] = self._shift.pixels
            settings[_CHANNELS_LAST] = int(self._shift.channels_last)
        if self.keeps_terminated and not type(self).keeps_terminated:
            settings[_KEEP] = 1
        return settings

    @classmethod
    def _as_arguments(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        arguments = dict(settings)
        if _SHIFT in arguments:
            channels_last = bool(arguments.pop(_CHANNELS_LAST))
            arguments["shift"] = RandomShift(arguments.pop(_SHIFT), channels_last=channels_last)
        if _KEEP in arguments:
            arguments[_KEEP] = bool(arguments[_KEEP])
        return arguments
