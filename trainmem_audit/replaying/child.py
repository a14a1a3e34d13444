"""The process of a replay: numeric profile imposed, step log read as it grows, process group ended.

Of the recorded environment only the variables of the numeric profile are taken, and only with values of their form: a
hostile record cannot set `LD_PRELOAD`, and `PYTHONPATH` only to directories of the scratch copy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import Command
from trainmem_audit.errors import FormatError, ReplayError
from trainmem_audit.privacy import public_line
from trainmem_audit.recording.facts import PROFILE_VARIABLES
from trainmem_audit.recording.launcher import interpreter_command
from trainmem_audit.replaying.scratch import place_in_tree
from trainmem_audit.rundir import check_name
from trainmem_audit.steplog import STEP_FILE

__all__ = ["Child"]

_POLL = 0.02
_GRACE = 5.0
_CHUNK = 2**20
_TAIL = 4000
_CAPABILITIES = {"AVX512": "avx512", "AVX2": "avx2", "DEFAULT": "default", "NO AVX": "default"}


class Child:
    """A context manager around one running replay."""

    def __init__(
        self,
        root: Path,
        tree: Path,
        manifest: Manifest,
        arguments: list[str],
        timeout: float,
        dump: tuple[int, Path] | None = None,
        same_code: bool = True,
    ) -> None:
        self.run_dir = root / "record"
        self.run_dir.mkdir()
        self._output = root / "output"
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        order = _order(manifest, tree, self.run_dir, same_code)
        if dump is not None:
            order["dump"] = [dump[0], str(dump[1])]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                interpreter_command(order, arguments),
                cwd=tree,
                env=_environment(manifest, tree),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def chunks(self) -> Iterator[bytes]:
        """Yield the step log as it grows, until the process has ended.

        Raises
        ------
        ReplayError
            If the time is up.
        """
        path = self.run_dir / STEP_FILE
        while not path.exists():
            if self._process.poll() is not None:
                return
            self._wait()
        with path.open("rb") as file:
            while True:
                ended = self._process.poll() is not None
                chunk = file.read(_CHUNK)
                if chunk:
                    yield chunk
                elif ended:
                    return
                else:
                    self._wait()

    def wait_for(self, path: Path) -> bool:
        """Wait until `path` is there; return whether it is, now that it is or the process has ended.

        Raises
        ------
        ReplayError
            If the time is up.
        """
        while not path.exists():
            if self._process.poll() is not None:
                return path.exists()
            self._wait()
        return True

    def end(self) -> None:
        """End the process and everything it started: asked first, then made to."""
        for sign, grace in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.poll()

    def last_words(self) -> str:
        """Return the last line that the process printed, and how it ended."""
        code = self._process.poll()
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return f"exit code {code}" + (f", last line: {public_line(lines[-1][:300])}" if lines else "")

    def _wait(self) -> None:
        if time.monotonic() > self._deadline:
            raise ReplayError(
                f"the replay was ended after {self._timeout:.0f} s", remedy="allow more with --timeout SECONDS"
            )
        time.sleep(_POLL)


def _entry(command: Command) -> str:
    """Return the script's place in the tree, or the module's name; a hostile one leads nowhere else."""
    if command.kind == "script":
        return place_in_tree(command.entry)
    if not all(part.isidentifier() for part in command.entry.split(".")):
        raise FormatError("not a module", where="command.entry", got=command.entry[:80])
    return command.entry


def _order(manifest: Manifest, tree: Path, run_dir: Path, same_code: bool = True) -> dict[str, Any]:
    command = manifest.command
    entry = _entry(command)
    threads = manifest.numeric_profile.get("import", {}).get("threads")
    return {
        "kind": command.kind,
        "entry": entry,
        "argv0": entry,
        "runDir": str(run_dir),
        "shownDir": "record",
        "cwd": str(tree),
        "nonce": manifest.run.id,
        "command": command.to_json(),
        "copySource": False,
        "tensorBudget": 2**53 - 1,
        "quiet": True,
        "imposed": {
            "streams": {name: stream.to_json() for name, stream in manifest.rng_contract.items()},
            "threads": threads if isinstance(threads, int) and 0 < threads <= 4096 else None,
            "seeds": [seed.to_json() for seed in manifest.seeds],
            "sameCode": same_code,
        },
    }


def _environment(manifest: Manifest, tree: Path) -> dict[str, str]:
    recorded = manifest.environment.variables
    environment = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
    capability = _CAPABILITIES.get(str(manifest.numeric_profile.get("import", {}).get("cpuCapability")))
    if capability is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    environment.update(
        {name: recorded[name] for name, form in PROFILE_VARIABLES.items() if form.fullmatch(recorded.get(name, ""))}
    )
    environment["PYTHONHASHSEED"] = manifest.command.hash_seed
    search = [entry.removeprefix("{cwd}").lstrip("/") for entry in recorded.get("PYTHONPATH", "").split(":") if entry]
    own = [str(tree / check_name(entry, "PYTHONPATH") if entry else tree) for entry in search]
    if own:
        environment["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [environment.get("PYTHONPATH")])])
    return environment
