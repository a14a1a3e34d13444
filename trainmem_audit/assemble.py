"""Builds the statement of a run from its log and its files, and signs it: the same way for every end of a run.

A run that ended, one whose recorder failed and one that was killed differ only in what their logs hold, so `record` and
`recover` both end here. Not here: what may be recorded (`recording`), whether it is true (`verify`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit import __version__
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.checkpoints import visibility
from trainmem_audit.commitments import MAX_BYTES, disclosures_bytes, open_commitments, parse_disclosures
from trainmem_audit.contract import contract_members
from trainmem_audit.documents.disclosures import FILE_NAME as DISCLOSURES
from trainmem_audit.documents.manifest import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    SCHEMA_VERSION,
    STATEMENT_TYPE,
    SegmentSupport,
    Statement,
    is_listed,
)
from trainmem_audit.documents.steplog import Component, Study
from trainmem_audit.envelope import seal
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.rundir import DirectoryReader, write_atomic
from trainmem_audit.steplog import FRAME, ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader, LogSummary, iter_lines

__all__ = ["Recovery", "foreign_files", "manifest_members", "read_log", "recover", "sign_run"]

_CHUNK = 2**20
_SHOWN = 5
_ASIDE = re.compile(r"\..+\.[0-9a-f]{16}")  # what `write_atomic` leaves when it is killed


def sign_run(
    run_dir: Path,
    log: LogSummary,
    signer: Signer,
    extra: tuple[str, ...] = (),
    segments: SegmentSupport | None = None,
) -> Statement:
    """Write `run.json` and `signer.pub` of a run whose log says `log`.

    Parameters
    ----------
    extra:
        What was not recorded, beside what the log itself says.
    segments:
        What a self-test of the recording has found.
    """
    members = _statement(run_dir, log, extra)
    members["predicate"] |= {} if segments is None else {"segments": segments}
    statement = Statement.model_validate(members)
    payload = canonical_bytes(statement.to_json())
    write_atomic(run_dir / "signer.pub", signer.public.openssh_line())
    write_atomic(run_dir / "run.json", seal(payload, PAYLOAD_TYPE, signer))
    return statement


def _statement(run_dir: Path, log: LogSummary, extra: tuple[str, ...]) -> dict[str, Any]:
    present = [name for name in sorted(_own_files(log)) if (run_dir / name).is_file()]
    subject = tuple({"name": name, "digest": {"sha256": _sha256(run_dir / name)}} for name in present)
    return {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": manifest_members(log, extra),
    }


def _own_files(log: LogSummary) -> set[str]:
    """Return the names of the files that the recorder writes: what else lies there is not its own."""
    copies = {file.file for file in log.files.values() if file.file}
    beside = (line.values.file for line in log.snapshots.values() if line.values is not None)
    return {STEP_FILE, TENSOR_FILE, ORDER_FILE, *copies, *log.snapshots, *log.observations, *beside}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def foreign_files(run_dir: Path, statement: Statement) -> list[str]:
    """Return the first few names in a run directory that are not part of the record."""
    signed = {subject.name for subject in statement.subject}
    paths = (path for path in run_dir.rglob("*") if not path.is_dir() or path.is_symlink())
    names = (path.relative_to(run_dir).as_posix() for path in paths)
    others = sorted(name for name in names if is_listed(name) and name not in signed)
    return others if len(others) <= _SHOWN else [*others[:_SHOWN], f"and {len(others) - _SHOWN} more"]


def manifest_members(log: LogSummary, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the members of the manifest that follow from the log; a verifier compares them with the signed ones."""
    begin, end = log.begin, log.end
    if begin is None:
        raise FormatError("the step log has no `begin` line, so nothing is known of the run", where="steps.jsonl")
    run: dict[str, Any] = {"id": begin.nonce, "started": begin.started, "outcome": "killed"}
    if end is not None:
        run |= {"finished": end.finished, "outcome": end.outcome, "exit_code": end.exit_code}
    if log.parent is not None:
        run["parent"] = log.parent
    study = begin.study or Study()
    if study.branch is not None:
        run["branch"] = study.branch
    step_log = {
        "file": "steps.jsonl",
        "rank": begin.rank,
        "count": log.lines,
        "steps": log.steps,
        "chain_head": log.chain_head,
        "merkle_root": log.merkle_root,
        "complete": end is not None,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "checklist_version": SCHEMA_VERSION,
        "producer": {"name": "trainmem-audit", "version": __version__},
        "run": run,
        "command": begin.command,
        "environment": begin.environment,
        "numeric_profile": log.profiles,
        "rng_contract": contract_members(begin, log.streams, log.seeds, log.canary, log.moves),
        "seeds": tuple(log.seeds),
        "canary": log.canary,
        "sources": _measured(log),
        "order": log.loaders,
        "inputs": tuple(log.inputs.values()),
        "files": tuple(log.files.values()),
        "folders": tuple(log.folders.values()),
        "commitments": log.commitments,
        "step_logs": (step_log,),
        "plan": study.plan,
        "arm": study.arm,
        "interventions": tuple(
            {"step": line.i, **{name: getattr(line, name) for name in ("intervention", "changed", "note")}}
            for line in log.interventions
        )
        or None,
        "snapshots": tuple(
            {name: getattr(line, name) for name in ("step", "file", "size", "values", "unchanged")}
            for line in log.snapshots.values()
        ),
        "checkpoints": tuple(
            {**dict(saved), "steps": steps, "count": count}
            for _, (saved, steps, count) in sorted(log.checkpoints.items())
        )
        or None,
        "not_recorded": tuple(sorted({*(end.not_recorded if end else ()), *extra})),
    }


def _measured(log: LogSummary) -> dict[str, Component]:
    """Return the components with the visibility that the last checkpoint beyond weights shows, where there is one."""
    if "state" not in log.checkpoints:
        return log.components
    saved, _, _ = log.checkpoints["state"]
    labels = {name: visibility(saved, name) for name in log.components}
    return {
        name: item if labels[name] is None else item.model_copy(update={"visibility": labels[name]})
        for name, item in log.components.items()
    }


@dataclass(frozen=True)
class Recovery:
    """What `recover` did: the steps that the log holds, and the bytes that were cut off each file."""

    statement: Statement
    steps: int
    cut: dict[str, int]


def recover(run_dir: Path, signer: Signer, why: str = "the run was killed") -> Recovery:
    """Close and sign a killed run as incomplete; cut a torn last line, and the other files to what the log speaks of.

    Parameters
    ----------
    why:
        Why there is no more of it, for the statement.

    Raises
    ------
    UsageError
        If the run is signed already, or nothing was recorded.
    FormatError
        If the log is damaged elsewhere than at its end: then it is evidence, and stays as it is.
    """
    if (run_dir / "run.json").exists():
        raise UsageError("this run is closed and signed already", where="run.json", remedy="trainmem-audit verify")
    with DirectoryReader(run_dir) as reader:  # refuses links and special files, before anything is read or cut
        log = read_log(reader)
        if log.begin is None:
            raise UsageError(
                "the run was killed before its first line was written: nothing was recorded, the script had not begun",
                where="steps.jsonl",
                remedy="remove the directory and record again",
            )
        cut = {"steps.jsonl": _truncate(reader, "steps.jsonl", log.bytes)}
        for name, length in (("tensors.b3", _frames_length), ("order/rank-0.i64", _order_length)):
            if name in reader.names():
                cut[name] = _truncate(reader, name, length(reader, name, log))
        if (size := _drop_openings(reader, run_dir, log)) > 0:
            cut[DISCLOSURES] = size
        spoken_of = _own_files(log)
        for name in reader.names():
            if (
                log.end is None
                and name.startswith(("source/", "snapshots/", "observations/"))
                and name not in spoken_of
            ):
                cut[name] = reader.size(name)  # written, and then its line was not any more
                reader.remove(name)
            elif _ASIDE.fullmatch(name.rpartition("/")[2]):
                reader.remove(name)
    cut = {name: size for name, size in cut.items() if size}
    missing = f"everything after step {log.steps - 1}" if log.steps else "every step"
    extra = () if log.end is not None else (f"{missing}: {why}",)
    return Recovery(sign_run(run_dir, log, signer, extra), log.steps, cut)


def _drop_openings(reader: DirectoryReader, run_dir: Path, log: LogSummary) -> int:
    """Take out the openings that were written just before their digests would have been; return how many bytes."""
    if DISCLOSURES not in reader.names():
        return 0
    data = reader.read(DISCLOSURES, MAX_BYTES)
    document = parse_disclosures(data)
    shown, _ = open_commitments(log.commitments, document)
    opened = {item.name for item in shown if item.opened}
    kept = tuple(item for item in document.disclosures if item.name in opened)
    if len(kept) == len(document.disclosures):
        return 0
    new = disclosures_bytes(document.model_copy(update={"disclosures": kept}))
    write_atomic(run_dir / DISCLOSURES, new, mode=0o600)
    return len(data) - len(new)


def read_log(reader: DirectoryReader) -> LogSummary:
    """Return what the log of a run directory says; a torn last line is left out."""
    log = LogReader()
    if not reader.names():
        return log.finish()
    if "steps.jsonl" not in reader.names():
        raise UsageError("not a run directory", where=reader.label, expected="a directory with steps.jsonl")
    with reader.open("steps.jsonl") as file:
        for line, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), "steps.jsonl"):
            if whole:
                log.check(line)
    return log.finish()


def _frames_length(reader: DirectoryReader, name: str, log: LogSummary) -> int:
    """Return where the last whole frame of a step in the log ends."""
    size = reader.size(name)
    offset = 0
    with reader.open(name) as file:
        while offset + FRAME.size <= size:
            file.seek(offset)
            step, count = FRAME.unpack(file.read(FRAME.size))
            end = offset + FRAME.size + 32 * count
            if step >= log.steps or end > size:
                break
            offset = end
    return offset


def _order_length(reader: DirectoryReader, name: str, log: LogSummary) -> int:
    return min(reader.size(name), 8 * log.indexed_samples)


def _truncate(reader: DirectoryReader, name: str, size: int) -> int:
    cut = reader.size(name) - size
    if cut > 0:
        reader.truncate(name, size)
    return max(cut, 0)
