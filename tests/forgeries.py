"""What an author forges who has the key: a record of a script that cheats, with the source of one that does not.

Log, chain, digests, snapshots and signature are consistent; only a replay can show that the source gives another run.
"""

from __future__ import annotations

import json
from pathlib import Path

from trainmem_audit.assemble import sign_run
from trainmem_audit.canonical import line_marks, sha256_hex
from trainmem_audit.keys import Signer
from trainmem_audit.steplog import LogBuilder

__all__ = ["FORGERIES", "JUMP", "with_honest_source"]

JUMP = 5
"""The step that no training of the honest script gives."""
_AT = f"    if step == {JUMP - 1}:\n"
_KEEP = "    if step == 3:\n        early = [p.detach().clone() for p in model.parameters()]\n"
FORGERIES = {
    "weights interpolated between two real states": _KEEP
    + _AT
    + "        for param, before in zip(model.parameters(), early):\n            param.data.lerp_(before, 0.5)\n",
    "a skipped stretch of data": _AT + "        next(stream), next(stream)\n",
    "a swapped optimizer state": _AT
    + "        a, b = (optimizer.state[param]['exp_avg'] for param in (model[1].weight, model[1].bias))\n"
    + "        kept = a.clone()\n        a.copy_(b)\n        b.copy_(kept)\n",
}
"""What a cheating script does after a step, in place of the line `# here`."""


def with_honest_source(run_dir: Path, source: bytes) -> None:
    """Put `source` in place of the recorded script, everywhere, and sign the run anew."""
    builder = LogBuilder()
    lines = []
    for text in (run_dir / "steps.jsonl").read_bytes().splitlines():
        members = json.loads(text)
        del members["chain"]
        for file in members.get("files", ()):
            if file["path"] == "{cwd}/train.py":
                file |= {"sha256": sha256_hex(source), "lines": line_marks(source)}
        lines.append(builder.line(members))
    (run_dir / "steps.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (run_dir / "source" / "train.py").write_bytes(source)
    sign_run(run_dir, builder.finish(), Signer.generate())
