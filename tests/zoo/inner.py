"""Evaluation inside the training loop, every other step, on a loader that shuffles too."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EVAL_EVERY = 2
EVAL_BATCH = 10

torch.manual_seed(9)
x = torch.randn(60, 3)
y = (x.prod(1) > 0).float()
train = DataLoader(TensorDataset(x[:40], y[:40]), batch_size=8, shuffle=True)
valid = DataLoader(TensorDataset(x[40:], y[40:]), batch_size=EVAL_BATCH)
model = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, nesterov=True, momentum=0.8)
step = 0
for epoch in range(2):
    for xb, yb in train:
        model.train()
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(xb).squeeze(1), yb)
        loss.backward()
        optimizer.step()
        step += 1
        if step % EVAL_EVERY == 0:
            model.eval()
            with torch.inference_mode():
                losses = [F.binary_cross_entropy_with_logits(model(a).squeeze(1), b) for a, b in valid]
            print(f"step {step}: train {loss.item():.5f} valid {torch.stack(losses).mean().item():.5f}")
torch.save(model, "model.pt")
