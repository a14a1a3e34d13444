"""The files beside the step log, read in step with it: tensor digests (`tensors.b3`) and consumed indices (`order/`).

Pure over binary streams that may be hostile: every frame is bounded by what the log's inventory says must be in it.
"""

from __future__ import annotations

from typing import BinaryIO

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, joined_component_digest
from trainmem_audit.documents.steplog import Component, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.lineforms import FittingStep
from trainmem_audit.steplog import FRAME, ORDER_FILE, TENSOR_FILE

__all__ = ["OrderFile", "TensorFile", "find_frame", "split_digests"]


class TensorFile:
    """Reads frames in the order of the steps; those of steps that were thinned out are not there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next: tuple[int, int] | None = None
        self._frames = 0
        self._headers: dict[str, tuple[Component, bytes]] = {}
        self._advance()

    def check(self, line: Step | FittingStep, components: dict[str, Component]) -> bool:
        """Recompute the component digests of a step from its frame; return whether there was one.

        Raises
        ------
        FormatError
            If the frame is damaged, its place in the file is wrong, or a component's digest does not follow from its
            tensors' digests.
        """
        if self._next is None or self._next[0] > line.i:
            return False
        step, count = self._next
        state = line.state
        where = f"{TENSOR_FILE}: frame {self._frames}"
        counts = [(name, len(tensors)) for name in sorted(state) if (tensors := components[name].tensors) is not None]
        expected = sum(number for _, number in counts)
        if step != line.i or count != expected:
            raise FormatError(
                "a frame that does not fit the step log",
                where=where,
                expected=f"step {line.i} or later with {expected} digests",
                got=f"step {step} with {count}",
            )
        data = self._file.read(32 * count)
        if len(data) != 32 * count:
            raise FormatError("the file ends within a frame", where=where)
        self._frames += 1
        self._advance()
        offset = 0
        for name, number in counts:
            digests = data[offset : offset + 32 * number]
            offset += 32 * number
            if joined_component_digest(self._header(name, components[name]), digests).hex() != state[name]:
                raise FormatError(
                    "the tensor digests do not give the component digest of the step log",
                    where=where,
                    got=f"step {line.i}, {name}"[:200],
                )
        return True

    def finish(self) -> None:
        """Demand that nothing is left."""
        if self._next is not None:
            where = f"{TENSOR_FILE}: frame {self._frames}"
            raise FormatError("frames of steps that the log does not have", where=where)

    def _header(self, name: str, component: Component) -> bytes:
        """Return the digest of a component's header, made anew when the component has changed."""
        known = self._headers.get(name)
        if known is None or known[0] is not component:
            known = self._headers[name] = (component, blake3(canonical_bytes(component.tensors)).digest())
        return known[1]

    def _advance(self) -> None:
        head = self._file.read(FRAME.size)
        if head and len(head) != FRAME.size:
            raise FormatError("the file ends within a frame", where=f"{TENSOR_FILE}: frame {self._frames}")
        self._next = FRAME.unpack(head) if head else None


class OrderFile:
    """Reads the consumed sample indices step by step."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def check(self, line: Step | FittingStep) -> None:
        """Compare the indices of a step with their digest.

        Raises
        ------
        FormatError
            If they differ or are missing.
        """
        if line.order is None or line.order.index is None:
            return
        hasher = blake3()
        left = 8 * line.order.n
        while left:
            data = self._file.read(min(left, 2**20))
            if not data:
                raise FormatError("the file is too short", where=f"{ORDER_FILE}: byte {self._offset}", got="its end")
            hasher.update(data)
            left -= len(data)
            self._offset += len(data)
        if hasher.hexdigest() != line.order.index:
            raise FormatError(
                "the indices do not have the digest of the step log",
                where=f"{ORDER_FILE}: byte {self._offset - 8 * line.order.n}",
                got=f"step {line.i}",
            )

    def finish(self) -> None:
        """Demand that nothing is left."""
        if self._file.read(1):
            raise FormatError("indices of steps that the log does not have", where=f"{ORDER_FILE}: byte {self._offset}")


def find_frame(file: BinaryIO, step: int) -> bytes | None:
    """Return the digests of the frame of `step`, or `None` where it was thinned out or is not written yet."""
    while len(head := file.read(FRAME.size)) == FRAME.size:
        at, count = FRAME.unpack(head)
        if at > step:
            return None
        left = 32 * count
        if at == step:
            data = file.read(left)
            return data if len(data) == left else None
        while left and (skipped := len(file.read(min(left, 2**20)))):
            left -= skipped
    return None


def split_digests(data: bytes, counts: list[tuple[str, int]]) -> dict[str, list[bytes]]:
    """Cut the digests of a frame into those of each component."""
    found: dict[str, list[bytes]] = {}
    offset = 0
    for name, count in counts:
        found[name] = [data[at : at + 32] for at in range(offset, offset + 32 * count, 32)]
        offset += 32 * count
    return found
