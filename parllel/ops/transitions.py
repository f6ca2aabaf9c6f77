"""Random draws of transitions from a ring of samples: of NumPy or CuPy arrays."""

from __future__ import annotations

import copy

import numpy as np

from parllel.cuda import AnyArray
from parllel.kernels import transitions as kernel
from parllel.kernels.transitions import BETA, STATE_NUMBERS, RingTable, Transitions
from parllel.ops.launching import launch_items
from parllel.ops.sides import (
    address_of,
    as_argument,
    common_side,
    copy_from_host,
    copy_to_host,
    make_table,
    to_side,
)
from parllel.storages import Side

# Parts of a state's numbers.
_STEPS, _KEY, _SEED, _NUMBER = slice(0, 2), slice(2, 4), slice(2, 5), slice(4, 5)
_DRAWS = slice(2, 7)  # the seed, and what a draw has written behind it
_BETA = BETA // 4  # among floats


class SampledRing:
    """The leaves of a ring of samples, where kernels find them: a table made once, used often.

    Args:
        reward: float32 [n_rows * width], as all others C-contiguous, and all of one library. Row
            and column of a step are one axis here.
        terminated, truncated: bool [n_rows * width].
        valid: bool [n_rows * width], whether a step can be part of a transition; None where every
            step can.
        final_slot: int32 [n_rows * width]. Where an episode ended, the row of its final
            observation in their table; `NOT_GIVEN`, with which an episode that terminated can be
            sampled and one that was truncated can't; or `REFUSED`, with which neither can.
        breaks: int64 [count_integers(n_rows) * width], the bits of steps that `mark_breaks` writes;
            None where no windows and no goals are drawn, which need them.
        width: columns of a row, one for each environment.
        n_steps: steps of a transition.

    Attributes:
        side: "host" or "gpu", which of them draws.
        has_breaks: whether there are the bits of steps.
        argument: what kernels are given for the table.
    """

    def __init__(
        self,
        *,
        reward: AnyArray,
        terminated: AnyArray,
        truncated: AnyArray,
        valid: AnyArray | None,
        final_slot: AnyArray,
        breaks: AnyArray | None = None,
        width: int,
        n_steps: int,
    ) -> None:
        self.side = common_side("ring", (reward, terminated, truncated, final_slot))
        # Where all steps are valid, one flag is read again and again: its stride is 0.
        if valid is None:
            valid, valid_stride = to_side(np.ones(1, np.bool_), self.side), 0
        else:
            valid_stride = 1
        self.has_breaks = breaks is not None
        self._arrays = (reward, terminated, truncated, valid, final_slot, breaks)  # kept alive
        self.width = width
        table = RingTable(
            address_of(reward),
            address_of(terminated),
            address_of(truncated),
            address_of(valid),
            address_of(final_slot),
            address_of(breaks),
            valid_stride,
            len(reward) // width,
            width,
            n_steps,
        )
        self._table = make_table(table, self.side)
        self.argument = as_argument(self._table)


class DrawState:
    """What changes from draw to draw, in memory that kernels read: captured draws see it.

    Of a GPU it is memory of the device. A draw counts its number up there. All else is written by
    the methods below, with one small copy each in the caller's current stream.

    Args:
        side: "host" or "gpu", which of them draws.
        key: two integers from which all random numbers of the draws come.
        discount: the factor by which rewards are discounted for each step. It never changes.
        beta: the exponent of weights (`weigh_priorities`).

    Attributes:
        numbers: int64 [STATE_NUMBERS], the memory.
        argument: what kernels are given for the state.
        arguments: what kernels of transitions are given: the state and the discount.

    >>> state = DrawState("host", key=(1, 2), discount=0.5)
    >>> state.write_steps(first=3, stop=9)
    >>> state.read_number()
    0
    """

    def __init__(
        self, side: Side, *, key: tuple[int, int], discount: float, beta: float = 1.0
    ) -> None:
        numbers = np.zeros(STATE_NUMBERS, np.int64)
        numbers[_KEY] = key
        numbers.view(np.float32)[_BETA] = beta
        self.numbers = to_side(numbers, side)
        self.argument = as_argument(self.numbers)
        self.arguments = self.argument, np.float32(discount)

    def over(self, numbers: AnyArray) -> DrawState:
        """Return a state of the same discount over other memory: int64 [STATE_NUMBERS]."""
        other = copy.copy(self)
        other.numbers = numbers
        other.argument = as_argument(numbers)
        other.arguments = other.argument, self.arguments[1]
        return other

    def write_steps(self, first: int, stop: int) -> None:
        """Say which steps are there: the number of the oldest, and of the one written next."""
        copy_from_host(np.array([first, stop], np.int64), out=self.numbers[_STEPS])

    def write_seed(self, key: tuple[int, int], number: int) -> None:
        """Set the key of the random numbers, and the number of the next minibatch."""
        numbers = np.array([*key, number, 0, 0], np.int64)  # of no draw
        copy_from_host(numbers, out=self.numbers[_DRAWS])

    def write_beta(self, beta: float) -> None:
        """Set the exponent of weights."""
        values = np.array([beta], np.float32)
        copy_from_host(values, out=self.numbers.view(np.float32)[_BETA : _BETA + 1])

    @property
    def seed(self) -> AnyArray:
        """The key and the number of the next minibatch, int64 [3], a part of the memory."""
        return self.numbers[_SEED]

    def read_number(self) -> int:
        """Return the number of the next minibatch. The host waits for that of a device."""
        return int(copy_to_host(self.numbers[_NUMBER])[0])


class DrawnTransitions:
    """Memory that transitions are drawn into, again and again.

    Args:
        identity: int64 [n], written with numbers that name a transition for ever.
        row: int64 [n], written with the place of the first step in the ring.
        next_row: int64 [n], written with the place of the next observation; a number -1 - s below
            0 stands for the final observation in slot s.
        n_step_return: float32 [n], written with the discounted sum of the rewards.
        n_step_discount: float32 [n], written with the discount of the next observation's value.
        terminated, truncated: bool [n], written with the flags of the last step.
        scratch: int64 [n], overwritten.
        weight: float32 [n], written by `weigh_priorities`; None where there are no weights.

    Attributes:
        n_items: number of transitions, n.
        scratch: as given. After a draw by priority it holds the transitions' priorities.
        argument, scratch_argument, weight_argument: what kernels are given for the arrays.
    """

    def __init__(
        self,
        *,
        identity: AnyArray,
        row: AnyArray,
        next_row: AnyArray,
        n_step_return: AnyArray,
        n_step_discount: AnyArray,
        terminated: AnyArray,
        truncated: AnyArray,
        scratch: AnyArray,
        weight: AnyArray | None = None,
    ) -> None:
        written = (identity, row, next_row, n_step_return, n_step_discount, terminated, truncated)
        self._arrays = (*written, weight)  # kept alive
        self.n_items = len(scratch)
        self.scratch = scratch
        table = Transitions(*map(address_of, written))
        self._table = make_table(table, common_side("transitions", (*written, scratch)))
        self.argument, self.scratch_argument = as_argument(self._table), as_argument(scratch)
        self.weight_argument = None if weight is None else as_argument(weight)


def draw_transitions(ring: SampledRing, state: DrawState, out: DrawnTransitions) -> int:
    """Draw transitions that can be sampled, each with the same probability.

    On a GPU it is one launch in the caller's current stream, and nothing waits for it.

    Args:
        ring: what to draw from.
        state: which of its steps are there, one at least, and the number of the minibatch, which
            is counted up.
        out: what is overwritten, on the same side.

    Returns:
        For how many transitions there was none that can be sampled; their return and discount
        are NaN. On a GPU 0: the host does not wait to know.
    """
    arguments = (ring.argument, *state.arguments, out.n_items, out.argument)
    if ring.side == "gpu":
        launch_items("draw_transitions", out.n_items, arguments)
        return 0
    return kernel.ON_CPU.compiled(*arguments, out.scratch)
