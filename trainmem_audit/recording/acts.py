"""The interventions of a recorded script: when they are due, and what has to be kept for them beforehand.

`record --intervene` names them before the script starts. Each acts at its cut: after so many steps, when the step has
returned and its line is written. At 0 that is before the first update, since a script's memory is known only then. Not
here: what an intervention does (`intervening`), its line in the log (`session`), the order (`scriptorder`).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, Intervention, Moment
from trainmem_audit.errors import InterventionError, TrainmemAuditError, UsageError
from trainmem_audit.intervening import Applied, Memory, Surroundings, held_by
from trainmem_audit.interventions import ORDER, may_change, parse_at_step, text_of
from trainmem_audit.recording.scriptorder import ScriptOrders
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import read_statement, snapshot_at, values_of_snapshot
from trainmem_audit.sources.base import Saved, Source
from trainmem_audit.sources.restoring import copy_state, read_tensors

__all__ = ["Acts", "Forward", "act_members", "storages_of"]

Forward = tuple[weakref.ref[torch.nn.Module], Any, Any]
"""A forward that was seen: the module, and copies of its arguments."""
_MOST_BYTES = 2**30
"""How much of the batches may be kept for a recalibration."""


class Acts:
    """What a script is to be intervened on, and what is kept for it.

    Parameters
    ----------
    texts:
        The interventions in their text form.
    cwd:
        Where directories of other runs are looked for.

    Raises
    ------
    UsageError
        If one cannot be understood, or cannot be done to a script.
    """

    def __init__(self, texts: Sequence[str], cwd: Path) -> None:
        placed = [parse_at_step(text) for text in texts]
        self._planned = sorted(placed, key=lambda item: item[1])  # those at one step stay in the order given
        self._cwd = cwd
        self._kept: dict[tuple[str, int], dict[str, Saved]] = {}
        self._wanted: dict[int, set[str]] = {}
        self._resets: set[str] = set()
        self._batches: deque[Forward] = deque()
        for intervention, step in self._planned:
            self._prepare(intervention, step)
        acts_on_order = any(said.primitive in ORDER_PRIMITIVES or _forks_order(said) for said, _ in self._planned)
        self.orders = ScriptOrders() if acts_on_order else None
        first = [said for said, step in self._planned if step == 0 and said.primitive in ORDER_PRIMITIVES]
        if self.orders is not None and first:
            self.orders.begin_with(first)

    def _prepare(self, said: Intervention, step: int) -> None:
        """Note what has to be kept for an intervention, or refuse it."""
        name, where = said.component or "", text_of(said, step)
        if said.primitive == "equalise":
            remedy = "arms of a program are equalised; a script has one arm"
            raise UsageError("there is no other arm to equalise with", where=where, remedy=remedy)
        if said.primitive in ("lag", "age"):
            self._keep(name, step - (said.steps or 0), where)
        elif said.primitive == "transplant" and said.source is not None and said.source.run is None:
            self._keep(name, said.source.step + 1, where)
            if said.source.step + 1 > step:
                raise UsageError("a state that is not there yet", where=where, expected=f"a step before {step}")
        elif said.primitive == "transplant" and said.source is not None:
            self._other_run(said.source, name, check=True)
        elif said.primitive == "reset":
            self._resets.add(name)

    def _keep(self, name: str, at: int, where: str) -> None:
        if at < 0:
            raise UsageError("a state from before the run", where=where, expected="a step of this run")
        self._wanted.setdefault(at, set()).add(name)

    def due(self, steps: int) -> list[Intervention]:
        """Return what is to be done after so many steps, in the order given."""
        return [said for said, step in self._planned if step == steps]

    def missed(self, steps: int) -> list[str]:
        """Return the texts of what a run of so many steps did not come to."""
        return [text_of(said, step) for said, step in self._planned if step > steps or (step == steps == 0)]

    def see(self, loader: Any, iterator: Any) -> Any:
        """Take over the order of an iterator that a loader has just made, where an intervention acts on it."""
        if self.orders is None:
            return None
        try:
            return self.orders.see(loader, iterator)
        except TrainmemAuditError as error:
            raise InterventionError(ORDER, error) from None

    # What is kept --------------------------------------------------------------------------------------------------

    def keep(self, steps: int, memory: Memory) -> None:
        """Copy what a later intervention needs of the state after so many steps."""
        names = self._wanted.get(steps, set()) | (self._resets if steps == 0 else set())
        if names:
            states = copy_state(memory.sources())
            self._kept |= {(name, steps): held_by(states, name) for name in names}

    def watch(self, steps: int, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """Keep copies of the batches that a trained module was given, where a recalibration is near."""
        ahead = [
            (said.steps or 0)
            for said, step in self._planned
            if said.primitive == "recalibrate" and step - (said.steps or 0) <= steps < step
        ]
        if ahead:
            self._batches.append((weakref.ref(module), _copied(args), _copied(kwargs)))
            if sum(_size(batch[1:]) for batch in self._batches) > _MOST_BYTES:
                message = "the batches for a recalibration take too much memory"
                error = UsageError(message, where="recalibrate", expected=f"at most {_MOST_BYTES} bytes")
                raise InterventionError("recalibrate", error)

    def surroundings(self, steps: int, said: Intervention, plan: Any) -> Surroundings:
        """Return what an intervention after so many steps can use; `plan` is that of the epoch of training (`see`)."""
        order: Any = None
        if self.orders is not None and (said.primitive in ORDER_PRIMITIVES or _forks_order(said)):
            order = self.orders.begun_with(said) if steps == 0 else self.orders.training(plan)
        return Surroundings(
            order=order,
            earlier=lambda name, back: self._kept_at(name, steps - back),
            initial=lambda name: self._initial(name),
            run=self._run,
            batches=self._forwards,
        )

    def _kept_at(self, name: str, at: int) -> Mapping[str, Saved]:
        if (name, at) not in self._kept:
            raise UsageError("what it held then was not kept", where=name, expected=f"its state after {at} steps")
        return self._kept[name, at]

    def _initial(self, name: str) -> Mapping[str, Saved]:
        found: dict[str, Saved] = {}
        for (_, at), states in self._kept.items():
            if at == 0:
                found |= held_by(states, name)
        return found

    def _run(self, moment: Moment, name: str) -> tuple[str | None, Mapping[str, Saved]]:
        if moment.run is None:
            return None, self._kept_at(name, moment.step + 1)
        return self._other_run(moment, name)

    def _other_run(self, moment: Moment, name: str, check: bool = False) -> tuple[str, Mapping[str, Saved]]:
        """Return the id of another run and what a component held at a step of it, of which it has a snapshot."""
        path = self._cwd / (moment.run or "")
        where = f"{moment.run}#{moment.step}"
        with open_run(path) as reader:
            manifest = read_statement(reader).predicate
            snapshot = snapshot_at(reader, manifest, moment.step)
            values = values_of_snapshot(reader, manifest, moment.step)
            if snapshot is None or values is None:
                steps = ", ".join(str(item.step) for item in manifest.snapshots[:20]) or "none"
                remedy = f"record that run with --snapshot-at {moment.step}"
                raise UsageError("the run has no snapshot of this step", where=where, expected=steps, remedy=remedy)
            states = {}
            for component, header in manifest.sources.items():
                if component in values.values:
                    states[component] = Saved(values=values.values[component])
                elif header.tensors is not None:
                    forms = [form for form in header.tensors if snapshot.size(component, form[0])]
                    if not check and forms:
                        states[component] = Saved(read_tensors(snapshot, component, forms))
                    elif forms:
                        states[component] = Saved(tensors={})
        found = held_by(states, name)
        if not found:
            raise UsageError("the run holds no such component then", where=where, expected=name)
        return manifest.run.id, found

    def _forwards(self, count: int) -> Iterable[Callable[[], object]]:
        kept = list(self._batches)[-count:] if count else []
        if len(kept) < count:
            message = "too few batches were seen before this step"
            raise UsageError(message, where="recalibrate", expected=f"{count} batches", got=str(len(kept)))
        return [lambda seen=seen: _call(seen) for seen in kept]  # type: ignore[misc]

    def done(self, steps: int) -> None:
        """Let go of what no later intervention needs."""
        if not any(step > steps for _, step in self._planned):
            self._kept.clear()
            self._batches.clear()


def storages_of(sources: Iterable[Source]) -> dict[str, frozenset[int]]:
    """Return the memory that each component lies in, by name."""
    return {
        item.name: frozenset(
            tensor.untyped_storage().data_ptr() for _, tensor in item.tensors if tensor.layout is torch.strided
        )
        for source in sources
        for item in source.components()
        if item.tensors is not None
    }


def act_members(
    said: Intervention,
    applied: Applied,
    state: tuple[dict[str, str], dict[str, str]],
    rng: tuple[dict[str, str], dict[str, str]],
    shared: Mapping[str, frozenset[int]],
) -> dict[str, Any]:
    """Return the members of an `intervention` line; `state` and `rng` are digests right before and right after.

    `shared` is the memory that each component lies in: what lies in that of a component that is named is an alias.
    """
    before, after = state
    differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    named = [name for name in differ if may_change(said, name)]
    memory = frozenset[int]().union(*(shared.get(name, frozenset()) for name in named))
    others = [name for name in differ if name not in named]
    changed = named + [name for name in others if not shared.get(name) or not shared[name] <= memory]
    line: dict[str, Any] = {
        "intervention": (applied.said or said).to_json(),
        "state": {"before": before, "after": after},
        "rng": {"before": rng[0], "after": rng[1]},
        "changed": sorted(changed),
    }
    if applied.order is not None:
        line["order"] = dict(applied.order)
    if applied.facts:
        line["facts"] = dict(applied.facts)
    if not changed:
        line["note"] = applied.note or "what was to be put in was there already"
    return line


def _forks_order(said: Intervention) -> bool:
    return said.primitive == "fork" and ORDER not in (said.kept or ())


def _call(seen: Forward) -> object:
    module = seen[0]()
    if module is None:
        raise UsageError("the module of a batch is gone", where="recalibrate")
    return module(*seen[1], **seen[2])


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(member) for key, member in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0
