"""Pins of torch's settings. Each is made right after torch was imported, and holds against what the script sets later.

A setter that is pinned takes the script's value and does nothing with it.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader

from trainmem_audit.pinning.callers import from_machinery, note_place

__all__ = [
    "pin_cuda_seed",
    "pin_cudnn",
    "pin_determinism",
    "pin_empty",
    "pin_generators",
    "pin_memory_format",
    "pin_precision",
    "pin_threads",
    "pin_workers",
]


def _ignore(owner: Any, name: str, pin: str) -> None:
    """Replace a setter by one that does nothing."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def ignored(*args: Any, **kwargs: Any) -> None:
        note_place(pin)

    setattr(owner, name, ignored)


def pin_threads() -> None:
    """Compute on one thread."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    _ignore(torch, "set_num_threads", "threads")
    _ignore(torch, "set_num_interop_threads", "threads")


def pin_determinism() -> None:
    """Use deterministic algorithms, warning where there is none. Memory that is not initialised stays so."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _ignore(torch, "use_deterministic_algorithms", "deterministic")
    _ignore(torch, "set_deterministic_debug_mode", "deterministic")


def pin_empty(watch: bool = False) -> None:
    """Fill the memory of tensors that are made without values; with `watch`, only note who makes them."""

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def filled(*args: Any, **kwargs: Any) -> Any:
            made = real(*args, **kwargs)
            if from_machinery(sys._getframe(1)):
                return made  # layers, which fill it next
            note_place("empty")
            if watch:
                return made
            with torch.no_grad():
                return made.zero_()

        setattr(owner, name, filled)

    for name in ("empty", "empty_like", "empty_strided"):
        wrap(torch, name)
    wrap(torch.Tensor, "new_empty")


def pin_precision() -> None:
    """Multiply float32 matrices in float32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    _ignore(torch, "set_float32_matmul_precision", "precision")
    _freeze(torch.backends.cuda.matmul.__class__, "allow_tf32", False)
    _freeze(type(torch.backends.cudnn), "allow_tf32", False)


def pin_cudnn() -> None:
    """Let cuDNN neither choose kernels by a race nor use any whose result varies."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _freeze(type(torch.backends.cudnn), "benchmark", False)
    _freeze(type(torch.backends.cudnn), "deterministic", True)


def _freeze(owner: type, name: str, value: Any) -> None:
    """Make a setting that is an attribute keep its value."""
    setting: Any = vars(owner).get(name)
    if hasattr(setting, "setter") and not isinstance(setting, property):  # torch's own kind of property
        setting.setter = lambda _: None
    elif "__setattr__" in vars(owner):
        real: Any = owner.__setattr__

        def set_other(self: Any, attribute: str, given: Any) -> None:
            real(self, attribute, value if attribute == name else given)

        owner.__setattr__ = set_other  # type: ignore[assignment,method-assign]


def pin_memory_format() -> None:
    """Keep tensors in the order of their dimensions: no `channels_last`."""
    channels_last = (torch.channels_last, torch.channels_last_3d)

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("memory_format") in channels_last:
                note_place("memory")
                del kwargs["memory_format"]
            return real(self, *args, **kwargs)

        setattr(owner, name, plain)

    wrap(torch.nn.Module, "to")
    wrap(torch.Tensor, "to")
    wrap(torch.Tensor, "contiguous")


def pin_workers() -> None:
    """Load data in the process itself."""
    alone = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "timeout": 0}
    _pin_loader(alone | {"multiprocessing_context": None})


def pin_generators() -> None:
    """Give every data loader that has no generator one with a fixed seed."""
    _pin_loader({}, generator=True)


def _pin_loader(fixed: dict[str, Any], generator: bool = False) -> None:
    real = DataLoader.__init__
    signature = inspect.signature(real)

    @functools.wraps(real)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        if not generator:
            given.update(fixed)
        elif given.get("generator") is None:
            given["generator"] = torch.Generator().manual_seed(0)
        note_place("generator" if generator else "workers")
        rest = {name: value for name, value in given.items() if name != "self"}
        real(self, **rest)

    DataLoader.__init__ = made  # type: ignore[method-assign]


def pin_cuda_seed(seed: int) -> None:
    """Seed the generators of all GPUs, once there are any."""
    if torch.version.cuda is not None:
        torch.cuda.manual_seed_all(seed)
