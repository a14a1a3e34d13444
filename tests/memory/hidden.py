"""Truncated backpropagation through time: a hidden state that each epoch begins anew and every window hands on."""

import torch
from torch import nn

torch.manual_seed(0)
text = torch.randn(2, 25, 3)
rnn, head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)
optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.1)


def train_epoch(window):
    hidden = torch.zeros(1, 2, 5)
    for start in range(0, 24, window):
        x, y = text[:, start : start + window], text[:, start + 1 : start + window + 1]
        hidden = hidden.detach()
        out, hidden = rnn(x, hidden)
        loss = nn.functional.mse_loss(head(out), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


for epoch in range(2):
    print(epoch, train_epoch(4))
