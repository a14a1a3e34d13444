"""Optimizers and their wrappers, schedules, scalers, learned optimizers, BatchNorm."""

from __future__ import annotations

from pathlib import Path

from tests.shapes import Change, Shape

__all__ = ["ROWS"]

_MEMORY = Path(__file__).resolve().parent.parent / "memory"
_MODEL = {"model.params": "S3"}


def _slots(*slots: str, name: str = "optimizer") -> dict[str, str]:
    return {f"{name}.{slot}": "S1" for slot in (*slots, "hyper")}


def _row(
    name: str, command: tuple[str, ...], steps: int, inventory: dict[str, str], *changes: tuple[str, str, str, int]
) -> Shape:
    made = tuple(Change(*change) for change in changes)
    return Shape(name, command, made, steps, folder=_MEMORY, inventory=_MODEL | inventory)


_ADAM = _slots("step", "exp_avg", "exp_avg_sq")
_SAM = _slots("momentum") | {"optimizer2.old_p": "S1"}
_LBFGS = ("H_diag", "al", "d", "func_evals", "n_iter", "old_dirs", "old_stps", "prev_flat_grad", "prev_loss", "ro", "t")

ROWS = (
    _row(
        "SAM: two passes a step",
        ("sam.py",),
        6,
        _SAM,
        ("rho=0.05, lr", "rho=0.06, lr", "optimizer.hyper", 0),
        ('["old_p"] = p.data.clone()', '["old_p"] = p.data * 1.01', "optimizer2.old_p", 0),
    ),
    _row(
        "SAM with a closure", ("sam.py", "--closure"), 6, _SAM, ("momentum=0.9", "momentum=0.8", "optimizer.hyper", 0)
    ),
    _row(
        "Lookahead: an optimizer around Adam",
        ("lookahead.py",),
        8,
        _ADAM | {"optimizer2.slow_params": "S1", "optimizer2.attributes": "S1"},
        ("self._la_step % self.k == 0", "self._la_step % self.k == 1", "optimizer2.slow_params", 1),
        ("alpha=0.8", "alpha=0.7", "optimizer2.attributes", 0),
    ),
    _row(
        "Lookahead: a class that holds slow weights",
        ("lookahead.py", "--plain"),
        8,
        _ADAM | {"average.slow_weights": "S1"},
        ("q += self.alpha * (p - q)", "q += 0.9 * self.alpha * (p - q)", "average.slow_weights", 3),
    ),
    _row(
        "Lookahead of `pytorch_optimizer`",
        ("wrapped.py",),
        6,
        _slots("momentum") | {"optimizer2.slow_params": "S1", "optimizer2.attributes": "S1"},
        ("alpha=0.5", "alpha=0.6", "optimizer2.attributes", 0),
    ),
    _row(
        "accumulation with AMP; one overflow",
        ("amp.py",),
        6,
        _ADAM | {"scaler": "S1", "scaler.hyper": "S1"},
        ("growth_interval=3", "growth_interval=2", "scaler.hyper", 0),
        ("step == 2", "step == 3", "gradient path", 2),
        ("    scaler.update()", "    scaler.update(512.0 if step == 3 else None)", "scaler", 4),
    ),
    _row(
        "schedules in a schedule, and one by the loss",
        ("schedules.py",),
        8,
        {"optimizer.hyper": "S1"} | {f"scheduler{number}": "S1" for number in ("", 2, 3, 4, 5)},
        ("milestones=[3, 6]", "milestones=[4, 6]", "scheduler4", 0),
        ("ExponentialLR(optimizer, 0.9)", "ExponentialLR(optimizer, 0.8)", "scheduler3", 0),
        ("patience=0", "patience=1", "scheduler5", 0),
    ),
    _row(
        "a learned optimizer, trained by Adam",
        ("learned.py",),
        4,
        _ADAM | {"model2.params": "S3"},
        ("range(3)", "range(2 + (episode != 2))", "inputs", 2),
        ("lr=0.01", "lr=0.02", "optimizer.hyper", 0),
    ),
    _row(
        "BatchNorm of every kind",
        ("norms.py",),
        5,
        {"model.batchnorm": "S2", "optimizer.hyper": "S1"},
        ("momentum=None", "momentum=0.1", "model.batchnorm", 0),
    ),
    _row(
        "GAN in one module, spectral norm",
        ("gan.py",),
        8,
        _ADAM
        | _slots("step", "exp_avg", "exp_avg_sq", name="optimizer2")
        | {"model.batchnorm": "S2", "model.buffers": "S4"},
        (
            "spectral_norm(nn.Linear(2, 8))",
            "spectral_norm(nn.Linear(2, 8), n_power_iterations=2)",
            "model.buffers",
            1,
        ),
    ),
    _row(
        "LBFGS with a short history",
        ("lbfgs.py",),
        4,
        _slots(*_LBFGS),
        ("history_size=5", "history_size=3", "optimizer.hyper", 0),
    ),
    _row(
        "character model: AdamW, warm-up, clipping",
        ("charlm.py",),
        6,
        _ADAM | {"scheduler": "S1"},
        ("betas=(0.9, 0.95)", "betas=(0.8, 0.95)", "optimizer.hyper", 0),
        ("(step + 1) / 4", "(step + 1) / 5", "optimizer.hyper", 0),
    ),
)
