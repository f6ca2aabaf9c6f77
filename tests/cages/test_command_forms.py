"""CommandForms: what is sent once, what is kept, and what is given back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from parllel import Array
from parllel.cages.cage import Command, Outputs
from parllel.cages.process import worker
from parllel.cages.process.channel import EXECUTE, Message
from parllel.cages.process.command_forms import CommandForms, rebuild_command
from parllel.storages import Shared


@pytest.fixture
def forms() -> Iterator[CommandForms]:
    memory = Shared(1000)
    memory.acquire()
    made = CommandForms(memory, ())
    yield made
    made.close()
    memory.release()


def step_to(reward: Array) -> Command:
    outputs = Outputs(reward=reward)
    return Command("random_step", None, outputs, Outputs(reward=reward.to_ndarray()))


def blocks_of(forms: CommandForms) -> dict[int, Any]:
    blocks = {number: forms.block(number) for number in range(forms.n_blocks)}
    return {
        number: block.array(0, (block.nbytes,), np.dtype(np.uint8))
        for number, block in blocks.items()
        if block is not None
    }


def test_commands_that_differ_in_their_rows_alone_have_one_form(forms: CommandForms) -> None:
    rewards = Array((5, 3), np.float32, storage="shared")
    packed = [forms.pack(step_to(rewards[t]), None) for t in range(5)]
    assert {each.form for each in packed} == {0}
    assert len({each.offsets for each in packed}) == 5
    for t, each in enumerate(packed):
        command = rebuild_command(forms.form(each.form), each.offsets, blocks_of(forms))
        command.rows.reward[...] = t
    np.testing.assert_array_equal(rewards, [[t] * 3 for t in range(5)])
    assert (forms.n_forms, forms.n_blocks) == (1, 2)
    assert forms.pack(step_to(rewards[0, ::2]), None).form == 1


def test_rows_out_of_reach_have_one_stand_in_for_all_commands_alike(forms: CommandForms) -> None:
    rewards = Array((5, 3), np.float32)
    packed = [forms.pack(step_to(rewards[t]), None) for t in range(5)]
    assert len({(each.form, each.offsets) for each in packed}) == 1
    (rows, stand_in), *_ = packed[4].copies_out
    assert np.shares_memory(rows, rewards[4].to_ndarray())
    assert packed[4].copies_in == []
    assert all(each.copies_out[0][1] is stand_in for each in packed)
    assert forms.n_blocks == 2
    reset = Command("reset", None, *(step_to(rewards[0])[2:4]))
    assert forms.pack(reset, None).form == 1
    assert forms.n_blocks == 2  # another form with the same stand-in


def test_a_block_that_was_closed_is_none_though_a_command_still_has_it(forms: CommandForms) -> None:
    rewards = Array((5, 3), np.float32, storage="shared")
    packed = forms.pack(step_to(rewards[0]), None)
    assert forms.block(1) is rewards.memory
    rewards.close()
    assert packed.blocks[0].is_closed
    assert forms.block(1) is None


def test_a_block_lives_as_long_as_a_command_that_uses_it(forms: CommandForms) -> None:
    packed = forms.pack(step_to(Array((3,), np.float32, storage="shared")), None)
    assert forms.block(1) is packed.blocks[0]
    del packed
    assert forms.block(1) is None


def test_stand_ins_are_given_back() -> None:
    memory = Shared(1000)
    memory.acquire()
    made = CommandForms(memory, ())
    made.pack(step_to(Array((3,), np.float32)), None)
    made.pack(step_to(Array((2,), np.float32)), None)
    stand_ins = [made.block(1), made.block(2)]
    assert all(block is not None and not block.is_closed for block in stand_ins)
    made.close()
    assert all(block is not None and block.is_closed for block in stand_ins)
    memory.release()


def test_a_worker_keeps_a_bounded_number_of_commands(
    forms: CommandForms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MOST_COMMANDS", 3)
    rewards = Array((8, 3), np.float32, storage="shared")
    own: Any = worker._Worker.__new__(worker._Worker)  # without environments
    own._commands, own._bytes = {}, blocks_of(forms)
    for t in range(8):
        packed = forms.pack(step_to(rewards[t]), None)
        own._bytes, own._forms = blocks_of(forms), {0: forms.form(0)}
        message = Message(EXECUTE, packed.form, packed.offsets, 0, t)
        assert own._find(message) is own._find(message)
        assert len(own._commands) <= 3
