"""Observations: predictions on the probe at chosen steps, in files of the safetensors layout.

A tensor is called after the head whose predictions it holds (`model`, `teacher`). Read here without torch, from files
that may be hostile: nothing is read that the length of the file does not bear out. Not here: making predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from trainmem_audit.errors import FormatError
from trainmem_audit.snapshots import SnapshotFile

if TYPE_CHECKING:
    import numpy as np  # later: the recorder must not be the first to import it

__all__ = ["observation_bytes", "observation_name", "read_observation"]

_NUMPY: Final = {"F64": "<f8", "F32": "<f4"}
MOST_HEADS: Final = 64


def observation_name(steps: int) -> str:
    """Return where in a run directory the predictions after so many steps lie."""
    return f"observations/step-{steps}.safetensors"


def observation_bytes(predictions: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the file of predictions by head: float32 or float64 arrays, the first axis being the probe.

    Raises
    ------
    FormatError
        If there is none, or one has another dtype or no axis.
    """
    from trainmem_audit.arrays import array_bytes

    if not 0 < len(predictions) <= MOST_HEADS:
        expected = f"1 to {MOST_HEADS} heads"
        raise FormatError("no observation", where="predictions", expected=expected, got=str(len(predictions)))
    for head, array in predictions.items():
        if array.dtype.name not in ("float32", "float64") or array.ndim == 0:
            got = f"{array.dtype}{list(array.shape)}"
            raise FormatError("not predictions", where=head[:80], expected="float32 or float64, (n, …)", got=got)
    return array_bytes(predictions)


def read_observation(open_file: Callable[[], BinaryIO], size: int, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the predictions of a file by head, in the dtype and shape that it states.

    Raises
    ------
    FormatError
        If it is no safetensors file of float arrays, or holds too many.
    """
    import numpy as np

    file = SnapshotFile(open_file, size, where)
    heads = file.forms()
    if not 0 < len(heads) <= MOST_HEADS:
        raise FormatError("no observation", where=where, expected=f"1 to {MOST_HEADS} heads", got=str(len(heads)))
    found = {}
    for head, (form, shape) in heads.items():
        if form not in _NUMPY or not shape:
            got = f"{form}{list(shape)}"
            raise FormatError("not predictions", where=f"{where}: {head[:80]}", expected="F32 or F64, (n, …)", got=got)
        found[head] = np.frombuffer(file.raw(head), _NUMPY[form]).reshape(shape)
    return found
