"""Exponential averages of one's own: a module with a copy, as timm has it, and a class that keeps a shadow in a dict."""

import copy
import sys

import torch
from torch import nn


class ModelEma(nn.Module):
    def __init__(self, model, decay=0.9):
        super().__init__()
        self.module = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for mine, other in zip(self.module.state_dict().values(), model.state_dict().values()):
            mine.copy_(self.decay * mine + (1.0 - self.decay) * other)


class Shadow:
    def __init__(self, model, decay=0.9):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model):
        for name, p in model.named_parameters():
            self.shadow[name] = self.decay * self.shadow[name] + (1.0 - self.decay) * p.detach()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
kind = Shadow if "--dict" in sys.argv else ModelEma
ema = kind(model, 0.8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(6):
    loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step >= 1:
        ema.update(model)
print(f"{model[0].weight.sum().item():.6f}")
