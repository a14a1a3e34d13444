"""What a recording finds out before the script runs: what git says, and that git runs nothing but itself."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainmem_audit.recording import provenance
from trainmem_audit.recording.provenance import DIFF_OPTIONS, NAMES, facts

pytestmark = pytest.mark.skipif(shutil.which("git") is None or os.name == "nt", reason="needs git and POSIX")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git's settings are those that a test makes, and no repository is around its directory."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def git(where: Path, *arguments: str) -> str:
    options = ("-c", "user.name=Ann Example", "-c", "user.email=ann@example.org", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *options, *arguments], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "train.py").write_text("one\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "first")
    git(path, "config", "user.name", "Ann Example")
    git(path, "config", "user.email", "ann@example.org")
    return path


def known(where: Path) -> dict[str, Any]:
    return facts(where, where / "train.py")


def tree(where: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file below a directory, git's own too, with its time."""
    paths = [path for path in where.rglob("*") if path.is_file()]
    return {str(path.relative_to(where)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_what_is_known_of_a_clean_repository(repository: Path) -> None:
    assert known(repository) == {
        "author": {"name": "Ann Example", "email": "ann@example.org"},
        "cwd": str(repository),
        "script": str(repository / "train.py"),
        "git.commit": git(repository, "rev-parse", "HEAD"),
        "git.dirty": False,
        "git.diff": hashlib.sha256(b"").hexdigest(),
        "git.remote": None,
    }


@pytest.mark.parametrize("staged", [False, True])
def test_a_dirty_tree_has_the_digest_of_its_diff(repository: Path, staged: bool) -> None:
    (repository / "train.py").write_text("two\n")
    if staged:
        git(repository, "add", ".")
    command = ["git", "diff", *DIFF_OPTIONS, "HEAD", "--"]
    diff = subprocess.run(command, cwd=repository, check=True, capture_output=True).stdout
    assert b"+two" in diff
    found = known(repository)
    assert (found["git.dirty"], found["git.diff"]) == (True, hashlib.sha256(diff).hexdigest())


def test_settings_do_not_change_the_digest(repository: Path) -> None:
    (repository / "train.py").write_text("two\n")
    before = known(repository)["git.diff"]
    for name, value in {
        "diff.noprefix": "true", "diff.mnemonicPrefix": "true", "diff.context": "1", "diff.algorithm": "histogram",
        "diff.renames": "copies", "diff.relative": "true", "color.ui": "always", "core.abbrev": "7",
    }.items():  # fmt: skip
        git(repository, "config", name, value)
    assert known(repository)["git.diff"] == before
    (repository / "below").mkdir()
    assert known(repository / "below")["git.diff"] == before


def test_a_file_that_was_only_touched_is_no_change(repository: Path) -> None:
    os.utime(repository / "train.py", (0, 0))
    assert known(repository)["git.dirty"] is False


def test_a_change_of_the_same_length_right_after_a_commit_is_seen(repository: Path) -> None:
    """What git's index cannot tell by size and time (`racy git`): a copy of the index must keep its time."""
    for text in ("abc\n", "def\n", "ghi\n"):
        (repository / "train.py").write_text(text)
        git(repository, "commit", "-q", "-a", "-m", text)
        (repository / "train.py").write_text("xyz\n")
        assert known(repository)["git.dirty"] is True


def test_outside_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "home" / ".gitconfig").write_text("[user]\n\tname = Ann\n")
    found = known(tmp_path)
    assert found["author"] == {"name": "Ann"}
    assert {name for name, value in found.items() if value is not None} == {"author", "cwd", "script"}


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("PATH", path)
    found = known(repository)
    assert found.keys() == set(NAMES)
    assert {name for name, value in found.items() if value is not None} == {"cwd", "script"}


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert known(tmp_path)["git.commit"] is None


def test_a_damaged_repository(repository: Path) -> None:
    (repository / ".git" / "HEAD").write_text("nonsense")
    assert known(repository)["git.commit"] is None
    (repository / ".git" / "config").write_text("[nonsense")
    assert known(repository)["author"] is None


def test_a_worktree_and_a_detached_head(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "-q", "--detach", str(tmp_path / "other"))
    (tmp_path / "other" / "train.py").write_text("changed\n")
    found = known(tmp_path / "other")
    assert (found["git.commit"], found["git.dirty"]) == (git(repository, "rev-parse", "HEAD"), True)
    assert known(repository)["git.dirty"] is False


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://me:hunter2" + "@host.example/x.git", "https://host.example/x.git"),
        ("https://" + "a1" * 20 + "@host.example/x.git", "https://host.example/x.git"),
        ("https://host.example/x.git?token=abcdef", "https://host.example/x.git"),
        ("git@host.example:group/x.git", "git@host.example:group/x.git"),
        ("/srv/git/x.git", "/srv/git/x.git"),
        ("https://host.example/" + "gh" + "p_" + "a1B2" * 9, None),
    ],
)
def test_a_remote_is_known_without_its_password(repository: Path, url: str, kept: str | None) -> None:
    git(repository, "remote", "add", "origin", url)
    assert known(repository)["git.remote"] == kept


def test_the_remote_is_that_of_the_branch(repository: Path) -> None:
    for name in ("aaa", "origin", "upstream"):
        git(repository, "remote", "add", name, f"https://{name}.example/x.git")
    assert known(repository)["git.remote"] == "https://origin.example/x.git"
    git(repository, "config", "branch.main.remote", "upstream")
    assert known(repository)["git.remote"] == "https://upstream.example/x.git"


def spring_traps(repository: Path, marks: Path) -> None:
    """Set everything in git's settings that runs a program, each of which would leave a mark."""

    def trap(name: str, output: str = "") -> str:
        path = marks.parent / f"trap-{name}"
        path.write_text(f"#!/bin/sh\ntouch {marks}/{name}\n{output or 'cat'}\n")
        path.chmod(0o700)
        return str(path)

    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "post-checkout", "pre-auto-gc", "fsmonitor-watchman"):
        shutil.copy(trap(f"hook-{name}"), hooks / name)
    for name, value in {
        "core.fsmonitor": trap("fsmonitor"),
        "core.pager": trap("pager"),
        "pager.diff": "true",
        "diff.external": trap("external"),
        "diff.mine.command": trap("command"),
        "diff.mine.textconv": trap("textconv"),
        "filter.mine.clean": trap("clean"),
        "filter.mine.smudge": trap("smudge"),
        "filter.mine.required": "true",
        "filter.Pro cess.process": trap("process", "exit 1"),
        "credential.helper": trap("credential"),
        "core.sshCommand": trap("ssh"),
        "alias.diff": f"!{trap('alias')}",
        "gpg.program": trap("gpg"),
        "log.showSignature": "true",
        "trace2.eventTarget": str(marks / "trace2"),
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{trap('remote')}",
        "protocol.ext.allow": "always",
    }.items():
        git(repository, "config", name, value)
    (repository / ".gitattributes").write_text("*.py diff=mine filter=mine\n*.bin filter=Pro\n")
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "attributes").write_text("other.txt filter=mine diff=mine\n")


def test_nothing_that_git_is_told_to_run_runs_and_nothing_is_written(repository: Path, tmp_path: Path) -> None:
    (repository / "other.txt").write_text("other\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "second")
    marks = tmp_path / "marks"
    marks.mkdir()
    spring_traps(repository, marks)
    shutil.rmtree(marks)
    marks.mkdir()
    (repository / "train.py").write_text("changed\n")
    (repository / "other.txt").write_text("changed\n")
    os.utime(repository / "train.py", (0, 0))
    before = tree(repository)
    found = known(repository)
    assert not list(marks.iterdir())
    assert tree(repository) == before
    assert (found["git.commit"], found["git.dirty"]) == (git(repository, "rev-parse", "HEAD"), True)
    subprocess.run(["git", "diff"], cwd=repository, capture_output=True, check=False)
    assert list(marks.iterdir()), "the traps would have been sprung"


def test_a_missing_object_is_not_fetched(repository: Path, tmp_path: Path) -> None:
    """A partial clone fetches what a diff needs; here it needs it, and it stays unknown."""
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--no-local", "--filter=blob:none", str(repository), "clone")
    clone = tmp_path / "clone"
    (repository / "train.py").write_text("three\n")
    git(repository, "commit", "-q", "-a", "-m", "third")
    git(clone, "fetch", "-q")
    git(clone, "update-ref", "HEAD", "origin/main")
    before = tree(clone / ".git")
    found = known(clone)
    assert tree(clone / ".git") == before
    assert found["git.commit"] == git(repository, "rev-parse", "HEAD")
    assert found["git.diff"] is None
    assert found["git.dirty"] is None


@pytest.mark.parametrize(
    "text",
    ["sleep 1000", "exec sleep 1000", "exec yes", "exec cat /dev/zero", "kill -9 $$", "exit 3", "printf '\\377'"],
)
def test_a_git_that_hangs_floods_or_dies_costs_what_it_was_given(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "git"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    monkeypatch.setattr(provenance, "_SECONDS", 0.3)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = known(repository)
    assert found["cwd"] == str(repository)
    assert (found["git.commit"], found["git.diff"]) == (None, None)


def test_a_diff_that_is_too_long_has_no_digest(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "train.py").write_text("x\n" * 200_000)
    monkeypatch.setattr(provenance, "_MOST_DIFF", 2**17)
    found = known(repository)
    assert found["git.commit"] is not None
    assert (found["git.diff"], found["git.dirty"]) == (None, None)


def test_random_states_environment_and_directory_stay(repository: Path) -> None:
    state, environ, where = random.getstate(), dict(os.environ), Path.cwd()
    known(repository)
    assert (random.getstate(), dict(os.environ), Path.cwd()) == (state, environ, where)


def test_settings_of_the_environment_do_not_lead_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    git(elsewhere, "init", "-q")
    expected = known(repository)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(elsewhere / ".git"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert known(repository) == expected


def test_names_that_no_record_can_hold_are_not_known(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    assert stat.S_ISDIR(odd.stat().st_mode)
    assert known(odd)["cwd"] is None
