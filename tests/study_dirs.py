"""The directory of a study without training: fake arms that are signed and verify, a study log, estimates.

`StudyDir(tmp_path).write()` writes two seeds with one noise stream each, and contrasts of three kinds; change
`study.arms[...]` or `study.estimates` before it is written.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from tests.arms import FakeArm
from tests.logs import digest, stream
from tests.records import STUDY
from trainmem_audit.assemble import read_log, sign_run
from trainmem_audit.canonical import canonical_bytes, component_digest, sha256_hex
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, SCHEMA_VERSION, STATEMENT_TYPE
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.steplog import Step
from trainmem_audit.documents.studies import STUDY_LOG_FORMAT, STUDY_PREDICATE_TYPE
from trainmem_audit.envelope import parse_envelope, seal
from trainmem_audit.keys import Signer
from trainmem_audit.observations import observation_bytes, observation_name
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE
from trainmem_audit.studylog import STUDY_FILE, StudyLogBuilder

__all__ = ["SIGNER", "StudyDir"]

SIGNER = Signer.from_seed(bytes(32))
PRODUCER = {"name": "trainmem-audit", "version": "0"}
BRANCH, STEPS, HORIZONS = 4, 5, (1, 3)
RESET = "reset.s0.b4.r0"


class _Arm(FakeArm):
    """An arm of the study: `noise` is what all its streams and batches depend on."""

    def __init__(self, steps: int, noise: tuple[object, ...]) -> None:
        super().__init__(steps)
        self.noise = noise
        self.observed: tuple[int, ...] = ()
        self.study: dict[str, Any] = {}

    def rng(self, step: int) -> dict[str, str]:
        """Return the digests of the streams."""
        return {name: digest(text, self.noise) for name, text in super().rng(step).items()}

    def indices(self, step: int) -> bytes:
        """Return samples that no other seed has at this step."""
        shift = 1000 * int(digest(self.noise[:1])[:4], 16)
        data = super().indices(step)
        numbers = (int.from_bytes(data[at : at + 8], "little") + shift for at in range(0, len(data), 8))
        return b"".join(number.to_bytes(8, "little") for number in numbers)

    def members(self) -> Any:
        """Yield the members of every line, with what the arm is in the study, and predictions."""
        for line in super().members():
            if line["t"] == "begin":
                line |= {"study": self.study, "started": "2026-11-25T12:00:01Z"}
            if "streams" in line:  # seeds apart
                state = "AAA" + "BC"[int(str(self.noise[0])) % 2]
                line["streams"] = {name: stream(name.partition(".")[0], state) for name in line["streams"]}
            if line["t"] in ("step", "end") and line["i"] in self.observed:
                size = len(observation_bytes(self.predictions()))
                yield {"t": "observe", "i": line["i"], "file": observation_name(line["i"]), "size": size}
            yield line

    @staticmethod
    def predictions() -> dict[str, Any]:
        """Return predictions on a probe of three examples."""
        return {"model": np.zeros((3, 2), dtype=np.float32)}

    def write(self, folder: Path) -> str:
        """Write and sign the run directory; return the SHA-256 of what was signed."""
        folder.mkdir(parents=True)
        files = {STEP_FILE: self.log(), TENSOR_FILE: self.frames(), ORDER_FILE: self.order()}
        files |= {observation_name(step): observation_bytes(self.predictions()) for step in self.observed}
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        with DirectoryReader(folder) as reader:
            sign_run(folder, read_log(reader), SIGNER)
        return sha256_hex(parse_envelope((folder / "run.json").read_bytes(), "run.json").payload)


def _zeros(header: list[list[Any]]) -> str:
    digests = [blake3(bytes(4 * math.prod(shape))).digest() for _, _, shape in header]
    return component_digest(canonical_bytes(header), digests).hex()


class StudyDir:
    """A study that may be changed until it is written."""

    def __init__(self, folder: Path, probe: bytes = b"") -> None:
        self.folder = folder / "study"
        self.probe = probe
        plan = json.loads(json.dumps(STUDY["study"]["plan"]))
        plan |= {"branchSteps": [BRANCH], "horizons": list(HORIZONS), "noiseStreams": 1}
        plan["primary"]["branchStep"] = BRANCH
        if probe:
            plan["probe"] |= {"sha256": sha256_hex(probe), "size": 2}
        self.plan: Plan = Plan.parse(json.dumps(plan).encode(), "plan")
        self.arms: dict[str, _Arm] = {}
        for number, seed in enumerate(self.plan.seeds):
            self._seed(number, seed)

    def _seed(self, number: int, seed: str) -> None:
        prefix = _Arm(BRANCH, (seed,))
        prefix.nonce = digest("run", seed)[:32]
        prefix.study = {"plan": self.plan.digest, "arm": {"id": f"prefix.s{number}", "seed": seed}}
        self.arms[f"prefix.s{number}"] = prefix
        head = next(line.chain for line in prefix.parsed() if isinstance(line, Step) and line.i == BRANCH - 1)
        for noise in range(self.plan.noise_streams):
            for name in self.plan.treatments:
                arm = _Arm(STEPS, (seed, noise))
                arm.begin_state = prefix.state(prefix.steps)
                arm.observed = HORIZONS
                own = f"{name}.s{number}.b{BRANCH}.r{noise}"
                arm.nonce = digest("run", own)[:32]
                said = {"id": own, "seed": seed, "stream": noise, "branchStep": BRANCH, "intervention": name}
                branch = {"run": prefix.nonce, "chainHead": head, "step": BRANCH}
                arm.study = {"plan": self.plan.digest, "arm": said, "branch": branch}
                if noise:
                    arm.intervene({"primitive": "fork", "seed": str(noise)}, at=0, streams=("python", "torch.cpu"))
                self._act(arm, name)
                self.arms[own] = arm

    def _act(self, arm: _Arm, name: str) -> None:
        intervention = self.plan.interventions[name]
        touched = {"reset": "optimizer.momentum", "kick": "model.params", "flushed": "teacher.params"}.get(name)
        document = intervention.to_json()
        if name == "flushed":  # the fake has no bank
            document = {"primitive": "flush", "component": "teacher.params"}
        if name == "swapped":
            arm.plan[:2] = [1, 0]
        arm.intervene(document, *([touched] if touched else []), at=0)
        if name == "reset":
            arm.lines_before[0][-1]["state"]["after"]["optimizer.momentum"] = _zeros(arm.tensors["optimizer.momentum"])

    def write(self) -> Path:
        """Write everything, and return the directory."""
        self.folder.mkdir(parents=True)
        (self.folder / "plan.json").write_bytes(self.plan.canonical())
        (self.folder / "signer.pub").write_bytes(SIGNER.public.openssh_line())
        if self.probe:
            (self.folder / "probe.safetensors").write_bytes(self.probe)
        log = StudyLogBuilder()
        begin = {"format": STUDY_LOG_FORMAT, "nonce": "0" * 32, "producer": PRODUCER, "plan": self.plan.digest}
        lines = [log.line({"t": "begin", "time": "2026-11-25T12:00:00Z", "workers": 1, "threads": 1, **begin})]
        for name, arm in self.arms.items():
            at = {"id": name, "number": 1, "time": "2026-11-25T12:00:01Z"}
            lines.append(log.line({"t": "start", **at}))
            statement = arm.write(self.folder / "arms" / name)
            done = {"run": arm.nonce, "statement": statement, "steps": arm.steps}
            lines.append(log.line({"t": "finish", **at, **done}))
        counts = {"finished": len(self.arms), "failed": 0}
        lines.append(log.line({"t": "end", "time": "2026-11-25T12:01:00Z", **counts}))
        (self.folder / STUDY_FILE).write_bytes(b"".join(line + b"\n" for line in lines))
        self._sign(log)
        return self.folder

    def _sign(self, log: StudyLogBuilder) -> None:
        summary = log.finish()
        bound = {"file": STUDY_FILE, "count": summary.lines, "chainHead": summary.chain_head}
        predicate = {
            "schemaVersion": SCHEMA_VERSION,
            "producer": PRODUCER,
            "id": "0" * 32,
            "plan": self.plan.digest,
            "began": "2026-11-25T12:00:00Z",
            "ended": "2026-11-25T12:01:00Z",
            "log": bound | {"merkleRoot": summary.merkle_root},
            "started": summary.started,
            "finished": len(summary.finished),
            "failed": {},
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [],
            "predicateType": STUDY_PREDICATE_TYPE,
            "predicate": predicate,
        }
        (self.folder / "study.json").write_bytes(seal(canonical_bytes(statement), PAYLOAD_TYPE, SIGNER))
        self.chain_head = summary.chain_head
