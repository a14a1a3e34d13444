"""The base of every document and the field types that several share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from trainmem_audit.errors import FormatError

__all__ = ["Count", "Digest", "Document", "FloatText", "Name", "RelPath", "Scalar", "Sequence", "Timestamp"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A 256-bit digest as lower-case hex."""
FloatText = Annotated[str, Field(max_length=24, pattern=r"^(nan|-?inf|-?0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4})$")]
"""A float as `canonical.float_text` writes it."""
Timestamp = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$")]
"""RFC 3339, in UTC, with `Z`. (`\\d` would take the digits of every script.)"""
Name = Annotated[str, Field(min_length=1, max_length=200)]
"""A component, stream, loader or package name."""
RelPath = Annotated[str, Field(min_length=1, max_length=1024)]
"""A path inside a run directory, with forward slashes; `rundir.check_name` holds its shape."""
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things."""
Scalar = str | int | bool | None
"""A value that needs no float: floats are `FloatText`."""

T = TypeVar("T")
Sequence = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""A list of which the first bad item is the last that is looked at: a hostile one may hold many."""
_MOST_ERRORS = 1000


class Document(BaseModel):
    """Base of all models: camelCase members, nothing unknown, nothing coerced, nothing mutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value of the document; members that are `None` are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, data: bytes, where: str) -> Any:
        """Return the document that `data` (JSON) holds.

        Raises
        ------
        FormatError
            Naming `where` and the first member that is wrong.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if error.error_count() > _MOST_ERRORS:  # listing them would take a kilobyte for each
                raise FormatError(
                    f"not a valid {cls.__name__}", where=where, got=f"{error.error_count()} errors"
                ) from None
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(str(part) for part in first["loc"])
            raise FormatError(
                f"not a valid {cls.__name__}", where=f"{where}: {path}" if path else where, got=first["msg"]
            ) from None
