"""Whether a component has the value that an intervention says, where its digest can be computed from that alone.

Zeros, and the statistics of a BatchNorm that has seen nothing, have the same bytes whoever writes them; an average
that was reset has the digest of the weights, where both have the same tensors. What depends on values (`scale`,
`noise`) is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, component_digest
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.steplog import Component

__all__ = ["ValueState", "value_of"]

ValueState = Literal["as-said", "other", "unknown"]
_SIZES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
_ONES: Final = {
    "float64": struct.pack("<d", 1.0),
    "float32": struct.pack("<f", 1.0),
    "float16": struct.pack("<e", 1.0),
    "bfloat16": b"\x80\x3f",
}
MOST_BYTES: Final = 2**30
"""How long a component is for which digests are computed."""
_CHUNK: Final = 2**20


def value_of(
    intervention: Intervention, after: Mapping[str, str], components: Mapping[str, Component], component: str
) -> ValueState:
    """Say whether `component` has the value that an intervention gives it.

    Parameters
    ----------
    after:
        The digests of all components right after it.
    components:
        Their headers.
    """
    digest, header = after.get(component), components.get(component)
    name = component.rpartition(".")[2]
    if intervention.primitive not in ("reset", "zero"):
        return "unknown"
    if digest is None:  # a slot as an optimizer has it before its first step: there is none
        return "as-said" if intervention.primitive == "reset" and component.startswith("optimizer") else "unknown"
    if header is None or header.tensors is None:
        return "unknown"
    fresh = _told(digest, _fresh(header, batchnorm=name == "batchnorm" and intervention.primitive == "reset"))
    if intervention.primitive == "reset" and component.startswith("teacher"):
        return "as-said" if fresh == "as-said" else _student(digest, header, after, components)
    if intervention.primitive == "zero" or component.startswith("optimizer") or name == "batchnorm":
        return fresh
    return "unknown"


def _told(digest: str, expected: str | None) -> ValueState:
    if expected is None:
        return "unknown"
    return "as-said" if digest == expected else "other"


def _student(
    digest: str, header: Component, after: Mapping[str, str], components: Mapping[str, Component]
) -> ValueState:
    """An average is the student again: equal digests, where the two have the same names, dtypes and shapes."""
    alike = [
        name
        for name, other in components.items()
        if name.startswith("model") and other.tensors == header.tensors and name in after
    ]
    if not alike:
        return "unknown"
    return "as-said" if digest in {after[name] for name in alike} else "other"


def _fresh(header: Component, batchnorm: bool) -> str | None:
    """Return the digest of zeros, for BatchNorm with variances of one; `None` where it cannot be computed here."""
    tensors = header.tensors or ()
    sizes = [_length(dtype, shape) for _, dtype, shape in tensors]
    if any(size is None for size in sizes) or sum(size or 0 for size in sizes) > MOST_BYTES:
        return None
    digests = []
    for name, dtype, shape in tensors:
        variance = batchnorm and name.rpartition(".")[2] == "running_var"
        pattern = _ONES.get(dtype) if variance else bytes(_SIZES[dtype])
        if pattern is None:
            return None
        digests.append(_repeated(pattern, _length(dtype, shape) or 0))
    return component_digest(canonical_bytes(header.tensors), digests).hex()


def _length(dtype: str, shape: tuple[int, ...]) -> int | None:
    if dtype not in _SIZES:
        return None
    length = _SIZES[dtype]
    for extent in shape:
        length = min(length * extent, 2**63)
    return length


def _repeated(pattern: bytes, length: int) -> bytes:
    hasher = blake3()
    for piece in _pieces(pattern, length):
        hasher.update(piece)
    return hasher.digest()


def _pieces(pattern: bytes, length: int) -> Iterator[bytes]:
    whole = pattern * (min(length, _CHUNK) // len(pattern) or 1)
    while length >= len(whole):
        yield whole
        length -= len(whole)
    yield whole[:length]
