"""Puts what was kept of a component back into the live objects: tensors in place, values with their types there.

Nothing is replaced where something is there, so strides, offsets and shared storage survive; no random number is drawn,
and nothing of the script's (`load_state_dict`) is called. What a source cannot put back, it says. Not here: finding and
reading components (the sources), files (`trainmem_audit.snapshots`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.errors import FormatError
from trainmem_audit.snapshots import SnapshotFile
from trainmem_audit.sources.base import ComponentState, Saved, Source, plain_value

__all__ = [
    "copy_state",
    "put_attributes",
    "put_tensors",
    "put_value",
    "read_tensors",
    "restore_state",
    "write_tensor",
]

_FLOAT = re.compile(r"-?(0x[0-9a-f.]+p[+-][0-9]+|inf)|nan")


def copy_state(sources: Iterable[Source]) -> dict[str, Saved]:
    """Return a copy of every component, by name; tensors keep dtype, device and memory format."""
    found = {}
    for source in sources:
        for component in source.components():
            if component.tensors is None:
                found[component.name] = Saved(values=component.values)
            else:
                found[component.name] = Saved({name: tensor.detach().clone() for name, tensor in component.tensors})
    return found


def restore_state(sources: Iterable[Source], saved: Mapping[str, Saved]) -> list[str]:
    """Put every component back; return what could not be, and why (nothing, if all is as it was).

    Components that `saved` does not name are left as they are, but for the slots of an optimizer and the tensors of a
    scaler: those that were not there then are taken away, so that the next step makes them anew.
    """
    problems: list[str] = []
    with torch.no_grad(), torch._C.DisableTorchFunction():
        known = list(sources)
        for source in known:
            problems += source.restore(saved)
        there = {component.name for source in known for component in source.components()}
    return [*problems, *(f"{name}: not there any more" for name in sorted(saved.keys() - there))]


def write_tensor(target: torch.Tensor, value: torch.Tensor) -> str | None:
    """Write `value` into the memory of `target`; return why that cannot be done."""
    if target.shape != value.shape or target.dtype != value.dtype:
        return f"is {target.dtype} {list(target.shape)} now, and was {value.dtype} {list(value.shape)}"
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        try:
            target.detach().copy_(value)
        except RuntimeError:  # several of its elements share one place in memory
            _write_places(target.detach(), value)
    return None


def _write_places(target: torch.Tensor, value: torch.Tensor) -> None:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(target.shape, target.stride(), strict=True))
    memory = torch.as_strided(target, (extent,), (1,), target.storage_offset())
    places = torch.as_strided(torch.arange(extent, device=target.device), target.shape, target.stride())
    memory[places.reshape(-1)] = value.to(target.device).reshape(-1)


def put_tensors(component: ComponentState, saved: Mapping[str, Saved]) -> Iterator[str]:
    """Write the tensors of one component, which must have the same names; give what could not be written."""
    kept = saved.get(component.name)
    if kept is None:
        return
    now, then = dict(component.tensors or ()), kept.tensors or {}
    for name in sorted(now.keys() ^ then.keys()):
        yield f"{component.name}: {name} {'was not there then' if name in now else 'is not there any more'}"
    for name in now.keys() & then.keys():
        if why := write_tensor(now[name], then[name]):
            yield f"{component.name}: {name} {why}"


def put_attributes(name: str, owner: dict[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Set members of a dictionary (an object's attributes, a parameter group) to plain values, where they differ."""
    for key, plain in values.items():
        live = owner.get(key)
        if key in owner and plain_value(live) == plain:
            continue
        value, why = put_value(live, plain)
        if why:
            yield f"{name}: {key} {why}"
        elif value is not live:
            owner[key] = value


def put_value(live: Any, plain: Any) -> tuple[Any, str]:
    """Return the value that `plain` stands for, with the type that it has in `live`; and why there is none.

    A tensor is filled in place. Without a live value to go by, text that is a float in C99 form becomes one.
    """
    if isinstance(live, torch.Tensor) and live.numel() == 1 and not isinstance(plain, (list, dict)):
        number, why = put_value(0.0 if live.is_floating_point() else 0, plain)
        if not why:
            live.fill_(number)
        return live, why
    if isinstance(plain, list):
        return _listed(live, plain)
    if isinstance(plain, dict):
        return _mapped(live, plain)
    if plain is None or isinstance(plain, bool):
        return plain, ""
    if isinstance(plain, int):
        return plain, ""
    if isinstance(live, bool) or not isinstance(plain, str):
        return None, f"was {plain!r}, and is no such value now"
    if isinstance(live, int) and re.fullmatch(r"-?[0-9]+", plain):
        return int(plain), ""
    if not isinstance(live, str) and _FLOAT.fullmatch(plain):
        return parse_float_text(plain), ""
    return plain, ""


def _listed(live: Any, plain: list[Any]) -> tuple[Any, str]:
    patterns = list(live) if isinstance(live, (list, tuple)) else []
    if len(plain_value(patterns)) != len(patterns):
        return None, "holds what has no plain form"
    made = [put_value(patterns[at] if at < len(patterns) else None, item) for at, item in enumerate(plain)]
    if why := next((why for _, why in made if why), ""):
        return None, why
    values = [value for value, _ in made]
    if isinstance(live, tuple):
        return (type(live)(*values) if hasattr(live, "_fields") else tuple(values)), ""
    if isinstance(live, (set, frozenset)):
        return type(live)(values), ""
    return values, ""  # a new list: the live one may be another object's too


def _mapped(live: Any, plain: dict[str, Any]) -> tuple[Any, str]:
    if not isinstance(live, dict):
        made = {key: put_value(None, item) for key, item in plain.items()}
        return {key: value for key, (value, _) in made.items()}, next((why for _, why in made.values() if why), "")
    keys = {str(key): key for key in live}
    for key, item in plain.items():
        own = keys.get(key, key)
        if own in live and plain_value(live[own]) == item:
            continue
        live[own], why = put_value(live.get(own), item)
        if why:
            return None, why
    for key, own in keys.items():
        if key not in plain and plain_value({own: live[own]}):
            del live[own]
    return live, ""


def read_tensors(kept: SnapshotFile, component: str, forms: Iterable[Sequence[Any]]) -> dict[str, torch.Tensor]:
    """Return tensors of a component from a snapshot, on the CPU; `forms` are their names, dtypes and shapes.

    Raises
    ------
    FormatError
        If a tensor is missing, or has another size.
    """
    found = {}
    for name, dtype, shape in forms:
        data = kept.tensor(component, name)
        kind = getattr(torch, dtype, None)
        if data is None or not isinstance(kind, torch.dtype) or len(data) != math.prod(shape) * kind.itemsize:
            raise FormatError("a snapshot does not hold a tensor of the step", where=f"{component}: {name}"[:200])
        flat = torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)
        found[name] = flat.reshape(tuple(shape))
    return found
