"""What the rules of the checklist see of a run: the statement, what verification said, and facts out of the log.

A `Record` is a document, so that test vectors of rules can be files, and a rule needs no run directory. All of it
follows from the run's files (`gathering` makes it in one pass); only the statement itself is stated by the author.
"""

from __future__ import annotations

from pydantic import Field

from trainmem_audit.documents.common import Count, Document, Name, Sequence
from trainmem_audit.documents.findings import Verification
from trainmem_audit.documents.manifest import Manifest, Statement
from trainmem_audit.documents.record_order import OrderFacts, StreamFacts
from trainmem_audit.documents.record_study import InterventionFacts, StudyFacts

__all__ = ["ComponentFacts", "Facts", "Record", "StepFacts"]


class ComponentFacts(Document):
    """One component over the `step` lines.

    `first` and `last` are the first and last step whose state names it, `steps` the number of such steps. `changes`
    are those steps at which its digest is not that of the step before; `copies` are those of them that gave it a digest
    that another component had right after the step before (a hard update of a target network). `changed_at_end` says
    whether the `end` line has another digest than the last step; `None` if it does not say.
    """

    first: Count
    last: Count
    steps: Count
    changes: Count = 0
    copies: Count = 0
    changed_at_end: bool | None = None


class StepFacts(Document):
    """The `step` lines counted: all of them, and those that have each member.

    `batches` gives, as decimal text of the number of batches in a step, how many steps consumed so many; the text
    `more` stands for numbers beyond the first 16. `lr_differs` is the first step whose learning rates are not those of
    its optimizer's hyper-parameters.
    """

    count: Count = 0
    skipped: Count = 0
    with_order: Count = 0
    with_index: Count = 0
    with_inputs: Count = 0
    batches: dict[Name, Count] = Field(default_factory=dict)
    lr_differs: Count | None = None


class Facts(Document):
    """What one pass over the log and its side files gives, in memory that does not grow with the steps.

    `whole` says whether the pass came to the end of the log; if not, the log is damaged, and the facts are those of the
    part before. `ended` says whether the last line is `end`. `observed` are the steps after which predictions were kept
    (the first 1000), `interventions` what was done to the memory of the run (the first 1000).
    """

    whole: bool
    ended: bool
    steps: StepFacts = StepFacts()
    components: dict[Name, ComponentFacts] = Field(default_factory=dict)
    order: OrderFacts = OrderFacts()
    streams: StreamFacts = StreamFacts()
    observed: Sequence[Count] = ()
    interventions: Sequence[InterventionFacts] = ()


class Record(Document):
    """A run as the rules see it, or a study.

    Of a study there is `study`, and the verification of all its records together; of a run the others. `statement` is
    `None` where it could not be read, `facts` where there was no log to read. `disclosed` says whether the openings of
    the salted commitments are there (`disclosures.json`).
    """

    verification: Verification
    statement: Statement | None = None
    facts: Facts | None = None
    disclosed: bool = False
    study: StudyFacts | None = None

    @property
    def manifest(self) -> Manifest:
        """The predicate; only for rules whose item `needs` the statement or the log."""
        assert self.statement is not None, "a rule that needs the statement must say so in the checklist"
        return self.statement.predicate

    @property
    def log(self) -> Facts:
        """The facts; only for rules whose item `needs` the log."""
        assert self.facts is not None, "a rule that needs the log must say so in the checklist"
        return self.facts
