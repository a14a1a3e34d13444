"""Deep Q-learning as in the tutorial: named tuples of tensors in a deque, a target network that follows softly."""

import random
from collections import deque, namedtuple

import torch
from torch import nn

TAU = 0.1
GAMMA = 0.9

Transition = namedtuple("Transition", ("state", "action", "next_state", "reward"))


class ReplayMemory:
    """The last transitions."""

    def __init__(self, capacity):
        self.memory = deque([], maxlen=capacity)

    def push(self, *args):
        self.memory.append(Transition(*args))

    def sample(self, batch_size):
        return random.sample(self.memory, batch_size)

    def __len__(self):
        return len(self.memory)


def q_net():
    return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))


def state_of(cell):
    return torch.eye(7)[cell].unsqueeze(0)


random.seed(1)
torch.manual_seed(1)
policy_net, target_net = q_net(), q_net()
target_net.load_state_dict(policy_net.state_dict())
optimizer = torch.optim.AdamW(policy_net.parameters(), lr=0.01, amsgrad=True)
memory = ReplayMemory(24)


def optimize_model():
    if len(memory) < 8:
        return
    batch = Transition(*zip(*memory.sample(8), strict=True))
    mask = torch.tensor([following is not None for following in batch.next_state])
    others = torch.cat([following for following in batch.next_state if following is not None])
    values = policy_net(torch.cat(batch.state)).gather(1, torch.cat(batch.action))
    nexts = torch.zeros(8)
    with torch.no_grad():
        nexts[mask] = target_net(others).max(1).values
    goal = torch.cat(batch.reward) + GAMMA * nexts
    loss = nn.functional.smooth_l1_loss(values, goal.unsqueeze(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())


for _episode in range(8):
    cell = 3
    state = state_of(cell)
    for _tick in range(6):
        if random.random() < 0.5:
            action = torch.tensor([[random.randrange(2)]])
        else:
            with torch.no_grad():
                action = policy_net(state).max(1).indices.view(1, 1)
        cell += 1 if action.item() else -1
        reward = torch.tensor([float(cell == 6)])
        done = cell in (0, 6)
        following = None if done else state_of(cell)
        memory.push(state, action, following, reward)
        state = following
        optimize_model()
        weights = policy_net.state_dict()
        slow = target_net.state_dict()
        for key in weights:
            slow[key] = weights[key] * TAU + slow[key] * (1 - TAU)
        target_net.load_state_dict(slow)
        if done:
            break
