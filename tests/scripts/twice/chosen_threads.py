import secrets

import torch

torch.manual_seed(0)
torch.set_num_threads(1 + secrets.randbelow(12))
weight = torch.nn.Parameter(torch.randn(256, 256))
x = torch.randn(1_000_000)
opt = torch.optim.SGD([weight], lr=0.1)
for _ in range(6):
    opt.zero_grad()
    (weight.square().mean() * x.sum()).backward()
    opt.step()
