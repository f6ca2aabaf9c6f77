"""RecurrentCore: what layers with a memory share, run over sequences in which episodes begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
"""The state of a recurrent core: float32 [B, n_layers, n_features] for each of its names."""


class RecurrentCore(nn.Module):
    """Recurrent layers of torch, which begin anew where an episode does.

    They run over sequences [T, B, n_inputs], a single step being a sequence of one. Before a step
    at which an environment begins an episode, its state is zeros again, and no gradient goes from
    one episode to the other.

    Between two beginnings, whichever environment they belong to, all steps are one call of torch's
    layers. Where they are is read on the host. On a GPU the host would have to wait for that, so
    there each step is a call of its own; a graph that captures them is what makes them fast.

    Results do not depend on how sequences are cut: what is run over T steps at once equals T single
    steps, and many environments equal each one alone, up to the order in which the products of a
    sum of n_inputs + n_features of them are added up (`test_unrolled_equals_stepped` derives the
    bound).

    Subclasses name torch's layers (`_kind`) and the parts of the state (`names`).

    Args:
        n_inputs: number of inputs of each step.
        n_features: number of features that each layer gives.
        n_layers: number of layers, each of which reads the one below.
        gain: factor of the orthogonal weights; biases are 0 then. None for torch's default.

    Raises:
        ValueError: a number is less than 1.

    Source: resets within a batch as in Espeholt et al. 2018, arXiv:1802.01561, section 3.1;
        orthogonal weights as in Huang et al. 2022, "The 37 implementation details of proximal
        policy optimization", details on LSTM.
    """

    names: ClassVar[tuple[str, ...]]
    _kind: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    def __init__(
        self, n_inputs: int, n_features: int, n_layers: int = 1, *, gain: float | None = 1.0
    ) -> None:
        super().__init__()
        counts = {"n_inputs": n_inputs, "n_features": n_features, "n_layers": n_layers}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: got {count}, expected 1 or more")
        self.n_inputs, self.n_features, self.n_layers = n_inputs, n_features, n_layers
        self.layers = self._kind(n_inputs, n_features, n_layers)
        if gain is not None:
            for parameter in self.layers.parameters():
                if parameter.ndim > 1:
                    nn.init.orthogonal_(parameter, gain)
                else:
                    nn.init.zeros_(parameter)

    def first_state(self, n_envs: int) -> dict[str, Tensor]:
        """Return the state at the beginning of an episode: zeros [n_envs, n_layers, n_features]."""
        like = next(self.layers.parameters())
        shape = (n_envs, self.n_layers, self.n_features)
        return {name: like.new_zeros(shape) for name in self.names}

    def forward(
        self, inputs: Tensor, state: State, is_first: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run over a sequence.

        Args:
            inputs: float32 [T, B, n_inputs].
            state: the state before the first step, tensors [B, n_layers, n_features].
            is_first: bool [T, B], whether an episode begins with the step; None for nowhere.

        Returns:
            Features [T, B, n_features], and the state after the last step.

        Raises:
            ValueError: a shape is another one.
        """
        n_steps, n_envs = self._check(inputs, state, is_first)
        parts = [state[name].transpose(0, 1).contiguous() for name in self.names]
        features = []
        cuts = [0] if is_first is None else _cuts(is_first)
        for begin, end in zip(cuts, [*cuts[1:], n_steps], strict=True):
            if is_first is not None:
                is_reset = is_first[begin].view(1, n_envs, 1)
                parts = [part.masked_fill(is_reset, 0) for part in parts]
            found, parts = self._run(inputs[begin:end], parts)
            features.append(found)
        after = {name: part.transpose(0, 1) for name, part in zip(self.names, parts, strict=True)}
        return features[0] if len(features) == 1 else torch.cat(features), after

    def _run(self, inputs: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run torch's layers over steps within which nothing begins."""
        features, after = self.layers(inputs, parts[0] if len(parts) == 1 else tuple(parts))
        return features, [after] if len(parts) == 1 else list(after)

    def _check(self, inputs: Tensor, state: State, is_first: Tensor | None) -> tuple[int, int]:
        if inputs.ndim != 3 or inputs.shape[2] != self.n_inputs or not len(inputs):
            raise ValueError(
                f"inputs: got {tuple(inputs.shape)}, expected (T, B, {self.n_inputs}), T steps of B"
                " environments; make the core with as many n_inputs as it is given"
            )
        n_steps, n_envs, _ = inputs.shape
        expected = (n_envs, self.n_layers, self.n_features)
        for name in self.names:
            if name not in state or tuple(state[name].shape) != expected:
                found = tuple(state[name].shape) if name in state else "none"
                raise ValueError(
                    f"state: got {found} of {name!r}, expected {expected} = (B, n_layers,"
                    " n_features); first_state makes one"
                )
        if is_first is not None and tuple(is_first.shape) != (n_steps, n_envs):
            raise ValueError(
                f"is_first: got {tuple(is_first.shape)}, expected {(n_steps, n_envs)} = (T, B)"
            )
        return n_steps, n_envs


def _cuts(is_first: Tensor) -> list[int]:
    """Return the steps before which a state is put back, and step 0."""
    n_steps = len(is_first)
    if is_first.is_cuda or n_steps == 1:
        return list(range(n_steps))
    found: list[int] = is_first[1:].any(dim=1).nonzero().flatten().tolist()
    return [0, *(step + 1 for step in found)]
