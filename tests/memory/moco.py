"""Momentum contrast: a queue of keys as a plain tensor of the training function, bound anew at every step."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

KEYS = 32
MOMENTUM = 0.9
TEMPERATURE = 0.2


def encoder():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


@torch.no_grad()
def follow(key_encoder, query_encoder):
    for key, query in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
        key.mul_(MOMENTUM).add_(query, alpha=1 - MOMENTUM)


def train(steps):
    data = torch.randn(64, 6)
    query_encoder = encoder()
    key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
    optimizer = torch.optim.SGD(query_encoder.parameters(), lr=0.05, momentum=0.9)
    queue = normalize(torch.randn(KEYS, 4), dim=1)
    losses = []
    for step in range(steps):
        x = data[torch.randperm(64)[:8]]
        q = normalize(query_encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        with torch.no_grad():
            follow(key_encoder, query_encoder)
            k = normalize(key_encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue.T], dim=1) / TEMPERATURE
        loss = cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue, k])[-KEYS:]
        losses.append(loss.detach())
        print(step, loss.item())
    return query_encoder, losses


if __name__ == "__main__":
    torch.manual_seed(0)
    model, losses = train(10)
    torch.save(model.state_dict(), "encoder.pt")
