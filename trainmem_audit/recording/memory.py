"""Which sources of memory a run has: finds them, holds them in a fixed order, puts them back.

Nothing here keeps an object of the script's alive. When to look is for `session` to say, which digests what is here;
how a kind is found and read, for `sources`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.recording.order import Batch
from trainmem_audit.sources.banks import BankWatch
from trainmem_audit.sources.base import NamedSource, Saved, Source
from trainmem_audit.sources.called import CalledModules
from trainmem_audit.sources.copies import CopySource, find_plain_copies
from trainmem_audit.sources.gradients import GradientSource, GradientWatch
from trainmem_audit.sources.modules import ModuleSource, find_averages, find_copies, find_roots, untrained_parts
from trainmem_audit.sources.optimizers import OptimizerSource, nested
from trainmem_audit.sources.restoring import restore_state
from trainmem_audit.sources.samplers import SamplerSource
from trainmem_audit.sources.scalers import ScalerSource
from trainmem_audit.sources.schedulers import SchedulerSource, find_schedulers

__all__ = ["Memory"]


class Memory:
    """The sources of memory of one process.

    Parameters
    ----------
    is_own_code:
        Tells whether a file of code is the script's own: memory is looked for in its variables (`sources.banks`).
        Without it, as where a program names its memory itself, it is not looked for.
    """

    def __init__(self, is_own_code: Callable[[str], bool] | None = None) -> None:
        self.optimizers: dict[int, OptimizerSource] = {}
        self._modules: list[ModuleSource] = []
        self._held: set[int] = set()
        self._optimizers_made = 0
        self._sizes: dict[int, int] = {}
        self._schedulers: list[weakref.ref[Any]] = []
        self._scheduler_sources: list[SchedulerSource] = []
        self._scalers: list[ScalerSource] = []
        self._called = CalledModules()
        self._inner = CalledModules(params_only=True)
        self._teachers: list[ModuleSource] = []
        self._teachers_found = 0
        self._copies: list[CopySource] = []
        self._samplers: list[SamplerSource] = []
        self._looks = is_own_code is not None
        self._banks = BankWatch(is_own_code or _never)
        self._gradients = GradientWatch()
        self._carried: list[GradientSource] = []
        self._tracked: list[NamedSource] = []
        self._owned: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()

    @property
    def not_recorded(self) -> set[str]:
        """What was found and is not followed."""
        return self._banks.not_recorded

    @property
    def roots(self) -> list[torch.nn.Module]:
        """The trained modules that are still there."""
        return [root for source in self._modules if (root := source.root) is not None]

    # What is told of ----------------------------------------------------------------------------------------------

    def module(self, name: str) -> torch.nn.Module | None:
        """Return the module whose components have names that begin with `name`, if it is there."""
        known = (*self._modules, *self._teachers)
        return next((source.root for source in known if source.name == name), None)

    def called(self, module: torch.nn.Module) -> None:
        """Note a module that was called and is not known to be trained."""
        self._called.add(module)

    def scheduler(self, scheduler: Any) -> None:
        """Note a learning-rate scheduler that was just made."""
        self._schedulers.append(weakref.ref(scheduler))

    def scaler(self, scaler: Any) -> None:
        """Note a gradient scaler that is used."""
        if scaler.is_enabled() and all(source.scaler is not scaler for source in self._scalers):
            self._scalers.append(ScalerSource(_numbered("scaler", len(self._scalers)), scaler))

    def track(self, source: NamedSource) -> None:
        """Report memory that the program has registered; once for every name."""
        if any(known.name == source.name for known in self._tracked):
            raise UsageError("memory of this name is tracked already", where=source.name, remedy="choose another name")
        self._tracked.append(source)

    def teacher(self, name: str, module: torch.nn.Module) -> None:
        """Report a module that no optimizer trains, under a name of its own, whether it changes or not."""
        if any(known.name == name for known in (*self._teachers, *self._modules)):
            raise UsageError("memory of this name is known already", where=name, remedy="choose another name")
        self._follow(name, module)

    def is_known(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether an optimizer was adopted with as many parameters as it has now."""
        source = self.optimizers.get(id(optimizer))
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        return source is not None and source.optimizer is optimizer and self._sizes[id(optimizer)] == size

    def before_backward(self) -> None:
        """Look at the gradients that a backward pass is about to add to, where that is worth it."""
        if self._gradients.watched:
            with torch._C.DisableTorchFunction():
                self._gradients.before_backward(self.optimizers.values())

    def after_step(self, optimizer: torch.optim.Optimizer, steps: int, used: Iterable[Batch]) -> None:
        """Look for more when an optimizer has stepped, before the state is read; `steps` with this one."""
        self._adopt_samplers(used)
        if self._gradients.after_step(optimizer):
            self._follow_gradients(optimizer)
        if self._looks and BankWatch.due(steps):
            self.look_for_banks()

    def settle(self) -> None:
        """Adopt what was told of and what has begun to change, before the state is read."""
        if self._schedulers:
            self._adopt_schedulers()
        self._adopt_teachers()

    # What there is -------------------------------------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """Return all sources, in the order in which they are read."""
        others: list[Source] = [
            *self._scheduler_sources,
            *self._scalers,
            *self._teachers,
            *self._copies,
            *self._samplers,
            *self._tracked,
            *self._banks.sources,
            *self._carried,
        ]
        return [*self._modules, *self.optimizers.values(), *others]

    # Putting back --------------------------------------------------------------------------------------------------

    def put_back(self, saved: Mapping[str, Saved]) -> list[str]:
        """Put the state back to what was kept of it; return what could not be."""
        self._adopt_schedulers()
        for watched in (self._called, self._inner):
            known = {source.name for source in self._teachers}
            is_known = self._is_followed if watched is self._called else _never
            claimed = {key for module in self._modules for key in module.tensor_ids()}
            for name, module in watched.fitting(saved, known, is_known, () if watched is self._inner else claimed):
                self._follow(name, module, within=watched is self._inner)
        carried = {source.name for source in self._carried}
        for source in self._modules:  # a walk has no gradients that could show that they are carried
            if (name := f"{source.name}.grads") in saved and name not in carried:
                self._carried.append(GradientSource(name, source.parameters))
        return restore_state(self.sources(), saved)

    def drop_gradients(self) -> None:
        """Leave the optimizers without gradients, as before the first backward pass."""
        for source in self.optimizers.values():
            for group in source.optimizer.param_groups if source.optimizer is not None else ():
                for param in group["params"]:
                    param.grad = None

    # Discovery -----------------------------------------------------------------------------------------------------

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Find the modules that own the optimizer's parameters."""
        params = [param for group in optimizer.param_groups for param in group["params"]]
        known = {id(module.root) for module in self._modules}
        claimed = {key for module in self._modules for key in module.names()}
        for root in find_roots(params):
            if id(root) not in known:
                name = _numbered("model", len(self._modules))
                self._modules.append(ModuleSource(name, root, claimed))
                claimed |= self._modules[-1].names().keys()
        self._schedulers += [weakref.ref(item) for item in find_schedulers(optimizer, self._known_schedulers())]
        roots = self.roots
        for copy in (*find_copies(roots), *find_averages(roots)):
            self._called.add(copy)
        self._owned.clear()
        chain = nested(optimizer)
        for inner, item in zip([None, *chain], chain, strict=False):
            self._add_optimizer(item, inner)
        trained = self._trained()
        self._held = self._trained(frozen=True)
        self._inner.forget(lambda part: not trained.isdisjoint(map(id, part.parameters())))
        self._drop_teachers(trained)
        for part in (part for root in roots for part in untrained_parts(root, trained)):
            self._inner.add(part)
        names = self._param_names()
        named = [names(id(param)) or str(index) for index, param in enumerate(params)]
        self._copies += find_plain_copies(params, named, self._copies)

    def _add_optimizer(self, optimizer: torch.optim.Optimizer, inner: torch.optim.Optimizer | None) -> None:
        old = self.optimizers.get(id(optimizer))
        if old is not None and old.optimizer is optimizer:
            name = old.name
        else:
            name = _numbered("optimizer", self._optimizers_made)
            self._optimizers_made += 1
        self._sizes[id(optimizer)] = sum(len(group["params"]) for group in optimizer.param_groups)
        self.optimizers[id(optimizer)] = OptimizerSource(name, optimizer, self._param_names(), inner)

    def _drop_teachers(self, trained: set[int]) -> None:
        """Forget the teachers that are trained now: a module may be trained later than it is called."""
        for source in [source for source in self._teachers if not trained.isdisjoint(source.tensor_ids())]:
            self._teachers.remove(source)
            for model in self._modules:
                model.release(source.tensor_ids())

    def _trained(self, frozen: bool = False) -> set[int]:
        """Return the ids of all parameters that some optimizer trains, `frozen` ones that it holds too.

        `model.parameters()` hands an optimizer the key encoder of MoCo as well, which gets no gradients.
        """
        optimizers = [item for source in self.optimizers.values() if (item := source.optimizer) is not None]
        params = [param for item in optimizers for group in item.param_groups for param in group["params"]]
        return {id(param) for param in params if frozen or param.requires_grad}

    def _learns(self, part: torch.nn.Module) -> bool:
        """Tell whether an optimizer holds parameters of a part that get gradients (again): it is no teacher."""
        given = {id(param) for param in part.parameters() if param.requires_grad or param.grad is not None}
        return not given.isdisjoint(self._held)

    def _adopt_samplers(self, used: Iterable[Batch]) -> None:
        """Follow the samplers of the loaders that training takes its batches from."""
        for epoch in {id(batch.epoch): batch.epoch for batch in used}.values():
            loader = None if epoch is None or epoch.logged else epoch.loader()
            if loader is not None and all(source.loader() is not loader for source in self._samplers):
                source = SamplerSource(_numbered("sampler", len(self._samplers)), loader)
                if any(True for _ in source.components()):
                    self._samplers.append(source)

    def _known_schedulers(self) -> set[int]:
        references = (*self._schedulers, *(source.reference for source in self._scheduler_sources))
        return {id(scheduler) for reference in references if (scheduler := reference()) is not None}

    def _adopt_schedulers(self) -> None:
        for reference in self._schedulers:
            scheduler = reference()
            if scheduler is not None:
                name = _numbered("scheduler", len(self._scheduler_sources))
                self._scheduler_sources.append(SchedulerSource(name, scheduler))
        self._schedulers.clear()

    def _follow_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Report the gradients of an optimizer that begins to add to what its last step has left."""
        known = {source.name for source in self._carried}
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for module in self._modules:
            if (name := f"{module.name}.grads") not in known and not owned.isdisjoint(module.names()):
                self._carried.append(GradientSource(name, module.parameters))

    def look_for_banks(self) -> None:
        """Look for memory outside of modules (`sources.banks`)."""
        with torch._C.DisableTorchFunction():
            sources = self.sources()
            known = [tensor for source in sources for item in source.components() for _, tensor in item.tensors or ()]
            known += [tensor for copy in self._copies for tensor in copy.tensors()]  # changed already or not
            trained = [parameter for root in self.roots for parameter in root.parameters()]
            self._banks.look(known, trained)

    def _adopt_teachers(self) -> None:
        """Follow the modules that were called, change, and are trained by no optimizer."""
        inner = self._inner.changed(self._learns)
        found = [*inner, *self._called.changed(self._is_followed)]
        for module in sorted(found, key=lambda module: _is_part(module, found)):
            if any(module is part for source in self._teachers if (root := source.root) for part in root.modules()):
                continue
            within = any(module is part for part in inner)
            self._follow(_numbered("teacher", self._teachers_found), module, within)
        for copy in self._copies:
            copy.changes()

    def _follow(self, name: str, module: torch.nn.Module, within: bool = False) -> None:
        """Report a teacher from now on; one that lies `within` a trained module is left out there."""
        others = self._teachers if within else [*self._modules, *self._teachers]
        claimed = {key for known in others for key in known.tensor_ids()}
        source = ModuleSource(name, module, claimed, trained=False)
        self._teachers_found += 1
        self._teachers.append(source)
        for model in self._modules if within else []:
            model.claim(source.tensor_ids())

    def _is_followed(self, module: torch.nn.Module) -> bool:
        roots = [source.root for source in (*self._modules, *self._teachers)]
        return any(module is part for root in roots if root is not None for part in root.modules())

    def _param_names(self) -> Callable[[int], str | None]:
        names: dict[int, str] = {}
        for number, module in enumerate(self._modules):
            prefix = "" if number == 0 else f"{module.name}."
            for key, name in module.names().items():
                names.setdefault(key, prefix + name)
        return names.get

    def owns(self, module: torch.nn.Module) -> bool | None:
        """Tell whether a module owns optimizer parameters; `None` while no optimizer is known."""
        return self.is_owner(module) if self.optimizers else None

    def is_owner(self, module: torch.nn.Module | None) -> bool:
        """Tell whether a module owns parameters of some optimizer."""
        if module is None:
            return False
        found = self._owned.get(module)
        if found is None:
            params = {
                id(param)
                for source in self.optimizers.values()
                if (optimizer := source.optimizer) is not None
                for group in optimizer.param_groups
                for param in group["params"]
            }
            found = self._owned[module] = any(id(param) in params for param in module.parameters())
        return found


def _is_part(module: torch.nn.Module, modules: list[torch.nn.Module]) -> bool:
    return any(module is part for other in modules if other is not module for part in other.modules())


def _numbered(name: str, known: int) -> str:
    return name if known == 0 else f"{name}{known + 1}"


def _never(item: object) -> bool:
    """Say no: a module is not followed yet (a part of a trained one always is, as a part), a file is no own code."""
    return False
