"""What recording costs: every step and every byte of state, recorded against bare training in one run.

Blocks of bare and recorded steps alternate, so that a busy machine slows both; the ratio is that of the medians. The
*floor* is the time that reading the state once costs: its bytes over the rate of one-threaded BLAKE3, measured in the
same run, for every update of an iteration. Below it one can only go by hashing beside the training, or by thinning.

    python benchmarks/record_overhead.py [--threads N] [--rounds N] [--model NAME]... [--out FILE]

Prints a table and writes JSON. Times are in milliseconds per iteration of the training loop unless the
name says otherwise. An iteration is one optimizer step, but two for the GAN, and one for four batches where gradients
are accumulated.
"""

from __future__ import annotations

import argparse
import itertools
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
class Training:
    """A training that has been set up: `source` makes an endless iterator, `iterate` trains on what it gives."""

    source: Callable[[], Iterator[Any]]
    iterate: Callable[[Any], None]


@dataclass(frozen=True)
class Case:
    """One kind of training; `updates` is how often optimizers step in an iteration, `block` how many are timed."""

    name: str
    start: Callable[[], Training]
    batch: int
    block: int
    updates: int = 1


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


def _batches(shape: tuple[int, ...], batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give batches from a shuffling DataLoader without end."""
    count = 32 * batch
    data = TensorDataset(torch.randn(count, *shape), torch.randint(0, 10, (count,)))
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    while True:
        yield from loader


def classifier(
    model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], accumulate: int = 1
) -> Training:
    """Train by batches of 64 from a loader; an update for every `accumulate` of them."""

    def source() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        batches = _batches(shape, 64)
        while True:
            yield [next(batches) for _ in range(accumulate)]

    def iterate(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        optimizer.zero_grad()
        for x, y in batches:
            (functional.cross_entropy(model(x), y) / accumulate).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Training(source, iterate)


def _sgd(model: nn.Module, shape: tuple[int, ...], accumulate: int = 1) -> Training:
    return classifier(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), shape, accumulate)


def _adam(model: nn.Module, shape: tuple[int, ...]) -> Training:
    return classifier(model, torch.optim.Adam(model.parameters(), lr=1e-3), shape)


class CharLM(nn.Module):
    """A small Transformer over characters: 65 of them, windows of 64, two layers of width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(65, 128)
        self.places = nn.Parameter(torch.zeros(64, 128))
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 65)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Map (N, 64) characters to (N, 64, 65) scores."""
        mask = nn.Transformer.generate_square_subsequent_mask(64)
        scores: torch.Tensor = self.head(self.body(self.characters(windows) + self.places, mask=mask, is_causal=True))
        return scores


def char_lm() -> Training:
    """Train `CharLM` by AdamW on random windows of made-up text; there is no loader."""
    model = CharLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    text = torch.randint(0, 65, (100_000,))

    def iterate(_: None) -> None:
        starts = torch.randint(len(text) - 65, (16,))
        windows = torch.stack([text[start : start + 65] for start in starts.tolist()])
        optimizer.zero_grad()
        scores = model(windows[:, :-1])
        functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Training(lambda: itertools.repeat(None), iterate)


def gan() -> Training:
    """Train a discriminator and a generator in turn, each by its own Adam."""
    make = torch.optim.Adam
    generator = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
    critic = nn.Sequential(nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))
    steps = [make(module.parameters(), lr=2e-4, betas=(0.5, 0.999)) for module in (critic, generator)]
    score = functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    def iterate(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        fake = generator(torch.randn(64, 64))
        steps[0].zero_grad()
        (score(critic(batch[0]), ones) + score(critic(fake.detach()), zeros)).backward()  # type: ignore[no-untyped-call]
        steps[0].step()
        steps[1].zero_grad()
        score(critic(fake), ones).backward()  # type: ignore[no-untyped-call]
        steps[1].step()

    return Training(lambda: _batches((64,), 64), iterate)


def lbfgs() -> Training:
    """Fit an MLP by LBFGS, four evaluations of the closure a step at most."""
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, history_size=10)

    def iterate(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]

    return Training(lambda: _batches((64,), 64), iterate)


def mlp() -> nn.Module:
    """Return an MLP of 19 thousand parameters."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


CASES = (
    Case("mlp", lambda: _sgd(mlp(), (64,)), 64, 200),
    Case("mlp-accumulate-4", lambda: _sgd(mlp(), (64,), accumulate=4), 256, 60),
    Case("mlp-lbfgs", lbfgs, 64, 40),
    Case("gan-adam", gan, 64, 80, updates=2),
    Case("char-lm-adamw", char_lm, 16, 30),
    Case("digits-cnn-sgd", lambda: _sgd(digits_cnn(), (1, 8, 8)), 64, 60),
    Case("digits-cnn-adam", lambda: _adam(digits_cnn(), (1, 8, 8)), 64, 60),
    Case("resnet18-sgd", lambda: _sgd(resnet18(), (3, 32, 32)), 64, 4),
)


def run_block(training: Training, source: Iterator[Any], count: int) -> list[float]:
    """Train for `count` iterations and return the seconds of each."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        training.iterate(next(source))
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
    training = case.start()
    source = training.source()
    signer = Signer.generate()
    run_block(training, source, max(3, case.block // 4))
    bare: list[float] = []
    recorded: list[float] = []
    parts: dict[str, float] = {}
    rates: list[float] = []
    adoption: list[float] = []
    steps = state = 0
    for _ in range(rounds):
        rates.append(blake3_rate())
        bare += run_block(training, source, case.block)
        with tempfile.TemporaryDirectory() as folder:
            source_recorded = training.source()  # its iterator must be made while recording
            with Recorder(Path(folder) / "run", signer=signer) as recorder:
                adoption += run_block(training, source_recorded, 1)
                before = recorder.seconds
                recorded += run_block(training, source_recorded, case.block)
                after = recorder.seconds
            for name in after:
                parts[name] = parts.get(name, 0.0) + after[name] - before[name]
            steps += case.block
            assert recorder.statement is not None
            state = sum(component.bytes for component in recorder.statement.predicate.sources.values())
    rate = statistics.median(rates)
    bare_ms, recorded_ms = (1000 * statistics.median(times) for times in (bare, recorded))
    floor = 1000 * case.updates * state / rate
    return {
        "model": case.name,
        "batch": case.batch,
        "updates": case.updates,
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
    lines += ["", f"{'parts, ms':<16}" + "".join(f"{name:>9}" for name in rows[0]["partsMs"])]
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
    print(f"torch {torch.__version__}, {arguments.threads} threads, {os.cpu_count()} CPUs; ms per iteration, medians\n")
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": str(torch.__version__)}
    arguments.out.write_text(
        json.dumps({"machine": machine, "threads": arguments.threads, "rows": rows}, indent=2) + "\n"
    )
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
