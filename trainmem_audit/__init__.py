"""trainmem-audit: record, verify, replay and measure the memory of deep-learning training.

The architecture, from the ground up; a module imports only from lower layers (`tests/test_architecture.py` holds it):

- L0 `errors`, `canonical` (the only place that makes bytes to be hashed or signed), `resources`
- L1 `documents`: frozen, strict models of every file that we read or write
- L2 pure functions, no torch: `merkle`, `steplog`, `divergence`, `checks`
- L3 `envelope` (DSSE, Ed25519), `keys`, `trust`, `rundir`, `packing`
- L4 the only torch: `digests`, `sources`, `recording`, `replaying`
- L5 `verify` (numbered steps), `report`
- L6 `cli`, `__main__`

Data flows one way: ``train.py ──record──▶ run/ ──pack──▶ run.zip ──verify──▶ verdicts ──report──▶ html · md``.
"""

__all__ = ["Recorder", "__version__"]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    """Give `Recorder` on demand, so that the light verbs never import what recording needs."""
    if name == "Recorder":
        from trainmem_audit.recording import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
