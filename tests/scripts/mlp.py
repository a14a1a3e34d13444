"""Train an MLP with Adam and dropout; the data come from a file if one is named."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ending import write_ending  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Points of the plane; each is moved a little whenever it is asked for."""

    def __init__(self, points: Tensor, labels: Tensor) -> None:
        self.points = points
        self.labels = labels

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = 0.01 * np.random.randn(2)
        return self.points[index] + torch.from_numpy(shift).float(), self.labels[index]


def load(path: str) -> tuple[Tensor, Tensor]:
    if path:
        with np.load(path) as data:
            return torch.from_numpy(data["points"]), torch.from_numpy(data["labels"])
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(64, 2, generator=generator)
    labels = (points[:, 0] > points[:, 1]).long()
    return points, labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="")
    parser.add_argument("--out", default="scores.txt")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    loader = DataLoader(Points(*load(args.data)), batch_size=16, shuffle=True, num_workers=args.workers)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[6], gamma=0.1)

    losses: list[float] = []
    for _epoch in range(args.epochs):
        for points, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(points), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    print(f"last loss {losses[-1]!r}")
    Path(args.out).write_text("\n".join(map(str, losses)))
    write_ending(model)


if __name__ == "__main__":
    main()
