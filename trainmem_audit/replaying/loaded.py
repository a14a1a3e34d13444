"""Was it the signed code and data that ran? Compares what a replay loaded, by its own log, with what was signed.

A replay runs in a copy of the tree, but a script can leave it: by an absolute path, or through a package that is
installed from a live tree. What then comes out says nothing about the record. Pure: not here is what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import End, Input, Inventory, Line, SourceFile, Step
from trainmem_audit.recording.codefiles import ELSEWHERE
from trainmem_audit.replaying.scratch import place_in_tree
from trainmem_audit.steplog import LogSummary

__all__ = ["loaded_by", "unsigned"]

_SHOWN = 5
_UNRECORDED = ("input ", "inputs beyond ", "code imported from outside ")
"""How the entries of `notRecorded` begin that leave a difference without meaning."""


def loaded_by(lines: Iterable[Line], steps: int) -> set[str]:
    """Return the code that the recorded run itself had imported before step number `steps` was over."""
    names: set[str] = set()
    for line in lines:
        if isinstance(line, Inventory):
            names.update(file.path for file in line.files or () if file.role != "read")
        elif isinstance(line, End) or (isinstance(line, Step) and line.i >= steps):
            break
    return names


def unsigned(
    manifest: Manifest,
    placed: Mapping[str, str],
    found: LogSummary,
    required: set[str],
    differs: bool,
    refused: Iterable[str] = (),
) -> str:
    """Return why the replay is one of other code or data than was placed in its tree; empty if it is not.

    Parameters
    ----------
    placed:
        The SHA-256 of each file of code and each input as the replay was given it, by its recorded name.
    found:
        What the replay's own log says.
    required:
        Names of code that the recorded run had imported by the end of the comparison.
    refused:
        Recorded environment variables that were not imposed.
    differs:
        Whether a difference was found: then what the record leaves out counts too.
    """
    signed = _digests(manifest.inputs, manifest.files)
    expected = {_key(name): placed.get(name, digest) for name, digest in signed.items()}
    changed = {_key(name) for name, digest in signed.items() if placed.get(name, digest) != digest}
    loaded = {_key(name): digest for name, digest in _digests(found.inputs.values(), found.files.values()).items()}
    wrong: list[str] = []
    unknown: list[str] = []
    satisfied: set[str] = set()
    for name, digest in loaded.items():
        if name in expected:
            satisfied.add(name)
            if digest != expected[name]:
                wrong.append(name)
        elif name.startswith("{cwd}/"):
            wrong += [] if changed and name.endswith(".py") else [name]
        elif not name.startswith("{site}/"):
            twins = {twin for twin in _twins(name, expected) if twin not in loaded}
            same = {twin for twin in twins if expected[twin] == digest}
            satisfied |= same
            if not same:
                (wrong if twins else unknown).append(f"{name} in place of {min(twins)}" if twins else name)
    needed = {_key(name) for name in required} if not changed else changed & {_key(name) for name in signed}
    missing = sorted(needed - satisfied)
    if wrong:
        return f"other code or data was loaded than was signed: {_names(wrong)}"
    if missing:
        return f"signed code or data was not loaded, so something else ran in its place: {_names(missing)}"
    if not differs or changed:
        return ""
    if unknown:
        return f"code or data was loaded that the record does not hold: {_names(unknown)}"
    left_out = [text for text in manifest.not_recorded if text.startswith(_UNRECORDED)]
    left_out += [f"names in {folder.path}, which was listed" for folder in manifest.folders if folder.partial]
    left_out += [f"the variable {name}, which is not imposed" for name in refused]
    return f"the replay was without what may explain a difference: {'; '.join(left_out[:_SHOWN])}" if left_out else ""


def _digests(inputs: Iterable[Input], files: Iterable[SourceFile]) -> dict[str, str]:
    return {item.path: item.sha256 for item in inputs} | {item.path: item.sha256 for item in files}


def _key(name: str) -> str:
    """Return one name for a file of the tree: what lay beside a script elsewhere lies in the tree too."""
    return "{cwd}/" + place_in_tree(name) if name.startswith("{script}/") else name


def _twins(name: str, expected: Iterable[str]) -> list[str]:
    """Return the signed files that a file from elsewhere may stand for: those that end as it does."""
    tail = name.removeprefix(ELSEWHERE) if name.startswith(ELSEWHERE) else PurePosixPath(name).name
    return [known for known in expected if known == tail or known.endswith("/" + tail)]


def _names(names: Iterable[str]) -> str:
    shown = sorted({name.replace(ELSEWHERE, "…/") for name in names})
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")
