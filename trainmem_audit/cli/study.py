"""`study`: plan, run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainmem_audit.cli import study_report
from trainmem_audit.cli.common import KeyOption, PassphraseFileOption, ended_like_interrupted, say, signer_for
from trainmem_audit.errors import UsageError
from trainmem_audit.text import duration_text, safe_text

if TYPE_CHECKING:
    from trainmem_audit.study.plan import Declared, WantedProbe
    from trainmem_audit.study.runner import Progress, Work

__all__ = ["register"]

_INTERRUPTED = 130
_UNDECIDED = 3

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="The study.toml that declares the study.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    study = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )
    study.command("plan", short_help="Check a study, and say what it will cost and can find.")(_plan)
    study.command("probe", short_help="Write the probe of a program to the file that a study names.")(_probe)
    study.command("run", short_help="Run what is missing of a study.")(_run)
    study.command("estimate", short_help="Compute what a study found, from its records alone.")(_estimate)
    study_report.register(study)
    app.add_typer(study, name="study", short_help="Measure what memory does, by runs that are planned beforehand.")


def _plan(
    file: StudyArgument,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take some steps of the training, to say how long it will all take.")
    ] = False,
    pilot: Annotated[
        Path | None,
        typer.Option("--pilot", metavar="ESTIMATES", help="The estimates.json of a smaller study: says the power."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", metavar="N", min=1, max=1000, help="As study run will have.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
) -> None:
    """Check a study and say what it asks for: arms, steps, the smallest p-values that its seeds can give.

    With --format json the plan itself is printed, as every arm will name it by its digest.
    """
    from trainmem_audit.study.outlook import outlook_text
    from trainmem_audit.study.plan import read_study
    from trainmem_audit.study.runner import cores
    from trainmem_audit.text import json_text

    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    declared = read_study(file)
    if form == "json":
        typer.echo(json_text(declared.plan.to_json()))
        return
    found = None if pilot is None else _pilot(pilot)
    cost = _cost(declared) if measure else None
    typer.echo(outlook_text(declared, cost, workers or cores(), found))


def _pilot(path: Path) -> Any:
    from trainmem_audit.study.estimating import read_estimates

    return read_estimates(path)


def _cost(declared: Declared) -> Any:
    _require_torch()
    from trainmem_audit.study.measure import measure

    return measure(declared)


def _probe(
    file: StudyArgument,
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Write the probe of a study's program to [probe] file: a study is declared with its digest.

    Runs the program's factory, and none of its steps.
    """
    from trainmem_audit.study.plan import wanted_probe

    _require_torch()
    wanted = wanted_probe(file)
    target = wanted.directory / wanted.file
    if target.exists() and not force:
        raise UsageError("there is such a file already", where=str(target), remedy="--force overwrites it")
    _write_probe(wanted)


def _write_probe(wanted: WantedProbe) -> None:
    from trainmem_audit.programs.probefile import probe_bytes, probe_of
    from trainmem_audit.rundir import write_atomic

    target = wanted.directory / wanted.file
    probe = probe_of(wanted.entry, wanted.arguments, wanted.seed, wanted.directory)
    write_atomic(target, probe_bytes(probe))
    say(f"wrote {target}: {len(probe.inputs)} examples" + (f"; {probe.disjoint}" if probe.disjoint else ""))


def _run(
    file: StudyArgument,
    directory: Annotated[
        Path | None, typer.Option("--dir", "-d", metavar="DIR", help="Where it all goes. Default: STUDY without .toml.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", metavar="N", min=1, max=1000, help="How many arms at once.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, help="Threads of each arm; fixed when a study begins. Default: its share."
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try arms again that failed by themselves.")] = False,
    links: Annotated[
        list[Path] | None,
        typer.Option("--link", metavar="PATH", help="Read only, so not copied for each arm of a script (repeatable)."),
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run every arm of a study that is not there yet, and sign the list of all that were ever started.

    Each arm is a recorded run of its own in DIR/arms. A study that was interrupted, even killed, goes on with the same
    command. What failed is kept in DIR/failed.

    \b
    Exit code:
      0  all arms are there
      2  the study or the directory cannot be used
      3  some arms failed, or the study was interrupted
    """
    from trainmem_audit.study.plan import probe_to_write, read_study
    from trainmem_audit.study.runner import Runner, cores

    _require_torch()
    if (wanted := probe_to_write(file)) is not None:
        _write_probe(wanted)
    declared = read_study(file)
    target = file.with_suffix("") if directory is None else directory
    signer = signer_for(Path.cwd(), key, passphrase_file)
    number = workers or cores()
    progress = _Bar(quiet)
    runner = Runner(
        declared.plan, declared.directory, target, signer, retry=retry, say=progress.say, show=progress.show
    )
    work = _work(declared, target, signer, tuple(links or ()))
    with ended_like_interrupted():
        outcome = runner.run(number, threads or max(1, cores() // number), work, _pool(number, declared.directory))
    progress.clear()
    if outcome.failed:
        say(f"{len(outcome.failed)} arms failed; `study run --retry` tries them again, what they left is in failed/")
    if not outcome.interrupted:
        say(f"{len(outcome.finished)} of {len(work.arms())} arms are there: {target}")
    raise typer.Exit(_INTERRUPTED if outcome.interrupted else _UNDECIDED if outcome.failed else 0)


def _estimate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a study that was run.")],
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compute every number of a study from the records of its arms, and sign them: DIR/estimates.json.

    Needs no torch. Every arm is looked at in full, every pair certified by its step logs; `verify DIR/estimates.json`
    does it all again and compares.
    """
    from trainmem_audit.canonical import parse_float_text
    from trainmem_audit.study.estimating import write_estimates
    from trainmem_audit.study.layout import ESTIMATES
    from trainmem_audit.study.witnessing import summary_line

    if not directory.is_dir():
        raise UsageError("no such directory", where=str(directory))
    document = write_estimates(directory, signer_for(Path.cwd(), key, passphrase_file))
    unpaired = sum(pair.label == "unpaired" for pair in document.pairs)
    typer.echo(f"{directory / ESTIMATES}: {len(document.estimates)} estimates")
    typer.echo(f"arms: {document.study_log.started} started, {document.study_log.reported} reported")
    typer.echo(f"pairs: {len(document.pairs)}, of which {unpaired} are unpaired")
    for item in document.estimates:
        if item.verdict != "descriptive" and item.estimand in ("law-effect", "signed") and not quiet:
            value = f"{parse_float_text(item.value):.4g}"
            place = f"{item.observable}, {item.horizon} steps after {item.branch_step}"
            typer.echo(f"  {safe_text(item.contrast)}: {item.estimand} {value} ({safe_text(place)}): {item.verdict}")
    for part in () if quiet else document.back_flows or ():
        if part.diagnostics is not None:  # the primary distance
            typer.echo(f"  back-flow {safe_text(summary_line(part))}")


def _require_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UsageError("running a study needs torch", remedy="pip install 'trainmem-audit[torch]'")


def _work(declared: Declared, directory: Path, signer: Any, links: tuple[Path, ...]) -> Work:
    from trainmem_audit.documents.declared import find_contract
    from trainmem_audit.recording.provenance import facts
    from trainmem_audit.study.backflows import BackFlowWork
    from trainmem_audit.study.blocks import BlockWork
    from trainmem_audit.study.scripts import ScriptWork

    plan, source = declared.plan, declared.directory
    if plan.program.kind == "factory":
        work: Work = BlockWork(plan, source, directory, signer)
        return work if plan.back_flow is None else BackFlowWork(work, plan, source, directory, signer)
    contract = find_contract(None, source)
    known = facts(source, None if plan.program.kind == "module" else source / plan.program.entry)
    declared_contract = None if contract is None else contract.to_json()
    work = ScriptWork(plan, source, directory, signer, links, known, declared_contract)
    return work if plan.back_flow is None else BackFlowWork(work, plan, source, directory, signer)


def _pool(workers: int, cwd: Path) -> Any:
    from trainmem_audit.study.executor import LocalPool

    def make(threads: int) -> LocalPool:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        fixed = {**dict.fromkeys(names, str(threads)), "PYTHONHASHSEED": "0"}
        return LocalPool(workers, {**os.environ, **fixed}, cwd)

    return make


class _Bar:
    """A bar with the time left on a terminal, a line for every tenth elsewhere."""

    _WIDTH = 24

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._tenths = 0

    def say(self, text: str) -> None:
        """Say a sentence."""
        self.clear()
        say(text)

    def clear(self) -> None:
        """Take the bar away."""
        if self._live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        done = progress.finished + progress.failed
        text = f"{done}/{progress.total} arms" + (f", {progress.failed} failed" if progress.failed else "")
        if self._live:
            filled = self._WIDTH * done // max(1, progress.total)
            bar = "█" * filled + "·" * (self._WIDTH - filled)
            sys.stderr.write(f"\r\033[K{bar} {text}{self._left(progress)}")
            sys.stderr.flush()
        elif not self._quiet and (tenths := 10 * done // max(1, progress.total)) > self._tenths:
            self._tenths = tenths
            say(text + self._left(progress))

    def _left(self, progress: Progress) -> str:
        """Return the time left, by what the arms of this session took."""
        done = progress.finished + progress.failed
        made = done - progress.kept
        if made < 1 or done == progress.total:
            return ""
        return f", {duration_text((time.monotonic() - self._began) / made * (progress.total - done))} left"
