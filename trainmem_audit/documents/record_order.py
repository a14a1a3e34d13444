"""What the rules of RNG and ORD see beyond the statement: the epochs as consumed, resumes, the streams of workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainmem_audit.documents.common import Count, Digest, Document, Name, Scalar, Sequence

__all__ = ["EpochFacts", "OrderFacts", "ResumeFacts", "StreamFacts", "WorkerCollision"]


class EpochFacts(Document):
    """One epoch of one loader, as it was consumed.

    `first` is the step that consumed its first batch, `steps` how many steps consumed some, `samples` how many samples
    they were. `optimizer` is the one that stepped first, where there are several. `segment` counts the resumes before
    it. `digest` is BLAKE3 of its indices, `head` that of the first 16 (with as many or more); both are `None` where not
    every sample has an index. `distinct` indices, the `smallest` and the `largest` are `None` too where the epoch is
    too long to be kept. `ascending` says whether the indices are 0, 1, 2 … `data` are the numbers of its data set in
    force.
    """

    loader: Name
    epoch: Count
    first: Count
    steps: Count = 0
    samples: Count = 0
    optimizer: Name | None = None
    segment: Count = 0
    sampler_epoch: int | None = None
    worker_seed: Annotated[str, Field(max_length=24)] | None = None
    digest: Digest | None = None
    head: Digest | None = None
    distinct: Count | None = None
    smallest: int | None = None
    largest: int | None = None
    ascending: bool = False
    data: dict[Name, Scalar] | None = None


class ResumeFacts(Document):
    """An optimizer was given a saved state before step `at`, with `steps` behind it, if that is known."""

    at: Count
    optimizer: Name
    steps: Count | None = None


class OrderFacts(Document):
    """The order of the whole run.

    `beyond` counts the epochs after the first 1000, of which nothing is kept. `unplaced` counts the steps with batches
    before any epoch began, as all are where a program has an order of its own; `unplaced_head` is the digest of the
    first 16 indices of these, unless they are 0, 1, 2 …; `unseen` counts those with neither a batch of a loader nor
    inputs of a model. `recurring` counts the steps whose indices had been consumed together before, `changed` those of
    them that had another content then, and `unexplained` is the first of these in which no known stream moved and no
    number of the data set had changed.
    """

    epochs: Sequence[EpochFacts] = ()
    beyond: Count = 0
    unplaced: Count = 0
    unplaced_head: Digest | None = None
    unseen: Count = 0
    resumes: Sequence[ResumeFacts] = ()
    recurring: Count = 0
    changed: Count = 0
    unexplained: Count | None = None


class WorkerCollision(Document):
    """Two workers that drew from copies of a stream in the same state, each as `loader/epoch/worker`."""

    stream: Name
    first: Name
    second: Name


class StreamFacts(Document):
    """The workers whose streams were seen, and those that started alike."""

    worker_starts: Count = 0
    worker_collisions: Sequence[WorkerCollision] = ()
