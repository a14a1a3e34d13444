"""The lines of `steps.jsonl` (`schema/README.md` § step log).

Every line is one JSON object in RFC 8785 form whose first member is `chain`. A log is `begin`, then any number of
other lines, then `end`; a killed run has no `end`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainmem_audit.documents.checkpoints import Checkpoint, Parent
from trainmem_audit.documents.common import (
    Count,
    Digest,
    Document,
    ExitCode,
    Extensions,
    Flag,
    FloatText,
    Name,
    OpenDocument,
    RelPath,
    Scalar,
    Sequence,
    Timestamp,
)
from trainmem_audit.documents.declared import DeclaredContract, Purpose
from trainmem_audit.documents.interventions import Arm, Branch, Intervention, Window
from trainmem_audit.errors import FormatError

__all__ = [
    "LINE_TYPES",
    "LOG_FORMAT",
    "MOST_FOLDERS",
    "MOST_NAMES",
    "Argument",
    "AroundDigests",
    "Begin",
    "Command",
    "Component",
    "End",
    "Environment",
    "Epoch",
    "Folder",
    "Input",
    "InterventionLine",
    "Inventory",
    "Line",
    "Loader",
    "Observe",
    "Order",
    "OrderChange",
    "Producer",
    "Resumed",
    "Seed",
    "SourceFile",
    "Step",
    "Stream",
    "Study",
    "Unknown",
    "WorkerStart",
    "parse_line",
]

LOG_FORMAT = "trainmem-audit/step-log/v1"

Base64 = Annotated[str, Field(max_length=2**20, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
CommandText = Annotated[str, Field(max_length=2**20, pattern=r"^[^\x00]*$")]
"""What can stand on a command line."""
MOST_INTERVENTIONS = 1000
"""How many interventions a run may be told to make."""
MOST_FOLDERS = 1000
MOST_NAMES = 1000
MOST_NUMBERS = 64
"""How many directories are listed in a record, how many names of one of them, and how many numbers of a data set."""
LineText = Annotated[str, Field(max_length=1000)]
Values = dict[Name, Any]
"""The values of a component that is no tensor: nested objects and lists of `Scalar`, floats as `FloatText`."""


class Producer(Document):
    """The program that wrote the record."""

    name: Name
    version: Name


class Argument(Document):
    """One command-line argument: exactly one of `text`, `path`, `redacted`, after an optional `prefix` (`--data=`).

    `path` is `{cwd}/…`, or the base name of a path elsewhere: the rest would tell who and where (DESIGN § 2.5).
    """

    prefix: CommandText = ""
    text: CommandText | None = None
    path: RelPath | None = None
    redacted: Flag | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.text, self.path, self.redacted)) != 1:
            raise ValueError("exactly one of text, path, redacted")
        return self


class Command(Document):
    """What was run. `entry` is a script path (`{cwd}/…`, or `{script}/…` outside of it) or a module name.

    That of a program is followed by a colon and the name of a function.

    `interventions` are those that the recorder was told to make, in their text form.
    """

    kind: Literal["script", "module", "library", "program"]
    entry: RelPath
    arguments: Sequence[Argument] = ()
    hash_seed: Annotated[str, Field(pattern=r"^([0-9]{1,10}|random)$")]
    interpreter_options: Sequence[Name] = ()
    interventions: Annotated[Sequence[CommandText], Field(min_length=1, max_length=MOST_INTERVENTIONS)] | None = None


class Environment(Document):
    """The software and the machine, without anything that names a person or a host."""

    python: Name
    implementation: Name
    system: Name
    machine: Name
    cpu: Name
    cpu_count: Count
    packages: dict[Name, Name]
    variables: dict[Name, str]


class Stream(Document):
    """A random stream with its full state: `state` is base64 of the generator's own bytes (`schema/README.md`).

    `library` says whose generator it is: `python`, `numpy`, `torch`, or another that we know nothing of.
    """

    library: Name
    algorithm: Name
    device: Name
    state: Base64
    gauss: FloatText | None = None


class Component(Document):
    """A component of training memory: its labels (STANDARD § 1) and its header.

    `tensors` lists [name, dtype, shape] in the order of the digests; a component of plain values has `values` instead.
    """

    source: Literal["S1", "S2", "S3", "S4", "S5"]
    lifetime: Literal["micro", "meso", "macro"]
    lifetime_steps: FloatText | None = None
    visibility: Literal["checkpointed", "in-process", "implicit", "unknown"]
    tensors: Sequence[tuple[str, Name, Sequence[Count]]] | None = None
    values: Values | None = None
    bytes: Count


class Loader(Document):
    """The settings of one data loader."""

    kind: Name
    dataset: Name
    sampler: Name
    settings: dict[Name, Scalar]


class Input(Document):
    """A file that the script opened for reading, or that `--input` names."""

    path: RelPath
    sha256: Digest
    bytes: Count


class Folder(Document):
    """A directory of the author's tree that was there before the run and that the script relied on.

    `names` is what it held: when it was listed, and of files that were removed unread (directories end in a slash).
    `partial` says that there were more names, or some that are not recorded.
    """

    path: RelPath
    names: Annotated[tuple[RelPath, ...], Field(max_length=MOST_NAMES)] = ()
    partial: Flag | None = None


class SourceFile(Document):
    """A file of code that ran. `file` is its copy in the run directory (absent under `--no-source`).

    `role`: the entry point, imported by this process, or only read by it (run as text, or imported by a worker).

    `lines` are the marks of its lines (`canonical.line_marks`), which tell where a changed copy was changed.
    """

    path: RelPath
    role: Literal["entry", "imported", "read"]
    sha256: Digest
    file: RelPath | None = None
    lines: Base64 | None = None


class Seed(Document):
    """A seed that the script passed to a generator: which function, where, the number as text.

    `imposed` at a replay says that the script came with another number, and the recorded one was used.
    """

    call: Name
    site: RelPath
    value: Annotated[str, Field(max_length=400)]
    imposed: Flag | None = None


class Resumed(Document):
    """An optimizer was given a saved state: its class, and the steps that the state had behind it, if known."""

    optimizer: Name
    steps: Count | None = None


class WorkerStart(Document):
    """A worker process of a loader, when it was ready for its first batch.

    `streams` are the digests of its random streams then, `consumed` those of them that its first batch drew from.
    """

    loader: Name
    epoch: Count
    worker: Count
    streams: dict[Name, Digest]
    consumed: Sequence[Name] = ()


class Study(Document):
    """What a run is within a study: SHA-256 of the plan, which arm, and where it left the run that arms share."""

    plan: Digest | None = None
    arm: Arm | None = None
    branch: Branch | None = None


class Begin(Document):
    """The first line: what is known before the script runs.

    `root_entropy` is what the random streams start from that the script does not seed, where that is not the nonce.
    """

    kind: ClassVar[str] = "begin"
    chain: Digest
    t: Literal["begin"]
    format: Literal["trainmem-audit/step-log/v1"]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    rank: Count
    world: Count
    started: Timestamp
    producer: Producer
    command: Command
    environment: Environment
    streams: dict[Name, Stream]
    tensor_budget: Count
    declared_contract: DeclaredContract | None = None
    root_entropy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    study: Study | None = None
    extensions: Extensions | None = None


class Inventory(Document):
    """Something appeared or changed shape before step `i`; only the members that changed are there."""

    kind: ClassVar[str] = "inventory"
    chain: Digest
    t: Literal["inventory"]
    i: Count
    components: dict[Name, Component] | None = None
    state: dict[Name, Digest] | None = None
    streams: dict[Name, Stream] | None = None
    profile: dict[Name, Scalar] | None = None
    rng_canary: dict[Name, Digest] | None = None
    loaders: dict[Name, Loader] | None = None
    inputs: Sequence[Input] | None = None
    files: Sequence[SourceFile] | None = None
    seeds: Sequence[Seed] | None = None
    folders: Annotated[Sequence[Folder], Field(max_length=MOST_FOLDERS)] | None = None
    draws: dict[Name, Sequence[Purpose]] | None = None
    workers: Sequence[WorkerStart] | None = None
    resumed: Sequence[Resumed] | None = None
    checkpoints: Sequence[Checkpoint] | None = None
    parent: Parent | None = None
    commitments: dict[Name, Digest] | None = None
    extensions: Extensions | None = None


class Epoch(Document):
    """A data loader began an epoch of training: `rng` are the streams as they were when its iterator was made.

    `sampler_epoch` is the epoch that the sampler was told (`set_epoch`), `worker_seed` what the seeds of its workers
    follow from, `data` the numbers among the data set's own attributes, when they are not those of the epoch before.
    """

    kind: ClassVar[str] = "epoch"
    chain: Digest
    t: Literal["epoch"]
    i: Count
    epoch: Count
    loader: Name
    rng: dict[Name, Digest]
    sampler_epoch: Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)] | None = None
    worker_seed: Annotated[str, Field(pattern=r"^-?[0-9]{1,20}$")] | None = None
    data: Annotated[dict[Name, Scalar], Field(max_length=MOST_NUMBERS)] | None = None
    extensions: Extensions | None = None


class Order(Document):
    """The batches consumed by one step: digests of the sample indices (where there are any) and of the content.

    `parts` is [loader, epoch, samples] for each, where not all samples are of the epoch that began last.
    """

    index: Digest | None = None
    content: Digest
    n: Count
    batches: Count
    parts: Sequence[tuple[Name, Count, Count]] | None = None


class Step(Document):
    """One outermost attempt of `optimizer.step()`; the state is taken when it returns.

    `skipped` attempts are those that a gradient scaler did not let through, since gradients were not finite.
    """

    kind: ClassVar[str] = "step"
    chain: Digest
    t: Literal["step"]
    i: Count
    optimizer: Name | None = None
    skipped: Flag | None = None
    order: Order | None = None
    inputs: Digest | None = None
    state: dict[Name, Digest]
    rng: dict[Name, Digest]
    scalars: dict[Name, Sequence[FloatText]] | None = None
    values: dict[Name, Values] | None = None
    extensions: Extensions | None = None


class KeptFile(Document):
    """A file of the run directory, and its length in bytes."""

    file: RelPath
    size: Count


class Snapshot(Document):
    """The tensors of the state after step `i` - 1 are in `file`, which has `size` bytes.

    `values` is the file with what is no tensor (values of components, full states of random streams). The tensors of
    the components in `unchanged` are those that the snapshot of the step named there holds.
    """

    kind: ClassVar[str] = "snapshot"
    chain: Digest
    t: Literal["snapshot"]
    i: Annotated[int, Field(ge=1, le=2**53 - 1)]
    file: RelPath
    size: Count
    values: KeptFile | None = None
    unchanged: dict[Name, Count] | None = None
    extensions: Extensions | None = None

    @property
    def step(self) -> int:
        """The step whose state it is."""
        return self.i - 1


class AroundDigests(Document):
    """Digests right before and right after an intervention, by the names of what they are of."""

    before: dict[Name, Digest]
    after: dict[Name, Digest]


class OrderChange(Document):
    """What an intervention on the order did to the batches to come.

    `multiset` is BLAKE3 of the sorted sample indices of the windows, `before` and `after` of all that were planned.
    """

    windows: Annotated[Sequence[Window], Field(min_length=1, max_length=2)] | None = None
    multiset: Digest | None = None
    before: Digest | None = None
    after: Digest | None = None


class InterventionLine(Document):
    """Something was done between step `i` - 1 and step `i`; all components and streams are here (decision 0055).

    `changed` are the components that differ, without those that share all that changed with one that is named. It is
    empty for a no-op, and `note` says why.
    """

    kind: ClassVar[str] = "intervention"
    chain: Digest
    t: Literal["intervention"]
    i: Count
    intervention: Intervention
    state: AroundDigests
    rng: AroundDigests
    changed: Sequence[Name]
    order: OrderChange | None = None
    facts: Annotated[dict[Name, LineText], Field(max_length=64)] | None = None
    note: LineText | None = None
    values: dict[Name, Values] | None = None
    extensions: Extensions | None = None


class Observe(Document):
    """Predictions on the probe after `i` steps are in `file`, which has `size` bytes (`observations`)."""

    kind: ClassVar[str] = "observe"
    chain: Digest
    t: Literal["observe"]
    i: Count
    file: RelPath
    size: Count
    extensions: Extensions | None = None


class End(Document):
    """The last line of a run that ended by itself."""

    kind: ClassVar[str] = "end"
    chain: Digest
    t: Literal["end"]
    i: Count
    finished: Timestamp
    outcome: Literal["finished", "raised", "exited", "interrupted"]
    exit_code: ExitCode
    state: dict[Name, Digest]
    rng: dict[Name, Digest]
    values: dict[Name, Values] | None = None
    profile: dict[Name, Scalar] | None = None
    not_recorded: Sequence[str] = ()
    extensions: Extensions | None = None


class Unknown(OpenDocument):
    """A line of a type that a newer minor version has and this one does not: chained, counted, and not understood."""

    chain: Digest
    t: Name


Known = Begin | Inventory | Epoch | Step | Snapshot | InterventionLine | Observe | End
Line = Known | Unknown
LINE_TYPES: dict[str, type[Known]] = {
    model.kind: model for model in (Begin, Inventory, Epoch, Step, Snapshot, InterventionLine, Observe, End)
}


def parse_line(
    line: bytes, members: dict[str, Any], where: str, extra: Literal["ignore", "forbid"] | None = None
) -> Line:
    """Return the model of a line that `canonical.split_line` has parsed to `members`; `extra` as in `Document.parse`.

    Raises
    ------
    FormatError
        If its type `t` is unknown or a member is wrong.
    """
    kind = members.get("t")
    model = LINE_TYPES.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise FormatError("unknown type of line", where=where, expected=" · ".join(LINE_TYPES), got=repr(kind)[:40])
    parsed: Line = model.parse(line, where, extra)
    return parsed
