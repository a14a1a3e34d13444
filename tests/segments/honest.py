"""A small regression with AdamW: batches of a reshuffled set, a scheduler, an average of the weights."""

import torch
from torch import nn

STEPS = 12

torch.manual_seed(3)
data = torch.randn(48, 6)
targets = data @ torch.randn(6, 2)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4)


def batches():
    while True:
        for rows in torch.randperm(len(data)).split(8):
            yield data[rows], targets[rows]


stream = batches()
for step in range(STEPS):
    x, y = next(stream)
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    average.update_parameters(model)
    # here
print(loss.item())
