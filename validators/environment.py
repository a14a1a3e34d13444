"""ENV: code, software, device, settings and data."""

from __future__ import annotations

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, passed
from trainmem_audit.documents.manifest import CODE_ELSEWHERE
from trainmem_audit.documents.record import Record

__all__ = ["RULES"]

_TORCH_SETTINGS = (
    "deterministicAlgorithms",
    "float32MatmulPrecision",
    "threads",
    "cudnnBenchmark",
    "cudnnDeterministic",
)
"""What a numeric profile of torch must say, whatever the device."""


def _code_recorded(record: Record) -> Outcome:
    """TM-ENV-001: the code that ran is recorded."""
    manifest = record.manifest
    elsewhere = next((text for text in manifest.not_recorded if text.startswith(CODE_ELSEWHERE)), None)
    if not manifest.files:
        if manifest.command.kind == "library":
            return inconclusive("a library recorded a program whose code it could not see", where="predicate.files")
        expected = "the entry point and what it imported"
        return failed(
            "recorded", "no code is recorded", where="statement: predicate.files", expected=expected, got="none"
        )
    if manifest.command.kind != "library" and not any(file.role == "entry" for file in manifest.files):
        where, expected = "statement: predicate.files", manifest.command.entry
        return failed("recorded", "the entry point is not recorded", where=where, expected=expected, got="other files")
    if elsewhere is not None:
        where = "statement: predicate.notRecorded"
        return inconclusive("code from outside of the working directory ran, too", where=where, got=elsewhere)
    copies = sum(file.file is not None for file in manifest.files)
    return passed("recorded", f"{len(manifest.files)} files of code by digest, {copies} of them as a copy")


def _software_stack(record: Record) -> Outcome:
    """TM-ENV-002: interpreter, system and package versions."""
    environment = record.manifest.environment
    where = "statement: predicate.environment.packages"
    if not environment.packages:
        return failed("recorded", "no package is recorded", where=where, expected="names and versions", got="none")
    libraries = {stream.library for stream in record.manifest.rng_contract.streams.values()} - {"python"}
    if missing := sorted(libraries - environment.packages.keys()):
        message = "a library whose generator was used has no version in the record"
        return failed("recorded", message, where=where, expected=", ".join(missing), got="other packages")
    software = f"{environment.implementation} {environment.python} on {environment.system}"
    return passed("recorded", f"{software}, {len(environment.packages)} packages with their versions")


def _device(record: Record) -> Outcome:
    """TM-ENV-003: the device, on a GPU with its number of multiprocessors."""
    manifest = record.manifest
    profile = {name: value for part in manifest.numeric_profile.values() for name, value in part.items()}
    on_gpu = any(stream.device.startswith("cuda") for stream in manifest.rng_contract.streams.values())
    if on_gpu or any(name.startswith("cuda") for name in profile):
        missing = [name for name in ("cudaDevice", "cudaMultiprocessors") if not profile.get(name)]
        if missing:
            where, expected = "statement: predicate.numericProfile", ", ".join(missing)
            return failed(
                "recorded", "a GPU was used and is not described", where=where, expected=expected, got="absent"
            )
        return passed("recorded", f"{profile['cudaDevice']} with {profile['cudaMultiprocessors']} multiprocessors")
    environment = manifest.environment
    if environment.cpu == "unknown":
        where = "statement: predicate.environment.cpu"
        return failed("recorded", "the processor is not named", where=where, expected="its model", got="unknown")
    return passed("recorded", f"{environment.cpu}, {environment.cpu_count} of {environment.machine}; no GPU in use")


def _numeric_settings(record: Record) -> Outcome:
    """TM-ENV-004: the settings that decide bits, at the start and at the end."""
    profiles = record.manifest.numeric_profile
    where = "statement: predicate.numericProfile"
    start = profiles.get("firstStep") or profiles.get("import")
    if not start:
        return failed("recorded", "there is no profile of the start", where=where, expected="firstStep", got="none")
    if not record.log.ended:
        return inconclusive("the run did not end by itself, so that nobody knows its settings at the end", where=where)
    end = profiles.get("end")
    if not end:
        return failed("recorded", "there is no profile of the end", where=where, expected="end", got="none")
    if "torch" in start:
        for part, profile in (("start", start), ("end", end)):
            if missing := [name for name in _TORCH_SETTINGS if name not in profile]:
                message = f"the profile of the {part} lacks settings of torch"
                return failed("recorded", message, where=where, expected=", ".join(missing), got="absent")
    changed = sorted(name for name in start.keys() | end.keys() if start.get(name) != end.get(name))
    what = f"; changed on the way: {', '.join(changed)[:200]}" if changed else ", the same at both ends"
    return passed("recorded", f"{len(start)} settings{what}")


def _data_digest(record: Record) -> Outcome:
    """TM-ENV-005: the data, by the digests of files or of batches."""
    steps, inputs = record.log.steps, record.manifest.inputs
    every = steps.count > 0 and steps.count in (steps.with_order, steps.with_inputs)
    batches = "the content of every batch" if every else ""
    files = f"{len(inputs)} files that were read" if inputs else ""
    if batches or files:
        return passed("recorded", " and ".join(part for part in (files, batches) if part) + ", by digest")
    if steps.with_order or steps.with_inputs:
        return inconclusive("some steps have a digest of their data and some have none", where="steps.jsonl")
    expected = "digests of files, or of the batches of every step"
    return failed("recorded", "the data are not recorded", where="steps.jsonl", expected=expected, got="none")


RULES: dict[str, Rule] = {
    "TM-ENV-001": _code_recorded,
    "TM-ENV-002": _software_stack,
    "TM-ENV-003": _device,
    "TM-ENV-004": _numeric_settings,
    "TM-ENV-005": _data_digest,
}
