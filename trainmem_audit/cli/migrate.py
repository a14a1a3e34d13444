"""`migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainmem_audit.cli.common import KeyOption, PassphraseFileOption, say, signer_for
from trainmem_audit.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("migrate", short_help="Write an old document anew, in the current version.")(_migrate)


def _migrate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A run.json, or a document of ours in JSON.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NEW", help="Where to write it; never overwritten.")],
    name: Annotated[
        str, typer.Option("--schema", metavar="NAME", help="Which schema the document is of.")
    ] = "statement",
    sign: Annotated[bool, typer.Option("--sign", help="Sign it, with --key or the project's own key.")] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
) -> None:
    """Write a document of an older version anew, in the current version.

    The old file stays as it is, and keeps verifying. The new one names the SHA-256 of the old in `derivedFrom`, and is
    not covered by its signature: verify the old one first. Without --sign the new one is a bare document; with it, an
    envelope signed by you.
    """
    from trainmem_audit import versions
    from trainmem_audit.canonical import canonical_bytes
    from trainmem_audit.cli.schema import read_document
    from trainmem_audit.documents.manifest import PAYLOAD_TYPE
    from trainmem_audit.envelope import seal

    signing = sign or key is not None
    if signing and name != "statement":
        raise UsageError(
            "only a statement is signed",
            where="--sign" if sign else "--key",
            got=name[:40],
            expected="--schema statement",
        )
    document: Any = read_document(file)
    if not isinstance(document, dict):
        raise UsageError("not a document of ours", where=str(file), expected="a JSON object")
    new = canonical_bytes(versions.migrate(name, document))
    data = seal(new, PAYLOAD_TYPE, signer_for(Path.cwd(), key, passphrase_file)) if signing else new + b"\n"
    try:
        with out.open("xb") as target:
            target.write(data)
    except FileExistsError:
        raise UsageError("there is such a file already", where=str(out), remedy="name another with --out") from None
    say(f"wrote {out}, {'signed' if signing else 'unsigned'}; the signature of {file.name} does not cover it")
