"""How large a difference is: counted, bounded, and its first element named with the distance in ULP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainmem_audit.digests import dtype_name, tensor_digest
from trainmem_audit.documents.findings import ComponentDifference, Difference, TensorDifference
from trainmem_audit.recording.snapshots import write_snapshot
from trainmem_audit.runs import values_at
from trainmem_audit.sizes import with_sizes
from trainmem_audit.snapshots import SnapshotFile
from trainmem_audit.sources.modules import ModuleSource


class Holder(nn.Module):
    """One buffer."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("x", value)


def dump(folder: Path, name: str, value: torch.Tensor) -> SnapshotFile:
    holder = Holder(value)
    write_snapshot(folder / name, [ModuleSource("model", holder)], 0, [tensor_digest(value)])
    return values_at(folder / name)


def size(folder: Path, a: torch.Tensor, b: torch.Tensor, claimed: torch.Tensor | None = None) -> str:
    digest = tensor_digest(a if claimed is None else claimed).hex()
    tensor = TensorDifference(
        name="x", dtype=dtype_name(a), shape=tuple(a.shape), expected=digest, got=tensor_digest(b).hex()
    )
    component = ComponentDifference(
        component="model.buffers", cause=0, stage="step", expected="", got="", tensors=(tensor,), tensors_known=True
    )
    found = Difference(step=0, stage="step", blame="", explanation="", components=(component,))
    sized = with_sizes(found, dump(folder, "a", a), dump(folder, "b", b))
    return sized.components[0].tensors[0].size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_next_float_is_one_ulp_away(tmp_path: Path, dtype: torch.dtype) -> None:
    a = torch.ones(2, 3, dtype=dtype)
    b = a.clone()
    b[1, 2] = (
        torch.nextafter(b[1, 2].float(), torch.tensor(2.0)) if dtype == torch.float32 else 1 + torch.finfo(dtype).eps
    )
    assert "1 of 6 elements" in size(tmp_path, a, b)
    assert "first at [1, 2]" in size(tmp_path, a, b)
    assert size(tmp_path, a, b).endswith(", 1 ULP")


def test_zeros_of_both_signs_are_no_ulp_apart(tmp_path: Path) -> None:
    assert size(tmp_path, torch.tensor([0.0]), torch.tensor([-0.0])).endswith(": 0 → -0, 0 ULP")


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (torch.tensor(3), torch.tensor(5), "1 of 1 elements, by at most 2 "),
        (torch.tensor([True, False]), torch.tensor([True, True]), "first at [1]: 0 → 1"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]), "2 → nan"),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), "by at most 1 "),
    ],
)
def test_other_kinds_of_values(tmp_path: Path, a: torch.Tensor, b: torch.Tensor, says: str) -> None:
    assert says in size(tmp_path, a, b)


def test_values_that_have_not_the_recorded_digest_say_so(tmp_path: Path) -> None:
    wrong: Any = torch.tensor([9.0])
    assert (
        size(tmp_path, torch.tensor([1.0]), torch.tensor([2.0]), wrong)
        == "the values at hand are others than the log's"
    )


def test_a_tensor_of_several_pieces_is_compared_as_one(tmp_path: Path) -> None:
    a = torch.zeros(3, 2**18)
    b = a.clone()
    b[1, 5], b[2, 7] = 0.5, -2.0
    found = size(tmp_path, a, b)
    assert "2 of 786432 elements, by at most 2 " in found
    assert "first at [1, 5]: 0 → 0.5" in found


def test_a_huge_tensor_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmem_audit.sizes._LARGEST", 2**20)
    monkeypatch.setattr(SnapshotFile, "tensor", lambda *_: pytest.fail("it was read"))
    assert size(tmp_path, torch.zeros(2**19), torch.ones(2**19)).startswith("more than 1 MiB")
