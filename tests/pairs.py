"""Arms that really train: a small network with BatchNorm, dropout, an average of its weights and a queue of keys.

`Training().run(folder)` records a control. What an arm does differently is said by its fields: an intervention, or a
sabotage that a pairing certificate must find.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.keys import Signer
from trainmem_audit.recording import Recorder
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import certify_runs

__all__ = ["AT", "STEPS", "Training", "certified"]

STEPS, AT, BATCH = 10, 4, 6
_SIGNER = Signer.from_seed(bytes(32))

Act = Callable[["Training"], None]


def certified(treated: Path, control: Path) -> Certificate:
    """Return the certificate of two recorded runs."""
    with open_run(treated) as left, open_run(control) as right:
        return certify_runs(left, right)


@dataclass
class Training:
    """One arm.

    `document` and `act` are the intervention before step `at`, `unsaid` what is done there and not said, `plan` the
    order of the batches, `extra` a step before which one number more is drawn, `dropped` one that is left out.
    """

    document: dict[str, Any] = field(default_factory=lambda: {"primitive": "carry"})
    act: Act = lambda _: None
    unsaid: Act = lambda _: None
    at: int = AT
    optimizer: Literal["sgd", "adam", "plain"] = "sgd"
    plan: list[int] = field(default_factory=lambda: list(range(STEPS)))
    extra: int | None = None
    dropped: int | None = None

    def run(self, folder: Path) -> Path:
        """Train, record and return the run directory."""
        self._begin()
        with Recorder(folder, signer=_SIGNER, commitments=False) as recorder:
            self.recorder = recorder
            recorder.track("queue", self.queue)
            self.train()
        assert recorder.error is None
        return folder

    def _begin(self) -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        data = torch.randn(STEPS * BATCH, 5)
        self.data = TensorDataset(data, (data.sum(1) > 0).long())
        self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        parameters = self.model.parameters()
        if self.optimizer == "adam":
            self.steps: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=0.01)
        else:
            self.steps = torch.optim.SGD(parameters, lr=0.05, momentum=0.9 * (self.optimizer == "sgd"))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
        self.queue = torch.randn(12, 2)

    def train(self) -> None:
        """Run the loop, with the cut right after each step."""
        samples = torch.randperm(len(self.data)).view(STEPS, BATCH)[self.plan].flatten().tolist()
        if self.at == 0:
            raise ValueError("there is no cut before the first step")
        for step, (inputs, targets) in enumerate(DataLoader(self.data, batch_size=BATCH, sampler=samples)):
            if step == self.extra:
                torch.rand(1)
            if step == self.dropped:
                continue
            self._step(inputs + 0.1 * torch.randn_like(inputs), targets)
            if self.recorder.steps == self.at:
                self.unsaid(self)
                self._intervene()
            self.average.update_parameters(self.model)

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.steps.zero_grad()
        logits = self.model(inputs)
        loss = nn.functional.cross_entropy(logits, targets) - 1e-3 * (logits @ self.queue.T).mean()
        loss.backward()
        self.steps.step()
        self.queue.copy_(torch.cat([self.queue[BATCH:], logits.detach()]))

    def _intervene(self) -> None:
        session = self.recorder._recording.session  # type: ignore[union-attr]
        assert session is not None
        before, rng_before = session._collect()[0], session._digest_streams()
        with torch.no_grad():
            self.act(self)
        after, rng_after = session._collect()[0], session._digest_streams()
        names = sorted(before.keys() | after.keys())
        session._writer.put(
            {
                "t": "intervention",
                "i": session.steps,
                "intervention": self.document,
                "state": {"before": before, "after": after},
                "rng": {"before": rng_before, "after": rng_after},
                "changed": [name for name in names if before.get(name) != after.get(name)],
            }
        )
