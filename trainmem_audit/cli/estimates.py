"""`verify DIR/estimates.json`: every number of a study, computed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trainmem_audit.cli.common import say
from trainmem_audit.errors import UsageError
from trainmem_audit.text import json_text, safe_text

if TYPE_CHECKING:
    from trainmem_audit.study.estimating import CheckedEstimates
    from trainmem_audit.verify import Policy

__all__ = ["ESTIMATES", "print_checked_estimates"]

ESTIMATES = "estimates.json"
_SHOWN = 20
_LABELS = ("paired", "no-op", "unpaired")


def print_checked_estimates(path: Path, policy: Policy, form: str, quiet: bool) -> int:
    """Check the numbers of a study, print what was found, and return the exit code."""
    from trainmem_audit.study.estimating import check_estimates

    if form not in ("text", "json"):
        raise UsageError("unknown format for estimates", where="--format", expected="text or json", got=form[:40])
    found = check_estimates(path, policy, (lambda _: None) if quiet else say)
    typer.echo(json_text(found.to_json()) if form == "json" else "\n".join(_lines(found)))
    return found.exit_code


def _lines(found: CheckedEstimates) -> Iterator[str]:
    yield safe_text(found.name)
    signature = found.signature
    yield f"signature: {signature.state}, {safe_text(signature.detail)} · {safe_text(signature.keyid)}"
    document = found.document
    if document is not None:
        bound = document.study_log
        yield f"study:     plan {document.plan[:12]}, {bound.started} arms started, {bound.reported} reported"
        counts = {label: sum(pair.label == label for pair in document.pairs) for label in _LABELS}
        yield "pairs:     " + ", ".join(f"{count} {label}" for label, count in counts.items())
    if document is None or not found.recomputed:
        yield "numbers:   not recomputed"
    elif found.differing:
        yield f"numbers:   {len(found.differing)} places do not come out again"
    else:
        yield f"numbers:   all {len(document.estimates)} estimates come out again"
    for what, items in (("problem", found.problems), ("differs", found.differing)):
        yield from (f"{what}:   {safe_text(item)}" for item in items[:_SHOWN])
        if len(items) > _SHOWN:
            yield f"{what}:   and {len(items) - _SHOWN} more"
    yield f"result:    {'passed' if found.exit_code == 0 else 'not passed'}"
