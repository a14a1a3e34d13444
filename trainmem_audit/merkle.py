"""Merkle tree hash of RFC 9162 § 2.1.1 (SHA-256), computed as the leaves arrive, in O(log n) memory."""

from __future__ import annotations

import hashlib

__all__ = ["MerkleTree"]


class MerkleTree:
    """The tree over leaves appended one by one.

    A leaf hashes as SHA-256(0x00 ‖ leaf), a node as SHA-256(0x01 ‖ left ‖ right); the empty tree as SHA-256 of nothing.
    """

    def __init__(self) -> None:
        self._full: list[bytes] = []  # the hashes of the complete subtrees, tallest first: one for each bit of the size
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Add one leaf: its raw bytes, not its hash."""
        node = hashlib.sha256(b"\x00" + leaf).digest()
        size = self.size
        while size & 1:
            node = hashlib.sha256(b"\x01" + self._full.pop() + node).digest()
            size >>= 1
        self._full.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the Merkle tree hash of the leaves so far (32 bytes)."""
        if not self._full:
            return hashlib.sha256().digest()
        node = self._full[-1]
        for left in reversed(self._full[:-1]):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return node
