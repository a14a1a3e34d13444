"""Optimizers: every state slot by name, and the hyper-parameters of the groups (S1)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from trainmem_audit.privacy import public_text
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.restoring import put_attributes, put_tensors, put_value, write_tensor

__all__ = ["OptimizerSource", "learning_rates"]

_SLOT_NAMES = {"momentum_buffer": "momentum"}
_HYPER = Labels("S1", "macro", "checkpointed")
_LOOSE = Labels("S3", "macro", "in-process")


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
            yield ComponentState(f"{self.name}.params", _LOOSE, loose)
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

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write slots in place; make those that are not there as the optimizer would, and take others away."""
        optimizer = self._optimizer()
        hyper = saved.get(f"{self.name}.hyper")
        if optimizer is None or hyper is None:
            return
        yield from self._restore_hyper(optimizer, hyper.values)
        slots = self._saved_slots(saved)
        loose: list[tuple[str, torch.Tensor]] = []
        params = (param for group in optimizer.param_groups for param in group["params"])
        groups = (group for group in optimizer.param_groups for _ in group["params"])
        for (name, _), param, group in zip(self._states(optimizer, loose), params, groups, strict=True):
            kept = {slot: found for slot, members in slots.items() if (found := _of_parameter(name, members))}
            if not kept:
                optimizer.state.pop(param, None)
                continue
            state = optimizer.state[param]
            for slot in [slot for slot in state if slot not in kept]:
                del state[slot]
            for slot, members in kept.items():
                state[slot], problems = _restored_slot(state.get(slot), slot, members, param, group)
                yield from (f"{self.name}.{slot}: {name} {why}" for why in problems)
        yield from put_tensors(ComponentState(f"{self.name}.params", _LOOSE, loose), saved)

    def _restore_hyper(self, optimizer: torch.optim.Optimizer, values: Any) -> Iterator[str]:
        name = f"{self.name}.hyper"
        groups = values["groups"]
        if len(groups) != len(optimizer.param_groups):
            yield f"{name}: {len(optimizer.param_groups)} groups now, and {len(groups)} then"
            return
        for number, (group, kept) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
            if kept["params"] != len(group["params"]):
                yield f"{name}: group {number} has {len(group['params'])} parameters now, and {kept['params']} then"
            yield from put_attributes(name, group, {key: value for key, value in kept.items() if key != "params"})
        self._hyper_raw = None

    def _saved_slots(self, saved: Mapping[str, Saved]) -> dict[str, dict[str, Any]]:
        """Return what was kept by slot: tensors and plain values by parameter, list index or key."""
        slots: dict[str, dict[str, Any]] = {}
        prefix = f"{self.name}."
        names = {label: slot for slot, label in _SLOT_NAMES.items()}
        for component, kept in saved.items():
            label = component.removeprefix(prefix).removesuffix(".values")
            if component.startswith(prefix) and label not in ("hyper", "params"):
                members = kept.tensors if kept.tensors is not None else kept.values
                slots.setdefault(names.get(label, label), {}).update(members)
        return slots

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


def _of_parameter(name: str, members: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return what was kept for one parameter, by the path below its slot (`()` for the slot itself)."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in members.items():
        if key == name:
            found[()] = value
        elif key.startswith(f"{name}."):
            found[tuple(key.removeprefix(f"{name}.").split("."))] = value
    return found


def _restored_slot(
    live: Any, slot: str, kept: dict[tuple[str, ...], Any], param: torch.Tensor, group: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return the slot as it was: what is there is written in place, what is not is made."""
    if () in kept:
        value, why = _restored_member(live, kept[()], param, group)
        return value, [why] if why else []
    problems: list[str] = []
    if all(path[0].isdecimal() for path in kept) and not isinstance(live, dict):
        length = 1 + max(int(path[0]) for path in kept)
        spare = group.get("history_size", 0) if slot == "al" else 0  # LBFGS: one place for each step that it may keep
        members: list[Any] = [None] * max(length, spare)
        for path, value in kept.items():  # made anew: what lies in a list may be held elsewhere too
            members[int(path[0])], why = _restored_member(None, value, param, group)
            problems += [why] if why else []
        return tuple(members) if isinstance(live, tuple) else members, problems
    table = live if isinstance(live, dict) else {}
    for path, value in kept.items():
        key = ".".join(path)
        table[key], why = _restored_member(table.get(key), value, param, group)
        problems += [why] if why else []
    return table, problems


def _restored_member(live: Any, value: Any, param: torch.Tensor, group: dict[str, Any]) -> tuple[Any, str]:
    if not isinstance(value, torch.Tensor):
        return put_value(live, value)
    if not isinstance(live, torch.Tensor) or (live.shape, live.dtype) != (value.shape, value.dtype):
        live = _made(value, param, group)
    return live, write_tensor(live, value) or ""


def _made(value: torch.Tensor, param: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Return an empty tensor for a slot, where the optimizer would have it: beside the parameter, laid out like it.

    Step counters lie on the CPU unless the step is captured or fused.
    """
    if value.shape == param.shape:
        return torch.empty_like(param, dtype=value.dtype, requires_grad=False, memory_format=torch.preserve_format)
    on_host = value.ndim == 0 and not (group.get("capturable") or group.get("fused"))
    return torch.empty(value.shape, dtype=value.dtype, device="cpu" if on_host else param.device)


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
