"""Observations: predictions on the probe at chosen steps, in files of the safetensors layout.

A tensor is called after the head whose predictions it holds (`model`, `teacher`). Read here without torch, from files
that may be hostile: nothing is read that the length of the file does not bear out. Not here: making predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from trainmem_audit.errors import FormatError
from trainmem_audit.snapshots import SnapshotFile

if TYPE_CHECKING:
    import numpy as np  # later: the recorder must not be the first to import it

__all__ = ["observation_bytes", "observation_name", "read_observation"]

_NUMPY: Final = {"F64": "<f8", "F32": "<f4"}
_FORMS: Final = {"float64": "F64", "float32": "F32"}
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
    import numpy as np

    members: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    if not 0 < len(predictions) <= MOST_HEADS:
        expected = f"1 to {MOST_HEADS} heads"
        raise FormatError("no observation", where="predictions", expected=expected, got=str(len(predictions)))
    for head, array in sorted(predictions.items()):
        form = _FORMS.get(array.dtype.name)
        if form is None or array.ndim == 0:
            got = f"{array.dtype}{list(array.shape)}"
            raise FormatError("not predictions", where=head[:80], expected="float32 or float64, (n, …)", got=got)
        data = np.ascontiguousarray(array).astype(_NUMPY[form], copy=False).tobytes()
        members[head] = {"dtype": form, "shape": array.shape, "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    header = json.dumps(members, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(parts)


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
