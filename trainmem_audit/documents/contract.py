"""The RNG contract of a run: what was recorded of its random streams, and beside it what was declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Count, Digest, Document, Extensions, Name, Sequence
from trainmem_audit.documents.declared import (
    DeclaredContract,
    Derivation,
    Pairing,
    Purpose,
    Stability,
)
from trainmem_audit.documents.steplog import Stream

__all__ = ["MOST_SEEDS", "Consumption", "ContractStream", "RngContract"]

MOST_SEEDS = 8
"""How many seeds of one stream a contract lists; the log has more of them."""


class Consumption(Document):
    """When a stream was drawn from, seen by its digests.

    `before_training` says whether it was elsewhere when an epoch began before the first step. `steps` counts the
    steps at whose end it was elsewhere than at the observation before (a step, or the start of an epoch), `first` and
    `last` are such steps, and `inside` counts those of them with which no epoch began. `epochs` counts the epochs at
    whose start it was elsewhere than at the step before. `workers` counts the worker processes that drew from a copy.
    """

    before_training: bool = False
    steps: Count = 0
    inside: Count = 0
    first: Count | None = None
    last: Count | None = None
    epochs: Count = 0
    workers: Count = 0

    @property
    def ever(self) -> bool:
        """Whether the stream was drawn from at all."""
        return self.before_training or self.steps + self.epochs + self.workers > 0


class ContractStream(Stream):
    """One stream as it was recorded: its start state, what it was drawn from for, when, and what it depends on.

    A writer may leave out what is not its start state; what it says must follow from the log.
    """

    purpose: Sequence[Purpose] | None = None
    scope: Literal["process", "worker"] | None = None
    seeds: Annotated[Sequence[Annotated[str, Field(max_length=400)]], Field(max_length=MOST_SEEDS)] | None = None
    consumed: Consumption | None = None
    pairing: Pairing | None = None
    stability: Stability | None = None


class RngContract(Document):
    """What was recorded of the random streams; `declared` is the author's word and nothing else."""

    contract_version: Literal["0.1.0-draft"]
    root_entropy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    derivation: Derivation | None = None
    streams: dict[Name, ContractStream]
    canary: dict[Name, Digest]
    declared: DeclaredContract | None = None
    extensions: Extensions | None = None
