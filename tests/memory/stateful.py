"""`StatefulDataLoader` with random augmentation, in no or two workers."""

import sys

import torch
from torch import nn
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader


class Noisy(Dataset):
    def __init__(self):
        self.x, self.y = torch.randn(32, 6), torch.randn(32, 1)
        self.noise = 0.1

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return self.x[i] + self.noise * torch.randn(6), self.y[i]


torch.manual_seed(0)
loader = StatefulDataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=int(sys.argv[1]))
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(2):
    for x, y in loader:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"{loss.item():.6f}")
