"""SequenceReplayBuffer: windows of consecutive steps out of the ring of a sample tree."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from parllel.kernels.window_search import WindowTable
from parllel.ops.sequences import SampledWindows, draw_windows
from parllel.ops.transitions import DrawState
from parllel.replays.base_replay import BaseReplay, check_names
from parllel.replays.sequence_memory import DRAWN, INITIAL, SequenceMemory, find_window_sources
from parllel.tree import ArrayDict

EpisodeEnd: TypeAlias = Literal["stop", "pad", "cross"]
"""What windows do where an episode ends; in the order of the kernels' numbers."""

_ENDS: tuple[EpisodeEnd, ...] = get_args(EpisodeEnd)


class SequenceReplayBuffer(BaseReplay[SequenceMemory]):
    """Draw windows of consecutive steps, each with the same probability, for recurrent models.

    The sample tree and its ring are those of a `ReplayBuffer`, which is told of batches, saved and
    loaded in the same way. Here a minibatch has N windows of `burn_in + length` rows, R in all. A
    window is named by its row `burn_in`, the first one to learn from. The rows before it are
    steps of the same episode, from which a recurrent state is brought up to date. Where the episode
    has fewer, the first rows are padding, so that each step can be learned from; `is_first` is True
    at the first real row. What follows row `burn_in` depends on `episode_end`:

    - "stop": `length` steps of one episode. Shorter episodes are not drawn.
    - "pad": steps of one episode, and padding behind its end.
    - "cross": steps of the environment, whatever episodes they belong to. Where an episode was cut
      off, its final observation has a row of its own, behind the last step. Where observations are
      stacks of n frames, the n - 1 rows before the first step of an episode have its older frames.

    Rows that are no steps, which are padding and the two kinds of rows of "cross", have a `mask` of
    False, and zeros in all branches but `observation`. So a return of several steps goes on while
    `mask` is True, and `terminated` ends it. At a row where `mask` is False, and at row R, it goes
    on with the value of that row's observation: the true one after the step before, also where an
    episode was truncated.

    Windows are named by the steps whose number, which counts from the first one ever written, is a
    multiple of `stride`. With "stop" and "pad", the first step of each episode names one too, and
    with "stop" a window ends with the last step of each episode. A window can't be drawn where one
    of its steps, or the one before its first, is not there (any more); where it would have no step
    to learn from; and, with "stop", where one of its steps is not valid. A step that is not valid
    is the last of its episode, as for `RecurrentSampler`, and is not learned from; neither is one
    with a truncation whose final observation was not given.

    Several agents: the tree is as for `ReplayBuffer`. A window is one of an environment, with the
    columns of all agents; its episodes, flags and `mask` are the environment's, which goes on as
    long as one of its agents does. Rows have `valid` as the tree has it, False where a row is no
    step: an agent lives in the steps that are `valid`, once in each episode, and is learned from
    where `mask` is True as well. Where it lives no more, its observation is its last one, as
    where `mask` is False. Where it comes later than row 0 and `is_first`, its own state begins.

    Frames that are stored once (`FrameArray`) are gathered once: R + n for each window. Its stacks
    are a view of them, in which step t has the frames t to t + n - 1. It is not contiguous, so a
    model that wants it as one batch of images takes `observation.flatten(0, 1)`, which copies
    nothing, and makes floats of that.

    Args:
        samples: the sample tree, as for `ReplayBuffer`. Branches of a batch that have no row for
            each step, `initial_rnn_state` and `bootstrap_value`, are left alone.
        rng: generator of a key, as for `ReplayBuffer`.
        length: rows to learn from, 1 or more.
        burn_in: rows before them, 0 or more.
        stride: distance of the steps by which windows are named; with `length`, each step is
            learned from in one window.
        episode_end: "stop", "pad" or "cross".
        n_final_obs: as for `ReplayBuffer`.

    Raises:
        TypeError, ValueError: as for `ReplayBuffer`; the ring is too short for a window; or there
            are frames of several agents that are stored once.
        MemoryError: there is no memory for the table of final observations.

    Source: Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement
        learning" (R2D2), section 2.3: stored states and burn-in.

    >>> from parllel import Array
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((4, 1), np.float32, full_size=8, padding=1),
    ...         "reward": Array((4, 1), np.float32, full_size=8),
    ...         "terminated": Array((4, 1), bool, full_size=8),
    ...         "truncated": Array((4, 1), bool, full_size=8),
    ...     }
    ... )
    >>> replay = SequenceReplayBuffer(
    ...     samples, rng=np.random.default_rng(0), length=2, burn_in=1, stride=2
    ... )
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> samples["reward"][:, 0] = [1, 2, 3, 4]
    >>> replay.end_batch()
    >>> windows = replay.sample(batch_size=8)
    >>> windows["observation"].shape, windows["reward"].shape
    (torch.Size([4, 8]), torch.Size([3, 8]))
    >>> dict(sorted(zip(windows["index"].tolist(), windows["reward"].T.tolist())))
    {0: [0.0, 1.0, 2.0], 2: [2.0, 3.0, 4.0]}
    """

    _takes_agents: ClassVar[bool] = True
    _not_steps: ClassVar[tuple[str, ...]] = (INITIAL, "bootstrap_value")
    _n_steps_name: ClassVar[str] = "burn_in + length + 1"
    _keeps_breaks: ClassVar[bool] = True
    _setting_names: ClassVar[tuple[str, ...]] = ("length", "burn_in", "stride", "episode_end")

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        length: int,
        burn_in: int = 0,
        stride: int = 1,
        episode_end: EpisodeEnd = "stop",
        n_final_obs: int | None = None,
    ) -> None:
        for name, number, least in (
            ("length", length, 1),
            ("burn_in", burn_in, 0),
            ("stride", stride, 1),
        ):
            if operator.index(number) < least:
                raise ValueError(f"{name}: got {number}, expected {least} or more")
        if episode_end not in _ENDS:
            raise ValueError(f"episode_end: got {episode_end!r}, expected one of {_ENDS}")
        check_names(samples, (*DRAWN, *self._extra))
        self.length, self.burn_in, self.stride = map(operator.index, (length, burn_in, stride))
        self.episode_end: EpisodeEnd = episode_end
        # Of the step before the first one, a window has to know whether an episode ended with it.
        n_steps = self.burn_in + self.length + 1
        super().__init__(samples, rng=rng, n_steps=n_steps, n_final_obs=n_final_obs)
        if self.agents is not None and self._n_older:
            raise ValueError(
                "samples: got stacks of frames of several agents, expected observations without"
                " older frames: an agent's stacks begin where its life does, and a window's where"
                " the environment's episode does; store whole stacks (frames=None)"
            )

    def _bind_table(self) -> None:
        on_gpu = self._is_on_gpu
        keeps_valid = self.agents is not None
        self._sources = find_window_sources(
            self._steps, self.final_obs, on_gpu=on_gpu, keeps_valid=keeps_valid
        )
        self._ring = self._find_ring(self._steps)
        ends = _ENDS.index(self.episode_end)
        form = WindowTable(self.length, self.burn_in, self.stride, ends, self._n_older)
        self._windows = SampledWindows(self._ring, form)

    # Read by an algorithm

    def sample(self, batch_size: int) -> ArrayDict:
        """Return a minibatch of windows, in memory that the next call overwrites.

        Where it is, when it is complete, and how it is captured is as for `ReplayBuffer.sample`: on
        a device it is two launches.

        Args:
            batch_size: number of windows, N.

        Returns:
            Tree of torch tensors. It has the sample tree's branches [R, N, ...], where R is
            `burn_in + length` (of several agents with `valid`, too), and in the place of
            `observation` and, of one agent, `valid`

            - `observation`: [R + 1, N, ...]; row t + 1 is what was observed after the step of row
              t. After a termination it means nothing: it is the observation of the last step
              itself, or with "cross" that of the next row.
            - `is_first`: bool [R + 1, N]. An episode begins with the row: a recurrent state is put
              back before it.
            - `mask`: bool [R, N], the steps to learn from; False in burn-in and padding, and where
              a step can't be learned from.
            - `initial_rnn_state`: [N, ...], where the tree has `agent_info.rnn_state`: that of the
              first real row, which is the agent's state before the step. The rows lack it.
            - `index`: int64 [N], the number of the window.

        Raises:
            RuntimeError: there are too few steps; the buffer is closed; or, in host memory, no
                window can be drawn. On a device, `mask` is False everywhere in this case, and
                `index` is -1. While a stream is captured, the first call with another batch size
                raises, as it allocates.
            ValueError: batch_size is not positive.
        """
        return super().sample(batch_size)

    def make_memory(self, batch_size: int, storage: str | None = None) -> SequenceMemory:
        """Return memory for `sample_into`.

        Args:
            batch_size: number of windows.
            storage: kind of the memory; by default the kind that `sample` uses.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        form, kind = self._windows.form, storage or self.storage
        return SequenceMemory(self._sources, form, batch_size, kind, extra=self._extra)

    @property
    def _n_needed(self) -> int:
        return 1 if self.episode_end == "pad" else self.length

    @property
    def _needed_name(self) -> str:
        return "1" if self.episode_end == "pad" else "length"

    def _draw(self, outputs: SequenceMemory, state: DrawState) -> int:
        return draw_windows(self._windows, state, outputs.drawn)

    def _explain_nothing(self) -> str:
        return (
            f"replay: no window of {self.burn_in} + {self.length} steps can be drawn with"
            f" episode_end={self.episode_end!r}: episodes are too short or not complete, their"
            " steps are not valid, or their final observations were not given (add_final_obs)"
        )

    # Saved and resumed

    def _settings(self) -> dict[str, Any]:
        numbers = {"length": self.length, "burn_in": self.burn_in, "stride": self.stride}
        return {**numbers, "episode_end": _ENDS.index(self.episode_end)}

    @classmethod
    def _as_arguments(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**settings, "episode_end": _ENDS[settings["episode_end"]]}
