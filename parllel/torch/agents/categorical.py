"""CategoricalPgAgent: a policy-gradient agent that chooses among discrete actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parllel.torch.distributions.categorical import Categorical, DistParams
from parllel.tree import dict_map, leaves_of
from parllel.tree.leaves import as_tensor

__all__ = ["CategoricalPgAgent", "DistParams", "Evaluation", "ModelOutputs"]


class ModelOutputs(NamedTuple):
    """What a model returns for rows of observations.

    Args:
        dist_params: of the distribution of actions, [..., dim].
        value: float32 [...], estimate of the discounted return from here on.
    """

    dist_params: DistParams
    value: Tensor


class Evaluation(NamedTuple):
    """What a learning step needs of rows of samples; each is float32 [...] with its gradient."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class CategoricalPgAgent:
    """Choose among discrete actions with a model that gives a distribution and a value.

    Observations may be Arrays, NumPy arrays or tensors, or trees of them; on the host they are
    read without a copy. The model sees them with the dtype they are stored in.

    Args:
        model: takes rows of observations and returns `ModelOutputs`.
        distribution: of the actions.
        example_obs: some rows of observations [B, ...], on which the model is tried once.
        generator: source of randomness of the actions; torch's own by default.

    Raises:
        TypeError: the model does not return `ModelOutputs`.
        ValueError: its outputs have a wrong shape, or it is on another device than observations.
    """

    def __init__(
        self,
        model: Callable[..., ModelOutputs],
        distribution: Categorical,
        example_obs: Any,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.distribution = distribution
        self._generator = generator
        self._check_model(example_obs)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Enter torch's inference mode once for many calls of `step` and `value`.

        An environment that is stepped inside and needs gradients of its own leaves it with
        `torch.inference_mode(False)`.
        """
        with torch.inference_mode():
            yield

    def step(
        self, observation: Any, *, deterministic: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row.

        Args:
            observation: rows [B, ...].
            deterministic: take the most probable action instead of drawing one.

        Returns:
            The actions, int64 [B], and a dictionary of `value` and `log_prob`, float32 [B]. They
            are made in torch's inference mode: clone them before autograd is to use them.
        """
        if not torch.is_inference_mode_enabled():
            with self.acting():
                return self.step(observation, deterministic=deterministic)
        outputs = self.model(dict_map(as_tensor, observation))
        log_probs = self.distribution.log_probs(outputs.dist_params)
        if deterministic:
            action = self.distribution.mode(log_probs)
        else:
            action = self.distribution.sample(log_probs, self._generator)
        log_prob = self.distribution.log_prob(log_probs, action)
        return action, {"value": outputs.value, "log_prob": log_prob}

    def value(self, observation: Any) -> Tensor:
        """Return the value estimate of each row, float32 [B]."""
        if not torch.is_inference_mode_enabled():
            with self.acting():
                return self.value(observation)
        return self.model(dict_map(as_tensor, observation)).value

    def evaluate(self, observation: Any, action: Tensor) -> Evaluation:
        """Return log-probability, entropy and value of each row, with gradients.

        Args:
            observation: rows [N, ...].
            action: integers [N], that were taken.
        """
        outputs = self.model(dict_map(as_tensor, observation))
        log_probs = self.distribution.log_probs(outputs.dist_params)
        return Evaluation(
            self.distribution.log_prob(log_probs, action.long()),
            self.distribution.entropy(log_probs),
            outputs.value,
        )

    def save(self, path: str | Path) -> None:
        """Write the model's parameters to a file, which is replaced at once when all is written."""
        unfinished = Path(f"{path}.unfinished")
        torch.save(self._module().state_dict(), unfinished)
        unfinished.replace(path)

    def load(self, path: str | Path) -> None:
        """Read the model's parameters from a file that `save` wrote."""
        self._module().load_state_dict(torch.load(path, weights_only=True))

    def _module(self) -> nn.Module:
        if not isinstance(self.model, nn.Module):
            raise TypeError(
                f"model: got a {type(self.model).__name__}, expected a torch.nn.Module: only its"
                " parameters can be saved and loaded"
            )
        return self.model

    @torch.no_grad()  # not inference mode: a model may keep what it makes at its first call
    def _check_model(self, example_obs: Any) -> None:
        """Try the model once, so that a wrong shape is found here and not in the training loop."""
        rows = dict_map(as_tensor, example_obs)
        (_, first), *_ = leaves_of(rows)
        self._check_device(first.device)
        outputs = self.model(rows)
        if not isinstance(outputs, ModelOutputs):
            raise TypeError(
                f"model: it returned a {type(outputs).__name__}, expected"
                " ModelOutputs(dist_params=DistParams(...), value=...)"
            )
        n_rows, dim = first.shape[0], self.distribution.dim
        shapes = {
            "dist_params": (self.distribution.log_probs(outputs.dist_params), (n_rows, dim)),
            "value": (outputs.value, (n_rows,)),
        }
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"model: {name} has shape {tuple(tensor.shape)}, expected {expected} for"
                    f" {n_rows} rows of observations"
                )

    def _check_device(self, device: torch.device) -> None:
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else iter(())
        parameter = next(parameters, None)
        if parameter is not None and parameter.device != device:
            raise ValueError(
                f"model: its parameters are on {parameter.device}, and the observations on"
                f" {device}; move it with model.to({str(device)!r}), or keep the samples elsewhere"
                " (storage=)"
            )
