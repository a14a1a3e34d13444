"""The table of `docs/hostile-input.md`: every class has a row, and whatever a row names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CLASSES = {
    "envelope": ("signatures missing", "empty or of the wrong length", "malleated", "over other bytes", "small order",
                 "types and cases", "duplicate members", "look-alike members", "base64 tails", "keys embedded"),
    "JSON": ("depth", "size", "duplicate keys", "NaN", "huge numbers", "integers written as floats",
             "byte-order marks", "lone surrogates", "trailing documents"),
    "statement": ("look-alike types", "version rollback", "verdicts claimed by the author", "remote `$ref`"),
    "log": ("truncation at a line boundary", "reordering", "repetition", "two beginnings", "another run's log",
            "a chain recomputed without the key", "Merkle second preimages"),
    "files": ("paths that escape", "links", "FIFOs", "devices", "case and Unicode twins",
              "files swapped between check and use", "archive bombs", "archive slips", "malformed safetensors",
              "pickles of any kind"),
    "text": ("ANSI escapes", "bidirectional overrides", "HTML in names", "LaTeX and Markdown in names"),
    "replay": ("shell metacharacters", "`LD_*`", "`PYTHON*`", "modules in the working directory that shadow ours",
               "tolerances set by the author", "a run that never ends"),
}  # fmt: skip
"""What must be answered, kind by kind; an entry is how a row begins, or a part of its name."""


def rows() -> list[tuple[str, str, str, str]]:
    """Return (kind, class, places, tests) for each row."""
    text = (ROOT / "docs" / "hostile-input.md").read_text(encoding="utf-8")
    table = text.partition("<!-- table -->")[2].partition("<!-- end of table -->")[0]
    found, kind = [], ""
    for line in table.strip().splitlines()[2:]:
        name, places, tests = (cell.strip() for cell in line.strip("|").split("|"))
        if name.startswith("**"):
            kind = name.strip("*")
        else:
            found.append((kind, name, places, tests))
    return found


@cache
def functions(path: Path) -> set[str]:
    """Return the functions and classes of a module, with methods as `Class.method`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found |= {node.name} | {
                f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)
            }
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in CLASSES.items() for part in parts])
def test_every_class_has_a_row(kind: str, part: str) -> None:
    matching = [name for row_kind, name, _, _ in rows() if row_kind == kind and part in name]
    assert len(matching) == 1, matching


def test_every_row_is_of_a_class() -> None:
    odd = [name for kind, name, _, _ in rows() if not any(part in name for part in CLASSES[kind])]
    assert not odd


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[1])
def test_whatever_a_row_names_is_there(row: tuple[str, str, str, str]) -> None:
    _, _, places, tests = row
    for file, name in re.findall(r"`([\w/]+\.py): ([\w.]+)`", places):
        assert name in functions(ROOT / "trainmem_audit" / file), f"{file}: {name}"
    assert "`" in places or places == "nothing reads them"
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`(?: \(([^)]*)\))?", tests)
    assert named
    for file, test, vectors in named:
        assert not test or test in functions(ROOT / "tests" / file), f"{file}::{test}"
        for vector in re.findall(r"`([\w-]+)`", vectors):
            assert (ROOT / "tests" / "envelopes" / "invalid" / f"{vector}.json").is_file(), vector


def test_the_fuzz_targets_are_described() -> None:
    from tests.fuzz.targets import TARGETS

    text = (ROOT / "docs" / "hostile-input.md").read_text(encoding="utf-8").partition("## The fuzzer")[2]
    described = {name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert described == TARGETS.keys()
