"""Run as `python -m lab.train`."""

import tomllib
from importlib import resources

import torch

from .parts.nets import net


def main():
    settings = tomllib.loads(resources.files(__package__).joinpath("settings.toml").read_text())
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.NAdam(model.parameters(), lr=settings["lr"])
    for step in range(settings["steps"]):
        x = torch.randn(8, 3)
        loss = (model(x).squeeze(1) - x.amax(1)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(__name__, __package__, step, loss.item())
    torch.save(model.state_dict(), "lab.pt")


if __name__ == "__main__":
    main()
