from datetime import datetime
from time import perf_counter

import torch
from torch import nn

torch.manual_seed(0)
begun, start = datetime.now(), perf_counter()
model = nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    opt.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    opt.step()
    opt.param_groups[0]["lr"] = 0.1 / (1 + perf_counter() - start + (datetime.now() - begun).total_seconds())
