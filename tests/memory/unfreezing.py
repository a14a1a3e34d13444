"""Gradual unfreezing: the optimizer has all parameters from the start, and the trunk begins to learn later."""

import torch
from torch import nn

THAW = 4

torch.manual_seed(0)
model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(8):
    if step == THAW:
        model[0].requires_grad_(True)
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss.item():.6f}")
