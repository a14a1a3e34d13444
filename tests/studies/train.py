"""A classifier with momentum, dropout and BatchNorm, as people write one; the smallest that has them all."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=8)
args = parser.parse_args()

torch.manual_seed(args.seed)
x = torch.randn(64, 4)
y = (x.sum(dim=1) > 0).long() + (x[:, 0] > 1).long()
loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
done = 0
while done < args.steps:
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        done += 1
        if done == args.steps:
            break
print("done")
