"""Workflow commands of GitHub Actions: annotations on the page of a run, and what is no annotation as plain text.

What counts is an error. What does not count is a warning where it failed, and a notice where it could not be decided.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainmem_audit.formats.results import Result, Results, place

__all__ = ["github"]


def github(results: Results) -> str:
    """Return one line for each annotation, then one line of plain text."""
    lines = [line for result in results.results if not result.told for line in _annotation(result)]
    passed = sum(result.state == "pass" for result in results.results)
    words = {0: "passed", 1: "not passed", 2: "not usable", 3: "undecided"}
    word = words.get(results.exit_code, "ended otherwise")  # a document that others have saved may say anything
    summary = f"trainmem-audit: {word}; {passed} of {len(results.results)} checks passed"
    return "\n".join([*lines, summary])


def _annotation(result: Result) -> Iterator[str]:
    if result.state in ("fail", "undecided"):
        failed = result.state == "fail" and result.level != "note"
        command = "error" if result.counts else "warning" if failed else "notice"
        name, line = place(result)
        where = f"file={_property(name)}" + (f",line={line}" if line else "")
        text = "\n".join(part for part in (result.message, result.where, result.detail) if part)
        yield f"::{command} {where},title={_property(f'{result.id} {result.title}')}::{_data(text)}"
    elif result.state == "waived":
        text = f"{result.message}\nwaived: {result.justification}"
        yield f"::notice title={_property(f'{result.id} {result.title}')}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
