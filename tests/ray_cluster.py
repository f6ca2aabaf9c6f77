"""A Ray cluster of this machine, which all tests of a process share: it takes seconds to start."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import pytest


@contextmanager
def small_cluster() -> Iterator[str]:
    """Start Ray with one processor; yield the address that other programs reach it by.

    Actors of tests ask for none (`NO_CPU`), so that any number of them finds room.
    """
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # or it warns of what it will change
    with ExitStack() as stack:
        # In /tmp, because paths of sockets have at most 107 bytes.
        folder = stack.enter_context(TemporaryDirectory(prefix="parllel-ray-", dir="/tmp"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            stack.callback(ray.shutdown)
            context: Any = ray.init(
                num_cpus=1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 2**20,
                _temp_dir=folder,
            )
        yield context.address_info["gcs_address"]
        _idle.clear()


NO_CPU = {"num_cpus": 0}

_idle: list[Any] = []  # actors


@contextmanager
def recycled_actors() -> Iterator[None]:
    """Have closed cages leave their actors to the next ones, since starting one takes a second.

    So what is tested is the actor and the messages, not its start and its end.
    """
    import ray

    from parllel.cages.actors import actor_worker
    from parllel.cages.actors.actor_worker import ActorWorker

    start_actor, close = actor_worker.start_actor, ActorWorker.close

    def take_actor(*arguments: Any) -> Any:
        return _idle.pop() if _idle else start_actor(*arguments)

    def leave_actor(worker: ActorWorker) -> None:
        if worker._why_unreachable() is None:
            try:
                ray.get(worker._actor.close.remote(), timeout=30)
            except ray.exceptions.RayError:
                close(worker)
            else:
                worker._is_closed = True
                _idle.append(worker._actor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actor_worker, "start_actor", take_actor)
        patch.setattr(ActorWorker, "close", leave_actor)
        yield
