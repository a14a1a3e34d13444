"""Train a small CNN with BatchNorm and dropout on made-up images; everything at module level."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from ending import write_ending  # type: ignore[import-not-found]
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED = 0
BATCH = 16
LR = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-3
DROPOUT = 0.3
NOISE = 0.1

random.seed(SEED)
np.random.seed(SEED)
torch.manual_seed(SEED)

truth = torch.Generator().manual_seed(7)
images = torch.randn(96, 1, 8, 8, generator=truth)
labels = torch.randint(0, 4, (96,), generator=truth)
train_loader = DataLoader(TensorDataset(images[:80], labels[:80]), batch_size=BATCH, shuffle=True)
test_loader = DataLoader(TensorDataset(images[80:], labels[80:]), batch_size=16)

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 16),
    nn.ReLU(),
    nn.Dropout(DROPOUT),
    nn.Linear(16, 4),
)
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

for epoch in range(2):
    model.train()
    for inputs, targets in train_loader:
        if random.random() < 0.5:
            inputs = inputs.flip(-1)
        inputs = inputs + NOISE * torch.randn_like(inputs)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    scheduler.step()
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in test_loader)
    print(f"epoch {epoch}: loss {loss.item()!r}, {correct} of 16 correct")

write_ending(model)
