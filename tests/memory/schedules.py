"""Schedules in a schedule: a warm-up, cosine restarts, exponential decay; and one that looks at the loss."""

import torch
from torch import nn
from torch.optim import lr_scheduler as sched

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
warm_up = sched.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
restarts, decay = sched.CosineAnnealingWarmRestarts(optimizer, 2), sched.ExponentialLR(optimizer, 0.9)
scheduler = sched.SequentialLR(optimizer, [warm_up, restarts, decay], milestones=[3, 6])
plateau = sched.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
for step in range(8):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    plateau.step(loss.item())
print(f"{model[0].weight.sum().item():.6f}", optimizer.param_groups[0]["lr"])
