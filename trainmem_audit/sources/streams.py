"""Random streams: Python's, NumPy's and torch's global generators, CUDA's, those of data loaders and the script's own.

Reading a state draws nothing. A torch stream's bytes are those of `Generator.get_state()`.
"""

from __future__ import annotations

import _random
import base64
import random
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from blake3 import blake3

from trainmem_audit.digests import tensor_bytes, tensor_digest
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import FormatError
from trainmem_audit.sources.twisters import (
    bit_generator_bytes,
    generator_stream,
    numpy_digest,
    numpy_stream,
    python_digest,
    python_stream,
    restore_generator,
    restore_twister,
)

__all__ = ["MOST", "StreamSet", "restore_torch", "torch_stream"]

MOST = 64
"""How many generators of the script's own are followed."""


def _gone() -> None:
    """Stand for a generator that the script has dropped."""


def torch_stream(generator: torch.Generator) -> Stream:
    """Return the state of a torch generator."""
    algorithm = "mt19937" if generator.device.type == "cpu" else "philox4x32-10"
    state = base64.b64encode(tensor_bytes(generator.get_state())).decode()
    return Stream(library="torch", algorithm=algorithm, device=str(generator.device), state=state)


def restore_torch(stream: Stream, generator: torch.Generator) -> None:
    """Set `generator` to the state of `stream`.

    Raises
    ------
    FormatError
        If the state is none of this kind of generator.
    """
    data = bytearray(base64.b64decode(stream.state))
    try:
        generator.set_state(torch.frombuffer(data, dtype=torch.uint8).clone())
    except (RuntimeError, ValueError) as error:
        raise FormatError("a random state cannot be restored", where="torch", got=str(error)[:120]) from None


def _seed_torch(generator: torch.Generator, seed: int) -> None:
    """Seed a generator by torch's own method: that of a generator of the script's is watched."""
    own: Any = next(kind for kind in reversed(type(generator).__mro__) if "manual_seed" in vars(kind))
    own.manual_seed(generator, seed & (2**63 - 1))


def _seed_other(generator: Any, seed: int, words: Sequence[int]) -> None:
    if isinstance(generator, random.Random):
        generator.setstate((generator.getstate()[0], _random.Random(seed).getstate(), None))
    elif generator is not None:
        bits = generator.bit_generator
        sequence = sys.modules["numpy.random"].SeedSequence(list(words))
        bits.state = type(bits)(sequence).state


class StreamSet:
    """Every stream that is known, and the digest of each as it is now."""

    def __init__(self) -> None:
        self._generators: dict[str, weakref.ref[torch.Generator]] = {}
        self._unnamed: list[tuple[str, Any]] = []
        self._others: dict[str, Any] = {}
        self._python_mark: Any = None
        self._python = ""

    def add_generator(self, name: str, generator: torch.Generator) -> None:
        """Follow one more torch generator, under `name` (numbered when another one has it)."""
        if generator is torch.default_generator:
            return
        if any(reference() is generator for reference in self._generators.values()):
            return
        number = sum(known == name or known.startswith(f"{name}.") for known in self._generators)
        self._generators[f"{name}.{number + 1}" if number else name] = weakref.ref(generator)

    def found(self, name: str, generator: Any) -> None:
        """Note a generator that the script has made; it is followed from the next `adopt` on, if it lives until then.

        Torch's and Python's are held weakly; NumPy's cannot be, and are let go when nobody else holds them.
        """
        holder = generator if name.startswith("numpy") else weakref.ref(generator)
        if len(self._unnamed) < MOST:
            self._unnamed.append((name, holder))

    def adopt(self) -> None:
        """Follow the generators that were found, unless a loader's name was given to them."""
        found, self._unnamed = self._unnamed, []
        while found:
            name, holder = found.pop(0)
            generator = holder() if isinstance(holder, weakref.ref) else holder
            if isinstance(generator, torch.Generator):
                self.add_generator(name, generator)
            elif generator is not None and len(self._others) < MOST:
                taken = sum(known == name or known.startswith(f"{name}.") for known in self._others)
                self._others[f"{name}.{taken + 1}" if taken else name] = holder

    def _other(self, name: str) -> Any:
        """Return a generator of NumPy or Python, or `None` when the script has dropped it."""
        holder = self._others[name]
        if isinstance(holder, weakref.ref) or holder is _gone:
            return holder()
        if sys.getrefcount(holder) <= 3:  # the table's, this frame's and the call's
            self._others[name] = _gone
            return None
        return holder

    def digests(self) -> dict[str, str]:
        """Return the hex digest of each stream's state by name. Draws nothing."""
        found = {"python": self._python_digest(), "torch.cpu": tensor_digest(torch.default_generator.get_state()).hex()}
        if "numpy.random" in sys.modules:
            found["numpy"] = numpy_digest()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for index, generator in enumerate(torch.cuda.default_generators):
                found[f"torch.cuda.{index}"] = tensor_digest(generator.get_state()).hex()
        for name, reference in self._generators.items():
            live = reference()
            if live is not None:
                found[name] = tensor_digest(live.get_state()).hex()
        for name in self._others:
            generator = self._other(name)
            if isinstance(generator, random.Random):
                found[name] = python_digest(generator.getstate())
            elif generator is not None:
                found[name] = blake3(bit_generator_bytes(generator)).hexdigest()
        return found

    def describe(self, name: str) -> Stream | None:
        """Return the full state of the stream `name`, or `None` if it is gone."""
        if name == "python":
            return python_stream()
        if name == "numpy":
            return numpy_stream()
        if name == "torch.cpu":
            return torch_stream(torch.default_generator)
        if name.startswith("torch.cuda."):
            return torch_stream(torch.cuda.default_generators[int(name.rsplit(".", 1)[1])])
        if name in self._others:
            other = self._other(name)
            if other is None:
                return None
            return python_stream(other) if isinstance(other, random.Random) else generator_stream(other)
        generator = self._generators[name]()
        return None if generator is None else torch_stream(generator)

    def restore(self, name: str, stream: Stream) -> str | None:
        """Set the stream `name` to a state; return why that cannot be done."""
        try:
            if name in ("python", "numpy"):
                restore_twister(stream)
            elif name == "torch.cpu":
                restore_torch(stream, torch.default_generator)
            elif name.startswith("torch.cuda."):
                restore_torch(stream, torch.cuda.default_generators[int(name.rsplit(".", 1)[1])])
            elif name in self._others and (other := self._other(name)) is not None:
                restore_generator(stream, other)
            elif name in self._generators and (generator := self._generators[name]()) is not None:
                restore_torch(stream, generator)
            else:
                return "not there any more"
        except (FormatError, IndexError) as error:
            return str(error)
        return None

    def reseed(self, name: str, words: Sequence[int]) -> None:
        """Start the stream `name` anew from a seed of unsigned 32-bit words, by no call that is watched.

        Torch's generators take 63 bits of it. A stream that is gone is left alone.
        """
        seed = sum(word << 32 * place for place, word in enumerate(words))
        if name == "python":
            random.setstate((random.getstate()[0], _random.Random(seed).getstate(), None))
        elif name == "numpy":
            numpy_random = sys.modules["numpy.random"]
            sequence = numpy_random.SeedSequence(list(words))
            numpy_random.set_state(numpy_random.RandomState(numpy_random.MT19937(sequence)).get_state())
        elif name == "torch.cpu":
            _seed_torch(torch.default_generator, seed)
        elif name.startswith("torch.cuda."):
            _seed_torch(torch.cuda.default_generators[int(name.rsplit(".", 1)[1])], seed)
        elif name in self._others:
            _seed_other(self._other(name), seed, words)
        elif (generator := self._generators[name]()) is not None:
            _seed_torch(generator, seed)

    def _python_digest(self) -> str:
        state = random.getstate()
        _, words, gauss = state
        mark = (words[-1], words[:8], gauss)  # position, 256 bits of the key (all words change at once), second normal
        if mark != self._python_mark:
            self._python_mark, self._python = mark, python_digest(state)
        return self._python
