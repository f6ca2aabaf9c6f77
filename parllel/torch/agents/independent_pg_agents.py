"""IndependentPgAgents: policy-gradient agents for several roles in one environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from parllel.arrays import Jagged
from parllel.samplers import RecurrentActor
from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.agent_space import space_of
from parllel.torch.agents.modes import in_mode
from parllel.torch.agents.pg_agent import Evaluation, PgAgent
from parllel.tree import ArrayDict, dict_map, leaves_of


class IndependentPgAgents(Agent[Any]):
    """One `PgAgent` for each role, or one for several roles, as one agent for sampler and PPO.

    A mapping names the agents: observations, actions and what is kept for learning then are
    dictionaries by these names. A sequence is for an agent axis [B, N, ...]: one agent for each
    place. The same object may stand for several names or places; these share its parameters, and
    their rows go through its model together. `[agent] * 3` is one agent for three places.

    Each agent acts on its own observations only, and has a value of its own. With a `critic`, the
    values are those that it gives: it sees the observations of all agents (centralized training
    with decentralized execution). The agents' own values are not used then.

    Dead agents act, too: nothing takes their actions, and nothing is learned from them (`valid`).

    `save` writes the models of all agents and the critic to one file, each model once.

    Args:
        agents: `PgAgent` by role, or for each place of the agent axis.
        critic: a function of observations of all agents, as the sampler gives them, that returns
            values: [B] for each name, or [B, N] in the order of `agents`; or one [B] for all. None
            for the agents' own.

    Raises:
        TypeError: an agent is none, keeps a state from step to step, or observes as it acts.
        ValueError: there is no agent.

    Source: de Witt et al. 2020, arXiv:2011.09533 (independent PPO); Yu et al. 2022,
        arXiv:2103.01955 (MAPPO: shared parameters, a critic that sees all).

    Example:
        >>> from parllel.torch.agents import ModelOutputs
        >>> from parllel.torch.distributions import Categorical, DistParams
        >>> def model(observation):
        ...     return ModelOutputs(DistParams(logits=observation), observation.sum(dim=-1))
        >>> agent = PgAgent(model, Categorical(dim=2), torch.zeros(1, 2))
        >>> both = IndependentPgAgents({"pinky": agent, "inky": agent})
        >>> observation = {"pinky": torch.tensor([[0.0, 9.0]]), "inky": torch.tensor([[9.0, 0.0]])}
        >>> action, agent_info = both.step(observation, deterministic=True)
        >>> action["pinky"], action["inky"], agent_info["value"]["inky"]
        (tensor([1]), tensor([0]), tensor([9.]))
        >>> team = IndependentPgAgents([agent] * 2)
        >>> team.step(torch.tensor([[[0.0, 9.0], [9.0, 0.0]]]), deterministic=True)[0]
        tensor([[1, 0]])
    """

    def __init__(
        self,
        agents: Mapping[str, PgAgent] | Sequence[PgAgent],
        *,
        critic: Callable[..., Any] | None = None,  # Any: a tensor, or a dictionary of them
    ) -> None:
        self._is_axis = not isinstance(agents, Mapping)
        members: dict[Any, PgAgent] = dict(
            agents if isinstance(agents, Mapping) else enumerate(agents)
        )
        if not members:
            raise ValueError("agents: got none, expected one for each role")
        for name, agent in members.items():
            _check_agent(name, agent)
        self._members = members
        roles: dict[int, list[Any]] = {}
        for name, agent in members.items():
            roles.setdefault(id(agent), []).append(name)
        # Each agent with its roles, in the order in which they were given.
        self._roles = [(members[names[0]], names) for names in roles.values()]
        self._critic = critic
        # Agents may also be several objects with one model, as of different distributions.
        self._models = {id(agent.model): agent.model for agent, _ in self._roles}
        super().__init__(_Models(list(self._models.values()), critic))

    @property
    def agents(self) -> dict[str | int, PgAgent]:
        """The agents by their names, or by their places in the axis."""
        return dict(self._members)

    @property
    def shared_by(self) -> list[list[str | int]]:
        """For each model the agents that share it: PPO averages their losses together."""
        return [
            [name for name, agent in self._members.items() if agent.model is model]
            for model in self._models.values()
        ]

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take (`PgAgent.bind_actions`).

        Args:
            space: a Dict by the agents' names; for an agent axis a MultiDiscrete [N] or [N, k], or
                a Box [N, ...].

        Raises:
            TypeError, ValueError: the space has not these agents, or an agent has other actions
                than its part, or agents that are one object have parts that differ.
        """
        for name, part in space_of(space, list(self._members), is_axis=self._is_axis).items():
            try:
                self._members[name].bind_actions(part)
            except (TypeError, ValueError) as error:
                raise type(error)(f"agent {name}: {error}") from error

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Enter inference mode and the models' evaluation mode for many calls (`Agent.acting`)."""
        with ExitStack() as stack:
            stack.enter_context(super().acting())
            for agent, _ in self._roles:
                stack.enter_context(agent.acting())
            yield

    @in_inference_mode
    def step(
        self, observation: object, *, deterministic: bool = False
    ) -> tuple[Any, dict[str, Any]]:  # Any: tensors, or dictionaries of them
        """Choose an action for each agent of each row.

        Args:
            observation: rows [B, ...] of each agent by its name, or [B, N, ...].
            deterministic: take the most probable actions instead of drawing them.

        Returns:
            The actions, and a dictionary of `value` and `log_prob`, float32 [B] by names, or
            [B, N]. They are made in torch's inference mode, as those of `PgAgent.step`.

        Raises:
            KeyError, ValueError: observations have other agents.
        """
        rows = self._rows(observation)
        own_rows = self._rows_of_agents(rows)
        found: dict[str, dict[Any, Tensor]] = {"action": {}, "value": {}, "log_prob": {}}
        for agent, names in self._roles:
            action, info = agent.step(_together(own_rows, names), deterministic=deterministic)
            results = {"action": action, **info}
            for key, values in found.items():
                values.update(_apart(results[key], names))
        joined = {key: self._joined(values) for key, values in found.items()}
        if self._critic is not None:
            joined["value"] = self._central_values(rows)
        return joined.pop("action"), joined

    @in_inference_mode
    def value(self, observation: object) -> Any:  # Any: a tensor, or a dictionary of them
        """Return the value estimates of each row, float32 [B] by agents' names, or [B, N]."""
        rows = self._rows(observation)
        if self._critic is not None:
            return self._central_values(rows)
        own_rows, found = self._rows_of_agents(rows), {}
        for agent, names in self._roles:
            found.update(_apart(agent.value(_together(own_rows, names)), names))
        return self._joined(found)

    def evaluate(self, observation: object, action: Any) -> Evaluation:
        """Return log-probabilities, entropies and values of each agent in each row, with gradients.

        The models are in their training mode.

        Args:
            observation: rows [n, ...] of each agent by its name, or [n, N, ...].
            action: the actions that were taken, as `step` returned them.

        Returns:
            Three tensors [n, N], or dictionaries of [n] by the agents' names.
        """
        rows = self._rows(observation)
        own_rows = self._rows_of_agents(rows)
        own_actions = {name: self._part(name, action) for name in self._members}
        found: list[dict[Any, Tensor]] = [{}, {}, {}]
        for agent, names in self._roles:
            evaluation = agent.evaluate(_together(own_rows, names), _together(own_actions, names))
            for values, results in zip(found, evaluation, strict=True):
                values.update(_apart(results, names))
        log_prob, entropy, value = map(self._joined, found)
        if self._critic is not None:
            with in_mode(self._critic, training=True):
                value = self._central_values(rows)
        return Evaluation(log_prob, entropy, value)

    def state_dict(self) -> dict[str, Any]:  # Any: as for Agent
        """Return what the agents' next actions depend on: `model`, and `generators` of each."""
        state = super().state_dict()
        del state["generator"]
        return {
            **state,
            "generators": [agent.state_dict()["generator"] for agent, _ in self._roles],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where such agents were when `state_dict` was called.

        Raises:
            KeyError, RuntimeError: the state is one of other models.
            ValueError: agents have other generators than those that were saved.
        """
        generators = state["generators"]
        own = [agent.generator for agent, _ in self._roles]
        if [each is None for each in generators] != [each is None for each in own]:
            raise ValueError(
                f"generators: the state has {sum(each is not None for each in generators)} of"
                f" {len(generators)} agents, expected"
                f" {sum(each is not None for each in own)} of {len(own)}; make the agents as"
                " those that were saved, with or without generator="
            )
        super().load_state_dict({"model": state["model"], "generator": None})
        for generator, saved in zip(own, generators, strict=True):
            if generator is not None:
                generator.set_state(saved)

    def _rows_of_agents(self, rows: Any) -> dict[Any, Any]:  # Any: trees of tensors
        """Return the observations of each agent."""
        return {name: self._part(name, rows) for name in self._members}

    def _part(self, name: Any, rows: Any) -> Any:  # Any: a name or a place; trees of tensors
        """Return what an agent has of rows of all agents."""
        if self._is_axis:
            return dict_map(_column, rows, name, len(self._members))
        if not isinstance(rows, Mapping) or name not in rows:
            found = sorted(rows) if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
            raise ValueError(
                f"agents: got rows of {found}, expected a branch for each of"
                f" {sorted(self._members)}, the names of the agents"
            )
        return rows[name]

    def _joined(self, values: Mapping[Any, Tensor]) -> Any:  # Any: a tensor, or a dictionary
        """Return results of all agents in the form that their observations have."""
        if self._is_axis:
            return torch.stack([values[place] for place in self._members], dim=1)
        return {name: values[name] for name in self._members}

    def _central_values(self, rows: Any) -> Any:  # Any: as for `_joined`
        """Return the critic's values of rows of all agents, for each agent."""
        assert self._critic is not None
        values, n_rows = self._critic(rows), len(leaves_of(rows)[0][1])
        if isinstance(values, Tensor) and tuple(values.shape) == (n_rows,):  # one of all agents
            return self._joined(dict.fromkeys(self._members, values))
        width = len(self._members)
        if self._is_axis and isinstance(values, Tensor) and values.shape == (n_rows, width):
            return values
        if not self._is_axis and isinstance(values, Tensor) and values.shape == (n_rows, width):
            return dict(zip(self._members, values.unbind(dim=1), strict=True))
        if (
            not self._is_axis
            and isinstance(values, Mapping)
            and values.keys() == self._members.keys()
        ):
            return {name: values[name] for name in self._members}
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"critic: got values {found}, expected ({n_rows},) for all agents together, or"
            f" ({n_rows}, {width}) for each of them"
        )


class _Models(nn.Module):
    """The models of several agents, and a critic, each once: what is trained, saved and loaded."""

    def __init__(self, models: Sequence[object], critic: object) -> None:
        super().__init__()
        self.agents = nn.ModuleList([each for each in models if isinstance(each, nn.Module)])
        self.critic = critic if isinstance(critic, nn.Module) else None


def _check_agent(name: object, agent: object) -> None:
    if isinstance(agent, RecurrentActor):
        raise TypeError(
            f"agent {name}: {type(agent).__name__} keeps a state for each environment, which"
            " IndependentPgAgents doesn't carry for each agent; take one without a state, and give"
            " its observation what it needs of the past, as stacked frames"
        )
    if missing := [
        each for each in ("step", "value", "evaluate", "model") if not hasattr(agent, each)
    ]:
        raise TypeError(
            f"agent {name}: {type(agent).__name__} has no {' and no '.join(missing)}, expected an"
            " agent as torch.agents.PgAgent"
        )
    if getattr(agent, "observes", False):
        raise TypeError(
            f"agent {name}: a part of its model observes as the agent acts (NormalizeObservations),"
            " and would count the rows of dead agents; scale observations in the environment"
        )


def _column(leaf: Tensor, place: int, n_agents: int) -> Tensor:
    if leaf.ndim < 2 or leaf.shape[1] != n_agents:
        raise ValueError(
            f"agents: got rows of shape {tuple(leaf.shape)}, expected ({len(leaf)}, {n_agents},"
            " ...), an axis with a place for each agent"
        )
    return leaf[:, place]


def _together(rows: Mapping[Any, Any], names: Sequence[Any]) -> Any:  # Any: trees of tensors
    """Return the rows of some agents as rows of one model, those of the first agent first."""
    return _concatenated([rows[name] for name in names])


def _concatenated(parts: Sequence[Any]) -> Any:  # Any: as above
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Mapping):
        return ArrayDict({key: _concatenated([each[key] for each in parts]) for key in first})
    if isinstance(first, Jagged):
        packed = [each.packed() for each in parts]
        ends = [first.offsets.new_zeros(1)]
        for each in packed:  # no row after it: the last offset is the number of rows
            ends.append(ends[-1][-1:] + each.offsets[1:])
        return Jagged(torch.cat([each.values for each in packed]), torch.cat(ends))
    return torch.cat(list(parts))


def _apart(results: Tensor, names: Sequence[Any]) -> dict[Any, Tensor]:
    """Return the results of each agent: the reverse of `_together`."""
    return dict(zip(names, results.chunk(len(names)), strict=True))
