"""What the ranks of a run do together when they learn: gradients, means, and the same beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parllel.ranks import check_same, explained, join, n_ranks, rank

_PROGRESS = (0.0, 0.5, 1.0)  # at which schedules are compared


class MeanGradient:
    """Have `backward` compute the mean of the gradients of all ranks, which is the same on each.

    It is torch's `DistributedDataParallel` behind a loss and not around a model: so it serves
    whatever an algorithm computes a loss of, with an agent in between, several models, or parts of
    one. Gradients are exchanged in its buckets while `backward` goes on. A parameter that no
    rank's loss depends on keeps what gradient it has. Where there is one rank, it does nothing.

    Args:
        parameters: those that learn; their values become those of rank 0.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0]))
        >>> gradient = MeanGradient([weight])
        >>> gradient.backward(2 * weight.sum())
        >>> weight.grad
        tensor([2.])
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._through: nn.Module | None = None
        learning = [each for each in parameters if each.requires_grad]
        self._learning = {id(each) for each in learning}
        if n_ranks() > 1 and learning:
            join()
            # Where all are used, torch orders its buckets anew after the first update: of three
            # ranks or more, sums would differ by a rounding where a run is resumed.
            with explained("the parameters that learn"):
                self._through = nn.parallel.DistributedDataParallel(
                    _Loss(learning), find_unused_parameters=True
                )

    def check(self, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse parameters that learn now and did not before: each rank would go its own way.

        Where there is one rank, any are right.

        Raises:
            ValueError: there is one.
        """
        if n_ranks() == 1:
            return
        for each in parameters:
            if each.requires_grad and id(each) not in self._learning:
                raise ValueError(
                    f"optimizer: a parameter {tuple(each.shape)} learns that did not when the"
                    " algorithm was made, so that its gradient would not be that of all ranks;"
                    " make the algorithm anew after requires_grad_ and add_param_group"
                )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to `grad` of the parameters; all ranks have to come here.

        Raises:
            RankError: a rank has ended, or did not come in time.
        """
        if self._through is None:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
            return
        with explained("gradients"):
            self._through(loss).backward()


class _Loss(nn.Module):
    """A loss, as DistributedDataParallel asks for it: a module with the parameters behind it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.learning = nn.ParameterList(parameters)
        # torch warns of find_unused_parameters, on stderr, where there is none.
        self.unused = nn.Parameter(torch.zeros((), device=parameters[0].device))

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def mean_over_ranks(numbers: Tensor) -> Tensor:
    """Return the means of numbers over all ranks, where they are; as they are of one rank.

    >>> mean_over_ranks(torch.tensor([0.5, 2.0]))
    tensor([0.5000, 2.0000])

    Raises:
        RankError: a rank has ended, or did not come in time.
    """
    if n_ranks() == 1:
        return numbers
    total = numbers.detach().clone()
    with explained("means over ranks"):
        torch.distributed.all_reduce(total)
    return total / n_ranks()


def begin_alike(
    algorithm: object, agent: Any, optimizer: torch.optim.Optimizer, settings: object
) -> None:
    """Have all ranks begin with the model of rank 0, and with random numbers of their own.

    Nothing is done where there is one rank. torch's own generator, and the agent's, go on from
    another seed on each rank but the first, which is made of the one they had: ranks would draw
    the same actions otherwise.

    Args:
        algorithm: the algorithm, whose class is compared.
        agent: the agent, with a `model` and maybe a `generator`, or `agents` that have some.
        optimizer: the optimizer, whose groups are compared, with their rates and other options.
        settings: the algorithm's settings, which are compared; schedules by some of their numbers,
            other functions and objects by their names.

    Raises:
        RankError: as for `ranks.gather`.
        ValueError: the ranks have other models, optimizers or settings; the message says which.
    """
    if n_ranks() == 1:
        return
    model = agent.model
    tensors = _tensors_of(model) if isinstance(model, nn.Module) else {}
    facts = {
        "algorithm": type(algorithm).__name__,
        "optimizer": type(optimizer).__name__,
        "parameters that learn": [
            [(list(each.shape), each.requires_grad) for each in group["params"]]
            for group in optimizer.param_groups
        ],
        "options of the optimizer": [
            {name: _plain(each) for name, each in group.items() if name != "params"}
            for group in optimizer.param_groups
        ],
        **{f"model {name}": _form(each) for name, each in tensors.items()},
        **{name: _plain(each) for name, each in _fields(settings).items()},
    }
    check_same("the beginning of learning", facts)
    with explained("the model of rank 0"), torch.no_grad():
        for each in tensors.values():
            own = _stored(each.detach())
            whole = own.clone(memory_format=torch.contiguous_format)
            # As bytes: gloo knows few dtypes.
            torch.distributed.broadcast(whole.reshape(-1).view(torch.uint8), 0)
            own.copy_(whole)
    if rank() > 0:
        torch.manual_seed(_own_seed(torch.initial_seed()))
        for generator in _generators_of(agent):
            generator.manual_seed(_own_seed(generator.initial_seed()))


def _generators_of(agent: object) -> list[torch.Generator]:
    """Return the generators of an agent, and of those that it is made of (`agents`), once each."""
    members = getattr(agent, "agents", None)
    all_of_them = [agent, *(members.values() if isinstance(members, Mapping) else ())]
    found = [getattr(each, "generator", None) for each in all_of_them]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model, with the buffers that files of it do not have."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _stored(tensor: Tensor) -> Tensor:
    """Return a tensor without the repetitions of an expanded one, which can't be written."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _form(each: Tensor) -> str:
    return f"{each.dtype} {tuple(each.shape)}"


def _fields(settings: object) -> Mapping[str, object]:
    if is_dataclass(settings):
        return {each.name: getattr(settings, each.name) for each in fields(settings)}
    return getattr(settings, "__dict__", {})


def _plain(value: object) -> object:
    """Return a value as what ranks can compare: an object has another address on each."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if callable(value) and not isinstance(value, type):
        with suppress(Exception):  # any: it may be another function than a schedule
            return [float(value(progress)) for progress in _PROGRESS]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _own_seed(seed: int) -> int:
    """Return a seed of this rank, made of one that all have."""
    words = np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))  # torch takes 63 bits on any device
