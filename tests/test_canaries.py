"""Planted canaries (DESIGN § 2.5): who, where and secret in the author's and the reviewer's surroundings.

Every verb of the command line is run in subprocesses whose home, user, host, git repository, tokens, paths and key
comment each hold a word of their own. None of these words may be in anything that leaves the machine: not in clear, and
not as base64, hex, UTF-16, URL-quoted or escaped text. Only `disclosures.json` may hold some, which is there for it and
which a blind pack leaves out. `EXERCISED` says how each verb is run; a new verb has to enter it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import subprocess
import sysconfig
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.studying import arrays_bytes
from trainmem_audit.cli import app

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")

INPUTS = ("train.bin", "config.json")
SCRIPT = """
import argparse, getpass, os, random, sys

import torch
from torch.utils.data import DataLoader, TensorDataset

import toolbox

parser = argparse.ArgumentParser()
for name in ("data", "config", "out", "log-dir", "remote", "hf-token", "api-key", "password", "owner", "resume"):
    parser.add_argument("--" + name)
parser.add_argument("rest", nargs="*")
args = parser.parse_args()

with open(args.data, "rb") as file:
    torch.manual_seed(len(file.read()))
open(args.config).read()
open("notes.txt").read()
data = TensorDataset(torch.randn(12, 3), torch.randn(12, 1))
data.root = args.data
model = torch.nn.Linear(3, 1)
model.log_dir = args.log_dir
optimizer = torch.optim.SGD([{"params": model.parameters(), "source": args.config}], lr=0.1, momentum=0.9)
optimizer.owner = args.owner
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
scheduler.log_dir = args.log_dir
if "fail" in args.rest:
    scheduler.owner = {"name": args.owner, args.owner: 1}
loader = DataLoader(data, batch_size=4, shuffle=True)
loader.cache = args.data
for inputs, targets in loader:
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    scheduler.step()
if "CRASH" in os.environ:
    open(os.path.join(os.environ["HOME"], args.owner, "nothing"))
print(args, os.environ.get("USER"), toolbox.__file__)
if "fail" in args.rest:
    raise RuntimeError(f"cannot write to {args.log_dir} for {args.owner}")
"""


@dataclass(frozen=True)
class World:
    """The author's machine: where things lie, what the environment says, and each canary by what it is."""

    base: Path
    project: Path
    python: Path
    environment: dict[str, str]
    arguments: tuple[str, ...]
    canaries: dict[str, str]


def make_world(tmp_path: Path, bird: str) -> World:
    words = iter(f"{bird}{number:02d}qzx" for number in range(100))
    canaries: dict[str, str] = {}

    def canary(what: str) -> str:
        canaries[what] = next(words)
        return canaries[what]

    base = tmp_path / canary("base folder")
    home = base / "home" / canary("home folder")
    project = home / canary("project's parent folder") / "project"
    data = base / canary("data folder outside of the working directory") / "train.bin"
    config = base / canary("folder of a configuration file") / "config.json"
    scratch = base / canary("temporary folder")
    environment = base / canary("virtual environment")
    libraries = base / canary("folder on PYTHONPATH")
    for folder in (project, data.parent, config.parent, scratch, libraries):
        folder.mkdir(parents=True)
    data.write_bytes(b"seven")
    config.write_text("{}")
    (project / "notes.txt").write_text("plain\n")
    (project / "train.py").write_text(SCRIPT)
    make_repository(project, canary)
    (home / ".gitconfig").write_text(f"[user]\n\tname = {canary('global git name')}\n")
    venv.EnvBuilder(symlinks=True).create(environment)
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "real.pth").write_text(sysconfig.get_path("purelib") + "\n" + str(Path(__file__).parents[1]) + "\n")
    helper = site / "helper-1.0.dist-info"
    helper.mkdir()
    version = f"1.0+{canary('version of a local build')}"
    (helper / "METADATA").write_text(f"Metadata-Version: 2.1\nName: helper\nVersion: {version}\n")
    (helper / "direct_url.json").write_text(json.dumps({"url": base.as_uri(), "dir_info": {"editable": True}}))
    (libraries / "toolbox.py").write_text("open(__file__ + '.txt').read()\n")
    (libraries / "toolbox.py.txt").write_text("data of a library\n")
    key = base / canary("folder of the key") / "id"
    key.parent.mkdir()
    comment = f"{canary('key comment')}@laptop.example"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)], check=True)
    variables = {
        "HOME": str(home),
        "USER": canary("user"),
        "LOGNAME": canary("login name"),
        "HOSTNAME": f"{canary('host')}.cluster.example",
        "SLURMD_NODENAME": canary("node of a cluster"),
        "SLURM_JOB_ACCOUNT": canary("account of a cluster"),
        "EMAIL": f"{canary('mail address')}@example.org",
        "GIT_AUTHOR_NAME": canary("git author in the environment"),
        "AWS_ACCESS_KEY_ID": "AKIA" + canary("AWS key"),
        "AWS_SECRET_ACCESS_KEY": canary("AWS secret") + "0" * 30,
        "HF_TOKEN": "hf_" + canary("Hugging Face token in the environment") + "0" * 20,
        "GITHUB_TOKEN": "ghp_" + canary("GitHub token in the environment") + "0" * 20,
        "HTTPS_PROXY": f"http://me:{canary('password of a proxy')}@proxy.example:3128",
        "CONDA_PREFIX": str(base / canary("conda environment")),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(libraries),
        "TRAINMEM_AUDIT_HOME": str(base / canary("our own folder")),
        "PATH": f"{base / canary('folder on PATH')}:{os.environ.get('PATH', '')}",
    }
    arguments = (
        *("--data", str(data), f"--config={config}", f"--out=~/{canary('folder behind a tilde')}/model.pt"),
        *(f"--log-dir={base / canary('log folder in an argument') / 'logs'}",),
        *("--remote", f"https://me:{canary('password in a URL')}@storage.example/x"),
        *("--hf-token", "hf_" + canary("Hugging Face token in an argument") + "0" * 20),
        *("--api-key=" + canary("value of --api-key"), "--password", canary("value of --password")),
        *("--owner", variables["USER"], f"--resume=file://{home}/model.pt"),
        *("glpat-" + canary("GitLab token in an argument") + "0" * 12, "sk-" + canary("OpenAI key") + "0" * 20),
    )
    return World(base, project, environment / "bin" / "python", variables, arguments, canaries)


def make_repository(project: Path, canary: Callable[[str], str]) -> None:
    """Commit under a name, and change a file after that; the remote has a password."""
    password, remote = canary("password of the git remote"), canary("git remote")
    commands = (
        ("init", "-q", "-b", canary("git branch")),
        ("config", "user.name", f"Ann {canary('git name')}"),
        ("config", "user.email", f"{canary('git address')}@example.org"),
        ("remote", "add", "origin", f"https://me:{password}@host.example/{remote}/x.git"),
        ("add", "train.py", "notes.txt"),
        ("commit", "-q", "-m", canary("message of a commit")),
    )
    for command in commands:
        subprocess.run(["git", *command], cwd=project, check=True, capture_output=True)
    (project / "notes.txt").write_text("changed\n")


def forms(word: str) -> Iterator[tuple[str, bytes]]:
    """Give the ways in which a word may stand in a file."""
    raw = word.encode()
    yield "in clear", raw
    yield "in capitals", word.upper().encode()
    yield "in hex", raw.hex().encode()
    yield "in UTF-16", word.encode("utf-16-le")
    yield "URL-quoted", "".join(f"%{byte:02X}" for byte in raw).encode()
    yield "escaped", "".join(f"\\u{ord(char):04x}" for char in word).encode()
    yield "backwards", raw[::-1]
    for shift in range(3):  # what base64 makes of the middle of it, wherever it stands in a longer text
        text = base64.b64encode(b"\0" * shift + raw + b"\0\0")
        yield f"in base64, shifted by {shift}", text[4 if shift else 0 : 4 * ((shift + len(raw)) // 3)]


def leaks(canaries: dict[str, str], texts: dict[str, bytes]) -> list[str]:
    found = []
    for what, word in canaries.items():
        for form, pattern in forms(word):
            found += [f"{what} {form}: {place}" for place, data in texts.items() if pattern in data]
    return found


def files_of(pack: Path) -> dict[str, bytes]:
    """Return every file of a pack, the archive itself, and the statement inside the envelope."""
    with zipfile.ZipFile(pack) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    found["statement"] = base64.b64decode(json.loads(found["run.json"])["payload"])
    return found | {"the names": "\n".join(found).encode(), "the archive": pack.read_bytes()}


@dataclass(frozen=True)
class Printed:
    """What a command printed: data, and remarks to whoever sits there."""

    data: bytes
    remarks: bytes


def run(world: World, cwd: Path, *arguments: str, asked: bool = False, expect: int = 0) -> Printed:
    """Run one command, at a terminal that answers where it is `asked` for something; return what it printed."""
    plain = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL")}
    reader, writer = os.openpty()
    process = subprocess.Popen(
        [str(world.python), "-m", "trainmem_audit", *arguments],
        cwd=cwd,
        env=plain | world.environment | {"PYTHONWARNINGS": "ignore"},
        stdin=writer if asked else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # no terminal to ask but that one
    )
    try:
        answering = threading.Thread(target=answer, args=(process, reader if asked else None))
        answering.start()
        output, remarks = process.communicate(timeout=300)
    finally:
        process.kill()
        answering.join()
        os.close(reader)
        os.close(writer)
    assert process.returncode == expect, (output + remarks).decode(errors="replace")
    return Printed(output, remarks)


def answer(process: subprocess.Popen[bytes], terminal: int | None) -> None:
    """Type a word again and again: a prompt for a secret throws away what was typed before it."""
    while terminal is not None and process.poll() is None:
        os.write(terminal, b"another\n")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The author's machine, with a run and one that failed, each packed blind and open."""
    world = make_world(tmp_path_factory.mktemp("author"), "kestrel")
    (key,) = world.base.glob(f"{world.canaries['folder of the key']}/id")
    run(world, world.project, "record", "--key", str(key), "train.py", *world.arguments)
    failing = ("-d", "failed", "train.py", *world.arguments, "fail")
    run(world, world.project, "record", "--key", str(key), *failing, expect=1)
    for name in ("run", "failed"):
        run(world, world.project, "pack", name, "--blind")
        run(world, world.project, "pack", name, "--open", "-o", f"{name}-open.zip")
    return world


def test_there_are_thirty_canaries_and_the_search_finds_them(author: World) -> None:
    assert len(author.canaries) >= 30
    word = author.canaries["user"]
    for shift in range(3):
        hidden = base64.b64encode(b"x" * shift + f"{word} and more".encode())
        assert leaks({"user": word}, {"hidden": hidden})
    for _, form in forms(word):
        assert leaks({"user": word}, {"hidden": b"..." + form + b"..."})


@pytest.mark.parametrize("name", ["run", "failed"])
def test_no_canary_is_in_a_blind_pack(author: World, name: str) -> None:
    texts = files_of(author.project / f"{name}.zip")
    assert not leaks(author.canaries, texts)
    assert "disclosures.json" not in texts
    host = platform.node()
    assert len(host) < 6 or not leaks({"the real host": host}, texts)
    assert b'"helper":"1.0"' in texts["statement"]
    assert b"train.bin" in texts["statement"]  # the base name of an input is published
    assert texts["statement"].count(b'"redacted":true') >= 6


OPENED = {
    "base folder", "home folder", "project's parent folder", "data folder outside of the working directory",
    "folder of a configuration file", "folder on PYTHONPATH", "git name", "git address", "git remote",
}  # fmt: skip
"""What the openings are there to tell. No secret, no host, no branch or message is among it."""


@pytest.mark.parametrize("name", ["run", "failed"])
def test_an_open_pack_holds_canaries_in_the_openings_only(author: World, name: str) -> None:
    blind, opened = files_of(author.project / f"{name}.zip"), files_of(author.project / f"{name}-open.zip")
    assert opened["run.json"] == blind["run.json"]
    assert opened["signer.pub"] == blind["signer.pub"]
    openings = opened.pop("disclosures.json")
    assert not leaks(author.canaries, opened)
    told = {leak.partition(" in clear")[0] for leak in leaks(author.canaries, {"disclosures.json": openings})}
    assert told == OPENED
    values = {item["name"]: item["value"] for item in json.loads(openings)["disclosures"]}
    assert values["git.dirty"] is True
    assert len(values["git.commit"]) == 40
    assert values["git.remote"] == f"https://host.example/{author.canaries['git remote']}/x.git"


def test_an_anonymous_run_tells_nothing_that_other_runs_of_its_author_tell(author: World) -> None:
    """A fresh key, fresh salts, no packages of the laboratory; a pack is blind unless it is told not to be."""
    project = author.project
    for name in ("first", "second"):
        run(author, project, "record", "--anonymous", "-q", "-d", name, "train.py", *author.arguments)
        printed = run(author, project, "pack", name)
        assert b"left out of a blind pack: disclosures.json" in printed.remarks
    first, second = files_of(project / "first.zip"), files_of(project / "second.zip")
    known = files_of(project / "run.zip")
    assert "disclosures.json" not in first
    assert len({texts["signer.pub"] for texts in (first, second, known)}) == 3
    commitments = [
        set(json.loads(texts["statement"])["predicate"]["commitments"].values()) for texts in (first, second, known)
    ]
    assert all(not a & b for a, b in ((commitments[0], commitments[1]), (commitments[0], commitments[2])))
    assert b'"helper"' in known["statement"]
    assert b'"helper"' not in first["statement"]
    assert not leaks(author.canaries, first)
    openings = json.loads((project / "first" / "disclosures.json").read_bytes())
    assert openings["anonymous"] is True


def test_a_killed_anonymous_run_is_not_signed_with_the_project_s_key(author: World) -> None:
    project = author.project
    run(author, project, "record", "-q", "-d", "mine", "train.py", *author.arguments)
    run(author, project, "record", "--anonymous", "-q", "-d", "killed", "train.py", *author.arguments)
    for name in ("run.json", "signer.pub"):
        (project / "killed" / name).unlink()
    run(author, project, "recover", "killed")
    keys = {(project / name / "signer.pub").read_bytes() for name in ("run", "mine", "killed", "first")
            if (project / name / "signer.pub").is_file()}  # fmt: skip
    assert (project / "killed" / "signer.pub").read_bytes() != (project / "mine" / "signer.pub").read_bytes()
    assert len(keys) >= 3


# --- every verb -----------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a reviewer works: a machine of their own with the author's packs, and what came out of each command."""

    world: World
    author: World
    folder: Path
    outputs: dict[str, bytes]

    def do(self, *arguments: str, expect: int = 0, asked: bool = False) -> None:
        """Run a command here; its data are kept, and the author's words are in its remarks neither."""
        printed = run(self.world, self.folder, *arguments, expect=expect, asked=asked)
        self.outputs[" ".join(arguments)] = printed.data
        assert not leaks(self.author.canaries, {" ".join(arguments): printed.remarks})

    def keep(self, *names: str) -> None:
        """Keep files that a command wrote."""
        for name in names:
            path = self.folder / name
            for file in path.rglob("*") if path.is_dir() else (path,):
                if file.is_file():
                    self.outputs[f"file {file.relative_to(self.folder)}"] = file.read_bytes()


def at_reviewer(author: World, folder: Path) -> Place:
    world = make_world(folder, "goshawk")
    for name in ("run", "failed"):
        shutil.copy(author.project / f"{name}.zip", world.project)
    return Place(world, author, world.project, {})


CHECKED = ("verify", "run.zip", "--allow-untrusted")
QUIET = """
import torch
weight = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], 0.1)
(weight * weight).sum().backward()
optimizer.step()
"""


def _record(place: Place) -> None:
    (place.folder / "quiet.py").write_text(QUIET)
    place.do("record", "-d", "own", "quiet.py", "--owner", place.world.canaries["user"])
    place.keep("own/run.json", "own/steps.jsonl", "own/signer.pub", "own/source")


def _recover(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "run.zip") as archive:
        archive.extractall(place.folder / "killed")
    (place.folder / "killed" / "run.json").unlink()
    place.do("recover", "killed")
    place.keep("killed")


def _verify(place: Place) -> None:
    for form in forms_of("verify"):
        place.do(*CHECKED, "--format", form)
    place.do(*CHECKED, "--save", "verification.json", "--attest")
    place.keep("verification.json", "run.intoto.jsonl")


def _check(place: Place) -> None:
    for form in forms_of("check"):
        place.do("check", "run.zip", "--allow-untrusted", "--format", form, expect=3)
    place.do("check", "run.zip", "--allow-untrusted", "--save", "check.json", "--save", "check.sarif", expect=3)
    place.keep("check.json", "check.sarif")


def _explain(place: Place) -> None:
    place.do("explain", "all")


def _unpacked(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "run.zip") as archive:
        archive.extractall(place.folder / "unpacked")


def _schema(place: Place) -> None:
    _unpacked(place)
    for name, file, code in (("statement", "run.json", 0), ("plan", "run.json", 2), ("step-log", "steps.jsonl", 0)):
        for form in ("text", "json"):
            place.do("schema", "validate", name, f"unpacked/{file}", "--format", form, expect=code)


def _migrate(place: Place) -> None:
    _unpacked(place)
    place.do("migrate", "unpacked/run.json", "--out", "new.json", expect=2)


def _show(place: Place) -> None:
    place.do("show", "run.zip")


def _diff(place: Place) -> None:
    for form in ("text", "json"):
        place.do("diff", "run.zip", "failed.zip", "--format", form, expect=1)


def _pack(place: Place) -> None:
    _recover(place)
    place.do("pack", "killed", "-o", "again.zip")
    place.keep("again.zip")


def _report(place: Place) -> None:
    place.do("report", "run.zip", "-o", "report")
    place.keep("report")


def _sign(place: Place) -> None:
    place.do("sign", "run.zip")
    place.keep("run.intoto.jsonl")


def _keygen(place: Place) -> None:
    place.do("keygen", "key")
    place.keep("key.pub")


def _trust(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "run.zip") as archive:
        archive.extract("signer.pub", place.folder)
    place.do("trust", "add", "submission-7", "signer.pub")
    place.do("trust", "list")
    place.do("trust", "revoke", "signer.pub")
    place.do("trust", "remove", "submission-7")


def _doctor(place: Place) -> None:
    for form in ("text", "json"):
        place.do("doctor", "--format", form)


def _twice(place: Place) -> None:
    (place.folder / "quiet.py").write_text(QUIET)
    for form in ("text", "json"):
        place.do("twice", "--format", form, "quiet.py", "--owner", place.world.canaries["user"])


STUDY = """
name = "quiet"
task = "regression"
observables = ["loss"]
null_players = false
seeds = [1]
branch_steps = [1]
horizons = [1]
[program]
entry = "quiet.py"
arguments = ["{seed}"]
[interventions]
zero = "reset:optimizer.momentum"
gone = "reset:optimizer.nothing"
[primary]
contrast = "zero"
estimand = "signed"
[probe]
file = "probe.safetensors"
[analysis]
equivalence_margin = 1.0
"""
QUIET_MODEL = """
import torch
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for _ in range(2):
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()
"""


def _study(place: Place) -> None:
    (place.folder / "quiet.py").write_text(QUIET_MODEL)
    (place.folder / "study.toml").write_text(STUDY)
    x = np.ones((2, 1), np.float32)
    (place.folder / "probe.safetensors").write_bytes(arrays_bytes(x=x, y=x))
    for form in ("text", "json"):
        place.do("study", "plan", "study.toml", "--format", form)
    place.do("study", "run", "study.toml", "--workers", "1", expect=3)
    place.do("study", "estimate", "study")
    place.do("verify", "study/estimates.json")
    place.keep(*(f"study/{name}" for name in ("plan.json", "study.jsonl", "study.json", "estimates.json")))
    for arm in ("arms/zero.s0.b1.r0", "failed/gone.s0.b1.r0.1"):
        place.keep(f"study/{arm}/run.json", f"study/{arm}/steps.jsonl", f"study/{arm}/source")


EXERCISED: dict[str, Callable[[Place], None]] = {
    "check": _check,
    "diff": _diff,
    "doctor": _doctor,
    "explain": _explain,
    "keygen": _keygen,
    "migrate": _migrate,
    "pack": _pack,
    "record": _record,
    "recover": _recover,
    "report": _report,
    "schema": _schema,
    "show": _show,
    "sign": _sign,
    "study": _study,
    "trust": _trust,
    "twice": _twice,
    "verify": _verify,
}
"""Every verb, and how its outputs are got. What a person at the terminal is told of their own machine (where a key was
written, say) is no output; what they are told of another's is."""


def forms_of(verb: str) -> tuple[str, ...]:
    """Return the formats in which a verb can print."""
    from trainmem_audit.formats import COMPLIANCE, VERIFICATION

    known = {"check": tuple(COMPLIANCE), "verify": tuple(VERIFICATION)}
    return known.get(verb, ("text", "json"))


def test_every_verb_is_exercised() -> None:
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert commands == EXERCISED.keys(), "a new verb needs a line in EXERCISED, so that its outputs are searched"


@pytest.mark.parametrize("verb", EXERCISED)
def test_no_canary_is_in_an_output_of_a_verb(author: World, tmp_path: Path, verb: str) -> None:
    place = at_reviewer(author, tmp_path)
    EXERCISED[verb](place)
    assert place.outputs
    canaries = {f"author's {what}": word for what, word in author.canaries.items()}
    canaries |= {f"reviewer's {what}": word for what, word in place.world.canaries.items()}
    assert not leaks(canaries, place.outputs)


def test_no_canary_of_author_or_reviewer_is_in_what_a_reviewer_makes(author: World, tmp_path: Path) -> None:
    reviewer = make_world(tmp_path, "goshawk")
    canaries = {f"author's {what}": word for what, word in author.canaries.items()}
    canaries |= {f"reviewer's {what}": word for what, word in reviewer.canaries.items()}
    there = reviewer.project
    texts: dict[str, bytes] = {}
    for name, code, crash in (("run", 0, False), ("failed", 3, False), ("run", 3, True)):
        reviewer.environment.update({"CRASH": "1"} if crash else {})
        pack = author.project / f"{name}.zip"
        local = there / "submission.zip"
        local.write_bytes(pack.read_bytes())
        place = f"{name}, crash {crash}"
        texts[f"{place}: show"] = run(reviewer, there, "show", str(local)).data
        saved, report = there / "verification.json", there / "report"
        command = ("verify", str(local), "--allow-untrusted", "--replay", "full", "--yes", "--save", str(saved))
        data = [author.project, *(path.parent for path in author.base.glob("*/*") if path.name in INPUTS)]
        options = (option for path in data for option in ("--data", str(path)))
        # the second run keeps its owner's name in a scheduler, and another name stands there now; and since it loads
        # code from the reviewer's home, that difference decides nothing
        run(reviewer, there, *command, *options, asked=True, expect=code)
        texts[f"{place}: verification"] = saved.read_bytes()
        assert not crash or b"nothing" in texts[f"{place}: verification"]
        run(reviewer, there, "report", str(local), "--verification", str(saved), "-o", str(report))
        texts |= {f"{place}: {path.name}": path.read_bytes() for path in report.iterdir()}
    assert not leaks(canaries, texts)
