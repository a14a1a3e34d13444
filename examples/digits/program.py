"""The training of train.py as a program that a study can branch: what carries memory is named, nothing else is new."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from train import Net, load_data, train_step

from trainmem_audit.programs import Batch, LoaderOrder, Probe, Program


def program(
    seed: int,
    optimizer: str = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    epochs: int = 20,
    dropout: float = 0.3,
    ema: float = 0.0,
) -> Program:
    """Return the training of a small CNN on digits; with `ema` an average of that decay is its teacher."""
    torch.manual_seed(seed)
    train_set, test_set = load_data()
    loader = DataLoader(train_set, batch_size=64, shuffle=True)
    model = Net(dropout)
    if optimizer == "adamw":
        steps: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    else:
        steps = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(steps, T_max=epochs * len(loader))
    teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None

    def step(batch: Batch) -> None:
        images, labels = batch.data
        train_step(model, steps, scheduler, images, labels)
        if teacher is not None:
            teacher.update_parameters(model)

    def observe() -> dict[str, Tensor]:
        heads = {"model": model(test_set.images)}
        return heads if teacher is None else heads | {"teacher": teacher(test_set.images)}

    components: dict[str, Any] = {"scheduler": scheduler}
    if teacher is not None:
        components["teacher"] = teacher
    probe = Probe(test_set.images, test_set.labels, "the stratified fifth of the data that the loader does not have")
    return Program(model, steps, LoaderOrder(loader), step, probe, components, observe)
