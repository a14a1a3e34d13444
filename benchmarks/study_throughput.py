"""What a study costs: its wall time over (its steps × the bare time of a step), on one core, and two workers over one.

The study is that of the digits example in small: resets, kick, butterfly and placebo, forked twice, each arm a recorded
run with its observations. The bare step is timed in the same run, before and after the study, on one thread: the same
program without a recorder. Prints a table and writes JSON to `benchmarks/out/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "examples" / "digits"

STUDY = """
name = "throughput"
task = "classification"
seeds = 2
noise_streams = 2
branch_steps = [60]
horizons = [1, 3, 10, 30, 100]
state_digests = "branch-and-horizons"
[program]
entry = "program.py:program"
[interventions]
control = "carry"
reset = "reset:optimizer.momentum"
half = "scale:optimizer.momentum:0.5"
[contrasts]
reset = "control"
half = "control"
[primary]
contrast = "reset"
horizon = 3
[probe]
head = "model"
[analysis]
equivalence_margin = 0.05
"""

BARE = """
import sys, time, torch
from pathlib import Path
from trainmem_audit.programs.live import Live, start_streams
from trainmem_audit.programs.program import find_factory
torch.set_num_threads(1)
start_streams("0")
factory, _ = find_factory("program.py:program", Path.cwd())
live = Live(lambda: factory(seed=0))
for _ in range(40):
    live.step()
times = []
for _ in range(20):
    began = time.perf_counter()
    for _ in range(15):
        live.step()
    times.append((time.perf_counter() - began) / 15)
print(sorted(times)[len(times) // 2])
"""


def bare_step(folder: Path) -> float:
    """Return the median time of a step without a recorder, in seconds."""
    done = subprocess.run([sys.executable, "-c", BARE], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


def study(folder: Path, workers: int) -> tuple[float, int]:
    """Run the study anew; return its wall time in seconds and the steps that it took."""
    target = folder / f"run-{workers}"
    shutil.rmtree(target, ignore_errors=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "trainmem_audit", "study", "run", "study.toml", "--dir", str(target)]
    environment = {**os.environ, "TRAINMEM_AUDIT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--workers", str(workers), "--quiet"], cwd=folder, env=environment, check=True)
    wall = time.perf_counter() - began
    steps = 0
    for log in target.glob("arms/*/steps.jsonl"):
        with log.open("rb") as file:
            steps += sum(b'"t":"step"' in line for line in file)
    return wall, steps


def measure(rounds: int) -> dict[str, Any]:
    """Return medians over rounds; each round times the bare step, the study with one worker and with two."""
    found: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
    steps = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in DIGITS.glob("*.py"):
            shutil.copy(path, folder)
        (folder / "study.toml").write_text(STUDY)
        for _ in range(rounds):
            found["bare"].append(bare_step(folder))
            wall, steps = study(folder, 1)
            found["one"].append(wall)
            found["bare"].append(bare_step(folder))
            found["two"].append(study(folder, 2)[0])
    bare, one, two = (statistics.median(found[key]) for key in ("bare", "one", "two"))
    return {
        "steps": steps,
        "bareStepMs": 1e3 * bare,
        "oneWorkerSeconds": one,
        "twoWorkersSeconds": two,
        "wallOverBare": one / (steps * bare),
        "twoOverOne": one / two,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "rounds": rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "out" / "study_throughput.json")
    options = parser.parse_args()
    found = measure(options.rounds)
    print(f"{found['steps']} steps, bare {found['bareStepMs']:.2f} ms each")
    print(f"one worker   {found['oneWorkerSeconds']:7.1f} s   {found['wallOverBare']:.3f} × steps × bare (aim 1.15)")
    print(f"two workers  {found['twoWorkersSeconds']:7.1f} s   {found['twoOverOne']:.2f} × as fast (aim 1.7)")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
