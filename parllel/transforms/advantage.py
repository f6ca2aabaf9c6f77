"""EstimateAdvantage and NormalizeAdvantage: what a policy gradient is weighted with."""

from __future__ import annotations

from parllel.arrays import Array
from parllel.kernels.advantage import estimate_advantage
from parllel.transforms.outputs import output_like
from parllel.tree import ArrayDict


class EstimateAdvantage:
    """Add `advantage` and `return_` to a batch: generalized advantage estimates, float32 [T, B].

    An episode that was truncated at step t is bootstrapped with `final_value[t]`, the value of
    its own last observation; one that goes on after the batch with row T of `agent_info.value`.

    Args:
        discount: per step, in [0, 1].
        trace: lambda of the paper, in [0, 1]: 0 takes one reward and a value, 1 all rewards.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """

    def __init__(self, *, discount: float = 0.99, trace: float = 0.95) -> None:
        for name, number in (("discount", discount), ("trace", trace)):
            if not 0 <= number <= 1:
                raise ValueError(f"{name}: got {number}, expected a number in [0, 1]")
        self._discount = discount
        self._trace = trace
        self._advantage: Array | None = None
        self._return: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with `advantage` and `return_`, overwritten by the next call."""
        value, reward = batch["agent_info"]["value"], batch["reward"]
        self._advantage = output_like(value, self._advantage)
        self._return = output_like(value, self._return)
        estimate_advantage(
            reward.to_ndarray(),
            value[: len(value) + 1].to_ndarray(),
            batch["terminated"].to_ndarray(),
            batch["truncated"].to_ndarray(),
            batch["final_value"].to_ndarray(),
            discount=self._discount,
            trace=self._trace,
            out_advantage=self._advantage.to_ndarray(),
            out_return=self._return.to_ndarray(),
        )
        return ArrayDict({**batch, "advantage": self._advantage, "return_": self._return})


class NormalizeAdvantage:
    """Replace `advantage` by values of mean 0 and standard deviation 1 over the batch.

    Args:
        epsilon: added to the standard deviation.
    """

    def __init__(self, *, epsilon: float = 1e-8) -> None:
        self._epsilon = epsilon
        self._normalized: Array | None = None

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the new `advantage`, overwritten by the next call."""
        advantage = batch["advantage"]
        self._normalized = output_like(advantage, self._normalized)
        values = advantage.to_ndarray()
        self._normalized[...] = (values - values.mean()) / (values.std() + self._epsilon)
        return ArrayDict({**batch, "advantage": self._normalized})
