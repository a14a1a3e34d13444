"""What a script's random generators start from: seeds that it passes, and entropy that it takes from the system.

An unseeded generator is given a seed that follows from the run's nonce, so that a replay gives it the same one. A seed
that the script passes is written down, up to a bound; at replay a seed that comes out differently while the code is the
same can only come from outside (the clock, a process id, `os.urandom`), and the recorded one is used in its place,
which is said. Nothing is drawn from any stream, and calls from the standard library keep the system's entropy.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blake3 import blake3

from trainmem_audit.canonical import float_text
from trainmem_audit.documents.steplog import Seed
from trainmem_audit.recording.places import Places

__all__ = ["Entropy"]

MOST = 256
"""How many seeds are written down; a script that reseeds at every step derives the later ones from the earlier."""
_CONTEXT = "trainmem-audit 2026-11 entropy of a generator v1"
_SEEDERS = ("random", "numpy.random", "torch")
_GLOBAL = ("random.seed", "numpy.random.seed", "torch.manual_seed", "torch.seed")
_STREAMS = {"numpy": "numpy.entropy", "random": "python", "torch": "torch.cpu"}
"""The stream to whose start the entropy of a call belongs, by the library of the call."""
_DAY = 86400.0


class Entropy:
    """Hands out the entropy of one run.

    Parameters
    ----------
    nonce:
        The run's id, from which unseeded generators start.
    log:
        Told every seed that is written down.
    imposed:
        What a replay imposes: the recorded seeds in their order.
    same_code:
        Whether the replayed code is the recorded code; if not, only seeds that look like a clock are imposed.
    starts:
        What single streams start from instead of the nonce.
    """

    def __init__(
        self,
        nonce: str,
        places: Places,
        log: Callable[[Seed], None],
        imposed: Iterable[Seed] = (),
        same_code: bool = True,
        starts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.found: Callable[[str, Any], None] = lambda name, generator: None
        self._nonce = nonce
        self._starts = starts
        self._places = places
        self._log = log
        self._same_code = same_code
        self._recorded: dict[str, deque[Seed]] = {}
        for seed in imposed:
            self._recorded.setdefault(seed.call, deque()).append(seed)
        self._left = MOST
        self._pid = os.getpid()
        self._drawn: dict[str, int] = {}
        self._standard = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))

    # Seeds ---------------------------------------------------------------------------------------------------------

    def seed(self, call: str, value: Any, bits: int = 63) -> Any:
        """Return the seed that `call` is to use in place of `value`; `None` asks for entropy."""
        site = self._site(call in _GLOBAL)
        if site is None:
            return value
        if value is None:
            return self._fresh(call, bits)
        text = _seed_text(value)
        if text is None or self._left == 0 or os.getpid() != self._pid:
            return value
        self._left -= 1
        recorded = self._recorded.get(call)
        expected = recorded.popleft().value if recorded else text
        impose = expected != text and (self._same_code or _like_a_clock(float(value)))
        self._log(Seed(call=call, site=site, value=expected if impose else text, imposed=True if impose else None))
        return _seed_value(expected) if impose else value

    def bits(self, count: int) -> int:
        """Return `count` bits, as `secrets.randbits` does for NumPy: others at each call and in each child process."""
        return self._fresh("numpy.entropy", count)

    def _fresh(self, call: str, bits: int) -> int:
        number = self._drawn[call] = self._drawn.get(call, 0) + 1
        child = multiprocessing.current_process()._identity if os.getpid() != self._pid else ()
        nonce = self._starts.get(_STREAMS[call.partition(".")[0]], self._nonce)
        text = f"{nonce} {call} {number} {list(child)}"
        digest = blake3(text.encode(), derive_key_context=_CONTEXT).digest(length=bits // 8 + 1)
        return int.from_bytes(digest, "little") & ((1 << bits) - 1)

    def _site(self, is_global: bool) -> str | None:
        """Return `file:line` of the code that asks, or `None` if its generators are its own affair.

        That is the standard library, torch and NumPy; and any installed package that seeds a generator of its own.
        """
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") in (*_SEEDERS, __name__):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return None
        module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if module.partition(".")[0] in ("torch", "numpy") or self._is_standard(file):
            return None
        if not is_global and self._places.is_library(Path(file)):
            return None
        return f"{self._places.name(Path(file).absolute())}:{frame.f_lineno}"

    def _is_standard(self, file: str) -> bool:
        return file.startswith((*self._standard, "<frozen")) and "-packages" not in file

    def _own(self, name: str, generator: Any) -> None:
        """Tell of a generator that the script itself has made."""
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") in (*_SEEDERS, __name__):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None and not self._places.is_library(Path(frame.f_code.co_filename)):
            self.found(name, generator)

    # Where seeds are passed ----------------------------------------------------------------------------------------

    def watch_python(self) -> None:
        """Watch `random.seed` and `random.Random`."""
        real = random.Random.seed

        @functools.wraps(real)
        def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
            is_global = generator is vars(random)["_inst"]
            real(generator, self.seed("random.seed" if is_global else "random.Random", a), version)
            if type(generator) is random.Random and not is_global:
                self._own("python.random", generator)

        random.Random.seed = seed  # type: ignore[method-assign, assignment]
        random.seed = vars(random)["_inst"].seed

    def watch_numpy(self) -> None:
        """Watch `numpy.random.seed` and `numpy.random.default_rng`, and what both ask for entropy."""
        numpy_random: Any = sys.modules["numpy.random"]
        sys.modules["numpy.random.bit_generator"].randbits = self.bits  # type: ignore[attr-defined]
        real_seed, real_rng = numpy_random.seed, numpy_random.default_rng

        @functools.wraps(real_seed)
        def seed(seed: Any = None) -> None:
            real_seed(seed if seed is None else self.seed("numpy.random.seed", seed))

        @functools.wraps(real_rng)
        def default_rng(seed: Any = None) -> Any:
            generator = real_rng(seed if seed is None else self.seed("numpy.random.default_rng", seed))
            if generator is not seed:
                self._own("numpy.generator", generator)
            return generator

        numpy_random.seed, numpy_random.default_rng = seed, default_rng

    def watch_torch(self) -> None:
        """Watch `torch.manual_seed`, `torch.seed`, and `torch.Generator`, which becomes a subclass that looks alike."""
        torch: Any = sys.modules["torch"]
        real = torch.manual_seed

        @functools.wraps(real)
        def manual_seed(seed: Any) -> Any:
            return real(self.seed("torch.manual_seed", seed))

        @functools.wraps(torch.seed)
        def seed() -> int:
            fresh: int = self.seed("torch.seed", None)
            if fresh is None:
                return real_seed()
            real(fresh)
            return fresh

        real_seed = torch.seed
        for module in (torch, torch.random):
            module.manual_seed, module.seed = manual_seed, seed
        torch.Generator = torch._C.Generator = _generator_class(torch._C.Generator, self)


def _generator_class(base: type[Any], entropy: Entropy) -> type[Any]:
    class Meta(type(base)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return issubclass(type(instance), base)

    class Generator(base, metaclass=Meta):  # type: ignore[misc]
        __slots__ = ()

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__new__(cls, *args, **kwargs)
            entropy._own("torch.generator", made)
            return made

        def manual_seed(self, seed: Any) -> Any:
            return super().manual_seed(entropy.seed("torch.Generator.manual_seed", seed))

        def seed(self) -> int:
            fresh = entropy.seed("torch.Generator.seed", None)
            if fresh is None:
                return super().seed()  # type: ignore[no-any-return]
            super().manual_seed(fresh)
            return fresh  # type: ignore[no-any-return]

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Generator, name, getattr(base, name))  # a pickle names it as it names the real one
    return Generator


def _seed_text(value: Any) -> str | None:
    """Return a seed as text, or `None` for what is no plain number."""
    if isinstance(value, float):
        return float_text(value)
    try:
        return str(int(value)) if hasattr(value, "__index__") else None
    except (TypeError, ValueError):
        return None


def _seed_value(text: str) -> int | float:
    return float.fromhex(text) if "x" in text or not text.lstrip("-").isdecimal() else int(text)


def _like_a_clock(value: float) -> bool:
    """Tell whether a number is the time of today in s, ms, µs or ns, perhaps modulo 2^32."""
    now = time.time()
    for unit in (1.0, 1e3, 1e6, 1e9):
        if abs(value / unit - now) < _DAY:
            return True
    return any((now * unit - value) % 2**32 < 3600 * unit for unit in (1.0, 1e3))
