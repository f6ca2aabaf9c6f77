"""Gru: gated recurrent units over sequences in which episodes begin."""

from __future__ import annotations

from torch import nn

from parllel.torch.models.recurrent_core import RecurrentCore


class Gru(RecurrentCore):
    """Gated recurrent units: torch's `nn.GRU` with a state for each environment.

    Its state has one part, `hidden`, float32 [B, n_layers, n_features].

    Source: Cho et al. 2014, arXiv:1406.1078; formulas as in `nn.GRU`.

    Args:
        n_inputs, n_features, n_layers, gain: as for `RecurrentCore`.

    Example:
        >>> import torch
        >>> core = Gru(n_inputs=4, n_features=8)
        >>> features, state = core(torch.zeros(5, 2, 4), core.first_state(2))
        >>> features.shape, sorted(state)
        (torch.Size([5, 2, 8]), ['hidden'])
    """

    names = ("hidden",)
    _kind = nn.GRU
