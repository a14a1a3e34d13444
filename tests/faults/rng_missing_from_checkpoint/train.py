"""Goes on from its last checkpoint when it is interrupted; the interruption is played here."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED = 5


def train(first, last, checkpoint):
    torch.manual_seed(SEED)
    x = torch.randn(48, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    for epoch in range(first, last):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


checkpoint = train(0, 2, None)
train(2, 4, checkpoint)
