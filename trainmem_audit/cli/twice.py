"""`twice`."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.cli.common import ended_like_interrupted, say
from trainmem_audit.cli.record import PASS_THROUGH, require_recordable
from trainmem_audit.errors import UsageError
from trainmem_audit.text import json_text

if TYPE_CHECKING:
    from trainmem_audit.documents.twice import Experiment, Twice
    from trainmem_audit.twice.runner import Plan

__all__ = ["register"]

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("twice", context_settings=PASS_THROUGH, short_help="Run a script twice; find out why the runs differ.")(
        _twice
    )


def _twice(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or module, with -m).")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="The script's own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module name, as in `python -m`.")] = False,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="End each run after N steps.")] = 20,
    runs: Annotated[
        int, typer.Option(metavar="K", min=2, help="Say `equal` only after K runs: more find rarer differences.")
    ] = 2,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="End a run that takes longer.")] = 600,
    links: Annotated[
        list[Path] | None,
        typer.Option("--link", metavar="PATH", help="In this directory, only read, and not to be copied (repeatable)."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep the record and the output of each run in DIR.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Run a training script twice and compare, step by step; if the runs differ, find out why.

    Options go before SCRIPT; everything after it belongs to the script, which is not changed. Each run starts from a
    fresh copy of the working directory and is ended after --steps. If two runs differ, one factor after another is held
    still (random streams, hash seed, clock, threads, …) until the runs are equal; that is the cause, and the lines that
    mend it are printed. This takes some ten to forty short runs.

    Exit code: 0 equal, 1 different, 2 unusable, 3 undecided (the script fails, or trains no step).
    """
    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    require_recordable(target, module)
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError("the directory exists and is not empty", where=f"--keep {keep}")
    from trainmem_audit.twice.runner import Plan

    plan = Plan(
        target,
        tuple(arguments or ()),
        Path.cwd(),
        module=module,
        links=tuple(links or ()),
        steps=steps,
        timeout=timeout,
        keep=None if keep is None else keep.absolute(),
    )
    found = _search(plan, runs, quiet)
    if form == "json":
        typer.echo(json_text(found.to_json()))
    else:
        from trainmem_audit.twice.screen import twice_text

        typer.echo(twice_text(found))
    raise typer.Exit(found.exit_code)


def _search(plan: Plan, runs: int, quiet: bool) -> Twice:
    from trainmem_audit.twice.runner import ScriptRunner
    from trainmem_audit.twice.search import search

    began = time.monotonic()
    progress = _Progress(quiet)
    command = " ".join([*(["-m"] if plan.module else []), shlex.quote(plan.target), *_shown(plan)])
    try:
        with (
            ended_like_interrupted(),
            tempfile.TemporaryDirectory(prefix="twice-", ignore_cleanup_errors=True) as folder,
        ):
            runner = ScriptRunner(plan, Path(folder).resolve(), progress.step)
            found = search(runner, command, runs, progress.experiment)
            return found.model_copy(update={"notes": runner.notes, "seconds": f"{time.monotonic() - began:.1f}"})
    except KeyboardInterrupt:
        progress.clear()
        say("interrupted; all runs were ended")
        raise typer.Exit(_INTERRUPTED) from None


def _shown(plan: Plan) -> Iterator[str]:
    """Yield the arguments as they may be passed on, for what `twice` says gets into issues: no secret, no name."""
    from trainmem_audit.privacy import REDACTED, redact_argv

    for argument in redact_argv(list(plan.arguments), plan.cwd):
        if argument.redacted:
            yield argument.prefix + REDACTED
        else:
            yield shlex.quote(argument.prefix + (argument.text if argument.text is not None else argument.path or ""))


class _Progress:
    """Says each experiment when it is done; on a terminal also the step that is being run."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def step(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def experiment(self, item: Experiment) -> None:
        from trainmem_audit.twice.screen import experiment_line

        self.clear()
        if not self._quiet:
            say(f"held still: {experiment_line(item)}")
