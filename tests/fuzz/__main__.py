"""Fuzzes the targets with coverage feedback: `make fuzz SECONDS=600`, or `python -m tests.fuzz --help`.

One target after another, each in a process of its own under limits of memory and of time for one input. What is found
is written to `build/fuzz/found/`, and becomes a test when it is copied to `tests/fuzz/cases/TARGET/`, named after the
fault. The corpus grows in `build/fuzz/corpus/`. Needs atheris (`pip install atheris`; Linux, and the Pythons that it
has wheels for).
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "build" / "fuzz"
MEMORY_MIB = 1024
SECONDS_FOR_ONE = 20
STATS = re.compile(r"stat::number_of_executed_units: (\d+)")
PROGRESS = re.compile(r"^#\d+\s.*?cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)", re.MULTILINE)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="which ones; all without a name")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together (default: 600)")
    parser.add_argument("--seed", type=int, default=1, help="for the fuzzer's choices; the time decides when it ends")
    parser.add_argument("--one", action="store_true", help="fuzz one target in this process")
    options = parser.parse_args()
    if options.one:
        _fuzz(options.targets[0], options.seconds, options.seed)
    else:
        sys.exit(_all(options.targets, options.seconds, options.seed))


def _all(names: list[str], seconds: int, seed: int) -> int:
    from tests.fuzz.material import make_runs
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(names) - TARGETS.keys())
    if unknown:
        sys.exit(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    make_runs(OUT / "runs")
    chosen = names or list(TARGETS)
    share = max(1, seconds // len(chosen))
    failed = [name for name in chosen if not _one(name, share, seed)]
    print(f"found something: {', '.join(failed)}; see {OUT / 'found'}" if failed else "nothing found", flush=True)
    return 1 if failed else 0


def _one(name: str, seconds: int, seed: int) -> bool:
    """Fuzz one target in a process of its own; print what it did; return whether it found nothing."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--one", "--seconds", str(seconds), "--seed", str(seed)]
    began = time.monotonic()
    log = OUT / f"{name}.log"
    with log.open("w", encoding="utf-8", errors="replace") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    took = time.monotonic() - began
    print(f"{name:<10} {_summary(log.read_text(encoding='utf-8', errors='replace'))}, {took:.0f} s", flush=True)
    return code == 0


def _summary(text: str) -> str:
    executed = STATS.search(text)
    progress = PROGRESS.findall(text)
    if not progress:
        return "did not start"
    coverage, features, corpus, size = progress[-1]
    count = executed[1] if executed else "an unknown number of"
    return f"{count} executions, coverage {coverage} edges, {features} features, corpus {corpus} inputs ({size})"


def _fuzz(name: str, seconds: int, seed: int) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["trainmem_audit", "rfc8785"]):
        from tests.fuzz.material import load, make_runs
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    material = load(*make_runs(OUT / "runs"))
    corpus, found = OUT / "corpus" / name, OUT / "found" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    cases = [path.read_bytes() for path in sorted((HERE / "cases" / name).glob("*"))]
    for number, data in enumerate((*target.seeds(material), *cases)):
        (corpus / f"seed-{number}").write_bytes(data)
    words = OUT / "words.txt"
    words.write_text("".join(f'"{word}"\n' for word in sorted(_words())))
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={max(target.longest, *(path.stat().st_size for path in corpus.iterdir()))}",
            f"-timeout={SECONDS_FOR_ONE}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-artifact_prefix={found}/",
            f"-dict={words}",
            f"-seed={seed}",
            "-print_final_stats=1",
            str(corpus),
        ],
        lambda data: target.run(material, data),
    )
    atheris.Fuzz()


def _words() -> Iterator[str]:
    """Yield what the formats are made of: names of members and kinds of lines, marks of zips and of Unicode."""
    from trainmem_audit.documents import findings, manifest, steplog

    for module in (findings, manifest, steplog):
        for name in module.__all__:
            fields = getattr(getattr(module, name), "model_fields", {})
            yield from (f'\\"{field.alias or key}\\":' for key, field in fields.items())
    yield from (f'\\"t\\":\\"{kind}\\"' for kind in steplog.LINE_TYPES)
    yield from ("PK\\x03\\x04", "PK\\x01\\x02", "PK\\x05\\x06", "PK\\x06\\x06", "PK\\x06\\x07", "\\x75\\x70")
    yield from ("\\xe2\\x80\\xae", "\\xef\\xbb\\xbf", "\\xed\\xa0\\x80", "\\x1b[2J", "ssh-ed25519 ", "{cwd}/", "\\x0a")


if __name__ == "__main__":
    main()
