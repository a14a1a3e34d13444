"""An average of the weights kept by hand: a dictionary of tensors by name, a local variable of the training function."""

import torch
from torch import nn

DECAY = 0.8


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    best, kept = None, None
    for step in range(9):
        chosen = torch.randperm(32)[:8]
        loss = nn.functional.mse_loss(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name] = DECAY * average[name] + (1 - DECAY) * value
        if step % 3 == 2:
            with torch.no_grad():
                error = nn.functional.mse_loss(torch.func.functional_call(model, average, (x,)), y).item()
            if best is None or error < best:
                best = error
                kept = {name: value.clone() for name, value in average.items()}
            print(step, error)
    torch.save(kept, "best.pt")


main()
