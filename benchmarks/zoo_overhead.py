"""What recording costs for every shape of the zoo (`tests/shapes.py`): the same scripts, bare and recorded in turn.

`record_overhead` measures a few trainings well; this measures every shape of script, each as it stands: a few steps of
a tiny model, so that what is seen is the cost that does not depend on the size of the state. One process imports torch
and forks a child for each run; a step is the time from the end of one `optimizer.step()` to the end of the next. The
*floor* is the bytes of the state over the rate of one-threaded BLAKE3.

    python -m benchmarks.zoo_overhead [--rounds N] [--only TEXT] [--out FILE]    measure, print, write JSON
    python -m benchmarks.zoo_overhead --page                                     write docs/zoo-overhead.md from it
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import runpy
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo  # what every optimizer imports when it is made: here once, before the forks
from torch import _compile
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.record_overhead import blake3_rate
from tests.shapes import SHAPES, ZOO, Shape
from tests.trainings import bare, statement_of
from trainmem_audit.cli.record import _order
from trainmem_audit.keys import Signer
from trainmem_audit.recording.launcher import interpreter_command, main
from trainmem_audit.recording.session import Session

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "zoo_overhead.json"
PAGE = ROOT / "docs" / "zoo-overhead.md"
PARTS = ("state", "rng", "batch", "inputs", "line")
_SIGNER = Signer.from_seed(bytes(range(32)))
_PATIENCE = 120.0
_PAGE = """\
# What recording costs, over the zoo

Every script of [the zoo](script-shapes.md), bare and recorded in turn on one machine ({cpus} CPUs, torch {torch},
{rounds} rounds); milliseconds per step, medians. These are tiny models of a few steps: what is seen is the cost that
does not depend on the size of the state. [What it costs for models of ordinary size](benchmarks.md) is measured with
many more steps. Made by `python -m benchmarks.zoo_overhead`, and `--page` for this page.

- Half of the shapes pay at most {median:.2f} ms a step, the dearest {dearest:.2f} ms. A negative figure says that the
  noise between two runs is larger than the cost.
- The floor (bytes of the state over {rate:.1f} GB/s, one-threaded BLAKE3) is microseconds here: next to nothing of the
  cost is hashing bytes. The largest part is `{most}` for {times} of {measured} shapes.
- Why: in the first four steps, and the first of eight more epochs, the random streams are looked at before and after
  each activity, to learn what was drawn from them for ([RNG contract](rng-contract.md)); these scripts end soon after,
  a run of many steps does not see it (there `rng` is about 0.1 ms). `state` is walking objects in Python, and a call
  for each tensor.
- The parts: `state` digests of all components, `rng` those of the random streams, `batch` those of what loaders hand
  out, `inputs` those of what modules are given, `line` the making of the log line. What of the overhead is in no part
  is the hooks themselves, and the writer's thread when it takes the interpreter.

{table}
"""


def _child(shape: Shape, result: Path, recorded: bool) -> NoReturn:
    """Run the script in this process, which was forked for it, and write down when its steps ended."""
    leave = os._exit
    try:
        _timed(shape, result, recorded)
    except BaseException:
        traceback.print_exc()
    leave(1)
    raise AssertionError


def _timed(shape: Shape, result: Path, recorded: bool) -> None:
    os.setsid()
    with Path("out.txt").open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    torch.set_num_threads(shape.threads)
    ends: list[float] = []
    hook = _compile._disable_dynamo(
        lambda *_: ends.append(time.perf_counter())
    )  # a compiled step must not be cut in two
    register_optimizer_step_post_hook(hook)
    leave = os._exit

    def written(code: int) -> None:
        seconds = [item.seconds for item in gc.get_objects() if type(item) is Session]
        result.write_text(json.dumps({"ends": ends, "seconds": seconds[0] if seconds else {}}))
        leave(code)

    os._exit = written  # type: ignore[assignment]  # a script may end so
    try:
        _record(shape) if recorded else _run(shape)
    except BaseException:  # scripts end in many ways, and are timed all the same
        traceback.print_exc()
    written(0)


def _run(shape: Shape) -> None:
    if shape.command[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = [shape.command[1], *shape.command[2:]]
        runpy.run_module(shape.command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(shape.command[0]).resolve().parent))
        sys.argv = [*shape.command]
        runpy.run_path(str(Path(shape.command[0]).resolve()), run_name="__main__")


def _record(shape: Shape) -> None:
    module = shape.command[0] == "-m"
    target, *arguments = shape.command[module:]
    Path("run").mkdir()
    reader, writer = os.pipe()
    os.write(writer, _SIGNER.seed())
    os.close(writer)
    order = _order(target, arguments, module, Path("run"))
    _, descriptor = interpreter_command(order | {"seedFd": reader, "quiet": True}, arguments)
    sys.argv = ["-c", str(descriptor)]
    main()


def run_once(shape: Shape, before: Path, folder: Path, recorded: bool) -> dict[str, Any]:
    """Run a shape once, bare or recorded; return the times of its steps, and what the recorder says of itself."""
    shutil.copytree(before, folder / "there")
    result = folder / "result.json"
    pid = os.fork()
    if pid == 0:
        os.chdir(folder / "there")
        _child(shape, result, recorded)
    deadline = time.monotonic() + _PATIENCE
    while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # workers outlive a script that ended early
    found = json.loads(result.read_text()) if result.exists() else {"ends": [], "seconds": {}}
    found["state"] = _state(folder / "there" / "run") if recorded else 0
    return dict(found)


def _state(run: Path) -> int:
    if not (run / "run.json").exists():
        return 0
    return sum(component.bytes for component in statement_of(run).predicate.sources.values())


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the figures of one shape: medians over all steps of all rounds, in milliseconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        where = Path(name)
        before = where / "before"
        for file in shape.names:
            (before / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ZOO / file, before / file)
        for file, text in shape.text.items():
            (before / file).parent.mkdir(parents=True, exist_ok=True)
            (before / file).write_text(text)
        if shape.before:
            bare(before, *shape.before, home=where / "home")
        runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for number in range(rounds):
            for recorded in (False, True):
                folder = where / f"{number}-{recorded}"
                folder.mkdir()
                runs[recorded].append(run_once(shape, before, folder, recorded))
    row: dict[str, Any] = {"shape": shape.name, "script": shape.script}
    times = {recorded: [step for run in found for step in _intervals(run["ends"])] for recorded, found in runs.items()}
    told = [run for run in runs[True] if run["seconds"] and run["ends"]]
    if not times[False] or not times[True] or not told:
        return row | {"notMeasured": "fewer than two steps end in the process that was started"}
    bare_ms, recorded_ms = (1000 * statistics.median(times[recorded]) for recorded in (False, True))
    state = max(run["state"] for run in runs[True])
    floor = 1000 * state / blake3_rate()
    parts = {part: 1000 * statistics.median(run["seconds"][part] / len(run["ends"]) for run in told) for part in PARTS}
    return row | {
        "steps": len(times[True]) // rounds + 1,
        "bareMs": bare_ms,
        "recordedMs": recorded_ms,
        "overheadMs": recorded_ms - bare_ms,
        "stateBytesPerStep": state,
        "floorMs": floor,
        "partsMs": parts,
    }


def _intervals(ends: list[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(ends)]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the figures as lines of Markdown."""
    titles = ("script", "bare", "recorded", "overhead", "floor", *PARTS, "largest")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        if "notMeasured" in row:
            lines.append(f"| {row['shape']} | {row['notMeasured']} |" + " |" * 9)
            continue
        parts = row["partsMs"]
        figures = (row["bareMs"], row["recordedMs"], row["overheadMs"])
        lines.append(
            f"| {row['shape']} | "
            + " | ".join(f"{figure:.2f}" for figure in figures)
            + f" | {row['floorMs']:.4f} | "
            + " | ".join(f"{parts[part]:.3f}" for part in PARTS)
            + f" | {_largest(parts)} |"
        )
    return lines


def page(found: dict[str, Any]) -> str:
    """Return the page of documentation that shows the committed figures."""
    machine, rows = found["machine"], found["rows"]
    measured = [row for row in rows if "notMeasured" not in row]
    overheads = sorted(row["overheadMs"] for row in measured)
    largest = [_largest(row["partsMs"]) for row in measured]
    most = max(set(largest), key=largest.count)
    return _PAGE.format(
        cpus=machine["cpus"],
        torch=machine["torch"],
        rounds=found["rounds"],
        median=statistics.median(overheads),
        dearest=overheads[-1],
        rate=found["blake3GBps"],
        most=most,
        times=largest.count(most),
        measured=len(measured),
        table="\n".join(table(rows)),
    )


def _largest(parts: dict[str, float]) -> str:
    return max(parts, key=lambda part: parts[part])


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="shapes with this in their name")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "zoo_overhead.json")
    parser.add_argument("--page", action="store_true", help="write the page from the committed figures")
    arguments = parser.parse_args()
    if arguments.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")
        return
    gc.collect()
    gc.freeze()
    rows = []
    for shape in SHAPES:
        if arguments.only in shape.name:
            rows.append(measure(shape, arguments.rounds))
            print("\n".join(table(rows)[2:][-1:]), flush=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": str(torch.__version__)}
    found = {"machine": machine, "rounds": arguments.rounds, "blake3GBps": blake3_rate() / 1e9, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    _main()
