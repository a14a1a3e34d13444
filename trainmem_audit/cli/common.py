"""What several commands share: option types, the signing key, and text that is safe to print."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.text import safe_text

if TYPE_CHECKING:
    from trainmem_audit.keys import Signer

__all__ = [
    "AtOption",
    "AttestationsOption",
    "DisclosuresOption",
    "KeyOption",
    "PassphraseFileOption",
    "RevokedOption",
    "RunArgument",
    "TrustFileOption",
    "ended_like_interrupted",
    "passphrase_for",
    "say",
    "signer_for",
]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, its run.json, or a packed zip.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Private key (OpenSSH, Ed25519). Default: the project's own."),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Holds the passphrase; else TRAINMEM_AUDIT_PASSPHRASE; else you are asked.",
    ),
]
TrustFileOption = Annotated[
    Path | None, typer.Option("--trust-file", metavar="FILE", help="Whom to trust. Default: your own list.")
]
RevokedOption = Annotated[
    Path | None, typer.Option("--revoked", metavar="FILE", help="Keys that nobody may use. Default: your own list.")
]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="Ask the trust file as of this time. Default: now.")
]
AttestationsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--attestations", metavar="FILE", help="More attestations, that came apart from the run (repeatable)."
    ),
]
DisclosuresOption = Annotated[
    Path | None,
    typer.Option("--disclosures", metavar="FILE", help="Openings of commitments that came apart from the run."),
]


def say(text: str) -> None:
    """Print a remark (not data) to stderr, on one line."""
    with suppress(OSError):  # a remark that cannot be printed stops nothing
        typer.echo(f"trainmem-audit: {safe_text(text)}", err=True)


def signer_for(directory: Path, key: Path | None, passphrase_file: Path | None, anonymous: bool = False) -> Signer:
    """Return the key to sign with, unlocked; a key that had to be made is said aloud."""
    from trainmem_audit import keys

    if key is not None:
        return keys.Signer.load(key, passphrase_for(key, passphrase_file))
    given = keys.find_passphrase(passphrase_file, os.environ)
    if anonymous:
        signer, path = keys.make_anonymous_key(given)
        say(f"made a fresh key for this run: {path} ({signer.public.keyid})")
        return signer
    path = keys.project_key_path(directory)
    if path.exists():
        return keys.Signer.load(path, passphrase_for(path, passphrase_file))
    signer, made = keys.load_or_make_project_key(directory, given)
    if made:
        say(f"made a signing key for this project, {'with' if given else 'without'} a passphrase: {path}")
        say(f"its fingerprint, for the paper: {signer.public.keyid}")
    return signer


def passphrase_for(key: Path, file: Path | None) -> bytes | None:
    """Return the passphrase of `key`: from the file, the environment, or a prompt; `None` for a key without one."""
    from trainmem_audit import keys

    given = keys.find_passphrase(file, os.environ)
    if given is not None or not keys.is_encrypted(key):
        return given
    entered: str = typer.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return entered.encode()


@contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C: what we start has sessions of its own, so nobody else would end it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
