"""Recalibrates BatchNorm: statistics of some batches under the weights as they are now, instead of running ones.

The norms are set to a plain average over the batches and switched to training, everything else to evaluation, so that
no dropout draws; modes and momenta are then what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _NormBase

from trainmem_audit.errors import UsageError

__all__ = ["recalibrate"]


def recalibrate(roots: Iterable[torch.nn.Module], forwards: Sequence[Callable[[], object]]) -> None:
    """Estimate the statistics of all BatchNorm below `roots` anew, by calling each of `forwards` once.

    Raises
    ------
    UsageError
        If there is nothing to call.
    """
    if not forwards:
        raise UsageError("no batch to recalibrate with", where="recalibrate", expected="1 or more batches")
    with torch.no_grad(), _averaging(list(roots)):
        for forward in forwards:
            forward()


@contextmanager
def _averaging(roots: Sequence[torch.nn.Module]) -> Iterator[None]:
    modules = [module for root in roots for module in root.modules()]
    norms = [module for module in modules if isinstance(module, _NormBase) and module.running_mean is not None]
    modes = [(module, module.training) for module in modules]
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        for module in modules:
            vars(module)["training"] = False
        for norm in norms:
            vars(norm)["training"], norm.momentum = True, None
            norm.reset_running_stats()
        yield
    finally:
        for module, mode in modes:
            vars(module)["training"] = mode
        for norm, momentum in momenta:
            norm.momentum = momentum
