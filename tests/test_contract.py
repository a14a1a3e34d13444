"""The RNG contract: read from a file, counted from the lines of a log, derived again by a verifier."""

from __future__ import annotations

import json
import re
import shutil
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.logs import begin, digest, stream, written
from tests.test_faults import examined
from tests.tools import audit
from tests.trainings import recorded
from trainmem_audit.checks import evaluate, load_checklist
from trainmem_audit.contract import DERIVATION, StreamCollector, as_stated, derive, start_seed, stream_digest
from trainmem_audit.documents.contract import Consumption
from trainmem_audit.documents.declared import find_contract, parse_contract
from trainmem_audit.documents.record_order import EpochFacts, OrderFacts
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.gathering.order import MOST_EPOCHS, OrderCollector
from trainmem_audit.steplog import LogReader

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = Path(__file__).parent / "contracts"
ITEMS = {item.id: item for item in load_checklist().items}


# The file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONTRACTS / "valid").iterdir()), ids=lambda path: path.stem)
def test_a_contract_is_read_and_written_as_it_is(path: Path) -> None:
    contract = parse_contract(path.read_bytes(), path.name)
    assert parse_contract(_toml(contract.to_json()), "again") == contract


def _toml(value: dict[str, Any]) -> bytes:
    """Write JSON as TOML, inline."""

    def inline(member: Any) -> str:
        if isinstance(member, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {inline(item)}" for name, item in member.items()) + "}"
        return "[" + ", ".join(map(inline, member)) + "]" if isinstance(member, list) else json.dumps(member)

    return "\n".join(f"{name} = {inline(member)}" for name, member in value.items()).encode()


@pytest.mark.parametrize("path", sorted((CONTRACTS / "invalid").iterdir()), ids=lambda path: path.stem)
def test_a_faulty_contract_stops_before_anything_runs(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an RNG contract"):
        find_contract(path, tmp_path)


def test_the_command_line_says_what_is_wrong_with_a_contract(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("open('ran', 'w')")
    shutil.copyfile(CONTRACTS / "invalid" / "unknown_purpose.toml", tmp_path / "rng-contract.toml")
    done = audit("record", "train.py", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 2
    assert "rng-contract.toml: streams.python.purpose" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "rng-contract.toml"}
    done = audit("record", "--rng-contract", "absent.toml", "train.py", cwd=tmp_path, home=tmp_path / "home")
    assert (done.returncode, "absent.toml" in done.stderr) == (2, True)


def test_a_contract_may_not_be_endless(tmp_path: Path) -> None:
    path = tmp_path / "rng-contract.toml"
    path.write_bytes(b'contractVersion = "0.1.0-draft"\n' + b"#" * 2**20)
    with pytest.raises(UsageError, match="too long"):
        find_contract(None, tmp_path)
    path.write_bytes(b"a = " + b"[" * 100_000)
    with pytest.raises(UsageError, match="not an RNG contract"):
        find_contract(None, tmp_path)
    path.unlink()
    assert find_contract(None, tmp_path) is None


def test_the_example_of_the_page_is_met_by_the_example(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"<!-- example -->\n```toml\n(.*?)```", (ROOT / "docs" / "rng-contract.md").read_text("utf-8"), re.DOTALL
    )
    there = tmp_path / "author"
    there.mkdir()
    shutil.copyfile(ROOT / "examples" / "digits" / "train.py", there / "train.py")
    (there / "declared.toml").write_text(example, "utf-8")
    options = ("--rng-contract", "declared.toml")
    done = recorded(there, "train.py", "--epochs", "2", home=tmp_path / "home", options=options)
    assert done.returncode == 0, done.stderr
    record = examined(there / "run")
    contract = record.manifest.rng_contract
    assert contract.declared == parse_contract(example.encode(), "example")
    states = {name: evaluate(ITEMS[name], record).state for name in ITEMS if name[3:6] in ("RNG", "ORD")}
    assert "fail" not in states.values()
    assert (states["TM-RNG-001"], states["TM-RNG-005"]) == ("pass", "pass")
    cpu = contract.streams["torch.cpu"]
    assert (cpu.purpose, cpu.seeds) == (("augment", "dropout", "init", "loader", "order"), ("0",))
    moves = {name: stream.consumed or Consumption() for name, stream in contract.streams.items()}
    assert (moves["torch.cpu"].steps, moves["torch.cpu"].inside, moves["torch.cpu"].epochs) == (46, 44, 0)
    assert not moves["numpy"].ever


# Derivations -------------------------------------------------------------------------------------------------------


def test_derivations_are_what_they_are_named_after() -> None:
    expected = np.random.SeedSequence(7, spawn_key=(1, 2)).generate_state(1, "uint64")[0]
    assert derive("numpy.random.SeedSequence", "7", ["1", "2"]) == str(expected)
    assert derive("sum", "7", ["1", "2"]) == "10"
    assert derive(DERIVATION, "ab", ["python"]) == str(start_seed("ab", "python"))
    for function in ("sum", "numpy.random.SeedSequence"):
        assert derive(function, "seven", ["1"]) is None
        assert derive(function, "7", ["-1"]) is None
        assert derive(function, "7", ["9" * 41]) is None


def test_fourteen_seeds_for_fifty_epochs() -> None:
    """STANDARD § 4: seeds 0 to 4 over ten epochs, added."""
    paths = [[str(seed), str(epoch)] for seed in range(5) for epoch in range(10)]
    assert len({derive("sum", "0", path) for path in paths}) == 14
    assert len({derive("numpy.random.SeedSequence", "0", path) for path in paths}) == 50


# Streams out of lines ----------------------------------------------------------------------------------------------


def inventory(i: int = 0, **members: Any) -> dict[str, Any]:
    return {"t": "inventory", "i": i, **members}


def epoch(i: int, number: int, rng: dict[str, str], **members: Any) -> dict[str, Any]:
    return {"t": "epoch", "i": i, "epoch": number, "loader": "loader", "rng": rng, **members}


def step(i: int, rng: dict[str, str], **members: Any) -> dict[str, Any]:
    return {"t": "step", "i": i, "state": {}, "rng": rng, **members}


LOADER = {"kind": "DataLoader", "dataset": "Points", "sampler": "RandomSampler", "settings": {"samples": 4}}


def read(lines: list[dict[str, Any]]) -> LogReader:
    reader = LogReader()
    for line in written(lines):
        reader.read(line)
    return reader


def test_moves_are_counted_where_they_are_seen() -> None:
    start = stream_digest(Stream.model_validate(stream("python")))
    rng = [{"python": text} for text in (start, "1" * 64, "2" * 64, "3" * 64, "4" * 64)]
    lines = [
        begin(),
        inventory(loaders={"loader": LOADER}),
        epoch(0, 0, rng[1]),  # before training
        step(0, rng[1]),
        step(1, rng[2]),  # inside
        step(2, rng[2]),
        epoch(3, 1, rng[3]),  # between
        step(3, rng[4]),  # the first of an epoch
        step(4, rng[4]),
        inventory(5, draws={"python": ["augment"]}),
    ]
    moves = read(lines).summary.moves
    assert moves.consumed("python") == {
        "before_training": True,
        "steps": 2,
        "inside": 1,
        "first": 1,
        "last": 3,
        "epochs": 1,
        "workers": 0,
    }
    assert moves.purposes("python") == ("augment",)
    assert moves.purposes("numpy") == ()
    still = read([begin(), *[step(number, rng[0]) for number in range(3)]]).summary.moves
    assert not any(still.consumed("python")[name] for name in ("before_training", "steps", "epochs"))
    moved = read([begin(), step(0, rng[1])]).summary.moves
    assert moved.purposes("python") == ("unknown",)


def test_a_state_that_is_no_base64_is_named() -> None:
    with pytest.raises(FormatError, match="not base64"):
        written([begin(streams={"python": stream("python", "A")})])


def test_the_collector_grows_with_names_and_not_with_steps() -> None:
    collector = StreamCollector()
    reader = LogReader()
    for line in written([begin(), *[step(number, {"python": digest(number)}) for number in range(300)]]):
        collector.take(reader.read(line))
    assert collector.consumed("python")["steps"] == 300
    assert [len(member) for member in vars(collector).values() if isinstance(member, dict)] == [1, 0, 1]


# Order out of lines and indices ------------------------------------------------------------------------------------


def ordered(*parts: tuple[str, int, list[int]], whole: bool = True) -> dict[str, Any]:
    """Return the `order` of a step whose samples come from several epochs: (loader, epoch, indices)."""
    members: dict[str, Any] = {"index": "a" * 64, "content": "b" * 64, "batches": len(parts)}
    members["n"] = sum(len(indices) for _, _, indices in parts)
    if not whole:
        members["parts"] = [[loader, number, len(indices)] for loader, number, indices in parts]
    return members


def collect(lines: list[tuple[dict[str, Any], list[int]]], chunk: int = 24) -> OrderFacts:
    """Return what the collector makes of lines and the indices behind them, given in pieces of `chunk` bytes."""
    collector = OrderCollector()
    reader = LogReader()
    for raw, (_, indices) in zip(written([line for line, _ in lines]), lines, strict=True):
        collector.take(reader.read(raw))
        values = array("q", indices)
        if sys.byteorder == "big":
            values.byteswap()
        data = values.tobytes()
        for at in range(0, len(data), chunk):
            collector.indices(data[at : at + chunk])
    return collector.finish()


def whole(facts: EpochFacts) -> tuple[str, int, int, int, int | None, bool]:
    return facts.loader, facts.epoch, facts.first, facts.samples, facts.distinct, facts.ascending


RNG = {"python": "1" * 64}
HEAD: list[tuple[dict[str, Any], list[int]]] = [
    (begin(), []),
    (inventory(loaders={"loader": LOADER, "other": LOADER}), []),
]


def test_epochs_are_told_apart() -> None:
    first, second = list(range(20)), list(range(20))[::-1]
    lines: list[tuple[dict[str, Any], list[int]]] = [*HEAD]
    for number, indices in enumerate((first, second, first, first[:18])):
        lines.append((epoch(2 * number, number, RNG), []))
        for half, part in enumerate((indices[:10], indices[10:])):
            lines.append((step(2 * number + half, RNG, order=ordered(("loader", number, part))), part))
    epochs = collect(lines).epochs
    assert [whole(found) for found in epochs] == [
        ("loader", 0, 0, 20, 20, True),
        ("loader", 1, 2, 20, 20, False),
        ("loader", 2, 4, 20, 20, True),
        ("loader", 3, 6, 18, 18, True),
    ]
    assert epochs[0].digest == epochs[2].digest != epochs[1].digest
    assert epochs[3].digest != epochs[0].digest
    assert epochs[3].head == epochs[0].head
    assert epochs == collect(lines, chunk=8).epochs == collect(lines, chunk=2**16).epochs


def test_a_step_may_take_the_end_of_one_epoch_and_the_beginning_of_the_next() -> None:
    lines: list[tuple[dict[str, Any], list[int]]] = [
        *HEAD,
        (epoch(0, 0, RNG), []),
        (step(0, RNG, order=ordered(("loader", 0, [3, 1]))), [3, 1]),
        (epoch(1, 1, RNG), []),
        (step(1, RNG, order=ordered(("loader", 0, [2]), ("loader", 1, [0]), whole=False)), [2, 0]),
        (step(2, RNG, order=ordered(("loader", 1, [1, 1, 2]))), [1, 1, 2]),
    ]
    found = collect(lines)
    assert [whole(facts)[3:5] for facts in found.epochs] == [(3, 3), (4, 3)]
    assert [(facts.smallest, facts.largest) for facts in found.epochs] == [(1, 3), (0, 2)]
    assert found.unplaced == 0


def test_what_is_not_placed_is_counted() -> None:
    lines: list[tuple[dict[str, Any], list[int]]] = [
        *HEAD,
        (step(0, RNG, order=ordered(("loader", 0, [3, 1]))), [3, 1]),
        (step(1, RNG), []),
        (step(2, RNG, inputs="c" * 64), []),
    ]
    found = collect(lines)
    assert (found.unplaced, found.unseen, found.epochs) == (1, 1, ())


def test_epochs_without_end_are_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmem_audit.gathering.order.MOST_INDICES", 5)
    lines: list[tuple[dict[str, Any], list[int]]] = [*HEAD]
    for number in range(MOST_EPOCHS + 3):
        indices = list(range(6 if number == 0 else 2))
        lines.append((epoch(number, number, RNG), []))
        lines.append((step(number, RNG, order=ordered(("loader", number, indices))), indices))
    found = collect(lines)
    assert (len(found.epochs), found.beyond) == (MOST_EPOCHS, 3)
    assert (found.epochs[0].distinct, found.epochs[1].distinct) == (None, 2)
    assert found.epochs[0].digest is not None


@pytest.mark.parametrize(
    ("rng", "data", "unexplained"),
    [({"python": "1" * 64}, None, 1), ({"python": "2" * 64}, None, None), ({"python": "1" * 64}, {"noise": 2}, None)],
    ids=["nothing moved", "a stream moved", "a number of the data set changed"],
)
def test_another_content_of_the_same_samples_has_a_reason(
    rng: dict[str, str], data: dict[str, Any] | None, unexplained: int | None
) -> None:
    order = ordered(("loader", 0, [0, 1]))
    later = {} if data is None else {"data": data}
    lines: list[tuple[dict[str, Any], list[int]]] = [
        *HEAD,
        (epoch(0, 0, RNG, data={"noise": 1}), []),
        (step(0, RNG, order=order), [0, 1]),
        (epoch(1, 1, RNG, **later), []),
        (step(1, rng, order=order | {"content": "c" * 64}), [0, 1]),
    ]
    found = collect(lines)
    assert (found.recurring, found.changed, found.unexplained) == (1, 1, unexplained)


def test_a_resume_begins_a_segment() -> None:
    order = ordered(("loader", 0, [0, 1]))
    lines: list[tuple[dict[str, Any], list[int]]] = [
        *HEAD,
        (epoch(0, 0, RNG, samplerEpoch=4), []),
        (step(0, RNG, order=order), [0, 1]),
        (inventory(1, resumed=[{"optimizer": "Adam", "steps": 9}]), []),
        (epoch(1, 1, RNG, workerSeed="-17"), []),
        (step(1, RNG, order=order), [0, 1]),
    ]
    found = collect(lines)
    assert [(facts.segment, facts.sampler_epoch, facts.worker_seed) for facts in found.epochs] == [
        (0, 4, None),
        (1, None, "-17"),
    ]
    assert [(resume.at, resume.optimizer, resume.steps) for resume in found.resumes] == [(1, "Adam", 9)]


# What a writer may leave out ---------------------------------------------------------------------------------------


def test_another_writer_says_less_and_derives_seeds_in_its_own_way() -> None:
    stream_members = {"library": "numpy", "algorithm": "pcg64", "device": "cpu", "state": "AAAA"}
    derived = {
        "contractVersion": "0.1.0-draft",
        "rootEntropy": "ab",
        "derivation": {"function": DERIVATION},
        "streams": {"numpy": {**stream_members, "purpose": ["init"], "pairing": "shared"}},
        "canary": {},
    }
    least = {"contractVersion": "0.1.0-draft", "streams": {"numpy": stream_members}, "canary": {}}
    assert as_stated(derived, least) == least
    other = {**least, "rootEntropy": "7", "derivation": {"function": "numpy.random.SeedSequence"}}
    assert as_stated(derived, other) == other
    assert as_stated(derived, derived) == derived


@pytest.mark.parametrize(
    "stated",
    [
        {"streams": {}},
        {"streams": {"numpy": {"library": "numpy", "state": "BBBB"}}},
        {"streams": {"numpy": {"library": "numpy", "state": "AAAA", "purpose": []}}},
        {"streams": {"numpy": {"library": "numpy", "state": "AAAA"}, "torch.cpu": {}}},
        {"rootEntropy": "7", "derivation": {"function": DERIVATION}},
        {"canary": {"draw": "0"}},
    ],
    ids=["no stream", "another state", "another purpose", "one stream more", "another root entropy", "another canary"],
)
def test_what_does_not_follow_from_the_log_stays_a_difference(stated: dict[str, Any]) -> None:
    derived = {
        "rootEntropy": "ab",
        "derivation": {"function": DERIVATION},
        "streams": {"numpy": {"library": "numpy", "state": "AAAA", "purpose": ["init"]}},
        "canary": {},
    }
    full = {**derived, **stated}
    assert as_stated(derived, full) != full
