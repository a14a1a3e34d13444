"""The report of a study as HTML, Markdown and JSON, and as files. The same inputs give the same bytes.

Every string may come from a hostile file: template expressions are made safe and escaped by the environments of
`report`, texts in pictures by `figures`. Not here: what is shown (`page`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from trainmem_audit.documents.plan import Plan
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.figures import number
from trainmem_audit.report import html_environment, markdown_environment
from trainmem_audit.rundir import write_atomic
from trainmem_audit.study.estimating import CheckedEstimates
from trainmem_audit.study_report import pictures
from trainmem_audit.study_report.index import Study
from trainmem_audit.study_report.limits import PROMISES, not_shown
from trainmem_audit.study_report.page import FOREST_ROWS, page_of
from trainmem_audit.study_report.views import Forest, Page, SeedPlot
from trainmem_audit.study_report.words import ESTIMANDS, p_text
from trainmem_audit.text import json_text

__all__ = ["REPORTS", "render_html", "render_json", "render_markdown", "study_page", "write_study_report"]

REPORTS = ("report.html", "report.md", "report.json")
_T = TypeVar("_T")


def study_page(plan: Plan, checked: CheckedEstimates) -> Page:
    """Return what the report of a study shows.

    Raises
    ------
    UsageError
        If the check found no estimates that can be read.
    FormatError
        If the plan speaks of what it does not have.
    """
    if checked.document is None:
        raise UsageError("no estimates to report on", where=checked.name, got="; ".join(checked.problems)[:1000])
    _check_names(plan)
    return page_of(plan, checked, not_shown(Study(plan, checked.document)))


def render_html(plan: Plan, page: Page) -> str:
    """Return the report as one HTML page: no script, no network, light and dark, fit to print."""
    from markupsafe import Markup

    drawn = {name: _marked(Markup, items) for name, items in _drawn(page)}
    return html_environment().get_template("study.html.j2").render(**_context(plan, page), svg=drawn)


def render_markdown(plan: Plan, page: Page) -> str:
    """Return the report as Markdown with GitHub's tables, without pictures."""
    return markdown_environment().get_template("study.md.j2").render(**_context(plan, page))


def render_json(page: Page) -> str:
    """Return what the page shows as JSON; NaN is null, infinity a text."""
    return json_text(_plain(page)) + "\n"


def write_study_report(directory: Path, plan: Plan, checked: CheckedEstimates) -> list[Path]:
    """Write `report.html`, `report.md` and `report.json` into `directory`, each whole or not at all; return the paths.

    Raises
    ------
    UsageError
        If there is nothing to report on, or the directory cannot be written.
    """
    page = study_page(plan, checked)
    texts = (render_html(plan, page), render_markdown(plan, page), render_json(page))
    paths = [directory / name for name in REPORTS]
    try:
        for path, text in zip(paths, texts, strict=True):
            write_atomic(path, text.encode("utf-8"))
    except OSError as error:
        raise UsageError(
            "the report cannot be written",
            where=str(directory),
            got=error.strerror or str(error),
            remedy="name a directory that you may write to",
        ) from None
    return paths


def _check_names(plan: Plan) -> None:
    """Demand that contrasts and interventions that the plan refers to are there: a hostile one may lack them."""
    wanted = {plan.primary.contrast} - {item.name for item in plan.contrasts}
    known = plan.interventions.keys() | (plan.combinations or {}).keys()
    wanted |= {name for item in plan.contrasts for name in (item.treated, item.control)} - known
    wanted |= {part for parts in (plan.combinations or {}).values() for part in parts} - plan.interventions.keys()
    if wanted:
        raise FormatError("a plan that speaks of what it does not have", where="plan.json", got=sorted(wanted)[0])


def _context(plan: Plan, page: Page) -> dict[str, Any]:
    return {
        "estimands": ESTIMANDS,
        "number": number,
        "p": p_text,
        "page": page,
        "plan": plan,
        "promises": PROMISES,
    }


def _marked(markup: Callable[[str], Any], items: list[Any]) -> list[Any]:
    return [_marked(markup, item) if isinstance(item, list) else markup(item) for item in items]


def _drawn(page: Page) -> Iterator[tuple[str, list[Any]]]:
    """Yield the pictures of each section; a picture that would not fit on a page is a list of several."""
    yield "seeds", [_seeds(f"seeds-{at}", item) for at, item in enumerate(page.seeds)]
    yield (
        "curves",
        [
            pictures.curve_picture(
                f"curve-{at}", f"{item.contrast} over the horizons", item.curve, page.margin, item.observable
            )
            for at, item in enumerate(page.curves)
        ],
    )
    yield (
        "memory",
        [
            [
                pictures.memory_picture(f"memory-{at}-{part}", "Memory times", rows)
                for part, rows in _parts(item.rows, 20)
            ]
            for at, item in enumerate(page.memory)
        ],
    )
    yield "forests", [_forest(f"forest-{at}", item) for at, item in enumerate(page.forests)]
    yield (
        "flows",
        [
            [
                pictures.flow_picture(f"flow-{at}-{part}", "Back-flow", rows, item.observable)
                for part, rows in _parts(item.rows, 20)
            ]
            for at, item in enumerate(page.flows)
        ],
    )
    yield (
        "attributions",
        [
            [
                pictures.attribution_picture(f"share-{at}-{part}", "Attribution", rows, f"change of {item.observable}")
                for part, rows in _parts([row for row in item.rows if row.kind != "main"])
            ]
            for at, item in enumerate(page.attributions)
        ],
    )
    yield (
        "strips",
        [
            pictures.strip_picture(f"strip-{at}", f"What the two arms of {item.contrast} share", item.strip)
            for at, item in enumerate(page.strips)
        ],
    )


def _seeds(name: str, item: SeedPlot) -> str:
    claim = item.claim
    words = (item.before, item.after, item.quantity, "all", ESTIMANDS[claim.estimand])
    title = f"{claim.contrast}: every seed"
    return pictures.estimation_picture(
        name, title, item.pairs, claim.effect, item.floor, claim.margin, words, claim.verdict
    )


def _forest(name: str, item: Forest) -> list[str]:
    values = pictures.forest_scale_values(item.rows, item.margin)
    return [
        pictures.forest_picture(f"{name}-{part}", item.title, rows, item.margin, item.axis, values)
        for part, rows in _parts(item.rows)
    ]


def _parts(rows: Sequence[_T], most: int = FOREST_ROWS) -> Iterator[tuple[int, Sequence[_T]]]:
    return ((start // most, rows[start : start + most]) for start in range(0, len(rows), most))


def _plain(value: Any) -> Any:
    """Return a value of JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Page):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
