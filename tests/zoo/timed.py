"""The learning rate depends on the time that has passed: nothing that can be run again."""

import time

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
start = time.time()
for step in range(4):
    optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (time.time() - start) if step > 1 else 0.1
    loss = model(torch.randn(4, 3)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
