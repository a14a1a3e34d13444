"""Hypothesis strategies for what the targets of the fuzzer read: bytes that are nearly right in one way or another.

Each gives inputs of one target, from the seeds of that target: a seed with a few changes, two seeds joined, JSON whose
values were replaced by hostile ones, or a program of changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.material import Material
from tests.fuzz.mutations import OPERATIONS, Choices
from tests.fuzz.targets import Target

__all__ = ["HOSTILE_VALUES", "changed", "inputs", "json_changed", "programs"]

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, -(2**53), 10**40, 1.0, 0.5, "", "0", "nan", "inf", "\x1b[2J", "\u202e", "é",
    "e\u0301", "\ud800", "{cwd}/../x", "../x", "/etc/passwd", "a\0b", "<script>", r"\input{x}", "$ref", "0" * 64,
    "x" * 5000, [], [[]], {}, {"": None}, {"$ref": "https://example.org/x"}, ["0x1.0000000000000p+0"],
)  # fmt: skip
"""What is put in the place of a value: other types, edges of numbers, text that does something somewhere."""


def programs() -> st.SearchStrategy[bytes]:
    """Return programs of changes (`mutations.mutated`), mostly short ones."""
    return st.binary(min_size=2, max_size=40)


def changed(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a seed with up to three changes of `mutations.OPERATIONS`, the material for which is another seed."""
    step = st.tuples(st.sampled_from(OPERATIONS), st.binary(max_size=16))

    def apply(data: bytes, other: bytes, steps: list[Any]) -> bytes:
        for operation, choices in steps:
            data = operation(data, other, Choices(choices))
        return data

    return st.builds(apply, st.sampled_from(seeds), st.sampled_from(seeds), st.lists(step, min_size=1, max_size=3))


def json_changed(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return JSON (or lines of JSON) of which one value somewhere was replaced, removed, renamed or repeated."""
    lines = [line for seed in seeds for line in seed.split(b"\n") if line.startswith(b"{")]

    def replace(line: bytes, path: list[int], value: Any, way: str) -> bytes:
        document = json.loads(line)
        place: Any = document
        for number in path:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = keys[number % len(keys)]
            if isinstance(place[key], (dict, list)) and place[key]:
                place = place[key]
                continue
            _change(place, key, value, way)
            break
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    def in_place(line: bytes, path: list[int], value: Any, way: str) -> bytes:
        done = replace(line, path, value, way)
        whole = next(seed for seed in seeds if line in seed)
        return whole.replace(line, done)

    return st.builds(
        in_place,
        st.sampled_from(lines),
        st.lists(st.integers(0, 200), min_size=1, max_size=8),
        st.sampled_from(HOSTILE_VALUES),
        st.sampled_from(("replace", "remove", "rename", "repeat")),
    )


def _change(place: Any, key: Any, value: Any, way: str) -> None:
    if way == "remove":
        del place[key]
    elif way == "rename" and isinstance(place, dict):
        place[str(value)] = place.pop(key)
    elif way == "repeat" and isinstance(place, list):
        place.append(place[key])
    else:
        place[key] = value


def inputs(target: Target, material: Material) -> st.SearchStrategy[bytes]:
    """Return inputs of a target."""
    seeds = list(target.seeds(material))
    if target.longest <= 64:
        return programs()
    ways = [changed(seeds), st.binary(max_size=200)]
    if any(seed.startswith(b"{") for seed in seeds):
        ways.append(json_changed(seeds))
    return st.one_of(ways)
