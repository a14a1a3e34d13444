"""Turns what happens in a training process into step-log lines.

`hooks` calls the `on_…` methods; each reads state, never writes it, draws no random number, and keeps no object of the
script's alive. Digests are taken here, on the training thread; lines are built and written by `writer`. Which batches
belong to a step is decided in `order`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.canonical import canonical_bytes, component_digest, content_digest, float_text, value_digest
from trainmem_audit.digests import dtype_name, tensor_digest
from trainmem_audit.documents.steplog import Component, Loader
from trainmem_audit.errors import UsageError
from trainmem_audit.recording.checkpoints import CheckpointWatch, SavedFile, saved_file
from trainmem_audit.recording.draws import DrawWatch, forward_purpose, numbers_of
from trainmem_audit.recording.facts import numeric_profile
from trainmem_audit.recording.forward import FastForward
from trainmem_audit.recording.order import (
    Batch,
    EpochStart,
    PendingBatches,
    describe_loader,
    loader_generators,
    parts_of,
    sampler_epoch,
)
from trainmem_audit.recording.snapshots import SnapshotPlan, write_snapshot, write_values
from trainmem_audit.recording.workers import Slots
from trainmem_audit.recording.writer import LogWriter
from trainmem_audit.snapshots import snapshot_name, values_name
from trainmem_audit.sources.banks import BankWatch
from trainmem_audit.sources.base import ComponentState, Saved, Source, plain_value
from trainmem_audit.sources.batches import batch_digest, batch_size, index_bytes
from trainmem_audit.sources.called import CalledModules
from trainmem_audit.sources.copies import CopySource, find_plain_copies
from trainmem_audit.sources.gradients import GradientSource, GradientWatch
from trainmem_audit.sources.modules import ModuleSource, find_averages, find_copies, find_roots, untrained_parts
from trainmem_audit.sources.optimizers import OptimizerSource, learning_rates, nested
from trainmem_audit.sources.restoring import restore_state
from trainmem_audit.sources.samplers import SamplerSource
from trainmem_audit.sources.scalers import ScalerSource
from trainmem_audit.sources.schedulers import SchedulerSource, find_schedulers
from trainmem_audit.sources.streams import StreamSet
from trainmem_audit.sources.tracked import TrackedSource

__all__ = ["Session"]

_WORKER_EPOCHS = 16
"""For how many epochs the streams of workers are written down."""
_PARTS = ("state", "rng", "batch", "inputs", "line", "snapshot")


@dataclass
class _Header:
    """The last header of a component that was logged."""

    identity: tuple[Any, ...]
    canonical: bytes
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


class Session:
    """One recording in one process.

    Parameters
    ----------
    writer:
        Where the lines go.
    known_streams:
        The streams whose start states are in the log already.
    on_first_step:
        Called once, before the first step is recorded.
    snapshots:
        After which steps the tensors of the state are kept in the record.
    dump:
        A step and the file to which the tensors of its state are written aside, at replay.
    is_own_code:
        Tells whether a file of code is the script's own: memory is looked for in its variables (`sources.banks`).
    """

    def __init__(
        self,
        writer: LogWriter,
        known_streams: set[str],
        on_first_step: Callable[[], None],
        snapshots: SnapshotPlan | None = None,
        dump: tuple[int, Path] | None = None,
        is_own_code: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.active = True
        self.steps = 0
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self.not_recorded: set[str] = set()
        self._writer = writer
        self._on_first_step = on_first_step
        self._snapshots = snapshots
        self._dump = dump
        self._lock = threading.RLock()
        self._streams = StreamSet()
        self._known_streams = known_streams
        self._modules: list[ModuleSource] = []
        self._optimizers: dict[int, OptimizerSource] = {}
        self._optimizers_made = 0
        self._sizes: dict[int, int] = {}
        self._schedulers: list[weakref.ref[Any]] = []
        self._scheduler_sources: list[SchedulerSource] = []
        self._scalers: list[ScalerSource] = []
        self._called = CalledModules()
        self._inner = CalledModules(params_only=True)
        self._teachers: list[ModuleSource] = []
        self._copies: list[CopySource] = []
        self._samplers: list[SamplerSource] = []
        self._teachers_found = 0
        self._banks = BankWatch(is_own_code)
        self._gradients = GradientWatch()
        self._carried: list[GradientSource] = []
        self._tracked: list[TrackedSource] = []
        self._headers: dict[str, _Header] = {}
        self._values: dict[str, tuple[Any, bytes]] = {}
        self._batches = PendingBatches()
        self._inputs: list[tuple[weakref.ref[torch.nn.Module], bytes]] = []
        self._losses: list[str] = []
        self._loaders: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._epochs: dict[str, int] = {}
        self._latest: EpochStart | None = None
        self._numbers: dict[str, dict[str, Any]] = {}
        self._draws = DrawWatch(self._streams.digests)
        self._began = False
        self.saved_file: SavedFile = lambda path: {}
        self._checkpoints = CheckpointWatch()
        self._saving: list[tuple[int, dict[str, Any], str]] = []
        self._working: deque[EpochStart] = deque(maxlen=4)
        self._worker_epochs = 0
        self.slots: Slots | None = None
        self.forward: FastForward | None = None
        self._owned: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()

    # What torch tells us ------------------------------------------------------------------------------------------

    def on_iterator(self, loader: Any, forks: bool = False) -> EpochStart:
        """Note that a data loader is about to make an iterator (an epoch, if training follows), and perhaps to fork."""
        for name, generator in loader_generators(loader):
            self._streams.add_generator(name, generator)
        workers = getattr(loader, "num_workers", 0) if forks and getattr(loader, "_iterator", None) is None else 0
        if workers:
            self._streams.adopt()  # what the data set draws from is copied into the workers now
        self.look()
        epoch = EpochStart(weakref.ref(loader), describe_loader(loader), self._digest_streams())
        epoch.facts = sampler_epoch(loader)
        epoch.numbers = plain_value(numbers_of(getattr(loader, "dataset", None)))
        self._checkpoints.see_streams(epoch.rng)
        self._draws.epoch(epoch.rng)
        self._began = True
        if workers and self._worker_epochs < _WORKER_EPOCHS:
            self.slots = epoch.slots = Slots(workers)
        return epoch

    def after_iterator(self, epoch: EpochStart, iterator: Any) -> None:
        """Note what the iterator has drawn when it was made."""
        self.slots = None
        self.look("loader")
        if epoch.slots is not None:
            self._working.append(epoch)
            epoch.facts["workerSeed"] = str(iterator._base_seed)

    def look(self, purpose: str | None = None) -> None:
        """Attribute what the streams did since the last look; without a purpose, to whatever the script does."""
        if self._draws.looking:
            began = time.perf_counter()
            with self._lock:
                self._draws.look(purpose or ("unknown" if self._began else "init"))
            self.seconds["rng"] += time.perf_counter() - began

    @property
    def looking(self) -> bool:
        """Whether it is worth to call `look`."""
        return self._draws.looking

    def look_after_forward(self, module: torch.nn.Module) -> None:
        """Attribute what the streams did in an outermost forward."""
        self._began = True
        self.look(forward_purpose(module))

    def digest_worker_streams(self) -> dict[str, str]:
        """Return the digests of the streams that a worker process has copies of, in that process."""
        return self._streams.digests()

    def on_resumed(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer was given a saved state."""
        known = {"optimizer": type(optimizer).__qualname__}
        steps = _steps_behind(optimizer)
        resumed = known if steps is None else {**known, "steps": steps}
        self._writer.put({"t": "inventory", "i": self.steps, "resumed": [resumed]})

    def on_generator(self, name: str, generator: Any) -> None:
        """Note a random generator that the script has made for itself."""
        with self._lock:
            self._streams.found(name, generator)

    def on_batch(self, epoch: EpochStart | None, index: Any, batch: Any) -> None:
        """Note a batch that a loader hands out, and the indices it was drawn by (`None` where there are none)."""
        began = time.perf_counter()
        indices = None if index is None else index_bytes(index)
        size = len(indices) // 8 if indices is not None else batch_size(batch)
        pending = Batch(epoch, indices, batch_digest(batch), size)
        if epoch is not None:
            epoch.given += 1
        with self._lock:
            self._batches.add(pending)
        self.seconds["batch"] += time.perf_counter() - began

    def on_forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """Note an outermost forward: it tells whether pending batches are training, and its inputs are digested."""
        began = time.perf_counter()
        grad = torch.is_grad_enabled()
        reference = weakref.ref(module)
        with self._lock:
            self._batches.forward(reference, module.training, grad)
            owns = self._owns(module)
            if grad and owns is not False:
                self._inputs.append((reference, batch_digest([args, kwargs])))
            if not owns:
                self._called.add(module)
        self.seconds["inputs"] += time.perf_counter() - began

    def on_backward(self, loss: torch.Tensor) -> None:
        """Note the value that a backward pass starts from, where reading it costs no wait for a device."""
        if self._gradients.watched:
            with self._lock, torch._C.DisableTorchFunction():
                self._gradients.before_backward(self._optimizers.values())
        if loss.numel() == 1 and loss.device.type == "cpu" and loss.is_floating_point():
            self._losses.append(float_text(float(loss.detach().item())))
        elif loss.device.type != "cpu":
            self.not_recorded.add("losses on a device (reading them would wait for it)")

    def on_scheduler(self, scheduler: Any) -> None:
        """Note a learning-rate scheduler that was just made."""
        self._schedulers.append(weakref.ref(scheduler))

    def track(self, source: TrackedSource) -> None:
        """Report memory that the program has registered; once for every name."""
        with self._lock:
            if any(known.name == source.name for known in self._tracked):
                raise UsageError(
                    "memory of this name is tracked already", where=source.name, remedy="choose another name"
                )
            self._tracked.append(source)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take stock before an optimizer steps for the first time, or with other parameters than before."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        source = self._optimizers.get(id(optimizer))
        if source is not None and source.optimizer is optimizer and self._sizes[id(optimizer)] == size:
            return
        with self._lock:
            first = not self._optimizers
            if first:
                self._on_first_step()
                self._writer.put({"t": "inventory", "profile": numeric_profile()})
            self._sizes[id(optimizer)] = size
            self._adopt(optimizer)
            if first:
                self._look_for_banks()
            state, _, _ = self._collect(initial=True)
            self._streams.adopt()
            self._new_streams(self._streams.digests())
            self._checkpoints.see_streams(self._streams.digests())
            self._writer.put({"t": "inventory", "i": self.steps, "state": state})

    def before_attempt(self, scaler: Any, optimizer: torch.optim.Optimizer) -> int:
        """Note a gradient scaler that is about to step `optimizer`, or to skip it; return the steps so far."""
        if scaler.is_enabled() and all(source.scaler is not scaler for source in self._scalers):
            self._scalers.append(ScalerSource(_numbered("scaler", len(self._scalers)), scaler))
        self.before_step(optimizer)
        return self.steps

    def after_attempt(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Record the attempt as skipped if no step came of it."""
        if self.steps == steps:
            self.after_step(optimizer, skipped=True)

    def after_step(self, optimizer: torch.optim.Optimizer, skipped: bool = False) -> None:
        """Record one step: called when the outermost `optimizer.step()` returns, or a scaler has skipped it."""
        with self._lock:
            if self._saving:
                self._log_saved()
            order, indices, used = self._batches.consumed(self._is_owner)
            self._adopt_samplers(used)
            if self._gradients.after_step(optimizer):
                self._follow_gradients(optimizer)
            if BankWatch.due(self.steps + 1):
                self._look_for_banks()
            whole = self.forward is None or self.forward.arrive()
            state, digests, values = self._collect() if whole else ({}, [], {})
            self._streams.adopt()
            rng = self._digest_streams()
            began = time.perf_counter()
            self._new_streams(rng)
            self._log_epochs(used)
            if order is not None and (parts := parts_of(used, self._latest)):
                order["parts"] = parts
            self._log_draws()
            members: dict[str, Any] = {"t": "step", "i": self.steps, "state": state, "rng": rng}
            source = self._optimizers[id(optimizer)]
            if len(self._optimizers) > 1:
                members["optimizer"] = source.name
            if skipped:
                members["skipped"] = True
            if order is not None:
                members["order"] = order
            inputs = [digest for reference, digest in self._inputs if self._is_owner(reference())]
            if inputs:
                members["inputs"] = content_digest(inputs).hex()
            scalars = {"lr": [float_text(rate) for rate in learning_rates(optimizer)]}
            if self._losses:
                scalars["loss"] = self._losses
            members["scalars"] = scalars
            if values:
                members["values"] = values
            self._inputs, self._losses = [], []
            self._writer.put(members, digests, indices)
            self.seconds["line"] += time.perf_counter() - began
            if self.forward is None:
                self._keep_values(self.steps, digests, state, rng)
            else:
                self.forward.leave()
            self.steps += 1

    def end(self) -> dict[str, Any]:
        """Return what the `end` line says of state, streams and profile."""
        with self._lock:
            state, _, values = self._collect()
            rng = self._digest_streams()
            self._new_streams(rng)
            self._log_workers(last=True)
            self._log_saved()
            if self._checkpoints.left_out:
                self.not_recorded.add(
                    f"what {self._checkpoints.left_out} of {self._checkpoints.count} checkpoints hold"
                )
            members: dict[str, Any] = {"i": self.steps, "state": state, "rng": rng, "profile": numeric_profile()}
            if values:
                members["values"] = values
            return members

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def before_save(self, value: Any) -> dict[str, Any] | None:
        """Compare an object that the script is about to save with the memory as it is."""
        if not self._optimizers or not self._checkpoints.wants():
            return None
        with self._lock:
            self._log_saved()
            streams = {name: text for name, text in self._streams.digests().items() if name in self._known_streams}
            known = self._headers.keys() | self._values.keys()
            try:
                return self._checkpoints.compare(value, self._sources(), known.__contains__, streams, self._latest)
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # objects of any kind may be in it
                self.not_recorded.add(f"what a checkpoint holds ({type(error).__name__})")
                return None

    def after_save(self, found: dict[str, Any], target: Any) -> None:
        """Write down a checkpoint: at once, or at the next step where its file is not closed yet."""
        path, closed = saved_file(target)
        with self._lock:
            if path is None:
                self._put_checkpoint(self.steps, found)
            elif closed:
                self._put_checkpoint(self.steps, {**self.saved_file(path), **found})
            else:
                self._saving.append((self.steps, found, path))

    def _log_saved(self) -> None:
        waiting, self._saving = self._saving, []
        for _, found, path in waiting:
            self._put_checkpoint(self.steps, {**self.saved_file(path), **found})

    def _put_checkpoint(self, steps: int, found: dict[str, Any]) -> None:
        self._writer.put({"t": "inventory", "i": steps, "checkpoints": [found]})

    # Order ---------------------------------------------------------------------------------------------------------

    def _log_epochs(self, used: list[Batch]) -> None:
        """Write down the epochs that begin with these batches."""
        for batch in used:
            epoch = batch.epoch
            if epoch is None or epoch.logged:
                continue
            epoch.logged, epoch.name = True, self._loader_name(epoch)
            epoch.number = self._epochs[epoch.name] = self._epochs.get(epoch.name, -1) + 1
            self._latest = epoch
            self._new_streams(epoch.rng)
            members = {"t": "epoch", "i": self.steps, "epoch": epoch.number, "loader": epoch.name, "rng": epoch.rng}
            if epoch.numbers and self._numbers.get(epoch.name) != epoch.numbers:
                self._numbers[epoch.name] = members["data"] = epoch.numbers
            self._writer.put(members | epoch.facts)

    def _log_draws(self) -> None:
        """Write down what streams were seen to be drawn from for, and what workers have told."""
        self.look()
        if draws := self._draws.step(self.steps):
            self._writer.put({"t": "inventory", "i": self.steps, "draws": draws})
        if self._working:
            self._log_workers()

    def _log_workers(self, last: bool = False) -> None:
        for epoch in [epoch for epoch in self._working if epoch.logged and epoch.slots is not None]:
            assert epoch.slots is not None
            found = [
                {
                    "loader": epoch.name,
                    "epoch": epoch.number,
                    "worker": worker,
                    "streams": {name: text for name, text in report["streams"].items() if name in self._known_streams},
                    "consumed": [name for name in report["consumed"] if name in self._known_streams],
                }
                for worker, report in epoch.slots.take(last).items()
            ]
            if found:
                self._writer.put({"t": "inventory", "i": self.steps, "workers": found})
            if epoch.slots.done or last:
                self._working.remove(epoch)
                self._worker_epochs += 1

    def _loader_name(self, epoch: EpochStart) -> str:
        loader = epoch.loader()
        for reference, name in self._loaders.values():
            if loader is not None and reference() is loader:
                return name
        name = "loader" if not self._loaders else f"loader{len(self._loaders) + 1}"
        self._loaders[len(self._loaders)] = (epoch.loader, name)
        description = Loader.model_validate(epoch.description).to_json()
        self._writer.put({"t": "inventory", "i": self.steps, "loaders": {name: description}})
        return name

    # State ---------------------------------------------------------------------------------------------------------

    def _sources(self) -> list[Source]:
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
        return [*self._modules, *self._optimizers.values(), *others]

    def _collect(self, initial: bool = False) -> tuple[dict[str, str], list[bytes], dict[str, Any]]:
        """Return component digests, all tensor digests by sorted component name, and the values that changed."""
        began = time.perf_counter()
        state: dict[str, str] = {}
        tensors: dict[str, list[bytes]] = {}
        changed: dict[str, Any] = {}
        appeared: dict[str, Any] = {}
        if self._schedulers:
            self._adopt_schedulers()
        with torch._C.DisableTorchFunction():
            self._adopt_teachers()
            for source in self._sources():
                for component in source.components():
                    if component.tensors is None:
                        digest = self._digest_values(component, appeared, changed, initial)
                    else:
                        header = self._header(component, component.tensors, appeared)
                        digests = [tensor_digest(tensor) for _, tensor in component.tensors]
                        tensors[component.name] = digests
                        digest = component_digest(header, digests)
                    state[component.name] = digest.hex()
                    self._checkpoints.begins(component, tensors.get(component.name), initial)
        if appeared:
            self._writer.put({"t": "inventory", "i": self.steps, "components": appeared})
        if not initial:
            self.seconds["state"] += time.perf_counter() - began
        flat = [digest for name in sorted(tensors) for digest in tensors[name]]
        return state, flat, changed

    def _header(
        self, component: ComponentState, tensors: list[tuple[str, torch.Tensor]], appeared: dict[str, Any]
    ) -> bytes:
        identity = tuple((id(tensor), tensor.shape, tensor.dtype) for _, tensor in tensors)  # an id may be used again
        known = self._headers.get(component.name)
        if known is not None and known.identity == identity:
            return known.canonical
        header = tuple((name, dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors)
        if known is None or known.tensors != header:
            size = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
            appeared[component.name] = _component(component, size, tensors=header)
        canonical = canonical_bytes(header)
        self._headers[component.name] = _Header(identity, canonical, header)
        return canonical

    def _digest_values(
        self, component: ComponentState, appeared: dict[str, Any], changed: dict[str, Any], initial: bool
    ) -> bytes:
        """Return the digest of plain values; new ones are introduced, and so are changed ones where no step tells."""
        known = self._values.get(component.name)
        if known is not None and known[0] == component.values:
            return known[1]
        digest = value_digest(component.values)
        if known is None or initial:
            appeared[component.name] = _component(component, 0, values=component.values)
        changed[component.name] = component.values
        self._values[component.name] = (component.values, digest)
        return digest

    def _keep_values(self, step: int, digests: list[bytes], state: dict[str, str], rng: dict[str, str]) -> None:
        began = time.perf_counter()
        with torch._C.DisableTorchFunction():
            if self._dump is not None and self._dump[0] == step:
                write_snapshot(self._dump[1], self._sources(), step, digests)
            if self._snapshots is not None and self._snapshots.wants(step):
                self._write_snapshot(self._snapshots, step, digests, state, rng)
        self.seconds["snapshot"] += time.perf_counter() - began

    def _write_snapshot(
        self, plan: SnapshotPlan, step: int, digests: list[bytes], state: dict[str, str], rng: dict[str, str]
    ) -> None:
        began = time.perf_counter()
        held = {name: digest for name, digest in state.items() if name in self._headers}
        unchanged = plan.unchanged(held)
        values = {name: self._values[name][0] for name in state if name not in held}
        streams = {name: stream for name in rng if (stream := self._streams.describe(name)) is not None}
        names = snapshot_name(step), values_name(step)
        with plan.own_work():
            size = write_snapshot(plan.place(names[0]), self._sources(), step, digests, unchanged)
            if size is None:
                self.not_recorded.add(f"the snapshot of step {step}: a thread changed tensors while it was written")
                return
            rest = write_values(plan.place(names[1]), step, values, streams)
        line = {"t": "snapshot", "i": step + 1, "file": names[0], "size": size}
        line["values"] = {"file": names[1], "size": rest}
        self._writer.put({**line, "unchanged": unchanged} if unchanged else line)
        written = {name: digest for name, digest in held.items() if name not in unchanged}
        plan.wrote(step, written, size + rest, time.perf_counter() - began)

    # Fast-forward --------------------------------------------------------------------------------------------------

    def put_back(self, saved: Mapping[str, Saved]) -> list[str]:
        """Put the state back to what was kept of it; return what could not be."""
        self._adopt_schedulers()
        for watched in (self._called, self._inner):
            known = {source.name for source in self._teachers}
            for name, module in watched.fitting(saved, known, self._is_followed if watched is self._called else _never):
                self._follow(name, module, within=watched is self._inner)
        return restore_state(self._sources(), saved)

    def drop_gradients(self) -> None:
        """Leave the optimizers without gradients, as before the first backward pass."""
        for source in self._optimizers.values():
            for group in source.optimizer.param_groups if source.optimizer is not None else ():
                for param in group["params"]:
                    param.grad = None

    # Discovery -----------------------------------------------------------------------------------------------------

    def _adopt(self, optimizer: torch.optim.Optimizer) -> None:
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
        roots = [found for source in self._modules if (found := source.root) is not None]
        for copy in (*find_copies(roots), *find_averages(roots)):
            self._called.add(copy)
        self._owned.clear()
        chain = nested(optimizer)
        for inner, item in zip([None, *chain], chain, strict=False):
            self._add_optimizer(item, inner)
        trained = self._trained()
        self._inner.forget(lambda part: not trained.isdisjoint(map(id, part.parameters())))
        self._drop_teachers(trained)
        for part in (part for root in roots for part in untrained_parts(root, trained)):
            self._inner.add(part)
        names = self._param_names()
        named = [names(id(param)) or str(index) for index, param in enumerate(params)]
        self._copies += find_plain_copies(params, named, self._copies)

    def _add_optimizer(self, optimizer: torch.optim.Optimizer, inner: torch.optim.Optimizer | None) -> None:
        old = self._optimizers.get(id(optimizer))
        if old is not None and old.optimizer is optimizer:
            name = old.name
        else:
            name = _numbered("optimizer", self._optimizers_made)
            self._optimizers_made += 1
        self._sizes[id(optimizer)] = sum(len(group["params"]) for group in optimizer.param_groups)
        self._optimizers[id(optimizer)] = OptimizerSource(name, optimizer, self._param_names(), inner)

    def _drop_teachers(self, trained: set[int]) -> None:
        """Forget the teachers that are trained now: a module may be trained later than it is called."""
        for source in [source for source in self._teachers if not trained.isdisjoint(source.tensor_ids())]:
            self._teachers.remove(source)
            for model in self._modules:
                model.release(source.tensor_ids())

    def _trained(self) -> set[int]:
        """Return the ids of all parameters that some optimizer has."""
        optimizers = [item for source in self._optimizers.values() if (item := source.optimizer) is not None]
        return {id(param) for item in optimizers for group in item.param_groups for param in group["params"]}

    def _adopt_samplers(self, used: list[Batch]) -> None:
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

    def _look_for_banks(self) -> None:
        began = time.perf_counter()
        with torch._C.DisableTorchFunction():
            sources = self._sources()
            known = [tensor for source in sources for item in source.components() for _, tensor in item.tensors or ()]
            known += [tensor for copy in self._copies for tensor in copy.tensors()]  # changed already or not
            trained = [parameter for module in self._modules if module.root for parameter in module.root.parameters()]
            self._banks.look(known, trained)
        self.not_recorded |= self._banks.not_recorded
        self.seconds["state"] += time.perf_counter() - began

    def _adopt_teachers(self) -> None:
        """Follow the modules that were called, change, and are trained by no optimizer."""
        inner = self._inner.changed(lambda _: False)
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

    def _owns(self, module: torch.nn.Module) -> bool | None:
        """Tell whether a module owns optimizer parameters; `None` while no optimizer is known."""
        return self._is_owner(module) if self._optimizers else None

    def _is_owner(self, module: torch.nn.Module | None) -> bool:
        if module is None:
            return False
        found = self._owned.get(module)
        if found is None:
            params = {
                id(param)
                for source in self._optimizers.values()
                if (optimizer := source.optimizer) is not None
                for group in optimizer.param_groups
                for param in group["params"]
            }
            found = self._owned[module] = any(id(param) in params for param in module.parameters())
        return found

    # Streams -------------------------------------------------------------------------------------------------------

    def _digest_streams(self) -> dict[str, str]:
        began = time.perf_counter()
        digests = self._streams.digests()
        self.seconds["rng"] += time.perf_counter() - began
        return digests

    def _new_streams(self, names: dict[str, str]) -> None:
        new = names.keys() - self._known_streams
        if new:
            self._checkpoints.see_streams({name: names[name] for name in new})
            self._known_streams |= new
            found = {name: self._streams.describe(name) for name in sorted(new)}
            streams = {name: stream.to_json() for name, stream in found.items() if stream is not None}
            self._writer.put({"t": "inventory", "i": self.steps, "streams": streams})


def _is_part(module: torch.nn.Module, modules: list[torch.nn.Module]) -> bool:
    return any(module is part for other in modules if other is not module for part in other.modules())


def _numbered(name: str, known: int) -> str:
    return name if known == 0 else f"{name}{known + 1}"


def _component(component: ComponentState, size: int, **form: Any) -> dict[str, Any]:
    labels = component.labels
    members = {
        "source": labels.source,
        "lifetime": labels.lifetime,
        "visibility": labels.visibility,
        "bytes": size,
        "lifetime_steps": None if labels.lifetime_steps is None else float_text(labels.lifetime_steps),
        **form,
    }
    return Component.model_validate(members).to_json()


def _steps_behind(optimizer: torch.optim.Optimizer) -> int | None:
    """Return the largest step counter in an optimizer's state that can be read without waiting for a device."""
    counters = [state.get("step") for state in optimizer.state.values() if isinstance(state, dict)]
    known = [
        int(counter)
        for counter in counters
        if isinstance(counter, (int, float)) or (isinstance(counter, torch.Tensor) and counter.device.type == "cpu")
    ]
    return max((number for number in known if number >= 0), default=None)


def _never(module: torch.nn.Module) -> bool:
    """Say that a module is not followed yet: a part of a trained one always is, as a part."""
    return False
