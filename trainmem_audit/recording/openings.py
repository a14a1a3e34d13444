"""Keeps `disclosures.json` beside a growing log: an opening is on the disk before its digest enters the log.

So a run that is killed can be closed and still be opened. The file is rewritten whole each time, which is a few times
in a run. Not here: which facts there are (`provenance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainmem_audit.commitments import commitment_digest, disclosures_bytes, draw_salt
from trainmem_audit.documents.disclosures import FILE_NAME, SCHEMA_VERSION, Disclosure, Disclosures
from trainmem_audit.rundir import write_atomic

__all__ = ["Openings"]


class Openings:
    """The openings of one recording so far."""

    def __init__(self, anonymous: bool) -> None:
        self._anonymous = anonymous
        self._made: list[Disclosure] = []

    def add(self, facts: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
        """Write the openings of `facts` into the run directory and return their digests by name.

        A name that is taken gets a number: `inputs`, `inputs.2` …
        """
        taken = {item.name for item in self._made}
        new = [
            Disclosure.model_validate({"name": _free(name, taken), "salt": draw_salt(), "value": value})
            for name, value in sorted(facts.items())
        ]
        self._made += new
        document = Disclosures(schema_version=SCHEMA_VERSION, anonymous=self._anonymous, disclosures=tuple(self._made))
        write_atomic(run_dir / FILE_NAME, disclosures_bytes(document), mode=0o600)
        return {item.name: commitment_digest(item.salt, item.name, item.to_json().get("value")) for item in new}


def _free(name: str, taken: set[str]) -> str:
    number = 1
    while (free := name if number == 1 else f"{name}.{number}") in taken:
        number += 1
    return free
