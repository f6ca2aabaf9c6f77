"""RunningMoments: mean and variance of all rows that it was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, Leaf
from parllel.cuda import AnyArray
from parllel.kernels.array_checks import check_dtype, check_shape
from parllel.kernels.moment_layout import (
    M2,
    MEAN,
    N_KEPT,
    N_PLANES,
    OFFSET,
    SCALE,
    SHIFT,
    VARIANCE,
    count_copies,
    lay_out,
)
from parllel.ops.moments import update_moments
from parllel.ops.normalize import normalize
from parllel.ops.row_copy import RowCopy
from parllel.ops.sides import copy_from_host, copy_to_host, fill_rows
from parllel.storages import Side, storage_for
from parllel.transforms.transform import contiguous_elements, elements, output_like
from parllel.tree.valid_rows import as_mask

_SAVED = {"shift": SHIFT, "offset": OFFSET, "m2": M2}


class RunningMoments:
    """Mean and variance of each feature over all rows seen, in the rows' own kind of memory.

    Rows of k samples are merged into the moments of n earlier ones:

    d = mean_new - mean_old
    mean = mean_old + d * k / (n + k)
    M2 = M2_old + M2_new + d**2 * n * k / (n + k),  variance = M2 / (n + k)

    Means are kept as offsets from the first row, which leaves room for a variance that is small
    beside the mean. A NaN or an infinity makes NaN of its feature's moments, until `reset`.

    In device and managed memory an update is two launches (three for more than 8,000 rows), and
    `normalize` is one, in the caller's current stream, which should be the same one each time.
    Nothing waits for them, and only rows of a new shape make them allocate. `normalize`, updates
    and resets can be captured in a CUDA graph: rows are counted on the device, so each replay
    merges its rows into all that were seen before it.

    >>> rows = Array((2, 2), np.float32, feature_shape=(3,))
    >>> rows[0] = 2
    >>> moments = RunningMoments(rows)
    >>> moments.update(rows)
    >>> moments.count, moments.mean.to_ndarray().tolist()
    (4, [1.0, 1.0, 1.0])
    >>> moments.normalize(rows)[0, 0].to_ndarray().tolist()
    [1.0, 1.0, 1.0]

    Args:
        like: float32 [..., F...], an Array like those that will be given; its features and its
            kind of memory count.
        epsilon: float, 0 or more, added to the standard deviation that `normalize` divides by.
        feature_shape: other features than those of `like`: trailing dimensions, each element of
            which has a mean of its own; `()` for one mean of all numbers.

    Raises:
        ValueError: `like` is not float32, or epsilon is negative.

    Source: Chan, Golub, LeVeque 1979, STAN-CS-79-773, eq. 2.1.
    Error: that of `parllel.kernels.moments.update_moments` for one update; for t updates at most
        4 * t**1.5 times as much (`test_running_moments_are_those_of_all_rows_together`).
    """

    def __init__(
        self,
        like: Array,
        *,
        epsilon: float = 1e-8,
        feature_shape: Sequence[int] | None = None,
    ) -> None:
        check_dtype("like", like, np.float32)
        if not epsilon >= 0:
            raise ValueError(f"epsilon: got {epsilon}, expected 0 or more")
        self._epsilon = epsilon
        self._count: int | None = 0  # None: graphs count, on the device alone
        self._begins_anew = True  # whatever is kept, and counted in memory
        self._features = tuple(like.feature_shape if feature_shape is None else feature_shape)
        self._n_features = math.prod(self._features)
        self._kept = like.new_array(
            batch_shape=(N_KEPT, count_copies(self._n_features)),
            feature_shape=self._features,
            padding=0,
            full_size=N_KEPT,
        )
        shape = (max(1, self._n_features),)
        self._counts = like.new_array(
            batch_shape=shape, dtype=np.int64, feature_shape=(), padding=0, full_size=shape[0]
        )
        self._scratch: Array | None = None
        self._normalized: Array | None = None

    @property
    def count(self) -> int:
        """Rows seen. Once an update was captured, the host reads it on the device, and waits."""
        if self._count is None:
            return int(copy_to_host(elements(self._counts))[0])
        return self._count

    @property
    def is_empty(self) -> bool:
        """Whether no row was seen, without a wait; False once an update or reset was captured."""
        return self._count == 0

    @property
    def mean(self) -> Array:
        """Mean of each feature, float32 [F...], 0 before the first row; updates overwrite it."""
        return self._kept[MEAN, 0]

    @property
    def variance(self) -> Array:
        """Mean squared deviation of each feature, float32 [F...]; updates overwrite it."""
        return self._kept[VARIANCE, 0]

    @property
    def storage(self) -> str:
        """Kind of the memory that the moments are in."""
        return self._kept.storage

    @property
    def _side(self) -> Side:
        return self._kept.side

    def reset(self) -> None:
        """Forget all rows: the next update begins anew.

        No byte moves, unless it is captured in a CUDA graph, or an update was: then it is a write
        in the caller's current stream.

        Raises:
            RuntimeError: it is captured, and no update was called since the last reset, or at all.
        """
        if self._begins_anew and self._side == "gpu":
            cuda.refuse_capture("a reset of moments that were not updated since the last one")
        if self._is_capturing() or self._count is None:
            fill_rows((), 0, out=elements(self._counts))
            self._count = None
        else:
            self._begins_anew, self._count = True, 0

    def update(self, rows: Array, *, valid: Leaf | None = None) -> None:
        """Merge rows into the moments.

        Args:
            rows: float32 [..., F...]: all leading dimensions count samples. Copied first where it
                is not contiguous.
            valid: bool [...], the rows that count, as the branch `valid` of a batch: some or all
                of the leading dimensions of `rows`. The host waits for a mask in memory of a GPU.
                All rows count if left out.

        Raises:
            TypeError: `valid` is not of dtype bool.
            RuntimeError: it is captured in a CUDA graph, and is the first one of all, or since a
                `reset` outside of it: each replay would begin anew. Update once before.
            ValueError: the rows have another dtype or other features, or one of rows and moments
                lives on the host and the other on the device, or `valid` has another shape.
        """
        self._check("rows", rows)
        if self._begins_anew and self._side == "gpu":
            cuda.refuse_capture("the first update of moments, or since a reset,")
        lead = rows.shape[: rows.ndim - len(self._features)]
        n_rows, values = math.prod(lead), None
        if valid is not None and not (mask := as_mask("valid", valid)).all():
            values = self._pick(rows, np.flatnonzero(_spread(mask, lead)), n_rows)
            n_rows = len(values)
        if n_rows and self._n_features:
            n_scratch = lay_out(n_rows, self._n_features).n_scratch
            if self._scratch is None or self._scratch.shape[1] < n_scratch:
                shape = (N_PLANES, n_scratch)
                self._scratch = Array(shape, np.float32, storage=storage_for(self._side))
            if values is None:
                values = contiguous_elements(rows).reshape(n_rows, self._n_features)
            update_moments(
                values,
                begins_anew=self._begins_anew,
                epsilon=self._epsilon,
                out_kept=elements(self._kept).reshape(N_KEPT, -1, self._n_features),
                out_counts=elements(self._counts),
                out_scratch=elements(self._scratch),
            )
            self._begins_anew = False
        if self._is_capturing():
            self._count = None
        elif self._count is not None:
            self._count += n_rows

    def _is_capturing(self) -> bool:
        return self._side == "gpu" and cuda.is_capturing()

    def _pick(self, rows: Array, numbers: NDArray[np.int64], n_rows: int) -> AnyArray:
        """Return some rows as [len(numbers), F], in memory of their own."""
        source = contiguous_elements(rows).reshape(n_rows, self._n_features)
        shape, place = (len(numbers), self._n_features), storage_for(self._side)
        picked = elements(Array(shape, np.float32, storage=place))
        if picked.size:
            RowCopy([picked], [source]).run(range(len(numbers)), numbers)
        return picked

    def normalize(self, rows: Array, *, out: Array | None = None, clip: float = math.inf) -> Array:
        """Return (rows - mean) / (standard deviation + epsilon), in [-clip, clip].

        A feature that never differed becomes 0 with an epsilon of 0.

        Args:
            rows: float32 [..., F...]. Copied first where it is not contiguous.
            out: float32 of the same shape, contiguous, overwritten and returned; must not overlap
                the rows. Left out, it is an Array of the moments' own, which the next call
                without `out` overwrites.
            clip: bound of the magnitude, more than 0.

        Raises:
            RuntimeError: no row was seen yet.
            ValueError: an Array has another dtype or other features, or does not live where the
                moments do, or `out` does not fit.
            IndexError: `out` is a view made with integer arrays or a mask.
        """
        self._check("rows", rows)
        if not clip > 0:
            raise ValueError(f"clip: got {clip}, expected more than 0")
        if rows.size and self.is_empty:
            raise RuntimeError("normalize: no row was seen yet; call update first")
        if out is None:
            out = self._normalized = output_like(rows, self._normalized)
        else:
            self._check("out", out)
            if out.ndim:
                out[:0]  # a view made with integer arrays raises: a copy of it would be written
        normalize(
            contiguous_elements(rows),
            elements(self._kept),
            low=-clip,
            high=clip,
            out_values=elements(out),
        )
        return out

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return what restores these moments, on the host: `count`, `shift`, `offset` and `m2`.

        mean = shift + offset, variance = m2 / count. The host waits for the current stream if the
        moments live on the device.
        """
        kept = copy_to_host(elements(self._kept))[:, 0]
        saved = {name: kept[row].copy() for name, row in _SAVED.items()}
        return {"count": np.array(self.count), **saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore moments that `state_dict` returned, of any kind of memory, bit for bit.

        Args:
            state: mapping with `count`, and float32 [F...] `shift`, `offset` and `m2`.

        Raises:
            KeyError: an entry is missing.
            ValueError: an entry has another shape.
        """
        count = int(state["count"])
        kept = np.zeros((N_KEPT, *self._features), np.float32)
        for name, row in _SAVED.items():
            values = np.asarray(state[name], np.float32)
            check_shape(name, values, self._features, "the shape of a row")
            kept[row] = values
        with np.errstate(divide="ignore", invalid="ignore"):
            kept[MEAN] = kept[SHIFT] + kept[OFFSET]
            kept[VARIANCE] = kept[M2] * np.float32(1 / max(count, 1))
            deviation = np.sqrt(kept[VARIANCE]) + np.float32(self._epsilon)
            kept[SCALE] = np.where(deviation == 0, np.float32(0), 1 / deviation)
        copies = np.broadcast_to(kept[:, None], self._kept.shape)
        copy_from_host(np.ascontiguousarray(copies), out=elements(self._kept))
        copy_from_host(np.full(self._counts.shape, count), out=elements(self._counts))
        self._count, self._begins_anew = count, False

    def _check(self, name: str, array: Array) -> None:
        check_dtype(name, array, np.float32)
        if array.shape[max(0, array.ndim - len(self._features)) :] != self._features:
            raise ValueError(
                f"{name}: shape {array.shape}, expected features of shape {self._features} at its"
                " end, for which these moments were made"
            )
        if array.side != self._side:
            where = {"host": "host memory", "gpu": "device memory"}[self._side]
            raise ValueError(
                f"{name}: {array.storage} memory, and these moments work in {where};"
                " make RunningMoments for an Array like this one"
            )


def _spread(mask: NDArray[np.bool_], lead: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask of all leading dimensions of rows, of one of the first of these."""
    if mask.shape != lead[: mask.ndim]:
        raise ValueError(f"valid: shape {mask.shape}, expected {lead}, of which the last may lack")
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(lead) - mask.ndim)), lead)
