"""Text of a record in every form of output: it is shown, and it does nothing to a terminal, a page or a table."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from tests import builders
from tests.fuzz.material import author_signs, relinked, signed
from tests.fuzz.targets import CONTROLS
from tests.logs import FakeRun
from tests.tools import audit
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.screen import FORMATS
from trainmem_audit.show import statement_text
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\",
    "c1-controls": "\x9b31m\x90q\x9d0;x\x9c",
    "delete-and-backspace": "\x7f\x08\x08\r",
    "bidirectional": "\u202egpj.exe\u2066\u2069\u200f",
    "invisible": "\u200b\u2060\u00ad\ufe0f\U000e0041",
    "line-separators": "a\u2028b\u2029c\x85d\x0be",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;",
    "latex": r"\input{/etc/passwd}$x^2$ %& \write18{id} {}_~",
    "markdown": "[x](http://evil) ![y](http://evil) `z` | # h\n- *",
    "shell": "$(id) `id` ; id && id",
    "combining": "Z" + "\u0301" * 50,
}
"""One text for each way of text to be more than text."""


def unsafe(text: str) -> set[str]:
    return CONTROLS & set(text) - {"\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_format_of_a_verification_is_fit_for_a_terminal(name: str) -> None:
    """Every format that is registered, so a new one is tested too."""
    for document in (builders.mismatch(what_if=True), builders.broken()):
        hostile = builders.with_hostile_strings(document, HOSTILE[name])
        for form in FORMATS.values():
            text = form(hostile)
            assert not unsafe(text)
            assert "\u00ad" not in text and "\u2028" not in text
        text = FORMATS["json"](hostile)
        assert json.loads(text)["findings"] == json.loads(hostile.model_dump_json(by_alias=True))["findings"]


@pytest.mark.parametrize("name", ["escape", "bidirectional", "line-separators", "latex"])
def test_the_statement_is_shown_on_its_lines(name: str) -> None:
    plain = statement_text(builders.statement(), None)
    statement: Statement = builders.with_hostile_strings(builders.statement(), HOSTILE[name])
    text = statement_text(statement, None)
    assert not unsafe(text)
    assert len(text.splitlines()) <= 40
    assert [line[:14].strip() for line in text.splitlines()][:3] == [line[:14].strip() for line in plain.splitlines()][
        :3
    ]


def hostile_run(path: Path, step: int) -> Path:
    """Lay out a run that its author signed, with hostile names of components, tensors, loaders and packages."""
    run = FakeRun(4).change(step, "loss", *(f"c{number}{text}" for number, text in enumerate(HOSTILE.values())))
    for number, text in enumerate(HOSTILE.values()):
        run.tensors[f"c{number}{text}"] = [[f"t{text}", f"d{text}", [4]]]
    texts = {f"{name}{text}": text for name, text in HOSTILE.items()}
    run.loader = dict(texts)
    log = run.log().replace(b'"packages":{}', b'"packages":' + canonical_bytes(texts))
    files = author_signs({STEP_FILE: relinked(log), TENSOR_FILE: run.frames(), ORDER_FILE: run.order()})
    for file, data in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(data)
    return path


def test_no_verb_prints_or_writes_what_does_something(tmp_path: Path) -> None:
    one, other = hostile_run(tmp_path / "a", 2), hostile_run(tmp_path / "b", 1)
    outputs = []
    for arguments in (("verify", one), ("verify", one, "--format", "json"), ("show", one), ("diff", one, other),
                      ("diff", one, other, "--format", "json"), ("report", one, "-o", tmp_path / "out")):  # fmt: skip
        told = audit(*arguments, cwd=tmp_path, home=tmp_path / "home", timeout=60)
        assert told.returncode in (0, 1), told.stderr
        outputs.append(told.stdout + told.stderr)
    assert "t\\u001b[2J" in outputs[3]
    outputs += [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert len(outputs) == 8
    assert not any(unsafe(text) for text in outputs)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|<img", page)


@pytest.mark.parametrize("name", ["escape", "bidirectional", "invisible", "line-separators", "html"])
def test_names_of_files_are_refused_or_shown_as_text(tmp_path: Path, name: str) -> None:
    text = HOSTILE[name].replace("/", "_").replace("\\", "_")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("run.json", signed(b"{}")["run.json"])
        archive.writestr(f"source/{text}.py", b"")
    for verb in ("verify", "show", "report"):
        told = audit(verb, tmp_path / "a.zip", cwd=tmp_path, home=tmp_path / "home", timeout=60)
        assert told.returncode in (1, 2)
        assert "Traceback" not in told.stderr
        assert not unsafe(told.stdout + told.stderr)
