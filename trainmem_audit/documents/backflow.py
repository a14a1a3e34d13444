"""The back-flow part of a plan: regimes of the two-instrument experiment, and what is common to them (STANDARD § 6).

`REGIMES` is the published table. Not here: what is done with a regime (`backflows`, `programs.backflow`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import Field

from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.documents.common import Digest, Document, Name, RelPath
from trainmem_audit.documents.common import Sequence as Items
from trainmem_audit.documents.interventions import FiniteText
from trainmem_audit.documents.steplog import CommandText

__all__ = ["NO_AUGMENTATION", "REGIMES", "REGIME_NAME", "SENSES", "BackFlowPlan", "Regime", "Sense"]

Sense = Literal["batch-statistics", "eval-mode"]
"""What "BatchNorm running statistics frozen" means: batch statistics are used, or the running ones; neither moves."""
SENSES: Final[tuple[Sense, ...]] = ("batch-statistics", "eval-mode")
NO_AUGMENTATION: Final = "none"
REGIME_NAME: Final = r"^[a-z0-9]+(-[a-z0-9]+)*$"
RegimeName = Annotated[str, Field(pattern=REGIME_NAME, max_length=64)]
Small = Annotated[int, Field(ge=1, le=1000)]


class Regime(Document):
    """Two first instruments, `first` and `other`, and a second one, by the names of their augmentations.

    Each takes `steps` optimizer steps. `overlap` is the share of the second instrument's samples that the first ones
    have used too; `same_classes`: with the same number of samples of each class.
    """

    steps: Annotated[int, Field(ge=1, le=24)]
    lr: FiniteText
    momentum: FiniteText
    first: Name
    other: Name
    second: Name
    overlap: FiniteText
    same_classes: bool

    @property
    def shared(self) -> float:
        """The overlap as a number."""
        return parse_float_text(self.overlap)


class BackFlowPlan(Document):
    """What is run: the factory of the subject, its base, and every regime in every sense of frozen BatchNorm.

    Parameters
    ----------
    base_steps:
        How many steps the subject is trained before the instruments.
    repeats:
        How often samples are drawn anew for each seed; repeats are averaged, and are no units.
    batch:
        Samples in a micro-step.
    weight_decay, clip:
        Of every micro-step: weight decay, and the norm to which gradients are clipped.
    diagnostic_repeats:
        In how many of the repeats the diagnostics are taken that cost further steps.
    """

    entry: RelPath
    arguments: Annotated[Items[CommandText], Field(max_length=1000)] = ()
    sha256: Digest | None = None
    base_steps: Annotated[int, Field(ge=1, le=2**31)]
    regimes: Annotated[dict[RegimeName, Regime], Field(min_length=1, max_length=100)]
    repeats: Small
    batch: Annotated[int, Field(ge=1, le=2**20)]
    batch_norm: Annotated[Items[Sense], Field(min_length=1, max_length=2)]
    weight_decay: FiniteText
    clip: FiniteText
    diagnostic_repeats: Annotated[int, Field(ge=0, le=1000)] = 0

    def cells(self) -> tuple[tuple[str, Sense], ...]:
        """Return every regime with every sense, in a fixed order."""
        return tuple((name, sense) for name in sorted(self.regimes) for sense in self.batch_norm)


def _regime(steps: int, lr: float, momentum: float, augmentations: str, overlap: float, same: bool) -> Regime:
    first, other, second = augmentations.split()
    return Regime(
        steps=steps,
        lr=float_text(lr),
        momentum=float_text(momentum),
        first=first,
        other=other,
        second=second,
        overlap=float_text(overlap),
        same_classes=same,
    )


REGIMES: Final = MappingProxyType(
    {
        "standard": _regime(3, 0.02, 0.90, "weak color weak", 0.5, True),
        "resonant-strong": _regime(6, 0.03, 0.99, "color blur weak", 1.0, True),
        "resonant-mid": _regime(6, 0.03, 0.95, "color blur weak", 0.75, True),
        "orthogonal": _regime(6, 0.03, 0.99, "color blur blur", 0.0, False),
        "negative": _regime(1, 0.005, 0.0, "none none none", 0.0, False),
    }
)
"""The regimes of arXiv 2601.16563; `negative` is the control."""
