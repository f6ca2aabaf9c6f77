"""What a parallel environment returns for its agents, and the laws of their lives that it keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from parllel.cages.values.env_checks import is_number
from parllel.tree.fitting import MisfitError, describe

_OF_STEP = ("observation", "reward", "terminated", "truncated", "info")
_FLAGS = ("terminated", "truncated")
_WAY_OUT = "PettingZoo's parallel_api_test tells more"


class AgentResults(NamedTuple):
    """The results of a step, each a dictionary of agents.

    >>> AgentResults({"ada": 0.5}, {"ada": 1.0}, {"ada": False}, {"ada": True}, {}).reward
    {'ada': 1.0}
    """

    observation: Mapping[Any, Any]
    reward: Mapping[Any, Any]
    terminated: Mapping[Any, Any]
    truncated: Mapping[Any, Any]
    info: Mapping[Any, Any]


def as_agent_reset(
    result: Any, living: Sequence[Any], known: Mapping[str, Any]
) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Return what `reset` of a parallel environment returned, if it is that.

    Args:
        result: what it returned.
        living: its `agents` afterwards.
        known: its possible agents by their names.

    Raises:
        MisfitError: it is no pair of dictionaries; no agent lives, or one does that is not known;
            or not each living agent, and no other, has an observation.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        _refuse(("reset",), _got_of(result), "(observations, infos), two dictionaries of agents")
    observations, infos = result
    _check_dictionary("observation", observations, known)
    _check_dictionary("info", infos, known)
    _check_living(living, known)
    if not living:
        _refuse(("agents",), "none after reset", "one or more agents of possible_agents")
    _check_observations(observations, living, known)
    return observations, infos


def as_agent_step(
    result: Any,
    acted: Sequence[Any],
    living: Sequence[Any],
    ended: Collection[Any],
    known: Mapping[str, Any],
) -> AgentResults:
    """Return what `step` of a parallel environment returned, if it keeps the laws.

    Args:
        result: what it returned.
        acted: the agents that were alive before, and have acted.
        living: its `agents` afterwards.
        ended: the agents that had ended before.
        known: its possible agents by their names.

    Raises:
        MisfitError: as for `ParallelAgents.step`.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        expected = "(observations, rewards, terminations, truncations, infos), dictionaries"
        _refuse(("step",), _got_of(result), expected)
    results = AgentResults(*result)
    for name, values in zip(_OF_STEP, results, strict=True):
        _check_dictionary(name, values, known)
    _check_living(living, known)
    names = {agent: name for name, agent in known.items()}
    for agent in acted:
        _check_own(results, agent, names[agent])
        has_flag = bool(results.terminated[agent]) or bool(results.truncated[agent])
        if has_flag and agent in living:
            _refuse(
                ("agents", names[agent]),
                "an agent that has a flag and is still one of agents",
                "agents without it",
                "take an agent that has ended out of agents",
            )
        if not has_flag and agent not in living:
            _refuse(
                ("agents", names[agent]),
                "agents without it, and no flag of it",
                "terminated or truncated in its last step",
            )
    for agent in living:
        if agent in ended:
            got = "an agent that comes back after its end"
            _refuse(("agents", names[agent]), got, "one life in each episode")
        if agent not in acted:
            _check_new(results, agent, names[agent])
    present = [*acted, *(agent for agent in living if agent not in acted)]
    _check_observations(results.observation, present, known)
    for agent, reward in results.reward.items():
        if agent not in acted and not (is_number(reward) and reward == 0):
            got = f"{describe(reward)} for an agent that did not act"
            _refuse(("reward", names[agent]), got, "no reward, or 0")
    return results


def _check_own(results: AgentResults, agent: Any, name: str) -> None:
    """Look at reward and flags of an agent that has acted."""
    for result, values in (
        ("reward", results.reward),
        ("terminated", results.terminated),
        ("truncated", results.truncated),
    ):
        is_flag = result in _FLAGS
        expected = "True or False" if is_flag else "a number"
        if agent not in values:
            _refuse((result, name), "nothing for an agent that acted", expected)
        value = values[agent]
        if not is_number(value) or (is_flag and value not in (0, 1)):
            _refuse((result, name), describe(value), f"{expected} of no shape")


def _check_new(results: AgentResults, agent: Any, name: str) -> None:
    """Look at the flags of an agent that comes with this step, and acts in the next one."""
    for result, flags in (("terminated", results.terminated), ("truncated", results.truncated)):
        if flags.get(agent):
            _refuse((result, name), "True for an agent that has not acted yet", "False, or nothing")


def _check_dictionary(result: str, values: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        _refuse((result,), describe(values), "a dictionary of agents")
    unknown = sorted(str(agent) for agent in values if agent not in known.values())
    if unknown:
        expected = f"agents of possible_agents: {list(known)}"
        _refuse((result,), f"the agents {unknown}", expected)


def _check_living(living: Sequence[Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(str(agent) for agent in living if agent not in known.values())
    if unknown:
        _refuse(("agents",), f"the agents {unknown}", f"some of possible_agents: {list(known)}")
    if len(set(living)) != len(living):
        _refuse(("agents",), f"{[*map(str, living)]}", "each agent once")


def _check_observations(
    observations: Mapping[Any, Any], present: Sequence[Any], known: Mapping[str, Any]
) -> None:
    """Refuse observations that are not those of the agents that acted or will act."""
    for name, agent in known.items():
        if agent in present and agent not in observations:
            got = "nothing for an agent that is there"
            _refuse(("observation", name), got, "its observation, the final one in its last step")
        if agent in observations and agent not in present:
            got = "an observation of an agent that is not there"
            _refuse(("observation", name), got, "none: it is not alive")


def _refuse(path: tuple[str, ...], got: str, expected: str, way_out: str = _WAY_OUT) -> NoReturn:
    raise MisfitError(got, expected, path=path, way_out=way_out)


def _got_of(result: object) -> str:
    if not isinstance(result, tuple):
        return describe(result)
    return f"a tuple of {len(result)}: ({', '.join(type(part).__name__ for part in result)})"
