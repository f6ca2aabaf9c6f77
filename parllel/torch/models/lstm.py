"""Lstm: long short-term memory over sequences in which episodes begin."""

from __future__ import annotations

from torch import nn

from parllel.torch.models.recurrent_core import RecurrentCore


class Lstm(RecurrentCore):
    """Long short-term memory: torch's `nn.LSTM` with a state for each environment.

    Its state has two parts, `hidden` and `cell`, each float32 [B, n_layers, n_features].

    Source: Hochreiter and Schmidhuber 1997, Neural Computation 9(8); formulas as in `nn.LSTM`.

    Args:
        n_inputs, n_features, n_layers, gain: as for `RecurrentCore`.

    Example:
        >>> import torch
        >>> core = Lstm(n_inputs=4, n_features=8)
        >>> features, state = core(torch.zeros(5, 2, 4), core.first_state(2))
        >>> features.shape, state["cell"].shape
        (torch.Size([5, 2, 8]), torch.Size([2, 1, 8]))
    """

    names = ("hidden", "cell")
    _kind = nn.LSTM
