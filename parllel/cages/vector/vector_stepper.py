"""VectorStepper: resets and steps a vector environment, with the results that a Stepper gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from parllel.cages.episodes import Episodes, TrajInfo
from parllel.cages.seeds import Seed, seed_spaces, seed_words, spawn_seeds
from parllel.cages.values.env_rows import (
    Batch,
    Info,
    Rows,
    as_tree,
    check_counts,
    check_numbers,
    copy_tree,
    stack_column,
    write_batch,
)
from parllel.cages.values.infos import LeftOut, copy_info, info_of, take_info
from parllel.cages.values.jagged_spaces import has_jagged
from parllel.cages.values.spaces import (
    ACTION_MASK,
    check_space,
    sample_action,
    to_action_batch,
    to_actions,
)
from parllel.cages.vector.backend import Backend, Mask
from parllel.cages.vector.vector_backend import mask_of
from parllel.tree import dict_map
from parllel.tree.fitting import MisfitError

# Entries that vector environments with SAME_STEP add to their info, beside those of the step.
_FINAL = ("final_obs", "_final_obs", "final_info", "_final_info")


class VectorStepper:
    """A vector environment whose steps give the same results, whatever its autoreset mode.

    The observation of a step that ended an episode is the first one of the next episode, and the
    true final one is kept in `final_obs`, as with a Stepper. Where the environment spends the next
    step on the reset, that step's rows are in `invalid` instead; see `VectorCage`.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from gymnasium.vector import SyncVectorEnv
    >>> from parllel.cages.vector.vector_backend import VectorBackend
    >>> envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    >>> stepper = VectorStepper(VectorBackend(envs), TrajInfo, seed=0)
    >>> observation, info = stepper.reset()
    >>> stepper.start(np.array([0, 1]))
    >>> Batch(*stepper.wait()).reward
    array([1., 1.])
    >>> stepper.close()

    Args:
        backend: the vector environment, or another `Backend`. `close` closes it, and so
            does an error of this constructor.
        make_traj_info: returns the summary of a new episode.
        seed: one for all, or a SeedSequence for each environment.

    Raises:
        TypeError, ValueError: as for `VectorCage`.
    """

    def __init__(
        self,
        backend: Backend,
        make_traj_info: Callable[[], TrajInfo],
        seed: Seed,
    ) -> None:
        self._backend = backend
        self.n_envs = backend.n_envs
        self.observation_space = backend.observation_space
        self.action_space = backend.action_space
        try:
            check_space(("observation",), self.observation_space)
            _refuse_jagged(self.observation_space)
            check_space(("action",), self.action_space)
            self._seeds = spawn_seeds(seed, self.n_envs)
        except BaseException:
            backend.close()
            raise
        self._action_spaces = [copy.deepcopy(self.action_space) for _ in range(self.n_envs)]
        self._episodes = Episodes(make_traj_info, self.n_envs, are_batched=True)
        self.goes_on = self._backend.goes_on
        """Whether a step goes on after `start`, until `wait`."""
        self._is_reset = False
        self._actions: Any = None  # the rows of the step that was started
        self._resetting: Mask | None = None  # environments whose next step is a reset
        self._reward: NDArray[Any] | None = None  # of the last step, not yet summed up
        # What the next actions follow: the last rows and info, and masks in infos of resets.
        self._observation: Any = None
        self._info: Info = {}
        self._reset_masks: dict[int, dict[str, Any]] = {}
        self.left_out = LeftOut()
        self.final_obs: dict[int, Any] = {}
        """The true final observation of each environment whose episode ended in the last step."""
        self.invalid: tuple[int, ...] = ()
        """Numbers of the environments that spent the last step on a reset."""

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed all environments, as the first one of a new stepper does.

        Raises:
            NotImplementedError: the environment takes no seed after it was made.
        """
        self._backend.check_can_be_seeded()
        self._seeds = spawn_seeds(seed, self.n_envs)
        self._is_reset = False

    def reset(self, max_random_steps: int = 0) -> tuple[Any, Info]:
        """Reset all environments, seeded the first time. Episodes under way are forgotten.

        Args:
            max_random_steps: the most random steps that an environment takes after the reset. How
                many it takes is drawn from its own seed. The vector environment takes the largest
                of these numbers, and an environment is reset again when its own number of steps
                is left; where it can't be reset alone, it takes all of them.

        Returns:
            The observations to act on, and the infos of the first reset.
        """
        numbers = None if self._is_reset else seed_spaces(self._seeds, self._action_spaces)
        self._reward = None
        self._episodes.begin()
        if self._backend.forgets_resets:
            self._resetting = None
        observation, info = self._backend.reset(numbers)
        check_counts(observation, self.n_envs, ("observation",))
        self._is_reset = True  # not before: the reset that follows one that failed is seeded, too
        self._observation, self._info, self._reset_masks = observation, info, {}
        if max_random_steps:
            info = copy_info(info)
            observation = self._step_randomly(observation, max_random_steps)
        self.final_obs, self.invalid = {}, ()
        return observation, info

    def _step_randomly(self, observation: Rows, max_random_steps: int) -> Any:
        generators = [np.random.default_rng(seed) for seed in self._seeds]
        counts = np.array([rng.integers(max_random_steps + 1) for rng in generators])
        completed = self._episodes.take_completed()
        for n_left in range(int(counts.max()) - 1, -1, -1):
            self.start(self.random_actions())
            batch = Batch(*self.wait())
            begins = counts == n_left
            if self._backend.resets_by_mask and begins.any():
                self._add_reward()
                batch = self._with_resets(batch, begins)
                self._episodes.forget(np.flatnonzero(begins).tolist())
            observation = batch.observation
        self._episodes.put_back(completed)
        return observation

    def start(self, actions: Rows) -> None:
        """Start a step.

        Args:
            actions: n rows, which are copied.

        Raises:
            RuntimeError: the environments were never reset.
        """
        self.check_is_reset()
        if self._episodes.are_told:
            self._actions = to_actions(actions, self.action_space)
        if not self.goes_on:  # the environment may overwrite its rewards
            self._add_reward()
        self._backend.start(to_action_batch(actions, self.action_space))
        self._add_reward()

    def wait(self) -> tuple[Any, NDArray[Any], Mask, Mask, Info, Mapping[int, Info]]:
        """Wait for the step that was started, and reset the environments whose episode ended.

        Returns:
            The arguments of a `Batch`.
        """
        results = self._backend.wait()
        self.final_obs, self.invalid = {}, ()
        self._observation, reward, terminated, truncated, self._info = results
        if not reward.shape == terminated.shape == truncated.shape == (self.n_envs,):
            check_numbers(*results[1:4], self.n_envs)
        self._reset_masks = {}
        # As few calls as possible: the environments have filled the caches with their own data, so
        # each call costs microseconds here (bench/bench_vector.py).
        is_end = 1 in terminated.tobytes() or 1 in truncated.tobytes()
        if is_end or self._resetting is not None or self._episodes.are_told:
            return self._complete(Batch(*results, {}))
        self._reward = reward  # summed up while the environments take the next step
        return *results, {}

    def check_is_reset(self) -> None:
        """Raise RuntimeError where the environments were never reset."""
        if not self._is_reset:
            raise RuntimeError("step before reset: call reset_async() and await_step() first")

    def show(self, observation: Rows) -> None:
        """Take the observations that the next actions follow, of steps that were taken elsewhere.

        Args:
            observation: n rows. There are no masks of actions beside them.
        """
        self._observation, self._info, self._reset_masks = observation, {}, {}

    def check_sums(self) -> None:
        """Raise TypeError where summaries need more of a step than `sum_up_steps` is given."""
        if self._episodes.are_told:
            kind = type(self._episodes.summaries[0]).__name__
            raise TypeError(
                f"make_traj_info: {kind} has a step of its own, which takes observations and infos"
                " on the host, expected a TrajInfo that sums up rewards, as the results of steps"
                " stay on the device; give it another name than step, or step the environments by a"
                " tree in other memory"
            )

    def sum_up_steps(self, reward: NDArray[Any], ended: Mask) -> None:
        """Add steps that were taken elsewhere to the summaries of episodes.

        Args:
            reward: [T, n].
            ended: bool [T, n], where an episode ended.
        """
        self._add_reward()
        for t, has_end in enumerate(np.any(ended, axis=1)):
            self._episodes.add(reward[t])
            if has_end:
                self._episodes.end(np.flatnonzero(ended[t]).tolist())

    def _add_reward(self) -> None:
        if self._reward is not None:
            self._episodes.add(self._reward)
            self._reward = None

    def _complete(self, batch: Batch) -> Batch:
        """Complete a step that ended an episode, or that some environments spent on a reset."""
        ended = batch.terminated | batch.truncated
        if self._resetting is not None:
            ended &= ~self._resetting
            batch = self._leave_out(batch, self._resetting)
            self._resetting = None
        numbers = np.flatnonzero(ended).tolist()
        is_same_step = self._backend.mode is AutoresetMode.SAME_STEP
        if is_same_step and numbers:
            batch = self._apart(batch, numbers)
        else:
            self.final_obs = {number: copy_tree(batch.observation[number]) for number in numbers}
        self._sum_up(batch, numbers)
        if is_same_step or not numbers:
            return batch
        if self._backend.resets_by_mask:
            return self._with_resets(batch, ended)
        self._resetting = ended
        return batch

    def tell_of(self, error: MisfitError) -> None:
        """Add to an error the seed of the environment that it names."""
        if error.environment is not None:
            error.seed, _ = seed_words(self._seeds[error.environment])

    @property
    def spends_steps(self) -> bool:
        """Whether environments spend steps on resets, which are then in `invalid`."""
        is_next_step = self._backend.mode is AutoresetMode.NEXT_STEP
        return is_next_step and not self._backend.resets_by_mask

    def random_actions(self) -> Any:
        """Draw an action for each environment, of those that it allows; return them as rows."""
        if not self._is_reset:
            self.reset()
        numbered = enumerate(self._action_spaces)
        return stack_column([self._random_action(number, space) for number, space in numbered])

    def _random_action(self, number: int, space: spaces.Space[Any]) -> Any:
        if self._resetting is not None and self._resetting[number]:
            return space.sample()  # it is ignored
        rows = self._observation
        if isinstance(rows, Mapping) and ACTION_MASK in rows:
            return sample_action(space, {ACTION_MASK: rows[ACTION_MASK][number]})
        info = self._reset_masks.get(number)
        return sample_action(space, None, mask_of(self._info, number) if info is None else info)

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""
        return self._episodes.take_completed()

    def close(self) -> None:
        """Wait for a step under way, and close the environment. Called again, it does nothing."""
        self._backend.close()

    def _leave_out(self, batch: Batch, resetting: Mask) -> Batch:
        """Mark the rows of the environments that spent this step on a reset."""
        self.invalid = tuple(np.flatnonzero(resetting).tolist())
        return batch._replace(
            reward=np.where(resetting, 0, batch.reward),
            terminated=batch.terminated & ~resetting,
            truncated=batch.truncated | resetting,
        )

    def _apart(self, batch: Batch, numbers: Sequence[int]) -> Batch:
        """Take final observations and infos out of an info that holds them beside its entries."""
        info = batch.info
        values, infos = info.get("final_obs"), info.get("final_info")
        if not (isinstance(values, np.ndarray) and values.dtype == object):
            values = as_tree(values)  # a dense batch; the rows of other environments mean nothing
        for number in numbers:
            value = None if values is None else values[number]
            if value is None:
                raise RuntimeError(
                    f"info['final_obs']: got nothing for environment {number}, expected its last"
                    " observation: its episode ended, and the mode is SAME_STEP"
                )
            self.final_obs[number] = copy_tree(value)
        own = {name: values for name, values in info.items() if name not in _FINAL}
        single = {} if infos is None else {number: take_info(infos, number) for number in numbers}
        return batch._replace(info=own, single=single)

    def _with_resets(self, batch: Batch, ended: Mask) -> Batch:
        """Reset environments, and replace their last observations by their first ones."""
        kept = Batch(  # the reset may write to the environment's own arrays
            observation=dict_map(np.array, batch.observation),
            reward=batch.reward.copy(),
            terminated=batch.terminated.copy(),
            truncated=batch.truncated.copy(),
            info=copy_info(batch.info),
            single={},
        )
        rows, masks = self._backend.reset_ended(ended)
        write_batch(kept.observation, rows, ended)
        self._observation, self._info = kept.observation, kept.info
        self._reset_masks |= masks
        return kept

    def _sum_up(self, batch: Batch, numbers: Sequence[int]) -> None:
        """Add the step to the summaries, and complete those of the episodes that ended."""
        if self._episodes.are_told:
            self._episodes.tell(self._steps(batch), self.invalid)
        else:
            self._episodes.add(batch.reward, self.invalid)
        if numbers:
            self._episodes.end(numbers)

    def _steps(self, batch: Batch) -> Iterator[tuple[Any, ...]]:
        """Yield what each environment alone would have returned, with its action."""
        observation = dict_map(np.array, batch.observation)
        for number, final_obs in self.final_obs.items():
            write_batch(observation, final_obs, number)
        members = to_actions(observation, self.observation_space)
        flags = batch.terminated.tolist(), batch.truncated.tolist()
        columns = zip(members, self._actions, batch.reward, *flags, strict=True)
        for number, step in enumerate(columns):
            yield *step, info_of(number, batch.info, batch.single)


def _refuse_jagged(space: Any) -> None:
    if has_jagged(space):
        raise TypeError(
            f"observation: got {space}, whose values have different lengths, so that a vector"
            " environment has no array of them; step single environments, in a SerialCage or in"
            " ProcessCages"
        )
