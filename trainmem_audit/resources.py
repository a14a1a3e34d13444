"""Finds the three data folders (`schema`, `validators`, `templates`), installed or in a checkout.

In a wheel they lie under `trainmem_audit/_data/`, in a checkout beside the package. They are data, not packages: nobody
imports them by name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from trainmem_audit.errors import TrainmemAuditError

__all__ = ["data_file", "data_root"]

_PROBE = {"schema": "README.md", "templates": "report.html.j2", "validators": "README.md"}


@cache
def data_root(folder: str) -> Path:
    """Return the path of `schema`, `validators` or `templates`, found by one file of ours that must lie in it."""
    package = Path(__file__).resolve().parent
    for base in (package / "_data", package.parent):
        if (base / folder / _PROBE[folder]).is_file():
            return base / folder
    raise TrainmemAuditError(
        f"the data folder {folder!r} is missing from this installation",
        where=str(package),
        remedy="reinstall trainmem-audit",
    )


def data_file(folder: str, name: str) -> Path:
    """Return the path of one file of a data folder; `name` is ours, never from input."""
    return data_root(folder) / name
