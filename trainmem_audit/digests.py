"""Tensor digests: plain BLAKE3-256 of a tensor's elements in logical (row-major) order, little-endian (DESIGN § 2.4).

The same digest on every device and for every memory format; exactly what `b3sum` prints for those bytes. A contiguous
CPU tensor is hashed where it lies, through its address: `Tensor.numpy()` would make its storage non-resizable. Anything
else is copied to a contiguous CPU tensor first (on a CUDA device this waits for the device).
"""

from __future__ import annotations

import ctypes
import sys

import torch
from blake3 import blake3

from trainmem_audit.errors import RecordingError

__all__ = ["dtype_name", "tensor_bytes", "tensor_digest"]

if sys.byteorder != "little":
    raise RecordingError("tensor digests need a little-endian machine", got=sys.byteorder)

_THREADED_FROM = 4 * 2**20
"""Bytes from which BLAKE3's thread pool is worth its start: beside training threads that spin it is slower below."""

_READ = 0x100  # PyBUF_READ
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memory.restype = ctypes.py_object


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """Return the 32-byte digest of `tensor` (any shape, dtype, device, layout); changes nothing."""
    if tensor.device.type != "cpu" or not _is_plain(tensor):
        tensor = _plain_copy(tensor)
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return blake3(b"").digest()
    view = _memory(tensor.data_ptr(), size, _READ)
    return blake3(view, max_threads=blake3.AUTO if size >= _THREADED_FROM else 1).digest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return a copy of the bytes that `tensor_digest` hashes."""
    plain = _plain_copy(tensor)
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size()) if plain.numel() else b""


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the dtype as headers name it: `float32`, `bfloat16`, `int64` …"""
    return str(tensor.dtype).removeprefix("torch.")


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def _plain_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous CPU tensor with the same elements, outside every mode that the script may have entered."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        return tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
