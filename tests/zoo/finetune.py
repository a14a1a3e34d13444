"""Fine-tuning: first the head alone, then the body joins with a smaller rate, at last the head is frozen."""

import torch
from torch import nn

BODY_LR = 0.01

torch.manual_seed(5)
body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
head = nn.Linear(8, 2)
model = nn.Sequential(body, head)
for p in body.parameters():
    p.requires_grad_(False)
optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
for step in range(9):
    if step == 3:
        for p in body.parameters():
            p.requires_grad_(True)
        optimizer.add_param_group({"params": body.parameters(), "lr": BODY_LR})
    if step == 6:
        for p in head.parameters():
            p.requires_grad_(False)
            p.grad = None
    x = torch.randn(8, 4)
    y = (x[:, 0] > 0).long()
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
torch.save(model.state_dict(), "tuned.pt")
