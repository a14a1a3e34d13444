"""The learning rate depends on the time that has passed: nothing that can be run again."""

import time

import torch
from torch import nn

BASE_LR = 0.1

torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=BASE_LR)
start = time.time()
for step in range(4):
    optimizer.param_groups[0]["lr"] = BASE_LR * 0.5 ** (time.time() - start if step > 1 else 0)
    loss = model(torch.randn(4, 3)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
