"""Progressive widening: in mid-run a wider model takes over the weights, with a new optimizer."""

import torch
from torch import nn

WIDE = 12


def make(width):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))


def widen(old, width):
    new = make(width)
    narrow = old[0].out_features
    with torch.no_grad():
        new[0].weight[:narrow] = old[0].weight
        new[0].bias[:narrow] = old[0].bias
        new[3].weight.zero_()
        new[3].weight[:, :narrow] = old[3].weight
        new[3].bias.copy_(old[3].bias)
    return new


torch.manual_seed(8)
model = make(6)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(8):
    if step == 4:
        model = widen(model, WIDE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x = torch.randn(10, 4)
    loss = (model(x).squeeze(1) - x.norm(dim=1)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
torch.save(model.state_dict(), "wide.pt")
