"""Queues, memory banks and replay buffers: emptied, shuffled, cut short.

The entries of a queue lie along one axis of its largest tensor: the longest one (the first, among equals). Its other
tensors take part where they have an axis of that length: labels beside keys. A pointer or fill is a single integer
beside them. Containers of records (`sources.entries`) come as columns with a `fill`. Not here: older content (`lag`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.intervening.targets import Target

__all__ = ["Queue", "emptied", "queue_of", "shuffled", "truncated"]

Tensors = dict[str, torch.Tensor]
_POINTER = re.compile(r"(^|[._])(ptr|pointer|pos|position|head|cursor|idx|index|next|insert)$|(ptr|pointer)$")
_FILL = re.compile(r"(^|[._])(fill|filled|size|count|length|len|n)$")


@dataclass(frozen=True)
class Queue:
    """The tensors of a queue: `rows` places along `axes`, of which `fill` are in use, and where the next entry goes.

    `fill` is `None` where nothing tells it, and then all places count as used. `pointer` is `None` where nothing tells.
    """

    tensors: Tensors
    axes: Mapping[str, int]
    rows: int
    fill: int | None
    pointer: int | None
    container: str | None = None
    """The name of the tensor that tells how many records a container holds."""

    @property
    def used(self) -> int:
        """Return how many places are in use."""
        return self.rows if self.fill is None else self.fill


def queue_of(target: Target, beside: Mapping[str, int]) -> Queue:
    """Return the queue that a component holds, with copies of its tensors; `beside` are numbers that belong to it.

    Raises
    ------
    UsageError
        If no tensor of it could hold entries.
    """
    tensors = target.copies()
    container = next((name for name in tensors if name == "fill" or name.endswith(".fill")), None)
    container = None if target.is_aliased else container
    large = max(tensors.values(), key=torch.Tensor.numel, default=None)
    if large is None or large.ndim == 0 or large.numel() < 2:
        raise UsageError("not a queue", where=target.name, expected="a tensor with an axis of entries")
    rows = max(large.shape)
    axes = {name: list(tensor.shape).index(rows) for name, tensor in tensors.items() if rows in tensor.shape}
    numbers = {name: int(tensor) for name, tensor in tensors.items() if _is_number(tensor) and name not in axes}
    numbers |= beside
    fill = next((number for name, number in numbers.items() if _FILL.search(name) and 0 <= number <= rows), None)
    pointer = next((number for name, number in numbers.items() if _POINTER.search(name) and 0 <= number <= rows), None)
    if container is not None:  # the newest is the last
        fill = pointer = numbers[container]
    return Queue(tensors, axes, rows, fill, pointer, container)


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.numel() == 1 and not tensor.is_floating_point() and not tensor.is_complex()


def emptied(queue: Queue, rng: np.random.Generator | None) -> Tensors:
    """Return the tensors of a queue without entries: zeros, and no place used.

    With a generator, Gaussian entries with the norms of those that are there, as a queue that is full from the start
    begins (MoCo); pointers then stay.
    """
    found = dict(queue.tensors)
    for name, axis in queue.axes.items():
        tensor = found[name]
        if rng is None:
            found[name] = torch.zeros_like(tensor)
        elif tensor.is_floating_point():
            found[name] = _random_like(tensor, axis, rng)
    if rng is None:
        found |= {
            name: torch.zeros_like(tensor)
            for name, tensor in found.items()
            if name not in queue.axes and _is_number(tensor) and (_FILL.search(name) or _POINTER.search(name))
        }
    return found


def _random_like(tensor: torch.Tensor, axis: int, rng: np.random.Generator) -> torch.Tensor:
    wide = tensor.detach().to("cpu", torch.float64).movedim(axis, 0).reshape(tensor.shape[axis], -1)
    drawn = torch.from_numpy(rng.standard_normal(tuple(wide.shape)))
    lengths: torch.Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True) / torch.linalg.vector_norm(
        drawn, dim=1, keepdim=True
    )
    shape = [tensor.shape[axis], *(extent for at, extent in enumerate(tensor.shape) if at != axis)]
    return (drawn * lengths).reshape(shape).movedim(0, axis).to(tensor).contiguous()


def shuffled(queue: Queue, rng: np.random.Generator) -> Tensors:
    """Return the tensors of a queue with its used places in another order, the same in all of them."""
    order = np.arange(queue.rows)
    order[: queue.used] = rng.permutation(queue.used)
    return _in_order(queue, torch.from_numpy(order))


def _in_order(queue: Queue, order: torch.Tensor) -> Tensors:
    found = dict(queue.tensors)
    for name, axis in queue.axes.items():
        found[name] = found[name].index_select(axis, order.to(found[name].device))
    if queue.container is not None and (gaps := queue.container.removesuffix("fill") + "empty") in found:
        found[gaps] = found[gaps][order[: queue.used]]
    return found


def truncated(queue: Queue, kept: int, where: str) -> Tensors:
    """Return the tensors of a queue that holds its newest `kept` entries; the other places are zeros.

    Raises
    ------
    UsageError
        If nothing tells which entries are the newest.
    """
    if kept >= queue.used:
        return dict(queue.tensors)
    if queue.pointer is None:
        raise UsageError(
            "which entries are the newest is not known",
            where=where,
            expected="a pointer beside the entries (an integer called ptr, pos, idx …), or a container",
            remedy="`flush` empties the queue, `age` puts back what it held some steps ago",
        )
    newest = [(queue.pointer - 1 - back) % max(queue.used, 1) for back in range(kept)]
    if queue.container is not None:  # it closes up
        order = torch.arange(queue.rows)
        order[:kept] = torch.tensor(sorted(newest), dtype=torch.int64)
        found = _in_order(queue, order)
        for name, axis in queue.axes.items():
            found[name].narrow(axis, kept, queue.rows - kept).zero_()
        return found | {queue.container: torch.full_like(queue.tensors[queue.container], kept)}
    lost = torch.ones(queue.rows, dtype=torch.bool)
    lost[newest] = False
    found = dict(queue.tensors)
    for name, axis in queue.axes.items():
        found[name] = found[name].index_fill(axis, lost.nonzero().reshape(-1).to(found[name].device), 0)
    return found
