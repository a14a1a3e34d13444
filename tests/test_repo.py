"""The tree itself: nothing of one machine or person in it; its texts agree with what is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from trainmem_audit import __version__
from trainmem_audit.documents import findings
from trainmem_audit.documents.common import Document
from trainmem_audit.documents.manifest import SCHEMA_VERSION, UNLISTED, Manifest, StepLog
from trainmem_audit.documents.steplog import LINE_TYPES, Component, Order, Stream

ROOT = Path(__file__).resolve().parent.parent
FOUND = [getattr(findings, name) for name in findings.__all__]
NOT_OURS = {".git", ".venv", "demo-out", "dist", "build", "out", "__pycache__"}

HOSTS = {
    "arxiv.org",
    "docs.oasis-open.org",
    "in-toto.io",
    "json-schema.org",
    "keepachangelog.com",
    "raw.githubusercontent.com",
    "semver.org",
    "slsa.dev",
    "w3id.org",
    "www.apache.org",
    "www.rfc-editor.org",
    "www.w3.org",
}
"""Every host that a text of ours may name. Invented ones end in a reserved name (RFC 2606)."""
RESERVED = re.compile(r"(^|\.)(example(\.(com|net|org))?|test|invalid|localhost)$")


@cache
def texts() -> dict[str, str]:
    """Return the text files of the tree by relative path: what git would take, else what is not built."""
    found = {}
    for path in tracked() or walked():
        try:
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
    return found


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        return []
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def walked() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(("_cache", ".egg-info"))]
        found += [Path(folder) / name for name in names]
    return found


def hits(pattern: re.Pattern[str]) -> list[tuple[str, re.Match[str]]]:
    """Give (place, match) for every match in the tree."""
    return [
        (f"{name}:{text.count(chr(10), 0, match.start()) + 1}", match)
        for name, text in texts().items()
        for match in pattern.finditer(text)
    ]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", texts()["Makefile"], re.MULTILINE))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_no_path_of_this_machine_is_in_the_tree() -> None:
    places = {str(path) + "/" for path in (ROOT, Path.home()) if len(path.parts) > 1}
    pattern = re.compile("|".join(rf"(?<![\w.}}/]){re.escape(place)}" for place in sorted(places)))
    assert not [place for place, _ in hits(pattern)]


def test_no_home_directory_is_in_what_is_shipped() -> None:
    """Tests and vectors may invent some, to see that they are not recorded."""
    pattern = re.compile(r"/(home|Users)/[A-Za-z][\w.-]*/|[A-Z]:\\Users\\")
    assert not [place for place, _ in hits(pattern) if not place.startswith(("tests/", "schema/draft/vectors/"))]


def test_no_mail_address_is_in_the_tree() -> None:
    pattern = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})")
    assert not [f"{place} {match[0]}" for place, match in hits(pattern) if not RESERVED.search(match[1].lower())]


def test_only_known_hosts_are_named() -> None:
    pattern = re.compile(r"\bhttps?://(?:[^\s/@\"'<>]+@)?([A-Za-z0-9.-]*[A-Za-z0-9])")
    unknown = [
        f"{place} {match[0]}"
        for place, match in hits(pattern)
        if match[1].lower() not in HOSTS
        and not RESERVED.search(match[1].lower())
        and not (place.startswith("tests/") and "." not in match[1])  # invented: no such host can be
    ]
    assert not unknown


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".ci/run"])
def test_where_packages_come_from_is_left_to_the_machine(name: str) -> None:
    if not (ROOT / name).exists():
        pytest.skip("not in an sdist")
    assert not re.search(r"index-url|find-links|trusted-host|--proxy|\bindexes?\s*=", read(name))


def test_citation_has_what_the_format_requires() -> None:
    lines = read("CITATION.cff").splitlines()
    fields = dict(line.split(":", 1) for line in lines if re.match(r"[a-z-]+:", line))
    assert fields["cff-version"].strip() == "1.2.0"
    assert fields["type"].strip() == "software"
    assert fields["version"].strip() == __version__
    assert fields["license"].strip() == "Apache-2.0"
    assert {"message", "title", "authors", "references"} <= set(fields)
    assert not [line for line in lines if "\t" in line or line != line.rstrip()]
    assert "arXiv:2601.21624" in read("CITATION.cff")
    assert "arXiv:2601.16563" in read("CITATION.cff")


def test_the_versions_agree() -> None:
    assert f'version = "{__version__}"' in read("pyproject.toml")
    assert f"`{SCHEMA_VERSION}`" in read("schema/README.md")
    assert re.search(r"^## \[Unreleased\]$", read("CHANGELOG.md"), re.MULTILINE)


def test_the_readme_has_the_two_commands() -> None:
    assert {"demo", "test"} <= make_commands("README.md")


def test_every_make_command_in_a_text_is_a_target() -> None:
    for name in texts():
        if name.endswith(".md"):
            unknown = make_commands(name) - targets()
            assert not unknown, f"{name}: {unknown}"


def make_commands(name: str) -> set[str]:
    """Return the targets of the `make` commands in the code of a Markdown text."""
    text = read(name)
    fenced = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    command = re.compile(r"(?:^|[`$;&(]\s*)make ([a-z][a-z-]*)", re.MULTILINE)
    return {target for code in (*fenced, *inline) for target in command.findall(code)}


def test_every_target_is_phony_and_helped() -> None:
    makefile = read("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == targets()
    assert targets() == set(re.findall(r"^([a-z-]+):[^#\n]* ## ", makefile, re.MULTILINE))


def test_links_between_texts_lead_somewhere() -> None:
    broken = [
        f"{name}: {link}"
        for name, text in texts().items()
        if name.endswith(".md")
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", re.sub(r"`[^`\n]+`", "", text))
        if not (ROOT / name).parent.joinpath(link).exists()
    ]
    assert not broken


@pytest.mark.parametrize("name", ["SECURITY.md", "CHANGELOG.md", "examples/digits/train.py"])
def test_texts_are_there(name: str) -> None:
    assert len(read(name)) > 500


def test_the_example_does_not_know_us() -> None:
    assert not re.search(r"trainmem|audit|record", read("examples/digits/train.py"), re.IGNORECASE)


@pytest.mark.parametrize("model", [*LINE_TYPES.values(), Manifest, StepLog, Component, Stream, Order])
def test_the_format_description_names_every_member(model: type[Document]) -> None:
    described = set(re.findall(r"`(\w+)`", read("schema/README.md")))
    members = {field.alias or name for name, field in model.model_fields.items()}
    assert not members - described


@pytest.mark.parametrize("model", FOUND)
def test_the_description_of_a_verification_names_every_member(model: type[Document]) -> None:
    described = set(re.findall(r"`(\w+)`", read("docs/verification.md")))
    members = {field.alias or name for name, field in model.model_fields.items()}
    assert not members - described


def test_the_description_of_a_verification_names_every_code() -> None:
    modules = ("verify", "envelope", "commitments", "attestations", "parentage")
    code = "".join(read(f"trainmem_audit/{name}.py") for name in modules)
    used = set(re.findall(r'"((?:ENV|KEY|SIG|FILE|LOG|SIDE|STATEMENT|OPEN|ATT|PARENT)(?:-[A-Z]+)?)"', code))
    described = set(re.findall(r"`([A-Z]+(?:-[A-Z]+)?)`", read("docs/verification.md")))
    assert len(used) > 10
    assert not used - described


def test_the_format_description_names_every_unlisted_file() -> None:
    assert all(f"`{name}`" in read("schema/README.md") for name in UNLISTED)


def test_the_page_of_the_zoo_s_overhead_shows_the_committed_figures() -> None:
    from benchmarks.zoo_overhead import PAGE, RESULTS, page
    from tests.shapes import SHAPES

    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(found), "mend it with: python -m benchmarks.zoo_overhead --page"
    assert [row["shape"] for row in found["rows"]] == [shape.name for shape in SHAPES]
