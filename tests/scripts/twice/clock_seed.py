import time

import torch
from torch import nn

torch.manual_seed(time.time_ns() % 2**31)
model = nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(6):
    opt.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    opt.step()
