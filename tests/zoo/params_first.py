"""Plain parameters and their optimizer first; the module that uses them is made afterwards."""

import torch
from torch import nn

torch.manual_seed(6)
weights = [nn.Parameter(torch.randn(5, 3) / 2), nn.Parameter(torch.randn(1, 5) / 2)]
optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)


class Net(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x):
        return torch.relu(x @ self.first.T) @ self.second.T


net = Net(*weights)
for step in range(5):
    x = torch.randn(6, 3)
    loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
