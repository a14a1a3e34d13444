"""`schema`: list the schemas, print one, hold a file against one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.documents.findings import Finding

__all__ = ["read_document", "register"]

MAX_FILE = 64 * 2**20
MOST_BAD_LINES = 20

VersionOption = Annotated[
    str | None, typer.Option("--version", metavar="VERSION", help="Which version. Default: the current one.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A schema: `trainmem-audit schema list` names them.")]

_schema = typer.Typer(help="List and print the JSON Schemas of our documents, and hold a file against one.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(_schema, name="schema", no_args_is_help=True)


@_schema.command("list")
def _list(version: VersionOption = None) -> None:
    """List the schemas of a version."""
    from trainmem_audit.conformance import our_schemas
    from trainmem_audit.documents.common import SCHEMA_VERSION

    schemas = our_schemas()
    for name in schemas.names(version or SCHEMA_VERSION):
        typer.echo(f"{name:<14} {schemas.load(name, version or SCHEMA_VERSION)['title']}")


@_schema.command("print")
def _print(name: NameArgument, version: VersionOption = None) -> None:
    """Print a schema."""
    from trainmem_audit.conformance import our_schemas
    from trainmem_audit.documents.common import SCHEMA_VERSION

    typer.echo(our_schemas().text(name, version or SCHEMA_VERSION), nl=False)


@_schema.command("render")
def _render(version: VersionOption = None) -> None:
    """Print a page for people that explains every member of every schema (Markdown)."""
    from trainmem_audit.conformance import our_schemas
    from trainmem_audit.documents.common import SCHEMA_VERSION
    from trainmem_audit.schema_page import render_page

    typer.echo(render_page(our_schemas(), version or SCHEMA_VERSION), nl=False)


@_schema.command("validate")
def _validate(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file, a run.json, or a log (`.jsonl`).")],
    version: VersionOption = None,
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
) -> None:
    """Hold a file against a schema: each line of a `.jsonl` by itself, of a `run.json` the statement in it.

    The version of the schema is the one that the document names. Only the form is looked at: no signature, no chain,
    no other file. For those there is `trainmem-audit verify`.

    \b
    Exit code:
      0  it conforms
      1  it does not; every finding names the member by its JSON pointer
      2  the file cannot be read, or is of an unknown version
      3  it is of a newer version, so what this one does not know was not looked at
    """
    import json

    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    found, newer = _examine(name, file, version)
    if form == "json":
        typer.echo(json.dumps({"findings": [item.to_json() for item in found], "newer": newer}, indent=2))
    else:
        _tell(found, newer, name, file)
    raise typer.Exit(1 if found else 3 if newer else 0)


def _examine(name: str, file: Path, version: str | None) -> tuple[list[Finding], bool]:
    from trainmem_audit.conformance import our_schemas
    from trainmem_audit.documents.common import SCHEMA_VERSION

    schemas = our_schemas()
    schemas.text(name, version or SCHEMA_VERSION)  # names those that there are
    if file.suffix == ".jsonl":
        return _lines(name, file, version or SCHEMA_VERSION), False
    from trainmem_audit.versions import choose, version_of

    document = read_document(file)
    if version is not None:
        return list(schemas.findings(document, name, version)), False
    if not _says_its_version(name):
        return list(schemas.findings(document, name)), False
    choice = choose(version_of(name, document), schemas.versions)
    found = schemas.findings(document, name, choice.version)
    if choice.newer:
        found = tuple(item for item in found if item.message != "an unknown member")
    return list(found), choice.newer


def _says_its_version(name: str) -> bool:
    from trainmem_audit.conformance import our_schemas

    return name == "statement" or "schemaVersion" in our_schemas().load(name).get("properties", {})


def _lines(name: str, file: Path, version: str) -> list[Finding]:
    from trainmem_audit.canonical import loads_strict
    from trainmem_audit.conformance import our_schemas
    from trainmem_audit.steplog import iter_lines

    found: list[Finding] = []
    with file.open("rb") as lines:
        chunks = iter(lambda: lines.read(2**20), b"")
        for number, (line, _) in enumerate(iter_lines(chunks, file.name), start=1):
            where = f"{file.name}:{number}"
            told = our_schemas().findings(loads_strict(line, where), name, version)
            found += [item.model_copy(update={"where": f"{where}{item.where}"}) for item in told]
            if len(found) >= MOST_BAD_LINES:
                break
    return found


def read_document(file: Path) -> object:
    """Return the JSON value of a file; of an envelope, what it holds (its signature is not looked at)."""
    from trainmem_audit.canonical import loads_strict
    from trainmem_audit.envelope import parse_envelope

    if not file.is_file():
        raise UsageError("no such file", where=str(file))
    with file.open("rb") as opened:
        data = opened.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UsageError("the file is too long", where=str(file), expected=f"at most {MAX_FILE} bytes")
    document = loads_strict(data, file.name)
    if isinstance(document, dict) and {"payload", "payloadType", "signatures"} <= document.keys():
        return loads_strict(parse_envelope(data, file.name).payload, f"{file.name}: payload")
    return document


def _tell(found: list[Finding], newer: bool, name: str, file: Path) -> None:
    from trainmem_audit.text import safe_text

    for item in found:
        typer.echo(f"{safe_text(item.where or '(the document)')}: {safe_text(item.message)}")
        for label, text in (("expected", item.expected), ("got", item.got)):
            if text:
                typer.echo(f"  {label + ':':<9} {safe_text(text)}")
    verdict = "does not conform" if found else "conforms as far as this version knows it" if newer else "conforms"
    typer.echo(f"{safe_text(file.name)}: {verdict} to {name}")
