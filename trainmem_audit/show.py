"""L5: the statement of a run for a person, on one screen: at most 40 lines of 100 columns.

What does not fit is counted, never silently left out. Not here: checking anything (`verify`), the long form (`report`);
without a `Signature` the text says that none was checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from trainmem_audit.checkpoints import summary_text
from trainmem_audit.commitments import fact_text
from trainmem_audit.documents.findings import Attestation, Opening, Signature
from trainmem_audit.documents.manifest import Manifest, Statement
from trainmem_audit.documents.steplog import Component
from trainmem_audit.interventions import text_of
from trainmem_audit.report import command_line, package_order, run_seconds
from trainmem_audit.segments import support_text
from trainmem_audit.text import clip, columns, duration_text, safe_text, size_text

__all__ = ["statement_text"]

_WIDTH: Final = 100
_LABEL: Final = 14
_SETTINGS_FIRST: Final = ("batch_size", "samples", "num_workers", "drop_last", "replacement")
_MOST_COMPONENTS: Final = 10
_MOST_LOADERS: Final = 2
_MOST_LOGS: Final = 2
_MOST_LEFT_OUT: Final = 2
_MOST_ATTESTED: Final = 3
_MOST_INTERVENTIONS: Final = 3
_FACTS_FIRST: Final = ("git.commit", "git.dirty", "author", "git.remote")
_TWO_LINES: Final = frozenset({"checkpoints", "command", "committed", "order", "packages"})
"""What may go on in a second line; everything else is cut off at the end of its own."""

_STATES: Final = {
    "trusted": "trusted",
    "self": "valid, own key",
    "unknown-signer": "valid, unknown signer",
    "not-checkable": "not checkable",
    "revoked": "by a REVOKED key: it counts for nothing",
    "invalid": "INVALID: nobody vouches for what follows",
}


def statement_text(
    statement: Statement,
    signature: Signature | None,
    openings: Sequence[Opening] = (),
    attestations: Sequence[Attestation] = (),
) -> str:
    """Return the statement as text that ends in a line feed; `signature` is the verdict on it, where there is one."""
    manifest = statement.predicate
    streams = manifest.rng_contract.streams
    rows = [
        ("run", manifest.run.id),
        ("signature", _signature(signature)),
        ("command", command_line(manifest.command)),
        ("outcome", _outcome(manifest)),
        *_parent(manifest),
        ("steps", _steps(manifest)),
        *_components(manifest),
        *_loaders(manifest),
        ("streams", _listed([f"{name} ({item.algorithm})" for name, item in sorted(streams.items())])),
        *_seeds(manifest),
        ("environment", _machine(manifest)),
        ("packages", _packages(manifest)),
        ("inputs", f"{_count(manifest.inputs, 'file')}, {size_text(sum(item.bytes for item in manifest.inputs))}"),
        ("code", _listed([item.path for item in manifest.files])),
        *_arm(manifest),
        *_interventions(manifest),
        *_snapshots(manifest),
        *_checkpoints(manifest),
        *_commitments(openings),
        *_attestations(attestations),
        *_left_out(manifest),
        ("files", f"{len(statement.subject)} listed, each with its SHA-256 digest"),
        *_logs(manifest),
    ]
    return "".join(f"{line}\n" for label, text in rows for line in _lines(label, safe_text(text)))


def _lines(label: str, text: str) -> Iterator[str]:
    room = _WIDTH - _LABEL
    head = text if columns(text) <= room or label not in _TWO_LINES else _fitting_words(text, room)
    yield f"{label:<{_LABEL}}{clip(head, room)}".rstrip()
    if head != text:
        yield " " * _LABEL + clip(text[len(head) :].strip(), room)


def _fitting_words(text: str, room: int) -> str:
    """Return the words of `text` that fit into `room` columns; of a single long one, what fits."""
    head = clip(text, room + 1)[:-1]
    return head[: head.rindex(" ")] if " " in head else head


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _signature(signature: Signature | None) -> str:
    if signature is None:
        return "not checked"
    return " · ".join(part for part in (_STATES[signature.state], signature.principal, signature.keyid) if part)


def _outcome(manifest: Manifest) -> str:
    run = manifest.run
    seconds = run_seconds(manifest)
    parts = [run.outcome, "" if run.exit_code is None else f"exit code {run.exit_code}", f"started {run.started}"]
    parts.append("" if seconds is None or seconds < 0 else f"took {duration_text(seconds)}")
    return ", ".join(part for part in parts if part)


def _steps(manifest: Manifest) -> str:
    logs = manifest.step_logs
    complete = "complete" if all(log.complete for log in logs) else "INCOMPLETE"
    ranks = f" in the logs of {len(logs)} ranks" if len(logs) > 1 else ""
    return f"{sum(log.steps for log in logs)}{ranks}, {complete}"


def _components(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield a line for each component, by source class and name; the largest where not all have room."""
    named = sorted(manifest.sources.items(), key=lambda item: (item[1].source, item[0]))
    total = size_text(sum(component.bytes for component in manifest.sources.values()))
    yield "memory", f"{_count(named, 'component')}, {total}"
    shown = named
    if len(named) > _MOST_COMPONENTS:
        largest = {name for name, _ in sorted(named, key=lambda item: -item[1].bytes)[:_MOST_COMPONENTS]}
        shown = [(name, component) for name, component in named if name in largest]
    width = max((min(columns(safe_text(name)), 28) for name, _ in shown), default=0)
    for name, component in shown:
        label = clip(safe_text(name), width)
        yield "", label + " " * (width - columns(label)) + "  " + _component(component)
    if len(shown) < len(named):
        yield "", f"and {len(named) - len(shown)} smaller ones"


def _component(component: Component) -> str:
    parts = "values" if component.tensors is None else _count(component.tensors, "tensor")
    labels = f"{component.source} · {component.lifetime} · {component.visibility}"
    size = "–" if component.tensors is None else size_text(component.bytes)
    return f"{size:>9}  {parts:<12}  {labels}"


def _commitments(openings: Sequence[Opening]) -> Iterator[tuple[str, str]]:
    """Yield what was opened of what the record commits to, and says something."""
    if openings:
        told = {item.name: item.value for item in openings if item.opened}
        known = [
            name for name in (*_FACTS_FIRST, *sorted(told.keys() - set(_FACTS_FIRST))) if told.get(name) is not None
        ]
        facts = " · ".join(f"{name} {fact_text(told[name])}" for name in known)
        yield "committed", f"to {_count(openings, 'fact')}, {len(told)} opened" + (f": {facts}" if facts else "")


def _attestations(attestations: Sequence[Attestation]) -> Iterator[tuple[str, str]]:
    for index, item in enumerate(attestations[:_MOST_ATTESTED]):
        who = item.signature.principal or item.signature.keyid or "somebody"
        said = f": {item.mode}" if item.mode else ""
        worth = "" if item.counts else f" · does not count: {item.detail}"
        yield "" if index else "attested", f"{item.kind} by {who}, {item.signature.state}{said}{worth}"
    if len(attestations) > _MOST_ATTESTED:
        yield "", f"and {len(attestations) - _MOST_ATTESTED} more"


def _loaders(manifest: Manifest) -> Iterator[tuple[str, str]]:
    loaders = sorted(manifest.order.items())
    if not loaders:
        yield "order", "no data loader recorded"
    for name, loader in loaders[:_MOST_LOADERS]:
        first = [key for key in _SETTINGS_FIRST if key in loader.settings]
        rest = sorted(loader.settings.keys() - set(first))
        given = ((key, loader.settings[key]) for key in (*first, *rest))
        settings = " ".join(f"{key}={value}" for key, value in given if value is not None)
        text = f"{name}: {loader.kind} over {loader.dataset}, {loader.sampler}, {settings}"
        yield "order", text
    if len(loaders) > _MOST_LOADERS:
        yield "", f"and {len(loaders) - _MOST_LOADERS} more loaders"


def _seeds(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.seeds:
        yield "seeds", _listed([f"{seed.call} {seed.value} ({seed.site})" for seed in manifest.seeds])


def _machine(manifest: Manifest) -> str:
    machine = manifest.environment
    python = f"{machine.implementation} {machine.python}, {machine.system} {machine.machine}"
    return f"{python}, {machine.cpu_count} CPUs: {machine.cpu}"


def _packages(manifest: Manifest) -> str:
    first, rest = package_order(manifest.environment.packages)
    named = [f"{name} {version}" for name, version in first[:8]]
    more = len(first) + len(rest) - len(named)
    return " · ".join([*named, f"{more} more packages"] if more else named)


def _snapshots(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.snapshots:
        size = size_text(sum(item.size for item in manifest.snapshots))
        yield (
            "snapshots",
            f"{len(manifest.snapshots)}, {size}, after steps {_spans([s.step for s in manifest.snapshots])}",
        )
    if manifest.segments is not None:
        yield "segments", support_text(manifest.segments)


def _checkpoints(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for saved in manifest.checkpoints or ():
        yield "checkpoints", f"{saved.count}, the last after {saved.steps} steps: {summary_text(saved)}"


def _parent(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if (parent := manifest.run.parent) is not None:
        yield "goes on from", f"run {parent.run}, after {parent.steps} steps, by its checkpoint {parent.sha256[:12]}"


def _arm(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if (arm := manifest.arm) is not None:
        stream = "" if arm.stream is None else f", noise stream {arm.stream}"
        does = "" if arm.intervention is None else f": {arm.intervention}"
        yield "arm", f"{arm.id}{does}, seed {arm.seed}{stream}"
    if manifest.plan is not None:
        yield "plan", f"sha256 {manifest.plan}"
    if (branch := manifest.run.branch) is not None:
        yield "branches from", f"run {branch.run}, after {branch.step} steps, chain {branch.chain_head[:12]}"


def _interventions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    made = manifest.interventions or ()
    for index, item in enumerate(made[:_MOST_INTERVENTIONS]):
        did = f"changed {' · '.join(item.changed)}" if item.changed else f"no-op: {item.note or 'nothing changed'}"
        yield "" if index else "interventions", f"{text_of(item.intervention, item.step)}: {did}"
    if len(made) > _MOST_INTERVENTIONS:
        yield "", f"and {len(made) - _MOST_INTERVENTIONS} more"


def _spans(steps: Sequence[int]) -> str:
    return " ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]} {steps[1]} {steps[2]} … {steps[-1]}"


def _left_out(manifest: Manifest) -> Iterator[tuple[str, str]]:
    items = manifest.not_recorded
    for index, item in enumerate(items[:_MOST_LEFT_OUT]):
        yield "" if index else "not recorded", item
    if len(items) > _MOST_LEFT_OUT:
        yield "", f"and {len(items) - _MOST_LEFT_OUT} more"


def _logs(manifest: Manifest) -> Iterator[tuple[str, str]]:
    logs = manifest.step_logs
    for log in logs[:_MOST_LOGS]:
        rank = f"  (rank {log.rank})" if len(logs) > 1 else ""
        yield "chain head", log.chain_head + rank
        yield "Merkle root", log.merkle_root
    if len(logs) > _MOST_LOGS:
        yield "", f"and {len(logs) - _MOST_LOGS} more logs"


def _listed(names: Sequence[str]) -> str:
    """Return the number of names, and as many of them as fit into one line."""
    room = _WIDTH - _LABEL - len(f"{len(names)}: ") - len(f" · {len(names)} more")
    shown: list[str] = []
    for name in (clip(safe_text(name), 40) for name in names):
        if columns(" · ".join([*shown, name])) > room:
            break
        shown.append(name)
    more = [f"{len(names) - len(shown)} more"] if len(shown) < len(names) else []
    return f"{len(names)}: {' · '.join([*shown, *more])}" if names else "none"
