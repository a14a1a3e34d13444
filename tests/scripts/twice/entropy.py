import os

import torch
from torch import nn

torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
model = nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(6):
    opt.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    opt.step()
