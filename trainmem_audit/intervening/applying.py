"""Does an intervention to the live memory of a process, at the cut between two steps.

One function for each primitive of STANDARD § 2. Each acts in place, on what the intervention names and nothing else;
random numbers come from a generator of its own. What is needed beside the memory (an earlier state, another arm, a
forward pass) comes with the `Surroundings`. Not here: writing it down (`recording.acts`), the order (`Order`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, Intervention, Moment
from trainmem_audit.errors import UsageError
from trainmem_audit.intervening.drawing import flip_bit, perturbed, private, words
from trainmem_audit.intervening.fresh import reset
from trainmem_audit.intervening.holding import Hold
from trainmem_audit.intervening.norms import recalibrate
from trainmem_audit.intervening.pairs import counterparts, student_of
from trainmem_audit.intervening.queues import emptied, queue_of, shuffled, truncated
from trainmem_audit.intervening.targets import Absent, Memory, Target, find, put, replace, tensors_of
from trainmem_audit.interventions import ORDER, check_windows, text_of
from trainmem_audit.sources.base import Saved
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.streams import StreamSet

__all__ = ["Applied", "Order", "Surroundings", "apply"]

_NO_CHANGE: Final = "nothing was to be done"


class Order(Protocol):
    """The batches to come, from the cut on: what interventions on the order act on.

    The methods raise `UsageError` where they cannot be done (a window beyond what is planned, a ragged last batch).
    Each returns members of `documents.steplog.OrderChange` beside the windows: `multiset`, `before` and `after`.
    """

    def swap_windows(self, a: int, b: int, c: int, d: int) -> Mapping[str, str] | None:
        """Exchange the batches [a, b) and [c, d)."""
        ...

    def permute_window(self, a: int, b: int, seed: int) -> Mapping[str, str] | None:
        """Put the batches [a, b) into another order."""
        ...

    def policy(self, kind: str, seed: int) -> Mapping[str, str] | None:
        """Draw samples in another way from now on."""
        ...

    def fork(self, seed: int) -> Mapping[str, str] | None:
        """Draw what is left of the order anew."""
        ...


def _none_earlier(component: str, steps: int) -> Mapping[str, Saved]:
    raise UsageError("what the memory held earlier was not kept", where=component, expected=f"{steps} steps back")


def _no_initial(component: str) -> Mapping[str, Saved]:
    raise UsageError("what the memory held at the start was not kept", where=component)


def _no_run(moment: Moment, component: str) -> tuple[str | None, Mapping[str, Saved]]:
    raise UsageError("there is no other run to take a state from", where=component, got=f"{moment.run}#{moment.step}")


def _no_arm(arm: str, component: str) -> Mapping[str, Saved]:
    message = "there is no other arm at hand: only arms of a program are equalised"
    raise UsageError(message, where=component, got=arm)


def _no_batches(count: int) -> Iterable[Callable[[], object]]:
    raise UsageError("there are no batches to recalibrate with", expected=f"{count} batches")


@dataclass(frozen=True)
class Surroundings:
    """What interventions need beside the memory; each raises `UsageError` where it has nothing.

    Parameters
    ----------
    order:
        The batches to come.
    earlier:
        Gives what a component, or the components of a source, held so many steps before the cut, by name.
    initial:
        Gives what it held before the first step.
    run:
        Gives what it held at a moment of a run, and the id of that run; `None` for this one.
    arm:
        Gives what it holds in another arm.
    batches:
        Gives so many functions, each of which does one forward pass over one batch.
    """

    order: Order | None = None
    earlier: Callable[[str, int], Mapping[str, Saved]] = _none_earlier
    initial: Callable[[str], Mapping[str, Saved]] = _no_initial
    run: Callable[[Moment, str], tuple[str | None, Mapping[str, Saved]]] = _no_run
    arm: Callable[[str, str], Mapping[str, Saved]] = _no_arm
    batches: Callable[[int], Iterable[Callable[[], object]]] = _no_batches


_ALONE: Final = Surroundings()


@dataclass(frozen=True)
class Applied:
    """What an intervention did, beside what the digests show.

    `note` says why it did nothing. `hold` is what keeps a frozen component from then on. `said` is the intervention as
    it is to be written down, where it named a run by its directory.
    """

    facts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    note: str = ""
    order: Mapping[str, Any] | None = None
    hold: Hold | None = None
    said: Intervention | None = None


def apply(
    intervention: Intervention, memory: Memory, streams: StreamSet, surroundings: Surroundings = _ALONE
) -> Applied:
    """Do the intervention now, in place.

    Raises
    ------
    UsageError
        If it names what there is not, or cannot be done to it. Nothing has been changed then.
    """
    check_windows(intervention, text_of(intervention))
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if intervention.primitive in ORDER_PRIMITIVES:
            return _on_order(intervention, surroundings)
        if intervention.primitive in ("carry", "placebo"):
            return _control(intervention, memory)
        if intervention.primitive == "fork":
            return _fork(intervention, streams, surroundings)
        if intervention.primitive in ("kick", "butterfly"):
            return _perturb(intervention, memory)
        assert intervention.component is not None
        found = find(memory, intervention.component)
        if isinstance(found, Absent) and intervention.primitive not in ("transplant", "equalise"):
            return Applied(note=found.why)
        act = _Act(intervention, memory, [] if isinstance(found, Absent) else found, surroundings)
        if intervention.primitive != "recalibrate":
            return _PRIMITIVES[intervention.primitive](act)
    return _recalibrate(act, streams)  # runs the script's own code, which may override functions of torch


@dataclass(frozen=True)
class _Act:
    """One intervention on components: what is said of it, and what it acts on."""

    said: Intervention
    memory: Memory
    targets: list[Target]
    around: Surroundings

    @property
    def name(self) -> str:
        return self.said.component or ""

    def rng(self) -> Any:
        return private(self.said.seed or "0", self.said.primitive)

    def write(self, change: Callable[[Target, str, torch.Tensor], torch.Tensor]) -> None:
        """Put what `change` makes of each tensor in its place, when all of them are made."""
        made = [
            (target, {name: change(target, name, tensor) for name, tensor in tensors_of(target)})
            for target in self.targets
        ]
        for target, tensors in made:
            put(target, tensors)


def _control(intervention: Intervention, memory: Memory) -> Applied:
    """`carry` does nothing; `placebo` writes every tensor with its own bits, as another intervention would."""
    if intervention.primitive == "carry":
        if intervention.component is not None:
            find(memory, intervention.component)
        return Applied(note="the control: everything is carried")
    if intervention.component is not None:
        found = find(memory, intervention.component)
        targets = [] if isinstance(found, Absent) else found
    else:
        targets = [Target(source, item) for source in memory.sources() for item in source.components()]
    for target in targets:
        if target.component.tensors is not None and target.is_aliased:
            put(target, target.copies())
    return Applied(note="the placebo: everything is written as it is")


def _on_order(intervention: Intervention, around: Surroundings) -> Applied:
    order = around.order
    if order is None:
        raise UsageError("the order of the batches cannot be acted on here", where=ORDER)
    windows = intervention.windows or ()
    seed = int(intervention.seed or "0")
    if intervention.primitive == "swap-windows":
        change = order.swap_windows(windows[0].first, windows[0].to, windows[1].first, windows[1].to)
    elif intervention.primitive == "permute-window":
        change = order.permute_window(windows[0].first, windows[0].to, seed)
    else:
        change = order.policy(intervention.policy or "", seed)
    shown: dict[str, Any] = dict(change or {})
    if windows:
        shown["windows"] = [window.to_json() for window in windows]
    same = "before" in shown and shown["before"] == shown.get("after")
    return Applied(
        order=shown, note="the batches to come stay as they are" if same else "it acts on the batches to come"
    )


def _fork(intervention: Intervention, streams: StreamSet, around: Surroundings) -> Applied:
    """Reseed every stream from the fork's seed and the stream's name, and draw what is left of the order anew."""
    kept = set(intervention.kept or ())
    names = sorted(streams.digests())
    if unknown := sorted(kept - {*names, ORDER}):
        raise UsageError(
            "no stream of this name", where="fork", expected=f"{ORDER}, {', '.join(names)}", got=unknown[0]
        )
    seed = intervention.seed or "0"
    for name in names:
        if name not in kept:
            streams.reseed(name, words(seed, f"fork {name}"))
    change = None
    if around.order is not None and ORDER not in kept:
        change = around.order.fork(int(seed))
    facts = {"streams redrawn": str(len(names) - len(kept - {ORDER}))}
    return Applied(facts=facts, order=dict(change) if change else None, note="streams are no components")


def _perturb(intervention: Intervention, memory: Memory) -> Applied:
    """`kick` moves all weights in a random direction; `butterfly` changes one bit of one weight."""
    rng = private(intervention.seed or "0", intervention.primitive)
    targets = [
        Target(source, item)
        for source in memory.sources()
        if isinstance(source, OptimizerSource) or (isinstance(source, ModuleSource) and source.trained)
        for item in source.components()
        if item.name == f"{source.name}.params"
    ]
    if not targets:
        raise UsageError("there are no trained weights to perturb", where=intervention.primitive)
    if intervention.primitive == "butterfly":
        where = flip_bit(
            [(f"{target.name}/{name}", item) for target in targets for name, item in target.tensors()], rng
        )
        return Applied(facts={"weight": where}) if where else Applied(note="no weight has a bit to be flipped")
    sigma = _magnitude(intervention.sigma, "kick")
    for target in targets:
        put(target, {name: perturbed(tensor, sigma, rng) for name, tensor in target.tensors()})
    return Applied()


def _magnitude(text: str | None, where: str) -> float:
    sigma = parse_float_text(text or "nan")
    if not sigma >= 0:
        raise UsageError("a size is not negative", where=where, expected="0 or more", got=str(sigma))
    return sigma


def _zero(act: _Act) -> Applied:
    act.write(lambda target, name, tensor: torch.zeros_like(tensor))
    return Applied()


def _scale(act: _Act) -> Applied:
    factor = parse_float_text(act.said.factor or "nan")
    act.write(lambda target, name, tensor: tensor * factor if _is_numeric(tensor) else tensor)
    return Applied()


def _is_numeric(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _noise(act: _Act) -> Applied:
    rng, sigma = act.rng(), _magnitude(act.said.sigma, act.name)
    act.write(lambda target, name, tensor: perturbed(tensor, sigma, rng))
    return Applied()


def _transplant(act: _Act) -> Applied:
    assert act.said.source is not None
    run, saved = act.around.run(act.said.source, act.name)
    applied = _replaced(act, saved)
    if run is None:
        return applied
    source = Moment(run=run, step=act.said.source.step)
    return replace_fields(applied, said=act.said.model_copy(update={"source": source}))


def _earlier(act: _Act) -> Applied:
    """`lag` and `age`: what the component held some steps ago."""
    return _replaced(act, act.around.earlier(act.name, act.said.steps or 0))


def _replaced(act: _Act, saved: Mapping[str, Saved]) -> Applied:
    """Put another state in the place of the components; what that state does not have is taken away."""
    known = {target.name: target for target in act.targets}
    homes = {name: known[name].source if name in known else _home(act.memory, name) for name in saved}
    whole = [target for target in act.targets if not target.within]
    for name, state in saved.items():
        target = known.get(name)
        if target is not None and target.within:
            put(target, {inner: (state.tensors or {})[inner] for inner, _ in target.tensors()})
        elif target is not None and target.is_aliased and _fits(target, state):
            put(target, state.tensors or {})
        else:
            replace(homes[name], name, state)
    for target in whole:
        if target.name not in saved:
            replace(target.source, target.name, None)
    return Applied()


def _fits(target: Target, state: Saved) -> bool:
    now = {name: (tensor.shape, tensor.dtype) for name, tensor in target.component.tensors or ()}
    then = {name: (tensor.shape, tensor.dtype) for name, tensor in (state.tensors or {}).items()}
    return bool(then) and now == then


def _home(memory: Memory, component: str) -> Any:
    """Return the source that a component is of which is not there now."""
    for source in memory.sources():
        name = getattr(source, "name", None)
        if name is not None and (component == name or component.startswith(f"{name}.")):
            return source
    raise UsageError("nothing holds memory of this kind here", where=component)


def _recalibrate(act: _Act, streams: StreamSet) -> Applied:
    count = act.said.steps or 0
    modules = [target.source for target in act.targets]
    roots = [source.root for source in modules if isinstance(source, ModuleSource)]
    if not roots or not all(target.name.endswith(".batchnorm") for target in act.targets):
        raise UsageError("only statistics of BatchNorm are recalibrated", where=act.name, expected="model.batchnorm")
    before = {name: streams.describe(name) for name in streams.digests()}
    try:
        recalibrate([root for root in roots if root is not None], list(act.around.batches(count)))
    finally:
        for name, state in before.items():
            if state is not None:
                streams.restore(name, state)
    return Applied(facts={"batches": str(count)})


def _freeze(act: _Act) -> Applied:
    note = "held as it is from now on"
    return Applied(note=note, hold=Hold.of(act.memory, act.targets))


def _flush(act: _Act) -> Applied:
    rng = None if act.said.seed is None else act.rng()
    for target, tensors in [(target, emptied(queue_of(target, _beside(act, target)), rng)) for target in act.targets]:
        put(target, tensors)
    return Applied()


def _shuffle(act: _Act) -> Applied:
    made = [(target, shuffled(queue_of(target, _beside(act, target)), act.rng())) for target in act.targets]
    for target, tensors in made:
        put(target, tensors)
    return Applied()


def _truncate(act: _Act) -> Applied:
    kept = act.said.steps or 0
    queues = [(target, queue_of(target, _beside(act, target))) for target in act.targets]
    for target, tensors in [(target, truncated(queue, kept, target.name)) for target, queue in queues]:
        put(target, tensors)
    left = [f"{min(kept, queue.used)} of {queue.used}" for _, queue in queues]
    return Applied(facts={"entries kept": ", ".join(left)[:1000]})


def _beside(act: _Act, target: Target) -> dict[str, int]:
    """Return the plain integers that lie beside a queue: its pointer, how many entries it holds."""
    owners = {f"{target.name}.numbers", target.name.rpartition(".")[0]}
    found: dict[str, int] = {}
    for source in act.memory.sources():
        for item in source.components():
            if item.tensors is None and item.name in owners:
                found |= {name: value for name, value in dict(item.values).items() if type(value) is int}
    return found


def _decay(act: _Act) -> Applied:
    """Let the average forget: `decay` of it stays, the rest comes from what it is an average of."""
    kept = parse_float_text(act.said.decay or "nan")
    if not 0 <= kept <= 1:
        raise UsageError("a decay is between 0 and 1", where=act.name, got=str(kept))
    pairs = [(target, counterparts(target, student_of(act.memory, target))) for target in act.targets]
    for target, student in pairs:
        put(target, {name: _mixed(item, student[name], kept) for name, item in tensors_of(target)})
    return Applied()


def _mixed(tensor: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Return share·tensor + (1 - share)·other, exact at both ends."""
    if not _is_numeric(tensor) or share == 1:
        return tensor
    there = other.detach().to(tensor)
    return there.clone() if share == 0 else tensor * share + there * (1 - share)


def _swap(act: _Act) -> Applied:
    """Exchange what two components hold, tensor by tensor."""
    assert act.said.other is not None
    others = find(act.memory, act.said.other)
    if isinstance(others, Absent):
        return Applied(note=f"{others.name}: {others.why}")
    pairs = [(target, counterparts(target, others)) for target in act.targets]
    for target, there in pairs:
        own = target.copies()
        if any(there[name].dtype != tensor.dtype for name, tensor in own.items()):
            raise UsageError("components of other dtypes are not exchanged", where=act.name, got=act.said.other)
    for target, there in pairs:
        own, back = target.copies(), {name: tensor.detach().clone() for name, tensor in there.items()}
        for name, tensor in there.items():
            tensor.detach().copy_(own[name])
        put(target, back)
    return Applied()


def _equalise(act: _Act) -> Applied:
    """Put the mean of this arm's state and another's in the place of this one's."""
    assert act.said.other is not None
    saved = act.around.arm(act.said.other, act.name)
    if {target.name for target in act.targets} != saved.keys():
        if not act.targets and not saved:
            return Applied(note="neither arm holds it now")
        got = ", ".join(sorted({target.name for target in act.targets} ^ saved.keys()))
        raise UsageError("only one of the two arms holds it", where=act.name, expected="both", got=got)
    made = []
    for target in act.targets:
        there = saved[target.name].tensors or {}
        own = tensors_of(target)
        if any(name not in there or there[name].shape != tensor.shape for name, tensor in own):
            raise UsageError("the arms hold tensors of other forms", where=target.name)
        made.append((target, {name: _mean(tensor, there[name]) for name, tensor in own}))
    for target, tensors in made:
        put(target, tensors)
    return Applied()


def _mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean, the same to the bit from both sides: the sum of the halves commutes."""
    return a * 0.5 + b.to(a) * 0.5 if _is_numeric(a) else a


def _reset(act: _Act) -> Applied:
    return Applied(facts=reset(act.memory, act.targets, act.said.step_counter, act.around.initial, act.name))


_PRIMITIVES: Final[Mapping[str, Callable[[_Act], Applied]]] = MappingProxyType(
    {
        "reset": _reset,
        "zero": _zero,
        "scale": _scale,
        "noise": _noise,
        "transplant": _transplant,
        "freeze": _freeze,
        "flush": _flush,
        "shuffle": _shuffle,
        "truncate": _truncate,
        "age": _earlier,
        "lag": _earlier,
        "decay": _decay,
        "swap": _swap,
        "equalise": _equalise,
    }
)
