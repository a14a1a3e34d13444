"""L5: the schemas as a page for people, in Markdown (`docs/schema.md`), rendered with `templates/schema.md.j2`.

Everything on the page comes from the schemas: title, descriptions, types, which members are required. Not here: what no
schema can say (`schema/README.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from trainmem_audit.conformance import SUFFIX, Schemas
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.resources import data_file

__all__ = ["render_page"]


class Member(NamedTuple):
    """A line of a table."""

    name: str
    type: str
    required: bool
    description: str


class Section(NamedTuple):
    """An object with its members; `anchor` is what references lead to."""

    anchor: str
    title: str
    description: str
    is_open: bool
    members: tuple[Member, ...]


class Page(NamedTuple):
    """One schema: its objects, and its types that are no objects with members."""

    name: str
    file: str
    title: str
    description: str
    sections: tuple[Section, ...]
    types: tuple[Member, ...]


def render_page(schemas: Schemas, version: str = SCHEMA_VERSION) -> str:
    """Return the page of all schemas of a version; what they share comes last."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(data_file("templates", "schema.md.j2").read_text("utf-8"))
    names = sorted(schemas.names(version), key=lambda name: (name == "common", name))
    return template.render(version=version, pages=[_page(name, schemas.load(name, version)) for name in names])


def _page(name: str, schema: dict[str, Any]) -> Page:
    objects = [(key, node) for key, node in schema.get("$defs", {}).items() if "properties" in node]
    others = [(key, node) for key, node in schema.get("$defs", {}).items() if "properties" not in node]
    sections = [_section(name, "", schema)] if len(schema.get("properties", {})) > 1 else []
    sections += [_section(name, key, node) for key, node in objects]
    types = [Member(_anchored(name, key), _type(node, name), False, _text(node)) for key, node in others]
    return Page(name, name + SUFFIX, schema["title"], _text(schema), tuple(sections), tuple(types))


def _section(name: str, key: str, node: dict[str, Any]) -> Section:
    return Section(
        _anchor(name, key),
        key or "the document",
        _text(node),
        node.get("additionalProperties") is not False,
        tuple(_members(name, node)),
    )


def _members(name: str, node: dict[str, Any]) -> Iterator[Member]:
    for key, member in node["properties"].items():
        yield Member(f"`{key}`", _type(member, name), key in node.get("required", ()), _text(member))


def _text(node: dict[str, Any]) -> str:
    return _cell(str(node.get("description", "")))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _anchor(name: str, key: str) -> str:
    return f"{name}-{key}".lower() if key else name


def _anchored(name: str, key: str) -> str:
    return f'<a id="{_anchor(name, key)}"></a>`{key}`'


def _type(node: dict[str, Any], name: str) -> str:
    """Return in words what a value must be."""
    if "$ref" in node:
        file, _, fragment = node["$ref"].partition("#")
        key = fragment.rpartition("/")[2]
        return f"[{key}](#{_anchor(file.removesuffix(SUFFIX) or name, key)})"
    if "const" in node:
        return f"`{_json(node['const'])}`"
    if "enum" in node:
        return " · ".join(f"`{_json(value)}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(option, name) for option in node["anyOf"])
    return _compound(node, name) + _bounds(node)


def _compound(node: dict[str, Any], name: str) -> str:
    kind = node.get("type", "anything")
    if "prefixItems" in node:
        return "[" + ", ".join(_type(item, name) for item in node["prefixItems"]) + "]"
    if kind == "array":
        return f"list of {_type(node.get('items', {}), name)}"
    if kind == "object" and isinstance(node.get("additionalProperties"), dict):
        names = _type(node["propertyNames"], name) if "propertyNames" in node else "name"
        return f"map of {names} to {_type(node['additionalProperties'], name)}"
    if kind == "object" and "properties" in node:
        return "object: " + ", ".join(f"`{key}` {_type(member, name)}" for key, member in node["properties"].items())
    if "pattern" in node:
        return f"text `{_cell(node['pattern'])}`"
    words = {"string": "text", "boolean": "true or false"}
    return " or ".join(words.get(item, str(item)) for item in (kind if isinstance(kind, list) else [kind]))


def _bounds(node: dict[str, Any]) -> str:
    """Return the bounds of a number, a text or a list, where a person would want them."""
    if "prefixItems" in node:
        return ""
    low = next((node[key] for key in ("minimum", "minLength", "minItems", "minProperties") if key in node), None)
    high = next((node[key] for key in ("maximum", "maxLength", "maxItems", "maxProperties") if key in node), None)
    if low is None or high is None:
        return "" if low == high else f", at most {high}" if low is None else f", at least {low}"
    return f", {low} to {high}"


def _json(value: Any) -> str:
    return _cell(value if isinstance(value, str) else str(value).lower())
