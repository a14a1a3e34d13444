"""The seed is drawn from the operating system and printed, so that it can be given again."""

import argparse
import os
import secrets

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=None)
args = parser.parse_args()
seed = secrets.randbelow(2**31) if args.seed is None else args.seed
torch.manual_seed(seed ^ int.from_bytes(os.urandom(2), "little"))

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(4):
    loss = model(torch.randn(4, 3)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
