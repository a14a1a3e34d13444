"""`show`, `diff`, `pack` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainmem_audit.cli.check import ProfileOption, WaiversOption, terms_for
from trainmem_audit.cli.common import (
    AtOption,
    AttestationsOption,
    DisclosuresOption,
    RevokedOption,
    RunArgument,
    TrustFileOption,
    say,
)
from trainmem_audit.cli.pairs import print_certificate
from trainmem_audit.cli.verify import SignerOption, attestations_beside, examine_run, policy_for
from trainmem_audit.errors import UsageError
from trainmem_audit.text import json_text

if TYPE_CHECKING:
    from trainmem_audit.documents.findings import Replay
    from trainmem_audit.documents.steplog import Line

__all__ = ["register"]

_MOST_SAVED = 64 * 2**20


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("show", short_help="Print what a run states, on one screen.")(_show)
    app.command("diff", short_help="Say where two recorded runs part, and why.")(_diff)
    app.command("pack", short_help="Make one file of a run, to hand in with a paper.")(_pack)
    app.command("report", short_help="Write the report, as HTML and Markdown.")(_report)


def _show(
    run: RunArgument,
    trust_file: TrustFileOption = None,
    revoked: RevokedOption = None,
    at: AtOption = None,
    attestations: AttestationsOption = None,
    disclosures: DisclosuresOption = None,
) -> None:
    """Print what a run states, on one screen. Checks the signature, openings and attestations, and no file."""
    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import MAX_ENVELOPE, read_statement
    from trainmem_audit.show import statement_text
    from trainmem_audit.verify import examine_signature

    policy = policy_for(
        trust_file,
        None,
        allow_untrusted=True,
        revoked=revoked,
        at=at,
        attestations=attestations_beside(run, attestations),
        disclosures=disclosures,
    )
    with open_run(run) as reader:
        if "run.json" not in reader.names():
            read_statement(reader)  # says what to do
        data = reader.read("run.json", MAX_ENVELOPE)  # once: what is shown is what was signed
        found = examine_signature(reader, policy, data)
        said = (found.openings, found.attested.attestations)
        typer.echo(statement_text(read_statement(reader, data), found.signature, *said), nl=False)
    for finding in found.findings:
        if finding.code.startswith(("OPEN-", "ATT-")):
            say(f"{finding.where}: {finding.message}")


def _diff(
    expected: Annotated[Path, typer.Argument(metavar="RUN", help="A run.")],
    got: Annotated[Path, typer.Argument(metavar="RUN", help="The run to compare with it.")],
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
    offset: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="STEPS", help="How many steps of the first run come before the second, a resumed one."
        ),
    ] = None,
    paired: Annotated[
        bool,
        typer.Option("--paired", help="Print the pairing certificate of two arms instead: TREATED, then CONTROL."),
    ] = False,
    prefix: Annotated[
        Path | None, typer.Option("--prefix", metavar="RUN", help="The run that both arms branched from.")
    ] = None,
    order_by_loss: Annotated[
        bool,
        typer.Option("--order-by-loss", help="Without a loader: the losses choose the batches (prioritized replay)."),
    ] = False,
) -> None:
    """Compare two recorded runs: the first step, component and tensor that differ, and the likely cause.

    Named besides: what differs in command, code, inputs, environment and settings, harmless or not. Where both runs
    keep a snapshot of the step that differs (`record --snapshot-at STEP`), the values too: the first element, ULP.

    A run that was resumed from a checkpoint of a recorded run is compared from there on, and the difference is blamed
    on what the checkpoint does not save.

    With --paired: whether two arms are equal up to the branch, differ there in what the intervention names alone, and
    share order and random streams after it, clause by clause.

    Exit code: 0 equal, 1 different. With --paired: 0 paired or no-op, 1 unpaired, 3 undecided.
    """
    from trainmem_audit.errors import FormatError
    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import around, compare, read_statement, resumed_at, with_values
    from trainmem_audit.screen import around_lines, difference_lines

    if form not in ("text", "json"):
        raise UsageError("unknown format", where="--format", expected="text or json", got=form[:40])
    if paired:
        raise typer.Exit(print_certificate(expected, got, prefix, form, order_by_loss))
    with open_run(expected) as left, open_run(got) as right:
        offset = resumed_at(left, right) if offset is None else offset or None
        difference, steps = compare(left, right, offset)
        try:
            if offset is None:
                difference = difference and with_values(difference, left, right)
        except FormatError as error:  # what was found stands, however large it is
            say(f"without values: {error}")
        signed = [read_statement(side).predicate for side in (left, right) if "run.json" in side.names()]
    besides = around(*signed) if len(signed) == 2 else {}
    if form == "json":
        found = None if difference is None else difference.to_json()
        said = {
            "equal": difference is None,
            "stepsEqual": steps - (offset or 0),
            "difference": found,
            "besides": besides,
        }
        if offset is not None:
            said["resumedAt"] = offset
        typer.echo(json_text(said))
    else:
        equal = [f"equal: {steps - (offset or 0)} steps and the end of the run"]
        lines = equal if difference is None else difference_lines(difference)
        resumed = [] if offset is None else [f"resumed: the second run goes on after {offset} steps of the first"]
        typer.echo("\n".join([*resumed, *lines, *around_lines(besides)]))
    raise typer.Exit(0 if difference is None else 1)


def _pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The zip to write. Default: RUN.zip.")
    ] = None,
    blind: Annotated[
        bool | None,
        typer.Option(
            "--blind/--open",
            help="Leave out what names people: openings of commitments, attestations. Default: --open, but --blind "
            "for a run that was recorded with --anonymous.",
        ),
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
    result = pack(run, target, allow_secrets=allow_secrets, allow_identity=allow_identity, blind=blind)
    for name in result.left_out:
        say(f"left out, since the statement does not list it: {name}")
    for name in result.kept_back:
        say(f"left out of a blind pack: {name}")
    if result.opened:
        say(f"disclosures.json goes along and opens {', '.join(result.opened)}; --blind leaves it out")
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
    revoked: RevokedOption = None,
    at: AtOption = None,
    attestations: AttestationsOption = None,
    disclosures: DisclosuresOption = None,
) -> None:
    """Write report.html and report.md for a run: verdicts, checklist, memory sources, order, environment, replay.

    The run is checked again; only the replay is taken from --verification, if it is of this very run.
    """
    from dataclasses import replace

    from trainmem_audit.compliance import judge, record_of
    from trainmem_audit.gathering import Gatherer
    from trainmem_audit.pathlength import SnapshotStates, measure_weights
    from trainmem_audit.report import SeriesCollector, write_report
    from trainmem_audit.rundir import open_run

    if verification is not None:
        _refuse_the_authors(run, verification)
    collector, gatherer, states = SeriesCollector(), Gatherer(), SnapshotStates()
    terms = terms_for(profile, "must", waivers)

    def watch(line: Line) -> None:
        collector.add(line)
        gatherer.take(line)
        states.take(line)

    with open_run(run) as reader:
        policy = policy_for(
            trust_file,
            signer,
            allow_untrusted=True,
            revoked=revoked,
            at=at,
            attestations=attestations_beside(run, attestations),
            disclosures=disclosures,
        )
        found = examine_run(reader, policy, watch=watch, indices=gatherer.indices)
        if found.statement is None:
            raise UsageError("there is no statement to report on", where=str(run), remedy="see `trainmem-audit verify`")
        if verification is not None:
            found.replay = _saved_replay(verification, str(found.verification.facts.get("chainHead")))
        compliance = judge(record_of(found, gatherer), terms)
        series = replace(collector.series(), weights=measure_weights(reader, states))
    for path in write_report(out or Path(), found.statement, found.verification, series, compliance):
        typer.echo(str(path))


def _refuse_the_authors(run: Path, verification: Path) -> None:
    """A verdict that came with the run is its author's, and a report must not show it as the reader's own."""
    folder = run if run.is_dir() else run.parent if run.name == "run.json" else None
    if folder is not None and verification.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            "a verification that lies in the run directory may be its author's",
            where=str(verification),
            expected="what your own `trainmem-audit verify --save FILE` wrote, elsewhere",
            remedy="verify the run yourself, and save the result outside of it",
        )


def _saved_replay(path: Path, chain_head: str) -> Replay:
    """Return the replay of a saved verification, if it is of the run with this chain head."""
    from trainmem_audit.canonical import loads_strict
    from trainmem_audit.documents.compliance import Compliance
    from trainmem_audit.documents.findings import Verification
    from trainmem_audit.errors import FormatError

    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    with path.open("rb") as file:
        data = file.read(_MOST_SAVED + 1)
    if len(data) > _MOST_SAVED:
        raise UsageError("too long for a saved verification", where=str(path), expected=f"at most {_MOST_SAVED} bytes")
    loads_strict(data, path.name)
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
