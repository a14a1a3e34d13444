"""What the recorder holds in memory over a long run: resident memory while a tiny model makes a million steps.

The model is as small as can be (a linear layer, SGD with momentum, batches from a DataLoader, dropout), so that what
grows is the recorder's. Bare and recorded training run in fresh processes, one after the other; each says how much
memory it holds after every tenth of the steps. A recorder that kept anything per step would show as a slope.

    python benchmarks/long_run.py [--steps N] [--out FILE]

Prints a table and writes JSON. Resident memory is that of the process in MiB (`VmRSS`; Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

POINTS = 10


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def train(steps: int, say: Any) -> None:
    """Train for `steps` steps; call `say` with step and resident memory ten times."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(4096, 4), torch.randn(4096, 1))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    done = 0
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done % (steps // POINTS) == 0:
                say(done, resident())
            if done == steps:
                return


def child(kind: str, steps: int, directory: Path) -> None:
    """Train in this process, recorded or not, and print what was held as lines of JSON."""
    began = time.perf_counter()

    def say(step: int, held: float) -> None:
        print(json.dumps({"step": step, "residentMiB": held, "seconds": time.perf_counter() - began}), flush=True)

    if kind == "bare":
        train(steps, say)
        return
    from trainmem_audit import Recorder
    from trainmem_audit.keys import Signer

    with Recorder(directory / "run", signer=Signer.generate(), snapshots=steps // POINTS) as recorder:
        train(steps, say)
    if recorder.error is not None or recorder.statement is None:
        raise SystemExit(f"the recording failed: {recorder.error}")


def measure(steps: int, directory: Path) -> dict[str, list[dict[str, float]]]:
    """Return the points of bare and recorded training."""
    found = {}
    for kind in ("bare", "recorded"):
        command = [sys.executable, __file__, "--steps", str(steps), "--child", kind, str(directory)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[kind] = [json.loads(line) for line in done.stdout.splitlines()]
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the points as text."""
    lines = [f"{'steps':>10}{'bare MiB':>12}{'recorded MiB':>15}{'bare s':>10}{'recorded s':>13}"]
    for bare, recorded in zip(found["bare"], found["recorded"], strict=True):
        lines.append(
            f"{bare['step']:>10}{bare['residentMiB']:>12.1f}{recorded['residentMiB']:>15.1f}"
            f"{bare['seconds']:>10.1f}{recorded['seconds']:>13.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="memory of the recorder over a long run")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "long_run.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.steps, Path(arguments.child[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(arguments.steps, Path(temporary))
        sizes = {path.name: path.stat().st_size for path in (Path(temporary) / "run").iterdir() if path.is_file()}
    print(f"{arguments.steps} steps; Python {platform.python_version()}\n\n{table(found)}\n")
    half = POINTS // 2
    growth = found["recorded"][-1]["residentMiB"] - found["recorded"][half - 1]["residentMiB"]
    print(f"over the second half the recording process grew by {growth:.1f} MiB")
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    document = {"machine": machine, "steps": arguments.steps, "points": found, "bytes": sizes}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
