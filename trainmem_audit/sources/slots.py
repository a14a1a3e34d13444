"""What each optimizer of torch begins with: its state slots, their fresh values, and what a reset does to a step.

Fresh is what the optimizer itself makes when it finds nothing: for SGD's momentum that is *absent* (with dampening, or
gradients of -0.0, zeros would go another way), for Adam zeros. Optimizers of other classes make what they like, so
nothing is known of them here. Not here: finding slots (`sources.optimizers`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import optim

__all__ = ["ABSENT", "fresh_value", "is_known", "known_slots", "rate_factor", "why_missing"]

ABSENT: Final = object()
"""The fresh value of a slot that is not there."""
_COUNTED: Final = ("step",)
_SLOTS: Final[tuple[tuple[type[optim.Optimizer], tuple[str, ...]], ...]] = (
    (optim.SGD, ("momentum_buffer",)),
    (optim.NAdam, ("exp_avg", "exp_avg_sq", "mu_product", *_COUNTED)),
    (optim.Adam, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", *_COUNTED)),  # and AdamW, its subclass
    (optim.RAdam, ("exp_avg", "exp_avg_sq", *_COUNTED)),
    (optim.SparseAdam, ("exp_avg", "exp_avg_sq", *_COUNTED)),
    (optim.Adamax, ("exp_avg", "exp_inf", *_COUNTED)),
    (optim.Adagrad, ("sum", *_COUNTED)),
    (optim.Adadelta, ("square_avg", "acc_delta", *_COUNTED)),
    (optim.Adafactor, ("row_var", "col_var", "variance", *_COUNTED)),
    (optim.RMSprop, ("square_avg", "momentum_buffer", "grad_avg", *_COUNTED)),
    (optim.Rprop, ("prev", "step_size", *_COUNTED)),
    (optim.ASGD, ("ax", "eta", "mu", *_COUNTED)),
    (
        optim.LBFGS,
        (
            *("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss"),
            "al",
        ),
    ),
)
_SWITCHES: Final = {"momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad", "grad_avg": "centered"}
"""The hyper-parameter without which a slot is not made."""


def is_known(optimizer: optim.Optimizer) -> bool:
    """Tell whether the optimizer is of a class of torch's own."""
    return any(type(optimizer) is kind for kind, _ in _SLOTS) or type(optimizer) is optim.AdamW


def known_slots(optimizer: optim.Optimizer) -> tuple[str, ...]:
    """Return the slots that an optimizer of this class, or of one derived from it, can have."""
    return next((slots for kind, slots in _SLOTS if isinstance(optimizer, kind)), ())


def why_missing(optimizer: optim.Optimizer, slot: str) -> str | None:
    """Return why a slot that this class can have is not there now; `None` for a slot that it cannot have.

    An empty name stands for all slots.
    """
    slots = known_slots(optimizer)
    kind = type(optimizer).__name__
    if slot == "":
        slot = slots[0] if len(slots) == 1 else ""
    if slot and slot not in slots:
        return None
    switch = _SWITCHES.get(slot)
    if switch is not None and not any(group.get(switch) for group in optimizer.param_groups):
        return f"not applicable: {kind} without {switch}"
    return f"{kind} has not made it yet" if slots else None


def fresh_value(optimizer: optim.Optimizer, slot: str, group: dict[str, Any], live: Any) -> Any:
    """Return the value that the optimizer would begin with, in the form of `live`; `ABSENT` where it has none."""
    if isinstance(optimizer, optim.SGD):
        return ABSENT
    number = _fresh_number(optimizer, slot, group)
    return torch.full_like(live, number) if isinstance(live, torch.Tensor) else type(live)(number)


def _fresh_number(optimizer: optim.Optimizer, slot: str, group: dict[str, Any]) -> float:
    if slot in ("mu_product", "mu"):
        return 1.0
    if slot == "eta" or (slot == "step_size" and isinstance(optimizer, optim.Rprop)):
        return float(group["lr"])
    if slot == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0


def rate_factor(optimizer: optim.Optimizer, reset: set[str], counter: bool, steps: int) -> float | None:
    """Return the factor by which a reset changes the size of the next update, under a gradient that never changed.

    Adam's moments after t steps of a constant gradient g are (1 - β1^t)·g and (1 - β2^t)·g². Resetting the second one
    alone at t = 200 makes the next step √((1 - β2^201)/(1 - β2)) = 13.5 times as long.

    Parameters
    ----------
    reset:
        The slots that are reset.
    counter:
        Whether the step counter is reset too.
    steps:
        How many steps it had counted.
    """
    group: dict[str, Any] = optimizer.param_groups[0]
    if isinstance(optimizer, optim.SGD):
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        steady = 1.0 if momentum == 0 else (1 - dampening) / (1 - momentum) if momentum < 1 else math.inf
        return 1 / steady if "momentum_buffer" in reset and steady > 0 else None
    if not isinstance(optimizer, optim.Adam) or not reset & {"exp_avg", "exp_avg_sq", "step"}:
        return None
    beta1, beta2 = (float(beta) for beta in group["betas"])
    count = 1 if counter else steps + 1

    def corrected(beta: float, is_reset: bool) -> float:
        moment = (1 - beta) if is_reset else (1 - beta ** (steps + 1))
        return moment / (1 - beta**count) if beta else 1.0

    second = corrected(beta2, "exp_avg_sq" in reset)
    return corrected(beta1, "exp_avg" in reset) / math.sqrt(second) if second > 0 else None
