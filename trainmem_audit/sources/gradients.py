"""Carried gradients (S1): what one step leaves in `.grad` and the next backward adds to.

Every step leaves gradients behind; as a rule they are taken away before the next backward, and are then no memory.
`GradientWatch` asks at a backward whether what the optimizer's last step left is still there, and stays until its next
one. A GAN, whose generator's backward fills the discriminator's gradients in vain, carries none; nor does the
accumulation of gradients within one update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from trainmem_audit.sources.base import ComponentState, Labels, Saved
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import write_tensor

__all__ = ["GradientSource", "GradientWatch"]

_LABELS = Labels("S1", "micro", "in-process")
_Parameters = Callable[[], Iterable[tuple[str, torch.Tensor]]]


class GradientSource:
    """The gradients of some parameters, as one component.

    Parameters
    ----------
    parameters:
        Gives the parameters with their names, as they are now.
    """

    def __init__(self, name: str, parameters: _Parameters) -> None:
        self.name = name
        self._parameters = parameters

    def components(self) -> Iterator[ComponentState]:
        """Give the gradients that are there now."""
        found = [(name, parameter.grad) for name, parameter in self._parameters()]
        tensors = [(name, grad.detach()) for name, grad in found if grad is not None and grad.layout is torch.strided]
        if tensors:
            yield ComponentState(self.name, _LABELS, tensors)

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write gradients in place; those that were not there are taken away, those that are not there made anew."""
        kept = saved.get(self.name)
        if kept is None or kept.tensors is None:
            return
        for name, parameter in self._parameters():
            value = kept.tensors.get(name)
            if value is None:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = value.clone().to(parameter.device)
            elif why := write_tensor(parameter.grad, value):
                yield f"{self.name}: {name} {why}"


class GradientWatch:
    """Tells which optimizers find, in their gradients, what their last step left there."""

    def __init__(self) -> None:
        self._carried: dict[int, bool] = {}
        self._steps: dict[int, int] = {}
        self.watched: set[int] = set()
        """The optimizers (ids) whose gradients are looked at until their next step: after 1, 2, 3, 4, 8, 16 … steps."""
        self.known: set[int] = set()

    def before_backward(self, optimizers: Iterable[OptimizerSource]) -> None:
        """Look at the gradients that a backward pass is about to add to."""
        for source in optimizers:
            optimizer = source.optimizer
            key = id(optimizer)
            if optimizer is None or key not in self.watched or self._carried.get(key) is False:
                continue
            groups = optimizer.param_groups
            grads = (parameter.grad for group in groups for parameter in group["params"])
            self._carried[key] = any(grad is not None and _is_filled(grad) for grad in grads)

    def after_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the gradients of this step held what the optimizer's last one had left; said once."""
        key = id(optimizer)
        found = self._carried.pop(key, False)
        steps = self._steps[key] = self._steps.get(key, 0) + 1
        self.watched.discard(key)
        if found:
            self.known.add(key)
        elif key not in self.known and (steps == 3 or steps & (steps - 1) == 0):
            self.watched.add(key)
        return found


def _is_filled(grad: torch.Tensor) -> bool:
    values = grad.coalesce().values() if grad.is_sparse else grad.detach()
    return bool(values.numel()) and bool((values != 0).any())
