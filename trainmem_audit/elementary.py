"""Exponential, logarithm and mean that give the same bits on every machine.

`numpy.exp` and `math.log` are taken from whatever library and instruction set is at hand, and differ in the last bit
from one processor to the next. What a study reports is recomputed bit for bit by those who check it, so these are made
of operations that IEEE 754 fixes (+, −, ×, ÷, rounding, scaling by powers of two), applied element by element, and
means are exactly rounded sums (`math.fsum`), whatever the order. Errors are below two units in the last place.

Not here: anything about predictions (`distances`) or about chance (`intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["exp", "exp_of", "log", "log_of", "mean", "total"]

Floats = NDArray[np.float64]

_LN2_HIGH: Final = float.fromhex("0x1.62e42feep-1")
"""ln 2 to 32 bits, so that its product with an exponent is exact."""
_LN2_LOW: Final = float.fromhex("0x1.a39ef35793c76p-33")
_PER_LN2: Final = float.fromhex("0x1.71547652b82fep+0")
_EXP_TERMS: Final = tuple(1 / math.factorial(n) for n in range(14, -1, -1))
"""Taylor, to 1e-18 for |x| ≤ ln 2 / 2."""
_LOG_TERMS: Final = tuple(1 / (2 * n + 1) for n in range(12, 0, -1))
"""log((1 + f) / (1 − f)) = 2 (f + f³/3 + f⁵/5 + …), to 1e-18 for |f| ≤ 0.172."""


def exp(values: Any) -> Floats:
    """Return e to the power of each value (float64): 0 far below, infinity far above, NaN of NaN."""
    x = np.asarray(values, np.float64)
    with np.errstate(all="ignore"):
        within = np.clip(np.where(np.isnan(x), 0.0, x), -760.0, 720.0)
        power = np.rint(within * _PER_LN2)
        rest = (within - power * _LN2_HIGH) - power * _LN2_LOW
        result = np.full_like(rest, _EXP_TERMS[0])
        for term in _EXP_TERMS[1:]:
            result = result * rest + term
        return np.where(np.isnan(x), np.nan, np.ldexp(result, power.astype(np.int32)))


def log(values: Any) -> Floats:
    """Return the natural logarithm of each value (float64): −infinity of 0, NaN of what is negative or NaN."""
    x = np.asarray(values, np.float64)
    usual = (x > 0) & (x < np.inf)
    fraction, power = np.frexp(np.where(usual, x, 1.0))
    small = fraction < math.sqrt(0.5)
    fraction = np.where(small, fraction * 2, fraction)
    whole = (power - small).astype(np.float64)
    f = (fraction - 1) / (fraction + 1)
    square = f * f
    series = np.full_like(f, _LOG_TERMS[0])
    for term in _LOG_TERMS[1:]:
        series = series * square + term
    found = whole * _LN2_HIGH + (2 * f + (2 * f * square * series + whole * _LN2_LOW))
    return np.where(usual, found, np.where(x == 0, -np.inf, np.where(x == np.inf, np.inf, np.nan)))


def exp_of(value: float) -> float:
    """Return `exp` of one number."""
    return float(exp(value))


def log_of(value: float) -> float:
    """Return `log` of one number."""
    return float(log(value))


def total(values: Iterable[float]) -> float:
    """Return the sum, exactly rounded; NaN or an infinity where the values hold one."""
    numbers = values.ravel().tolist() if isinstance(values, np.ndarray) else [float(value) for value in values]
    try:
        found = math.fsum(numbers)
    except OverflowError:  # on the way: the sum itself may not
        return math.inf if math.fsum(value / 2**60 for value in numbers) > 0 else -math.inf
    except ValueError:  # both infinities
        return math.nan
    return found


def mean(values: Iterable[float]) -> float:
    """Return the mean, of an exactly rounded sum; NaN of nothing."""
    numbers = values.ravel().tolist() if isinstance(values, np.ndarray) else [float(value) for value in values]
    return total(numbers) / len(numbers) if numbers else math.nan
