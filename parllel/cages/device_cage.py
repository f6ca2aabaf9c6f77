"""DeviceCage: steps vectorized environments whose results are tensors on a device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parllel.cages.cage import Command
from parllel.cages.device.device_backend import DeviceBackend
from parllel.cages.device.dialect import DeviceStep, Dialect
from parllel.cages.device.known_dialects import dialect_of
from parllel.cages.device.tensors import Tensors, as_action_form
from parllel.cages.episodes import TrajInfo
from parllel.cages.seeds import Seed
from parllel.cages.vector.vector_stepper import VectorStepper
from parllel.cages.vector_cage import VectorCage
from parllel.storages import Side
from parllel.tree import TreePath


class DeviceCage(VectorCage):
    """Step environments that live on a GPU: ManiSkill, Isaac Lab, mjlab, gymnax, Brax, your own.

    A `BasicSampler` of this cage alone and a tree on the environments' own side (`storage="device"`
    for tensors of a GPU, "local" for those of the host) brings no result through the host: actions
    stay where they are, one launch for each step takes the environments' own tensors to the tree,
    and the host waits once in a batch. docs/gpu.md has the counts. All other callers get arrays of
    the host, as from each cage: each step then copies all results to the host and waits for them.

    Environments reset in the step that ends an episode, or are reset there. Their true last
    observations are kept. Some libraries lose them; then a truncated episode's end has no value of
    its own, and the cage refuses the environment. With `lost_final_obs="previous"`, the observation
    before the last action stands for the lost one, as in RSL-RL: a value of the state before, of
    the same observation that the action was chosen by.

    Infos are not stored where they have no row for each environment.

    >>> import numpy as np
    >>> from parllel.testing.device_envs import FakeManiSkill  # of tensors on the CPU
    >>> from parllel.testing.toy_envs import Clock
    >>> with DeviceCage(FakeManiSkill, {"env_fns": [Clock] * 2}, seed=0) as cage:
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()
    ...     cage.step_async(np.array([0, 1]))
    ...     observation, reward, *_ = cage.await_step()
    >>> observation.tolist(), reward.tolist(), cage.side
    ([[0.0, 1.0], [0.0, 1.0]], [1.0, 1.0], 'host')

    Args:
        make_env: returns the library's environment, or `FunctionalEnvs`.
        env_kwargs: keyword arguments of `make_env`.
        make_traj_info: returns the summary of a new episode. On the short way, a `step` of its own
            is refused, as nothing of a step is on the host.
        seed: one for all environments, or a SeedSequence for each. Isaac Lab and mjlab take the
            first environment's seed for all.
        lost_final_obs: what is done with environments that lose true last observations: "raise",
            or "previous", which is said once, by a warning.
        make_dialect: returns a `Dialect` for the environment; that of a known library by default.

    Attributes:
        side: where the environments' tensors are, "gpu" or "host".
        loses_final_obs: whether the observation before stands for the last one.

    Raises:
        TypeError: the environment is of no known library; the message names what is missing.
        ValueError: true last observations are lost; the message names what keeps them.
    """

    def __init__(
        self,
        make_env: Callable[..., Any],  # Any: libraries have no class in common
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        seed: Seed = None,
        lost_final_obs: Literal["raise", "previous"] = "raise",
        make_dialect: Callable[[Any], Dialect] = dialect_of,
    ) -> None:
        env = make_env(**(env_kwargs or {}))
        try:
            self._dialect = make_dialect(env)
            self.loses_final_obs = _tell_loss(self._dialect, lost_final_obs)
        except BaseException:
            if hasattr(env, "close"):
                env.close()
            raise
        self._backend = DeviceBackend(self._dialect)
        self._hold(VectorStepper(self._backend, make_traj_info, seed))
        self.side: Side = self._dialect.side
        self._step: DeviceStep | None = None  # that was started on the device
        self._shown: Tensors = None  # the last observation, where the host has not seen it

    def start_command(self, command: Command) -> None:
        """Start a step, or carry out a reset, with results for the host."""
        if self._shown is not None:
            self._stepper.show(self._backend.take_shown(self._shown))
            self._shown = None
        super().start_command(command)

    def start_on_device(self, action: Tensors) -> None:
        """Start a step whose results stay where they are. Returns at once.

        Args:
            action: n rows of any library, or a tree of these. What is on the environments' side is
                not copied, so that they may overwrite it.

        Raises:
            RuntimeError: the environments were never reset, or are closed.
        """
        if self._under_way is not None:
            self.await_step()
        self._backend.check_open()
        self._stepper.check_is_reset()
        begin_s = time.perf_counter()
        action = as_action_form(action, self.action_space)
        self._step = self._dialect.step(self._dialect.to_action(action))
        self.busy_span = begin_s, time.perf_counter()

    def await_on_device(self) -> DeviceStep:
        """Return the results of `start_on_device`: tensors that the next step may overwrite.

        Nothing is waited for: work that is queued in the caller's current stream comes behind.
        """
        step, self._step = self._step, None
        assert step is not None  # start_on_device is called before
        self._shown = step.observation
        self._stepper.final_obs = {}
        return step

    def sum_up(
        self, reward: NDArray[Any], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> None:
        """Add steps that were taken on the device to the summaries of episodes.

        Args:
            reward: [T, n], in host memory, as the others.
            terminated, truncated: bool [T, n].
        """
        self._stepper.sum_up_steps(reward, terminated | truncated)

    def leave_out(self, paths: Iterable[TreePath]) -> None:
        """Have `take_left_out` tell of entries of infos that are stored nowhere."""
        self._stepper.left_out.new += paths

    def check_sums(self) -> None:
        """Refuse summaries that ask for the steps of each environment on the host.

        Raises:
            TypeError: `make_traj_info` returns a TrajInfo with a `step` of its own.
        """
        self._stepper.check_sums()


def _tell_loss(dialect: Dialect, lost_final_obs: str) -> bool:
    """Refuse an environment that loses last observations, or say so; return whether it does."""
    if lost_final_obs not in ("raise", "previous"):
        raise ValueError(f'lost_final_obs: got {lost_final_obs!r}, expected "raise" or "previous"')
    if not dialect.loses_final_obs:
        return False
    lost = f"final_obs: the true last observations of episodes are lost: {dialect.loses_final_obs}"
    if lost_final_obs == "raise":
        raise ValueError(
            f'{lost}; or give the cage lost_final_obs="previous", by which the observation before'
            " the last action is valued in place of the last one"
        )
    warnings.warn(
        f"{lost}. Where an episode is truncated, the observation before the last action is valued"
        " in place of the last one",
        stacklevel=3,
    )
    return True
