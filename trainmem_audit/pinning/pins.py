"""The pins by name: what each needs of the environment, and `apply`, which makes them in the launched process.

Names and environment are for the parent, which imports no torch; the rest happens before the script runs.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, get_args

from trainmem_audit.pinning.callers import note_place, write_places_to
from trainmem_audit.recording.importing import after_import

__all__ = [
    "PINS",
    "STREAMS",
    "WATCHED",
    "Pin",
    "apply",
    "can_fix_addresses",
    "environment_of",
    "fix_addresses",
    "start_nonces",
    "watch",
]

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
    "empty",
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

WATCHED: Final[frozenset[Pin]] = frozenset({"clock", "entropy", "turns", "empty"})
"""The pins that change nothing unless the script, or a package that it uses, asks for what they hold still."""

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
        if pin in ("hash", "addresses"):  # what the interpreter allocates follows the order of sets of names
            found["PYTHONHASHSEED"] = "0"
        elif pin == "threads":
            found |= dict.fromkeys((*_ONE_THREAD, "NUMBA_NUM_THREADS"), "1")
        elif pin == "deterministic":
            found["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        elif pin == "precision":
            found["NVIDIA_TF32_OVERRIDE"] = "0"
    return found


def start_nonces(pins: Iterable[str]) -> dict[str, str]:
    """Return what the pinned random streams start from (`recording.recording.Options.starts`)."""
    return {STREAMS[pin]: _NONCE for pin in pins if pin in STREAMS}


def watch(places: Path, root: str) -> None:
    """Pin nothing; write which lines of the code below `root` ask for what the pins in `WATCHED` hold still."""
    from trainmem_audit.pinning.clock import pin_clock
    from trainmem_audit.pinning.empty import pin_numpy_empty
    from trainmem_audit.pinning.entropy import pin_entropy
    from trainmem_audit.pinning.turns import watch_threads

    write_places_to(places, root)
    watch_threads()
    pin_clock(0, watch=True)
    pin_entropy("", watch=True)
    after_import("numpy", lambda: pin_numpy_empty(watch=True))
    after_import("torch", _watch_torch)


def _watch_torch() -> None:
    from trainmem_audit.pinning.settings import pin_empty

    pin_empty(watch=True)


def apply(pins: Iterable[str], clock_start: int, places: Path, root: str) -> None:
    """Make the pins in this process, before the script runs; that of memory addresses is made before (`fix_addresses`).

    Parameters
    ----------
    clock_start:
        The moment that a pinned clock shows first, in nanoseconds since 1970.
    places, root:
        Where to write which lines of the code below `root` ask for what is pinned.
    """
    wanted = set(pins)
    write_places_to(places, root)
    if "turns" in wanted:  # before the clock, which lets its own sleep take time on top
        from trainmem_audit.pinning.turns import pin_turns

        pin_turns()
    if "clock" in wanted:
        from trainmem_audit.pinning.clock import pin_clock

        pin_clock(clock_start)
    if "entropy" in wanted:
        from trainmem_audit.pinning.entropy import pin_entropy

        pin_entropy(_NONCE)
    if "empty" in wanted:
        from trainmem_audit.pinning.empty import pin_numpy_empty

        after_import("numpy", pin_numpy_empty)
    if "rng.numpy.entropy" in wanted:  # its start is the recorder's; here is only noted who asks
        after_import("numpy.random", _note_unseeded)
    after_import("torch", lambda: _apply_settings(wanted))


def _apply_settings(pins: set[str]) -> None:
    from trainmem_audit.pinning import settings

    actions: dict[str, Any] = {
        "threads": settings.pin_threads,
        "deterministic": settings.pin_determinism,
        "empty": settings.pin_empty,
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


def _note_unseeded() -> None:
    numpy_random: Any = sys.modules["numpy.random"]
    real = numpy_random.default_rng

    @functools.wraps(real)
    def default_rng(seed: Any = None) -> Any:
        if seed is None:
            note_place("rng.numpy.entropy")
        return real(seed)

    numpy_random.default_rng = default_rng


def can_fix_addresses() -> bool:
    """Tell whether this system lets a process switch address randomisation off (containers often do not)."""
    if sys.platform != "linux":
        return False
    ask = "import ctypes; f = ctypes.CDLL(None).personality; raise SystemExit(f(f(0xffffffff) | 0x40000) == -1)"
    return subprocess.run([sys.executable, "-I", "-c", ask], check=False, capture_output=True).returncode == 0


def fix_addresses() -> None:
    """Start this process again without address randomisation (Linux), unless it runs so already."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    now = library.personality(_ASK)
    if now == -1 or library.personality(now | _NO_RANDOMIZE) == -1:
        raise OSError(ctypes.get_errno(), "address randomisation cannot be switched off here")
    if not now & _NO_RANDOMIZE:
        os.execv(sys.executable, sys.orig_argv)
