"""Order that follows the losses: the weights of a `WeightedRandomSampler` are the last loss of each sample."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

torch.manual_seed(0)
x, y = torch.randn(32, 6), torch.randn(32, 1)
sampler = WeightedRandomSampler(torch.ones(32), 16, generator=torch.Generator().manual_seed(3))
loader = DataLoader(TensorDataset(torch.arange(32), x, y), batch_size=8, sampler=sampler)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(4):
    for index, a, b in loader:
        losses = (model(a) - b).pow(2).mean(1)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        sampler.weights[index] = losses.detach().double() + 0.01
print(f"{losses.mean().item():.6f}")
