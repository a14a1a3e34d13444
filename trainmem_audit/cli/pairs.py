"""`diff --paired`: the pairing certificate of two arms."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import typer

from trainmem_audit.text import json_text, safe_text

__all__ = ["print_certificate"]


def print_certificate(treated: Path, control: Path, prefix: Path | None, form: str, order_by_loss: bool) -> int:
    """Print the certificate of two arms, and return the exit code: 0 paired, 1 unpaired, 3 undecided."""
    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import certify_runs
    from trainmem_audit.screen import certificate_lines

    with ExitStack() as runs:
        arms = [runs.enter_context(open_run(path)) for path in (treated, control)]
        before = None if prefix is None else runs.enter_context(open_run(prefix))
        certificate = certify_runs(arms[0], arms[1], before, order_by_loss=order_by_loss)
    if form == "json":
        typer.echo(json_text({"treated": treated.name, "control": control.name, **certificate.to_json()}))
    else:
        lines = [f"{safe_text(treated.name)} against {safe_text(control.name)}", *certificate_lines(certificate)]
        typer.echo("\n".join(lines))
    if certificate.label != "unpaired":
        return 0
    return 1 if any(clause.state == "fails" for clause in certificate.certificate) else 3
