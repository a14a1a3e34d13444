"""The pairing certificate of two arms: four clauses, and what they come to (`schema/draft/estimates.schema.json`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Count, Document, Name

__all__ = ["Certificate", "Clause", "ClauseName", "ClauseState", "Label"]

ClauseName = Literal["prefix", "intervention", "order", "streams"]
ClauseState = Literal["holds", "fails", "inconclusive"]
Label = Literal["paired", "no-op", "unpaired"]


class Clause(Document):
    """One clause: whether the two logs prove it, and if not, the first `step` and the `name` of what differs there.

    `name` is a component, `rng.STREAM`, `order.index`, `order.content`, `inputs`, `steps` …, as `divergence` has them.
    """

    clause: ClauseName
    state: ClauseState
    step: Count | None = None
    name: Name | None = None
    detail: Annotated[str, Field(max_length=10_000)] | None = None


class Certificate(Document):
    """All clauses, and the label: `paired` or `no-op` only if every one of them holds."""

    certificate: Annotated[tuple[Clause, ...], Field(min_length=1, max_length=4)]
    label: Label

    def clause(self, name: ClauseName) -> Clause:
        """Return a clause by its name.

        Raises
        ------
        KeyError
            If the certificate lacks it.
        """
        found = next((clause for clause in self.certificate if clause.clause == name), None)
        if found is None:
            raise KeyError(name)
        return found
