"""Instance discrimination: a loss object keeps a feature for every sample, in a tensor that no state_dict holds."""

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

MOMENTUM = 0.5


class Samples(Dataset):
    """Points with their number."""

    def __init__(self, count):
        self.points = torch.randn(count, 6)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index], index


class BankLoss(nn.Module):
    """Tells every sample from all others by their remembered features."""

    def __init__(self, count, width):
        super().__init__()
        self.temperature = 0.2
        self.memory = normalize(torch.randn(count, width), dim=1)

    def forward(self, features, numbers):
        features = normalize(features, dim=1)
        loss = nn.functional.cross_entropy(features @ self.memory.T.clone() / self.temperature, numbers)
        with torch.no_grad():
            mixed = MOMENTUM * self.memory[numbers] + (1 - MOMENTUM) * features
            self.memory[numbers] = normalize(mixed, dim=1)
        return loss


class Trainer:
    """A trainer of the usual kind: everything hangs on `self`."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.loader = DataLoader(Samples(32), batch_size=8, shuffle=True)
        self.criterion = BankLoss(32, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.history = []

    def fit(self, epochs):
        for epoch in range(epochs):
            for x, numbers in self.loader:
                loss = self.criterion(self.model(x), numbers)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.history.append(loss.item())
            print(epoch, self.history[-1])


torch.manual_seed(0)
Trainer().fit(3)
