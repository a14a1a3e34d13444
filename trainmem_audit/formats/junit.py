"""JUnit XML, as CI systems read it: one test case for each step, finding and item.

What counts and fails is a `failure`, what counts and could not be decided an `error`; what does not count is `skipped`,
with the reason. Nothing that did not pass looks as if it had.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final
from xml.etree import ElementTree

from trainmem_audit.formats.results import Result, Results

__all__ = ["junit"]

_NO_XML: Final = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PASSED: Final = "passed"


def junit(results: Results) -> str:
    """Return the results as one `testsuites` element with one suite."""
    shown = [result for result in results.results if not result.told]
    count = Counter(_kind(result) for result in shown)
    numbers = {
        "tests": str(len(shown)),
        "failures": str(count["failure"]),
        "errors": str(count["error"]),
        "skipped": str(count["skipped"]),
        "time": "0",
    }
    top = ElementTree.Element("testsuites", {"name": "trainmem-audit", **numbers})
    suite = ElementTree.SubElement(top, "testsuite", {"name": _text(results.name), **numbers})
    for result in shown:
        _case(suite, result)
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, encoding="unicode")


def _kind(result: Result) -> str:
    if result.state == "pass":
        return _PASSED
    if result.counts:
        return "failure" if result.state == "fail" else "error"
    return "skipped"


def _case(suite: ElementTree.Element, result: Result) -> None:
    name = " ".join(part for part in (result.id, result.where if result.group == "findings" else result.title) if part)
    group = f"trainmem-audit.{result.group}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": group, "name": _text(name), "time": "0"})
    kind = _kind(result)
    if kind == _PASSED:
        return
    message = f"waived: {result.justification}" if result.state == "waived" else result.message
    child = ElementTree.SubElement(case, kind, {"message": _text(message)})
    if kind != "skipped":
        child.set("type", result.id)
        where = f"where: {result.where}" if result.where else ""
        child.text = _text("\n".join(part for part in (where, result.detail) if part))


def _text(text: str) -> str:
    """Return `text` without what no XML document may hold."""
    return _NO_XML.sub("\ufffd", text)
