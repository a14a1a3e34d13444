"""Order: curricula, order by loss, batch samplers with a position, `StatefulDataLoader` with augmentation."""

from __future__ import annotations

from pathlib import Path

from tests.shapes import Change, Shape

__all__ = ["ROWS"]

_MEMORY = Path(__file__).resolve().parent.parent / "memory"
_MODEL = {"model.params": "S3", "optimizer.hyper": "S1"}


def _row(name: str, command: tuple[str, ...], inventory: dict[str, str], *changes: tuple[str, str, str, int]) -> Shape:
    made = tuple(Change(*change) for change in changes)
    return Shape(name, command, made, 8, folder=_MEMORY, inventory=_MODEL | inventory)


ROWS = (
    _row(
        "a curriculum: the stage is an attribute of the sampler",
        ("curriculum.py",),
        {"optimizer.momentum": "S1", "sampler": "S2"},
        ("16 + 8 * self.stage", "16 + 4 * self.stage", "order.index", 2),
        ("self.stage += 1", "self.stage += 1 + (self.stage == 2)", "sampler", 6),
    ),
    _row(
        "order by the last loss of each sample",
        ("weighted.py",),
        {"sampler.tensors": "S2"},
        ("+ 0.01", "+ 0.02", "sampler.tensors", 1),
    ),
    _row(
        "a batch sampler with a position",
        ("batches.py",),
        {"optimizer.step": "S1", "optimizer.sum": "S1", "sampler": "S2"},
        ("self.position += 1", "self.position += 1 + (self.position == 3)", "sampler", 3),
    ),
    _row(
        "StatefulDataLoader, no workers",
        ("stateful.py", "0"),
        {},
        ("self.noise = 0.1", "self.noise = 0.2", "order.content", 0),
    ),
    _row(
        "StatefulDataLoader, two workers",
        ("stateful.py", "2"),
        {},
        ("shuffle=True", "shuffle=False", "order", 0),
    ),
)
