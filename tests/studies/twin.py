"""The training of train.py as a program."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainmem_audit.programs import LoaderOrder, Probe, Program


def program(seed: int) -> Program:
    torch.manual_seed(seed)
    x = torch.randn(64, 4)
    y = (x.sum(dim=1) > 0).long() + (x[:, 0] > 1).long()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(batch):
        inputs, targets = batch.data
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    probe = Probe(torch.linspace(-2, 2, 40).reshape(10, 4), torch.arange(10) % 3, "made by hand")
    return Program(model, optimizer, LoaderOrder(loader), step, probe)
