"""A clause while the logs are read: the first failure, else the first doubt, else what was proven."""

from __future__ import annotations

from trainmem_audit.documents.pairing import Clause, ClauseName, ClauseState
from trainmem_audit.text import clip

__all__ = ["ClauseBuilder", "listed"]

_MOST_REMARKS = 8
_LONGEST = 1000
_LONGEST_NAME = 200


class ClauseBuilder:
    """Collects what the logs say of one clause. A clause of which nothing was `seen` is inconclusive."""

    def __init__(self, name: ClauseName, unseen: str) -> None:
        self._name = name
        self._unseen = unseen
        self._seen = False
        self._found: dict[ClauseState, tuple[int | None, str, str]] = {}
        self._remarks: dict[str, None] = {}

    @property
    def failed(self) -> bool:
        """Whether it was refuted."""
        return "fails" in self._found

    @property
    def state(self) -> ClauseState:
        """What it comes to, so far."""
        if self.failed:
            return "fails"
        return "holds" if self._seen and not self._found else "inconclusive"

    def see(self) -> None:
        """Note that something was compared and found equal."""
        self._seen = True

    def fail(self, step: int | None, name: str, detail: str) -> None:
        """Refute the clause; the first refutation is kept, which is that of the first step."""
        self._found.setdefault("fails", (step, name, detail))

    def doubt(self, step: int | None, name: str, detail: str) -> None:
        """Say what keeps it from being decided."""
        self._found.setdefault("inconclusive", (step, name, detail))

    def amend(self, detail: str) -> None:
        """Add to what was said of the failure."""
        step, name, text = self._found["fails"]
        self._found["fails"] = (step, name, f"{text}; {detail}")

    def remark(self, text: str) -> None:
        """Add what a reader of a clause that holds should know."""
        if len(self._remarks) < _MOST_REMARKS:
            self._remarks[text] = None

    def build(self) -> Clause:
        """Return the clause."""
        state = self.state
        step, name, detail = self._found.get(state, (None, "", "" if state == "holds" else self._unseen))
        texts = [clip(text, _LONGEST) for text in (detail, *self._remarks) if text]
        return Clause(
            clause=self._name,
            state=state,
            step=step,
            name=name[:_LONGEST_NAME] or None,
            detail="; ".join(texts) or None,
        )


def listed(names: list[str]) -> str:
    """Return names as text, of many the first eight."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
