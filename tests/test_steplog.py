"""The step log: what is written reads back, and no line can be changed, moved, repeated, removed or slipped in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.logs import FakeRun, begin, component, digest, read_all, written
from trainmem_audit.canonical import CHAIN_START, chain_digest, line_bytes
from trainmem_audit.documents.steplog import LINE_TYPES, Begin, End, Epoch, Inventory, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.steplog import MAX_LINE, LogBuilder, LogReader, iter_lines

LINES = FakeRun().lines()
PLACES = range(len(LINES))


def refused(lines: list[bytes]) -> FormatError:
    """Read the lines, which must be refused, and return the error."""
    with pytest.raises(FormatError) as caught:
        read_all(lines)
    return caught.value


def relinked(lines: list[bytes]) -> list[bytes]:
    """Return the lines with their chain made good, as an attacker would who knows the format."""
    head, found = CHAIN_START, []
    for line in lines:
        body = b"{" + line[76:]
        head = chain_digest(head, body)
        found.append(b'{"chain":"' + head.hex().encode() + b'",' + body[1:])
    return found


def test_what_the_builder_writes_the_reader_reads() -> None:
    builder, members = LogBuilder(), list(FakeRun().members())
    lines = [builder.line(line) for line in members]
    reader = LogReader()
    kinds = [type(reader.read(line)) for line in lines]
    assert kinds == [Begin, *[Inventory] * 6, Epoch, *[Step] * 4, End]
    assert reader.finish() == builder.finish()


def test_the_summary_says_what_the_lines_say() -> None:
    log = read_all(LINES).finish()
    assert (log.lines, log.steps, log.indexed_samples) == (13, 4, 12)
    assert log.begin is not None and log.end is not None
    assert log.bytes == sum(len(line) + 1 for line in LINES)
    assert log.chain_head.encode() in LINES[-1]
    assert set(log.profiles) == {"import", "firstStep", "end"}
    assert {"model.params", "optimizer.momentum"} <= log.components.keys()


def test_the_latest_header_of_a_component_counts_and_the_first_state_of_a_stream() -> None:
    lines = written(
        [
            begin(),
            {"t": "inventory", "i": 0, "components": {"a": component(tensors=[["w", "float32", [1]]])}},
            {"t": "inventory", "i": 0, "components": {"a": component(tensors=[["w", "float32", [2]]])}},
            {"t": "inventory", "i": 0, "streams": {"python": {**begin()["streams"]["python"], "state": "BBBB"}}},
        ]
    )
    log = read_all(lines).finish()
    assert log.components["a"].tensors == (("w", "float32", (2,)),)
    assert log.streams["python"].state == "AAAA"


@pytest.mark.parametrize("kind", sorted(LINE_TYPES))
def test_every_member_of_a_line_sorts_after_its_chain(kind: str) -> None:
    """`split_line` cuts the chain off the front."""
    names = [field.alias or name for name, field in LINE_TYPES[kind].model_fields.items()]
    assert min(names) == "chain"
    assert line_bytes(dict.fromkeys(names, 0)).startswith(b'{"chain":')


# Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", PLACES)
def test_a_flipped_byte_is_found_in_its_line(at: int) -> None:
    for place in range(0, len(LINES[at]), 7):
        flipped = bytearray(LINES[at])
        flipped[place] ^= 1
        error = refused([*LINES[:at], bytes(flipped), *LINES[at + 1 :]])
        assert error.where == f"steps.jsonl:{at + 1}", place


@pytest.mark.parametrize("at", PLACES[:-1])
def test_a_removed_line_is_found_where_it_was(at: int) -> None:
    assert refused([*LINES[:at], *LINES[at + 1 :]]).where == f"steps.jsonl:{at + 1}"


@pytest.mark.parametrize("at", PLACES)
def test_a_repeated_line_is_found(at: int) -> None:
    assert refused([*LINES[: at + 1], *LINES[at:]]).where == f"steps.jsonl:{at + 2}"


def test_any_two_swapped_lines_are_found_at_the_first_of_them() -> None:
    for first, second in itertools.combinations(PLACES, 2):
        swapped = list(LINES)
        swapped[first], swapped[second] = LINES[second], LINES[first]
        assert refused(swapped).where == f"steps.jsonl:{first + 1}"


def test_a_line_of_another_run_is_found() -> None:
    other = FakeRun()
    other.nonce = "1" * 32
    for at, line in enumerate(other.lines()[1:], 1):
        assert refused([*LINES[:at], line, *LINES[at + 1 :]]).where == f"steps.jsonl:{at + 1}"


@pytest.mark.parametrize("count", PLACES)
def test_every_prefix_is_a_valid_log_without_an_end(count: int) -> None:
    log = read_all(LINES[:count]).finish()
    assert (log.lines, log.end) == (count, None)


# What a good chain does not excuse --------------------------------------------------------------------------------


def members(*kinds: str) -> list[dict[str, Any]]:
    """Return the lines of a run whose types are among `kinds`."""
    return [line for line in FakeRun().members() if line["t"] in kinds]


def test_a_log_begins_with_begin() -> None:
    assert refused(relinked(LINES[1:])).where == "steps.jsonl:1"


def test_a_log_begins_once() -> None:
    assert refused(relinked([LINES[0], LINES[0]])).where == "steps.jsonl:2"


@pytest.mark.parametrize("at", PLACES)
def test_nothing_follows_the_end(at: int) -> None:
    assert refused(relinked([*LINES, LINES[at]])).where == f"steps.jsonl:{len(LINES) + 1}"


@pytest.mark.parametrize("at", [8, 9, 10, 11])
def test_steps_are_contiguous_though_the_chain_is_good(at: int) -> None:
    error = refused(relinked([*LINES[:at], *LINES[at + 1 :]]))
    assert (error.message, error.where) == ("the steps are not contiguous", f"steps.jsonl:{at + 1}")
    error = refused(relinked([*LINES[: at + 1], *LINES[at:]]))
    assert (error.message, error.where) == ("the steps are not contiguous", f"steps.jsonl:{at + 2}")


@pytest.mark.parametrize(
    "line",
    [
        {"t": "step", "i": 0, "state": {"model.params": digest()}, "rng": {}},
        {"t": "step", "i": 0, "state": {}, "rng": {"cuda:7": digest()}},
        {"t": "inventory", "i": 0, "state": {"model.params": digest()}},
        {"t": "epoch", "i": 0, "epoch": 0, "loader": "loader", "rng": {}},
        {"t": "epoch", "i": 0, "epoch": 0, "loader": "known", "rng": {"cuda:7": digest()}},
        {"t": "end", "i": 0, "finished": "2026-11-23T12:01:00Z", "outcome": "finished", "exitCode": 0,
         "state": {"model.params": digest()}, "rng": {}},
    ],
    ids=lambda line: line["t"],
)  # fmt: skip
def test_a_name_must_have_been_introduced(line: dict[str, Any]) -> None:
    loader = {"kind": "DataLoader", "dataset": "D", "sampler": "S", "settings": {}}
    lines = written([begin(), {"t": "inventory", "i": 0, "loaders": {"known": loader}}, line])
    error = refused(lines)
    assert (error.message, error.where) == ("a name that no inventory line introduced", "steps.jsonl:3")


def test_the_values_of_a_component_must_have_its_digest() -> None:
    run = FakeRun()
    lines = list(run.members())
    lines[8]["values"] = {"optimizer.hyper": run.hyper(0) | {"momentum": 1}}
    assert refused(written(lines)).message == "the values of a component do not have its digest"


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": "finding"},
        {"t": None},
        {"t": "step", "i": -1},
        {"t": "step", "i": "0"},
        {"t": "step", "i": True},
        {"t": "step", "i": 0, "state": {"a": "DEADBEEF"}, "rng": {}},
        {"t": "step", "i": 0, "state": {}, "rng": {}, "unknown": 1},
        {"t": "step", "i": 0, "state": {}, "rng": {}, "scalars": {"loss": ["1.0"]}},
        {"t": "step", "i": 0, "state": {"": "0" * 64}, "rng": {}},
        {"t": "step", "i": 0, "state": {}, "rng": {}, "values": {"a": {"b": 2**53}}},
    ],
    ids=str,
)
def test_a_line_that_could_not_be_read_again_is_never_written(wrong: dict[str, Any]) -> None:
    builder = LogBuilder()
    builder.line(begin())
    with pytest.raises(FormatError):
        builder.line(wrong)
    assert builder.finish().lines == 1


# Files of lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_lines_are_cut_alike_however_the_chunks_fall(size: int) -> None:
    data = b"a\nbb\n\nccc\ntorn"
    chunks = (data[at : at + size] for at in range(0, len(data), size))
    assert list(iter_lines(chunks, "log")) == [
        (b"a", True),
        (b"bb", True),
        (b"", True),
        (b"ccc", True),
        (b"torn", False),
    ]


def test_an_empty_file_has_no_lines() -> None:
    assert list(iter_lines([], "log")) == []


def test_a_line_without_end_is_not_read_for_ever() -> None:
    with pytest.raises(FormatError) as caught:
        list(iter_lines(itertools.chain([b"ok\n"], itertools.repeat(b"x" * 2**20)), "log"))
    assert caught.value.where == "log:2"
    assert str(MAX_LINE) in caught.value.expected
