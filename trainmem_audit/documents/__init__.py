"""L1: frozen, strict models of every file that we read or write. No I/O, no torch, no hashing.

`common` (base class and field types) · `checkpoints` (what a script saved) · `steplog` (lines of `steps.jsonl`) ·
`manifest` (the statement inside `run.json`) · `findings` (what verification, replay and comparison say) ·
`estimates` (what a study found) · `twice` · `doctor`.
"""
