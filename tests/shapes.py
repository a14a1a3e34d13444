"""The zoo: every ordinary shape of a training script, with what must be true when it is recorded and replayed.

Data only, and the table that is made of them: `python -m tests.shapes` writes `docs/script-shapes.md`. The scripts lie
in `tests/zoo/`; `tests/test_zoo.py` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["PAGE", "SHAPES", "ZOO", "Change", "Shape", "page"]

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "tests" / "zoo"
PAGE = ROOT / "docs" / "script-shapes.md"


@dataclass(frozen=True)
class Change:
    """An edit of one file, and what a replay of the edited script must say.

    Parameters
    ----------
    blame, step:
        The component that is named and the first step that differs; no blame for a change that is harmless.
    file:
        The edited file; the script itself if left out.
    """

    old: str
    new: str
    blame: str | None = None
    step: int = 0
    file: str = ""


@dataclass(frozen=True)
class Shape:
    """One kind of script.

    Parameters
    ----------
    command:
        What follows `python`.
    files:
        What lies in its directory, by name below `folder`; the script alone if left out.
    text:
        Files with their text.
    before:
        A command that is run first, so that its files are there.
    steps:
        How many steps the record must hold.
    sources:
        Components that the record must hold, among others.
    inventory:
        All components that the record must hold and no other, each with its class (S1 to S5); not looked at when empty.
    folder:
        Where the files lie.
    changes:
        The planted ones first, then harmless ones.
    code, outcome:
        How the script ends.
    replay:
        What a replay of the unchanged script says.
    threads:
        How many threads it is recorded with; it is replayed where another number is set.
    clock:
        Whether the clock is stopped while bare and recorded run are compared.
    entropy:
        What the script takes from the operating system where no test can make two runs take the same: then only exit
        code and names of files are compared.
    defect:
        What of all this is not true yet.
    """

    name: str
    command: tuple[str, ...]
    changes: tuple[Change, ...]
    steps: int
    files: tuple[str, ...] = ()
    text: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    sources: frozenset[str] = frozenset({"model.params", "optimizer.hyper"})
    inventory: dict[str, str] = field(default_factory=dict)
    folder: Path = ZOO
    code: int = 0
    outcome: str = "finished"
    replay: str = "match"
    threads: int = 1
    clock: bool = False
    entropy: str = ""
    defect: str = ""

    @property
    def script(self) -> str:
        """The file that changes are made in."""
        return self.command[0] if self.command[0] != "-m" else self.command[1].replace(".", "/") + ".py"

    @property
    def slow(self) -> bool:
        """Whether only `make test-full` runs it."""
        return self.command not in (_EVERY_TIME if self.folder == ZOO else _MEMORIES_EVERY_TIME)

    @property
    def names(self) -> tuple[str, ...]:
        """The files of `folder` that it needs."""
        return self.files or (self.script,)


_SGD = frozenset({"model.params", "optimizer.hyper", "optimizer.momentum"})
_ADAM = frozenset({"model.params", "optimizer.hyper", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step"})
_BN = frozenset({"model.batchnorm"})


def _loader(name: str, arguments: tuple[str, ...], change: Change) -> Shape:
    return Shape(name, ("loader.py", *arguments), (change,), 12, sources=_SGD | _BN, threads=1 if arguments else 2)


_LOADERS = (
    _loader(
        "DataLoader, no workers",
        (),
        Change("data.noise = NOISE", "data.noise = NOISE * (1 + epoch)", "order.content", 6),
    ),
    _loader(
        "DataLoader, two workers",
        ("--workers", "2"),
        Change("torch.initial_seed() %", "(torch.initial_seed() + 1) %", "order.content", 0),
    ),
    _loader(
        "DataLoader, persistent workers",
        ("--workers", "2", "--persistent"),
        Change("shift = self.noise", "shift = 2 * self.noise", "order.content", 0),
    ),
    _loader(
        "DataLoader, workers that fetch ahead",
        ("--workers", "2", "--prefetch", "4"),
        Change(
            "        print(f", '        optimizer.param_groups[0]["lr"] = 0.04\n        print(f', "optimizer.hyper", 6
        ),
    ),
    Shape(
        "sampler of one's own",
        ("sampler.py",),
        (Change("weights=self.lengths", "weights=None", "order.index", 0),),
        8,
        sources=_ADAM | {"model2.params"},
    ),
    Shape(
        "batch sampler of one's own",
        ("sampler.py", "--batches"),
        (Change("random.Random(self.epoch)", "random.Random(self.epoch % 1)", "order.index", 4),),
        8,
        sources=_ADAM | {"model2.params"},
    ),
    Shape(
        "IterableDataset, two workers",
        ("stream.py",),
        (Change("0.1 * torch.rand(1)", "(0.1 + (number == 9)) * torch.rand(1)", "order.content", 3),),
        6,
        sources=_ADAM,
    ),
)
_NO_LOADER = (
    Shape(
        "no DataLoader: character model on random windows, AdamW",
        ("charlm.py",),
        (Change("data[i : i + BLOCK]", "data[i + (step == 3) : i + (step == 3) + BLOCK]", "inputs", 3),),
        6,
        sources=_ADAM | {"model.buffers"},
        threads=2,
    ),
    Shape(
        "no DataLoader: batches cut from NumPy arrays, RMSprop",
        ("arrays.py",),
        (
            Change(
                "np.random.permutation(len(X))",
                "np.roll(np.random.permutation(len(X)), 10 * (epoch == 1))",
                "inputs",
                4,
            ),
        ),
        8,
        sources=frozenset(
            {"model.params", "optimizer.hyper", "optimizer.square_avg", "optimizer.momentum", "optimizer.grad_avg"}
        ),
    ),
    Shape(
        "neither loader nor module: bare tensors, Adagrad",
        ("no_module.py",),
        (Change("w = torch.zeros(4,", "w = torch.full((4,), 0.1,", "optimizer.params", 0),),
        6,
        sources=frozenset({"optimizer.params", "optimizer.sum", "optimizer.hyper"}),
    ),
)
_STEPS = (
    Shape(
        "two optimizers in turn (GAN)",
        ("gan.py",),
        (Change("Adam(G.parameters(), lr=1e-3", "Adam(G.parameters(), lr=2e-3", "optimizer2.hyper", 1),),
        8,
        sources=_ADAM | {"model2.params", "model2.batchnorm", "optimizer2.exp_avg"},
        threads=2,
    ),
    Shape(
        "closure (LBFGS)",
        ("lbfgs.py",),
        (
            Change(
                "    try:",
                "    optimizer.param_groups[0].update(lr=0.4 if step == 3 else 0.5)\n    try:",
                "optimizer.hyper",
                3,
            ),
        ),
        5,
        sources=frozenset({"model.params", "optimizer.hyper", "optimizer.d", "optimizer.old_dirs"}),
    ),
    Shape(
        "closure that raises once and is caught",
        ("lbfgs.py", "--bad-step", "2"),
        (Change("history_size=3", "history_size=2", "optimizer.hyper", 0),),
        4,
        sources=frozenset({"model.params", "optimizer.hyper", "optimizer.d", "optimizer.old_dirs"}),
    ),
    Shape(
        "gradient accumulation",
        ("accumulate.py",),
        (Change("(i + 1) % ACCUMULATE == 0", "(i + 1) % (ACCUMULATE + epoch) == 0", "order.index", 3),),
        6,
        sources=_ADAM,
    ),
    Shape(
        "autocast and GradScaler, with skipped steps",
        ("amp.py",),
        (
            Change("init_scale=2.0**10", "init_scale=2.0**9", "scaler", 0),
            Change("BAD_STEPS = {2, 3}", "BAD_STEPS = {2}", "gradient path", 3),
        ),
        8,
        sources=_SGD | {"scaler"},
    ),
    Shape(
        "evaluation after every epoch, best weights kept",
        ("epochs.py",),
        (
            Change("WEIGHT_DECAY = 1e-2", "WEIGHT_DECAY = 1e-3", "optimizer.hyper", 0),
            Change("TEST_BATCH = 8", "TEST_BATCH = 4"),
        ),
        12,
        sources=_ADAM | _BN,
    ),
    Shape(
        "evaluation inside of the training loop",
        ("inner.py",),
        (
            Change("EVAL_EVERY = 2", "EVAL_EVERY = 3", "rng.torch.cpu", 2),
            Change("EVAL_BATCH = 10", "EVAL_BATCH = 5"),
        ),
        10,
        sources=_SGD,
    ),
)
_SCHEDULER_CHANGE = Change("            scheduler.step()\n", "            step == 2 or scheduler.step()\n")
_PLATEAU_CHANGE = Change("scheduler.step(loss.item())", "step == 2 or scheduler.step(loss.item())")
_SCHEDULER_NAMES = (
    *("LambdaLR", "MultiplicativeLR", "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR"),
    *("PolynomialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR", "SequentialLR"),
    *("ChainedScheduler", "ReduceLROnPlateau"),
)


def _scheduler(name: str) -> Shape:
    """A call of `scheduler.step()` is left out after step 2: the rate (else the counter) is another one at step 3."""
    change = _PLATEAU_CHANGE if name == "ReduceLROnPlateau" else _SCHEDULER_CHANGE
    blame = "scheduler" if name == "StepLR" else "optimizer.hyper"  # there the rate is the same at epochs 2 and 3
    return Shape(
        f"scheduler: {name}",
        ("schedulers.py", "--scheduler", name),
        (replace(change, blame=blame, step=3),),
        5,
        sources=_SGD | {"scheduler"},
    )


_SCHEDULERS = (
    Shape(
        "schedulers: every one of torch, in turn",
        ("schedulers.py",),
        (Change("factor=0.5, total_iters=3", "factor=0.4, total_iters=3", "optimizer5.hyper", 20),),
        5 * len(_SCHEDULER_NAMES),
        sources=_SGD | {"scheduler", "scheduler5"},
    ),
    *map(_scheduler, _SCHEDULER_NAMES),
)
_MODELS = (
    Shape(
        "optimizer first, then the module",
        ("params_first.py",),
        (Change("torch.randn(5, 3) / 2", "torch.randn(5, 3) / 3", "model.params", 0),),
        5,
        sources=_SGD,
    ),
    Shape(
        "model and optimizer replaced in mid-run",
        ("replaced.py",),
        (Change("lr=0.02", "lr=0.03", "optimizer2.hyper", 4),),
        8,
        sources=_SGD | _BN | {"model2.params", "model2.batchnorm", "optimizer2.momentum"},
    ),
    Shape(
        "parameters added and frozen later",
        ("finetune.py",),
        (
            Change("BODY_LR = 0.01", "BODY_LR = 0.02", "optimizer.hyper", 3),
            Change("if step == 6:", "if step == 7:", "gradient path", 6),
        ),
        9,
        sources=_ADAM,
    ),
    Shape(
        "mean teacher: an average of the weights that gives targets",
        ("ema.py",),
        (Change("DECAY = 0.9", "DECAY = 0.8", "teacher.params", 1),),
        6,
        sources=_SGD | {"teacher.params"},
    ),
    Shape(
        "target network and replay memory (DQN)",
        ("dqn.py",),
        (Change("SYNC_EVERY = 4", "SYNC_EVERY = 3", "teacher.params", 3),),
        13,
        sources=frozenset({"model.params", "optimizer.square_avg", "teacher.params"}),
    ),
    *(
        Shape(
            f"torch.compile: {label}",
            ("compiled.py", what),
            (Change("torch.randperm(32)[:8]", "torch.randperm(32)[8 * (step == 2) :][:8]", blame, 2),),
            4,
            sources=_SGD | _BN,
        )
        for what, label, blame in (
            ("model", "the module", "inputs"),
            ("optimizer", "the optimizer's step", "inputs"),
            ("step", "the whole step", "gradient path"),
        )
    ),
)
_PROCESSES = (
    Shape(
        "python -m package.module, relative imports",
        ("-m", "lab.train"),
        (
            Change("WIDTH = 6", "WIDTH = 7", "model.params", 0, "lab/parts/__init__.py"),
            Change("x.amax(1)", "x.amin(1)", "gradient path", 0),
        ),
        5,
        files=("lab/__init__.py", "lab/train.py", "lab/parts/__init__.py", "lab/parts/nets.py", "lab/settings.toml"),
    ),
    Shape(
        "classes pickled from __main__",
        ("pickled.py",),
        (Change("lr: float = 0.1", "lr: float = 0.2", "optimizer.hyper", 0),),
        4,
    ),
    Shape(
        "multiprocessing, forked",
        ("processes.py", "--start", "fork"),
        (Change("random.Random(seed)", "random.Random(seed + 10 * (seed == 1))", "inputs", 1),),
        4,
    ),
    Shape(
        "multiprocessing, spawned",
        ("processes.py", "--start", "spawn"),
        (Change("random.Random(seed)", "random.Random(seed + 10 * (seed == 1))", "inputs", 1),),
        3,
    ),
    Shape(
        "several trainings in one process",
        ("several.py",),
        (Change("0.05, 0.01]", "0.06, 0.01]", "optimizer2.hyper", 3),),
        12,
        sources=_SGD | {"model4.params", "optimizer4.momentum", "scheduler4"},
    ),
)
_FILES = (
    Shape(
        "reads its own directory",
        ("owndir.py",),
        (
            Change("1.0,0.5,2.0", "1.0,0.75,2.0", "inputs", 1, "tables/b.csv"),
            Change('"lr": 0.05', '"lr": 0.06', "optimizer.hyper", 0, "config.json"),
        ),
        6,
        text={
            "config.json": '{"lr": 0.05, "seed": 3, "batch": 4}\n',
            "tables/a.csv": "0.0,1.0,1.0\n1.0,0.0,0.5\n0.5,0.5,0.0\n-1.0,0.5,0.5\n0.0,-1.0,1.0\n",
            "tables/b.csv": "0.25,0.5,1.0\n1.0,0.5,2.0\n0.5,-0.5,0.0\n-1.0,-0.5,0.5\n0.75,-1.0,1.0\n",
        },
    ),
    Shape(
        "writes outputs with timestamps",
        ("stamped.py",),
        (
            Change("lr=0.1", "lr=0.2", "optimizer.hyper", 0),
            Change("%Y%m%d-%H%M%S", "%H%M%S-%Y%m%d"),
        ),
        4,
        clock=True,
    ),
    Shape(
        "saves, and reads its own checkpoint in the same run",
        ("resume.py", "--reload"),
        (Change('    optimizer.load_state_dict(checkpoint["optimizer"])\n', "", "optimizer2.hyper", 4),),
        8,
        sources=_ADAM | _BN | {"scheduler", "model2.params", "optimizer2.exp_avg"},
    ),
    Shape(
        "goes on from the checkpoint of an earlier run",
        ("resume.py", "--epochs", "2"),
        (Change('    optimizer.load_state_dict(checkpoint["optimizer"])\n', "", "optimizer.hyper", 0),),
        4,
        before=("resume.py", "--epochs", "1"),
        sources=_ADAM | _BN | {"scheduler"},
    ),
)
_SEEDS = (
    Shape(
        "seed from the clock",
        ("clockseed.py",),
        (Change("nn.Dropout(0.3)", "nn.Dropout(0.4)", "gradient path", 0),),
        5,
        sources=_ADAM,
        clock=True,
    ),
    Shape(
        "no seed: random, numpy, default_rng, torch, sets of strings",
        ("unseeded.py",),
        (Change("nn.Dropout(0.3)", "nn.Dropout(0.4)", "gradient path", 0),),
        8,
        sources=_ADAM,
    ),
    Shape(
        "no seed: objects of random.Random and torch.Generator",
        ("fresh.py",),
        (Change("nn.Dropout(0.3)", "nn.Dropout(0.4)", "gradient path", 0),),
        8,
        sources=_ADAM,
        entropy="random.Random(), torch.Generator().seed()",
    ),
    Shape(
        "seed from the operating system",
        ("osseed.py",),
        (Change("lr=0.1", "lr=0.2", "optimizer.hyper", 0),),
        4,
        entropy="os.urandom, secrets",
    ),
    Shape(
        "a learning rate that depends on the time",
        ("timed.py",),
        (Change("BASE_LR = 0.1", "BASE_LR = 0.2", "optimizer.hyper", 0),),
        4,
        replay="inconclusive",
        clock=True,
    ),
)


def _end(name: str, how: str, change: Change, code: int, outcome: str) -> Shape:
    return Shape(name, ("ends.py", how), (change,), 3, code=code, outcome=outcome)


_MORE_STEPS = Change("range(3)", "range(4)", "steps", 3)
_ENDS = (
    _end("raises", "raise", Change("LIMIT = 0.001", "LIMIT = 1000.0", "outcome", 3), 1, "raised"),
    _end("calls sys.exit", "exit", Change("sys.exit(3)", "sys.exit(4)", "outcome", 3), 3, "exited"),
    _end("interrupted", "interrupt", Change("lr=0.1", "lr=0.2", "optimizer.hyper"), -2, "interrupted"),
    _end("prints binary data", "binary", _MORE_STEPS, 0, "finished"),
)
_EVERY_TIME = {
    ("loader.py",),
    ("loader.py", "--workers", "2"),
    ("stream.py",),
    ("charlm.py",),
    ("gan.py",),
    ("lbfgs.py", "--bad-step", "2"),
    ("accumulate.py",),
    ("amp.py",),
    ("finetune.py",),
    ("-m", "lab.train"),
    ("processes.py", "--start", "fork"),
    ("resume.py", "--epochs", "2"),
    ("clockseed.py",),
    ("unseeded.py",),
    ("timed.py",),
    ("ends.py", "interrupt"),
}
"""What is tested every time; the others are variations, and `make test-full` runs them too."""

_MEMORIES_EVERY_TIME = {("moco.py",), ("swa.py",), ("curriculum.py",)}
"""The same of the rows in `tests/memories/`."""

SHAPES = (*_LOADERS, *_NO_LOADER, *_STEPS, *_SCHEDULERS, *_MODELS, *_PROCESSES, *_FILES, *_SEEDS, *_ENDS)

_HEAD = """\
# Scripts of every ordinary shape

Each row is a real training script in `tests/zoo/` that knows nothing of the recorder. `tests/test_zoo.py` runs each
bare and recorded, replays the pack elsewhere with another number of threads around it, and then with a line changed.
This page is made from the same declarations (`tests/shapes.py`): `python -m tests.shapes`.

- **bit-neutral**: with equal initial entropy the bare and the recorded run print the same bytes, write the same files,
  end with the same exit code, and leave the same random states, settings and tensors behind.
- **replay**: what `verify --replay full` says of the pack.
- **planted change**: what was changed, and on which component at which step a replay of the changed script blames it.

"""


def page() -> str:
    """Return `docs/script-shapes.md`."""
    rows = ["| script | bit-neutral | replay | planted change → blamed on |", "|---|---|---|---|"]
    for shape in SHAPES:
        name = f"{shape.name} (`{shape.script}`)"
        rows.append(f"| {name} | {_neutral(shape)} | {_replay(shape)} | {_changes(shape)} |")
    defects = [f"- {shape.name}: {shape.defect}" for shape in SHAPES if shape.defect]
    if defects:
        rows += ["", "Rows marked with *not yet* say what must be true; what is missing:", "", *defects]
    return _HEAD + "\n".join(rows) + "\n"


def _neutral(shape: Shape) -> str:
    if shape.entropy:
        return f"exit code and files; no two runs print the same ({_code(shape.entropy)})"
    return "yes, under a stopped clock" if shape.clock else "yes"


def _replay(shape: Shape) -> str:
    return f"{shape.replay}, {shape.steps} steps" + (" (*not yet*)" if shape.defect else "")


def _changes(shape: Shape) -> str:
    return "; ".join(f"{_edit(change)} → {_blame(change)}" for change in shape.changes)


def _edit(change: Change) -> str:
    old, new = (" ".join(text.split()) for text in (change.old, change.new))
    if not new:
        return f"without {_code(old)}"
    return f"{_code(old)}: {_code(new)}"


def _blame(change: Change) -> str:
    return "match (harmless)" if change.blame is None else f"{change.blame}, step {change.step}"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
