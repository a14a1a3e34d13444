"""What must not be recorded or published: secrets, and what tells who and where (DESIGN § 2.5).

`redact_argv` keeps both out of a record; `find_secrets` and `find_identity` look for them in files that are
about to leave the machine. Nothing here runs a program or asks the network. Not here: the allow-list of
environment variables (`recording`), and salted commitments.
"""

from __future__ import annotations

import getpass
import json
import ntpath
import os
import platform
import posixpath
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

from trainmem_audit.documents.steplog import Argument

__all__ = [
    "NAME_KIND",
    "REDACTED",
    "SECRET_FLAG",
    "find_identity",
    "find_secrets",
    "identity",
    "is_secret_value",
    "is_unicode",
    "known_identity",
    "last_line",
    "public_line",
    "public_name",
    "public_text",
    "redact_argv",
    "without",
]

_KEY_OR_PASS: Final = (
    r"(?<![a-z])(?:pass|pwd|pat|bearer|cookies?)(?![a-z_.-])"
    r"|(?:access|account|aws|azure|comet|deploy|encryption|license|master|neptune|openai|private|service|shared|signing"
    r"|ssh|storage|wandb)[_.-]?key(?![a-z])"
    r"|(?<![a-z_.-])-{0,2}key(?![a-z_.-])"
)
SECRET_FLAG: Final = re.compile(
    rf"token(?!i[sz])|secret|passw|passphrase|api.?key|auth(?!ors?(?![a-z]))|credential|{_KEY_OR_PASS}", re.IGNORECASE
)
"""Names whose values may have to be kept out (`is_secret_value` decides); `tokenizer`, `author`, `pass-through`,
`patience` and `sort-key` are none."""
_MORE_SECRETS: Final = re.compile(_KEY_OR_PASS, re.IGNORECASE)
_PAIR_FLAG: Final = re.compile(r"--?(?:http-?|basic-?)?auth", re.IGNORECASE)
"""Names of arguments that may take two values, a user and a password."""

REDACTED: Final = "{redacted}"
"""What stands in a record for a text that must not."""
NAME_KIND: Final = "name of this user or machine"
"""The kind of everything that `find_identity` finds."""

_COUNT_NAME: Final = re.compile(r"tokens(?![a-z])", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[+-]?[0-9][0-9_]{0,8}(?:\.[0-9]{0,6})?(?:e[+-]?[0-9]{1,3})?[kKmMgGbB]?", re.ASCII)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SWITCHES: Final = frozenset({"true", "false", "yes", "no", "on", "off", "none", "null"})
_SECRET_WORDS: Final = ("token", "tokens", "secret", "secrets", "credential", "credentials", "apikey", "auth")
_TOKEN_PARTS: Final = frozenset(
    re.findall(
        r"\S+",
        """classification dim dims drop dropout embed embedding embeddings labeling labels length level mask masking
        merging mixer mixing pooling pruning reduction selection type types""",
    )
)
"""What a model does with tokens: the value after `--token-mixer` is no secret."""
_ASSIGNED: Final = re.compile(f"(?:{SECRET_FLAG.pattern})" r"[\w.-]{0,40}[\"']?\s{0,8}[=:]\s{0,8}[^\s]", re.IGNORECASE)
_SHAPES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "private key": (("private key",), r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"),
    "GitHub token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255})",
    ),
    "GitLab token": (
        ("glpat-", "glptt-", "gldt-", "glrt-"),
        r"(?<![A-Za-z0-9])gl(?:pat|ptt|dt|rt)-[A-Za-z0-9_-]{20,255}",
    ),
    "Hugging Face token": (("hf_", "api_org_"), r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,255}"),
    "OpenAI or Anthropic key": (
        ("sk-",),
        r"(?<![A-Za-z0-9])sk-(?=[A-Za-z0-9_-]{0,255}[0-9])[A-Za-z0-9_-]{20,255}",
    ),
    "AWS key": (
        ("akia", "asia", "abia", "acca"),
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![A-Za-z0-9])",
    ),
    "Slack token": (("xox",), r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,255}"),
    "Slack web hook": (("hooks.slack.com",), r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,255}"),
    "Google key": (
        ("aiza", "ya29.", "gocspx-"),
        r"(?<![A-Za-z0-9])(?:AIza[0-9A-Za-z_-]{35}|(?:ya29\.|GOCSPX-)[0-9A-Za-z_-]{20,255})",
    ),
    "package registry token": (
        ("pypi-", "npm_"),
        r"(?<![A-Za-z0-9])(?:pypi-[A-Za-z0-9_-]{50,255}|npm_[A-Za-z0-9]{36})",
    ),
    "Stripe key": (("k_live_",), r"(?<![A-Za-z0-9])[rs]k_live_[0-9A-Za-z]{20,255}"),
    "JSON web token": (
        ("eyj",),
        r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{0,4096}",
    ),
    "signed URL": (
        ("sig=", "signature=", "credential="),
        r"(?i:[?&](?:sig|signature|x-(?:amz|goog)-(?:signature|credential))=)[^&\s\"'<>]{8,2048}",
    ),
    "credentials in a URL": (
        ("://",),
        r"[A-Za-z][A-Za-z0-9+.-]{1,20}://"
        r"(?:[^\s/@:\"'<>{}]{0,255}:[^\s/@\"'<>{}]{1,255}|[^\s/@:\"'<>{}]{20,255})@",
    ),
    "bearer token": (
        ("bearer",),
        r"\b[Bb](?i:earer)\s{1,8}(?=[A-Za-z0-9._~+/-]{0,255}[0-9])[A-Za-z0-9._~+/-]{16,255}",
    ),
    "basic authorization": (
        ("basic",),
        r"(?i:\bauthorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?basic)\s{1,8}[A-Za-z0-9+/]{12,255}={0,2}",
    ),
    "secret key file": (
        ("putty-user-key-file-", "age-secret-key-1"),
        r"PuTTY-User-Key-File-[0-9]: |AGE-SECRET-KEY-1[0-9A-Z]{50,70}",
    ),
    "cloud storage key": (
        ("accountkey=", "sharedaccesskey=", "sharedaccesssignature="),
        r"(?i:accountkey|sharedaccesskey|sharedaccesssignature)=[A-Za-z0-9+/%]{20,255}={0,2}",
    ),
    "netrc password": (
        ("machine",),
        r"\bmachine\s{1,8}[^\s\"']{1,255}\s{1,8}login\s{1,8}[^\s\"']{1,255}\s{1,8}password\s{1,8}[^\s\"']{1,255}",
    ),
    "service token": (
        (
            *("dckr_pat_", "dop_v1_", "dapi", "gsk_", "hvs.", "r8_", "shpat_", "sg.", "xai-", "lin_api_", "ntn_"),
            *("pul-", "atatt3", "sntrys_", "wandb_v1_", "rpa_", "tskey-", "glsa_", "nvapi-", "kgat_"),
        ),
        r"(?<![A-Za-z0-9_.-])(?:"
        r"dckr_pat_[A-Za-z0-9_-]{20,255}|dop_v1_[0-9a-f]{60,70}|dapi[0-9a-f]{32}(?![0-9a-f])|gsk_[A-Za-z0-9]{40,80}"
        r"|hvs\.[A-Za-z0-9_-]{24,255}|r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])|shpat_[0-9a-f]{32}"
        r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{30,64}|xai-[A-Za-z0-9]{60,100}|lin_api_[A-Za-z0-9]{32,64}"
        r"|ntn_[A-Za-z0-9]{40,60}|pul-[0-9a-f]{40}(?![0-9a-f])|ATATT3[A-Za-z0-9_=-]{60,255}|sntrys_[A-Za-z0-9+/=_-]{40,255}"
        r"|wandb_v1_[A-Za-z0-9_-]{30,255}|rpa_[A-Z0-9]{40,60}|tskey-[a-z]{2,12}-[A-Za-z0-9-]{16,80}"
        r"|glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|nvapi-[A-Za-z0-9_-]{60,80}|KGAT_[0-9a-f]{32})",
    ),
}
"""Kind to (what the text must hold in lower case, the pattern): the first is what makes long logs quick to search.

Every repetition is bounded, so that no text, however made, takes more than linear time.
"""
_SECRETS: Final = {kind: (marks, re.compile(shape)) for kind, (marks, shape) in _SHAPES.items()}

_MARKS: Final = ("token", "secret", "passw", "passphrase", "credential", "key")
_NAME_BEFORE: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}\Z")
_LINE_BEFORE: Final = re.compile(
    r"(?:\A|\n)[ \t#>-]{0,16}(?:(?:export|set|setenv|ENV|ARG)[ \t]{1,4})?[A-Za-z0-9_.-]{0,40}\Z"
)
_QUOTED: Final = re.compile(
    r"[A-Za-z0-9_.-]{0,30}(?:\\?[\"'])?\]?\s{0,8}"
    r"(?:(?::\s{0,4}[A-Za-z_][A-Za-z_.\[\] |]{0,40})?=|:|,(?:\s{0,8}(?:default|value)\s{0,4}=)?)"
    r"\s{0,8}[rbfuRBFU]{0,2}\\?[\"'](?P<value>[A-Za-z0-9+/_.=~!@#$%^&*:?-]{12,255})\\?[\"']"
)
_UNQUOTED: Final = re.compile(
    r"[A-Za-z0-9_.-]{0,30}[ \t]{0,8}[=:][ \t]{0,8}(?P<value>[A-Za-z0-9+/_=.~-]{20,255})"
    r"(?=[ \t]{0,16}(?:[#;,\r\n]|\\n|\Z))"
)
_WORDS: Final = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{3,}|[^A-Za-z0-9]|(?<![A-Za-z0-9])[0-9]{1,4}(?![A-Za-z0-9])")
_PLACE_HOLDER: Final = re.compile(
    r"(?i:your|example|dummy|placeholder|change.?me|insert|replace|fixme|todo|xxxx|\*{3}|\.{3})"
)
_PASSWORD: Final = re.compile(r"passw|passphrase", re.IGNORECASE)


def _assigned_secrets(text: str, lower: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is assigned to the name of a secret and looks like one.

    In source, settings and shells: `NAME = "…"`, `"NAME": "…"`, `f("NAME", "…")`, `NAME: str = "…"`, `export NAME=…`.
    """
    if len(lower) != len(text):  # some letters have two in lower case
        lower = "".join(char.lower() if char.isascii() else "?" for char in text)
    for mark in _MARKS:
        at = lower.find(mark)
        while at >= 0:
            found = _QUOTED.match(text, at)
            least = 10
            if found is None and _LINE_BEFORE.search(text, max(0, at - 70), at):
                found, least = _UNQUOTED.match(text, at), 12
            if found is not None:
                before = _NAME_BEFORE.search(text, max(0, at - 40), at)
                name = (before[0] if before else "") + text[at : found.start("value")]
                if _is_assigned(name, found["value"], least):
                    yield at, found.end()
            at = lower.find(mark, at + len(mark))


def _is_assigned(name: str, value: str, least: int) -> bool:
    """Return whether a value under a name is a secret: no word, path or place holder, `least` characters of no word."""
    if (
        "public" in name.lower()
        or "://" in value
        or value.startswith(("/", "./", "~", "$"))
        or _PLACE_HOLDER.search(value)
    ):
        return False
    if not (re.search("[0-9]", value) and re.search("[A-Za-z]", value)) or len(set(value)) < 6:
        return False
    if not any(is_secret_value(word, value) for word in re.findall(r"[A-Za-z0-9_.-]{3,}", name)):
        return False
    return bool(_PASSWORD.search(name)) or len(_WORDS.sub("", value)) >= least


GENERIC: Final = frozenset(
    re.findall(
        r"\S+",
        """admin administrator build builder code config data debian default docker docker-desktop ec2-user fedora
        group guest home host host1 jovyan jupyter kaggle linux local localhost localhost.localdomain login
        main mambauser model models name node node0 node1 nobody none notebook nvidia python pytorch root
        runner runneradmin sagemaker-user script server source student system tensorflow test tester torch
        train trainer
        training ubuntu unknown user users vagrant vscode work worker workspace""",
    )
)
"""Names of users and hosts that tell nobody apart and would be found everywhere."""
_FOLDERS: Final = frozenset({"c:", "export", "mnt", "opt", "private", "tmp", "usr", "var"})

_PREFIX: Final = re.compile(r"(?:-[A-Za-z](?=[/~])|(?:--?|\+{1,2}|~)?[A-Za-z_][\w.@:-]*=)(?:file://)?|file://")
_FLAG: Final = re.compile(r"--?[A-Za-z][\w.-]*")
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_EMBEDDED: Final = re.compile(
    r"(?<![\w./~*)\]-])(?:~[\w.-]*)?/(?!/|dev/)[^\s/,;:\"']+/|(?<![A-Za-z])[A-Za-z]:\\[^\s\\]"
)

_CLIMBS: Final = re.compile(r"(?:\A|(?<=[\s=:,;\"'(\[]))(?:\.\.[\\/]){1,32}[^\s.\\/]")
"""A path that leads out of the working directory and into a folder with a name."""
_PLAIN_NAME: Final = re.compile(r"(?:[A-Za-z0-9_-]{0,24}\.)*[A-Za-z0-9_-]{0,24}")
_ANY_PATH: Final = re.compile(r"(?<![\w./}…])(?:~[\w.-]*)?/(?:[^\n'\",;:()<>|]*/)?[^\s'\",;:()<>|]+")
"""A path in running text: from its first slash to the last that may belong to it, for a path may hold spaces."""
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{0,4096}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,8}[0-~]?"
)
"""Escape sequences of terminals (ECMA-48): CSI, strings up to their end, the others."""
_LAST_LINE: Final = 300


def find_secrets(text: str) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of everything in `text` that has the shape of a secret: in order, not overlapping."""
    lower = text.lower()
    hits = [
        (match.start(), -match.end(), kind)
        for kind, (marks, pattern) in _SECRETS.items()
        if any(mark in lower for mark in marks)
        for match in pattern.finditer(text)
    ]
    hits += [(start, -end, "assigned secret") for start, end in _assigned_secrets(text, lower)]
    found: list[tuple[str, int, int]] = []
    for start, minus_end, kind in sorted(hits):
        if not found or start >= found[-1][2]:
            found.append((kind, start, -minus_end))
    return found


@lru_cache(maxsize=16)
def _identity_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    parts = [
        ("(?<![A-Za-z0-9])" if name[0].isalnum() else "")
        + re.escape(name)
        + ("(?![A-Za-z0-9])" if name[-1].isalnum() else "")
        for name in sorted(names, key=len, reverse=True)
    ]
    return re.compile("|".join(parts), re.IGNORECASE)


def find_identity(text: str, names: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of every one of `names` (see `identity`) that stands in `text` as a word."""
    lower = text.lower()
    present = tuple(name for name in names if name.lower() in lower)
    if not present:
        return []
    matches = _identity_pattern(present).finditer(text)
    return [(NAME_KIND, match.start(), match.end()) for match in matches]


def identity() -> tuple[str, ...]:
    """Return what tells who and where: home folder, user, host, git name and address; nothing short or generic."""
    environ = os.environ
    names = {*_users(environ), *_hosts(environ), *_git_people(environ, Path.cwd())}
    kept = {name for name in names if len(name) >= 4 and name.lower() not in GENERIC}
    for folder in _homes(environ):
        parts = {part.lower() for part in re.split(r"[\\/]", folder) if part}
        if len(folder) >= 4 and not parts <= GENERIC | _FOLDERS:
            kept.add(folder.rstrip("\\/"))
    return tuple(sorted(kept))


@cache
def known_identity() -> tuple[str, ...]:
    """Return `identity()`, found out once in a process: it reads the settings of git."""
    return identity()


@lru_cache(maxsize=4096)
def public_text(text: str) -> str:
    """Return a text that a program happens to hold (a setting, an attribute) as it may be recorded.

    It is `REDACTED` as a whole if anything in it looks like a secret or a path from the root, or names this user or
    machine.
    """
    leads = os.path.isabs(text) or "file://" in text.lower() or _CLIMBS.search(text)  # noqa: PTH117
    hidden = leads or find_secrets(text) or _tells(text, known_identity())
    return REDACTED if hidden or not is_unicode(text) else text


def public_name(name: str) -> str:
    """Return the name of a tensor or module as it may be recorded, where it is plain each part between dots by itself.

    Parts recur in a large model, so that asking for many names costs little.
    """
    parts = ".".join(map(public_text, name.split(".")))
    if not _PLAIN_NAME.fullmatch(name) and (parts != name or public_text(name) == REDACTED):
        return REDACTED  # a path, an address or a token may itself hold dots
    return parts


def public_line(text: str) -> str:
    """Return what a program printed as it may be published: paths as base names, names and secrets redacted."""
    text = _ANY_PATH.sub(lambda match: "…/" + posixpath.basename(match[0].rstrip("/")), text)
    found = [*find_secrets(text), *find_identity(text, known_identity())]
    for _, start, end in sorted(found, key=lambda hit: hit[1], reverse=True):
        text = text[:start] + REDACTED + text[end:]
    return text


def last_line(printed: bytes, whole: bool, hidden: Iterable[str] = (), ours: str = "") -> str:
    """Return the last line that a program printed, as it may be shown and published.

    Parameters
    ----------
    printed, whole:
        The end of what it printed, and whether that is all of it: else its first line may have been cut in two, and is
        left out.
    hidden:
        Texts that must not be in it (`without`).
    ours:
        What a message of ours begins with: the last of them is returned as a whole, on one line.
    """
    text = _ESCAPES.sub("", printed.decode("utf-8", "replace"))
    lines = text.strip().splitlines()[0 if whole else 1 :]
    own = [number for number, line in enumerate(lines) if ours and line.startswith(ours)]
    last = " ".join(" ".join(lines[own[-1] :]).split()) if own else lines[-1].strip() if lines else ""
    line = public_line(without(last, hidden))
    return line if len(line) <= _LAST_LINE else line[:_LAST_LINE] + "…"


def without(text: str, hidden: Iterable[str]) -> str:
    """Return `text` with each of `hidden`, also as Python, JSON, a shell or a URL would spell it, taken out.

    A text of less than four characters is taken out where it stands as a word, for it may be part of any.
    """
    spelt = {form for secret in hidden if secret.strip() for form in _spellings(secret)}
    for form in sorted(spelt, key=len, reverse=True):
        if len(form) >= 4:
            text = text.replace(form, REDACTED)
        else:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", lambda _: REDACTED, text)
    return text


def _spellings(text: str) -> Iterator[str]:
    yield from (text, text.strip(), repr(text)[1:-1], json.dumps(text)[1:-1], shlex.quote(text))
    yield quote(text, safe="", errors="surrogateescape")


def _homes(environ: Mapping[str, str]) -> Iterator[str]:
    yield from filter(None, (environ.get("HOME"), environ.get("USERPROFILE")))
    with suppress(RuntimeError, OSError):
        home = Path.home()
        yield str(home)
        yield str(home.resolve())
    if sys.platform != "win32":
        import pwd

        with suppress(KeyError):
            yield pwd.getpwuid(os.getuid()).pw_dir


def _users(environ: Mapping[str, str]) -> Iterator[str]:
    variables = ("USER", "LOGNAME", "USERNAME", "LNAME", "SUDO_USER")
    yield from filter(None, (environ.get(name) for name in variables))
    with suppress(KeyError, OSError, ImportError):
        yield getpass.getuser()
    if sys.platform != "win32":
        import pwd

        with suppress(KeyError):
            entry = pwd.getpwuid(os.getuid())
            yield from (entry.pw_name, entry.pw_gecos.split(",")[0])


def _hosts(environ: Mapping[str, str]) -> Iterator[str]:
    variables = ("HOSTNAME", "COMPUTERNAME", "HOST", "SLURMD_NODENAME")
    for host in (platform.node(), *(environ.get(name, "") for name in variables)):
        if host:
            yield from (host, host.split(".")[0])


def _git_people(environ: Mapping[str, str], directory: Path) -> Iterator[str]:
    """Read `user.name` and `user.email` where git keeps them; git is not run: its settings can name programs."""
    for role in ("AUTHOR", "COMMITTER"):
        yield from filter(None, (environ.get(f"GIT_{role}_{what}") for what in ("NAME", "EMAIL")))
    yield from filter(None, [environ.get("EMAIL")])
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")  # noqa: PTH118
    files = [Path(config) / "git" / "config", Path(home) / ".gitconfig"]
    files += [Path(named)] if (named := environ.get("GIT_CONFIG_GLOBAL")) else []
    files += [folder / ".git" / "config" for folder in (directory, *directory.parents)]
    for file in files:
        with suppress(OSError):
            if file.is_file():
                yield from _git_user(file.read_text("utf-8", "replace")[: 2**20])


def _git_user(text: str) -> Iterator[str]:
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line.split("]")[0].strip("[ ").lower()
            line = line.partition("]")[2].strip()
        key, _, value = line.partition("=")
        if section in ("user", "author", "committer") and key.strip().lower() in ("name", "email"):
            yield re.split(r"\s[#;]", value)[0].strip().strip('"')


def redact_argv(argv: list[str], cwd: Path, names: Iterable[str] | None = None) -> tuple[Argument, ...]:
    """Return the arguments as they may be recorded (DESIGN § 2.5).

    1. Values after a secret-like name (`--token X`, `--token=X`, `token=X`), known token shapes, and text
    that is no Unicode become `redacted`, without a digest. 2. Paths inside `cwd` become `{cwd}/…` when they
    are absolute; paths elsewhere keep their base name only. 3. What still holds another absolute path or one
    of `names` (default: `identity()`) becomes `redacted`. 4. Everything else stays as it is.
    """
    known = identity() if names is None else tuple(names)
    arguments: list[Argument] = []
    flag, left = "", 0
    for text in argv:
        takes_value = left > 0 and not (text.startswith("--") and _FLAG.fullmatch(text))
        if takes_value and is_secret_value(flag, text):
            arguments.append(Argument(redacted=True))
            left -= 1
            continue
        arguments.append(_redact(text, cwd, known))
        flag = text if _FLAG.fullmatch(text) and SECRET_FLAG.search(text) else ""
        left = 0 if not flag else 2 if _PAIR_FLAG.fullmatch(flag) else 1
    return tuple(arguments)


def is_secret_value(name: str, value: str) -> bool:
    """Return whether the value of `name` is kept out; `--max-tokens 512` is a count, `--token-dim 16` a size."""
    if not SECRET_FLAG.search(name) or value.lower() in _SWITCHES:
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    number = bool(_NUMBER.fullmatch(value))
    if "pwd" in words or (not number and _MORE_SECRETS.search(name)):
        return True
    return any(_is_secret_word(word, after, number) for word, after in zip(words, [*words[1:], ""], strict=True))


def _is_secret_word(word: str, after: str, number: bool) -> bool:
    if word.startswith("passw") or word.endswith(("passwd", "password", "passphrase")):
        return True  # a number too
    if (word, after) == ("api", "key"):
        return True
    if number and (after or word.endswith("tokens")):  # `--token-dim 16`
        return False
    tells = word.endswith(_SECRET_WORDS) or word.startswith(("authoriz", "authent"))
    return tells and not (word == "token" and after in _TOKEN_PARTS)


def _redact(text: str, cwd: Path, names: tuple[str, ...]) -> Argument:
    match = _PREFIX.match(text)
    prefix = match[0] if match else ""
    value = text[len(prefix) :]
    if not is_unicode(text) or find_secrets(prefix) or find_identity(prefix, names):
        return Argument(redacted=True)
    if prefix.endswith("=") and value and is_secret_value(prefix, value):  # (1)
        return Argument(prefix=prefix, redacted=True)
    if find_secrets(text) or _assigns_secret(value):
        return Argument(prefix=prefix, redacted=True)
    path = _public_path(value, cwd)  # (2)
    if path is not None:
        hidden = not 1 <= len(path) <= 1024 or bool(find_identity(path, names))
        return Argument(prefix=prefix, redacted=True) if hidden else Argument(prefix=prefix, path=path)
    if _tells(text, names):  # (3)
        return Argument(prefix=prefix, redacted=True)
    return Argument(text=text)  # (4)


def _tells(text: str, names: tuple[str, ...]) -> bool:
    return bool(find_identity(text, names)) or any(map(_is_path, _EMBEDDED.finditer(text)))


def _is_path(match: re.Match[str]) -> bool:
    """Return whether a slash begins a path: not where it follows a place holder (`{cwd}/…`, `${dir}/…`)."""
    before = match.string[: match.start()]
    return not (before.endswith("}") and "{" in before)


def _assigns_secret(value: str) -> bool:
    return any(not _COUNT_NAME.search(match[0]) for match in _ASSIGNED.finditer(value))


def is_unicode(text: str) -> bool:
    """Return whether a record, which is UTF-8, can hold the text: a path may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _public_path(value: str, cwd: Path) -> str | None:
    """Return what may be said of a path: `{cwd}/…` or its base name; None if `value` tells no more."""
    if _WINDOWS.match(value) and os.sep == "/":
        return ntpath.basename(value.rstrip("\\/"))
    absolute = os.path.isabs(value) or value.startswith("~")  # noqa: PTH117
    climbs = ".." in re.split(r"[\\/]" if os.sep == "\\" else "/", value)
    if not (absolute or climbs) or value in ("/", "~") or value.startswith("/dev/"):
        return None
    for base in dict.fromkeys((str(cwd), str(cwd.resolve()))):
        if base == os.sep:
            continue  # everything lies in it, so it hides nothing
        whole = os.path.normpath(os.path.join(base, value))  # noqa: PTH118
        if whole == base:
            return "{cwd}"
        if whole.startswith(base.rstrip(os.sep) + os.sep) and not value.startswith("~"):
            return "{cwd}/" + Path(whole).relative_to(base).as_posix()
    base_name = posixpath.basename(os.path.normpath(value).replace(os.sep, "/"))
    return None if base_name == ".." else base_name
