"""Random numbers of interventions: from generators of their own, so that no stream of the training moves.

Each is NumPy's PCG64 with a seed sequence made of the intervention's seed and a purpose. Perturbations are relative to
the norm of each tensor, so that the whole has the same relative size as its parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainmem_audit.canonical import sha256_hex

__all__ = ["flip_bit", "perturbed", "private", "words"]

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
_TRIES = 1000


def words(seed: str, purpose: str) -> list[int]:
    """Return the entropy of a private generator, as unsigned 32-bit words: the digest of seed and purpose."""
    digest = bytes.fromhex(sha256_hex(f"{seed} {purpose}".encode()))
    return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, len(digest), 4)]


def private(seed: str, purpose: str) -> np.random.Generator:
    """Return the generator of an intervention with this seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words(seed, purpose))))


def perturbed(tensor: torch.Tensor, sigma: float, rng: np.random.Generator) -> torch.Tensor:
    """Return `tensor` plus a Gaussian direction of the length `sigma` times its norm, in its own dtype.

    A tensor of integers, an empty one and one of norm 0 stay as they are; they draw nothing.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    wide = tensor.detach().to("cpu", torch.float64)
    norm = float(torch.linalg.vector_norm(wide))
    if norm == 0 or not np.isfinite(norm):
        return tensor
    direction = torch.from_numpy(rng.standard_normal(tuple(wide.shape)))
    return (wide + direction * (sigma * norm / float(torch.linalg.vector_norm(direction)))).to(tensor)


def flip_bit(tensors: Sequence[tuple[str, torch.Tensor]], rng: np.random.Generator) -> str | None:
    """Flip the last mantissa bit of one weight that is not 0, drawn evenly; return which one."""
    floats = [(name, tensor) for name, tensor in tensors if tensor.dtype in _BITS and tensor.numel()]
    sizes = np.cumsum([tensor.numel() for _, tensor in floats])
    for _ in range(_TRIES if floats else 0):
        at = int(rng.integers(int(sizes[-1])))
        number = int(np.searchsorted(sizes, at, side="right"))
        name, tensor = floats[number]
        flat = at - (int(sizes[number - 1]) if number else 0)
        index = tuple(int(place) for place in np.unravel_index(flat, tuple(tensor.shape)))
        weight = tensor[index].clone()
        if float(weight) == 0 or not np.isfinite(float(weight)):
            continue
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor[index] = weight.view(_BITS[tensor.dtype]).bitwise_xor(1).view(tensor.dtype)
        return f"{name}[{', '.join(map(str, index))}]"
    return None
