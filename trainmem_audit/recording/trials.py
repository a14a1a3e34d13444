"""Small experiments that tell what changes bits on this machine: thread count and memory format. Nothing global stays.

Each computes a forward and a backward pass of one layer, twice under each setting, from private generators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainmem_audit.digests import tensor_digest

__all__ = ["cuda_devices", "thread_counts", "trials"]

_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(16, 32, 3, padding=1), (32, 16, 16, 16)),
    "linear layer": (lambda: nn.Linear(512, 512), (64, 512)),
    "batch norm": (lambda: nn.BatchNorm2d(32), (32, 32, 16, 16)),
    "attention": (lambda: nn.MultiheadAttention(64, 4, batch_first=True), (8, 64, 64)),
}


def trials() -> dict[str, dict[str, bool]]:
    """Return for each kind of layer whether it repeats itself, and whether threads and memory format change its bits.

    The number of threads is put back; on a machine with one processor `threads` compares one with two all the same.
    """
    threads = torch.get_num_threads()
    other = 1 if threads > 1 else 2
    found: dict[str, dict[str, bool]] = {}
    try:
        for name, (make, shape) in _LAYERS.items():
            first, again = _bits(make, shape), _bits(make, shape)
            torch.set_num_threads(other)
            elsewhere = _bits(make, shape)
            torch.set_num_threads(threads)
            found[name] = {"repeats": first == again, "threads": first != elsewhere}
            if len(shape) == 4:
                found[name]["memory format"] = first != _bits(make, shape, channels_last=True)
    finally:
        torch.set_num_threads(threads)
    return found


def cuda_devices() -> list[str]:
    """Return each CUDA device in words: name, multiprocessors, capability, CUDA version."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"{item.name}, {item.multi_processor_count} multiprocessors, {item.major}.{item.minor}, "
        f"CUDA {torch.version.cuda}"
        for item in found
    ]


def thread_counts() -> tuple[int, int]:
    """Return the two numbers of threads that `trials` compares."""
    threads = torch.get_num_threads()
    return threads, 1 if threads > 1 else 2


def _bits(make: Callable[[], nn.Module], shape: tuple[int, ...], channels_last: bool = False) -> bytes:
    """Return the digests of a layer's gradients for fixed weights and inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layer = make()
        with torch.no_grad():
            for param in layer.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))
        inputs = torch.randn(shape, generator=generator)
        if channels_last:
            inputs = inputs.to(memory_format=torch.channels_last)
            layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        out = layer(inputs, inputs, inputs)[0] if isinstance(layer, nn.MultiheadAttention) else layer(inputs)
        out.square().mean().backward()
    return b"".join(tensor_digest(param.grad) for param in layer.parameters() if param.grad is not None)
