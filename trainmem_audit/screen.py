"""L5: verdicts and differences as text for a terminal: what was checked, what was not, by whom it is signed.

Everything that comes from a record passes through `safe_text`. One small reporter per format; JSON is the document
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainmem_audit.commitments import fact_text
from trainmem_audit.documents.findings import Difference, Finding, ParentOrder, Replay, Verification
from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.segments import segment_lines
from trainmem_audit.text import clip, json_text, safe_text

__all__ = [
    "FORMATS",
    "around_lines",
    "certificate_lines",
    "difference_lines",
    "result_text",
    "verification_lines",
    "verification_text",
]

_MARKS = {"pass": "ok  ", "fail": "FAIL", "not-checked": "–   "}
_UNKNOWN = "?   "
_TRUST = 3
_SIGNATURES = {
    "trusted": "trusted",
    "self": "valid, signed with a key of this machine (self: accepted, not trusted)",
    "unknown-signer": "valid, unknown signer",
    "not-checkable": "not checkable",
    "revoked": "by a REVOKED key",
    "invalid": "INVALID",
}
_MOST = 40


def verification_text(verification: Verification) -> str:
    """Return one screen: the numbered checks, the findings, the replay, the verdicts."""
    return "\n".join([*verification_lines(verification), f"result:    {safe_text(result_text(verification))}"])


def verification_lines(verification: Verification) -> list[str]:
    """Return all of it but what it comes to."""
    parts = (
        _checks(verification),
        _findings(verification),
        _replay(verification.replay),
        _parent(verification),
        _opened(verification),
        _attested(verification),
        _verdicts(verification),
    )
    return [line for part in parts for line in part]


def _checks(verification: Verification) -> Iterator[str]:
    yield safe_text(verification.name)
    for check in verification.checks:
        unknown = check.number == _TRUST and verification.signature.state == "unknown-signer"
        mark = _UNKNOWN if unknown else _MARKS[check.state]
        yield f"  {check.number} {safe_text(check.title):<11} {mark} {safe_text(check.detail)}"
    replay = verification.replay
    asked = replay.outcome != "not-run" or replay.mode != "none"
    mark = {"match": "ok  ", "match-within-tolerance": "ok  ", "mismatch": "FAIL"}.get(replay.outcome, "–   ")
    yield f"  8 {'replay':<11} {mark} {replay.outcome}" + (
        f", {safe_text(replay.mode)}, {replay.steps_compared} steps compared in {safe_text(replay.seconds)} s"
        if asked and replay.seconds
        else f": {safe_text(replay.reason)}"
    )


def _findings(verification: Verification) -> Iterator[str]:
    if verification.findings:
        yield ""
        yield f"findings ({len(verification.findings)})"
    for finding in verification.findings[:_MOST]:
        yield from _finding(finding)
    if len(verification.findings) > _MOST:
        yield f"  and {len(verification.findings) - _MOST} more (--format json lists them all)"


def _finding(finding: Finding) -> Iterator[str]:
    where, message = clip(safe_text(finding.where), 300), clip(safe_text(finding.message), 600)
    yield f"  {finding.severity} {safe_text(finding.code)} {where}: {message}"
    for label, text in (("expected", finding.expected), ("got", finding.got), ("remedy", finding.remedy)):
        if text:
            yield f"    {label + ':':<9} {clip(safe_text(text), 300)}"


def _parent(verification: Verification) -> Iterator[str]:
    parent = verification.parent
    if parent is not None:
        yield ""
        run = f"run {parent.run[:12]}, after {parent.steps} steps"
        yield f"parent:    {run}: {parent.state}; {safe_text(parent.detail)}"
        yield from (f"  {line}" for line in _parent_order(parent.order))


def _parent_order(order: ParentOrder | None) -> Iterator[str]:
    if order is None:
        return
    if order.again is not None:
        yield f"the first epoch has the order of {safe_text(order.again)} of the parent"
    if order.repeated and order.under_way:
        yield f"{order.repeated} of {order.under_way} samples of the epoch under way are consumed again"
    if order.same:
        yield f"{order.same} steps consume the samples that the parent went on with"


def _replay(replay: Replay) -> Iterator[str]:
    told = (replay.what_if, replay.difference, replay.segments, replay.notes)
    if not (any(told) or (replay.reason and replay.outcome != "not-run")):
        return  # the line of step 8 says it all
    yield ""
    label = "what-if replay (no verdict on the record)" if replay.what_if else "replay"
    yield f"{label}: {replay.outcome}" + (f": {safe_text(replay.reason)}" if replay.reason else "")
    if replay.segments is not None:
        yield from (f"  {line}" for line in segment_lines(replay.segments))
    if replay.changed_files:
        yield f"  changed: {', '.join(safe_text(name) for name in replay.changed_files)}"
    if replay.difference is not None:
        yield from ("  " + line for line in difference_lines(replay.difference))
    for note in replay.notes:
        yield f"  note: {safe_text(note)}"


def _opened(verification: Verification) -> Iterator[str]:
    opened = [item for item in verification.commitments if item.opened]
    known = [item for item in opened if item.value is not None]
    if opened:
        yield ""
        yield f"opened: {len(opened)} of {len(verification.commitments)} commitments, and they are what was signed"
    for item in known[:_MOST]:
        yield f"  {clip(safe_text(item.name), 40)}: {clip(safe_text(fact_text(item.value)), 200)}"
    if len(known) > _MOST:
        yield f"  and {len(known) - _MOST} more"


def _attested(verification: Verification) -> Iterator[str]:
    """Yield what others signed about the run: their words, and beside them what they are worth here."""
    attestations = verification.attestations
    if attestations:
        yield ""
        yield f"attested by others ({len(attestations)}; one that was taken out leaves no trace)"
    for item in attestations[:_MOST]:
        signature = item.signature
        who = " · ".join(safe_text(text) for text in (signature.principal, signature.keyid) if text) or "somebody"
        yield f"  {item.kind} by {clip(who, 200)}: {_SIGNATURES[signature.state]}"
        said = [item.mode, " ".join(item.properties), item.created]
        if any(said):
            yield f"    says:   {clip(safe_text(' · '.join(text for text in said if text)), 300)}"
        yield f"    counts: {'yes' if item.counts else 'no'}, {clip(safe_text(item.detail), 300)}"
    if len(attestations) > _MOST:
        yield f"  and {len(attestations) - _MOST} more (--format json lists them all)"


def difference_lines(difference: Difference) -> Iterator[str]:
    """Yield a difference: where, the blame, and every component in the order of cause with its tensors."""
    stage = {"start": " (before its update)", "step": "", "end": " (after the last update)"}[difference.stage]
    yield f"first difference: step {difference.step}{stage}"
    yield f"blame: {safe_text(difference.blame)}"
    yield f"  {safe_text(difference.explanation)}"
    yield f"what differs there, in the order of cause ({len(difference.components)}):"
    for component in difference.components:
        detail = f": {safe_text(component.detail)}" if component.detail else ""
        yield f"  {safe_text(component.component)}{detail}"
        for tensor in component.tensors[:3]:
            shape = "×".join(str(size) for size in tensor.shape) or "scalar"
            digests = f"{safe_text(tensor.expected[:12])} → {safe_text(tensor.got[:12])}"
            yield f"      {safe_text(tensor.name)} {safe_text(tensor.dtype)} {shape}: {digests}"
            if tensor.size:
                yield f"        {safe_text(tensor.size)}"
        if len(component.tensors) > 3:
            yield f"      and {len(component.tensors) - 3} more tensors"


def _verdicts(verification: Verification) -> Iterator[str]:
    signature = verification.signature
    who = f" · {safe_text(signature.principal)}" if signature.principal else ""
    keyid = f" · {safe_text(signature.keyid)}" if signature.keyid else ""
    yield ""
    yield f"bytes:     {verification.bytes}"
    yield f"signature: {_SIGNATURES[signature.state]}{who}{keyid}"
    yield f"record:    {verification.record}"
    what = " (what-if: no verdict on the record)" if verification.replay.what_if else ""
    yield f"replay:    {verification.replay.outcome}{what}"


def result_text(verification: Verification) -> str:
    """Return in words what the exit code says, and why."""
    if verification.exit_code == 0:
        return "passed"
    errors = sum(finding.severity == "error" for finding in verification.findings)
    signature, replay = verification.signature, verification.replay
    if verification.exit_code == 1:
        if errors:
            return f"not passed: {errors} finding{'s' if errors > 1 else ''}"
        if replay.outcome == "mismatch":
            return f"not passed: the {'edited code' if replay.what_if else 'replay'} came out differently"
        if signature.state in ("unknown-signer", "revoked"):
            return f"not passed: {signature.detail}"
        return "not passed: the signature is invalid"
    if signature.state == "not-checkable":
        return f"undecided: {signature.detail}"
    if verification.record != "consistent":
        return f"undecided: the record is {verification.record.replace('-', ' ')}"
    return (
        "undecided: the replay was not run" if replay.outcome == "not-run" else "undecided: the replay is inconclusive"
    )


def _json(verification: Verification) -> str:
    return json_text(verification.to_json())


FORMATS: dict[str, Callable[[Verification], str]] = {"json": _json, "text": verification_text}
"""How a verification can be printed."""


def around_lines(besides: dict[str, str]) -> Iterator[str]:
    """Yield in what else two runs differ (`runs.around`)."""
    if besides:
        yield "besides, these are not the same:"
    for name, text in besides.items():
        yield f"  {name}: {safe_text(text)}"


_CLAUSE_MARKS = {"holds": "ok  ", "fails": "FAIL", "inconclusive": "?   "}
_LABELS = {
    "paired": "paired: the arms differ in nothing but the intervention",
    "no-op": "no-op: the intervention changed nothing, and its effect is exactly 0",
    "unpaired": "unpaired: what the arms differ in is no effect of the intervention",
}


def certificate_lines(certificate: Certificate) -> Iterator[str]:
    """Yield the clauses of a pairing certificate, and what they come to."""
    for number, clause in enumerate(certificate.certificate, 1):
        places = [f"step {clause.step}"] if clause.step is not None else []
        places += [safe_text(clause.name)] if clause.name is not None else []
        detail = clip(safe_text(clause.detail or ""), 600)
        text = ": ".join(part for part in (", ".join(places), detail) if part)
        yield f"  {number} {clause.clause:<13} {_CLAUSE_MARKS[clause.state]} {text}".rstrip()
    undecided = certificate.label == "unpaired" and all(item.state != "fails" for item in certificate.certificate)
    yield f"result: {'unpaired: it could not be decided' if undecided else _LABELS[certificate.label]}"
