"""Runs a declared script (`tests.shapes.Shape`): recorded, bare, replayed elsewhere, and once for each planted change.

The interpreter imports `tests/harness/sitecustomize.py` in bare and recorded runs, which writes down what is left when
they end.
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from tests.shapes import Change, Shape
from tests.tools import examined
from tests.trainings import Ended, bare, recorded, replayed_here, statement_of
from trainmem_audit.documents.findings import Replay
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.packing import pack
from trainmem_audit.rundir import open_run

__all__ = ["HARNESS", "Specimen", "capture", "declared", "differs_from_bare", "examine", "put"]

HARNESS = Path(__file__).parent / "harness"
CLOCK = "1795000000.25"


@dataclass(frozen=True)
class Specimen:
    """A recorded shape: its pack, what the run left behind, and its directory as it was before."""

    shape: Shape
    pack: Path
    before: Path
    ended: Ended
    ending: str


def capture(shape: Shape, folder: Path, harness: Path = HARNESS) -> Specimen:
    """Record a shape and pack it."""
    before = folder / "before"
    for name in shape.names:
        put(before / name, (shape.folder / name).read_text())
    for name, text in shape.text.items():
        put(before / name, text)
    if shape.before:
        done = bare(before, *shape.before, home=folder / "home")
        assert done.returncode == 0, done.stderr
    there = folder / "author"
    shutil.copytree(before, there)
    env = surroundings(shape, folder / "recorded.json", PYTHONPATH=str(harness))
    done = recorded(there, *shape.command, home=folder / "home", env=env)
    run = there / "run"
    assert (run / "run.json").is_file(), done.stderr.decode()
    pack(run, folder / "run.zip")
    return Specimen(shape, folder / "run.zip", before, Ended(done, there), _ending(folder / "recorded.json"))


def surroundings(shape: Shape, ending: Path, **more: str) -> dict[str, str]:
    cache = {
        "TORCHINDUCTOR_CACHE_DIR": str(ending.with_suffix(".cache"))
    }  # what is compiled once is not compiled again
    env = cache | {"PYTHONPATH": str(HARNESS), "ZOO_ENDING": str(ending), "OMP_NUM_THREADS": str(shape.threads), **more}
    return env | ({"ZOO_CLOCK": CLOCK} if shape.clock else {})


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _ending(path: Path) -> str:
    return path.read_text() if path.exists() else "nothing was written"


def differs_from_bare(specimen: Specimen, folder: Path) -> list[str]:
    """Run the shape without us and name what comes out differently."""
    there = folder / "bare"
    shutil.copytree(specimen.before, there)
    statement = statement_of(specimen.pack)
    (folder / "streams.json").write_text(json.dumps(start_states(statement, specimen.ending)))
    env = surroundings(specimen.shape, folder / "bare.json", ZOO_STREAMS=str(folder / "streams.json"))
    env["PYTHONHASHSEED"] = statement.predicate.command.hash_seed
    done = bare(there, *specimen.shape.command, home=folder / "home", env=env)
    other = Ended(done, there)
    if specimen.shape.entropy:
        same = (other.code, other.files.keys()) == (specimen.ended.code, specimen.ended.files.keys())
        return [] if same else ["exit code or files"]
    found = specimen.ended.differs_from(other)
    return found + (["what was left at the end"] if _ending(folder / "bare.json") != specimen.ending else [])


def start_states(statement: Statement, ending: str) -> dict[str, object]:
    """Return the start states that the record tells, and the entropy that NumPy does, as the harness takes them."""

    def words(stream: Stream) -> list[int]:
        return [int(word) for word in np.frombuffer(base64.b64decode(stream.state), "<u4")]

    contract = statement.predicate.rng_contract.streams
    states: dict[str, object] = {name: words(contract[name]) for name in ("python", "numpy") if name in contract}
    states["torch.cpu"] = list(base64.b64decode(contract["torch.cpu"].state))
    return states | {"numpy.entropy": json.loads(ending).get("numpy.entropy", [])}


def what_if(specimen: Specimen, change: Change, folder: Path) -> Replay:
    """Replay the shape with one edit in its directory."""
    there = folder / "changed"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(specimen.before, there)
    path = there / (change.file or specimen.shape.script)
    text = path.read_text()
    assert text.count(change.old) == 1, f"{path.name} must have this once: {change.old}"
    path.write_text(text.replace(change.old, change.new))
    return replayed_here(specimen.pack, source=there, data=(there,), allow_changed_source=True)


def said(replay: Replay) -> str:
    """Put the verdict of a what-if as the declarations do."""
    if replay.difference is None:
        return f"{replay.outcome} {replay.reason or ''}".strip()
    return f"{replay.difference.blame}, step {replay.difference.step}"


def examine(shape: Shape, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demand of a shape all that its declaration says."""
    specimen = capture(shape, folder)
    with open_run(specimen.pack) as reader:
        examination = examined(reader)
    manifest = statement_of(specimen.pack).predicate
    assert not examination.findings
    assert (manifest.run.outcome, specimen.ended.code) == (shape.outcome, shape.code), specimen.ended.stderr
    assert not shape.sources - manifest.sources.keys()
    if shape.inventory:
        assert {name: item.source for name, item in sorted(manifest.sources.items())} == shape.inventory
    monkeypatch.setenv("OMP_NUM_THREADS", str(3 - shape.threads))
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "replay.cache"))
    replay = replayed_here(specimen.pack, data=(specimen.before,))
    found = {
        "steps": manifest.step_logs[0].steps,
        "bit-neutral": differs_from_bare(specimen, folder),
        "replay": (replay.outcome, replay.steps_compared if replay.outcome == "match" else None),
    }
    found |= {change.new: said(what_if(specimen, change, folder)) for change in shape.changes}
    expected = {"steps": shape.steps, "bit-neutral": [], "replay": (shape.replay, None)}
    if shape.replay == "match":
        expected["replay"] = ("match", shape.steps)
    expected |= {
        change.new: "match" if change.blame is None else f"{change.blame}, step {change.step}"
        for change in shape.changes
    }
    assert found == expected, replay.reason or said(replay)


def declared(shapes: tuple[Shape, ...]) -> list[ParameterSet]:
    """Return the shapes as the parameters of a test, with their marks."""
    return [
        pytest.param(
            shape,
            id=shape.name,
            marks=[pytest.mark.slow] * shape.slow
            + [pytest.mark.xfail(strict=True, reason=shape.defect)] * bool(shape.defect),
        )
        for shape in shapes
    ]
