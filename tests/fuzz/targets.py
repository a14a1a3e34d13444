"""What is fuzzed, each a function of bytes: it returns, or the fuzzer has found something.

Found is: an exception other than the errors that are raised on purpose (`TrainmemAuditError`); a *false accept*, which
is a record that passes although it is not what was signed; or text for a reader's screen that could move the cursor.
A hang and too much memory are found by whoever runs the targets (`__main__` sets the limits).
"""

from __future__ import annotations

import io
import json
import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import deserialize

from tests import builders
from tests.fuzz.material import (
    AUTHOR,
    SNAPSHOT,
    TRUST,
    VALUES,
    Files,
    Material,
    author_signs,
    lines_of,
    payload_of,
    relinked,
    signed,
    statement_for,
    verified,
    zipped,
)
from tests.fuzz.mutations import Choices, mutated
from tests.logs import MemoryReader
from trainmem_audit.assemble import recover
from trainmem_audit.canonical import CHAIN_START, canonical_bytes, chain_digest, loads_strict, sha256_hex
from trainmem_audit.checks import items_of, load_checklist
from trainmem_audit.compliance import Terms, judge, parse_waivers, record_of
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.findings import Verification
from trainmem_audit.documents.manifest import UNLISTED, Statement, is_listed
from trainmem_audit.documents.steplog import Line, Step
from trainmem_audit.envelope import form_findings, parse_envelope, verifying_signatures
from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.formats import COMPLIANCE, VERIFICATION
from trainmem_audit.gathering import Gatherer
from trainmem_audit.keys import parse_public_keys
from trainmem_audit.lineforms import FittingStep
from trainmem_audit.packing import pack
from trainmem_audit.pathlength import SnapshotStates, measure_weights
from trainmem_audit.report import SeriesCollector, render_html, render_markdown
from trainmem_audit.rundir import ZipReader, check_name, open_run
from trainmem_audit.runs import around, compare
from trainmem_audit.screen import difference_lines
from trainmem_audit.show import statement_text
from trainmem_audit.snapshots import Entry, SnapshotFile, SnapshotValues, header_bytes, values_bytes
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader
from trainmem_audit.text import safe_text
from trainmem_audit.trust import read_trust
from trainmem_audit.verify import Policy, examine
from trainmem_audit.versions import migrate

__all__ = ["TARGETS", "FalseAcceptError", "Target", "UnsafeTextError"]

FREE = ("producer", "declared", "notRecorded", "checklistVersion")
"""Members of the predicate that only the author can know, so that no log contradicts them."""
CONTROLS = {*map(chr, range(32)), *map(chr, range(127, 160)), *"\u200b\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2069"}


class FalseAcceptError(AssertionError):
    """Something passed that must not."""


class UnsafeTextError(AssertionError):
    """Something was printed as the record holds it."""


@dataclass(frozen=True)
class Target:
    """A function to be fuzzed, and what to start from."""

    name: str
    seeds: Callable[[Material], Iterable[bytes]]
    run: Callable[[Material, bytes], None]
    longest: int = 2**16


def printed(text: str) -> None:
    """Demand that text is fit for a terminal: lines of ink."""
    wrong = CONTROLS & set(text) - {"\n"}
    if wrong:
        raise UnsafeTextError(f"printed {sorted(wrong)!a}")


def shown(verification: Verification) -> None:
    """Print a verification in every format."""
    for form in VERIFICATION.values():
        printed(form(verification))


def must_fail(files: Files, why: str) -> None:
    """Demand that a run does not pass."""
    found = verified(files).verification
    if found.exit_code == 0:
        raise FalseAcceptError(why)
    shown(found)


def untouched(material: Material, files: Files) -> bool:
    """Tell whether the files that the signature vouches for, itself included, are those of a run.

    The key may be absent: a reviewer who trusts it has it already. Openings may be taken out, and are checked apart.
    """

    def named(held: Files, *beside: str) -> Files:
        return {name: data for name, data in held.items() if is_listed(name) or name in ("run.json", *beside)}

    given = named(files, "signer.pub")
    return any(given in (named(run, "signer.pub"), named(run)) for run in material.runs)


# Sign, mutate, verify ---------------------------------------------------------------------------------------------


def _mutation_seeds(material: Material) -> Iterator[bytes]:
    for operation in range(16):
        for name in range(7):
            yield bytes([name, operation, 100, 0, 3, 1])


def mutation(material: Material, data: bytes) -> None:
    """*Sign, mutate, verify*: no change of a named file passes, and what is unchanged does."""
    choices = Choices(data)
    at = choices.number(len(material.runs))
    original, other = material.runs[at], material.runs[at - 1]
    files = mutated(original, other, choices.rest())
    found = verified(files).verification if "run.json" in files else None
    if untouched(material, files):  # whole runs exchanged are runs
        assert found is not None, "a run without its statement"
        beside = [files.get(name) == original.get(name) for name in UNLISTED - {"run.json", "signer.pub"}]
        assert found.exit_code == 0 or not all(beside), f"a run that was not touched fails: {found.findings}"
    elif found is not None and found.exit_code == 0:
        changed = {name for name in files.keys() | original.keys() if files.get(name) != original.get(name)}
        raise FalseAcceptError(f"passed although {sorted(changed)} changed")
    if found is not None:
        shown(found)


# Envelope and keys ------------------------------------------------------------------------------------------------


def _envelope_seeds(material: Material) -> Iterator[bytes]:
    small = signed(b'{"a":1}')["run.json"]
    yield small
    members = json.loads(small)
    signature = members["signatures"][0]
    for spelling in (
        members | {"payload": members["payload"].rstrip("=")},
        members | {"signatures": [signature, signature]},
        members | {"signatures": [signature, {"keyid": "", "sig": "AAAA"}]},
        members | {"extra": {"key": AUTHOR.public.raw.hex()}},
        members | {"signatures": [signature | {"keyid": ""}]},
    ):
        yield json.dumps(spelling).encode()
    yield material.runs[-1]["run.json"]


def envelope(material: Material, data: bytes) -> None:
    """Only the bytes that the author made verify without a finding, whatever surrounds the payload."""
    sealed = {payload: signed(payload)["run.json"] for payload in (b'{"a":1}', payload_of(material.runs[-1]))}
    try:
        parsed = parse_envelope(data, "run.json")
    except TrainmemAuditError as error:
        printed(str(error))
        return
    findings = form_findings(data, parsed, (AUTHOR.public,))
    if verifying_signatures(parsed, AUTHOR.public) and parsed.payload not in sealed:
        raise FalseAcceptError("a signature over a payload that nobody signed")
    if not findings and data != sealed.get(parsed.payload):
        raise FalseAcceptError("an envelope in a form of its own, without a finding")
    must_pass = data == sealed.get(parsed.payload)
    assert not (must_pass and findings), findings
    if data != material.runs[-1]["run.json"]:
        must_fail(material.runs[-1] | {"run.json": data}, "another run.json")


def _key_seeds(material: Material) -> Iterator[bytes]:
    line = AUTHOR.public.openssh_text()
    yield line.encode() + b"\n"
    yield f"ann@example.org {line} a comment\n".encode()
    yield f'"a b",!c* namespaces="trainmem-audit",valid-before="20990101Z" {line}\n# comment\n'.encode()
    yield b"x cert-authority " + line.encode()


def keys(material: Material, data: bytes) -> None:
    """A `signer.pub` or a trust file is read or refused; another `signer.pub` never passes for the author's."""
    try:
        parse_public_keys(data, "signer.pub")
    except TrainmemAuditError as error:
        printed(str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "allowed_signers"
        path.write_bytes(data)
        try:
            trust = read_trust(path)
        except TrainmemAuditError as error:
            printed(str(error))
        else:
            for key in dict.fromkeys(trust.keys()):
                trust.principals(key)
    if data != AUTHOR.public.openssh_line():
        must_fail(material.runs[-1] | {"signer.pub": data}, "another signer.pub")


# Statement --------------------------------------------------------------------------------------------------------


def _statement_seeds(material: Material) -> Iterator[bytes]:
    made_up = payload_of(material.runs[-1])
    yield made_up
    value = json.loads(made_up)
    yield canonical_bytes(value | {"subject": []})
    yield canonical_bytes(value | {"predicateType": "https://example.org/x"})
    value["predicate"]["declared"] = {"verdict": "verified"}
    yield canonical_bytes(value)


def statement(material: Material, data: bytes) -> None:
    """Whatever the author signs is a finding or what the log says, and is shown without doing anything."""
    _signed_statement(material.runs[-1], data)
    try:
        canonical = canonical_bytes(loads_strict(data, "statement"))
    except TrainmemAuditError as error:
        printed(str(error))
        return
    if canonical != data:  # what the fuzzer spelt in its own way, in the way that is looked at
        _signed_statement(material.runs[-1], canonical)


def _signed_statement(files: Files, payload: bytes) -> None:
    examination = verified(files | signed(payload))
    shown(examination.verification)
    if examination.verification.exit_code == 0 and _bound(payload) != _bound(payload_of(files)):
        raise FalseAcceptError("a statement that says something else than its log")
    try:
        parsed: Statement = Statement.parse(payload, "statement")
    except TrainmemAuditError as error:
        printed(str(error))
        return
    rendered(parsed, examination.verification)
    around(parsed.predicate, Statement.parse(payload_of(files), "statement").predicate)


def _bound(payload: bytes) -> Any:
    value = json.loads(payload)
    for name in FREE:
        value["predicate"].pop(name, None)
    return value


def rendered(parsed: Statement, verification: Verification, series: SeriesCollector | None = None) -> None:
    """Show a statement and its report in every form."""
    collected = (series or SeriesCollector()).series()
    printed(statement_text(parsed, verification.signature))
    page = render_html(parsed, verification, collected)
    printed(page)
    assert "<script" not in page.lower(), "a script in the report"
    printed(render_markdown(parsed, verification, collected))


# Log and side files -----------------------------------------------------------------------------------------------


def _log_seeds(material: Material) -> Iterator[bytes]:
    logs = material.logs()
    yield from (logs[-1], logs[0])
    lines = list(lines_of(logs[-1:]))
    yield b"".join(lines[: len(lines) // 2])
    yield b"".join([*lines, *lines])
    yield from (b"".join([lines[0], line]) for line in lines[1:])


def log(material: Material, data: bytes) -> None:
    """Another log beside the signed statement never passes; one that its author chains and signs anew does no harm."""
    original = material.runs[-1]
    if data != original[STEP_FILE]:
        must_fail(original | {STEP_FILE: data}, "another log")
    chained = relinked(data)
    files = original | {STEP_FILE: chained}
    try:
        files = author_signs(files)
    except TrainmemAuditError as error:
        printed(str(error))
    collector = SeriesCollector()
    examination = verified(files, collector.add)
    shown(examination.verification)
    if examination.statement is not None and examination.log is not None:
        rendered(examination.statement, examination.verification, collector)
    for left, right in ((files, original), (original, files)):
        try:
            difference, _ = compare(MemoryReader(left), MemoryReader(right))
        except TrainmemAuditError as error:
            printed(str(error))
        else:
            printed("\n".join(difference_lines(difference)) if difference else "")


class Parsing(LogReader):
    """A reader of logs that parses every line, also one that is like a line before it."""

    def check(self, line: bytes) -> Line | FittingStep:
        return self._check_whole(line)


def _form_seeds(material: Material) -> Iterator[bytes]:
    lines = list(lines_of(material.logs()[-1:]))
    yield b"".join(lines)
    step = lines[-2]
    yield from (b"".join([*lines[:-2], step.replace(b'"i":2', b'"i":%b' % i)]) for i in (b"02", b"2.0", b"-2", b" 2"))


def forms(material: Material, data: bytes) -> None:
    """A step line that fits the form of one before it is judged as if it were parsed; the chain is made good first."""
    readers = (LogReader(), Parsing())
    head = CHAIN_START
    for line in data.split(b"\n"):
        body = b"{" + line[76:]
        spelt = line
        if line.startswith(b'{"chain":"') and line[74:76] == b'",':
            spelt = b'{"chain":"' + chain_digest(head, body).hex().encode() + line[74:]
        found = [_read(reader, spelt) for reader in readers]
        if found[0] != found[1]:
            raise FalseAcceptError("a line that two readers judge otherwise")
        if isinstance(found[0], str):
            return
        head = chain_digest(head, body)
    assert readers[0].finish() == readers[1].finish()


def _read(reader: LogReader, line: bytes) -> Line | str:
    try:
        return reader.read(line)
    except TrainmemAuditError as error:
        return str(error)


def _side_seeds(material: Material) -> Iterator[bytes]:
    run = material.runs[-1]
    yield b"\0" + run[TENSOR_FILE]
    yield b"\1" + run[ORDER_FILE]
    yield b"\0" + struct.pack("<QI", 0, 2**32 - 1)


def side(material: Material, data: bytes) -> None:
    """Side files that the author made up and signed pass only where they say what the log says."""
    original = material.runs[-1]
    name = ORDER_FILE if data[:1] == b"\1" else TENSOR_FILE
    content = data[1:]
    files = original | {name: content}
    files |= signed(statement_for(files))
    found = verified(files).verification
    shown(found)
    if found.exit_code == 0 and not _side_file_holds(name, content, original[name]):
        raise FalseAcceptError(f"{name} does not say what the log says")
    compare(MemoryReader(files), MemoryReader(material.runs[0]))


def _side_file_holds(name: str, content: bytes, original: bytes) -> bool:
    if name == ORDER_FILE:
        return content == original
    frames = set(_frames(original))
    return all(frame in frames for frame in _frames(content))


def _frames(data: bytes) -> Iterator[bytes]:
    while data:
        _, count = struct.unpack_from("<QI", data)
        yield data[: 12 + 32 * count]
        data = data[12 + 32 * count :]


# Snapshots --------------------------------------------------------------------------------------------------------


def _snapshot_seeds(material: Material) -> Iterator[bytes]:
    yield material.first[SNAPSHOT]
    entries = [Entry("a", "b", "float32", (2,), 8), Entry("a", "c", "bool", (), 1), Entry("d", "e", "int64", (0, 3), 0)]
    yield header_bytes(entries, 0) + bytes(9)
    yield header_bytes([], 0)


def snapshot(material: Material, data: bytes) -> None:
    """A snapshot is refused, or read as its own library reads it; signed anew it passes only with the same tensors."""
    try:
        held = SnapshotFile(lambda: io.BytesIO(data), len(data), "a snapshot")
    except TrainmemAuditError as error:
        printed(str(error))
        return
    theirs = _tensors(data)
    for name, (_, _, content) in theirs.items():
        component, mark, rest = name.partition("/")
        if mark and held.tensor(component, rest) != content:
            raise FalseAcceptError(f"a tensor that another reader reads otherwise: {name!a}")
    files = material.first | {SNAPSHOT: data}
    value = json.loads(payload_of(files))
    for subject in value["subject"]:
        subject["digest"]["sha256"] = sha256_hex(files[subject["name"]])
    found = verified(files | signed(canonical_bytes(value))).verification
    shown(found)
    if found.exit_code == 0 and theirs != _tensors(material.first[SNAPSHOT]):
        raise FalseAcceptError("a snapshot that does not hold what the log says")
    must_fail_unless_same(material, files)


def _value_seeds(material: Material) -> Iterator[bytes]:
    yield material.first[VALUES]
    yield values_bytes(2, {"optimizer.hyper": {"groups": [{"lr": "0x1.0p-3"}]}}, {})


def values(material: Material, data: bytes) -> None:
    """What is no tensor in a snapshot is refused, or is to the byte what the log says; signed anew it is no other."""
    original = material.first[VALUES]
    reader, states = LogReader(), []
    for line in lines_of([material.first[STEP_FILE]]):
        read = reader.read(line.removesuffix(b"\n"))
        states += [read] if isinstance(read, Step) else []
    try:
        SnapshotValues(data, "values").check(states[2], reader.summary.components)
    except TrainmemAuditError as error:
        printed(str(error))
    else:
        if data != original:
            raise FalseAcceptError("values of a snapshot that are not those of the log")
    files = material.first | {VALUES: data}
    value = json.loads(payload_of(files))
    for subject in value["subject"]:
        subject["digest"]["sha256"] = sha256_hex(files[subject["name"]])
    found = verified(files | signed(canonical_bytes(value))).verification
    shown(found)
    if found.exit_code == 0 and data != original:
        raise FalseAcceptError("a record with other values in its snapshot")


def path(material: Material, data: bytes) -> None:
    """The path of the weights is measured on what has the digests of the log, whatever the file is; nothing raises."""
    states, reader = SnapshotStates(), LogReader()
    for line in lines_of([material.first[STEP_FILE]]):
        states.take(reader.read(line.removesuffix(b"\n")))
    files = material.first | {SNAPSHOT: data}
    weights = measure_weights(MemoryReader(files), states)
    assert weights is not None
    for item in weights.paths:
        printed(safe_text(item.problem))
        if not item.problem and not (math.isfinite(item.length) and item.first_norm >= 0):
            raise FalseAcceptError("a path that is no number, and no problem")
    problem = weights.problem or any(item.problem for item in weights.paths)
    if not problem and _weights_of(data) != _weights_of(material.first[SNAPSHOT]):
        raise FalseAcceptError("a path through weights that the log does not know")


def _weights_of(data: bytes) -> dict[str, Any]:
    return {name: item for name, item in _tensors(data).items() if name.startswith("model.params/")}


def _tensors(data: bytes) -> dict[str, Any]:
    """Return what the library of the format reads: dtype, shape and bytes of each tensor by its name."""
    found = deserialize(data)  # type: ignore[no-untyped-call]
    return {name: (item["dtype"], item["shape"], bytes(item["data"])) for name, item in found}


def must_fail_unless_same(material: Material, files: Files) -> None:
    """Demand that files with a statement that was signed for others do not pass."""
    if not untouched(material, files):
        must_fail(files, "files that were not signed")


# Zip --------------------------------------------------------------------------------------------------------------


def _zip_seeds(material: Material) -> Iterator[bytes]:
    run = material.runs[-1]
    small = {"run.json": b"{}", "source/a.py": b"print()\n" * 9}
    yield from (zipped(small), zipped(small, zipfile.ZIP_STORED), zipped(small, top="run/"), zipped({}))
    yield from (zipped(run), zipped(run, zipfile.ZIP_STORED, "run/"))


def archive(material: Material, data: bytes) -> None:
    """A zip is refused or holds, to every reader of zips, the same files; no other files than the signed ones pass."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zip"
        path.write_bytes(data)
        try:
            if not zipfile.is_zipfile(path):
                return
            with ZipReader(path) as reader:
                files = {name: reader.read(name, 2**24) for name in reader.names()}
        except TrainmemAuditError as error:
            printed(str(error))
            return
    for name, content in files.items():
        check_name(name, "zip")
        assert reader.size(name) == len(content)
    try:
        streamed = dict(_streamed(data))
    except NotImplementedError:
        return
    top = {name.split("/", 1)[0] for name in streamed}
    inner = {name.partition("/")[2]: content for name, content in streamed.items()} if len(top) == 1 else {}
    if files not in (streamed, inner):
        raise FalseAcceptError("a zip that holds other files for whoever reads it from its beginning")
    if "run.json" in files and not untouched(material, files):
        must_fail(files, "a zip of something else")


def _streamed(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a zip as a reader does that looks at the entries alone and not at the directory."""
    at = 0
    while data[at : at + 4] == b"PK\3\4":
        flags, method = struct.unpack_from("<HH", data, at + 6)
        packed, _, name_length, extra_length = struct.unpack_from("<IIHH", data, at + 18)
        start = at + 30 + name_length + extra_length
        name = data[at + 30 : at + 30 + name_length].decode("utf-8" if flags & 0x800 else "cp437")
        if flags & 8 and method == 0:
            raise NotImplementedError("no reader of streams can tell where this entry ends")
        content, end = data[start : start + packed], start + packed
        if method == 8:
            inflate = zlib.decompressobj(-15)
            content = inflate.decompress(data[start:] if flags & 8 else content) + inflate.flush()
            end = len(data) - len(inflate.unused_data) if flags & 8 else end
        if flags & 8:
            end += 12 + 4 * (data[end : end + 4] == b"PK\7\x08")
        if not name.endswith("/"):
            yield name, content
        at = end


# On the disk ------------------------------------------------------------------------------------------------------


def _lay(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def packing(material: Material, data: bytes) -> None:
    """A pack of a changed run is refused, or it verifies as the directory does."""
    files = mutated(material.runs[-1], material.runs[0], data)
    with tempfile.TemporaryDirectory() as folder:
        run = _lay(Path(folder) / "run", files)
        try:
            packed = pack(run, Path(folder) / "run.zip", allow_secrets=True, allow_identity=True)
            with open_run(packed.path) as reader:
                inside = {name: reader.read(name, 2**24) for name in reader.names()}
        except TrainmemAuditError as error:
            printed(str(error))
            return
    if inside.keys() - files.keys() or any(files[name] != content for name, content in inside.items()):
        raise FalseAcceptError("a pack of other files")
    code = verified(inside).verification.exit_code
    if code == 0 and not untouched(material, inside):
        raise FalseAcceptError("a pack of a changed run passes")


def recovery(material: Material, data: bytes) -> None:
    """A killed run is refused or closed, and what is closed verifies as an incomplete or complete record."""
    choices = Choices(data)
    killed = {name: content for name, content in material.runs[-1].items() if name not in ("run.json", "signer.pub")}
    mode = choices.number(3)
    files = killed | {STEP_FILE: choices.rest()} if mode == 0 else mutated(killed, material.runs[0], choices.rest())
    if mode == 2 and STEP_FILE in files:
        files[STEP_FILE] = relinked(files[STEP_FILE])
    files.pop("run.json", None)
    with tempfile.TemporaryDirectory() as folder:
        run = _lay(Path(folder) / "run", files)
        try:
            run.mkdir(exist_ok=True)
            recover(run, AUTHOR)
        except TrainmemAuditError as error:
            printed(str(error))
            return
        closed = {item.relative_to(run).as_posix(): item.read_bytes() for item in run.rglob("*") if item.is_file()}
    found = verified(closed).verification
    shown(found)
    assert found.signature.state == "trusted", found


def _recovery_seeds(material: Material) -> Iterator[bytes]:
    yield b"\0" + material.runs[-1][STEP_FILE]
    yield from (bytes([1 + name % 2, *seed]) for name, seed in enumerate(_mutation_seeds(material)))


# Saved verdicts ---------------------------------------------------------------------------------------------------


def _verdict_seeds(material: Material) -> Iterator[bytes]:
    found = verified(material.runs[-1]).verification
    yield canonical_bytes(found.to_json())
    yield canonical_bytes(verified({**material.runs[0], TENSOR_FILE: b""}).verification.to_json())
    yield canonical_bytes(builders.segments().to_json())
    yield canonical_bytes(builders.resumed().to_json())


def verdict(material: Material, data: bytes) -> None:
    """A saved verification is a document like any other: read or refused, and shown without doing anything."""
    try:
        saved: Verification = Verification.parse(data, "verification.json")
    except TrainmemAuditError as error:
        printed(str(error))
        return
    shown(saved)
    rendered(Statement.parse(payload_of(material.runs[-1]), "statement"), saved)


def rules(material: Material, data: bytes) -> None:
    """Every rule of every profile says something of whatever an author chains and signs, in every format."""
    original = material.runs[-1]
    files = original | {STEP_FILE: relinked(data)}
    try:
        files = author_signs(files)
    except TrainmemAuditError as error:
        printed(str(error))
    for profile in load_checklist().profiles:
        gatherer = Gatherer()
        examination = examine(MemoryReader(files), Policy(trust=TRUST), None, gatherer.take, gatherer.indices)
        compliance = judge(record_of(examination, gatherer), Terms(profile=profile))
        assert len(compliance.items) == len(items_of(profile))
        for form in COMPLIANCE.values():
            printed(form(compliance))


def documents(material: Material, data: bytes) -> None:
    """Any text is held against every schema, and migrated if it may be; waivers are read from it."""
    del material
    with suppress(TrainmemAuditError):
        parse_waivers(data, "waivers.json")
    try:
        document = loads_strict(data, "document")
    except TrainmemAuditError as error:
        printed(str(error))
        return
    for name in our_schemas().names():
        for finding in our_schemas().findings(document, name):
            printed(safe_text(finding.where + finding.got))
        if isinstance(document, dict):
            with suppress(TrainmemAuditError):
                migrate(name, document)


def text(material: Material, data: bytes) -> None:
    """Any text becomes ink on one line, and stays so."""
    safe = safe_text(data.decode("utf-8", "surrogateescape"))
    printed(safe)
    assert "\n" not in safe
    assert safe_text(safe) == safe
    io.StringIO().write(safe.encode().decode())


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("mutation", _mutation_seeds, mutation, 64),
        Target("envelope", _envelope_seeds, envelope, 2**14),
        Target("keys", _key_seeds, keys, 2**10),
        Target("statement", _statement_seeds, statement, 2**14),
        Target("log", _log_seeds, log, 2**15),
        Target("forms", _form_seeds, forms, 2**14),
        Target("side", _side_seeds, side, 2**12),
        Target("snapshot", _snapshot_seeds, snapshot, 2**12),
        Target("values", _value_seeds, values, 2**12),
        Target("path", _snapshot_seeds, path, 2**12),
        Target("zip", _zip_seeds, archive, 2**14),
        Target("packing", _mutation_seeds, packing, 64),
        Target("recovery", _recovery_seeds, recovery, 2**14),
        Target("verdict", _verdict_seeds, verdict, 2**14),
        Target("rules", _log_seeds, rules, 2**15),
        Target("documents", _statement_seeds, documents, 2**14),
        Target("text", lambda _: ["é\u202eé ~".encode(), b"\x1b[2J"], text, 2**8),
    )
}
"""Every target by its name."""
