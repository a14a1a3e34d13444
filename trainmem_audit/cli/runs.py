"""`show`, `diff`, `pack` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.cli.check import ProfileOption, WaiversOption, terms_for
from trainmem_audit.cli.common import RunArgument, say
from trainmem_audit.cli.verify import SignerOption, TrustFileOption, examine_run, policy_for
from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.documents.findings import Replay
    from trainmem_audit.documents.steplog import Line

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("show", short_help="Print what a run states, on one screen.")(_show)
    app.command("diff", short_help="Say where two recorded runs part, and why.")(_diff)
    app.command("pack", short_help="Make one file of a run, to hand in with a paper.")(_pack)
    app.command("report", short_help="Write the report, as HTML and Markdown.")(_report)


def _show(run: RunArgument, trust_file: TrustFileOption = None) -> None:
    """Print what a run states, on one screen. Checks the signature and nothing else."""
    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import read_statement
    from trainmem_audit.show import statement_text
    from trainmem_audit.verify import examine_signature

    with open_run(run) as reader:
        signature = examine_signature(reader, policy_for(trust_file, None, allow_untrusted=True))
        typer.echo(statement_text(read_statement(reader), signature), nl=False)


def _diff(
    expected: Annotated[Path, typer.Argument(metavar="RUN", help="A run.")],
    got: Annotated[Path, typer.Argument(metavar="RUN", help="The run to compare with it.")],
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
) -> None:
    """Compare two recorded runs: the first step, component and tensor that differ, and the likely cause.

    Named besides: what differs in command, code, inputs, environment and settings, harmless or not. Where both runs
    keep a snapshot of the step that differs (`record --snapshot-at STEP`), the values too: the first element, ULP.

    Exit code: 0 equal, 1 different.
    """
    import json

    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import around, compare, read_statement, with_values
    from trainmem_audit.screen import around_lines, difference_lines

    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    with open_run(expected) as left, open_run(got) as right:
        difference, steps = compare(left, right)
        difference = difference and with_values(difference, left, right)
        signed = [read_statement(side).predicate for side in (left, right) if "run.json" in side.names()]
    besides = around(*signed) if len(signed) == 2 else {}
    if form == "json":
        found = None if difference is None else difference.to_json()
        said = {"equal": difference is None, "stepsEqual": steps, "difference": found, "besides": besides}
        typer.echo(json.dumps(said, indent=2))
    else:
        equal = [f"equal: {steps} steps and the end of the run"]
        lines = equal if difference is None else difference_lines(difference)
        typer.echo("\n".join([*lines, *around_lines(besides)]))
    raise typer.Exit(0 if difference is None else 1)


def _pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The zip to write. Default: RUN.zip.")
    ] = None,
    allow_secrets: Annotated[
        bool, typer.Option("--allow-secrets", help="Pack although something looks like a secret.")
    ] = False,
    allow_identity: Annotated[
        bool, typer.Option("--allow-identity", help="Pack although something names you or this machine.")
    ] = False,
) -> None:
    """Make one file of a run, to hand in with a paper.

    Stops at what looks like a secret, or names you or this machine: in the code, the log, the statement.
    """
    from trainmem_audit.packing import pack

    target = out or (run.with_name(f"{run.name}.zip") if run.name.strip(".") else Path(f"{run.resolve()}.zip"))
    result = pack(run, target, allow_secrets=allow_secrets, allow_identity=allow_identity)
    for name in result.left_out:
        say(f"left out, since the statement does not list it: {name}")
    typer.echo(str(target))


def _report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Directory to write to. Default: here.")
    ] = None,
    verification: Annotated[
        Path | None,
        typer.Option(
            "--verification", metavar="FILE", help="What `verify` or `check --save` wrote, to show its replay."
        ),
    ] = None,
    signer: SignerOption = None,
    trust_file: TrustFileOption = None,
    profile: ProfileOption = "core",
    waivers: WaiversOption = None,
) -> None:
    """Write report.html and report.md for a run: verdicts, checklist, memory sources, order, environment, replay.

    The run is checked again; only the replay is taken from --verification, if it is of this very run.
    """
    from trainmem_audit.compliance import judge, record_of
    from trainmem_audit.gathering import Gatherer
    from trainmem_audit.report import SeriesCollector, write_report
    from trainmem_audit.rundir import open_run

    collector, gatherer = SeriesCollector(), Gatherer()
    terms = terms_for(profile, "must", waivers)

    def watch(line: Line) -> None:
        collector.add(line)
        gatherer.take(line)

    with open_run(run) as reader:
        policy = policy_for(trust_file, signer, allow_untrusted=True)
        found = examine_run(reader, policy, watch=watch, indices=gatherer.indices)
        if found.statement is None:
            raise UsageError("there is no statement to report on", where=str(run), remedy="see `trainmem-audit verify`")
        if verification is not None:
            found.replay = _saved_replay(verification, str(found.verification.facts.get("chainHead")))
        compliance = judge(record_of(found, gatherer), terms)
    for path in write_report(out or Path(), found.statement, found.verification, collector.series(), compliance):
        typer.echo(str(path))


def _saved_replay(path: Path, chain_head: str) -> Replay:
    """Return the replay of a saved verification, if it is of the run with this chain head."""
    from trainmem_audit.documents.compliance import Compliance
    from trainmem_audit.documents.findings import Verification
    from trainmem_audit.errors import FormatError

    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    data = path.read_bytes()
    try:
        saved = Compliance.parse(data, path.name).verification
    except FormatError:
        saved = Verification.parse(data, path.name)
    if saved.facts.get("chainHead") != chain_head:
        raise UsageError(
            "the saved verification is of another run",
            where=str(path),
            expected=f"chain head {chain_head}",
            got=str(saved.facts.get("chainHead")),
        )
    found: Replay = saved.replay
    return found
