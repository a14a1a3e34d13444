"""A program of one layer with all kinds of memory: momentum, BatchNorm, dropout, a schedule, an average, a queue."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from trainmem_audit.programs import KeyedOrder, LoaderOrder, Probe, Program


def program(
    seed: int,
    order: str = "loader",
    momentum: float = 0.9,
    optimizer: str = "sgd",
    forgets: bool = False,
    late: bool = False,
):
    torch.manual_seed(seed)
    inputs = torch.randn(48, 6)
    labels = (inputs.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    if optimizer == "adam":
        steps = torch.optim.Adam(model.parameters(), lr=0.01)
    else:
        steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    schedule = torch.optim.lr_scheduler.StepLR(steps, 5, 0.8)
    teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    queue = torch.zeros(12, 8)
    if order == "keyed":
        batches = KeyedOrder(48, 8, key=seed, fetch=lambda rows: (inputs[list(rows)], labels[list(rows)]))
    else:
        batches = LoaderOrder(DataLoader(TensorDataset(inputs, labels), batch_size=8, shuffle=True))
    count = [0]

    def step(batch):
        x, y = batch.data
        keys = model[0](x).detach()
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(x + 0.1 * torch.randn_like(x)), y)
        loss = loss + 0.01 * (model[0](x) @ queue.clone().T).mean()
        if not late:
            queue.copy_(torch.cat([queue[8:], keys])[-12:])
        if forgets:  # memory that no component names
            count[0] += 1
            loss = loss * (1 + 0.01 * count[0])
        loss.backward()
        steps.step()
        schedule.step()
        teacher.update_parameters(model)
        if late:  # what was computed before the optimizer's step is kept after it
            queue.copy_(torch.cat([queue[8:], keys])[-12:])

    probe = Probe(torch.linspace(-1, 1, 30).reshape(5, 6), torch.tensor([0, 1, 0, 1, 1]), "made by hand")

    def observe():
        torch.rand(1)  # what is drawn here is taken back
        return {"model": model(probe.inputs), "teacher": teacher(probe.inputs)}

    return Program(model, steps, batches, step, probe, {"teacher": teacher, "queue": queue}, observe)
