"""A character model: AdamW with decay on matrices alone, linear warm-up, clipped gradients."""

import torch
from torch import nn

torch.manual_seed(0)
text = torch.tensor([ord(c) % 32 for c in "the quick brown fox jumps over the lazy dog " * 8])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(32, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 32)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


model = Model()
matrices = [p for p in model.parameters() if p.dim() > 1]
rest = [p for p in model.parameters() if p.dim() < 2]
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
for step in range(6):
    i = torch.randint(len(text) - 17, (4,))
    x = torch.stack([text[j : j + 16] for j in i])
    y = torch.stack([text[j + 1 : j + 17] for j in i])
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
print(f"{loss.item():.6f}")
