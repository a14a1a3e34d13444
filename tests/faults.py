"""The faulty training scripts and their repaired twins (`tests/faults/`), and the table that is made of them.

`python -m tests.faults` writes the table into `docs/rng-contract.md`.
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from trainmem_audit.checks import load_checklist

__all__ = ["FAULTS", "PAGE", "Fault", "page"]

FOLDER = Path(__file__).parent / "faults"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "rng-contract.md"
_BEGIN, _END = "<!-- faults -->\n", "<!-- end of faults -->\n"


@dataclass(frozen=True)
class Fault:
    """A script that commits a fault, or whose contract does.

    `before` says that the script is run once, bare, before it is recorded.
    """

    name: str
    rule: str
    what: str
    repair: str
    before: bool = False

    def lay_out(self, target: Path, repaired: bool) -> Path:
        """Put the script, and its contract where it has one, into `target`, as an author has them."""
        target.mkdir(parents=True)
        for name, twin in (("train.py", "repaired.py"), ("rng-contract.toml", "repaired.toml")):
            given = FOLDER / self.name / (twin if repaired else name)
            source = given if given.is_file() else FOLDER / self.name / name
            if source.is_file():
                shutil.copyfile(source, target / name)
        return target


FAULTS = [
    Fault(name=path.parent.name, **tomllib.loads(path.read_text("utf-8")))
    for path in sorted(FOLDER.glob("*/fault.toml"))
]


def table() -> str:
    """Return the table of faults."""
    titles = {item.id: item.title for item in load_checklist().items}
    lines = ["| script | what is wrong | what mends it | rule |", "|---|---|---|---|"]
    lines += [
        f"| [`{fault.name}`](../tests/faults/{fault.name}) | {fault.what} | {fault.repair} | "
        f"{fault.rule}: {titles[fault.rule]} |"
        for fault in sorted(FAULTS, key=lambda fault: (fault.rule, fault.name))
    ]
    return "".join(f"{line}\n" for line in lines)


def page() -> str:
    """Return the page with the table of now."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + table() + _END + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
