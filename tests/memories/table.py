"""The page `docs/memory-sources.md`: one row for each source of memory, made from what the tests hold to be true.

Whether a source is found, and which class it has, is read off the inventory of its example, which `test_memories` holds
to be exact. Laws of copy and restore are named here by who proves them (`LAWS`), and none is claimed without a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.memories.segments import SEGMENTS, WHY
from tests.shapes import Shape

__all__ = ["LAWS", "PAGE", "SOURCES", "Memory", "page"]

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "memory-sources.md"

_OPTIMIZERS = "`test_registry`: every optimizer of torch"
_MODULES = "`test_registry`: modules, averages, scalers"
_OWN = "`test_finding_laws`"
LAWS: dict[str, str] = {
    **{f"model.{family}": _MODULES for family in ("params", "batchnorm", "buffers")},
    **{f"teacher.{family}": _MODULES for family in ("params", "batchnorm", "buffers")},
    "optimizer": _OPTIMIZERS,
    "scheduler": "`test_registry`: every scheduler of torch",
    "scaler": _MODULES,
    "scaler.hyper": _MODULES,
    **dict.fromkeys(("optimizer2", "average", "sampler", "sampler.tensors", "teacher.attributes"), _OWN),
    "bank": "`test_banks`",
    "model.grads": "`test_banks`",
}
"""Which test proves that it is copied and restored bit by bit, by the name of the component or what comes before."""


@dataclass(frozen=True)
class Memory:
    """A source of memory.

    Parameters
    ----------
    components:
        Its components in the inventory of the example; none where the source is no component.
    lifetime:
        The lifetime and, where a formula gives steps, that formula.
    example:
        The command of the row that shows it.
    values:
        Whether it is plain values; tensors otherwise.
    instead:
        Why there is no component, or what is not found.
    source:
        The class, where no component says it.
    """

    name: str
    components: tuple[str, ...]
    lifetime: str
    example: tuple[str, ...]
    values: bool = False
    instead: str = ""
    source: str = ""


def _one(name: str, component: str, lifetime: str, *example: str, values: bool = False, instead: str = "") -> Memory:
    return Memory(name, (component,), lifetime, example, values, instead)


SOURCES: tuple[Memory, ...] = (
    _one("parameters", "model.params", "macro: the run", "charlm.py"),
    _one("momentum of SGD, Muon, RMSprop", "optimizer.momentum", "micro, 1/(1−β)", "swa.py"),
    _one("first moment", "optimizer.exp_avg", "micro, 1/(1−β₁)", "charlm.py"),
    _one("second moment", "optimizer.exp_avg_sq", "micro, 1/(1−β₂)", "charlm.py"),
    _one("mean of squares of RMSprop, Adadelta", "optimizer.square_avg", "micro, 1/(1−α)", "averaged.py"),
    _one("sum of squares of Adagrad", "optimizer.sum", "macro: the run", "batches.py"),
    _one("step counter", "optimizer.step", "macro: a counter", "charlm.py"),
    Memory(
        "LBFGS: history of directions",
        ("optimizer.old_dirs", "optimizer.old_stps", "optimizer.ro", "optimizer.al"),
        "micro, `history_size`",
        ("lbfgs.py",),
    ),
    Memory(
        "LBFGS: the last step",
        ("optimizer.d", "optimizer.H_diag", "optimizer.prev_flat_grad"),
        "micro, 1 (`prev_flat_grad`); the others follow from the history",
        ("lbfgs.py",),
    ),
    _one("hyper-parameters", "optimizer.hyper", "macro: settings", "lbfgs.py", values=True),
    _one("SAM: the weights before the first pass", "optimizer2.old_p", "micro, 1", "sam.py"),
    _one("Lookahead: slow weights", "optimizer2.slow_params", "micro, k/α", "lookahead.py"),
    _one(
        "Lookahead: its counter",
        "optimizer2.attributes",
        "macro: a counter and settings",
        "lookahead.py",
        values=True,
        instead="the counter of a class that is no optimizer is not found",
    ),
    _one(
        "slow weights in a list of a class of one's own",
        "average.slow_weights",
        "meso, k/α",
        "lookahead.py",
        "--plain",
        instead="those that only local variables hold, or that are made after the first step, are not found",
    ),
    _one(
        "GradScaler: scale, growth counter",
        "scaler",
        "macro: grows after `growth_interval`, halves at an overflow",
        "amp.py",
    ),
    _one("GradScaler: settings", "scaler.hyper", "macro: settings", "amp.py", values=True),
    Memory(
        "gradients of an accumulation under way",
        (),
        "micro: within a step",
        ("amp.py",),
        instead="none is left at the cut of a step where the script clears them; its batches are in the step's order",
        source="S1",
    ),
    _one("learning-rate scheduler", "scheduler", "macro: the schedule", "charlm.py", values=True),
    Memory(
        "schedulers inside a scheduler",
        ("scheduler", "scheduler2", "scheduler3", "scheduler4"),
        "macro: the schedule",
        ("schedules.py",),
        values=True,
    ),
    _one("average by `AveragedModel` (SWA)", "teacher.params", "macro: an equal average over the run", "swa.py"),
    _one("average by `AveragedModel` (EMA)", "teacher.params", "meso, 1/(1−decay)", "averaged.py"),
    _one(
        "how many models are averaged",
        "teacher.buffers",
        "macro: a counter (labelled meso, as buffers of teachers are)",
        "averaged.py",
    ),
    _one("average of `ema-pytorch`", "teacher.params", "meso, every/(1−β)", "emapackage.py"),
    _one(
        "its counters",
        "teacher.buffers",
        "macro: counters (labelled meso, as buffers of teachers are)",
        "emapackage.py",
    ),
    _one("its settings", "teacher.attributes", "macro: settings", "emapackage.py", values=True),
    _one("average in a module of one's own", "teacher.params", "meso, 1/(1−decay) where it has `decay`", "shadow.py"),
    _one(
        "average in a dict of a class of one's own",
        "average.shadow",
        "meso, 1/(1−decay) where it has `decay`",
        "shadow.py",
        "--dict",
    ),
    _one(
        "BYOL: target inside the trained module",
        "teacher.params",
        "meso; *1/(1−decay)*: the decay is a schedule",
        "byol.py",
    ),
    _one(
        "MoCo: key encoder inside the trained module",
        "teacher.params",
        "meso; *1/(1−m)*: m is a number in a function",
        "moco_inside.py",
    ),
    _one("DINO: teacher", "teacher.params", "meso; *1/(1−decay)*: the decay is a number in a function", "dino.py"),
    _one(
        "DINO: centre, a buffer of the loss",
        "teacher2.buffers",
        "meso; *1/(1−keep)*: the share is an argument of a function",
        "dino.py",
    ),
    _one(
        "mean teacher",
        "teacher.params",
        "meso; *1/(1−decay)*: the decay is an argument of a function",
        "meanteacher.py",
    ),
    _one("target network, soft", "teacher.params", "meso; *1/τ*: τ is a number in a function", "target.py"),
    _one(
        "target network, copied",
        "teacher2.params",
        "meso; *the interval of copies*: read off its changes (`check`: TM-MET-001)",
        "target.py",
    ),
    Memory(
        "a frozen extractor",
        (),
        "none",
        ("meanteacher.py",),
        instead="it does not change, and is no memory",
        source="–",
    ),
    Memory(
        "learned optimizer",
        ("model.params", "model2.params"),
        "macro: the run",
        ("learned.py",),
        instead="found as what it is, a trained module: that its outputs are updates cannot be seen",
    ),
    Memory(
        "recurrent state and optimizee of a learned optimizer",
        (),
        "micro: an episode",
        ("learned.py",),
        instead="made anew in every episode; plain tensors that outlive a step are registered by hand",
        source="S5",
    ),
    _one("BatchNorm statistics", "model.batchnorm", "meso, 1/momentum; macro where it is None", "norms.py"),
    _one("BatchNorm statistics of a teacher", "teacher.batchnorm", "meso, 1/momentum", "meanteacher.py"),
    _one(
        "spectral norm: singular vectors",
        "model.buffers",
        "meso: a power iteration follows the weights, and has no window",
        "gan.py",
    ),
    _one(
        "curriculum stage, position of a sampler",
        "sampler",
        "meso: a stage of the curriculum",
        "curriculum.py",
        values=True,
    ),
    _one("position of a batch sampler", "sampler", "meso: an epoch", "batches.py", values=True),
    _one(
        "weights of a sampler (order by loss)",
        "sampler.tensors",
        "meso; *samples / batch*: one visit of each, and which are visited follows the weights",
        "weighted.py",
    ),
    Memory(
        "order and augmentation, `StatefulDataLoader`",
        (),
        "meso: an epoch",
        ("stateful.py", "2"),
        instead="no component: digests of indices and content in every step line, random streams of workers too",
        source="S2",
    ),
    _one("MoCo: queue in a plain variable", "bank.queue", "meso; *capacity / entries a step*", "moco.py"),
    _one(
        "memory bank on a loss object",
        "bank.criterion.memory",
        "meso; *rows / batch*: and each row averages with its own momentum",
        "memory_bank.py",
    ),
    _one(
        "replay memory: records in a deque",
        "bank.memory.memory",
        "meso; *capacity / entries a step*",
        "replay_tuples.py",
    ),
    Memory(
        "replay memory: a ring of arrays, and its position",
        ("bank.buffer", *(f"bank.buffer.{name}" for name in ("states", "nexts", "actions", "rewards"))),
        "meso; *capacity / entries a step*",
        ("replay_ring.py",),
    ),
    Memory(
        "prioritized replay: sum tree and records",
        ("bank.replay", "bank.replay.tree", "bank.replay.tree.tree", "bank.replay.tree.data"),
        "meso; *capacity / entries a step*",
        ("prioritized.py",),
    ),
    _one(
        "hidden state that windows hand on",
        "bank.hidden",
        "meso: until the script begins it anew; what is forgotten is learned",
        "hidden.py",
    ),
    _one("Hebbian trace", "bank.hebb", "meso; *1/η*: η is a number in the model", "hebbian.py"),
    _one(
        "average of the weights in a dictionary of a function",
        "bank.average",
        "meso; *1/(1−decay)*: the decay is a number in a function",
        "ema_local.py",
    ),
    _one("gradients that are left over and added to", "model.grads", "micro: until they are cleared", "leftover.py"),
)

_LIFETIMES = (
    "**Lifetimes** in plain type after the label are computed, and stand in the record (`lifetimeSteps`) where the",
    "numbers can be read off an object. Those *in italics* are what the lifetime is, and are not computed: the number",
    "is an argument or a constant in the script's code, of which nothing is evaluated; of queues and buffers the",
    "capacity is in the record (the first dimension, or a number beside it), and how many entries a step adds is not",
    "counted, since a queue that is bound anew does not tell old rows from new ones. After a colon there is no",
    "formula, and why.",
)

_HEAD = """\
# Sources of memory

What is carried from one step to the next, and what is done about each: the labels of
[the standard](schema.md), whether it is found without help, whether its digest is in every step line, what proves that
it can be copied and restored, what a snapshot holds, and what a replay of the example says. The examples lie in
`tests/memory/`; `tests/test_memories.py` holds each inventory to be exact and plants a change in the sources.
This page is made from the same declarations: `python -m tests.memories`.

"""


def page(rows: Sequence[Shape]) -> str:
    """Return the page for the examples `rows`."""
    examples = {row.command: row for row in rows}
    columns = "source component class lifetime found digest law snapshot replay segment example".split()  # noqa: SIM905
    columns[6] = "restore law"
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cells(memory, examples[memory.example])) + " |" for memory in SOURCES]
    notes = [f"- {memory.name}: {memory.instead}." for memory in SOURCES if memory.instead]
    text = [*lines, "", *_LIFETIMES, "", *_segments(), "", "What a table has no room for:", "", *notes]
    if any(not _law(memory) for memory in SOURCES if memory.components):
        text += ["", "*not yet*: copy and restore of this kind are not tested yet."]
    return _HEAD + "\n".join(text) + "\n"


def _segments() -> list[str]:
    """Return what the words in the column of segments mean."""
    said = [f"- *{name}*: {meaning}." for name, (_, meaning) in WHY.items()]
    return [
        "**Segment** is what a replay of one segment in the middle says, and `record --self-test` tells its author",
        "(`tests/test_memory_segments.py`). Where it is not `match` it is `inconclusive`, never `mismatch`:",
        "",
        *said,
    ]


def _cells(memory: Memory, example: Shape) -> list[str]:
    classes = {example.inventory[component] for component in memory.components} or {memory.source}
    there = bool(memory.components)
    return [
        memory.name,
        ", ".join(f"`{component}`" for component in memory.components) or "–",
        ", ".join(sorted(classes)),
        memory.lifetime,
        "yes" if there else "see below",
        "every step" if there else "see below",
        (_law(memory) or "*not yet*") if there else "–",
        ("yes, in its `.json`" if memory.values else "yes") if there else "–",
        f"{example.replay}, {example.steps} steps",
        SEGMENTS.get(" ".join(memory.example), "match"),
        f"`{' '.join(memory.example)}`",
    ]


def _law(memory: Memory) -> str:
    """Return what proves the law for all components of a source."""
    laws = {LAWS.get(name) or LAWS.get(name.split(".")[0], "") for name in map(_unnumbered, memory.components)}
    return laws.pop() if len(laws) == 1 else ""


def _unnumbered(component: str) -> str:
    """Return the name without the number of a second one; a second optimizer of the examples is a wrapper."""
    first, dot, rest = component.partition(".")
    return component if first == "optimizer2" else first.rstrip("0123456789") + dot + rest
