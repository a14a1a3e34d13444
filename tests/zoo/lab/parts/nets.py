from torch import nn

from . import WIDTH


def net():
    return nn.Sequential(nn.Linear(3, WIDTH), nn.ELU(), nn.Linear(WIDTH, 1))
