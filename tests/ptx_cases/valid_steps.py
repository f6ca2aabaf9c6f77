"""Cases of steps that are no transitions: ends before them, and zeros in the place of results."""

import numpy as np

from parllel import cuda
from parllel.ops.valid_steps import clear_steps, cut_episodes
from ptx_cases.comparing import assert_bits, assert_floats


def cut(rng: np.random.Generator) -> None:
    """Batches of which some steps are not valid, beside ends of all kinds."""
    steps, width = int(rng.choice([1, 2, 9, 70])), int(rng.choice([1, 3, 40]))
    valid = rng.random((steps, width)) < rng.choice([0, 0.5, 0.9, 1])
    terminated, truncated = rng.random((2, steps, width)) < rng.choice([0, 0.3])
    value = rng.standard_normal((steps + 1, width), np.float32)
    final_value = rng.standard_normal((steps, width), np.float32)
    flags, values = truncated.copy(), final_value.copy()
    for t in range(steps - 1):
        for b in range(width):
            is_done = terminated[t, b] or truncated[t, b]
            if valid[t, b] and not valid[t + 1, b] and not is_done:
                flags[t, b], values[t, b] = True, value[t + 1, b]
    read = [cuda.to_device(each) for each in (valid, terminated, truncated, value, final_value)]
    out = cuda.library().empty((steps, width), bool), cuda.to_device(np.zeros_like(values))
    cut_episodes(*read, out_truncated=out[0], out_final_value=out[1])
    assert_bits("truncated", out[0], flags)
    assert_floats("final_value", out[1], values)


def clear(rng: np.random.Generator) -> None:
    """Two results, of which numbers stay where the steps are valid."""
    shape = int(rng.choice([1, 9, 70])), int(rng.choice([1, 3, 40]))
    valid = rng.random(shape) < rng.choice([0, 0.5, 1])
    results = rng.standard_normal((2, *shape), np.float32)
    out = [cuda.to_device(each) for each in results]
    clear_steps(cuda.to_device(valid), out_advantage=out[0], out_return=out[1])
    for name, got, before in zip(("advantage", "return"), out, results, strict=True):
        assert_floats(name, got, np.where(valid, before, np.float32(0)))
