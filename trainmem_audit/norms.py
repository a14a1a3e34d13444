"""How long a vector of weights is, and how far it lies from another: sums of squares over tensors that come in pieces.

Every dtype is widened to float64 first, where each of its values is exact. Sums are not rescaled: values beyond 1e154
give infinity, and so does a difference of infinities give NaN; both are for the caller to name. Not here: where the
pieces come from (`pathlength`), differences element by element (`sizes`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["COUNTED", "Sums", "widened"]

_PLAIN: Final = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2",
    "complex128": "<f8", "complex64": "<f4", "complex32": "<f2",  # |z|² is the sum over both parts
}  # fmt: skip
COUNTED: Final = frozenset({*_PLAIN, "bfloat16", "float8_e5m2", "float8_e4m3fn"})
"""The dtypes whose values are weights; integers and packed formats are not."""


def widened(data: bytes, dtype: str) -> NDArray[np.float64]:
    """Return the values of a tensor's bytes (little-endian, row-major), real and imaginary parts in turn.

    Raises
    ------
    ValueError
        If the bytes are no whole number of elements.
    """
    if dtype == "float8_e4m3fn":
        return _e4m3fn()[np.frombuffer(data, np.uint8)]
    values: NDArray[Any]
    if dtype == "bfloat16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype == "float8_e5m2":  # the upper half of a float16
        values = (np.frombuffer(data, np.uint8).astype(np.uint16) << 8).view(np.float16)
    else:
        values = np.frombuffer(data, _PLAIN[dtype])
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return values.astype(np.float64)


@cache
def _e4m3fn() -> NDArray[np.float64]:
    """Return the value of each byte: a sign, four bits of exponent (bias 7), three of fraction, no infinity."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size)


class Sums:
    """Sums of squares: of the weights, and of their differences from one or two others where those are given."""

    def __init__(self) -> None:
        self.squares = 0.0
        self.from_others = [0.0, 0.0]

    def add(self, dtype: str, piece: bytes, *others: bytes | None) -> None:
        """Add a piece of a tensor, and the same piece of it in the others (`None` where there is nothing to compare).

        Raises
        ------
        ValueError
            If a piece is no whole number of elements, or they are not equally long.
        """
        if dtype not in COUNTED:
            return
        with np.errstate(all="ignore"):
            now = widened(piece, dtype)
            self.squares += _square_sum(now)
            for number, other in enumerate(others):
                if other is not None:
                    if len(other) != len(piece):
                        raise ValueError("pieces of different lengths")
                    self.from_others[number] += _square_sum(now - widened(other, dtype))


def _square_sum(values: NDArray[Any]) -> float:
    return float(np.square(values).sum())  # pairwise, and the same on any number of threads, as a dot product is not
