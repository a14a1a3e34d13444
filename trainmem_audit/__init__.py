"""trainmem-audit: record, verify, replay and measure the memory of deep-learning training.

The architecture, from the ground up; a module imports only from lower layers (`tests/test_architecture.py` holds it):

- L0 `errors`, `canonical` (the only place that makes bytes to be hashed or signed), `resources` (finds our data files),
  `text` (what a record says, made fit to be shown)
- L1 `documents`: frozen, strict models of every file that we read or write
- L2 pure functions, no torch: `privacy`, `commitments` (salted digests and their openings), `merkle`, `contract` (the
  random streams of a log), `steplog`, `lineforms` (step lines that are like one before), `sidefiles`, `snapshots`,
  `interventions` (their text form), `observations` (predictions on the probe), `arrays` (probes), `studylog`,
  `divergence` (two step logs → the first difference), `checkpoints` (what a saved one loses, in words), `sizes` (how
  large it is), `norms` (how long a vector of weights is), `conformance` (a document and a JSON Schema → findings),
  `pairing` (two arms → their pairing certificate), `versions` (which schema a document asks for, and how an old one
  becomes a new one), `gathering` (a log → the facts that rules need), `segments` (the draw of what is replayed from
  snapshots), `checks` (items, and the rules of `validators/`), `elementary` (exponential, logarithm and mean, the same
  bits everywhere), `distances` (between predictions), `estimands` (what a study claims), `intervals` (how sure one is),
  `seedtables` (arms → values per seed), `estimation` (those → every number of a study),
  `backflows` (the recipe of the two-instrument experiment), `witnesses` (what its records prove and say)
- L3 `envelope` (DSSE, Ed25519), `keys`, `trust`, `attestations` (what others sign about a run), `rundir` (directories
  and zips, read and written safely), `runs` (lines and statements of a run), `pathlength` (how far the weights went),
  `packing`, `assemble` (closes and signs a run)
- L4 the only torch: `digests`, `sources` (one file per kind of component), `intervening` (acts on them), `recording`,
  `replaying`, `programs` (training that can be branched in memory), `pinning` (takes one source of variation out of a
  launched script)
- L5 `verify` (numbered steps), `parentage` (a resumed run beside its parent), `compliance` (the checklist on a run),
  `studycheck` (on a study), `explain` (what its ids mean), `handbook` (their pages), `screen` and `show` (text for a
  terminal), `formats` (what machines read), `report` (HTML and Markdown), `twice` (runs a script twice and finds out
  why the runs differ), `study` (many runs, planned beforehand), `study_report` (what a study found, as a page; its
  pictures are made of `figures`), `doctor` (what a machine can do), `schema_page` (the schemas as a page)
- L6 `cli` (parses, builds, prints, gives the exit code), `__main__`

Data flows one way: ``train.py ──record──▶ run/ ──pack──▶ run.zip ──verify──▶ verdicts ──report──▶ html · md``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainmem_audit.recording import Recorder

__all__ = ["Recorder", "__version__"]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    """Give `Recorder` on demand, so that the light verbs never import what recording needs."""
    if name == "Recorder":
        from trainmem_audit.recording import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
