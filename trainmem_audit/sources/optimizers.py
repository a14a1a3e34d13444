"""Optimizers: every state slot by name, and the hyper-parameters of the groups (S1).

Wrappers too: an optimizer that holds another one (SAM, Lookahead) gives its own slots and counters, and nothing that it
shares with the one inside. What a wrapper keeps in lists of its own class is not looked for here.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.privacy import public_text
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.restoring import put_attributes, put_tensors, put_value, write_tensor
from trainmem_audit.sources.slots import ABSENT, fresh_value, is_known, rate_factor, why_missing

__all__ = ["OptimizerSource", "learning_rates", "nested"]

_SLOT_NAMES = {"momentum_buffer": "momentum"}
_FACTOR = "factor of the next update under a constant gradient"
_HYPER = Labels("S1", "macro", "checkpointed")
_LOOSE = Labels("S3", "macro", "in-process")
_ATTRIBUTES = Labels("S1", "macro", "in-process")
_RUN_LONG = frozenset(
    {"ax", "eta", "func_evals", "max_exp_avg_sq", "max_exp_inf", "mu", "mu_product", "n_iter", "step", "step_size"}
) | {"sum"}
"""What forgets nothing: counters, sums, maxima, products."""
_ONE_STEP = frozenset({"prev", "prev_flat_grad", "prev_loss", "old_p", "e_w"})
_HISTORY = frozenset({"old_dirs", "old_stps", "ro", "al"})
_SLOW = frozenset({"slow_params", "slow_param", "slow_buffer", "slow_weights", "cached_params", "slow_momentum"})
_OF_TORCH = frozenset(
    {
        "_warned_capturable_if_run_uncaptured",
        "_step_supports_amp_scaling",
        "_need_device_dtype_check_for_fused",
        "_opt_called",
        "_step_count",
    }
)


class OptimizerSource:
    """One optimizer: `NAME.<slot>` for each slot, `NAME.hyper`, and `NAME.params` for tensors that no module owns.

    Parameters
    ----------
    param_name:
        Gives the name of a parameter from its id, or `None` when no module owns it.
    inner:
        The optimizer inside this one, whose state and groups are reported there.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        param_name: Callable[[int], str | None],
        inner: torch.optim.Optimizer | None = None,
    ) -> None:
        self.name = name
        self._inner = None if inner is None else weakref.ref(inner)
        self._foreign = not type(optimizer).__module__.startswith("torch.")
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
        inner = None if self._inner is None else self._inner()
        slots: dict[str, list[tuple[str, torch.Tensor]]] = {}
        plain: dict[str, dict[str, Any]] = {}
        loose: list[tuple[str, torch.Tensor]] = []
        shared = inner is not None and optimizer.state is inner.state
        for name, state in () if shared else self._states(optimizer, loose):
            for slot, value in state.items():
                tensors = slots.setdefault(slot, [])
                if isinstance(value, torch.Tensor):
                    tensors.append((name, value))
                else:
                    _flatten(name, value, tensors, plain.setdefault(slot, {}))
        for slot in slots:
            label = f"{self.name}.{_SLOT_NAMES.get(slot) or public_text(str(slot))}"
            labels = _labels(slot, optimizer)
            if slots[slot]:
                yield ComponentState(label, labels, slots[slot])
            if plain.get(slot):
                yield ComponentState(label + ".values" if slots[slot] else label, labels, values=plain[slot])
        if self._foreign and (attributes := _attributes(optimizer)):
            yield ComponentState(f"{self.name}.attributes", _ATTRIBUTES, values=attributes)
        if inner is not None and optimizer.param_groups is inner.param_groups:
            return
        if loose and inner is None:
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
        inner = None if self._inner is None else self._inner()
        if optimizer is None or not any(name.startswith(f"{self.name}.") for name in saved):
            return
        if (hyper := saved.get(f"{self.name}.hyper")) is not None:
            yield from self._restore_hyper(optimizer, hyper.values)
        if (attributes := saved.get(f"{self.name}.attributes")) is not None:
            yield from put_attributes(f"{self.name}.attributes", vars(optimizer), attributes.values)
        if inner is not None and optimizer.state is inner.state:
            return
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
        if inner is None:
            yield from put_tensors(ComponentState(f"{self.name}.params", _LOOSE, loose), saved)

    def why_absent(self, slot: str) -> str | None:
        """Return why `slot` (empty: all of them) is not there now; `None` if an optimizer of this class has no such."""
        optimizer = self._optimizer()
        names = {label: name for name, label in _SLOT_NAMES.items()}
        return None if optimizer is None else why_missing(optimizer, names.get(slot, slot))

    def reset(self, slots: Iterable[str], counter: str | None) -> dict[str, str]:
        """Put slots to what the optimizer begins with; return what that means for the next step, in words.

        Parameters
        ----------
        slots:
            Slots by their names in components; all of them for none.
        counter:
            `keep` or `reset` the step counter, which has to be said where there is one.

        Raises
        ------
        UsageError
            If it is not said, or the fresh value is not known.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            return {}
        names = {label: name for name, label in _SLOT_NAMES.items()}
        held = {slot for state in optimizer.state.values() for slot in state}
        wanted = {names.get(slot, slot) for slot in slots} or held - {"step"}
        self._check_reset(optimizer, wanted, held, counter)
        if "step" in held and counter == "reset":
            wanted |= {"step"}
        steps = _counted(optimizer)
        for group in optimizer.param_groups:
            for param in group["params"]:
                _refresh(optimizer, optimizer.state.get(param), wanted, group)
                if not optimizer.state.get(param):
                    optimizer.state.pop(param, None)
        factor = rate_factor(optimizer, wanted, "step" in wanted, steps)
        return {} if factor is None else {_FACTOR: f"{factor:.6g}"}

    def _check_reset(
        self, optimizer: torch.optim.Optimizer, wanted: set[str], held: set[str], said: str | None
    ) -> None:
        where = f"{self.name}.{'+'.join(sorted(wanted))}"
        if not is_known(optimizer):
            raise UsageError(
                "what this optimizer begins with is not known",
                where=where[:200],
                expected="an optimizer of torch.optim",
                got=type(optimizer).__qualname__,
                remedy="`zero` says what is meant for any optimizer",
            )
        if isinstance(optimizer, torch.optim.LBFGS) and wanted != held:
            remedy = f"reset:{self.name} resets all of it"
            raise UsageError("a part of LBFGS's history is of no use alone", where=where[:200], remedy=remedy)
        if "step" in held and wanted != {"step"} and said is None:
            raise UsageError(
                "the step counter has to be decided on: bias correction depends on it",
                where=where[:200],
                expected="keep or reset",
                remedy=f"reset:{self.name}.{min(wanted)}:keep, or :reset",
            )

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
            if component.startswith(prefix) and label not in ("hyper", "params", "attributes"):
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


def _refresh(
    optimizer: torch.optim.Optimizer, state: dict[str, Any] | None, wanted: set[str], group: dict[str, Any]
) -> None:
    """Put slots of one parameter to their fresh values, in place where they stay."""
    if state is None:
        return
    whole = isinstance(optimizer, torch.optim.LBFGS)
    for slot in wanted & state.keys():
        live = state[slot]
        value = ABSENT if whole else fresh_value(optimizer, slot, group, live)
        if value is ABSENT:
            del state[slot]
        elif isinstance(live, torch.Tensor) and isinstance(value, torch.Tensor):
            write_tensor(live, value)
        else:
            state[slot] = value


def _counted(optimizer: torch.optim.Optimizer) -> int:
    """Return the largest step counter."""
    counters = (state.get("step") for state in optimizer.state.values())
    return max((int(counter) for counter in counters if counter is not None), default=0)


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


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the plain attributes that an optimizer has beside those of torch's: counters, for the most part."""
    return {
        public_text(key): plain_value(value)
        for key, value in vars(optimizer).items()
        if key not in _OF_TORCH and isinstance(value, bool | int | float)
    }


def _labels(slot: str, optimizer: torch.optim.Optimizer) -> Labels:
    """Return the labels of a slot; the lifetime is 1/(1-β) steps for an exponential average (STANDARD § 1)."""
    return Labels("S1", "macro" if slot in _RUN_LONG else "micro", "checkpointed", _lifetime(slot, optimizer))


def _lifetime(slot: str, optimizer: torch.optim.Optimizer) -> float | None:
    group: dict[str, Any] = optimizer.param_groups[0]
    if slot in _ONE_STEP:
        return 1.0
    if slot in _HISTORY:
        return _number(group.get("history_size"))
    if slot in _SLOW:
        return _slow_lifetime(optimizer)
    betas = group.get("betas")
    beta = {
        "momentum_buffer": group.get("momentum"),
        "exp_avg": betas[0] if betas else None,
        "exp_avg_sq": betas[1] if betas else None,
        "exp_inf": betas[1] if betas else None,
        "square_avg": group.get("alpha", group.get("rho")),
        "grad_avg": group.get("alpha"),
        "acc_delta": group.get("rho"),
    }.get(slot)
    known = _number(beta)
    return None if known is None or not 0 <= known < 1 else 1 / (1 - known)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _slow_lifetime(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the lifetime of slow weights, which go by the share α towards the fast ones every k steps: k/α."""
    found: dict[str, Any] = {**optimizer.param_groups[0], **vars(optimizer)}
    alpha, every = (
        next((known for name in names if (known := _number(found.get(name))) is not None), None)
        for names in (("lookahead_alpha", "la_alpha", "alpha"), ("lookahead_k", "la_steps", "k"))
    )
    return every / alpha if alpha and every and 0 < alpha <= 1 else None


def nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return `optimizer` with those that it holds and those that hold it, from the inside out."""
    held = [
        (item, inside)
        for item in gc.get_objects()
        if issubclass(type(item), torch.optim.Optimizer)
        for inside in vars(item).values()
        if issubclass(type(inside), torch.optim.Optimizer) and inside is not item
    ]
    chain = [optimizer]
    for _ in held:
        chain = [inside for item, inside in held if item is chain[0] and inside not in chain][:1] + chain
        chain += [item for item, inside in held if inside is chain[-1] and item not in chain][:1]
    return chain


def learning_rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """Return the learning rate of each parameter group."""
    return tuple(float(group["lr"]) for group in optimizer.param_groups if "lr" in group)
