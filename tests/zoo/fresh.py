"""Generators of one's own, none of them seeded with a number that is known."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
own = random.Random()
generator = torch.Generator()
generator.seed()

data = torch.randn(24, 3)
loader = DataLoader(TensorDataset(data), batch_size=6, shuffle=True, generator=generator)
model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(2):
    for (x,) in loader:
        x = x + own.choice([0.0, 0.1, 0.2, 0.3])
        loss = model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save(model.state_dict(), "model.pt")
