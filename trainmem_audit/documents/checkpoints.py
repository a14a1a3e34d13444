"""What is recorded of a checkpoint that the script saved, and of the run that a resumed one goes on from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Count, Digest, Document, Flag, Name, RelPath, Sequence

__all__ = ["MOST_CHECKPOINTS", "MOST_MISSING", "Checkpoint", "CheckpointSummary", "Held", "HeldVerdict", "Parent"]

MOST_CHECKPOINTS = 1000
"""How many checkpoints of a run are recorded."""
MOST_MISSING = 16
"""How many tensors that a checkpoint lacks are named for each component."""

HeldVerdict = Literal["whole", "part", "stale", "absent", "maybe", "constant"]
"""Whether a checkpoint holds something as it was when it was saved.

`whole`: it does; `part`: not all of its tensors; `stale`: something of its name and shape is there with another value;
`absent`: nothing of it is there; `maybe`: that cannot be told from what is saved; `constant`: it is not there and had
not changed since training began, so nothing is lost.
"""


class Held(Document):
    """One component in a checkpoint; `missing` names tensors that are not in it, the first few of `missing_count`."""

    verdict: HeldVerdict
    missing: Annotated[Sequence[Name], Field(max_length=MOST_MISSING)] = ()
    missing_count: Count = 0


class Checkpoint(Document):
    """An object that the script saved, compared with what was recorded at that moment.

    `kind`: `state` goes beyond weights (an optimizer's state, a random state), `weights` does not. A file that could
    not be read after it was written has no digest; what was saved into memory has no `file` either. `order` is the
    position in the data loader's epoch. `partial` says that the object was too large to be looked through.
    """

    kind: Literal["state", "weights"]
    file: RelPath | None = None
    sha256: Digest | None = None
    bytes: Count | None = None
    components: dict[Name, Held]
    streams: dict[Name, HeldVerdict]
    order: HeldVerdict | None = None
    partial: Flag | None = None


class CheckpointSummary(Checkpoint):
    """The last checkpoint of its kind: saved when `steps` steps were done, the last of `count` that are recorded."""

    steps: Count
    count: Count


class Parent(Document):
    """The run that this one goes on from, told by a checkpoint that it saved and this one has read.

    `run` is its id, `chain` the link of the line of its log that records the checkpoint, `steps` how many steps came
    before, `sha256` the digest of the file.
    """

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    chain: Digest
    steps: Count
    sha256: Digest
