"""The report of a study: what must stand there, what must not, and that it agrees with the estimates."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from tests import reported
from tests.reported import CASES, Reported
from tests.test_report import Page, markdown_page
from tests.test_study_programs import SIGNER, declare, run
from tests.tools import audit
from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents import plan as documents
from trainmem_audit.documents.estimates import Estimate
from trainmem_audit.documents.interventions import PRIMITIVES
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.figures import number
from trainmem_audit.study.estimating import write_estimates
from trainmem_audit.study_report import (
    REPORTS,
    render_html,
    render_json,
    render_markdown,
    study_page,
    write_study_report,
)
from trainmem_audit.study_report.pictures import VERDICTS
from trainmem_audit.study_report.words import _DOING, ESTIMANDS, OBSERVABLES, VERDICT_TONES

EACH = pytest.mark.parametrize("make", CASES.values(), ids=CASES)
Make = Callable[[], Reported]


def html_of(study: Reported) -> str:
    return render_html(study.plan, study_page(study.plan, study.checked))


def markdown_of(study: Reported) -> str:
    return render_markdown(study.plan, study_page(study.plan, study.checked))


def both(study: Reported) -> list[Page]:
    return [Page(html_of(study)), markdown_page(markdown_of(study))]


def headline(study: Reported) -> str:
    return study_page(study.plan, study.checked).headline


def at_primary(study: Reported, contrast: str) -> Estimate:
    wanted = study.plan.primary
    place = (wanted.estimand, wanted.observable, wanted.branch_step, wanted.horizon)
    (found,) = (
        item
        for item in study.document.estimates
        if (item.contrast, item.estimand, item.observable, item.branch_step, item.horizon) == (contrast, *place)
    )
    return found


def section(page: Page, start: str, end: str) -> str:
    text = page.text
    return text[text.rindex(start) : text.rindex(end)]


# --- the page as a page ---------------------------------------------------------------------------------------------


@EACH
def test_page_is_self_contained_and_balanced(make: Make) -> None:
    html = html_of(make())
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base", "foreignobject"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value is not None and value.startswith("#") and value[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\(|@font-face", html)


@EACH
def test_pictures_are_within_their_frames_and_say_what_they_are(make: Make) -> None:
    html = html_of(make())
    pictures = re.findall(r'<svg class="fig" width="(\d+)" height="([\d.]+)".*?</svg>', html, flags=re.DOTALL)
    assert pictures
    assert all(int(width) == 720 and float(height) < 1000 for width, height in pictures)
    for svg in re.findall(r'<svg class="fig".*?</svg>', html, flags=re.DOTALL):
        height = float(re.findall(r'height="([\d.]+)"', svg)[0])
        assert "<title" in svg and "<desc" in svg
        assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', re.sub(r">[^<]*<", "><", svg))
        for kind, value in re.findall(r'\b(x|x1|x2|cx|y|y1|y2|cy)="(-?[\d.]+)"', svg):
            assert -8 <= float(value) <= (720 if kind.startswith(("x", "cx")) else height) + 8


@EACH
def test_the_same_inputs_give_the_same_bytes(make: Make) -> None:
    study = make()
    for render in (html_of, markdown_of):
        assert render(study) == render(study)


@EACH
def test_nothing_is_called_verified(make: Make) -> None:
    study = make()
    assert "verified" not in (html_of(study) + markdown_of(study)).lower()


@EACH
def test_every_contrast_arm_problem_and_definition_stands_in_both(make: Make) -> None:
    study = make()
    if make is reported.extreme:
        return  # its names show as what they are made safe to
    for page in both(study):
        for contrast in study.plan.contrasts:
            assert contrast.name in page.text
        for arm in study.document.arms:
            if arm.reason:
                assert arm.id in page.text and arm.reason in page.text
        for text in study.document.method.definitions.values():
            assert " ".join(text.split()) in page.text


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_headline_of_an_effect_is_made_of_its_numbers() -> None:
    study = reported.everything()
    found = at_primary(study, "reset")
    assert found.interval and found.test and found.test.adjusted_p
    value, low, high, p = map(
        parse_float_text, (found.value, found.interval.low, found.interval.high, found.test.adjusted_p)
    )
    said = headline(study)
    assert said.startswith("Resetting optimizer.momentum at step 40 shifts the law of the predictions by ")
    assert f" by {number(value)} of the fork floor after 3 steps" in said
    assert f"95 % interval {number(low)} to {number(high)}; S = 8 seeds; R = 4 noise streams" in said
    assert f"adjusted p = {p:.2g}" in said
    for page in both(study):
        assert said in page.text


def test_an_effect_that_fades_says_from_when_on() -> None:
    page = study_page(*reported.everything())
    late = [c for c in page.claims if c.contrast == "half" and c.verdict == "equivalent"]
    assert [claim.horizon for claim in late] == [30]
    (said,) = page.quotable
    assert said.endswith("and at 30 steps it is within the declared margin of ±0.02.")


def test_an_unpaired_contrast_is_no_effect() -> None:
    study = reported.troubled()
    said = headline(study)
    assert "the certificate fails in 15 of 15 pairs" in said
    assert "is no effect of the intervention" in said
    assert study_page(*study).headline_verdict == "unpaired"
    for page in both(study):
        pairs = section(page, "what broke", "What was not shown")
        assert "streams fails at step 7, rng.torch.cpu: other states (and 14 more)" in pairs
        assert "prefix fails at step 12, model.params" in pairs
        assert "order inconclusive, nothing says which batches were consumed" in pairs


def test_bitwise_equal_is_said_and_is_no_p_of_zero() -> None:
    study = reported.equal()
    assert "changes no bit of the predictions" in headline(study)
    assert study_page(*study).headline_verdict == "bitwise equal"
    claims = [claim for claim in study_page(*study).others if claim.verdict == "bitwise equal"]
    assert claims and all(math.isnan(claim.p) for claim in claims)


def test_undecided_is_neither_an_effect_nor_its_absence() -> None:
    study = reported.undecided()
    assert "is undecided" in headline(study)
    for page in both(study):
        assert "Undecided, which is neither an effect nor the absence of one: reset, half" in page.text
        assert (
            "2 seeds cannot give a p below 0.5, which is above α = 0.05: no effect could have been found." in page.text
        )


def test_one_stream_gives_no_law_effect() -> None:
    study = reported.minimal()
    assert study_page(*study).headline_verdict == "descriptive"
    for page in both(study):
        missing = section(page, "What was not shown", "Methods")
        assert "One noise stream (R = 1) gives no fork floor and no law effect" in missing
        assert "Without the null players kick and butterfly and placebo" in missing
        assert "No part of this study: memory times, an attribution over several sources" in missing


def test_what_is_missing_is_counted() -> None:
    study = reported.troubled()
    for page in both(study):
        assert (
            "178 attempts started at 176 arms: 170 reported, 5 failed, 1 excluded. Not in the numbers: 6." in page.text
        )
        missing = section(page, "What was not shown", "Arms that are not in the numbers")
        assert "Without a single seed that has all its arms: kick." in missing
        assert "2 attempts at arms came to nothing and had to be made again" in missing
        assert "reset (3 of 4 seeds)" in missing
        assert "Beyond horizon 10 there is one noise stream" in missing
        assert "No effect, whatever its size: half, both, permute-1, permute-2." in missing


def test_what_no_seed_has_is_not_estimated_and_is_no_undecided_effect() -> None:
    page = study_page(*reported.troubled())
    (forest, *_) = page.forests
    assert {row.verdict for row in forest.rows if row.label == "kick"} == {"not estimated"}
    assert all(item.seeds for item in page.attributions)
    assert any("attributions for which no seed has all arms" in text for text in page.not_shown)


def test_doubts_stand_at_the_top() -> None:
    for page in both(reported.troubled()):
        doubts = section(page, "Read on with care", "Primary contrast")
        assert "signature: invalid" in doubts
        assert "steps.jsonl is not the file that was signed" in doubts
        assert "does not come out again: estimates[3].value" in doubts
    for page in both(reported.everything()):
        assert "Read on with care" not in page.text


def test_estimates_that_were_not_recomputed_are_not_called_so() -> None:
    plan, checked = reported.everything()
    before = checked.recomputed
    checked.recomputed = False
    try:
        text = Page(render_html(plan, study_page(plan, checked))).text
    finally:
        checked.recomputed = before
    assert "The numbers were not computed again" in text
    assert "Every number came out again" not in text


def test_every_row_of_the_claims_is_an_estimate() -> None:
    study = reported.everything()
    page = study_page(*study)
    estimates: dict[Any, list[Estimate]] = {}
    for e in study.document.estimates:  # a source of two factorials has a Shapley value in each
        estimates.setdefault((e.contrast, e.estimand, e.observable, e.branch_step, e.horizon), []).append(e)
    rows = [*page.claims, *page.signed, *page.others]
    assert len(page.claims) == 2 * len(study.plan.horizons)
    assert [claim.primary for claim in page.claims[:3]] == [True, True, False]
    for claim in rows:
        key = (claim.contrast, claim.estimand, claim.observable, claim.branch, claim.horizon)
        assert any(
            number(claim.effect.value, 15) == number(parse_float_text(found.value), 15)
            and claim.verdict in (found.verdict, "bitwise equal", "not estimated")
            and claim.seeds == found.units
            and (found.interval is None or claim.effect.low == parse_float_text(found.interval.low))
            for found in estimates[key]
        )
    assert page.others_left + len(page.claims) + len(page.others) == len(study.document.estimates)
    assert {claim.contrast for claim in page.signed} == {item.name for item in study.plan.contrasts}


def test_every_seed_is_in_the_picture_and_its_table() -> None:
    study = reported.everything()
    page = study_page(*study)
    first = page.seeds[0]
    assert [pair.seed for pair in first.pairs] == list(study.plan.seeds)
    assert all(pair.after > pair.before for pair in first.pairs)
    assert first.floor is not None and first.floor.low < first.floor.value < first.floor.high
    svg = re.findall(r'<svg class="fig".*?</svg>', html_of(study), flags=re.DOTALL)[0]
    for pair in first.pairs:
        for value in (pair.before, pair.after, pair.effect):
            assert f"seed {pair.seed}: {number(value)}" in svg


def test_pathwise_curves_stand_beside_the_null_players() -> None:
    page = study_page(*reported.everything())
    for item in page.curves:
        count = len(item.curve.horizons)
        assert len(item.curve.kick) == len(item.curve.butterfly) == len(item.curve.law) == count
        assert item.contrast not in ("kick", "butterfly", "placebo")
    assert page.curves[0].contrast == "reset"
    assert page.curves_left == 1


def test_memory_time_says_why_it_is_no_lifetime_of_a_carrier() -> None:
    study = reported.everything()
    for page in both(study):
        assert "This is not 1/(1−β)" in page.text
    (memory,) = study_page(*study).memory
    (row,) = [row for row in memory.rows if row.label == "reset"]
    assert row.tau.low < row.tau.value < row.tau.high
    assert row._replace(tau=row.tau._replace(value=math.inf)).text.startswith("longer than 30 (at least ")
    assert row._replace(tau=row.tau._replace(value=math.nan)).text == "no decay to fit"


def test_back_flow_and_attribution() -> None:
    page = study_page(*reported.everything())
    (flow,) = page.flows
    assert [row.label for row in flow.rows] == ["standard", "resonant-strong", "orthogonal", "negative"]
    assert flow.rows[3].bitwise_equal and flow.rows[3].first.value == 0
    assert flow.contrasts[0][0][0] == "twin witness W"
    assert flow.notes[0][0].startswith("Δ within ±0.001: TOST p = ")
    for shown in both(reported.everything()):
        assert "seed 3 is left out: failed" in shown.text
    assert page.attributions[0].horizon == 3
    for item in page.attributions:
        null = [row for row in item.rows if row.null]
        assert {row.label.partition(",")[0] for row in null} <= {"kick", "placebo"}
        shapley = math.fsum(row.bar.value for row in item.rows if row.kind == "shapley")
        assert shapley == pytest.approx(item.total.value, abs=1e-12)


def test_strips_show_where_a_pair_breaks() -> None:
    strips = {item.contrast: item.strip for item in study_page(*reported.troubled()).strips}
    half = strips["half"]
    assert (half.branch, half.last) == (40, 70)
    assert half.streams[-1].state == "fails" and half.streams[-1].at == 47  # step 7 of an arm that branched at 40
    assert half.order[-1].state == "holds"
    assert half.components[0].state == "holds" and half.components[-1].state == "apart"
    both_parts = strips["both"]
    assert both_parts.components[0].state == "fails" and both_parts.components[0].at == 12
    assert [part.state for part in both_parts.order[:2]] == ["holds", "inconclusive"]
    assert strips["permute-1"].order[-1].state == "inconclusive"
    assert strips["permute-1"].windows == ((40, 45),)
    assert strips["permute-2"].components[-1].state == "fails"
    (whole,) = study_page(*reported.equal()).strips
    assert whole.strip.components[-1].state == "holds"


@EACH
def test_json_is_what_the_page_shows(make: Make) -> None:
    study = make()
    page = study_page(*study)

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    found = json.loads(render_json(page), parse_constant=refuse)
    assert found["headline"] == page.headline
    assert len(found["claims"]) == len(page.claims)
    assert found["claims"][0]["contrast"] == page.claims[0].contrast if page.claims else True
    assert found["not_shown"] == list(page.not_shown)


# --- hostile input -------------------------------------------------------------------------------------------------


def test_hostile_strings_are_shown_and_do_nothing_in_html() -> None:
    html = html_of(reported.extreme())
    page = Page(html)
    assert "<script" not in html and html.count("</style>") == 1 and "<img" not in html
    assert set(page.tags) <= set(Page(html_of(reported.troubled())).tags) | set(
        Page(html_of(reported.everything())).tags
    )
    assert page.text.count("<script>alert(1)</script>") > 20
    assert r"\u000a# h\u000a\u001b[31m\u202ecod.exe" in page.text
    assert not any(ord(char) < 32 and char != "\n" for char in html)


def test_hostile_strings_are_shown_and_do_nothing_in_markdown() -> None:
    text = markdown_of(reported.extreme())
    page = markdown_page(text)
    assert not {"script", "img", "a", "style"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") > 20
    width = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert width in (0, cells) or not cells, line
        width = cells


def test_long_studies_are_cut_short_and_say_so() -> None:
    page = study_page(*reported.extreme())
    assert (len(page.curves), page.curves_left) == (6, 34)
    text = Page(html_of(reported.extreme())).text
    assert "34 more of these stand in estimates.json." in text


def test_a_plan_that_speaks_of_what_it_lacks_is_refused() -> None:
    plan, checked = reported.everything()
    primary = plan.primary.model_copy(update={"contrast": "nobody"})
    contrast = plan.contrasts[0].model_copy(update={"treated": "nobody"})
    for changed in (
        plan.model_copy(update={"primary": primary}),
        plan.model_copy(update={"contrasts": (contrast, *plan.contrasts[1:])}),
        plan.model_copy(update={"combinations": {"both": ("reset", "nobody")}}),
    ):
        with pytest.raises(FormatError, match="nobody"):
            study_page(changed, checked)


def test_no_estimates_are_no_report(tmp_path: Path) -> None:
    plan, checked = reported.everything()
    with pytest.raises(UsageError, match="no estimates to report on"):
        write_study_report(tmp_path, plan, replace(checked, document=None, problems=["not a statement"]))
    assert not list(tmp_path.iterdir())


# --- words ---------------------------------------------------------------------------------------------------------


def test_every_primitive_estimand_and_observable_has_words() -> None:
    assert set(_DOING) == set(PRIMITIVES)
    assert set(ESTIMANDS) == set(get_args(documents.Estimand))
    assert set(OBSERVABLES) == set(get_args(documents.ObservableKind))
    verdicts = set(get_args(Estimate.model_fields["verdict"].annotation))
    assert set(VERDICT_TONES) == set(VERDICTS) == verdicts | {"bitwise equal", "not estimated"}


# --- files ----------------------------------------------------------------------------------------------------------


def test_reports_are_written_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").symlink_to(victim)
    study = reported.minimal()
    paths = write_study_report(out, study.plan, study.checked)
    assert [path.name for path in paths] == list(REPORTS)
    assert victim.read_text() == "precious"
    assert not paths[0].is_symlink()
    assert paths[0].read_text("utf-8") == html_of(study)
    assert sorted(path.name for path in out.iterdir()) == sorted(REPORTS)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    study = reported.minimal()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_study_report(tmp_path / "file", study.plan, study.checked)


@pytest.mark.slow
def test_the_verb_writes_what_a_check_of_the_records_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    directory = tmp_path / "study"
    assert not run(declare(tmp_path / "declared"), directory).failed
    said = audit("study", "report", directory, cwd=tmp_path, home=home)
    assert said.returncode == 2
    assert "`study estimate DIR` computes the numbers" in said.stderr
    write_estimates(directory, SIGNER)
    said = audit("study", "report", directory, cwd=tmp_path, home=home)
    assert said.returncode == 0, said.stderr
    assert [Path(line).name for line in said.stdout.split()] == list(REPORTS)
    text = Page((directory / "report.html").read_text("utf-8")).text
    assert "Every number came out again, bit for bit, from the signed records." in text
    assert "24 of 24 certified" in text
    (directory / "arms" / "carry.s0.b3.r0" / "steps.jsonl").write_bytes(b"")
    said = audit("study", "report", directory, "--out", tmp_path / "out", "-q", cwd=tmp_path, home=home)
    assert said.returncode == 1
    assert "records not as signed" in Page((tmp_path / "out" / "report.html").read_text("utf-8")).text
    (directory / "plan.json").write_bytes(b"{}")
    said = audit("study", "report", directory, cwd=tmp_path, home=home)
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
