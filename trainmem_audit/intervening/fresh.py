"""Resets components to the value that a fresh start would give them, kind by kind.

Slots of optimizers as the optimizer makes them; BatchNorm to mean 0, variance 1, count 0; an average to what it is an
average of; a gradient scaler to its first scale; containers of records to none. What only the script knows (weights,
buffers, schedules, hyper-parameters, tensors that serve as a bank) goes back to what it was before the first step. No
random number is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn.modules.batchnorm import _NormBase

from trainmem_audit.errors import UsageError
from trainmem_audit.intervening.pairs import counterparts, student_of
from trainmem_audit.intervening.queues import emptied, queue_of
from trainmem_audit.intervening.targets import Memory, Target, put, replace
from trainmem_audit.sources.base import Saved, Source
from trainmem_audit.sources.copies import CopySource
from trainmem_audit.sources.gradients import GradientSource
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.scalers import ScalerSource

__all__ = ["reset"]

Initial = Callable[[str], Mapping[str, Saved]]


def reset(memory: Memory, targets: list[Target], counter: str | None, initial: Initial, name: str) -> dict[str, str]:
    """Reset components; return facts about it.

    Raises
    ------
    UsageError
        If the fresh value of one is not known.
    """
    facts: dict[str, str] = {}
    for source in _once(target.source for target in targets):
        own = [target for target in targets if target.source is source]
        if isinstance(source, OptimizerSource) and not _is_other(own):
            facts |= _reset_slots(source, own, counter, name)
        elif isinstance(source, ModuleSource) and not source.trained:
            for target in own:
                _reset_average(memory, target, initial)
        else:
            for target in own:
                _reset_component(memory, target, initial)
    return facts


def _once(sources: Iterable[Source]) -> list[Source]:
    found: list[Source] = []
    for source in sources:
        if all(source is not known for known in found):
            found.append(source)
    return found


def _is_other(own: list[Target]) -> bool:
    return any(target.name.rpartition(".")[2] in ("hyper", "params", "attributes") for target in own)


def _reset_slots(source: OptimizerSource, own: list[Target], counter: str | None, name: str) -> dict[str, str]:
    if any(target.within for target in own):
        remedy = "name the slot, or use `zero` for single tensors"
        raise UsageError("a slot is reset for all parameters or none", where=own[0].name, remedy=remedy)
    slots = [] if name == source.name else [target.name.removeprefix(f"{source.name}.") for target in own]
    return source.reset([slot.removesuffix(".values") for slot in slots], counter)


def _reset_average(memory: Memory, target: Target, initial: Initial) -> None:
    """Put an average to what it is an average of; what only the average has, to what it was before the first step."""
    family = target.name.rpartition(".")[2]
    if family == "batchnorm" or target.component.tensors is None:
        _reset_component(memory, target, initial)
        return
    own = [(name, tensor) for name, tensor in target.tensors() if name != "n_averaged"]
    part = Target(target.source, type(target.component)(target.name, target.component.labels, own))
    put(target, {name: value.detach().to(dict(own)[name]) for name, value in _student(memory, part).items()})
    counts = {name: torch.zeros_like(tensor) for name, tensor in target.tensors() if name == "n_averaged"}
    put(target, counts)


def _student(memory: Memory, target: Target) -> dict[str, torch.Tensor]:
    return counterparts(target, student_of(memory, target)) if target.component.tensors else {}


def _reset_component(memory: Memory, target: Target, initial: Initial) -> None:
    source = target.source
    if isinstance(source, ModuleSource) and target.name.endswith(".batchnorm"):
        put(target, _fresh_statistics(source, target))
    elif isinstance(source, CopySource):
        put(target, {name: value.to(value.dtype) for name, value in _student(memory, target).items()})
    elif isinstance(source, ScalerSource) and target.component.tensors is not None:
        put(target, _fresh_scale(source, target))
    elif isinstance(source, GradientSource):
        replace(source, target.name, Saved(tensors={}))
    elif not target.is_aliased and any(name.endswith("fill") for name, _ in target.component.tensors or ()):
        put(target, emptied(queue_of(target, {}), None))
    else:
        _reset_to_start(target, initial)


def _fresh_statistics(source: ModuleSource, target: Target) -> dict[str, torch.Tensor]:
    """Return mean 0, variance 1 and count 0, as `reset_running_stats` gives them; other buffers of a norm stay."""
    root = source.root
    norms = [module for module in root.modules() if isinstance(module, _NormBase)] if root is not None else []
    ones = {id(module.running_var) for module in norms}
    kept = dict(target.component.tensors or ())
    found = {}
    for name, tensor in target.tensors():
        is_variance = id(kept[name]) in ones
        found[name] = torch.ones_like(tensor) if is_variance else torch.zeros_like(tensor)
    return found


def _fresh_scale(source: ScalerSource, target: Target) -> dict[str, torch.Tensor]:
    scaler = source.scaler
    first = {"scale": float(scaler._init_scale), "growth_tracker": float(scaler._init_growth_tracker)}
    return {name: torch.full_like(tensor, first[name]) for name, tensor in target.tensors()}


def _reset_to_start(target: Target, initial: Initial) -> None:
    saved = initial(target.name).get(target.name)
    if saved is None:
        message = "what this component held before the first step was not kept"
        raise UsageError(message, where=target.name, remedy="`zero`, `flush` or `transplant` say what is meant")
    if target.component.tensors is None:
        replace(target.source, target.name, saved)
        return
    then = saved.tensors or {}
    if missing := [name for name, _ in target.tensors() if name not in then]:
        raise UsageError("a tensor that was not there before the first step", where=f"{target.name}: {missing[0]}")
    put(target, {name: then[name] for name, _ in target.tensors()})
