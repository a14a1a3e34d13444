"""Files that are swapped between the moment they are checked and the moment they are used: the second never counts."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.fuzz.material import AUTHOR, Files, author_signs, payload_of, relinked, signed
from tests.logs import FakeRun, MemoryReader
from tests.tools import Run, examined
from tests.trainings import statement_of
from trainmem_audit import cli, packing
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.divergence import Comparison, groups
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.envelope import parse_envelope
from trainmem_audit.errors import FormatError, ReplayError, UsageError
from trainmem_audit.replaying import ReplayOptions, replay
from trainmem_audit.replaying.scratch import build_scratch
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import read_lines, read_on, tensor_lookup
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE


class SwappingReader(MemoryReader):
    """A run whose files become others after they were opened so many times."""

    def __init__(self, files: Files, later: Files, after: int = 1) -> None:
        super().__init__(files)
        self.later = later
        self.after = after
        self.opened: dict[str, int] = {}

    def open(self, name: str) -> BinaryIO:
        self.opened[name] = self.opened.get(name, 0) + 1
        swapped = self.opened[name] > self.after and name in self.later
        return io.BytesIO(self.later[name] if swapped else self.files[name])


def files_of(run: FakeRun) -> Files:
    return author_signs({STEP_FILE: run.log(), TENSOR_FILE: run.frames(), ORDER_FILE: run.order()})


RUN = files_of(FakeRun(4))
OTHER = files_of(FakeRun(4).change(2, "loss"))
"""Two runs with equal names, shapes, samples and start, and another loss in one step."""


@pytest.mark.parametrize("name", [STEP_FILE, TENSOR_FILE, ORDER_FILE])
def test_a_file_swapped_after_its_digest_was_checked_is_found(name: str) -> None:
    later = {STEP_FILE: OTHER[STEP_FILE], TENSOR_FILE: RUN[TENSOR_FILE][:-1] + b"\0", ORDER_FILE: bytes(96)}
    reader = SwappingReader(RUN, {name: later[name]})
    found = examined(reader).verification
    assert reader.opened[name] == 2  # once for the digest, once for the content
    assert (found.bytes, found.record, found.exit_code) == ("intact", "inconsistent", 1)
    assert any(finding.where.startswith((name, "statement")) for finding in found.findings)


def test_the_log_that_is_replayed_is_the_signed_one_to_its_end() -> None:
    signed_log = Statement.parse(payload_of(RUN), "x").predicate.step_logs[0]
    assert len(list(read_lines(MemoryReader(RUN), signed_log))) == signed_log.count
    lines = read_lines(MemoryReader(OTHER), signed_log)
    for _ in range(5):
        next(lines)  # its beginning looks well
    with pytest.raises(FormatError, match="exchanged"):
        read_on(lines)
    shortened = RUN | {STEP_FILE: b"".join(RUN[STEP_FILE].splitlines(keepends=True)[:-1])}
    with pytest.raises(FormatError, match="exchanged"):
        read_on(read_lines(MemoryReader(shortened), signed_log))


@pytest.mark.parametrize("steps", [None, 2])
def test_a_log_swapped_before_the_replay_decides_nothing(run: Run, steps: int | None) -> None:
    """It tells of the same run up to its last line: only the signed root can tell."""
    statement = statement_of(run.path)
    lines = run.lines()
    end = json.loads(lines[-1])
    end["notRecorded"] = ["something"]
    run.write(STEP_FILE, relinked(b"".join([*lines[:-1], canonical_bytes(end) + b"\n"])))
    with DirectoryReader(run.path) as reader:
        options = ReplayOptions(consent=lambda _: True, secret=lambda _: "", sizes=False, steps=steps)
        found = replay(reader, statement, options)
    assert (found.outcome, found.difference) == ("inconclusive", None)
    assert "exchanged" in found.reason


def test_tensor_digests_that_do_not_give_the_components_digest_name_no_tensor() -> None:
    """A file beside the log is no proof: what it says is held against the log, in `diff` too."""
    left, right = FakeRun(4), FakeRun(4).change(2, "model.params:fc.bias")

    def blamed(frames: bytes) -> tuple[bool, list[str]]:
        lookups = [tensor_lookup(MemoryReader({TENSOR_FILE: data})) for data in (left.frames(), frames)]
        comparison = Comparison(*lookups)
        others = groups(right.parsed())
        for group in groups(left.parsed()):
            if (found := comparison.feed(group, next(others))) is not None:
                component = next(item for item in found.components if item.component == "model.params")
                return component.tensors_known, [tensor.name for tensor in component.tensors]
        raise AssertionError("no difference")

    assert blamed(right.frames()) == (True, ["fc.bias"])
    made_up = FakeRun(4).change(2, "model.params:fc.weight").frames()
    assert blamed(made_up) == (False, [])


def call(arguments: list[str | Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["trainmem-audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def swapping(monkeypatch: pytest.MonkeyPatch, name: str, swap: Callable[[], object], after: int = 1) -> list[str]:
    """Call `swap` when a file of a directory has been opened so many times; return the names opened so far."""
    opened: list[str] = []
    plain = DirectoryReader.open

    def opening(reader: DirectoryReader, wanted: str) -> BinaryIO:
        file = plain(reader, wanted)
        opened.append(wanted)
        if wanted == name and opened.count(name) == after:
            swap()
        return file

    monkeypatch.setattr(DirectoryReader, "open", opening)
    return opened


@pytest.mark.usefixtures("home")
def test_show_prints_the_statement_whose_signature_it_checked(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statement = json.loads(payload_of({"run.json": run.read("run.json")}))
    statement["predicate"]["run"]["id"] = "e" * 32
    forged = signed(canonical_bytes(statement))["run.json"]

    def swap() -> None:
        (run.path / "run.json").unlink()
        run.write("run.json", forged)

    opened = swapping(monkeypatch, "run.json", swap)
    assert call(["show", run.path], monkeypatch) == 0
    assert opened.count("run.json") == 1
    assert "e" * 32 not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run.json", "signer.pub", "source/train.py", STEP_FILE])
def test_a_pack_holds_what_was_searched_for_secrets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    search = packing.find_in_run

    def searched(reader: Any, files: tuple[str, ...]) -> Any:
        found = search(reader, files)
        run.write(name, run.read(name) + b"# AKIA")
        return found

    monkeypatch.setattr(packing, "find_in_run", searched)
    with pytest.raises(FormatError) as caught:
        packing.pack(run.path, tmp_path / "run.zip", allow_identity=True)
    assert caught.value.where.endswith(name)
    assert not (tmp_path / "run.zip").exists()


def test_code_swapped_after_verification_does_not_run(run: Run, tmp_path: Path) -> None:
    """The scratch tree is built from bytes that are hashed when they are read."""
    manifest = statement_of(run.path).predicate
    run.write("source/train.py", b"import os\nos.system('touch swapped')\n")
    with DirectoryReader(run.path) as reader, pytest.raises(UsageError, match="not the one that was recorded"):
        build_scratch(
            tmp_path / "root", reader, manifest, source=None, data=(), allow_changed=False, secret=lambda _: ""
        )


def test_an_input_swapped_while_it_is_copied_does_not_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_bytes(b"1\n")
    digest = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
    item = {"path": "{cwd}/x.csv", "sha256": digest, "bytes": 2}
    signed_manifest = statement_of(run.path).predicate
    manifest = type(signed_manifest).model_validate_json(
        canonical_bytes(signed_manifest.to_json() | {"inputs": [item]})
    )
    copy = shutil.copyfile

    def swapped(source: Any, target: Any) -> Any:
        Path(source).write_bytes(b"2\n")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", swapped)
    with DirectoryReader(run.path) as reader, pytest.raises(ReplayError, match="changed while it was copied"):
        build_scratch(
            tmp_path / "root", reader, manifest, source=None, data=(tmp_path / "data",), allow_changed=False,
            secret=lambda _: "",
        )  # fmt: skip


def test_a_folder_swapped_for_a_link_is_not_entered(run: Run, tmp_path: Path) -> None:
    with DirectoryReader(run.path) as reader:
        (run.path / "source").rename(tmp_path / "elsewhere")
        (run.path / "source").symlink_to(tmp_path / "elsewhere")
        found = examined(reader).verification
    assert (found.findings[0].code, found.exit_code) == ("FILE-UNREADABLE", 1)


def test_the_key_of_the_tests_signs(tmp_path: Path) -> None:
    """The runs here are good ones before anything is swapped."""
    for files in (RUN, OTHER):
        found = examined(MemoryReader(files)).verification
        assert (found.exit_code, found.signature.keyid) == (0, AUTHOR.public.keyid)
    assert parse_envelope(RUN["run.json"], "x").payload != parse_envelope(OTHER["run.json"], "x").payload
