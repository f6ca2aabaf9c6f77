"""NormalizeObservations: the part of a model that shifts and scales what it observes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parllel.arrays import Array, Jagged
from parllel.storages import storage_for
from parllel.transforms import Moments, RunningMoments, over_ranks
from parllel.tree import ArrayDict, TreePath, leaves_of, path_text
from parllel.tree.leaves import as_ndarray, as_tensor
from parllel.tree.not_finite import find_not_finite


class NormalizeObservations(nn.Module):
    """Count observations in standard deviations from their mean; the first layer of a model.

    normalized = clip((observation - mean) / sqrt(variance + epsilon), -clip, clip)

    Each element of an observation has a mean and a variance of its own, over all observations
    that the agent has acted on, and the final ones of episodes. `BasicSampler` tells an agent
    of them (`observe`), rows that are no transitions left out, and replay buffers keep what
    environments gave. What was observed in a batch counts from the next one on (`begin_batch`):
    acting and learning see the same numbers, and the first batch is not normalized. Evaluations
    change nothing, and so does a saved agent that acts in one.

    Of several ranks (`parllel.ranks`), what all have observed counts: they wait for each other once
    in each batch.

    All of it is in buffers, which are a part of the model's state: in checkpoints, in files of
    models, in copies such as a target network. Means and variances are merged in double precision.
    The host waits once for each normalized leaf of a batch in memory of a GPU; `forward` waits
    for nothing, and can be captured in a CUDA graph, whose replays read what is in force then.

    Of a tree, all leaves of float32 are normalized, or those that are named. Others (frames of
    uint8, which models scale themselves, masks, integers) are passed on as they are.

    Args:
        example_obs: rows [B, ...] of observations: their shapes, dtypes and device count.
        leaves: names of the leaves at the top of a tree that are normalized, with all below them;
            all of float32 by default.
        clip: bound of the magnitude, more than 0; math.inf for none.
        epsilon: float, more than 0, added to the variance.

    Attributes:
        is_frozen: whether batches change nothing. It may be set, and is no part of the state.

    Raises:
        TypeError: no leaf is normalized, or one that is named has another dtype than float32.
        ValueError: there is no leaf of a name, or a number is out of range.

    Source: VecNormalize of Stable-Baselines3, whose epsilon and clip these are; the merge: see
        `Moments`.

    Example:
        >>> rows = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
        >>> normalize = NormalizeObservations(rows)
        >>> model = nn.Sequential(normalize, nn.Linear(2, 1))  # an agent's
        >>> normalize.observe(rows.numpy())  # a sampler calls these two
        >>> normalize.begin_batch()
        >>> normalize(rows)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    is_frozen = False

    def __init__(
        self,
        example_obs: object,
        *,
        leaves: Sequence[str] | None = None,
        clip: float = 10.0,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__()
        for name, number in (("clip", clip), ("epsilon", epsilon)):
            if not number > 0:
                raise ValueError(f"{name}: got {number}, expected more than 0")
        self._clip, self._epsilon = clip, epsilon
        self._names = {path: _buffer_name(path) for path, _ in _chosen(example_obs, leaves)}
        if len(set(self._names.values())) < len(self._names):
            raise ValueError(
                f"leaves: got {sorted(map(path_text, self._names))}, expected names that differ in"
                " more than dots and slashes; normalize one of them (leaves=), or rename it"
            )
        for path, leaf in _chosen(example_obs, leaves):
            name, rows = self._names[path], as_tensor(leaf)
            zeros = rows.new_zeros(rows.shape[1:])
            self.register_buffer(f"{name}mean", zeros)
            self.register_buffer(f"{name}scale", torch.ones_like(zeros))
            self.register_buffer(f"{name}seen_mean", zeros.double())
            self.register_buffer(f"{name}seen_m2", zeros.double())
        self.register_buffer("seen_count", zeros.new_zeros((), dtype=torch.float64))
        self._in_batch: dict[TreePath, RunningMoments] = {}  # scratch

    def forward(self, observation: Any) -> Any:  # Any: a tensor, or a tree of tensors
        """Return rows [..., F...] of observations with their leaves normalized.

        Raises:
            ValueError: a leaf has another shape than the example's, or is missing.
        """
        if () in self._names:
            return self._normalized((), observation)
        met: list[TreePath] = []
        result = self._tree(observation, (), met)
        if len(met) < len(self._names):
            missing = sorted(path_text(path) for path in self._names.keys() - set(met))
            raise ValueError(f"observation: leaves {missing} are missing, which are normalized")
        return result

    def moments(self, *path: str) -> Moments:
        """Return all that was seen of a leaf, float64 [F...] over the buffers' memory.

        Args:
            path: names of the leaf in a tree; none for an observation that is one leaf.
        """
        name = self._names[path]
        mean, m2 = self.get_buffer(f"{name}seen_mean"), self.get_buffer(f"{name}seen_m2")
        return Moments(self.get_buffer("seen_count"), mean, m2)

    @torch.no_grad()
    def observe(self, observation: Any, *, valid: Any = None, final_obs: Any = None) -> None:
        """Take rows into what was seen; they count from the next `begin_batch` on.

        Args:
            observation: rows [..., F...], all leading dimensions of which count observations:
                Arrays or arrays of NumPy, or a tree of them, float32 where they are normalized.
            valid: bool [...], the rows that count; all by default. It may have a dimension of
                agents where these are a leading dimension of the rows.
            final_obs: more rows [k, F...]; none by default.

        Raises:
            TypeError: the module's buffers were converted, as by `model.half()`.
            ValueError: an observation is NaN or infinite, or so large that its square is; a leaf
                has another dtype or shape; or rows differ in which agents are alive, and features
                have an axis of agents. What was seen is what it was.
        """
        if self.is_frozen:
            return
        self._check_buffers()
        found = {}
        for path in self._names:
            rows = [_leaf_of(observation, path)]
            if final_obs is not None:
                rows.append(_leaf_of(final_obs, path))
            found[path] = self._moments_of(path, rows, valid)
            if not np.isfinite([found[path].mean, found[path].m2]).all():
                raise ValueError(_describe(path, observation, valid))
        found = over_ranks("moments of observations", found)
        count = self.get_buffer("seen_count")
        merged = {path: self.moments(*path).merged(_on(found[path], count)) for path in found}
        self._keep(merged)

    @torch.no_grad()
    def begin_batch(self) -> None:
        """Have all that was seen count from here on. Nothing waits for a device."""
        if self.is_frozen:
            return
        self._check_buffers()
        for path, name in self._names.items():
            moments = self.moments(*path)
            scale = (moments.variance + self._epsilon).rsqrt()
            self.get_buffer(f"{name}mean").copy_(moments.mean)
            self.get_buffer(f"{name}scale").copy_(torch.where(moments.count > 0, scale, 1.0))

    @torch.no_grad()
    def merge(self, *others: NormalizeObservations) -> None:
        """Add what others have seen, as in other runs; it counts from the next `begin_batch` on.

        Raises:
            ValueError: another one normalizes other leaves.
        """
        for other in others:
            if other._names != self._names:
                raise ValueError(
                    f"merge: got leaves {list(map(path_text, other._names))}, expected"
                    f" {list(map(path_text, self._names))}; merge those of one kind of environment"
                )
            count = self.get_buffer("seen_count")
            self._keep(
                {
                    path: self.moments(*path).merged(_on(other.moments(*path), count))
                    for path in self._names
                }
            )

    def _keep(self, merged: Mapping[TreePath, Moments]) -> None:
        for path, name in self._names.items():
            self.get_buffer(f"{name}seen_mean").copy_(merged[path].mean)
            self.get_buffer(f"{name}seen_m2").copy_(merged[path].m2)
            count = merged[path].count
        self.get_buffer("seen_count").copy_(count)

    def _moments_of(self, path: TreePath, parts: Sequence[Array], valid: Any) -> Moments:
        """Return the moments of rows, of which the first part may have some that do not count."""
        place = storage_for(parts[0].side)
        moments = self._in_batch.get(path)
        if moments is None or moments.storage != place:
            shape = tuple(self.get_buffer(f"{self._names[path]}mean").shape)
            like = Array((1,), np.float32, feature_shape=shape, storage=place)
            moments = self._in_batch[path] = RunningMoments(like)
        n_lead = parts[0].ndim - len(moments.mean.shape)
        if (
            isinstance(valid, Mapping) or getattr(valid, "ndim", 0) > n_lead
        ):  # it has a dimension of agents
            raise ValueError(
                f"{path_text(('observation', *path))}: got rows in which some agents are not alive,"
                f" expected all alive, or moments that agents share: those of"
                f" {tuple(moments.mean.shape)} would count the rows of the dead. Normalize one"
                " agent's features (example_obs), or scale observations in the environment"
            )
        moments.reset()
        for rows in parts:
            moments.update(rows, valid=valid)
            valid = None
        return Moments.of(moments)

    def _tree(self, observation: Any, path: TreePath, met: list[TreePath]) -> Any:
        if path in self._names:
            met.append(path)
            return self._normalized(path, observation)
        if not isinstance(observation, Mapping):
            return observation
        rows = {name: self._tree(each, (*path, name), met) for name, each in observation.items()}
        return ArrayDict(rows)

    def _normalized(self, path: TreePath, rows: Tensor) -> Tensor:
        name, buffers = self._names[path], self._buffers
        mean: Any = buffers[f"{name}mean"]
        if rows.shape[rows.ndim - mean.ndim :] != mean.shape:
            raise ValueError(
                f"{path_text(('observation', *path))}: got {tuple(rows.shape)}, expected"
                f" {tuple(mean.shape)} behind the batch's dimensions, as the example has it"
            )
        scaled: Tensor = (rows - mean) * buffers[f"{name}scale"]
        return scaled if self._clip == math.inf else scaled.clamp(-self._clip, self._clip)

    def _check_buffers(self) -> None:
        for name, buffer in self._buffers.items():
            expected = torch.float64 if "seen_" in name else torch.float32
            if buffer is not None and buffer.dtype != expected:
                raise TypeError(
                    f"NormalizeObservations: its buffer {name} is {buffer.dtype}, expected"
                    f" {expected}; convert the layers behind it alone, or use autocast"
                )

    def __getstate__(self) -> dict[str, Any]:  # Any: as the attributes
        """Return the attributes for a copy, which needs no scratch memory."""
        return {**self.__dict__, "_in_batch": {}}

    def extra_repr(self) -> str:
        """Return the leaves that are normalized, for `print(model)`."""
        return ", ".join(path_text(path) for path in self._names if path)


def _chosen(example_obs: Any, names: Sequence[str] | None) -> list[tuple[TreePath, Any]]:
    """Return the leaves of an example that are normalized, with their paths."""
    tree = ArrayDict(example_obs) if isinstance(example_obs, Mapping) else example_obs
    leaves = leaves_of(tree)
    if names is not None:
        have = tree.keys() if isinstance(tree, ArrayDict) else ()
        if isinstance(names, str) or (missing := [name for name in names if name not in have]):
            found = repr(names) if isinstance(names, str) else str(missing)
            raise ValueError(
                f"leaves: got {found}, expected a list of names of the observation: {list(have)}"
            )
        leaves = [(path, leaf) for path, leaf in leaves if path[0] in names]
    rows = {path: as_tensor(leaf) for path, leaf in leaves}
    dtypes = {path: each.dtype for path, each in rows.items()}
    jagged = [path for path, each in rows.items() if isinstance(each, Jagged)]
    if jagged and (names is not None or len(jagged) == len(rows)):
        raise TypeError(
            f"{path_text(('observation', *jagged[0]))}: its elements have different lengths,"
            " expected rows of one shape to be normalized; leave it out (leaves=), or scale it in"
            " the model"
        )
    leaves = [(path, leaf) for path, leaf in leaves if path not in jagged]
    dtypes = {path: dtype for path, dtype in dtypes.items() if path not in jagged}
    for path, dtype in dtypes.items():
        if dtype != torch.float32 and (names is not None or dtype.is_floating_point):
            raise TypeError(
                f"{path_text(('observation', *path))}: {dtype}, expected torch.float32 to be"
                " normalized; leave it out (leaves=), or have the environment give float32"
            )
    chosen = [(path, leaf) for path, leaf in leaves if dtypes[path] == torch.float32]
    if not chosen:
        kinds = {path_text(("observation", *path)): str(dtype) for path, dtype in dtypes.items()}
        raise TypeError(
            f"observation: got {kinds}, expected a leaf of torch.float32: models scale frames of"
            " uint8 themselves, and integers have no mean"
        )
    return chosen


def _buffer_name(path: TreePath) -> str:
    """Return how the names of a leaf's buffers begin; torch allows no dot in them."""
    return "/".join(path).replace(".", "_") + ":" if path else ""


def _leaf_of(observation: Any, path: TreePath) -> Array:
    """Return a leaf of rows as an Array."""
    for name in path:
        if not isinstance(observation, Mapping) or name not in observation:
            raise ValueError(
                f"observation: there is no leaf {path_text(path)}, which is normalized; make"
                " NormalizeObservations with an observation of these environments"
            )
        observation = observation[name]
    if isinstance(observation, Mapping):
        raise ValueError(
            f"{path_text(('observation', *path))}: got a tree of {list(observation)}, expected one"
            " leaf; NormalizeObservations stands in front of the whole model, where observations"
            " are as environments give them"
        )
    return (
        observation if isinstance(observation, Array) else Array.from_numpy(as_ndarray(observation))
    )


def _on(moments: Moments, like: Tensor) -> Moments:
    """Return moments as tensors of double precision, on the device of another one."""
    return Moments(
        *(torch.as_tensor(each, dtype=torch.float64, device=like.device) for each in moments)
    )


def _describe(path: TreePath, observation: Any, valid: Any) -> str:
    """Return what is wrong with a batch whose moments are not finite."""
    leaf = _leaf_of(observation, path)
    own: dict[str, Any] = {"observation": ArrayDict({"/".join(path): leaf}) if path else leaf}
    found = None
    if leaf.ndim >= 2:
        found = find_not_finite(ArrayDict({**own, **({} if valid is None else {"valid": valid})}))
    text = path_text(("observation", *path))
    return (
        f"batch: {found or f'{text} is NaN, infinite or too large to be squared'}; its moments"
        " would be NaN. Find out why the environment gave it, or replace it before (a wrapper)"
    )
