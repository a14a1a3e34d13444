"""Distances between two sets of predictions, and signed functionals of one: what effects are measured in.

Predictions are those of one head on the probe set, in eval mode, as they lie in `observations/` (float32). Softmax is
taken in float64. Names are those of `observable.kind` in `plan.schema.json` (STANDARD § 5). A distance is the mean over
the probe's examples (over its tokens, for language models) of the distance of two predictions; all are symmetric bit
for bit, 0 for equal predictions, and NaN where a prediction is NaN.

| kind | classification, language model | regression |
|---|---|---|
| `total-variation` | ½ Σ abs(p − q), 0 to 1 | – |
| `jensen-shannon` | the divergence in bits, 0 to 1; not its square root | – |
| `hellinger` | √(½ Σ (√p − √q)²), 0 to 1 | – |
| `logit-l2` | Euclidean distance of the logits (log-probabilities) | root mean squared difference of the outputs |
| `disagreement` | share of examples with another first choice | – |
| `loss` | cross-entropy in nats (negative log-likelihood per token) | mean squared error |
| `accuracy` | share of examples whose first choice is right | – |
| `calibration-error` | expected calibration error, 15 bins of equal width | – |

Shapes: logits (n, classes), or (n,) or (n, 1) for two classes with the logit of the second; outputs (n,) or (n, d);
log-probabilities (n, tokens, vocabulary), which need not be normalised. Labels are integers, (n,) or (n, tokens), and a
negative one is left out.

The same bits on every machine (`elementary`); beside the predictions themselves it takes a few megabytes, and a number
for each example. Not here: which arms are compared (`estimands`), and how sure one is (`intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import elementary
from trainmem_audit.errors import FormatError

__all__ = [
    "CALIBRATION_BINS",
    "DISTANCES",
    "FUNCTIONALS",
    "TASKS",
    "bit_equal",
    "distance",
    "functional",
    "linear_cka",
    "pairwise",
    "supports",
]

Floats = NDArray[np.float64]
Array = NDArray[Any]

TASKS: Final = ("classification", "regression", "language-model")
CALIBRATION_BINS: Final = 15
_AT_ONCE: Final = 2**18
"""How many numbers of a prediction are looked at together: each takes some hundred bytes meanwhile."""
_SERIES: Final = tuple(1 / (k * (2 * k - 1)) for k in range(9, 0, -1))


def bit_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Return whether two arrays are the same bit for bit, so that 0.0 is not −0.0 and a NaN is itself."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def supports(kind: str, task: str) -> bool:
    """Return whether an observable has a meaning for a task."""
    if task == "regression":
        return kind in ("logit-l2", "loss")
    return task in TASKS and kind in (*DISTANCES, *FUNCTIONALS)


def distance(kind: str, task: str, one: Array, other: Array) -> float:
    """Return the mean distance of two sets of predictions on the same probe.

    Raises
    ------
    FormatError
        If the kind is no distance for this task, or the shapes differ or are none that the task has.
    """
    return pairwise(kind, task, [one, other], [(0, 1)])[0]


def pairwise(kind: str, task: str, predictions: Sequence[Array], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return the distances of many pairs among some sets of predictions, each of which is then looked at only once.

    Raises
    ------
    FormatError
        As `distance`.
    """
    _check(kind, task, DISTANCES)
    for one in predictions:
        if one.shape != predictions[0].shape:
            shapes = {"expected": str(predictions[0].shape), "got": str(one.shape)}
            raise FormatError("predictions on one probe have one shape", **shapes)
    rows = [_rows(one, task) for one in predictions]
    if not pairs:
        return []
    view, measure = DISTANCES[kind]
    if task == "regression":
        view, measure = _as_they_are, _square
    found: list[list[Floats]] = [[] for _ in pairs]
    with np.errstate(all="ignore"):  # a run that diverged has a distance that is no number, or infinite
        for span in _spans(rows[0]):
            views = [view(one[span].astype(np.float64)) for one in rows]
            for (a, b), values in zip(pairs, found, strict=True):
                values.append(measure(views[a], views[b]))
    if task == "regression":
        return [_root(elementary.total(np.concatenate(values)) / rows[0].size) for values in found]
    return [elementary.mean(np.concatenate(values)) for values in found]


def functional(kind: str, task: str, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return a signed functional of the predictions: how good they are for these labels or values.

    Raises
    ------
    FormatError
        If the kind is no functional for this task, or the targets do not belong to such predictions.
    """
    _check(kind, task, FUNCTIONALS)
    rows = _rows(predictions, task)
    if task == "regression":
        values = _rows(targets, task)
        if values.shape != rows.shape:
            raise FormatError("targets of another shape", expected=str(predictions.shape), got=str(targets.shape))
        with np.errstate(all="ignore"):
            spans = [_square(rows[s].astype(np.float64), values[s].astype(np.float64)) for s in _spans(rows)]
        return elementary.total(np.concatenate(spans)) / rows.size
    labels = _labels(targets, predictions.shape[:-1] if task == "language-model" else predictions.shape[:1], rows)
    return FUNCTIONALS[kind](rows, labels)


def linear_cka(one: Array, other: Array) -> float:
    """Return the linear centred kernel alignment of two sets of features, 0 to 1; NaN where one does not vary.

    A diagnostic beside the back-flow witness, no distance: matrix products do not give the same bits everywhere.

    Parameters
    ----------
    one, other:
        (n, d) and (n, e): features of the same n examples.
    """
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other):
        raise FormatError(
            "features of the same examples", expected="(n, d) and (n, e)", got=f"{one.shape}, {other.shape}"
        )
    x, y = (a.astype(np.float64) - a.astype(np.float64).mean(axis=0) for a in (one, other))
    own = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.square(np.linalg.norm(x.T @ y)) / own) if own > 0 else math.nan


def _check(kind: str, task: str, kinds: dict[str, Any]) -> None:
    if task not in TASKS:
        raise FormatError("an unknown task", expected=" or ".join(TASKS), got=task)
    if kind not in kinds or not supports(kind, task):
        known = [name for name in kinds if supports(name, task)]
        raise FormatError(f"{kind!r} has no meaning here for {task}", expected=" or ".join(known), got=kind)


def _rows(predictions: NDArray[Any], task: str) -> NDArray[Any]:
    """Return predictions as (examples or tokens, classes), in the dtype that they have."""
    if not (np.issubdtype(predictions.dtype, np.floating) or np.issubdtype(predictions.dtype, np.integer)):
        raise FormatError("predictions are numbers", got=str(predictions.dtype))
    shape = predictions.shape
    dimensions = {"classification": (1, 2), "regression": (1, 2), "language-model": (3,)}[task]
    if len(shape) not in dimensions or 0 in shape:
        expected = "(n, tokens, vocabulary)" if task == "language-model" else "(n,) or (n, k)"
        raise FormatError(f"no predictions for {task}", expected=expected, got=str(shape))
    # rows lie one after the other, so that sums over classes run in one order however the array came
    rows = np.ascontiguousarray(predictions).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    if task == "classification" and rows.shape[1] == 1:
        return np.concatenate([np.zeros_like(rows), rows], axis=1)
    return rows


def _labels(targets: NDArray[Any], shape: tuple[int, ...], rows: NDArray[Any]) -> NDArray[np.int64]:
    if not np.issubdtype(targets.dtype, np.integer) or targets.shape != shape:
        raise FormatError(
            "labels are integers, one for each", expected=str(shape), got=f"{targets.dtype} {targets.shape}"
        )
    labels = targets.reshape(-1).astype(np.int64)
    if labels.size and int(labels.max()) >= rows.shape[1]:
        raise FormatError("a label beyond the classes", expected=f"below {rows.shape[1]}", got=str(labels.max()))
    return labels


def _spans(rows: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _AT_ONCE // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan


def _softmax(logits: Floats) -> Floats:
    powers = elementary.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)  # summed pairwise along memory: one order everywhere
    return found


def _log_softmax(logits: Floats) -> Floats:
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        found: Floats = shifted - elementary.log(elementary.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _root_of_softmax(logits: Floats) -> Floats:
    return np.sqrt(_softmax(logits))


def _as_they_are(logits: Floats) -> Floats:
    return logits


def _first_choice(logits: Floats) -> Floats:
    return np.where(np.isnan(logits).any(axis=1), np.nan, logits.argmax(axis=1).astype(np.float64))


def _total_variation(p: Floats, q: Floats) -> Floats:
    found: Floats = np.minimum(np.abs(p - q).sum(axis=1) / 2, 1.0)
    return found


def _jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Σ (p + q)/4 · g((p − q)/(p + q)) / ln 2 with g(u) = (1 + u) log(1 + u) + (1 − u) log(1 − u): never below 0."""
    both = p + q
    u = np.where(both == 0, 0.0, np.abs(p - q) / both)
    square = u * u
    series = np.full_like(u, _SERIES[0])
    for term in _SERIES[1:]:
        series = series * square + term
    direct = (1 + u) * elementary.log(1 + u) + np.where(u == 1, 0.0, (1 - u) * elementary.log(1 - u))
    g = np.where(u < 0.125, series * square, direct)
    found: Floats = np.minimum((both * g).sum(axis=1) / (4 * elementary.log_of(2.0)), 1.0)
    return found


def _hellinger(p: Floats, q: Floats) -> Floats:
    found: Floats = np.minimum(np.sqrt(_square(p, q) / 2), 1.0)
    return found


def _square(a: Floats, b: Floats) -> Floats:
    found: Floats = np.square(a - b).sum(axis=1)
    return found


def _logit_l2(a: Floats, b: Floats) -> Floats:
    return np.sqrt(_square(a, b))


def _disagreement(a: Floats, b: Floats) -> Floats:
    return np.where(np.isnan(a) | np.isnan(b), np.nan, (a != b).astype(np.float64))


def _loss(rows: NDArray[Any], labels: NDArray[np.int64]) -> float:
    found: list[float] = []
    for logits, own in _kept(rows, labels):
        found += (-_log_softmax(logits)[np.arange(len(own)), own]).tolist()
    return elementary.mean(found)


def _accuracy(rows: NDArray[Any], labels: NDArray[np.int64]) -> float:
    found: list[float] = []
    for logits, own in _kept(rows, labels):
        right = (logits.argmax(axis=1) == own).astype(np.float64)
        found += np.where(np.isnan(logits).any(axis=1), np.nan, right).tolist()
    return elementary.mean(found)


def _calibration_error(rows: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Σ over bins of abs(right answers − Σ confidence) / n; a bin holds the confidences in (b/15, (b + 1)/15]."""
    confidences: list[Floats] = []
    rights: list[Floats] = []
    for logits, own in _kept(rows, labels):
        with np.errstate(all="ignore"):
            confidences.append(_softmax(logits).max(axis=1))
        rights.append((logits.argmax(axis=1) == own).astype(np.float64))
    if not confidences:
        return math.nan
    confidence, right = np.concatenate(confidences), np.concatenate(rights)
    if np.isnan(confidence).any():
        return math.nan
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = [abs(elementary.total((right - confidence)[bins == b].tolist())) for b in range(CALIBRATION_BINS)]
    return elementary.total(gaps) / len(confidence)


def _kept(rows: NDArray[Any], labels: NDArray[np.int64]) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Give logits and labels piece by piece, without those whose label is negative."""
    for span in _spans(rows):
        keep = labels[span] >= 0
        if keep.any():
            yield rows[span][keep].astype(np.float64), labels[span][keep]


DISTANCES: Final[dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats, Floats], Floats]]]] = {
    "total-variation": (_softmax, _total_variation),
    "jensen-shannon": (_softmax, _jensen_shannon),
    "hellinger": (_root_of_softmax, _hellinger),
    "logit-l2": (_as_they_are, _logit_l2),
    "disagreement": (_first_choice, _disagreement),
}
"""How a distance looks at predictions (once for each), and how it compares two of them, example by example."""
FUNCTIONALS: Final[dict[str, Callable[[NDArray[Any], NDArray[np.int64]], float]]] = {
    "loss": _loss,
    "accuracy": _accuracy,
    "calibration-error": _calibration_error,
}
