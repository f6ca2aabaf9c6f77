"""A pytest plugin: an eager simulation passes for the GPU that `--cuda=real` asks for.

So what `make test-gpu` selects can be run where there is no GPU: `-p eager_as_real`.
"""

from collections.abc import Generator
from contextlib import ExitStack

import pytest
import torch

from parllel.testing.simulated_cuda import simulated_cuda

_configuration = ExitStack()


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let conftest.py find a device."""
    _configuration.enter_context(simulated_cuda("eager"))
    patch = _configuration.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(torch.cuda, "is_available", lambda: True)


def pytest_sessionstart() -> None:
    _configuration.close()  # tests are collected without it: some look for CuPy itself


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    with simulated_cuda("eager"):
        return (yield)
