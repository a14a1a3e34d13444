"""Which batches a step consumed, of those that loaders handed out; and what a loader says of itself.

How batches find their step: a batch counts as training if the first outermost forward after it, of a module that owns
optimizer parameters, ran in training mode with gradients enabled; where none did, one with gradients enabled will do
(fine-tuning in evaluation mode), and where no module saw any, all of them do. All training batches since the last step
belong to the next one, so gradient accumulation needs nothing special, an evaluation between or inside epochs leaves no
trace in the order, and a batch that was fetched ahead waits for its step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from blake3 import blake3

from trainmem_audit.canonical import content_digest
from trainmem_audit.recording.workers import Slots
from trainmem_audit.sources.base import plain_value

__all__ = [
    "Batch",
    "EpochStart",
    "PendingBatches",
    "describe_loader",
    "loader_generators",
    "parts_of",
    "sampler_epoch",
]

_FORWARDS_KEPT = 8
_EVALUATION, _GRADIENTS, _TRAINING = range(3)
_IsOwner = Callable[[torch.nn.Module | None], bool]


@dataclass(eq=False)
class EpochStart:
    """An iterator that a loader has just made, the random streams at that moment, and what decides its order.

    `name` and `number` are those of the loader and the epoch in the log, once it is there. `given` counts the batches
    that were handed out, `ended` tells that there are no more. `plan` is the order that interventions act on, or why
    they cannot.
    """

    loader: weakref.ref[Any]
    description: dict[str, Any]
    rng: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    slots: Slots | None = None
    name: str = ""
    number: int = 0
    logged: bool = False
    given: int = 0
    ended: bool = False
    plan: Any = None


@dataclass
class Batch:
    """A batch that was handed out and has no step yet."""

    epoch: EpochStart | None
    indices: bytes | None
    content: bytes
    size: int
    forwards: list[tuple[weakref.ref[torch.nn.Module], int]] = field(default_factory=list)


class PendingBatches:
    """Batches that were handed out and have no step yet; the session's lock guards it."""

    def __init__(self) -> None:
        self._pending: list[Batch] = []
        self._open: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Add a batch that a loader hands out."""
        self._pending.append(batch)
        self._open.append(batch)

    def forward(self, module: weakref.ref[torch.nn.Module], training: bool, grad: bool) -> None:
        """Note an outermost forward, which may use any of them."""
        mode = (_TRAINING if training else _GRADIENTS) if grad else _EVALUATION
        for batch in self._open:
            batch.forwards.append((module, mode))
        if self._open and len(self._open[0].forwards) >= _FORWARDS_KEPT:
            self._open = [batch for batch in self._open if len(batch.forwards) < _FORWARDS_KEPT]

    def consumed(self, is_owner: _IsOwner) -> tuple[dict[str, Any] | None, bytes | None, list[Batch]]:
        """Return the order of this step, its sample indices, and the batches that it consumed, which are forgotten.

        `is_owner` tells whether a module owns optimizer parameters.
        """
        batches, self._pending = self._sorted(is_owner)
        self._open = list(self._pending)
        if not batches:
            return None, None, []
        order: dict[str, Any] = {
            "content": batches[0].content.hex()
            if len(batches) == 1
            else content_digest(batch.content for batch in batches).hex(),
            "n": sum(batch.size for batch in batches),
            "batches": len(batches),
        }
        if any(batch.indices is None for batch in batches):
            return order, None, batches
        indices = b"".join(batch.indices or b"" for batch in batches)
        order["index"] = blake3(indices).hexdigest()
        return order, indices, batches

    def _sorted(self, is_owner: _IsOwner) -> tuple[list[Batch], list[Batch]]:
        """Return the batches of this step, and those that were fetched ahead for the next.

        Where an owner of optimizer parameters saw some of them, one that no module saw was looked at for something else
        (statistics, say), or is not used yet if it came last.
        """
        modes = [_mode(batch, is_owner) for batch in self._pending]
        if any(mode in (_TRAINING, _GRADIENTS) for mode in modes):
            ahead = len(modes)
            while modes[ahead - 1] is None:
                ahead -= 1
        else:
            modes, ahead = [_TRAINING if mode is None else mode for mode in modes], len(modes)
        wanted = _TRAINING if _TRAINING in modes else _GRADIENTS
        used = [batch for batch, mode in zip(self._pending, modes, strict=True) if mode == wanted]
        return used, self._pending[ahead:]


def _mode(batch: Batch, is_owner: _IsOwner) -> int | None:
    """Return how an owner of optimizer parameters saw a batch first; `None` if no module saw it."""
    for reference, mode in batch.forwards:
        if is_owner(reference()):
            return mode
    if not batch.forwards:
        return None
    return _EVALUATION if all(mode == _EVALUATION for _, mode in batch.forwards) else _TRAINING


def parts_of(used: list[Batch], latest: EpochStart | None) -> list[list[Any]]:
    """Return whose the samples of a step are, where they are not all of `latest`, the epoch that began last."""
    if all(batch.epoch is latest or batch.epoch is None for batch in used):
        return []
    parts: list[list[Any]] = []
    for batch in used:
        epoch = batch.epoch or latest
        assert epoch is not None
        if parts and parts[-1][:2] == [epoch.name, epoch.number]:
            parts[-1][2] += batch.size
        else:
            parts.append([epoch.name, epoch.number, batch.size])
    return parts


def loader_generators(loader: Any) -> list[tuple[str, torch.Generator]]:
    """Return the generators that a loader and its samplers draw from, by name."""
    samplers = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    samplers.append(getattr(samplers[0], "sampler", None))
    found = [("loader.generator", getattr(loader, "generator", None))]
    found += [("sampler.generator", getattr(sampler, "generator", None)) for sampler in samplers]
    return [(name, item) for name, item in found if isinstance(item, torch.Generator)]


def _effective_sampler(loader: Any) -> Any:
    """Return the sampler that decides the order: that of a batch sampler, where the script has made one."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    return sampler if inner is None else inner


def sampler_epoch(loader: Any) -> dict[str, Any]:
    """Return the epoch that a sampler was told by `set_epoch`, as a member of an `epoch` line."""
    for sampler in (_effective_sampler(loader), getattr(loader, "batch_sampler", None)):
        epoch = getattr(sampler, "__dict__", {}).get("epoch")
        if hasattr(sampler, "set_epoch") and type(epoch) is int and abs(epoch) < 2**53:
            return {"samplerEpoch": epoch}
    return {}


def describe_loader(loader: Any) -> dict[str, Any]:
    """Return the members of `documents.steplog.Loader`."""
    dataset = getattr(loader, "dataset", None)
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    settings = {
        "batch_size": getattr(loader, "batch_size", None) or getattr(batch_sampler, "batch_size", None),
        "drop_last": getattr(loader, "drop_last", None),
        "num_workers": getattr(loader, "num_workers", None),
        "prefetch_factor": getattr(loader, "prefetch_factor", None),
        "persistent_workers": getattr(loader, "persistent_workers", None),
        "in_order": getattr(loader, "in_order", None),
        "samples": _length(dataset),
        "batch_sampler": type(batch_sampler).__qualname__ if batch_sampler is not None else None,
        "replacement": getattr(sampler, "replacement", None),
    }
    effective = _effective_sampler(loader)
    if effective is not sampler:
        settings |= {"inner_sampler": type(effective).__qualname__}
        settings["replacement"] = getattr(effective, "replacement", None)
    shard = {name: getattr(effective, "__dict__", {}).get(name) for name in ("num_replicas", "rank", "seed", "shuffle")}
    settings |= {f"sampler_{name}": value for name, value in shard.items() if type(value) in (bool, int)}
    plain = {name: value for name, value in plain_value(settings).items() if not isinstance(value, list | dict)}
    return {
        "kind": type(loader).__qualname__,
        "dataset": type(dataset).__qualname__,
        "sampler": type(sampler).__qualname__,
        "settings": plain,
    }


def _length(sized: Any) -> int | None:
    if isinstance(sized, torch.utils.data.IterableDataset):
        return None  # asking a loader for such a length would make it warn later
    try:
        return len(sized)
    except Exception:  # it is the script's own method
        return None
