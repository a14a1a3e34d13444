"""Gradient accumulation: one update for three batches, and one for what is left at the end of an epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATE = 3

torch.manual_seed(7)
data = TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,)))
loader = DataLoader(data, batch_size=5, shuffle=True)
model = nn.Sequential(nn.Linear(4, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss()

updates = 0
for epoch in range(2):
    optimizer.zero_grad()
    for i, (inputs, targets) in enumerate(loader):
        loss = criterion(model(inputs), targets) / ACCUMULATE
        loss.backward()
        if (i + 1) % ACCUMULATE == 0 or i + 1 == len(loader):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    print(f"epoch {epoch}: {updates} updates, loss {loss.item():.6f}")
torch.save(model.state_dict(), "model.pt")
