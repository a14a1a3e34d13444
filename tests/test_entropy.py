"""Seeds and entropy: what generators start from is the run's own, is written down, and comes back at a replay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainings import lay_out, recorded, replayed_here
from trainmem_audit.documents.steplog import Seed
from trainmem_audit.recording.entropy import MOST, Entropy
from trainmem_audit.recording.places import Places
from trainmem_audit.replaying.outside import reads_from_outside

TRAINING = """
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    model(inputs()).square().mean().backward()
    optimizer.step()
print(model.weight.tolist())
"""
SEEDS = {
    "clock, s": "import time, torch\ntorch.manual_seed(int(time.time()))",
    "clock, float": "import time, random, torch\nrandom.seed(time.time())\ntorch.manual_seed(random.getrandbits(32))",
    "clock, NumPy": (
        "import time, numpy as np, torch\nnp.random.seed(int(time.time()))\ntorch.manual_seed(np.random.randint(9**9))"
    ),
    "clock, default_rng": (
        "import time, numpy as np, torch\ntorch.manual_seed(int(np.random.default_rng(time.time_ns()).integers(2**60)))"
    ),
    "operating system": "import os, torch\ntorch.manual_seed(int.from_bytes(os.urandom(7), 'little'))",
    "process id": "import os, torch\ntorch.manual_seed(os.getpid())",
    "torch.seed": "import torch\ntorch.seed()",
    "random.seed": "import random, torch\nrandom.seed()\ntorch.manual_seed(random.getrandbits(63))",
    "random.Random": "import random, torch\ntorch.manual_seed(random.Random().getrandbits(63))",
    "default_rng": "import numpy as np, torch\ntorch.manual_seed(int(np.random.default_rng().integers(2**60)))",
    "torch.Generator": "import torch\ntorch.manual_seed(torch.Generator().seed())",
}


@pytest.mark.parametrize("kind", SEEDS)
def test_a_run_without_a_fixed_seed_replays(kind: str, tmp_path: Path) -> None:
    script = SEEDS[kind] + "\ninputs = lambda: torch.randn(2, 3)\n" + TRAINING
    cwd = lay_out(tmp_path / "here", text={"train.py": script})
    done = recorded(cwd, "train.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    verdict = replayed_here(cwd / "run")
    assert (verdict.outcome, verdict.steps_compared) == ("match", 3), verdict
    if kind in ("clock, s", "clock, NumPy", "operating system", "process id"):
        assert any("{cwd}/train.py:2 got a number that changes" in note for note in verdict.notes), verdict.notes


def test_two_runs_without_a_seed_differ(tmp_path: Path) -> None:
    script = "import torch, numpy as np\nrng = np.random.default_rng()\n"
    script += "inputs = lambda: torch.randn(2, 3) + rng.random()\n" + TRAINING
    prints = set()
    for name in ("one", "two"):
        cwd = lay_out(tmp_path / name, text={"train.py": script})
        prints.add(recorded(cwd, "train.py", home=tmp_path / "home").stdout)
    assert len(prints) == 2


def test_children_get_other_entropy_than_their_parent_and_than_each_other(tmp_path: Path) -> None:
    """Two workers with an unseeded generator each would otherwise augment alike."""
    script = (
        """
import multiprocessing, numpy as np, torch
def draw(queue):
    queue.put(int(np.random.default_rng().integers(2**60)))
"""
        + "inputs = lambda: torch.ones(2, 3)\n"
        + TRAINING
        + """
queue = multiprocessing.SimpleQueue()
for _ in range(2):
    child = multiprocessing.get_context("fork").Process(target=draw, args=(queue,))
    child.start()
    child.join()
draw(queue)
print(len({queue.get() for _ in range(3)}))
"""
    )
    cwd = lay_out(tmp_path / "here", text={"train.py": script})
    done = recorded(cwd, "train.py", home=tmp_path / "home")
    assert done.stdout.splitlines()[-1] == b"3", done.stderr


def test_generators_look_and_pickle_as_in_a_bare_run(tmp_path: Path) -> None:
    script = (
        """
import copy, pickle, random, torch, numpy as np
generator = torch.Generator()
generator.manual_seed(3)
print(type(generator), isinstance(torch.default_generator, torch.Generator), torch.Generator.__name__)
print(generator.device, torch.rand(1, generator=generator).item(), copy.deepcopy(generator).initial_seed())
print(pickle.dumps(generator)[:60], pickle.loads(pickle.dumps(generator)).initial_seed())
print(isinstance(random.Random(3), random.Random), random.Random(3).random(), np.random.default_rng(3).random())
print(torch.manual_seed(7) is torch.default_generator, torch.manual_seed.__name__, random.seed(5), random.random())
print(np.random.seed(9), np.random.rand(), np.random.default_rng(generator := np.random.default_rng(1)) is generator)
inputs = lambda: torch.randn(2, 3)
"""
        + TRAINING
    )
    cwd = lay_out(tmp_path / "here", text={"train.py": script})
    env = {"PYTHONHASHSEED": "1"}
    bare = subprocess.run([sys.executable, "train.py"], cwd=cwd, capture_output=True, env=env, check=True)
    done = recorded(cwd, "train.py", home=tmp_path / "home", env=env)
    assert done.stdout == bare.stdout, done.stderr


def test_a_program_that_does_not_reproduce_itself_is_inconclusive_and_says_what_it_reads(tmp_path: Path) -> None:
    script = (
        "import time, torch\ntorch.manual_seed(0)\ninputs = lambda: torch.ones(2, 3) * (time.time() % 1)\n" + TRAINING
    )
    cwd = lay_out(tmp_path / "here", text={"train.py": script})
    recorded(cwd, "train.py", home=tmp_path / "home")
    verdict = replayed_here(cwd / "run")
    assert verdict.outcome == "inconclusive"
    assert "does not reproduce itself" in verdict.reason
    assert "the clock ({cwd}/train.py:3 time.time)" in verdict.reason


# The pure parts -----------------------------------------------------------------------------------------------------


def entropy(tmp_path: Path, logged: list[Seed], imposed: list[Seed], *, same_code: bool = True) -> Entropy:
    return Entropy("0" * 32, Places(tmp_path, tmp_path), logged.append, imposed, same_code)


def test_seeds_are_imposed_in_their_turn_for_the_same_code_only(tmp_path: Path) -> None:
    recorded_seeds = [Seed(call="f", site="a.py:1", value=text) for text in ("11", "22", "0x1.8p+0")]
    logged: list[Seed] = []
    same = entropy(tmp_path, logged, recorded_seeds)
    assert [same.seed("f", value) for value in (11, 5, 2.5, 7)] == [11, 22, 1.5, 7]
    assert [seed.imposed for seed in logged] == [None, True, True, None]
    assert same.seed("g", 4) == 4
    changed = entropy(tmp_path, [], recorded_seeds, same_code=False)
    assert [changed.seed("f", value) for value in (11, 5)] == [11, 5]


def test_seeds_that_are_no_numbers_pass_as_they_are_and_the_log_is_bounded(tmp_path: Path) -> None:
    logged: list[Seed] = []
    source = entropy(tmp_path, logged, [])
    words = object(), "text", b"bytes", [1, 2]
    assert all(source.seed("f", value) is value for value in words)
    assert logged == []
    assert [source.seed("f", number) for number in range(MOST + 5)] == list(range(MOST + 5))
    assert len(logged) == MOST


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (b"import time\nx = time.perf_counter()", "the clock (a.py:2 time.perf_counter)"),
        (b"from time import time as now\nx = now()", "the clock (a.py:2 time.time)"),
        (b"import datetime as d\nx = d.datetime.now()", "the clock (a.py:2 datetime.datetime.now)"),
        (b"from datetime import datetime\nx = datetime.now()", "the clock (a.py:2 datetime.datetime.now)"),
        (b"import os\nx = os.urandom(4)", "entropy of the operating system (a.py:2 os.urandom)"),
        (b"import os\nx = os.environ['A']", "environment variables (a.py:2 os.environ)"),
        (b"import threading\nthreading.Thread(target=print)", "threads, in the order in which they get to run"),
        (b"from pathlib import Path\nx = list(Path().iterdir())", "directories, in the order of the file system"),
        (b"x = id(3)", "addresses of objects (a.py:1 id)"),
    ],
)
def test_what_code_reads_from_outside_is_found(code: bytes, what: str) -> None:
    (found,) = reads_from_outside([("a.py", code)])
    assert found.startswith(what)


@pytest.mark.parametrize(
    "code", [b"x = timer.time()", b"(" * 10_000, b"\xff\x00", b"def f(:", b"import time", b"o.id(3)"]
)
def test_other_code_and_no_code_read_nothing(code: bytes) -> None:
    assert reads_from_outside([("a.py", code)]) == ()
