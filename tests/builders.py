"""Documents made by hand: the record of a realistic run on scikit-learn's digits, and variations of it."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
from typing import Any, TypeVar

from pydantic import ValidationError

from trainmem_audit.canonical import float_text
from trainmem_audit.documents.common import Document
from trainmem_audit.documents.findings import (
    Attestation,
    Check,
    ComponentDifference,
    Difference,
    Finding,
    Opening,
    ParentLink,
    ParentOrder,
    Replay,
    Signature,
    TensorDifference,
    Verification,
)
from trainmem_audit.documents.manifest import PREDICATE_TYPE, SCHEMA_VERSION, STATEMENT_TYPE, Statement
from trainmem_audit.documents.steplog import Epoch, Inventory, Line, Order, Step
from trainmem_audit.report import RunSeries, SeriesCollector
from trainmem_audit.segments import choose, segments_of, verdict_of

STEPS, STEPS_PER_EPOCH = 230, 23
KEYID = "SHA256:" + base64.b64encode(hashlib.sha256(b"key").digest()).decode().rstrip("=")
HOSTILE = (
    '<script>alert(1)</script></style><img src="http://evil/x">|`a`\n# h\n\x1b[31m\u202ecod.exe [l](http://evil) $x$'
)

D = TypeVar("D", bound=Document)


def digest(name: str) -> str:
    """Return 64 hex digits that depend on `name`."""
    return hashlib.sha256(name.encode()).hexdigest()


def _component(
    source: str, lifetime: str, visibility: str, *shapes: tuple[str, list[int]], **rest: Any
) -> dict[str, Any]:
    tensors = [[name, "float32", shape] for name, shape in shapes]
    size = sum(4 * math.prod(shape) for _, shape in shapes)
    return {"source": source, "lifetime": lifetime, "visibility": visibility, "tensors": tensors, "bytes": size, **rest}


_PARAMETERS: list[tuple[str, list[int]]] = [
    ("conv1.weight", [32, 1, 3, 3]), ("conv1.bias", [32]), ("bn1.weight", [32]), ("bn1.bias", [32]),
    ("conv2.weight", [64, 32, 3, 3]), ("conv2.bias", [64]), ("bn2.weight", [64]), ("bn2.bias", [64]),
    ("fc1.weight", [128, 1024]), ("fc1.bias", [128]), ("fc2.weight", [10, 128]), ("fc2.bias", [10]),
]  # fmt: skip
_BATCHNORM: list[tuple[str, list[int]]] = [
    ("bn1.running_mean", [32]), ("bn1.running_var", [32]), ("bn2.running_mean", [64]), ("bn2.running_var", [64]),
]  # fmt: skip
HYPER: dict[str, Any] = {
    "source": "S1", "lifetime": "macro", "visibility": "in-process", "bytes": 118,
    "values": {"groups": [{"lr": float_text(0.05), "momentum": float_text(0.9), "weight_decay": float_text(5e-4)}]},
}  # fmt: skip


def _sources() -> dict[str, Any]:
    return {
        "model.params": _component("S3", "macro", "checkpointed", *_PARAMETERS),
        "model.batchnorm": _component("S2", "meso", "checkpointed", *_BATCHNORM, lifetimeSteps=float_text(10.0)),
        "optimizer.momentum": _component("S1", "micro", "in-process", *_PARAMETERS, lifetimeSteps=float_text(10.0)),
        "optimizer.hyper": HYPER,
        "scheduler": {
            "source": "S1", "lifetime": "macro", "visibility": "in-process", "bytes": 64,
            "values": {"last_epoch": 10, "T_max": 10},
        },
        "order": {
            "source": "S2", "lifetime": "meso", "visibility": "implicit", "bytes": 0, "values": {"position": 0},
        },
    }  # fmt: skip


def _streams() -> dict[str, Any]:
    state = base64.b64encode(bytes(range(48))).decode()
    return {
        "rng.python": {"library": "python", "algorithm": "mt19937", "device": "cpu", "state": state},
        "rng.numpy": {"library": "numpy", "algorithm": "mt19937", "device": "cpu", "state": state},
        "rng.torch.cpu": {"library": "torch", "algorithm": "mt19937", "device": "cpu", "state": state},
        "rng.numpy.augment": {"library": "numpy", "algorithm": "pcg64", "device": "cpu", "state": state},
    }


def _contract() -> dict[str, Any]:
    recorded = {"purpose": ["init"], "scope": "process", "consumed": {}, "pairing": "shared", "stability": "release"}
    return {
        "contractVersion": "0.1.0-draft",
        "rootEntropy": "5" * 32,
        "derivation": {"function": "trainmem-audit 2026-11 start of a random stream v1", "path": ["stream"]},
        "streams": {name: stream | recorded for name, stream in _streams().items()},
        "canary": {name: digest(f"canary {name}") for name in _streams()},
    }


def _profile() -> dict[str, Any]:
    base: dict[str, Any] = {
        "torch.num_threads": 2, "torch.num_interop_threads": 2, "torch.cpu_capability": "AVX512",
        "torch.deterministic_algorithms": False, "torch.float32_matmul_precision": "highest",
        "torch.backends.mkldnn.enabled": True, "torch.default_dtype": "torch.float32",
        "cudnn.benchmark": False, "cudnn.allow_tf32": True, "flush_denormal": None,
    }  # fmt: skip
    later = {**base, "torch.num_threads": 1, "torch.deterministic_algorithms": True}
    return {"import": base, "firstStep": later, "end": later}


_PACKAGES = {
    "torch": "2.13.0+cpu", "numpy": "2.3.1", "scikit-learn": "1.7.0", "scipy": "1.16.0", "trainmem-audit": "0.1.0",
    "jinja2": "3.1.6", "pydantic": "2.11.7", "blake3": "1.0.5", "cryptography": "45.0.4", "rich": "14.0.0",
    "joblib": "1.5.1", "threadpoolctl": "3.6.0", "typer": "0.16.0", "networkx": "3.5", "sympy": "1.14.0",
    "mpmath": "1.3.0", "filelock": "3.18.0", "fsspec": "2025.5.1", "typing-extensions": "4.14.0", "wheel": "0.45.1",
}  # fmt: skip


def statement_json() -> dict[str, Any]:
    """Return the JSON of a statement as a finished digits run has it."""
    manifest = {
        "schemaVersion": "0.1.0-draft",
        "checklistVersion": "0.1.0-draft",
        "producer": {"name": "trainmem-audit", "version": "0.1.0"},
        "run": {
            "id": digest("run")[:32],
            "started": "2026-11-24T09:12:30.125Z",
            "finished": "2026-11-24T09:12:44.981Z",
            "outcome": "finished",
            "exitCode": 0,
        },
        "command": {
            "kind": "script",
            "entry": "{cwd}/train.py",
            "arguments": [
                {"text": "--epochs"}, {"text": "10"}, {"prefix": "--out=", "path": "{cwd}/weights.npz"},
                {"text": "--name"}, {"text": "digits, second try"}, {"prefix": "--token=", "redacted": True},
            ],
            "hashSeed": "1804289383",
        },
        "environment": {
            "python": "3.11.9",
            "implementation": "CPython",
            "system": "Linux 6.1",
            "machine": "x86_64",
            "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cpuCount": 2,
            "packages": _PACKAGES,
            "variables": {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1804289383", "LC_ALL": "C.UTF-8"},
        },
        "numericProfile": _profile(),
        "rngContract": _contract(),
        "canary": {name: digest(f"canary {name}") for name in _streams()},
        "sources": _sources(),
        "order": {
            "train": {
                "kind": "DataLoader", "dataset": "DigitsDataset, 1437 samples", "sampler": "RandomSampler",
                "settings": {"batch_size": 64, "drop_last": False, "num_workers": 0, "shuffle": True},
            },
        },
        "inputs": [
            {"path": "{site}/sklearn/datasets/data/digits.csv.gz", "sha256": digest("digits"), "bytes": 57523},
            {"path": "{cwd}/labels-corrected.csv", "sha256": digest("labels"), "bytes": 18211},
        ],
        "files": [
            {"path": "{cwd}/train.py", "role": "entry", "sha256": digest("train"), "file": "source/train.py"},
            {"path": "{cwd}/augment.py", "role": "imported", "sha256": digest("augment"), "file": "source/augment.py"},
            {"path": "secret_model.py", "role": "imported", "sha256": digest("secret")},
        ],
        "stepLogs": [
            {
                "file": "steps.jsonl", "rank": 0, "count": 246, "steps": STEPS, "chainHead": digest("chain"),
                "merkleRoot": digest("merkle"), "complete": True,
            }
        ],
        "declared": {"purpose": "ablation of the learning-rate schedule, Table 2"},
        "notRecorded": ["the value of 1 argument (redacted)", "files opened by compiled readers, unless named"],
    }  # fmt: skip
    names = ("steps.jsonl", "tensors.b3", "order/train.i64", "source/train.py", "source/augment.py")
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest(name)}} for name in names],
        "predicateType": PREDICATE_TYPE,
        "predicate": manifest,
    }


def statement(**changes: Any) -> Statement:
    """Return that statement, with members of the predicate replaced (by their JSON names)."""
    value = statement_json()
    value["predicate"].update(changes)
    return Statement.model_validate_json(_dump(value))


def _dump(value: Any) -> str:
    return json.dumps(value)


TITLES = ("envelope", "signature", "trust", "statement", "files", "step log")


def checks(**states: str) -> tuple[Check, ...]:
    """Return the numbered checks, all passed but for the given ones."""
    details = {
        "envelope": "DSSE 1.0, one signature, canonical",
        "signature": f"Ed25519, {KEYID}",
        "trust": "the key is on the trust list as submission-4711",
        "statement": "in-toto Statement v1, predicate training-run/v1",
        "files": "5 listed, 5 digests equal, none unlisted",
        "step log": "246 lines, chain and Merkle root as stated, 230 steps without a gap",
        "replay": "mode full; its verdict stands apart",
    }
    return tuple(
        Check.model_validate(
            {
                "number": number,
                "title": title,
                "state": states.get(title.replace(" ", "_"), "pass"),
                "detail": details[title],
            }
        )
        for number, title in enumerate((*TITLES, "replay"), 1)
    )


def verification(**changes: Any) -> Verification:
    """Return the verification of an intact record that replays to `match`, with members replaced."""
    value: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": "digits-baseline.zip",
        "bytes": "intact",
        "record": "consistent",
        "signature": Signature(
            state="trusted", keyid=KEYID, principal="submission-4711", detail="Ed25519, the key is on the trust list"
        ),
        "replay": Replay(outcome="match", mode="full", steps_compared=STEPS, seconds="14.2"),
        "checks": checks(),
        "findings": (),
        "facts": {"files": 5, "lines of the step log": 246},
        "commitments": openings(),
        "attestations": attestations(),
        "exit_code": 0,
    }
    return Verification(**{**value, **changes})


def openings() -> tuple[Opening, ...]:
    """Return commitments, some of them opened, with every kind of value."""
    return (
        Opening(name="author", opened=True, value={"name": "Ann Example"}),
        Opening(name="cwd", opened=False),
        Opening(name="git.commit", opened=True, value="4711" * 10),
        Opening(name="git.dirty", opened=True, value=True),
        Opening(name="git.remote", opened=True),
        Opening(name="inputs", opened=True, value=(("digits.npz", "/data/digits.npz"),)),
    )


def attestations() -> tuple[Attestation, ...]:
    """Return a verdict that counts, and a co-signature that does not."""
    trusted = Signature(state="trusted", keyid=KEYID, principal="reviewer-2", detail="the key is in the trust file")
    unknown = Signature(state="not-checkable", keyid=KEYID, detail="not checked: its key is not in the trust file")
    return (
        Attestation(
            where="run.intoto.jsonl:1", kind="verdict", signature=trusted, counts=True, detail=trusted.detail,
            signers=(KEYID,), created="2026-03-01T12:00:00Z", properties=("TRAINMEM_REPLAY_MATCH",),
            mode="match, full, 230 steps",
        ),
        Attestation(
            where="run.intoto.jsonl:2", kind="co-signature", signature=unknown, counts=False, detail=unknown.detail
        ),
    )  # fmt: skip


def not_run(**changes: Any) -> Verification:
    """Return a verification without replay by someone who does not know the key."""
    return verification(
        **{
            "signature": Signature(
                state="unknown-signer", keyid=KEYID, detail="Ed25519, checked with the key in the record"
            ),
            "replay": Replay(outcome="not-run", mode="none"),
            "checks": checks(trust="not-checked", replay="not-checked"),
            "exit_code": 1,
            **changes,
        }
    )


def difference() -> Difference:
    """Return the first difference of a run whose learning rate was changed."""
    tensors = tuple(
        TensorDifference(name=name, dtype="float32", shape=tuple(shape), expected=digest(name), got=digest(name + "'"))
        for name, shape in _PARAMETERS[:4]
    )

    def differs(component: str, cause: int, detail: str = "", **rest: Any) -> ComponentDifference:
        return ComponentDifference(
            component=component, cause=cause, stage="step", expected=digest(component), got=digest(component + "'"),
            detail=detail, **rest,
        )  # fmt: skip

    return Difference(
        step=0,
        stage="step",
        blame="optimizer.hyper",
        explanation="The hyper-parameters differ at the first step, while order, content and random streams are equal.",
        components=(
            differs(
                "model.params", 8, "all 12 tensors; largest difference 0.0031", tensors=tensors, tensors_known=True
            ),
            differs("optimizer.hyper", 5, "groups[0].lr: expected 0.05, got 0.1", tensors_known=True),
            differs("optimizer.momentum", 7),
        ),
    )


def segments() -> Verification:
    """Return a verification in which two of five segments were drawn, and replay to `match`."""
    parts = segments_of(range(9, 70, 10), 80)
    chosen = choose(parts, bytes(32), bytes(16), 2)
    found = verdict_of(parts, chosen, 2, bytes(16)).model_copy(update={"walked": 40})
    replay = Replay(outcome="match", mode="segments:2", steps_compared=40, seconds="5.0", segments=found)
    return verification(replay=replay)


def resumed() -> Verification:
    """Return the verification of a resumed run whose parent was at hand."""
    order = ParentOrder(same=9, under_way=24, repeated=0)
    return verification(
        parent=ParentLink(
            run="5" * 32, steps=11, state="holds", signature="trusted", compared=("model.params",), order=order,
            detail="the checkpoint is the one that the parent saved; 1 components go on as they were",
        )
    )  # fmt: skip


def mismatch(*, what_if: bool = False) -> Verification:
    """Return a verification whose replay differs; as a what-if, with the file that was edited."""
    replay = Replay(
        outcome="mismatch", mode="full", what_if=what_if, steps_compared=1, seconds="3.1", difference=difference(),
        changed_files=("{cwd}/train.py",) if what_if else (),
        notes=("The random-number canary agrees on this machine.",),
    )  # fmt: skip
    return verification(replay=replay, checks=checks(replay="fail"), exit_code=1)


def findings() -> tuple[Finding, ...]:
    """Return a warning and two errors, in this order."""
    return (
        Finding(
            code="envelope-not-canonical", severity="warning", where="run.json", remedy="ask for the original file",
            message="the envelope is not the form that this program writes",
        ),
        Finding(
            code="file-digest", severity="error", where="steps.jsonl:118", expected=digest("a"), got=digest("b"),
            message="the file is not the one that was signed", remedy="ask the author for the signed file",
        ),
        Finding(code="file-unlisted", severity="error", where="notes.txt", message="a file that no statement lists"),
    )  # fmt: skip


def broken() -> Verification:
    """Return the verification of a record with an invalid signature and changed files; nothing was replayed."""
    return verification(
        bytes="broken",
        record="inconsistent",
        signature=Signature(state="invalid", keyid=KEYID, detail="the Ed25519 signature does not fit the payload"),
        replay=Replay(outcome="not-run", mode="none", reason="A record that is not intact is not replayed."),
        checks=checks(signature="fail", trust="not-checked", files="fail", step_log="fail", replay="not-checked"),
        findings=findings(),
        exit_code=1,
    )


def lines(steps: int = STEPS) -> list[Line]:
    """Return the lines of a digits run that `SeriesCollector` looks at, with a falling loss and a cosine rate."""
    log: list[Line] = []
    chain = digest("line")
    for step in range(steps):
        if step == 0:
            parts: dict[str, Any] = {
                "chain": chain,
                "t": "inventory",
                "i": 0,
                "components": {"optimizer.hyper": HYPER},
            }
            log.append(Inventory.model_validate_json(_dump(parts)))
        epoch, position = divmod(step, STEPS_PER_EPOCH)
        if position == 0:
            log.append(Epoch(chain=chain, t="epoch", i=step, epoch=epoch, loader="train", rng={}))
        loss = 2.35 * math.exp(-step / 45) + 0.06 + 0.09 * abs(math.sin(step * 1.7)) * math.exp(-step / 120)
        rate = 0.025 * (1 + math.cos(math.pi * epoch / (steps / STEPS_PER_EPOCH)))
        count = 64 if position < STEPS_PER_EPOCH - 1 else 29
        log.append(
            Step(
                chain=chain, t="step", i=step, state={}, rng={}, scalars={"loss": (float_text(loss),)},
                order=Order(content=digest("c"), n=count, batches=1),
                values={"optimizer.hyper": {"groups": [{"lr": float_text(rate)}]}} if position == 0 else None,
            )
        )  # fmt: skip
    return log


def series(steps: int = STEPS) -> RunSeries:
    """Return what those lines tell over time."""
    collector = SeriesCollector()
    for line in lines(steps):
        collector.add(line)
    return collector.series()


def with_hostile_strings(document: D, text: str = HOSTILE) -> D:
    """Return `document` with `text` added to every string and every key where its model still allows it."""
    value = document.to_json()
    for path in list(_strings(value)):
        changed = copy.deepcopy(value)
        _at(changed, path[:-1])[path[-1]] += text
        if _is_valid(type(document), changed):
            value = changed
    for path in sorted(_keys(value), key=len, reverse=True):
        changed = copy.deepcopy(value)
        holder = _at(changed, path[:-1])
        holder[path[-1] + text] = holder.pop(path[-1])
        if _is_valid(type(document), changed):
            value = changed
    return type(document).model_validate_json(_dump(value))


def _is_valid(model: type[Document], value: Any) -> bool:
    try:
        model.model_validate_json(_dump(value))
    except ValidationError:
        return False
    return True


def _strings(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, str):
        return [path]
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, member in members for found in _strings(member, (*path, key))]


def _keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        own = [(*path, key) for key in value]
        return own + [found for key, member in value.items() for found in _keys(member, (*path, key))]
    if isinstance(value, list):
        return [found for index, member in enumerate(value) for found in _keys(member, (*path, index))]
    return []


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
