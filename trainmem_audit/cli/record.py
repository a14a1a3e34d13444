"""`record` and `recover`."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainmem_audit.cli.common import KeyOption, PassphraseFileOption, say, signer_for
from trainmem_audit.errors import UsageError

if TYPE_CHECKING:
    from trainmem_audit.documents.steplog import Argument

__all__ = ["PASS_THROUGH", "register", "require_recordable"]

PASS_THROUGH = {"allow_interspersed_args": False, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("record", context_settings=PASS_THROUGH, short_help="Run a training script and record every step.")(
        _record
    )
    app.command("recover", short_help="Close and sign the record of a run that was killed.")(_recover)


def _record(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or module, with -m).")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="The script's own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module name, as in `python -m`.")] = False,
    program: Annotated[
        bool,
        typer.Option(
            "--program", help="SCRIPT is a program, FILE.py:FUNCTION, and ARGS are NAME=VALUE; needs --steps."
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many steps of a program to record (--program).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="The seed of a program (--program).")] = 0,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", "-d", metavar="DIR", help="Where to write. Default: run, run-2, …")
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Sign with a fresh key made for this run.")] = False,
    source: Annotated[bool, typer.Option("--source/--no-source", help="Copy the code, or record digests only.")] = True,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", metavar="FILE", help="One more input, read by C code say (repeatable)."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Record one more environment variable (repeatable)."),
    ] = None,
    commitments: Annotated[
        bool,
        typer.Option(
            "--commitments/--no-commitments",
            help="Commit to git commit, remote, author and places, by salted digests that you may open later.",
        ),
    ] = True,
    contract: Annotated[
        Path | None,
        typer.Option(
            "--rng-contract",
            metavar="FILE",
            help="What you declare of random streams. Default: rng-contract.toml here.",
        ),
    ] = None,
    tensor_budget: Annotated[int, typer.Option(metavar="MIB", min=0, help="Most MiB of tensor digests to keep.")] = 64,
    snapshots: Annotated[
        str,
        typer.Option(
            metavar="EVERY|auto",
            help="Keep the whole state after every so many steps; auto: as often as a hundredth of the time allows.",
        ),
    ] = "0",
    snapshot_at: Annotated[
        list[int] | None,
        typer.Option("--snapshot-at", metavar="STEP", min=0, help="Keep them after this step (repeatable)."),
    ] = None,
    snapshot_budget: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Most MiB of snapshots; the interval grows as it is used up.")
    ] = 4096,
    intervene: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Intervene on the memory, as in reset:optimizer.momentum@200 (repeatable; docs/interventions.md).",
        ),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The record that the script goes on from by a checkpoint. Default: sought in the directories here.",
        ),
    ] = None,
    streams_of: Annotated[
        Path | None,
        typer.Option(
            "--streams-of", metavar="RUN", help="Start the random streams as that run did, to make a pair with it."
        ),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="At the end replay one segment, and sign whether that works.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing when all went well.")] = False,
) -> None:
    """Run a training script, unchanged, and record every optimizer step.

    Options go before SCRIPT; everything after it belongs to the script. The record is signed with the project's key,
    which is made when there is none.

    Only steps in this process are recorded: trainers started in other processes are not followed. The exit code is the
    script's, or 3 when the script ended well and the recording failed.
    """
    from trainmem_audit.documents.declared import find_contract
    from trainmem_audit.interventions import parse_at_step

    if program or steps is not None:
        _record_program(
            target, arguments or [], program, steps, seed, run_dir, snapshots, snapshot_at or [], key, quiet
        )
        return
    if anonymous and key is not None:
        remedy = "leave --key out; a key of your own can be linked later: trainmem-audit sign"
        raise UsageError("--anonymous makes a fresh key, and --key names another", where="--key", remedy=remedy)
    if self_test and snapshots == "0" and not snapshot_at:
        raise UsageError("there are no segments without snapshots", where="--self-test", remedy="add --snapshots auto")
    require_recordable(target, module)
    if parent is not None and not (parent / "steps.jsonl").is_file():
        raise UsageError("not a run directory", where=f"--parent {parent}", expected="a directory with steps.jsonl")
    for text in intervene or ():
        parse_at_step(text)
    declared = find_contract(contract, Path.cwd())
    directory = _new_run_dir(run_dir)
    signer = signer_for(Path.cwd(), key, passphrase_file, anonymous)
    order = _order(target, arguments or [], module, directory)
    order |= {
        "mayMove": run_dir is None,
        "copySource": source,
        "inputs": [str(path.absolute()) for path in inputs or ()],
        "variables": env or [],
        "tensorBudget": tensor_budget * 2**20,
        "contract": None if declared is None else declared.to_json(),
        "snapshotEvery": _interval(snapshots),
        "snapshotAuto": snapshots == "auto",
        "snapshotBudget": snapshot_budget * 2**20,
        "parent": None if parent is None else str(parent.absolute()),
        "snapshotAt": snapshot_at or [],
        "selfTest": self_test,
        "quiet": quiet,
        "madeDir": not directory.exists(),
        "facts": _facts(target, module) if commitments else None,
        "anonymous": anonymous,
    }
    if intervene:
        order["command"] |= {"interventions": intervene}
    if streams_of is not None:
        _start_as(order, streams_of)
    directory.mkdir(parents=True, exist_ok=True)
    _become(order, arguments or [], signer.seed())


def _record_program(
    entry: str,
    arguments: list[str],
    program: bool,
    steps: int | None,
    seed: int,
    run_dir: Path | None,
    snapshots: str,
    snapshot_at: list[int],
    key: Path | None,
    quiet: bool,
) -> None:
    if not program or steps is None:
        raise UsageError("a program and its number of steps go together", expected="--program --steps N", where=entry)
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UsageError("recording needs torch", remedy="pip install 'trainmem-audit[torch]'")
    from trainmem_audit.programs.block import record_program

    directory = _new_run_dir(run_dir)
    signer = signer_for(Path.cwd(), key, None)
    every = _interval(snapshots)
    kept = [*snapshot_at, *(range(0, steps, every) if every else ())]
    record_program(entry, arguments, str(seed), steps, directory.absolute(), Path.cwd(), signer, kept)
    if not quiet:
        say(f"recorded {steps} steps in {directory}, signed by {signer.public.keyid}")


def require_recordable(target: str, module: bool) -> None:
    """Raise unless there is such a script and this machine can record it."""
    try:
        target.encode()
    except UnicodeEncodeError:
        remedy = "rename the script: a record is UTF-8"
        raise UsageError("the name is not UTF-8", where=target, remedy=remedy) from None
    if module and not target:
        raise UsageError("an empty name", where="-m", expected="package.module")
    if not module and not Path(target).is_file():
        raise UsageError("no such script", where=target, remedy="options go before the script; `-m` names a module")
    if os.environ.get("OMP_DYNAMIC", "").upper() == "TRUE":
        raise UsageError(
            "OMP_DYNAMIC=TRUE lets the number of threads vary, and can hang training", remedy="unset OMP_DYNAMIC"
        )
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UsageError("recording needs torch", remedy="pip install 'trainmem-audit[torch]'")


def _new_run_dir(wanted: Path | None) -> Path:
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise UsageError(
                "the run directory exists and is not empty", where=str(wanted), remedy="choose another --run-dir"
            )
        return wanted
    number = 1
    while True:
        candidate = Path("run" if number == 1 else f"run-{number}")
        if not candidate.exists():
            return candidate
        number += 1


def _order(target: str, arguments: list[str], module: bool, directory: Path) -> dict[str, Any]:
    """Return what the launcher must do (`recording.launcher.interpreter_command`)."""
    from trainmem_audit.documents.steplog import Command
    from trainmem_audit.privacy import redact_argv

    cwd = Path.cwd()
    kind = "module" if module else "script"
    entry = target if module else _entry_name(Path(target), cwd)
    seed = os.environ.get("PYTHONHASHSEED", "")
    hash_seed = seed if seed.isdecimal() else str(secrets.randbelow(2**32))
    recorded = tuple(map(_mark_directory, arguments, redact_argv(arguments, cwd)))
    command = Command.model_validate({"kind": kind, "entry": entry, "arguments": recorded, "hash_seed": hash_seed})
    return {
        "kind": kind,
        "entry": target,
        "argv0": target,
        "runDir": str(directory.absolute()),
        "shownDir": str(directory),
        "cwd": str(cwd),
        "nonce": secrets.token_hex(16),
        "command": command.to_json(),
        "hashSeed": hash_seed,
    }


def _facts(target: str, module: bool) -> dict[str, Any]:
    from trainmem_audit.recording.provenance import facts

    return facts(Path.cwd(), None if module else Path(target).absolute())


def _mark_directory(text: str, argument: Argument) -> Argument:
    """End the path of an existing directory with a slash: a replay has to make it."""
    if argument.path and Path(text.removeprefix(argument.prefix)).expanduser().is_dir():
        return argument.model_copy(update={"path": argument.path + "/"})
    return argument


def _entry_name(script: Path, cwd: Path) -> str:
    path = script.resolve()
    if path.is_relative_to(cwd):
        return f"{{cwd}}/{path.relative_to(cwd).as_posix()}"
    return f"{{script}}/{path.name}"


def _become(order: dict[str, Any], arguments: list[str], seed: bytes) -> None:
    """Replace this process by the interpreter that runs the script; the key's seed goes through a pipe."""
    from trainmem_audit.keys import PASSPHRASE_VARIABLE
    from trainmem_audit.recording.descriptors import above_standard
    from trainmem_audit.recording.launcher import interpreter_command

    reader, writer = map(above_standard, os.pipe())
    os.write(writer, seed)
    os.close(writer)
    os.set_inheritable(reader, True)
    order["seedFd"] = reader
    command, _ = interpreter_command(order, arguments)
    environment = {**os.environ, "PYTHONHASHSEED": order["hashSeed"]}
    environment.pop(PASSPHRASE_VARIABLE, None)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed when we were started
            with suppress(OSError):
                stream.flush()
    os.execve(sys.executable, command, environment)


def _start_as(order: dict[str, Any], run: Path) -> None:
    """Let random streams and the hash seed be those that another run started with."""
    from trainmem_audit.contract import starts_from
    from trainmem_audit.rundir import open_run
    from trainmem_audit.runs import read_statement

    with open_run(run) as reader:
        manifest = read_statement(reader).predicate
    root, seed = manifest.rng_contract.root_entropy, manifest.command.hash_seed
    if root is None or seed == "random":
        raise UsageError(
            "the run does not say what its random streams start from",
            where=f"--streams-of {run}",
            expected="the record of a script",
        )
    order |= {"starts": starts_from(root), "hashSeed": seed, "command": {**order["command"], "hashSeed": seed}}


def _is_anonymous(run_dir: Path) -> bool:
    """Return whether a run was recorded with `--anonymous`: then the key of the project must not sign it."""
    from trainmem_audit.commitments import MAX_BYTES, parse_disclosures
    from trainmem_audit.documents.disclosures import FILE_NAME
    from trainmem_audit.rundir import DirectoryReader

    with DirectoryReader(run_dir) as reader:
        return FILE_NAME in reader.names() and parse_disclosures(reader.read(FILE_NAME, MAX_BYTES)).anonymous


def _recover(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    key: KeyOption = None,
    passphrase_file: PassphraseFileOption = None,
) -> None:
    """Close and sign the record of a run that was killed, as incomplete.

    What was being written when the run died is cut off; all whole steps are kept.
    """
    from trainmem_audit.assemble import recover

    if not (run_dir / "steps.jsonl").is_file() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UsageError("not a run directory", where=str(run_dir), expected="a directory with steps.jsonl")
    if (run_dir / "run.json").exists():  # said before a key is made or unlocked
        raise UsageError("the run is closed and signed already", where=str(run_dir), remedy="trainmem-audit verify")
    recovery = recover(run_dir, signer_for(Path.cwd(), key, passphrase_file, anonymous=_is_anonymous(run_dir)))
    for name, size in recovery.cut.items():
        say(f"{name}: cut {size} bytes that were being written when the run died")
    state = "complete" if recovery.statement.predicate.step_logs[0].complete else "incomplete"
    typer.echo(f"{run_dir}: {recovery.steps} steps recovered, signed as {state}")


def _interval(text: str) -> int:
    """Return the steps between snapshots, 0 for none or for `auto`."""
    if text == "auto":
        return 0
    if text.isdecimal() and int(text) < 2**53:
        return int(text)
    raise UsageError("not an interval", where="--snapshots", expected="a number of steps, or auto", got=text[:40])
