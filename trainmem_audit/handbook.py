"""L5: the pages of the documentation that are rendered from data of the standard; a test compares them with `docs/`."""

from __future__ import annotations

from trainmem_audit.checks import load_checklist, load_codes
from trainmem_audit.formats.checklist_text import EVIDENCE_MARKS, LADDER
from trainmem_audit.resources import data_file

__all__ = ["checklist_page", "codes_table"]


def checklist_page() -> str:
    """Return the checklist as Markdown. Its texts are our own and hold Markdown, so nothing is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: data_file("templates", name).read_text("utf-8")),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    checklist = load_checklist()
    areas = [
        {"area": area, "items": [item for item in checklist.items if item.area == area]} for area in checklist.areas
    ]
    template = environment.get_template("checklist.md.j2")
    return template.render(checklist=checklist, areas=areas, ladder=LADDER, marks=EVIDENCE_MARKS)


def codes_table() -> str:
    """Return the codes of findings as a Markdown table."""
    rows = [f"| `{entry.code}` | {entry.title} |" for entry in load_codes().findings]
    return "\n".join(["| code | what is wrong |", "|---|---|", *rows]) + "\n"
