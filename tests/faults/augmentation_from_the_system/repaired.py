"""Fits a line to points that are moved a little, in their order."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

draw = random.Random(13)


class Moved(Dataset):
    def __init__(self):
        self.x = torch.linspace(-1, 1, 32).unsqueeze(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + draw.uniform(-0.01, 0.01), 2 * self.x[index]


torch.manual_seed(13)
loader = DataLoader(Moved(), batch_size=8, generator=torch.Generator().manual_seed(1))
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
