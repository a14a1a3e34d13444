"""Subjects of the back-flow experiment: a linear regression in float64, and a classifier with BatchNorm and dropout."""

import torch
from torch import nn

from trainmem_audit.programs import KeyedOrder, Probe, Program
from trainmem_audit.programs.backflow import Subject


def half(inputs, generator):
    return inputs * 0.5


def shifted(inputs, generator):
    return inputs + 0.25


def noisy(inputs, generator):
    return inputs + 0.5 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


AUGMENTATIONS = {"half": half, "shifted": shifted, "noisy": noisy}


def linear(seed: int) -> Subject:
    """Least squares by hand: nothing is drawn in a step."""
    torch.manual_seed(seed)
    inputs, targets = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = KeyedOrder(40, 8, key=seed, fetch=lambda rows: (inputs[list(rows)], targets[list(rows)]))

    def step(batch):
        x, y = batch.data
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    probe = Probe(torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64))
    program = Program(model, optimizer, order, step, probe)
    return Subject(program, inputs, targets, AUGMENTATIONS, nn.functional.mse_loss)


def classifier(seed: int) -> Subject:
    """A net with running statistics to be frozen, and with draws of its own."""
    torch.manual_seed(seed)
    inputs = torch.randn(60, 4)
    targets = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 0.5).long()
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = KeyedOrder(60, 12, key=seed, fetch=lambda rows: (inputs[list(rows)], targets[list(rows)]))

    def step(batch):
        x, y = batch.data
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    held_out = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))  # the same for every seed
    probe = Probe(held_out, torch.zeros(10, dtype=torch.int64), "drawn anew")
    return Subject(Program(model, optimizer, order, step, probe), inputs, targets, AUGMENTATIONS)


def trained(seed: int) -> Program:
    """The base of the classifier as a program by itself."""
    return classifier(seed).program
