"""The self-test of a recording: replays a drawn segment and the last of a run that has ended, before it is signed.

A process of its own (`python -c … main`), so that nothing of the script's is in it: the launcher hands over on stdin
where the run lies, and reads from stdout whether a replay of segments comes out (`documents.manifest.SegmentSupport`).
The draw is that of a reviewer, with the run's own id as nonce. Not here: signing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trainmem_audit.assemble import manifest_members, read_log
from trainmem_audit.documents.manifest import PREDICATE_TYPE, STATEMENT_TYPE, SegmentSupport, Statement
from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.replaying.replay import ReplayOptions, replay
from trainmem_audit.replaying.segments import Draw
from trainmem_audit.rundir import DirectoryReader

__all__ = ["main", "trial"]


def main() -> None:
    """Do what stdin asks for."""
    print(json.dumps(trial(json.load(sys.stdin)).to_json()))


def trial(order: dict[str, Any]) -> SegmentSupport:
    """Replay one segment of the run in `runDir`.

    Parameters
    ----------
    order:
        `runDir`, `data` (where inputs lie), `source` (where code lies that was not copied, or `None`), `secrets` (the
        values of the redacted arguments, in their order).
    """
    try:
        with DirectoryReader(Path(order["runDir"])) as reader:
            statement = _unsigned(reader)
            secrets = iter(order["secrets"])
            options = ReplayOptions(
                consent=lambda _: True,
                secret=lambda _: str(next(secrets, "")),
                segments=Draw(1, bytes.fromhex(statement.predicate.run.id), test=True),
                source=None if order["source"] is None else Path(order["source"]),
                data=tuple(Path(folder) for folder in order["data"]),
            )
            found = replay(reader, statement, options)
    except TrainmemAuditError as error:
        return SegmentSupport(supported=False, reason=f"the self-test could not run: {error.message}")
    tested = found.segments.replayed[0] if found.segments is not None and found.segments.replayed else None
    return SegmentSupport(
        supported=found.outcome == "match",
        reason="" if found.outcome == "match" else found.reason,
        first=None if tested is None else tested.first,
        last=None if tested is None else tested.last,
    )


def _unsigned(reader: DirectoryReader) -> Statement:
    return Statement.model_validate(
        {
            "_type": STATEMENT_TYPE,
            "subject": (),
            "predicateType": PREDICATE_TYPE,
            "predicate": manifest_members(read_log(reader)),
        }
    )
