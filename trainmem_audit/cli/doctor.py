"""`doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from trainmem_audit.errors import UsageError
from trainmem_audit.text import json_text

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor", short_help="Say what this machine can record and replay.")(_doctor)


def _doctor(
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
) -> None:
    """Say what this machine can verify, record and replay, what decides bits on it, and what is missing.

    Exit code: 0 it can do all three, 3 something is missing.
    """
    from trainmem_audit.doctor import diagnose, diagnosis_text

    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    diagnosis = diagnose()
    typer.echo(diagnosis_text(diagnosis) if form == "text" else json_text(diagnosis.to_json()))
    raise typer.Exit(0 if diagnosis.verify and diagnosis.record and diagnosis.replay else 3)
