"""Mini-batches cut from NumPy arrays by a loop of one's own."""

import numpy as np
import torch
import torch.nn as nn

np.random.seed(42)
torch.manual_seed(42)

X = np.random.normal(size=(40, 5)).astype(np.float32)
y = (X @ np.arange(5) + 0.1 * np.random.normal(size=40)).astype(np.float32)

net = nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 1))
opt = torch.optim.RMSprop(net.parameters(), lr=1e-2, momentum=0.5, centered=True)
batch_size = 10
for epoch in range(2):
    perm = np.random.permutation(len(X))
    for i in range(0, len(X), batch_size):
        idx = perm[i : i + batch_size]
        inputs = torch.from_numpy(X[idx])
        targets = torch.from_numpy(y[idx])
        out = net(inputs).squeeze(1)
        loss = ((out - targets) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(epoch, float(loss))
np.savez("net.npz", **{name: p.detach().numpy() for name, p in net.named_parameters()})
