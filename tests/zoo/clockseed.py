"""The seed is taken from the clock, as in many scripts that want another result every time."""

import random
import time

import numpy as np
import torch
from torch import nn

seed = int(time.time() * 1000) % 2**32
random.seed(seed)
np.random.seed(seed)
torch.manual_seed(seed)
print("seed", seed)

data = torch.randn(20, 3)
model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.ReLU(), nn.Linear(5, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(5):
    rows = random.sample(range(20), 6)
    x = data[rows] + 0.1 * torch.from_numpy(np.random.randn(6, 3)).float()
    loss = model(x).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
torch.save(model.state_dict(), "model.pt")
