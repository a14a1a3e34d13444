"""L2: does a document conform to one of our JSON Schemas? A document and a schema's name give findings.

The schemas are those in the data folder `schema`, one folder for each released version beside `draft`; `Schemas` reads
them, resolves references among them and nowhere else (nothing is ever fetched), and asserts formats. A document may be
hostile: its depth and size are bounded before it is looked at, patterns mean what they mean in ECMA-262 (`$` is the
very end), an integer is an integer (`1.0` is none), and after `MOST_FINDINGS` faults the rest is not counted.

Not here: what a schema cannot say (chains, digests, agreement of files: `steplog`, `verify`), and which version of a
schema a document asks for (`versions`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.findings import Finding
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.resources import data_root

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

__all__ = ["DRAFT", "MOST_DEPTH", "MOST_FINDINGS", "MOST_VALUES", "SUFFIX", "Schemas", "our_schemas", "pointer"]

DRAFT: Final = "draft"
SUFFIX: Final = ".schema.json"
MOST_FINDINGS: Final = 100
MOST_DEPTH: Final = 64
MOST_VALUES: Final = 2**20
_SHOWN: Final = 200
_RELEASE: Final = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
_DOLLAR: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\$", re.DOTALL)


def pointer(path: Any) -> str:
    """Return a JSON pointer (RFC 6901) to a member, given the names and numbers that lead to it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


class Schemas:
    """The schemas of every version in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def versions(self) -> dict[str, Path]:
        """The folder of each version that there is, the draft's among them."""
        found = {SCHEMA_VERSION: self.root / DRAFT} if (self.root / DRAFT).is_dir() else {}
        return found | {path.name: path for path in sorted(self.root.iterdir()) if _RELEASE.fullmatch(path.name)}

    def names(self, version: str = SCHEMA_VERSION) -> tuple[str, ...]:
        """Return the names of the schemas of a version, sorted."""
        return tuple(sorted(path.name.removesuffix(SUFFIX) for path in self._folder(version).glob(f"*{SUFFIX}")))

    def text(self, name: str, version: str = SCHEMA_VERSION) -> str:
        """Return a schema as it stands in its file.

        Raises
        ------
        UsageError
            If there is no such version, or no such schema in it.
        """
        if name not in self.names(version):
            expected = " · ".join(self.names(version))
            raise UsageError("no schema of that name", where=f"version {version}", expected=expected, got=name[:80])
        return (self._folder(version) / f"{name}{SUFFIX}").read_text("utf-8")

    def load(self, name: str, version: str = SCHEMA_VERSION) -> dict[str, Any]:
        """Return a schema as JSON."""
        schema: dict[str, Any] = json.loads(self.text(name, version))
        return schema

    def _folder(self, version: str) -> Path:
        if version not in self.versions:
            known = " · ".join(self.versions)
            raise UsageError("no schemas of that version", where="schema", expected=known, got=version[:80])
        return self.versions[version]

    def findings(self, document: Any, name: str, version: str = SCHEMA_VERSION) -> tuple[Finding, ...]:
        """Return every way in which `document` (JSON as Python values) does not conform to the schema, bounded.

        Each finding has the code `SCHEMA`; `where` is a JSON pointer, empty for the document itself.
        """
        from referencing.exceptions import Unresolvable

        too_much = _excess(document)
        if too_much is not None:
            return (too_much,)
        found: list[Finding] = []
        try:
            for error in self._validator(name, version).iter_errors(document):
                found += _told(error)
                if len(found) >= MOST_FINDINGS:
                    break
        except RecursionError:
            return (_finding((), "nested too deep", f"at most {MOST_DEPTH} levels", "more"),)
        except Unresolvable as error:
            raise FormatError("a reference does not resolve", where=f"schema {name}", got=error.ref) from None
        return tuple(sorted(found[:MOST_FINDINGS], key=lambda finding: (finding.where, finding.message)))

    def _validator(self, name: str, version: str) -> Draft202012Validator:
        validators: dict[tuple[str, str], Any] = self.__dict__.setdefault("_validators", {})
        if (name, version) not in validators:
            validators[name, version] = _make_validator(self, name, version)
        made: Draft202012Validator = validators[name, version]
        return made


@cache
def our_schemas() -> Schemas:
    """Return the schemas of this installation."""
    return Schemas(data_root("schema"))


def _excess(document: Any) -> Finding | None:
    """Return what is too much about a document: its depth, or how many values it holds."""
    layer, depth, count = [document], 0, 0
    while layer:
        count += len(layer)
        if count > MOST_VALUES:
            return _finding((), "too many values", f"at most {MOST_VALUES}", "more")
        if depth > MOST_DEPTH:
            return _finding((), "nested too deep", f"at most {MOST_DEPTH} levels", "more")
        depth += 1
        lists = [value for value in layer if isinstance(value, list)]
        lists += [list(value.values()) for value in layer if isinstance(value, dict)]
        layer = [inner for part in lists for inner in part]
    return None


def _make_validator(schemas: Schemas, name: str, version: str) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker, validators
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    # Without `$schema`: behind a `$ref` to a whole file jsonschema would go on with its own validator, not with ours.
    loaded = {other: _without_dialect(schemas.load(other, version)) for other in schemas.names(version)}
    if name not in loaded:
        schemas.text(name, version)  # says which there are
    resources = [(schema["$id"], DRAFT202012.create_resource(schema)) for schema in loaded.values()]
    checker = FormatChecker()
    missing = {form for schema in loaded.values() for form in _formats(schema)} - checker.checkers.keys()
    if missing:
        raise FormatError(
            "a format that would not be checked",
            where=f"version {version}",
            got=" · ".join(sorted(missing)),
            remedy="pip install 'jsonschema[format-nongpl]'",
        )
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    kind: Any = validators.extend(Draft202012Validator, {"pattern": _pattern}, type_checker=types)
    registry: Any = Registry().with_resources(resources)  # no `retrieve`: what is not here does not resolve
    return kind(loaded[name], registry=registry, format_checker=checker)


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: member for key, member in schema.items() if key != "$schema"}


def _formats(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("format"), str):
            yield schema["format"]
        for member in schema.values():
            yield from _formats(member)
    elif isinstance(schema, list):
        for member in schema:
            yield from _formats(member)


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not _compiled(pattern).search(instance):
        yield ValidationError("does not match")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    r"""Return the pattern as ECMA-262 means it: `$` matches at the very end only, which is `\Z` in Python."""
    return re.compile(_DOLLAR.sub(lambda match: r"\Z" if match[0] == "$" else match[0], pattern), re.ASCII)


def _told(error: ValidationError) -> Iterator[Finding]:
    """Give what a person needs to mend a fault: one finding for each member that is missing or too many."""
    path, keyword, value, instance = error.absolute_path, error.validator, error.validator_value, error.instance
    match keyword:
        case "additionalProperties" | "unevaluatedProperties" if isinstance(instance, dict) and value is False:
            known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
            for name in sorted(instance.keys() - known.keys())[:MOST_FINDINGS]:
                yield _finding((*path, _clipped(name)), "an unknown member", "no such member", instance[name])
        case "required" if isinstance(instance, dict) and isinstance(value, list):
            missing = error.message.split("'")[1] if error.message.startswith("'") else ""
            yield _finding((*path, missing), "a member is missing", "to be there", _NOTHING)
        case "type":
            kinds = value if isinstance(value, list) else [value]
            yield _finding(path, "another type", " or ".join(map(str, kinds)), instance)
        case "enum":
            yield _finding(path, "another value", " · ".join(map(str, value))[:_SHOWN], instance)
        case "const":
            yield _finding(path, "another value", json.dumps(value), instance)
        case "pattern" | "format":
            yield _finding(path, f"not of the {keyword}", str(value), instance)
        case "propertyNames":
            yield _finding(path, "a name of a member is not allowed", "", instance)
        case "not":
            yield _finding(path, "what does not belong here", f"not {json.dumps(value)[:_SHOWN]}", instance)
        case "oneOf" | "anyOf":
            yield _finding(path, "none of the forms that are allowed here, or several", _forms(value), instance)
        case _:
            yield _finding(path, f"against `{keyword}`", json.dumps(value)[:_SHOWN], instance)


_NOTHING: Any = object()


def _forms(value: Any) -> str:
    return " or ".join(
        "with " + ", ".join(form["required"]) if "required" in form else str(form.get("type", form.get("$ref", "…")))
        for form in value
        if isinstance(form, dict)
    )[:_SHOWN]


def _finding(path: Any, message: str, expected: str, got: Any) -> Finding:
    shown = "nothing" if got is _NOTHING else got if isinstance(got, str) else _glimpse(got)
    where = pointer(_clipped(part) if isinstance(part, str) else part for part in path)
    return Finding(
        code="SCHEMA", severity="error", where=where, message=message, expected=expected, got=_clipped(shown)
    )


def _glimpse(value: Any) -> str:
    """Return a value in short, without going through all of it."""
    if isinstance(value, dict):
        return f"an object of {len(value)} members"
    if isinstance(value, list):
        return f"a list of {len(value)} items"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value)


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
