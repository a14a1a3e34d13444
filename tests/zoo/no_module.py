"""Logistic regression on bare tensors: no module, no loader."""

import torch

torch.manual_seed(0)
X = torch.randn(30, 4)
y = (X @ torch.tensor([1.0, -1.0, 0.5, 0.0]) > 0).float()
w = torch.zeros(4, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.Adagrad([w, b], lr=0.5)
for step in range(6):
    rows = torch.randperm(len(X))[:10]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(X[rows] @ w + b, y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item(), w.tolist())
