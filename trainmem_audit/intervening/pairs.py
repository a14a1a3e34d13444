"""Which tensor of an average belongs to which of the model that it averages: by name, and by shape.

A teacher is called what its student is, but for what wraps it (`module.`, `ema_model.`), or for the part of a larger
model that each of the two is. Not here: what is done with a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.intervening.targets import Memory, Target
from trainmem_audit.sources.copies import CopySource
from trainmem_audit.sources.modules import ModuleSource

__all__ = ["counterparts", "student_of"]

Named = tuple[str, torch.Tensor]


def counterparts(target: Target, others: Sequence[Target]) -> dict[str, torch.Tensor]:
    """Return for each tensor of `target`, by its name, the one of `others` that belongs to it.

    Raises
    ------
    UsageError
        If one has none, or more than one.
    """
    there = [item for other in others for item in other.tensors()]
    found = {}
    for name, tensor in target.tensors():
        alike = _alike(name, [item for item in there if item[1].shape == tensor.shape])
        if len(alike) != 1:
            names = ", ".join(other.name for other in others)
            raise UsageError(
                "no tensor that belongs to this one" if not alike else "several tensors may belong to this one",
                where=f"{target.name}: {name}",
                expected=f"one of the same name and shape {list(tensor.shape)} in {names}",
                got=", ".join(item for item, _ in alike[:3]),
            )
        found[name] = alike[0][1]
    return found


def _alike(name: str, there: Sequence[Named]) -> list[Named]:
    same = [item for item in there if item[0] == name]
    if same:
        return same
    return [item for item in there if name.endswith(f".{item[0]}") or item[0].endswith(f".{name}")]


def student_of(memory: Memory, target: Target) -> list[Target]:
    """Return the components of the trained modules that an average of this kind is made of.

    Raises
    ------
    UsageError
        If `target` is no average.
    """
    source = target.source
    average = isinstance(source, CopySource) or (isinstance(source, ModuleSource) and not source.trained)
    average |= target.component.labels.source == "S5"
    if not average:
        raise UsageError("not an average of the weights", where=target.name, expected="teacher.params, average.…")
    family = target.name.rpartition(".")[2] if isinstance(source, ModuleSource) else "params"
    return [
        Target(model, component)
        for model in memory.sources()
        if isinstance(model, ModuleSource) and model.trained
        for component in model.components()
        if component.name.rpartition(".")[2] == family
    ]
