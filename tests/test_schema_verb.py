"""`trainmem-audit schema`, and the page that is rendered from the schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from tests.releases import ROOT, freeze
from tests.vectors import FOLDER, MEND
from trainmem_audit.cli import app
from trainmem_audit.conformance import Schemas, our_schemas
from trainmem_audit.errors import FormatError, UsageError, VersionError
from trainmem_audit.schema_page import render_page

PAGE = ROOT.parent / "docs" / "schema.md"
RUN = FOLDER / "runs" / "valid" / "complete"


def schema(*arguments: str | Path) -> tuple[int, str]:
    """Run the verb; errors raised on purpose come through as they are."""
    done = CliRunner().invoke(app, ["schema", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def written(path: Path, data: bytes | Any) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_list_names_every_schema() -> None:
    code, text = schema("list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(our_schemas().names())


@pytest.mark.parametrize("name", our_schemas().names())
def test_print_gives_the_file(name: str) -> None:
    assert schema("print", name) == (0, (ROOT / "draft" / f"{name}.schema.json").read_text("utf-8"))


def test_what_conforms() -> None:
    assert schema("validate", "statement", RUN / "run.json")[0] == 0
    assert schema("validate", "step-log", RUN / "steps.jsonl")[0] == 0
    assert schema("validate", "plan", FOLDER / "plan" / "valid" / "momentum-reset.json") == (
        0,
        "momentum-reset.json: conforms to plan\n",
    )


def test_what_does_not_conform_is_told() -> None:
    file = FOLDER / "statement" / "invalid" / "unknown-outcome.json"
    code, text = schema("validate", "statement", file)
    assert code == 1
    assert "/predicate/run/outcome: another value" in text
    assert "  got:      glorious" in text
    code, text = schema("validate", "statement", file, "--format", "json")
    document = json.loads(text)
    assert (code, document["newer"]) == (1, False)
    assert [finding["where"] for finding in document["findings"]] == ["/predicate/run/outcome"]


def test_a_line_is_named(tmp_path: Path) -> None:
    lines = (RUN / "steps.jsonl").read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"n":2', b'"n":"2"')
    code, text = schema("validate", "step-log", written(tmp_path / "steps.jsonl", b"".join(lines)))
    assert code == 1
    assert "steps.jsonl:6/order/n: another type" in text


def test_many_bad_lines_are_not_all_told(tmp_path: Path) -> None:
    code, text = schema("validate", "step-log", written(tmp_path / "a.jsonl", b'{"t":"step"}\n' * 10_000))
    assert code == 1
    assert len(text.splitlines()) < 1000


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FormatError),
        (b"[", FormatError),
        (b"\xff", FormatError),
        (b"[" * 100_000, FormatError),
        (b'{"schemaVersion":1e400}', FormatError),
        (b"[]", FormatError),
        ({}, FormatError),
        ({"schemaVersion": "yesterday"}, FormatError),
        ({"schemaVersion": "9.0.0"}, VersionError),
        ({"schemaVersion": "0.1.0"}, VersionError),
        ({"payload": "e30=", "payloadType": "x", "signatures": []}, FormatError),
    ],
)
def test_a_file_that_cannot_be_judged(tmp_path: Path, data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        schema("validate", "plan", written(tmp_path / "a.json", data))


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "plan", "no-such-file.json"),
        ("validate", "plan", "."),
        ("validate", "no-such-schema", "a.json"),
        ("validate", "plan", "a.json", "--format", "yaml"),
        ("print", "no-such-schema"),
        ("print", "plan", "--version", "7.0.0"),
        ("list", "--version", "../draft"),
    ],
)
def test_a_command_that_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.json", {})
    with pytest.raises(UsageError):
        schema(*arguments)


def test_a_newer_minor_conforms_as_far_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(ROOT / "draft", tmp_path / "schema" / "1.2.0", "1.2.0")
    freeze(ROOT / "draft", tmp_path / "schema" / "draft", "0.1.0-draft")
    schemas = Schemas(tmp_path / "schema")
    monkeypatch.setattr("trainmem_audit.conformance.our_schemas", lambda: schemas)
    plan = json.loads((FOLDER / "plan" / "valid" / "momentum-reset.json").read_bytes())
    code, text = schema("validate", "plan", written(tmp_path / "a.json", plan | {"schemaVersion": "1.3.0", "sky": 1}))
    assert (code, text) == (3, "a.json: conforms as far as this version knows it to plan\n")
    wrong = plan | {"schemaVersion": "1.3.0", "seeds": [1]}
    assert schema("validate", "plan", written(tmp_path / "a.json", wrong))[0] == 1
    assert schema("validate", "plan", written(tmp_path / "a.json", plan | {"schemaVersion": "1.2.0"}))[0] == 0


def test_the_page_is_what_the_schemas_give() -> None:
    assert PAGE.read_text("utf-8") == render_page(our_schemas()), f"mend it with: {MEND}"
    assert schema("render") == (0, PAGE.read_text("utf-8"))


def test_the_page_has_every_member_and_its_meaning() -> None:
    text = PAGE.read_text("utf-8")
    for name in our_schemas().names():
        for node in (our_schemas().load(name), *our_schemas().load(name).get("$defs", {}).values()):
            members = node.get("properties", {})
            for key, member in members.items():
                if len(members) > 1:
                    assert f"| `{key}` |" in text
                assert len(members) == 1 or member["description"].replace("|", "\\|") in text, f"{name}: {key}"


def test_every_reference_on_the_page_leads_somewhere() -> None:
    text = PAGE.read_text("utf-8")
    anchors = re.findall(r'<a id="([^"]*)">', text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(anchors)


def test_every_line_of_a_table_has_its_columns() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(PAGE.read_text("utf-8"))
    rows: list[int] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append(0)
        elif token.type in ("td_open", "th_open"):
            rows[-1] += 1
    assert set(rows) == {3, 4}
    text = PAGE.read_text("utf-8")
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(rows)
