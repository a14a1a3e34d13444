"""L6: the command line. Parses, builds, prints, gives the exit code (DESIGN § 8); everything else lies below.

Commands import what they need when they run, so that `--help` and the light verbs start at once and need no torch.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from trainmem_audit import __version__
from trainmem_audit.cli import check, doctor, keys, migrate, record, runs, schema, study, twice, verify
from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.text import safe_text

__all__ = ["app", "main"]

app = typer.Typer(
    name="trainmem-audit",
    help="Record a training run, verify the record, replay it, and report on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trainmem-audit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Record a training run, verify the record, replay it, and report on it."""


for module in (record, twice, verify, check, runs, study, keys, doctor, schema, migrate):
    module.register(app)


def main() -> None:
    """Run the command line; every error raised on purpose becomes a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no Unicode, a terminal that has no `→`
    try:
        app()
    except TrainmemAuditError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(2)
    except OSError as error:  # no right to read or write there, a full disk
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "file system"
        typer.echo(f"error: {safe_text(where)}: {safe_text(error.strerror or str(error))}", err=True)
        sys.exit(2)
