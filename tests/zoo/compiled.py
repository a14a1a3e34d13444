"""torch.compile on the model, on the optimizer's step, or on the whole training step."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["model", "optimizer", "step"])
args = parser.parse_args()

LR = 0.05
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
x = torch.randn(32, 4)
y = x.sin().sum(1, keepdim=True)


def forward(inputs):
    return model(inputs)


def update():
    optimizer.step()


def train(inputs, targets):
    loss = nn.functional.mse_loss(forward(inputs), targets)
    loss.backward()
    update()
    optimizer.zero_grad()
    return loss


if args.what == "model":
    model = torch.compile(model)
elif args.what == "optimizer":
    update = torch.compile(update)
else:
    train = torch.compile(train)
for step in range(4):
    rows = torch.randperm(32)[:8]
    loss = train(x[rows], y[rows])
    print(step, loss.item())
torch.save(model.state_dict(), "compiled.pt")
