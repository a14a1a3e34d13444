"""PTH, PRB, EST, UNC, and the interventions of OPT and EXT: what takes more than the record of one run.

The rules of RNG and ORD that do so lie in their own files. All are inconclusive until studies exist; none passes.
"""

from __future__ import annotations

from trainmem_audit.checks import Outcome, Rule, inconclusive
from trainmem_audit.documents.record import Record

__all__ = ["RULES"]

_IDS = (
    "TM-OPT-003",
    "TM-PTH-001",
    "TM-PTH-002",
    "TM-PTH-003",
    "TM-EXT-002",
    "TM-PRB-001",
    "TM-PRB-002",
    "TM-EST-001",
    "TM-EST-002",
    "TM-EST-003",
    "TM-UNC-001",
    "TM-UNC-002",
    "TM-UNC-003",
    "TM-UNC-004",
    "TM-UNC-005",
)


def _takes_a_study(record: Record) -> Outcome:
    """Whatever is asked: the record of one run cannot show it."""
    return inconclusive("it takes a study: one run shows no contrast", got=f"the record of {record.verification.name}")


RULES: dict[str, Rule] = dict.fromkeys(_IDS, _takes_a_study)
