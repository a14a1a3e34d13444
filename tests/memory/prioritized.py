"""Prioritized replay: a sum tree over priorities, transitions in a list that is overwritten in turn."""

import numpy as np
import torch
from torch import nn

ALPHA = 0.6


class SumTree:
    """Priorities of `capacity` entries; every inner node is the sum of its two children."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.tree = np.zeros(2 * capacity - 1)
        self.data = [None] * capacity
        self.write = 0
        self.filled = 0

    def add(self, priority, transition):
        self.data[self.write] = transition
        self.update(self.write + self.capacity - 1, priority)
        self.write = (self.write + 1) % self.capacity
        self.filled = min(self.filled + 1, self.capacity)

    def update(self, node, priority):
        change = priority - self.tree[node]
        self.tree[node] = priority
        while node:
            node = (node - 1) // 2
            self.tree[node] += change

    def get(self, value):
        node = 0
        while 2 * node + 1 < len(self.tree):
            left = 2 * node + 1
            if value <= self.tree[left] or self.tree[left + 1] == 0:
                node = left
            else:
                value -= self.tree[left]
                node = left + 1
        return node, self.data[node - self.capacity + 1]


class PrioritizedReplay:
    """Draws transitions in proportion to their last error."""

    def __init__(self, capacity):
        self.tree = SumTree(capacity)
        self.highest = 1.0

    def add(self, transition):
        self.tree.add(self.highest**ALPHA, transition)

    def sample(self, count, rng):
        part = self.tree.tree[0] / count
        return [self.tree.get(part * (at + rng.random())) for at in range(count)]

    def learn(self, nodes, errors):
        for node, error in zip(nodes, errors, strict=True):
            self.highest = max(self.highest, abs(error))
            self.tree.update(node, (abs(error) + 0.01) ** ALPHA)


rng = np.random.default_rng(5)
torch.manual_seed(5)
net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
replay = PrioritizedReplay(16)
for step in range(26):
    state = rng.normal(size=3).astype(np.float32)
    action = int(rng.integers(2))
    replay.add((state, action, float(state[action])))
    if step < 6:
        continue
    nodes, batch = zip(*replay.sample(4, rng), strict=True)
    states, actions, rewards = zip(*batch, strict=True)
    q = net(torch.as_tensor(np.stack(states))).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    errors = torch.tensor(rewards) - q
    loss = errors.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    replay.learn(nodes, errors.detach().tolist())
    print(step, loss.item())
