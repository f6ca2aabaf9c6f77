"""What each instruction of an entry does to a team: found once, executed often."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ptx_machine.exchanges import Exchange
from ptx_machine.faults import PtxError, UnknownTextError
from ptx_machine.number_types import DTYPES, is_literal
from ptx_machine.operations import Operation, find_operations
from ptx_machine.team import Picked, Team, Values
from ptx_machine.text import Entry, Instruction

Step: TypeAlias = Callable[[Team, Picked], None]  # one instruction, of some threads

_ADDRESS = re.compile(r"\[(?P<base>%\w+)(?:\+(?P<offset>-?\d+))?\]")
_PARAMETER = re.compile(r"\[(\w+)\]")
_ACCESS = re.compile(r"global(?:\.v(?P<n>[24]))?\.(?P<type>[a-z]\d+)")

_CHANGES: dict[str, tuple[str, Callable[[Values, Values], Values]]] = {
    "global.add.u64": ("u64", np.add),
    "global.add.u32": ("u32", np.add),
    "global.exch.b64": ("b64", lambda old, new: new),
    "global.max.s64": ("s64", np.maximum),
}


class Kernel(NamedTuple):
    """An entry that can be executed."""

    entry: Entry
    steps: list[list[tuple[Instruction, Step]]]  # of each block


def prepare(entry: Entry) -> Kernel:
    """Return an entry with what each of its instructions does.

    Raises:
        UnknownTextError: an instruction, or an operand of one, is not known.
    """
    steps: list[list[tuple[Instruction, Step]]] = []
    for block in entry.blocks:
        steps.append([])
        for instruction in block:
            try:
                steps[-1].append((instruction, _find_step(entry, instruction)))
            except UnknownTextError as error:
                raise UnknownTextError(f"{_place(entry, instruction)}: {error}") from None
    return Kernel(entry, steps)


def guarded(entry: Entry, instruction: Instruction, step: Step, team: Team, picked: Picked) -> None:
    """Execute an instruction for those of some threads whose predicate allows it."""
    try:
        if instruction.guard is not None:
            register, is_negated = instruction.guard
            picked = picked[team.read(register, DTYPES["pred"], picked) != is_negated]
        if len(picked):
            step(team, picked)
    except PtxError as error:
        raise type(error)(f"{_place(entry, instruction)}: {error}") from None


def _place(entry: Entry, instruction: Instruction) -> str:
    return f"{entry.name}, line {instruction.line}, {' '.join(instruction.text.split())}"


def _find_step(entry: Entry, instruction: Instruction) -> Step:
    root, _, rest = instruction.opcode.partition(".")
    if root in ("bra", "ret"):
        return _find_jump(entry, instruction)
    if instruction.is_exchange:
        if instruction.guard is not None or not rest.startswith("sync."):
            raise UnknownTextError("no exchange that the machine knows")
        return Exchange(rest.removeprefix("sync."), instruction.operands)
    if root in ("ld", "st", "atom"):
        return _find_access(entry, root, rest, instruction.operands)
    operation = _operations().get(instruction.opcode)
    if operation is None:
        raise UnknownTextError("no instruction that the machine knows")
    result, *read = _expect(instruction.operands, 1 + len(operation.operands))
    for operand in read:
        if not (operand.startswith("%") or is_literal(operand)):
            raise UnknownTextError(f"operand {operand}")
    return functools.partial(_compute, operation, result, read)


@functools.cache
def _operations() -> dict[str, Operation]:
    return find_operations()


def _expect(operands: Sequence[str], n: int) -> Sequence[str]:
    if len(operands) != n:
        raise UnknownTextError(f"{len(operands)} operands, expected {n}")
    return operands


def _compute(
    operation: Operation, result: str, operands: Sequence[str], team: Team, picked: Picked
) -> None:
    typed = zip(operands, operation.operands, strict=True)
    values = operation.function(*(team.read(each, dtype, picked) for each, dtype in typed))
    team.write(result, values, picked)


def _find_jump(entry: Entry, instruction: Instruction) -> Step:
    if instruction.opcode == "ret" and not instruction.operands:
        target = len(entry.blocks)
    elif instruction.opcode in ("bra", "bra.uni"):
        (label,) = _expect(instruction.operands, 1)
        if label not in entry.labels:
            raise UnknownTextError(f"no label {label}")
        target = entry.labels[label]
    else:
        raise UnknownTextError("no jump that the machine knows")

    def jump(team: Team, picked: Picked) -> None:
        team.at[picked] = target

    return jump


# Memory


def _find_access(entry: Entry, root: str, rest: str, operands: Sequence[str]) -> Step:
    if root == "ld" and rest.startswith("param."):
        result, parameter = _expect(operands, 2)
        found = _PARAMETER.fullmatch(parameter)
        if found is None or entry.parameters.get(found[1]) != rest.removeprefix("param."):
            raise UnknownTextError(f"no parameter {parameter} of this type")
        return functools.partial(_load_parameter, result, found[1])
    if root == "atom":
        if rest not in _CHANGES:
            raise UnknownTextError("no atomic that the machine knows")
        result, address, operand = _expect(operands, 3)
        change = functools.partial(_change, *_CHANGES[rest])
        return functools.partial(change, result, _expect_address(address), operand)
    found = _ACCESS.fullmatch(rest)
    if found is None or found["type"] not in DTYPES:
        raise UnknownTextError("no access that the machine knows")
    first, second = _expect(operands, 2)
    values, address = (first, second) if root == "ld" else (second, first)
    registers = values.strip("{}").replace(",", " ").split()
    _expect(registers, int(found["n"] or 1))
    access = _load if root == "ld" else _store
    return functools.partial(access, DTYPES[found["type"]], _expect_address(address), registers)


def _expect_address(operand: str) -> re.Match[str]:
    found = _ADDRESS.fullmatch(operand)
    if found is None:
        raise UnknownTextError(f"address {operand}")
    return found


def _addresses(address: re.Match[str], team: Team, picked: Picked) -> Values:
    base = team.read(address["base"], DTYPES["s64"], picked)
    return base + np.int64(address["offset"] or 0)


def _load_parameter(result: str, name: str, team: Team, picked: Picked) -> None:
    team.write(result, team.parameters[name], picked)


def _load(
    dtype: np.dtype, address: re.Match[str], registers: Sequence[str], team: Team, picked: Picked
) -> None:
    at = _addresses(address, team, picked)
    values = team.memory.load(at, dtype, len(registers), team.threads[picked])
    for number, register in enumerate(registers):
        team.write(register, values[:, number], picked)


def _store(
    dtype: np.dtype, address: re.Match[str], registers: Sequence[str], team: Team, picked: Picked
) -> None:
    at = _addresses(address, team, picked)
    values = np.empty((len(picked), len(registers)), dtype)
    for number, register in enumerate(registers):
        values[:, number] = team.read(register, dtype, picked)
    team.memory.store(at, values, team.threads[picked])


def _change(
    kind: str,
    by: Callable[[Values, Values], Values],
    result: str,
    address: re.Match[str],
    operand: str,
    team: Team,
    picked: Picked,
) -> None:
    """Let threads take their turns, in an order of the launch's own."""
    at = _addresses(address, team, picked)
    values = np.broadcast_to(team.read(operand, DTYPES[kind], picked), len(picked))
    turns, former = team.order.permutation(len(picked)), np.empty_like(values)
    threads = team.threads[picked]
    former[turns] = team.memory.change(at[turns], values[turns], threads[turns], by)
    team.write(result, former, picked)
