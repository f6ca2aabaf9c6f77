"""Which dialect an environment speaks, by its class; and what one that is not known lacks."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv

from parllel.cages.device.dialect import Dialect
from parllel.cages.device.functional import Functional, FunctionalEnvs
from parllel.cages.device.isaac_lab import IsaacLab, Mjlab
from parllel.cages.device.maniskill import ManiSkill


def dialect_of(env: Any) -> Dialect:  # Any: libraries have no class in common
    """Return an environment behind the words that a cage uses.

    Raises:
        TypeError: it is no vectorized environment, or none that is known; the message names what
            is missing.
        ValueError: as the dialect's own.
    """
    if isinstance(env, FunctionalEnvs):
        return Functional(env)
    if isinstance(env, VectorEnv):
        return ManiSkill(env)
    if getattr(env, "is_vector_env", False):
        names = ("num_envs", "device", "cfg", "single_observation_space", "single_action_space")
        _check_has(env, names)
        return Mjlab(env) if hasattr(env.cfg, "auto_reset") else IsaacLab(env)
    kind = f"{type(env).__module__}.{type(env).__qualname__}"
    if not hasattr(env, "num_envs"):
        raise TypeError(
            f"make_env: got a {kind}, which has no num_envs, expected vectorized environments whose"
            " results are tensors; SerialCage and ProcessCage step single ones"
        )
    raise TypeError(
        f"make_env: got a {kind} with num_envs = {env.num_envs}, which is no VectorEnv and has no"
        " is_vector_env: when it resets, and where its true last observations are, is not known."
        " Wrap it (ManiSkill: ManiSkillVectorEnv), or give the cage make_dialect, a subclass of"
        " cages.device.dialect.Dialect"
    )


def _check_has(env: Any, names: tuple[str, ...]) -> None:  # Any: as above
    missing = [name for name in names if not hasattr(env, name)]
    if missing:
        raise TypeError(
            f"make_env: got a {type(env).__qualname__} with is_vector_env, which has no"
            f" {', '.join(missing)}, expected those of Isaac Lab and mjlab; define them, or give"
            " the cage make_dialect, a subclass of cages.device.dialect.Dialect"
        )
