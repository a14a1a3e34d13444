"""The scratch copy of a replay: code as signed, inputs by their digests, arguments without the author's paths.

Every file is checked against its recorded digest before anything runs. Names come from a checked statement and are
checked again here, for they become paths.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trainmem_audit.canonical import first_changed_line
from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import Argument, Input, SourceFile
from trainmem_audit.errors import FormatError, ReplayError, UsageError
from trainmem_audit.rundir import RunReader, check_name

__all__ = ["Scratch", "build_scratch", "changed_code", "folder_in_tree", "place_in_tree"]

_MAX_CODE = 64 * 2**20
_MOST_NAMES = 20_000


@dataclass
class Scratch:
    """Where the replay runs: `tree` is its working directory; `notes` say what could not be checked.

    `placed` has the SHA-256 of each file of code and each input that was put there, by its recorded name.
    """

    tree: Path
    arguments: list[str]
    changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    placed: dict[str, str] = field(default_factory=dict)


def changed_code(reader: RunReader, manifest: Manifest, source: Path | None) -> Iterator[tuple[SourceFile, bytes, str]]:
    """Yield each code file with its bytes and their digest, from `source` where given, else from the pack.

    Raises
    ------
    UsageError
        If a file is not at hand, naming it.
    """
    for file in manifest.files:
        relative = place_in_tree(file.path)
        if source is not None:
            path = source / relative
            if not path.is_file():
                raise UsageError("a code file of the run is missing", where=str(path), expected=f"sha256 {file.sha256}")
            data = path.read_bytes()
        elif file.file is not None:
            data = reader.read(file.file, _MAX_CODE)
        else:
            raise UsageError(
                "the run was recorded without copies of its code",
                where=file.path,
                expected=f"sha256 {file.sha256}",
                remedy="pass --source DIR with the code",
            )
        yield file, data, hashlib.sha256(data).hexdigest()


def build_scratch(
    root: Path,
    reader: RunReader,
    manifest: Manifest,
    *,
    source: Path | None,
    data: tuple[Path, ...],
    allow_changed: bool,
    secret: Callable[[str], str],
) -> Scratch:
    """Fill `root` with the tree of the run and return it.

    Parameters
    ----------
    source, data:
        Where the reviewer has code and inputs.
    allow_changed:
        Whether code and inputs may differ from what was signed (a what-if).
    secret:
        Gives the value of a redacted argument, from what stands before it (`--token`), or `argument N`.

    Raises
    ------
    UsageError
        If code was changed and may not be; the message names the file.
    ReplayError
        If an input is not at hand.
    """
    climbs = any(item.path.startswith("{parent") for item in manifest.inputs)
    scratch = Scratch(root / ("above-3/above-2/above-1/cwd-of-the-run" if climbs else "tree"), [])
    scratch.tree.mkdir(parents=True)
    for file, content, digest in changed_code(reader, manifest, source):
        if digest != file.sha256:
            line = f":{first_changed_line(content, file.lines)}" if file.lines else ""
            _allow(allow_changed, file.path + line, file.sha256, digest, scratch)
        scratch.placed[file.path] = digest
        _place(scratch.tree / place_in_tree(file.path), content)
    if source is not None and allow_changed:
        _add_new_modules(source, scratch.tree)
    _make_folders(scratch.tree, manifest)
    outside = _place_inputs(root, scratch, manifest, [*data, *([source] if source else [])], allow_changed)
    before = ""
    for number, argument in enumerate(manifest.command.arguments, start=1):
        label = argument.prefix.rstrip("=") or before or f"argument {number}"
        scratch.arguments.append(_argument(argument, scratch.tree, outside, root, partial(secret, label)))
        before = argument.text if argument.text and argument.text.startswith("-") else ""
    return scratch


def _allow(allowed: bool, name: str, expected: str, got: str, scratch: Scratch) -> None:
    if not allowed:
        raise UsageError(
            "the file is not the one that was recorded",
            where=name,
            expected=f"sha256 {expected}",
            got=f"sha256 {got}",
            remedy="take the file from the pack, or replay the change as a what-if with --allow-changed-source",
        )
    scratch.changed.append(name)


def _place_inputs(
    root: Path, scratch: Scratch, manifest: Manifest, folders: list[Path], allow_changed: bool
) -> dict[str, Path]:
    """Copy the inputs into the tree, or those from elsewhere below `elsewhere`; return where arguments find them."""
    outside: dict[str, Path] = {}
    elsewhere = root / "elsewhere"
    named = {argument.path for argument in manifest.command.arguments}
    for item in manifest.inputs:
        if item.path.startswith("{site}/"):
            _check_site(item, scratch)
            continue
        found, digest = _find(item, folders)
        name, _, below = item.path.partition("/")
        if found is None:
            if not below and name not in named:
                scratch.notes.append(f"input {item.path} lay outside of the working directory, and is not at hand")
                continue
            raise ReplayError(
                "an input of the run is not at hand",
                where=item.path,
                expected=f"sha256 {item.sha256}, {item.bytes} bytes",
                remedy="pass --data DIR with the directory that holds it",
            )
        if digest != item.sha256:
            _allow(allow_changed, item.path, item.sha256, digest, scratch)
        scratch.placed[item.path] = digest
        if not below:
            outside[name] = found.resolve()
            continue
        own = item.path.startswith("{")
        target = input_place(scratch.tree, item.path) if own else elsewhere / check_name(item.path, "inputs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)
        if _sha256(target) != digest:
            raise ReplayError("an input was changed while it was copied", where=item.path, expected=f"sha256 {digest}")
        if not own:
            outside[name] = elsewhere / name
    own_paths = [item.path for item in manifest.inputs] + [file.path for file in manifest.files]
    for parts in (path.split("/") for path in own_paths):  # what lay beside a script elsewhere may be an argument too
        if parts[0] == "{script}":
            for depth in range(2, len(parts) + 1):
                outside.setdefault(parts[depth - 1], scratch.tree / place_in_tree("/".join(parts[:depth])))
    return outside


def _find(item: Input, folders: list[Path]) -> tuple[Path | None, str]:
    """Return the file that is an input, and its digest: the one with the right digest before any other of its name."""
    relative = item.path.partition("/")[2] if item.path.startswith("{parent") else item.path
    relative = place_in_tree(relative) if relative.startswith("{") else check_name(relative, "inputs")
    names = (relative, item.path.partition("/")[2], Path(relative).name)  # `DIR` may be what an argument named
    candidates = [folder / name for folder in folders for name in dict.fromkeys(filter(None, names))]
    present = [(path, _sha256(path)) for path in candidates if path.is_file()]
    right = [(path, digest) for path, digest in present if digest == item.sha256]
    best = right or present
    return best[0] if best else (None, "")


def _check_site(item: Input, scratch: Scratch) -> None:
    path = Path(sysconfig.get_path("purelib")) / place_in_tree(item.path)
    if not path.is_file() or _sha256(path) != item.sha256:
        scratch.notes.append(f"{item.path} is another file here than where the run was recorded, or is missing")


def _make_folders(tree: Path, manifest: Manifest) -> None:
    """Make the directories that the script relied on, with an empty file for each name that is not placed."""
    if sum(len(folder.names) for folder in manifest.folders) > _MOST_NAMES:
        raise FormatError("too many names", where="folders", expected=f"at most {_MOST_NAMES}")
    own = [item.path for item in manifest.inputs if item.path.startswith(("{cwd}/", "{script}/"))]
    placed = {place_in_tree(path) for path in (*own, *(file.path for file in manifest.files))}
    try:
        for folder in manifest.folders:
            place = tree / folder_in_tree(folder.path)
            place.mkdir(parents=True, exist_ok=True)
            for name in folder.names:
                _make_entry(place, name, tree, placed)
    except OSError as error:
        raise FormatError(
            "the directories of the record cannot be made", where="folders", got=error.strerror or ""
        ) from None


def _make_entry(folder: Path, name: str, tree: Path, placed: set[str]) -> None:
    plain = check_name(name.removesuffix("/"), "folders")
    if "/" in plain:
        raise FormatError("not the name of a file or directory", where="folders", got=name[:80])
    path = folder / plain
    if name.endswith("/"):
        path.mkdir(exist_ok=True)
    elif path.relative_to(tree).as_posix() not in placed and not path.exists():
        path.touch()


def _add_new_modules(source: Path, tree: Path) -> None:
    """Bring along modules that changed code may import and the recorded code did not."""
    for path in source.rglob("*.py"):
        relative = path.relative_to(source)
        target = tree / relative
        if not target.exists() and not any(part.startswith(".") for part in relative.parts):
            _place(target, path.read_bytes())


def _argument(argument: Argument, tree: Path, outside: dict[str, Path], root: Path, secret: Callable[[], str]) -> str:
    if argument.redacted:
        return argument.prefix + secret()
    if argument.path is None:
        return argument.prefix + (argument.text or "")
    name = argument.path.rstrip("/")
    if name == "{cwd}" or name.startswith("{cwd}/"):
        rest = name.removeprefix("{cwd}").lstrip("/")
        path = tree / check_name(rest, "arguments") if rest else tree
    elif name in outside:
        path = outside[name]
    else:
        path = root / "elsewhere" / check_name(name, "arguments")
    folder = path if argument.path.endswith("/") else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    return argument.prefix + str(path)


def place_in_tree(path: str) -> str:
    """Return the place in the tree of `{cwd}/…`, `{script}/…` or `{site}/…`."""
    label, _, rest = path.partition("/")
    if label not in ("{cwd}", "{script}", "{site}"):
        raise FormatError("not a path of the run", where=path[:200], expected="{cwd}/…")
    name = check_name(rest, "path of the run")
    return f"_script/{name}" if label == "{script}" else name


def input_place(tree: Path, path: str) -> Path:
    """Return where an input of the tree lies; `{parent}`, `{parent2}` and `{parent3}` are the directories above it."""
    match = re.fullmatch(r"\{parent([23]?)\}/(.+)", path, re.DOTALL)
    if match is None:
        return tree / place_in_tree(path)
    levels = int(match[1] or 1)
    target = tree.parents[levels - 1] / check_name(match[2], "inputs")
    if target.is_relative_to(tree if levels == 1 else tree.parents[levels - 2]):
        raise FormatError("a path that leads back into the tree", where="inputs", got=path[:200])
    return target


def folder_in_tree(path: str) -> str:
    """Return the place in the tree of a directory: `{cwd}` and `{script}` themselves, or below them."""
    return {"{cwd}": ".", "{script}": "_script"}.get(path) or place_in_tree(path)


def _place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
