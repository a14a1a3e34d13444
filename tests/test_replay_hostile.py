"""What a hostile record can make a replay run: nothing outside of the scratch copy, and none of its own environment."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.fuzz.material import author_signs, payload_of, relinked, signed
from tests.tools import Run
from tests.trainings import lay_out, recorded, replayed_here, statement_of
from trainmem_audit.canonical import canonical_bytes, float_text, parse_float_text
from trainmem_audit.documents.steplog import Argument
from trainmem_audit.errors import ConsentError, FormatError, ReplayError
from trainmem_audit.recording import process
from trainmem_audit.replaying import child, scratch
from trainmem_audit.runs import values_at

replay_module = importlib.import_module("trainmem_audit.replaying.replay")


def order(tmp_path: Path, **command: Any) -> dict[str, Any]:
    signed = builders.statement().predicate
    return child._order(
        signed.model_copy(update={"command": signed.command.model_copy(update=command)}), tmp_path, tmp_path / "record"
    )


@pytest.mark.parametrize(
    "entry",
    ["{cwd}/../../etc/x.py", "/etc/x.py", "{cwd}//etc/x.py", "{site}/../x.py", "x.py", "{cwd}/a\x00.py", "{home}/x.py"],
)
def test_a_script_outside_of_the_tree_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(FormatError):
        order(tmp_path, kind="script", entry=entry)


@pytest.mark.parametrize("entry", ["../x", "a b", "os; import x", "", "a..b", "-c"])
def test_what_is_no_module_name_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(FormatError):
        order(tmp_path, kind="module", entry=entry)


def test_ordinary_entries_lead_into_the_tree(tmp_path: Path) -> None:
    assert order(tmp_path, kind="script", entry="{cwd}/sub/train.py")["entry"] == "sub/train.py"
    assert order(tmp_path, kind="script", entry="{script}/train.py")["entry"] == "_script/train.py"
    assert order(tmp_path, kind="module", entry="lab.train")["entry"] == "lab.train"


def test_only_the_numeric_profile_is_taken_from_a_recorded_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    signed = builders.statement().predicate
    recorded = {"LD_PRELOAD": "/tmp/evil.so", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3; rm -rf /", "BASH_ENV": "x"}
    hostile = signed.environment.model_copy(update={"variables": recorded})
    found = child._environment(signed.model_copy(update={"environment": hostile}))
    assert found["OMP_NUM_THREADS"] == "3"
    assert not {"LD_PRELOAD", "MKL_NUM_THREADS", "BASH_ENV"} & found.keys()


GATE = """
import sys
import torch
word = sys.argv[2]
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if word != "as-recorded":
        raise ValueError("x" * 20000 + f"\\n\\x1b[31m{word!r} is not the word: {word}")
"""


def test_a_typed_secret_is_neither_shown_nor_written_down(tmp_path: Path) -> None:
    where = lay_out(tmp_path / "author", text={"train.py": GATE})
    assert recorded(where, "train.py", "--token", "as-recorded", home=tmp_path / "home").returncode == 0
    asked: list[str] = []
    shown: list[str] = []
    typed = "typed canary's \\ word"

    def secret(prefix: str) -> str:
        asked.append(prefix)
        return typed

    def consent(command: str) -> bool:
        shown.append(command)
        return True

    found = replayed_here(where / "run", consent=consent, secret=secret)
    assert shown == ["python train.py --token [redacted]"]
    assert asked == ["--token"]
    assert found.outcome == "inconclusive"
    assert "is not the word: {redacted}" in found.reason
    assert "canary" not in found.model_dump_json()
    with pytest.raises(ConsentError) as refused:
        replayed_here(where / "run", consent=lambda _: False, secret=secret)
    assert "canary" not in str(refused.value)


GENERATORS = """
import random
import numpy as np
import torch
streams = [np.random.Generator(np.random.MT19937(seed)) for seed in range(24)]
others = [torch.Generator().manual_seed(seed) for seed in range(24)]
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model(torch.ones(1, 2) * streams[0].random()).sum().backward()
    optimizer.step()
"""


def test_the_states_of_many_generators_fit_into_a_replay(tmp_path: Path) -> None:
    where = lay_out(tmp_path / "author", text={"train.py": GENERATORS})
    assert recorded(where, "train.py", home=tmp_path / "home").returncode == 0
    manifest = statement_of(where / "run").predicate
    streams = manifest.rng_contract.streams
    streams |= {f"extra{n}": streams["torch.cpu"] for n in range(40)}
    inner = manifest.rng_contract.model_copy(update={"streams": streams})
    contract = manifest.model_copy(update={"rng_contract": inner})
    assert len(contract.model_dump_json()) > 2**18  # twice what one word of a command line may hold
    (tmp_path / "replay" / "tree").mkdir(parents=True)
    shutil.copyfile(where / "train.py", tmp_path / "replay" / "tree" / "train.py")
    with child.Child(
        tmp_path / "replay", tmp_path / "replay" / "tree", contract, ["--token", "canary"], 300
    ) as running:
        commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        log = b"".join(running.chunks())
    assert b'"t":"end"' in log, running.last_words()
    ours = [line for line in commands.splitlines() if "recording.launcher" in line and "ps -eo" not in line]
    assert ours
    assert not [line for line in ours if "canary" in line]


def fake_child(
    tmp_path: Path,
    script: str,
    timeout: float = 300,
    arguments: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> child.Child:
    """Start a script that writes what it likes where the step log is expected."""
    signed = builders.statement().predicate
    command = signed.command.model_copy(update={"kind": "script", "entry": "{cwd}/train.py", "arguments": ()})
    environment = signed.environment.model_copy(update={"variables": dict(variables or {})})
    manifest = signed.model_copy(update={"command": command, "environment": environment})
    (tmp_path / "tree").mkdir(exist_ok=True)
    (tmp_path / "tree" / "train.py").write_text(script)
    return child.Child(tmp_path, tmp_path / "tree", manifest, list(arguments), timeout)


def log_of(running: child.Child) -> bytes:
    """Wait for the end of a script and return its step log."""
    log = b"".join(running.chunks())
    assert b'"t":"end"' in log, running.last_words()
    return log


ENDLESS = """
from pathlib import Path
with (Path.cwd().parent / "record" / "steps.jsonl").open("ab", buffering=0) as log:
    while True:
        log.write(b"x" * 2**16)
"""


def test_a_script_that_logs_without_end_is_ended_in_time(tmp_path: Path) -> None:
    with fake_child(tmp_path, ENDLESS, timeout=0) as running, pytest.raises(ReplayError, match="ended after 0 s"):
        (tmp_path / "record" / "steps.jsonl").write_bytes(b"x" * 2**22)
        for _ in running.chunks():
            pass


def test_a_script_that_prints_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MOST_OUTPUT", 2**20)
    noise = "while True:\n    print('x' * 10000)\n"
    with fake_child(tmp_path, noise) as running, pytest.raises(ReplayError, match="printed more than 1 MiB"):
        for _ in running.chunks():
            pass


def test_a_log_that_outgrows_the_signed_one_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = lay_out(tmp_path / "author", text={"train.py": GENERATORS})
    assert recorded(where, "train.py", home=tmp_path / "home").returncode == 0
    monkeypatch.setattr(replay_module, "_MORE_LOG", -(10**9))
    found = replayed_here(where / "run")
    assert (found.outcome, found.steps_compared) == ("inconclusive", 0)
    assert "logs far more" in found.reason


@pytest.mark.parametrize("error", [ReplayError("time is up"), FormatError("damaged"), ValueError("odd")])
def test_a_verdict_stands_although_its_size_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    where = lay_out(tmp_path / "author", text={"train.py": GENERATORS})
    assert recorded(where, "train.py", home=tmp_path / "home").returncode == 0
    changed = lay_out(tmp_path / "changed", text={"train.py": GENERATORS.replace("lr=0.1", "lr=0.2")})

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(replay_module, "_measure", fail)
    found = replayed_here(where / "run", source=changed, allow_changed_source=True, sizes=True)
    assert (found.outcome, found.what_if) == ("mismatch", True)
    assert found.difference is not None


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_script_that_never_ends_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of its own, and both deaf to a polite request."""
    monkeypatch.setattr(process, "_GRACE", 0.2)
    script = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(999)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
child.stdout.readline()
open("pids", "w").write(f"{os.getpid()} {child.pid}\\n")
while True:
    time.sleep(1)
"""
    pids = tmp_path / "tree" / "pids"
    with fake_child(tmp_path, script, timeout=60) as running:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            running._wait()
        running._deadline = 0
        with pytest.raises(ReplayError, match="was ended after"):
            list(running.chunks())
    ended = time.monotonic() + 30
    while any(map(is_alive, pids.read_text().split())):
        assert time.monotonic() < ended, "something still runs"
        time.sleep(0.05)


SHELL = [
    "; touch pwned", "$(touch pwned)", "`touch pwned`", "| tee pwned", "&& touch pwned", "> pwned", "*", "~", "$HOME",
    "a\nb", "'", '"', "\\", "-c", "--", "",
]  # fmt: skip


def test_an_argument_is_one_word_whatever_a_shell_would_make_of_it(tmp_path: Path) -> None:
    script = "import json, sys\njson.dump(sys.argv[1:], open('arguments', 'w'))\n"
    with fake_child(tmp_path, script, arguments=SHELL) as running:
        log_of(running)
    assert json.loads((tmp_path / "tree" / "arguments").read_text()) == SHELL
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["arguments", "train.py"]


def test_what_is_shown_before_a_replay_is_quoted(tmp_path: Path) -> None:
    """The command that consent is asked for names what runs: no argument can look like another command."""
    signed = statement_of_arguments(SHELL)
    shown: list[str] = []

    def refuse(command: str) -> bool:
        shown.append(command)
        return False

    options = replay_module.ReplayOptions(consent=refuse, secret=lambda _: "")
    with pytest.raises(ConsentError):
        replay_module._ask(signed, scratch.Scratch(tmp_path, list(SHELL)), options)
    assert shlex.split(shown[0])[-len(SHELL) :] == SHELL


def statement_of_arguments(texts: Sequence[str]) -> Any:
    signed = builders.statement().predicate
    arguments = tuple(Argument(text=text) for text in texts)
    return signed.model_copy(update={"command": signed.command.model_copy(update={"arguments": arguments})})


SHADOWS = (
    "trainmem_audit/__init__.py", "blake3.py", "json.py", "pydantic/__init__.py", "rfc8785.py", "cryptography.py",
    "sitecustomize.py", "usercustomize.py", "typing.py",
)  # fmt: skip


@pytest.mark.parametrize("search", ["{cwd}", "{cwd}/lib"])
def test_no_module_of_the_tree_takes_the_place_of_the_recorder(tmp_path: Path, search: str) -> None:
    """Also where the record says that PYTHONPATH led there; the script itself finds what lies there."""
    for folder in ("tree", "tree/lib"):
        for name in SHADOWS:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(f"open({str(tmp_path / 'shadowed')!r}, 'a').write({name!r})\n")
        (tmp_path / folder / "helper.py").write_text("VALUE = 7\n")
    script = "import os, helper\nopen('found', 'w').write(f'{helper.VALUE} ' + os.environ['PYTHONPATH'])\n"
    with fake_child(tmp_path, script, variables={"PYTHONPATH": search}) as running:
        log_of(running)
    assert not (tmp_path / "shadowed").exists()
    place = search.replace("{cwd}", str(tmp_path / "tree"))
    assert (tmp_path / "tree" / "found").read_text().startswith(f"7 {place}")


@pytest.mark.parametrize("entry", ["{cwd}/../..", "/tmp", "{cwd}/a/../../b", "{home}", "~/lib", "{cwd}//etc"])
def test_a_search_path_outside_of_the_tree_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(FormatError):
        fake_child(tmp_path, "", variables={"PYTHONPATH": entry})


@pytest.mark.parametrize(
    "name",
    ["LD_LIBRARY_PATH", "LD_AUDIT", "LD_DEBUG_OUTPUT", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONINSPECT",
     "PYTHONBREAKPOINT", "PYTHONWARNINGS", "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "pythonpath"],
)  # fmt: skip
def test_a_variable_of_the_loader_or_of_python_is_not_imposed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    signed = builders.statement().predicate
    hostile = signed.environment.model_copy(update={"variables": {name: str(tmp_path)}})
    manifest = signed.model_copy(update={"environment": hostile})
    assert child.chosen_variables(manifest) == ({}, [name])
    assert name not in child._environment(manifest)


def test_a_tolerance_of_the_authors_changes_no_verdict(run: Run) -> None:
    """The last bit of a loss, and a declared tolerance that would forgive it."""
    lines = run.lines()
    at, line = next((at, json.loads(line)) for at, line in enumerate(lines) if b'"t":"step"' in line)
    loss = line["scalars"]["loss"][0]
    line["scalars"]["loss"][0] = float_text(math.nextafter(parse_float_text(loss), 0))
    lines[at] = canonical_bytes(line) + b"\n"
    run.write("steps.jsonl", relinked(b"".join(lines)))
    statement = json.loads(payload_of(author_signs({name: run.read(name) for name in run.names()})))
    statement["predicate"]["declared"] = {"tolerance": "0x1.0000000000000p+9", "replay": "match-within-tolerance"}
    for name, data in signed(canonical_bytes(statement)).items():
        run.write(name, data)
    found = replayed_here(run.path, steps=1)
    assert (found.outcome, found.difference and found.difference.step) == ("mismatch", 0)


@pytest.mark.parametrize("garbage", [b"", b"xy", bytes(8), b"\xff" * 30])
def test_a_state_written_aside_may_be_garbage(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "dump").write_bytes(garbage)
    with pytest.raises(FormatError):
        values_at(tmp_path / "dump")
