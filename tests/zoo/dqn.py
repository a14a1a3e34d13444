"""Deep Q-learning on a line of seven cells: replay memory, target network, epsilon-greedy play."""

import random
from collections import deque

import torch
from torch import nn

SYNC_EVERY = 4
EPSILON = 0.3

random.seed(1)
torch.manual_seed(1)


def q_net():
    return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))


def one_hot(cells):
    return torch.eye(7)[torch.as_tensor(cells)]


policy, target = q_net(), q_net()
target.load_state_dict(policy.state_dict())
optimizer = torch.optim.RMSprop(policy.parameters(), lr=0.01)
memory = deque(maxlen=64)
cell, updates = 3, 0
for tick in range(20):
    if random.random() < EPSILON:
        action = random.randrange(2)
    else:
        with torch.no_grad():
            action = policy(one_hot([cell])).argmax(1).item()
    following = max(0, min(6, cell + (1 if action else -1)))
    reward = float(following == 6)
    memory.append((cell, action, reward, following))
    cell = 3 if following in (0, 6) else following
    if len(memory) < 8:
        continue
    cells, actions, rewards, nexts = zip(*random.sample(memory, 6))
    q = policy(one_hot(cells)).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    with torch.no_grad():
        goal = torch.tensor(rewards) + 0.9 * target(one_hot(nexts)).amax(1)
    loss = nn.functional.smooth_l1_loss(q, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    updates += 1
    if updates % SYNC_EVERY == 0:
        target.load_state_dict(policy.state_dict())
    print(tick, action, loss.item())
torch.save(policy.state_dict(), "policy.pt")
