"""Mean teacher, with features of a frozen network that stays as it is."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
features = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()).eval().requires_grad_(False)
student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
teacher = copy.deepcopy(student)
for p in teacher.parameters():
    p.detach_()
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
for step in range(6):
    x, y = features(torch.randn(8, 6)), torch.randint(0, 2, (8,))
    guess = student(x + 0.1 * torch.randn(8, 8))
    with torch.no_grad():
        goal = teacher(x + 0.1 * torch.randn(8, 8))
    loss = nn.functional.cross_entropy(guess, y) + (guess.softmax(1) - goal.softmax(1)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    alpha = min(1 - 1 / (step + 1), 0.99)
    for p, q in zip(student.parameters(), teacher.parameters()):
        q.data.mul_(alpha).add_(p.data, alpha=1 - alpha)
print(f"{loss.item():.6f}")
