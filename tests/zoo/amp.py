"""Mixed precision: autocast in bfloat16, and a gradient scaler that skips steps with infinite gradients."""

import torch
from torch import nn
from torch.amp import GradScaler, autocast

BAD_STEPS = {2, 3}

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
for step in range(8):
    inputs, targets = torch.randn(8, 8), torch.randint(0, 4, (8,))
    optimizer.zero_grad()
    with autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(inputs), targets)
    if step in BAD_STEPS:
        loss = loss * float("inf")
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    print(f"step {step}: loss {loss.item():.4f}, scale {scaler.get_scale():.0f}")
torch.save({"model": model.state_dict(), "scaler": scaler.state_dict()}, "amp.pt")
