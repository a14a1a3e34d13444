"""The path of the weights: NumPy reads from snapshots what torch computes, and a bad file is said, not believed."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders
from tests.logs import digest
from tests.test_light_verbs import run as run_without_torch
from tests.test_report import Page, markdown_page
from tests.tools import audit
from tests.trainings import lay_out, recorded, statement_of
from trainmem_audit.canonical import canonical_bytes, component_digest
from trainmem_audit.digests import tensor_bytes, tensor_digest
from trainmem_audit.documents.steplog import Inventory, Line, Snapshot, Step
from trainmem_audit.norms import COUNTED, Sums, widened
from trainmem_audit.pathlength import SnapshotStates, WeightPath, Weights, measure_weights
from trainmem_audit.recording.snapshots import write_snapshot
from trainmem_audit.report import render_html, render_markdown
from trainmem_audit.rundir import DirectoryReader, open_run
from trainmem_audit.runs import read_lines
from trainmem_audit.snapshots import snapshot_name
from trainmem_audit.sources.base import ComponentState, Labels

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "complex64": torch.complex64, "complex128": torch.complex128,
    "float8_e5m2": torch.float8_e5m2, "float8_e4m3fn": torch.float8_e4m3fn,
}  # fmt: skip

# Sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_every_bit_pattern_of_a_small_dtype_has_the_value_that_torch_gives_it(name: str) -> None:
    dtype = DTYPES[name]
    data = np.arange(2 ** (8 * dtype.itemsize), dtype=f"<u{dtype.itemsize}").tobytes()
    expected = torch.frombuffer(bytearray(data), dtype=dtype).double().numpy()
    np.testing.assert_array_equal(widened(data, name), expected)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_norms_and_distances_are_those_of_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    one, two = (torch.randn(5, 7, generator=generator, dtype=torch.float64).to(DTYPES[name]) for _ in range(2))
    sums = Sums()
    sums.add(name, tensor_bytes(one), tensor_bytes(two), None)
    wide = torch.complex128 if one.is_complex() else torch.float64
    assert math.sqrt(sums.squares) == pytest.approx(float(one.to(wide).norm()))
    assert math.sqrt(sums.from_others[0]) == pytest.approx(float((one.to(wide) - two.to(wide)).norm()))
    assert sums.from_others[1] == 0


def test_integers_are_no_weights() -> None:
    assert {"int8", "uint8", "bool", "int64"}.isdisjoint(COUNTED)
    sums = Sums()
    sums.add("int8", b"\x05\x06", b"\x07\x08")
    assert (sums.squares, sums.from_others) == (0.0, [0.0, 0.0])


# A record of chosen states ----------------------------------------------------------------------------------------


@dataclass
class Fixed:
    """A source that reports the tensors it is given, and cannot be restored."""

    name: str
    tensors: dict[str, torch.Tensor]

    def components(self) -> list[ComponentState]:
        return [ComponentState(self.name, Labels("S3", "macro", "checkpointed"), list(self.tensors.items()))]


class Chosen:
    """Snapshots of chosen weights, and the lines that a log would have for them."""

    def __init__(self, folder: Path, name: str = "model.params") -> None:
        self.states = SnapshotStates()
        self._folder = folder
        self._name = name

    def keep(self, step: int, tensors: dict[str, torch.Tensor], unchanged: int | None = None) -> None:
        """Write the snapshot of `step`; with `unchanged`, one that refers to that earlier step."""
        header = tuple(
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()
        )
        digests = [tensor_digest(tensor) for tensor in tensors.values()]
        state = component_digest(canonical_bytes(header), digests).hex()
        leave_out = () if unchanged is None else (self._name,)
        source: Any = Fixed(self._name, tensors)
        size = write_snapshot(self._folder / snapshot_name(step), [source], step, digests, leave_out)
        labels = {"source": "S3", "lifetime": "macro", "visibility": "checkpointed", "bytes": 0}
        members: Sequence[tuple[type[Line], dict[str, Any]]] = [
            (Inventory, {"t": "inventory", "i": step, "components": {self._name: {**labels, "tensors": header}}}),
            (Step, {"t": "step", "i": step, "state": {self._name: state}, "rng": {}}),
            (Snapshot, {"t": "snapshot", "i": step + 1, "file": snapshot_name(step), "size": size}),
        ]
        for model, line in members:
            if model is Snapshot and unchanged is not None:
                line["unchanged"] = {self._name: unchanged}
            self.states.take(model.model_validate({**line, "chain": digest(step)}))

    def measured(self) -> Weights:
        """Return what is measured of them."""
        with DirectoryReader(self._folder) as reader:
            found = measure_weights(reader, self.states)
        assert found is not None
        return found

    def path(self) -> WeightPath:
        (path,) = self.measured().paths
        return path


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    return Chosen(tmp_path)


def at(x: float, y: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return weights at a point of a plane, in two tensors and an empty one."""
    return {"a": torch.tensor([x], dtype=dtype), "none": torch.zeros(0, dtype=dtype), "b": torch.tensor(y, dtype=dtype)}


def test_the_path_around_a_triangle(chosen: Chosen) -> None:
    for step, point in {0: (1.0, 0.0), 5: (4.0, 0.0), 6: (4.0, 4.0), 9: (1.0, 0.0)}.items():
        chosen.keep(step, at(*point))
    path = chosen.path()
    assert [item.step for item in path.intervals] == [5, 6, 9]
    assert [item.distance for item in path.intervals] == [3.0, 4.0, 5.0]
    assert [item.from_first for item in path.intervals] == [3.0, 5.0, 0.0]
    assert [item.length for item in path.intervals] == [3.0, 7.0, 12.0]
    assert [item.relative for item in path.intervals] == [3.0, 1.0, 5.0 / math.hypot(4, 4)]
    assert (path.first, path.last, path.snapshots, path.first_norm, path.last_norm) == (0, 9, 4, 1.0, 1.0)
    assert (path.length, path.from_first, path.straightness, path.whole) == (12.0, 0.0, 0.0, False)


def test_a_straight_line_with_a_snapshot_of_every_step(chosen: Chosen) -> None:
    for step in range(4):
        chosen.keep(step, at(step, 0.0, torch.bfloat16))
    path = chosen.path()
    assert (path.length, path.from_first, path.straightness, path.whole) == (3.0, 3.0, 1.0, True)
    assert [item.relative for item in path.intervals] == [None, 1.0, 0.5]  # it began at 0


def test_weights_that_did_not_change_are_followed_to_where_they_lie(chosen: Chosen) -> None:
    chosen.keep(0, at(1.0, 0.0))
    chosen.keep(2, at(1.0, 0.0), unchanged=0)
    chosen.keep(4, at(1.0, 2.0))
    chosen.keep(6, at(1.0, 0.0), unchanged=0)  # back to an older state
    path = chosen.path()
    assert [item.distance for item in path.intervals] == [0.0, 2.0, 2.0]
    assert [item.from_first for item in path.intervals] == [0.0, 2.0, 0.0]


def test_weights_that_go_back_for_ever_are_not_read_for_ever(chosen: Chosen) -> None:
    chosen.keep(0, at(1.0, 0.0))
    chosen.keep(1, at(0.0, 0.0))
    for step in range(2, 60):
        chosen.keep(step, at(1.0 - step % 2, 0.0), unchanged=step % 2)
    path = chosen.path()
    assert "go back too often" in path.problem
    assert path.last == 17


def test_another_set_of_tensors_breaks_the_path(chosen: Chosen) -> None:
    chosen.keep(0, at(1.0, 0.0))
    chosen.keep(1, at(1.0, 0.0) | {"new": torch.ones(3)})
    chosen.keep(2, at(1.0, 1.0) | {"new": torch.ones(3)})
    path = chosen.path()
    assert [item.distance for item in path.intervals] == [None, 1.0]
    assert [item.from_first for item in path.intervals] == [None, None]
    assert (path.broken, path.length, path.straightness, path.whole) == (1, 1.0, None, False)


def test_what_is_no_floating_point_number_is_named(chosen: Chosen) -> None:
    packed = {"packed": torch.ones(4, dtype=torch.int8)}
    chosen.keep(0, at(3.0, 4.0) | packed)
    path = chosen.path()
    assert (path.first_norm, path.uncounted, path.intervals) == (5.0, (("int8", 1),), ())


def test_weights_that_are_not_finite_do_not_pass_for_numbers(chosen: Chosen) -> None:
    chosen.keep(0, at(1.0, 0.0))
    chosen.keep(1, at(math.inf, 0.0))
    chosen.keep(2, at(math.nan, 0.0))
    path = chosen.path()
    assert math.isinf(path.intervals[0].length)
    assert math.isnan(path.length)
    assert math.isnan(path.last_norm)
    assert not path.problem


def test_many_intervals_are_thinned_and_all_of_them_counted(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmem_audit.pathlength._MOST_INTERVALS", 8)
    for step in range(22):
        chosen.keep(step, at(step, 0.0))
    path = chosen.path()
    assert [item.step for item in path.intervals] == [4, 8, 12, 16, 20, 21]
    assert (path.every, path.length, path.snapshots) == (4, 21.0, 22)


def test_large_tensors_are_read_in_pieces_that_lie_outside_of_memory(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainmem_audit.pathlength._IN_MEMORY", 1000)
    monkeypatch.setattr("trainmem_audit.snapshots._CHUNK", 64)
    generator = torch.Generator().manual_seed(1)
    states = [
        {"w": torch.randn(501, generator=generator), "v": torch.randn(3, 3, generator=generator)} for _ in range(3)
    ]
    for step, state in enumerate(states):
        chosen.keep(step, state)
    path = chosen.path()
    flat = [torch.cat([tensor.double().flatten() for tensor in state.values()]) for state in states]
    assert path.length == pytest.approx(sum(float((b - a).norm()) for a, b in itertools.pairwise(flat)))
    assert path.from_first == pytest.approx(float((flat[2] - flat[0]).norm()))


def test_values_that_have_not_the_digest_of_the_log_are_not_believed(chosen: Chosen, tmp_path: Path) -> None:
    for step in range(3):
        chosen.keep(step, at(step, 0.0))
    path = tmp_path / snapshot_name(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = chosen.path()
    assert found.problem == (
        "snapshots/step-1.safetensors: weights that have not the digest of the step log (got step 1, model.params)"
    )
    assert (found.last, found.intervals, found.whole) == (0, (), False)


@pytest.mark.parametrize("damage", ["short", "empty", "gone", "other"])
def test_a_damaged_file_is_said(chosen: Chosen, tmp_path: Path, damage: str) -> None:
    for step in range(2):
        chosen.keep(step, at(step, 0.0))
    path = tmp_path / snapshot_name(1)
    match damage:
        case "short":
            path.write_bytes(path.read_bytes()[:-1])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "other":
            data = path.read_bytes().replace(b"model.params", b"model.others")
            path.write_bytes(data)
    found = chosen.path()
    assert found.problem
    assert found.intervals == ()


def test_more_components_than_a_few_are_counted_and_not_measured(tmp_path: Path) -> None:
    states = SnapshotStates()
    for number in range(11):
        one = Chosen(tmp_path / str(number), f"model{number}.params")
        (tmp_path / str(number)).mkdir()
        one.states = states
        one.keep(0, at(1.0, 0.0))
    assert len(states.kept) == 8
    assert len(states.left_out) == 3


# A real run -------------------------------------------------------------------------------------------------------

TWO_MODELS = """
import torch
from torch import nn
torch.manual_seed(0)
first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
second = nn.Linear(3, 1).to(torch.bfloat16)
optimizers = [torch.optim.Adam(first.parameters(), lr=0.01), torch.optim.SGD(second.parameters(), lr=0.1)]
states = []
for step in range(6):
    model, optimizer = (first, optimizers[0]) if step % 2 == 0 else (second, optimizers[1])
    data = torch.randn(5, 3).to(next(model.parameters()).dtype)
    optimizer.zero_grad()
    model(data).square().mean().backward()
    optimizer.step()
    states.append([[value.detach().clone() for value in part.parameters()] for part in (first, second)])
torch.save(states, "states.pt")
"""


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run with a snapshot of every step, and of what the script itself kept."""
    cwd = lay_out(tmp_path_factory.mktemp("two") / "here", text={"train.py": TWO_MODELS})
    done = recorded(cwd, "train.py", home=cwd / "home", options=("--snapshots", "1"))
    assert done.returncode == 0, done.stderr
    return cwd


def measured(run: Path) -> Weights:
    states = SnapshotStates()
    with open_run(run) as reader:
        for line in read_lines(reader):
            states.take(line)
        found = measure_weights(reader, states)
    assert found is not None
    return found


def test_a_run_went_as_far_as_the_script_itself_saw(two_models: Path) -> None:
    states = torch.load(two_models / "states.pt")
    paths = {path.component: path for path in measured(two_models / "run").paths}
    assert paths.keys() == {"model.params", "model2.params"}
    assert any(item.unchanged for item in statement_of(two_models / "run").predicate.snapshots)
    for number, path in enumerate((paths["model.params"], paths["model2.params"])):
        flat = [torch.cat([value.double().flatten() for value in state[number]]) for state in states][path.first :]
        moves = [float((b - a).norm()) for a, b in itertools.pairwise(flat)]
        assert [item.distance for item in path.intervals] == pytest.approx(moves)
        assert path.length == pytest.approx(sum(moves))
        assert path.length > 0
        assert path.from_first == pytest.approx(float((flat[-1] - flat[0]).norm()))
        assert path.last_norm == pytest.approx(float(flat[-1].norm()))
        assert (path.whole, path.last, path.problem) == (True, 5, "")


def test_a_packed_run_gives_the_same(two_models: Path, tmp_path: Path) -> None:
    """Also where the entries are packed, and can only be read from their beginning."""
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((two_models / "run").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(two_models / "run").as_posix())
    assert measured(tmp_path / "run.zip") == measured(two_models / "run")


def test_the_report_shows_it_without_torch(two_models: Path, tmp_path: Path) -> None:
    outcome = run_without_torch(tmp_path / "home", "report", str(two_models / "run"), "-o", str(tmp_path))
    assert outcome.code == 0, outcome.output
    assert "numpy" in outcome.loaded
    pages = [Page((tmp_path / "report.html").read_text()), markdown_page((tmp_path / "report.md").read_text())]
    length = f"{measured(two_models / 'run').paths[0].length:.4g}"
    for page in pages:
        assert "Path of the weights" in page.text
        assert "lower bound" in page.text
        assert "≥" not in page.text
        assert length in page.text
        assert "model2.params" in page.text
    assert "length1-t" in pages[0].ids
    assert "distance2-t" in pages[0].ids


def test_a_report_of_a_record_without_snapshots_has_no_such_part(tmp_path: Path) -> None:
    cwd = lay_out(tmp_path / "here", text={"train.py": TWO_MODELS})
    assert recorded(cwd, "train.py", home=tmp_path / "home").returncode == 0
    assert audit("report", "run", cwd=cwd, home=tmp_path / "home").returncode == 0
    assert "Path of the weights" not in (cwd / "report.html").read_text()
    assert "Path of the weights" not in (cwd / "report.md").read_text()


def test_names_and_problems_of_a_hostile_record_do_nothing(chosen: Chosen) -> None:
    for step in (0, 3, 4):
        chosen.keep(step, at(step, math.nan if step == 4 else 0.0))
    path = replace(chosen.path(), component=builders.HOSTILE, problem=builders.HOSTILE, broken=1)
    weights = Weights((path, replace(path, intervals=())), left_out=2, problem=builders.HOSTILE)
    series = replace(builders.series(), weights=weights)
    html = render_html(builders.statement(), builders.verification(), series)
    text = render_markdown(builders.statement(), builders.verification(), series)
    for page in (Page(html), markdown_page(text)):
        assert not {"script", "img"} & set(page.tags)
        assert "<script>alert(1)</script>" in page.text
        assert "not finite" in page.text
        assert "2 more components" in page.text
        assert "≥" in page.text
