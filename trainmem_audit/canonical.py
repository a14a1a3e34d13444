"""The only place that makes bytes to be hashed or signed.

Canonical JSON is RFC 8785. Our documents hold no JSON floats: a float is written as a C99 hex string (`float_text`),
because RFC 8785 refuses NaN and the infinities and writes -0.0 as 0. Digests are BLAKE3-256; the chain, the component
digests and the value digests use different derive-key contexts, so that none can pass for another.

Not here: what the bytes mean (`documents`), and where tensors get their bytes from (`digests`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

import rfc8785
from blake3 import blake3

from trainmem_audit.errors import FormatError

__all__ = [
    "CHAIN_START",
    "canonical_bytes",
    "canonical_value_digest",
    "chain_digest",
    "component_digest",
    "content_digest",
    "first_changed_line",
    "float_text",
    "joined_component_digest",
    "line_body",
    "line_bytes",
    "line_chain",
    "line_marks",
    "loads_strict",
    "parse_float_text",
    "sha256_hex",
    "split_line",
    "value_digest",
]

CHAIN_CONTEXT: Final = "trainmem-audit 2026-11 step log chain v1"
STUDY_CHAIN_CONTEXT: Final = "trainmem-audit 2026-11 study log chain v1"
COMPONENT_CONTEXT: Final = "trainmem-audit 2026-11 component digest v1"
VALUE_CONTEXT: Final = "trainmem-audit 2026-11 value digest v1"
CONTENT_CONTEXT: Final = "trainmem-audit 2026-11 batch content digest v1"
CHAIN_START: Final = bytes(32)

_CHAIN_PREFIX: Final = b'{"chain":"'
_CHAIN_END: Final = len(_CHAIN_PREFIX) + 64
_HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]{13}p[+-][0-9]{1,4}|0x0\.0p\+0|-0x0\.0p\+0")
MOST_VALUES: Final = 2**19
"""The most values that one JSON text of ours may hold: the tensors of a component take about seven each."""
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def canonical_bytes(value: Any) -> bytes:
    """Return the RFC 8785 form of `value` (UTF-8, no trailing line feed).

    Raises
    ------
    FormatError
        If `value` holds a float (ours are hex strings), an integer beyond ±(2^53 - 1), a lone surrogate, or is nested
        too deep.
    """
    try:
        _refuse_floats(value, "$")
        return rfc8785.dumps(value)
    except RecursionError:
        raise _too_deep("") from None
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise FormatError(
            "the value has no canonical JSON form (RFC 8785)", got=str(error), expected="I-JSON (RFC 7493)"
        ) from None


def _refuse_floats(value: Any, path: str) -> None:
    if isinstance(value, float):
        raise FormatError("a JSON float in a document", where=path, expected="a C99 hex string", got=repr(value))
    if isinstance(value, dict):
        for key, member in value.items():
            _refuse_floats(member, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            _refuse_floats(member, f"{path}[{index}]")


def line_bytes(value: Any) -> bytes:
    """Return the RFC 8785 form of a log line or of a part of one, at the speed of the C encoder where that is the same.

    For text in ASCII without floats, `json.dumps` with sorted keys and no spaces *is* RFC 8785 (§ 3.2.2, § 3.2.3: key
    order by UTF-16 units equals order by code points below U+10000); everything else goes the slow way. The caller
    passes no floats: lines are built from the models in `documents.steplog`.
    """
    try:
        text = _encode(value)
    except RecursionError:
        raise _too_deep("") from None
    return text.encode() if text.isascii() else canonical_bytes(value)


def _too_deep(where: str) -> FormatError:
    return FormatError("JSON nested too deep", where=where)


def loads_strict(data: bytes, where: str) -> Any:
    """Parse JSON that may be hostile: no floats, no NaN, no integer beyond ±(2^53 - 1), no duplicate key, UTF-8 only.

    Raises
    ------
    FormatError
        Naming `where`, for anything else, nesting too deep for the parser and more than `MOST_VALUES` included.
    """
    _refuse_many(data, where)
    try:
        return json.loads(
            data.decode("utf-8"),
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_bounded_int,
            object_pairs_hook=_unique_keys,
        )
    except FormatError as error:
        error.where = where
        raise
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", where=where, got=f"byte {error.start}") from None
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise FormatError("not JSON", where=where, got=str(error)) from None


def _refuse_many(data: bytes, where: str) -> None:
    """Refuse a text that would take far more memory than it is long; punctuation within strings counts too."""
    count = data.count(b",") + data.count(b"[") + data.count(b"{")
    if count > MOST_VALUES:
        raise FormatError("JSON with too many values", where=where, expected=f"at most {MOST_VALUES}", got=str(count))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("a member occurs twice in a JSON object", expected="unique keys")
    return members


def _no_float(text: str) -> Any:
    raise FormatError("a JSON float", expected="an integer or a C99 hex string", got=text[:40])


def _bounded_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > 2**53 - 1:
        raise FormatError("an integer beyond 2^53 - 1", expected="a string", got=text[:40])
    return int(text)


def split_line(line: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    """Parse one step-log line and return its members and its *body*: the canonical line without `chain`.

    `chain` sorts before every other member that a line can have, so the body is a splice of the line.

    Raises
    ------
    FormatError
        If the line is not its own canonical form (this catches duplicate keys, spaces, other escapes and floats), or
        does not begin with a chain digest.
    """
    _refuse_many(line, where)
    try:
        members = json.loads(line, parse_float=_no_float, parse_constant=_no_float, parse_int=_bounded_int)
        canonical = isinstance(members, dict) and line_bytes(members) == line
    except FormatError as error:
        error.where = where
        raise
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # UnicodeDecodeError included
        raise FormatError("the line is not JSON", where=where, got=str(error)[:120]) from None
    if not canonical:
        raise FormatError(
            "the line is not its own canonical form", where=where, expected="RFC 8785", got="another spelling"
        )
    if not (line.startswith(_CHAIN_PREFIX) and line[_CHAIN_END : _CHAIN_END + 2] == b'",'):
        raise FormatError("the line does not begin with a chain digest", where=where)
    return members, line_body(line)


def line_body(line: bytes) -> bytes:
    """Return the *body* of a canonical line, which begins with its chain digest: the line without `chain`."""
    return b"{" + line[_CHAIN_END + 2 :]


def line_chain(line: bytes) -> bytes:
    """Return the chain digest with which a canonical line begins, in hex."""
    return line[len(_CHAIN_PREFIX) : _CHAIN_END]


def chain_digest(previous: bytes, body: bytes, context: str = CHAIN_CONTEXT) -> bytes:
    """Return the next link: BLAKE3 derive-key of `previous` (32 raw bytes, zeros at first) followed by the body."""
    return blake3(previous + body, derive_key_context=context).digest()


def component_digest(header: bytes, tensor_digests: Iterable[bytes]) -> bytes:
    """Return a component's digest: derive-key BLAKE3 of (digest of its canonical header, then its tensors' digests)."""
    return joined_component_digest(blake3(header).digest(), b"".join(tensor_digests))


def joined_component_digest(header_digest: bytes, tensor_digests: bytes) -> bytes:
    """Return the `component_digest` of a header that was hashed before and of tensor digests that lie together."""
    return blake3(header_digest + tensor_digests, derive_key_context=COMPONENT_CONTEXT).digest()


def value_digest(value: Any) -> bytes:
    """Return the digest of a component that is values and no tensors (hyper-parameters, a scheduler's counters)."""
    return canonical_value_digest(line_bytes(value))


def canonical_value_digest(data: bytes) -> bytes:
    """Return the `value_digest` of the values whose canonical form is `data`."""
    return blake3(data, derive_key_context=VALUE_CONTEXT).digest()


def content_digest(parts: Iterable[bytes]) -> bytes:
    """Return the digest of a batch's content from the digests and headers of its leaves, in order."""
    return blake3(b"".join(parts), derive_key_context=CONTENT_CONTEXT).digest()


def sha256_hex(data: bytes) -> str:
    """Return the lower-case hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def line_marks(data: bytes) -> str:
    """Return four bytes of BLAKE3 for each line of a text (with its LF), in base64.

    They tell *where* a file was changed; that it was changed its full digest tells.
    """
    return base64.b64encode(b"".join(blake3(line).digest()[:4] for line in data.splitlines(keepends=True))).decode()


def first_changed_line(data: bytes, marks: str) -> int:
    """Return the number (from 1) of the first line of `data` that does not have its mark; marks may be nonsense."""
    try:
        expected = base64.b64decode(marks)
    except ValueError:
        expected = b""
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if blake3(line).digest()[:4] != expected[4 * number : 4 * number + 4]:
            return number + 1
    return len(lines) + 1


def float_text(value: float) -> str:
    """Return a float as C99 hex (``0x1.999999999999ap-4``), ``nan``, ``inf`` or ``-inf``; exact, and keeps -0.0."""
    if math.isnan(value):
        return "nan"
    return value.hex()  # 'inf' and '-inf' come out of float.hex as they are


def parse_float_text(text: str) -> float:
    """Return the float that `float_text` wrote.

    Raises
    ------
    FormatError
        If `text` is none of its forms.
    """
    if text in ("nan", "inf", "-inf"):
        return float(text)
    if not _HEX_FLOAT.fullmatch(text):
        raise FormatError("not a float", expected="C99 hex, nan, inf or -inf", got=text[:40])
    try:
        return float.fromhex(text)
    except (OverflowError, ValueError):
        raise FormatError("not a float of 64 bits", got=text[:40]) from None
