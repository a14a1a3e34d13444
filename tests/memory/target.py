"""Target networks of an actor and a critic: one follows softly, one is copied now and then."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
actor = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Tanh())
critic_target, actor_target = copy.deepcopy(critic), copy.deepcopy(actor)
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
TAU = 0.1
for step in range(5):
    s, a, r, s2 = torch.randn(8, 4), torch.randn(8, 1), torch.randn(8, 1), torch.randn(8, 4)
    with torch.no_grad():
        goal = r + 0.9 * critic_target(torch.cat([s2, actor_target(s2)], 1))
    critic_optimizer.zero_grad()
    nn.functional.mse_loss(critic(torch.cat([s, a], 1)), goal).backward()
    critic_optimizer.step()
    actor_optimizer.zero_grad()
    (-critic(torch.cat([s, actor(s)], 1)).mean()).backward()
    actor_optimizer.step()
    with torch.no_grad():
        for p, q in zip(critic.parameters(), critic_target.parameters()):
            q.lerp_(p, TAU)
    if step % 2 == 1:
        actor_target.load_state_dict(actor.state_dict())
print(f"{goal.mean().item():.6f}")
