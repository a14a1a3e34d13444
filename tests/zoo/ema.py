"""Self-training with a mean teacher: an exponential average of the weights, whose predictions are targets too."""

import copy

import torch
from torch import nn

DECAY = 0.9


@torch.no_grad()
def update(teacher, student):
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.mul_(DECAY).add_(s, alpha=1 - DECAY)


torch.manual_seed(0)
student = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
teacher = copy.deepcopy(student).requires_grad_(False)
average = torch.optim.swa_utils.AveragedModel(student)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
for step in range(6):
    x = torch.randn(8, 3)
    y = (x[:, 0] > 0).long()
    out = student(x + 0.1 * torch.randn_like(x))
    loss = nn.functional.cross_entropy(out, y) + nn.functional.mse_loss(out, teacher(x))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update(teacher, student)
    average.update_parameters(student)
    print(step, loss.item())
torch.save({"teacher": teacher.state_dict(), "average": average.state_dict()}, "teacher.pt")
