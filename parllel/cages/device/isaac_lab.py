"""Isaac Lab and mjlab: environments with observation groups, which are no VectorEnv."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from parllel.cages.device.dialect import DeviceStep, Dialect, side_of_device
from parllel.cages.device.maniskill import reset_ended
from parllel.cages.device.tensors import Tensor, Tensors, refuse_shared_memory


class IsaacLab(Dialect):
    """An Isaac Lab environment: `is_vector_env`, a dictionary of observation groups, torch.

    It resets in the step that ends an episode. With `cfg.compute_final_obs` (3.0) the true last
    observations are in `extras["final_obs"]`; without, and in 2.3, they are lost. Flags and other
    results are buffers that the next step overwrites. It takes one seed for all environments.

    Example:
        >>> from parllel.testing.device_envs import FakeIsaacLab
        >>> from parllel.testing.toy_envs import Clock
        >>> IsaacLab(FakeIsaacLab([Clock] * 2)).loses_final_obs
        ''
        >>> IsaacLab(FakeIsaacLab([Clock] * 2, compute_final_obs=False)).loses_final_obs[:26]
        'Isaac Lab gives none with '
    """

    def __init__(self, env: Any) -> None:  # Any: Isaac Lab's classes need not be installed
        observation_space = as_gymnasium(env.single_observation_space)
        action_space = as_gymnasium(env.single_action_space)
        side = side_of_device(env.device)
        super().__init__(env, int(env.num_envs), observation_space, action_space, side)
        self.resets_some = "env_ids" in inspect.signature(env.reset).parameters
        self.loses_final_obs = self._find_loss(env)

    def _find_loss(self, env: Any) -> str:  # Any: as above
        if getattr(env.cfg, "compute_final_obs", False):
            return ""
        return (
            "Isaac Lab gives none with cfg.compute_final_obs=False, nor before 3.0: take 3.0 and"
            " set it to True"
        )

    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, Mapping[str, Any]]:
        """Reset all environments, with the first one's seed for all."""
        observation, extras = self.env.reset(seed=None if seeds is None else self._seed_of(seeds))
        return observation, per_environment(extras, self.n_envs)

    def _seed_of(self, seeds: Sequence[int]) -> Any:  # Any: a library may take one for each
        return seeds[0] >> 1  # as 32 bits with a sign; a negative seed would count as none

    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments; those whose episode ended are reset by the step itself."""
        observation, reward, terminated, truncated, extras = self.env.step(action)
        final_obs = None if self.loses_final_obs else extras.get("final_obs")
        if final_obs is not None:
            refuse_shared_memory(
                final_obs, observation, "extras['final_obs']", "ask for a copy of it"
            )
        info = per_environment(extras, self.n_envs)
        return DeviceStep(observation, reward, terminated, truncated, info, final_obs)

    def reset_some(self, chosen: Tensor) -> Tensors:
        """Reset some environments. The host waits for their numbers."""
        observation, _ = self.env.reset(env_ids=chosen.nonzero().squeeze(-1))
        return observation


class Mjlab(IsaacLab):
    """An mjlab environment, whose API is Isaac Lab's.

    With `cfg.auto_reset=True` it resets in the step that ends an episode, and the true last
    observations are lost. With False the step returns them, and environments are reset here, by
    `reset(env_ids=...)`; for these numbers the host waits in each step.

    Example:
        >>> from parllel.testing.device_envs import FakeMjlab
        >>> from parllel.testing.toy_envs import Clock
        >>> dialect = Mjlab(FakeMjlab([lambda: Clock(length=1)] * 2))
        >>> _ = dialect.reset([0, 1])
        >>> step = dialect.step(dialect.to_action(np.array([0, 1])))
        >>> step.observation["policy"].tolist(), step.final_obs["policy"].tolist()
        ([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    """

    def _find_loss(self, env: Any) -> str:  # Any: as above
        if not env.cfg.auto_reset:
            return ""
        return "mjlab gives none with cfg.auto_reset=True: set it to False"

    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments; those whose episode ended are reset, by mjlab or here."""
        step = super().step(action)
        return step if self.loses_final_obs else reset_ended(self, step)


def per_environment(extras: Mapping[str, Any], n_envs: int) -> dict[str, Any]:
    """Return the entries of extras that have a row for each environment; not sums over all of them.

    >>> import numpy as np
    >>> sorted(per_environment({"energy": np.zeros(2), "log": {"reward": np.zeros(())}}, 2))
    ['energy']

    Args:
        extras: a mapping of arrays, or of such mappings.
        n_envs: number of environments.
    """
    found: dict[str, Any] = {}
    for name, value in extras.items():
        if name == "final_obs":
            continue
        if isinstance(value, Mapping):
            if within := per_environment(value, n_envs):
                found[name] = within
        elif tuple(getattr(value, "shape", ()))[:1] == (n_envs,):
            found[name] = value
    return found


def as_gymnasium(space: Any) -> gym.Space[Any]:  # Any: a space of mjlab, or of gymnasium
    """Return a space as gymnasium's: mjlab has a Box and a Dict of its own."""
    if isinstance(space, gym.Space):
        return space
    if hasattr(space, "spaces"):
        return spaces.Dict({name: as_gymnasium(part) for name, part in space.spaces.items()})
    dtype: Any = getattr(space, "dtype", np.float32)
    return spaces.Box(space.low, space.high, tuple(space.shape), dtype)
