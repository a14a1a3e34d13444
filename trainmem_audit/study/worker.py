"""A process of `executor.LocalPool`: takes jobs off its pipe, tells what they tell, and does not outlive its parent.

Not for others to import: it ends the process that it runs in.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.study.executor import Job

__all__ = ["GROUPS", "main"]

GROUPS: set[int] = set()
"""Process groups that this process has started, to be ended with it."""
_LOST = 70


def main() -> None:
    """Serve jobs until there are no more: `sys.argv` holds the descriptors of the pipe and of what is watched."""
    connection, watched = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_watch, args=(watched,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError):
        while True:
            job: Job = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(_run(job, connection)))


def _run(job: Job, connection: Connection) -> tuple[str, Any]:
    def tell(value: object) -> None:
        connection.send_bytes(pickle.dumps(("told", value)))

    module, _, name = job.task.partition(":")
    try:
        return "done", getattr(import_module(module), name)(job.argument, tell)
    except BrokenPipeError:
        raise
    except TrainmemAuditError as error:
        return "failed", str(error)
    except Exception as error:  # a program's own error: the job failed, the process is as good as before
        return "failed", f"{type(error).__name__}: {error}"


def _watch(descriptor: int) -> None:
    """End everything when whoever started this process is gone, or has had enough."""
    with suppress(OSError):
        os.read(descriptor, 1)
    for group in tuple(GROUPS):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    os._exit(_LOST)
