"""Recurrent: the state that recurrent agents carry; not how outputs become actions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.modes import in_mode
from parllel.torch.agents.previous_inputs import PreviousInputs
from parllel.tree import ArrayDict, dict_map, leaves_of
from parllel.tree.leaves import as_tensor

_Outputs = TypeVar("_Outputs")
_PREVIOUS = "previous"  # the name of the previous action and reward in a state, and in agent_info


class Recurrence(NamedTuple):
    """What a recurrent agent is told of sequences, beside the observations.

    Args:
        initial_rnn_state: the state before the first step, a tree of tensors [N, ...].
        is_first: bool [T, N], whether an episode begins with the step: the state is put back
            before it. In the first step, `initial_rnn_state` tells by itself.
        previous: float32 [T, N, k], the inputs of the previous action and reward that the agent
            acted with (`agent_info.previous`); None where it takes none.

    Example:
        >>> recurrence = Recurrence({"hidden": torch.zeros(2, 1, 8)}, torch.zeros(5, 2).bool())
        >>> recurrence.previous is None
        True
    """

    initial_rnn_state: Any  # Any: a tree of tensors
    is_first: Tensor
    previous: Tensor | None = None


class Recurrent(Agent[_Outputs]):
    """An agent whose model goes on from a state, one for each environment.

    The model has `first_state(n)`, the state of n environments at the beginning of an episode: a
    dictionary of tensors [n, ...]. It is called with a sequence of observations [T, B, ...], the
    state before it, `is_first` and the previous inputs, and returns its outputs for T * B rows and
    the state after the sequence: see `models.RecurrentNetwork`. A step is a sequence of one. Before
    a step with `is_first` the model has to go on from `first_state` itself, as agents have it do
    when they act.

    Subclasses are agents too (`RecurrentPgAgent`, `RecurrentQAgent`), and set `_previous` and
    `_keeps_state` before they try the model.
    """

    _previous: PreviousInputs | None = None
    _keeps_state = False
    _state: dict[str, Tensor] | None = None
    _dtypes: Mapping[str, torch.dtype] = {}  # of the model's state
    _owes_reward = False  # whether the reward of the last step is to come before the next call

    def bind_actions(self, space: spaces.Space[Any]) -> None:
        """Learn which actions environments take: a sampler calls it when it is made.

        Raises:
            TypeError, ValueError: as for the agent without a state; or previous inputs are made of
                other actions.
        """
        if self._previous is not None:
            self._previous.check_space(space)
        super().bind_actions(space)  # type: ignore[misc]  # the other base class has it

    @property
    def rnn_state(self) -> dict[str, Tensor] | None:
        """The state before the next step, tensors [B, ...] by name; None before `begin`.

        With previous inputs, they are a part of it: `previous`, float32 [B, k].
        """
        return self._state

    @rnn_state.setter
    def rnn_state(self, state: Mapping[str, Tensor] | None) -> None:
        self._state = None if state is None else dict(state)
        self._owes_reward = False

    def begin(self, n_envs: int) -> None:
        """Make a new state for n environments at the beginning of an episode."""
        self.rnn_state = self._first_state(n_envs)

    @torch.no_grad()
    def reset_state(self, columns: Sequence[int]) -> None:
        """Put the state of these environments back to the beginning of an episode."""
        state, first = self._current(), self._first_state(len(columns))
        index = _index_of(columns, state)
        self._state = {name: part.index_copy(0, index, first[name]) for name, part in state.items()}

    @in_inference_mode
    def receive_reward(self, reward: object) -> None:
        """Take the reward of the step that was made, an input of the next one.

        Samplers call it after each step, before they ask for a value or put a state back. Agents
        without previous inputs do nothing.

        Args:
            reward: rows [B].

        Raises:
            RuntimeError: no step was made since the last reward.
            ValueError: there are other rows than environments.
        """
        if self._previous is None:
            return
        if not self._owes_reward:
            raise RuntimeError("receive_reward: got a reward without a step; call step before it")
        rows: Tensor = dict_map(as_tensor, reward)
        previous = self._current()[_PREVIOUS]
        if rows.shape != previous.shape[:1]:
            raise ValueError(
                f"reward: got {tuple(rows.shape)}, expected {tuple(previous.shape[:1])}, one for"
                " each environment"
            )
        previous[:, -1] = rows
        self._owes_reward = False

    def recurrence(self, windows: ArrayDict) -> Recurrence:
        """Return what windows of a `SequenceReplayBuffer` tell, beside their observations.

        The previous inputs of a row are those of the row before it, whose action and reward led
        there: also where it is the final observation of an episode.

        Args:
            windows: rows [R, N, ...] of `action` and `reward`, R + 1 of `is_first`, and
                `initial_rnn_state`; with previous inputs, `agent_info.previous` too.

        Raises:
            ValueError: a branch is missing.
        """
        if "initial_rnn_state" not in windows:
            raise ValueError(
                "windows: there is no initial_rnn_state, the state before their first step; make"
                " the agent with keeps_state=True before the sample tree is built"
            )
        is_first: Tensor = windows["is_first"]
        if self._previous is None:
            return Recurrence(windows["initial_rnn_state"], is_first)
        if _PREVIOUS not in windows.get("agent_info", {}):
            raise ValueError(
                "windows: there is no agent_info.previous, the inputs of the previous action and"
                " reward; build the sample tree with the agent that acts"
            )
        inputs = self._previous.encode(self._own_action(windows["action"]), windows["reward"])
        inputs = torch.cat([windows["agent_info"][_PREVIOUS][:1], inputs])
        inputs[1:].masked_fill_(is_first[1:].unsqueeze(-1), 0)
        return Recurrence(windows["initial_rnn_state"], is_first, inputs)

    @torch.no_grad()
    def burn_in(self, observation: object, recurrence: Recurrence, n_steps: int) -> Recurrence:
        """Run over the first steps of sequences, and return what the others go on from.

        Nothing is learned from these steps: the state after them has no gradient. The model runs in
        the mode that it is in.

        Args:
            observation: [R, N, ...], observations of sequences.
            recurrence: what else is known of them.
            n_steps: number of steps to run over, less than R.
        """
        if not n_steps:
            return recurrence
        state, is_first, previous = recurrence
        rows = dict_map(_first_steps, self._rows(observation), n_steps)
        before = None if previous is None else previous[:n_steps]
        run: Callable[..., Any] = self.model
        _, after = run(
            rows, self._given(state), is_first[:n_steps], *([] if before is None else [before])
        )
        rest = None if previous is None else previous[n_steps:]
        return Recurrence(after, is_first[n_steps:], rest)

    @abstractmethod
    def _own_action(self, action: Tensor) -> Tensor:
        """Return the distribution's own actions for those of the sample tree."""

    # What agents make their methods of

    def _carry(self, after: dict[str, Tensor], action: Tensor) -> None:
        """Go on from the state after a step.

        Args:
            after: that state, as the model has returned it.
            action: [B, ...], the actions of the step as the distribution has them.
        """
        if self._previous is not None:
            no_reward = torch.zeros(len(action), device=action.device)  # it comes later
            after = {**after, _PREVIOUS: self._previous.encode(action, no_reward)}
        self._state = after
        self._owes_reward = self._previous is not None

    def _kept(self, before: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what `agent_info` has of the state before a step."""
        kept: dict[str, Any] = {}
        if self._keeps_state:
            kept["rnn_state"] = {name: x for name, x in before.items() if name != _PREVIOUS}
        if self._previous is not None:
            kept[_PREVIOUS] = before[_PREVIOUS]
        return kept

    def _peek(self, rows: Any, columns: Sequence[int] | None) -> _Outputs:
        """Return the model's outputs for rows [n, ...]; the state stays what it is.

        Args:
            rows: observations.
            columns: the environment of each row; all in their order by default.
        """
        state = self._settled()
        if columns is not None:
            index = _index_of(columns, state)
            state = {name: part.index_select(0, index) for name, part in state.items()}
        return self._run(rows, state)[0]

    def _unroll(
        self, rows: Any, recurrence: Recurrence | None, model: Callable[..., Any] | None = None
    ) -> tuple[_Outputs, Any]:
        """Run a model over sequences, with gradients.

        Args:
            rows: observations [T, N, ...].
            recurrence: what else is known of the sequences.
            model: the agent's own by default.

        Returns:
            The outputs for T * N rows, time-major; and the observations as such rows.
        """
        if recurrence is None:
            raise TypeError(
                f"{type(self).__name__}: got no recurrence, expected one: a recurrent agent learns"
                " from sequences, with the state before them and where episodes begin"
            )
        if (recurrence.previous is None) != (self._previous is None):
            found, own = (
                "none" if each is None else "some" for each in (recurrence.previous, self._previous)
            )
            raise ValueError(
                f"previous: the sequences have {found}, and the agent takes {own}; the branch"
                " agent_info.previous of the agent's own steps has them"
            )
        run: Callable[..., Any] = self.model if model is None else model
        state, is_first, previous = recurrence
        outputs, _ = run(
            rows, self._given(state), is_first, *([] if previous is None else [previous])
        )
        return outputs, dict_map(_flatten, rows)

    @torch.no_grad()
    def _try_model(self, example_obs: object) -> tuple[_Outputs, int]:
        """Run the model for one step, as `Agent._try_model`."""
        rows = dict_map(as_tensor, example_obs)
        (_, first), *_ = leaves_of(rows)
        self._check_device(first.device)
        if not hasattr(self.model, "first_state"):
            raise TypeError(
                f"model: {type(self.model).__name__} has no first_state, expected a model that goes"
                " on from a state, as models.RecurrentNetwork"
            )
        first_state = self.model.first_state
        for n_envs in (len(first) + 1, len(first)):
            _check_first(first_state(n_envs), n_envs)
        state = self._first_state(len(first))
        self._dtypes = {name: part.dtype for name, part in state.items()}
        with in_mode(self.model, training=False):
            outputs, after = self._run(rows, state)
        before = {name: part for name, part in state.items() if name != _PREVIOUS}
        shapes = [
            {name: (tuple(x.shape), x.dtype) for name, x in each.items()}
            for each in (before, after)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"model: its state is {shapes[0]} before a step and {shapes[1]} after it, expected"
                " the same names, shapes and dtypes"
            )
        return outputs, len(first)

    def _run(self, rows: Any, state: dict[str, Tensor]) -> tuple[_Outputs, dict[str, Tensor]]:
        """Run the model for one step of rows [B, ...]."""
        sequence, given = dict_map(_as_sequence, rows), self._given(state)
        if self._previous is None:
            result = self.model(sequence, given)
        else:
            result = self.model(sequence, given, None, state[_PREVIOUS].unsqueeze(0))
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"model: it returned a {type(result).__name__}, expected a pair: outputs and the"
                " state after the sequence"
            )
        outputs, after = result
        return outputs, dict(after)

    def _given(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state as the model takes it: without previous inputs, in its own dtypes.

        Rows of the sample tree have float32 where a model has bfloat16.
        """
        return {
            name: part.to(self._dtypes.get(name, part.dtype))
            for name, part in state.items()
            if name != _PREVIOUS
        }

    def _first_state(self, n_envs: int) -> dict[str, Tensor]:
        model: Any = self.model  # which has first_state, as `_try_model` has found
        with torch.no_grad():
            state: dict[str, Tensor] = dict(model.first_state(n_envs))
            if self._previous is not None:
                (first, *_) = state.values()
                state[_PREVIOUS] = self._previous.first(n_envs, first.device)
        return state

    def _current(self) -> dict[str, Tensor]:
        if self._state is None:
            raise RuntimeError(f"{type(self).__name__}: there is no state; call begin before")
        return self._state

    def _settled(self) -> dict[str, Tensor]:
        """Return the state, which must not lack the reward of the last step."""
        if self._owes_reward:
            raise RuntimeError(
                f"{type(self).__name__}: the reward of the last step is missing, which is an input"
                " of the next one; call receive_reward after each step"
            )
        return self._current()


def _check_first(state: object, n_envs: int) -> None:
    """Raise unless a model's first state is one that can be kept, put back and stored by rows."""
    parts = list(state.values()) if isinstance(state, Mapping) else []
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        kinds = [type(part).__name__ for part in parts] or type(state).__name__
        raise TypeError(
            f"first_state: got {kinds}, expected a dictionary of tensors, one at least; give the"
            " parts of a tree or of a tuple names of their own, as models.Lstm"
        )
    assert isinstance(state, Mapping)
    for name, part in state.items():
        if name == _PREVIOUS:
            raise ValueError(
                f"first_state: got a part {name!r}, which is the name of the previous action and"
                " reward in an agent's state; rename it"
            )
        if part.shape[:1] != (n_envs,):
            raise ValueError(
                f"first_state: got {tuple(part.shape)} of {name!r} for {n_envs} environments,"
                f" expected ({n_envs}, ...), a row for each; transpose torch's own [layers,"
                " environments, ...]"
            )


def _index_of(columns: Sequence[int], state: Mapping[str, Tensor]) -> Tensor:
    """Return columns as an index where the state is; nothing waits for a device."""
    (first, *_) = state.values()
    return torch.tensor(list(columns), dtype=torch.int64).to(first.device, non_blocking=True)


def _as_sequence(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


def _first_steps(leaf: Tensor, n_steps: int) -> Tensor:
    return leaf[:n_steps]


def _flatten(leaf: Tensor) -> Tensor:
    return leaf.flatten(0, 1)
