"""A mean teacher with a queue, all of whose memory a checkpoint must hold; `DROP` leaves one kind out of it.

Saves after step `SAVE` (within the second epoch), `RESUME` goes on from there. Each kind of memory has its own key.
"""

import copy
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAVE, STEPS, BATCH = 11, 20, 8
DROP = os.environ.get("DROP", "")
RESUME = os.environ.get("RESUME", "")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 4)
        self.register_buffer("queue", torch.zeros(32, 4), persistent=False)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.norm(self.hidden(x)))))

    @torch.no_grad()
    def enqueue(self, keys):
        at = int(self.pointer)
        self.queue[at : at + len(keys)] = keys
        self.pointer[0] = (at + len(keys)) % len(self.queue)


class Sampler(torch.utils.data.Sampler):
    """Goes on with the permutation of an epoch where it was left."""

    def __init__(self, size):
        self.size, self.epoch, self.position = size, 0, 0

    def __len__(self):
        return self.size

    def __iter__(self):
        generator = torch.Generator().manual_seed(100 + self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()[self.position :]
        self.epoch, self.position = self.epoch + 1, 0


torch.manual_seed(int(os.environ.get("SEED", "0")))
model = Net()
teacher = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4)
source = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(64, 6, generator=source), torch.randn(64, 4, generator=source))
sampler = Sampler(len(data))
loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
step = 0
pending = None


def checkpoint():
    weights = dict(model.named_parameters()) if DROP == "batchnorm" else model.state_dict()
    kinds = {
        "model": weights,
        "queue": {"queue": model.queue, "pointer": model.pointer},
        "teacher": teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "sampler": {"epoch": sampler.epoch, "position": step * BATCH % len(data)},
    }
    if DROP == "teacher-stale":
        kinds["teacher"] = copy.deepcopy(model.state_dict())
    return {name: value for name, value in kinds.items() if name != DROP} | {"done": [step]}


if RESUME:
    saved = torch.load(RESUME, weights_only=False)
    step = saved["done"][0]
    model.load_state_dict(saved["model"], strict=False)
    optimizer.load_state_dict(saved["optimizer"])
    for name, item in (("teacher", teacher), ("scheduler", scheduler), ("scaler", scaler)):
        if name in saved:
            item.load_state_dict(saved[name])
    if "queue" in saved:
        model.queue.copy_(saved["queue"]["queue"])
        model.pointer.copy_(saved["queue"]["pointer"])
    if "sampler" in saved:
        sampler.epoch, sampler.position = saved["sampler"]["epoch"], saved["sampler"]["position"]
    pending = saved.get("rng")

while step < STEPS:
    for x, y in loader:
        if (
            pending is not None
        ):  # not before: making the iterator has drawn a number, as it had in the epoch's beginning
            torch.set_rng_state(pending)
            pending = None
        optimizer.zero_grad()
        with torch.no_grad():
            target = teacher(x)
        found = model(x)
        loss = (found - y).square().mean() + 0.1 * (found - target).square().mean()
        loss = loss + 0.01 * (found @ model.queue.t()).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        model.enqueue(target)
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), model.parameters(), strict=True):
                old.mul_(0.9).add_(new, alpha=0.1)
        step += 1
        if step == SAVE and not RESUME:
            torch.save(checkpoint(), "checkpoint.pt")
        if step >= STEPS:
            break
