"""Training scripts with memory of every kind, and what must be true of each: rows for `tests/test_memories.py`.

A row is a `tests.shapes.Shape` whose files lie in `tests/memory/`: its `inventory` holds exactly the components that
the script has, with their classes, and its `changes` plant one difference in each source, blamed on that source. One
module here for each family of sources, with a tuple `ROWS`.
"""

from __future__ import annotations

from pathlib import Path

from tests.memories import averages, banks, optimizers, orders
from tests.shapes import Shape

__all__ = ["MEMORY", "ROWS"]

MEMORY = Path(__file__).resolve().parent.parent / "memory"
ROWS: tuple[Shape, ...] = (*averages.ROWS, *banks.ROWS, *optimizers.ROWS, *orders.ROWS)
