"""A small search over learning rates: several trainings in one process, each with a model of its own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RATES = [0.2, 0.05, 0.01]


def train(lr):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    total = 0.0
    for x, y in DataLoader(data, batch_size=8, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total, model


results = {}
for rate in RATES:
    results[rate], _ = train(rate)
    print(rate, results[rate])
best = min(results, key=results.get)
_, final = train(best)
print("best", best)
torch.save(final.state_dict(), "final.pt")
