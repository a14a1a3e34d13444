"""Q-learning from a ring buffer of NumPy arrays: states, actions and rewards, with pointer and size as numbers."""

import copy

import numpy as np
import torch
from torch import nn


class ReplayBuffer:
    """The last transitions, in arrays that were made once."""

    def __init__(self, width, capacity):
        self.states = np.zeros((capacity, width), dtype=np.float32)
        self.nexts = np.zeros((capacity, width), dtype=np.float32)
        self.actions = np.zeros(capacity, dtype=np.int64)
        self.rewards = np.zeros(capacity, dtype=np.float32)
        self.ptr, self.size, self.capacity = 0, 0, capacity

    def store(self, state, action, reward, following):
        self.states[self.ptr] = state
        self.nexts[self.ptr] = following
        self.actions[self.ptr] = action
        self.rewards[self.ptr] = reward
        self.ptr = (self.ptr + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, count, rng):
        chosen = rng.integers(0, self.size, size=count)
        arrays = (self.states, self.actions, self.rewards, self.nexts)
        return [torch.as_tensor(array[chosen]) for array in arrays]


def main():
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    online = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=0.01)
    buffer = ReplayBuffer(3, 16)
    state = rng.normal(size=3).astype(np.float32)
    total = 0.0
    for step in range(28):
        if rng.random() < 0.3:
            action = int(rng.integers(2))
        else:
            with torch.no_grad():
                action = int(online(torch.as_tensor(state)).argmax())
        following = (0.9 * state + (action - 0.5)).astype(np.float32)
        reward = -float(np.abs(following).sum())
        total += reward
        buffer.store(state, action, reward, following)
        state = following
        if step < 8:
            continue
        states, actions, rewards, nexts = buffer.sample(6, rng)
        with torch.no_grad():
            goal = rewards + 0.9 * target(nexts).max(1).values
        q = online(states).gather(1, actions[:, None]).squeeze(1)
        loss = nn.functional.mse_loss(q, goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            target.load_state_dict(online.state_dict())
        print(step, loss.item())
    print(total)


if __name__ == "__main__":
    main()
