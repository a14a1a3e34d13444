"""A learning rate that follows the history of the losses, which a closure keeps: memory that no component holds."""

import torch
from torch import nn


def paced(optimizer):
    seen = []

    def pace(loss):
        seen.append(loss)
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + sum(seen))

    return pace


torch.manual_seed(4)
model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
pace = paced(optimizer)
for _ in range(10):
    x = torch.randn(8, 5)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pace(loss.item())
