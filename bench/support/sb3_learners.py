"""Learners of stable-baselines3 for Breakout, over three kinds of its vector environments."""

from typing import Any

import gymnasium as gym
import numpy as np
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from support.atari import GAME, N_CORES, SEED, make_env, with_torch_threads
from support.pixel_learners import (
    CLIP,
    DISCOUNT,
    DQN_RATE,
    ENTROPY_COEFFICIENT,
    EPSILON,
    GAE_LAMBDA,
    N_EPOCHS,
    PPO_RATE,
    TARGET_PERIOD,
    DqnSize,
    Learner,
    PpoSize,
)


class OneGame(gym.Env):
    """One environment of AtariVectorEnv, so that all learners see the same frames."""

    def __init__(self) -> None:
        self._games = AtariVectorEnv(GAME, 1, num_threads=1, autoreset_mode=AutoresetMode.SAME_STEP)
        self.observation_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space
        self._action = np.zeros(1, np.int64)
        self._is_new = False  # the episode that just ended was followed by a reset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if not self._is_new:
            self._first, _ = self._games.reset(seed=seed)
        self._is_new = False
        return self._first[0], {}

    def step(self, action: Any) -> Any:
        self._action[0] = action
        observation, reward, terminated, truncated, info = self._games.step(self._action)
        if terminated[0] or truncated[0]:
            self._first, self._is_new = observation, True
            observation = np.stack(list(info["final_obs"]))
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


class Games(VecEnv):
    """AtariVectorEnv itself, with threads of its own, as a vector environment of theirs."""

    def __init__(self, n_envs: int) -> None:
        self._games = make_env(n_envs, N_CORES)
        super().__init__(
            n_envs, self._games.single_observation_space, self._games.single_action_space
        )

    def reset(self) -> Any:
        return self._games.reset(seed=SEED)[0]

    def step_async(self, actions: Any) -> None:
        self._games.send(actions)

    def step_wait(self) -> Any:
        observation, reward, terminated, truncated, info = self._games.recv()
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in done]
        for number in np.flatnonzero(done):
            infos[number]["terminal_observation"] = info["final_obs"][number]
            infos[number]["TimeLimit.truncated"] = bool(~terminated[number])
        return observation, reward, done, infos

    def close(self) -> None:
        self._games.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, *_: Any, **__: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


VECTOR_ENVS = {
    "AtariVectorEnv": Games,
    "DummyVecEnv": lambda n_envs: DummyVecEnv([OneGame] * n_envs),
    "SubprocVecEnv": lambda n_envs: SubprocVecEnv([OneGame] * n_envs, start_method="fork"),
}


def their_ppo(size: PpoSize, envs: VecEnv) -> Learner:
    model = PPO(
        "CnnPolicy",
        envs,
        n_steps=size.T,
        batch_size=size.T * size.B // size.n_minibatches,
        n_epochs=N_EPOCHS,
        learning_rate=PPO_RATE,
        clip_range=CLIP,
        ent_coef=ENTROPY_COEFFICIENT,
        gamma=DISCOUNT,
        gae_lambda=GAE_LAMBDA,
        seed=SEED,
        device="cpu",
    )
    _, callback = model._setup_learn(total_timesteps=10**9)

    def sample() -> None:
        model.collect_rollouts(envs, callback, model.rollout_buffer, n_rollout_steps=size.T)

    return Learner(
        with_torch_threads(N_CORES, sample), with_torch_threads(N_CORES, model.train), envs.close
    )


def their_dqn(size: DqnSize, envs: VecEnv) -> Learner:
    model = DQN(
        "CnnPolicy",
        envs,
        buffer_size=size.n_kept,
        batch_size=size.batch_size,
        train_freq=size.T,
        gradient_steps=size.n_updates,
        learning_starts=0,
        learning_rate=DQN_RATE,
        target_update_interval=TARGET_PERIOD * size.steps_per_update,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        gamma=DISCOUNT,
        seed=SEED,
        device="cpu",
    )
    _, callback = model._setup_learn(total_timesteps=10**9)

    def sample() -> None:
        model.collect_rollouts(
            envs,
            callback,
            train_freq=model.train_freq,
            replay_buffer=model.replay_buffer,
            action_noise=None,
            learning_starts=0,
            log_interval=None,
        )

    def learn() -> None:
        model.train(gradient_steps=size.n_updates, batch_size=size.batch_size)

    def draw() -> None:
        model.replay_buffer.sample(size.batch_size, env=model._vec_normalize_env)

    return Learner(
        with_torch_threads(N_CORES, sample), with_torch_threads(N_CORES, learn), envs.close, draw
    )
