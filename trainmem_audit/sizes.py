"""How large a difference is, element by element, where the values of both sides are at hand.

A step log holds digests and no values. They come from snapshots in the record, or from running a program once more to
the step that differs, where the recorder writes the state aside. Values are compared only if they have the digests of
the logs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from trainmem_audit.documents.findings import Difference, TensorDifference
from trainmem_audit.errors import FormatError
from trainmem_audit.snapshots import SnapshotFile

__all__ = ["with_sizes"]

_DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8", "int32": "<i4",
    "int16": "<i2", "int8": "<i1", "uint8": "<u1", "bool": "<u1", "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip

_PIECE = 2**18
_LARGEST = 2**28
"""Bytes of a tensor up to which two of them are held in memory and compared."""


def with_sizes(difference: Difference, expected: SnapshotFile, got: SnapshotFile) -> Difference:
    """Return `difference` with the size of each tensor's difference, where the values have the digests in it."""
    components = tuple(
        component.model_copy(
            update={
                "tensors": tuple(
                    tensor.model_copy(update={"size": _size(tensor, component.component, expected, got)})
                    for tensor in component.tensors
                )
            }
        )
        for component in difference.components
    )
    return difference.model_copy(update={"components": components})


def _size(tensor: TensorDifference, component: str, expected: SnapshotFile, got: SnapshotFile) -> str:
    if max(side.size(component, tensor.name) for side in (expected, got)) > _LARGEST:
        return f"more than {_LARGEST >> 20} MiB, which is not compared element by element"
    left, right = (side.tensor(component, tensor.name) for side in (expected, got))
    if left is None or right is None or tensor.dtype not in _DTYPES:
        return ""
    if (blake3(left).hexdigest(), blake3(right).hexdigest()) != (tensor.expected, tensor.got):
        return "the values at hand are others than the log's"
    return _describe(_values(left, tensor), _values(right, tensor), tensor)


def _values(data: bytes, tensor: TensorDifference) -> NDArray[Any]:
    try:
        flat = np.frombuffer(data, dtype=_DTYPES[tensor.dtype])
        if tensor.dtype == "bfloat16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(tensor.shape)
    except ValueError as error:
        raise FormatError("a tensor has not the size of its header", where=tensor.name, got=str(error)) from None


def _describe(left: NDArray[Any], right: NDArray[Any], tensor: TensorDifference) -> str:
    """Say how many elements differ, by how much at most, and what the first of them is on both sides."""
    count, first, largest, scale = 0, -1, 0.0, 0.0
    for start in range(0, left.size, _PIECE):  # widening all of it at once would take many times its size
        a, b = (side.reshape(-1)[start : start + _PIECE] for side in (left, right))
        rows = [side.view(np.uint8).reshape(side.size, -1) for side in (a, b)]
        differ = np.flatnonzero((rows[0] != rows[1]).any(axis=1))
        if differ.size and first < 0:
            first = start + int(differ[0])
        count += differ.size
        with np.errstate(all="ignore"):
            wide = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
            largest = max(largest, float(np.nanmax(np.abs(b - wide), initial=0.0)))
            scale = max(scale, float(np.nanmax(np.abs(wide), initial=0.0)))
    at = np.unravel_index(first, left.shape)
    place = list(map(int, at))
    ulp = _ulp(left.reshape(-1)[first], right.reshape(-1)[first], tensor.dtype)
    return (
        f"{count} of {left.size} elements, by at most {largest:.3g} (the largest value is {scale:.3g}); "
        f"first at {place}: {left[at]:.9g} → {right[at]:.9g}{ulp}"
    )


def _ulp(a: Any, b: Any, dtype: str) -> str:
    """Return the distance of two floats in units in the last place: that of their bit patterns in numeric order."""
    kind = {"float64": "<i8", "float32": "<i4", "float16": "<i2", "bfloat16": "<i4"}.get(dtype)
    if kind is None or not (np.isfinite(a) and np.isfinite(b)):
        return ""
    bits = [int(np.asarray(value).view(kind)) for value in (a, b)]
    lowest = -(2 ** (8 * int(kind[-1]) - 1))
    left, right = (value if value >= 0 else lowest - value for value in bits)
    return f", {abs(left - right) >> (16 if dtype == 'bfloat16' else 0)} ULP"
