"""A GAN in one module, two optimizers, spectral norm in the critic."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.critic = nn.Sequential(spectral_norm(nn.Linear(2, 8)), nn.LeakyReLU(0.2), nn.Linear(8, 1))


torch.manual_seed(0)
gan = GAN()
critic_optimizer = torch.optim.Adam(gan.critic.parameters(), lr=0.01, betas=(0.5, 0.9))
maker_optimizer = torch.optim.Adam(gan.maker.parameters(), lr=0.01, betas=(0.5, 0.9))
for step in range(4):
    real, fake = torch.randn(8, 2) + 2, gan.maker(torch.randn(8, 4))
    loss = gan.critic(fake.detach()).mean() - gan.critic(real).mean()
    critic_optimizer.zero_grad()
    loss.backward()
    critic_optimizer.step()
    maker_optimizer.zero_grad()
    (-gan.critic(gan.maker(torch.randn(8, 4))).mean()).backward()
    maker_optimizer.step()
print(f"{loss.item():.6f}")
