"""Functional environments with JAX itself, in processes of their own; PPO on gymnax's CartPole."""

import multiprocessing as mp
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from optional import needs

LONGEST_S = 300


def in_a_child(check: str) -> None:
    """Run a check of `functional_checks`: beside JAX's threads, no other test may fork."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=run, args=(check, queue))
    child.start()
    report = queue.get(timeout=LONGEST_S)
    child.join(LONGEST_S)
    assert report == "", report
    assert child.exitcode == 0


def run(check: str, queue: Any) -> None:
    try:
        import functional_checks

        found: Callable[[], None] = getattr(functional_checks, check)
        found()
    except BaseException:
        queue.put(traceback.format_exc())
    else:
        queue.put("")


@pytest.mark.long
@needs("jax")  # whose import takes seconds
def test_functions_of_jax_are_environments() -> None:
    in_a_child("check_all")


@pytest.mark.long
# Not among the packages of `dev`: gymnax 1.0.1 asks for gymnasium below 1.4. Beside it,
# `pip install --no-deps gymnax flax optax orbax-checkpoint ...` into a folder on PYTHONPATH serves.
@needs("gymnax")
def test_ppo_learns_cartpole_of_gymnax() -> None:
    in_a_child("learn_cartpole")
