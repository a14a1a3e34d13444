"""Where torch tells the session what happens: global optimizer and module hooks, and wrapped methods of DataLoader,
its iterators, the schedulers and `Tensor.backward`.

Every hook calls the real thing with the real arguments and gives back what it gave. An error in ours is caught, said
once, and ends the recording; it never reaches the script.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import _compile
from torch.amp.grad_scaler import GradScaler
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as worker_module
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter
from torch.utils.hooks import RemovableHandle

from trainmem_audit.recording.importing import after_import
from trainmem_audit.recording.session import Session
from trainmem_audit.recording.workers import watch_worker
from trainmem_audit.recording.wrapping import wrap

__all__ = ["install"]

_Failure = Callable[[Exception], None]

_STEP_CODE: CodeType = next(
    item for item in torch.optim.Optimizer.profile_hook_step.__code__.co_consts if isinstance(item, CodeType)
)
"""The code that torch puts around every `Optimizer.step`."""
_MAIN_THREAD = threading.main_thread()
_STATEFUL = "torchdata.stateful_dataloader.stateful_dataloader"
_OWN_IDS = 2**40
"""From where our hooks are numbered: the script's own keep the numbers they have in a bare run (pickles hold them)."""


class _Threads(threading.local):
    """Per thread: the depth of module forwards."""

    def __init__(self) -> None:
        self.depth = 0


def install(session: Session, on_failure: _Failure) -> Callable[[], None]:
    """Install all hooks for `session` and return what removes them."""
    hooks = _Hooks(session, on_failure)
    first_id, RemovableHandle.next_id = RemovableHandle.next_id, _OWN_IDS
    forward = [] if session.forward is None else session.forward.install(session)
    removers = [
        *forward,  # first, so that our hooks lie around it
        hooks.optimizers(),
        hooks.modules(),
        *hooks.loaders(),
        hooks.workers(),
        hooks.resuming(),
        *hooks.schedulers(),
        hooks.scalers(),
        hooks.backward(),
        hooks.saving(),
    ]
    RemovableHandle.next_id = first_id
    os.register_at_fork(after_in_child=hooks.stop)

    def uninstall() -> None:
        hooks.stop()
        for remove in reversed(removers):
            remove()

    return uninstall


class _Undisturbed:
    """Lets a Ctrl-C wait while the recorder works: half a line would make the record of an honest run inconsistent."""

    def __enter__(self) -> None:
        self._handler: Any = None
        if threading.current_thread() is _MAIN_THREAD:
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._came: Any = None
                self._handler = handler
                signal.signal(signal.SIGINT, self._keep)

    def _keep(self, number: int, frame: Any) -> None:
        self._came = (number, frame)

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came is not None:
                self._handler(*self._came)


class _Hooks:
    def __init__(self, session: Session, on_failure: _Failure) -> None:
        self._session = session
        self._on_failure = on_failure
        self._threads = _Threads()

    def stop(self) -> None:
        """Record nothing more in this process (also right after a fork, in the child)."""
        self._session.active = False

    @_compile._disable_dynamo
    def _tell(self, event: Callable[..., Any], *args: Any) -> Any:
        """Call `event`; Dynamo must not compile it, for the kernels of the script would be others."""
        if not self._session.active:
            return None
        with _Undisturbed():
            try:
                return event(*args)
            except Exception as error:  # the script must not notice
                self.stop()
                self._on_failure(error)
                return None

    # Steps: the outermost `Optimizer.step`, per thread -------------------------------------------------------------

    def optimizers(self) -> Callable[[], None]:
        session = self._session

        @_compile._disable_dynamo
        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._tell(session.before_step, optimizer)

        @_compile._disable_dynamo
        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if session.active and _steps_under_way() == 1:  # else an outer step is still on the stack
                self._tell(session.after_step, optimizer)

        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        return lambda: _remove(handles)

    def scalers(self) -> Callable[[], None]:
        session = self._session

        def step(real: Any, scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            attempt = self._tell(session.before_attempt, scaler, optimizer)
            result = real(scaler, optimizer, *args, **kwargs)
            if attempt is not None:
                self._tell(session.after_attempt, optimizer, attempt)
            return result

        return wrap(GradScaler, "step", step)

    # Forwards: the outermost, per thread ---------------------------------------------------------------------------

    def modules(self) -> Callable[[], None]:
        session, threads = self._session, self._threads

        def before(module: torch.nn.Module, args: Any) -> None:
            if not torch.compiler.is_compiling():
                threads.depth += 1
                if threads.depth == 1 and session.holds:
                    self._tell(session.take_back)
                if threads.depth == 1 and session.looking:
                    self._tell(session.look)

        def after(module: torch.nn.Module, args: Any, *rest: Any) -> None:
            if not torch.compiler.is_compiling():
                threads.depth = max(0, threads.depth - 1)
                if threads.depth == 0 and len(rest) == 2:  # keywords and output; a forward that raised has no keywords
                    if session.looking:
                        self._tell(session.look_after_forward, module)
                    self._tell(session.on_forward, module, args, rest[0])

        handles = [
            torch.nn.modules.module.register_module_forward_pre_hook(before),
            torch.nn.modules.module.register_module_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        quiet = wrap(torch.nn.modules.module, "_has_any_global_hook", _has_other_hooks)

        def remove() -> None:
            _remove(handles)
            quiet()

        return remove

    # Batches: when handed out, by task -----------------------------------------------------------------------------

    def loaders(self) -> list[Callable[[], None]]:
        session = self._session

        def make_iterator(real: Any, loader: Any) -> Any:
            epoch = self._tell(session.on_iterator, loader, _forks(loader))
            self._tell(self._note_workers, loader)
            iterator = real(loader)
            iterator._trainmem_epoch = epoch
            if epoch is not None:
                self._tell(session.after_iterator, epoch, iterator)
            return iterator

        def next_index(real: Any, iterator: Any) -> Any:
            self._look("augment")
            iterator._trainmem_index = index = real(iterator)
            self._look("order")
            return index

        def put_index(real: Any, iterator: Any) -> None:
            task = iterator._send_idx
            real(iterator)
            if iterator._send_idx != task:
                vars(iterator).setdefault("_trainmem_sent", {})[task] = iterator._trainmem_index

        def get_data(real: Any, iterator: Any) -> Any:
            task, data = real(iterator)
            batch = data[0] if type(iterator).__module__ == _STATEFUL and isinstance(data, tuple) else data
            vars(iterator).setdefault("_trainmem_tasks", {})[id(batch)] = task
            return task, data

        def process_data(real: Any, iterator: Any, data: Any, *rest: Any) -> Any:
            task = vars(iterator).get("_trainmem_tasks", {}).pop(id(data), None)
            result = real(iterator, data, *rest)
            iterator._trainmem_handed = vars(iterator).get("_trainmem_sent", {}).pop(task, None)
            return result

        def next_batch(real: Any, iterator: Any) -> Any:
            self._look()
            try:
                batch = real(iterator)
            except StopIteration:
                if (epoch := vars(iterator).get("_trainmem_epoch")) is not None:
                    epoch.ended = True
                raise
            self._look("augment")
            several = hasattr(type(iterator), "_try_put_index")
            index = vars(iterator).get("_trainmem_handed" if several else "_trainmem_index")
            self._tell(session.on_batch, vars(iterator).get("_trainmem_epoch"), index, batch)
            return batch

        def follow(loader: type, iterator: type, workers: type) -> None:
            wrapped = [wrap(loader, "__iter__", make_iterator)]
            if iterator is _BaseDataLoaderIter:  # others call its methods
                wrapped += [wrap(iterator, "_next_index", next_index), wrap(iterator, "__next__", next_batch)]
            wrapped += [
                wrap(workers, "_try_put_index", put_index),
                wrap(workers, "_get_data", get_data),
                wrap(workers, "_process_data", process_data),
            ]
            removers.extend(wrapped)

        def follow_stateful() -> None:
            module = sys.modules[_STATEFUL]
            names = ("StatefulDataLoader", "_StatefulBaseDataLoaderIter", "_StatefulMultiProcessingDataLoaderIter")
            follow(*(getattr(module, name) for name in names))

        removers: list[Callable[[], None]] = []
        follow(DataLoader, _BaseDataLoaderIter, _MultiProcessingDataLoaderIter)
        after_import(_STATEFUL, lambda: self._tell(follow_stateful))
        return [lambda: _call_all(removers)]

    def _look(self, *purpose: str) -> None:
        if self._session.looking:
            self._tell(self._session.look, *purpose)

    def workers(self) -> Callable[[], None]:
        """Look at the streams of forked workers, where torch makes the watchdog that they ask before every batch."""
        session = self._session

        def make(real: Any) -> Any:
            return watch_worker(real(), session.digest_worker_streams, session.slots)

        return wrap(worker_module, "ManagerWatchdog", make)

    def resuming(self) -> Callable[[], None]:
        def load(real: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(optimizer, *args, **kwargs)
            self._tell(self._session.on_resumed, optimizer)
            return result

        return wrap(torch.optim.Optimizer, "load_state_dict", load)

    def _note_workers(self, loader: Any) -> None:
        if getattr(loader, "num_workers", 0) and not _forks(loader):
            self._session.not_recorded.add("files read by worker processes that were not forked (name them by --input)")

    # Schedulers and losses -----------------------------------------------------------------------------------------

    def schedulers(self) -> list[Callable[[], None]]:
        def made(real: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
            real(scheduler, *args, **kwargs)
            self._tell(self._session.on_scheduler, scheduler)

        classes = [
            item
            for item in vars(lr_scheduler).values()
            if isinstance(item, type)
            and issubclass(item, lr_scheduler.LRScheduler)
            and "__init__" in vars(item)
            and (item is lr_scheduler.LRScheduler or "super().__init__" not in _source_names(item))
        ]
        return [wrap(item, "__init__", made) for item in dict.fromkeys(classes)]

    def backward(self) -> Callable[[], None]:
        real = torch.Tensor.backward
        tell, on_backward = self._tell, self._session.on_backward

        def run(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            tell(on_backward, loss)
            real(loss, *args, **kwargs)  # type: ignore[no-untyped-call]

        _leave_alone(run)
        setattr(torch.Tensor, "backward", functools.wraps(real)(run))  # noqa: B010
        return lambda: setattr(torch.Tensor, "backward", real)

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def saving(self) -> Callable[[], None]:
        def save(real: Any, *args: Any, **kwargs: Any) -> Any:
            found = self._tell(session.before_save, args[0] if args else kwargs.get("obj", kwargs.get("tensors")))
            result = real(*args, **kwargs)
            if found is not None:
                target = args[1] if len(args) > 1 else kwargs.get("f", kwargs.get("filename"))
                self._tell(session.after_save, found, target)
            return result

        session = self._session
        remove = [wrap(torch, "save", save)]
        saved = vars(torch)["save"]
        real = torch.serialization.save
        setattr(torch.serialization, "save", saved)  # noqa: B010
        remove.append(lambda: setattr(torch.serialization, "save", real))

        def wrap_safetensors() -> None:
            if session.active:
                remove.append(wrap(sys.modules["safetensors.torch"], "save_file", save))

        after_import("safetensors.torch", wrap_safetensors)
        remove.append(self._dumping())
        return lambda: _call_all(remove)

    def _dumping(self) -> Callable[[], None]:
        """Look at what `pickle.dump` and NumPy's writers write: some scripts keep their checkpoints so."""
        session, writing = self._session, threading.local()

        def note(value: Any, target: Any, write: Callable[[], Any]) -> Any:
            if getattr(writing, "now", False):  # NumPy pickles arrays of objects
                return write()
            found = self._tell(session.before_dump, value)
            writing.now = True
            try:
                result = write()
            finally:
                writing.now = False
            if found is not None:
                self._tell(session.after_save, found, target)
            return result

        def dump(real: Any, *args: Any, **kwargs: Any) -> Any:
            target = args[1] if len(args) > 1 else kwargs.get("file")
            return note(args[0] if args else kwargs.get("obj"), target, lambda: real(*args, **kwargs))

        def arrays(real: Any, *args: Any, **kwargs: Any) -> Any:
            value = {f"arr_{number}": item for number, item in enumerate(args[1:])} | kwargs
            target = args[0] if args else kwargs.get("file")
            return note(value, _suffixed(target, ".npz"), lambda: real(*args, **kwargs))

        def array(real: Any, *args: Any, **kwargs: Any) -> Any:
            value = args[1] if len(args) > 1 else kwargs.get("arr")
            target = args[0] if args else kwargs.get("file")
            return note({"arr": value}, _suffixed(target, ".npy"), lambda: real(*args, **kwargs))

        remove = [wrap(pickle, "dump", dump)]

        def wrap_numpy() -> None:
            if session.active:
                numpy = sys.modules["numpy"]
                remove.extend(wrap(numpy, name, arrays) for name in ("savez", "savez_compressed"))
                remove.append(wrap(numpy, "save", array))

        after_import("numpy", wrap_numpy)
        return lambda: _call_all(remove)


def _suffixed(target: Any, suffix: str) -> Any:
    """Return the path that NumPy writes to; a file object as it is."""
    if not isinstance(target, (str, os.PathLike)):
        return target
    path = os.fspath(target)
    return path if not isinstance(path, str) or path.endswith(suffix) else path + suffix


def _leave_alone(function: Any) -> None:
    """Keep Dynamo from compiling the frames of `function`, as it does with torch's own, after a graph break, say.

    `torch._dynamo.disable` would put frames of its own around it, which a traceback of the script would show.
    """
    frames: Any = torch._C._dynamo.eval_frame
    strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
    frames.set_code_exec_strategy(function.__code__, strategy)


def _forks(loader: Any) -> bool:
    """Tell whether the loader's workers are forked, without settling the default start method."""
    context = getattr(loader, "multiprocessing_context", None)
    method = multiprocessing.get_start_method(allow_none=True) if context is None else context.get_start_method()
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def _call_all(removers: list[Callable[[], None]]) -> None:
    for remove in reversed(removers):
        remove()


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _source_names(item: type) -> str:
    """Say whether a scheduler's own `__init__` reaches the base class's: `super().__init__` if it names `super`."""
    code = vars(item)["__init__"].__code__
    return "super().__init__" if "super" in code.co_names and "__class__" in code.co_freevars else ""


def _steps_under_way() -> int:
    """Count the `Optimizer.step` calls on this thread's stack; nothing to forget when one of them raises."""
    count = 0
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _STEP_CODE or (code.co_filename == _STEP_CODE.co_filename and _STEP_CODE.co_name in code.co_name):
            count += 1  # by name where Dynamo has rewritten the code
        frame = frame.f_back  # type: ignore[assignment]
    return count


def _has_other_hooks(real: Callable[[], bool]) -> bool:
    """Answer for the script's global module hooks alone: about ours a compiled module would warn."""
    module = torch.nn.modules.module
    tables = (
        module._global_backward_pre_hooks,
        module._global_backward_hooks,
        module._global_forward_hooks,
        module._global_forward_pre_hooks,
        module._global_forward_hooks_always_called,
        module._global_forward_hooks_with_kwargs,
    )
    return any(number < _OWN_IDS for table in tables for number in table)
