"""The probe of a program as a file: what a plan binds by its digest, and from which estimates take their targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainmem_audit.arrays import array_bytes
from trainmem_audit.programs.live import start_streams
from trainmem_audit.programs.program import Probe, find_factory, parse_arguments

__all__ = ["probe_bytes", "probe_of"]


def probe_bytes(probe: Probe) -> bytes:
    """Return the safetensors file of a probe: its inputs as `x`, its targets as `y`."""
    tensors = {"x": probe.inputs, "y": probe.targets}
    return array_bytes({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def probe_of(entry: str, arguments: Sequence[str], seed: str, cwd: Path) -> Probe:
    """Return the probe of a program that is made for this purpose alone.

    Raises
    ------
    UsageError
        If there is no such program.
    """
    start_streams(seed)
    factory, _ = find_factory(entry, cwd)
    texts = [text.replace("{seed}", seed) for text in arguments]
    return factory(seed=int(seed), **parse_arguments(texts)).probe
