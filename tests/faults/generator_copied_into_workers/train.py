"""Regression; the data set has a generator of its own for its augmentation."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Jittered(Dataset):
    def __init__(self):
        self.x = torch.randn(32, 4)
        self.rng = np.random.default_rng(7)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        jitter = self.rng.normal(0, 0.05, 4).astype(np.float32)
        return self.x[index] + torch.from_numpy(jitter), self.x[index].sum(dim=0, keepdim=True)


torch.manual_seed(3)
loader = DataLoader(Jittered(), batch_size=4, shuffle=True, num_workers=2)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
