"""What is in an object that a script is about to save: its tensors, numbers, mappings and random states, by path.

The object is walked as plain data: no method of the script's is called, nothing is copied, the walk is bounded. Not
here: what any of it is compared with (`recording.checkpoints`).
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from blake3 import blake3

from trainmem_audit.canonical import line_bytes
from trainmem_audit.digests import dtype_name, tensor_digest
from trainmem_audit.sources.twisters import bit_generator_bytes, plain_state, python_digest, twister_digest

__all__ = ["Leaf", "SavedObject", "address", "member_of"]

_MOST = 2**17
"""How many values of one object are looked at."""
_DEEPEST = 64
_CPU_STATE = 5056
"""Bytes of the state of a torch generator on the CPU."""
_TABLES = ("_parameters", "_buffers", "_modules")
_NOT_DATA = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType)
_PLAIN = (str, bytes, bytearray, type(None), torch.Size, torch.dtype, torch.device)

Path = tuple[str, ...]


class Leaf:
    """A tensor or an array of numbers in a saved object; its digest is taken when somebody asks for it."""

    def __init__(self, path: Path, value: Any) -> None:
        self.path = path
        self.name = ".".join(path)
        self.claimed = False
        self._value = value
        self._digest = b""
        if isinstance(value, torch.Tensor):
            self.kind = (dtype_name(value), tuple(value.shape))
            self.address = address(value)
        else:
            self.kind = (str(value.dtype), tuple(value.shape))
            self.address = None

    @property
    def digest(self) -> bytes:
        """Digest of the elements, as that of a tensor."""
        if not self._digest:
            tensor = isinstance(self._value, torch.Tensor)
            self._digest = tensor_digest(self._value) if tensor else blake3(self._value.tobytes()).digest()
        return self._digest

    def is_called(self, name: str) -> bool:
        """Tell whether the path ends with a name that may have dots."""
        return self.name == name or self.name.endswith(f".{name}")


class SavedObject:
    """What one walk over an object finds; it looks at no more than `most` values.

    Attributes
    ----------
    leaves:
        Tensors and arrays.
    numbers:
        Integers and floats with their paths.
    trees:
        Mappings with their paths.
    states:
        Digests of random states by the kind of generator: `python`, `numpy`, `torch`, `generator`.
    partial:
        Whether there was more than is looked at.
    """

    def __init__(self, value: Any, most: int = _MOST) -> None:
        self.leaves: list[Leaf] = []
        self.numbers: list[tuple[Path, int | float]] = []
        self.trees: list[tuple[Path, dict[Any, Any]]] = []
        self.states: dict[str, set[str]] = {}
        self.partial = False
        self._left = most
        self._seen: set[int] = set()
        with torch._C.DisableTorchFunction():
            self._walk(value)

    @property
    def has_optimizer(self) -> bool:
        """Whether it holds what `Optimizer.state_dict()` gives."""
        return any("param_groups" in tree and "state" in tree for _, tree in self.trees)

    def holds_state(self, digest: str) -> bool:
        """Tell whether a random state with this digest is there."""
        return any(digest in states for states in self.states.values())

    def _walk(self, value: Any) -> None:
        waiting: deque[tuple[Path, Any]] = deque([((), value)])
        while waiting:
            path, item = waiting.popleft()
            self._left -= 1
            if self._left < 0 or len(path) > _DEEPEST:
                self.partial = True
                return
            if not self._leaf(path, item) and id(item) not in self._seen:
                self._seen.add(id(item))
                waiting.extend(self._members(path, item))

    def _leaf(self, path: Path, item: Any) -> bool:
        """Note a value that has no members; tell whether it was one."""
        if _is(item, torch.Tensor):
            self.leaves.append(Leaf(path, item))
            if item.dtype is torch.uint8 and item.dim() == 1 and item.numel() in (_CPU_STATE, 16):
                self._state("torch", tensor_digest(item).hex())
        elif _is(item, bool, *_PLAIN, *_NOT_DATA):
            pass
        elif _is(item, int, float):
            self.numbers.append((path, item))
        elif not self._is_random(item):
            if not _is_array(item):
                return False
            self.leaves.append(Leaf(path, item))
        return True

    def _is_random(self, item: Any) -> bool:
        """Note the state of a random generator, in any of the forms in which it is saved."""
        if _is(item, torch.Generator):
            self._state("torch", tensor_digest(item.get_state()).hex())
        elif _is(item, random.Random):
            self._state("python", python_digest(random.Random.getstate(item)))
        elif type(item) is tuple and len(item) == 3 and item[0] == 3 and _are_words(item[1]):
            self._state("python", python_digest(item))
        elif type(item) is tuple and len(item) == 5 and type(item[0]) is str and item[0] == "MT19937":
            if _is_array(item[1]) and all(isinstance(part, (int, float)) for part in item[2:]):
                _, key, position, has_gauss, gauss = item
                self._state("numpy", twister_digest(key.tobytes(), position, gauss if has_gauss else None))
        elif type(item) is dict and type(item.get("bit_generator")) is str and type(item.get("state")) is dict:
            self._numpy_state(item)
        elif type(item).__module__.startswith("numpy.random") and hasattr(item, "bit_generator"):
            self._state("generator", blake3(bit_generator_bytes(item)).hexdigest())
        else:
            return False
        return True

    def _numpy_state(self, item: dict[str, Any]) -> None:
        inner = item["state"]
        if "has_gauss" in item and _is_array(inner.get("key")) and isinstance(inner.get("pos"), int):
            gauss = item.get("gauss") if item["has_gauss"] else None
            self._state("numpy", twister_digest(inner["key"].tobytes(), inner["pos"], gauss))
        else:
            self._state("generator", blake3(line_bytes(plain_state(item))).hexdigest())

    def _state(self, kind: str, digest: str) -> None:
        self.states.setdefault(kind, set()).add(digest)

    def _members(self, path: Path, item: Any) -> Iterator[tuple[Path, Any]]:
        if _is(item, dict):
            self.trees.append((path, dict(dict.items(item))))
            for key, member in list(dict.items(item)):
                yield (*path, str(key) if isinstance(key, (str, int)) else type(key).__name__), member
        elif _is(item, list, tuple):
            plain = list.__iter__(item) if _is(item, list) else tuple.__iter__(item)
            yield from (((*path, str(index)), member) for index, member in enumerate(plain))
        elif _is(item, deque):
            yield from (((*path, str(index)), member) for index, member in enumerate(list(deque.__iter__(item))))
        else:
            yield from self._attributes(path, item)

    def _attributes(self, path: Path, item: Any) -> Iterator[tuple[Path, Any]]:
        """Give the attributes of an object that is saved whole; the tables of a module as if they were its own."""
        try:
            attributes = object.__getattribute__(item, "__dict__")
        except AttributeError:
            return
        if type(attributes) is dict:
            self.trees.append((path, attributes))
            for key, member in list(attributes.items()):
                if _is(item, torch.nn.Module) and key in _TABLES and _is(member, dict):
                    yield from (((*path, str(name)), value) for name, value in list(dict.items(member)))
                else:
                    yield (*path, str(key)), member


def address(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return where the elements of a tensor lie and how; `None` where that cannot be told."""
    try:
        if tensor.layout is not torch.strided or tensor.numel() == 0 or tensor.device.type == "meta":
            return None
        return str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    except RuntimeError:
        return None


def _is(item: Any, *types: type) -> bool:
    """Tell whether an object is of one of these types; `isinstance` would ask the object too."""
    return issubclass(type(item), types)


def member_of(value: Any, key: str) -> Any:
    """Return a member of a mapping or sequence; raises `KeyError` where there is none."""
    if _is(value, dict):
        return dict.__getitem__(value, key)
    if _is(value, list, tuple) and key.isdecimal():
        plain: Any = list if _is(value, list) else tuple
        if int(key) < plain.__len__(value):
            return plain.__getitem__(value, int(key))
    raise KeyError(key)


def _is_array(item: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(item) is numpy.ndarray and item.dtype.kind in "fiub"


def _are_words(item: Any) -> bool:
    return type(item) is tuple and len(item) == 625 and all(type(word) is int for word in item)
