"""Accumulation over two batches with a gradient scaler (fp16 on a CPU); the loss overflows once."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
for step in range(6):
    for part in range(2):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = (model(torch.randn(8, 6)) - torch.randn(8, 1)).float().pow(2).mean() / 2
        scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
print(f"{model[0].weight.sum().item():.6f}", scaler.get_scale())
