"""Observations: what a function predicts on the probe, taken without leaving a trace in the training.

Random streams are put back, and so are the modes of the modules; nothing of it is recorded as a forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import FormatError
from trainmem_audit.observations import observation_bytes
from trainmem_audit.recording.snapshots import whole_file
from trainmem_audit.sources.streams import StreamSet

__all__ = ["aside", "read_streams", "write_observation", "write_streams"]


def read_streams(streams: StreamSet) -> dict[str, Stream]:
    """Return the full state of every random stream."""
    return {name: state for name in streams.digests() if (state := streams.describe(name)) is not None}


def write_streams(streams: StreamSet, states: Mapping[str, Stream]) -> list[str]:
    """Put random streams back; return what could not be, and why."""
    problems = ((name, streams.restore(name, state)) for name, state in states.items())
    return [f"rng.{name}: {why}" for name, why in problems if why]


@contextmanager
def aside(streams: StreamSet, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Do something without gradients in eval mode; then put modes and random streams back."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    before = read_streams(streams)
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        write_streams(streams, before)


def write_observation(path: Path, step: int, heads: Mapping[str, torch.Tensor]) -> int:
    """Write predictions, whole or not at all; return the bytes written.

    Parameters
    ----------
    heads:
        (n, …) floating-point tensors by the name of the head; half precision is widened to float32.

    Raises
    ------
    FormatError
        If there is none, or one is no floating-point tensor.
    """
    data = observation_bytes({name: _array(name, value) for name, value in heads.items()})
    path.parent.mkdir(exist_ok=True)
    with whole_file(path, step) as file:
        file.write(data)
    return len(data)


def _array(name: str, value: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__qualname__
        raise FormatError("predictions of another kind", where=f"observe: {name}"[:80], expected="floats", got=got)
    wide = value.dtype in (torch.float32, torch.float64)
    return (value if wide else value.float()).detach().cpu().numpy()
