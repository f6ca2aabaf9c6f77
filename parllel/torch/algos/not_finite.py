"""What to say of a loss that is NaN or infinite: which number of batch or model made it so."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from parllel.ranks import n_ranks
from parllel.tree import ArrayDict
from parllel.tree.not_finite import find_not_finite


def parameter_not_finite(model: object) -> str | None:
    """Return the name of a model's first parameter that has a NaN or an infinity; None for none."""
    parameters = model.named_parameters() if isinstance(model, nn.Module) else iter(())
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            return name
    return None


def refuse_loss(what: str, batch: ArrayDict, model: object) -> NoReturn:
    """Raise ValueError, with the first number of the batch or the model that is not finite.

    Args:
        what: the number that told of it.
        batch: the batch that was learned from.
        model: the model that learned.
    """
    found = find_not_finite(batch)
    if found is not None:
        raise ValueError(
            f"batch: {what} is not finite, as {found}; find out why the environment or the agent"
            " gave it"
        )
    name = parameter_not_finite(model)
    if name is not None:
        raise ValueError(
            f"batch: {what} is not finite: the model's parameter {name} is not, and all of the"
            " batch is; load older parameters, and learn with a smaller rate or max_grad_norm"
        )
    others = "; or it is another rank's, which tells of its batch" if n_ranks() > 1 else ""
    raise ValueError(
        f"batch: {what} is not finite, and all of the batch and of the model's parameters is; look"
        " for a division by 0 or the like in the model, or for numbers too large for float32"
        + others
    )
