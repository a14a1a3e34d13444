"""What an intervention acts on: the live components that a name stands for, read and written in place.

A name is that of a component (`optimizer.momentum`), of a tensor of one or of what lies below it
(`optimizer.momentum/encoder.0.weight`, `model.buffers/queue`), or of a source (`optimizer`: all slots). What is written
keeps its storage, and other components keep their bits. Not here: what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.interventions import split_component
from trainmem_audit.sources.banks import BankSource
from trainmem_audit.sources.base import ComponentState, NamedSource, Saved, Source
from trainmem_audit.sources.gradients import GradientSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import copy_state, write_tensor
from trainmem_audit.sources.scalers import ScalerSource

__all__ = ["Absent", "Memory", "Target", "find", "held_by", "put", "replace", "tensors_of"]

_NO_SLOTS = ("hyper", "params", "attributes")
"""What an optimizer reports beside its slots."""
_SHOWN = 40


class Memory(Protocol):
    """Whatever gives the sources of a process in a fixed order (`recording.memory`)."""

    def sources(self) -> list[Source]:
        """Return all sources."""
        ...


@dataclass(frozen=True)
class Target:
    """A component, or those of its tensors that `within` names."""

    source: Source
    component: ComponentState
    within: str = ""

    @property
    def name(self) -> str:
        """The name of the component."""
        return self.component.name

    @property
    def is_aliased(self) -> bool:
        """Tell whether its tensors are those of the script, and no columns made of records."""
        return not isinstance(self.source, BankSource) and not self.name.startswith("bank.")

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Return its tensors, detached, as they are now."""
        chosen = [
            (name, tensor.detach())
            for name, tensor in self.component.tensors or ()
            if not self.within or name == self.within or name.startswith(f"{self.within}.")
        ]
        if not chosen and self.component.tensors is not None:
            names = ", ".join(name for name, _ in self.component.tensors[:_SHOWN])
            raise UsageError("no tensor of this name", where=self.name, expected=names, got=self.within)
        return chosen

    def copies(self) -> dict[str, torch.Tensor]:
        """Return copies of them, to be changed and given to `put`."""
        return {name: tensor.clone() for name, tensor in self.tensors()}


@dataclass(frozen=True)
class Absent:
    """A component that a kind owns and does not hold now, and why."""

    name: str
    why: str


def find(memory: Memory, name: str) -> list[Target] | Absent:
    """Return what `name` stands for.

    Raises
    ------
    UsageError
        If nothing of the name exists, listing what there is.
    """
    known = [(source, component) for source in memory.sources() for component in source.components()]
    whole, within = split_component(name)
    exact = [Target(source, component) for source, component in known if component.name == name]
    part = [Target(source, component, within) for source, component in known if within and component.name == whole]
    if exact or part:
        return exact or part
    family = [Target(source, component) for source, component in known if _is_of(component.name, name)]
    if family:
        return family
    if (why := _why_absent(memory.sources(), whole)) is not None:
        return Absent(name, why)
    names = ", ".join(component.name for _, component in known[:_SHOWN])
    raise UsageError("there is no such component", where=name, expected=f"one of {names}", got=name)


def held_by(states: Mapping[str, Saved], name: str) -> dict[str, Saved]:
    """Return the states of the components that `name` stands for, of those that were kept at another moment."""
    whole, _ = split_component(name)
    if exact := [item for item in (name, whole) if item in states]:
        return {exact[0]: states[exact[0]]}
    return {item: state for item, state in states.items() if _is_of(item, name)}


def _is_of(component: str, source: str) -> bool:
    no_slot = component.startswith("optimizer") and component.rpartition(".")[2] in _NO_SLOTS
    return component.startswith(f"{source}.") and not no_slot


def _why_absent(sources: Iterable[Source], name: str) -> str | None:
    for source in sources:
        if isinstance(source, OptimizerSource) and (name == source.name or name.startswith(f"{source.name}.")):
            why = source.why_absent(name.removeprefix(source.name).removeprefix("."))
            if why is not None:
                return why
        elif isinstance(source, ScalerSource) and name == source.name:
            return "the scaler has not scaled a loss yet"
        elif isinstance(source, GradientSource) and name == source.name:
            return "no gradient is carried now"
        elif getattr(source, "name", "").startswith("bank.") and name == _name_of(source):
            return "it is empty"
    return None


def _name_of(source: Any) -> str:
    named: NamedSource = source
    return named.name


def tensors_of(target: Target) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a target.

    Raises
    ------
    UsageError
        If it holds plain values instead.
    """
    if target.component.tensors is None:
        raise UsageError(
            "a component of plain values has no tensors to act on",
            where=target.name,
            expected="a component with tensors",
            got=", ".join(sorted(target.component.values)[:_SHOWN]),
            remedy="`reset` and `transplant` act on plain values too",
        )
    return target.tensors()


def put(target: Target, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of a target, in place where they lie; those that are not named stay as they are.

    Raises
    ------
    UsageError
        If one has another form.
    """
    live = dict(target.component.tensors or ())
    if target.is_aliased:
        for name, value in tensors.items():
            if why := write_tensor(live[name], value):
                raise UsageError("a tensor of another form", where=f"{target.name}: {name}", got=why)
        return
    replace(target.source, target.name, Saved({**{name: t.detach() for name, t in live.items()}, **tensors}))


def replace(source: Source, name: str, saved: Saved | None) -> None:
    """Put a component in the place of the one of this name, or take it away, through its source.

    Raises
    ------
    UsageError
        If it does not fit.
    """
    kept: dict[str, Saved] = {} if saved is None else {name: saved}
    if isinstance(source, (OptimizerSource, ScalerSource)):  # these put back all that they hold, or nothing
        whole = copy_state([source])
        whole.pop(name, None)
        kept = whole | kept
    with torch.no_grad(), torch._C.DisableTorchFunction():
        problems = list(source.restore(kept))
    if problems:
        raise UsageError("a state that does not fit", where=name, got="; ".join(problems[:3]))
