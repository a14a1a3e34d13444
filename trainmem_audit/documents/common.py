"""The base of every document and the field types that several share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from trainmem_audit.errors import FormatError

__all__ = [
    "SCHEMA_VERSION",
    "Count",
    "Digest",
    "Document",
    "ExitCode",
    "Extensions",
    "Flag",
    "FloatText",
    "Integer",
    "IntegerText",
    "Name",
    "OpenDocument",
    "RelPath",
    "Scalar",
    "Sequence",
    "Timestamp",
]

SCHEMA_VERSION: Final = "0.1.0-draft"
"""The version of the schemas that these models agree with (`schema/draft/` until there is a release)."""
MOST_EXTENSIONS = 64

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A 256-bit digest as lower-case hex."""
FloatText = Annotated[
    str, Field(max_length=24, pattern=r"^(nan|-?inf|-?0x0\.0p\+0|-?0x[01]\.[0-9a-f]{13}p[+-][0-9]{1,4})$")
]
"""A float as `canonical.float_text` writes it."""


def _day_of_a_calendar(text: str) -> str:
    datetime.fromisoformat(text)  # the pattern has checked all but the length of the month
    return text


Timestamp = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z$"
    ),
    AfterValidator(_day_of_a_calendar),
]
"""RFC 3339, in UTC, with `Z`."""
Name = Annotated[str, Field(min_length=1, max_length=200)]
"""A component, stream, loader or package name."""
RelPath = Annotated[str, Field(min_length=1, max_length=1024)]
"""A path inside a run directory, with forward slashes; `rundir.check_name` holds its shape."""
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things."""
Integer = Annotated[int, Field(ge=-(2**53 - 1), le=2**53 - 1)]
"""An integer that every JSON reader takes as it is; a larger one is text."""

IntegerText = Annotated[str, Field(max_length=400, pattern=r"^(0|-?[1-9][0-9]*)$")]
"""An integer that may exceed 2^53, as decimal text."""


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("true, or left out")
    return value


Flag = Annotated[bool, AfterValidator(_true), WithJsonSchema({"const": True, "type": "boolean"})]
"""True, or left out. (`Literal[True]` would take the number 1 too.)"""
ExitCode = Annotated[int, Field(ge=-255, le=255)]
Scalar = str | Integer | bool | None
"""A value that needs no float: floats are `FloatText`."""
Extensions = Annotated[
    dict[Annotated[str, Field(max_length=200, pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+(/[A-Za-z0-9._-]+)*$")], Any],
    Field(max_length=MOST_EXTENSIONS),
]
"""What others put into a document of ours, each under a name that begins with a domain of theirs; never needed to
understand the rest (decision 0010)."""

T = TypeVar("T")
Sequence = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""A list of which the first bad item is the last that is looked at: a hostile one may hold many."""
_MOST_ERRORS = 1000


class Document(BaseModel):
    """Base of all models: camelCase members, nothing unknown, nothing coerced, nothing mutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)
    null_is_a_value: ClassVar[frozenset[str]] = frozenset()
    """Members of which `null` says something, and is not a way to leave them out."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Refuse `null` in JSON for a member that may be `None` here: there it is left out (`schema/README.md`)."""
        schema = handler(source)
        fields: Any = schema
        while "fields" not in fields and "schema" in fields:
            fields = fields["schema"]
        for name, holder in fields.get("fields", {}).items():
            if name in cls.null_is_a_value:
                continue
            while holder["schema"]["type"] == "default":
                holder = holder["schema"]
            if holder["schema"]["type"] == "nullable":
                holder["schema"] = core_schema.json_or_python_schema(holder["schema"]["schema"], holder["schema"])
        return schema

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value of the document; members that are `None` are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, data: bytes, where: str, extra: Literal["ignore", "forbid"] | None = None) -> Any:
        """Return the document that `data` (JSON) holds.

        Parameters
        ----------
        extra:
            `ignore` where members that are not known are left out: in a document of a newer minor version.

        Raises
        ------
        FormatError
            Naming `where` and the first member that is wrong.
        """
        try:
            return cls.model_validate_json(data, by_alias=True, by_name=False, extra=extra)
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


class OpenDocument(Document):
    """Base of what in-toto owns: members that we do not know are not refused, and are not read."""

    model_config = ConfigDict(extra="ignore")
