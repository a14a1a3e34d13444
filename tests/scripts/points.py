"""An ordinary script: points from a file, everything at module level, all three seeds, evaluation in between."""

import csv
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

LR = 0.01
MOMENTUM = 0.9
SEED = 3
BATCH = 32
DROP = 0.2
SHUFFLE = True
NOISE = 0.1
FLIP = False

random.seed(SEED)
np.random.seed(SEED)
torch.manual_seed(SEED)


class Points(Dataset):
    def __init__(self, path):
        rows = list(csv.reader(open(path)))
        self.x = torch.tensor([[float(v) for v in r[:-1]] for r in rows])
        self.y = torch.tensor([int(r[-1]) for r in rows])

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x = self.x[i] + NOISE * torch.randn(4)
        return x, self.y[i]


ds = Points("data.csv")
train, val = random_split(ds, [160, 40])
loader = DataLoader(train, batch_size=BATCH, shuffle=SHUFFLE)
val_loader = DataLoader(val, batch_size=50)
net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(DROP), nn.Linear(32, 2))
opt = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
sched = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
for epoch in range(3):
    net.train()
    for x, y in loader:
        if FLIP:
            x = -x
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
    sched.step()
    net.eval()
    with torch.no_grad():
        acc = sum((net(x).argmax(1) == y).sum().item() for x, y in val_loader) / 40
    print(epoch, loss.item(), acc)
torch.save(net.state_dict(), "out.pt")
