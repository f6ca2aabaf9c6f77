"""The first parameter of a model that is NaN or infinite: found when a loss has told of one."""

from __future__ import annotations

from torch import nn


def parameter_not_finite(model: object) -> str | None:
    """Return the name of a model's first parameter that has a NaN or an infinity; None for none."""
    parameters = model.named_parameters() if isinstance(model, nn.Module) else iter(())
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            return name
    return None
