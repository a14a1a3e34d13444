"""Recording: three doors (launcher, library, callbacks) over one recorder.

`recorder` (the library door) · `launcher` (runs an unmodified script) · `session` (turns events into step-log lines) ·
`memory` (which sources a run has) · `order` (which batches a step consumed) · `hooks` (where torch tells us) ·
`checkpoints` and `parents` (what a script saves, and what it goes on from) · `snapshots` · `forward` (runs a script to
a snapshot) · `writer` (the background thread that owns the files) · `facts` (environment, profile, canary) · `opened`
(files the script reads) · `codefiles` (code that ran) · `importing` (acts right after an import).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainmem_audit.recording.recorder import Recorder

__all__ = ["Recorder"]


def __getattr__(name: str) -> object:
    """Give `Recorder` on demand: the launcher must not import torch before the script does."""
    if name == "Recorder":
        from trainmem_audit.recording.recorder import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
