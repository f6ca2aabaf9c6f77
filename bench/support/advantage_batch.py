"""Batches for benches of advantage estimation, and what NumPy makes of them."""

import numpy as np
import numpy.typing as npt

END_RATE = 0.01  # for terminated and for truncated: episodes of about 50 steps
DISCOUNT, GAE_LAMBDA = 0.99, 0.95

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Batch = tuple[Floats, Floats, Bools, Bools, Floats, Floats, Floats]


def random_batch(steps: int, width: int) -> Batch:
    """Return inputs, then outputs; the outputs' pages have been touched."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((steps, width), np.float32),
        rng.standard_normal((steps + 1, width), np.float32),
        rng.random((steps, width)) < END_RATE,
        rng.random((steps, width)) < END_RATE,
        rng.standard_normal((steps, width), np.float32),
        np.zeros((steps, width), np.float32),
        np.zeros((steps, width), np.float32),
    )


def numpy_loop(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Do the same with a few NumPy calls for each row."""
    carry = np.zeros(reward.shape[1], np.float32)
    for t in range(len(reward) - 1, -1, -1):
        bootstrap = np.where(truncated[t], final_value[t], value[t + 1])
        bootstrap[terminated[t]] = 0
        carry[terminated[t] | truncated[t]] = 0
        carry = reward[t] + discount * bootstrap - value[t] + decay * carry
        out_advantage[t] = carry
        np.add(carry, value[t], out=out_return[t])
