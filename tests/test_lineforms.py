"""A step line that fits the form of one before it is checked without parsing; it must make no difference.

Two readers see the same bytes: one as it is, and one that parses every line. They agree on every line: the same model,
or the same error in every word; and on the summary. The lines are those of runs of several kinds, then damaged in every
way that could slip through a pattern, with the chain made good after it, as an attacker would.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logs import FakeRun, begin, component, digest, stream, written
from trainmem_audit.canonical import CHAIN_START, canonical_bytes, chain_digest, line_bytes, value_digest
from trainmem_audit.documents.steplog import Line
from trainmem_audit.errors import FormatError
from trainmem_audit.lineforms import FittingStep, LineForms
from trainmem_audit.steplog import LogReader

STEPS = 6
FIRST = STEPS - 3
"""The damage is done to the last lines: those before have taught the reader their forms."""


class Parsing(LogReader):
    """A reader that knows no forms."""

    def check(self, line: bytes) -> Line | FittingStep:
        return self._check_whole(line)


# Runs of several kinds --------------------------------------------------------------------------------------------


def steps(
    change: Callable[[dict[str, Any], int], None], values: Callable[[int], Any] = lambda _: {}
) -> list[dict[str, Any]]:
    """Return the members of the lines of a run whose steps were changed; `values` are those of `plan` at a step."""
    run = FakeRun(STEPS, ended=False)
    run.lr = [0.1 / (step + 1) for step in range(STEPS)]
    lines = list(run.members())
    lines.insert(1, {"t": "inventory", "i": 0, "components": {"plan": component(values={})}})
    lines.insert(1, {"t": "inventory", "i": 0, "streams": {"größe": stream("numpy"), "\U0001f3b2": stream("numpy")}})
    for line in lines:
        if line["t"] == "step":
            plan = values(line["i"])
            line["state"]["plan"] = value_digest(plan).hex()
            line["values"] = {**line.get("values", {}), "plan": plan}
            change(line, line["i"])
    return lines


def plain(line: dict[str, Any], _: int) -> None:
    del line["values"]


def valued(line: dict[str, Any], _: int) -> None:
    """Leave the values: each step has those of `plan` and of the hyper-parameters."""


def without_indices(line: dict[str, Any], _: int) -> None:
    del line["order"]["index"]


def without_order(line: dict[str, Any], _: int) -> None:
    del line["order"], line["inputs"]


def without_much(line: dict[str, Any], _: int) -> None:
    line |= {"state": {}, "rng": {}}
    for name in ("order", "inputs", "scalars", "values"):
        del line[name]


def in_turn(line: dict[str, Any], i: int) -> None:
    line["optimizer"] = "ab"[i % 2]
    if i % 3 == 0:
        line["skipped"] = True


def odd_names(line: dict[str, Any], i: int) -> None:
    line["rng"] |= {"größe": digest("a", i), "\U0001f3b2": digest("b", i)}
    line["scalars"] |= {'\ue000 "\\\n': ["nan", "inf", "-inf", "0x0.0p+0", "-0x0.0p+0", "0x0.0000000000001p-1022"]}


KINDS = {
    "plain": steps(plain),
    "valued": steps(valued, lambda i: {"n": i, "of": [i, -1, True, None, "text", (i / 7).hex(), "1.5", digest(i), {}]}),
    "without indices": steps(without_indices),
    "without order": steps(without_order, lambda i: {"größe": [], "x": i * 10**14}),
    "without much": steps(without_much),
    "in turn": steps(in_turn),
    "odd names": steps(odd_names),
}  # fmt: skip


# Two readers ------------------------------------------------------------------------------------------------------


def outcome(reader: LogReader, line: bytes) -> Any:
    """Return the model that a reader makes of a line, or all that its error says."""
    try:
        return reader.read(line)
    except FormatError as error:
        return error.message, error.where, error.expected, error.got, error.remedy


class Pair:
    """The two readers after the lines of a log."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self.lines = list(lines)
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.readers = (LogReader(), Parsing())
        for line in self.lines:
            self.agree(line)

    def agree(self, line: bytes) -> Any:
        """Demand that both say the same of a line, and return what."""
        ours, theirs = (outcome(reader, line) for reader in self.readers)
        assert ours == theirs, line
        if not isinstance(ours, tuple):
            assert self.readers[0].finish() == self.readers[1].finish(), line
        return ours

    def after(self, line: bytes) -> Any:
        """Demand the same of a line that is then taken back."""
        result = self.agree(line)
        if not isinstance(result, tuple):
            self.start()
        return result


def linked(before: list[bytes], line: bytes) -> bytes:
    """Return a line, which may be any bytes that begin like one, with the chain made good."""
    head = bytes.fromhex(before[-1][10:74].decode()) if before else CHAIN_START
    return b'{"chain":"' + chain_digest(head, b"{" + line[76:]).hex().encode() + b'",' + line[76:]


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_of_a_run_is_read_alike(kind: str) -> None:
    pair = Pair(())
    for line in written(KINDS[kind]):
        assert not isinstance(pair.agree(line), tuple)


@pytest.mark.parametrize("kind", KINDS)
def test_forms_are_used(kind: str) -> None:
    reader = LogReader()
    fitting = [isinstance(reader.check(line), FittingStep) for line in written(KINDS[kind])]
    assert sum(fitting[-STEPS:]) >= (STEPS - 4 if kind == "in turn" else STEPS - 1)
    assert not any(fitting[:-STEPS])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_fitting_step_says_is_what_its_model_says(kind: str) -> None:
    reader = LogReader()
    for line in written(KINDS[kind]):
        step = reader.check(line)
        if isinstance(step, FittingStep):
            order = step.model.order
            indexed = order is not None and order.index is not None
            assert (step.i, step.state) == (step.model.i, step.model.state)
            assert indexed == (step.order is not None)
            if order is not None and step.order is not None:
                assert (step.order.index, step.order.n) == (order.index, order.n)


# Damage -----------------------------------------------------------------------------------------------------------

BYTES = b'0a9fgAF"\\ -+.,:{}[]\n\x00\x7f\xff'


def damaged(line: bytes) -> Iterator[bytes]:
    """Yield a line with each byte changed to several others, removed, and preceded by others."""
    for at in range(len(line)):
        yield line[:at] + line[at + 1 :]
        for byte in BYTES[at % 3 :: 3]:
            yield line[:at] + bytes([byte]) + line[at + 1 :]
            if at % 5 == 0:
                yield line[:at] + bytes([byte]) + line[at:]
    for tail in (b"\n", b"\r", b" ", b"\0", b"{}", b'"'):
        yield line + tail


@pytest.mark.parametrize("kind", ["valued", "odd names"])
def test_a_line_with_any_damaged_byte_is_judged_alike(kind: str) -> None:
    lines = written(KINDS[kind])
    pair = Pair(lines[:-1])
    refused = 0
    for line in damaged(lines[-1]):
        begins_well = line[:10] == b'{"chain":"' and line[74:76] == b'",'
        refused += isinstance(pair.after(linked(lines[:-1], line) if begins_well else line), tuple)
    assert refused > 5 * len(lines[-1])


SPELLINGS = (
    b"0", b"7", b"07", b"-7", b"-0", b"7.0", b"7e0", b"7E0", b"+7", b" 7", b"7 ", b"1_0", b"0x7", b"999999999999999",
    b"1000000000000000", b"9007199254740991", b"9007199254740992", b"1" * 400, b"true", b"null", b"NaN", b"Infinity",
    b'""', b'"7"', b'"' + b"0" * 64 + b'"', b'"' + b"A" * 64 + b'"', b'"' + b"0" * 63 + b'"', b'"' + b"0" * 65 + b'"',
    b'"' + b"0" * 64 + b'\n"', b'"\\u0030' + b"0" * 63 + b'"', b'"nan"', b'"-nan"', b'"inf"', b'"-inf"', b'"+inf"',
    b'"0x0.0p+0"', b'"-0x0.0p+0"', b'"0x1.8p+0"', b'"0x1.8000000000000p+0"', b'"0x1.8000000000000p+00"',
    b'"0x1.8000000000000p-1023"', b'"0x1.8000000000000p+9999"', b'"0x1.8000000000000p+10000"',
    b'"0x1.80000000000000p+0"',     b'"0X1.8000000000000p+0"', b'"0x2.8000000000000p+0"',
    b'"0x1.8000000000000P+0"', b'"0x1.8000000000000p+0\\n"',
    b'"\xc3\xa4"', b'"\xe4"', b'"\\ud800"', b'"\\/"', b"[]", b"{}", b"[7]", b'{"a":7}', b'"a","b":"c"', b"",
)  # fmt: skip
"""Ways to write a leaf, most of them wrong in one place or another."""


def leaves(line: bytes) -> list[tuple[int, int]]:
    """Return where the leaves of a line stand: whatever lies between its punctuation, names too."""
    ends = [at for at, byte in enumerate(line) if byte in b"{}[]:,"]
    return [(a + 1, b) for a, b in itertools.pairwise(ends) if b > a + 1 and a > 75]


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_with_any_respelt_leaf_is_judged_alike(kind: str) -> None:
    lines = written(KINDS[kind])
    pair = Pair(lines[:-1])
    for a, b in leaves(lines[-1]):
        for spelling in SPELLINGS:
            pair.after(linked(lines[:-1], lines[-1][:a] + spelling + lines[-1][b:]))


@given(st.data())
def test_lines_with_any_edits_are_judged_alike(data: st.DataObject) -> None:
    """Several lines are damaged, each in several places, so that what was learnt from one meets the next."""
    lines = written(KINDS[data.draw(st.sampled_from(sorted(KINDS)))])
    pair = Pair(lines[:-FIRST])
    before = lines[:-FIRST]
    for line in lines[-FIRST:]:
        places = leaves(line)
        for at in sorted(data.draw(st.sets(st.integers(0, len(places) - 1), max_size=3)), reverse=True):
            a, b = places[at]
            line = line[:a] + data.draw(st.sampled_from(SPELLINGS) | st.binary(max_size=4)) + line[b:]
        line = linked(before, line)
        if not isinstance(pair.agree(line), tuple):
            before = [*before, line]


VALUES = st.recursive(
    st.sampled_from(
        [0, 1, -1, 10**14, 10**15, 2**53 - 1, True, False, None, "", "a", "nan", "-inf", (0.1).hex(), digest(1)]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcäß"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from("abcäß"), VALUES, max_size=3), min_size=2, max_size=6), st.booleans())
def test_values_of_any_kind_are_read_alike(values: list[Any], wrong: bool) -> None:
    """Every step has other values, with their digest; where `wrong`, the last one with another's."""
    rows = [begin(), {"t": "inventory", "i": 0, "components": {"plan": component(values={})}}]
    for i, plan in enumerate(values):
        digest_of = [] if wrong and i == len(values) - 1 else plan
        state = {"plan": value_digest(digest_of).hex()}
        rows.append({"t": "step", "i": i, "state": state, "rng": {}, "values": {"plan": plan}})
    pair = Pair(())
    said = [pair.agree(line) for line in unchecked(rows)]
    assert isinstance(said[-1], tuple) == wrong


def unchecked(rows: list[dict[str, Any]]) -> list[bytes]:
    """Return lines in canonical form with a good chain, as someone writes them who does not check what they say."""
    lines: list[bytes] = []
    for row in rows:
        lines.append(linked(lines, canonical_bytes({"chain": "0" * 64, **row})))
    return lines


# Places and numbers -----------------------------------------------------------------------------------------------


def test_steps_that_are_not_contiguous_are_refused_alike() -> None:
    rows = KINDS["plain"]
    for i in (0, STEPS - 2, STEPS, 10**14, 10**15 - 1):
        said = Pair(unchecked(rows[:-1])).agree(unchecked([*rows[:-1], {**rows[-1], "i": i}])[-1])
        assert said[0] == "the steps are not contiguous"


def test_a_step_after_the_end_is_refused_alike() -> None:
    rows = KINDS["plain"]
    end = {"t": "end", "i": STEPS, "finished": "2026-11-23T12:01:00Z", "outcome": "finished", "exitCode": 0}
    rows = [*rows, {**end, "state": {}, "rng": {}}, {**rows[-1], "i": STEPS}]
    lines = unchecked(rows)
    assert Pair(lines[:-1]).agree(lines[-1])[0] == "nothing may follow the `end` line"


def test_two_logs_are_not_mixed_up() -> None:
    """A line that fits the form of another log's lines is none of this one."""
    ours, theirs = written(KINDS["plain"]), written(KINDS["valued"])
    assert Pair(ours[:-1]).agree(theirs[-1])[0].startswith("the chain is broken")


# Bounds -----------------------------------------------------------------------------------------------------------


def test_a_log_with_another_form_in_every_line_is_read_alike_and_few_forms_are_kept() -> None:
    rows: list[dict[str, Any]] = [begin()]
    rows += [{"t": "step", "i": i, "optimizer": f"o{i % 100}", "state": {}, "rng": {}} for i in range(300)]
    pair = Pair(written(rows))
    assert pair.readers[0].summary.steps == 300
    forms = pair.readers[0]._forms
    assert len(forms._forms) <= 8
    assert forms._learnt <= 64


def test_a_long_line_gives_no_form() -> None:
    row = {"t": "step", "i": 0, "state": {}, "rng": {}, "scalars": {"loss": ["nan"] * 10_000}}
    lines = written([begin(), row, {**row, "i": 1}])
    forms = LineForms()
    forms.learn(lines[1], json.loads(lines[1]))
    assert forms.fit(lines[1]) is None
    assert Pair(lines).readers[0].summary.steps == 2
    assert len(line_bytes(row)) > 2**15
