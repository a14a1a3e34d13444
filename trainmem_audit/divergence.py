"""Where two runs part: the first step that differs, every component that differs there by cause, and the blame.

Pure: two sequences of step-log lines in, a `Difference` or nothing out. Lines are compared group by group: a *group* is
all lines up to and with one `step` (or `end`) line, so that what only one side logs in between shifts nothing.

The order of cause (DESIGN § 5): what enters a step comes before what the step computes, and what was there before the
step comes before the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from trainmem_audit.canonical import canonical_bytes, component_digest, parse_float_text
from trainmem_audit.contract import stream_digest
from trainmem_audit.documents.findings import ComponentDifference, Difference, TensorDifference
from trainmem_audit.documents.steplog import (
    Begin,
    Component,
    End,
    Epoch,
    InterventionLine,
    Inventory,
    Line,
    Loader,
    Step,
)
from trainmem_audit.errors import FormatError
from trainmem_audit.interventions import text_of
from trainmem_audit.sidefiles import split_digests

__all__ = ["GRADIENT_PATH", "Comparison", "Group", "TensorLookup", "groups", "tree_difference"]

GRADIENT_PATH = "gradient path"
_KERNEL_DIMENSIONS = 3
"""From how many dimensions a parameter is the kernel of a convolution: output channels, input channels, extents."""

MOST_EPOCHS = 2**18
"""How many random streams the epochs between two steps may tell of: they are held until the step is there."""

TensorLookup = Callable[[int], bytes | None]
"""Gives the tensor digests of a step (a frame of `tensors.b3`), or `None` where they were not kept."""

(
    _STRUCTURE,
    _ORDER,
    _START_RNG,
    _INDEX,
    _CONTENT,
    _INPUTS,
    _RNG,
    _BUFFERS,
    _HYPER,
    _LOSS,
    _BATCHNORM,
    _GRADS,
    _SLOTS,
    _PARAMS,
) = range(14)
_OUTCOME = 14

_EXPLANATIONS = {
    _STRUCTURE: "The model or the optimizer has other tensors: another architecture, or a layer added or removed.",
    _ORDER: "The data loader is set up differently: batch size, shuffling, sampler, workers or the data set itself.",
    _START_RNG: "The random streams differ before the first batch of the epoch is drawn: another seed, or code before "
    "the loop that draws another number of random values.",
    _INDEX: "The sampler handed out other samples: another shuffle, sampler seed or batch size.",
    _CONTENT: "The same samples hold other values: a changed data file, label, augmentation or preprocessing.",
    _INPUTS: "The batches are equal and what the model was given is not: preprocessing or augmentation between the "
    "loader and the model.",
    _RNG: "Everything that entered the step is equal and it drew other or more random values: a random operation was "
    "added, removed, switched on or off, or the random state was set.",
    _BUFFERS: "A buffer, queue, teacher or weight average differs while data and random streams agree: its update rule "
    "or decay was changed.",
    _HYPER: "The hyper-parameters differ while data and random streams agree: learning rate, momentum, weight decay, "
    "betas or their schedule.",
    _PARAMS: "The parameters differ before the first update while the random streams agree: other initial weights or "
    "another checkpoint.",
    _OUTCOME: "The runs agree step by step and end differently.",
}
_GRADIENT_EXPLANATION = (
    "Everything that enters the step is equal (samples, content, inputs, random draws, hyper-parameters) and what it "
    "computes is not: a dropout rate, the loss function, the forward pass, gradient clipping, or another kernel "
    "(thread count, instruction set, precision, library version)."
)
_GRADS_EXPLANATION = (
    "The loss is equal to the bit, and the gradients that are carried from step to step are not: when they are set to "
    "zero, what is added to them, or clipping."
)


_INTERVENTION = "intervention"
_INTERVENTION_EXPLANATION = "The two runs were intervened on differently, so they are not two of the same run."
_STATISTICS_EXPLANATION = (
    "The statistics of BatchNorm differ and nothing else does, neither loss nor update: their momentum, or whether a "
    "pass through the model updates them."
)


@dataclass
class Group:
    """What leads to one `step` or `end` line, and that line (`None` if the log stops before it).

    `streams` are digests of start states, `state` are the digests of components before the step.
    """

    streams: dict[str, str] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)
    loaders: dict[str, Loader] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    interventions: list[InterventionLine] = field(default_factory=list)
    last: Step | End | None = None
    _weight: int = 0

    def take(self, line: Begin | Inventory) -> None:
        """Add what a line introduces; many lines that say the same take no more memory than one."""
        for name, stream in (line.streams or {}).items():
            self.streams.setdefault(name, stream_digest(stream))
        if isinstance(line, Inventory):
            self.components.update(line.components or {})
            self.loaders.update(line.loaders or {})
            self.state.update(line.state or {})

    def begin_epoch(self, line: Epoch) -> None:
        """Add the beginning of an epoch."""
        self._weight += 1 + len(line.rng)
        if self._weight > MOST_EPOCHS:
            raise FormatError(
                "too many epochs without a step", where=f"step {line.i}", expected=f"at most {MOST_EPOCHS}"
            )
        self.epochs.append(line)

    def intervene(self, line: InterventionLine) -> None:
        """Add an intervention."""
        self._weight += 1 + len(line.state.before) + len(line.state.after) + len(line.rng.before) + len(line.rng.after)
        if self._weight > MOST_EPOCHS:
            raise FormatError(
                "too many interventions without a step", where=f"step {line.i}", expected=f"at most {MOST_EPOCHS} names"
            )
        self.interventions.append(line)

    def __bool__(self) -> bool:
        return bool(self.components or self.loaders or self.state or self.epochs or self.interventions or self.last)


def groups(lines: Iterable[Line]) -> Iterator[Group]:
    """Cut a sequence of lines into groups."""
    group = Group()
    for line in lines:
        match line:
            case Begin() | Inventory():
                group.take(line)
            case Epoch():
                group.begin_epoch(line)
            case InterventionLine():
                group.intervene(line)
            case Step() | End():
                group.last = line
                yield group
                group = Group()
    if group:
        yield group


@dataclass
class _Side:
    """What one run has said so far: its inventory and the values in force."""

    components: dict[str, Component] = field(default_factory=dict)
    loaders: dict[str, Loader] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)

    def take(self, group: Group) -> None:
        self.start = group.state
        for name, digest in group.streams.items():
            self.streams.setdefault(name, digest)
        for name, component in group.components.items():
            self.components[name] = component
            if component.values is not None:
                self.values[name] = component.values
        self.loaders.update(group.loaders)
        if group.last is not None:
            self.values.update(group.last.values or {})
            self.state = group.last.state


@dataclass(frozen=True)
class _Item:
    """One thing that differs, before tensors are looked up."""

    rank: int
    name: str
    stage: str
    expected: str
    got: str
    detail: str = ""


class Comparison:
    """Compares two runs group by group; feed it until it returns a difference.

    Parameters
    ----------
    expected_tensors, got_tensors:
        Where the tensor digests of a step are found, for naming the tensor; by the steps of the expected run.
    resumed_at:
        How many steps of the expected run come before the first of the other one, which was resumed there.
    """

    def __init__(
        self,
        expected_tensors: TensorLookup = lambda _: None,
        got_tensors: TensorLookup = lambda _: None,
        *,
        resumed_at: int | None = None,
    ) -> None:
        self._resumed = resumed_at is not None
        self._sides = (_Side(), _Side())
        self._lookups = (expected_tensors, got_tensors)
        self.steps = 0
        self._one_sided: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._gaps: dict[str, int] = {}

    @property
    def uncompared(self) -> dict[str, int]:
        """Components and random streams that only one side held, by the number of steps at which that was so.

        A script may drop an object that the garbage collector takes away a few steps later on one side: what both sides
        lack in the end, and never had apart before, is left out.
        """
        found = dict(self._gaps)
        for side in self._one_sided:
            for name, steps in side.items():
                found[name] = found.get(name, 0) + steps
        return found

    def skip(self, expected: Group) -> None:
        """Take a group that the other run, which was resumed later, does not have."""
        self._sides[0].take(expected)
        if isinstance(expected.last, Step):
            self.steps += 1

    def feed(self, expected: Group, got: Group | None) -> Difference | None:
        """Compare the next group of both sides; `got` is `None` when the other run stopped before it."""
        left, right = self._sides
        left.take(expected)
        if expected.last is None and (got is None or got.last is None):
            return None  # both were killed between two steps
        if got is None or got.last is None or expected.last is None:
            return self._stopped(expected, got)
        right.take(got)
        if type(expected.last) is not type(got.last):
            return self._stopped(expected, got)
        items: dict[str, _Item] = {}
        for item in (*self._before(expected, got), *self._during(expected.last, got.last)):
            items.setdefault(item.name, item)  # once each: where it differs first
        if items:
            return self._difference(expected, expected.last, list(items.values()))
        if isinstance(expected.last, Step):
            self.steps += 1
            self._note_one_sided(expected.last, got.last)
        return None

    def _note_one_sided(self, a: Step, b: Any) -> None:
        names = [{*line.state, *(f"rng.{stream}" for stream in line.rng)} for line in (a, b)]
        for own, other, alone in zip(names, reversed(names), self._one_sided, strict=True):
            for name in own - other:
                alone[name] = alone.get(name, 0) + 1
            for name in alone.keys() & other:  # it came back: nothing was dropped
                self._gaps[name] = self._gaps.get(name, 0) + alone.pop(name)
            for name in alone.keys() - own:
                del alone[name]

    def _stopped(self, expected: Group, got: Group | None) -> Difference:
        def say(group: Group | None) -> str:
            if group is None or group.last is None:
                return "the log stops"
            return f"the run ended ({group.last.outcome})" if isinstance(group.last, End) else f"step {group.last.i}"

        item = _Item(_OUTCOME, "steps", "step", say(expected), say(got), "the runs have different numbers of steps")
        return self._assemble(self.steps, "step", [item], "steps", "One run has more steps than the other.")

    def _before(self, expected: Group, got: Group) -> Iterator[_Item]:
        """What differs before the update of this group's step: loaders, structure, epoch starts, initial state."""
        yield from self._loaders()
        yield from self._structure()
        for a, b in zip(expected.epochs, got.epochs, strict=False):
            for name, a_digest, b_digest in self._streams(a.rng, b.rng):
                detail = f"at the start of epoch {a.epoch} of {a.loader}"
                yield _Item(_START_RNG, name, "start", a_digest, b_digest, detail)
        yield from self._initial_state()
        yield from _interventions(expected.interventions, got.interventions)

    def _loaders(self) -> Iterator[_Item]:
        left, right = self._sides
        if self._resumed and right.loaders and all(item in left.loaders.values() for item in right.loaders.values()):
            return  # a loader that is made for each epoch has another number
        if left.loaders != right.loaders:
            names = sorted(left.loaders.keys() | right.loaders.keys())
            sides = [(name, left.loaders.get(name), right.loaders.get(name)) for name in names]
            differ = [(name, a, b) for name, a, b in sides if a != b]
            detail = "; ".join(f"{name}: {tree_difference(_settings(a), _settings(b))}" for name, a, b in differ)
            yield _Item(_ORDER, "order", "start", _present(differ[0][1]), _present(differ[0][2]), detail)

    def _structure(self) -> Iterator[_Item]:
        left, right = self._sides
        for name in sorted(left.components.keys() | right.components.keys()):
            a, b = left.components.get(name), right.components.get(name)
            if self._resumed and (a is None or b is None):
                continue  # what a run that begins anew meets only later, a teacher that must first change say
            if (a and a.tensors) != (b and b.tensors) or (a is None) != (b is None):
                rank = _STRUCTURE if name.split(".")[0].startswith("model") else _rank(name)
                yield _Item(rank, name, "start", _present(a), _present(b), _header_difference(a, b))

    def _initial_state(self) -> Iterator[_Item]:
        left, right = self._sides
        for name in sorted(left.start.keys() & right.start.keys()):
            if left.start[name] != right.start[name]:
                rank = _rank(name)
                stage = "step" if rank in (_BATCHNORM, _BUFFERS) else "start"  # the first forward has filled these
                detail = self._values(name) or "before the first update"
                yield _Item(rank, name, stage, left.start[name], right.start[name], detail)

    def _during(self, a: Step | End, b: Step | End) -> Iterator[_Item]:
        """What differs in the step itself, or at the end of the run."""
        stage = "step" if isinstance(a, Step) else "end"
        if isinstance(a, Step) and isinstance(b, Step):
            yield from self._consumed(a, b)
        for name, a_digest, b_digest in self._streams(a.rng, b.rng):
            yield _Item(_RNG, name, stage, a_digest, b_digest)
        # What only one side has is no difference: see `uncompared`.
        for name in sorted(a.state.keys() & b.state.keys()):
            if a.state[name] != b.state[name] and not self._only_restored(name):
                yield _Item(_rank(name), name, stage, a.state[name], b.state[name], self._values(name))
        if isinstance(a, Step) and isinstance(b, Step):
            yield from self._rates(a, b)
        if isinstance(a, End) and isinstance(b, End) and (a.outcome, a.exit_code) != (b.outcome, b.exit_code):
            said = tuple(f"{end.outcome} (exit code {end.exit_code})" for end in (a, b))
            yield _Item(_OUTCOME, "outcome", stage, *said)

    @staticmethod
    def _rates(a: Step, b: Step) -> Iterator[_Item]:
        """The learning rates, which the hyper-parameters hold too: named alone where these do not differ."""
        left, right = ((line.scalars or {}).get("lr", ()) for line in (a, b))
        hyper = [name for name in a.state.keys() & b.state.keys() if _rank(name) == _HYPER]
        if left != right and all(a.state[name] == b.state[name] for name in hyper):
            yield _Item(_HYPER, "lr", "step", " ".join(left), " ".join(right))

    def _consumed(self, a: Step, b: Step) -> Iterator[_Item]:
        """Order, inputs, loss."""
        a_order, b_order = a.order, b.order
        if a_order is not None and b_order is not None and self._skips(a, b):
            pass
        elif a_order is not None and b_order is not None:
            if (a_order.index, a_order.n) != (b_order.index, b_order.n):
                counts = f"{a_order.n} and {b_order.n} samples" if a_order.n != b_order.n else "other samples"
                yield _Item(_INDEX, "order.index", "step", a_order.index or "", b_order.index or "", counts)
            if a_order.content != b_order.content:
                yield _Item(_CONTENT, "order.content", "step", a_order.content, b_order.content)
        elif a_order != b_order:
            yield _Item(_INDEX, "order.index", "step", _present(a_order), _present(b_order))
        if a.inputs != b.inputs:
            yield _Item(_INPUTS, "inputs", "step", a.inputs or "absent", b.inputs or "absent")
        if a.skipped != b.skipped:
            said = ["skipped: gradients were not finite" if line.skipped else "stepped" for line in (a, b)]
            yield _Item(_LOSS, "attempt", "step", *said)
        a_loss, b_loss = ((line.scalars or {}).get("loss", ()) for line in (a, b))
        if a_loss != b_loss:
            yield _Item(_LOSS, "loss", "step", " ".join(a_loss), " ".join(b_loss), _loss_difference(a_loss, b_loss))

    def _skips(self, a: Step, b: Step) -> bool:
        """Tell whether a resumed run has only taken batches off its loader besides, to get where it was.

        What a loader hands out counts as consumed; that the model got the same shows that nothing else was used.
        """
        if not self._resumed or a.order is None or b.order is None:
            return False
        return a.order.n < b.order.n and a.inputs is not None and a.inputs == b.inputs

    def _streams(self, a: dict[str, str], b: dict[str, str]) -> Iterator[tuple[str, str, str]]:
        left, right = self._sides
        for name in sorted(a.keys() & b.keys()):
            unused = a[name] == left.streams.get(name) and b[name] == right.streams.get(name)
            if self._resumed and not _is_global(name) and left.streams.get(name) != right.streams.get(name):
                continue  # generators of the script's own are numbered as they are met: it may be another one
            if a[name] != b[name] and not unused:  # other start states of a stream that nobody has drawn from yet
                yield f"rng.{name}", a[name], b[name]

    def _only_restored(self, name: str) -> bool:
        """Tell whether a resumed run may differ in this: how its sampler counts, for the order itself is compared; and
        what `load_state_dict` of a scaler calls its first scale, used no more.
        """
        if self._resumed and name.startswith("sampler"):
            return True
        if not self._resumed or not name.startswith("scaler"):
            return False
        left, right = (dict(side.values.get(name) or {}) for side in self._sides)
        return bool(left) and left | {"init_scale": None} == right | {"init_scale": None}

    def _values(self, name: str) -> str:
        left, right = (side.values.get(name) for side in self._sides)
        return "" if left is None or right is None else tree_difference(left, right)

    def _difference(self, group: Group, last: Step | End, items: list[_Item]) -> Difference:
        items.sort(
            key=lambda item: (
                item.stage != "start",
                item.rank,
                not item.name.startswith("rng.torch"),
                not item.name.startswith("teacher"),  # they fill queues and banks
                item.name,
            )
        )
        first = items[0]
        if first.name == _INTERVENTION:
            blame, explanation = first.name, _INTERVENTION_EXPLANATION
        elif first.stage == "step" and first.name.endswith(".grads"):
            blame, explanation = first.name, _GRADS_EXPLANATION
        elif first.stage == "step" and first.rank >= _LOSS and any(item.rank != _BATCHNORM for item in items):
            blame, explanation = GRADIENT_PATH, _GRADIENT_EXPLANATION
        elif first.stage == "step" and first.rank == _BATCHNORM:
            blame, explanation = first.name, _STATISTICS_EXPLANATION
        else:
            blame = first.name
            rank = _OUTCOME if first.stage == "end" else first.rank
            explanation = _EXPLANATIONS.get(rank) or _start_explanation(first)
        found = self._assemble(last.i, first.stage, items, blame, explanation)
        usual = _usual_cause(found, bool(group.epochs))
        return found.model_copy(update={"explanation": f"{explanation} {usual}"}) if usual else found

    def _assemble(self, step: int, stage: str, items: list[_Item], blame: str, explanation: str) -> Difference:
        frames = [self._frame(side, lookup, step) for side, lookup in zip(self._sides, self._lookups, strict=True)]
        return Difference.model_validate(
            {
                "step": step,
                "stage": stage,
                "blame": blame,
                "explanation": explanation,
                "components": tuple(self._component(item, frames[0], frames[1]) for item in items),
            }
        )

    @staticmethod
    def _frame(side: _Side, lookup: TensorLookup, step: int) -> dict[str, list[bytes]]:
        """Return the tensor digests of one side at a step by component; nothing where they were not kept.

        Only those that give the component's digest in the log: the file beside it may be another one.
        """
        data = lookup(step)
        counts = [(name, len(side.components[name].tensors or ())) for name in sorted(side.state)]
        if data is None or len(data) != 32 * sum(count for _, count in counts):
            return {}
        return {
            name: digests
            for name, digests in split_digests(data, counts).items()
            if digests
            and component_digest(canonical_bytes(side.components[name].tensors), digests).hex() == side.state[name]
        }

    def _component(self, item: _Item, a: dict[str, list[bytes]], b: dict[str, list[bytes]]) -> ComponentDifference:
        left, right = (side.components.get(item.name) for side in self._sides)
        tensors: tuple[TensorDifference, ...] = ()
        if item.stage == "step" and left and right and left.tensors and left.tensors == right.tensors:
            tensors = tuple(
                TensorDifference(name=name, dtype=dtype, shape=shape, expected=x.hex(), got=y.hex())
                for (name, dtype, shape), x, y in zip(
                    left.tensors, a.get(item.name, []), b.get(item.name, []), strict=False
                )
                if x != y
            )
        detail = item.detail
        if not detail and left is not None and left.tensors is not None:
            known = f"{len(tensors)} of {len(left.tensors)} tensors differ"
            detail = known if tensors else "which tensors is not known: their digests were not kept at this step"
        members = {"component": item.name, "cause": item.rank, "stage": item.stage, "expected": item.expected}
        return ComponentDifference.model_validate(
            {**members, "got": item.got, "detail": detail, "tensors": tensors, "tensors_known": bool(tensors)}
        )


def _interventions(left: list[InterventionLine], right: list[InterventionLine]) -> Iterator[_Item]:
    """What differs in the interventions before a step: which they are, and what they made of the state."""
    if [(line.i, line.intervention) for line in left] != [(line.i, line.intervention) for line in right]:
        texts = [" · ".join(text_of(line.intervention, line.i) for line in side)[:200] for side in (left, right)]
        detail = "another intervention, or at another step"
        yield _Item(_STRUCTURE, _INTERVENTION, "start", texts[0] or "none", texts[1] or "none", detail)
        return
    for a, b in zip(left, right, strict=True):
        for when, x, y in (("before", a.state.before, b.state.before), ("after", a.state.after, b.state.after)):
            for name in sorted(x.keys() & y.keys()):
                if x[name] != y[name]:
                    detail = f"right {when} the intervention {text_of(a.intervention, a.i)}"
                    yield _Item(_rank(name), name, "start", x[name], y[name], detail)


def _usual_cause(found: Difference, epoch_begins: bool) -> str:
    """Say what usually causes the pattern of a difference, where the pattern says more than the first component."""
    if found.blame == "order.index":
        if epoch_begins:
            return "It begins with an epoch: usually the seed of the sampler, or of the generator that it draws from."
        return "It begins within an epoch: usually a sampler that depends on what was trained, or batches skipped."
    if found.blame != GRADIENT_PATH:
        return ""
    names = {component.component for component in found.components}
    loss = (
        "The loss differs already, so it is the forward pass: usually a dropout rate, or another kernel."
        if "loss" in names
        else "The loss is equal to the bit, so it is the backward pass or the update: usually clipping, or a kernel."
    )
    if "attempt" in names:
        loss = "One of the two skipped the step: the loss scale was too large for its gradients."
    where = _where(found)
    return f"{loss} {where}" if where else loss


def _where(found: Difference) -> str:
    """Say which kind of tensors differ, if it is not all of them."""
    learned = [item for item in found.components if item.cause >= _SLOTS and item.tensors_known]
    tensors = [tensor for item in learned for tensor in item.tensors]
    if not tensors or any(item.detail.split(" ")[0] == item.detail.split(" ")[2] for item in learned):
        return ""  # all of a component's tensors differ
    if all(len(tensor.shape) >= _KERNEL_DIMENSIONS for tensor in tensors):
        return "Only the gradients of convolutions differ: usually the number of threads, or cuDNN's choice of kernels."
    modules = {tensor.name.rpartition(".")[0] for tensor in tensors}
    if len(modules) == 1 and (module := modules.pop()):
        return f"Only the tensors of `{module}` differ: what was changed lies there, or only it depends on it."
    if all(len(tensor.shape) == 1 for tensor in tensors):
        return "Only biases and norms differ: usually a sum in another order, by another number of threads."
    return ""


def _rank(component: str) -> int:
    family = component.split(".")[-1]
    if family == "hyper" or component.startswith(("scheduler", "scaler")):
        return _HYPER
    if family == "batchnorm":
        return _BATCHNORM
    if component.startswith("optimizer"):
        if family.startswith("slow_"):
            return _BUFFERS  # of Lookahead: an average, which acts between steps
        return _PARAMS if family == "params" else _SLOTS
    if component.startswith("model") and family in ("params", "grads"):
        return _PARAMS if family == "params" else _GRADS
    return _BUFFERS


def _is_global(stream: str) -> bool:
    return stream in ("python", "numpy", "torch.cpu") or stream.startswith("torch.cuda.")


def _start_explanation(item: _Item) -> str:
    return f"{item.name} differs before the step, while all that comes before it in the order of cause is equal."


def _present(value: object) -> str:
    return "absent" if value is None else "present"


def _settings(loader: Loader | None) -> dict[str, Any]:
    return {} if loader is None else {**loader.to_json(), **loader.settings, "settings": None}


def _header_difference(a: Component | None, b: Component | None) -> str:
    if a is None or b is None:
        return "the component exists on one side only"
    left, right = ({name: (dtype, shape) for name, dtype, shape in side.tensors or ()} for side in (a, b))
    for name in [*left, *(name for name in right if name not in left)]:
        if left.get(name) != right.get(name):
            return f"{name}: expected {_tensor_text(left.get(name))}, got {_tensor_text(right.get(name))}"
    return "the tensors come in another order"


def _tensor_text(header: tuple[str, tuple[int, ...]] | None) -> str:
    return "no such tensor" if header is None else f"{header[0]}{list(header[1])}"


def _loss_difference(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} backward passes"
    for x, y in zip(a, b, strict=True):
        if x != y:
            return f"expected {_number(x)}, got {_number(y)}{_size(x, y)}"
    return ""


def tree_difference(a: Any, b: Any, limit: int = 6) -> str:
    """Return the leaves in which two trees of plain values differ: `path: expected …, got …`, the first few of them."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    rows = [
        f"{path}: expected {_number(left.get(path, 'absent'))}, got {_number(right.get(path, 'absent'))}"
        + _size(left.get(path), right.get(path))
        for path in [*left, *(path for path in right if path not in left)]
        if left.get(path, "absent") != right.get(path, "absent")
    ]
    more = f"; and {len(rows) - limit} more" if len(rows) > limit else ""
    return "; ".join(rows[:limit]) + more


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _leaves(member, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            yield from _leaves(member, f"{path}.{index}" if path else str(index))
    else:
        yield path, value


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return float(value)
    try:
        return parse_float_text(value) if isinstance(value, str) else None
    except FormatError:
        return None


def _number(value: Any) -> str:
    number = _as_float(value)
    return str(value)[:80] if number is None or isinstance(value, int) else f"{number:.9g}"


def _size(a: Any, b: Any) -> str:
    left, right = _as_float(a), _as_float(b)
    if left is None or right is None:
        return ""
    relative = f", relative {abs(right - left) / abs(left):.2g}" if left else ""
    return f" (difference {abs(right - left):.3g}{relative})"
