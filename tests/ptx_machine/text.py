"""The text of a PTX module, read into entries, blocks of instructions and operands."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ptx_machine.faults import UnknownTextError

_ENTRY = re.compile(
    r"^\.visible \.entry (?P<name>\w+)\((?P<parameters>[^)]*)\)\s*\{(?P<body>.*?)^\}",
    re.DOTALL | re.MULTILINE,
)
_OUTSIDE = re.compile(r"\s*(//.*|\.version [\d.]+|\.target sm_\d+|\.address_size 64)?\s*")
_PARAMETER = re.compile(r"\s*\.param \.(?P<type>[a-z]\d+) (?P<name>\w+)\s*")
_REGISTERS = re.compile(r"\.reg \.(?P<type>\w+)\s+%(?P<prefix>[a-z]+)<(?P<count>\d+)>")
_LABEL = re.compile(r"(\$\w+):")
_INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)(?P<guard>%p\d+)\s+)?(?P<opcode>[a-z][\w.]*)(?:\s+(?P<operands>.+))?"
)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
# What makes threads of a block wait for or see each other, but for exchanges of a warp's lanes.
_OF_SEVERAL_THREADS = ("bar", "barrier", "vote", "match", "redux", "membar", "fence")


class Guard(NamedTuple):
    """The predicate of an instruction: which threads it is for."""

    register: str
    is_negated: bool


class Instruction(NamedTuple):
    """One instruction, as it stands in the text."""

    line: int  # of the module's text, counted from 1
    text: str
    guard: Guard | None
    opcode: str
    operands: tuple[str, ...]

    @property
    def is_access(self) -> bool:
        """Whether it reads or writes memory."""
        return self.opcode.startswith(("ld.global", "st.global", "atom.global"))

    @property
    def is_exchange(self) -> bool:
        """Whether lanes of a warp hand values to each other."""
        return self.opcode.startswith("shfl.")


class Entry(NamedTuple):
    """A kernel: blocks of instructions, of which only the last one of each may lead elsewhere.

    Lanes wait for each other before a block that begins with an exchange; no other one has any.
    """

    name: str
    parameters: dict[str, str]  # types by name, in order
    registers: dict[str, str]  # types by the letters of their names
    blocks: list[list[Instruction]]
    labels: dict[str, int]  # numbers of blocks

    @property
    def instructions(self) -> list[Instruction]:
        """All of them, in the order of the text."""
        return [instruction for block in self.blocks for instruction in block]


def read_module(text: str) -> dict[str, Entry]:
    """Return a module's entries by their names.

    Raises:
        UnknownTextError: there is something else than entries, or a line is none of PTX's.
    """
    entries, end = {}, 0
    for found in _ENTRY.finditer(text):
        _check_outside(text, end, found.start())
        entries[found["name"]] = _read_entry(found, text)
        end = found.end()
    _check_outside(text, end, len(text))
    return entries


def _check_outside(text: str, begin: int, end: int) -> None:
    first = text.count("\n", 0, begin) + 1
    for number, line in enumerate(text[begin:end].split("\n"), first):
        if not _OUTSIDE.fullmatch(line):
            raise UnknownTextError(
                f"line {number}: {line.strip()}: expected entries, and nothing else"
            )


def _read_entry(found: re.Match[str], text: str) -> Entry:
    parameters = {}
    for parameter in found["parameters"].split(","):
        if parameter.strip():
            parts = _PARAMETER.fullmatch(parameter)
            if parts is None:
                raise UnknownTextError(f"{found['name']}: parameter {parameter.strip()}")
            parameters[parts["name"]] = parts["type"]
    entry = Entry(found["name"], parameters, {}, [[]], {})
    first = text.count("\n", 0, found.start("body")) + 1
    for number, statement in _statements(found["body"], first):
        _read_statement(entry, number, statement)
    return entry


def _statements(body: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the number of a line and what stands there, without comments and semicolons."""
    for number, line in enumerate(body.split("\n"), first):
        for part in line.partition("//")[0].split(";"):
            if part.strip():
                yield number, part.strip()


def _read_statement(entry: Entry, number: int, statement: str) -> None:
    blocks = entry.blocks
    if statement == '.pragma "nounroll"':
        return  # advice for the assembler, which changes no result
    if declared := _REGISTERS.fullmatch(statement):
        entry.registers[declared["prefix"]] = declared["type"]
    elif label := _LABEL.fullmatch(statement):
        if blocks[-1]:
            blocks.append([])
        entry.labels[label[1]] = len(blocks) - 1
    else:
        instruction = _read_instruction(number, statement)
        if instruction.is_exchange and blocks[-1]:
            blocks.append([])
        blocks[-1].append(instruction)
        if instruction.opcode.partition(".")[0] in ("bra", "ret"):
            blocks.append([])


def _read_instruction(number: int, statement: str) -> Instruction:
    parts = _INSTRUCTION.fullmatch(statement)
    if parts is None:
        raise UnknownTextError(
            f"line {number}: {statement}: no instruction that the machine can read"
        )
    opcode = parts["opcode"]
    if opcode.partition(".")[0] in _OF_SEVERAL_THREADS or ".shared" in opcode:
        raise UnknownTextError(
            f"line {number}: {statement}: threads that wait for each other or share memory of a"
            " block; this machine runs each warp apart"
        )
    guard = Guard(parts["guard"], bool(parts["negated"])) if parts["guard"] else None
    operands = tuple(_OPERAND.findall(parts["operands"] or ""))
    return Instruction(number, statement, guard, opcode, operands)
