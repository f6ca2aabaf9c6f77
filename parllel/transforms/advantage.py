"""EstimateAdvantage and NormalizeAdvantage: the weights of a policy gradient."""

from __future__ import annotations

from parllel.arrays import Array
from parllel.ops.advantage import estimate_advantage
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.transform import (
    contiguous_elements,
    elements,
    output_like,
    side_of_leaves,
)
from parllel.tree import ArrayDict


class EstimateAdvantage:
    """Add `advantage` and `return_` to a batch: generalized advantage estimates, float32 [T, B].

    An episode that was truncated at step t is bootstrapped with `final_value[t]`, the value of
    its own last observation; one that goes on after the batch with row T of `agent_info.value`.

    In device and managed memory it is one launch in the caller's current stream; nothing waits
    for it.

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

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with `advantage` and `return_`, overwritten by the next call.

        Args:
            batch: a tree with float32 [T, B] `reward`, `final_value` and `agent_info.value`, which
                has a row T of padding; and bool [T, B] `terminated` and `truncated`. The host
                works on all of them, or a GPU does.
        """
        value = batch["agent_info"]["value"]
        inputs = {
            "reward": batch["reward"],
            "value": value[: len(value) + 1],
            "terminated": batch["terminated"],
            "truncated": batch["truncated"],
            "final_value": batch["final_value"],
        }
        side_of_leaves(**inputs)
        self._advantage = output_like(value, self._advantage)
        self._return = output_like(value, self._return)
        estimate_advantage(
            **{name: contiguous_elements(leaf) for name, leaf in inputs.items()},
            discount=self._discount,
            gae_lambda=self._gae_lambda,
            out_advantage=elements(self._advantage),
            out_return=elements(self._return),
        )
        return ArrayDict({**batch, "advantage": self._advantage, "return_": self._return})


class NormalizeAdvantage:
    """Replace `advantage` by values of mean 0 and standard deviation 1 over the batch.

    In device and managed memory it is three launches in the caller's current stream (four for
    more than 8,000 advantages); nothing waits for them. Equal advantages become zeros.

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
            batch: a tree with `advantage`, float32 [T, B].
        """
        advantage = batch["advantage"]
        if self._moments is None or self._moments.storage != advantage.storage:
            self._moments = RunningMoments(advantage, epsilon=self._epsilon, feature_shape=())
        self._moments.reset()
        self._moments.update(advantage)
        return ArrayDict({**batch, "advantage": self._moments.normalize(advantage)})
