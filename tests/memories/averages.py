"""Averages of weights: SWA."""

from __future__ import annotations

from pathlib import Path

from tests.shapes import Change, Shape

__all__ = ["ROWS"]

_MEMORY = Path(__file__).resolve().parent.parent / "memory"

ROWS = (
    Shape(
        "SWA: averaged weights, BatchNorm taken anew at the end",
        ("swa.py",),
        (
            Change("lr=0.05", "lr=0.06", "optimizer.hyper", 0),
            Change("step >= 4", "step >= 5", "teacher.buffers", 5),
        ),
        8,
        folder=_MEMORY,
        inventory={
            "model.params": "S3",
            "model.batchnorm": "S2",
            "optimizer.momentum": "S1",
            "optimizer.hyper": "S1",
            "scheduler": "S1",
            "teacher.params": "S5",
            "teacher.batchnorm": "S2",
            "teacher.buffers": "S5",
        },
    ),
)
