"""Modules: parameters (S3), BatchNorm statistics (S2) and every other registered buffer (S4).

The tree is walked once, and again when a module, parameter or buffer is added, removed or put in another's place; the
tensors are looked up anew at every step, since a script may replace them. Nothing here keeps a model alive: what the
walk found is forgotten when the root is.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel

from trainmem_audit.privacy import public_name
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.restoring import put_attributes, put_tensors

__all__ = ["ModuleSource", "find_averages", "find_copies", "find_roots", "untrained_parts"]

_LABELS = {
    "params": Labels("S3", "macro", "checkpointed"),
    "batchnorm": Labels("S2", "meso", "checkpointed"),
    "buffers": Labels("S4", "meso", "checkpointed"),
}
_ATTRIBUTES = Labels("S5", "macro", "in-process")
_DECAYS = ("decay", "beta", "ema_decay")
"""What classes of averages call the share of themselves that they keep."""


class ModuleSource:
    """One root module: `NAME.params`, `NAME.batchnorm`, `NAME.buffers`.

    Parameters
    ----------
    claimed:
        Ids of tensors that another source already reports; they are left out here.
    trained:
        Whether an optimizer trains it.
    """

    def __init__(self, name: str, root: torch.nn.Module, claimed: Iterable[int] = (), trained: bool = True) -> None:
        self.name = name
        self.trained = trained
        taught = {} if trained else {"params": _taught(root)}
        if not trained and any(True for _ in root.parameters()):  # else it is a loss with a queue, say, and no teacher
            taught["buffers"] = Labels("S5", "meso", "checkpointed")
        self._labels = {**_LABELS, **taught}
        self._saved_buffers = self._labels["buffers"]
        self._average = not trained and _is_average(root)
        self._tables: list[dict[str, Any]] = []
        self._slots: dict[str, list[tuple[str, dict[str, torch.Tensor | None], str]]] = {}
        self._shape: tuple[int, ...] | None = None
        self._claimed = frozenset(claimed)
        forget = (self._tables.clear, self._slots.clear)
        self._root = weakref.ref(root, lambda _: [action() for action in forget] and None)

    @property
    def root(self) -> torch.nn.Module | None:
        """The module, or `None` when the script has dropped it."""
        return self._root()

    def names(self) -> dict[int, str]:
        """Return parameter names by the id of the parameter."""
        root = self._root()
        return {} if root is None else {id(param): public_name(name) for name, param in root.named_parameters()}

    def tensor_ids(self) -> set[int]:
        """Return the ids of all parameters and buffers that this source reports."""
        root = self._root()
        return set() if root is None else {id(tensor) for tensor in _tensors(root)} - self._claimed

    def claim(self, claimed: Iterable[int]) -> None:
        """Leave out, from now on, the tensors with these ids, which another source reports."""
        if not self._claimed.issuperset(claimed := frozenset(claimed)):
            self._claimed |= claimed
            self._shape = None

    def release(self, claimed: Iterable[int]) -> None:
        """Report these tensors again: the source that did is gone."""
        self._claimed -= frozenset(claimed)
        self._shape = None

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters with the names that they are reported by."""
        root = self._root()
        return [] if root is None else [(public_name(name), param) for name, param in root.named_parameters()]

    def components(self) -> Iterator[ComponentState]:
        """Give the parameters and buffers as they are now."""
        root = self._root()
        if root is None:
            return
        if self._shape != self._shape_now():
            self._walk(root)
        for family, slots in self._slots.items():
            tensors = [(name, tensor) for name, table, key in slots if (tensor := _look_up(table, key)) is not None]
            if tensors:
                yield ComponentState(f"{self.name}.{family}", self._labels[family], tensors)
        if self._average:
            yield ComponentState(f"{self.name}.attributes", _ATTRIBUTES, values=_plain_attributes(root))

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write parameters and buffers in place."""
        for component in self.components():
            yield from put_tensors(component, saved)
        root, attributes = self._root(), saved.get(f"{self.name}.attributes")
        if root is not None and self._average and attributes is not None:
            yield from put_attributes(f"{self.name}.attributes", vars(root), attributes.values)

    def _walk(self, root: torch.nn.Module) -> None:
        seen = set(self._claimed)
        self._tables.clear()
        self._slots.update(params=[], batchnorm=[], buffers=[])
        saved = self._saved_buffers
        self._labels["buffers"] = replace(saved, visibility="in-process") if _has_unsaved_buffers(root) else saved
        self._labels["batchnorm"] = _statistics(root)
        for prefix, module in root.named_modules():
            self._tables += (module._parameters, module._buffers, module._modules)
            buffers = "batchnorm" if isinstance(module, _NormBase) else "buffers"
            for family, table in (("params", module._parameters), (buffers, module._buffers)):
                for key, tensor in table.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        name = public_name(f"{prefix}.{key}" if prefix else key)
                        self._slots[family].append((name, table, key))
        self._shape = self._shape_now()

    def _shape_now(self) -> tuple[int, ...]:
        """Return what the walk depends on: how much each table holds, and which modules."""
        sizes = map(len, self._tables)
        modules = (id(module) for table in self._tables[2::3] for module in table.values())
        return (*sizes, *modules)


def _statistics(root: torch.nn.Module) -> Labels:
    """Return the labels of the running statistics: 1/momentum steps, or the run where they are an equal average."""
    norms = [module for module in root.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = {module.momentum for module in norms}
    labels = _LABELS["batchnorm"]
    if momenta == {None}:
        return replace(labels, lifetime="macro")
    momentum = momenta.pop() if len(momenta) == 1 else None
    known = isinstance(momentum, float) and 0 < momentum <= 1
    return replace(labels, lifetime_steps=1 / momentum if known and momentum else None)


def _has_unsaved_buffers(root: torch.nn.Module) -> bool:
    """Tell whether some buffers are in no `state_dict`."""
    return any(getattr(module, "_non_persistent_buffers_set", None) for module in root.modules())


def _taught(root: torch.nn.Module) -> Labels:
    """Return the labels of what is not trained and changes: a teacher, an average, a target network.

    The decay of an average of torch's own (`AveragedModel`) is read off its function, which is not called; one without
    a function is an equal average over the run. That of another class of averages is its attribute.
    """
    if not isinstance(root, AveragedModel):
        decay = next((value for name in _DECAYS if _is_decay(value := vars(root).get(name))), None)
        every = vars(root).get("update_every", 1)
        known = decay is not None and type(every) is int and every > 0
        return Labels("S5", "meso", "checkpointed", every / (1 - decay) if decay is not None and known else None)
    functions = [function for function in (root.multi_avg_fn, root.avg_fn) if function is not None]
    decay = next((found for function in functions if (found := _decay(function)) is not None), None)
    equal = not functions or any(getattr(f, "__qualname__", "").startswith("get_swa_") for f in functions)
    lifetime = 1 / (1 - decay) if decay is not None else None
    return Labels("S5", "macro" if equal else "meso", "checkpointed", lifetime)


def _is_decay(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < 1


def _is_average(root: torch.nn.Module) -> bool:
    """Tell whether a module is of a class of averages, as `ema-pytorch` and `timm` have them: it knows its decay."""
    return "ema_model" in root._modules or any(_is_decay(vars(root).get(name)) for name in _DECAYS)


def _plain_attributes(root: torch.nn.Module) -> dict[str, Any]:
    attributes = {key: value for key, value in vars(root).items() if isinstance(value, bool | int | float)}
    attributes.pop("training", None)
    return {public_name(key): plain_value(value) for key, value in attributes.items()}


def _decay(function: Any) -> float | None:
    """Return the `decay` that a function of `torch.optim.swa_utils` has closed over."""
    function = getattr(function, "__wrapped__", function)  # they are decorated with `torch.no_grad`
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # nothing is in it yet
            continue
        if name == "decay" and _is_decay(value):
            return float(value)
    return None


def _look_up(table: Any, key: str) -> torch.Tensor | None:
    """Return a tensor of a module's table; those of scripted modules are mappings of a kind that has no `get`."""
    try:
        return table[key]  # type: ignore[no-any-return]
    except KeyError:
        return None


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
        and "ema_model"
        not in module._modules  # an average holds what it averages (`ema-pytorch`), and is no part of it
        and any(id(param) in rank for param in module.parameters())
    ]
    inner = {id(child) for module in owners for child in module.children()}
    roots = [module for module in owners if id(module) not in inner]

    def order(module: torch.nn.Module) -> tuple[int, int, str]:
        owned = [rank[id(param)] for param in module.parameters() if id(param) in rank]
        return min(owned), -len(owned), type(module).__qualname__

    return sorted(roots, key=order)


def find_copies(roots: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the outermost modules that hold as many parameters of the same shapes as a root, and none of its own.

    These are teachers, averages and target networks, also those that are never called before the run ends.
    """
    shapes = [_shapes(root) for root in roots]
    own = {id(module) for root in roots for module in root.modules()}
    found = [
        module
        for module in gc.get_objects()
        if issubclass(type(module), torch.nn.Module)
        and "_parameters" in module.__dict__
        and id(module) not in own
        and _shapes(module) in shapes
    ]
    inner = {id(child) for module in found for child in module.children()}
    return [module for module in found if id(module) not in inner]


def find_averages(roots: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules that hold a root and an average of it (`ema-pytorch`)."""
    return [
        module
        for module in gc.get_objects()
        if issubclass(type(module), torch.nn.Module)
        and "ema_model" in module.__dict__.get("_modules", ())
        and any(part is root for root in roots for part in module.children())
    ]


def untrained_parts(root: torch.nn.Module, trained: set[int]) -> list[torch.nn.Module]:
    """Return the outermost submodules that have parameters and none with an id in `trained`.

    They are frozen, or teachers inside the module that is trained (BYOL's target, MoCo's key encoder).
    """
    params = [id(param) for param in root.parameters()]
    if params and trained.isdisjoint(params):
        return [root]
    return [part for child in root.children() for part in untrained_parts(child, trained)] if params else []


def _tensors(root: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from root.parameters()
    yield from root.buffers()


def _shapes(module: torch.nn.Module) -> list[torch.Size]:
    return [param.shape for param in module.parameters()]
