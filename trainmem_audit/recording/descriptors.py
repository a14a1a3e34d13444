"""File descriptors of ours that never take the place of a standard stream.

Where a script is started with a standard stream closed (`2>&-`), the next file that is opened gets its number, and what
C code prints there would end up in that file: in the script's own, as bare, but never in the step log.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["above_standard"]


def above_standard(descriptor: int) -> int:
    """Return `descriptor`, or, where it is that of a standard stream, another for the same file; closes the first."""
    if descriptor > 2:
        return descriptor
    keep = os.get_inheritable(descriptor)
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD if keep else fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
