"""What recording costs: every step and every byte of state, recorded against bare training in one run.

Blocks of bare and recorded steps alternate, so that a busy machine slows both; the ratio is that of the medians. The
*floor* is the time that reading the state once costs: its bytes over the rate of one-threaded BLAKE3, measured in the
same run. Below it one can only go by hashing beside the training, or by thinning.

    python benchmarks/record_overhead.py [--threads N] [--rounds N] [--model NAME]... [--out FILE]

Prints a table and writes JSON. Times are in milliseconds per step unless the name says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trainmem_audit import Recorder
from trainmem_audit.keys import Signer


@dataclass(frozen=True)
class Case:
    """One model with its optimizer and data: `make` gives model and optimizer."""

    name: str
    make: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    shape: tuple[int, ...]
    batch: int
    block: int


class Block(nn.Module):
    """A basic residual block (He et al. 2015)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.short: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.short(x))


def resnet18() -> nn.Module:
    """Return a ResNet-18 for images of 32×32 (a 3×3 stem, no pooling at first); 11.2 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inside, outside, stride), Block(outside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def digits_cnn() -> nn.Module:
    """Return the CNN of `examples/digits` in size: about 0.55 M parameters on 8×8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, 10),
    )  # fmt: skip


def _sgd(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def _adam(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


CASES = (
    Case("mlp", lambda: _sgd(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))), (64,), 64, 200),
    Case("digits-cnn-sgd", lambda: _sgd(digits_cnn()), (1, 8, 8), 64, 60),
    Case("digits-cnn-adam", lambda: _adam(digits_cnn()), (1, 8, 8), 64, 60),
    Case("resnet18-sgd", lambda: _sgd(resnet18()), (3, 32, 32), 64, 4),
)


def batches(case: Case) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give batches from a shuffling DataLoader without end."""
    count = 32 * case.batch
    data = TensorDataset(torch.randn(count, *case.shape), torch.randint(0, 10, (count,)))
    loader = DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True)
    while True:
        yield from loader


def run_block(
    model: nn.Module, optimizer: torch.optim.Optimizer, source: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int
) -> list[float]:
    """Train `steps` steps and return the seconds of each."""
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        x, y = next(source)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times


def blake3_rate() -> float:
    """Return the bytes per second of one-threaded BLAKE3 over a buffer of 16 MiB."""
    data = os.urandom(16 * 2**20)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        blake3(data).digest()
        times.append(time.perf_counter() - began)
    return len(data) / statistics.median(times)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Return the figures of one case."""
    torch.manual_seed(0)
    model, optimizer = case.make()
    source = batches(case)
    signer = Signer.generate()
    run_block(model, optimizer, source, max(3, case.block // 4))
    bare: list[float] = []
    recorded: list[float] = []
    parts: dict[str, float] = {}
    rates: list[float] = []
    adoption: list[float] = []
    steps = state = 0
    for _ in range(rounds):
        rates.append(blake3_rate())
        bare += run_block(model, optimizer, source, case.block)
        with tempfile.TemporaryDirectory() as folder:
            source_recorded = batches(case)  # its iterator must be made while recording
            with Recorder(Path(folder) / "run", signer=signer) as recorder:
                adoption += run_block(model, optimizer, source_recorded, 1)
                before = recorder.seconds
                recorded += run_block(model, optimizer, source_recorded, case.block)
                after = recorder.seconds
            for name in after:
                parts[name] = parts.get(name, 0.0) + after[name] - before[name]
            steps += case.block
            assert recorder.statement is not None
            state = sum(component.bytes for component in recorder.statement.predicate.sources.values())
    rate = statistics.median(rates)
    bare_ms, recorded_ms = (1000 * statistics.median(times) for times in (bare, recorded))
    floor = 1000 * state / rate
    return {
        "model": case.name,
        "batch": case.batch,
        "bareMs": bare_ms,
        "recordedMs": recorded_ms,
        "ratio": recorded_ms / bare_ms,
        "overheadMs": recorded_ms - bare_ms,
        "stateBytesPerStep": state,
        "blake3GBps": rate / 1e9,
        "floorMs": floor,
        "floorRatio": 1 + floor / bare_ms,
        "overheadOverFloor": (recorded_ms - bare_ms) / floor,
        "firstStepMs": 1000 * statistics.median(adoption),
        "partsMs": {name: 1000 * seconds / steps for name, seconds in parts.items()},
        "steps": steps,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as text."""
    head = f"{'model':<16}{'bare':>9}{'recorded':>10}{'ratio':>8}{'state MB':>10}{'floor':>8}{'over floor':>12}"
    lines = [head]
    lines += [
        f"{row['model']:<16}{row['bareMs']:>9.2f}{row['recordedMs']:>10.2f}{row['ratio']:>8.3f}"
        f"{row['stateBytesPerStep'] / 1e6:>10.2f}{row['floorMs']:>8.2f}{row['overheadOverFloor']:>11.1f}×"
        for row in rows
    ]
    lines += ["", f"{'parts, ms/step':<16}" + "".join(f"{name:>9}" for name in rows[0]["partsMs"])]
    lines += [f"{row['model']:<16}" + "".join(f"{value:>9.3f}" for value in row["partsMs"].values()) for row in rows]
    lines.append("(`writer` works in a thread of its own; the others in the training thread)")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="recorded against bare training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "record_overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = arguments.model or [case.name for case in CASES]
    rows = [measure(case, arguments.rounds) for case in CASES if case.name in wanted]
    print(f"torch {torch.__version__}, {arguments.threads} threads, {os.cpu_count()} CPUs; ms per step, medians\n")
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": str(torch.__version__)}
    arguments.out.write_text(
        json.dumps({"machine": machine, "threads": arguments.threads, "rows": rows}, indent=2) + "\n"
    )
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
