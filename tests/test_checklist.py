"""The checklist: items, rules, vectors, explanations and documentation belong together, one to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.records import BASE, RULES, STUDY, patched, record_of
from trainmem_audit.checks import EVIDENCE, evaluate, items_of, load_checklist, load_rules
from trainmem_audit.compliance import Terms, judge
from trainmem_audit.documents.checklist import Item, Waiver
from trainmem_audit.documents.compliance import Compliance, ItemResult
from trainmem_audit.documents.record import Record
from trainmem_audit.errors import FormatError
from trainmem_audit.formats.checklist_text import ORDER
from trainmem_audit.handbook import checklist_page, codes_table
from trainmem_audit.report import RunSeries, render_html, render_markdown

ROOT = Path(__file__).resolve().parent.parent
VECTORS = sorted(RULES.glob("*/*.json"))
ITEMS = {item.id: item for item in load_checklist().items}

STANDARD = {
    "ART": ("M3", "M3", "S3", "M3", "A3"),
    "ENV": ("M2", "M2", "M2", "M2", "M2"),
    "RNG": ("M3", "M3", "M3", "M3", "S3"),
    "ORD": ("M2", "M3", "M3", "M3", "M3", "S2", "S2"),
    "OPT": ("M2", "M2", "M3", "S3", "S2"),
    "PTH": ("M3", "S2", "M3"),
    "BUF": ("M2", "M2"),
    "EXT": ("M2", "M3"),
    "MET": ("M2", "A2"),
    "VIS": ("M3",),
    "PRB": ("M3", "M3"),
    "EST": ("M1", "M3", "M3"),
    "UNC": ("M3", "M3", "M3", "M3", "S3"),
    "VER": ("S4", "A4"),
}
"""Severity in profile `paired` (must, should, may) and least evidence (1 to 4), area by area."""


def test_the_items_are_those_of_the_standard() -> None:
    letters = {"must": "M", "should": "S", "may": "A"}
    found: dict[str, list[str]] = {}
    for item in ITEMS.values():
        area, number = item.id[3:6], int(item.id[7:])
        found.setdefault(area, []).append(letters[item.severity["paired"]] + str(EVIDENCE.index(item.evidence) + 1))
        assert number == len(found[area]), f"{item.id} is out of order"
    assert {area: tuple(marks) for area, marks in found.items()} == STANDARD
    assert len(ITEMS) == 49


def test_ids_slugs_and_titles_are_unique() -> None:
    items = load_checklist().items
    for texts in ([item.id for item in items], [item.slug for item in items], [item.title for item in items]):
        assert len(set(texts)) == len(texts)
    assert set(load_checklist().areas) == set(STANDARD)


def test_core_has_the_items_of_one_run_with_the_same_severities() -> None:
    core = {item.id for item in items_of("core")}
    later = {"TM-RNG-003", "TM-RNG-004", "TM-OPT-003", "TM-EXT-002"}
    expected = {name for name in ITEMS if name[3:6] not in ("PTH", "PRB", "EST", "UNC")} - later
    assert core == expected
    assert all(item.severity["core"] == item.severity["paired"] for item in items_of("core"))


def test_a_selector_that_can_be_false_says_what_not_applicable_means() -> None:
    for item in ITEMS.values():
        if item.scope == "run":
            assert (item.selector is None) == (item.decides.not_applicable is None), item.id


def test_every_item_has_one_rule_and_every_rule_an_item() -> None:
    assert load_rules().keys() == ITEMS.keys()


def test_every_rule_says_in_its_first_line_which_item_it_is() -> None:
    for name, rule in load_rules().items():
        assert (rule.__doc__ or "").startswith(f"{name}: "), name


def test_every_item_has_a_vector_for_each_state_that_its_rule_can_give() -> None:
    found: dict[str, set[str]] = {}
    for path in VECTORS:
        state = json.loads(path.read_text("utf-8"))["expected"]["state"]
        assert path.name.startswith(f"{state}-"), path
        found.setdefault(path.parent.name, set()).add(state)
    assert not found.keys() - ITEMS.keys()
    for name, item in ITEMS.items():
        wanted = {"pass", "fail"} | ({"not-applicable"} if item.decides.not_applicable else set())
        wanted |= {"inconclusive"} if item.scope == "study" else set()
        assert wanted <= found[name], f"{name}: no vector for {sorted(wanted - found[name])}"


def test_no_item_that_takes_a_study_passes_without_one() -> None:
    for path in VECTORS:
        vector = json.loads(path.read_text("utf-8"))
        if ITEMS[path.parent.name].scope == "study" and "study" not in vector["patch"]:
            assert vector["expected"]["state"] != "pass", path


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_vector(path: Path) -> None:
    vector = json.loads(path.read_text("utf-8"))
    assert set(vector) == {"description", "patch", "expected"}
    outcome = evaluate(ITEMS[path.parent.name], record_of(vector["patch"]))
    assert outcome.state == vector["expected"]["state"], outcome
    assert outcome.evidence == vector["expected"].get("evidence"), outcome
    if outcome.state == "fail":
        assert outcome.where, "a failure says where"
        assert outcome.expected, "a failure says what was expected"
        assert outcome.got, "a failure says what was found"


def test_the_base_passes_everything_that_one_run_can_show() -> None:
    record = record_of({})
    states = {name: evaluate(item, record).state for name, item in ITEMS.items() if item.scope == "run"}
    assert set(states.values()) <= {"pass", "not-applicable"}, states


def test_the_study_passes_everything_that_takes_one() -> None:
    record = record_of({"study": {}})
    states = {name: evaluate(item, record).state for name, item in ITEMS.items() if item.scope == "study"}
    assert {name for name, state in states.items() if state != "pass"} == {"TM-UNC-004"}, states


def test_nothing_passes_in_a_study_of_which_a_record_does_not_hold() -> None:
    record = record_of({"study": {}, "verification": {"bytes": "broken"}})
    states = {evaluate(item, record).state for item in ITEMS.values() if item.scope == "study"}
    assert states == {"inconclusive", "not-applicable"}


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ({"verification": {"bytes": "broken"}}, "not what was signed"),
        ({"verification": {"signature": {"state": "invalid"}}}, "not what was signed"),
        ({"verification": {"record": "inconsistent"}}, "contradicts itself"),
        ({"verification": {"signature": {"state": "not-checkable"}}}, "nobody could check"),
    ],
)
def test_nothing_passes_in_a_record_that_does_not_hold(patch: dict[str, Any], why: str) -> None:
    record = record_of(patch)
    outcomes = {name: evaluate(item, record) for name, item in ITEMS.items()}
    passing = {name for name, outcome in outcomes.items() if outcome.state == "pass"}
    of_the_bytes = {name for name, item in ITEMS.items() if item.needs == "verification"}
    assert passing == (of_the_bytes if why == "contradicts itself" else set())
    assert why in outcomes["TM-ENV-002"].message


@pytest.mark.parametrize("missing", [{"statement": None, "facts": None}, {"facts": None}])
def test_what_needs_a_part_that_is_not_there_is_inconclusive(missing: dict[str, Any]) -> None:
    record = record_of(missing)
    gone = {"log"} | ({"statement"} if "statement" in missing else set())
    for item in ITEMS.values():
        if item.needs in gone:
            assert evaluate(item, record).state == "inconclusive", item.id


def test_the_two_lists_of_torch_optimizers_agree() -> None:
    import sys

    load_rules()
    memory, optimizer = (sys.modules[f"_trainmem_audit_rules_{name}"] for name in ("memory", "optimizer"))
    assert set(optimizer._SLOTS) == memory._TORCH


# Documentation and report -----------------------------------------------------------------------------------------


def test_the_page_of_the_checklist_is_rendered_from_it() -> None:
    command = "trainmem-audit explain all --format markdown > docs/checklist.md"
    assert (ROOT / "docs" / "checklist.md").read_text("utf-8") == checklist_page(), f"mend it with: {command}"


def test_the_table_of_codes_is_rendered_from_them() -> None:
    page = (ROOT / "docs" / "verification.md").read_text("utf-8")
    assert codes_table() in page, f"docs/verification.md must hold\n{codes_table()}"


def pages(patch: dict[str, Any], terms: Terms) -> tuple[Compliance, str, str]:
    """Return a check of the base with a patch, and both reports on it."""
    record = record_of(patch)
    assert record.statement is not None
    compliance = judge(record, terms)
    arguments = (record.statement, record.verification, RunSeries(), compliance)
    return compliance, render_html(*arguments), render_markdown(*arguments)


def test_every_item_has_a_line_in_the_report_failures_first() -> None:
    broken = {"statement": {"predicate": {"environment": {"cpu": "unknown"}}}}
    compliance, html, markdown = pages(broken, Terms("paired"))
    for text in (html, markdown):
        section = text[text.index("Checklist</h2>" if text is html else "## Checklist") :]
        places = {item.id: section.index(item.id) for item in compliance.items}
        assert min(places, key=places.__getitem__) == "TM-ENV-003"
        order = [section.index(f"{item.id}") for item in sorted(compliance.items, key=by_state)]
        assert order == sorted(order)
    assert "predicate.environment.cpu" in html


def by_state(item: ItemResult) -> int:
    return ORDER.index(item.state)


def test_the_report_shows_evidence_by_mark_and_word_and_every_waiver() -> None:
    waiver = Waiver(id="TM-ENV-001", reason="<b>under</b> review | elsewhere", who="an editor")
    idle = Waiver(id="TM-ENV-002", reason="not needed", who="somebody")
    no_code: dict[str, Any] = {"statement": {"predicate": {"files": []}}}
    _, html, markdown = pages(no_code, Terms(waivers=(waiver, idle)))
    assert "◕ cross-checked" in markdown
    assert html.count('class="tier"') > 20
    for text in (html, markdown):
        assert "&lt;b&gt;under&lt;/b&gt; review" in text
        assert "<b>" not in text
        assert "it would be: fail" in text
        assert "Waivers that changed nothing" in text


def test_a_report_without_a_check_has_no_checklist() -> None:
    record = record_of({})
    assert record.statement is not None
    assert "Checklist" not in render_html(record.statement, record.verification, RunSeries())


# Hostile records --------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None,
    "",
    "nan",
    "\u202e{x}\n",
    -1,
    0,
    2**53 - 1,
    [],
    {},
    [[]],
    {"groups": [1, {"lr": 2, "betas": ["x"]}]},
    True,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every member of a document, inner ones included."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from leaves(member, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


def test_no_rule_stumbles_over_a_record_that_is_valid() -> None:
    """Every member of the base in turn becomes something odd; where the record is still one, every rule answers."""
    assert answered(BASE, list(leaves(BASE)), [item for item in ITEMS.values() if item.needs != "study"]) > 500


def test_no_rule_stumbles_over_a_study_that_is_valid() -> None:
    """The same of the study's base, with few of its arms and pairs, which are alike."""
    kept = ("prefix.s0", "prefix.s1", "reset.s0.b200.r0", "control.s0.b200.r0")
    fewer = {name: {key: None for key in STUDY["study"][name] if key not in kept} for name in ("arms", "pairs")}
    arms = [arm for arm in STUDY["study"]["estimates"]["stated"]["arms"] if arm["id"] in kept]
    small = patched(STUDY, {"study": {**fewer, "estimates": {"stated": {"arms": arms}}}})
    paths = [path for path in leaves(small) if path[0] == "study"]
    assert answered(small, paths, [item for item in ITEMS.values() if item.scope == "study"]) > 250


def answered(base: Any, paths: list[tuple[Any, ...]], items: list[Item]) -> int:
    """Replace each member in turn by everything odd, and return how often there was a record to be judged."""
    count = 0
    for path in paths:
        for odd in ODD:
            try:
                record = Record.parse(json.dumps(replaced(base, path, odd)).encode(), "odd")
            except FormatError:
                continue
            outcomes = [evaluate(item, record) for item in items]
            assert all(outcome.message for outcome in outcomes), (path, odd)
            count += 1
    return count
