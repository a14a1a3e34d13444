"""What the fuzz targets start from: the files of small real runs, signed with a key that the targets hold.

With the key a target can be the hostile author too: it signs what it made up, and gets behind the signature.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.logs import FakeRun, MemoryReader
from tests.tools import SCRIPTS, examined, record
from trainmem_audit.assemble import manifest_members
from trainmem_audit.canonical import CHAIN_START, canonical_bytes, chain_digest, line_bytes, sha256_hex
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Statement
from trainmem_audit.envelope import parse_envelope, seal
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import Signer
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader
from trainmem_audit.trust import Entry, Trust
from trainmem_audit.verify import Examination

__all__ = [
    "AUTHOR",
    "SNAPSHOT",
    "VALUES",
    "Files",
    "Material",
    "author_signs",
    "lines_of",
    "load",
    "make_runs",
    "payload_of",
    "relinked",
    "signed",
    "statement_for",
    "verified",
    "zipped",
]

AUTHOR = Signer.from_seed(bytes(32))
SCRIPTS_OF_RUNS = {"tiny": SCRIPTS / "tiny.py", "ema": SCRIPTS.parent / "zoo" / "ema.py"}
SNAPSHOT = "snapshots/step-2.safetensors"
VALUES = "snapshots/step-2.json"
TRUST = Trust((Entry(("the author",), AUTHOR.public),))

Files = dict[str, bytes]
"""A run in memory: names to contents."""


@dataclass(frozen=True)
class Material:
    """The runs that a target may change: real ones, and a made-up one without long random states."""

    runs: tuple[Files, ...]

    @property
    def first(self) -> Files:
        """The run that most targets change."""
        return self.runs[0]

    def logs(self) -> list[bytes]:
        """Return the step logs."""
        return [run[STEP_FILE] for run in self.runs]


def make_runs(folder: Path, *names: str) -> list[Path]:
    """Record the runs of these names, or all of them, below `folder`, once; return where they are."""
    for name in names or SCRIPTS_OF_RUNS:
        where = folder / name
        if not (where / "run" / "run.json").exists():
            where.mkdir(parents=True, exist_ok=True)
            record(SCRIPTS_OF_RUNS[name], where, home=where / "home", options=("--snapshot-at", "2"))
    return [folder / name / "run" for name in names or SCRIPTS_OF_RUNS]


def load(*run_dirs: Path) -> Material:
    """Return the runs in these directories, signed anew by `AUTHOR`, and a made-up one."""
    real = tuple(_signed_again(_files(path)) for path in run_dirs)
    made_up = FakeRun(3)
    fake = {STEP_FILE: made_up.log(), TENSOR_FILE: made_up.frames(), ORDER_FILE: made_up.order()}
    return Material((*real, author_signs(fake)))


def _files(path: Path) -> Files:
    return {item.relative_to(path).as_posix(): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def _signed_again(files: Files) -> Files:
    return files | signed(parse_envelope(files["run.json"], "run.json").payload)


def signed(payload: bytes) -> Files:
    """Return the envelope and the key of a payload that the author signs, whatever it is."""
    return {"run.json": seal(payload, PAYLOAD_TYPE, AUTHOR), "signer.pub": AUTHOR.public.openssh_line()}


def payload_of(files: Files) -> bytes:
    """Return the statement's bytes."""
    return parse_envelope(files["run.json"], "run.json").payload


def statement_for(files: Files) -> bytes:
    """Return the statement that an author would sign for these files: what the log says, and every digest.

    Raises
    ------
    FormatError
        If no statement follows from the log.
    """
    log = LogReader()
    for line in files[STEP_FILE].split(b"\n")[:-1]:
        log.read(line)
    subject = tuple(
        {"name": name, "digest": {"sha256": sha256_hex(data)}}
        for name, data in sorted(files.items())
        if name not in ("run.json", "signer.pub")
    )
    try:
        statement = Statement.model_validate(
            {
                "_type": STATEMENT_TYPE,
                "subject": subject,
                "predicateType": PREDICATE_TYPE,
                "predicate": manifest_members(log.finish()),
            }
        )
    except ValueError as error:
        raise FormatError("no statement follows from the log", got=str(error)[:200]) from None
    return canonical_bytes(statement.to_json())


def author_signs(files: Files) -> Files:
    """Return the files with the statement that follows from them."""
    return files | signed(statement_for(files))


def relinked(log: bytes) -> bytes:
    """Return a log in canonical spelling whose chain was computed anew: what whoever knows the format can do."""
    head, found = CHAIN_START, []
    for line in log.split(b"\n"):
        try:
            members = json.loads(line)
            members.pop("chain", None)
            body = line_bytes(members)
        except (ValueError, AttributeError, TypeError, RecursionError, FormatError):
            found.append(line)
            continue
        head = chain_digest(head, body)
        found.append(b'{"chain":"' + head.hex().encode() + b'",' + body[1:])
    return b"\n".join(found)


def verified(files: Files, watch: Callable[[Any], None] | None = None) -> Examination:
    """Verify files in memory, as a reviewer who trusts the author's key."""
    reader = MemoryReader(files)
    return examined(reader, trust=TRUST) if watch is None else examined(reader, trust=TRUST, watch=watch)


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED, top: str = "") -> bytes:
    """Return a zip of the files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(top + name), data, method)
    return target.getvalue()


def lines_of(logs: Iterable[bytes]) -> Iterator[bytes]:
    """Yield every line of some logs, with its LF."""
    for log in logs:
        yield from log.splitlines(keepends=True)
