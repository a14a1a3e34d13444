"""L5: what this machine can verify, record and replay; which flags, versions and devices decide bits; what is missing.

It looks, and tries two small layers; it changes no setting and writes nothing. It does not promise that a run recorded
elsewhere replays here: `verify --replay` tells, and calls a difference inconclusive where the machines differ.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from trainmem_audit import __version__
from trainmem_audit.canonical import sha256_hex
from trainmem_audit.documents.doctor import Diagnosis, Symptom

__all__ = ["diagnose", "diagnosis_text"]

_OLDEST_TORCH = (2, 11)
_SPACE = 2**30
_MARKS = {"ok": "ok  ", "note": "note", "missing": "MISS"}
_TOPICS = {
    "verify": "to verify",
    "record": "to record",
    "replay": "to replay",
    "device": "devices",
    "numerics": "what decides bits here",
}


def diagnose() -> Diagnosis:
    """Look at this machine; imports torch where it is installed."""
    light = [*_light()]
    heavy = [*_recording(), *_replaying()]

    def able(*topics: str) -> bool:
        return all(item.state != "missing" for item in (*light, *heavy) if item.topic in topics)

    ready = all(symptom.state != "missing" for symptom in heavy if symptom.name in ("torch", "OMP_DYNAMIC"))
    more = [*_devices(), *_numerics()] if ready else []  # under OMP_DYNAMIC the trials would hang as training does

    return Diagnosis(
        verify=able("verify"),
        record=able("verify", "record"),
        replay=able("verify", "record", "replay"),
        symptoms=(*light, *heavy, *more),
    )


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Return one screen."""
    lines: list[str] = []
    for topic, title in _TOPICS.items():
        found = [item for item in diagnosis.symptoms if item.topic == topic]
        if found:
            lines += ["", title]
        for item in found:
            lines.append(f"  {_MARKS[item.state]} {item.name:<24} {item.value}")
            if item.remedy:
                lines.append(f"       {'':<24} → {item.remedy}")
    abilities = (("verify", diagnosis.verify), ("record", diagnosis.record), ("replay", diagnosis.replay))
    lines += ["", "this machine can " + ", ".join(name if able else f"NOT {name}" for name, able in abilities)]
    return "\n".join(lines[1:])


def _light() -> Iterator[Symptom]:
    python = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Symptom(
        topic="verify",
        state="ok" if good else "missing",
        name="Python",
        value=f"{python} ({platform.python_implementation()}, {platform.system()} {platform.machine()})",
        remedy="" if good else "Python 3.11 or newer",
    )
    yield Symptom(topic="verify", state="ok", name="trainmem-audit", value=__version__)
    for name in ("blake3", "cryptography", "bcrypt", "pydantic", "rfc8785"):
        found = _version(name)
        remedy = "" if found else "pip install trainmem-audit"
        yield Symptom(
            topic="verify", state="ok" if found else "missing", name=name, value=found or "absent", remedy=remedy
        )


def _recording() -> Iterator[Symptom]:
    found = _version("torch") if find_spec("torch") is not None else ""
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdecimal())
    good = bool(found) and numbers >= _OLDEST_TORCH
    yield Symptom(
        topic="record",
        state="ok" if good else "missing",
        name="torch",
        value=found or "absent",
        remedy="" if good else "pip install 'trainmem-audit[torch]' (torch 2.11 or newer)",
    )
    if sys.byteorder != "little":
        yield Symptom(topic="record", state="missing", name="byte order", value=sys.byteorder, remedy="another machine")
    dynamic = os.environ.get("OMP_DYNAMIC", "")
    if dynamic.upper() == "TRUE":
        yield Symptom(
            topic="record",
            state="missing",
            name="OMP_DYNAMIC",
            value=dynamic,
            remedy="unset it: the number of threads must not vary, and training can hang",
        )
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < (os.cpu_count() or 1):
        yield Symptom(
            topic="record",
            state="note",
            name="OMP_THREAD_LIMIT",
            value=limit,
            remedy="training hangs where torch is told to use more threads than this",
        )
    writable = os.access(Path.cwd(), os.W_OK)
    yield Symptom(
        topic="record",
        state="ok" if writable else "missing",
        name="working directory",
        value="writable" if writable else "read-only",
        remedy="" if writable else "record with --run-dir, where you may write",
    )


def _replaying() -> Iterator[Symptom]:
    folder = Path(tempfile.gettempdir())
    status = os.statvfs(folder) if hasattr(os, "statvfs") else None
    free = status.f_bavail * status.f_frsize if status else 0
    yield Symptom(
        topic="replay",
        state="ok" if free >= _SPACE or status is None else "note",
        name="scratch space",
        value=f"{free / _SPACE:.1f} GiB free" if status else "not known",
        remedy="" if free >= _SPACE or status is None else "set TMPDIR to a larger disk: inputs are copied there",
    )
    groups = hasattr(os, "killpg")
    yield Symptom(
        topic="replay",
        state="ok" if groups else "missing",
        name="process groups",
        value="yes" if groups else "no",
        remedy="" if groups else "replay on Linux or macOS",
    )


def _devices() -> Iterator[Symptom]:
    from trainmem_audit.recording.trials import cuda_devices  # isort: skip  (it imports torch, which the next needs)
    from trainmem_audit.recording.facts import numeric_profile, rng_canary

    yield Symptom(topic="device", state="ok", name="processor", value=_processor(numeric_profile()))
    canary = rng_canary()
    text = " ".join(f"{name}={digest}" for name, digest in sorted(canary.items()))
    yield Symptom(
        topic="device",
        state="note",
        name="random draws",
        value=f"canary {sha256_hex(text.encode())[:16]}; machines with the same canary draw the same numbers",
    )
    devices = cuda_devices()
    for index, device in enumerate(devices):
        yield Symptom(topic="device", state="ok", name=f"CUDA device {index}", value=device)
    if not devices:
        yield Symptom(topic="device", state="note", name="CUDA", value="none: runs of a GPU cannot match here")
        return
    if not os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
        yield Symptom(
            topic="device",
            state="note",
            name="CUBLAS_WORKSPACE_CONFIG",
            value="not set",
            remedy="export CUBLAS_WORKSPACE_CONFIG=:4096:8 before training, or matrix products may not repeat",
        )


def _processor(profile: Mapping[str, object]) -> str:
    capability, threads = profile["cpuCapability"], profile["threads"]
    libraries = "".join(f", {label}" for key, label in (("mkl", "MKL"), ("mkldnn", "oneDNN")) if profile[key])
    return f"{os.cpu_count()} CPUs, kernels for {capability}, {threads} threads{libraries}"


def _numerics() -> Iterator[Symptom]:
    from trainmem_audit.recording.facts import numeric_profile
    from trainmem_audit.recording.trials import thread_counts, trials

    profile = numeric_profile()
    for key, words in (
        ("deterministicAlgorithms", "deterministic algorithms"),
        ("float32MatmulPrecision", "float32 matrix products"),
        ("cudnnBenchmark", "cuDNN benchmark"),
    ):
        value = profile[key]
        yield Symptom(
            topic="numerics",
            state="note",
            name=words,
            value={True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value),
        )
    few, many = sorted(thread_counts())
    for layer, found in trials().items():
        changes = [name for name, differs in found.items() if name != "repeats" and differs]
        words = "repeats itself" if found["repeats"] else "does NOT repeat itself"
        by = f"; other bits by {' and '.join(changes)}" if changes else f"; same bits at {few} and {many} threads"
        yield Symptom(
            topic="numerics",
            state="ok" if found["repeats"] else "note",
            name=layer,
            value=words + by,
            remedy="" if found["repeats"] else "torch.use_deterministic_algorithms(True)",
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
