"""The process of a replay: the recorded command under the recorded numeric profile (`recording.process` watches it).

Of the recorded environment the variables of the numeric profile are taken, with values of their form only, and those
that the author chose to record, which are shown before anything runs; none that makes a program load code. A hostile
record cannot set `LD_PRELOAD`. `PYTHONPATH` can name directories of the scratch copy alone, which are searched once the
recorder is loaded: no module there takes its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import Command, Stream
from trainmem_audit.errors import FormatError
from trainmem_audit.privacy import REDACTED
from trainmem_audit.recording.facts import PROFILE_VARIABLES
from trainmem_audit.recording.process import LaunchedRun
from trainmem_audit.replaying.scratch import folder_in_tree, place_in_tree

__all__ = ["Child", "chosen_variables"]

_CAPABILITIES = {"AVX512": "avx512", "AVX2": "avx2", "DEFAULT": "default", "NO AVX": "default"}
_MAX_VALUE = 32 * 2**10
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
_REFUSED = re.compile(
    r"""^(LD_|DYLD_|PYTHON|TRAINMEM_AUDIT_|GIT_|SSH_|BASH|ZDOTDIR$|ENV$|IFS$|PS[0-4]$|PROMPT_COMMAND$|SHELL)
    | ^(PATH|HOME|TMPDIR|TEMP|TMP|CC|CXX|NVCC|EDITOR|VISUAL|PAGER|BROWSER|USERPROFILE|COMSPEC|PATHEXT)$
    | ^(GCONV|GLIBC|MALLOC|NLS|LOC|TERMINFO|NODE_|PERL|RUBY|JAVA|_JAVA|JDK|LUA|NPM_|PIP_|UV_|CONDA|XDG_|VIRTUAL_ENV)
    | ^(TORCH|TRITON|PYTORCH_JIT|HF_|HUGGINGFACE|TRANSFORMERS_|OMP_TOOL|CUDA_(HOME|INJECTION))
    | PROXY|PRELOAD|PATH$|LIBRAR|PLUGIN|HOOK|STARTUP|OPTIONS$|OPTS?$|FLAGS$
    | COMMAND$|CMD$|EXEC|LOADER|RCFILE|CONFIG|_HOME$
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Names of variables that make some program load code, look for it elsewhere, or talk to another host."""


class Child(LaunchedRun):
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
        forward: Mapping[str, Any] | None = None,
        program: Mapping[str, Any] | None = None,
    ) -> None:
        run_dir = root / "record"
        run_dir.mkdir()
        order = _order(manifest, tree, run_dir, same_code)
        if dump is not None:
            order["dump"] = [dump[0], str(dump[1])]
        if forward is not None:
            order["forward"] = forward
        order |= program or {}
        super().__init__(
            order,
            arguments,
            tree=tree,
            environment=_environment(manifest),
            output=root / "output",
            timeout=timeout,
            name="replay",
        )


def _entry(command: Command) -> str:
    """Return the script's place in the tree, or the module's name; a hostile one leads nowhere else."""
    if command.kind == "script":
        return place_in_tree(command.entry)
    if command.kind == "program":
        return _program(command.entry)
    if not all(part.isidentifier() for part in command.entry.split(".")):
        raise FormatError("not a module", where="command.entry", got=command.entry[:80])
    return command.entry


def _program(entry: str) -> str:
    """Return the file in the tree, or the module, and the function in it."""
    name, _, function = entry.rpartition(":")
    if not function.isidentifier() or not name:
        raise FormatError("not a program", where="command.entry", got=entry[:80])
    if name.endswith(".py"):
        return f"{place_in_tree(name)}:{function}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise FormatError("not a module", where="command.entry", got=entry[:80])
    return entry


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
        "search": _search(manifest, tree),
        "nonce": manifest.run.id,
        "command": command.to_json(),
        "copySource": False,
        "tensorBudget": 2**53 - 1,
        "quiet": True,
        "imposed": {
            "streams": {name: _start(stream) for name, stream in manifest.rng_contract.streams.items()},
            "threads": threads if isinstance(threads, int) and 0 < threads <= 4096 else None,
            "seeds": [seed.to_json() for seed in manifest.seeds],
            "sameCode": same_code,
        },
    }


def _start(stream: Stream) -> dict[str, Any]:
    """Return what a stream starts from, without what a contract says of it besides."""
    return {name: member for name, member in stream.to_json().items() if name in Stream.model_fields}


def chosen_variables(manifest: Manifest) -> tuple[dict[str, str], list[str]]:
    """Return the variables that the author chose to record (`--env`) and that are imposed, and the names refused.

    Refused are those by which a program may load code, and those whose values were redacted.
    """
    recorded = manifest.environment.variables
    chosen = {name: text for name, text in recorded.items() if name not in PROFILE_VARIABLES and name != "PYTHONPATH"}
    imposed = {
        name: text
        for name, text in sorted(chosen.items())
        if _VARIABLE.fullmatch(name)
        and not _REFUSED.search(name)
        and REDACTED not in text
        and "\0" not in text
        and len(text) <= _MAX_VALUE
    }
    return imposed, sorted(chosen.keys() - imposed.keys())


def _environment(manifest: Manifest) -> dict[str, str]:
    recorded = manifest.environment.variables
    environment = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
    capability = _CAPABILITIES.get(str(manifest.numeric_profile.get("import", {}).get("cpuCapability")))
    if capability is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    environment.update(chosen_variables(manifest)[0])
    environment.update(
        {name: recorded[name] for name, form in PROFILE_VARIABLES.items() if form.fullmatch(recorded.get(name, ""))}
    )
    environment["PYTHONHASHSEED"] = manifest.command.hash_seed
    return environment


def _search(manifest: Manifest, tree: Path) -> list[str]:
    """Return the directories of the tree that were on `PYTHONPATH`."""
    entries = manifest.environment.variables.get("PYTHONPATH", "").split(":")
    return [str(tree / folder_in_tree(entry)) for entry in entries if entry]
