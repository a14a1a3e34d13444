"""A GAN on a ring of points: discriminator and generator step in turn."""

import math

import torch
import torch.nn as nn

torch.manual_seed(3)
G = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
D = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1))
opt_d = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
opt_g = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(8, 1), torch.zeros(8, 1)

for it in range(4):
    angle = 2 * math.pi * torch.rand(8)
    real = torch.stack((angle.cos(), angle.sin()), dim=1)
    fake = G(torch.randn(8, 2))

    opt_d.zero_grad()
    loss_d = bce(D(real), ones) + bce(D(fake.detach()), zeros)
    loss_d.backward()
    opt_d.step()

    opt_g.zero_grad()
    loss_g = bce(D(fake), ones)
    loss_g.backward()
    opt_g.step()
    print(f"{it} D {loss_d.item():.5f} G {loss_g.item():.5f}")

torch.save({"G": G.state_dict(), "D": D.state_dict(), "opt_g": opt_g.state_dict()}, "gan.pt")
