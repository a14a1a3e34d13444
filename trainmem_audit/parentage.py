"""L5: the link of a resumed run to its parent, checked against the parent's record where that is at hand.

The steps, in this order; the code carries the same numbers.

(1) *Which run.* The record at hand has the id that the resumed run names.
(2) *Does it hold.* It is verified like any other; one that was killed and never signed is read, and decides less.
(3) *The checkpoint.* The line of its log with the chain value that is named records a checkpoint with the SHA-256
    that the resumed run has read, after as many steps.
(4) *The state.* Where that checkpoint held weights and slots as they were, the resumed run begins with the digests
    that the parent's step recorded.
(5) *The order.* What the resumed run consumes is compared with what the parent had consumed of its epoch.

A difference in (4) is a warning and no forgery: a script may change weights between a step and its checkpoint, or
after loading. Not here: what else was lost with the checkpoint (`diff`), and what the order means (`validators/`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from trainmem_audit.documents.checkpoints import Checkpoint, Parent
from trainmem_audit.documents.findings import Finding, ParentLink, ParentOrder
from trainmem_audit.documents.record_order import EpochFacts
from trainmem_audit.documents.steplog import Begin, Epoch, Inventory, Line, Loader, Step
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.gathering.order import OrderCollector
from trainmem_audit.keys import PublicKey
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import read_lines
from trainmem_audit.verify import Examination, Policy, examine

__all__ = ["Beginning", "check_parent", "repeated"]

_MOST_STEPS = 2**16
_MOST_BYTES = 2**25
"""How many steps after the resume, and how many bytes of sample indices of one epoch, are compared."""
_REPEATED = 8
"""From how many samples on an order is no chance."""


class _Indices:
    """The sample indices of one epoch, in bounded memory; of a step whose batches are of several epochs none."""

    def __init__(self) -> None:
        self.data: bytearray | None = bytearray()

    def add(self, chunk: bytes) -> None:
        if self.data is not None and len(self.data) + len(chunk) <= _MOST_BYTES:
            self.data += chunk
        else:
            self.data = None

    def forget(self) -> None:
        self.data = None


class Beginning:
    """How a resumed run begins: taken from its lines (`take`) and sample indices (`indices`) while it is verified."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.steps: list[str | None] = []
        self.loaders: dict[str, Loader] = {}
        self.first = _Indices()
        self._epochs = 0
        self._collector = OrderCollector()

    def take(self, line: Line) -> None:
        """Add one checked line."""
        self._collector.take(line)
        match line:
            case Inventory():
                self.loaders |= line.loaders or {}
                if line.state is not None and not self.steps and not self.state:
                    self.state = dict(line.state)
            case Epoch():
                self._epochs += 1
            case Step() if len(self.steps) < _MOST_STEPS:
                self.steps.append(None if line.order is None else line.order.index)
                if self._epochs == 1 and line.order is not None and (line.order.parts or line.order.index is None):
                    self.first.forget()

    def indices(self, chunk: bytes) -> None:
        """Add sample indices of the step that was taken last."""
        self._collector.indices(chunk)
        if self._epochs == 1:
            self.first.add(chunk)

    def first_epoch(self) -> EpochFacts | None:
        """Return the facts of the first epoch; to be asked once, when all lines were taken."""
        return next(iter(self._collector.finish().epochs), None)


class _Parent:
    """What the log of the parent says of the checkpoint, and of the epoch that was under way."""

    def __init__(self, link: Parent) -> None:
        self.run = ""
        self.signers: frozenset[PublicKey] = frozenset()
        self.line: Inventory | None = None
        self.state: dict[str, str] = {}
        self.after: list[str | None] = []
        self.consumed = _Indices()
        self.loader = ""
        self.over: bool | None = None
        self.loaders: dict[str, Loader] = {}
        self._link = link
        self._at = 0
        self._collector = OrderCollector()

    def take(self, line: Line) -> None:
        self._collector.take(line)
        match line:
            case Begin():
                self.run = line.nonce
            case Inventory():
                self.loaders |= line.loaders or {}
                if line.chain == self._link.chain:
                    self.line = line
            case Epoch():
                self._epoch(line)
            case Step():
                self._step(line)

    def _epoch(self, line: Epoch) -> None:
        if line.i < self._link.steps:
            self.consumed, self.loader = _Indices(), line.loader
        elif self.over is None:
            self.over = line.i == self._link.steps

    def _step(self, line: Step) -> None:
        self._at = line.i
        index = None if line.order is None else line.order.index
        if line.i < self._link.steps:
            if line.i == self._link.steps - 1:
                self.state = dict(line.state)
            if line.order is not None and (line.order.parts or index is None):
                self.consumed.forget()
        elif len(self.after) < _MOST_STEPS:
            self.after.append(index)
            if self.over is None and line.order is not None:
                self.over = False  # another batch of the same epoch

    def indices(self, chunk: bytes) -> None:
        self._collector.indices(chunk)
        if self._at < self._link.steps:
            self.consumed.add(chunk)

    def done(self) -> list[EpochFacts]:
        """Return the epochs that were over when the checkpoint was saved."""
        steps = self._link.steps
        epochs = [epoch for epoch in self._collector.finish().epochs if epoch.first + epoch.steps <= steps]
        return epochs if self._is_over() or not epochs else epochs[:-1]

    def _is_over(self) -> bool | None:
        """Tell whether no epoch was under way; `None` where that cannot be known."""
        if self.over is not None or self.consumed.data is None or self.loader not in self.loaders:
            return self.over
        settings = self.loaders[self.loader].settings
        samples, batch = settings.get("samples"), settings.get("batch_size")
        if type(samples) is not int or type(batch) is not int:
            return None
        left = samples - len(self.consumed.data) // 8
        return left < batch if settings.get("drop_last") else left <= 0

    def under_way(self) -> bytes | None:
        """Return the indices consumed of the epoch under way: empty where there was none, `None` where unknown."""
        over = self._is_over()
        if over or over is None or self.consumed.data is None:
            return b"" if over else None
        return bytes(self.consumed.data)


def check_parent(found: Examination, beginning: Beginning, parent: RunReader, policy: Policy) -> None:
    """Check the link of a run that was verified to the record of its parent; the verdict goes into `found`.

    Parameters
    ----------
    found:
        The resumed run, as `verify.examine` left it.
    beginning:
        What it begins with, taken during that examination.

    Raises
    ------
    UsageError
        If the run names no parent, or `parent` is no record.
    """
    link = None if found.statement is None else found.statement.predicate.run.parent
    if found.statement is not None and link is None:
        raise UsageError(
            "the run names no parent, so there is none to compare it with",
            where=parent.label,
            expected="a run that has read a checkpoint which another record knows",
            remedy="leave --parent out; `diff` compares any two runs",
        )
    if link is None:
        return  # the statement could not be read, and that is said already
    log = _Parent(link)
    signature, why = _read(log, found, parent, policy)
    findings = list(_wrong(log, link, parent.label))
    if why and log.run in ("", link.run):  # what a damaged log lacks says nothing more
        findings = [_finding("PARENT-BROKEN", parent.label, f"the record of the parent does not hold: {why}")]
    if findings:
        found.findings += findings
        found.parent = _link(link, "broken", findings[0].message, signature)
        return
    assert log.line is not None
    compared, differs = _states(_checkpoint(log.line, link), log.state, beginning.state)
    if differs:
        found.findings.append(_state_finding(differs, link, log.state, beginning.state))
    unknown = log.signers.isdisjoint(found.run_keys)  # else whoever signed the one signed the other
    found.parent = _verdict(link, signature, compared, differs, unknown).model_copy(
        update={"order": _order(log, beginning)},
    )


def _read(log: _Parent, found: Examination, parent: RunReader, policy: Policy) -> tuple[str, str]:
    """Step 2; return the state of the parent's signature, and what does not hold."""
    if "run.json" not in parent.names():
        try:
            for line in read_lines(parent):
                log.take(line)
        except FormatError as error:
            return "unsigned", f"{error.where}: {error.message}"
        log.consumed.forget()  # its indices were not checked
        return "unsigned", ""
    plain = replace(policy, threshold=0, attestations=(), disclosures=None, signer=None)
    examined = examine(parent, plain, watch=log.take, indices=log.indices)
    log.signers = frozenset(examined.run_keys)
    verification = examined.verification
    signature = verification.signature.state
    broken = signature in ("invalid", "revoked") or verification.bytes == "broken"
    if broken or verification.record == "inconsistent":
        first = next((item.message for item in verification.findings if item.severity == "error"), "see `verify`")
        return signature, first
    return signature, ""


def _wrong(log: _Parent, link: Parent, label: str) -> Iterator[Finding]:
    """Steps 1 and 3."""
    if log.run != link.run:
        yield _finding("PARENT-OTHER", label, "not the run that this one goes on from", link.run, log.run or "no run")
        return
    if log.line is None:
        message = "its log has no line with the chain value that the resumed run names"
        yield _finding("PARENT-LINK", f"{label}: steps.jsonl", message, link.chain, "none")
        return
    if _checkpoint(log.line, link) is None or log.line.i != link.steps:
        saved = [item.sha256 or "no digest" for item in log.line.checkpoints or ()]
        yield _finding(
            "PARENT-LINK",
            f"{label}: steps.jsonl",
            "the line that the resumed run names does not record the checkpoint that it read",
            f"sha256 {link.sha256} after {link.steps} steps",
            f"{', '.join(saved[:3]) or 'no checkpoint'} after {log.line.i} steps",
        )


def _checkpoint(line: Inventory, link: Parent) -> Checkpoint | None:
    return next((saved for saved in line.checkpoints or () if saved.sha256 == link.sha256), None)


def _states(
    checkpoint: Checkpoint | None, before: dict[str, str], begins: dict[str, str]
) -> tuple[tuple[str, ...], list[str]]:
    """Step 4; return the components that go on as they were, and those that do not.

    Only weights and slots are compared. Statistics have moved in a forward before the first update; hyper-parameters,
    averages and the scaler change after the cut of a step, and before the checkpoint.
    """
    held = {} if checkpoint is None else checkpoint.components
    names = [
        name
        for name, item in sorted(held.items())
        if item.verdict == "whole"
        and name in before
        and name in begins
        and (
            (name.startswith("model") and name.endswith(".params"))
            or (name.startswith("optimizer") and not name.endswith((".hyper", ".attributes")))
        )
    ]
    equal = tuple(name for name in names if before[name] == begins[name])
    return equal, [name for name in names if name not in equal]


def _verdict(link: Parent, signature: str, compared: tuple[str, ...], differs: list[str], unknown: bool) -> ParentLink:
    if differs:
        detail = f"the checkpoint is the parent's; {differs[0]} is another when training goes on"
        return _link(link, "undecided", detail, signature, compared)
    told = {
        "unsigned": "the parent was never signed, so nobody vouches for its log",
        "not-checkable": "the signature of the parent cannot be checked",
    }
    if unknown:
        told["unknown-signer"] = "the parent is signed by somebody else, who is not known here"
    if signature in told:
        return _link(link, "undecided", told[signature], signature, compared)
    what = f"; {len(compared)} components go on as they were" if compared else ""
    return _link(link, "holds", f"the checkpoint is the one that the parent saved{what}", signature, compared)


def _link(link: Parent, state: str, detail: str, signature: str, compared: tuple[str, ...] = ()) -> ParentLink:
    return ParentLink.model_validate(
        {
            "run": link.run,
            "steps": link.steps,
            "state": state,
            "detail": detail,
            "signature": signature,
            "compared": compared,
        }
    )


def _order(log: _Parent, beginning: Beginning) -> ParentOrder | None:
    """Step 5; `None` where neither side has the indices of samples."""
    pairs = list(zip(log.after, beginning.steps, strict=False))
    same = 0
    while same < len(pairs) and pairs[same][0] is not None and pairs[same][0] == pairs[same][1]:
        same += 1
    known = same < len(pairs) and None not in pairs[same]
    first = beginning.first_epoch()
    again = next((old for old in log.done() if first is not None and _same(old, first)), None)
    consumed = log.under_way()
    again_samples = None
    if consumed is not None and beginning.first.data is not None and first is not None:
        again_samples = repeated(consumed, bytes(beginning.first.data))
    if not same and not known and again is None and again_samples is None:
        return None
    return ParentOrder(
        same=same,
        differs=same if known else None,
        under_way=None if consumed is None else len(consumed) // 8,
        repeated=again_samples,
        again=None if again is None else f"{again.loader}, epoch {again.epoch}",
    )


def repeated(consumed: bytes, first: bytes) -> int:
    """Return how many of the samples that were consumed are consumed again in the first epoch.

    A script that takes batches off its loader until it is where it was hands out the very same ones: that is no
    repetition, since it does not train on them.
    """
    rest = first[len(consumed) :] if consumed and first.startswith(consumed) else first
    found: list[set[int]] = []
    for data in (consumed, rest):
        values = array("q")
        with suppress(ValueError):  # not a whole number of indices: then the digests of the log are wrong already
            values.frombytes(data)
        found.append(set(values))
    return len(found[0] & found[1])


def _same(old: EpochFacts, first: EpochFacts) -> bool:
    if first.samples < _REPEATED or old.digest is None:
        return False
    return old.digest == first.digest or (old.head is not None and old.head == first.head)


def _finding(code: str, where: str, message: str, expected: str = "", got: str = "") -> Finding:
    return Finding(code=code, severity="error", where=where, message=message, expected=expected[:200], got=got[:200])


def _state_finding(differs: list[str], link: Parent, before: dict[str, str], begins: dict[str, str]) -> Finding:
    more = f", and {len(differs) - 1} more" if len(differs) > 1 else ""
    return Finding(
        code="PARENT-STATE",
        severity="warning",
        where=f"{differs[0]}{more}",
        message=f"training goes on with another state than the parent had after {link.steps} steps",
        expected=before[differs[0]],
        got=begins[differs[0]],
        remedy="`diff` of the two runs names what differs; a script that changes weights on purpose says so itself",
    )
