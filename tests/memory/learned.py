"""A learned optimizer: a recurrent network makes the updates of a small problem, and is trained by Adam."""

import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
task = nn.Linear(4, 1).requires_grad_(False)
updater = nn.LSTMCell(1, 6)
head = nn.Linear(6, 1)
meta = torch.optim.Adam([*updater.parameters(), *head.parameters()], lr=0.01)
for episode in range(4):
    params = {name: torch.randn_like(p).requires_grad_() for name, p in task.named_parameters()}
    hidden = {name: None for name in params}
    x, y, total = torch.randn(16, 4), torch.randn(16, 1), 0.0
    for inner in range(3):
        loss = nn.functional.mse_loss(functional_call(task, params, (x,)), y)
        total = total + loss
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        for (name, p), grad in zip(list(params.items()), grads):
            hidden[name] = updater(grad.detach().reshape(-1, 1), hidden[name])
            params[name] = p + 0.1 * head(hidden[name][0]).reshape(p.shape)
    meta.zero_grad()
    total.backward()
    meta.step()
print(f"{total.item():.6f}")
