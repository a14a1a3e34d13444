"""The pins by name: what each needs of the environment, and `apply`, which makes them in the launched process.

Names and environment are for the parent, which imports no torch; the rest happens before the script runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, Final, get_args, Literal

from trainmem_audit.recording.importing import after_import

__all__ = ["STREAMS", "Pin", "apply", "environment_of", "start_nonces", "PINS"]

Pin = Literal[
    "rng.python",
    "rng.numpy",
    "rng.numpy.entropy",
    "rng.torch",
    "hash",
    "entropy",
    "clock",
    "turns",
    "workers",
    "generator",
    "threads",
    "deterministic",
    "deterministic.order",
    "cudnn",
    "precision",
    "memory",
    "addresses",
]
PINS: Final[tuple[Pin, ...]] = get_args(Pin)

STREAMS: Final[dict[str, str]] = {
    "rng.python": "python",
    "rng.numpy": "numpy",
    "rng.numpy.entropy": "numpy.entropy",
    "rng.torch": "torch.cpu",
}
"""The pins of start states, and which stream of the recording each starts."""

_NONCE: Final = "7472616e6d656d2074776963652e0000"
"""What pinned streams start from: the same for ever, so that an experiment can be repeated."""
_SEED: Final = 20_260_121
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_NO_RANDOMIZE: Final = 0x0040000
_ASK: Final = 0xFFFFFFFF


def environment_of(pins: Iterable[str]) -> dict[str, str]:
    """Return the environment variables that the pins need from the start of the process."""
    found: dict[str, str] = {}
    for pin in pins:
        if pin == "hash":
            found["PYTHONHASHSEED"] = "0"
        elif pin == "threads":
            found |= dict.fromkeys((*_ONE_THREAD, "NUMBA_NUM_THREADS"), "1")
        elif pin in ("deterministic", "deterministic.order"):
            found["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        elif pin == "precision":
            found["NVIDIA_TF32_OVERRIDE"] = "0"
    return found


def start_nonces(pins: Iterable[str]) -> dict[str, str]:
    """Return what the pinned random streams start from (`recording.recording.Options.starts`)."""
    return {STREAMS[pin]: _NONCE for pin in pins if pin in STREAMS}


def apply(pins: Iterable[str], clock_start: int) -> None:
    """Make the pins in this process, before the script runs.

    Parameters
    ----------
    clock_start:
        The moment that a pinned clock shows first, in nanoseconds since 1970.
    """
    wanted = set(pins)
    if "addresses" in wanted:
        _fix_addresses()
    if "turns" in wanted:  # before the clock, which lets its own sleep take time on top
        from trainmem_audit.pinning.turns import pin_turns

        pin_turns()
    if "clock" in wanted:
        from trainmem_audit.pinning.clock import pin_clock

        pin_clock(clock_start)
    if "entropy" in wanted:
        from trainmem_audit.pinning.entropy import pin_entropy

        pin_entropy(_NONCE)
    after_import("torch", lambda: _apply_settings(wanted))


def _apply_settings(pins: set[str]) -> None:
    from trainmem_audit.pinning import settings

    actions: dict[str, Any] = {
        "threads": settings.pin_threads,
        "deterministic": lambda: settings.pin_determinism(fill=True),
        "deterministic.order": lambda: settings.pin_determinism(fill=False),
        "precision": settings.pin_precision,
        "cudnn": settings.pin_cudnn,
        "memory": settings.pin_memory_format,
        "workers": settings.pin_workers,
        "generator": settings.pin_generators,
        "rng.torch": lambda: settings.pin_cuda_seed(_SEED),
    }
    for name, action in actions.items():
        if name in pins:
            action()


def _fix_addresses() -> None:
    """Start this process again without address randomisation (Linux), unless it runs so already."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    now = library.personality(_ASK)
    if now == -1 or library.personality(now | _NO_RANDOMIZE) == -1:
        raise OSError(ctypes.get_errno(), "address randomisation cannot be switched off here")
    if not now & _NO_RANDOMIZE:
        os.execv(sys.executable, sys.orig_argv)
