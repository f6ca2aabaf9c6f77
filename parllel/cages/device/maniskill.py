"""ManiSkill: vector environments of gymnasium's class whose results are tensors of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from parllel.arrays.interop import is_tensor
from parllel.cages.device.dialect import DeviceStep, Dialect, select_rows, side_of_device
from parllel.cages.device.tensors import Tensor, Tensors, map_tensors, refuse_shared_memory
from parllel.tree.fitting import MisfitError

_FINAL = ("final_obs", "final_observation")  # gymnasium's name, and the old one that ManiSkill has


class ManiSkill(Dialect):
    """A `VectorEnv` with tensors, which resets in the step that ends an episode, or lets us do so.

    ManiSkill 3 gives all results of such a step under old names: `final_observation`, the whole
    batch before the reset, and `final_info`, the infos of the step of all environments; what stands
    beside them in the info is that of the reset. Where no episode ended, none of these is there:
    ManiSkill itself has waited for the flags. With `auto_reset=False`, and in gymnasium's mode
    DISABLED, environments are reset here by `options={"env_idx": ...}`, and the host waits for
    the flags of each step.

    Raises:
        ValueError: it resets in the step after (NEXT_STEP), which costs a row and is not done here.

    Example:
        >>> import numpy as np
        >>> from parllel.testing.device_envs import FakeManiSkill
        >>> from parllel.testing.toy_envs import Clock
        >>> dialect = ManiSkill(FakeManiSkill([lambda: Clock(length=1)] * 2))
        >>> _ = dialect.reset([0, 1])
        >>> step = dialect.step(dialect.to_action(np.array([0, 1])))
        >>> step.observation.tolist(), step.final_obs.tolist()
        ([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    """

    resets_some = True

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._resets_itself = _resets_itself(env)
        spaces = env.single_observation_space, env.single_action_space
        super().__init__(env, env.num_envs, *spaces, side_of_device(getattr(env, "device", "cpu")))

    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, Mapping[str, Any]]:
        """Reset all environments, each with its own seed."""
        result: tuple[Tensors, Mapping[str, Any]] = self.env.reset(
            seed=None if seeds is None else list(seeds)
        )
        return result

    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments; those whose episode ended are reset."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._resets_itself:
            step = DeviceStep(observation, reward, terminated, truncated, info)
            return self._reset_ended(step)
        name = next((name for name in _FINAL if name in info), None)
        if name is None:
            return DeviceStep(observation, reward, terminated, truncated, info)
        final_obs = info[name]
        refuse_shared_memory(
            final_obs,
            observation,
            f"info['{name}']",
            "ManiSkill did so once (issue 828): take a version that clones it",
        )
        own = info.get("final_info", {n: v for n, v in info.items() if n not in _names(name)})
        return DeviceStep(
            observation, reward, terminated, truncated, own, final_obs, info.get(f"_{name}")
        )

    def reset_some(self, chosen: Tensor) -> Tensors:
        """Reset some environments. The host waits for their numbers."""
        numbers = chosen.nonzero().squeeze(-1)
        observation, _ = self.env.reset(options={"env_idx": numbers})
        return observation

    def _reset_ended(self, step: DeviceStep) -> DeviceStep:
        """Reset the environments whose episode ended; the host waits for their flags."""
        return reset_ended(self, step)


def reset_ended(dialect: Dialect, step: DeviceStep) -> DeviceStep:
    """Reset the environments whose episode ended in a step, where the library does not.

    The host waits for the flags. What the reset may overwrite is copied before.

    Args:
        dialect: its `reset_some` resets them.
        step: what torch's library returned, without final observations.

    Raises:
        MisfitError: a reward or a flag is no tensor [n] of torch, or a flag is no bool; or the
            reset gives observations of another form than the step.
    """
    _check_numbers(dialect, step)
    ended = step.terminated | step.truncated
    if not bool(ended.any()):
        return step
    final_obs, info = (map_tensors(_clone, each) for each in (step.observation, step.info))
    reward, terminated, truncated = (
        each.clone() for each in (step.reward, step.terminated, step.truncated)
    )
    first_obs = dialect.reset_some(ended)
    observation = select_rows(ended, first_obs, final_obs)
    return DeviceStep(observation, reward, terminated, truncated, info, final_obs, ended)


def _check_numbers(dialect: Dialect, step: DeviceStep) -> None:
    """Refuse rewards and flags that can't tell which environments are to be reset."""
    for name in ("reward", "terminated", "truncated"):
        values = getattr(step, name)
        is_flag = name != "reward"
        if is_tensor(values):
            got = f"{values.dtype} {tuple(values.shape)}"
            is_right = str(values.dtype) == "torch.bool" or not is_flag
            if is_right and tuple(values.shape) == (dialect.n_envs,):
                continue
        else:
            got = f"a {type(values).__name__}"
        dtype = " of torch.bool" if is_flag else ""
        raise MisfitError(got, f"a tensor{dtype} of shape {(dialect.n_envs,)}", path=(name,))


def _clone(leaf: Any) -> Any:
    return leaf.clone() if hasattr(leaf, "clone") else leaf


def _names(name: str) -> tuple[str, ...]:
    return name, f"_{name}", "final_info", "_final_info"


def _resets_itself(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment resets in the step that ends an episode, by what it declares."""
    declared = env.metadata if env.metadata is not VectorEnv.metadata else {}
    mode = declared.get("autoreset_mode")
    if mode is None:  # ManiSkill declares none
        return bool(getattr(env, "auto_reset", True))
    if AutoresetMode(mode) is AutoresetMode.NEXT_STEP:
        raise ValueError(
            "autoreset_mode: got NEXT_STEP, expected SAME_STEP or DISABLED: a step that is spent on"
            " a reset is no transition; let the environment reset in the same step"
        )
    return AutoresetMode(mode) is AutoresetMode.SAME_STEP
