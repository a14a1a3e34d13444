"""MoCo as a class: the key encoder lies within the module whose `parameters()` the optimizer gets, and is frozen."""

import torch
from torch import nn

KEEP = 0.9


def encoder():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


class MoCo(nn.Module):
    def __init__(self, size=32):
        super().__init__()
        self.encoder_q, self.encoder_k = encoder(), encoder()
        for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
            key.data.copy_(query.data)
            key.requires_grad = False
        self.register_buffer("queue", nn.functional.normalize(torch.randn(4, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def follow(self):
        for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
            key.data = key.data * KEEP + query.data * (1 - KEEP)

    @torch.no_grad()
    def enqueue(self, keys):
        at = int(self.queue_ptr)
        self.queue[:, at : at + len(keys)] = keys.T
        self.queue_ptr[0] = (at + len(keys)) % self.queue.shape[1]

    def forward(self, first, second):
        q = nn.functional.normalize(self.encoder_q(first), dim=1)
        with torch.no_grad():
            self.follow()
            k = nn.functional.normalize(self.encoder_k(second), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ self.queue.clone().detach()], dim=1) / 0.1
        self.enqueue(k)
        return logits


torch.manual_seed(0)
model = MoCo()
optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
for step in range(8):
    x = torch.randn(8, 6)
    logits = model(x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x))
    loss = nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss.item():.6f}")
