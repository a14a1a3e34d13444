"""The errors that a user can meet. Every message says where, expected, got and the remedy.

What a message quotes may come from a hostile file, so `str` makes every part fit for a terminal (`text.safe_text`) and
bounds its length; the parts themselves stay as they are, for documents.

Not here: findings. What must not be ignored raises; what must be listed is a `documents.findings.Finding`.
"""

from __future__ import annotations

from typing import Final

from trainmem_audit.text import clip, safe_text

__all__ = [
    "NEXT_LINE",
    "ConsentError",
    "FormatError",
    "InterventionError",
    "KeyFileError",
    "RecordingError",
    "ReplayError",
    "TrainmemAuditError",
    "UsageError",
    "VersionError",
]


NEXT_LINE: Final = "\n" + 12 * " "
"""The one line break that a part of a message may have; indented, so that nothing quoted looks like a line of ours."""
_LONGEST: Final = 600
_MOST_LINES: Final = 40


class TrainmemAuditError(Exception):
    """Root of every error raised on purpose.

    Parameters
    ----------
    message:
        What went wrong, in one sentence.
    where, expected, got, remedy:
        The four things a person needs to mend it; any may be empty when it has no meaning.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str = "", expected: str = "", got: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        message = _shown(self.message)
        lines = [f"{_shown(self.where)}: {message}" if self.where else message]
        lines += [
            f"  {label + ':':<9} {_shown(text)}"
            for label, text in (("expected", self.expected), ("got", self.got), ("remedy", self.remedy))
            if text
        ]
        return "\n".join(lines)


def _shown(text: str) -> str:
    lines = text.split(NEXT_LINE)[:_MOST_LINES]
    return NEXT_LINE.join(clip(safe_text(line), _LONGEST) for line in lines)


class UsageError(TrainmemAuditError):
    """The command was called in a way that cannot work."""


class FormatError(TrainmemAuditError):
    """A file is not what its format promises."""


class VersionError(TrainmemAuditError):
    """A document is of a version that this program does not know; it is not guessed at."""


class KeyFileError(TrainmemAuditError):
    """A key cannot be read, unlocked, made or used."""


class ConsentError(TrainmemAuditError):
    """Code of the author's would have to run, and nobody agreed to it."""


class RecordingError(TrainmemAuditError):
    """The recorder failed; training itself is not touched by it."""

    exit_code = 3


class ReplayError(TrainmemAuditError):
    """A replay could not be carried out, so it decides nothing."""

    exit_code = 3


class InterventionError(BaseException):
    """Ends a script that cannot be intervened on as it was asked for: without it the arm is worth nothing.

    No child of `Exception`, so that a script that goes on after errors does not go on after this one.

    Parameters
    ----------
    what:
        The intervention, in its text form.
    """

    exit_code = 2

    def __init__(self, what: str, error: TrainmemAuditError) -> None:
        super().__init__(
            f"the intervention cannot be made, so the script ends here: {clip(safe_text(what), 200)}\n{error}"
        )
