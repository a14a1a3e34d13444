"""Saves a checkpoint after every epoch, and goes on from it if there is one."""

import argparse
import random
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--reload", action="store_true", help="throw everything away after each epoch and read it again")
args = parser.parse_args()

CHECKPOINT = Path("checkpoint.pt")


def build():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    return model, optimizer, scheduler


def save(epoch):
    torch.save(
        {
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "python": random.getstate(),
        },
        CHECKPOINT,
    )


def load():
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    torch.set_rng_state(checkpoint["rng"])
    random.setstate(checkpoint["python"])
    return checkpoint["epoch"] + 1


random.seed(0)
torch.manual_seed(0)
x = torch.randn(32, 3)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model, optimizer, scheduler = build()
first = load() if CHECKPOINT.exists() else 0
for epoch in range(first, args.epochs):
    for inputs, targets in loader:
        if random.random() < 0.5:
            inputs = -inputs
            targets = -targets
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
    save(epoch)
    print(f"epoch {epoch}: loss {loss.item():.6f}")
    if args.reload:
        model, optimizer, scheduler = build()
        load()
