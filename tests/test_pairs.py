"""Pairs of arms that really trained: certificates hold for every intervention, and break for the right reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pairs import AT, Training, certified
from trainmem_audit.documents.pairing import Certificate

pytestmark = pytest.mark.slow


def momentum(training: Training) -> None:
    for state in training.steps.state.values():
        state["momentum_buffer"].zero_()


def moments(training: Training) -> None:
    for state in training.steps.state.values():
        state["exp_avg"].zero_()


def batchnorm(training: Training) -> None:
    norm: Any = training.model[1]
    norm.reset_running_stats()


def average(training: Training) -> None:
    for own, trained in zip(training.average.module.parameters(), training.model.parameters(), strict=True):
        own.copy_(trained)


def queue(training: Training) -> None:
    training.queue.zero_()


def queue_from_the_global_generator(training: Training) -> None:
    training.queue.copy_(torch.randn_like(training.queue))


def weights(training: Training) -> None:
    with torch.no_grad():
        next(training.model.parameters()).mul_(1.001)


def document(primitive: str, component: str | None = None, **members: Any) -> dict[str, Any]:
    return {"primitive": primitive, **({} if component is None else {"component": component}), **members}


RESET = Training(document("reset", "optimizer.momentum"), momentum)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module")
def reset(folder: Path) -> Path:
    return RESET.run(folder / "reset")


@pytest.fixture(scope="module")
def extra(folder: Path) -> Path:
    return Training(RESET.document, momentum, extra=6).run(folder / "extra")


@pytest.fixture(scope="module")
def control(folder: Path) -> Path:
    return Training().run(folder / "control")


def broken(certificate: Certificate) -> dict[str, tuple[str, int | None, str | None]]:
    return {c.clause: (c.state, c.step, c.name) for c in certificate.certificate if c.state != "holds"}


def test_a_reset_of_momentum_makes_a_pair(reset: Path, control: Path) -> None:
    certificate = certified(reset, control)
    assert (broken(certificate), certificate.label) == ({}, "paired")


@pytest.mark.parametrize(
    "arm",
    [
        Training(document("zero", "optimizer.momentum"), momentum),
        Training(document("reset", "model.batchnorm"), batchnorm),
        Training(document("reset", "teacher.params"), average),
        Training(document("flush", "bank.queue"), queue),
    ],
    ids=lambda arm: f"{arm.document['primitive']} {arm.document['component']}",
)
def test_an_intervention_makes_a_pair(arm: Training, control: Path, tmp_path: Path) -> None:
    certificate = certified(arm.run(tmp_path / "run"), control)
    assert (broken(certificate), certificate.label) == ({}, "paired")


def test_moments_of_adam(tmp_path: Path) -> None:
    arm = Training(document("reset", "optimizer.exp_avg", stepCounter="keep"), moments, optimizer="adam")
    control = Training(optimizer="adam").run(tmp_path / "control")
    certificate = certified(arm.run(tmp_path / "arm"), control)
    assert (broken(certificate), certificate.label) == ({}, "paired")


@pytest.mark.parametrize(
    ("plan", "windows"),
    [([0, 1, 2, 3, 6, 7, 4, 5, 8, 9], [[0, 2], [2, 4]]), ([0, 1, 2, 3, 7, 4, 6, 5, 8, 9], [[0, 4]])],
    ids=["swap", "permute"],
)
def test_an_order_primitive_makes_a_pair(
    plan: list[int], windows: list[list[int]], control: Path, tmp_path: Path
) -> None:
    said: dict[str, Any] = {"windows": [{"from": first, "to": to} for first, to in windows]}
    kind = document("swap-windows", **said) if len(windows) == 2 else document("permute-window", **said, seed="1")
    certificate = certified(Training(kind, plan=plan).run(tmp_path / "run"), control)
    assert (broken(certificate), certificate.label) == ({}, "paired")


def test_a_placebo_and_a_reset_of_nothing_are_no_ops(control: Path, tmp_path: Path) -> None:
    assert certified(Training(document("placebo")).run(tmp_path / "placebo"), control).label == "no-op"
    plain = [
        Training(kind, optimizer="plain").run(tmp_path / str(number))
        for number, kind in enumerate([document("reset", "optimizer.momentum"), document("carry")])
    ]
    assert certified(*plain).label == "no-op"


# Sabotage, each broken for its reason -------------------------------------------------------------------------------


def test_an_extra_draw_breaks_the_streams(extra: Path, control: Path) -> None:
    assert broken(certified(extra, control)) == {"streams": ("fails", 6, "rng.torch.cpu")}


def test_an_extra_draw_before_the_branch_breaks_the_prefix(control: Path, tmp_path: Path) -> None:
    arm = Training(RESET.document, momentum, extra=2)
    assert broken(certified(arm.run(tmp_path / "run"), control))["prefix"] == ("fails", 2, "inputs")


def test_another_batch_in_one_arm_breaks_the_order(control: Path, tmp_path: Path) -> None:
    arm = Training(RESET.document, momentum, plan=[0, 1, 2, 3, 4, 5, 7, 6, 8, 9])
    assert broken(certified(arm.run(tmp_path / "run"), control)) == {"order": ("fails", 6, "order.index")}


def test_a_second_component_breaks_the_intervention(control: Path, tmp_path: Path) -> None:
    def both(training: Training) -> None:
        momentum(training)
        batchnorm(training)

    arm = Training(RESET.document, both)
    found = broken(certified(arm.run(tmp_path / "run"), control))
    assert found == {"intervention": ("fails", AT, "model.batchnorm")}


def test_other_weights_at_the_branch_break_the_prefix(control: Path, tmp_path: Path) -> None:
    arm = Training(RESET.document, momentum, unsaid=weights)
    assert broken(certified(arm.run(tmp_path / "run"), control)) == {"prefix": ("fails", AT, "model.params")}


def test_a_dropped_step_breaks_the_order(control: Path, tmp_path: Path) -> None:
    arm = Training(RESET.document, momentum, dropped=6)
    certificate = certified(arm.run(tmp_path / "run"), control)
    assert broken(certificate)["order"][:2] == ("fails", 6)
    assert certificate.label == "unpaired"


def test_a_queue_from_the_global_generator_breaks_intervention_and_streams(control: Path, tmp_path: Path) -> None:
    arm = Training(document("flush", "bank.queue"), queue_from_the_global_generator)
    assert broken(certified(arm.run(tmp_path / "run"), control)) == {
        "intervention": ("fails", AT, "rng.torch.cpu"),
        "streams": ("fails", AT, "rng.torch.cpu"),
    }
