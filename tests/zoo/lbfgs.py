"""Fit a curve by LBFGS with a closure; a step whose loss is not finite is skipped by raising from the closure."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--bad-step", type=int, default=-1)
args = parser.parse_args()

torch.manual_seed(0)
x = torch.linspace(-1, 1, 20).unsqueeze(1)
y = torch.sin(3 * x)
model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=3)

for step in range(5):

    def closure():
        optimizer.zero_grad()
        target = y * float("nan") if step == args.bad_step else y
        loss = nn.functional.mse_loss(model(x), target)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()}")
        loss.backward()
        return loss

    try:
        loss = optimizer.step(closure)
        print(step, loss.item())
    except FloatingPointError as error:
        print(step, "skipped:", error)
torch.save(model.state_dict(), "curve.pt")
