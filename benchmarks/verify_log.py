"""What verifying a long log costs, against reading it: `trainmem-audit verify` and plain `json.loads` over one file.

Records the digits example with Adam, and writes a log of a million lines as that recorder would have gone on: the
recorded lines again and again, with new digests, losses, learning rates and sample indices, through the recorder's own
writer (so that chain, side files and thinning are what they are), and signs it. Every digest that can be recomputed
from the run's files is right; the tensors behind them are made up.

    python benchmarks/verify_log.py [--lines N] [--rounds N] [--directory DIR] [--out FILE]

Everything is timed in fresh processes that take turns, start-up included, so that a busy machine slows all alike:

- `json.loads`: each line of the log by `json.loads`, and nothing else
- `hashes`: the floor. SHA-256 of the file, then chain (BLAKE3) and Merkle leaves (SHA-256) line by line, without
  looking at what the lines say
- `log`: every check of the log itself, by `LogReader` (step 6 of verification)
- `verify`: the whole command, with the digests of all files and the checks of the side files

Prints a table and writes JSON. Ratios are those of the medians of wall time.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "train.py"
ADAM = "torch.optim.Adam(model.parameters(), lr=args.lr)"
AIM_RATIO, AIM_MIB = 3.0, 300

LOADS = """
import json, sys
with open(sys.argv[1] + "/steps.jsonl", "rb") as file:
    for line in file:
        json.loads(line)
"""
HASHES = """
import hashlib, sys
from blake3 import blake3
with open(sys.argv[1] + "/steps.jsonl", "rb") as file:
    hashlib.file_digest(file, "sha256")
    file.seek(0)
    head = bytes(32)
    for line in file:
        head = blake3(head + line[75:-1], derive_key_context="trainmem-audit 2026-11 step log chain v1").digest()
        hashlib.sha256(line).digest()
"""
LOG = """
import sys
from trainmem_audit.steplog import LogReader, iter_lines
log = LogReader()
with open(sys.argv[1] + "/steps.jsonl", "rb") as file:
    for line, _ in iter_lines(iter(lambda: file.read(2**20), b""), "steps.jsonl"):
        log.check(line)
"""
COMMANDS = {
    "json.loads": ["-c", LOADS],
    "hashes": ["-c", HASHES],
    "log": ["-c", LOG],
    "verify": ["-m", "trainmem_audit", "verify", "--quiet", "--allow-untrusted"],
}


def build(directory: Path, lines: int) -> None:
    """Record the example and write the long log with its side files; in a process of its own, which is then large."""
    from trainmem_audit.assemble import sign_run
    from trainmem_audit.keys import Signer
    from trainmem_audit.recording.writer import LogWriter

    recorded = _record(directory)
    members = [json.loads(line) for line in (recorded / "steps.jsonl").open("rb")]
    for line in members:
        del line["chain"]
    run = directory / "run"
    run.mkdir()
    shutil.copytree(recorded / "source", run / "source")
    failures: list[BaseException] = []
    writer = LogWriter(run, members[0]["tensorBudget"], failures.append)
    writer.start(members[0])
    for line in _continued(members, lines):
        writer.put(*line)
    summary = writer.close()
    if failures or summary.lines != lines:
        raise SystemExit(f"the log could not be written: {failures or summary.lines}")
    sign_run(run, summary, Signer.generate())


def _record(directory: Path) -> Path:
    script = EXAMPLE.read_text(encoding="utf-8")
    start = script.index("torch.optim.SGD(")
    end = script.index("\n    scheduler", start)
    (directory / "train.py").write_text(script[:start] + ADAM + script[end:], encoding="utf-8")
    environment = {**os.environ, "TRAINMEM_AUDIT_HOME": str(directory / "home")}
    command = [sys.executable, "-m", "trainmem_audit", "record", "-d", "recorded", "train.py", "--lr", "0.001"]
    subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True)
    return directory / "recorded"


Put = tuple[dict[str, Any], list[bytes] | None, bytes | None]


def _continued(members: list[dict[str, Any]], lines: int) -> Iterator[Put]:
    """Give the recorded lines after the first, then their epochs over and over, then the last: `lines` with the first.

    The recorded steps are made anew too: the recording does not say which tensor digests were thinned out.
    """
    steps = _Steps(members, lines)
    first = next(at for at, line in enumerate(members) if line["t"] == "epoch")
    given = 1
    epoch = 0
    for line in _endless(members[1:-1], members[first:-1]):
        if given == lines - 1:
            break
        given += 1
        if line["t"] == "step":
            yield steps.next(line)
        elif line["t"] == "epoch":
            yield {**line, "i": steps.count, "epoch": epoch, "rng": steps.digests("epoch", line["rng"])}, None, None
            epoch += 1
        else:
            yield {**line, "i": steps.count}, None, None
    yield {**members[-1], "i": steps.count}, None, None


def _endless(lines: list[dict[str, Any]], again: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from lines
    repeated = [line for line in again if line["t"] in ("epoch", "step")]
    while True:
        yield from repeated


class _Steps:
    """Makes step lines like the recorded ones, with all that changes from step to step."""

    def __init__(self, members: list[dict[str, Any]], lines: int) -> None:
        import numpy as np

        self.count = 0
        self._lines = lines
        self._rng = np.random.default_rng(0)
        self._components: dict[str, Any] = {}
        for line in members:
            if line["t"] == "inventory":
                self._components |= line.get("components", {})
        steps = [line for line in members if line["t"] == "step"]
        self._values = {name: values for line in steps for name, values in line.get("values", {}).items()}

    def next(self, line: dict[str, Any]) -> Put:
        """Return a step line like `line`, its tensor digests and its sample indices."""
        from blake3 import blake3

        from trainmem_audit.canonical import canonical_bytes, component_digest, float_text, value_digest

        i = self.count
        self.count += 1
        lr = float_text(0.0005 * (1 + math.cos(math.pi * i / self._lines)))
        state, values, digests = {}, {}, []
        for name in sorted(line["state"]):
            tensors = self._components[name].get("tensors")
            if tensors is None:
                values[name] = _with_rate(self._values[name], lr, i)
                state[name] = value_digest(values[name]).hex()
            else:
                data = blake3(f"{i} {name}".encode()).digest(32 * len(tensors))
                digests += [data[at : at + 32] for at in range(0, len(data), 32)]
                state[name] = component_digest(canonical_bytes(tensors), [data]).hex()
        indices = self._rng.integers(0, 1437, line["order"]["n"], dtype="<i8").tobytes()
        order = {**line["order"], **self.digests("order", ["content"]), "index": blake3(indices).hexdigest()}
        made = {**line, "i": i, "order": order, "state": state, "rng": self.digests("rng", line["rng"])}
        made |= {**self.digests("step", ["inputs"]), "values": values}
        made["scalars"] = {"loss": [float_text(float(self._rng.standard_exponential(dtype="f4")))], "lr": [lr]}
        return made, digests, indices

    def digests(self, what: str, names: Any) -> dict[str, str]:
        """Return a digest for each name that no other step has."""
        from blake3 import blake3

        return {name: blake3(f"{what} {name} {self.count}".encode()).hexdigest() for name in names}


def _with_rate(values: Any, lr: str, step: int) -> Any:
    """Return the values of the optimizer or of its schedule with another learning rate and step."""
    changed = {"lr": lr, "_last_lr": [lr], "_step_count": step + 2, "last_epoch": step + 1}
    if isinstance(values, dict):
        return {name: changed.get(name, _with_rate(member, lr, step)) for name, member in values.items()}
    return [_with_rate(item, lr, step) for item in values] if isinstance(values, list) else values


def timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a process; return its seconds (wall and CPU) and its peak memory in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command} ended with {code}:\n{output.decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpuSeconds": cpu, "peakMiB": usage.ru_maxrss * unit / 2**20}


def measure(directory: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the figures of every command: medians over the rounds, the largest peak."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    environment = {**os.environ, "TRAINMEM_AUDIT_HOME": str(directory / "home")}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            taken[name].append(timed([sys.executable, *arguments, str(directory / "run")], environment))
    rows: list[dict[str, Any]] = [{"what": name, **_summary(figures)} for name, figures in taken.items()]
    for row in rows:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
        row["cpuRatio"] = row["cpuSeconds"] / rows[0]["cpuSeconds"]
    return rows


def _summary(figures: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(figure["seconds"] for figure in figures),
        "cpuSeconds": statistics.median(figure["cpuSeconds"] for figure in figures),
        "peakMiB": max(figure["peakMiB"] for figure in figures),
        "allSeconds": [figure["seconds"] for figure in figures],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as text."""
    lines = [f"{'':<12}{'wall s':>9}{'CPU s':>9}{'ratio':>8}{'CPU ratio':>11}{'peak MiB':>10}"]
    lines += [
        f"{row['what']:<12}{row['seconds']:>9.2f}{row['cpuSeconds']:>9.2f}{row['ratio']:>8.2f}{row['cpuRatio']:>11.2f}"
        f"{row['peakMiB']:>10.0f}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Build, measure, print, write."""
    parser = argparse.ArgumentParser(description="verification of a long log against reading it")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to build the run, or where it was built before")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "verify_log.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.directory or Path(temporary)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "run" / "run.json").is_file():
            builder = multiprocessing.get_context("spawn").Process(target=build, args=(directory, arguments.lines))
            builder.start()
            builder.join()
            if builder.exitcode:
                raise SystemExit("the log could not be built")
        run = directory / "run"
        sizes = {path.relative_to(run).as_posix(): path.stat().st_size for path in run.rglob("*") if path.is_file()}
        with (run / "steps.jsonl").open("rb") as file:
            lines = sum(1 for _ in file)
        rows = measure(directory, arguments.rounds)
    print(f"{lines} lines, {sizes['steps.jsonl'] / 1e6:.0f} MB; Python {platform.python_version()}\n\n{table(rows)}\n")
    verify = rows[-1]
    print(f"aims: at most {AIM_RATIO:g} × json.loads (is {verify['ratio']:.2f}),", end=" ")
    print(f"under {AIM_MIB} MiB (is {verify['peakMiB']:.0f})")
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    document = {"machine": machine, "lines": lines, "bytes": sizes, "rounds": arguments.rounds, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
