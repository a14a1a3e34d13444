"""Interventions on an unmodified loop that is recorded: their lines, what they leave alone, when they are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from tests.tools import audit, examined
from tests.trainings import bare, recorded, replayed_here
from trainmem_audit import Recorder
from trainmem_audit.contract import start_seed
from trainmem_audit.errors import InterventionError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import read_statement
from trainmem_audit.sources.twisters import python_stream

Line = dict[str, Any]
EPOCH = 8
SIGNER = Signer.generate()


def train(
    workers: int = 0, steps: int = 20, sampler: Any = None, shuffle: bool = True, size: int = 64
) -> tuple[list[float], list[list[int]]]:
    """Train a small network with BatchNorm, Dropout and an average; return losses and the samples of each step."""
    torch.manual_seed(0)
    x = torch.randn(size, 3)
    data = TensorDataset(x, x.sum(1, keepdim=True), torch.arange(size))
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(
        data, batch_size=8, shuffle=shuffle if sampler is None else None, sampler=sampler, num_workers=workers
    )
    losses: list[float] = []
    samples: list[list[int]] = []
    while True:
        for a, b, index in loader:
            if len(losses) == steps:
                return losses, samples
            with torch.no_grad():
                taught = average(a)
            loss = (net(a) - b).square().mean() + 0.1 * (net(a) - taught).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(net)
            losses.append(loss.item())
            samples.append(index.tolist())


class Recorded:
    """What a recorded loop did, and the lines of its log."""

    def __init__(self, folder: Path, texts: Sequence[str], loop: Callable[[], Any]) -> None:
        with Recorder(folder / "run", signer=SIGNER, commitments=False, interventions=texts) as recorder:
            self.losses, self.samples = loop()
        assert recorder.error is None, recorder.error
        self.run = folder / "run"
        self.lines = [json.loads(line) for line in (self.run / "steps.jsonl").read_text().splitlines()]
        self.statement = recorder.statement

    @property
    def acts(self) -> list[Line]:
        return [line for line in self.lines if line["t"] == "intervention"]

    @property
    def steps(self) -> list[Line]:
        return [line for line in self.lines if line["t"] == "step"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Recorded]:
    def go(*texts: str, **how: Any) -> Recorded:
        number = len(list(tmp_path.iterdir()))
        folder = tmp_path / str(number)
        folder.mkdir()
        return Recorded(folder, texts, lambda: train(**how))

    return go


Run = Callable[..., Recorded]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], list[list[int]]]:
    return train()


def test_a_placebo_changes_no_bit(run: Run, plain: Any) -> None:
    found = run("placebo@5", "placebo:model.params@7", "carry@9")
    assert (found.losses, found.samples) == plain
    assert [(line["i"], line["changed"], bool(line["note"])) for line in found.acts] == [
        (at, [], True) for at in (5, 7, 9)
    ]


def test_a_line_holds_all_digests_around_it_and_the_record_is_consistent(run: Run, plain: Any) -> None:
    found = run("reset:optimizer.momentum@5")
    (line,) = found.acts
    before, after = line["state"]["before"], line["state"]["after"]
    assert line["changed"] == ["optimizer.momentum"]
    assert before.keys() - after.keys() == {"optimizer.momentum"}  # absent, as a fresh optimizer lacks it
    assert {name: digest for name, digest in before.items() if name in after} == after
    assert line["rng"]["before"] == line["rng"]["after"] == found.steps[4]["rng"]
    assert found.losses[:5] == plain[0][:5]
    assert found.losses[5] == plain[0][5]  # the forward of step 5 came before its update
    assert found.losses[6] != plain[0][6]
    assert found.samples == plain[1]
    assert [step["rng"] for step in found.steps][-1] != line["rng"]["before"]
    with DirectoryReader(found.run) as reader:
        examination = examined(reader)
    assert (examination.verification.record, examination.findings) == ("consistent", [])
    assert found.statement is not None
    made = found.statement.predicate.interventions or ()
    assert [(item.step, item.intervention.primitive, item.changed) for item in made] == [
        (5, "reset", ("optimizer.momentum",))
    ]


@pytest.mark.slow
def test_the_average_that_moved_after_the_step_is_no_doing_of_the_intervention(run: Run) -> None:
    """At the cut the script has not updated its average yet: it did so after the step before."""
    found = run("zero:optimizer.momentum@5")
    (line,) = found.acts
    assert line["changed"] == ["optimizer.momentum"]
    assert line["state"]["before"]["teacher.params"] == line["state"]["after"]["teacher.params"]
    assert line["state"]["before"] == found.steps[4]["state"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["freeze:teacher.params@5", "freeze:model.batchnorm@5", "freeze:optimizer.momentum@5"])
def test_what_is_frozen_is_the_same_at_every_later_step(text: str, run: Run, plain: Any) -> None:
    found = run(text)
    name = text.split(":")[1].split("@")[0]
    digests = [step["state"].get(name) for step in found.steps]  # the average is known when it has changed
    assert len(set(digests[4:])) == 1
    assert len(set(digests[:5])) == 5
    assert (found.losses == plain[0]) == ("batchnorm" in text)  # in training mode its statistics are not used


def test_a_frozen_teacher_is_never_used_with_an_update(run: Run) -> None:
    """A teacher that is frozen at the first cut it exists at gives the loss of one whose decay is 1 from then on."""
    found = run("freeze:teacher.params@5")

    def frozen() -> tuple[list[float], list[list[int]]]:
        original = AveragedModel.update_parameters
        calls = 0

        def update(average: Any, net: Any) -> None:
            nonlocal calls
            calls += 1
            if calls < 5:
                original(average, net)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AveragedModel, "update_parameters", update)
            return train()

    assert frozen()[0] == found.losses


@pytest.mark.slow
def test_recalibration_uses_the_batches_before_it_and_moves_no_stream(run: Run, plain: Any) -> None:
    found = run("recalibrate:model.batchnorm:3@5")
    (line,) = found.acts
    assert line["changed"] == ["model.batchnorm"]
    assert line["rng"]["before"] == line["rng"]["after"]
    assert found.losses == plain[0]  # the statistics are not used in training mode
    assert found.steps[5]["state"]["model.batchnorm"] != line["state"]["before"]["model.batchnorm"]


@pytest.mark.slow
def test_lag_and_transplant_put_back_what_the_run_held(run: Run) -> None:
    found = run("lag:model.params:2@5", "transplant:optimizer.momentum:#1@6", "reset:model.params@9")
    lag, transplant, reset = found.acts
    assert lag["state"]["after"]["model.params"] == found.steps[2]["state"]["model.params"]
    assert transplant["state"]["after"]["optimizer.momentum"] == found.steps[1]["state"]["optimizer.momentum"]
    start = next(line["state"] for line in found.lines if line["t"] == "inventory" and "state" in line)
    assert reset["state"]["after"]["model.params"] == start["model.params"]
    assert [line["changed"] for line in found.acts] == [["model.params"], ["optimizer.momentum"], ["model.params"]]


@pytest.mark.slow
def test_fork_redraws_streams_and_the_rest_of_the_epoch(run: Run, plain: Any) -> None:
    found, again, other = run("fork:7@3"), run("fork:7@3"), run("fork:8@3")
    (line,) = found.acts
    moved = {name for name, digest in line["rng"]["before"].items() if line["rng"]["after"][name] != digest}
    assert moved == line["rng"]["before"].keys()
    assert found.losses == again.losses != other.losses
    assert found.samples[:3] == plain[1][:3]
    assert found.samples[3:EPOCH] != plain[1][3:EPOCH]
    assert sorted(flat(found.samples[:EPOCH])) == sorted(flat(plain[1][:EPOCH]))
    assert found.samples[EPOCH : 2 * EPOCH] != plain[1][EPOCH : 2 * EPOCH]
    kept = run("fork:7:order@3")
    assert kept.samples[:EPOCH] == plain[1][:EPOCH]


def test_windows_are_swapped_within_the_epoch_and_nothing_else_moves(run: Run, plain: Any) -> None:
    found = run("swap_windows:order:1-2:3-4@2")
    order = plain[1]
    assert found.samples == [*order[:3], order[5], order[4], order[3], *order[6:]]
    (line,) = found.acts
    assert line["changed"] == []
    assert line["order"]["windows"] == [{"from": 1, "to": 2}, {"from": 3, "to": 4}]
    assert {"multiset", "before", "after"} <= line["order"].keys()


@pytest.mark.slow
def test_windows_are_step_numbers_where_no_step_is_named(run: Run, plain: Any) -> None:
    found = run("swap_windows:order:0-2:3-5")
    order = plain[1]
    assert found.samples == [*order[3:5], order[2], *order[:2], *order[5:]]
    (line,) = found.acts
    assert (line["i"], line["changed"]) == (0, [])
    later = run("swap_windows:order:9-10:12-13")
    assert later.samples == [*order[:9], order[12], *order[10:12], order[9], *order[13:]]


@pytest.mark.slow
def test_a_window_is_permuted_by_a_seed_of_its_own(run: Run, plain: Any) -> None:
    found = run("permute_window:order:0-6:3@1")
    assert found.samples != plain[1]
    assert sorted(found.samples[1:7]) == sorted(plain[1][1:7])
    assert (found.samples[0], found.samples[7:]) == (plain[1][0], plain[1][7:])


@pytest.mark.slow
def test_a_policy_draws_samples_in_another_way_from_then_on(run: Run, plain: Any) -> None:
    found = run("policy:order:fixed@8")
    assert found.samples[:16] == plain[1][:16]
    assert found.samples[16:20] == found.samples[8:12]
    replaced = run("policy:order:with-replacement:1@8")
    assert replaced.samples[:8] == plain[1][:8]
    assert len(set(flat(replaced.samples[8:16]))) < 64


@pytest.mark.slow
def test_the_missing_slots_of_an_optimizer_are_no_ops(run: Run, plain: Any) -> None:
    found = run("reset:optimizer.momentum@5", "scale:optimizer.momentum:2@5")
    first, second = found.acts
    assert (first["changed"], second["changed"]) == (["optimizer.momentum"], [])
    assert second["note"] == "SGD has not made it yet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("reset:nothing@3", "there is no such component"),
        ("reset:optimizer.exp_avg@3", "there is no such component"),
        ("swap_windows:order:2-4:6-8@3", "over the end of an epoch"),
        ("truncate:model.params/0.weight:2@3", "which entries are the newest"),
        ("decay:model.params:0.5@3", "not an average"),
        ("noise:optimizer.hyper:0.1:1@3", "plain values"),
        ("transplant:optimizer.momentum:nowhere#3@3", "nowhere"),
        ("equalise:optimizer.momentum:other@3", "no other arm"),
        ("lag:model.params:5@3", "before the run"),
        ("fork:1:rng@3", "no stream of this name"),
    ],
)
def test_a_script_ends_where_it_cannot_be_intervened_on(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match=why) as error:
        Recorded(tmp_path, [text], train)
    assert "the script ends here" in str(error.value)


def test_a_text_that_says_nothing_is_refused_before_the_block() -> None:
    with pytest.raises(UsageError, match="no such intervention"):
        Recorder("run", interventions=["wish@3"])
    with pytest.raises(UsageError, match="without a step"):
        Recorder("run", interventions=["carry"])


@pytest.mark.slow
def test_what_a_run_does_not_come_to_is_not_recorded_and_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("carry@500")
    assert found.statement is not None
    assert "an intervention that was not made: carry@500" in found.statement.predicate.not_recorded
    assert "carry@500" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"workers": 1}, "num_workers=0"),
        ({"sampler": range(64)}, "builtins"),
    ],
    ids=["workers", "range"],
)
def test_an_order_that_cannot_be_planned_is_refused(how: Any, why: str, tmp_path: Path) -> None:
    if why == "builtins":  # a range is no sampler of the script's own: it can be planned
        assert Recorded(tmp_path, ["swap_windows:order:0-1:2-3@1"], lambda: train(**how)).acts
        return
    with pytest.raises(InterventionError, match=why):
        Recorded(tmp_path, ["swap_windows:order:0-1:2-3@1"], lambda: train(**how))


class Own(torch.utils.data.Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(64))

    def __len__(self) -> int:
        return 64


@pytest.mark.slow
def test_a_sampler_of_the_scripts_own_may_look_at_what_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="Own"):
        Recorded(tmp_path, ["swap_windows:order:0-1:2-3@1"], lambda: train(sampler=Own()))


@pytest.mark.slow
def test_a_swap_across_a_ragged_last_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="different sizes"):
        Recorded(tmp_path, ["swap_windows:order:0-1:6-7@1"], lambda: train(size=60))


SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 3)
net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
for epoch in range(2):
    for a, b in DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True):
        loss = (net(a) - b).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(loss.item())
torch.save(net.state_dict(), "net.pt")
"""
ACTS = ("reset:optimizer.momentum@3", "swap_windows:order:1-2:3-4@4", "fork:5@9", "kick:0.01:7@10")


@pytest.mark.slow
def test_a_script_under_interventions_replays_to_a_match(tmp_path: Path) -> None:
    there = tmp_path / "author"
    there.mkdir()
    (there / "train.py").write_text(SCRIPT)
    options = [word for text in ACTS for word in ("--intervene", text)]
    done = recorded(there, "train.py", home=tmp_path / "home", options=options)
    assert done.returncode == 0, done.stderr
    replay = replayed_here(there / "run")
    assert (replay.outcome, replay.steps_compared) == ("match", 16)
    prefix = replayed_here(there / "run", steps=4)
    assert (prefix.outcome, prefix.steps_compared) == ("match", 4)


@pytest.mark.slow
def test_a_script_under_a_placebo_runs_as_bare(tmp_path: Path) -> None:
    there, other = tmp_path / "author", tmp_path / "bare"
    for folder in (there, other):
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
    done = recorded(there, "train.py", home=tmp_path / "home", options=["--intervene", "placebo@3"])
    plain = bare(other, "train.py", home=tmp_path / "home", env={"PYTHONHASHSEED": "0"})
    assert done.stdout == plain.stdout
    assert (there / "net.pt").read_bytes() == (other / "net.pt").read_bytes()


@pytest.mark.slow
def test_a_script_that_cannot_be_intervened_on_ends_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = recorded(tmp_path, "train.py", home=tmp_path / "home", options=["--intervene", "reset:queue@3"])
    assert done.returncode == 2
    assert b"there is no such component" in done.stderr
    assert b"Traceback" not in done.stderr
    statement = json.loads((tmp_path / "run" / "steps.jsonl").read_text().splitlines()[-1])
    assert (statement["t"], statement["outcome"], statement["exitCode"]) == ("end", "raised", 2)
    assert "an intervention that was not made: reset:queue@3" in statement["notRecorded"]


UNSEEDED = """
import random
import torch
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(6):
    loss = (model(torch.ones(3, 2)) - random.random()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_run_that_starts_as_another_did_makes_a_pair_with_it(tmp_path: Path) -> None:
    """The script draws from a stream that it does not seed."""
    (tmp_path / "train.py").write_text(UNSEEDED)
    home = tmp_path / "home"
    acted = ("--intervene", "reset:optimizer.momentum@3")
    for name, options in (("a", ()), ("b", ("--streams-of", "a", *acted)), ("c", acted), ("d", ("--streams-of", "b"))):
        done = audit("record", "-q", "-d", name, *options, "train.py", cwd=tmp_path, home=home)
        assert done.returncode == 0, done.stderr
    said = {
        pair: audit("diff", *pair, "--paired", cwd=tmp_path, home=home).returncode
        for pair in (("b", "a"), ("c", "a"), ("b", "d"))
    }
    assert said == {("b", "a"): 0, ("c", "a"): 1, ("b", "d"): 0}
    for name in ("a", "b"):
        with DirectoryReader(tmp_path / name) as reader:
            contract = read_statement(reader).predicate.rng_contract
        assert contract.root_entropy is not None
        stated = contract.streams["python"]
        random.seed(start_seed(contract.root_entropy, "python"))
        assert python_stream().state == stated.state
    done = audit("record", "--streams-of", "nothing", "train.py", cwd=tmp_path, home=home)
    assert done.returncode == 2 and "nothing" in done.stderr
