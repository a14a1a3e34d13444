"""What the code of a run reads that no record holds: clock, process id, entropy, threads, network and the like.

Read from the syntax tree alone; nothing is imported or run. It explains a replay that does not reproduce itself, and
decides nothing: code that prints the time of day reads the clock too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

__all__ = ["reads_from_outside"]

_CLOCK = "the clock"
_ENTROPY = "entropy of the operating system"
_READS = {
    **dict.fromkeys(
        (
            *(
                f"time.{name}{unit}"
                for name in ("time", "perf_counter", "monotonic", "process_time")
                for unit in ("", "_ns")
            ),
            *(f"time.{name}" for name in ("localtime", "gmtime", "strftime", "ctime")),
            *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
            "datetime.date.today",
        ),
        _CLOCK,
    ),
    **dict.fromkeys(
        ("os.urandom", "os.getrandom", "uuid.uuid1", "uuid.uuid4", "random.SystemRandom", "secrets"), _ENTROPY
    ),
    **dict.fromkeys(("os.getpid", "os.getppid"), "the process id"),
    **dict.fromkeys(("os.getenv", "os.environ"), "environment variables"),
    **dict.fromkeys(("os.listdir", "os.scandir", "os.walk", "glob"), "directories, in the order of the file system"),
    **dict.fromkeys(("threading", "concurrent.futures", "_thread"), "threads, in the order in which they get to run"),
    **dict.fromkeys(("subprocess", "os.system", "os.popen"), "other programs"),
    **dict.fromkeys(("socket", "urllib", "http", "requests", "httpx", "aiohttp"), "the network"),
    **dict.fromkeys(("id", "builtins.id"), "addresses of objects"),
    **dict.fromkeys(("input", "sys.stdin"), "the keyboard"),
    **dict.fromkeys(
        ("os.getloadavg", "psutil", "os.cpu_count", "os.sched_getaffinity"), "the machine's load or processors"
    ),
}
_METHODS = {
    "iterdir": "directories, in the order of the file system",
    "rglob": "directories, in the order of the file system",
}
_MOST = 8


def reads_from_outside(files: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """Return what the code reads, each with its first place: `the clock ({cwd}/train.py:7 time.time)`.

    Parameters
    ----------
    files:
        Names and contents; what does not parse is left out.
    """
    found: dict[str, str] = {}
    for name, data in files:
        try:
            tree = ast.parse(data)
            for line, called, what in _reads(tree):
                found.setdefault(what, f"{what} ({name}:{line} {called})")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return tuple(found.values())[:_MOST]


def _reads(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            what = _what(called)
            if what is None and isinstance(node.func, ast.Attribute):
                what = _METHODS.get(node.func.attr)
            if what is not None:
                yield node.lineno, called, what
        elif isinstance(node, ast.Subscript) and _dotted(node.value, names) == "os.environ":
            yield node.lineno, "os.environ", _READS["os.environ"]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(names.get(node.id, node.id if node.id in ("id", "input") else f"?{node.id}"))
    return ".".join(reversed(parts))


def _what(called: str) -> str | None:
    """Return what the innermost known prefix of a dotted name reads: `socket.create_connection` by `socket`."""
    while called:
        if called in _READS:
            return _READS[called]
        called = called.rpartition(".")[0]
    return None
