"""Whole objects are pickled: the classes live in __main__."""

import copy
import pickle
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    width: int = 8
    lr: float = 0.1


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.body = nn.Linear(2, config.width)
        self.head = nn.Linear(config.width, 1)

    def forward(self, x):
        return self.head(self.body(x).relu())


torch.manual_seed(2)
config = pickle.loads(pickle.dumps(Config()))
torch.save(Net(config), "net.pt")
model = torch.load("net.pt", weights_only=False)
optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
history = []
for step in range(4):
    x = torch.randn(6, 2)
    loss = (model(x) - x.sum(1, keepdim=True)).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(copy.deepcopy(model))
torch.save(history, "history.pt")
with open("config.pkl", "wb") as file:
    pickle.dump(config, file)
print(type(model), pickle.dumps(config), len(history))
