"""Compares what a script saves with the memory that is recorded, at the moment at which it saves.

A tensor counts as saved if one with its elements, shape and dtype is in the object, each saved tensor for one of the
memory; where they lie at the same place no digest is needed. Values and random states are compared as they are. Only
what has changed since training began can be lost: the rest a script makes anew by itself.

Nothing is written to the object, no method of the script's is called, and no random number is drawn. Not here: what a
loss means (`trainmem_audit.checkpoints`). Where nobody says that it is a checkpoint (`pickle.dump`, NumPy's writers),
an object is looked at only if some array or tensor in it has the form of one that is recorded.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.digests import dtype_name, tensor_digest
from trainmem_audit.documents.checkpoints import MOST_CHECKPOINTS, MOST_MISSING
from trainmem_audit.recording.order import EpochStart
from trainmem_audit.sources.base import ComponentState, Source, plain_value
from trainmem_audit.sources.saved import Leaf, SavedObject, address, member_of

__all__ = ["CheckpointWatch", "SavedFile", "saved_file"]

_ALL_KEPT = MOST_CHECKPOINTS - 100
"""Up to how many checkpoints each is recorded; of later ones the first of each power of two."""
_PIECE = 2**20
_MOST_UNNAMED = 2**12
"""How many values of an object are looked at of which nobody says that it is a checkpoint."""

SavedFile = Callable[[str], dict[str, Any]]
"""Gives the members `file`, `sha256` and `bytes` of a path that was written."""


@dataclass
class _Live:
    """One component of tensors at this moment, and which of them were found."""

    state: ComponentState
    first: dict[str, bytes]
    found: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)

    @property
    def slot(self) -> str:
        return self.state.name.rpartition(".")[2]

    def open(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the tensors that were not found yet."""
        return ((name, item) for name, item in self.state.tensors or () if name not in self.found | self.stale)

    def verdict(self, digest: Callable[[torch.Tensor], bytes]) -> dict[str, Any]:
        """Return the members of `Held`."""
        named = dict(self.state.tensors or ())
        missing = [name for name in named if name not in self.found and digest(named[name]) != self.first.get(name)]
        if not missing:
            return {"verdict": "whole" if self.found else "constant"}
        verdict = "stale" if self.stale.issuperset(missing) else "part" if self.found else "absent"
        if verdict == "absent":
            verdict = "stale" if self.stale else "absent"
        members: dict[str, Any] = {"verdict": verdict, "missingCount": len(missing)}
        if verdict == "part":
            members["missing"] = missing[:MOST_MISSING]
        return members


class CheckpointWatch:
    """Remembers how the memory was when training began, and compares what is saved with how it is."""

    def __init__(self) -> None:
        self.count = 0
        self.left_out = 0
        self._first: dict[str, Any] = {}
        self._streams: dict[str, str] = {}

    def begins(self, component: ComponentState, digests: list[bytes] | None, initial: bool) -> None:
        """Note a component that is seen for the first time, `initial` where that is before an update.

        What training has made later (a slot, a teacher that has moved) has changed by that alone, its buffers have not.
        """
        if component.name in self._first:
            return
        if not initial and not component.name.endswith((".buffers", ".batchnorm")):
            self._first[component.name] = {}
        elif digests is None:
            self._first[component.name] = component.values
        else:
            names = (name for name, _ in component.tensors or ())
            self._first[component.name] = dict(zip(names, digests, strict=True))

    def see_streams(self, digests: dict[str, str]) -> None:
        """Note random streams where they are seen for the first time in training."""
        for name, digest in digests.items():
            self._streams.setdefault(name, digest)

    def wants(self) -> bool:
        """Tell whether the next checkpoint is recorded, and count it."""
        self.count += 1
        kept = self.count <= _ALL_KEPT or self.count & (self.count - 1) == 0
        self.left_out += not kept
        return kept

    def resembles(self, value: Any, forms: Collection[tuple[str, tuple[int, ...]]]) -> bool:
        """Tell whether an object holds a tensor or array of one of these forms (dtype and shape)."""
        return any(leaf.kind in forms for leaf in SavedObject(value, _MOST_UNNAMED).leaves)

    def compare(
        self,
        value: Any,
        sources: Iterable[Source],
        known: Callable[[str], bool],
        streams: dict[str, str],
        epoch: EpochStart | None,
    ) -> dict[str, Any] | None:
        """Return the members of a `Checkpoint`; `None` for an object that holds nothing of the memory.

        `known` tells of which components the log speaks.
        """
        saved = SavedObject(value)
        with torch._C.DisableTorchFunction():
            states = [state for source in sources for state in source.components() if known(state.name)]
            components = {state.name: self._values(state, saved) for state in states if state.tensors is None}
            components |= self._tensors([state for state in states if state.tensors is not None], saved)
        found = {name: self._stream(name, digest, saved) for name, digest in streams.items()}
        held = {name for name, item in components.items() if item["verdict"] in ("whole", "part", "stale")}
        beyond = any(name.startswith(("optimizer", "scheduler", "scaler")) for name in held)
        state = saved.has_optimizer or beyond or "whole" in found.values()
        if not held and not state:
            return None
        members: dict[str, Any] = {"kind": "state" if state else "weights", "components": components, "streams": found}
        if epoch is not None:
            members["order"] = _order(epoch, saved, streams)
        if saved.partial:
            members["partial"] = True
            for item in components.values():
                if item["verdict"] == "absent":
                    item.update(verdict="maybe")
        return members

    # Tensors -------------------------------------------------------------------------------------------------------

    def _tensors(self, states: list[ComponentState], saved: SavedObject) -> dict[str, dict[str, Any]]:
        live = [_Live(state, self._first.get(state.name) or {}) for state in states]
        digests: dict[int, bytes] = {}

        def digest(tensor: torch.Tensor) -> bytes:
            if id(tensor) not in digests:
                digests[id(tensor)] = tensor_digest(tensor)
            return digests[id(tensor)]

        _match_places(live, saved.leaves)
        kinds: dict[Any, list[Leaf]] = {}
        for leaf in saved.leaves:
            kinds.setdefault(leaf.kind, []).append(leaf)

        def same(tensor: torch.Tensor, fits: Callable[[Leaf], bool]) -> Leaf | None:
            leaves = kinds.get((dtype_name(tensor), tuple(tensor.shape)), ())
            rest = (leaf for leaf in leaves if not leaf.claimed and fits(leaf))
            return next((leaf for leaf in rest if leaf.digest == digest(tensor)), None)

        for item in live:  # by content under the same name, then under any
            for name, tensor in list(item.open()):
                if (found := same(tensor, partial(_has_name, name))) is not None:
                    _claim(item, name, found)
        for item in live:
            for name, tensor in list(item.open()):
                small = tensor.numel() <= 1  # equal by chance as likely as not: a counter, a flag
                if (found := same(tensor, _hint(item, name) if small else _any)) is not None:
                    _claim(item, name, found)
        for item in live:
            _match_numbers(item, saved)
            _match_stale(item, kinds)
        return {item.state.name: item.verdict(digest) for item in live}

    # Values --------------------------------------------------------------------------------------------------------

    def _values(self, state: ComponentState, saved: SavedObject) -> dict[str, Any]:
        first = dict(_leaves(self._first.get(state.name)))
        moved = {
            path: value for path, value in _leaves(state.values) if first.get(path) != value and path != ("class",)
        }
        if not moved:
            return {"verdict": "constant"}
        best = (0, 0)
        for _, tree in saved.trees:
            there = [(path, other) for path in moved if (other := _look_up(tree, path)) is not _NOTHING]
            if 2 * len(there) >= len(moved):
                best = max(best, (sum(moved[path] == other for path, other in there), len(there)))
        if best[0] == len(moved) or self._same_numbers(state, moved, saved):
            return {"verdict": "whole"}
        return {"verdict": "stale" if best[1] else "absent", "missingCount": len(moved) - best[0]}

    @staticmethod
    def _same_numbers(state: ComponentState, moved: dict[tuple[str, ...], Any], saved: SavedObject) -> bool:
        """Tell whether the numbers of an optimizer's slot are there under its name, for whichever parameters."""
        if not state.name.startswith("optimizer"):
            return False
        slot = state.name.removesuffix(".values").rpartition(".")[2]
        there = sorted(str(plain_value(number)) for path, number in saved.numbers if path and path[-1] == slot)
        return bool(there) and there == sorted(map(str, moved.values()))

    # Streams -------------------------------------------------------------------------------------------------------

    def _stream(self, name: str, digest: str, saved: SavedObject) -> str:
        if saved.holds_state(digest):
            return "whole"
        if self._streams.get(name, digest) == digest:
            return "constant"
        kind = {"python": "python", "numpy": "numpy", "torch.cpu": "torch"}.get(name)
        return "stale" if kind in saved.states else "absent"


def saved_file(target: Any) -> tuple[str | None, bool]:
    """Return the path of what `torch.save` was given to write to, and whether the file is closed when it returns."""
    if isinstance(target, (str, os.PathLike)):
        path = os.fspath(target)
        return (path if isinstance(path, str) else None), True
    if type(target) in (io.BufferedWriter, io.BufferedRandom, io.FileIO) and isinstance(target.name, (str, bytes)):
        return os.fsdecode(target.name), False
    return None, True


def file_members(path: Path, name: str) -> dict[str, Any]:
    """Return the members of a checkpoint that tell of its file."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError:
        return {"file": name}
    return {"file": name, "sha256": digest.hexdigest(), "bytes": size}


def _claim(item: _Live, name: str, leaf: Leaf) -> None:
    leaf.claimed = True
    item.found.add(name)


def _match_places(live: list[_Live], leaves: list[Leaf]) -> None:
    """Match tensors that lie where saved ones lie: `state_dict()` copies nothing."""
    places: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.address is not None:
            places.setdefault(leaf.address, []).append(leaf)
    for item in live:
        for name, tensor in item.state.tensors or ():
            there = [leaf for leaf in places.get(address(tensor), ()) if not leaf.claimed]
            named = [leaf for leaf in there if leaf.is_called(name)]
            for leaf in (named or there)[:1]:
                _claim(item, name, leaf)


def _hint(item: _Live, name: str) -> Callable[[Leaf], bool]:
    """Return what tells whether a saved tensor is called like a tensor of this component, or like its slot."""
    last = name.rpartition(".")[2]

    def fits(leaf: Leaf) -> bool:
        key = leaf.name.rpartition(".")[2]
        return key == last or (item.state.name.startswith("optimizer") and key.startswith(item.slot))

    return fits


def _has_name(name: str, leaf: Leaf) -> bool:
    return leaf.is_called(name)


def _any(leaf: Leaf) -> bool:
    return True


def _match_numbers(item: _Live, saved: SavedObject) -> None:
    """Match tensors of one element with plain numbers of the same name: a scaler saves its scale so."""
    for name, tensor in list(item.open()):
        if tensor.numel() != 1:
            continue
        last = name.rpartition(".")[2]
        there = [number for path, number in saved.numbers if path and path[-1].lstrip("_") == last]
        if there:
            (item.found if float(tensor.detach().item()) in map(float, there) else item.stale).add(name)


def _match_stale(item: _Live, kinds: dict[Any, list[Leaf]]) -> None:
    """Match what was not found with what has its name and shape, and another value."""
    slot = item.slot if item.state.name.startswith("optimizer") else None
    for name, tensor in list(item.open()):
        for leaf in kinds.get((dtype_name(tensor), tuple(tensor.shape)), ()):
            key = leaf.name.rpartition(".")[2]  # a slot has the names of the weights here, and its own in a file
            if not leaf.claimed and (leaf.is_called(name) if slot is None else key.startswith(slot)):
                leaf.claimed = True
                item.stale.add(name)
                break


_NOTHING = object()


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _leaves(member, (*path, str(key)))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _leaves(member, (*path, str(index)))
    else:
        yield path, value


def _look_up(tree: dict[Any, Any], path: tuple[str, ...]) -> Any:
    """Return the plain value at a path of a saved mapping; the groups of an optimizer are its `param_groups`."""
    value: Any = tree
    for number, part in enumerate(path):
        key = "param_groups" if number == 0 and part == "groups" and "param_groups" in tree else part
        try:
            value = member_of(value, key)
        except KeyError:
            return _NOTHING
    return _NOTHING if issubclass(type(value), (dict, list, tuple)) else plain_value(value)


_COUNTERS = ("last_epoch", "growth_factor", "param_groups")


def _order(epoch: EpochStart, saved: SavedObject, streams: dict[str, str]) -> str:
    """Tell whether the position in the epoch is saved: nothing is to be saved at its end."""
    settings = epoch.description["settings"]
    size, samples = settings.get("batch_size"), settings.get("samples")
    given = epoch.given * size if isinstance(size, int) else epoch.given
    if epoch.ended or (isinstance(samples, int) and given >= samples):
        return "whole"
    theirs = {path for path, tree in saved.trees if any(name in tree for name in _COUNTERS)}
    positions = {epoch.given, given}  # how many steps there were in all tells it only to a script that reckons with it
    there = any(
        number in positions and path and "epoch" not in path[-1] and not _is_below(path, theirs)
        for path, number in saved.numbers
    )
    start = any(saved.holds_state(digest) for name, digest in epoch.rng.items() if streams.get(name) != digest)
    return "absent" if not there else "whole" if start else "maybe"


def _is_below(path: tuple[str, ...], parents: set[tuple[str, ...]]) -> bool:
    return any(path[:length] in parents for length in range(len(path)))
