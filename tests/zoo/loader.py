"""Classify noisy points; the data set adds noise whenever a sample is asked for."""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

NOISE = 0.1


class Points(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.points = torch.randn(48, 4, generator=generator)
        self.labels = (self.points.sum(1) > 0).long()
        self.noise = NOISE

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        shift = self.noise * np.random.randn(4)
        drop = torch.rand(4) > 0.1
        return (self.points[index] + torch.from_numpy(shift).float()) * drop, self.labels[index]


def seed_worker(worker_id):
    np.random.seed(torch.initial_seed() % 2**32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--persistent", action="store_true")
    parser.add_argument("--prefetch", type=int, default=None)
    args = parser.parse_args()

    torch.manual_seed(0)
    np.random.seed(0)
    data = Points()
    loader = DataLoader(
        data,
        batch_size=8,
        shuffle=True,
        num_workers=args.workers,
        worker_init_fn=seed_worker,
        persistent_workers=args.persistent,
        prefetch_factor=args.prefetch,
    )
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(2):
        data.noise = NOISE
        for points, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(points), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.6f}")
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
