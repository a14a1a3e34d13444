"""What a program registers by hand (`Recorder.track`): tensors, arrays, containers, modules, objects that hold these.

It is read as `sources.banks` reads what it finds. Not here: finding anything.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.sources.banks import content_of, members_of, numbers_of
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.entries import EntryTable
from trainmem_audit.sources.restoring import put_attributes, put_tensors

__all__ = ["TrackedSource"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_LIFETIMES = {"S1": "meso", "S2": "meso", "S3": "macro", "S4": "meso", "S5": "meso"}
_PLAIN = (str, bytes, int, float, bool, type(None))


class TrackedSource:
    """One registered memory: `bank.NAME`, and `bank.NAME.numbers` for the numbers of an object.

    Parameters
    ----------
    memory:
        The memory itself, or a function without arguments that returns it as it is now.
    source:
        Its class, S1 to S5.

    Raises
    ------
    UsageError
        If the name or the class is none, or the memory cannot be digested.
    """

    def __init__(self, name: str, memory: Any, source: str = "S4") -> None:
        if not _NAME.fullmatch(name):
            raise UsageError("not a name for memory", where=name[:80], expected="letters, digits, `_`, `-` and dots")
        if source not in _LIFETIMES:
            raise UsageError(
                "no such class of memory", where=name, expected=", ".join(_LIFETIMES), got=str(source)[:20]
            )
        self.name = f"bank.{name}"
        self._labels = Labels(source, _LIFETIMES[source], "in-process")
        self._live: Callable[[], Any] = memory if _is_function(memory) else partial(_itself, memory)
        self._tables: dict[str, EntryTable] = {}
        if not any(True for _ in self.components()) and not _may_fill(self._live()):
            raise UsageError(
                "memory that cannot be digested",
                where=name,
                expected="a tensor, an array, a container of tensors or of records, a module, or an object with these",
                got=type(self._live()).__qualname__,
                remedy="track the tensors, arrays or containers that it is made of, or a function that returns them",
            )

    def components(self) -> Iterator[ComponentState]:
        """Give tensors and numbers as they are now."""
        live = self._live()
        tensors = [
            (f"{prefix}.{name}" if prefix and name != "value" else prefix or name, tensor)
            for prefix, part in _parts(live)
            for name, tensor in content_of(part, self._table(prefix))
        ]
        if tensors:
            yield ComponentState(self.name, self._labels, tensors)
        if not isinstance(live, torch.nn.Module) and (numbers := numbers_of(live)):
            yield ComponentState(f"{self.name}.numbers", self._labels, values=plain_value(numbers))

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write tensors and arrays in place, fill containers of records anew, set numbers."""
        live, kept = self._live(), saved.get(self.name)
        then = (kept.tensors if kept is not None else None) or {}
        for prefix, part in _parts(live) if then else ():
            if isinstance(part, (deque, list)) and EntryTable.takes(part):
                head = f"{prefix}." if prefix else ""
                own = {name.removeprefix(head): value for name, value in then.items() if name.startswith(head)}
                yield from (f"{self.name}: {prefix} {why}" for why in self._table(prefix).restore(part, own))
        for component in self.components():
            if component.tensors is not None:
                yield from put_tensors(component, saved)
        numbers = saved.get(f"{self.name}.numbers")
        if numbers is not None and isinstance(numbers.values, dict):
            yield from put_attributes(self.name, members_of(live), numbers.values)

    def _table(self, prefix: str) -> EntryTable:
        return self._tables.setdefault(prefix, EntryTable())


def _itself(memory: Any) -> Any:
    return memory


def _is_function(memory: Any) -> bool:
    return callable(memory) and not isinstance(memory, (torch.Tensor, torch.nn.Module)) and not members_of(memory)


def _parts(live: Any) -> Iterator[tuple[str, Any]]:
    """Give what memory is made of, by name: itself, or what an object or module holds."""
    if isinstance(live, torch.nn.Module):
        yield from ((name, parameter.detach()) for name, parameter in live.named_parameters())
        yield from live.named_buffers()
        for prefix, module in live.named_modules():
            held = ((key, value) for key, value in members_of(module).items() if not key.startswith("_"))
            yield from ((f"{prefix}.{key}" if prefix else key, value) for key, value in held)
    elif isinstance(live, (torch.Tensor, list, dict, deque)) or not members_of(live):
        yield "", live
    else:
        yield from members_of(live).items()


def _may_fill(live: Any) -> bool:
    """Tell whether it is, or holds, a container that is empty so far."""
    return any(isinstance(part, (list, dict, deque)) and not part for _, part in _parts(live))
