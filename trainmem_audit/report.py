"""L5: the report of one run as a self-contained HTML page and as Markdown.

It lays out what the signed statement says, what verification found and what the step log tells over time
(`SeriesCollector` gathers that while `verify` streams the log), and what a check says of each item. The same inputs
give the same bytes. Not here: any judgement of its own (`verify`, `compliance`), the statement on a terminal (`show`),
anything that reads a run directory.

Every string may come from a hostile file: each template expression passes `safe_text`, then HTML or Markdown
escaping (`_environment`), and a command that a reader may copy holds only values of a strict shape.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.checkpoints import losses
from trainmem_audit.commitments import fact_text
from trainmem_audit.documents.compliance import Compliance, ItemResult
from trainmem_audit.documents.findings import Check, Replay, Verification
from trainmem_audit.documents.manifest import Manifest, Statement
from trainmem_audit.documents.steplog import Command, Component, Epoch, Inventory, Line, Step
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.formats.checklist_text import EVIDENCE_MARKS, LADDER, ORDER
from trainmem_audit.pathlength import Interval, WeightPath, Weights
from trainmem_audit.resources import data_file
from trainmem_audit.segments import segment_lines
from trainmem_audit.text import duration_text, safe_text, size_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "LIFETIMES",
    "SOURCES",
    "VISIBILITIES",
    "Curve",
    "EpochMark",
    "Point",
    "RunSeries",
    "SeriesCollector",
    "command_line",
    "html_environment",
    "lifetime_text",
    "markdown_environment",
    "package_order",
    "render_html",
    "render_markdown",
    "run_seconds",
    "write_report",
]

SOURCES: Final = {
    "S1": "optimizer and trajectory state",
    "S2": "sampler and data order",
    "S3": "parameter path",
    "S4": "architectural and external memory",
    "S5": "meta-state",
}
"""The source classes of training memory (STANDARD § 1)."""
LIFETIMES: Final = {"micro": "some steps", "meso": "a window or an epoch", "macro": "the whole run"}
VISIBILITIES: Final = {
    "checkpointed": "part of a state_dict, or seen to be saved",
    "in-process": "in memory only, or seen not to be saved",
    "implicit": "only its effect can be seen",
    "unknown": "not determined",
}

# --- what the log tells over time -----------------------------------------------------------------------------

_MAX_BUCKETS: Final = 1000
_MAX_MARKS: Final = 1000
_MAX_SIZES: Final = 16
_LARGEST: Final = 1e300  # beyond it a value counts as not finite: differences of plotted values must not overflow


class Point(NamedTuple):
    """The values of one bucket of steps, which starts at `step`."""

    step: int
    low: float
    mean: float
    high: float


class EpochMark(NamedTuple):
    """A loader began an epoch before step `at`."""

    at: int
    loader: str
    epoch: int


@dataclass(frozen=True)
class Curve:
    """A number over the steps: at most 1 000 buckets, and its exact extremes as (step, value)."""

    points: tuple[Point, ...]
    first: tuple[int, float]
    last: tuple[int, float]
    lowest: tuple[int, float]
    highest: tuple[int, float]
    bucket: int
    not_finite: int = 0
    first_not_finite: int | None = None


@dataclass(frozen=True)
class RunSeries:
    """What a step log tells over time.

    `loss` is the mean of a step's recorded losses, `lr` the learning rate of the first parameter group; each is `None`
    where the log has none. `samples_per_step` lists (samples, steps that consumed so many), most frequent first.
    `weights` is how far the weights went from snapshot to snapshot, `None` where the record keeps none.
    """

    steps: int = 0
    loss: Curve | None = None
    lr: Curve | None = None
    epochs: tuple[EpochMark, ...] = ()
    epoch_counts: tuple[tuple[str, int], ...] = ()
    samples_per_step: tuple[tuple[int, int], ...] = ()
    weights: Weights | None = None


@dataclass
class _CurveCollector:
    """One number over the steps in bounded memory: when there are too many buckets, they double in width."""

    width: int = 1
    buckets: list[tuple[int, int, float, float, float]] = field(default_factory=list)  # first, n, low, mean, high
    first: tuple[int, float] | None = None
    last: tuple[int, float] = (0, 0.0)
    lowest: tuple[int, float] = (0, math.inf)
    highest: tuple[int, float] = (0, -math.inf)
    not_finite: int = 0
    first_not_finite: int | None = None

    def add(self, step: int, value: float) -> None:
        if not abs(value) < _LARGEST:
            self.not_finite += 1
            self.first_not_finite = step if self.first_not_finite is None else self.first_not_finite
            return
        self.last = (step, value)
        self.first = self.first or self.last
        self.lowest = self.last if value < self.lowest[1] else self.lowest
        self.highest = self.last if value > self.highest[1] else self.highest
        self._put((step - step % self.width, 1, value, value, value))
        while len(self.buckets) > _MAX_BUCKETS:
            self._halve()

    def _put(self, new: tuple[int, int, float, float, float]) -> None:
        if not self.buckets or self.buckets[-1][0] != new[0]:
            self.buckets.append(new)
            return
        first, n, low, mean, high = self.buckets[-1]
        total = n + new[1]
        mean += (new[3] - mean) * (new[1] / total)
        self.buckets[-1] = (first, total, min(low, new[2]), mean, max(high, new[4]))

    def _halve(self) -> None:
        old, self.buckets = self.buckets, []
        self.width *= 2
        for first, *rest in old:
            n, low, mean, high = rest
            self._put((first - first % self.width, int(n), low, mean, high))

    def curve(self) -> Curve | None:
        if self.first is None:
            return None
        points = tuple(Point(first, low, mean, high) for first, _, low, mean, high in self.buckets)
        return Curve(
            points=points,
            first=self.first,
            last=self.last,
            lowest=self.lowest,
            highest=self.highest,
            bucket=self.width,
            not_finite=self.not_finite,
            first_not_finite=self.first_not_finite,
        )


class SeriesCollector:
    """Gathers a `RunSeries` from the lines of a log as they come, in memory that does not grow with the steps."""

    def __init__(self) -> None:
        self._steps = 0
        self._loss = _CurveCollector()
        self._lr = _CurveCollector()
        self._rate: float | None = None
        self._marks: list[EpochMark] = []
        self._epoch_counts: dict[str, int] = {}
        self._samples: dict[int, int] = {}

    def add(self, line: Line) -> None:
        """Take the next line of the log; lines that tell nothing over time are passed over."""
        match line:
            case Step():
                self._add_step(line)
            case Epoch():
                self._add_epoch(line)
            case Inventory():
                for component in (line.components or {}).values():
                    self._see_rate(component.values)

    def _add_step(self, line: Step) -> None:
        self._steps += 1
        scalars = line.scalars or {}
        losses = [number for text in scalars.get("loss", ()) if (number := _number(text)) is not None]
        if losses:
            self._loss.add(line.i, math.fsum(losses) / len(losses) if all(map(_is_finite, losses)) else math.nan)
        for values in (line.values or {}).values():
            self._see_rate(values)
        if rates := scalars.get("lr"):
            self._rate = _number(rates[0])
        if self._rate is not None:
            self._lr.add(line.i, self._rate)
        if line.order is not None:
            self._add_samples(line.order.n)

    def _see_rate(self, values: dict[str, Any] | None) -> None:
        if isinstance(text := _find_member(values, "lr"), str):
            self._rate = _number(text)

    def _add_samples(self, count: int) -> None:
        if count in self._samples or len(self._samples) < _MAX_SIZES:
            self._samples[count] = self._samples.get(count, 0) + 1

    def _add_epoch(self, line: Epoch) -> None:
        self._epoch_counts[line.loader] = self._epoch_counts.get(line.loader, 0) + 1
        self._marks.append(EpochMark(line.i, line.loader, line.epoch))
        if len(self._marks) > _MAX_MARKS:
            self._marks = self._marks[::2]

    def series(self) -> RunSeries:
        """Return what the lines so far tell."""
        return RunSeries(
            steps=self._steps,
            loss=self._loss.curve(),
            lr=self._lr.curve(),
            epochs=tuple(self._marks),
            epoch_counts=tuple(sorted(self._epoch_counts.items())),
            samples_per_step=tuple(sorted(self._samples.items(), key=lambda item: (-item[1], item[0]))),
        )


def _is_finite(value: float) -> bool:
    return abs(value) < _LARGEST


def _number(text: str | None) -> float | None:
    """Return the float that a record holds as text, `None` where it is none."""
    try:
        return None if text is None else parse_float_text(text)
    except FormatError:
        return None


def _find_member(values: Any, name: str) -> Any:
    """Return the first member called `name` in nested values, breadth first, `None` where there is none."""
    queue = deque([values])
    while queue:
        value = queue.popleft()
        if isinstance(value, dict):
            if name in value:
                return value[name]
            queue.extend(value.values())
        elif isinstance(value, (list, tuple)):
            queue.extend(value)
    return None


# --- charts: pure functions from numbers to SVG; no text from a file enters them ------------------------------

_WIDTH, _HEIGHT = 480, 256
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 470, 44, 212


@dataclass(frozen=True)
class _Axis:
    """Maps values from [`low`, `high`] to pixels from `start` to `end`, on a linear or a logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (
            (map(math.log10, (self.low, self.high, value)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _nice_ticks(self.low, self.high, count)


def _value_axis(low: float, high: float, linear: bool = False) -> _Axis:
    """Return the y axis: from zero, and logarithmic where the positive values span a factor of 100 or more."""
    if not linear and low > 1e-300 and high / low >= 100:
        return _Axis(low * 0.9, high * 1.1, _BOTTOM, _TOP, log=True)
    low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-300:
        high = 1.0
    return _Axis(low, high + (high - low) * 0.05, _BOTTOM, _TOP)


def _nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten within [`low`, `high`]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.8)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    every = max(1, len(decades) // 6)
    ticks = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _chart(name: str, title: str, description: str, curve: Curve, series: RunSeries) -> str:
    """Return one curve over the steps, with epoch marks, as an inline SVG image."""
    points = curve.points
    across = _Axis(0, max(series.steps - 1, points[-1].step, 1), _LEFT, _RIGHT)
    linear = name.startswith(("lr", "length"))  # a schedule is known by its shape: a cosine has none in logarithms
    up = _value_axis(min(point.low for point in points), max(point.high for point in points), linear)
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
            f'<title id="{name}-t">{title}</title><desc id="{name}-d">{description}</desc>',
            *_grid(across, up, title),
            *_marks(across, series),
            *_lines(points, across, up, curve.bucket),
            "</svg>",
        ]
    )


def _grid(across: _Axis, up: _Axis, title: str) -> Iterator[str]:
    for tick in up.ticks(5):
        y = up.at(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 7}" y="{y + 4:g}" text-anchor="end">{_short(tick)}</text>'
    for tick in _nice_ticks(across.low, across.high, 5):
        if tick == int(tick):
            x = across.at(tick)
            yield f'<line class="tick" x1="{x}" x2="{x}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
            yield f'<text x="{x}" y="{_BOTTOM + 18}" text-anchor="middle">{int(tick)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
    scale = ", log scale" if up.log else ""
    yield f'<text class="label" x="{(_LEFT + _RIGHT) // 2}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>'
    yield f'<text class="label" x="{_LEFT}" y="13">{title}{scale}</text>'


def _marks(across: _Axis, series: RunSeries) -> Iterator[str]:
    """Yield a dotted line where an epoch of the first loader began, with its number where there is room."""
    marks = [mark for mark in series.epochs if mark.loader == series.epochs[0].loader]
    if marks:
        yield f'<text class="mark" x="{_LEFT - 14}" y="{_TOP - 9}" text-anchor="end">epoch</text>'
    line_after = label_after = -math.inf
    for mark in marks:
        x = across.at(mark.at)
        if x < line_after or x > _RIGHT:
            continue
        line_after = x + 5
        yield f'<line class="epoch" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        if x >= label_after:
            yield f'<text class="mark" x="{x:g}" y="{_TOP - 9}" text-anchor="middle">{mark.epoch}</text>'
            label_after = x + 26


def _lines(points: tuple[Point, ...], across: _Axis, up: _Axis, bucket: int) -> Iterator[str]:
    middle = (bucket - 1) / 2
    xs = [across.at(min(point.step + middle, across.high)) for point in points]
    if bucket > 1:
        upper = [f"{x:g},{up.at(point.high):g}" for x, point in zip(xs, points, strict=True)]
        lower = [f"{x:g},{up.at(point.low):g}" for x, point in zip(xs, points, strict=True)]
        yield f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>'
    line = [f"{x:g},{up.at(point.mean):g}" for x, point in zip(xs, points, strict=True)]
    if len(line) == 1:
        yield f'<circle class="dot" cx="{xs[0]:g}" cy="{up.at(points[0].mean):g}" r="3"/>'
    yield f'<polyline class="line" points="{" ".join(line)}"/>'


def _short(value: float) -> str:
    return f"{value:.4g}"


def _caption(curve: Curve) -> str:
    first, last, lowest, highest = curve.first, curve.last, curve.lowest, curve.highest
    text = (
        f"{_short(first[1])} at step {first[0]}, {_short(last[1])} at step {last[0]};"
        f" lowest {_short(lowest[1])} at step {lowest[0]}, highest {_short(highest[1])} at step {highest[0]}."
    )
    if curve.bucket > 1:
        text += f" The line is the mean of {curve.bucket} steps, the band their range."
    if curve.first_not_finite is not None:
        text += f" Not finite at {curve.not_finite} steps, first at step {curve.first_not_finite}."
    return text


# --- the path of the weights ------------------------------------------------------------------------------------

_MOST_PATHS_DRAWN: Final = 2
_MOST_ROWS: Final = 20


class _PathView(NamedTuple):
    """A path as the templates show it: `shown` are each `every`-th interval and the last."""

    path: WeightPath
    length: Curve | None
    relative: Curve | None
    shown: tuple[Interval, ...]
    every: int


def _path_views(weights: Weights | None) -> list[_PathView]:
    """Return the paths with their curves; only the first few have any."""
    views = []
    for number, path in enumerate(weights.paths if weights is not None else ()):
        drawn = path.intervals if number < _MOST_PATHS_DRAWN and len(path.intervals) > 1 else ()
        curves = [_CurveCollector(), _CurveCollector()]
        for interval in drawn:
            for curve, value in zip(curves, (interval.length, interval.relative), strict=True):
                if value is not None:
                    curve.add(interval.step, value)
        each = -(-len(path.intervals) // _MOST_ROWS)
        shown = path.intervals[::-each][::-1] if each else ()
        views.append(_PathView(path, curves[0].curve(), curves[1].curve(), shown, path.every * each))
    return views


def _size_of(value: float | None) -> str:
    """Return a norm or a distance as text."""
    if value is None:
        return "—"
    return _short(value) if math.isfinite(value) else "not finite"


# --- the verdicts in words ------------------------------------------------------------------------------------


class _Verdict(NamedTuple):
    question: str
    tone: str
    word: str
    sentence: str


_SIGNATURE: Final = {
    "trusted": ("ok", "trusted", "Signed by {who}, on the trust list of whoever made this report."),
    "self": ("note", "own key", "Signed with a key of the machine that made this report: integrity, no identity."),
    "unknown-signer": ("warn", "valid, unknown signer", "The signature is valid; nothing here says whose key it is."),
    "not-checkable": ("off", "not checkable", "No key was at hand to check the signature with."),
    "revoked": ("bad", "revoked key", "The signature is by a key that was revoked: its holder may be anybody."),
    "invalid": ("bad", "invalid", "The signature does not fit the statement: nobody vouches for what follows."),
}
_BYTES: Final = {
    "intact": ("ok", "intact", "Every file has the digest that the statement gives, and none is unlisted."),
    "broken": ("bad", "broken", "At least one file is changed, missing or unlisted; the findings name it."),
    "not-checked": ("off", "not checked", "The files were not compared with the statement."),
}
_RECORD: Final = {
    "consistent": ("ok", "consistent", "The step log agrees with itself and with the statement."),
    "incomplete": ("warn", "incomplete", "The step log is sound as far as it goes, but the run did not end by itself."),
    "inconsistent": ("bad", "inconsistent", "The step log contradicts itself or the statement; see the findings."),
    "not-checked": ("off", "not checked", "The step log was not read."),
}
_CHECKS: Final = {"pass": ("ok", "passed"), "fail": ("bad", "failed"), "not-checked": ("off", "not checked")}
_REPLAY: Final = {
    "match": ("ok", "match"),
    "match-within-tolerance": ("ok", "match within tolerance"),
    "mismatch": ("bad", "mismatch"),
    "inconclusive": ("warn", "inconclusive"),
    "not-run": ("off", "not run"),
}


def _verdicts(verification: Verification, steps: int) -> list[_Verdict]:
    signature, replay = verification.signature, verification.replay
    tone, word, sentence = _SIGNATURE[signature.state]
    verdicts = [_Verdict("Signature", tone, word, sentence.format(who=signature.principal or "a key"))]
    verdicts.append(_Verdict("Bytes", *_BYTES[verification.bytes]))
    verdicts.append(_Verdict("Record", *_RECORD[verification.record]))
    tone, word = _REPLAY[replay.outcome]
    if replay.what_if and replay.outcome != "not-run":
        tone, word = "note", f"what-if: {word}"
    return [*verdicts, _Verdict("Replay", tone, word, _replay_sentence(replay, steps))]


def _replay_sentence(replay: Replay, steps: int) -> str:
    what_if = " This is a what-if and no verdict on the record." if replay.what_if else ""
    count = f"All {steps} steps" if replay.steps_compared == steps else f"{replay.steps_compared} of {steps} steps"
    match replay.outcome:
        case "match":
            return f"{count} were run again and agree bit for bit.{what_if}"
        case "match-within-tolerance":
            return f"{count} were run again and agree within the tolerance of whoever checked.{what_if}"
        case "mismatch" if replay.difference is not None:
            return f"First difference at step {replay.difference.step}: {replay.difference.blame}.{what_if}"
        case "mismatch":
            return f"The run came out differently.{what_if}"
        case "inconclusive":
            return f"The replay could not decide: {_sentence(replay.reason or 'no reason is given')}"
    return _sentence(replay.reason or "No replay was run, so whether the run reproduces is not known")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


# --- facts of the statement, made ready for the templates -------------------------------------------------------

_PACKAGES_FIRST: Final[tuple[str, ...]] = (
    *("torch", "numpy", "torchvision", "torchaudio", "triton", "lightning", "pytorch-lightning", "transformers"),
    *("accelerate", "datasets", "timm", "safetensors", "scipy", "scikit-learn", "pandas", "trainmem-audit"),
)
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}==[0-9][A-Za-z0-9._!-]{0,40}")
_KEYID: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_PYTHON: Final = re.compile(r"3\.[0-9]{1,2}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def command_line(command: Command) -> str:
    """Return the recorded command as one line that can be shown; what was left out shows as ``[redacted]``."""
    words = ["python", *command.interpreter_options]
    if command.kind == "library":
        return f"Recorder in {command.entry}"
    words += ["-m", command.entry] if command.kind == "module" else [command.entry.removeprefix("{cwd}/")]
    line = [shlex.quote(word) for word in words]
    for argument in command.arguments:
        value = argument.text if argument.text is not None else (argument.path or "").removeprefix("{cwd}/")
        word = "" if argument.redacted and not argument.prefix else shlex.quote(argument.prefix + value)
        line.append(word + ("[redacted]" if argument.redacted else ""))
    return " ".join(line)


def lifetime_text(component: Component) -> str:
    """Return a component's lifetime, in steps where the record gives them."""
    steps = _number(component.lifetime_steps)
    known = steps is not None and 0 < steps < 1e15
    return f"{component.lifetime}, ≈ {steps:.3g} steps" if known else component.lifetime


def run_seconds(manifest: Manifest) -> float | None:
    """Return how long the run took, `None` where the record does not say."""
    try:
        started, finished = manifest.run.started, manifest.run.finished
        return (datetime.fromisoformat(finished or "") - datetime.fromisoformat(started)).total_seconds()
    except ValueError:
        return None


def package_order(packages: dict[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the packages that matter most to training, in a fixed order, and the rest by name."""
    first = [(name, packages[name]) for name in _PACKAGES_FIRST if name in packages]
    return first, sorted((name, version) for name, version in packages.items() if name not in _PACKAGES_FIRST)


def _profile_rows(manifest: Manifest) -> list[tuple[str, list[Any], bool]]:
    """Return (setting, its value at import, first step and end, whether it changed), those that changed first."""
    stages = [manifest.numeric_profile.get(stage, {}) for stage in ("import", "firstStep", "end")]
    rows = []
    for name in sorted({name for stage in stages for name in stage}):
        values = [stage.get(name) for stage in stages]
        given = [stage[name] for stage in stages if name in stage]
        rows.append((name, values, any(before != after for before, after in pairwise(given))))
    return sorted(rows, key=lambda row: not row[2])


def _requirements(manifest: Manifest) -> list[str]:
    """Return pip requirements that bring the recorded packages, without local build labels such as ``+cpu``."""
    first, _ = package_order(manifest.environment.packages)
    wanted = [f"{name}=={version.split('+')[0]}" for name, version in first if name != "trainmem-audit"]
    return [requirement for requirement in wanted if _REQUIREMENT.fullmatch(requirement)]


def _commands(manifest: Manifest, verification: Verification) -> dict[str, Any]:
    """Return the commands that check and reproduce the run; nothing of a free shape enters them."""
    python = ".".join(manifest.environment.python.split(".")[:2])
    python = f"python{python}" if _PYTHON.fullmatch(python) else "python3"
    keyid = verification.signature.keyid
    signer = f" --signer {keyid}" if _KEYID.fullmatch(keyid) and verification.signature.state != "invalid" else ""
    data = " --data DIR" if _inputs_to_bring(manifest) else ""
    prefix = min(100, manifest.step_logs[0].steps // 4)
    requirements = " ".join(["'trainmem-audit[torch]'", *_requirements(manifest)])
    return {
        "install": (f"{python} -m venv replay", f"replay/bin/pip install {requirements}"),
        "prefix_steps": prefix,
        "verify": f"trainmem-audit verify run.zip{signer}",
        "replay": f"trainmem-audit verify run.zip --replay full{data}{signer}",
        "prefix": f"trainmem-audit verify run.zip --replay prefix:{prefix}{data}{signer}" if prefix else "",
    }


def _inputs_to_bring(manifest: Manifest) -> list[Any]:
    """Return the inputs that do not come with an installed package."""
    return [item for item in manifest.inputs if not item.path.startswith("{site}/")]


def _citation(manifest: Manifest, verification: Verification) -> str:
    keyid = verification.signature.keyid
    keyid = keyid if _KEYID.fullmatch(keyid) else "no key"
    return f"run {manifest.run.id} · {keyid} · chain {manifest.step_logs[0].chain_head}"


def _checks(verification: Verification) -> Iterator[tuple[Check, str, str]]:
    """Yield each check with its tone and word; an unknown key is a question, no failure."""
    for check in verification.checks:
        if check.title == "trust" and verification.signature.state == "unknown-signer":
            yield check, "warn", "unknown"
        else:
            yield check, *_CHECKS[check.state]


_ITEM_TONES: Final = {
    "fail": "bad",
    "declared": "bad",
    "inconclusive": "warn",
    "waived": "note",
    "pass": "ok",
    "not-applicable": "off",
}


class _ItemRow(NamedTuple):
    item: ItemResult
    tone: str
    details: tuple[tuple[str, str], ...]


def _checklist(compliance: Compliance | None) -> dict[str, Any] | None:
    """Return the items, failures first, each with its tone and what a reader needs to mend it."""
    if compliance is None:
        return None
    rows = sorted(compliance.items, key=lambda item: ORDER.index(item.state))
    count = Counter(item.state for item in rows)
    return {
        "ladder": LADDER,
        "marks": EVIDENCE_MARKS,
        "profile": compliance.profile,
        "rows": [_ItemRow(item, _ITEM_TONES[item.state], _item_details(item)) for item in rows],
        "summary": ", ".join(f"{count[state]} {state}" for state in ORDER if count[state]),
        "unused": compliance.unused_waivers,
        "version": compliance.checklist_version,
    }


def _item_details(item: ItemResult) -> tuple[tuple[str, str], ...]:
    pairs = [("where", item.where), ("expected", item.expected), ("got", item.got), ("remedy", item.remedy)]
    if item.waiver is not None:
        pairs.append(("waived", f"{item.waiver.reason} ({item.waiver.who}); it would be: {item.waived}"))
    wanted = {"inconclusive": ("where",), "pass": (), "not-applicable": ()}.get(item.state)
    return tuple((label, text) for label, text in pairs if text and (wanted is None or label in wanted))


def _is_doubtful(verification: Verification) -> bool:
    broken = verification.bytes == "broken" or verification.record == "inconsistent"
    return broken or verification.signature.state in ("invalid", "not-checkable", "revoked")


def _context(
    statement: Statement, verification: Verification, series: RunSeries, compliance: Compliance | None
) -> dict[str, Any]:
    manifest = statement.predicate
    steps = sum(log.steps for log in manifest.step_logs)
    seconds = run_seconds(manifest)
    verdicts = _verdicts(verification, steps)
    profile = _profile_rows(manifest)
    first, rest = package_order(manifest.environment.packages)
    return {
        "bring": _inputs_to_bring(manifest),
        "checklist": _checklist(compliance),
        "checks": list(_checks(verification)),
        "changes": sum(1 for _, _, changed in profile if changed),
        "citation": _citation(manifest, verification),
        "command": command_line(manifest.command),
        "commands": _commands(manifest, verification),
        "differences": sorted(
            verification.replay.difference.components if verification.replay.difference else (),
            key=lambda item: item.cause,
        ),
        "doubtful": _is_doubtful(verification),
        "checkpoints": [(saved, losses(saved)) for saved in manifest.checkpoints or ()],
        "duration": "not known" if seconds is None or seconds < 0 else duration_text(seconds),
        "epoch_counts": dict(series.epoch_counts),
        "findings": sorted(verification.findings, key=lambda finding: finding.severity != "error"),
        "m": manifest,
        "name": PurePosixPath(verification.name.replace("\\", "/")).name or "run",
        "paths": _path_views(series.weights),
        "packages_first": first,
        "packages_rest": rest,
        "profile": profile,
        "redacted": sum(1 for argument in manifest.command.arguments if argument.redacted),
        "replay_word": verdicts[-1],
        "segments": list(segment_lines(verification.replay.segments)) if verification.replay.segments else [],
        "series": series,
        "sources": sorted(manifest.sources.items(), key=lambda item: (item[1].source, item[0])),
        "statement": statement,
        "steps": steps,
        "total_bytes": sum(component.bytes for component in manifest.sources.values()),
        "v": verification,
        "verdicts": verdicts,
    }


# --- templates ------------------------------------------------------------------------------------------------


def _environment(finalize: Callable[[Any], Any]) -> Environment:
    """Return a Jinja2 environment over our own templates whose every expression passes `finalize`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: data_file("templates", name).read_text("utf-8")),
        undefined=StrictUndefined,
        autoescape=True,  # for Markdown too: `finalize` hands out Markup, so that only text not passed by it is touched
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(SOURCES=SOURCES, LIFETIMES=LIFETIMES, VISIBILITIES=VISIBILITIES)
    environment.filters.update(
        bytes=lambda count: f"{count:,} B",
        caption=_caption,
        fact=fact_text,
        lifetime=lifetime_text,
        norm=_size_of,
        size=size_text,
    )
    return environment


@cache
def html_environment() -> Environment:
    """Return the environment of HTML templates: every expression is made safe and escaped."""
    from markupsafe import Markup, escape

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else Markup(str(escape(_shown(value))))

    def digest(text: str) -> Markup:
        """Return a digest by its first 12 characters, the whole of it in the title; other text as it is."""
        if _DIGEST.fullmatch(text):
            return Markup('<code class="digest" title="{}">{}</code>').format(text, text[:12])
        return Markup("{}").format(_shown(text))

    environment = _environment(finalize)
    environment.filters["digest"] = digest
    environment.globals["chart"] = lambda *args: Markup(_chart(*args))
    return environment


@cache
def markdown_environment() -> Environment:
    """Return the environment of Markdown templates: every expression shows as it is, and means nothing."""
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else Markup(_markdown_text(_shown(value)))

    def code(value: Any) -> Markup:
        """Return a code span where the text has no character with a meaning inside one or inside a table."""
        text = _shown(value)
        return Markup(f"`{text}`" if _CODE.fullmatch(text) else _markdown_text(text))

    environment = _environment(finalize)
    environment.filters["code"] = code
    environment.filters["command"] = lambda text: Markup(text)  # of strict shapes alone: `_commands`, `_citation`
    return environment


_CODE: Final = re.compile(r"[^`|\\<>&\s]+(?: [^`|\\<>&\s]+)*")
_MARKDOWN_SPECIAL: Final = re.compile(r"[\\`*_\[\]#|~$!@]|:(?=//)|(?<=w)\.|(?<=[0-9])\.(?= )|^[-+=]")
_HTML_SPECIAL: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _markdown_text(text: str) -> str:
    """Return text that Markdown (CommonMark, GitHub's tables, links and mathematics too) shows as it is."""
    escaped = _MARKDOWN_SPECIAL.sub(lambda match: f"\\{match[0]}", text)
    return re.sub(r"[&<>]", lambda match: _HTML_SPECIAL[match[0]], escaped)


def _shown(value: Any) -> str:
    """Return any value of a document as text of one line: what a person reads as yes, no, nothing."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return safe_text(str(value))


def render_html(
    statement: Statement, verification: Verification, series: RunSeries, compliance: Compliance | None = None
) -> str:
    """Return the report as one HTML page: no script, no network, light and dark, fit to print."""
    template = html_environment().get_template("report.html.j2")
    return template.render(_context(statement, verification, series, compliance))


def render_markdown(
    statement: Statement, verification: Verification, series: RunSeries, compliance: Compliance | None = None
) -> str:
    """Return the report as Markdown with GitHub's tables; digests stand in full."""
    template = markdown_environment().get_template("report.md.j2")
    return template.render(_context(statement, verification, series, compliance))


def write_report(
    directory: Path,
    statement: Statement,
    verification: Verification,
    series: RunSeries,
    compliance: Compliance | None = None,
) -> list[Path]:
    """Write `report.html` and `report.md` into `directory` and return their paths.

    Old reports are replaced; a link that lies there under their name is removed and not followed.

    Raises
    ------
    UsageError
        If the directory cannot be written.
    """
    texts = {
        "report.html": render_html(statement, verification, series, compliance),
        "report.md": render_markdown(statement, verification, series, compliance),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).unlink(missing_ok=True)
            with (directory / name).open("xb") as file:
                file.write(text.encode("utf-8"))
    except OSError as error:
        raise UsageError(
            "the report cannot be written",
            where=str(directory),
            got=error.strerror or str(error),
            remedy="name a directory that you may write to",
        ) from None
    return [directory / name for name in texts]
