"""Much that changes and nothing that is carried: batches and outputs on a trainer, logs, meters, the best weights so far."""

import copy

import torch
from torch import nn

PIXELS = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))


class Meter:
    """A running mean."""

    def __init__(self):
        self.total, self.count, self.last = 0.0, 0, 0.0

    def update(self, value, count):
        self.last = value
        self.total += value * count
        self.count += count


class Trainer:
    """Keeps what it works on as attributes, as image translators do."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)
        self.meter = Meter()
        self.history = {"loss": [], "norm": []}
        self.outputs = []
        self.iteration = 0

    def set_input(self, real):
        self.real = real
        self.noisy = real + 0.1 * torch.randn_like(real)

    def optimize(self):
        self.fake = self.net(self.noisy)
        self.loss = (self.fake - self.real).square().mean()
        self.optimizer.zero_grad()
        self.loss.backward()
        self.gradient = self.net[0].weight.grad.clone()
        self.optimizer.step()
        self.iteration += 1


def confusion(outputs, targets):
    found = torch.zeros(2, 2)
    for output, target in zip(outputs, targets, strict=True):
        found[int(output.sum() > 0), int(target.sum() > 0)] += 1
    return found


def main():
    torch.manual_seed(0)
    trainer = Trainer()
    best, best_weights, kept = float("inf"), None, []
    for epoch in range(3):
        order = torch.randperm(len(PIXELS))
        outputs, targets, total = [], [], torch.zeros(())
        for at in range(0, len(PIXELS), 8):
            batch = PIXELS[order[at : at + 8]]
            trainer.set_input(batch)
            trainer.optimize()
            trainer.meter.update(trainer.loss.item(), len(batch))
            trainer.history["loss"].append(trainer.loss.item())
            trainer.history["norm"].append(trainer.gradient.norm())
            outputs.append(trainer.fake.detach())
            targets.append(batch)
            total += trainer.loss.detach()
        table = confusion(torch.cat(outputs), torch.cat(targets))
        if total.item() < best:
            best = total.item()
            best_weights = copy.deepcopy(trainer.net.state_dict())
        kept.append(table)
        print(epoch, total.item(), table.tolist())
    torch.save({"weights": best_weights, "tables": kept}, "best.pt")


main()
