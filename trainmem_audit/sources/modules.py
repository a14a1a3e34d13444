"""Modules: parameters (S3), BatchNorm statistics (S2) and every other registered buffer (S4).

The tree is walked once and again when a module, parameter or buffer is added or removed; the tensors are looked up anew
at every step, since a script may replace them. Nothing here keeps a model alive.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch.nn.modules.batchnorm import _NormBase

from trainmem_audit.sources.base import ComponentState, Labels

__all__ = ["ModuleSource", "find_roots"]

_LABELS = {
    "params": Labels("S3", "macro", "checkpointed"),
    "batchnorm": Labels("S2", "meso", "checkpointed"),
    "buffers": Labels("S4", "meso"),
}


class ModuleSource:
    """One root module: `NAME.params`, `NAME.batchnorm`, `NAME.buffers`.

    Parameters
    ----------
    claimed:
        Ids of tensors that another source already reports; they are left out here.
    """

    def __init__(self, name: str, root: torch.nn.Module, claimed: Iterable[int] = ()) -> None:
        self.name = name
        self._root = weakref.ref(root)
        self._claimed = frozenset(claimed)
        self._slots: dict[str, list[tuple[str, weakref.ref[torch.nn.Module], str]]] = {}
        self._size = -1

    @property
    def root(self) -> torch.nn.Module | None:
        """The module, or `None` when the script has dropped it."""
        return self._root()

    def names(self) -> dict[int, str]:
        """Return parameter names by the id of the parameter."""
        root = self._root()
        return {} if root is None else {id(param): name for name, param in root.named_parameters()}

    def components(self) -> Iterator[ComponentState]:
        """Give the parameters and buffers as they are now."""
        root = self._root()
        if root is None:
            return
        size = sum(len(module._parameters) + len(module._buffers) + len(module._modules) for module in self._modules())
        if size != self._size:
            self._walk(root)
        for family, slots in self._slots.items():
            tensors = [
                (name, tensor) for name, owner, key in slots if (tensor := _lookup(owner(), family, key)) is not None
            ]
            if tensors:
                yield ComponentState(f"{self.name}.{family}", _LABELS[family], tensors)

    def _modules(self) -> Iterator[torch.nn.Module]:
        for reference in self._tree:
            module = reference()
            if module is not None:
                yield module

    _tree: tuple[weakref.ref[torch.nn.Module], ...] = ()

    def _walk(self, root: torch.nn.Module) -> None:
        seen = set(self._claimed)
        self._slots = {"params": [], "batchnorm": [], "buffers": []}
        modules = list(root.named_modules())
        self._tree = tuple(weakref.ref(module) for _, module in modules)
        for prefix, module in modules:
            reference = weakref.ref(module)
            buffers = "batchnorm" if isinstance(module, _NormBase) else "buffers"
            for family, table in (("params", module._parameters), (buffers, module._buffers)):
                for key, tensor in table.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        name = f"{prefix}.{key}" if prefix else key
                        self._slots[family].append((name, reference, key))
        self._size = sum(len(module._parameters) + len(module._buffers) + len(module._modules) for _, module in modules)


def _lookup(module: torch.nn.Module | None, family: str, key: str) -> torch.Tensor | None:
    if module is None:
        return None
    return (module._parameters if family == "params" else module._buffers).get(key)


def find_roots(params: list[torch.Tensor]) -> list[torch.nn.Module]:
    """Return the outermost modules that own any of `params`, in the order of the first parameter that each owns.

    The garbage collector is asked, because a deep-copied or unpickled module passes no registration hook.
    """
    rank = {id(param): index for index, param in enumerate(params)}
    owners = [
        module
        for module in gc.get_objects()
        if issubclass(type(module), torch.nn.Module)
        and "_parameters" in module.__dict__
        and any(id(param) in rank for param in module.parameters())
    ]
    inner = {id(child) for module in owners for child in module.children()}
    roots = [module for module in owners if id(module) not in inner]

    def order(module: torch.nn.Module) -> tuple[int, int, str]:
        owned = [rank[id(param)] for param in module.parameters() if id(param) in rank]
        return min(owned), -len(owned), type(module).__qualname__

    return sorted(roots, key=order)
