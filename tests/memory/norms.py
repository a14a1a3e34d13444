"""BatchNorm of every kind: equal average, no running statistics, frozen; and LayerNorm, which carries nothing."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(6, 8),
    nn.BatchNorm1d(8, momentum=None),
    nn.Linear(8, 8),
    nn.BatchNorm1d(8, track_running_stats=False),
    nn.Linear(8, 8),
    nn.BatchNorm1d(8),
    nn.LayerNorm(8),
    nn.Linear(8, 1),
)
model[5].eval()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(5):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert not model[5].running_mean.any()
print(f"{loss.item():.6f}")
