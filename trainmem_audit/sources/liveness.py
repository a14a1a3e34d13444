"""Which variables a running loop carries from one round to the next, read off the bytecode of its code object.

A variable is *carried* when the next round of a loop that runs may read it before it is written again: it is live at
the loop's head. What is only written into (`log.append(x)`, `losses[i] = x`) is not read. Pure: nothing runs.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType

__all__ = ["bound_anew", "carried_names", "only_read", "outer_reads", "own_attributes"]

_ENDS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "INTERPRETER_EXIT"}
_ALWAYS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP", "JUMP_ABSOLUTE"}
_LOCAL_LOADS = ("LOAD_FAST", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE")
_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF", "DELETE_FAST", "DELETE_NAME", "DELETE_GLOBAL")
_FILLS = frozenset({"append", "appendleft", "extend", "add", "update", "write", "insert", "clear"})
_POPS_AND_PUSHES = {
    "NOP": (0, 0), "CACHE": (0, 0), "RESUME": (0, 0), "PRECALL": (0, 0), "KW_NAMES": (0, 0), "PUSH_NULL": (0, 1),
    "LOAD_CONST": (0, 1), "LOAD_FAST": (0, 1), "LOAD_NAME": (0, 1), "LOAD_DEREF": (0, 1), "LOAD_FAST_CHECK": (0, 1),
    "LOAD_SMALL_INT": (0, 1), "BINARY_OP": (2, 1), "BINARY_SUBSCR": (2, 1), "BINARY_SLICE": (3, 1),
    "COMPARE_OP": (2, 1), "UNARY_NEGATIVE": (1, 1), "UNARY_NOT": (1, 1), "UNARY_INVERT": (1, 1), "LOAD_METHOD": (1, 2),
    "STORE_SUBSCR": (3, 0),
}  # fmt: skip


@lru_cache(maxsize=256)
def carried_names(code: CodeType, offset: int) -> frozenset[str] | None:
    """Return the variables that the loops around the instruction at `offset` carry; `None` outside loops."""
    instructions = list(dis.get_instructions(code))
    around = _loops(instructions, offset)
    if not around:
        return None
    return frozenset().union(*(_live(instructions, head, last)[head] for head, last in around))


@lru_cache(maxsize=256)
def only_read(code: CodeType, offset: int) -> frozenset[str]:
    """Return carried variables that no loop binds from its own rounds: an outer loop makes them, an inner reads them.

    The order of an epoch's samples is one; so is a trace that is begun anew in every epoch and changed in place.
    """
    instructions = list(dis.get_instructions(code))
    around = _loops(instructions, offset)
    bound, carried = set(), set()
    for head, last in around:
        stored = _stored(instructions, [(head, last)])
        bound |= stored
        carried |= _live(instructions, head, last)[head] & stored
    return frozenset(bound - carried)


@lru_cache(maxsize=256)
def bound_anew(code: CodeType, offset: int) -> frozenset[str]:
    """Return the variables that the loops around `offset` write before they read them, and no function in `code` does.

    Such a variable is not carried, though a function (a closure that computes the loss, say) reads it.
    """
    instructions = list(dis.get_instructions(code))
    around = _loops(instructions, offset)
    stored = _stored(instructions, around)
    inner = (item for function in _inner(code) for item in dis.get_instructions(function))
    written = {str(item.argval) for item in inner if item.opname in ("STORE_GLOBAL", "STORE_DEREF", "STORE_NAME")}
    return frozenset(stored - written - (carried_names(code, offset) or frozenset()))


@lru_cache(maxsize=4096)
def own_attributes(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the attributes that a function binds: those that it has read before (`a.q = f(a.q)`), and the others."""
    read: set[str] = set()
    again: set[str] = set()
    blind: set[str] = set()
    for item in dis.get_instructions(code):
        if item.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            read.add(str(item.argval))
        elif item.opname == "STORE_ATTR":
            (again if item.argval in read else blind).add(str(item.argval))
    return frozenset(again), frozenset(blind)


@lru_cache(maxsize=256)
def outer_reads(code: CodeType) -> frozenset[str]:
    """Return the names that functions defined in `code` read from outside of themselves."""
    found: set[str] = set()
    for inner in _inner(code):
        instructions = list(dis.get_instructions(inner))
        for at, item in enumerate(instructions):
            if item.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME") and _is_read(instructions, at):
                found.add(str(item.argval))
    return frozenset(found)


def _loops(instructions: list[dis.Instruction], offset: int) -> list[tuple[int, int]]:
    """Return where the loops around an instruction begin and end."""
    loops: dict[int, int] = {}
    for item in instructions:
        target = _target(item)
        if target is not None and target <= item.offset:
            loops[target] = max(loops.get(target, 0), item.offset)
    return [(head, last) for head, last in loops.items() if head <= offset <= last]


def _stored(instructions: list[dis.Instruction], loops: list[tuple[int, int]]) -> set[str]:
    """Return the variables that are written within loops."""
    return {
        name
        for item in instructions
        if item.opname.startswith(_STORES) and any(head <= item.offset <= last for head, last in loops)
        for name in (_stored_names(item))
    }


def _stored_names(item: dis.Instruction) -> list[str]:
    if not _is_pair(item):
        return [str(item.argval)]
    return list(item.argval[:1] if item.opname.startswith("STORE_FAST_LOAD") else item.argval)


def _inner(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner(constant)


def _target(item: dis.Instruction) -> int | None:
    jumps = item.opcode in dis.hasjrel or item.opcode in dis.hasjabs
    return item.argval if jumps and isinstance(item.argval, int) else None


def _live(instructions: list[dis.Instruction], head: int, last: int) -> dict[int, set[str]]:
    """Return the names that the loop from `head` to `last` may read after each place in it, by offset.

    What is read only when the loop has ended (the best weights so far, outputs for a plot) is not carried by it.
    """
    instructions = [item for item in instructions if head <= item.offset <= last]
    live: dict[int, set[str]] = {item.offset: set() for item in instructions}
    effects = [_effect(instructions, at) for at in range(len(instructions))]
    changed = True
    while changed:
        changed = False
        for at in range(len(instructions) - 1, -1, -1):
            item = instructions[at]
            after: set[str] = set()
            if item.opname not in _ENDS and item.opname not in _ALWAYS and at + 1 < len(instructions):
                after |= live[instructions[at + 1].offset]
            target = _target(item)
            if target is not None:
                after |= live.get(target, set())
            before = after
            for reads, names in reversed(effects[at]):
                before = before | names if reads else before - names
            if before != live[item.offset]:
                live[item.offset] = before
                changed = True
    return live


def _effect(instructions: list[dis.Instruction], at: int) -> list[tuple[bool, set[str]]]:
    """Return what an instruction does to variables, in order: (whether it reads, names)."""
    item = instructions[at]
    names = [item.argval] if isinstance(item.argval, str) else list(item.argval) if _is_pair(item) else []
    if not names:
        return []
    if item.opname.startswith(_LOCAL_LOADS) and "STORE" not in item.opname:
        return [(True, set(names))] if len(names) > 1 or _is_read(instructions, at) else []
    if item.opname.startswith("STORE_FAST_LOAD_FAST"):
        return [(False, {names[0]}), (True, {names[1]})]
    if item.opname.startswith(_STORES):
        return [(False, set(names))]
    return []


def _is_pair(item: dis.Instruction) -> bool:
    return isinstance(item.argval, tuple) and item.opname.count("_FAST") > 1


def _is_read(instructions: list[dis.Instruction], at: int) -> bool:
    """Tell whether what is loaded is read: anything but being written into. In doubt it is."""
    above = 0  # how much lies on the stack above it
    for item in instructions[at + 1 : at + 60]:
        if _target(item) is not None or item.is_jump_target:
            return True
        if item.opname in ("LOAD_METHOD", "LOAD_ATTR") and above == 0:
            return item.argval not in _FILLS
        if item.opname == "LOAD_GLOBAL":
            pops, pushes = 0, 2 if "NULL" in item.argrepr else 1
        elif item.opname == "LOAD_ATTR":
            pops, pushes = 1, 2 if "NULL" in item.argrepr else 1
        elif item.opname == "CALL":
            pops, pushes = 2 + (item.arg or 0), 1
        elif item.opname in ("BUILD_TUPLE", "BUILD_SLICE", "BUILD_LIST"):
            pops, pushes = item.arg or 0, 1
        elif item.opname in _POPS_AND_PUSHES:
            pops, pushes = _POPS_AND_PUSHES[item.opname]
        else:
            return True
        if pops > above:
            return not (item.opname == "STORE_SUBSCR" and above == 1)
        above += pushes - pops
    return True
