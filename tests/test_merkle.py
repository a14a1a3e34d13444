"""The streaming tree gives the Merkle tree hash that RFC 9162 § 2.1.1 defines."""

from __future__ import annotations

import hashlib

import pytest

from trainmem_audit.merkle import MerkleTree


def defined(leaves: list[bytes]) -> bytes:
    """Return MTH(D[n]) as RFC 9162 § 2.1.1 writes it."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + defined(leaves[:split]) + defined(leaves[split:])).digest()


def root(leaves: list[bytes]) -> bytes:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    assert tree.size == len(leaves)
    return tree.root()


@pytest.mark.parametrize("count", range(71))
def test_the_root_is_the_one_of_the_definition(count: int) -> None:
    leaves = [bytes([n]) * n for n in range(count)]
    assert root(leaves) == defined(leaves)


def test_asking_for_the_root_changes_nothing() -> None:
    leaves = [b"%d" % n for n in range(20)]
    tree = MerkleTree()
    for count, leaf in enumerate(leaves):
        assert tree.root() == tree.root() == defined(leaves[:count])
        tree.append(leaf)


VECTORS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
"""Roots of the reference leaves of certificate-transparency-go (`merkle_tree_test.go`, `merkle/testonly`)."""

LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    bytes(range(0x60, 0x70)),
]


@pytest.mark.parametrize("count", range(9))
def test_the_known_vectors_of_certificate_transparency(count: int) -> None:
    assert root(LEAVES[:count]).hex() == VECTORS[count]


def test_a_node_cannot_pass_for_a_leaf() -> None:
    inner = hashlib.sha256(b"\x00a").digest() + hashlib.sha256(b"\x00b").digest()
    assert root([b"a", b"b"]) != root([inner])
