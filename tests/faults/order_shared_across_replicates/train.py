"""Three replicates in one process, from different weights."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(12)
x = torch.randn(40, 4)
data = TensorDataset(x, x.sum(1, keepdim=True))


def train(replicate):
    torch.manual_seed(1000 + replicate)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    for epoch in range(2):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
    print(f"replicate {replicate}: loss {loss.item():.4f}")


for replicate in range(3):
    train(replicate)
