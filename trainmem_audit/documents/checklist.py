"""The checklist as data (`schema/draft/checklist.json`), the codes of findings and errors, and waivers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Document, Extensions, Name

__all__ = [
    "Checklist",
    "CodeEntry",
    "Codes",
    "Decides",
    "Evidence",
    "Item",
    "ItemId",
    "Severity",
    "Waiver",
]

ItemId = Annotated[str, Field(pattern=r"^TM-[A-Z]{3}-[0-9]{3}$")]
"""A stable id, never used again for something else."""
Severity = Literal["must", "should", "may"]
Evidence = Literal["declared", "recorded", "cross-checked", "replayed"]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Date = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class Decides(Document):
    """What decides each state; `not_applicable` is there if and only if the item has a selector that can be false."""

    passes: Annotated[Text, Field(alias="pass")]
    fail: Text
    not_applicable: Text | None = None
    inconclusive: Text


class Item(Document):
    """One item: what it asks, how it is decided, why it matters and how to mend it.

    `severity` is by profile; the item belongs to the profiles named there. `scope` says what it takes to decide it: one
    run, or a study. `needs` is the part of a record without which it is inconclusive.
    """

    id: ItemId
    slug: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    title: Text
    severity: Annotated[dict[Name, Severity], Field(min_length=1)]
    scope: Literal["run", "study"]
    needs: Literal["verification", "statement", "log", "study"]
    selector: Text | None = None
    evidence: Evidence
    decides: Decides
    why: Text
    message: Text
    remedy: Text
    example: Text
    section: Text

    @property
    def area(self) -> str:
        """The three letters in the middle of the id."""
        return self.id[3:6]


class Checklist(Document):
    """Every item, in the order in which they are listed; `profiles` and `areas` by name, with what they mean."""

    schema_: Annotated[str, Field(alias="$schema")]
    version: Name
    profiles: dict[Name, Text]
    areas: dict[Name, Text]
    items: Annotated[tuple[Item, ...], Field(min_length=1)]
    extensions: Extensions | None = None


class CodeEntry(Document):
    """The code of a finding, or the name of an error: what is wrong, why it matters, what to do, and an example."""

    code: Name
    title: Text
    why: Text
    decided: Text
    remedy: Text
    example: Text


class Codes(Document):
    """Every numbered step of `verify`, every code of a finding, and every kind of error that ends a command."""

    schema_: Annotated[str, Field(alias="$schema")]
    version: Name
    steps: tuple[CodeEntry, ...]
    findings: tuple[CodeEntry, ...]
    errors: tuple[CodeEntry, ...]
    extensions: Extensions | None = None


class Waiver(Document):
    """An item that somebody lets pass for a reason, until a day (that day included) if there is one."""

    id: ItemId
    reason: Text
    who: Annotated[str, Field(min_length=1, max_length=200)]
    expires: Date | None = None
