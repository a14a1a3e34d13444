"""A character language model over the Zen of Python; random windows, no data loader."""

import codecs
import math
import this

import torch
from torch import nn
from torch.nn import functional as F

BLOCK, BATCH, STEPS, LR = 16, 4, 6, 3e-3

text = codecs.decode(this.s, "rot13")
chars = sorted(set(text))
stoi = {c: i for i, c in enumerate(chars)}
data = torch.tensor([stoi[c] for c in text])


def get_batch():
    ix = torch.randint(len(data) - BLOCK - 1, (BATCH,))
    x = torch.stack([data[i : i + BLOCK] for i in ix])
    y = torch.stack([data[i + 1 : i + BLOCK + 1] for i in ix])
    return x, y


class CharLM(nn.Module):
    def __init__(self, vocab, width=16):
        super().__init__()
        self.tok = nn.Embedding(vocab, width)
        self.pos = nn.Embedding(BLOCK, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(width, vocab)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(BLOCK))

    def forward(self, idx):
        x = self.tok(idx) + self.pos(torch.arange(idx.shape[1]))
        return self.head(self.body(x, mask=self.mask[: idx.shape[1], : idx.shape[1]], is_causal=True))


def lr_at(step):
    return LR * min(1.0, (step + 1) / 2) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))


torch.manual_seed(1337)
model = CharLM(len(chars))
optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
for step in range(STEPS):
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step)
    xb, yb = get_batch()
    logits = model(xb)
    loss = F.cross_entropy(logits.flatten(0, 1), yb.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")

model.eval()
context = torch.zeros((1, 1), dtype=torch.long)
with torch.no_grad():
    for _ in range(8):
        probs = F.softmax(model(context[:, -BLOCK:])[:, -1], dim=-1)
        context = torch.cat((context, torch.multinomial(probs, 1)), dim=1)
print(repr("".join(chars[i] for i in context[0].tolist())))
torch.save(model.state_dict(), "charlm.pt")
