"""Memory of every kind (`tests/memories/`): found, recorded bit-neutrally, replayed, and blamed on its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memories import ROWS
from tests.shapes import Shape
from tests.specimens import declared, examine


@pytest.mark.parametrize("shape", declared(ROWS))
def test_every_memory_source_is_found_replayed_and_blamed(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine(shape, tmp_path, monkeypatch)
