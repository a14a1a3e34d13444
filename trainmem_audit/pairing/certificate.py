"""Reads two logs in step and decides the four clauses (numbered as in the package's docstring)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise, zip_longest

from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, Branch, Intervention
from trainmem_audit.documents.pairing import Certificate, Label
from trainmem_audit.documents.steplog import Begin, End, InterventionLine, Line, Step
from trainmem_audit.pairing.arms import Arm, Cut, Side, cuts
from trainmem_audit.pairing.clauses import ClauseBuilder, listed
from trainmem_audit.pairing.names import UNDOING, names_component, order_carrier, shows_later
from trainmem_audit.pairing.order import Windows, batch_difference
from trainmem_audit.pairing.streams import Exempt, StreamPair

__all__ = ["certify"]

_SIDES = ("treated", "control")


def certify(treated: Arm, control: Arm, *, order_by_loss: bool = False) -> Certificate:
    """Return the pairing certificate of two arms, whose logs are read once.

    Parameters
    ----------
    order_by_loss:
        Whether the batches are chosen by the losses where no loader hands them out (prioritized replay): then equality
        of the random streams stands in for equality of the order.

    Raises
    ------
    FormatError
        If a log is damaged.
    """
    logs = [iter(arm.lines) for arm in (treated, control)]
    pair = _Pair((treated, control), order_by_loss)
    for left, right in zip_longest(*map(cuts, logs)):
        if not pair.feed(left, right):
            break
    for log in logs:  # the end of a log alone shows that it is the signed one
        for _ in log:
            pass
    return pair.finish()


class _Pair:
    """Both arms, and what has been decided so far."""

    def __init__(self, arms: tuple[Arm, Arm], order_by_loss: bool) -> None:
        self._arms = arms
        self._order_by_loss = order_by_loss
        self._sides = (Side(), Side())
        self.prefix = ClauseBuilder("prefix", "nothing was compared before the branch")
        self.intervention = ClauseBuilder("intervention", "no digests are recorded at the branch")
        self.order = ClauseBuilder("order", "nothing says which batches were consumed after the branch")
        self.streams = ClauseBuilder("streams", "no random stream was compared after the branch")
        self._pairs = StreamPair()
        self._windows = Windows((arms[0].indices, arms[1].indices))
        self._exempt = Exempt.of(None, None)
        self._prefix_end: End | None = None
        self._done: list[Intervention] = []
        self._branch: int | None = None
        self._free = False
        self._differs_at_branch = False
        self._later: tuple[int, list[str]] | None = None
        self._later_compared = False
        self._moved_order = False
        self._shift: tuple[int, Step, Step] | None = None
        self._skips_differ = False

    # One step ------------------------------------------------------------------------------------------------------

    def feed(self, left: Cut | None, right: Cut | None) -> bool:
        """Take the next cut of both logs; return whether the comparison goes on."""
        present = [cut if cut is not None else Cut() for cut in (left, right)]
        for at, (side, cut) in enumerate(zip(self._sides, present, strict=True)):
            side.enter(cut)
            self._pairs.start(at, cut.streams)
        if present[0].begin is not None and present[1].begin is not None:
            self._begin()
        if any(cut.interventions for cut in present):
            self._intervene(present)
        a, b = (cut.last for cut in present)
        if isinstance(a, Step) and isinstance(b, Step):
            if self._branch is None:
                self._before(a, b)
            else:
                self._after(a, b)
            for side, cut in zip(self._sides, present, strict=True):
                side.leave(cut)
            return True
        self._stop(present)
        return False

    def _begin(self) -> None:
        """(1) for arms that continue a prefix: both name the same link of its chain."""
        left, right = (side.branch for side in self._sides)
        self._exempt = Exempt.of(*(side.contract for side in self._sides))
        if left is None and right is None:
            return  # whole runs: their steps are compared
        if left is None or right is None:
            self.prefix.doubt(None, "branch", "one arm continues a prefix and the other ran from its start")
        elif left != right:
            said = " · ".join(f"{_SIDES[at]}: {_branch_text(branch)}" for at, branch in enumerate((left, right)))
            self.prefix.fail(None, "branch", f"the arms continue other prefixes, or leave it elsewhere ({said})")
        else:
            self.prefix.see()
            self.prefix.remark(f"both continue the prefix at {_branch_text(left)}")
            for name, arm in zip(_SIDES, self._arms, strict=True):
                if arm.prefix is not None:
                    self._read_prefix(name, arm.prefix, left)

    def _read_prefix(self, name: str, lines: Iterable[Line], branch: Branch) -> None:
        ended, problem = _read_prefix(lines, branch)
        if problem:
            self.prefix.fail(None, "branch", f"the prefix of the {name} arm: {problem}")
        elif ended is not None:
            self._prefix_end = ended

    def _before(self, a: Step, b: Step) -> None:
        """(1) equal batches, inputs, components and streams at a step before the branch."""
        clause = self.prefix
        self._windows.outside(a, b)
        if a.i == 0:
            self._compare_states(self._sides[0].state, self._sides[1].state, 0, "before the first update")
        batch = batch_difference(a, b)
        if batch is not None:
            clause.fail(a.i, *batch)
        if a.inputs != b.inputs:
            clause.fail(a.i, "inputs", "the model was given other inputs")
        for name, detail in self._stream_differences(a.rng, b.rng, self._exempt.always):
            clause.fail(a.i, f"rng.{name}", detail)
        if a.skipped != b.skipped:
            clause.fail(a.i, "steps", "the gradient scaler skipped this step in one arm alone")
        self._compare_states(a.state, b.state, a.i, "before the branch")

    def _compare_states(self, left: dict[str, str], right: dict[str, str], step: int, when: str) -> None:
        common = left.keys() & right.keys()
        if common:
            self.prefix.see()
        differ = sorted(name for name in common if left[name] != right[name])
        if differ:
            self.prefix.fail(step, differ[0], f"{when} these differ: {listed(differ)}")

    def _stream_differences(
        self, left: dict[str, str], right: dict[str, str], exempt: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        return ((name, text) for name, text in self._pairs.differences(left, right) if name not in exempt)

    # The branch ----------------------------------------------------------------------------------------------------

    def _intervene(self, present: list[Cut]) -> None:
        at = self._sides[0].steps
        for side, cut in enumerate(present):
            for line in cut.interventions:
                self._own(side, line)
            self._chained(cut.interventions)
        if _forks(present[0].interventions) != _forks(present[1].interventions):
            self.intervention.fail(at, "fork", "the streams were forked in one arm alone, or to other states")
        if self._branch is None:
            self._branch = at
            self._at_branch(present)
        self._note_order(present)

    def _own(self, side: int, line: InterventionLine) -> None:
        """(2) what one line proves by itself: it touched what it names alone, and moved no stream."""
        clause, intervention = self.intervention, line.intervention
        self._done.append(intervention)
        if intervention.primitive != "fork":
            streams = _differing(line.rng.before, line.rng.after)
            if streams:
                clause.fail(line.i, f"rng.{streams[0]}", f"{intervention.primitive} moved {listed(streams)}")
        other = [name for name in line.changed if not names_component([intervention], name)]
        if other:
            kind = intervention.primitive
            clause.fail(line.i, other[0], f"{kind} names {_target(intervention)}, and touched {listed(other)}")
        shared = [name for name in _aliases(line) if not names_component([intervention], name)]
        if shared:
            clause.remark(f"seen through shared storage too: {listed(shared)} ({_SIDES[side]})")

    def _chained(self, lines: list[InterventionLine]) -> None:
        for first, second in pairwise(lines):
            differ = _differing(first.state.after, second.state.before)
            if differ:
                self.intervention.fail(second.i, differ[0], f"changed between two interventions: {listed(differ)}")

    def _at_branch(self, present: list[Cut]) -> None:
        """(1) equal right before the interventions, and (2) after them apart in what they name alone."""
        lines = [cut.interventions for cut in present]
        before = [own[0].state.before if own else side.state for own, side in zip(lines, self._sides, strict=True)]
        after = [own[-1].state.after if own else side.state for own, side in zip(lines, self._sides, strict=True)]
        if not all(before):
            self.intervention.doubt(self._branch, "state", "one arm has no digests of its components at the branch")
            return
        whole = all(lines)
        apart = _differing(before[0], before[1], whole)
        self._before_interventions(apart, lines, before)
        own = [line.intervention for line in (*lines[0], *lines[1])]
        # a step line may lack what came up since; what an intervention has removed is in its `before` alone
        names = after[0].keys() | after[1].keys() if whole else before[0].keys() & before[1].keys()
        differ = sorted(name for name in names if after[0].get(name) != after[1].get(name) and name not in apart)
        shared = {name for line in (*lines[0], *lines[1]) for name in _aliases(line)}
        other = [name for name in differ if not names_component(own, name) and name not in shared]
        if other:
            self.intervention.fail(
                self._branch, other[0], f"right after the interventions these differ: {listed(other)}"
            )
        self.intervention.see()
        self._differs_at_branch = bool(differ)

    def _before_interventions(
        self, apart: list[str], lines: list[list[InterventionLine]], before: list[dict[str, str]]
    ) -> None:
        self.prefix.see()
        if self._prefix_end is not None:
            for name, state in zip(_SIDES, before, strict=True):
                differ = _differing(self._prefix_end.state, state, whole=False)
                if differ:
                    text = f"the {name} arm does not begin with what the prefix ended with: {listed(differ)}"
                    self.prefix.fail(self._branch, differ[0], text)
        if all(lines):
            left, right = (own[0].rng.before for own in lines)
            for name, text in self._stream_differences(left, right, self._exempt.always):
                self.prefix.fail(self._branch, f"rng.{name}", f"at the branch: {text}")
        moved = [name for name in apart if not all(lines) and self._agreed_at_the_step(name)]
        if moved:
            text = f"{listed(moved)} changed after the last step; only a control with an intervention line shows it"
            self.prefix.doubt(self._branch, moved[0], text)
        rest = [name for name in apart if name not in moved]
        if rest:
            self.prefix.fail(self._branch, rest[0], f"at the branch these differ: {listed(rest)}")

    def _agreed_at_the_step(self, name: str) -> bool:
        """Tell whether both arms agreed at the last step: an average that is updated after it, say."""
        states = [side.state.get(name) for side in self._sides]
        return states[0] is not None and states[0] == states[1]

    def _note_order(self, present: list[Cut]) -> None:
        for side, cut in zip(self._sides, present, strict=True):
            for line in cut.interventions:
                self._free |= line.intervention.primitive == "policy"
                for window in line.intervention.windows or ():
                    self._windows.add(side.batches, window.first, window.to)

    # After it ------------------------------------------------------------------------------------------------------

    def _after(self, a: Step, b: Step) -> None:
        position = [side.batches for side in self._sides]
        inside = bool(self._windows) and any(
            self._windows.hold(first, step.order) for first, step in zip(position, (a, b), strict=True)
        )
        if inside:
            self._windows.inside(a, b)
        else:
            self._windows.outside(a, b)
        self._streams_after(a, b, inside)
        if not inside:
            self._order_after(a, b)
        self._explain_shift(a, b)
        if a.skipped != b.skipped and not self._skips_differ:
            self._skips_differ = True
            self.order.remark(
                f"the gradient scaler skips attempt {a.i} in one arm alone: attempts are equal, updates are not"
            )
        self._later_compared |= bool(a.state.keys() & b.state.keys())
        if self._later is None:
            differ = _differing(a.state, b.state, whole=False)
            self._later = (a.i, differ) if differ else None

    def _streams_after(self, a: Step, b: Step, inside: bool) -> None:
        """(4) equal digests of every stream that is shared."""
        exempt = self._exempt.later | (self._exempt.windows if inside else frozenset()) | self._order_streams()
        for name, detail in self._stream_differences(a.rng, b.rng, exempt):
            self.streams.fail(a.i, f"rng.{name}", detail)
        if (a.rng.keys() & b.rng.keys()) - exempt:
            self.streams.see()

    def _order_streams(self) -> frozenset[str]:
        """The streams that only the order draws from, where the policy of the order is the intervention."""
        if not self._free:
            return frozenset()
        left, right = (side.purposes for side in self._sides)
        return frozenset(
            name
            for name in left.keys() | right.keys()
            if (left.get(name, set()) | right.get(name, set())) <= {"order", "loader"}
        )

    def _order_after(self, a: Step, b: Step) -> None:
        """(3) equal batches at equal steps."""
        found = batch_difference(a, b)
        if a.order is None and b.order is None:
            self._without_loader(a, b)
            return
        self.order.see()
        if found is None:
            return
        name, detail = found
        if self._free and name in ("order.index", "order.content"):
            self._moved_order = True
            return
        carrier = self._weights_of_sampler() if name == "order.index" else ""
        if carrier:
            self.order.remark(f"from step {a.i} on the order follows {carrier}, which differs: the streams stand in")
        elif name == "order.content" and a.order is not None and a.order.index is not None and self._exempt.later:
            self.order.remark(f"from step {a.i} on the same samples have other values: a stream need not be shared")
        else:
            if not self.order.failed:
                self._shift = (a.i, a, b)
            self.order.fail(a.i, name, detail)

    def _weights_of_sampler(self) -> str:
        """Return the weights of a sampler that differed at the step before: an order that depends on the losses."""
        left, right = self._sides
        differ = _differing(left.state, right.state, whole=False)
        return next((name for name in differ if order_carrier(name) and name.endswith(".tensors")), "")

    def _without_loader(self, a: Step, b: Step) -> None:
        if a.inputs is None and b.inputs is None:
            return
        if a.inputs == b.inputs:
            self.order.see()
        elif self._order_by_loss or self._free:
            self.order.see()
            self.order.remark(f"from step {a.i} on the inputs differ: the random streams stand in for the order")
        else:
            text = "no loader says which batch it was, and the inputs of the model differ"
            self.order.doubt(a.i, "inputs", text)

    def _explain_shift(self, a: Step, b: Step) -> None:
        """Say whether one arm is a step ahead of the other since they parted."""
        if self._shift is None or a.i != self._shift[0] + 1:
            return
        _, first, second = self._shift
        self._shift = None
        ahead = [_index(now) is not None and _index(now) == _index(then) for now, then in ((a, second), (b, first))]
        if any(ahead):
            lagging = _SIDES[ahead.index(True)]
            other = _SIDES[1 - ahead.index(True)]
            self.order.amend(f"the {lagging} arm is a step behind the {other} one, which dropped or skipped one")

    # The end -------------------------------------------------------------------------------------------------------

    def _stop(self, present: list[Cut]) -> None:
        """(3) the same number of steps."""
        a, b = (cut.last for cut in present)
        clause = self.prefix if self._branch is None else self.order
        steps = self._sides[0].steps
        if isinstance(a, End) and isinstance(b, End):
            return
        texts = [_said(cut) for cut in (a, b)]
        detail = " · ".join(f"{name}: {text}" for name, text in zip(_SIDES, texts, strict=True))
        killed = [not isinstance(last, Step) and not isinstance(last, End) for last in (a, b)]
        if all(killed) or any(killed):
            clause.doubt(steps, "steps", f"a log just stops ({detail})")
        else:
            clause.fail(steps, "steps", f"other numbers of steps ({detail})")

    def finish(self) -> Certificate:
        """Return the certificate."""
        if self._branch is None:
            self._no_branch()
        if self._windows:
            self._moved_order |= self._windows.finish(self.order)
        if self._free:
            self.order.remark("policy form: the order itself is the intervention, so sizes of batches are compared")
        for name in self._exempt.uncontrolled:
            self.streams.doubt(None, f"rng.{name}", "declared uncontrolled: nothing shows that the arms share it")
        exempt = sorted(self._exempt.always - set(self._exempt.uncontrolled))
        if exempt:
            self.streams.remark(f"need not be shared, as declared: {listed(exempt)}")
        unknown = not self._later_compared and any(map(shows_later, self._done))
        no_op = not (self._differs_at_branch or self._later or self._moved_order or unknown)
        self._account_for_differences()
        clauses = (self.prefix, self.intervention, self.order, self.streams)
        label: Label = "unpaired"
        if all(clause.state == "holds" for clause in clauses):
            label = "no-op" if no_op else "paired"
        if label == "no-op":
            later = [item.primitive for item in self._done if shows_later(item)]
            also = f"; {later[0]} shows in no step" if later else ""
            self.intervention.remark(f"no component differs after it: the effect is exactly 0{also}")
        return Certificate(certificate=tuple(clause.build() for clause in clauses), label=label)

    def _no_branch(self) -> None:
        """Two runs without an intervention: the whole of them is the prefix."""
        for clause in (self.intervention, self.order, self.streams):
            if self.prefix.state == "holds":
                clause.see()
            clause.remark("no intervention is recorded in either arm: the whole runs are compared by the first clause")

    def _account_for_differences(self) -> None:
        """(2) what differs later must come from the intervention: else something acts that no digest names."""
        clauses = (self.prefix, self.intervention, self.order, self.streams)
        explained = self._differs_at_branch or self._moved_order or self._exempt.later
        if self._later is None or explained or any(clause.state != "holds" for clause in clauses):
            return
        step, differ = self._later
        later = [item for item in self._done if shows_later(item)]
        if not later:
            text = f"nothing differs right after it, and at this step these do: {listed(differ)}"
            self.intervention.fail(step, differ[0], text)
        elif not any(names_component(later, name) for name in differ):
            text = f"{later[0].primitive} names {_target(later[0])}, and the first to differ are {listed(differ)}"
            self.intervention.fail(step, differ[0], text)
        else:
            self.intervention.remark(f"it shows from step {step} on, in {listed(differ)}")


def _differing(left: dict[str, str], right: dict[str, str], whole: bool = True) -> list[str]:
    """Return the names that differ, sorted; `whole` counts those that one side alone has."""
    names = left.keys() | right.keys() if whole else left.keys() & right.keys()
    return sorted(name for name in names if left.get(name) != right.get(name))


def _aliases(line: InterventionLine) -> list[str]:
    return [
        name for name in _differing(line.state.before, line.state.after) if name not in line.changed and line.changed
    ]


def _forks(lines: list[InterventionLine]) -> list[tuple[str, dict[str, str]]]:
    return [
        (str(line.intervention.to_json()), line.rng.after) for line in lines if line.intervention.primitive == "fork"
    ]


def _target(intervention: Intervention) -> str:
    if intervention.primitive in UNDOING:
        return "nothing"
    return intervention.component or ("the order" if intervention.primitive in ORDER_PRIMITIVES else "the weights")


def _index(step: Step) -> str | None:
    return step.order.index if step.order is not None else None


def _said(last: Step | End | None) -> str:
    if isinstance(last, End):
        return f"the run ended ({last.outcome})"
    return "the log stops" if last is None else f"step {last.i}"


def _branch_text(branch: Branch) -> str:
    return f"step {branch.step} of run {branch.run[:8]}, chain head {branch.chain_head[:16]}"


def _read_prefix(lines: Iterable[Line], branch: Branch) -> tuple[End | None, str]:
    """Read a prefix to its end: its last line, where the branch is at its end, and in what it is not the one named.

    A branch before the first step names any line before it.
    """
    problem, done, end = f"it has no step {branch.step - 1}", 0, None
    for line in lines:
        match line:
            case Begin() if line.nonce != branch.run:
                return None, f"it is run {line.nonce[:8]}, and not {branch.run[:8]}"
            case Step():
                done = line.i + 1
            case End():
                end = line
        if done == branch.step and (isinstance(line, Step) or (done == 0 and problem)):
            said = f"its chain before step {done} is {line.chain[:16]}, not {branch.chain_head[:16]}"
            problem = said if line.chain != branch.chain_head else ""
    return end if done == branch.step else None, problem
