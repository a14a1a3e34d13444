"""Goes on within an epoch by taking batches off a loader that is made, and seeded, anew for each epoch."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, SAVE = 3, (1, 2)
RESUME, SHIFT = os.environ.get("RESUME", ""), int(os.environ.get("SHIFT", "0"))

torch.manual_seed(0)
x = torch.randn(64, 4)
data = TensorDataset(x, x.sum(1, keepdim=True))
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
first, done = 0, 0
if RESUME:
    saved = torch.load(RESUME)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first, done = saved["epoch"], saved["batches"]
for epoch in range(first, EPOCHS):
    generator = torch.Generator().manual_seed(100 + epoch + SHIFT)
    for number, (inputs, targets) in enumerate(DataLoader(data, batch_size=8, shuffle=True, generator=generator)):
        if epoch == first and number < done:
            continue
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (epoch, number) == SAVE and not RESUME:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**states, "epoch": epoch, "batches": number + 1}, "checkpoint.pt")
