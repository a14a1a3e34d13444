"""Fast weights: a Hebbian trace that the network writes while it runs, carried by the loop beside the slow weights."""

import torch
from torch import nn

ETA = 0.1


class Plastic(nn.Module):
    """A recurrent layer whose weights are slow ones plus a plastic part of the trace."""

    def __init__(self, width):
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(width, width))
        self.alpha = nn.Parameter(0.1 * torch.randn(width, width))
        self.out = nn.Linear(width, 1)

    def forward(self, x, hebb):
        h = torch.tanh(x @ (self.w + self.alpha * hebb))
        trace = (1 - ETA) * hebb + ETA * torch.bmm(x.unsqueeze(2), h.unsqueeze(1)).mean(0)
        return self.out(h), trace


def main():
    torch.manual_seed(0)
    net = Plastic(5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    hebb = torch.zeros(5, 5)
    for step in range(10):
        x = torch.randn(8, 5)
        y, hebb = net(x, hebb)
        loss = nn.functional.mse_loss(y, x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hebb = hebb.detach()
        print(step, loss.item())


main()
