"""How values of environments become rows of arrays; not infos, nor how rows become actions.

Single environments return a value each; n of those are a column. A vector environment returns an
array [n, ...], or a tree of such arrays: that is a batch. Rows are where either is written to. In a
tree of rows, the members of a tuple are branches with the names "0", "1", ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parllel.arrays import Array, Jagged
from parllel.arrays.interop import is_tensor
from parllel.cages.values.jagged_spaces import is_jagged, part_of
from parllel.tree import ArrayDict, RowParts, TreePath, dict_map
from parllel.tree.fitting import (
    MisfitError,
    describe,
    fit,
    has_form,
    put_batch,
    put_column,
)
from parllel.tree.leaves import as_ndarray
from parllel.tree.row_parts import written_rows

if TYPE_CHECKING:
    import torch

Value: TypeAlias = "ArrayLike | Mapping[str, Value] | tuple[Value, ...]"
"""An action, an observation or a reward of an environment, or n of them."""

Rows: TypeAlias = "NDArray[Any] | ArrayDict"
"""A row for each environment: a NumPy array [n, ...], or an ArrayDict of such arrays."""

Output: TypeAlias = "Array | NDArray[Any] | torch.Tensor | Mapping[str, Output]"
"""Memory of the caller that results are written to: an array, or a tree of arrays."""

Info: TypeAlias = Mapping[str, Any]
"""The dictionary that an environment returns with an observation."""


def write_column(out: Rows, values: Sequence[Any]) -> None:
    """Write one value of each environment into the rows of an array or of a tree of arrays.

    >>> import numpy as np
    >>> rows = np.zeros((2, 3))
    >>> write_column(rows, [[1, 2, 3], np.ones(3)])
    >>> rows
    array([[1., 2., 3.],
           [1., 1., 1.]])

    Args:
        out: n rows, overwritten. A branch is filled from the same key of a mapping, or the member
            of a tuple whose number it bears; `RowParts` are filled from whole samples.
        values: n values of environments.

    Raises:
        MisfitError: a value has another shape than its row, is no number, lacks a branch, or would
            lose something. Some rows may be written already.
    """
    if not isinstance(out, ArrayDict):
        put_column(out, values)
        return
    if isinstance(out, RowParts):
        out.write(_whole_samples(out, values))
        return
    for name, branch in out.items():
        try:
            write_column(branch, _members(out, values, name))
        except MisfitError as error:
            error.path = (name, *error.path)
            raise


def stack_column(values: Sequence[Any], space: object = None) -> Any:
    """Return one value of each environment as an array [n, ...], or as a tree of such.

    >>> from parllel.cages import PointCloud
    >>> stack_column([np.ones((2, 3)), np.ones((4, 3))], PointCloud(8)).counts
    array([2, 4])

    Args:
        values: n values.
        space: their space, if it is known: leaves whose values have different lengths are `Jagged`.
    """
    first = values[0]
    if isinstance(first, Mapping | tuple):
        names = first if isinstance(first, Mapping) else map(str, range(len(first)))
        columns = {name: [_member(value, name) for value in values] for name in names}
        return ArrayDict(
            {name: stack_column(column, part_of(space, name)) for name, column in columns.items()}
        )
    if is_jagged(space):
        return Jagged.of(values)
    return np.stack([np.asarray(value) for value in values])


def as_tree(value: object) -> Any:
    """Return a value with its mappings and tuples as ArrayDicts; a plain value as it is.

    Of an Array that stores a row in several parts, it returns these parts.
    """
    if isinstance(value, Array):
        return written_rows(value, checked=True)
    if isinstance(value, RowParts):
        return value
    if isinstance(value, tuple):
        value = {str(number): member for number, member in enumerate(value)}
    if isinstance(value, Mapping):
        return ArrayDict({name: as_tree(member) for name, member in value.items()})
    return value


def as_output(leaf: Output) -> NDArray[Any]:
    """Return a NumPy array over the memory of a leaf that a caller wants to be written.

    Raises:
        TypeError: NumPy can't write it in place.
        ValueError: it is read-only, as a view made with integer arrays is.
    """
    is_shared = isinstance(leaf, Array | np.ndarray) or (is_tensor(leaf) and _is_shared(leaf))
    if not is_shared or (isinstance(leaf, Array) and not leaf.is_on_host):
        raise TypeError(
            f"out: got a {type(leaf).__name__}, expected an Array in host memory, a NumPy array, or"
            " a CPU tensor of a dtype that NumPy has"
        )
    rows: NDArray[Any] = as_ndarray(leaf)
    if not rows.flags.writeable:
        raise ValueError(
            f"out: got a read-only array of shape {rows.shape}, expected one that is written in"
            " place; a view made with integer arrays or a mask is not"
        )
    return rows


def copy_tree(value: Value) -> Any:
    """Return a value as `as_tree` does, but with copies: environments may reuse their arrays."""
    if isinstance(value, np.ndarray | float):  # most observations and rewards
        return _copy(value)
    return dict_map(_copy, as_tree(value))


def _is_shared(tensor: torch.Tensor) -> bool:
    """Whether NumPy uses the tensor's own memory, and not a copy of another dtype."""
    values = as_ndarray(tensor)
    return bool(values.ctypes.data == tensor.data_ptr())


def _copy(value: object) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def check_fits(rows: Rows, value: Value, number: int) -> None:
    """Compare a value with the rows that it would be written to.

    Args:
        rows: n rows.
        value: that of one environment.
        number: its environment's number, for the error.

    Raises:
        MisfitError: it could not be written.
    """
    try:
        if isinstance(rows, RowParts):
            _whole_samples(rows, [value])
        elif isinstance(rows, ArrayDict):
            for name, branch in rows.items():
                (member,) = _members(rows, [value], name)
                try:
                    check_fits(branch, member, number)
                except MisfitError as error:
                    error.path = (name, *error.path)
                    raise
        elif not has_form(value, rows.shape[1:], rows.dtype):
            fit(value, rows.shape[1:], rows.dtype)
    except MisfitError as error:
        error.environment = number
        raise


def _members(out: ArrayDict, values: Sequence[Any], name: str) -> list[Any]:
    """Return the same member of n values."""
    try:
        return [_member(value, name) for value in values]
    except (LookupError, TypeError, ValueError):
        pass
    for row, value in enumerate(values):
        try:
            _member(value, name)
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(value, Mapping):
                got = f"the keys {sorted(map(str, value))}"
            else:
                got = f"{len(value)} members" if isinstance(value, tuple) else describe(value)
            expected = f"a member {name!r}, one of {list(out)}"
            raise MisfitError(got, expected, environment=row) from error
    raise AssertionError("one of the values lacks the member")


def _whole_samples(out: RowParts, values: Any) -> Any:
    """Return samples for rows in parts, as arrays of the form that their writer takes."""
    form = out.writer.sample_form
    if form is None:
        return values
    if isinstance(values, np.ndarray) and has_form(values, (len(values), *form[0]), form[1]):
        return values
    shape, dtype = form
    samples, longest = [], out.writer.longest
    for row, value in enumerate(values):
        found = getattr(value, "shape", ())
        is_counted = found[1:] == shape[1:] and len(found) == len(shape)  # by the writer
        expected = found if is_counted else shape
        if not has_form(value, expected, dtype):
            value = fit(value, expected, dtype, environment=row)
        if longest is not None and len(value) > longest:
            raise MisfitError(
                f"{len(value)} rows",
                f"at most {longest}, the capacity of this leaf",
                environment=row,
                way_out="give a larger one where the example is made, as capacity=",
            )
        samples.append(value)
    return samples


def _member(value: Mapping[str, Any] | tuple[Any, ...], name: str) -> Any:
    return value[int(name)] if isinstance(value, tuple) else value[name]


class Batch(NamedTuple):
    """The results of one step of a vector environment.

    >>> import numpy as np
    >>> flag = np.zeros(2, np.bool_)
    >>> batch = Batch(np.ones((2, 3)), np.ones(2), flag, flag, {"lives": np.array([3, 2])}, {})
    >>> from parllel.cages.values.infos import info_of
    >>> info_of(1, batch.info, batch.single)
    {'lives': np.int64(2)}

    Args:
        observation: an array [n, ...], or an ArrayDict of such arrays.
        reward: [n].
        terminated, truncated: bool [n].
        info: one dictionary of arrays [n, ...] for all environments. Beside an entry `name`, a mask
            `_name`, bool [n], tells which environments have it; without a mask, all have.
        single: dictionaries of single environments, by their numbers. They replace the part
            of `info` that these environments have.
    """

    observation: Rows
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: Info
    single: Mapping[int, Info]


def check_counts(batch: Any, n_envs: int, path: TreePath = ()) -> None:
    """Compare the number of rows of a batch with that of the environments.

    Raises:
        MisfitError: a leaf has other rows, or none.
    """
    if isinstance(batch, Mapping):
        for name, branch in batch.items():
            check_counts(branch, n_envs, (*path, str(name)))
        return
    shape = np.shape(batch)
    if shape[:1] != (n_envs,):
        raise MisfitError(f"shape {shape}", f"{n_envs} rows, one for each environment", path=path)


def check_numbers(reward: Any, terminated: Any, truncated: Any, n_envs: int) -> None:
    """Compare the shapes of rewards and flags with the number of environments.

    Nothing is broadcast: one number for all environments is no batch.

    Raises:
        MisfitError: one of them is not of shape [n].
    """
    given = {"reward": reward, "terminated": terminated, "truncated": truncated}
    for name, values in given.items():
        if np.shape(values) != (n_envs,):
            raise MisfitError(
                f"shape {np.shape(values)}",
                f"shape {(n_envs,)}: one number for each environment",
                path=(name,),
            )


def write_batch(
    out: Rows, batch: Rows, index: NDArray[np.bool_] | int | EllipsisType = ...
) -> None:
    """Write an array [n, ...], or a tree of such arrays, into rows of the same form.

    Args:
        out: rows, overwritten. Branches of the batch that it has not are dropped. `RowParts`
            are filled from whole samples, all rows at once.
        batch: as many rows as `index` picks.
        index: bool [n], the rows to write, or the number of one row; all rows by default.

    Raises:
        MisfitError: as for `write_column`.
    """
    if isinstance(out, np.ndarray):
        put_batch(out, batch, index)
    elif isinstance(out, RowParts):
        out.write(_whole_samples(out, np.asarray(batch)))
    else:
        for name, branch in out.items():
            try:
                write_batch(branch, batch[name], index)
            except MisfitError as error:
                error.path = (name, *error.path)
                raise
