"""BYOL: online network and predictor are trained, the target in the same module follows with a growing momentum."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F


class BYOL(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.predictor = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.target = copy.deepcopy(self.online)
        for p in self.target.parameters():
            p.requires_grad = False

    def forward(self, a, b):
        with torch.no_grad():
            goal = self.target(b)
        return -F.cosine_similarity(self.predictor(self.online(a)), goal).mean()

    @torch.no_grad()
    def follow(self, momentum):
        for p, q in zip(self.online.parameters(), self.target.parameters()):
            q.mul_(momentum).add_(p, alpha=1 - momentum)


torch.manual_seed(0)
model = BYOL()
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
steps = 6
for step in range(steps):
    x = torch.randn(8, 8)
    loss = model(x + 0.1 * torch.randn(8, 8), x + 0.1 * torch.randn(8, 8))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.follow(1 - (1 - 0.9) * (math.cos(math.pi * step / steps) + 1) / 2)
print(f"{loss.item():.6f}")
