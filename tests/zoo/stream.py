"""An IterableDataset: an endless stream of noisy sines, cut off after a few batches, read by two workers."""

import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Sines(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in itertools.count(start, step):
            t = torch.linspace(0, 1, 8) + 0.1 * torch.rand(1)
            yield torch.sin(number * t)


torch.manual_seed(2)
loader = DataLoader(Sines(), batch_size=4, num_workers=2)
model = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8))
optimizer = torch.optim.Adam(model.parameters())
for step, batch in enumerate(loader):
    if step == 6:
        break
    loss = nn.functional.mse_loss(model(batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
