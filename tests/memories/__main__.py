"""Writes `docs/memory-sources.md`."""

from __future__ import annotations

from tests.memories import ROWS
from tests.memories.table import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(ROWS), encoding="utf-8")
    print(f"wrote {PAGE}")
