"""What identifies but also proves: commit and diff, remote, author, where things lie. Found before the script runs.

These facts enter a record as salted commitments only (`commitments`, DESIGN § 2.5). Git itself is asked, since only it
can read its index and objects; everything that its settings could make it run or write is switched off: hooks, file
system monitors, filters, external diffs, pagers, traces, fetching; and the index that a diff refreshes is a copy. Five
seconds for all of it, then what is not known is not known.

Not here: anything that touches random states, the environment of this process, or files of the author.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trainmem_audit.privacy import find_secrets, is_unicode

__all__ = ["DIFF_OPTIONS", "NAMES", "facts"]

NAMES: Final = ("author", "cwd", "git.commit", "git.diff", "git.dirty", "git.remote", "script")
"""What every record commits to, so that which of it is known (whether there is a repository, say) shows nowhere."""
DIFF_OPTIONS: Final = (
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--no-relative",
    "--ignore-submodules=dirty",
    "--submodule=short",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--inter-hunk-context=0",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "-U3",
    f"-O{os.devnull}",
)
"""With these `git diff HEAD` says the same under any settings: its SHA-256 is what `git.diff` commits to."""
_SECONDS: Final = 5.0
_MOST_CONFIG: Final = 2**20
_MOST_DIFF: Final = 2**28
_MOST_INDEX: Final = 2**27
_SETTINGS: Final = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.untrackedCache": "false",
    "core.splitIndex": "false",
    "core.attributesFile": os.devnull,
    "core.quotePath": "true",
    "core.pager": "cat",
    "core.askPass": "",
    "core.sshCommand": "false",
    "credential.helper": "",
    "diff.suppressBlankEmpty": "false",
    "diff.external": "",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
"""Overrides: with them git runs no program but itself, and writes nothing."""
_VARIABLES: Final = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_TRACE2": "0",
    "GIT_TRACE2_EVENT": "0",
    "GIT_TRACE2_PERF": "0",
    "LC_ALL": "C",
}
_KEPT: Final = ("HOME", "PATH", "SYSTEMROOT", "USERPROFILE", "XDG_CONFIG_HOME")
_FILTER: Final = re.compile(r"filter\.(.+)\.(?:clean|smudge|process|required)", re.DOTALL)
_REMOTE: Final = re.compile(r"remote\.(.+)\.url", re.DOTALL)
_USER_INFO: Final = re.compile(r"(?<=://)([^/@\s:]*)(:[^/@\s]*)?@")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def facts(cwd: Path, entry: Path | None) -> dict[str, Any]:
    """Return a value for each of `NAMES`, `None` where it is not known; never raises, and takes a few seconds at most.

    `git.dirty` says whether tracked files differ from the commit, staged or not; files that git does not track are not
    asked for. `git.diff` is the SHA-256 of that difference (`DIFF_OPTIONS`).
    """
    known: dict[str, Any] = dict.fromkeys(NAMES)
    known["cwd"] = _text(str(cwd))
    known["script"] = _text(str(entry)) if entry is not None else None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        git = shutil.which("git")
        if git is not None:
            known |= _Git(git, cwd).facts()
    return known


def _text(text: str | None) -> str | None:
    """Return a text that a record can hold: it is Unicode, and not longer than a path."""
    return text if text and len(text) <= 4096 and is_unicode(text) else None


class _Git:
    """Asks git about the repository around a directory, by a deadline."""

    def __init__(self, git: str, cwd: Path) -> None:
        self._git = git
        self._cwd = cwd
        self._deadline = time.monotonic() + _SECONDS
        self._settings = dict(_SETTINGS)
        kept = {name: value for name, value in os.environ.items() if name.upper() in _KEPT}
        self._environ = kept | _VARIABLES

    def facts(self) -> dict[str, Any]:
        config = self._config()
        found: dict[str, Any] = {"author": _author(config)}
        if not any((folder / ".git").exists() for folder in (self._cwd, *self._cwd.parents)):
            return found
        for name in config:
            if match := _FILTER.fullmatch(name):
                self._settings |= {f"filter.{match[1]}.{what}": "" for what in ("clean", "smudge", "process")}
                self._settings[f"filter.{match[1]}.required"] = "false"
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # what is known already stays known
            found["git.remote"] = _remote(config, self._branch())
            head = self._ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip().decode("ascii", "replace")
            if _COMMIT.fullmatch(head):
                found["git.commit"] = head
                digest = self._diff_digest(head)
                found["git.diff"] = digest
                found["git.dirty"] = None if digest is None else digest != hashlib.sha256().hexdigest()
        return found

    def _config(self) -> dict[str, str]:
        """Return the settings that hold here, the last of several; reading them runs nothing."""
        with contextlib.suppress(subprocess.SubprocessError):
            text = self._ask("config", "--list", "-z", "--includes").decode("utf-8", "surrogateescape")
            pairs = (item.partition("\n") for item in text.split("\0") if item)
            return {name: value for name, _, value in pairs}
        return {}

    def _branch(self) -> str:
        name = self._ask("symbolic-ref", "--quiet", "--short", "HEAD", fails=True)
        return name.strip().decode("utf-8", "surrogateescape")

    def _diff_digest(self, head: str) -> str | None:
        index = self._ask("rev-parse", "--git-path", "index").rstrip(b"\r\n")
        place = self._cwd / os.fsdecode(index)
        if place.exists() and place.stat().st_size > _MOST_INDEX:
            return None
        with tempfile.TemporaryDirectory(prefix="trainmem-audit-") as folder:
            copy = Path(folder) / "index"
            if place.exists():
                shutil.copy2(place, copy)  # with its time: git takes what changed after it for changed
            hasher = hashlib.sha256()
            size = 0
            environ = self._environ | {"GIT_INDEX_FILE": str(copy)}
            with self._running(["diff", *DIFF_OPTIONS, head, "--"], environ) as process:
                assert process.stdout is not None
                while size <= _MOST_DIFF and (piece := process.stdout.read(2**16)):
                    size += len(piece)
                    hasher.update(piece)
                if size > _MOST_DIFF:
                    _end(process)
            return hasher.hexdigest() if process.returncode == 0 else None

    def _ask(self, *arguments: str, fails: bool = False) -> bytes:
        """Return what a command of git prints, up to 1 MiB of it.

        Raises
        ------
        SubprocessError
            If it fails (unless it may), or takes too long.
        """
        with self._running(list(arguments), self._environ) as process:
            assert process.stdout is not None
            output = process.stdout.read(_MOST_CONFIG)
            if len(output) == _MOST_CONFIG:
                _end(process)
        if process.returncode and not fails:
            raise subprocess.CalledProcessError(process.returncode, arguments[0])
        return output

    @contextlib.contextmanager
    def _running(self, arguments: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        left = max(0.0, self._deadline - time.monotonic())
        process = subprocess.Popen(
            [self._git, *options, *arguments],
            cwd=self._cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        timer = threading.Timer(left, _end, [process])
        timer.start()
        try:
            with process:
                yield process
        finally:
            timer.cancel()
            timer.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: `git` may be somebody's wrapper, whose child would keep the pipe open."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _author(config: dict[str, str]) -> dict[str, str] | None:
    """Return name and address as git would put them into a commit."""
    known = {what: _text(config.get(f"author.{what}") or config.get(f"user.{what}")) for what in ("name", "email")}
    return {what: text for what, text in known.items() if text} or None


def _remote(config: dict[str, str], branch: str) -> str | None:
    """Return the address of the branch's remote, else of `origin`, else of the first; without user and password."""
    urls = {match[1]: url for name, url in config.items() if (match := _REMOTE.fullmatch(name))}
    wanted = (config.get(f"branch.{branch}.remote", ""), "origin", *sorted(urls))
    url = next((urls[name] for name in wanted if name in urls), None)
    if url is None:
        return None
    plain = _USER_INFO.sub("", url.partition("?")[0])
    return None if find_secrets(plain) else _text(plain)
