"""Recording changes nothing: a recorded run computes, prints, writes and ends as the same run without us.

Each comparison is also made with a recorder that is not neutral, and must then fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import environment
from tests.trainings import Ended, bare, lay_out, recorded, statement_of

TRAININGS = {
    "cnn": ("cnn.py",),
    "mlp": ("mlp.py", "--epochs", "2"),
    "workers": ("mlp.py", "--workers", "2"),
}
STEP = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
"""
"""The smallest training that makes a record."""


@pytest.fixture(scope="module")
def run_bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Ended]:
    """Return what runs a training bare, once for each number of threads."""
    known: dict[tuple[str, int], Ended] = {}

    def run(name: str, threads: int) -> Ended:
        if (name, threads) not in known:
            cwd = lay_out(tmp_path_factory.mktemp("bare"), TRAININGS[name][0])
            done = bare(cwd, *TRAININGS[name], home=cwd / "nobody", env={"OMP_NUM_THREADS": str(threads)})
            assert done.returncode == 0, done.stderr
            known[name, threads] = Ended(done, cwd)
        return known[name, threads]

    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", TRAININGS)
def test_weights_output_and_random_states_are_those_of_a_bare_run(
    name: str, threads: int, run_bare: Callable[[str, int], Ended], tmp_path: Path
) -> None:
    cwd = lay_out(tmp_path / "here", TRAININGS[name][0])
    done = recorded(cwd, *TRAININGS[name], home=tmp_path / "home", env={"OMP_NUM_THREADS": str(threads)})
    ended = Ended(done, cwd)
    assert ended.differs_from(run_bare(name, threads)) == []
    assert {"weights.pt", "ending.json"} <= ended.files.keys()
    assert statement_of(cwd / "run").predicate.numeric_profile["import"]["threads"] == min(threads, os.cpu_count() or 1)


SABOTAGE = {
    "draws a torch number": ("torch.rand(1)", {"weights.pt", "ending.json", "stdout"}),
    "draws a Python number": ("random.random()", {"ending.json"}),
    "draws a NumPy number": ("numpy.random.rand()", {"ending.json"}),
    "sets the threads": ("torch.set_num_threads(3)", {"ending.json"}),
    "turns gradients off": ("torch.set_grad_enabled(False)", {"code"}),
    "leaves evaluation mode on": ("model().eval()", {"ending.json"}),
    "moves a weight by one bit": ("next(model().parameters()).data.view(torch.int32)[0, 0] ^= 1", {"weights.pt"}),
    "prints": ("print('hello')", {"stdout"}),
    "calls Tensor.numpy": ("[tensor.detach().numpy() for tensor in model().buffers()]", {"code"}),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_the_comparison_fails_for_a_recorder_that_is_not_neutral(
    what: str, run_bare: Callable[[str, int], Ended], tmp_path: Path
) -> None:
    """`sitecustomize` (the interpreter imports it by itself) makes the session do one thing more at every step."""
    action, expected = SABOTAGE[what]
    saboteur = tmp_path / "saboteur" / "sitecustomize.py"
    saboteur.parent.mkdir()
    saboteur.write_text(f"""
import sys
from trainmem_audit.recording.importing import after_import

def meddle():
    import numpy, random, torch
    from trainmem_audit.recording.session import Session
    real = Session.after_step
    def after_step(session, optimizer):
        model = lambda: session._memory.roots[0]
        {action}
        return real(session, optimizer)
    Session.after_step = after_step

if "launcher" in " ".join(sys.orig_argv):
    after_import("trainmem_audit.recording.session", meddle)
""")
    resizes = what == "calls Tensor.numpy"
    script = tmp_path / "growing.py"
    script.write_text(
        STEP + "model.register_buffer('seen', torch.zeros(1))\n" + "optimizer.step()\nmodel.seen.resize_(9)"
    )
    cwd = lay_out(tmp_path / "here", "cnn.py", text={"growing.py": script.read_text()})
    env = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(saboteur.parent)}
    name = "growing.py" if resizes else "cnn.py"
    found = Ended(recorded(cwd, name, home=tmp_path / "home", env=env), cwd)
    if resizes:
        other = lay_out(tmp_path / "bare", "cnn.py", text={"growing.py": script.read_text()})
        reference = Ended(bare(other, name, home=tmp_path / "home", env={"OMP_NUM_THREADS": "2"}), other)
        assert reference.code == 0, reference.stderr
    else:
        reference = run_bare("cnn", 2)
    assert expected <= set(found.differs_from(reference))


SEEN = """
import __main__, atexit, inspect, os, pickle, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from torch.utils.checkpoint import checkpoint

class Thing:
    def method(self):
        return 1

def late():
    time.sleep(0.3)
    print("a thread that outlives the script")

print(sys.argv, sys.path[0], os.getcwd(), __file__, __name__, __spec__, __package__, __builtins__, __cached__)
print(sorted(vars(__main__)), __main__.__doc__, type(__loader__))
print(inspect.getsource(Thing), pickle.loads(pickle.dumps(Thing())).method(), pickle.dumps(Thing))
print(sys.stdin.read().upper())
torch.set_num_interop_threads(1)
hook = model.register_forward_hook(lambda *_: None)
print(torch.get_num_interop_threads(), torch.get_num_threads(), list(model._forward_hooks))
warnings.warn("careful")
warnings.simplefilter("error")
model[1](checkpoint(model[0], torch.ones(1, 2), use_reentrant=False)).sum().backward()
optimizer.step()
sys.stdout.flush()
child = os.fork()
if child == 0:
    print("a child that ends by itself")
    sys.exit(5)
print(os.waitpid(child, 0)[1] >> 8)
atexit.register(print, "at exit")
threading.Thread(target=late).start()
ThreadPoolExecutor(1).submit(print, "in a pool").result()
sys.stdout.buffer.write(b"\\xff\\x00\\r\\n")
sys.stdout.write("no newline at the end")
"""
EARLY = """
import importlib.util, os, sys
print([name for name in ("torch", "numpy", "typer", "rich") if name in sys.modules])
print(importlib.util.find_spec("torch").loader is not None)
os.environ["OMP_NUM_THREADS"] = "1"
import torch
print(torch.get_num_threads())
"""
SCRIPTS = {
    "what a script sees": STEP + SEEN,
    "what it finds before it imports torch": EARLY + STEP,
    "exit code": STEP + "import sys, atexit\natexit.register(print, 'bye')\nprint('last words')\nsys.exit(3)",
    "chained errors": STEP
    + "try:\n    torch.ones(2).sum().backward()\nexcept RuntimeError as error:\n    raise KeyError('x') from error",
    "closed streams": STEP + "import sys\nprint('one')\nsys.stderr.close()\nsys.stdout.close()",
}
MORE_SCRIPTS = {
    "exit message": STEP + "import sys\nsys.exit('not today')",
    "exit of nothing": STEP + "raise SystemExit",
    "error in a dataset": STEP
    + "class Broken(torch.utils.data.Dataset):\n"
    + "    def __len__(self): return 2\n"
    + "    def __getitem__(self, index): raise IndexError('gone')\n"
    + "list(torch.utils.data.DataLoader(Broken()))",
    "own excepthook": STEP + "import sys\nsys.excepthook = lambda *error: print('mine', error[1])\n1 / 0",
    "exception group": STEP + "raise ExceptionGroup('several', [ValueError('a'), TypeError('b')])",
    "no standard error": STEP + "import sys\nsys.stderr = None\nsys.exit(4)",
}


@pytest.mark.parametrize("what", [*SCRIPTS, *(pytest.param(what, marks=pytest.mark.slow) for what in MORE_SCRIPTS)])
def test_a_script_sees_prints_and_ends_as_bare(what: str, tmp_path: Path) -> None:
    """Exit codes, tracebacks, buffers, `__main__`, streams, threads, children: the same to the byte."""
    ends = []
    for run, cwd in ((bare, tmp_path / "bare"), (recorded, tmp_path / "rec")):
        lay_out(cwd, text={"train.py": {**SCRIPTS, **MORE_SCRIPTS}[what] + "\n"})
        done = run(cwd, "train.py", "--flag", "a b", home=tmp_path / "home", given=b"from stdin\n")
        ends.append(Ended(done, cwd))
    assert ends[1].differs_from(ends[0]) == [], ends[1].stderr.decode()
    assert (tmp_path / "rec" / "run" / "run.json").is_file()


def test_a_module_runs_as_python_m_would_run_it(tmp_path: Path) -> None:
    package = {
        "lab/__init__.py": "",
        "lab/tools.py": "word = 'relative import'",
        "lab/train.py": (
            "import sys, os\nfrom . import tools\n"
            "print(tools.word, sys.argv, sys.path[0] == os.getcwd(), __name__, __package__, __spec__.name, __file__)\n"
            + STEP
        ),
    }
    ends = []
    for run, cwd in ((bare, tmp_path / "bare"), (recorded, tmp_path / "rec")):
        lay_out(cwd, text=package)
        ends.append(Ended(run(cwd, "-m", "lab.train", "--lr", "1", home=tmp_path / "home"), cwd))
    assert ends[1].differs_from(ends[0]) == []
    assert {file.path for file in statement_of(tmp_path / "rec" / "run").predicate.files} == {
        "{cwd}/lab/__init__.py",
        "{cwd}/lab/train.py",
        "{cwd}/lab/tools.py",
    }


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_start_and_give_what_they_give_bare(method: str, tmp_path: Path) -> None:
    script = f"""
import torch
from torch.utils.data import DataLoader, Dataset

class Noise(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return torch.rand(2) + index

if __name__ == "__main__":
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(Noise(), 4, shuffle=True, num_workers=2, multiprocessing_context="{method}",
                        persistent_workers=True)
    for epoch in range(2):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()
            print(batch.tolist())
    print(model.weight.tolist(), torch.get_rng_state().sum())
"""
    ends = []
    for run, cwd in ((bare, tmp_path / "bare"), (recorded, tmp_path / "rec")):
        lay_out(cwd, text={"train.py": script})
        ends.append(Ended(run(cwd, "train.py", home=tmp_path / "home"), cwd))
    assert ends[1].differs_from(ends[0]) == []
    assert ends[1].code == 0
    manifest = statement_of(tmp_path / "rec" / "run").predicate
    assert manifest.step_logs[0].steps == 6
    assert any("not forked" in text for text in manifest.not_recorded) == (method == "spawn")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_recorded_script_as_it_ends_a_bare_one(sign: signal.Signals, tmp_path: Path) -> None:
    """SIGINT raises KeyboardInterrupt and Python dies by it, and the record is signed; SIGTERM kills."""
    script = STEP + "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    ends = []
    for folder, start in (("bare", []), ("rec", ["-m", "trainmem_audit", "record", "-q"])):
        cwd = lay_out(tmp_path / folder, text={"train.py": script})
        process = subprocess.Popen(
            [sys.executable, *start, "train.py"],
            cwd=cwd,
            env=environment(tmp_path / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(sign)
        out, errors = process.communicate(timeout=60)
        ends.append(Ended(subprocess.CompletedProcess([], process.returncode, out, errors), cwd))
    assert ends[0].code == -sign
    assert ends[1].differs_from(ends[0]) == []
    assert (tmp_path / "rec" / "run" / "run.json").is_file() == (sign is signal.SIGINT)
    if sign is signal.SIGINT:
        assert statement_of(tmp_path / "rec" / "run").predicate.run.outcome == "interrupted"


def test_the_script_of_a_link_and_its_directory_are_those_of_a_bare_run(tmp_path: Path) -> None:
    script = "import sys, neighbour\nprint(sys.path[0] == neighbour.__file__.rpartition('/')[0], __file__)\n" + STEP
    ends = []
    for run, cwd in ((bare, tmp_path / "bare"), (recorded, tmp_path / "rec")):
        lay_out(cwd)
        real = lay_out(cwd.with_name(cwd.name + "-code"), text={"train.py": script, "neighbour.py": ""})
        (cwd / "link").symlink_to(real)
        ends.append(Ended(run(cwd, "link/train.py", home=tmp_path / "home"), cwd))
    assert ends[1].differs_from(ends[0]) == []
    assert ends[1].stdout.startswith(b"True")
    names = [file.path for file in statement_of(tmp_path / "rec" / "run").predicate.files]
    assert sorted(names) == ["{script}/neighbour.py", "{script}/train.py"]
