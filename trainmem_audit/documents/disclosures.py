"""`disclosures.json`: what opens the salted commitments of a record (DESIGN § 2.5, `schema/README.md`).

The file is not signed, and need not be: an opening is true if its digest is the one that was signed. Not here: making
and checking digests (`commitments`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from trainmem_audit.documents.common import SCHEMA_VERSION, Document, Extensions, Name, Sequence

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "Disclosure", "Disclosures", "Fact"]

FILE_NAME: Final = "disclosures.json"
_Text = Annotated[str, Field(max_length=4096)]
Fact = (
    _Text
    | bool
    | None
    | Annotated[dict[Name, _Text], Field(max_length=64)]
    | Annotated[tuple[tuple[_Text, _Text], ...], Field(fail_fast=True, max_length=20_000)]
)
"""What can be committed to: a text, yes or no, nothing known, named texts, or pairs of texts."""


class Disclosure(Document):
    """The opening of one commitment: its name, its value, and the salt that hid the value."""

    null_is_a_value: ClassVar[frozenset[str]] = frozenset({"value"})

    name: Name
    salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22,128}$")]
    value: Fact


class Disclosures(Document):
    """All openings that are published, or those of them that somebody chose to publish.

    `anonymous` says that the run was recorded to be handed in without a name: a pack then leaves the file out unless
    asked for it.
    """

    schema_version: Literal["0.1.0-draft"]
    anonymous: bool = False
    disclosures: Annotated[Sequence[Disclosure], Field(max_length=10_000)]
    extensions: Extensions | None = None
