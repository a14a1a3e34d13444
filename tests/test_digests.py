"""Tensor digests: BLAKE3 of the elements in row-major order, whatever the memory looks like, and nothing is touched."""

from __future__ import annotations

import pytest
import torch
from blake3 import blake3

from trainmem_audit.digests import dtype_name, tensor_bytes, tensor_digest

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip


def row_major_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of the elements, by a way that shares nothing with the code under test."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return b"" if flat.numel() == 0 else bytes(flat.view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_digest_is_blake3_of_the_elements(dtype: torch.dtype) -> None:
    tensor = torch.arange(-7, 29).reshape(4, 9).to(dtype)
    assert tensor_digest(tensor) == blake3(row_major_bytes(tensor)).digest()
    assert tensor_bytes(tensor) == row_major_bytes(tensor)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.transpose(0, 3),
        lambda t: t[1:, ::2],
        lambda t: t[..., :1].expand(-1, -1, -1, 5),
        lambda t: t[0, 0, 0, 0],
        lambda t: t[:0],
        lambda t: t.flatten()[3:],
        lambda t: t.requires_grad_(),
        lambda t: torch.nn.Parameter(t),
        lambda t: torch.complex(t, -t).conj(),
        lambda t: torch.complex(t, t).conj().imag,
    ],
)
def test_the_memory_format_does_not_matter(view: object) -> None:
    tensor = view(torch.randn(3, 4, 5, 6))  # type: ignore[operator]
    assert tensor_digest(tensor) == blake3(row_major_bytes(tensor)).digest()


def test_large_tensors_have_the_same_digest_as_their_bytes() -> None:
    tensor = torch.arange(3 * 2**20, dtype=torch.float32)  # above the size from which several threads hash
    assert tensor_digest(tensor) == blake3(tensor_bytes(tensor)).digest()


def test_a_sparse_tensor_has_the_digest_of_its_dense_form() -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert tensor_digest(dense.to_sparse()) == tensor_digest(dense)


def test_hashing_leaves_a_storage_resizable_and_versions_alone() -> None:
    tensor = torch.randn(8)
    version = tensor._version
    tensor_digest(tensor)
    tensor_digest(tensor[::2])
    assert tensor._version == version
    tensor.resize_(64)  # `Tensor.numpy()` would have made this raise


def test_hashing_draws_no_random_number_and_changes_no_mode() -> None:
    state = torch.get_rng_state()
    with torch.inference_mode():
        tensor_digest(torch.ones(3, 3).t())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_dtypes_have_their_plain_names(dtype: torch.dtype, name: str) -> None:
    assert dtype_name(torch.empty(0, dtype=dtype)) == name
