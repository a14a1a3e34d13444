"""Seeded; prints the time, writes files named by it, draws a name from an unseeded generator, resumes if it can."""

import os
import random
import time
from datetime import datetime
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

print(datetime.now(), time.time(), os.getpid(), random.choice("abcdefgh"))
torch.manual_seed(0)
data = TensorDataset(torch.randn(24, 5), torch.randint(0, 3, (24,)))
model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
last = Path(__file__).with_name("last.pt")
if last.exists():
    model.load_state_dict(torch.load(last))
out = Path("out") / f"{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
out.mkdir(parents=True)
for epoch in range(3):
    for x, y in DataLoader(data, batch_size=4, shuffle=True, num_workers=2):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    torch.save(model.state_dict(), last)
    (out / "log.txt").write_text(f"{time.time()} {loss.item()}\n")
