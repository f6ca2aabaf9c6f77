"""Batches of environments whose results stay on a device are those of a SerialCage."""

import functools
from typing import Any

import numpy as np
import pytest
from device_cages import DIALECTS, make_device_cage

from parllel import ArrayDict
from parllel.cages import SerialCage, TrajInfo
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import BasicSampler
from parllel.samplers.device_group import DeviceGroup
from parllel.testing.device_envs import Fake, put_tensor
from parllel.testing.toy_envs import Walk

T, B = 6, 4
on_a_device = pytest.mark.usefixtures("cuda_device")


each_fake = pytest.mark.parametrize("fake", DIALECTS, ids=lambda fake: fake.__name__)


class Agent:
    """Acts by a table, and values an observation by the sum of its numbers."""

    def __init__(self, side: str) -> None:
        self._side, self._n_steps, self.n_valued = side, 0, []

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self._n_steps += 1
        action = (np.arange(B) * 7 + self._n_steps) % 4
        rows = value_of(observation)
        return put_tensor(action, self._side), {"value": put_tensor(rows, self._side)}

    def value(self, observation: Any) -> Any:
        self.n_valued.append(len(observation))
        return put_tensor(value_of(observation), self._side)


def value_of(observation: Any) -> Any:
    return observation.to_ndarray().sum(-1).astype(np.float32)


def make_tree(agent: Any, storage: str, make_env: Any = Walk, **window: int) -> ArrayDict:
    example = build_example(
        make_env, storage="local", info={"luck": 0.0} if make_env is Walk else None
    )
    samples = build_sample_tree(example, agent, batch_shape=(T, B), storage="local", **window)
    return samples.new_array(storage=storage)


def make_sampler(
    fake: type[Fake], side: str, make_env: Any = Walk, fake_options: Any = None, **window: int
) -> BasicSampler:
    make_traj_info = functools.partial(TrajInfo, discount=0.5)
    options = {"n_envs": B, "seed": 3, "side": side, **(fake_options or {})}
    cage = make_device_cage(fake, make_env, None, make_traj_info, **options)
    samples = make_tree(Agent("host"), "device" if side == "gpu" else "local", make_env, **window)
    return BasicSampler([cage], Agent(side), samples)


def make_serial(make_env: Any = Walk, **window: int) -> BasicSampler:
    make_traj_info = functools.partial(TrajInfo, discount=0.5)
    cage = SerialCage(make_env, None, make_traj_info, n_envs=B, seed=3)
    return BasicSampler(
        [cage], Agent("host"), make_tree(Agent("host"), "local", make_env, **window)
    )


def approximately(episode: TrajInfo) -> tuple[Any, ...]:
    numbers = episode.episode_return, episode.discounted_return
    return episode.length, *(round(number, 3) for number in numbers)


def batches_of(sampler: BasicSampler, n_batches: int = 4) -> list[Any]:
    found = []
    for _ in range(n_batches):
        samples, episodes = sampler.collect_batch()
        tree = {name: samples[name] for name in samples if name != "final_value"}
        found.append(
            {str(path): leaf.to_ndarray().tolist() for path, leaf in ArrayDict(tree).walk()}
        )
        last = samples["observation"][T].to_ndarray()
        found.append(last.tolist())
        cut = samples["truncated"].to_ndarray() & ~samples["terminated"].to_ndarray()
        found.append(samples["final_value"].to_ndarray()[cut].tolist())
        # Rewards of the tree are float32, those of a SerialCage's summaries were not rounded.
        found.append([approximately(episode) for episode in episodes])
    return found


@on_a_device
@each_fake
@pytest.mark.parametrize("window", [{}, {"full_size": 3 * T}])
def test_batches_are_those_of_a_serial_cage(fake: type[Fake], window: dict[str, int]) -> None:
    sampler = make_sampler(fake, "gpu", **window)
    assert isinstance(sampler._groups[0], DeviceGroup)
    expected = batches_of(make_serial(**window))
    assert sum(len(each) for each in expected[2::4]) > 3  # truncated ends
    assert batches_of(sampler) == expected


@each_fake
def test_batches_on_the_host_are_those_of_a_serial_cage(fake: type[Fake]) -> None:
    sampler = make_sampler(fake, "host")
    assert isinstance(sampler._groups[0], DeviceGroup)
    assert batches_of(sampler) == batches_of(make_serial())
