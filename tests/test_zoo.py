"""Every ordinary shape of a training script (`tests/shapes.py`): bit-neutral, replayed to the bit, blamed rightly.

One test runs one shape (`tests/specimens.py`): recorded; bare, from the start states that the recorded run had;
replayed from the pack, in another directory and with another number of threads around it; and once for each change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.shapes import PAGE, SHAPES, ZOO, Shape, page
from tests.specimens import HARNESS, capture, declared, differs_from_bare, examine, put
from tests.tools import audit, environment, verify
from tests.trainings import replayed_here, statement_of


@pytest.mark.parametrize("shape", declared(SHAPES))
def test_a_shape_is_bit_neutral_replays_and_is_blamed_rightly(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine(shape, tmp_path, monkeypatch)


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
        model = session._memory.roots[0]
        {action}
        return real(session, *args, **kwargs)
    Session.after_step = after_step

if "launcher" in " ".join(sys.orig_argv):
    after_import("trainmem_audit.recording.session", meddle)
"""
    put(tmp_path / "meddler" / "sitecustomize.py", meddler)
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
    put(folder / "notebook.ipynb", text)
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
