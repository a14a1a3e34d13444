"""Lookahead around Adam: an `Optimizer` subclass, or with `--plain` a class of one's own that holds slow weights."""

import sys
from collections import defaultdict

import torch
from torch import nn


class Lookahead(torch.optim.Optimizer):
    def __init__(self, optimizer, k=3, alpha=0.5):
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state = defaultdict(dict)
        self._la_step = 0
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow_params"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        self._la_step += 1
        if self._la_step % self.k == 0:
            for group in self.param_groups:
                for p in group["params"]:
                    slow = self.state[p]["slow_params"]
                    slow.add_(p - slow, alpha=self.alpha)
                    p.copy_(slow)


class Plain:
    def __init__(self, optimizer, k=3, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.counter = optimizer, k, alpha, 0
        self.slow_weights = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.counter += 1
        if self.counter % self.k == 0:
            for group, slow in zip(self.optimizer.param_groups, self.slow_weights):
                for p, q in zip(group["params"], slow):
                    q += self.alpha * (p - q)
                    p.copy_(q)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
inner = torch.optim.Adam(model.parameters(), lr=0.01)
kind = Plain if "--plain" in sys.argv else Lookahead
optimizer = kind(inner, alpha=0.8)
for step in range(8):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    inner.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{model[0].weight.sum().item():.6f}")
