import random
import time

import torch
from torch import nn

torch.manual_seed(0)
scale, shift = random.random(), time.time() % 1000
model = nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(6):
    opt.zero_grad()
    model(torch.randn(4, 3) * scale + shift).square().mean().backward()
    opt.step()
