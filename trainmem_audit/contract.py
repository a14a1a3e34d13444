"""The RNG contract of a run, out of its step log: its streams, when they moved, what their seeds follow from.

`StreamCollector` watches the lines go by, when they are written and when they are verified, so a statement and its log
cannot disagree. Pure, and in memory that does not grow with the steps. Not here: any judgement (`validators/rng.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from trainmem_audit.documents.contract import MOST_SEEDS
from trainmem_audit.documents.declared import CONTRACT_VERSION, Pairing, Stability
from trainmem_audit.documents.steplog import Begin, Epoch, Inventory, Line, Seed, Step, Stream
from trainmem_audit.errors import FormatError

__all__ = [
    "DERIVATION",
    "KNOWN_DERIVATIONS",
    "StreamCollector",
    "as_stated",
    "contract_members",
    "derive",
    "root_of",
    "start_seed",
    "starts_from",
    "stream_digest",
]

DERIVATION = "trainmem-audit 2026-11 start of a random stream v1"
"""The context by which the seeds of unseeded streams follow from the run's nonce."""
KNOWN_DERIVATIONS = (DERIVATION, "numpy.random.SeedSequence", "sum")
"""The derivations that `derive` can recompute."""
_NEEDED = ("library", "algorithm", "device", "state", "gauss")
"""What a contract must say of a stream."""
_OWN = ("rootEntropy", "derivation")
_STARTED = ("numpy", "python", "torch.cpu")
_UNSEEDED = "numpy.entropy"
"""What generators of NumPy start from that are given no seed."""
_GLOBAL_SEEDS = {
    "random.seed": ("python",),
    "numpy.random.seed": ("numpy",),
    "torch.manual_seed": ("torch.cpu", "torch.cuda"),
    "torch.seed": ("torch.cpu", "torch.cuda"),
}
"""The streams that a seeding call sets; CUDA's have a number behind the name."""


def start_seed(nonce: str, stream: str) -> int:
    """Return the 63-bit seed that a stream starts from when nothing else was said."""
    digest = blake3(f"{nonce} {stream}".encode(), derive_key_context=DERIVATION).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def starts_from(root: str) -> dict[str, str]:
    """Return what a launched script is told to start its random streams from: all from `root`, not from its nonce."""
    return dict.fromkeys((*_STARTED, _UNSEEDED), root)


def root_of(starts: Mapping[str, str]) -> str | None:
    """Return what all streams start from, if that is one text."""
    roots = {starts.get(name) for name in (*_STARTED, _UNSEEDED)}
    return roots.pop() if len(roots) == 1 else None


def derive(function: str, root: str, path: Sequence[str]) -> str | None:
    """Return the seed, as text, that a known derivation gives; `None` where root or path are none of its kind.

    `sum` adds root and path, as `DistributedSampler` does with seed and epoch: many paths have the same sum.
    """
    if function == DERIVATION:
        return str(start_seed(root, path[0])) if len(path) == 1 else None
    numbers = [int(text) for text in (root, *path) if text.isascii() and text.isdecimal() and len(text) < 40]
    if len(numbers) <= len(path):
        return None
    return str(sum(numbers)) if function == "sum" else _seed_sequence(numbers[0], numbers[1:])


def _seed_sequence(entropy: int, path: list[int]) -> str | None:
    """Return the first 64 bits of the state that NumPy's `SeedSequence(entropy, spawn_key=path)` generates."""
    from numpy.random import SeedSequence

    return str(int(SeedSequence(entropy, spawn_key=tuple(path)).generate_state(1, "uint64")[0]))


def stream_digest(stream: Stream) -> str:
    """Return the digest that a log gives for a stream in the state that it is described in (`sources.streams`).

    Raises
    ------
    FormatError
        If the state is no base64.
    """
    try:
        data = base64.b64decode(stream.state)
    except ValueError as error:
        raise FormatError("the state of a random stream is not base64", where=stream.library, got=str(error)) from None
    return blake3(data if stream.gauss is None else data + stream.gauss.encode()).hexdigest()


@dataclass
class _Moves:
    """What `documents.contract.Consumption` says, while it is counted."""

    before_training: bool = False
    steps: int = 0
    inside: int = 0
    first: int | None = None
    last: int | None = None
    epochs: int = 0
    workers: int = 0


@dataclass
class StreamCollector:
    """Counts at which lines each stream was elsewhere than before."""

    _moves: dict[str, _Moves] = field(default_factory=dict)
    _purposes: dict[str, set[str]] = field(default_factory=dict)
    _last: dict[str, str] = field(default_factory=dict)
    _trained: bool = False
    _epoch_began: bool = False

    def take(self, line: Line) -> None:
        """Add one line; what is drawn after the last step trains nothing, and is not counted."""
        match line:
            case Begin():
                self._start(line.streams)
            case Inventory():
                self._start(line.streams or {})
                for name, purposes in (line.draws or {}).items():
                    self._purposes.setdefault(name, set()).update(purposes)
                for worker in line.workers or ():
                    for name in worker.consumed:
                        self._of(name).workers += 1
            case Epoch():
                self._epoch(line)
            case Step():
                self.take_step(line.i, line.rng)

    def _of(self, name: str) -> _Moves:
        return self._moves.setdefault(name, _Moves())

    def _start(self, streams: dict[str, Stream]) -> None:
        for name, stream in streams.items():
            if name not in self._last:
                self._last[name] = stream_digest(stream)

    def _moved(self, rng: dict[str, str]) -> list[str]:
        last = self._last
        moved = [name for name, digest in rng.items() if last.get(name, digest) != digest]
        last.update(rng)
        return moved

    def _epoch(self, line: Epoch) -> None:
        for name in self._moved(line.rng):
            if self._trained:
                self._of(name).epochs += 1
            else:
                self._of(name).before_training = True
        self._epoch_began = True

    def take_step(self, step: int, rng: dict[str, str]) -> None:
        """Add one step line, by its number and the digests of its streams."""
        for name in self._moved(rng):
            moves = self._of(name)
            moves.steps += 1
            moves.inside += not self._epoch_began
            moves.first = step if moves.first is None else moves.first
            moves.last = step
        self._trained, self._epoch_began = True, False

    def consumed(self, name: str) -> dict[str, Any]:
        """Return the members of `documents.contract.Consumption` of a stream."""
        return vars(self._moves.get(name, _Moves()))

    def purposes(self, name: str) -> tuple[str, ...]:
        """Return what a stream was seen to be drawn from for; `unknown` where it moved and nothing else is known."""
        known = self._purposes.get(name, set())
        return tuple(sorted(known)) if known or name not in self._moves else ("unknown",)


def contract_members(
    begin: Begin, streams: dict[str, Stream], seeds: list[Seed], canary: dict[str, str], moves: StreamCollector
) -> dict[str, Any]:
    """Return the members of `documents.contract.RngContract`."""
    own = begin.command.kind != "library"  # a library does not set the streams of the program that it is in;
    # a program has its seed among its arguments, and its log begins when the factory has drawn
    recorded = {name: _stream(name, stream, seeds, moves, own) for name, stream in streams.items()}
    return {
        "contract_version": CONTRACT_VERSION,
        **(_derivation(begin.root_entropy or begin.nonce) if own and begin.command.kind != "program" else {}),
        "streams": recorded,
        "canary": canary,
        "declared": begin.declared_contract,
    }


def _derivation(root: str) -> dict[str, Any]:
    vectors = tuple({"path": (name,), "seed": str(start_seed(root, name))} for name in _STARTED)
    return {
        "root_entropy": root,
        "derivation": {"function": DERIVATION, "path": ("stream",), "vectors": vectors},
    }


def as_stated(derived: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Return the contract that follows from a log, without what the stated one leaves out and may leave out (JSON).

    How seeds are derived is the writer's own word, unless it says that it derives them as this one does.
    """
    ours = stated.get("derivation", {}).get("function") == DERIVATION
    source = derived if ours else stated
    derived = {name: member for name, member in derived.items() if name not in _OWN}
    own = {name: source[name] for name in _OWN if name in source}
    streams = {}
    for name, stream in derived["streams"].items():
        said = stated["streams"].get(name, {})
        streams[name] = {member: value for member, value in stream.items() if member in said or member in _NEEDED}
    return {**derived, **own, "streams": streams}


def _stream(name: str, stream: Stream, seeds: list[Seed], moves: StreamCollector, own: bool) -> dict[str, Any]:
    consumed = moves.consumed(name)
    pairing: Pairing = "shared" if own else "uncontrolled"
    return {
        **dict(stream),
        "purpose": moves.purposes(name),
        "scope": "worker" if consumed["workers"] else "process",
        "seeds": _seeds(name, stream, seeds),
        "consumed": consumed,
        "pairing": pairing,
        "stability": _stability(stream),
    }


def _seeds(name: str, stream: Stream, seeds: list[Seed]) -> tuple[str, ...]:
    """Return the seeds that were passed to a stream: to a global one by a call, to another of torch by its state."""
    base = "torch.cuda" if name.startswith("torch.cuda.") else name
    passed = [seed.value for seed in seeds if base in _GLOBAL_SEEDS.get(seed.call, ())]
    if stream.library == "torch" and name not in ("torch.cpu", "numpy", "python") and base != "torch.cuda":
        state = base64.b64decode(stream.state)
        passed = [str(int.from_bytes(state[:8], "little"))] if len(state) >= 8 else []
    return tuple(dict.fromkeys(passed))[:MOST_SEEDS]


def _stability(stream: Stream) -> Stability:
    """Return on what the numbers depend: legacy NumPy is frozen, the others may change with a release of their library.

    Those of a GPU also depend on its number of multiprocessors.
    """
    if stream.library == "torch":
        return "release" if stream.device == "cpu" else "device"
    return "frozen" if stream.library == "numpy" and stream.algorithm == "mt19937" else "release"
