"""The whole way of a record, from training to report, on one machine with two roles.

An author records `digits/train.py` and packs the record. A reviewer, with a home of their own, verifies it,
replays it, looks at two things that went wrong on purpose, and writes the report. Only the command
line is used. A step whose exit code is not the expected one ends the demo.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent / "digits"
MARKER = ".made-by-the-demo"


class DemoError(Exception):
    """A step did not do what it should."""


class Role:
    """Someone with a home of their own, who runs `trainmem-audit` in a working directory."""

    def __init__(self, name: str, out: Path, threads: int | None = None) -> None:
        self.name = name
        self.out = out
        self.cwd = out / name
        self.cwd.mkdir()
        self.prompt = f"\n[{self.cwd.relative_to(out.parent)}]$"
        self.variables = {"TRAINMEM_AUDIT_HOME": f"../home/{name}"}
        if threads is not None:
            self.variables["OMP_NUM_THREADS"] = str(threads)
        print(self.prompt, "export", *(f"{key}={shlex.quote(value)}" for key, value in self.variables.items()))

    def run(self, *arguments: str, expect: int = 0, contains: str = "") -> None:
        """Run one command, show it and its output, and check its exit code and a piece of its output."""
        command = [sys.executable, "-m", "trainmem_audit", *arguments]
        print(self.prompt, shlex.join(["trainmem-audit", *arguments]), flush=True)
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        process = subprocess.Popen(
            command,
            cwd=self.cwd,
            env=environment | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(f"    {line}", end="", flush=True)
        code = process.wait()
        print(f"    → exit code {code}", flush=True)
        if code != expect:
            raise DemoError(f"expected exit code {expect}, got {code}: {shlex.join(arguments)}")
        if contains.lower() not in "".join(lines).lower():
            raise DemoError(f"expected {contains!r} in the output of: {shlex.join(arguments)}")


def headline(number: int, text: str) -> None:
    print(f"\n━━ {number}. {text} ━━", flush=True)


def fresh_directory(out: Path) -> Path:
    """Make `out` anew; an old one is removed only if this demo made it."""
    if out.exists():
        if not (out / MARKER).is_file():
            raise DemoError(f"{out} exists and was not made by this demo; remove it or give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    (out / "home").mkdir()
    return out


def record_and_pack(out: Path) -> None:
    headline(1, "The author records an ordinary training script")
    author = Role("author", out)
    shutil.copytree(EXAMPLE, author.cwd, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    author.run("record", "--run-dir", "run", "train.py", "--epochs", "2")
    headline(2, "The author packs the record for the reviewers")
    author.run("pack", "run", "-o", "../run.zip")


def verify_and_replay(reviewer: Role) -> None:
    headline(3, "The reviewer verifies it: intact, but nobody vouches for the key yet (exit code 1)")
    reviewer.run("verify", "../run.zip", expect=1)
    headline(4, "The reviewer accepts the unknown key and replays the run, in a shell with one thread")
    reviewer.run(
        *("verify", "../run.zip", "--replay", "full", "--yes", "--allow-untrusted"),
        *("--save", "verification.json"),
        contains="match",
    )


def change_one_byte(reviewer: Role) -> None:
    headline(5, "One byte of the record is changed: the reviewer sees which file and line (exit code 1)")
    tampered = unpack(reviewer, "tampered")
    log = tampered / "steps.jsonl"
    data = bytearray(log.read_bytes())
    position = data.index(b'"state":', len(data) // 2) + len(b'"state":{')  # inside a step in the middle
    position = data.index(b'":"', position) + 3  # the first hex digit of a component's digest
    line = data.count(b"\n", 0, position) + 1
    old = chr(data[position])
    data[position] = ord("0" if old != "0" else "1")
    log.write_bytes(data)
    print(f"\n    changed: steps.jsonl, line {line}, byte {position}: {old!r} → {chr(data[position])!r}")
    reviewer.run("verify", "../tampered", "--allow-untrusted", expect=1, contains="steps.jsonl")


def change_one_hyper_parameter(reviewer: Role) -> None:
    headline(6, "One hyper-parameter of the script is changed: the reviewer is told which file (exit code 2)")
    original = find(unpack(reviewer, "unpacked") / "source", "train.py")
    whatif = reviewer.out / "whatif"
    shutil.copytree(original.parent, whatif)
    script = whatif / "train.py"
    before, after = '"--lr", type=float, default=0.05', '"--lr", type=float, default=0.06'
    text = script.read_text(encoding="utf-8")
    if before not in text:
        raise DemoError(f"expected {before!r} in train.py")
    script.write_text(text.replace(before, after), encoding="utf-8")
    print(f"\n    changed: train.py: {before} → {after}")
    consent = ("--yes", "--allow-untrusted")
    replay = ("verify", "../run.zip", "--replay", "full", "--source", "../whatif", *consent)
    reviewer.run(*replay, expect=2, contains="train.py")
    headline(7, "The same as a what-if: where the two runs part, and why (exit code 1)")
    reviewer.run(*replay, "--allow-changed-source", expect=1, contains="what-if")


def write_report(reviewer: Role) -> Path:
    headline(8, "The report, for the paper's appendix")
    reviewer.run("report", "../run.zip", "--verification", "verification.json", "-o", "../report")
    for name in ("report.html", "report.md"):
        if not (reviewer.out / "report" / name).is_file():
            raise DemoError(f"the report lacks {name}")
    return reviewer.out / "report" / "report.html"


def unpack(reviewer: Role, name: str) -> Path:
    """Unpack run.zip and return the directory that holds run.json."""
    target = reviewer.out / name
    with zipfile.ZipFile(reviewer.out / "run.zip") as archive:
        archive.extractall(target)
    return find(target, "run.json").parent


def find(folder: Path, name: str) -> Path:
    """Return the first file of that name below `folder`."""
    for path in sorted(folder.rglob(name)):
        return path
    raise DemoError(f"expected a file {name} below {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="made anew (default: demo-out)")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        out = fresh_directory(arguments.out.resolve())
        record_and_pack(out)
        reviewer = Role("reviewer", out, threads=1)
        verify_and_replay(reviewer)
        change_one_byte(reviewer)
        change_one_hyper_parameter(reviewer)
        report = write_report(reviewer)
    except DemoError as error:
        print(f"\nThe demo stopped: {error}", file=sys.stderr)
        return 1
    print(f"\nEverything went as expected, in {time.monotonic() - started:.0f} s. The report:\n{report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
