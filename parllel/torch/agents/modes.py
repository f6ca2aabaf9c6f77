"""The modes of a model, training and evaluation: entered for a while, whatever it was left in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: object, *, training: bool) -> Iterator[None]:
    """Put a model into one mode inside the `with` block, then each of its parts into its own.

    Dropout and batch normalization compute something else in training than in evaluation. A
    model that is no `torch.nn.Module` has no modes. The model's own method `train` is called, so
    one that keeps some parts in evaluation mode goes on to do so.

    Args:
        model: the model.
        training: the mode: training, or else evaluation.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with in_mode(model, training=False):
        ...     model.training, model[1].training
        (False, False)
        >>> model.training
        True
    """
    if not isinstance(model, nn.Module):
        yield
        return
    parts = list(model.modules())
    former = [part.training for part in parts]
    if (not training) in former:
        model.train(training)
    try:
        yield
    finally:
        for part, mode in zip(parts, former, strict=True):
            if part.training is not mode:
                part.training = mode
