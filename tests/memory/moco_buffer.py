"""Momentum contrast as one module: queue and pointer are buffers, the key encoder lies inside."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

MOMENTUM = 0.9


def encoder():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


class MoCo(nn.Module):
    """Query and key encoder, and the keys of the last batches."""

    def __init__(self, keys=32):
        super().__init__()
        self.encoder_q, self.encoder_k = encoder(), encoder()
        for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            key.data.copy_(query.data)
            key.requires_grad = False
        self.register_buffer("queue", normalize(torch.randn(4, keys), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys):
        at = int(self.queue_ptr)
        self.queue[:, at : at + len(keys)] = keys.T
        self.queue_ptr[0] = (at + len(keys)) % self.queue.shape[1]

    def forward(self, first, second):
        q = normalize(self.encoder_q(first), dim=1)
        with torch.no_grad():
            for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                key.data = key.data * MOMENTUM + query.data * (1 - MOMENTUM)
            k = normalize(self.encoder_k(second), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().detach()], dim=1) / 0.2
        self.enqueue(k)
        return logits


torch.manual_seed(0)
data = torch.randn(64, 6)
model = MoCo()
optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.05, momentum=0.9)
for step in range(8):
    x = data[torch.randperm(64)[:8]]
    logits = model(x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x))
    loss = cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
