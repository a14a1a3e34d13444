"""What `twice` says: whether two runs are equal, the first difference, the experiments, and what was shown by them."""

from __future__ import annotations

from typing import Literal

from trainmem_audit.documents.common import Count, Document
from trainmem_audit.documents.findings import Difference

__all__ = ["Cause", "Experiment", "Place", "Remedy", "Twice"]


class Place(Document):
    """A line of the script that asks for what a pin holds still: the clock, entropy, a thread."""

    file: str
    line: Count
    text: str


class Remedy(Document):
    """Lines for the script (or the shell, where `shell` is true), and when to use them."""

    lines: tuple[str, ...]
    note: str = ""
    shell: bool = False


class Experiment(Document):
    """Runs that were equal in what was pinned (`factors`) and free in everything else.

    `differs` is proven by `runs` runs, the last of which came out otherwise (at `step`, in `blame`); `equal` means that
    all of `runs` runs were equal. `skipped` and `failed` say why in `detail`.
    """

    factors: tuple[str, ...]
    outcome: Literal["equal", "differs", "failed", "skipped"]
    runs: Count = 0
    step: Count | None = None
    blame: str = ""
    detail: str = ""


class Cause(Document):
    """One factor that has to be pinned for the runs to be equal."""

    factor: str
    explanation: str
    remedies: tuple[Remedy, ...]
    places: tuple[Place, ...] = ()


class Twice(Document):
    """The result.

    `causes` are the factors that together had to be pinned; more than one if none alone was enough. `proven` says
    whether pinning them made every run equal and not pinning them brought the difference back afterwards. `idle` names
    random streams that differ and from which nothing came that the training shows.
    """

    verdict: Literal["equal", "differs", "undecided"]
    command: str
    runs: Count
    steps: Count
    reason: str = ""
    difference: Difference | None = None
    experiments: tuple[Experiment, ...] = ()
    causes: tuple[Cause, ...] = ()
    proven: bool = False
    evidence: str = ""
    idle: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: str = ""
    exit_code: int
