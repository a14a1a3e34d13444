"""The search for a cause, over a fake runner: which experiments it makes, and what it calls proven."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from trainmem_audit.divergence import GRADIENT_PATH
from trainmem_audit.documents.findings import ComponentDifference, Difference
from trainmem_audit.documents.twice import Place, Twice
from trainmem_audit.pinning.pins import PINS, WATCHED, Pin
from trainmem_audit.twice.factors import FACTORS, Facts, factor, in_order_of_suspicion
from trainmem_audit.twice.search import Attempt, Pins, Verdict, runs_needed, search

ANYTHING = Facts(workers=2, cuda=True, channels_last=True)


def difference(step: int = 3, blame: str = "order.index") -> Difference:
    item = ComponentDifference(component=blame, cause=3, stage="step", expected="a", got="b")
    return Difference(step=step, stage="step", blame=blame, explanation="", components=(item,))


class FakeScript:
    """A script whose runs differ unless one of each group of pins in `needs` is pinned.

    Parameters
    ----------
    needs:
        Each entry is one source of variation, and the pins that take it away.
    rate:
        How often a free source shows itself.
    breaks:
        Pins with which the script fails.
    """

    def __init__(
        self,
        *needs: Iterable[Pin],
        rate: float = 1.0,
        breaks: Iterable[Pin] = (),
        blame: str = "order.index",
        facts: Facts = ANYTHING,
        fails: Callable[[int], str] = lambda _: "",
        stops: str = "",
        seed: int = 0,
    ) -> None:
        self.needs = [frozenset(need) for need in needs]
        self.made: list[Pins] = []
        self._outcomes: dict[int, int] = {}
        self._rate, self._breaks, self._blame, self._facts = rate, frozenset(breaks), blame, facts
        self._fails, self._stops = fails, stops
        self._random = random.Random(seed)

    def run(self, pins: Pins, dump: int | None = None) -> Attempt:
        number = len(self.made)
        self.made.append(pins)
        if reason := self._fails(number) or ("broken by the pin" if pins & self._breaks else ""):
            return Attempt(number, failed=reason)
        free = any(not need & pins for need in self.needs)
        shows = free and self._random.random() < self._rate
        self._outcomes[number] = number + 1 if shows else 0
        return Attempt(number, 20, stopped=self._stops, dumped=dump)

    def compare(self, a: Attempt, b: Attempt) -> Verdict:
        if self._outcomes[a.number] == self._outcomes[b.number]:
            return Verdict(20)
        return Verdict(3, difference(blame=self._blame))

    def measure(self, difference: Difference, a: Attempt, b: Attempt) -> Difference:
        assert a.dumped == b.dumped == difference.step
        return difference.model_copy(update={"explanation": "measured"})

    def facts(self) -> Facts:
        return self._facts

    def places(self, pins: Pins) -> tuple[Place, ...]:
        return (Place(file="train.py", line=7, text="time.time()"),) * 2 if "clock" in pins else ()


def causes(found: Twice) -> list[str]:
    return [cause.factor for cause in found.causes]


def experiment(found: Twice, *factors: str) -> str:
    return next(item.outcome for item in found.experiments if item.factors == factors)


def test_a_script_that_does_not_vary_is_equal_after_two_runs() -> None:
    script = FakeScript()
    found = search(script, "train.py")
    assert (found.verdict, found.exit_code, found.steps, len(script.made)) == ("equal", 0, 20, 2)


def test_more_runs_find_a_rare_difference() -> None:
    assert search(FakeScript({"turns"}, rate=0.15, seed=3), "train.py").verdict == "equal"
    found = search(FakeScript({"turns"}, rate=0.15, seed=3), "train.py", runs=30)
    assert found.verdict == "differs"
    assert found.runs > 2


@pytest.mark.parametrize("item", [item for item in FACTORS if not item.parts], ids=lambda item: item.name)
def test_every_factor_is_found_when_it_is_the_cause(item: object) -> None:
    wanted = factor(item.name)  # type: ignore[attr-defined]
    script = FakeScript(wanted.pins)
    found = search(script, "train.py")
    assert causes(found) == [wanted.name]
    assert found.proven
    assert found.exit_code == 1
    pinned = [number for number, pins in enumerate(script.made) if pins == wanted.pins]
    assert frozenset() in script.made[pinned[0] : pinned[-1]]  # unpinned runs in between, and then pinned ones again
    assert len(pinned) >= 6


@pytest.mark.parametrize("blame", ["order.index", GRADIENT_PATH, "optimizer.hyper", "rng.python"])
def test_the_cause_does_not_depend_on_what_was_suspected(blame: str) -> None:
    assert causes(search(FakeScript({"hash"}, blame=blame), "train.py")) == ["hash seed"]


@pytest.mark.parametrize("pin", ["rng.torch", "rng.python", "rng.numpy", "rng.numpy.entropy"])
def test_random_streams_are_narrowed_to_the_one(pin: Pin) -> None:
    found = search(FakeScript({pin}), "train.py")
    assert [item.pins for item in FACTORS[0].parts if item.name in causes(found)] == [{pin}]
    assert len(found.causes) == 1


def test_two_streams_that_both_vary_are_both_named() -> None:
    found = search(FakeScript({"rng.torch"}, {"rng.python"}), "train.py")
    assert causes(found) == ["start of torch's generators", "start of Python's random"]
    assert found.proven


def test_causes_of_which_none_alone_is_enough_are_all_named_and_no_other() -> None:
    found = search(FakeScript({"rng.numpy"}, {"clock"}, {"hash"}), "train.py")
    assert sorted(causes(found)) == ["clock", "hash seed", "start of NumPy's global generator"]
    assert experiment(found, "all together") == "equal"
    assert found.proven


def test_what_nothing_cures_is_said_after_all_together() -> None:
    script = FakeScript(set())
    found = search(script, "train.py")
    assert (found.verdict, found.causes, found.proven, found.exit_code) == ("differs", (), False, 1)
    assert found.experiments[-1].factors == ("all together",)
    assert len(script.made) == 12  # 2 to see it, 2 to measure it, 3 factors alone and all together: 2 each


def test_the_first_experiment_that_cures_ends_the_search() -> None:
    found = search(FakeScript({"threads"}, blame=GRADIENT_PATH), "train.py")
    made = [item.factors for item in found.experiments if item.outcome != "skipped"]
    assert made == [("number of threads",), ("deterministic algorithms",)]  # the second may be the better remedy


def test_a_rival_that_cures_too_is_a_remedy() -> None:
    found = search(FakeScript({"threads", "deterministic"}, blame=GRADIENT_PATH), "train.py")
    lines = [line for remedy in found.causes[0].remedies for line in remedy.lines]
    assert lines[:2] == ["torch.set_num_threads(1)", "torch.use_deterministic_algorithms(True)"]


def test_a_pin_that_breaks_the_script_is_said_and_left_out_of_all_together() -> None:
    script = FakeScript({"addresses"}, {"empty"}, breaks={"rng.torch"})
    found = search(script, "train.py")
    assert experiment(found, "random streams") == "failed"
    assert sorted(causes(found)) == ["memory addresses", "uninitialised memory"]


def test_factors_that_cannot_matter_are_skipped_with_the_reason() -> None:
    facts = Facts(loaders=False, threads=1, hash_fixed=True, addresses=False, asked=frozenset())
    script = FakeScript(set(), facts=facts)
    found = search(script, "train.py")
    skipped = {name for item in found.experiments if item.outcome == "skipped" for name in item.factors}
    assert {item.name for item in FACTORS} - skipped == {"random streams", "deterministic algorithms"}
    assert all(item.detail for item in found.experiments if item.outcome == "skipped")
    idle: set[str] = {"clock", "turns", "entropy", "empty", "hash", "threads", "workers", "cudnn"}
    assert not any(pins & idle for pins in script.made)


def test_a_difference_that_shows_rarely_takes_more_equal_runs() -> None:
    assert [runs_needed(rate) for rate in (0.0, 0.05, 0.25, 0.5, 1.0)] == [3, 3, 6, 12, 15]
    wrong = [
        seed
        for seed in range(100)
        if causes(search(FakeScript({"turns"}, rate=0.5, seed=seed), "train.py", runs=20))
        != ["order of the script's threads"]
    ]
    assert len(wrong) <= 5, f"another cause than the race by luck, with seeds {wrong}"


def test_a_difference_that_does_not_come_back_proves_nothing() -> None:
    script = FakeScript({"turns"})
    real = script.run

    def run(pins: Pins, dump: int | None = None) -> Attempt:
        if any("turns" in made for made in script.made):
            script.needs = []  # whatever it was has gone away meanwhile
        return real(pins, dump)

    script.run = run  # type: ignore[method-assign]
    found = search(script, "train.py")
    assert found.causes
    assert not found.proven
    assert "equal too" in found.evidence


def test_the_difference_shown_is_the_measured_one() -> None:
    found = search(FakeScript({"clock"}), "train.py")
    assert found.difference is not None
    assert found.difference.explanation == "measured"
    assert found.causes[0].places == (Place(file="train.py", line=7, text="time.time()"),)  # once


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_fails_leaves_it_undecided(first: int) -> None:
    found = search(FakeScript({"hash"}, fails=lambda number: "no step" if number == first else ""), "train.py")
    assert (found.verdict, found.reason, found.exit_code) == ("undecided", "no step", 3)


def test_equal_as_far_as_it_got_is_undecided() -> None:
    found = search(FakeScript(stops="the script failed"), "train.py")
    assert (found.verdict, found.reason, found.exit_code) == ("undecided", "the script failed", 3)
    assert search(FakeScript({"hash"}, stops="the script failed"), "train.py").verdict == "differs"


def test_every_factor_has_a_remedy_and_known_pins() -> None:
    parts = [part for item in FACTORS for part in (item, *item.parts)]
    for item in parts:
        assert item.pins <= set(PINS)
        assert all(remedy.lines for remedy in item.remedies(ANYTHING))
        assert item.idle(ANYTHING) == ""
    assert {pin for item in parts for pin in item.pins} == set(PINS)
    assert set(PINS) >= WATCHED
    assert len(in_order_of_suspicion(difference())) == len(FACTORS)
