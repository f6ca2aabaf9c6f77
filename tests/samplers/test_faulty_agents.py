"""What samplers tell of agents and trees that do not fit, and of rows that are no transitions."""

from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv

from parllel import Array, ArrayDict
from parllel.cages import ProcessCage, SerialCage, VectorCage
from parllel.patterns import build_eval_tree, build_example, build_sample_tree, example_of
from parllel.samplers import BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.toy_envs import Clock
from parllel.tree import leaves_of

T, B = 6, 2


class Zeros:
    """Takes action 0, expects nothing, and keeps the observations that it was asked to value."""

    def __init__(self) -> None:
        self.valued: list[Any] = []

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n_envs = len(next(iter(leaves_of(observation)))[1])
        return np.zeros(n_envs, np.int64), {"value": np.zeros(n_envs, np.float32)}

    def value(self, observation: Any) -> Any:
        self.valued.append(observation)
        return np.zeros(len(next(iter(leaves_of(observation)))[1]), np.float32)


class Greedy:
    """Has a step, and nothing else."""

    def __init__(self, result: Any = None) -> None:
        self.result = result

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        actions = np.zeros(len(observation), np.int64)
        return (actions, {}) if self.result is None else self.result(actions)


def make_tree(agent: Any = None) -> ArrayDict:
    example = build_example(Clock, storage="local")
    return build_sample_tree(example, agent or Zeros(), batch_shape=(T, B))


def make_cages() -> list[Any]:
    return [SerialCage(Clock, n_envs=B)]


def test_an_agent_without_value_is_told_where_the_tree_needs_one() -> None:
    with pytest.raises(TypeError, match="agent: Greedy has no method value"):
        BasicSampler(make_cages(), Greedy(), make_tree())
    batch, _ = BasicSampler(make_cages(), Greedy(), make_tree(Greedy())).collect_batch()
    assert "final_value" not in batch


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda actions: actions, "ndarray"),
        (lambda actions: (actions,), r"\(ndarray\)"),
        (lambda actions: (actions, None), r"\(ndarray, NoneType\)"),
        (lambda actions: (actions, {}, 1), r"\(ndarray, dict, int\)"),
    ],
)
def test_a_step_that_returns_no_pair_is_told(result: Any, found: str) -> None:
    message = rf"agent: Greedy\.step returned {found}, expected \(actions, mapping\)"
    with pytest.raises(TypeError, match=message):
        make_tree(Greedy(result))
    with pytest.raises(TypeError, match=message):
        BasicSampler(make_cages(), Greedy(result), make_tree(Greedy())).collect_batch()


class Wrong(Zeros):
    """Gives something else in the place of one of its results; it has a state, too."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def begin(self, n_envs: int) -> None:
        self.rnn_state = {"h": self.wrong.get("state", np.zeros((n_envs, 4), np.float32))}

    def reset_state(self, columns: Any) -> None:
        pass

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, agent_info = super().step(observation)
        return action, {**agent_info, **self.wrong.get("agent_info", {})}

    def value(self, observation: Any, *, columns: Any = None) -> Any:
        return self.wrong.get("value", super().value(observation))


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"agent_info": {"value": ONE}}, r"agent_info\.value: got shape \(1,\) of the agent's"),
        ({"agent_info": {"value": 7.0}}, r"agent_info\.value: got shape \(\)"),
        ({"value": ONE}, r"value: got shape \(1,\) of the agent's value, expected \(2,\)"),
        ({"value": [[1.0, 2.0]]}, r"value: got shape \(1, 2\)"),
        ({"state": np.ones((1, 4))}, r"initial_rnn_state\.h: got shape \(1, 4\) .* \(2, 4\)"),
        ({"state": np.ones(4)}, r"initial_rnn_state\.h: got shape \(4,\)"),
        ({"state": None}, r"initial_rnn_state\.h: got shape \(\)"),
    ],
)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_results_that_would_be_spread_over_environments_are_refused(
    wrong: dict[str, Any], message: str, end: str
) -> None:
    samples = build_sample_tree(build_example(Clock), Wrong(), batch_shape=(T, B))
    cages = [SerialCage(Clock, {"end": end}, n_envs=B)]
    RecurrentSampler(cages, Wrong(), samples).collect_batch()
    with pytest.raises(ValueError, match=message):
        RecurrentSampler(cages, Wrong(**wrong), samples).collect_batch()


def test_what_is_no_agent_is_told() -> None:
    with pytest.raises(TypeError, match="agent: object has no method step"):
        BasicSampler(make_cages(), object(), make_tree())  # type: ignore[arg-type]


def test_a_wrong_tree_of_an_evaluation_is_told_with_the_way_out() -> None:
    example, samples = build_example(Clock, storage="local"), make_tree()
    wrong: list[tuple[Any, type[Exception], str]] = [
        (example, ValueError, r"reward has leading dimensions \(1,\), expected \(T, B\)"),
        (dict(samples), TypeError, "got a dict, expected an ArrayDict"),
        (build_eval_tree(samples, n_envs=3), ValueError, "got B = 3, expected 2"),
        (ArrayDict({"reward": samples["reward"]}), ValueError, "branches .* are missing"),
    ]
    for tree, error, message in wrong:
        with pytest.raises(error, match=rf"^samples: {message}.*patterns\.build_eval_tree makes"):
            EvalSampler(make_cages(), Zeros(), tree, n_episodes=B)


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_an_agent_values_rows_of_the_trees_own_kind(storage: str) -> None:
    agent, kwargs = Zeros(), {"length": 3, "end": "truncated"}
    example = build_example(Clock, env_kwargs=kwargs, storage=storage)
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    BasicSampler([SerialCage(Clock, kwargs, n_envs=B)], agent, samples).collect_batch()
    *final, last = agent.valued
    assert len(final) == T // 3
    for rows in (*final, last):
        assert isinstance(rows, Array)
        assert (rows.shape, rows.dtype) == ((B, 2), samples["observation"].dtype)
    assert final[0].to_ndarray()[:, 1].tolist() == [3, 3]


# Rows that are no transitions


def test_a_tree_tells_the_rows_that_a_vector_environment_spends_on_resets() -> None:
    kwargs = {"num_envs": B, "max_episode_steps": 4}
    with VectorCage(CartPoleVectorEnv, kwargs, seed=0) as cage:
        agent = Zeros()
        samples = build_sample_tree(example_of(cage, storage="local"), agent, batch_shape=(T, B))
        assert samples["valid"].dtype == bool
        sampler = BasicSampler([cage], agent, samples)
        n_invalid = 0
        for _ in range(4):
            batch, _ = sampler.collect_batch()
            reward, valid = batch["reward"].to_ndarray(), batch["valid"].to_ndarray()
            np.testing.assert_array_equal(valid, reward > 0)
            n_invalid += int((~valid).sum())
        assert n_invalid > 2 * B


def test_the_sampler_adds_the_branch_to_a_tree_that_lacks_it() -> None:
    samples = make_tree()
    with ProcessCage(Clock, n_envs=B, on_worker_error="restart") as cage:
        assert cage.gives_invalid_rows
        batch, _ = BasicSampler([cage], Zeros(), samples).collect_batch()
        assert batch["valid"].to_ndarray().all()
        assert "valid" in samples


def test_no_branch_is_made_where_every_row_is_a_transition() -> None:
    with VectorCage(lambda: SyncVectorEnv([Clock] * B), seed=0) as cage:
        assert not cage.gives_invalid_rows  # they are reset one by one
        samples = build_sample_tree(example_of(cage, storage="local"), Zeros(), batch_shape=(T, B))
        assert "valid" not in BasicSampler([cage], Zeros(), samples).collect_batch()[0]
    assert "valid" not in BasicSampler(make_cages(), Zeros(), make_tree()).collect_batch()[0]
    with ProcessCage(Clock, n_envs=B) as cage:
        assert not cage.gives_invalid_rows
