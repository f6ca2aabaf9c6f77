"""AgentForm: how the rewards and flags of several agents lie in the results of one environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray

from parllel.tree import ArrayDict, TreePath
from parllel.tree.fitting import MisfitError, describe


class AgentForm(NamedTuple):
    """The form of what an environment gives to each of its N agents.

    It is one of two: an array with an axis of agents, [N], or a dictionary of their names.

    >>> form = AgentForm(("pinky", "blinky"), is_axis=False, has_flags=True)
    >>> form.rows((4,), np.float32)["pinky"].shape
    (4,)
    >>> form._replace(is_axis=True).rows((4,), np.float32).shape
    (4, 2)

    Args:
        names: the agents, in the order of their slots.
        is_axis: whether the form is an array, and not a dictionary.
        has_flags: whether each agent has flags of its own, and may come and go in an episode: then
            flags have the same form, and the environment tells by `alive`, bool [N], which agents
            act in the next step. Otherwise there is one flag for all.
    """

    names: tuple[str, ...]
    is_axis: bool
    has_flags: bool

    def rows(self, batch_shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Return zeros for the numbers of all agents: [*batch_shape, N], or a tree of such."""
        if self.is_axis:
            return np.zeros((*batch_shape, len(self.names)), dtype)
        return ArrayDict({name: np.zeros(batch_shape, dtype) for name in self.names})

    def flag_rows(self, batch_shape: tuple[int, ...]) -> Any:
        """Return rows of False for a flag: in the form of agents, or one for all of them."""
        return (
            self.rows(batch_shape, np.bool_) if self.has_flags else np.zeros(batch_shape, np.bool_)
        )

    def value_of(self, numbers: NDArray[Any]) -> Any:
        """Return one number for each agent, [N], in this form."""
        return numbers if self.is_axis else dict(zip(self.names, numbers, strict=True))

    def check(self, name: str, value: Any, is_number: Callable[[Any], bool]) -> None:
        """Refuse a value that has not one number for each agent.

        Args:
            name: the result that the value is, such as "reward".
            value: what the environment returned.
            is_number: tells of what one agent has whether it is a number without a shape.

        Raises:
            MisfitError: it has another form; the message names the agent where there is one.
        """
        if self.is_axis:
            self._check_axis(name, value)
            return
        if not isinstance(value, Mapping):
            expected = f"a dictionary with a number for each of {list(self.names)}"
            raise MisfitError(describe(value), expected, path=(name,))
        if value.keys() != set(self.names):
            expected = f"a number for each of {list(self.names)}, and no other"
            got = f"the names {sorted(map(str, value))}"
            raise MisfitError(got, expected, path=(name,))
        for agent, number in value.items():
            if not is_number(number):
                raise MisfitError(describe(number), "a number of no shape", path=(name, agent))

    def _check_axis(self, name: str, value: Any) -> None:
        n_agents = len(self.names)
        if not isinstance(value, np.ndarray):
            try:
                array = np.asarray(value)
            except (ValueError, TypeError, RuntimeError):  # ragged, or no array at all
                array = np.array(None)
        else:
            array = value
        if array.shape != (n_agents,) or array.dtype.kind not in "biuf":
            expected = f"numbers of shape ({n_agents},), one for each agent"
            raise MisfitError(describe(value), expected, path=(name,))


def form_of(env: Any) -> AgentForm | None:
    """Return the form of an environment with several agents; None for all others.

    An environment declares it by `agent_form`, as `ParallelAgents` does; or, where agents have
    rewards of their own and one flag for all, by `reward_space`: a Box of shape (N,), or a Dict of
    Boxes of shape (). It may have the agents' names as `possible_agents`. Wrappers around it are
    looked through.

    Raises:
        TypeError: `reward_space` is another space.
        ValueError: `possible_agents` are not N different names.
    """
    form = find_attribute(env, "agent_form")
    if isinstance(form, AgentForm):
        return form
    space = find_attribute(env, "reward_space")
    if isinstance(space, spaces.Box) and space.shape == ():
        return None
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.shape[0]:
        names = find_attribute(env, "possible_agents")
        agents = range(space.shape[0]) if names is None else names
        return AgentForm(names_of(agents, space.shape[0]), is_axis=True, has_flags=False)
    if isinstance(space, spaces.Dict) and space.spaces and all(map(_is_number, space.values())):
        return AgentForm(names_of(space, len(space.spaces)), is_axis=False, has_flags=False)
    if space is None:
        return None
    raise TypeError(
        f"reward_space: got {space}, expected a Box of shape (), one of shape (N,) for N agents, or"
        " a Dict of Boxes of shape ()"
    )


def no_step(agents: AgentForm | None) -> tuple[Any, Any, Any]:
    """Return reward, terminated and truncated of a step that is no transition.

    >>> no_step(None)
    (0.0, False, True)
    """
    if agents is None:
        return 0.0, False, True
    n_agents = len(agents.names)
    reward = agents.value_of(np.zeros(n_agents))
    if not agents.has_flags:
        return reward, False, True
    terminated, truncated = np.zeros(n_agents, np.bool_), np.ones(n_agents, np.bool_)
    return reward, agents.value_of(terminated), agents.value_of(truncated)


def form_of_all(envs: Sequence[Any]) -> AgentForm | None:
    """Return the form of rewards and flags of all environments.

    Raises:
        ValueError: they have not the same agents in the same form.
    """
    forms = [form_of(env) for env in envs]
    for number, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"make_env: environment {number} has the agents {form}, expected {forms[0]}, as"
                " environment 0 has"
            )
    return forms[0]


def names_of(agents: Any, n_agents: int) -> tuple[str, ...]:
    """Return the names of agents as texts.

    Raises:
        ValueError: they are not as many, or two of them have the same name.
    """
    names = tuple(map(str, agents))
    if len(names) != n_agents or len(set(names)) != n_agents or not n_agents:
        expected = f"{n_agents or 'one or more'} different names"
        raise ValueError(f"possible_agents: got {list(names)}, expected {expected}")
    return names


def find_attribute(env: Any, name: str) -> Any:  # Any: of any environment
    """Return an attribute of an environment, or of what it wraps; None where there is none."""
    owner = owner_of(env, name)
    return None if owner is None else getattr(owner, name)


def owner_of(env: Any, name: str) -> Any:  # Any: as above
    """Return the outermost layer of an environment that has an attribute; None for none."""
    while not hasattr(env, name):
        if not isinstance(env, gym.Wrapper):
            return None
        env = env.env
    return env


def told_of(error: MisfitError, path: TreePath) -> MisfitError:
    """Return an error whose path begins with these names."""
    error.path = (*path, *error.path)
    return error


def _is_number(space: Any) -> bool:
    return isinstance(space, spaces.Box) and space.shape == ()
