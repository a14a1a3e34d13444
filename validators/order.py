"""ORD: the order in which samples were consumed, against what its samplers, its settings and its author say of it.

All of it is decided from the indices and digests of one run; a resumed one is judged beside the record of its parent,
where that is at hand. What takes another run (the order of other replicates, the shards of other ranks) is
inconclusive, unless this run shows a fault by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, not_applicable, passed
from trainmem_audit.documents.findings import ParentOrder
from trainmem_audit.documents.record import Record
from trainmem_audit.documents.record_order import EpochFacts, ResumeFacts
from trainmem_audit.documents.record_study import ArmFacts, StudyFacts
from trainmem_audit.documents.steplog import Loader

__all__ = ["RULES"]

_FEW = 8
"""Fewer samples than these may well come in the same order twice by chance."""
_MANY = 32
"""As many draws with replacement as there are samples, and no sample twice: for 32 of them a chance of 1 in 10^13."""
_SCHEMES = {
    "RandomSampler": "reshuffle",
    "SubsetRandomSampler": "reshuffle",
    "WeightedRandomSampler": "with-replacement",
    "DistributedSampler": "reshuffle",
    "SequentialSampler": "fixed",
}


def _digests_are_recorded(record: Record) -> Outcome:
    """TM-ORD-001: every training step has the digest of what it consumed, and every batch of a loader its epoch."""
    facts, steps = record.log.order, record.log.steps
    loaders = record.manifest.order
    if loaders and not steps.with_order:
        return failed(
            "recorded",
            "no step has the digest of a batch, although there are loaders",
            where="steps.jsonl",
            expected=f"batches of {', '.join(sorted(loaders)[:8])}",
            got=f"none in {steps.count} steps",
        )
    if facts.unplaced and loaders:
        return failed(
            "recorded",
            "batches were consumed before any epoch began",
            where="steps.jsonl",
            expected="an `epoch` line before the first batch of a loader",
            got=f"{facts.unplaced} steps without",
        )
    if facts.unseen:
        return inconclusive(
            f"{facts.unseen} of {steps.count} steps have neither a batch of a loader nor inputs of a model"
        )
    if not loaders and steps.with_order:
        return passed("recorded", f"{steps.with_order} steps with the digest of their batch, out of a program's order")
    if not loaders:
        return passed("recorded", f"{steps.with_inputs} steps with the digest of their inputs; there is no data loader")
    epochs = len(facts.epochs) + facts.beyond
    return passed("recorded", f"{steps.with_order} steps with the digest of their batch, in {epochs} epochs")


def _scheme_agrees_with_digests(record: Record) -> Outcome:
    """TM-ORD-002: the indices are those that the scheme allows: each once, with repeats, or the same in each epoch."""
    if not record.manifest.order:
        return not_applicable("there is no data loader")
    checked, unknown = 0, ""
    firsts: dict[str, EpochFacts] = {}
    for epoch, loader in _epochs(record):
        stated, declared = _scheme(loader), _declared(record)
        scheme = declared or stated
        where = f"{epoch.loader}, epoch {epoch.epoch}"
        if scheme is None:
            unknown = unknown or f"{epoch.loader}: the order of {_sampler(loader)} is not known and not declared"
        elif epoch.distinct is None:
            unknown = (
                unknown or f"{where}: not every sample has an index, or the epoch is too long to be looked through"
            )
        else:
            got = _contradiction(scheme, epoch, loader, firsts.setdefault(epoch.loader, epoch))
            if got:
                kind = "declared" if declared else f"that of {_sampler(loader)}"
                message = f"the indices do not agree with the scheme, which is {kind}"
                return failed("cross-checked", message, where=where, expected=scheme, got=got)
            checked += 1
    if unknown or not checked:
        return inconclusive(unknown or "no epoch was recorded")
    return passed("cross-checked", f"the indices of {checked} epochs are as their scheme demands")


def _contradiction(scheme: str, epoch: EpochFacts, loader: Loader, first: EpochFacts) -> str:
    """Say how an epoch breaks its scheme; nothing if it keeps it."""
    assert epoch.distinct is not None
    size = loader.settings.get("samples")
    whole = size if type(size) is int else epoch.samples
    if scheme == "reshuffle" and epoch.distinct < min(epoch.samples, whole):
        return f"{epoch.distinct} different samples among {epoch.samples}"
    if scheme == "with-replacement" and epoch.samples >= max(_MANY, whole) and epoch.distinct == epoch.samples:
        return f"each of {epoch.samples} samples exactly once"
    if scheme == "fixed" and (_sampler(loader) == "SequentialSampler") > epoch.ascending:
        return "indices that are not 0, 1, 2, …"
    if scheme == "fixed" and not _same(epoch, first):
        return f"another order than in epoch {first.epoch}"
    return ""


def _epochs_are_distinct(record: Record) -> Outcome:
    """TM-ORD-003: no two epochs of a reshuffled loader have the same order."""
    series: dict[tuple[object, ...], list[EpochFacts]] = {}
    unknown = ""
    for epoch, loader in _epochs(record):
        scheme = _declared(record) or _scheme(loader)
        if scheme in (None, "reshuffle"):
            key: tuple[object, ...] = (scheme, _described(loader), epoch.optimizer, epoch.segment)
            series.setdefault(key, []).append(epoch)
    several = {key: epochs for key, epochs in series.items() if len(epochs) > 1}
    if not several:
        return not_applicable("no loader that reshuffles has more than one epoch")
    compared = 0
    for key, epochs in several.items():
        comparable = [epoch for epoch in epochs if epoch.digest is not None and epoch.samples >= _FEW]
        if len(comparable) < len(epochs):
            unknown = unknown or "epochs of fewer than 8 samples, or without indices, cannot be told apart"
        compared += len(comparable)
        found = _first_repeat(comparable)
        if found is None:
            continue
        first, again = found
        if key[0] is None:
            unknown = f"epochs {first.epoch} and {again.epoch} have one order, and whether they may is not declared"
            continue
        return failed(
            "cross-checked",
            "two epochs have the same order",
            where=f"{again.loader}, epoch {again.epoch}",
            expected=f"another order than in {first.loader}, epoch {first.epoch}",
            got=f"the digest {str(again.digest)[:16]} of both{_told(first, again)}",
        )
    if unknown:
        return inconclusive(unknown)
    return passed("cross-checked", f"{compared} epochs, each in an order of its own")


def _told(first: EpochFacts, again: EpochFacts) -> str:
    """Say what the sampler was told, where `set_epoch` decides the order."""
    if again.sampler_epoch is None or again.sampler_epoch != first.sampler_epoch:
        return ""
    return f"; the sampler was told epoch {again.sampler_epoch} in both, is `set_epoch` missing?"


def _replicates_do_not_share_order(record: Record) -> Outcome:
    """TM-ORD-004: replicates have orders of their own, unless they are declared to share it.

    In one run, replicates are loaders of one description whose batches train different optimizers. Orders that are
    equal because seed and epoch were added are the matter of TM-RNG-002. In a study they are its seeds.
    """
    if record.study is not None:
        return _seeds_do_not_share_order(record.study)
    declared = record.manifest.rng_contract.declared
    shared = declared is not None and any(
        stream.across_replicates == "shared" for stream in (declared.streams or {}).values()
    )
    groups: dict[object, list[EpochFacts]] = {}
    for epoch, loader in _epochs(record):
        if _scheme(loader) == "reshuffle" and epoch.digest is not None and epoch.samples >= _FEW:
            groups.setdefault(_described(loader), []).append(epoch)
    for epochs in groups.values():
        known: dict[str, EpochFacts] = {}
        for epoch in epochs:
            first = known.setdefault(str(epoch.digest), epoch)
            others = first.optimizer != epoch.optimizer and first.loader != epoch.loader
            if not shared and others and first.segment == epoch.segment:  # else it is a run that was resumed
                return failed(
                    "cross-checked",
                    "two replicates in this run have one order",
                    where=f"{epoch.loader}, epoch {epoch.epoch}",
                    expected=f"another order than in {first.loader}, epoch {first.epoch}",
                    got=f"the digest {str(epoch.digest)[:16]} of both",
                )
    if record.manifest.plan is not None:
        return inconclusive("whether replicates share an order shows only beside their records")
    if any(len({(epoch.optimizer, epoch.loader) for epoch in epochs}) > 1 for epochs in groups.values()):
        return inconclusive("whether replicates share an order shows only beside their records")
    return not_applicable("the statement names no plan: a run of its own, and no replicate of a study")


def _seeds_do_not_share_order(study: StudyFacts) -> Outcome:
    known: dict[str, ArmFacts] = {}
    seeds: set[str] = set()
    for arm in study.arms.values():
        if arm.name is None or any(stream.across == "shared" for stream in arm.streams.values()):
            continue
        for digest in arm.orders:
            seeds.add(arm.name.seed)
            first = known.setdefault(digest, arm)
            if first.name is not None and first.name.seed != arm.name.seed:
                return failed(
                    "cross-checked",
                    "two replicates have one order",
                    where=arm.id,
                    expected=f"another order than in {first.id}",
                    got=f"the digest {digest[:16]} of both",
                )
    if not seeds:
        return inconclusive("no replicate has a reshuffled epoch that is long enough to tell", where="arms")
    if len(seeds) < 2:
        return inconclusive("there is one replicate only", where="arms")
    return passed("cross-checked", f"{len(known)} orders, none of which two of {len(seeds)} seeds share")


def _resume_keeps_the_permutation(record: Record) -> Outcome:
    """TM-ORD-005: the first epoch after a resume is none that was done before, that of epoch 0 least of all."""
    resumes = record.log.order.resumes
    parent = record.verification.parent
    if parent is not None and parent.state != "broken" and parent.order is not None:
        judged = _beside_parent(record, parent.order)
        if judged is not None:
            return judged
    if not resumes:
        return not_applicable("no optimizer was given a saved state")
    epochs = [(epoch, loader) for epoch, loader in _epochs(record) if _scheme(loader) != "fixed"]
    verdicts = [_resumed(epochs, number, resume) for number, resume in enumerate(resumes, start=1)]
    found = [verdict for verdict in verdicts if verdict is not None]
    if not found:
        return not_applicable("no reshuffled epoch was begun after a saved state was loaded")
    return next(
        (verdict for state in ("fail", "inconclusive") for verdict in found if verdict.state == state), found[0]
    )


def _beside_parent(record: Record, order: ParentOrder) -> Outcome | None:
    """Judge the first epoch beside the record of the parent; `None` where that decides nothing."""
    first = next(_epochs(record), None)
    scheme = None if first is None else _declared(record) or _scheme(first[1])
    if first is None or scheme == "fixed":
        return None
    if order.differs is None and order.same:
        return passed("cross-checked", f"{order.same} steps consume the samples that the parent went on with")
    if scheme != "reshuffle":
        return None
    where = f"{first[0].loader}, epoch {first[0].epoch}"
    if order.again is not None:
        return failed(
            "cross-checked",
            "the first epoch after the resume repeats one that its parent had done",
            where=where,
            expected=f"another order than in {order.again} of the parent",
            got="the same order",
        )
    if order.under_way and order.repeated:
        return failed(
            "cross-checked",
            "the first epoch after the resume consumes samples again that its parent had consumed of the same epoch",
            where=where,
            expected=f"none of the {order.under_way} samples",
            got=f"{order.repeated} of them",
        )
    if order.repeated is None:
        return None
    over = "no epoch was under way" if not order.under_way else f"none of {order.under_way} samples comes again"
    return passed("cross-checked", f"beside the record of the parent: {over}, and no epoch that was done")


def _resumed(epochs: list[tuple[EpochFacts, Loader]], number: int, resume: ResumeFacts) -> Outcome | None:
    """Judge one resume; `None` where nothing shuffled follows it before the next."""
    after = next(((epoch, loader) for epoch, loader in epochs if epoch.segment == number), None)
    if after is None:
        return None
    epoch, loader = after
    where = f"{epoch.loader}, epoch {epoch.epoch}"
    before = [old for old, other in epochs if old.segment < number and other.dataset == loader.dataset]
    done = [old for old in before if _done(old, resume, before[-1])]
    for old in done:
        if _same(old, epoch) and epoch.samples >= _FEW:
            return failed(
                "cross-checked",
                "the first epoch after a resume repeats one that was done before",
                where=where,
                expected=f"another order than in {old.loader}, epoch {old.epoch}",
                got="the same order",
            )
    if epoch.sampler_epoch is not None and resume.steps is not None and epoch.steps:
        expected = resume.steps // epoch.steps
        if epoch.sampler_epoch < expected:
            return failed(
                "cross-checked",
                f"the sampler was told epoch {epoch.sampler_epoch}, although the state that was loaded is further",
                where=where,
                expected=f"set_epoch({expected}) after {resume.steps} steps of {epoch.steps} each",
                got=f"set_epoch({epoch.sampler_epoch}), or none",
            )
        return passed("cross-checked", f"after {resume.steps} steps the sampler was told epoch {epoch.sampler_epoch}")
    if done:
        return passed("cross-checked", f"the epoch after the resume is none of the {len(done)} that were done before")
    return inconclusive("which permutation a resume must keep shows only beside the record of the interrupted run")


def _done(epoch: EpochFacts, resume: ResumeFacts, latest: EpochFacts) -> bool:
    """Tell whether an epoch was over in the state that was loaded; the latest may have been interrupted."""
    if resume.steps is not None:
        return epoch.first + epoch.steps <= min(resume.steps, resume.at)
    return epoch is not latest


def _sharding_and_workers(record: Record) -> Outcome:
    """TM-ORD-006: the seeds of workers are recorded, and every shard of the data is trained on by some rank."""
    loaders = record.manifest.order
    shards: dict[int, set[int]] = {}
    with_workers = []
    for name, loader in sorted(loaders.items()):
        count, rank = loader.settings.get("sampler_num_replicas"), loader.settings.get("sampler_rank")
        if type(count) is int and type(rank) is int and count > 1:
            shards.setdefault(count, set()).add(rank)
        if loader.settings.get("num_workers"):
            with_workers.append(name)
    if not loaders:
        return not_applicable("there is no data loader")
    world = record.manifest.environment.variables.get("WORLD_SIZE", "1")
    for count, ranks in shards.items():
        if len(ranks) == count:
            continue
        if world != str(count):
            return failed(
                "cross-checked",
                f"nobody trains on {count - len(ranks)} of {count} shards of the data",
                where="order",
                expected=f"{count} ranks, or a sampler for as many as there are (WORLD_SIZE is {world})",
                got=f"rank {', '.join(map(str, sorted(ranks)))} alone",
            )
        return inconclusive("whether the shards are disjoint shows only beside the records of the other ranks")
    silent = [
        epoch.loader for epoch in record.log.order.epochs if epoch.loader in with_workers and epoch.worker_seed is None
    ]
    seeded = {epoch.loader for epoch in record.log.order.epochs if epoch.worker_seed is not None}
    if missing := [name for name in silent if name not in seeded]:
        return inconclusive(f"{missing[0]}: the seeds of its workers are not recorded (they were not forked)")
    workers = f"workers of {len(with_workers)} loaders with their seeds" if with_workers else "no worker processes"
    return passed("recorded", f"{workers}, {'all shards of the data' if shards else 'one shard'}")


def _augmentation_is_recorded(record: Record) -> Outcome:
    """TM-ORD-007: what augmentation draws from is recorded, and so are the numbers of the data set that it follows."""
    facts, contract = record.log.order, record.manifest.rng_contract
    sources = sorted(
        name
        for name, stream in contract.streams.items()
        if "augment" in (stream.purpose or ()) or (stream.consumed is not None and stream.consumed.workers)
    )
    keyed = contract.declared is not None and any(
        stream.pairing == "sample-keyed" for stream in (contract.declared.streams or {}).values()
    )
    if facts.unexplained is not None and not keyed:
        return failed(
            "cross-checked",
            "the same samples came with another content, and no recorded stream had moved: augmentation from elsewhere",
            where=f"step {facts.unexplained}",
            expected="augmentation that draws from a recorded stream, or is declared sample-keyed",
            got=f"{facts.changed} batches with another content",
        )
    if not sources and not facts.changed:
        return not_applicable("no stream was seen to move while samples were fetched")
    changes = len({str(epoch.data) for epoch in facts.epochs if epoch.data})
    drawn = (
        f"samples are fetched with draws from {', '.join(sources[:8])}" if sources else "augmentation is sample-keyed"
    )
    return passed("recorded", f"{drawn}; {changes} sets of numbers of the data set over the epochs")


# What the rules share ----------------------------------------------------------------------------------------------


def _epochs(record: Record) -> Iterator[tuple[EpochFacts, Loader]]:
    for epoch in record.log.order.epochs:
        loader = record.manifest.order.get(epoch.loader)
        if loader is not None:
            yield epoch, loader


def _sampler(loader: Loader) -> str:
    """Return the class that decides the order: the sampler within the batch sampler, or a batch sampler of its own."""
    batch_sampler, inner = loader.settings.get("batch_sampler"), loader.settings.get("inner_sampler")
    if batch_sampler not in (None, "BatchSampler"):
        return str(batch_sampler)
    return str(inner or loader.sampler)


def _scheme(loader: Loader) -> str | None:
    """Return the scheme that a sampler of torch follows; `None` for one of the author's own."""
    scheme = _SCHEMES.get(_sampler(loader))
    replacement = loader.settings.get("replacement")
    if loader.settings.get("sampler_shuffle") is False:
        return "fixed"
    if scheme is not None and scheme != "fixed" and replacement is not None:
        return "with-replacement" if replacement else "reshuffle"
    return scheme


def _declared(record: Record) -> str | None:
    declared = record.manifest.rng_contract.declared
    return declared.order.scheme if declared is not None and declared.order is not None else None


def _described(loader: Loader) -> object:
    """Return what two loaders have in common that differ in nothing that is recorded."""
    return loader.kind, loader.dataset, loader.sampler, tuple(sorted((n, str(v)) for n, v in loader.settings.items()))


def _first_repeat(epochs: list[EpochFacts]) -> tuple[EpochFacts, EpochFacts] | None:
    known: dict[str, EpochFacts] = {}
    for epoch in epochs:
        for mark in (epoch.digest, epoch.head):
            first = known.setdefault(str(mark), epoch) if mark is not None else epoch
            if first is not epoch and _same(first, epoch):
                return first, epoch
    return None


def _same(first: EpochFacts, again: EpochFacts) -> bool:
    """Tell whether two epochs have one order; where one of them was cut short, by its first 16 samples."""
    if first.digest is None or again.digest is None:
        return False
    cut_short = first.samples != again.samples and first.head is not None and first.head == again.head
    return first.digest == again.digest or cut_short


RULES: dict[str, Rule] = {
    "TM-ORD-001": _digests_are_recorded,
    "TM-ORD-002": _scheme_agrees_with_digests,
    "TM-ORD-003": _epochs_are_distinct,
    "TM-ORD-004": _replicates_do_not_share_order,
    "TM-ORD-005": _resume_keeps_the_permutation,
    "TM-ORD-006": _sharding_and_workers,
    "TM-ORD-007": _augmentation_is_recorded,
}
