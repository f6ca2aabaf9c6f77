"""Replies: values arrive as they were, whatever can be pickled of them, and as copies."""

import numpy as np
import pytest

from faulty_envs import UnpicklableError
from parllel.cages.process.replies import Failure, Reply, ReplyMemory, describe_failure, dumps

SIZES = (0, 1, 100, 130, 10_000)


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_reply_arrives_as_it_was_whether_its_arrays_fit_in_or_not(nbytes: int) -> None:
    memory = ReplyMemory(np.zeros(nbytes, np.uint8))
    results = [np.arange(5.0), 3, {"empty": np.zeros((0, 2)), "deep": np.full((3, 3), 7, "i2")}]
    reply = Reply(results, {1: np.arange(9)}, invalid=[2], restarted={2: "text"})
    unpacked = memory.unpack(memory.pack(reply))
    assert unpacked._replace(results=[], final_obs={}) == reply._replace(results=[], final_obs={})
    np.testing.assert_array_equal(unpacked.results[0], results[0], strict=True)
    assert unpacked.results[1] == 3
    for name, expected in reply.results[2].items():
        np.testing.assert_array_equal(unpacked.results[2][name], expected, strict=True)
    np.testing.assert_array_equal(unpacked.final_obs[1], np.arange(9), strict=True)


def test_arrays_that_fit_in_are_not_part_of_the_message() -> None:
    values = np.arange(1000)
    memory = ReplyMemory(np.zeros(values.nbytes, np.uint8))
    assert len(memory.pack(Reply([values]))) < 1000
    assert len(memory.pack(Reply([values, values[:1]]))) > values.nbytes  # one byte too many


def test_the_next_reply_leaves_the_arrays_of_the_last_one_alone() -> None:
    memory = ReplyMemory(np.zeros(1000, np.uint8))
    first = memory.unpack(memory.pack(Reply([np.arange(10)])))
    memory.unpack(memory.pack(Reply([np.full(10, -1)])))
    np.testing.assert_array_equal(first.results[0], np.arange(10))
    assert first.results[0].flags.writeable


def test_an_array_is_taken_once_where_its_value_is_sent_by_a_definition() -> None:
    """A value that pickle can't send is pickled a second time, by cloudpickle."""
    arrays: list[object] = []
    dumps([np.arange(3), lambda: None], arrays)  # type: ignore[arg-type]
    assert len(arrays) == 1


@pytest.mark.parametrize("error", [UnpicklableError(1, 2), LookupError(lambda: None)])
def test_an_error_is_described_whether_it_can_be_pickled_or_not(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        failure = describe_failure(caught, 4)
    assert isinstance(failure, Failure)
    assert (failure.error is None) == isinstance(error, UnpicklableError)
    assert failure.summary.startswith((type(error).__name__, "faulty_envs"))
    assert "raise error" in failure.text
    assert failure.environment == 4
