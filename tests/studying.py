"""Studies for the tests: what they are declared with, in a directory of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["STUDIES", "arrays_bytes", "study_directory"]

STUDIES = Path(__file__).parent / "studies"
_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64"}


def arrays_bytes(**arrays: NDArray[np.generic]) -> bytes:
    """Return a safetensors file, as its README lays it out."""
    header, data = {}, b""
    for name, array in arrays.items():
        start, data = len(data), data + array.tobytes()
        members = {"dtype": _NAMES[str(array.dtype)], "shape": array.shape, "data_offsets": [start, len(data)]}
        header[name] = members
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def study_directory(directory: Path, study: Path) -> Path:
    """Fill a directory with all that a study of the tests refers to; return the path of its `study.toml`."""
    for file in STUDIES.glob("*.py"):
        shutil.copyfile(file, directory / file.name)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 4), dtype=np.float32), rng.integers(0, 3, 10)
    (directory / "probe.safetensors").write_bytes(arrays_bytes(x=x, y=y))
    shutil.copyfile(study, directory / "study.toml")
    return directory / "study.toml"
