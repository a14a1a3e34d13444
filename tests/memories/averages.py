"""Averages of weights and second networks: SWA, EMA of several makes, BYOL, DINO, mean teacher, target networks."""

from __future__ import annotations

from pathlib import Path

from tests.shapes import Change, Shape

__all__ = ["ROWS"]

_MEMORY = Path(__file__).resolve().parent.parent / "memory"
_ADAM = {f"optimizer.{slot}": "S1" for slot in ("step", "exp_avg", "exp_avg_sq", "hyper")}
_ADAM2 = {name.replace("optimizer", "optimizer2"): source for name, source in _ADAM.items()}
_MODEL = {"model.params": "S3"}
_BATCHNORM = {"model.batchnorm": "S2"}
_TAUGHT_NORM = {"teacher.params": "S5", "teacher.batchnorm": "S2"}
_MOMENTUM = {"optimizer.momentum": "S1", "optimizer.hyper": "S1"}


def _row(
    name: str, command: tuple[str, ...], steps: int, inventory: dict[str, str], *changes: tuple[str, str, str, int]
) -> Shape:
    made = tuple(Change(*change) for change in changes)
    return Shape(name, command, made, steps, folder=_MEMORY, inventory=inventory)


ROWS = (
    _row(
        "SWA: averaged weights, BatchNorm taken anew at the end",
        ("swa.py",),
        8,
        _MODEL | _BATCHNORM | _MOMENTUM | {"scheduler": "S1"} | _TAUGHT_NORM | {"teacher.buffers": "S5"},
        ("lr=0.05", "lr=0.06", "optimizer.hyper", 0),
        ("step >= 4", "step >= 5", "teacher.buffers", 5),
        ("anneal_epochs=2", "anneal_epochs=3", "scheduler", 0),
        ("update_bn(data, average)", "update_bn(data[:3], average)", "teacher.batchnorm", 8),
    ),
    _row(
        "EMA: `AveragedModel` with buffers, RMSprop",
        ("averaged.py",),
        6,
        _MODEL
        | _BATCHNORM
        | {f"optimizer.{slot}": "S1" for slot in ("step", "square_avg", "hyper")}
        | _TAUGHT_NORM
        | {"teacher.buffers": "S5"},
        ("get_ema_multi_avg_fn(0.9)", "get_ema_multi_avg_fn(0.8)", "teacher.params", 2),
        ("lr=0.01", "lr=0.01, alpha=0.9", "optimizer.hyper", 0),
    ),
    _row(
        "EMA of `ema-pytorch`",
        ("emapackage.py",),
        8,
        _MODEL | _BATCHNORM | _ADAM | _TAUGHT_NORM | {"teacher.buffers": "S5", "teacher.attributes": "S5"},
        ("beta=0.95", "beta=0.9", "teacher.attributes", 0),
        ("    ema.update()", "    step == 3 or ema.update()", "teacher.buffers", 4),
    ),
    _row(
        "EMA: a module with a copy, as timm has it",
        ("shadow.py",),
        6,
        _MODEL | {"optimizer.hyper": "S1", "teacher.params": "S5", "teacher.attributes": "S5"},
        ("if step >= 1:", "if step >= 1 and step != 3:", "teacher.params", 4),
    ),
    _row(
        "EMA: a class that keeps a shadow in a dict",
        ("shadow.py", "--dict"),
        6,
        _MODEL | {"optimizer.hyper": "S1", "average.shadow": "S1"},
        ("if step >= 1:", "if step >= 1 and step != 3:", "average.shadow", 4),
    ),
    _row(
        "BYOL: the target inside the trained module, momentum schedule",
        ("byol.py",),
        6,
        _MODEL | _BATCHNORM | _ADAM | _TAUGHT_NORM,
        ("(1 - 0.9)", "(1 - 0.8)", "teacher.params", 1),
        ("nn.BatchNorm1d(8)", "nn.BatchNorm1d(8, momentum=0.2)", "model.batchnorm", 0),
    ),
    _row(
        "MoCo as a class: the key encoder among the parameters of the optimizer, frozen",
        ("moco_inside.py",),
        8,
        _MODEL | _BATCHNORM | _MOMENTUM | _TAUGHT_NORM | {"model.buffers": "S4"},
        ("self.follow()", "int(self.queue_ptr) != 16 and self.follow()", "teacher.params", 2),
        ("lr=0.03", "lr=0.04", "optimizer.hyper", 0),
    ),
    _row(
        "gradual unfreezing: what was frozen at first and is trained later is no teacher",
        ("unfreezing.py",),
        8,
        _MODEL | _MOMENTUM,
        ("THAW = 4", "THAW = 5", "optimizer.momentum", 4),
    ),
    _row(
        "DINO: teacher, centre, temperature schedule",
        ("dino.py",),
        6,
        _MODEL | _ADAM | {"teacher.params": "S5", "teacher2.buffers": "S4"},
        ("q.mul_(0.95)", "q.mul_(0.95 - 0.01 * (step == 2))", "teacher.params", 3),
        ("keep=0.9", "keep=0.8", "teacher2.buffers", 1),
    ),
    _row(
        "mean teacher; a frozen extractor is no memory",
        ("meanteacher.py",),
        6,
        _MODEL | _BATCHNORM | _MOMENTUM | _TAUGHT_NORM,
        ("0.99)", "0.6)", "teacher.params", 3),
    ),
    _row(
        "target networks: one follows softly, one is copied",
        ("target.py",),
        10,
        _MODEL | {"model2.params": "S3"} | _ADAM | _ADAM2 | {"teacher.params": "S5", "teacher2.params": "S5"},
        ("TAU = 0.1", "TAU = 0.2", "teacher.params", 2),
        ("step % 2 == 1", "step % 3 == 2", "teacher2.params", 4),
    ),
)
