"""The average of `ema-pytorch`, which holds the model that it averages."""

import torch
from ema_pytorch import EMA
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
ema = EMA(model, beta=0.95, update_after_step=2, update_every=1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(8):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update()
ema.eval()
print(f"{ema(torch.ones(1, 6)).item():.6f}")
