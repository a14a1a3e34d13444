"""`study report`: the report of a study, from its plan and its signed estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainmem_audit.cli.common import RevokedOption, TrustFileOption, say
from trainmem_audit.cli.verify import SignerOption, policy_for
from trainmem_audit.errors import UsageError

__all__ = ["register"]


def register(study: typer.Typer) -> None:
    """Add the command to the verbs of `study`."""
    study.command("report", short_help="Write the report of a study, as HTML, Markdown and JSON.")(_report)


def _report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a study with estimates.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write it. Default: into the study.")
    ] = None,
    signer: SignerOption = None,
    trust_file: TrustFileOption = None,
    revoked: RevokedOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write report.html, report.md and report.json of a study. Needs no torch.

    The estimates are checked first as `verify DIR/estimates.json` does it, every number computed again from the
    records; what does not hold stands at the top of the report.

    \b
    Exit code:
      0  the report is written
      1  it is written, and says that the estimates are not what was signed or do not come out again
      2  there is nothing to report on
    """
    from trainmem_audit.study.estimating import check_estimates
    from trainmem_audit.study.layout import ESTIMATES, PLAN_FILE
    from trainmem_audit.study.plan import read_plan
    from trainmem_audit.study_report import write_study_report

    for name in (PLAN_FILE, ESTIMATES):
        if not (directory / name).is_file():
            remedy = "`study estimate DIR` computes the numbers of a finished study"
            raise UsageError(
                "no estimates to report on", where=str(directory), expected=f"a file {name}", remedy=remedy
            )
    policy = policy_for(trust_file, signer, allow_untrusted=True, revoked=revoked)
    plan = read_plan(directory / PLAN_FILE)
    checked = check_estimates(directory / ESTIMATES, policy, (lambda _: None) if quiet else say)
    if checked.document is not None and checked.document.plan != plan.digest:
        raise UsageError(
            "the estimates are those of another plan",
            where=str(directory / ESTIMATES),
            expected=plan.digest,
            got=checked.document.plan,
        )
    target = out or directory
    target.mkdir(parents=True, exist_ok=True)
    for path in write_study_report(target, plan, checked):
        typer.echo(path)
    raise typer.Exit(checked.exit_code)
