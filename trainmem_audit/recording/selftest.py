"""Starts the self-test of a recording when the script has ended (`replaying.trial` is what runs then).

Whatever goes wrong in it is an answer: segments of this run cannot be replayed, and why. The record is signed anyway.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainmem_audit.documents.manifest import SegmentSupport
from trainmem_audit.errors import FormatError

__all__ = ["self_test"]

_BOOT = "from trainmem_audit.replaying.trial import main; main()"
_MOST_WORDS = 1000


def self_test(run_dir: Path, order: dict[str, Any], directories: Iterable[Path]) -> SegmentSupport:
    """Return whether one drawn segment of the run comes out again.

    Parameters
    ----------
    order:
        What the launcher was told.
    directories:
        Where inputs may lie beside the working directory.
    """
    cwd = Path(order["cwd"])
    places = [cwd, *cwd.parents[:3], *directories, *(Path(path).parent for path in order.get("inputs", ()))]
    asked = {
        "runDir": str(run_dir.absolute()),
        "data": [str(place) for place in dict.fromkeys(places) if place.is_dir()],
        "source": None if order.get("copySource", True) else str(cwd),
        "secrets": _redacted(order),
    }
    command = [sys.executable, "-P", "-c", _BOOT]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, cwd=run_dir, check=True, close_fds=True
        )
        answer: SegmentSupport = SegmentSupport.parse(done.stdout, "the self-test")
    except (OSError, subprocess.SubprocessError, FormatError) as error:
        return SegmentSupport(supported=False, reason=f"the self-test broke off ({type(error).__name__})")
    except KeyboardInterrupt:
        return SegmentSupport(supported=False, reason="the self-test was interrupted")
    return answer.model_copy(update={"reason": answer.reason[:_MOST_WORDS]})


def _redacted(order: dict[str, Any]) -> list[str]:
    recorded = order["command"].get("arguments", ())
    return [
        text.removeprefix(argument.get("prefix", ""))
        for text, argument in zip(order["arguments"], recorded, strict=False)
        if argument.get("redacted")
    ]
