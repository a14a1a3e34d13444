"""Points made with NumPy, trained on with torch."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

np.random.seed(6)
torch.manual_seed(6)
points = np.random.randn(40, 3).astype(np.float32)
x = torch.from_numpy(points)
loader = DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(2):
    for step, (inputs, targets) in enumerate(loader):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if np.random.rand() < 0.2:
            print(f"epoch {epoch} step {step}: loss {loss.item():.4f}")
