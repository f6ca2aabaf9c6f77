"""Checks of `FunctionalEnvs` with JAX itself, for a process of their own.

JAX starts threads, beside which no other test may fork: `tests/cages/test_functional_envs.py` runs
all of these in a child.
"""

import doctest
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from parllel.cages import DeviceCage, FunctionalEnvs
from parllel.cages.device import functional
from parllel.testing.contracts.cage_calls import reset, step


def check_all() -> None:
    """Run each check of this module."""
    for name, check in sorted(globals().items()):
        if name.startswith("check_") and check is not check_all:
            check()


def check_the_examples() -> None:
    failed, n_tried = doctest.testmod(functional)
    assert n_tried > 5
    assert not failed


def make_counters(n_envs: int = 2, **changes: Any) -> FunctionalEnvs:
    """Return environments that add up their actions, and end at 5 or after 3 steps."""

    def begin(key: Any) -> Any:
        start = jax.random.uniform(key)
        return start[None], (start, jnp.int32(0), key)

    def go_on(key: Any, state: Any, action: Any) -> Any:
        total, n_steps, own = state
        state = total + action, n_steps + 1, own
        return state[0][None], state, action, state[0] >= 5, n_steps + 1 >= 3, {"n": n_steps + 1}

    space = spaces.Box(-9, 9, (1,))
    return FunctionalEnvs(begin, go_on, space, spaces.Box(0, 9, ()), n_envs=n_envs, **changes)


def check_functions_are_reset_where_their_episode_ended() -> None:
    with DeviceCage(make_counters, seed=1) as cage:
        first, _ = reset(cage)
        observation, reward, terminated, truncated, infos = step(cage, np.float32([1, 6]))
        assert terminated.tolist() == [False, True]
        assert not truncated.any()
        np.testing.assert_array_equal(observation[0], first[0] + 1)
        assert 0 <= observation[1] < 1
        assert observation[1] != first[1]
        assert list(cage.final_obs) == [1]
        np.testing.assert_array_equal(cage.final_obs[1], first[1] + 6)
        assert reward.tolist() == [1, 6]
        assert [int(info["n"]) for info in infos] == [1, 1]
        for _ in range(2):
            *_, truncated, _ = step(cage, np.float32([0, 0]))
        assert truncated.tolist() == [True, False]


def check_functions_depend_on_their_own_seed() -> None:
    def observed(seed: Any, n_envs: int = 2) -> Any:
        with DeviceCage(lambda: make_counters(n_envs), seed=seed) as cage:
            rows = [reset(cage)[0]]
            rows += [step(cage, np.full(n_envs, 2, np.float32))[0] for _ in range(6)]
        return np.stack(rows)

    seeds = np.random.SeedSequence(4).spawn(3)
    np.testing.assert_array_equal(observed(seeds, 3)[:, :2], observed(seeds[:2]))
    assert (observed(1) != observed(2)).any()


def check_functions_take_random_steps_apart() -> None:
    with DeviceCage(lambda: make_counters(64), seed=1) as cage:
        observation, _ = reset(cage, max_random_steps=2)
    n_steps = (observation[:, 0] >= 1).sum()
    assert 0 < n_steps < 64


class BraxState:
    """What Brax returns, as far as it is read."""

    def __init__(self, obs: Any, reward: Any, done: Any, metrics: Any) -> None:
        self.obs, self.reward, self.done, self.metrics = obs, reward, done, metrics


def check_environments_of_brax_are_truncated_here() -> None:
    jax.tree_util.register_pytree_node(
        BraxState,
        lambda state: ((state.obs, state.reward, state.done, state.metrics), None),
        lambda _, parts: BraxState(*parts),
    )

    class Brax:
        observation_size, action_size = 2, 1

        def reset(self, key: Any) -> BraxState:
            zero = jnp.float32(0)
            return BraxState(jax.random.uniform(key, (2,)), zero, zero, {"x": zero})

        def step(self, state: BraxState, action: Any) -> BraxState:
            done = jnp.where(action[0] > 0.5, 1.0, 0.0)
            return BraxState(state.obs + 1, action[0], done, {"x": action[0]})

    envs = FunctionalEnvs.of_brax(Brax(), n_envs=2, episode_length=2)
    with DeviceCage(lambda: envs, seed=0) as cage:
        assert cage.action_space == spaces.Box(-1, 1, (1,))
        reset(cage)
        _, _, terminated, truncated, _ = step(cage, np.float32([[0], [1]]))
        assert (terminated.tolist(), truncated.tolist()) == ([False, True], [False, False])
        _, _, terminated, truncated, _ = step(cage, np.float32([[0], [0]]))
        assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, False])


def check_functions_of_an_old_gymnax_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"has no is_truncated, expected an environment of gymnax 1\.0"
    ):
        FunctionalEnvs.of_gymnax(gym.Env(), n_envs=2)


def reset_and_step(envs: FunctionalEnvs) -> None:
    envs.reset([0, 1])
    envs.step(jnp.ones(2))


def check_what_only_broadcasts_is_refused() -> None:
    number, numbers = jnp.zeros(()), jnp.zeros(3)
    right = numbers, 0, number, False, False, {}
    for begun, stepped, message in [
        ((jnp.zeros(1), 0), right, r"observation: got the shapes \[\(1,\)\] of reset and"),
        ((numbers, jnp.zeros(1)), right, r"state: got the shapes \[\(1,\)\] of reset and \[\(\)\]"),
        (({"a": numbers}, 0), right, r"observation, observation\['a'\]: got the shapes"),
        ((numbers, 0), (*right[:2], jnp.zeros(1), *right[3:]), r"step: got reward of shape \(1,\)"),
        ((numbers, 0), (*right[:3], jnp.zeros(1), *right[4:]), r"step: got terminated of shape"),
        ((numbers, 0), right[:5], "step: got a tuple of 5, expected a tuple of 6"),
        ((numbers, 0, {}), right, "reset: got a tuple of 3, expected a tuple of 2"),
    ]:
        envs = FunctionalEnvs(
            lambda key, begun=begun: begun,
            lambda key, state, action, stepped=stepped: stepped,
            spaces.Box(-9, 9, (3,)),
            spaces.Box(0, 9, ()),
            n_envs=2,
        )
        with pytest.raises(ValueError, match=message):
            reset_and_step(envs)


def check_there_is_at_least_one_environment() -> None:
    with pytest.raises(ValueError, match="n_envs: got 0, expected 1 or more"):
        make_counters(0)


# gymnax


def make_cartpole(n_envs: int, longest: int = 500) -> FunctionalEnvs:
    import gymnax

    env, params = gymnax.make("CartPole-v1")
    return FunctionalEnvs.of_gymnax(
        env, params.replace(max_steps_in_episode=longest), n_envs=n_envs
    )


def compare_cartpole() -> None:
    """Compare gymnax's CartPole in a cage, step by step, with gymnasium's from the same states."""
    n_envs, longest = 8, 12
    single = gym.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    rng, n_truncated, n_terminated = np.random.default_rng(0), 0, 0
    with DeviceCage(make_cartpole, {"n_envs": n_envs, "longest": longest}, seed=1) as cage:
        assert cage.observation_space.shape == single.observation_space.shape
        assert cage.action_space == single.action_space
        shown, _ = reset(cage)
        lengths = np.zeros(n_envs, int)
        for _ in range(60):
            action = rng.integers(0, 2, n_envs) if rng.random() < 0.5 else np.ones(n_envs, int)
            after, reward, terminated, truncated, _ = step(cage, action)
            lengths += 1
            for number in range(n_envs):
                single.state, single.steps_beyond_terminated = np.float64(shown[number]), None
                expected, paid, falls, _, _ = single.step(int(action[number]))
                true_after = cage.final_obs.get(number, after[number])
                np.testing.assert_allclose(true_after, expected, atol=1e-5)
                assert reward[number] == paid
                assert bool(terminated[number]) == falls
                assert bool(truncated[number]) == (lengths[number] == longest)
                ended = terminated[number] or truncated[number]
                assert (number in cage.final_obs) == ended
                if ended:
                    assert np.abs(after[number]).max() <= 0.05  # the first one of an episode
            n_terminated += int((terminated & ~truncated).sum())
            n_truncated += int((truncated & ~terminated).sum())
            lengths[terminated | truncated] = 0
            shown = after
    assert min(n_terminated, n_truncated) > 3


def learn_cartpole() -> None:
    """Train PPO as examples/cartpole_ppo.py does, for a third of its steps."""
    import sys
    from pathlib import Path

    import torch

    from parllel.patterns import build_sample_tree, example_of
    from parllel.samplers import BasicSampler
    from parllel.samplers.device_group import DeviceGroup
    from parllel.torch.agents import CategoricalPgAgent
    from parllel.torch.algos import PPO
    from parllel.torch.distributions import Categorical
    from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

    compare_cartpole()
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import cartpole_ppo as example

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with DeviceCage(make_cartpole, {"n_envs": example.N_ENVS}, seed=0) as cage:
        row = example_of(cage, storage="local")
        model = example.ActorCritic(4, 2)
        agent = CategoricalPgAgent(model, Categorical(dim=2), example_obs=row["observation"])
        samples = build_sample_tree(row, agent, batch_shape=(example.T, example.N_ENVS))
        sampler = BasicSampler([cage], agent, samples)
        assert isinstance(sampler._groups[0], DeviceGroup)
        transforms = [
            EstimateAdvantage(discount=example.DISCOUNT, gae_lambda=example.GAE_LAMBDA),
            NormalizeAdvantage(),
        ]
        optimizer = torch.optim.Adam(model.parameters(), eps=1e-5)
        algorithm = PPO(agent, optimizer, example.SETTINGS, rng=np.random.default_rng(0))
        returns = []
        n_batches = 70
        for number in range(n_batches):
            batch, episodes = sampler.collect_batch()
            for transform in transforms:
                batch = transform(batch)
            algorithm.set_progress(number / n_batches)
            algorithm.optimize(batch)
            returns += [episode.episode_return for episode in episodes]
    first, last = np.mean(returns[:50]), np.mean(returns[-50:])
    print(f"CartPole of gymnax: mean return {first:.1f} at first, {last:.1f} at last")
    assert first < 50
    assert last > 200
