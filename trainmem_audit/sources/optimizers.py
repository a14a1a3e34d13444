"""Optimizers: every state slot by name, and the hyper-parameters of the groups (S1)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from trainmem_audit.privacy import public_text
from trainmem_audit.sources.base import ComponentState, Labels, plain_value

__all__ = ["OptimizerSource", "learning_rates"]

_SLOT_NAMES = {"momentum_buffer": "momentum"}
_HYPER = Labels("S1", "macro", "checkpointed")


class OptimizerSource:
    """One optimizer: `NAME.<slot>` for each slot, `NAME.hyper`, and `NAME.params` for tensors that no module owns.

    Parameters
    ----------
    param_name:
        Gives the name of a parameter from its id, or `None` when no module owns it.
    """

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, param_name: Callable[[int], str | None]) -> None:
        self.name = name
        self._optimizer = weakref.ref(optimizer)
        self._param_name = param_name
        self._hyper_raw: list[dict[str, Any]] | None = None
        self._hyper: Any = None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, or `None` when the script has dropped it."""
        return self._optimizer()

    def components(self) -> Iterator[ComponentState]:
        """Give slots and hyper-parameters as they are now."""
        optimizer = self._optimizer()
        if optimizer is None:
            return
        slots: dict[str, list[tuple[str, torch.Tensor]]] = {}
        plain: dict[str, dict[str, Any]] = {}
        loose: list[tuple[str, torch.Tensor]] = []
        for name, state in self._states(optimizer, loose):
            for slot, value in state.items():
                tensors = slots.setdefault(slot, [])
                if isinstance(value, torch.Tensor):
                    tensors.append((name, value))
                else:
                    _flatten(name, value, tensors, plain.setdefault(slot, {}))
        for slot in slots:
            label = f"{self.name}.{_SLOT_NAMES.get(slot) or public_text(str(slot))}"
            labels = Labels("S1", "micro", "checkpointed", _lifetime(slot, optimizer.param_groups[0]))
            if slots[slot]:
                yield ComponentState(label, labels, slots[slot])
            if plain.get(slot):
                yield ComponentState(label + ".values" if slots[slot] else label, labels, values=plain[slot])
        if loose:
            yield ComponentState(f"{self.name}.params", Labels("S3", "macro", "in-process"), loose)
        yield ComponentState(f"{self.name}.hyper", _HYPER, values=self._hyper_values(optimizer))

    def _states(
        self, optimizer: torch.optim.Optimizer, loose: list[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        state = optimizer.state
        for g, group in enumerate(optimizer.param_groups):
            for k, param in enumerate(group["params"]):
                name = self._param_name(id(param))
                if name is None:
                    name = f"{g}.{k}"
                    loose.append((name, param))
                yield name, state.get(param) or {}

    def _hyper_values(self, optimizer: torch.optim.Optimizer) -> Any:
        raw = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if raw != self._hyper_raw:
            tensors = any(isinstance(value, torch.Tensor) for group in raw for value in group.values())
            self._hyper_raw = None if tensors else raw  # a tensor is changed in place, and would equal itself
            groups = [
                {"params": len(group["params"]), **plain_value(values)}
                for group, values in zip(optimizer.param_groups, raw, strict=True)
            ]
            self._hyper = {"class": type(optimizer).__qualname__, "groups": groups}
        return self._hyper


def _flatten(name: str, value: Any, tensors: list[tuple[str, torch.Tensor]], values: dict[str, Any]) -> None:
    """Sort one slot of one parameter into tensors and plain values; LBFGS keeps lists of tensors."""
    if isinstance(value, torch.Tensor):
        tensors.append((name, value))
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            _flatten(f"{name}.{index}", member, tensors, values)
    elif isinstance(value, dict):
        for key, member in value.items():
            _flatten(f"{name}.{public_text(str(key))}", member, tensors, values)
    elif value is not None:
        values[name] = plain_value(value)


def _lifetime(slot: str, group: dict[str, Any]) -> float | None:
    """Return 1/(1-β) in steps, for the slots that are exponential averages (STANDARD § 1)."""
    betas = group.get("betas")
    beta = {
        "momentum_buffer": group.get("momentum"),
        "exp_avg": betas[0] if betas else None,
        "exp_avg_sq": betas[1] if betas else None,
        "exp_inf": betas[1] if betas else None,
        "square_avg": group.get("alpha", group.get("rho")),
        "acc_delta": group.get("rho"),
    }.get(slot)
    if not isinstance(beta, int | float) or isinstance(beta, bool):
        return None
    return 1 / (1 - beta) if 0 <= beta < 1 else None


def learning_rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """Return the learning rate of each parameter group."""
    return tuple(float(group["lr"]) for group in optimizer.param_groups if "lr" in group)
