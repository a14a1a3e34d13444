"""Studies for the tests: what they are declared with, in a directory of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.vectors import TinyRun
from trainmem_audit.canonical import sha256_hex
from trainmem_audit.documents.plan import Plan
from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.study.executor import Job, Message
from trainmem_audit.study.runner import Unit

__all__ = ["STUDIES", "MemoryExecutor", "TinyWork", "arrays_bytes", "run_tiny", "study_directory", "write_tiny"]

STUDIES = Path(__file__).parent / "studies"
_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64"}


def arrays_bytes(**arrays: NDArray[np.generic]) -> bytes:
    """Return a safetensors file, as its README lays it out."""
    header, data = {}, b""
    for name, array in arrays.items():
        start, data = len(data), data + array.tobytes()
        members = {"dtype": _NAMES[str(array.dtype)], "shape": array.shape, "data_offsets": [start, len(data)]}
        header[name] = members
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def study_directory(directory: Path, study: Path) -> Path:
    """Fill a directory with all that a study of the tests refers to; return the path of its `study.toml`."""
    for file in STUDIES.glob("*.py"):
        shutil.copyfile(file, directory / file.name)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 4), dtype=np.float32), rng.integers(0, 3, 10)
    (directory / "probe.safetensors").write_bytes(arrays_bytes(x=x, y=y))
    shutil.copyfile(study, directory / "study.toml")
    return directory / "study.toml"


class _KilledError(Exception):
    """The job's process is gone."""


@dataclass
class MemoryExecutor:
    """An executor that runs every job at once, in this process, and can be made to lose one."""

    dies_at: str = ""
    _messages: list[Message] = field(default_factory=list)
    _submitted: int = 0
    _killed: bool = False

    @property
    def pending(self) -> int:
        """How many jobs are not over: the one in which it was killed."""
        return int(self._killed)

    def submit(self, job: Job) -> int:
        """Run the job."""
        number, self._submitted = self._submitted, self._submitted + 1
        module, _, name = job.task.partition(":")

        def tell(value: object) -> None:
            if self.dies_at and value == ("finish", self.dies_at):
                raise _KilledError
            self._messages.append(Message(number, "told", value))

        try:
            value = getattr(import_module(module), name)(job.argument, tell)
            self._messages.append(Message(number, "done", value))
        except TrainmemAuditError as error:
            self._messages.append(Message(number, "failed", str(error)))
        except _KilledError:
            self._killed = True
        return number

    def wait(self, timeout: float) -> list[Message]:
        """Return what was told."""
        told, self._messages = self._messages, []
        if not told and self._killed:
            raise KeyboardInterrupt
        return told

    def close(self) -> None:
        """Nothing runs."""


@dataclass
class TinyWork:
    """Arms that are tiny runs, made at once: `broken` ones fail, those in `needs` leave the run named there."""

    plan: Plan
    directory: Path
    broken: set[str] = field(default_factory=set)
    needs: dict[str, str] = field(default_factory=dict)
    why: str = "it is broken"

    def arms(self) -> tuple[str, ...]:
        """Return the ids of all arms."""
        return (*sorted(set(self.needs.values())), *map(str, self.plan.arms()))

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        """Yield a job for each."""
        for name in missing:
            yield Unit(Job("tests.studying:run_tiny", (name, self)), (name,))

    def unusable(self, missing: Sequence[str]) -> dict[str, str]:
        """Return the arms whose run is made anew."""
        return {name: f"{run} is gone" for name, run in self.needs.items() if run in missing}


def run_tiny(argument: tuple[str, TinyWork], tell: Callable[[Any], None]) -> None:
    """Write a tiny run as the arm."""
    name, work = argument
    tell(("start", name))
    if name in work.broken:
        raise TrainmemAuditError(work.why)
    write_tiny(work.directory / "arms" / name, name, work.plan.digest)
    tell(("finish", name))


def write_tiny(path: Path, arm: str, plan: str) -> None:
    """Write the record of a tiny run that says which arm it is."""
    study = {"plan": plan, "arm": {"id": arm, "seed": "0"}}

    def told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**lines[0], "study": study}, *lines[1:]]

    def signed(statement: dict[str, Any]) -> None:
        statement["predicate"].update(study)

    run = TinyRun(members=told, statement=signed, nonce=sha256_hex(arm.encode())[:32])
    for file, data in run.files().items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(data)
