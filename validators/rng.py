"""RNG: random streams against the contract that the author declares, and seeds against one another.

What was recorded of a stream is in the statement's contract and follows from the log; what was declared is beside it.
Without a declaration a rule says so. Replicates of a study are compared here, its pairs in `studies.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice, product

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, not_applicable, passed
from trainmem_audit.contract import KNOWN_DERIVATIONS, derive, stream_digest
from trainmem_audit.documents.contract import Consumption, ContractStream, RngContract
from trainmem_audit.documents.declared import DeclaredStream, Derivation
from trainmem_audit.documents.record import Record
from trainmem_audit.documents.record_study import ArmFacts, StudyFacts

__all__ = ["RULES"]

_UNCERTAIN = "unknown"
_MOST_SEEDS = 100_000


def _consumed_is_declared(record: Record) -> Outcome:
    """TM-RNG-001: every stream that was drawn from is in the contract, and is the generator that the contract names.

    A stream is declared by its name; of its library, algorithm, device, seed and purposes each that is declared must be
    the recorded one.
    """
    contract = record.manifest.rng_contract
    if silent := _silent(contract):
        return inconclusive(f"the contract does not say whether {silent} moved", where=f"rngContract.streams.{silent}")
    used = {name: stream for name, stream in sorted(contract.streams.items()) if _consumption(stream).ever}
    if not used:
        return passed("cross-checked", f"none of {len(contract.streams)} random streams was drawn from")
    declared = contract.declared.streams if contract.declared is not None else None
    if declared is None:
        return passed(
            "cross-checked",
            f"the contract of the record has all {len(used)} streams that were drawn from; the author declared none",
        )
    for name, stream in used.items():
        if name not in declared:
            return failed(
                "cross-checked",
                f"the stream {name} was drawn from and is not declared",
                where=f"rngContract.streams.{name}",
                expected=_listed(declared),
                got=f"{name}: {_when(stream)}",
            )
        for member, expected, got in _contradictions(declared[name], stream):
            return failed(
                "cross-checked",
                f"the stream {name} is not the one that is declared",
                where=f"rngContract.declared.streams.{name}.{member}",
                expected=expected,
                got=got,
            )
    return passed("cross-checked", f"all {len(used)} streams that were drawn from are declared: {_listed(used)}")


def _contradictions(declared: DeclaredStream, stream: ContractStream) -> Iterator[tuple[str, str, str]]:
    for member in ("library", "algorithm", "device"):
        expected, got = getattr(declared, member), getattr(stream, member)
        if expected is not None and expected != got:
            yield member, expected, got
    if declared.seed is not None and stream.seeds and declared.seed not in stream.seeds:
        yield "seed", declared.seed, _listed(stream.seeds)
    if declared.purpose is not None:
        others = sorted(set(stream.purpose or ()) - {*declared.purpose, _UNCERTAIN})
        if others:
            yield "purpose", _listed(declared.purpose), _listed(others)


def _derivation_is_collision_free(record: Record) -> Outcome:
    """TM-RNG-002: no two epochs, workers or paths of the derivation get one seed, and its test vectors recompute."""
    contract = record.manifest.rng_contract
    checked: list[str] = []
    given = contract.declared
    wrong = None
    if contract.derivation is not None:
        wrong = _derivation("rngContract.derivation", contract.derivation, contract.root_entropy, checked)
    if wrong is None and given is not None and given.derivation is not None:
        root = given.root_entropy or contract.root_entropy
        wrong = _derivation("rngContract.declared.derivation", given.derivation, root, checked)
    if wrong is not None:
        return wrong
    return _samplers(record, checked) or _workers(record, checked) or _verdict(checked)


def _verdict(checked: list[str]) -> Outcome:
    if not checked:
        return not_applicable("no seed was derived: no sampler with epochs, no worker, no declared derivation")
    return passed("cross-checked", f"no two seeds are equal: {_listed(checked)}")


def _derivation(place: str, derivation: Derivation, root: str | None, checked: list[str]) -> Outcome | None:
    """Recompute the test vectors, and count the seeds over all paths that are declared."""
    root = root or ""
    known = derivation.function in KNOWN_DERIVATIONS and bool(root)
    seeds: dict[str, str] = {}
    for vector in derivation.vectors:
        path = " ".join(vector.path)
        seed = derive(derivation.function, root, vector.path) if known else vector.seed
        if seed != vector.seed:
            message = f"a test vector of the derivation {derivation.function} does not recompute"
            return failed("cross-checked", message, where=place, expected=f"{path}: {seed}", got=vector.seed)
        if seeds.setdefault(seed, path) != path:
            return _collision(place, derivation.function, seed, seeds[seed], path)
    if derivation.vectors:
        checked.append(f"{len(derivation.vectors)} test vectors of {derivation.function}")
    if known and derivation.over and set(derivation.path) == derivation.over.keys():
        seeds = {}
        for steps in islice(product(*(derivation.over[name] for name in derivation.path)), _MOST_SEEDS):
            path, seed = " ".join(steps), derive(derivation.function, root, steps)
            if seed is not None and seeds.setdefault(seed, path) != path:
                return _collision(place, derivation.function, seed, seeds[seed], path)
        checked.append(f"{len(seeds)} seeds of {derivation.function} over {_listed(derivation.path)}")
    return None


def _collision(place: str, function: str, seed: str, first: str, second: str) -> Outcome:
    return failed(
        "cross-checked",
        f"the derivation {function} gives one seed for two paths",
        where=place,
        expected="another seed for each",
        got=f"{seed} for {first} and for {second}",
    )


def _samplers(record: Record, checked: list[str]) -> Outcome | None:
    """Samplers with a seed and an epoch (DistributedSampler) draw each permutation from their sum alone."""
    loaders = record.manifest.order
    known: dict[tuple[str, int], tuple[str, int, int]] = {}
    for epoch in record.log.order.epochs:
        settings = loaders[epoch.loader].settings if epoch.loader in loaders else {}
        seed = settings.get("sampler_seed")
        if type(seed) is not int or epoch.sampler_epoch is None or settings.get("sampler_shuffle") is False:
            continue
        total = seed + epoch.sampler_epoch
        here = (epoch.loader, seed, epoch.sampler_epoch)
        first = known.setdefault((loaders[epoch.loader].dataset, total), here)
        if first[1:] != here[1:]:
            return failed(
                "cross-checked",
                "two samplers drew from one seed, since theirs is the sum of seed and epoch",
                where=f"{epoch.loader}, epoch {epoch.epoch}",
                expected="seeds that are derived by a hash, as numpy.random.SeedSequence does",
                got=f"{first[1]} + {first[2]} = {here[1]} + {here[2]} = {total}",
            )
    if known:
        checked.append(f"{len(known)} seeds of samplers")
    return None


def _workers(record: Record, checked: list[str]) -> Outcome | None:
    streams = record.log.streams
    for collision in streams.worker_collisions:
        return failed(
            "cross-checked",
            f"two loader workers drew from copies of {collision.stream} in the same state",
            where=collision.second,
            expected="another state in each worker and epoch",
            got=f"that of {collision.first} (loader/epoch/worker)",
        )
    if streams.worker_starts:
        checked.append(f"the streams of {streams.worker_starts} workers")
    return None


def _independent_streams_differ(record: Record) -> Outcome:
    """TM-RNG-004: streams that are declared independent start from different states, in this run and beside others.

    Across the replicates of a study that is every stream that is drawn from in training, unless it is declared shared.
    """
    if record.study is not None:
        return _replicates_differ(record.study)
    contract = record.manifest.rng_contract
    declared = contract.declared.streams if contract.declared is not None else None
    names = sorted(name for name, stream in (declared or {}).items() if stream.pairing == "independent")
    for first, second in combinations([name for name in names if name in contract.streams], 2):
        if alike := _start_alike(contract.streams[first], contract.streams[second]):
            return failed(
                "cross-checked",
                "two streams that are declared independent start alike",
                where=f"rngContract.streams.{second}",
                expected=f"another seed and another state than those of {first}",
                got=alike,
            )
    return inconclusive("whether streams of replicates differ shows only beside the other records")


def _replicates_differ(study: StudyFacts) -> Outcome:
    known: dict[tuple[str, str, str], ArmFacts] = {}
    compared = 0
    replicates = _one_of_each_seed(study)
    for arm in replicates:
        for name, stream in sorted(arm.streams.items()):
            if stream.across == "shared" or not (stream.trained or stream.across == "independent"):
                continue
            compared += 1
            start = _listed(stream.seeds) if stream.seeds else stream.digest
            first = known.setdefault((name, stream.algorithm, start), arm)
            if first is not arm:
                return failed(
                    "cross-checked",
                    f"two replicates start {name} alike",
                    where=arm.id,
                    expected=f"another seed and another state than in {first.id}",
                    got=f"the seed {start}" if stream.seeds else f"the state {start[:16]}",
                )
    if not compared and replicates:
        return not_applicable("no stream was drawn from in training, in any of the replicates")
    if len(replicates) < 2:
        return inconclusive("there is one replicate only", got=_listed(arm.id for arm in replicates))
    return passed("cross-checked", f"{compared} streams of {len(replicates)} replicates start from states of their own")


def _one_of_each_seed(study: StudyFacts) -> list[ArmFacts]:
    """Return the first run of each seed: the prefix that its arms share, or else an arm of noise stream 0."""
    found: dict[str, ArmFacts] = {}
    arms = [arm for arm in study.arms.values() if arm.name is not None and arm.run is not None]
    for arm in sorted(arms, key=lambda arm: -1 if arm.name is None or arm.name.stream is None else arm.name.stream):
        if arm.name is not None:
            found.setdefault(arm.name.seed, arm)
    return list(found.values())


def _start_alike(first: ContractStream, second: ContractStream) -> str:
    """Say what two streams of one algorithm start from alike: their seeds, or their states when they were found."""
    if (first.library, first.algorithm) != (second.library, second.algorithm):
        return ""
    if first.seeds and first.seeds == second.seeds:
        return f"the seed {_listed(first.seeds)} of both"
    digest = stream_digest(first)
    return f"the state {digest[:16]} of both" if digest == stream_digest(second) else ""


def _counters_are_as_declared(record: Record) -> Outcome:
    """TM-RNG-005: streams move when the contract says, and the generators of this machine give its canary draws."""
    contract = record.manifest.rng_contract
    declared = contract.declared
    streams = {
        name: stream.consumed
        for name, stream in sorted((declared.streams if declared and declared.streams else {}).items())
        if stream.consumed is not None
    }
    canary = declared.canary if declared is not None and declared.canary else {}
    if not streams and not canary:
        return not_applicable("no contract declares when its streams move, or a canary")
    for name, expected in sorted(canary.items()):
        got = contract.canary.get(name)
        if got is None:
            return inconclusive(f"the record has no canary draw {name}", where=f"rngContract.canary.{name}")
        if got != expected:
            return failed(
                "cross-checked",
                "the generators are not those of the contract: another device, or another release",
                where=f"rngContract.canary.{name}",
                expected=expected,
                got=got,
            )
    if streams and (silent := _silent(contract)):
        return inconclusive(f"the contract does not say when {silent} moved", where=f"rngContract.streams.{silent}")
    for name, when in streams.items():
        stream = contract.streams.get(name)
        if stream is not None and not _moves_as(when, stream):
            return failed(
                "cross-checked",
                f"the stream {name} moved when it must not",
                where=f"rngContract.streams.{name}.consumed",
                expected=when,
                got=_when(stream),
            )
    return passed("cross-checked", f"{len(streams)} streams move as declared, {len(canary)} canary draws agree")


def _silent(contract: RngContract) -> str:
    """Return a stream of which the writer has left out when it moved."""
    return next((name for name, stream in sorted(contract.streams.items()) if stream.consumed is None), "")


def _consumption(stream: ContractStream) -> Consumption:
    return stream.consumed or Consumption()


def _moves_as(when: str, stream: ContractStream) -> bool:
    consumed = _consumption(stream)
    match when:
        case "never":
            return not consumed.ever
        case "before-training":
            return consumed.steps + consumed.epochs + consumed.workers == 0
        case "epoch-starts":
            return consumed.inside == 0
    return True


def _when(stream: ContractStream) -> str:
    """Say when a stream moved."""
    consumed = _consumption(stream)
    parts = ["before training"] * consumed.before_training
    if consumed.steps:
        parts.append(f"at {consumed.steps} steps, from {consumed.first} to {consumed.last}")
    if consumed.epochs:
        parts.append(f"between epochs {consumed.epochs} times")
    if consumed.workers:
        parts.append(f"in {consumed.workers} workers")
    return ", ".join(parts) or "never"


def _listed(names: object) -> str:
    items = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "") or "none"


RULES: dict[str, Rule] = {
    "TM-RNG-001": _consumed_is_declared,
    "TM-RNG-002": _derivation_is_collision_free,
    "TM-RNG-004": _independent_streams_differ,
    "TM-RNG-005": _counters_are_as_declared,
}
