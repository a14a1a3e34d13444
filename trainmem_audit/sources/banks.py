"""Memory outside of modules and optimizers: queues, memory banks, replay buffers, averages kept by hand (S4, S5).

They are found from the script's own frames and modules (`BankWatch`): what the running loops carry (`liveness`), what
lies below it in attributes, dictionaries and sequences, and what changes there from one look to another. Nothing of
the script's is called: attributes are read from `__dict__` and slots, entries by position. What is found is followed by
its path, looked up anew at every step, so that `queue = torch.cat([queue, k])[-K:]` is seen.

A replay must find the same: looks are taken at fixed steps, and nothing depends on time, addresses or hashes.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch

from trainmem_audit.digests import tensor_digest
from trainmem_audit.privacy import public_name
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.entries import EntryTable, array_tensor, is_array, tensors_below
from trainmem_audit.sources.liveness import bound_anew, carried_names, only_read, outer_reads, own_attributes
from trainmem_audit.sources.restoring import put_attributes, put_tensors

__all__ = ["BankSource", "BankWatch", "content_of", "members_of", "numbers_of"]

MOST_BANKS = 64
_MOST_OBJECTS = 20_000
_MOST_DEPTH = 6
_MOST_BYTES = 2**28
"""How many bytes are digested in one look; larger candidates are compared by pieces of them."""
_MOST_OF_ONE = 2**27
"""How many bytes of one bank are digested at every step; larger ones are not followed, and the record says so."""
_FOREIGN = ("torch", "numpy", "builtins", "trainmem_audit", "logging", "argparse", "threading", "tqdm", "weakref")
_DATA = (torch.utils.data.DataLoader, torch.utils.data.Dataset)
_OPAQUE = (type, ModuleType, FunctionType, torch.optim.Optimizer, torch.Generator, *_DATA)
_TRAINS = (torch.nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader)
_UNSEEN = frozenset({"locals", "vars", "dir", "eval", "exec"})
"""What a function must not mention: reading its variables would then show in the dictionary that these give."""

Path = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class _Root:
    """Where a path begins: a global of a module, or a variable of a function that runs."""

    module: str
    name: str
    code: CodeType | None = None

    def value(self) -> Any:
        """Return what it is now, or `None`."""
        if self.code is None:
            return vars(sys.modules[self.module]).get(self.name) if self.module in sys.modules else None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        return None if frame is None else _variables(frame).get(self.name)


class BankSource:
    """One bank: `NAME`, as the tensors that hold its content.

    Parameters
    ----------
    source:
        Its class: S5 when its tensors have the shapes of the trained parameters, else S4.
    """

    def __init__(self, name: str, root: _Root, path: Path, source: str) -> None:
        self.name = name
        self._root = root
        self._path = path
        self._labels = Labels(source, "meso", "in-process")
        self._table = EntryTable()

    @property
    def place(self) -> tuple[_Root, Path]:
        """Where it is found."""
        return self._root, self._path

    def live(self) -> Any:
        """Return the object, or `None` when it is gone."""
        return _follow(self._root.value(), self._path)

    def components(self) -> Iterator[ComponentState]:
        """Give the content as it is now."""
        live = self.live()
        tensors = [] if _is_large(live) else content_of(live, self._table)
        if tensors:
            yield ComponentState(self.name, self._labels, tensors)

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write tensors and arrays in place; entries of a deque or list are made anew, like those that are there."""
        kept, live = saved.get(self.name), self.live()
        if kept is None or kept.tensors is None:
            return
        if isinstance(live, (deque, list)) and EntryTable.takes(live):
            yield from (f"{self.name}: {why}" for why in self._table.restore(live, kept.tensors))
            return
        for component in self.components():
            yield from put_tensors(component, saved)


class NumbersSource:
    """The numbers of an object that holds a bank: capacity, pointer, fill, as plain values."""

    def __init__(self, name: str, root: _Root, path: Path) -> None:
        self.name = name
        self._root = root
        self._path = path

    def live(self) -> Any:
        """Return the object, or `None` when it is gone."""
        return _follow(self._root.value(), self._path)

    def components(self) -> Iterator[ComponentState]:
        """Give the numbers as they are now."""
        if numbers := numbers_of(self.live()):
            yield ComponentState(self.name, Labels("S4", "meso", "in-process"), values=plain_value(numbers))

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Set the attributes to what was kept."""
        kept, live = saved.get(self.name), self.live()
        if kept is not None and live is not None and isinstance(kept.values, dict):
            yield from put_attributes(self.name, members_of(live), kept.values)


class BankWatch:
    """Looks for banks at the steps that `due` tells, and holds those that were found.

    Parameters
    ----------
    is_own:
        Tells whether code of a file is the script's own.
    """

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        self.sources: list[BankSource | NumbersSource] = []
        self.not_recorded: set[str] = set()
        self._is_own = cache(is_own)  # thousands of modules are asked about at every look
        self._seen: dict[tuple[_Root, Path], _Mark] = {}
        self._names: set[str] = set()
        self._left: set[tuple[_Root, Path]] = set()
        self._holders: dict[tuple[_Root, Path], Any] = {}
        self._numbered: set[tuple[_Root, Path]] = set()

    @staticmethod
    def due(steps: int) -> bool:
        """Tell whether to look after so many steps: 1, 2, 3, 4, 8, 16 …"""
        return steps == 3 or steps & (steps - 1) == 0

    def look(self, known: Iterable[torch.Tensor], trained: Iterable[torch.Tensor]) -> None:
        """Compare what can be reached now with the last look; what has changed is a bank from now on.

        Parameters
        ----------
        known:
            The tensors that other sources report.
        trained:
            The parameters, whose shapes tell an average of them.
        """
        storages = {tensor.untyped_storage().data_ptr() for tensor in known if tensor.layout is torch.strided}
        shapes = sorted(tuple(parameter.shape) for parameter in trained)
        left = [_MOST_BYTES]
        seen: dict[tuple[_Root, Path], _Mark] = {}
        passing = self._passing()
        followed = {id(bank.live()) for bank in self.sources if isinstance(bank, BankSource)}
        holders: dict[tuple[_Root, Path], Any] = {}
        for root, frame_id, value, remade in list(self._roots()):
            for path, candidate in _walk(value, storages, followed):
                key = (root, path)
                if key in seen:
                    continue
                if _is_large(candidate):
                    seen[key] = _Mark(frame_id, _outline(candidate), None)
                    self._leave(key, seen[key])
                    continue
                tensors = content_of(candidate, EntryTable())
                if not tensors or all(_address(tensor) in storages for _, tensor in tensors):
                    continue
                holders |= {(root, above): None for above in _above(path)}
                mark = _Mark(frame_id, _digest(tensors, left), _reference(candidate))
                seen[key] = mark
                before = self._seen.get(key)
                if before is None or before.frame != frame_id or before.digest == mark.digest:
                    continue
                holder = next((name for kind, name in reversed(path) if kind == "attribute"), None)
                if not (remade or holder in passing) or before.is_of(candidate):
                    self._adopt(root, path, candidate, tensors, shapes)
                    followed.add(id(candidate))
        self._seen = seen
        self._count(holders)

    def _leave(self, key: tuple[_Root, Path], mark: _Mark) -> None:
        """Say what is too large to be followed, once it has changed."""
        before = self._seen.get(key)
        if before is not None and before.frame == mark.frame and before.digest != mark.digest and key not in self._left:
            self._left.add(key)
            most = f"more than the {_MOST_OF_ONE >> 20} MiB that are digested at every step"
            self.not_recorded.add(f"memory of the script: {self._name(*key)}, {most}")

    def _count(self, holders: dict[tuple[_Root, Path], Any]) -> None:
        """Report the numbers of objects that hold banks, where they change."""
        banks = [bank.place for bank in self.sources if isinstance(bank, BankSource)]
        holders |= {(root, above): None for root, path in banks for above in _above(path)}
        for root, path in holders:
            holders[root, path] = numbers = numbers_of(_follow(root.value(), path))
            before = self._holders.get((root, path))
            holds = any(place == root and inner[: len(path)] == path for place, inner in banks)
            if holds and before and numbers and before != numbers and (root, path) not in self._numbered:
                self._numbered.add((root, path))
                self.sources.append(NumbersSource(self._name(root, path), root, path))
        self._holders = holders

    def _adopt(self, root: _Root, path: Path, value: Any, tensors: list[tuple[str, torch.Tensor]], shapes: Any) -> None:
        if len(self.sources) >= MOST_BANKS:
            self.not_recorded.add(f"memory outside of modules beyond the first {MOST_BANKS} places")
            return
        average = len(tensors) > 1 and sorted(tuple(tensor.shape) for _, tensor in tensors) == shapes
        self.sources.append(BankSource(self._name(root, path), root, path, "S5" if average else "S4"))

    def _name(self, root: _Root, path: Path) -> str:
        words = [root.name, *(str(key) for _, key in path if key != "_modules")]
        words = words[1:] if words[0] == "self" and len(words) > 1 else words
        name = "bank." + ".".join(public_name(word) for word in words)
        number = 2
        while name in self._names:
            name = f"{name.rstrip('0123456789')}{number}"
            number += 1
        self._names.add(name)
        return name

    def _roots(self) -> Iterator[tuple[_Root, int, Any, bool]]:
        """Give the variables to start from, with what tells one call of a function from another, and if remade."""
        frames = list(self._frames())
        running = {id(frame.f_globals): frame for frame in frames if frame.f_code.co_name == "<module>"}
        for frame in frames:
            if frame.f_code.co_name == "<module>":
                continue
            names = carried_names(frame.f_code, frame.f_lasti)
            if names is None:
                continue
            names |= {*frame.f_code.co_cellvars, *frame.f_code.co_freevars} - bound_anew(frame.f_code, frame.f_lasti)
            variables = _variables(frame)
            remade = only_read(frame.f_code, frame.f_lasti)
            for name in sorted(names & variables.keys()):
                yield _Root("", name, frame.f_code), id(frame), variables[name], name in remade
        for module_name, module in self._own_modules():
            frame_of = running.get(id(module))
            hidden: set[str] = set()
            remade = frozenset()
            if frame_of is not None:
                carried = carried_names(frame_of.f_code, frame_of.f_lasti)
                if carried is not None:
                    remade = only_read(frame_of.f_code, frame_of.f_lasti)
                    mentioned = {*frame_of.f_code.co_names}
                    read = outer_reads(frame_of.f_code) - bound_anew(frame_of.f_code, frame_of.f_lasti)
                    hidden = mentioned - carried - read
            for name, value in list(module.items()):
                if name not in hidden and not name.startswith("__"):
                    yield _Root(module_name, name), 0, value, name in remade

    def _frames(self) -> Iterator[FrameType]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            own = self._is_own(frame.f_code.co_filename) or frame.f_globals.get("__name__") == "__main__"
            if own and (frame.f_code.co_name == "<module>" or not _UNSEEN & {*frame.f_code.co_names}):
                yield frame
            frame = frame.f_back

    def _passing(self) -> set[Any]:
        """Return the names of attributes that the script only ever sets, not from their own value: `self.x = batch`."""
        again: set[str] = set()
        blind: set[str] = set()
        for _, module in self._own_modules():
            for code in _codes(module):
                if code.co_name != "__init__":
                    both = own_attributes(code)
                    again |= both[0]
                    blind |= both[1]
        return blind - again

    def _own_modules(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, module in list(sys.modules.items()):
            if not isinstance(module, ModuleType):
                continue
            file = module.__dict__.get("__file__")
            if name == "__main__" or (isinstance(file, str) and self._is_own(file)):
                yield name, module.__dict__


@dataclass(frozen=True)
class _Mark:
    """What was seen at a place: in which call, what it held, and the object where one can be pointed to weakly."""

    frame: int
    digest: bytes
    reference: weakref.ref[Any] | None

    def is_of(self, value: Any) -> bool:
        """Tell whether the object is still the same; containers of records are taken to be."""
        return self.reference() is value if self.reference is not None else isinstance(value, deque)


def _reference(value: Any) -> weakref.ref[Any] | None:
    return weakref.ref(value) if isinstance(value, torch.Tensor) or is_array(value) else None


def _codes(module: dict[str, Any]) -> Iterator[CodeType]:
    """Give the code of a module's functions, and of its classes' methods."""
    for value in list(module.values()):
        members = list(type.__getattribute__(value, "__dict__").values()) if isinstance(value, type) else [value]
        for member in members:
            function = member.fget if isinstance(member, property) else getattr(member, "__wrapped__", None) or member
            if isinstance(member, (staticmethod, classmethod)):
                function = member.__func__
            if isinstance(function, FunctionType):
                yield function.__code__


def _variables(frame: FrameType) -> dict[str, Any]:
    """Return the variables of a running function, and leave nothing of them in its frame."""
    found = frame.f_locals
    if frame.f_code.co_name == "<module>":
        return found
    copy = dict(found)
    if isinstance(found, dict):  # from Python 3.13 on it is a view
        found.clear()
    return copy


def _follow(value: Any, path: Path) -> Any:
    for kind, key in path:
        if kind == "attribute":
            value = members_of(value).get(key)
        elif kind == "key":
            value = dict.get(value, key) if isinstance(value, dict) else None
        else:
            value = list.__getitem__(value, key) if isinstance(value, list) and key < len(value) else None
        if value is None:
            return None
    return value


def members_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, without asking it."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def _above(path: Path) -> Iterator[Path]:
    """Give the places of the objects that a value hangs on."""
    return (path[:at] for at, (kind, _) in enumerate(path) if kind == "attribute")


def numbers_of(item: Any) -> dict[str, int | float]:
    """Return the numbers of an object; none of a trainer, which holds what trains: its counters are no memory."""
    if _is_opaque(item):
        return {}
    attributes = members_of(item)
    below = attributes.get("_modules") if isinstance(item, torch.nn.Module) else None
    members = [*attributes.values(), *(below.values() if isinstance(below, dict) else ())]
    if attributes.get("_parameters") or any(isinstance(member, _TRAINS) for member in members):
        return {}
    return {name: value for name, value in attributes.items() if type(value) in (int, float)}


def _walk(value: Any, storages: set[int], followed: set[int]) -> Iterator[tuple[Path, Any]]:
    """Give what may be a bank below a variable, in a fixed order, with the path to it."""
    waiting: deque[tuple[Path, Any]] = deque([((), value)])
    inside: set[int] = set()
    count = 0
    while waiting and count < _MOST_OBJECTS:
        path, item = waiting.popleft()
        if id(item) in followed or id(item) in inside:
            continue
        count += 1
        inside.add(id(item))
        if _is_bank(item, carried=not path):
            yield path, item
        elif len(path) < _MOST_DEPTH:
            waiting.extend(((*path, step), below) for step, below in _below(item))


def _is_bank(item: Any, carried: bool) -> bool:
    """Tell whether a value is one that could be a bank, by its form; a variable may belong to a graph still."""
    if carried and isinstance(item, torch.Tensor) and item.grad_fn is not None:
        return item.numel() > 1
    if isinstance(item, (deque, list)) and EntryTable.takes(item):
        return True
    return _is_tensor(item) or is_array(item) or (isinstance(item, (dict, list, deque)) and bool(tensors_below(item)))


def _is_tensor(item: Any) -> bool:
    return (
        isinstance(item, torch.Tensor)
        and not isinstance(item, torch.nn.Parameter)
        and item.numel() > 1
        and not item.requires_grad
    )


def _below(item: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    if isinstance(item, dict):
        for key, member in list(item.items())[:_MOST_OBJECTS]:
            if isinstance(key, (str, int)):
                yield ("key", key), member
        return
    if isinstance(item, list):
        yield from ((("index", at), member) for at, member in enumerate(item[:64]))
        return
    if _is_opaque(item):
        return
    module = isinstance(item, torch.nn.Module)
    for name, member in list(members_of(item).items()):
        if module and name in ("_parameters", "_buffers"):
            continue
        if module and name.startswith("_") and name != "_modules" and name.rstrip("_").endswith(_HOOKS):
            continue
        yield ("attribute", name), member


def _is_opaque(item: Any) -> bool:
    """Tell whether a value is not looked into: functions, classes, libraries' objects other than modules, data."""
    if isinstance(item, _OPAQUE):
        return True
    library = type(item).__module__
    foreign = str(library).partition(".")[0] in _FOREIGN or library in sys.stdlib_module_names
    return foreign and not isinstance(item, torch.nn.Module)


_HOOKS = ("hooks", "hooks_with_kwargs", "hooks_always_called", "_set", "_impl")


def content_of(value: Any, table: EntryTable) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that hold what a bank holds; nothing where it is none."""
    if isinstance(value, torch.Tensor):
        return [("value", value.detach())] if value.layout is torch.strided else []
    if is_array(value):
        return [("value", array_tensor(value))]
    if isinstance(value, (deque, list)) and EntryTable.takes(value):
        return table.tensors(value)
    if isinstance(value, (dict, list, deque)):
        return tensors_below(value)
    return []


def _is_large(value: Any) -> bool:
    if isinstance(value, torch.Tensor) or is_array(value):
        return bool(value.nbytes > _MOST_OF_ONE)
    if isinstance(value, (deque, list)) and EntryTable.takes(value):
        return EntryTable.size(value) > _MOST_OF_ONE
    return False


def _outline(value: Any) -> bytes:
    """Return what tells whether large memory has changed: a sample of it, or which records are there."""
    if isinstance(value, (deque, list)):
        return f"{len(value)} {id(value[0])} {id(value[-1])}".encode()
    return _digest(content_of(value, EntryTable()), [0])


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _digest(tensors: list[tuple[str, torch.Tensor]], left: list[int]) -> bytes:
    """Return what tells one content from another; of large ones, when the bytes of a look are used, only pieces."""
    parts = []
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size > left[0]:
            rows = tensor.reshape(-1) if tensor.is_contiguous() else tensor
            tensor = rows[:: max(1, len(rows) // 65_536 if rows.ndim == 1 else len(rows) // 64)]
        left[0] -= min(size, left[0])
        parts.append(f"{name} {tuple(tensor.shape)} ".encode() + tensor_digest(tensor))
    return b"".join(parts)
