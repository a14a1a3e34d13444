"""Every ordinary shape of a training script (`tests/shapes.py`): bit-neutral, replayed to the bit, blamed rightly.

One test runs one shape: recorded; bare, from the start states that the recorded run had; replayed from the pack, in
another directory and with another number of threads around it; and once for each change. The interpreter imports
`tests/harness/sitecustomize.py` in bare and recorded runs, which writes down what is left when they end.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shapes import PAGE, SHAPES, ZOO, Change, Shape, page
from tests.tools import audit, environment, examined, verify
from tests.trainings import Ended, bare, recorded, replayed_here, statement_of
from trainmem_audit.documents.findings import Replay
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.packing import pack
from trainmem_audit.rundir import open_run

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
        _put(before / name, (ZOO / name).read_text())
    for name, text in shape.text.items():
        _put(before / name, text)
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


def _put(path: Path, text: str) -> None:
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


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            shape,
            id=shape.name,
            marks=[pytest.mark.slow] * shape.slow
            + [pytest.mark.xfail(strict=True, reason=shape.defect)] * bool(shape.defect),
        )
        for shape in SHAPES
    ],
)
def test_a_shape_is_bit_neutral_replays_and_is_blamed_rightly(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen = capture(shape, tmp_path)
    with open_run(specimen.pack) as reader:
        examination = examined(reader)
    manifest = statement_of(specimen.pack).predicate
    assert not examination.findings
    assert (manifest.run.outcome, specimen.ended.code) == (shape.outcome, shape.code), specimen.ended.stderr
    assert not shape.sources - manifest.sources.keys()
    monkeypatch.setenv("OMP_NUM_THREADS", str(3 - shape.threads))
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "replay.cache"))
    replay = replayed_here(specimen.pack, data=(specimen.before,))
    found = {
        "steps": manifest.step_logs[0].steps,
        "bit-neutral": differs_from_bare(specimen, tmp_path),
        "replay": (replay.outcome, replay.steps_compared if replay.outcome == "match" else None),
    }
    found |= {change.new: said(what_if(specimen, change, tmp_path)) for change in shape.changes}
    expected = {"steps": shape.steps, "bit-neutral": [], "replay": (shape.replay, None)}
    if shape.replay == "match":
        expected["replay"] = ("match", shape.steps)
    expected |= {
        change.new: "match" if change.blame is None else f"{change.blame}, step {change.step}"
        for change in shape.changes
    }
    assert found == expected, replay.reason or said(replay)


MEDDLING = {
    "nothing": ("pass", False),
    "another memory format": ("weight = model[0].weight; weight.data = weight.data.t().contiguous().t()", True),
    "another choice of kernels": ("torch.backends.mkldnn.enabled = False", True),
    "deterministic algorithms": ("torch.use_deterministic_algorithms(True, warn_only=True)", True),
    "an object of the script kept alive": ("session.kept = model", True),
    "a random number of Python": ("__import__('random').random()", True),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MEDDLING)
def test_the_comparison_sees_what_a_recorder_must_not_do(what: str, tmp_path: Path) -> None:
    action, seen = MEDDLING[what]
    meddler = f"""
import sys
exec(compile(open({str(HARNESS / "sitecustomize.py")!r}).read(), "sitecustomize", "exec"))
from trainmem_audit.recording.importing import after_import

def meddle():
    import torch
    from trainmem_audit.recording.session import Session
    real = Session.after_step
    def after_step(session, *args, **kwargs):
        model = session._modules[0].root
        {action}
        return real(session, *args, **kwargs)
    Session.after_step = after_step

if "launcher" in " ".join(sys.orig_argv):
    after_import("trainmem_audit.recording.session", meddle)
"""
    _put(tmp_path / "meddler" / "sitecustomize.py", meddler)
    (shape,) = (shape for shape in SHAPES if shape.command == ("loader.py",))
    specimen = capture(shape, tmp_path, harness=tmp_path / "meddler")
    assert bool(differs_from_bare(specimen, tmp_path)) == seen


def test_the_page_says_what_is_declared() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "regenerate it: python -m tests.shapes"


def test_every_scheduler_of_torch_is_in_the_zoo() -> None:
    command = "import torch.optim.lr_scheduler as s; print(*(n for n, c in vars(s).items() if isinstance(c, type) " + (
        "and issubclass(c, s.LRScheduler)))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    bases = {"LRScheduler", "_LRScheduler"}
    alone = {shape.command[2] for shape in SHAPES if shape.command[:2] == ("schedulers.py", "--scheduler")}
    assert alone == set(done.stdout.split()) - bases


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
nbformat.write(notebook, sys.argv[1])
"""


def executed(folder: Path, edits: dict[str, str], home: Path) -> list[str]:
    """Execute the notebook, edited, as Jupyter does; return what each cell put out."""
    text = (ZOO / "notebook.ipynb").read_text()
    for old, new in edits.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    _put(folder / "notebook.ipynb", text)
    jupyter = {name: str(home / "jupyter") for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-c", EXECUTE, "notebook.ipynb"]
    done = subprocess.run(
        command, cwd=folder, env=environment(home, **jupyter), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    return ["".join(map(_shown, cell["outputs"])) for cell in cells]


def _shown(output: dict[str, Any]) -> str:
    return "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


def test_a_notebook_is_recorded_through_the_recorder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    outputs = executed(tmp_path / "recorded", {}, home)
    bare_edits = {'with Recorder(\\"run\\") as recorder:': "if True:", "from trainmem_audit import Recorder": ""}
    assert executed(tmp_path / "bare", bare_edits, home) == outputs
    assert [len(cell.splitlines()) for cell in outputs] == [0, 0, 2, 1]
    found = verify(tmp_path / "recorded" / "run", home=home)  # where the key is that signed it
    assert (found.code, found.document["findings"]) == (0, [])
    manifest = statement_of(tmp_path / "recorded" / "run").predicate
    assert (manifest.run.outcome, manifest.step_logs[0].steps) == ("finished", 8)
    assert manifest.sources.keys() >= {"model.params", "model.batchnorm", "optimizer.momentum", "optimizer.hyper"}
    assert replayed_here(tmp_path / "recorded" / "run").outcome == "not-run"
    executed(tmp_path / "changed", {"nn.Dropout(0.1)": "nn.Dropout(0.2)"}, home)
    runs = (tmp_path / "recorded" / "run", tmp_path / "changed" / "run")
    done = audit("diff", *runs, "--format", "json", cwd=tmp_path, home=home)
    difference = json.loads(done.stdout)["difference"]
    assert (done.returncode, difference["blame"], difference["step"]) == (1, "gradient path", 0)
