"""EstimateAdvantage and NormalizeAdvantage: the weights of a policy gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.arrays.readable import Place
from parllel.ops.advantage import prepare_advantage
from parllel.ops.sides import contiguous, fill_rows
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.transform import (
    elements,
    output_like,
    refuse_moving,
    side_of_leaves,
)
from parllel.tree import ArrayDict
from parllel.tree.valid_rows import as_mask, valid_rows


class EstimateAdvantage:
    """Add `advantage` and `return_` to a batch: generalized advantage estimates, float32 [T, B].

    An episode that was truncated at step t is bootstrapped with `final_value[t]`, the value of
    its own last observation; one that goes on after the batch with row T of `agent_info.value`.

    Where the batch has a branch `valid`, rows that are no transitions get 0 in both. An episode
    that such a row cuts off is bootstrapped with `agent_info.value` of that row.

    In device and managed memory it is one launch in the caller's current stream, or three of 256
    steps or more in few environments; nothing waits for them. A branch `valid` there is read once
    for each batch, for which the host waits. Without it, a call after the first one can be captured
    in a CUDA graph, of a batch whose window stays where it is (`full_size` of T).

    >>> import numpy as np
    >>> batch = ArrayDict(
    ...     {
    ...         "reward": Array((3, 1), np.float32),
    ...         "terminated": Array((3, 1), bool),
    ...         "truncated": Array((3, 1), bool),
    ...         "final_value": Array((3, 1), np.float32),
    ...         "agent_info": {"value": Array((3, 1), np.float32, padding=1)},
    ...     }
    ... )
    >>> batch["reward"][...] = 1
    >>> batch["terminated"][1] = True  # the first episode ends with the second step
    >>> batch = EstimateAdvantage(discount=0.5, gae_lambda=1.0)(batch)
    >>> batch["return_"].to_ndarray()[:, 0].tolist()
    [1.5, 1.0, 1.0]

    Args:
        discount: float in [0, 1], of rewards for each step.
        gae_lambda: lambda of the paper, in [0, 1]: 0 takes one reward and a value, 1 all rewards.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """

    def __init__(self, *, discount: float = 0.99, gae_lambda: float = 0.95) -> None:
        for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= number <= 1:
                raise ValueError(f"{name}: got {number}, expected a number in [0, 1]")
        self._discount = discount
        self._gae_lambda = gae_lambda
        self._advantage: Array | None = None
        self._return: Array | None = None
        self._prepared: _Prepared | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with `advantage` and `return_`, overwritten by the next call.

        Args:
            batch: a tree with float32 [T, B] `reward`, `final_value` and `agent_info.value`, which
                has a row T of padding; and bool [T, B] `terminated` and `truncated`. The host
                works on all of them, or a GPU does. `valid`, bool [T, B], may be there or not.
        """
        leaves = (
            batch["reward"],
            batch["agent_info"]["value"],
            batch["terminated"],
            batch["truncated"],
            batch["final_value"],
        )
        refuse_moving("reward", leaves[0])
        valid, prepared = valid_rows(batch), self._prepared
        if valid is None and prepared is not None and prepared.is_for(leaves):
            prepared.run()
            return batch.with_branches(prepared.results)
        results = self._estimate(leaves, valid)
        if valid is not None:
            for output in results.values():
                fill_rows(np.nonzero(~valid), 0, out=elements(output))
        return batch.with_branches(results)

    def _estimate(
        self, leaves: Sequence[Array], valid: NDArray[np.bool_] | None
    ) -> dict[str, Array]:
        """Return the new branches, and keep what a batch at the same places needs no more."""
        reward, value, terminated, truncated, final_value = leaves
        inputs = {
            "reward": reward,
            "value": value[: len(value) + 1],
            "terminated": terminated,
            "truncated": truncated,
            "final_value": final_value,
        }
        side_of_leaves(**inputs)
        if valid is not None:
            inputs |= _cut_before(~valid, **inputs)
        self._advantage = output_like(value, self._advantage)
        self._return = output_like(value, self._return)
        results = {"advantage": self._advantage, "return_": self._return}
        given = {name: elements(leaf) for name, leaf in inputs.items()}
        run = prepare_advantage(
            **{name: contiguous(array) for name, array in given.items()},
            discount=self._discount,
            gae_lambda=self._gae_lambda,
            out_advantage=elements(self._advantage),
            out_return=elements(self._return),
        )
        run()
        are_read = valid is None and all(array.flags.c_contiguous for array in given.values())
        self._prepared = _Prepared.of(leaves, run, results) if are_read else None
        return results

    def __getstate__(self) -> dict[str, Any]:  # Any: as the attributes
        """Return the attributes for a copy, which prepares arrays over its own memory."""
        return {**self.__dict__, "_prepared": None}


class _Prepared(NamedTuple):
    """An estimate with all its arguments, for leaves that lie where these lay."""

    places: Sequence[Place]  # of the inputs and the outputs
    run: Callable[[], None]
    results: dict[str, Array]

    @classmethod
    def of(
        cls, leaves: Sequence[Array], run: Callable[[], None], results: dict[str, Array]
    ) -> _Prepared | None:
        """Return it; None where a leaf has no place that is read without a copy."""
        places = [leaf.place for leaf in (*leaves, *results.values())]
        found = [place for place in places if place is not None]
        return cls(found, run, results) if len(found) == len(places) else None

    def is_for(self, leaves: Sequence[Array]) -> bool:
        """Tell whether these leaves, and the outputs, are where they were, in open memory."""
        return all(map(Array.is_at, (*leaves, *self.results.values()), self.places))


def _cut_before(
    invalid: NDArray[np.bool_],
    *,
    value: Array,
    truncated: Array,
    final_value: Array,
    **inputs: Array,
) -> dict[str, Array]:
    """Return flags and values that end an episode before each row that is no transition.

    Args:
        invalid: bool [T, B] on the host, the rows that are no transitions.
        value: float32 [T + 1, B].
        truncated, final_value: [T, B], as the batch has them; copied where they change.
        inputs: the flags `terminated`, and what stays as it is.
    """
    done = as_mask("truncated", truncated) | as_mask("terminated", inputs["terminated"])
    t, b = np.nonzero(invalid[1:] & ~invalid[:-1] & ~done[:-1])
    if not len(t):
        return {}
    cut, bootstrap = output_like(truncated, None), output_like(final_value, None)
    cut[...], bootstrap[...] = truncated, final_value
    cut[t, b] = True
    bootstrap[t, b] = value[t + 1, b]
    return {"truncated": cut, "final_value": bootstrap}


class NormalizeAdvantage:
    """Replace `advantage` by values of mean 0 and standard deviation 1 over the batch.

    Where the batch has a branch `valid`, mean and deviation are those of the valid rows, and the
    others become 0.

    In device and managed memory it is three launches in the caller's current stream (four for
    more than 8,000 advantages); nothing waits for them. A branch `valid` there is read once for
    each batch, for which the host waits; without it, a call after the first one can be captured in
    a CUDA graph. Equal advantages become zeros.

    >>> import numpy as np
    >>> batch = ArrayDict({"advantage": Array((2, 2), np.float32)})
    >>> batch["advantage"][0] = 4
    >>> NormalizeAdvantage()(batch)["advantage"].to_ndarray().tolist()
    [[1.0, 1.0], [-1.0, -1.0]]

    Args:
        epsilon: float, 0 or more, added to the standard deviation.

    Raises:
        ValueError: epsilon is negative.
    """

    def __init__(self, *, epsilon: float = 1e-8) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon: got {epsilon}, expected 0 or more")
        self._epsilon = epsilon
        self._moments: RunningMoments | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the new `advantage`, overwritten by the next call.

        Args:
            batch: a tree with `advantage`, float32 [T, B, ...], and `valid`, bool [T, B], or none.
        """
        advantage = batch["advantage"]
        if self._moments is None or self._moments.storage != advantage.storage:
            self._moments = RunningMoments(advantage, epsilon=self._epsilon, feature_shape=())
        self._moments.reset()
        valid = valid_rows(batch)
        self._moments.update(advantage, valid=valid)
        if not self._moments.count:  # no row is valid
            return batch
        normalized = self._moments.normalize(advantage)
        if valid is not None:
            fill_rows(np.nonzero(~valid), 0, out=elements(normalized))
        return batch.with_branches({"advantage": normalized})
