"""Turns what happens in a training process into step-log lines.

`hooks` calls the `on_…` methods; each reads state, never writes it, draws no random number, and keeps no object of the
script's alive. Digests are taken here, on the training thread; lines are built and written by `writer`. Which batches
belong to a step is decided in `order`.
"""

from __future__ import annotations

import math
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
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.steplog import Component, Loader
from trainmem_audit.errors import InterventionError, TrainmemAuditError
from trainmem_audit.intervening import Applied, Hold, Surroundings, apply
from trainmem_audit.interventions import MISSED, text_of
from trainmem_audit.recording.acts import Acts, act_members, storages_of
from trainmem_audit.recording.checkpoints import CheckpointWatch, SavedFile, saved_file
from trainmem_audit.recording.draws import DrawWatch, forward_purpose, numbers_of
from trainmem_audit.recording.facts import numeric_profile
from trainmem_audit.recording.forward import FastForward
from trainmem_audit.recording.memory import Memory
from trainmem_audit.recording.order import (
    Batch,
    EpochStart,
    PendingBatches,
    describe_loader,
    loader_generators,
    parts_of,
    sampler_epoch,
)
from trainmem_audit.recording.probing import Probing
from trainmem_audit.recording.snapshots import SnapshotPlan, write_snapshot, write_values
from trainmem_audit.recording.workers import Slots
from trainmem_audit.recording.writer import LogWriter
from trainmem_audit.snapshots import snapshot_name, values_name
from trainmem_audit.sources.base import ComponentState, Saved, plain_value
from trainmem_audit.sources.batches import batch_digest, batch_size, index_bytes
from trainmem_audit.sources.optimizers import learning_rates
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
        Tells whether a file of code is the script's own (`memory`).
    memory, streams:
        What is known already, where one process records several runs of the same objects.
    state_at:
        After which steps the state is digested; all of them if left out. Order and streams are recorded at every step.
    acts:
        What an unmodified script is to be intervened on.
    """

    def __init__(
        self,
        writer: LogWriter,
        known_streams: set[str],
        on_first_step: Callable[[], None],
        snapshots: SnapshotPlan | None = None,
        dump: tuple[int, Path] | None = None,
        is_own_code: Callable[[str], bool] = lambda _: False,
        memory: Memory | None = None,
        streams: StreamSet | None = None,
        state_at: Callable[[int], bool] | None = None,
        acts: Acts | None = None,
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
        self._streams = StreamSet() if streams is None else streams
        self._known_streams = known_streams
        self._memory = Memory(is_own_code) if memory is None else memory
        self._state_at = state_at
        self._acts = acts
        self._holds: list[Hold] = []
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
        self.probing: Probing | None = None

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
        if self._acts is not None:
            epoch.plan = self._acts.see(epoch.loader(), iterator)
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
            owns = self._memory.owns(module)
            if grad and owns is not False:
                self._inputs.append((reference, batch_digest([args, kwargs])))
                if self._acts is not None:
                    self._acts.watch(self.steps, module, args, kwargs)
            if not owns:
                self._memory.called(module)
        self.seconds["inputs"] += time.perf_counter() - began

    def on_backward(self, loss: torch.Tensor) -> None:
        """Note the value that a backward pass starts from, where reading it costs no wait for a device."""
        with self._lock:
            self._memory.before_backward()
        if loss.numel() == 1 and loss.device.type == "cpu" and loss.is_floating_point():
            self._losses.append(float_text(float(loss.detach().item())))
        elif loss.device.type != "cpu":
            self.not_recorded.add("losses on a device (reading them would wait for it)")

    def on_scheduler(self, scheduler: Any) -> None:
        """Note a learning-rate scheduler that was just made."""
        self._memory.scheduler(scheduler)

    def track(self, source: TrackedSource) -> None:
        """Report memory that the program has registered; once for every name."""
        with self._lock:
            self._memory.track(source)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take stock before an optimizer steps for the first time, or with other parameters than before."""
        if self._memory.is_known(optimizer):
            return
        with self._lock:
            first = not self._memory.optimizers
            if first:
                self._begin()
            self._memory.adopt(optimizer)
            if first:
                self._memory.look_for_banks()
            self._take_stock()
            if first:
                self._act()
                self._observe()

    def begin_known(self) -> None:
        """Take stock of what is known already, before the first step."""
        with self._lock:
            self._begin()
            self._take_stock()

    def _begin(self) -> None:
        self._on_first_step()
        self._writer.put({"t": "inventory", "profile": numeric_profile()})

    def _take_stock(self) -> None:
        state, _, _ = self._collect(initial=True)
        self._streams.adopt()
        streams = self._streams.digests()
        self._new_streams(streams)
        self._checkpoints.see_streams(streams)
        self._writer.put({"t": "inventory", "i": self.steps, "state": state})

    def before_attempt(self, scaler: Any, optimizer: torch.optim.Optimizer) -> int:
        """Note a gradient scaler that is about to step `optimizer`, or to skip it; return the steps so far."""
        self._memory.scaler(scaler)
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
            order, indices, used = self._batches.consumed(self._memory.is_owner)
            began = time.perf_counter()
            self._memory.after_step(optimizer, self.steps + 1, used)
            self.take_back()
            self.seconds["state"] += time.perf_counter() - began
            whole = self._is_whole()
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
            optimizers = self._memory.optimizers
            if len(optimizers) > 1:
                members["optimizer"] = optimizers[id(optimizer)].name
            if skipped:
                members["skipped"] = True
            if order is not None:
                members["order"] = order
            inputs = [digest for reference, digest in self._inputs if self._memory.is_owner(reference())]
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
            self._act()
            self._observe()

    def _observe(self) -> None:
        """Write down what the model predicts for the probe, where that was asked for at this cut."""
        if self.probing is None or not self.probing.wants(self.steps):
            return
        self.active = False  # its forwards are none of the script's
        try:
            self._writer.put(self.probing.observe(self.steps, self._memory, self._streams))
        finally:
            self.active = True

    def _is_whole(self) -> bool:
        """Tell whether the state after this step is digested."""
        if self.forward is not None:
            return self.forward.arrive()
        return self._state_at is None or self._state_at(self.steps)

    def end(self) -> dict[str, Any]:
        """Return what the `end` line says of state, streams and profile."""
        with self._lock:
            self.take_back()
            if self._acts is not None:
                self.not_recorded |= {f"{MISSED} {text}" for text in self._acts.missed(self.steps)}
            state, _, values = self._collect()
            rng = self._digest_streams()
            self._new_streams(rng)
            self._log_workers(last=True)
            self._log_saved()
            self.not_recorded |= self._memory.not_recorded
            if self._checkpoints.left_out:
                self.not_recorded.add(
                    f"what {self._checkpoints.left_out} of {self._checkpoints.count} checkpoints hold"
                )
            members: dict[str, Any] = {"i": self.steps, "state": state, "rng": rng, "profile": numeric_profile()}
            if values:
                members["values"] = values
            return members

    # Interventions -------------------------------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether something is frozen."""
        return bool(self._holds)

    def take_back(self) -> None:
        """Take back what training has written into what is frozen."""
        for hold in self._holds:
            try:
                hold.take_back()
            except TrainmemAuditError as error:
                raise InterventionError(f"freeze:{hold.kept[0][0]}", error) from None

    def intervene(self, intervention: Intervention, surroundings: Surroundings | None = None) -> Applied:
        """Do an intervention now, at the cut, and write its line.

        Raises
        ------
        UsageError
            If it cannot be done: it names what there is not, say.
        """
        with self._lock:
            self._streams.adopt()
            self.take_back()
            before, _, earlier = self._collect()
            rng = self._digest_streams()
            self._new_streams(rng)
            shared = storages_of(self._memory.sources())
            self.active = False  # a forward pass of ours is none of the script's
            try:
                applied = apply(intervention, self._memory, self._streams, surroundings or Surroundings())
            finally:
                self.active = True
            if applied.hold is not None:
                self._holds.append(applied.hold)
            after, _, values = self._collect()
            line = act_members(intervention, applied, (before, after), (rng, self._digest_streams()), shared)
            if values := {name: value for name, value in (earlier | values).items() if name in after}:
                line["values"] = values
            self._writer.put({"t": "intervention", "i": self.steps, **line})
            return applied

    def _act(self) -> None:
        """Do what is to be done to an unmodified script now; end it where that cannot be done."""
        acts = self._acts
        if acts is None:
            return
        acts.keep(self.steps, self._memory)
        for intervention in acts.due(self.steps):
            try:
                plan = None if self._latest is None else self._latest.plan
                self.intervene(intervention, acts.surroundings(self.steps, intervention, plan))
            except TrainmemAuditError as error:
                self.not_recorded.add(f"{MISSED} {text_of(intervention, self.steps)}")
                raise InterventionError(text_of(intervention, self.steps), error) from None
        acts.done(self.steps)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def before_save(self, value: Any) -> dict[str, Any] | None:
        """Compare an object that the script is about to save with the memory as it is."""
        if not self._memory.optimizers or not self._checkpoints.wants():
            return None
        with self._lock:
            self._log_saved()
            streams = {name: text for name, text in self._streams.digests().items() if name in self._known_streams}
            known = self._headers.keys() | self._values.keys()
            try:
                return self._checkpoints.compare(
                    value, self._memory.sources(), known.__contains__, streams, self._latest
                )
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # objects of any kind may be in it
                self.not_recorded.add(f"what a checkpoint holds ({type(error).__name__})")
                return None

    def before_dump(self, value: Any) -> dict[str, Any] | None:
        """Compare an object that is about to be written in a way not for checkpoints alone, if it is like one."""
        if not self._memory.optimizers:
            return None
        forms = {
            (dtype, shape)
            for header in self._headers.values()
            for _, dtype, shape in header.tensors
            if math.prod(shape) > 1  # a counter is like any number
        }
        return self.before_save(value) if self._checkpoints.resembles(value, forms) else None

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

    def _collect(self, initial: bool = False) -> tuple[dict[str, str], list[bytes], dict[str, Any]]:
        """Return component digests, all tensor digests by sorted component name, and the values that changed."""
        began = time.perf_counter()
        state: dict[str, str] = {}
        tensors: dict[str, list[bytes]] = {}
        changed: dict[str, Any] = {}
        appeared: dict[str, Any] = {}
        with torch._C.DisableTorchFunction():
            self._memory.settle()
            for source in self._memory.sources():
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
                write_snapshot(self._dump[1], self._memory.sources(), step, digests)
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
            size = write_snapshot(plan.place(names[0]), self._memory.sources(), step, digests, unchanged)
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
        return self._memory.put_back(saved)

    def drop_gradients(self) -> None:
        """Leave the optimizers without gradients, as before the first backward pass."""
        self._memory.drop_gradients()

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
