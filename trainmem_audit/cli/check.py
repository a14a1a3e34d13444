"""`check` and `explain`: the checklist on a run, and what its ids mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trainmem_audit.cli.common import (
    AtOption,
    AttestationsOption,
    DisclosuresOption,
    RevokedOption,
    RunArgument,
    TrustFileOption,
    say,
)
from trainmem_audit.cli.verify import (
    FORMATS_SHOWN,
    ParentOption,
    SignerOption,
    attestations_beside,
    examine_run,
    policy_for,
    replayer_for,
)
from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.compliance import Terms
    from trainmem_audit.documents.compliance import Compliance
    from trainmem_audit.verify import Policy

__all__ = ["ProfileOption", "WaiversOption", "register", "terms_for"]

ProfileOption = Annotated[
    str, typer.Option("--profile", metavar="core|paired", help="Which items: of one run, or of an arm of a study.")
]
WaiversOption = Annotated[
    Path | None,
    typer.Option("--waivers", metavar="FILE", help="Items that you let pass: id, reason, who (TOML or JSON)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("check", short_help="Verify, and say which items of the checklist a run meets.")(_check)
    app.command("explain", short_help="Say what an id of the checklist, a code or an error means.")(_explain)


def terms_for(profile: str, fail_on: str, waivers: Path | None) -> Terms:
    """Return what a check asks for; a faulty waiver is an error before anything is checked."""
    from datetime import UTC, datetime

    from trainmem_audit.checks import items_of
    from trainmem_audit.compliance import SEVERITIES, Terms, read_waivers

    items_of(profile)
    wanted = next((severity for severity in SEVERITIES if severity == fail_on), None)
    if wanted is None:
        raise UsageError("unknown severity", where="--fail-on", expected=" or ".join(SEVERITIES), got=fail_on[:40])
    given = () if waivers is None else read_waivers(waivers)
    return Terms(profile=profile, fail_on=wanted, waivers=given, today=datetime.now(UTC).date().isoformat())


def _check(
    run: RunArgument,
    profile: ProfileOption = "core",
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="must|should|may", help="From which severity on an item counts.")
    ] = "must",
    waivers: WaiversOption = None,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="full|prefix:N|segments:K", help="Run it again, and compare step by step."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to run the author's code.")] = False,
    parent: ParentOption = None,
    signer: SignerOption = None,
    trust_file: TrustFileOption = None,
    allow_untrusted: Annotated[
        bool, typer.Option("--allow-untrusted", help="Accept a valid signature of an unknown signer.")
    ] = False,
    revoked: RevokedOption = None,
    at: AtOption = None,
    attestations: AttestationsOption = None,
    disclosures: DisclosuresOption = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="Replay the code in this directory.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="DIR", help="Where inputs of the run lie (repeatable).")
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option("--secrets", metavar="FILE", help="Values of redacted arguments (see verify).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="When to give up the replay.")
    ] = None,
    save: Annotated[
        list[Path] | None,
        typer.Option("--save", metavar="FILE", help="Also write it: .json, .sarif, .xml (JUnit) or .txt (repeatable)."),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar=FORMATS_SHOWN, help="How to print it.")] = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Verify a run and evaluate every item of the checklist; none ends the others.

    Of a study's directory every arm is verified, every pair is certified by its two logs, and the items that take a
    study are evaluated too (--profile paired).

    What is merely declared never passes. `trainmem-audit explain ID` says what an item asks and how it is decided.

    \b
    Exit code:
      0  passed
      1  what `verify` gives 1 for; an item that counts fails or is merely declared
      2  the input or the command cannot be used, or nobody agreed to a replay
      3  what `verify` gives 3 for; an item that counts could not be decided
    """
    from trainmem_audit.compliance import judge, record_of
    from trainmem_audit.formats import COMPLIANCE
    from trainmem_audit.gathering import Gatherer
    from trainmem_audit.rundir import open_run
    from trainmem_audit.study.layout import is_study

    if form not in COMPLIANCE:
        raise UsageError("unknown format", where="--format", expected=" or ".join(sorted(COMPLIANCE)), got=form[:40])
    saved = {path: _format_of(path) for path in save or ()}
    terms = terms_for(profile, fail_on, waivers)
    options: dict[str, Any] = {"source": source, "data": tuple(data or ()), "timeout": timeout}
    gatherer = Gatherer()
    if is_study(run):
        if replay is not None:
            raise UsageError("the arms of a study are replayed one by one", where="--replay", got=replay[:40])
        policy = policy_for(trust_file, signer, allow_untrusted, revoked=revoked, at=at)
        _tell(_check_study(run, policy, terms, quiet), form, saved)
    with open_run(run) as reader:
        replayer = None if replay is None else replayer_for(reader, replay, yes, quiet, secrets, options)
        policy = policy_for(
            trust_file,
            signer,
            allow_untrusted,
            revoked=revoked,
            at=at,
            attestations=attestations_beside(run, attestations),
            disclosures=disclosures,
        )
        found = examine_run(reader, policy, replayer, gatherer.take, gatherer.indices, parent)
        compliance = judge(record_of(found, gatherer), terms)
    signature = compliance.verification.signature
    if form == "text" and signature.state == "unknown-signer" and not allow_untrusted and signer is None:
        say(f"if the paper gives this fingerprint: --signer {signature.keyid}")
    _tell(compliance, form, saved)


def _check_study(directory: Path, policy: Policy, terms: Terms, quiet: bool) -> Compliance:
    """Verify all records of a study, certify its pairs, and evaluate every item."""
    from trainmem_audit.compliance import judge
    from trainmem_audit.studycheck import examine_study

    found = examine_study(directory, policy, terms.profile, say=(lambda _: None) if quiet else _verified)
    return judge(found.record, terms, found.decide)


def _verified(name: str) -> None:
    say(f"verified {name}")


def _tell(compliance: Compliance, form: str, saved: dict[Path, str]) -> NoReturn:
    """Print what was found, write it where it is to be saved, and end."""
    from trainmem_audit.formats import COMPLIANCE
    from trainmem_audit.rundir import write_atomic

    typer.echo(COMPLIANCE[form](compliance))
    for path, wanted in saved.items():
        write_atomic(path, (COMPLIANCE[wanted](compliance) + "\n").encode("utf-8", "backslashreplace"))
    raise typer.Exit(compliance.exit_code)


_SUFFIXES = {".json": "json", ".sarif": "sarif", ".txt": "text", ".xml": "junit"}


def _format_of(path: Path) -> str:
    """Return the format in which a file is to be written, by its name."""
    if path.is_dir():
        raise UsageError("a directory, not a file", where=f"--save {path}", remedy="name the file to write")
    if path.suffix not in _SUFFIXES:
        expected = " or ".join(sorted(_SUFFIXES))
        raise UsageError("the name of the file says no format", where=f"--save {path}", expected=expected)
    return _SUFFIXES[path.suffix]


def _explain(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="TM-ORD-003, FILE-CHANGED, FormatError …; `all` lists them.")
    ],
    form: Annotated[
        str, typer.Option("--format", metavar="text|markdown", help="`all` as Markdown is the page of the checklist.")
    ] = "text",
) -> None:
    """Say why an item, a code or an error matters, how it is decided, and how to mend it."""
    from trainmem_audit.explain import explain, known

    if form not in ("text", "markdown") or (form == "markdown" and name != "all"):
        raise UsageError("unknown format", where="--format", expected="text, or for `all` markdown", got=form[:40])
    if form == "markdown":
        from trainmem_audit.handbook import checklist_page

        typer.echo(checklist_page(), nl=False)
    elif name == "all":
        for key, found in known().items():
            typer.echo(f"{key:<20} {found.title}")
    else:
        typer.echo(explain(name))
