"""The launcher's inner half: runs an unmodified script as Python would have, with a recording around it.

`record` (and a replay) replaces itself by a fresh interpreter that runs `main` here (decision 0003): the process keeps
its id, so signals, terminal and exit code are the script's. Neither torch nor NumPy is imported before the script does.
`__main__` is built by hand, so that pickle, inspect, spawned workers and tracebacks behave as bare.
"""

from __future__ import annotations

import builtins
import functools
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from trainmem_audit.assemble import foreign_files
from trainmem_audit.documents.declared import DeclaredContract
from trainmem_audit.documents.steplog import Seed, Stream
from trainmem_audit.errors import InterventionError, RecordingError, TrainmemAuditError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.recording.descriptors import above_standard
from trainmem_audit.recording.places import argument_directories
from trainmem_audit.recording.recording import DEFAULT_TENSOR_BUDGET, Imposed, Options, Recording
from trainmem_audit.snapshots import DEFAULT_SNAPSHOT_BUDGET

__all__ = ["interpreter_command", "main"]

_HERE = Path(__file__).parent
_BOOT = "from trainmem_audit.recording.launcher import main; main()"


def interpreter_command(order: dict[str, Any], arguments: list[str]) -> tuple[list[str], int]:
    """Return the command of the interpreter that runs `main` with this order, and the descriptor that hands it over.

    The child must inherit the descriptor; who starts it closes his own. The command line stays short (Linux takes no
    word of more than 128 KiB, and the states of the random streams may be longer), and `ps` shows no argument.

    Parameters
    ----------
    order:
        `kind` (script | module), `entry` (path or module name), `runDir`, `cwd`, `nonce`, `command` (as recorded), and
        optionally `seedFd` (a pipe that holds the signing key's seed), `copySource`, `tensorBudget`, `variables`,
        `inputs`, `search` (directories to search for modules first, as by PYTHONPATH), `facts` (to commit to),
        `anonymous`, `contract` (what the author declares), `mayMove`, `imposed` ({streams, threads, seeds, sameCode}),
        `dump` ([step, file]), `forward` ({stretches, problems}), `quiet`, `madeDir`, `selfTest`; for `twice` and
        studies also `starts` (what single random streams start from), for `twice` `pins` ({names, clockStart, watch,
        places, root}), for studies `study` ({plan, arm}), `observe` ({probe, head, steps}) and `stateAt` (steps).
    arguments:
        The script's own arguments.
    """
    with tempfile.TemporaryFile() as file:  # without a name: it is gone when the child has read it
        file.write(json.dumps({**order, "arguments": arguments}).encode())
        file.seek(0)
        descriptor = above_standard(os.dup(file.fileno()))
    os.set_inheritable(descriptor, True)
    return [sys.executable, "-P", "-c", _BOOT, str(descriptor)], descriptor


def main() -> None:
    """Run the order behind the descriptor `sys.argv[1]`; ends the process as the script would have."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        order = json.load(file)
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # who must start again reads it again
        _fix_addresses(order)
    _search(order.get("search", ()))
    arguments = order["arguments"]
    if order["kind"] == "program":
        _run_program(order, arguments)
        return
    signer = _signer(order.get("seedFd"))
    quiet = bool(order.get("quiet"))
    say = _silence if quiet else _say
    try:
        path = _locate(order)
        code = _compiled(path) if order["kind"] == "script" else None
        _pin(order.get("pins"))
        recording = Recording(_options(order, path))
        recording.start()
    except TrainmemAuditError as error:
        _refuse(order, str(error), error.exit_code)
    except OSError as error:  # no right to write there, a full disk
        where = error.filename if isinstance(error.filename, str) else order["runDir"]
        problem = f"recording cannot start: {error.strerror or error}"
        _refuse(
            order,
            str(
                RecordingError(problem, where=where, remedy="--run-dir DIR where there is room and the right to write")
            ),
            2,
        )
    module = _main_module(path)
    sys.modules["__main__"] = module
    sys.argv = [order["argv0"] if code is not None else "-m", *arguments]
    sys.path.insert(0, str(path.resolve().parent if code is not None else Path.cwd()))
    parent = os.getpid()
    leave = os._exit

    def end(status: int) -> NoReturn:
        ours = os.getpid() == parent  # multiprocessing ends its children in this way
        if ours and _finish(recording, "exited", _exit_code(status), signer, order, say):
            status = 3
        leave(status)  # unflushed output is lost, as bare

    os._exit = functools.wraps(leave)(end)
    outcome, exit_code, raised = _run(code, module, order["entry"])
    failed = False
    if os.getpid() == parent:  # else a child that the script forked ends here too
        _wait_for_threads()
        _flush()
        failed = _finish(recording, outcome, exit_code, signer, order, say)
    os._exit = leave
    if failed:  # then the script returned 0, maybe by `sys.exit`
        raise SystemExit(3)
    if raised is not None:
        raise raised


def _run_program(order: dict[str, Any], arguments: list[str]) -> None:
    """Run a program, for a replay: it is training written for us, so nothing has to be as bare."""
    from trainmem_audit.programs.child import run

    try:
        run(order, arguments)
    except TrainmemAuditError as error:
        _refuse(order, str(error), error.exit_code)


def _search(entries: Sequence[str]) -> None:
    """Do what `PYTHONPATH` does, but only now: nothing in these directories must take the place of the recorder."""
    if entries:
        sys.path[:0] = entries
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*entries, *filter(None, [given])])


def _refuse(order: dict[str, Any], text: str, exit_code: int) -> NoReturn:
    """End before the script has begun, and leave no directory that was made for it."""
    _say(text)
    if order.get("madeDir"):
        shutil.rmtree(order["runDir"], ignore_errors=True)
    raise SystemExit(exit_code) from None


def _run(code: CodeType | None, module: ModuleType, name: str) -> tuple[str, int, BaseException | None]:
    """Run the script, or the module `name`; return outcome, exit code and what must still be raised."""
    try:
        exec(code if code is not None else _imported_code(module, name), module.__dict__)
    except SystemExit as error:
        return "exited", _exit_code(error.code), error
    except InterventionError as error:
        _say(str(error))
        return "raised", error.exit_code, SystemExit(error.exit_code)
    except BaseException as error:
        strip_own_frames(error)
        sys.excepthook(type(error), error, error.__traceback__)
        sys.excepthook = lambda *_: None  # it has been shown; Python still has to end by it
        return ("interrupted", 130, error) if isinstance(error, KeyboardInterrupt) else ("raised", 1, error)
    return "finished", 0, None


def _finish(
    recording: Recording, outcome: str, exit_code: int, signer: Signer | None, order: dict[str, Any], say: Any
) -> bool:
    """Close the record; return whether a run that ended well has no good record."""
    try:
        statement = recording.finish(outcome, exit_code, signer, _self_test(order, outcome, say))
    except TrainmemAuditError as error:
        _say(str(error))
        return exit_code == 0
    except Exception as error:  # a full disk, say: the script's end must not change
        _say(
            f"THE RECORD COULD NOT BE CLOSED: {type(error).__name__}: {error}\n"
            f"  every step is in {recording.run_dir}, unsigned\n"
            f"  remedy:   make room there, then `trainmem-audit recover {recording.run_dir}`"
        )
        return exit_code == 0
    if statement is not None and signer is not None:
        log = statement.predicate.step_logs[0]
        shown = order["shownDir"] if recording.run_dir == Path(order["runDir"]) else recording.run_dir.name
        say(f"recorded {log.steps} steps in {shown}, signed by {signer.public.keyid}")
        if (tested := statement.predicate.segments) is not None:
            say("segments of it can be replayed" if tested.supported else f"NO SEGMENT REPLAY: {tested.reason}")
        others = []
        with suppress(OSError):  # the directory is being removed, say
            others = foreign_files(recording.run_dir, statement)
        if others:
            _say(f"NOT PART OF THE RECORD, though in {shown}: {', '.join(others)}. Move what the script wrote there.")
    return False


def _self_test(order: dict[str, Any], outcome: str, say: Any) -> Any:
    """Return what tries a segment of the run, if that was asked for and nobody is in a hurry to leave."""
    if not order.get("selfTest") or outcome == "interrupted":
        return None
    directories = [path for _, path in argument_directories(order["arguments"], order["command"].get("arguments", ()))]

    def run(run_dir: Path) -> Any:
        from trainmem_audit.recording.selftest import self_test

        say("the run has ended; replaying one segment of it (--self-test)")
        return self_test(run_dir, order, directories)

    return run


def _fixes_addresses(order: dict[str, Any]) -> bool:
    return "addresses" in (order.get("pins") or {}).get("names", ())


def _fix_addresses(order: dict[str, Any]) -> None:
    if _fixes_addresses(order):
        from trainmem_audit.pinning.pins import fix_addresses

        try:
            fix_addresses()
        except OSError as error:
            _refuse(order, str(RecordingError(error.strerror or str(error))), RecordingError.exit_code)


def _pin(pins: dict[str, Any] | None) -> None:
    if pins is not None:
        from trainmem_audit.pinning.pins import apply, watch

        places, root = Path(pins["places"]), pins["root"]
        try:
            if pins["watch"]:
                watch(places, root)
            else:
                apply(pins["names"], pins["clockStart"], places, root)
        except OSError as error:
            raise RecordingError(error.strerror or str(error)) from None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _locate(order: dict[str, Any]) -> Path:
    """Return the file that will be run, without importing anything of the script's."""
    if order["kind"] == "script":
        return Path(order["entry"]).absolute()
    name = order["entry"]
    spec = _find_unimported(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _find_unimported(f"{name}.__main__")
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError("no module with Python source", where=name, remedy="run in the directory that holds it")
    return Path(spec.origin)


def _find_unimported(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module as the import system would, but leave its packages unimported: they are the script's own code."""
    search: list[str] | None = [str(Path.cwd()), *sys.path]
    spec: importlib.machinery.ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if search is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), search)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        search = None if locations is None else list(locations)
    return spec


def _compiled(path: Path) -> CodeType:
    try:
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise UsageError("the script cannot be read", where=str(path), got=error.strerror or "") from None
    except (SyntaxError, ValueError) as error:
        raise UsageError("the script does not compile", where=path.name, got=str(error)) from None


def _main_module(path: Path) -> ModuleType:
    """Return the `__main__` of a script."""
    module = ModuleType("__main__")
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", str(path))
    module.__spec__ = None
    module.__package__ = None
    module.__file__ = str(path)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__cached__"] = None
    if "__annotations__" in vars(sys.modules["__main__"]):  # not since Python 3.14
        module.__annotations__ = {}
    return module


def _imported_code(module: ModuleType, name: str) -> CodeType:
    """Import the packages of the module `name`, make `module` its `__main__`, and return its code, as `runpy` does."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None or spec.origin is None:
        raise ImportError(f"No module named {name}")
    code: CodeType | None = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    if code is None:
        raise ImportError(f"No code object available for {name}")
    module.__spec__, module.__package__, module.__loader__ = spec, spec.parent, spec.loader
    module.__file__ = sys.argv[0] = spec.origin
    return code


def _options(order: dict[str, Any], path: Path) -> Options:
    imposed, dump, contract = order.get("imposed"), order.get("dump"), order.get("contract")
    return Options(
        run_dir=Path(order["runDir"]),
        cwd=Path(order["cwd"]),
        command=order["command"],
        nonce=order["nonce"],
        entry=path,
        copy_source=order.get("copySource", True),
        tensor_budget=order.get("tensorBudget", DEFAULT_TENSOR_BUDGET),
        variables=tuple(order.get("variables", ())),
        inputs=tuple(Path(path) for path in order.get("inputs", ())),
        starts=order.get("starts", {}),
        facts=order.get("facts"),
        anonymous=bool(order.get("anonymous")),
        directories=tuple(argument_directories(order["arguments"], order["command"].get("arguments", ()))),
        imposed=None if imposed is None else _imposed(imposed),
        may_move=bool(order.get("mayMove")),
        contract=None if contract is None else DeclaredContract.parse(json.dumps(contract).encode(), "contract"),
        dump=None if dump is None else (dump[0], Path(dump[1])),
        forward=order.get("forward"),
        threaded=not _fixes_addresses(order),
        parent=Path(order["parent"]) if order.get("parent") else None,
        snapshot_every=order.get("snapshotEvery", 0),
        snapshot_auto=order.get("snapshotAuto", False),
        snapshot_budget=order.get("snapshotBudget", DEFAULT_SNAPSHOT_BUDGET),
        snapshot_at=frozenset(order.get("snapshotAt", ())),
        study=order.get("study"),
        observe=order.get("observe"),
        state_at=None if order.get("stateAt") is None else frozenset(order["stateAt"]),
        say=_say,
    )


def _imposed(members: dict[str, Any]) -> Imposed:
    return Imposed(
        streams={name: Stream.model_validate(stream) for name, stream in members["streams"].items()},
        threads=members.get("threads"),
        seeds=tuple(Seed.model_validate(seed) for seed in members.get("seeds", ())),
        same_code=members.get("sameCode", True),
    )


def _signer(descriptor: int | None) -> Signer | None:
    """Read the signing key's seed from the pipe that `record` left, and close it before the script runs."""
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as pipe:
        return Signer.from_seed(pipe.read(32))


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def strip_own_frames(error: BaseException | None, seen: set[int] | None = None) -> None:
    """Take the frames of the recorder out of the traceback of an error and of those that led to it."""
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without_own(error.__traceback__)
    strip_own_frames(error.__cause__, seen)
    strip_own_frames(error.__context__, seen)
    for inner in getattr(error, "exceptions", ()) if isinstance(error, BaseExceptionGroup) else ():
        strip_own_frames(inner, seen)


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).parent != _HERE:
            kept.append(trace)
        trace = trace.tb_next
    result: TracebackType | None = None
    for item in reversed(kept):
        result = TracebackType(result, item.tb_frame, item.tb_lasti, item.tb_lineno)
    return result


def _wait_for_threads() -> None:
    """Wait for the script's threads, as Python does before it ends: they may still be training.

    `threading._shutdown` is what Python itself calls, and may be called twice; joining the threads by hand would wait
    for ever for those of an executor.
    """
    with suppress(KeyboardInterrupt):
        threading._shutdown()  # type: ignore[attr-defined]


def _say(text: str) -> None:
    """Print to stderr, past its buffer: what is left in one that cannot be written ends Python with 120."""
    stream = sys.__stderr__
    if stream is not None:  # else it was closed when we were started
        with suppress(OSError, ValueError):  # the script may have closed it
            stream.flush()
            os.write(stream.fileno(), f"trainmem-audit: {text}\n".encode(stream.encoding, "backslashreplace"))


def _silence(text: str) -> None:
    pass
