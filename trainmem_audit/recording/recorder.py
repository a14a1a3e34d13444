"""The library door: `with Recorder("run") as recorder:` around a training loop of one's own, in a notebook too.

The random streams are recorded as they are, and never set. A run recorded this way is replayed by running the program
again under the launcher, so `verify --replay` answers `not-run` for it.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import trainmem_audit.recording.session  # noqa: F401  (torch is wanted here: import it before recording begins)
from trainmem_audit.documents.declared import find_contract
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.errors import UsageError
from trainmem_audit.interventions import parse_at_step, text_of
from trainmem_audit.keys import Signer, load_or_make_project_key
from trainmem_audit.recording.provenance import facts
from trainmem_audit.recording.recording import DEFAULT_TENSOR_BUDGET, Options, Recording, say
from trainmem_audit.snapshots import DEFAULT_SNAPSHOT_BUDGET
from trainmem_audit.sources.tracked import TrackedSource

__all__ = ["Recorder"]


class Recorder:
    """Records every optimizer step between `__enter__` and `__exit__`.

    Parameters
    ----------
    run_dir:
        Where the record is written; must not exist, or be empty.
    signer:
        The key that signs; the project's own key, made when there is none, if left out.
    tensor_budget:
        Bytes of tensor digests that are kept (the rest is thinned).
    inputs:
        Files that the training reads, for readers that Python does not see.
    rng_contract:
        The file that declares random streams and order; `rng-contract.toml` in the working directory if left out.
    snapshots:
        Keep the whole state after every so many steps; 0 keeps none, `auto` as many as a hundredth of the time allows.
    snapshot_at:
        Steps after which the whole state is kept besides.
    snapshot_budget:
        Bytes that all snapshots may take; the interval grows as they are used up.
    commitments:
        Whether to commit, by salted digests, to git commit, remote, author and places of data (`recording.provenance`).
    interventions:
        What to do to the memory and when, in the text form of `trainmem_audit.interventions`. One that cannot be done
        ends the block with an `InterventionError`.

    Attributes
    ----------
    statement:
        What was signed, after the block; `None` if the recording broke off.
    error:
        Why it broke off. It is said on standard error and not raised: what comes after the block runs all the same.

    Examples
    --------
    >>> with Recorder("run") as recorder:  # doctest: +SKIP
    ...     train(model, optimizer, loader)
    >>> recorder.statement.predicate.run.outcome  # doctest: +SKIP
    'finished'
    """

    def __init__(
        self,
        run_dir: str | Path = "run",
        *,
        signer: Signer | None = None,
        tensor_budget: int = DEFAULT_TENSOR_BUDGET,
        inputs: tuple[str | Path, ...] = (),
        rng_contract: str | Path | None = None,
        snapshots: int | Literal["auto"] = 0,
        snapshot_at: Iterable[int] = (),
        snapshot_budget: int = DEFAULT_SNAPSHOT_BUDGET,
        commitments: bool = True,
        interventions: Sequence[str] = (),
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.statement: Statement | None = None
        self.error: Exception | None = None
        self._signer = signer
        self._tensor_budget = tensor_budget
        self._inputs = tuple(Path(path) for path in inputs)
        self._rng_contract = None if rng_contract is None else Path(rng_contract)
        self._snapshots = snapshots
        self._snapshot_at = frozenset(snapshot_at)
        self._snapshot_budget = snapshot_budget
        self._commitments = commitments
        self._interventions = [text_of(*parse_at_step(text)) for text in interventions]
        self._recording: Recording | None = None
        self._tracked: list[TrackedSource] = []

    @property
    def steps(self) -> int:
        """The number of steps recorded so far."""
        session = self._recording.session if self._recording is not None else None
        return session.steps if session is not None else 0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent by part: on the training thread (`state`, `rng`, `batch`, `inputs`, `line`) and in `writer`."""
        if self._recording is None or self._recording.session is None:
            return {}
        return {**self._recording.session.seconds, "writer": self._recording.writer_seconds}

    def track(self, name: str, memory: Any, source: str = "S4") -> None:
        """Report memory that is not found by itself, as `bank.NAME`, at every step from the next one on.

        Parameters
        ----------
        name:
            What it is called in the record.
        memory:
            A tensor, an array, a container of tensors or of records (tuples), a module, an object that holds these; or
            a function without arguments that returns it, for what is bound anew.
        source:
            Its class, S1 to S5.

        Raises
        ------
        UsageError
            If it cannot be digested, or its name is in use.
        """
        found = TrackedSource(name, memory, source)
        if self._recording is not None and self._recording.session is not None:
            self._recording.session.track(found)
        else:
            self._tracked.append(found)

    def __enter__(self) -> Self:
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise UsageError("the run directory is not empty", where=str(self.run_dir), remedy="choose another one")
        self._signer = self._signer or load_or_make_project_key(Path.cwd(), None)[0]  # while the script is where it is
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._recording = Recording(self._options())
        self._recording.start()
        for source in self._tracked:
            assert self._recording.session is not None
            self._recording.session.track(source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._recording is not None
        outcome = "finished" if kind is None else "interrupted" if kind is KeyboardInterrupt else "raised"
        try:
            self.statement = self._recording.finish(outcome, int(kind is not None), self._signer)
        except Exception as failure:  # the program goes on without a record, or with its own error, which matters more
            self.error = failure
            say(str(failure))

    def _options(self) -> Options:
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        entry = Path(main).absolute() if main else None
        command: dict[str, Any] = {
            "kind": "library",
            "entry": entry.name if entry is not None else "interactive",
            "hashSeed": "random",
        }
        if self._interventions:
            command["interventions"] = self._interventions
        return Options(
            run_dir=self.run_dir,
            cwd=Path.cwd(),
            command=command,
            nonce=secrets.token_hex(16),
            entry=entry,
            tensor_budget=self._tensor_budget,
            inputs=self._inputs,
            contract=find_contract(self._rng_contract, Path.cwd()),
            snapshot_every=0 if self._snapshots == "auto" else self._snapshots,
            snapshot_auto=self._snapshots == "auto",
            snapshot_at=self._snapshot_at,
            snapshot_budget=self._snapshot_budget,
            facts=facts(Path.cwd(), entry) if self._commitments else None,
            draw_starts=False,
        )
