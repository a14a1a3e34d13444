"""Train a small network in NumPy and write a signed run, by schema/README.md alone: trainmem-audit is not imported.

    python writer.py RUN [--seed N]

Needs numpy, blake3, rfc8785 and cryptography. The first half writes the format, the second trains. The key is made for
this one run.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = Path(__file__).parent
CODE, DATA = "{script}/writer.py", "{script}/moons.csv"
BATCH, EPOCHS, MOMENTUM = 32, 4, 0.9
Arrays = dict[str, np.ndarray]


def derived(kind: str, data: bytes) -> str:
    return blake3(data, derive_key_context=f"trainmem-audit 2026-11 {kind} v1").hexdigest()


def header(arrays: Arrays) -> list[list[Any]]:
    return [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]


def tensor_digests(arrays: Arrays) -> bytes:
    return b"".join(blake3(array.tobytes()).digest() for array in arrays.values())


def component_digest(arrays: Arrays) -> str:
    return derived("component digest", blake3(rfc8785.dumps(header(arrays))).digest() + tensor_digests(arrays))


def content_digest(*batch: np.ndarray) -> str:
    leaves = [f"array {a.dtype.str} {list(a.shape)};".encode() + blake3(a.tobytes()).digest() for a in batch]
    return derived("batch content digest", f"sequence {len(batch)};".encode() + b"".join(leaves))


def stream_bytes(rng: np.random.Generator) -> bytes:
    def as_text(value: Any) -> Any:
        return {name: as_text(v) for name, v in value.items()} if isinstance(value, dict) else str(value)

    return rfc8785.dumps(as_text(rng.bit_generator.state))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Log:
    """`steps.jsonl`: lines in canonical form, each with its link of the chain, and the Merkle root over them."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")
        self.link = bytes(32)
        self.leaves: list[bytes] = []

    def write(self, kind: str, **members: Any) -> None:
        body = rfc8785.dumps({"t": kind, **members})
        self.link = bytes.fromhex(derived("step log chain", self.link + body))
        line = b'{"chain":"' + self.link.hex().encode() + b'",' + body[1:]
        self.leaves.append(hashlib.sha256(b"\0" + line).digest())
        self.file.write(line + b"\n")

    def root(self, leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        left = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below their number
        return hashlib.sha256(b"\1" + self.root(leaves[:left]) + self.root(leaves[left:])).digest()


def sign(run: Path, predicate: dict[str, Any]) -> str:
    """Write `run.json` and `signer.pub` over all files that are there; return the fingerprint of the key."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    digests = {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()],
        "predicateType": "https://w3id.org/trainmem-audit/training-run/v1",
        "predicate": predicate,
    }
    payload, kind = rfc8785.dumps(statement), b"application/vnd.in-toto+json"
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    fingerprint = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    keyid = "SHA256:" + base64.b64encode(fingerprint).decode().rstrip("=")
    signature = key.sign(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    signatures = [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}]
    envelope: dict[str, Any] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind.decode(),
        "signatures": signatures,
    }
    (run / "signer.pub").write_bytes(public + b"\n")
    (run / "run.json").write_bytes(rfc8785.dumps(envelope) + b"\n")
    return keyid


# The training, and what is said of it -----------------------------------------------------------------------------


def gradients(p: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, Arrays]:
    """Return the loss (cross entropy) of a network with one hidden layer, and its gradients."""
    hidden = np.tanh(x @ p["w1"] + p["b1"])
    logits = hidden @ p["w2"] + p["b2"]
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    loss = float(-np.log(probability[np.arange(len(y)), y]).mean())
    d2 = (probability - np.eye(2)[y]) / len(y)
    d1 = d2 @ p["w2"].T * (1 - hidden**2)
    return loss, {"w1": x.T @ d1, "b1": d1.sum(0), "w2": hidden.T @ d2, "b2": d2.sum(0)}


def environment() -> dict[str, Any]:
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "blake3", "rfc8785", "cryptography")}
    software = {"python": platform.python_version(), "implementation": platform.python_implementation()}
    cpu = platform.processor() or platform.machine()
    machine = {"system": platform.system(), "machine": platform.machine(), "cpu": cpu}
    variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ}
    return {**software, **machine, "cpuCount": os.cpu_count() or 0, "packages": packages, "variables": variables}


def profile() -> dict[str, Any]:
    """Return what decides the bits of NumPy's results."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return {"numpy": np.__version__, "blas": blas["name"], "blasVersion": blas["version"]}


def code_facts(code: bytes) -> dict[str, Any]:
    marks = b"".join(blake3(line).digest()[:4] for line in code.splitlines(keepends=True))
    names = {"path": CODE, "role": "entry", "file": "source/_script/writer.py"}
    return {**names, "sha256": hashlib.sha256(code).hexdigest(), "lines": base64.b64encode(marks).decode()}


def train(run: Path, seed: int) -> str:
    """Train, write the files of the run, and return the fingerprint of the key that signed it."""
    code, data = Path(__file__).read_bytes(), (HERE / "moons.csv").read_bytes()
    for folder in ("order", "source/_script"):
        (run / folder).mkdir(parents=True)
    (run / "source/_script/writer.py").write_bytes(code)
    log = Log(run / "steps.jsonl")
    rng = np.random.default_rng(seed)

    # Before the training. What the log and the statement both say is said once, here.
    stream: dict[str, Any] = {"library": "numpy", "algorithm": "PCG64", "device": "cpu"}
    stream["state"] = base64.b64encode(stream_bytes(rng)).decode()
    words = [{"path": run.name}, {"text": "--seed"}, {"text": str(seed)}]
    hash_seed = os.environ.get("PYTHONHASHSEED", "random")
    both: dict[str, Any] = {
        "producer": {"name": "numpy-example", "version": "1"},
        "command": {"kind": "script", "entry": CODE, "arguments": words, "hashSeed": hash_seed},
        "environment": environment(),
    }
    inputs = [{"path": DATA, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}]
    known = {"files": [code_facts(code)], "inputs": inputs}
    known["seeds"] = [{"call": "numpy.random.default_rng", "site": CODE, "value": str(seed)}]
    nonce, started = os.urandom(16).hex(), now()
    start = {"format": "trainmem-audit/step-log/v1", "nonce": nonce, "rank": 0, "world": 1, "started": started}
    declared = {"contractVersion": "0.1.0-draft", "order": {"scheme": "reshuffle"}}
    log.write("begin", **start, **both, streams={"numpy.rng": stream}, tensorBudget=2**26, declaredContract=declared)
    log.write("inventory", i=0, profile=profile(), **known)

    # The components: parameters, momentum, hyper-parameters.
    rows = np.array([line.split(",") for line in data.decode().split()], dtype="<f8")
    x, y = rows[:, :2].copy(), rows[:, 2].astype("<i8")
    params: Arrays = {"w1": rng.normal(0, 0.5, (2, 16)), "b1": np.zeros(16)}
    params |= {"w2": rng.normal(0, 0.5, (16, 2)), "b2": np.zeros(2)}
    momentum = {name: np.zeros_like(array) for name, array in params.items()}
    hyper = {"class": "SGD", "lr": (0.1).hex(), "momentum": MOMENTUM.hex()}

    def state() -> dict[str, str]:
        arrays = {"model.params": component_digest(params), "optimizer.momentum": component_digest(momentum)}
        return {**arrays, "optimizer.hyper": derived("value digest", rfc8785.dumps(hyper))}

    def streams() -> dict[str, str]:
        return {"numpy.rng": blake3(stream_bytes(rng)).hexdigest()}

    hyper["lr"] = (0.1).hex()
    tensors = {"tensors": header(params), "bytes": sum(array.nbytes for array in params.values())}
    labels = {"visibility": "in-process", "lifetime": "macro"}
    lasts = {"lifetime": "micro", "lifetimeSteps": (1 / (1 - MOMENTUM)).hex()}
    components = {
        "model.params": {**labels, "source": "S3", **tensors},
        "optimizer.momentum": {**labels, "source": "S1", **lasts, **tensors},
        "optimizer.hyper": {**labels, "source": "S1", "bytes": 0, "values": dict(hyper)},
    }
    loader: dict[str, Any] = {"kind": "numpy", "dataset": "moons.csv", "sampler": "Generator.permutation"}
    loader["settings"] = {"batch_size": BATCH, "drop_last": False, "replacement": False, "samples": len(x)}
    log.write("inventory", i=0, profile=profile(), components=components, loaders={"loader": loader})
    purpose = ["init", "order"]  # of what the stream was drawn from for
    log.write("inventory", i=0, state=state(), draws={"numpy.rng": purpose})

    step, moved = 0, list[int]()
    with (run / "tensors.b3").open("xb") as frames, (run / "order/rank-0.i64").open("xb") as order:
        for epoch in range(EPOCHS):
            log.write("epoch", i=step, epoch=epoch, loader="loader", rng=streams())
            moved.append(step)  # the permutation is drawn now, so the stream has moved when this step ends
            hyper["lr"] = (0.1 * 0.8**epoch).hex()
            permutation = rng.permutation(len(x)).astype("<i8")
            for chosen in np.split(permutation, range(BATCH, len(x), BATCH)):
                loss, gradient = gradients(params, x[chosen], y[chosen])
                for name in params:
                    momentum[name] = MOMENTUM * momentum[name] + gradient[name]
                    params[name] = params[name] - float.fromhex(hyper["lr"]) * momentum[name]
                digests = tensor_digests(params) + tensor_digests(momentum)
                frames.write(step.to_bytes(8, "little") + (len(digests) // 32).to_bytes(4, "little") + digests)
                order.write(chosen.tobytes())
                drawn: dict[str, Any] = {"index": blake3(chosen.tobytes()).hexdigest(), "n": len(chosen), "batches": 1}
                drawn["content"] = content_digest(x[chosen], y[chosen])
                said = {"scalars": {"loss": [loss.hex()], "lr": [hyper["lr"]]}, "values": {"optimizer.hyper": hyper}}
                log.write("step", i=step, order=drawn, state=state(), rng=streams(), **said)
                step += 1
            print(f"epoch {epoch + 1}/{EPOCHS}  loss {gradients(params, x, y)[0]:.4f}")

    # After it.
    ended = {"finished": now(), "outcome": "finished", "exitCode": 0}
    log.write("end", i=step, **ended, state=state(), rng=streams(), profile=profile())
    log.file.close()
    links = {"chainHead": log.link.hex(), "merkleRoot": log.root(log.leaves).hex()}
    counts = {"file": "steps.jsonl", "rank": 0, "count": len(log.leaves), "steps": step, "complete": True}
    consumed = {"beforeTraining": True, "steps": len(moved), "inside": 0, "first": moved[0], "last": moved[-1]}
    stream |= {"purpose": purpose, "scope": "process", "consumed": {**consumed, "epochs": 0, "workers": 0}}
    predicate = {
        "schemaVersion": "0.1.0-draft", "checklistVersion": "0.1.0-draft", **both, **known,
        "run": {"id": nonce, "started": started, **ended}, "stepLogs": [{**counts, **links}],
        "numericProfile": dict.fromkeys(("import", "firstStep", "end"), profile()), "canary": {},
        "rngContract": {
            "contractVersion": "0.1.0-draft", "streams": {"numpy.rng": stream}, "canary": {}, "declared": declared
        },
        "sources": components, "order": {"loader": loader},
        "declared": {}, "notRecorded": [],
    }  # fmt: skip
    return sign(run, predicate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train in NumPy, and sign what happened.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"wrote {arguments.run}, signed by {train(arguments.run, arguments.seed)}")
