"""A loss with a queue and its pointer as buffers: a module without parameters, as loss libraries have it."""

import torch
from torch import nn

torch.manual_seed(0)


class QueueLoss(nn.Module):
    def __init__(self, size=16, dim=4):
        super().__init__()
        self.register_buffer("bank", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, q, k):
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.bank.clone().T], 1)
        p = int(self.bank_ptr)
        self.bank[p : p + len(k)] = k.detach()
        self.bank_ptr[0] = (p + len(k)) % len(self.bank)
        return nn.functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


enc = nn.Linear(6, 4)
crit = QueueLoss()
opt = torch.optim.SGD(enc.parameters(), 0.1, momentum=0.9)


def train():
    for epoch in range(3):
        for b in torch.randn(4, 8, 6):
            loss = crit(nn.functional.normalize(enc(b), dim=1), nn.functional.normalize(enc(b + 0.1), dim=1))
            opt.zero_grad()
            loss.backward()
            opt.step()
    return loss


print(train().item())
