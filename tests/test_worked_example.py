"""The worked example of `schema/README.md`, recomputed by someone who has read the page and knows nothing of us.

Everything down to the last test uses the standard library, `blake3`, `rfc8785` and `cryptography` only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import rfc8785
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAGE = (Path(__file__).resolve().parent.parent / "schema" / "README.md").read_text(encoding="utf-8")
CHAIN = "trainmem-audit 2026-11 step log chain v1"
COMPONENT = "trainmem-audit 2026-11 component digest v1"
VALUE = "trainmem-audit 2026-11 value digest v1"


def block(language: str) -> str:
    """Return the one code block of that language on the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


LINES = block("jsonl").split("\n")
PAYLOAD = block("text").encode()
GIVEN: dict[str, Any] = json.loads(block("json"))
STATEMENT: dict[str, Any] = json.loads(PAYLOAD)


def derive(context: str, *parts: bytes) -> str:
    return blake3(b"".join(parts), derive_key_context=context).hexdigest()


def test_every_json_is_canonical() -> None:
    for text in (*map(str.encode, LINES), PAYLOAD, GIVEN["header"].encode(), GIVEN["valueBytes"].encode()):
        assert rfc8785.dumps(json.loads(text)) == text


def test_the_tensor_after_the_step() -> None:
    w, v = [1.0, -2.0], [0.0, 0.0]
    v = [0.5 * old + gradient for old, gradient in zip(v, w, strict=True)]
    w = [old - 0.5 * push for old, push in zip(w, v, strict=True)]
    assert struct.pack("<2f", *w).hex() == GIVEN["tensorBytes"]
    assert blake3(struct.pack("<2f", *w)).hexdigest() == GIVEN["tensorDigest"]


def test_component_stream_and_values() -> None:
    header = GIVEN["header"].encode()
    assert blake3(header).hexdigest() == GIVEN["headerDigest"]
    parts = (bytes.fromhex(GIVEN["headerDigest"]), bytes.fromhex(GIVEN["tensorDigest"]))
    assert derive(COMPONENT, *parts) == GIVEN["componentDigest"]
    assert blake3(base64.b64decode(GIVEN["streamState"])).hexdigest() == GIVEN["streamDigest"]
    assert derive(VALUE, GIVEN["valueBytes"].encode()) == GIVEN["valueDigest"]


def test_the_lines_say_it() -> None:
    begin, inventory, step, end = map(json.loads, LINES)
    assert [line["t"] for line in (begin, inventory, step, end)] == ["begin", "inventory", "step", "end"]
    assert begin["streams"]["numpy"]["state"] == GIVEN["streamState"]
    assert inventory["components"]["model.params"]["tensors"] == json.loads(GIVEN["header"])
    for line in (step, end):
        assert line["state"] == {"model.params": GIVEN["componentDigest"]}
        assert line["rng"] == {"numpy": GIVEN["streamDigest"]}
    assert (step["i"], end["i"]) == (0, 1)


def test_the_chain() -> None:
    link = bytes(32)
    for line in LINES:
        members = json.loads(line)
        chain = members.pop("chain")
        body = rfc8785.dumps(members)
        assert line == '{"chain":"' + chain + '",' + body.decode()[1:]
        link = blake3(link + body, derive_key_context=CHAIN).digest()
        assert link.hex() == chain


def tree(leaves: list[bytes]) -> bytes:
    """RFC 9162 § 2.1.1, by the letter."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree(leaves[:k]) + tree(leaves[k:])).digest()


def test_the_tree() -> None:
    leaves = [line.encode() for line in LINES]
    assert [tree([leaf]).hex() for leaf in leaves] == GIVEN["leafHashes"]
    assert [tree(leaves[:count]).hex() for count in (1, 2, 3, 4)] == GIVEN["merkleRoots"]


def test_the_statement() -> None:
    log = "".join(line + "\n" for line in LINES).encode()
    assert hashlib.sha256(log).hexdigest() == GIVEN["logSha256"]
    assert STATEMENT["subject"] == [{"name": "steps.jsonl", "digest": {"sha256": GIVEN["logSha256"]}}]
    (entry,) = STATEMENT["predicate"]["stepLogs"]
    assert entry["chainHead"] == json.loads(LINES[-1])["chain"]
    assert entry["merkleRoot"] == GIVEN["merkleRoots"][-1]
    assert (entry["count"], entry["steps"], entry["complete"]) == (4, 1, True)
    assert STATEMENT["predicate"]["run"]["id"] == json.loads(LINES[0])["nonce"]


def signed_bytes() -> bytes:
    kind = GIVEN["payloadType"].encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(PAYLOAD), PAYLOAD)


def test_the_signature() -> None:
    assert signed_bytes().decode().startswith(GIVEN["paeBegins"])
    assert hashlib.sha256(signed_bytes()).hexdigest() == GIVEN["paeSha256"]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(GIVEN["seed"]))
    assert base64.b64encode(key.sign(signed_bytes())).decode() == GIVEN["signature"]
    kind, blob = GIVEN["signer.pub"].split(" ")
    raw = base64.b64decode(blob)
    assert kind == "ssh-ed25519"
    assert raw == b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + key.public_key().public_bytes_raw()
    Ed25519PublicKey.from_public_bytes(raw[-32:]).verify(base64.b64decode(GIVEN["signature"]), signed_bytes())
    fingerprint = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    assert GIVEN["keyid"] == f"SHA256:{fingerprint}"


def run_json() -> bytes:
    envelope = {
        "payload": base64.b64encode(PAYLOAD).decode(),
        "payloadType": GIVEN["payloadType"],
        "signatures": [{"keyid": GIVEN["keyid"], "sig": GIVEN["signature"]}],
    }
    return rfc8785.dumps(envelope) + b"\n"


def test_the_envelope() -> None:
    assert hashlib.sha256(run_json()).hexdigest() == GIVEN["runJsonSha256"]


def test_the_page_and_the_vector_are_the_same_run() -> None:
    folder = Path(__file__).resolve().parent.parent / "schema/draft/vectors/runs/valid/worked-example"
    assert (folder / "run.json").read_bytes() == run_json()
    assert (folder / "steps.jsonl").read_text() == "".join(line + "\n" for line in LINES)
    assert (folder / "signer.pub").read_text() == GIVEN["signer.pub"] + "\n"


def test_what_was_computed_by_hand_verifies() -> None:
    from tests.logs import MemoryReader
    from tests.tools import examined

    files = {
        "steps.jsonl": "".join(line + "\n" for line in LINES).encode(),
        "run.json": run_json(),
        "signer.pub": (GIVEN["signer.pub"] + "\n").encode(),
    }
    found = examined(MemoryReader(files)).verification
    assert (found.bytes, found.record, found.findings, found.exit_code) == ("intact", "consistent", (), 0)
