"""Canonical bytes: the fast way is RFC 8785, floats go through text exactly, and hostile JSON is refused by name."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from trainmem_audit.canonical import (
    CHAIN_START,
    canonical_bytes,
    chain_digest,
    component_digest,
    content_digest,
    first_changed_line,
    float_text,
    line_bytes,
    line_marks,
    loads_strict,
    parse_float_text,
    split_line,
    value_digest,
)
from trainmem_audit.errors import FormatError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
DOUBLES = st.binary(min_size=8, max_size=8).map(lambda bits: struct.unpack("<d", bits)[0])
CHAIN = "0" * 64


def line(rest: str) -> bytes:
    return f'{{"chain":"{CHAIN}",{rest}}}'.encode()


@given(TREES)
@example({"\ue000": 1, "\U0001f600": 2, "z": 3})  # UTF-16 order: the astral key comes before U+E000
@example({"\x7f": "\u2028\u2029\x00\x1f", "\\": '"', "é": "/"})
def test_line_bytes_are_rfc_8785(value: Any) -> None:
    assert line_bytes(value) == canonical_bytes(value) == rfc8785.dumps(value)


@given(TREES)
def test_canonical_bytes_read_back_as_the_same_value(value: Any) -> None:
    assert loads_strict(canonical_bytes(value), "here") == value


@pytest.mark.parametrize("value", [1.0, {"a": [0, {"b": -0.0}]}, math.nan, (math.inf,), 2**53, -(2**53), "\ud800"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        canonical_bytes(value)


def test_a_float_is_refused_by_its_place() -> None:
    with pytest.raises(FormatError) as caught:
        canonical_bytes({"a": [0, {"b": 0.5}]})
    assert caught.value.where == "$.a[1].b"


@pytest.mark.parametrize("make", [canonical_bytes, line_bytes])
def test_nesting_too_deep_is_a_format_error(make: Any) -> None:
    value: Any = "é"
    for _ in range(100_000):
        value = [value]
    with pytest.raises(FormatError, match="deep"):
        make(value)


# Floats -----------------------------------------------------------------------------------------------------------


@given(DOUBLES)
@example(-0.0)
@example(5e-324)
@example(1.7976931348623157e308)
@example(math.nan)
@example(-math.inf)
def test_every_double_comes_back_from_its_text(value: float) -> None:
    back = parse_float_text(float_text(value))
    if math.isnan(value):
        assert math.isnan(back)
    else:
        assert struct.pack("<d", back) == struct.pack("<d", value)


@pytest.mark.parametrize(
    "text",
    ["", "1.0", "NaN", "Infinity", "+inf", "0x1p0", "0X1.0000000000000p+0", "0x1.0000000000000p+0 ", "0x1.0p+0",
     "0x1.0000000000000p+9999", "0x1.000000000000Ap+0", "1e3", "0x1.0000000000000p+0\n", "٠x1.0000000000000p+0"],
)  # fmt: skip
def test_another_spelling_of_a_float_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_float_text(text)


# Hostile JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nul", b"{'a':1}", b'{"a":1,}', b"[1] 2", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf{}", b"1.0", b"1e3",
     b"NaN", b"-Infinity", b"9007199254740992", b"-9007199254740992", b"1" * 5000, b'{"a":1,"a":1}',
     b'[{"b":{"a":1,"a":2}}]', b'"\x01"', b"[" * 200_000, b'{"a":' * 200_000],
    ids=lambda data: repr(data[:24]),
)  # fmt: skip
def test_hostile_json_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        loads_strict(data, "run.json")
    assert caught.value.where == "run.json"


@pytest.mark.parametrize(
    "spelling",
    [
        line('"t": "x"'),
        line('"t":"x"') + b" ",
        line('"t":"\\u0078"'),
        line('"t":"\\/"'),
        line('"u":1,"t":"x"'),
        line('"t":"x","t":"x"'),
        line('"t":1.0'),
        line('"t":1e2'),
        line('"t":-0'),
        line('"t":NaN'),
        line('"t":9007199254740992'),
        line('"t":"\xff"').replace("ÿ".encode(), b"\xff"),
        line('"a":"sorts before chain"'),
        line('"\U0001f600":1,"\ue000":2').replace(b"\xf0\x9f\x98\x80", b"\xee\x80\x80", 1),
        b'{"chain":"' + b"0" * 63 + b'","t":"x"}',
        b'{"chain":"' + b"0" * 64 + b'"}',
        b'{"t":"x"}',
        b"[]",
        b"null",
        b"{}",
        b"",
        b"[" * 200_000,
        "{}".encode("utf-16"),
    ],
    ids=lambda data: repr(data[76:110] or data[:30]),
)
def test_a_line_in_another_spelling_is_refused_by_its_place(spelling: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        split_line(spelling, "steps.jsonl:7")
    assert caught.value.where == "steps.jsonl:7"


@given(st.dictionaries(TEXT.filter(lambda name: rfc8785.dumps(name) > b'"chain"'), LEAVES, min_size=1, max_size=4))
def test_the_body_of_a_line_is_the_line_without_its_chain(members: dict[str, Any]) -> None:
    members.pop("chain", None)
    spelling = line_bytes({"chain": CHAIN, **members})
    if not spelling.startswith(b'{"chain"'):  # by UTF-16 units another name comes first
        return
    parsed, body = split_line(spelling, "here")
    assert parsed == {"chain": CHAIN, **members}
    assert json.loads(body) == members
    assert body == line_bytes(members)


# Digests ----------------------------------------------------------------------------------------------------------


def test_no_digest_can_pass_for_another() -> None:
    data = b'{"a":1}'
    made = {chain_digest(b"", data), component_digest(data, []), content_digest([data]), value_digest({"a": 1})}
    assert len(made) == 4


def test_each_link_depends_on_the_one_before() -> None:
    assert chain_digest(CHAIN_START, b"{}") != chain_digest(chain_digest(CHAIN_START, b"{}"), b"{}")


# Line marks -------------------------------------------------------------------------------------------------------

CODE = b"import a\n\nx = 1\r\ny = 2"


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        (b"Import a\n\nx = 1\r\ny = 2", 1),
        (b"import a\nx = 1\r\ny = 2", 2),
        (b"import a\n\nx = 1\ny = 2", 3),
        (b"import a\n\nx = 1\r\ny = 2\n", 4),
        (b"import a\n\nx = 1\r\n", 4),
        (b"import a\n\nx = 1\r\ny = 2\nz", 4),
        (b"", 1),
        (b"\nimport a\nx = 1\r\ny = 2", 1),
    ],
)
def test_line_marks_name_the_first_changed_line(changed: bytes, number: int) -> None:
    assert first_changed_line(changed, line_marks(CODE)) == number


@pytest.mark.parametrize("marks", ["", "A", "AAAAA", "====", "!!!!"])
def test_marks_that_say_nothing_are_no_error(marks: str) -> None:
    assert first_changed_line(CODE, marks) == 1
