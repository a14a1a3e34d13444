"""A run without training: a fake that writes real step logs and side files, and reads like English.

`FakeRun().change(2, "content")` is a run whose batches hold other values from step 2 on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, component_digest, float_text, value_digest
from trainmem_audit.documents.steplog import LOG_FORMAT, Line
from trainmem_audit.rundir import RunReader
from trainmem_audit.steplog import FRAME, ORDER_FILE, STEP_FILE, TENSOR_FILE, LogBuilder, LogReader

__all__ = ["FakeRun", "MemoryReader", "begin", "component", "digest", "read_all", "stream", "written"]

BATCH = 3


def digest(*what: object) -> str:
    """Return 64 hex digits that depend on `what`."""
    return blake3(repr(what).encode()).hexdigest()


def begin(**changes: Any) -> dict[str, Any]:
    """Return the members of a `begin` line."""
    members = {
        "t": "begin",
        "format": LOG_FORMAT,
        "nonce": "0" * 32,
        "rank": 0,
        "world": 1,
        "started": "2026-11-23T12:00:00Z",
        "producer": {"name": "trainmem-audit", "version": "0"},
        "command": {"kind": "script", "entry": "{cwd}/train.py", "hashSeed": "0"},
        "environment": {
            "python": "3.11.7",
            "implementation": "CPython",
            "system": "Linux",
            "machine": "x86_64",
            "cpu": "a CPU",
            "cpuCount": 2,
            "packages": {},
            "variables": {},
        },
        "streams": {"python": stream("python")},
        "tensorBudget": 2**20,
    }
    return members | changes


def stream(library: str, state: str = "AAAA") -> dict[str, Any]:
    """Return a random stream with a start state."""
    return {"library": library, "algorithm": "mt19937", "device": "cpu", "state": state}


def component(source: str = "S1", **rest: Any) -> dict[str, Any]:
    """Return a component; give it `tensors` or `values`."""
    return {"source": source, "lifetime": "macro", "visibility": "checkpointed", "bytes": 0, **rest}


def written(members: list[dict[str, Any]]) -> list[bytes]:
    """Return the lines (without LF) that a recorder writes for `members`."""
    builder = LogBuilder()
    return [builder.line(line) for line in members]


def read_all(lines: list[bytes]) -> LogReader:
    """Read every line and return the reader."""
    reader = LogReader()
    for line in lines:
        reader.read(line)
    return reader


class FakeRun:
    """Some steps of a run with a model, BatchNorm, a teacher, momentum and a hyper-parameter."""

    def __init__(self, steps: int = 4, ended: bool = True) -> None:
        self.steps = steps
        self.ended = ended
        self.nonce = "0" * 32
        self.outcome = ("finished", 0)
        self.lr = [0.1] * steps
        self.loader: dict[str, Any] = {"batchSize": BATCH, "shuffle": True}
        self.tensors: dict[str, list[list[Any]]] = {
            "model.batchnorm": [["bn.running_mean", "float32", [4]]],
            "model.params": [["fc.weight", "float32", [4, 2]], ["fc.bias", "float32", [4]]],
            "optimizer.momentum": [["fc.weight", "float32", [4, 2]], ["fc.bias", "float32", [4]]],
            "teacher.params": [["fc.weight", "float32", [4, 2]]],
        }
        self.kept = set(range(steps))
        self._changes: dict[str, int] = {}

    def change(self, step: int, *what: str) -> FakeRun:
        """Give `what` other values from `step` on (-1: from before the first): a component, `component:tensor`,
        `index`, `content`, `inputs`, `loss`, `rng.torch.cpu`, or `epoch` (the streams when the epoch began).
        """
        self._changes.update(dict.fromkeys(what, step))
        return self

    def _salt(self, what: str, step: int) -> str:
        return "other" if what in self._changes and step >= self._changes[what] else ""

    def tensor_digests(self, name: str, step: int) -> list[bytes]:
        """Return the digests of a component's tensors at a step (-1: the start)."""
        return [
            bytes.fromhex(digest(name, tensor, step, self._salt(name, step), self._salt(f"{name}:{tensor[0]}", step)))
            for tensor in self.tensors[name]
        ]

    def state(self, step: int) -> dict[str, str]:
        """Return the component digests at a step; slots do not exist before the first."""
        names = [name for name in self.tensors if step >= 0 or not name.startswith("optimizer")]
        found = {
            name: component_digest(canonical_bytes(self.tensors[name]), self.tensor_digests(name, step)).hex()
            for name in names
        }
        return found | {"optimizer.hyper": value_digest(self.hyper(max(step, 0))).hex()}

    def hyper(self, step: int) -> dict[str, Any]:
        """Return the hyper-parameters in force at a step."""
        return {"groups": [{"lr": float_text(self.lr[min(step, self.steps - 1)]), "nesterov": False}]}

    def rng(self, step: int) -> dict[str, str]:
        """Return the digests of the random streams at a step."""
        names = ("python", "torch.cpu")
        return {name: digest("rng", name, step, self._salt(f"rng.{name}", step)) for name in names}

    def indices(self, step: int) -> bytes:
        """Return the sample indices of a step as bytes."""
        first = 100 if self._salt("index", step) else BATCH * step
        return b"".join((first + n).to_bytes(8, "little") for n in range(BATCH))

    def members(self) -> Iterator[dict[str, Any]]:
        """Yield the members of every line."""
        yield begin(nonce=self.nonce)
        yield {"t": "inventory", "i": 0, "streams": {"torch.cpu": stream("torch")}, "profile": {"threads": 1}}
        yield {"t": "inventory", "i": 0, "profile": {"threads": 1}}
        first = {n: component(tensors=t) for n, t in self.tensors.items() if not n.startswith("optimizer")}
        first["optimizer.hyper"] = component(values=self.hyper(0))
        yield {"t": "inventory", "i": 0, "components": first}
        yield {"t": "inventory", "i": 0, "state": self.state(-1)}
        slots = {name: component(tensors=t) for name, t in self.tensors.items() if name.startswith("optimizer")}
        yield {"t": "inventory", "i": 0, "components": slots}
        settings = {"kind": "DataLoader", "dataset": "Digits", "sampler": "RandomSampler", "settings": self.loader}
        yield {"t": "inventory", "i": 0, "loaders": {"loader": settings}}
        rng = {name: digest("epoch", name, self._salt("epoch", 0)) for name in ("python", "torch.cpu")}
        yield {"t": "epoch", "i": 0, "epoch": 0, "loader": "loader", "rng": rng}
        for step in range(self.steps):
            yield self.step(step)
        if self.ended:
            yield self.end()

    def step(self, i: int) -> dict[str, Any]:
        """Return the members of one `step` line."""
        order = {
            "index": blake3(self.indices(i)).hexdigest(),
            "content": digest("content", i, self._salt("content", i)),
            "n": BATCH,
            "batches": 1,
        }
        loss = float_text(1.5 if self._salt("loss", i) else 1.0)
        members = {"t": "step", "i": i, "order": order, "state": self.state(i), "rng": self.rng(i)}
        members |= {"inputs": digest("inputs", i, self._salt("inputs", i))}
        members |= {"scalars": {"loss": [loss], "lr": [float_text(self.lr[i])]}}
        changed = i == 0 or self.lr[i] != self.lr[i - 1]
        return members | ({"values": {"optimizer.hyper": self.hyper(i)}} if changed else {})

    def end(self) -> dict[str, Any]:
        """Return the members of the `end` line."""
        outcome, code = self.outcome
        members = {"t": "end", "i": self.steps, "finished": "2026-11-23T12:01:00Z", "outcome": outcome}
        return members | {"exitCode": code, "state": self.state(self.steps), "rng": self.rng(self.steps)}

    def lines(self) -> list[bytes]:
        """Return the lines of the log, without LF."""
        return written(list(self.members()))

    def parsed(self) -> list[Line]:
        """Return the lines as a reader gives them."""
        reader = LogReader()
        return [reader.read(line) for line in self.lines()]

    def log(self) -> bytes:
        """Return `steps.jsonl`."""
        return b"".join(line + b"\n" for line in self.lines())

    def frames(self) -> bytes:
        """Return `tensors.b3`."""
        return b"".join(self.frame(step) for step in range(self.steps) if step in self.kept)

    def frame(self, step: int) -> bytes:
        """Return the frame of one step."""
        digests = [digest for name in sorted(self.tensors) for digest in self.tensor_digests(name, step)]
        return FRAME.pack(step, len(digests)) + b"".join(digests)

    def order(self) -> bytes:
        """Return `order/rank-0.i64`."""
        return b"".join(map(self.indices, range(self.steps)))

    def reader(self) -> MemoryReader:
        """Return a reader of the run's files (there is no `run.json`)."""
        return MemoryReader({STEP_FILE: self.log(), TENSOR_FILE: self.frames(), ORDER_FILE: self.order()})


class MemoryReader(RunReader):
    """A run in memory."""

    def __init__(self, files: dict[str, bytes], label: str = "run") -> None:
        self.label = label
        self.files = files

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(sorted(self.files))

    def size(self, name: str) -> int:
        """Return a file's size."""
        if name not in self.files:
            raise self._missing(name)
        return len(self.files[name])

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        if name not in self.files:
            raise self._missing(name)
        return io.BytesIO(self.files[name])

    def close(self) -> None:
        """Hold nothing."""
