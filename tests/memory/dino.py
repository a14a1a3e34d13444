"""DINO: student and teacher, the centre of the teacher's outputs as a buffer of the loss, a temperature schedule."""

import copy

import torch
from torch import nn


class Loss(nn.Module):
    def __init__(self, keep=0.9):
        super().__init__()
        self.keep = keep
        self.register_buffer("center", torch.zeros(1, 4))

    def forward(self, student, teacher, temperature):
        goal = ((teacher - self.center) / temperature).softmax(-1).detach()
        loss = -(goal * (student / 0.1).log_softmax(-1)).sum(-1).mean()
        self.center = self.center * self.keep + teacher.detach().mean(0, keepdim=True) * (1 - self.keep)
        return loss


torch.manual_seed(0)
student = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))
teacher = copy.deepcopy(student).requires_grad_(False)
criterion = Loss()
optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
temperatures = torch.linspace(0.04, 0.07, 6)
for step in range(6):
    x = torch.randn(8, 8)
    with torch.no_grad():
        goal = teacher(x + 0.1 * torch.randn(8, 8))
    loss = criterion(student(x), goal, temperatures[step])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for p, q in zip(student.parameters(), teacher.parameters()):
            q.mul_(0.95).add_(p, alpha=0.05)
print(f"{loss.item():.6f}")
