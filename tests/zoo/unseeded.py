"""No seed anywhere: whatever the generators start from."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

words = list({f"word{i}" for i in range(20)})
rng = np.random.default_rng()
data = torch.from_numpy(rng.normal(size=(24, 3))).float() + len(words[0])
loader = DataLoader(TensorDataset(data), batch_size=6, shuffle=True)
model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=random.uniform(0.01, 0.02))
for epoch in range(2):
    for (x,) in loader:
        x = x + 0.1 * float(np.random.rand())
        loss = model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(epoch, loss.item(), words[0])
torch.save(model.state_dict(), f"model-{random.randrange(1000)}.pt")
