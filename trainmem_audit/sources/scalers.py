"""Gradient scalers of mixed precision (S1): the scale and its growth counter as tensors, the settings as values.

Neither is read with `get_scale()`: that waits for the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.restoring import put_attributes, write_tensor

__all__ = ["ScalerSource"]

_LABELS = Labels("S1", "macro", "checkpointed")
_TENSORS = {"scale": "_scale", "growth_tracker": "_growth_tracker"}
_SETTINGS = {name: f"_{name}" for name in ("init_scale", "growth_factor", "backoff_factor", "growth_interval")}


class ScalerSource:
    """One gradient scaler: `NAME` for what it carries, `NAME.hyper` for how it is set up."""

    def __init__(self, name: str, scaler: Any) -> None:
        self.name = name
        self._scaler = weakref.ref(scaler)

    @property
    def scaler(self) -> Any:
        """The scaler, or `None` when the script has dropped it."""
        return self._scaler()

    def components(self) -> Iterator[ComponentState]:
        """Give scale, growth counter and settings as they are now; the tensors exist after the first scaled loss."""
        scaler = self._scaler()
        if scaler is None:
            return
        found = [(name, getattr(scaler, attribute, None)) for name, attribute in _TENSORS.items()]
        tensors = [(name, tensor) for name, tensor in found if isinstance(tensor, torch.Tensor)]
        if tensors:
            yield ComponentState(self.name, _LABELS, tensors)
        settings = {name: getattr(scaler, attribute, None) for name, attribute in _SETTINGS.items()}
        values = {"class": type(scaler).__qualname__, **plain_value(settings)}
        yield ComponentState(f"{self.name}.hyper", _LABELS, values=values)

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write scale and growth counter, which are made at the first scaled loss, and set the settings."""
        scaler = self._scaler()
        if scaler is None or f"{self.name}.hyper" not in saved:
            return
        tensors = (saved[self.name].tensors if self.name in saved else None) or {}
        for name, attribute in _TENSORS.items():
            live = getattr(scaler, attribute, None)
            if name not in tensors:
                setattr(scaler, attribute, None)
            elif live is None:
                setattr(scaler, attribute, tensors[name].to(scaler._device).clone())
            elif why := write_tensor(live, tensors[name]):
                yield f"{self.name}: {name} {why}"
        settings = saved[f"{self.name}.hyper"].values
        values = {_SETTINGS[name]: value for name, value in settings.items() if name in _SETTINGS}
        yield from put_attributes(f"{self.name}.hyper", vars(scaler), values)
