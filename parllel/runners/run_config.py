"""RunConfig: the arguments that every training program takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunConfig:
    """The arguments that every training program takes; a program adds its own in a subclass.

    >>> @dataclass(frozen=True)
    ... class Config(RunConfig):
    ...     steps: int = 100_000
    ...     learning_rate: float = 1e-3
    >>> Config(seed=3).learning_rate
    0.001

    Args:
        seed: seed of all random numbers of the run.
        steps: number of environment steps, over all environments.
        storage: kind of the memory of the samples; the GPU's where there is one.
        out: folder of the run; by default a new one below `runs`.
        resume: go on with the run in that folder.

    Raises:
        ValueError: steps is less than 1, or seed is negative. A subclass with a `__post_init__` of
            its own calls this one.
    """

    seed: int = 0
    steps: int = 1_000_000
    storage: str | None = None
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run can begin with, before there is a folder."""
        for name, number, least in (("steps", self.steps, 1), ("seed", self.seed, 0)):
            if number < least:
                raise ValueError(f"{name}: got {number}, expected {least} or more")
