"""Without `--replay` nothing of a record is executed, imported, unpickled or fetched, whatever its files hold.

The verbs run in an interpreter that writes down every file of the run that is compiled, everything that is unpickled,
every process that is started and every host that is looked up (audit hooks, PEP 578), over a run full of traps.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz.material import author_signs
from tests.logs import FakeRun
from tests.tools import environment
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE

ROOT = Path(__file__).resolve().parent.parent
WATCHED = """
import json, os, sys
seen = []
SUSPECT = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
           "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
WHERE = sys.argv[1]

def watch(event, arguments):
    if event in SUSPECT:
        seen.append([event, repr(arguments)[:200]])
    elif event == "compile" and str(arguments[1]).startswith(WHERE):
        seen.append([event, str(arguments[1])])
    elif event == "import" and str(arguments[1] or "").startswith(WHERE):
        seen.append([event, str(arguments[0])])

import trainmem_audit.cli
sys.addaudithook(watch)
codes = []
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["trainmem-audit", *arguments]
    try:
        trainmem_audit.cli.main()
    except SystemExit as ended:
        codes.append(ended.code)
with open(os.environ["SEEN"], "w") as file:
    json.dump([codes, seen], file)
"""


class Trap:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(TRAPPED), "w")


TRAPPED = Path("trapped")


def pickled() -> bytes:
    return pickle.dumps(Trap())


def torch_archive() -> bytes:
    """What `torch.save` writes: a zip with a pickle in it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
        archive.writestr("archive/version", b"3\n")
    return target.getvalue()


def numpy_objects() -> bytes:
    target = io.BytesIO()
    np.save(target, np.array([Trap()], dtype=object), allow_pickle=True)
    return target.getvalue()


TRAPS = {
    "source/trap.pkl": pickled(),
    "source/weights.pt": torch_archive(),
    "source/trap.npy": numpy_objects(),
    "source/trainmem_audit/__init__.py": b"open('trapped', 'w')\n",
    "source/sitecustomize.py": b"open('trapped', 'w')\n",
    "source/json.py": b"open('trapped', 'w')\n",
    "source/train.py": b"open('trapped', 'w')\n",
    "snapshots/step-2.safetensors": pickled(),
    "conftest.py": b"open('trapped', 'w')\n",
    "blake3.py": b"open('trapped', 'w')\n",
    "pyproject.toml": b'[tool.trainmem-audit]\nallow-untrusted = true\n[build-system]\nrequires = ["https://example.org/x"]\n',
}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def trapped_run(side: bytes = b"") -> dict[str, bytes]:
    """Return a run whose author has signed all the traps; `side` stands in the place of the side files."""
    run = FakeRun(4)
    plain = {STEP_FILE: run.log(), TENSOR_FILE: side or run.frames(), ORDER_FILE: side or run.order()}
    return author_signs(plain | TRAPS)


VERBS = (
    ("verify", "run"), ("verify", "run/run.json"), ("verify", "run.zip", "--format", "json"), ("show", "run"),
    ("report", "run", "-o", "out"), ("diff", "run", "run"), ("pack", "run", "--allow-secrets"), ("recover", "killed"),
)  # fmt: skip


@pytest.mark.parametrize("side", [b"", pickled(), numpy_objects()], ids=["plain", "pickle", "npy"])
def test_no_verb_runs_what_it_reads(tmp_path: Path, side: bytes) -> None:
    files = trapped_run(side)
    lay(tmp_path / "run", files)
    lay(tmp_path / "killed", {name: data for name, data in files.items() if name not in ("run.json", "signer.pub")})
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    told = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED, str(tmp_path), json.dumps(VERBS)],
        cwd=tmp_path, env=environment(tmp_path / "home", SEEN=str(tmp_path / "seen.json")), capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (told.returncode, "Traceback" in told.stderr) == (0, False), told.stderr
    codes, seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == []
    assert len(codes) == len(VERBS)
    assert {*codes} <= {0, 1, 2, 3}
    assert not (tmp_path / TRAPPED).exists()


def test_the_watch_sees_what_it_watches_for(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    lay(tmp_path, {"trap.pkl": pickled(), "mine.py": b"x = 1\n"})
    code = WATCHED.replace(
        "        trainmem_audit.cli.main()",
        "        import pickle, subprocess; pickle.load(open('trap.pkl', 'rb')); subprocess.run(['true'])\n"
        "        sys.path.insert(0, WHERE); import mine",
    )
    subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path), "[[]]"],
        cwd=tmp_path, env=environment(tmp_path, SEEN=str(tmp_path / "seen.json")), check=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / TRAPPED).exists()
    events = {event for event, _ in json.loads((tmp_path / "seen.json").read_text())[1]}
    assert events >= {"pickle.find_class", "subprocess.Popen", "compile"}


UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
EXECUTING = {"recording", "replaying", "pinning", "twice", "sources"}
"""Where the author's code runs because somebody asked for that."""
WORKERS = {"study/executor.py", "study/worker.py"}
"""What `study run` hands its own worker processes through a pipe; no verb that reads a study imports them."""


def test_no_module_of_the_light_verbs_can_unpickle_or_execute() -> None:
    wrong = []
    for path in sorted((ROOT / "trainmem_audit").rglob("*.py")):
        place = path.relative_to(ROOT / "trainmem_audit")
        if place.parts[0] in EXECUTING or place.as_posix() in WORKERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import():
                    wrong += [f"{path.name}:{node.lineno}" for a in node.names if a.name.split(".")[0] in UNPICKLERS]
                case ast.ImportFrom() if (node.module or "").split(".")[0] in UNPICKLERS:
                    wrong.append(f"{path.name}:{node.lineno}")
                case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__")):
                    wrong.append(f"{path.name}:{node.lineno}")
                case ast.keyword(arg="allow_pickle" | "weights_only"):
                    wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong
