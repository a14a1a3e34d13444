"""L5: the report of a study, as a self-contained HTML page, as Markdown and as JSON.

Pure functions from the documents (plan, estimates, what a check of them found) to text: `index` (what belongs
together), `page` (what is shown, as the plain values of `views`), `words` (sentences), `limits` (what was not shown),
`pictures` (SVG), `render` (markup and files). Not here: any judgement of its own (`estimation` made the numbers,
`study.estimating` checks them), and anything that reads arms.
"""

from __future__ import annotations

from trainmem_audit.study_report.render import (
    REPORTS,
    render_html,
    render_json,
    render_markdown,
    study_page,
    write_study_report,
)
from trainmem_audit.study_report.views import Page

__all__ = ["REPORTS", "Page", "render_html", "render_json", "render_markdown", "study_page", "write_study_report"]
