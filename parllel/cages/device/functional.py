"""Functional environments in JAX: gymnax, Brax, or any two functions; n of them by `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from parllel import cuda
from parllel.arrays import Array
from parllel.arrays.interop import to_host
from parllel.cages.device.dialect import DeviceStep, Dialect
from parllel.cages.device.tensors import Tensor, Tensors, map_tensors
from parllel.storages import Side

if TYPE_CHECKING:
    import jax

Key = Any
"""A key of JAX's random numbers."""


class FunctionalEnvs:
    """n copies of an environment that is two pure functions, with their states and keys.

    Both functions are of a single environment, and do not reset by themselves:

        reset(key) -> observation, state
        step(key, state, action) -> observation, state, reward, terminated, truncated, info

    They are compiled together: a step and the resets of all environments whose episode ended are
    one call of JAX, which gives the observations before the resets, too. Nothing waits.

    Args:
        reset, step: the functions.
        observation_space, action_space: gymnasium's spaces of a single environment.
        n_envs: number of environments.

    Raises:
        ModuleNotFoundError: JAX is not installed.
        ValueError: n_envs is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> def reset(key):
        ...     return jnp.zeros(1), 0.0
        >>> def step(key, state, action):
        ...     state = state + action
        ...     return state[None], state, state, state >= 3, False, {}
        >>> space = gym.spaces.Box(-9, 9, (1,))
        >>> envs = FunctionalEnvs(reset, step, space, gym.spaces.Box(0, 9, ()), n_envs=2)
        >>> observation, _ = envs.reset([0, 1])
        >>> step = envs.step(jnp.array([1.0, 3.0]))
        >>> step.observation.tolist(), step.final_obs.tolist()
        ([[1.0], [0.0]], [[1.0], [3.0]])
    """

    def __init__(
        self,
        reset: Callable[[Key], tuple[Tensors, Any]],
        step: Callable[[Key, Any, Tensors], tuple[Any, ...]],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        n_envs: int,
    ) -> None:
        import jax

        if n_envs < 1:
            raise ValueError(f"n_envs: got {n_envs}, expected 1 or more")
        self.n_envs = n_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.is_on_gpu = jax.default_backend() == "gpu"
        self._reset = jax.jit(jax.vmap(_with_next_key(reset)))
        self._step = jax.jit(jax.vmap(_with_resets(reset, step)))
        self._reset_chosen = jax.jit(jax.vmap(_reset_where(reset)))
        self._keys: Any = None
        self._states: Any = None

    @classmethod
    def of_gymnax(cls, env: Any, params: Any = None, *, n_envs: int) -> Self:
        """Return copies of an environment of gymnax, which `gymnax.make` returns with its params.

        Raises:
            TypeError: gymnax is older than 1.0, and does not tell truncation from termination.
        """
        if not hasattr(env, "is_truncated"):
            raise TypeError(
                f"env: {type(env).__name__} has no is_truncated, expected an environment of gymnax"
                " 1.0 or newer: older ones give one flag for both ends of an episode"
            )
        params = env.default_params if params is None else params

        def step(key: Key, state: Any, action: Any) -> tuple[Any, ...]:
            observation, state, reward, terminated, info = env.step_env(key, state, action, params)
            truncated = env.is_truncated(state, params)
            return observation, state, reward, terminated, truncated, info

        return cls(
            lambda key: env.reset_env(key, params),
            step,
            _of_gymnax(env.observation_space(params)),
            _of_gymnax(env.action_space(params)),
            n_envs=n_envs,
        )

    @classmethod
    def of_brax(cls, env: Any, *, n_envs: int, episode_length: int) -> Self:
        """Return copies of an environment of Brax or MuJoCo Playground, without their wrappers.

        Args:
            env: a single environment, whose `reset` and `step` return a State.
            n_envs: number of environments.
            episode_length: steps after which an episode is truncated.
        """

        def reset(key: Key) -> tuple[Any, Any]:
            state = env.reset(key)
            return state.obs, (state, 0)

        def step(key: Key, state: Any, action: Any) -> tuple[Any, ...]:
            inner, n_steps = state
            inner = env.step(inner, action)
            is_late = n_steps + 1 >= episode_length
            after = inner, n_steps + 1
            return inner.obs, after, inner.reward, inner.done > 0, is_late, dict(inner.metrics)

        limit = np.full(env.observation_size, np.inf, np.float32)
        action_space = spaces.Box(-1, 1, (env.action_size,))
        return cls(reset, step, spaces.Box(-limit, limit), action_space, n_envs=n_envs)

    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, Mapping[str, Any]]:
        """Reset all environments; without seeds, their keys go on."""
        import jax

        if seeds is not None:
            self._keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
        self._keys, observation, self._states = self._reset(self._keys)
        return observation, {}

    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments; those whose episode ended are reset. Returns at once."""
        self._keys, self._states, *results = self._step(self._keys, self._states, action)
        return DeviceStep(*results)

    def reset_some(self, chosen: Any) -> Tensors:  # Any: JAX's bool [n]
        """Reset the environments of a mask; return observations whose rows of these are right."""
        self._keys, observation, self._states = self._reset_chosen(self._keys, self._states, chosen)
        return observation

    def close(self) -> None:
        """Let go of the states. Called again, it does nothing."""
        self._states = None

    def to_action(self, action: Tensors) -> Tensors:
        """Return actions as arrays of JAX, by DLPack where they are on the device."""
        return map_tensors(self._as_jax, action)

    def _as_jax(self, value: Any) -> jax.Array:  # Any: an array of any library
        import jax

        if not self.is_on_gpu:
            return jax.numpy.asarray(np.array(to_host(value)))  # a copy, which nothing overwrites
        if isinstance(value, Array):
            value = value.to_cupy()
        array: jax.Array = (
            jax.dlpack.from_dlpack(value)
            if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
            else jax.numpy.asarray(value)
        )
        return array


class Functional(Dialect):
    """`FunctionalEnvs` as a cage uses them. It is resets and steps with explicit states in between.

    Example:
        >>> import jax.numpy as jnp
        >>> space = gym.spaces.Box(-9, 9, (1,))
        >>> envs = FunctionalEnvs(
        ...     lambda key: (jnp.zeros(1), 0.0),
        ...     lambda key, state, action: (action, 0.0, 1.0, False, True, {}),
        ...     space, space, n_envs=2)
        >>> Functional(envs).loses_final_obs
        ''
    """

    resets_some = True

    def __init__(self, env: FunctionalEnvs) -> None:
        side: Side = "gpu" if env.is_on_gpu else "host"
        super().__init__(env, env.n_envs, env.observation_space, env.action_space, side)

    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, Mapping[str, Any]]:
        """Reset all environments, each with a key of its own seed."""
        observation, info = self.env.reset(seeds)
        return self._shared(observation), info

    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments; those whose episode ended are reset in the same call of JAX."""
        return DeviceStep(*(self._shared(each) for each in self.env.step(action)))

    def reset_some(self, chosen: Tensor) -> Tensors:
        """Reset some environments."""
        return self._shared(self.env.reset_some(self.env.to_action(chosen)))

    def to_action(self, action: Tensors) -> Tensors:
        """Return actions as arrays of JAX."""
        return self.env.to_action(action)

    def _shared(self, tree: Tensors) -> Tensors:
        """Return JAX's arrays of a device as CuPy's over the same memory; others as they are."""
        return map_tensors(cuda.array_by_dlpack, tree) if self.side == "gpu" else tree


def _with_next_key(reset: Callable[[Key], tuple[Tensors, Any]]) -> Callable[[Key], Any]:
    """Return a reset that draws with one half of a key, and returns the other half."""
    import jax

    def reset_with_key(key: Key) -> Any:
        key, own = jax.random.split(key)
        results = reset(own)
        _check_results("reset", results, _OF_RESET)
        return key, *results

    return reset_with_key


def _reset_where(reset: Callable[[Key], tuple[Tensors, Any]]) -> Callable[..., Any]:
    """Return a reset of one environment, which leaves its state as it is where it is not chosen."""
    import jax

    def reset_where(key: Key, state: Any, is_chosen: Any) -> Any:
        key, own = jax.random.split(key)
        observation, begun = reset(own)
        return key, observation, _select(is_chosen, begun, state)

    return reset_where


def _select(condition: Any, begun: Any, state: Any) -> Any:
    """Return one tree or the other; the first one's dtypes are the environment's own."""
    import jax
    import jax.numpy as jnp

    def select(first: Any, last: Any) -> Any:
        if jnp.issubdtype(jnp.asarray(last).dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jnp.where(condition, jax.random.key_data(first), jax.random.key_data(last))
            )
        return jnp.where(condition, first, last)

    return jax.tree.map(select, begun, state)


def _with_resets(
    reset: Callable[[Key], tuple[Tensors, Any]],
    step: Callable[[Key, Any, Tensors], tuple[Any, ...]],
) -> Callable[[Key, Any, Tensors], Any]:
    """Return a step of one environment that is followed by a reset where the episode ended."""
    import jax
    import jax.numpy as jnp

    def step_and_reset(key: Key, state: Any, action: Tensors) -> Any:
        key, of_step, of_reset = jax.random.split(key, 3)
        results = step(of_step, state, action)
        _check_results("step", results, _OF_STEP)
        final_obs, after, reward, terminated, truncated, info = results
        flags = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        for name, number in zip(_OF_STEP[2:5], (reward, *flags), strict=True):
            if shape := jnp.shape(number):
                raise ValueError(
                    f"step: got {name} of shape {shape}, expected a number: it steps a single"
                    " environment"
                )
        has_ended = flags[0] | flags[1]
        begun = reset(of_reset)
        _check_forms(begun, (final_obs, after))
        observation, after = _select(has_ended, begun, (final_obs, after))
        return key, after, observation, reward, *flags, info, final_obs, has_ended

    return step_and_reset


_OF_RESET = ("observation", "state")
_OF_STEP = (*_OF_RESET, "reward", "terminated", "truncated", "info")


def _check_results(name: str, results: Any, expected: Sequence[str]) -> None:
    """Refuse what a function returned while it is compiled: later steps look at nothing."""
    is_tuple = isinstance(results, tuple | list)
    if not is_tuple or len(results) != len(expected):
        of = f" of {len(results)}" if is_tuple else ""
        raise ValueError(
            f"{name}: got a {type(results).__name__}{of}, expected a tuple of {len(expected)}:"
            f" {', '.join(expected)}"
        )


def _check_forms(begun: Any, stepped: Any) -> None:
    """Refuse observations and states of a reset of another form than those of a step.

    One that only broadcasts would be taken for the other, number by number.
    """
    import jax
    import jax.numpy as jnp

    for name, first, last in zip(_OF_RESET, begun, stepped, strict=True):
        forms = [
            [(jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in found]
            for found in map(jax.tree_util.tree_leaves_with_path, (first, last))
        ]
        if forms[0] != forms[1]:
            differing = sorted(set(forms[0]) ^ set(forms[1]))
            paths = sorted({f"{name}{path}" for path, _ in differing})
            got, wanted = (
                [shape for path, shape in form if (path, shape) in differing] for form in forms
            )
            raise ValueError(
                f"{', '.join(paths)}: got the shapes {got} of reset and {wanted} of step, expected"
                " the same of both"
            )


def _of_gymnax(space: Any) -> gym.Space[Any]:  # Any: a space of gymnax, which need not be installed
    """Return gymnasium's space of one of gymnax."""
    if hasattr(space, "spaces"):
        named = space.spaces
        if isinstance(named, Mapping):
            return spaces.Dict({name: _of_gymnax(part) for name, part in named.items()})
        return spaces.Tuple([_of_gymnax(part) for part in named])
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    dtype = np.dtype(space.dtype)
    low, high = (
        np.broadcast_to(np.asarray(side, dtype), space.shape) for side in (space.low, space.high)
    )
    return spaces.Box(low, high, dtype=dtype.type)
