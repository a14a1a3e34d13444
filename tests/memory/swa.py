"""Stochastic weight averaging: an average from step 4 on, its own learning rate, BatchNorm taken anew at the end."""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

torch.manual_seed(0)
data = [(torch.randn(8, 6), torch.randn(8, 1)) for _ in range(4)]
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
average = AveragedModel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
for step in range(8):
    x, y = data[step % 4]
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step >= 4:
        average.update_parameters(model)
        scheduler.step()
update_bn(data, average)
print(f"{loss.item():.6f}", int(average.n_averaged))
