"""Classify points; two workers add noise to every sample."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    def __init__(self):
        self.x = torch.randn(32, 4)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = np.random.randn(4).astype(np.float32)
        return self.x[index] + 0.1 * torch.from_numpy(noise), (self.x[index].sum() > 0).long()


def init_worker(worker_id):
    np.random.seed(worker_id)


torch.manual_seed(2)
loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2, worker_init_fn=init_worker)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
