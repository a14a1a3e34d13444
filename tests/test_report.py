"""The report in HTML and Markdown, and the statement on one screen: what must stand there, and what must not."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests import builders
from trainmem_audit.canonical import float_text
from trainmem_audit.documents.findings import Replay, Signature, Verification
from trainmem_audit.documents.steplog import Step
from trainmem_audit.errors import UsageError
from trainmem_audit.report import (
    Curve,
    RunSeries,
    SeriesCollector,
    _chart,
    _nice_ticks,
    command_line,
    markdown_environment,
    render_html,
    render_markdown,
    write_report,
)
from trainmem_audit.show import statement_text
from trainmem_audit.text import columns

VOID = {"meta", "br", "img", "link", "hr", "input"}
CASES = {
    "match": builders.verification(),
    "mismatch": builders.mismatch(),
    "what-if": builders.mismatch(what_if=True),
    "not-run": builders.not_run(),
    "broken": builders.broken(),
    "own-key": builders.verification(signature=Signature(state="self", keyid=builders.KEYID, detail="")),
    "no-key": builders.not_run(signature=Signature(state="not-checkable", detail="no key")),
    "tolerance": builders.verification(replay=Replay(outcome="match-within-tolerance", mode="full", steps_compared=9)),
    "inconclusive": builders.verification(replay=Replay(outcome="inconclusive", mode="full", reason="canary differs")),
    "unread": builders.not_run(bytes="not-checked", record="not-checked", checks=()),
    "incomplete": builders.verification(record="incomplete"),
}
SERIES = builders.series()
HOSTILE_STATEMENT = builders.with_hostile_strings(builders.statement())
HOSTILE_VERIFICATION = builders.with_hostile_strings(
    builders.mismatch(what_if=True).model_copy(update={"findings": builders.findings()})
)
HOSTILE_SERIES = replace(SERIES, epochs=tuple(mark._replace(loader=builders.HOSTILE) for mark in SERIES.epochs))


class Page(HTMLParser):
    """Reads a page, refuses tags that do not balance, and keeps its tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.pieces: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag in ("td", "th", "dt", "dd"):
            self.pieces.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)


def markdown_page(text: str) -> Page:
    """Return the page that CommonMark with tables and GitHub's links makes of `text`; HTML in it passes through."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def both(verification: Verification, series: RunSeries = SERIES) -> list[Page]:
    statement = builders.statement()
    html = Page(render_html(statement, verification, series))
    return [html, markdown_page(render_markdown(statement, verification, series))]


@pytest.mark.parametrize("verification", CASES.values(), ids=CASES)
def test_page_is_self_contained_and_balanced(verification: Verification) -> None:
    html = render_html(builders.statement(), verification, SERIES)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base", "foreignobject"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value is not None and value.startswith("#") and value[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\(|@font-face", html)


@pytest.mark.parametrize("verification", CASES.values(), ids=CASES)
def test_each_verdict_finding_and_check_stands_in_both(verification: Verification) -> None:
    for page in both(verification):
        for question in ("Signature", "Bytes", "Record", "Replay"):
            assert question in page.text
        for check in verification.checks:
            assert check.title in page.text and check.detail in page.text
        for finding in verification.findings:
            assert finding.message in page.text and finding.where in page.text and finding.code in page.text
        for name in builders.statement().predicate.sources:
            assert name in page.text


@pytest.mark.parametrize("verification", CASES.values(), ids=CASES)
def test_nothing_is_called_verified(verification: Verification) -> None:
    statement = builders.statement()
    for text in (render_html(statement, verification, SERIES), render_markdown(statement, verification, SERIES)):
        assert "verified" not in text.lower()


def test_a_replay_that_did_not_run_is_said_to_be_not_run() -> None:
    for page in both(builders.not_run()):
        assert "not run" in page.text
        assert "No replay was run, so whether the run reproduces is not known." in page.text
        assert "agree bit for bit" not in page.text


def test_the_same_inputs_give_the_same_bytes() -> None:
    statement, verification = builders.statement(), builders.mismatch()
    for render in (render_html, render_markdown):
        assert render(statement, verification, SERIES) == render(statement, verification, builders.series())


def test_difference_lists_components_in_the_order_of_cause() -> None:
    for page in both(builders.mismatch()):
        table = page.text[page.text.index("First difference: step 0, optimizer.hyper") :]
        names = ("1 optimizer.hyper in the step", "2 optimizer.momentum in the step", "3 model.params in the step")
        places = [table.index(name) for name in names]
        assert places == sorted(places)
        assert "groups[0].lr: expected 0.05, got 0.1" in table
        assert "conv1.weight" in table and "32 \u00d7 1 \u00d7 3 \u00d7 3" in table
        assert "the record holds no tensor digests for this step" in table


def test_what_if_is_said_loudly_and_is_no_verdict() -> None:
    for page in both(builders.mismatch(what_if=True)):
        assert "What-if: edited code was replayed" in page.text
        assert "what-if: mismatch" in page.text
        assert "It is no verdict on the record." in page.text
        assert "{cwd}/train.py" in page.text


def test_an_invalid_signature_casts_doubt_on_all_that_follows() -> None:
    for page in both(builders.broken()):
        assert "invalid" in page.text
        assert "nobody vouches for what follows" in page.text
        assert "Read on with care" in page.text
    for page in both(builders.verification()):
        assert "Read on with care" not in page.text


def test_a_key_that_does_not_fit_is_not_recommended_as_signer() -> None:
    assert "--signer SHA256:" in render_markdown(builders.statement(), builders.verification(), SERIES)
    assert "--signer" not in render_markdown(builders.statement(), builders.broken(), SERIES)


def test_errors_stand_before_warnings() -> None:
    text = both(builders.broken())[0].text
    places = [
        text.index(message) for message in ("not the one that was signed", "no statement lists", "the envelope is")
    ]
    assert places == sorted(places)


def test_numbers_to_cite_stand_in_full() -> None:
    log = builders.statement().predicate.step_logs[0]
    for page in both(builders.verification()):
        for text in (log.chain_head, log.merkle_root, builders.KEYID, builders.statement().predicate.run.id):
            assert text in page.text
        assert f"· {builders.KEYID} · chain {log.chain_head}" in page.text


def test_inventory_gives_sizes_labels_and_meaning() -> None:
    for page in both(builders.verification()):
        assert "optimizer and trajectory state" in page.text
        assert "592 KiB" in page.text
        assert "micro, ≈ 10 steps" in page.text
        assert "in-process" in page.text


def test_changes_of_the_numeric_profile_stand_first() -> None:
    for page in both(builders.verification()):
        profile = page.text[page.text.index("Numeric profile") :]
        assert profile.index("torch.num_threads") < profile.index("cudnn.allow_tf32")
        assert profile.count("changed") == 3  # the sentence above the table, and two settings


def test_commands_to_reproduce() -> None:
    for page in both(builders.verification()):
        assert f"trainmem-audit verify run.zip --replay full --data DIR --signer {builders.KEYID}" in page.text
        assert "torch==2.13.0 numpy==2.3.1" in page.text
        assert "python3.11 -m venv" in page.text


# --- hostile strings ------------------------------------------------------------------------------------------


def test_hostile_strings_are_shown_and_do_nothing_in_html() -> None:
    html = render_html(HOSTILE_STATEMENT, HOSTILE_VERIFICATION, HOSTILE_SERIES)
    page, plain = Page(html), Page(render_html(builders.statement(), HOSTILE_VERIFICATION, SERIES))
    assert "<script" not in html and html.count("</style>") == 1 and "<img" not in html
    assert set(page.tags) == set(plain.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert page.text.count("<script>alert(1)</script>") > 100
    assert r"\u000a# h\u000a\u001b[31m\u202ecod.exe" in page.text
    assert_no_control_characters(html)


def test_hostile_strings_are_shown_and_do_nothing_in_markdown() -> None:
    text = render_markdown(HOSTILE_STATEMENT, HOSTILE_VERIFICATION, HOSTILE_SERIES)
    page = markdown_page(text)
    assert not {"script", "img", "a", "style"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") > 100
    assert "|`a`\\u000a# h\\u000a\\u001b[31m\\u202ecod.exe [l](http://evil) $x$" in page.text
    assert_no_control_characters(text)
    for line in text.splitlines():
        assert not re.search(r"(?<!\\)[$`]x?\$|<|(?<!\\):(?=//)", re.sub(r"^> |`[^`]*`", "", line))


def test_hostile_strings_do_not_enter_commands() -> None:
    text = render_markdown(HOSTILE_STATEMENT, HOSTILE_VERIFICATION, HOSTILE_SERIES)
    blocks = re.findall(r"```\w+\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    assert all(re.fullmatch(r"[\w\s./:=+·'\[\]-]*", block) for block in blocks)


def test_hostile_tables_keep_their_columns() -> None:
    text = render_markdown(HOSTILE_STATEMENT, HOSTILE_VERIFICATION, HOSTILE_SERIES)
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (0, cells), line
        width = cells


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_shows_as_itself_in_markdown(text: str) -> None:
    from trainmem_audit.text import safe_text

    environment = markdown_environment()
    for template in ("- Name: {{ text }} end", "- Name: {{ text | code }} end", "| h |\n|---|\n| a {{ text }} end |"):
        page = markdown_page(environment.from_string(template).render(text=text))
        assert set(page.tags) <= {"ul", "li", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
        assert " ".join(f"{safe_text(text)} end".split()) in page.text


def assert_no_control_characters(text: str) -> None:
    for char in set(text) - {"\n"}:
        assert unicodedata.category(char)[0] != "C", f"U+{ord(char):04X}"


# --- what the log tells over time -----------------------------------------------------------------------------


def test_series_of_a_digits_run() -> None:
    assert SERIES.steps == builders.STEPS
    assert SERIES.loss is not None and SERIES.lr is not None
    assert len(SERIES.loss.points) == builders.STEPS and SERIES.loss.bucket == 1
    assert SERIES.lr.first == (0, 0.05)
    assert SERIES.lr.points[22].mean == 0.05 and SERIES.lr.points[23].mean < 0.05  # carried on between changes
    assert SERIES.epoch_counts == (("train", 10),)
    assert [mark.at for mark in SERIES.epochs] == list(range(0, 230, 23))
    assert SERIES.samples_per_step == ((64, 220), (29, 10))


def test_series_of_a_long_run_is_thinned_and_keeps_its_extremes() -> None:
    collector = SeriesCollector()
    for step in range(50_000):
        collector.add(_step(step, 100.0 if step == 31_337 else math.sin(step)))
    loss = collector.series().loss
    assert loss is not None
    assert 500 <= len(loss.points) <= 1000
    assert loss.highest == (31_337, 100.0)
    assert max(point.high for point in loss.points) == 100.0
    assert [point.step for point in loss.points] == list(range(0, 50_000, loss.bucket))
    assert all(point.low <= point.mean <= point.high for point in loss.points)


def test_epochs_and_batch_sizes_stay_bounded() -> None:
    collector = SeriesCollector()
    for step, line in enumerate(builders.lines(60_000)):
        collector.add(line)
        if isinstance(line, Step) and line.order is not None:
            collector.add(line.model_copy(update={"order": line.order.model_copy(update={"n": step})}))
    series = collector.series()
    assert len(series.epochs) <= 1000 and len(series.samples_per_step) <= 16
    assert series.epoch_counts == (("train", 2609),)


def test_losses_that_are_not_finite_are_counted() -> None:
    collector = SeriesCollector()
    for step, loss in enumerate([1.0, math.nan, math.inf, 0.5]):
        collector.add(_step(step, loss))
    series = collector.series()
    assert series.loss is not None and (series.loss.not_finite, series.loss.first_not_finite) == (2, 1)
    for page in both(builders.verification(), series):
        assert "Not finite at 2 steps, first at step 1." in page.text


def test_a_log_without_losses_says_so() -> None:
    for page in both(builders.verification(), RunSeries(steps=3)):
        assert "The step log holds neither losses nor learning rates." in page.text


def _step(step: int, loss: float) -> Step:
    return Step(chain=builders.digest("x"), t="step", i=step, state={}, rng={}, scalars={"loss": (float_text(loss),)})


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=40))
def test_any_values_make_a_chart_within_its_frame(values: list[float]) -> None:
    collector = SeriesCollector()
    for step, value in enumerate(values):
        collector.add(_step(step, value))
    curve: Curve | None = collector.series().loss
    if curve is None:
        return
    svg = _chart("x", "loss", "Loss.", curve, collector.series())
    Page(svg)
    assert "nan" not in svg and "inf" not in svg
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", " ".join(re.findall(r'points="([^"]*)"', svg))):
        assert 58 <= float(x) <= 470 and 44 <= float(y) <= 212


def test_charts_describe_themselves() -> None:
    html = render_html(builders.statement(), builders.verification(), SERIES)
    assert html.count('<svg class="chart"') == 2 == html.count('role="img"') == html.count("<desc id=")


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 2.5, [0, 0.5, 1, 1.5, 2, 2.5]), (0, 229, [0, 50, 100, 150, 200]), (0, 1, 6)]
)
def test_ticks_are_round(low: float, high: float, ticks: list[float] | int) -> None:
    got = _nice_ticks(low, high, 5)
    assert len(got) == ticks if isinstance(ticks, int) else got == ticks


# --- files and the screen -------------------------------------------------------------------------------------


def test_write_report_replaces_links_and_does_not_follow_them(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").symlink_to(victim)
    paths = write_report(tmp_path / "out", builders.statement(), builders.verification(), SERIES)
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert victim.read_text() == "precious" and not paths[0].is_symlink()
    assert b"\r" not in paths[0].read_bytes() + paths[1].read_bytes()


def test_write_report_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path / "file", builders.statement(), builders.verification(), SERIES)


def test_report_does_not_show_the_folder_of_the_record() -> None:
    for page in both(builders.verification(name="/home/alice/papers/run.zip")):
        assert "alice" not in page.text and "run.zip" in page.text


def test_command_line_as_it_can_be_shown() -> None:
    command = builders.statement().predicate.command
    assert command_line(command) == (
        "python train.py --epochs 10 --out=weights.npz --name 'digits, second try' --token=[redacted]"
    )
    module = command.model_copy(update={"kind": "module", "entry": "pkg.train", "arguments": ()})
    assert command_line(module) == "python -m pkg.train"


@pytest.mark.parametrize("signature", [None, builders.verification().signature, builders.broken().signature])
def test_statement_fits_one_screen(signature: Signature | None) -> None:
    crowded = builders.statement_json()["predicate"]
    many = {
        "sources": {f"component.{i}": value for i, value in enumerate(list(crowded["sources"].values()) * 9)},
        "order": {f"loader {i}": crowded["order"]["train"] for i in range(9)},
        "stepLogs": crowded["stepLogs"] * 8,
        "notRecorded": ["something"] * 50,
    }
    for statement in (builders.statement(), builders.statement(**many), HOSTILE_STATEMENT):
        lines = statement_text(statement, signature).splitlines()
        assert len(lines) <= 40
        assert all(columns(line) <= 100 for line in lines)
        assert_no_control_characters("".join(lines))
        assert statement.predicate.step_logs[0].chain_head in "\n".join(lines)


def test_statement_says_what_became_of_the_signature() -> None:
    assert "signature     not checked" in statement_text(builders.statement(), None)
    assert "INVALID" in statement_text(builders.statement(), builders.broken().signature)
    assert "unknown signer" in statement_text(builders.statement(), builders.not_run().signature)
