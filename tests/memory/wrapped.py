"""Lookahead around SGD from `pytorch_optimizer`."""

import torch
from pytorch_optimizer import Lookahead
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), k=3, alpha=0.5)
for step in range(6):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{model[0].weight.sum().item():.6f}")
