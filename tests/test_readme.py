"""The README's `console` blocks are run, as its author and as its reviewer, and must print what stands there.

`python tests/test_readme.py` writes what they print now into the README. Keys, ids, digests, times, losses and versions
are compared by their form only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainmem_audit.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- (author|reviewer) -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEYID = re.compile(r"SHA256:(?:KEY|[A-Za-z0-9+/]{43})")
FORMS = (
    (KEYID, "SHA256:KEY"),
    (re.compile(r"\S*/keys/\S+"), "PATH-OF-KEY"),
    (re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{12})\b"), "DIGEST"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b\d+\.\d+ s\b"), "SECONDS"),
    (re.compile(r"(?<=loss )\d+\.\d+|\d+\.\d+%"), "NUMBER"),
    (re.compile(r"^  (cwd|script): .*", re.MULTILINE), r"  \1: OF-THIS-MACHINE"),
    (
        re.compile(r"^(inputs|environment|packages|streams|committed) .*(\n {14}.*)?", re.MULTILINE),
        r"\1 OF-THIS-MACHINE",
    ),
)


@dataclass
class Command:
    """One command of the README, who runs it, and what stands below it."""

    who: str
    line: str
    printed: str


def commands(text: str) -> list[Command]:
    found = []
    for who, block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, printed = part.partition("\n")
            found.append(Command(who, line, printed))
    return found


def run_all(wanted: list[Command], base: Path) -> list[str]:
    """Run the commands in order and return what each printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for who in ("author", "reviewer"):
        (base / who).mkdir()
    shutil.copy(ROOT / "examples" / "digits" / "train.py", base / "author")
    nobody = {"HOME": str(base), "XDG_CONFIG_HOME": str(base), "GIT_CONFIG_SYSTEM": os.devnull}
    known = {name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "EMAIL"))}
    known |= nobody  # the page shows nobody's name
    printed = []
    keyid = "SHA256:KEY"
    for command in wanted:
        pack = base / "author" / "run.zip"
        if command.who == "reviewer" and pack.exists():
            shutil.copy(pack, base / "reviewer")
        command.line = KEYID.sub(keyid, command.line)
        done = subprocess.run(
            command.line,
            shell=True,
            cwd=base / command.who,
            env=known | {"PATH": path, "TRAINMEM_AUDIT_HOME": str(base / f"home-of-{command.who}")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode in (0, 1), f"{command.line}\n{done.stdout}"
        output = done.stdout.replace(f"{base}/home-of-author", "~/.config/trainmem-audit")
        printed.append(output.replace(f"{base}/author", "~/digits"))
        found = KEYID.search(done.stdout)
        keyid = found[0] if found else keyid
    return printed


def form(text: str) -> str:
    """Return what is compared: everything but what no two runs share."""
    for pattern, name in FORMS:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.mark.slow
def test_the_commands_print_what_the_readme_says(tmp_path: Path) -> None:
    wanted = commands(README.read_text(encoding="utf-8"))
    assert len(wanted) >= 6
    for command, printed in zip(wanted, run_all(wanted, tmp_path), strict=True):
        assert form(printed) == form(command.printed), (
            f"{command.line}\nto mend the README: python tests/test_readme.py"
        )


def test_every_option_that_a_text_names_exists() -> None:
    """The quick half of it, for all texts."""
    unknown = []
    for path in (README, *sorted((ROOT / "docs").glob("*.md"))):
        for verb, rest in re.findall(r"(?:`|\$ )trainmem-audit ([a-z]+)([^`\n|]*)", path.read_text(encoding="utf-8")):
            options = set(re.findall(r"(?<!\S)--[a-z-]+", rest.split(" train.py")[0]))
            unknown += [f"{path.name}: {verb} {option}" for option in options - options_of(verb)]
    assert not unknown


@cache
def options_of(verb: str) -> set[str]:
    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0, verb
    return set(re.findall(r"--[a-z-]+", done.output))


@pytest.mark.parametrize("text", ["SHA256:" + "a" * 43, "0" * 64, "took 4.2 s", "test loss 0.1820  accuracy 97.22%"])
def test_what_differs_from_run_to_run_is_not_compared(text: str) -> None:
    assert form(text) != text


def main() -> None:
    """Write what the commands print now into the README."""
    import tempfile

    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        wanted = commands(text)
        printed = iter(run_all(wanted, Path(folder)))
    lines = iter(wanted)

    def fill(match: re.Match[str]) -> str:
        count = len(re.findall(r"^\$ ", match[2], flags=re.MULTILINE))
        parts = [f"$ {next(lines).line}\n{next(printed).rstrip()}".rstrip() + "\n" for _ in range(count)]
        return f"<!-- {match[1]} -->\n```console\n{''.join(parts)}```"

    README.write_text(BLOCK.sub(fill, text), encoding="utf-8")


if __name__ == "__main__":
    main()
