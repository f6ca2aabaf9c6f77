"""Fakes of vectorized environments with tensors, one for each library, over single environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from parllel import cuda
from parllel.cages.device.dialect import DeviceStep
from parllel.cages.device.functional import FunctionalEnvs
from parllel.cages.device.tensors import Tensors, map_tensors, to_numpy
from parllel.storages import Side
from parllel.testing.simulated_cuda import active

EnvFns = Sequence[Callable[[], gym.Env[Any, Any]]]


class SimulatedTensor(torch.Tensor):
    """A tensor of simulated device memory, which says what one of a GPU says.

    What torch makes of it is copied to such memory, too.

    >>> torch.zeros(2).as_subclass(SimulatedTensor).is_cuda
    True
    """

    is_cuda = True

    @classmethod
    def __torch_function__(  # type: ignore[no-untyped-def]  # as torch declares it
        cls, func, types, args=(), kwargs=None
    ) -> Any:
        """Call one of torch's functions; its new tensors are those of the device."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's gap
        if isinstance(result, cls) and func not in _TO_HOST and not _is_of_device(result):
            with torch._C.DisableTorchFunctionSubclass():
                return _on_device(result.as_subclass(torch.Tensor)).as_subclass(cls)
        return result

    def get_device(self) -> int:
        """Return the number of the device."""
        return 0


def put_tensor(values: NDArray[Any], side: Side) -> torch.Tensor:
    """Return a new tensor with values of the host.

    On a GPU, simulated or real, torch writes it in the caller's current stream, so that nothing is
    counted as parllel's.

    Args:
        values: any shape and dtype that torch has.
        side: "gpu" for the current device, or "host".
    """
    host = torch.from_numpy(np.array(values))
    if side == "host":
        return host
    tensor = _on_device(host)
    return tensor if tensor.is_cuda else tensor.as_subclass(SimulatedTensor)


_TO_HOST = (torch.Tensor.cpu, torch.Tensor.numpy)


def _is_of_device(tensor: torch.Tensor) -> bool:
    return active.machine().memory.find(tensor.data_ptr()) is not None or not tensor.numel()


def _on_device(host: torch.Tensor) -> torch.Tensor:
    memory = cuda.allocate_device(max(1, host.nbytes))
    tensor = cuda.tensor_over(memory)[: host.nbytes].view(host.dtype).reshape(host.shape)
    tensor.copy_(host)
    return tensor


class Fake:
    """Single environments that step on the host, whose results become tensors on a side.

    Args:
        env_fns: functions that return one environment each; all have the same spaces.
        side: where the tensors are, "gpu" or "host".
    """

    def __init__(self, env_fns: EnvFns, side: Side = "host") -> None:
        self._side: Side = side
        self._envs = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.DISABLED)
        self.num_envs = self._envs.num_envs
        self.device = "cuda:0" if side == "gpu" else "cpu"
        self.single_observation_space = self._envs.single_observation_space
        self.single_action_space = self._envs.single_action_space

    def _put(self, tree: Any) -> Tensors:
        """Return a tree of the host with tensors in the place of arrays of numbers."""
        return map_tensors(self._put_leaf, tree)

    def _put_leaf(self, leaf: Any) -> Any:
        is_array = isinstance(leaf, np.ndarray) and leaf.dtype != object
        return put_tensor(leaf, self._side) if is_array else leaf

    def _take_step(self, action: Tensors) -> list[Any]:
        """Step without a reset; return observation, reward, flags and info of the host."""
        action = map_tensors(lambda leaf: np.array(to_numpy(leaf)), action)
        return list(self._envs.step(action))

    def _reset_some(self, ended: NDArray[np.bool_]) -> tuple[Any, Any]:
        """Reset the environments of a mask; return the observations of all, and the infos."""
        return self._envs.reset(options={"reset_mask": ended})

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


class FakeManiSkill(Fake, VectorEnv[Any, Any, Any]):
    """Environments with the keys of ManiSkill 3: `final_observation`, `final_info` and their masks.

    >>> from parllel.testing.toy_envs import Clock
    >>> envs = FakeManiSkill([lambda: Clock(length=1)] * 2)
    >>> _ = envs.reset(seed=[0, 1])
    >>> *_, info = envs.step(torch.zeros(2, dtype=torch.int64))
    >>> info["final_observation"].tolist(), info["_final_observation"].tolist()
    ([[0.0, 1.0], [0.0, 1.0]], [True, True])

    Args:
        env_fns, side: as for `Fake`.
        auto_reset: whether it resets in the step that ends an episode.
        is_aliased: whether the final observation has the memory of the next one, as in ManiSkill's
            issue 828.
    """

    def __init__(
        self,
        env_fns: EnvFns,
        side: Side = "host",
        *,
        auto_reset: bool = True,
        is_aliased: bool = False,
    ) -> None:
        Fake.__init__(self, env_fns, side)
        self.auto_reset = auto_reset
        self._is_aliased = is_aliased

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensors, dict[str, Any]]:
        """Reset all environments, or those of the numbers `options["env_idx"]`."""
        if options is None:
            observation, info = self._envs.reset(seed=seed)
        else:
            chosen = np.zeros(self.num_envs, bool)
            chosen[to_numpy(options["env_idx"])] = True
            observation, info = self._reset_some(chosen)
        return self._put(observation), self._put(info)

    def step(self, actions: Tensors) -> Any:
        """Step, and reset those whose episode ended."""
        observation, reward, *flags, info = self._take_step(actions)
        results = self._put((reward, *flags))
        ended = flags[0] | flags[1]
        if not (self.auto_reset and ended.any()):
            return self._put(observation), *results, self._put(info)
        final_obs, final_info = self._put(observation), self._put(info)
        first_obs, info = self._reset_some(ended)
        infos = self._put(info) | {"final_observation": final_obs, "final_info": final_info}
        infos |= {f"_{name}": self._put(ended) for name in ("final_observation", "final_info")}
        shown = self._put(first_obs)
        if self._is_aliased:
            shown = map_tensors(lambda old, new: old.copy_(new), final_obs, shown)
        return shown, *results, infos

    def close(self, **_: Any) -> None:
        """Close the environments."""
        Fake.close(self)


class FakeIsaacLab(Fake, gym.Env[Any, Any]):
    """Environments with one observation group, and buffers that steps and resets overwrite.

    >>> from parllel.testing.toy_envs import Clock
    >>> envs = FakeIsaacLab([lambda: Clock(length=2)] * 2)
    >>> _ = envs.reset(seed=[0, 1])
    >>> _, _, terminated, *_ = envs.step(torch.zeros(2, dtype=torch.int64))
    >>> terminated.tolist()
    [False, False]
    >>> _ = envs.step(torch.zeros(2, dtype=torch.int64))
    >>> terminated.tolist()
    [True, True]

    Args:
        env_fns, side: as for `Fake`.
        compute_final_obs: whether true last observations are kept, as from 3.0 on.
        group: name of the group of observations; None for observations that are a dictionary.
    """

    is_vector_env = True

    def __init__(
        self,
        env_fns: EnvFns,
        side: Side = "host",
        *,
        compute_final_obs: bool = True,
        group: str | None = "policy",
    ) -> None:
        super().__init__(env_fns, side)
        self._group = group
        self.cfg = SimpleNamespace(compute_final_obs=compute_final_obs)
        if group is not None:
            space = self._envs.single_observation_space
            self.single_observation_space = gym.spaces.Dict({group: space})
        self._buffers: Any = None
        self._observation: Any = None

    def reset(
        self, *, seed: Any = None, env_ids: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensors, dict[str, Any]]:
        """Reset all environments, or those of some numbers."""
        if env_ids is None:
            observation, info = self._envs.reset(seed=seed)
        else:
            chosen = np.zeros(self.num_envs, bool)
            chosen[to_numpy(env_ids)] = True
            observation, info = self._reset_some(chosen)
            for flags in self._buffers[1:]:
                flags[env_ids] = False
        return self._shown(observation), self._put(info)

    def step(self, action: Tensors) -> Any:
        """Step, and reset those whose episode ended."""
        observation, *results, info = self._take_step(action)
        extras = self._put(info)
        ended = results[1] | results[2]
        if self._resets_itself:
            if self._keeps_final:
                extras["final_obs"] = self._grouped(observation)
            if ended.any():
                observation, _ = self._reset_some(ended)
        return self._shown(observation), *self._in_buffers(results), extras

    _resets_itself = True

    @property
    def _keeps_final(self) -> bool:
        return bool(self.cfg.compute_final_obs)

    def _in_buffers(self, results: Sequence[NDArray[Any]]) -> Sequence[torch.Tensor]:
        if self._buffers is None:
            self._buffers = self._put(tuple(results))
        for buffer, values in zip(self._buffers, results, strict=True):
            buffer.copy_(torch.from_numpy(np.array(values)))
        buffers: Sequence[torch.Tensor] = self._buffers
        return buffers

    def _shown(self, observation: Any) -> Tensors:
        """Return observations in the buffers that steps and resets overwrite."""
        tensors = self._grouped(observation)
        if self._observation is None:
            self._observation = tensors
        map_tensors(lambda buffer, values: buffer.copy_(values), self._observation, tensors)
        return self._observation

    def _grouped(self, observation: Any) -> Tensors:
        tensors = self._put(observation)
        return tensors if self._group is None else {self._group: tensors}


class FakeMjlab(FakeIsaacLab):
    """Environments with one observation group, which mostly leave the resets to the caller.

    >>> from parllel.testing.toy_envs import Clock
    >>> FakeMjlab([Clock] * 2).cfg
    namespace(auto_reset=False)

    Args:
        env_fns, side, group: as for `FakeIsaacLab`.
        auto_reset: whether it resets in the step that ends an episode, and so loses observations.
    """

    def __init__(
        self,
        env_fns: EnvFns,
        side: Side = "host",
        *,
        auto_reset: bool = False,
        group: str | None = "policy",
    ) -> None:
        super().__init__(env_fns, side, group=group)
        self.cfg = SimpleNamespace(auto_reset=auto_reset)

    @property
    def _resets_itself(self) -> bool:  # type: ignore[override]  # its own setting decides
        return bool(self.cfg.auto_reset)

    _keeps_final = False


class FakeFunctional(Fake, FunctionalEnvs):
    """Environments whose results are arrays of CuPy, or of NumPy, in the place of JAX's.

    >>> from parllel.testing.toy_envs import Clock
    >>> envs = FakeFunctional([lambda: Clock(length=1)] * 2)
    >>> _ = envs.reset([0, 1])
    >>> envs.step(np.zeros(2, np.int64)).final_obs.tolist()
    [[0.0, 1.0], [0.0, 1.0]]

    Args:
        env_fns, side: as for `Fake`.
    """

    def __init__(self, env_fns: EnvFns, side: Side = "host") -> None:
        Fake.__init__(self, env_fns, side)
        self.n_envs, self.is_on_gpu = self.num_envs, side == "gpu"
        self.observation_space = self.single_observation_space
        self.action_space = self.single_action_space

    def _put_leaf(self, leaf: Any) -> Any:
        is_array = isinstance(leaf, np.ndarray) and leaf.dtype != object
        if not is_array or not self.is_on_gpu:
            return np.array(leaf) if is_array else leaf
        return cuda.to_device(leaf)

    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, dict[str, Any]]:
        """Reset all environments."""
        observation, info = self._envs.reset(seed=None if seeds is None else list(seeds))
        return self._put(observation), self._put(info)

    def step(self, action: Tensors) -> DeviceStep:
        """Step, and reset those whose episode ended."""
        observation, reward, *flags, info = self._take_step(action)
        ended = flags[0] | flags[1]
        final_obs, own = self._put(observation), self._put(info)
        if ended.any():
            observation, _ = self._reset_some(ended)
        shown, paid, terminated, truncated = self._put((observation, reward, *flags))
        return DeviceStep(shown, paid, terminated, truncated, own, final_obs, self._put(ended))

    def reset_some(self, chosen: Any) -> Tensors:  # Any: bool [n] of any library
        """Reset the environments of a mask."""
        observation, _ = self._reset_some(to_numpy(chosen))
        return self._put(observation)

    def to_action(self, action: Tensors) -> Tensors:
        """Return actions as they are."""
        return action
