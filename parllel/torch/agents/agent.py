"""Agent: what all agents with a torch model share; not how outputs become actions."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import nn

from parllel.arrays import Array
from parllel.torch.agents.model_file import read_parameters, write_parameters
from parllel.torch.agents.modes import in_mode
from parllel.tree import dict_map, leaves_of
from parllel.tree.leaves import as_tensor

_Outputs = TypeVar("_Outputs")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Agent = TypeVar("_Agent", bound="Agent[Any]")


class Agent(ABC, Generic[_Outputs]):
    """A model, the context in which it acts, and its parameters as a file.

    Subclasses turn the model's outputs into actions: they define `step` and, where values are
    learned, `value`, and decorate both with `in_inference_mode`. A sampler asks for these two.

    An agent acts in the evaluation mode of its model, and learns in its training mode, whatever
    mode the model was left in; afterwards each part of the model is in its former mode again.

    Args:
        model: a function of observations [B, ...]; a `torch.nn.Module` where parameters are to be
            learned, saved and loaded.
        generator: source of randomness of the actions, on the device of the observations; torch's
            own by default.

    Example:
        >>> import numpy as np
        >>> class Threshold(Agent[torch.Tensor]):
        ...     @in_inference_mode
        ...     def step(self, observation, *, deterministic=False):
        ...         return (self._outputs(observation) > 0).long().squeeze(-1), {}
        >>> agent = Threshold(nn.Linear(3, 1))
        >>> action, agent_info = agent.step(np.ones((2, 3), np.float32))
        >>> action.shape, action.is_inference()
        (torch.Size([2]), True)
    """

    _is_acting = False  # here and not in __init__: a subclass may have one of its own

    def __init__(
        self, model: Callable[..., _Outputs], generator: torch.Generator | None = None
    ) -> None:
        self.model = model
        self._generator = generator

    @property
    def generator(self) -> torch.Generator | None:
        """The source of randomness of the actions; None for torch's own."""
        return self._generator

    @abstractmethod
    def step(
        self,
        observation: Any,  # Any: each agent names the rows that it takes
        *,
        deterministic: bool = False,
    ) -> tuple[object, Mapping[str, object]]:
        """Return an action for each row, and a mapping of what else learning needs."""

    @property
    def observes(self) -> bool:
        """Whether a sampler tells the agent of its batches: parts of the model ask for it.

        A part is asked for if it has methods `begin_batch` and `observe`, as
        `torch.models.NormalizeObservations`.
        """
        return any(True for _ in self._observers())

    def begin_batch(self) -> None:
        """Have what was observed count from here on: a sampler is about to collect a batch."""
        for part in self._observers():
            part.begin_batch()

    def observe(
        self, observation: Any, *, valid: object = None, final_obs: Any = None
    ) -> None:  # Any: rows of the sample tree
        """Tell the parts of the model that ask for it what was observed in a batch.

        Args:
            observation: rows [T, B, ...] of the sample tree.
            valid: bool [T, B] on the host, the rows that are transitions; None for all.
            final_obs: rows [k, ...], the final observations of episodes; None for none.
        """
        for part in self._observers():
            part.observe(observation, valid=valid, final_obs=final_obs)

    def _observers(self) -> Iterator[Any]:  # Any: modules of any class
        if isinstance(self.model, nn.Module):
            for part in self.model.modules():
                if callable(getattr(part, "observe", None)):
                    yield part

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Enter torch's inference mode, and the model's evaluation mode, for many calls.

        `step` and `value` enter both themselves where they are called outside. An environment that
        is stepped inside and needs gradients of its own leaves inference mode with
        `torch.inference_mode(False)`.
        """
        was_acting = self._is_acting
        with in_mode(self.model, training=False), torch.inference_mode():
            self._is_acting = True
            try:
                yield
            finally:
                self._is_acting = was_acting

    def save(self, path: str | Path) -> None:
        """Write the model's parameters to a safetensors file, replaced at once when all is written.

        The new file is on the disk before it takes the former one's name, and has a checksum. A
        compiled model's file is that of the plain model.

        Args:
            path: the file, usually `*.safetensors`.

        Raises:
            OSError: the file can't be written; the former one is as it was.
            TypeError: the model is no `torch.nn.Module`, or a part of its state is no dense tensor.
        """
        write_parameters(self._module(), path)

    def load(self, path: str | Path) -> None:
        """Read the model's parameters from a file that `save` wrote, with a model on any device.

        A file that is refused changes nothing, and no code in a file runs. Files that
        `safetensors.torch.save_file` or `torch.save` wrote of a model's `state_dict` are read too.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: the model is no `torch.nn.Module`.
            ValueError: the file is damaged, or its parameters have other names, shapes or dtypes
                than the model's.
        """
        read_parameters(self._module(), path)

    def state_dict(self) -> dict[str, Any]:  # Any: tensors, and dictionaries of them
        """Return what the agent's next actions depend on, beside its observations.

        Returns:
            `model`, the tensors of the model's own state dictionary, over the model's memory (it
            is empty where the model is no `torch.nn.Module`); `generator`, the state of the
            agent's generator, uint8 on the host, or None where the agent draws by torch's own,
            whose state the program has to keep itself.
        """
        has_state = isinstance(self.model, nn.Module)
        generator = None if self._generator is None else self._generator.get_state()
        return {
            "model": dict(self._module().state_dict()) if has_state else {},
            "generator": generator,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an agent was when `state_dict` was called, with a model on any device.

        Raises:
            KeyError, RuntimeError: the state is another model's: names or shapes differ.
            ValueError: one of the two agents has a generator and the other has none.
        """
        generator = state["generator"]
        if (generator is None) != (self._generator is None):
            found, own = (
                "none" if each is None else "one" for each in (generator, self._generator)
            )
            raise ValueError(
                f"generator: the state has {found}, and the agent has {own}; make the agent as the"
                " one that was saved, with or without generator="
            )
        if isinstance(self.model, nn.Module):
            self.model.load_state_dict(state["model"])
        if self._generator is not None:
            self._generator.set_state(generator)

    def _module(self) -> nn.Module:
        if not isinstance(self.model, nn.Module):
            raise TypeError(
                f"model: got a {type(self.model).__name__}, expected a torch.nn.Module: only its"
                " parameters can be saved and loaded"
            )
        return self.model

    def _rows(self, observation: object) -> Any:  # Any: a tensor, or a tree of tensors
        """Return rows of observations as the model takes them, read without a copy."""
        if isinstance(observation, Array):  # asked first: it is what samplers give
            return observation.to_torch()
        return dict_map(as_tensor, observation)

    def _outputs(self, observation: object) -> _Outputs:
        """Return the model's outputs for rows of observations, which are read without a copy."""
        return self.model(self._rows(observation))

    @torch.no_grad()  # not inference mode: a model may keep what it makes at its first call
    def _try_model(self, example_obs: object) -> tuple[_Outputs, int]:
        """Run the model once, so that an error is found here and not in the training loop.

        Returns:
            The outputs, and the number of rows of the example.

        Raises:
            ValueError: the model's parameters are on another device than the observations.
        """
        rows = dict_map(as_tensor, example_obs)
        (_, first), *_ = leaves_of(rows)
        self._check_device(first.device)
        with in_mode(self.model, training=False):  # one row is enough for batch normalization then
            return self.model(rows), len(first)

    def _check_device(self, device: torch.device) -> None:
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else iter(())
        parameter = next(parameters, None)
        if parameter is not None and parameter.device != device:
            raise ValueError(
                f"model: its parameters are on {parameter.device}, and the observations on"
                f" {device}; move it with model.to({str(device)!r}), or keep the samples elsewhere"
                " (storage=)"
            )


def in_inference_mode(
    method: Callable[Concatenate[_Agent, _Arguments], _Result],
) -> Callable[Concatenate[_Agent, _Arguments], _Result]:
    """Return a method of an agent that runs in torch's inference mode and in evaluation mode.

    Inside of `Agent.acting` it only asks whether the modes are on: to enter them costs more than a
    small model takes.
    """

    @functools.wraps(method)
    def run(agent: _Agent, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if agent._is_acting and torch.is_inference_mode_enabled():
            return method(agent, *args, **kwargs)
        with agent.acting():
            return method(agent, *args, **kwargs)

    return run
