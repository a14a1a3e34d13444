import torch
from torch import nn


class Piece:
    def __init__(self, scale):
        self.scale = scale


torch.manual_seed(0)
pieces = {Piece(scale) for scale in (0.1, 0.7, 1.3, 1.9)}
model = nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.01)
for piece in pieces:
    opt.zero_grad()
    model(torch.randn(4, 3) * piece.scale).square().mean().backward()
    opt.step()
