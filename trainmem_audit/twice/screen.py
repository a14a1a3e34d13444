"""What `twice` found as text for a terminal. Everything that comes from a script passes through `safe_text`."""

from __future__ import annotations

from collections.abc import Iterator

from trainmem_audit.documents.findings import Difference
from trainmem_audit.documents.twice import Cause, Experiment, Twice
from trainmem_audit.screen import difference_lines
from trainmem_audit.text import safe_text

__all__ = ["experiment_line", "twice_text"]

_WIDTH = 33
_MOST_PLACES = 8


def twice_text(found: Twice) -> str:
    """Return one screen: what was run, the first difference, the experiments, the cause, the lines to add."""
    return "\n".join(_lines(found))


def _lines(found: Twice) -> Iterator[str]:
    several = "s" if found.runs > 1 else ""
    yield f"{safe_text(found.command)}: {found.runs} run{several}, each from a fresh copy of the working directory"
    yield from (f"  note: {safe_text(note)}" for note in found.notes)
    if found.verdict == "undecided":
        yield f"undecided: {safe_text(found.reason)}"
        return
    if found.verdict == "equal":
        yield f"equal: {found.steps} steps, bit for bit"
        yield from _idle(found)
        return
    assert found.difference is not None
    yield "differs" if found.steps == 0 else f"differs, after {found.steps} equal step{'s' if found.steps > 1 else ''}"
    yield ""
    yield from _difference(found.difference)
    yield ""
    yield "experiments, each with one thing held still and all others free:"
    yield from (f"  {experiment_line(item)}" for item in found.experiments)
    yield ""
    yield from _causes(found)


def _difference(found: Difference) -> Iterator[str]:
    """Yield the difference, with one tensor for each component (JSON has them all)."""
    short = tuple(item.model_copy(update={"tensors": item.tensors[:1]}) for item in found.components)
    yield from difference_lines(found.model_copy(update={"components": short}))


def _idle(found: Twice) -> Iterator[str]:
    for name in found.idle:
        yield (
            f"  note: the random stream {safe_text(name.removeprefix('rng.'))} is not seeded and was drawn from; "
            "nothing came of it in these steps"
        )


def experiment_line(item: Experiment) -> str:
    """Return one experiment: what was pinned, and what came of it."""
    what = {
        "equal": f"equal    in {item.runs} runs",
        "differs": f"differs  at step {item.step} in {safe_text(item.blame)}",
        "failed": f"failed   {safe_text(item.detail)}",
        "skipped": f"–        {safe_text(item.detail)}",
    }[item.outcome]
    return f"{' + '.join(item.factors) or 'nothing':<{_WIDTH}}  {what}"


def _causes(found: Twice) -> Iterator[str]:
    if not found.causes:
        yield "cause: not found. None of what was held still made the runs equal."
        yield "  What is left: files outside of the working directory, the network, other processes, a kernel"
        yield "  without a deterministic version. The difference starts where it says above."
        return
    names = " and ".join(cause.factor for cause in found.causes)
    yield f"cause: {names}" + ("" if found.proven else " (not proven)")
    if len(found.causes) > 1:
        yield "  Each of them alone is enough to make runs differ."
    yield f"  {found.evidence}"
    for cause in found.causes:
        yield from _cause(cause)


def _cause(cause: Cause) -> Iterator[str]:
    yield ""
    yield cause.explanation
    if cause.places:
        yield "where the script asks for it:"
        for place in cause.places[:_MOST_PLACES]:
            yield f"    {safe_text(place.file)}:{place.line}: {safe_text(place.text)}"
        if len(cause.places) > _MOST_PLACES:
            yield f"    and {len(cause.places) - _MOST_PLACES} more lines"
    for remedy in cause.remedies:
        yield f"add to the {'shell' if remedy.shell else 'script'}" + (f" ({remedy.note}):" if remedy.note else ":")
        yield from (f"    {line}".rstrip() for line in remedy.lines)
