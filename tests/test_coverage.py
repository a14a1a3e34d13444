"""The simulation study: it computes what the library computes, its committed figures hold what is promised of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import coverage
from trainmem_audit.estimands import seed_floor
from trainmem_audit.intervals import (
    Interval,
    jackknife_t,
    log_t_interval,
    ratio_interval,
    simulated_coverage,
    skewness,
    t_interval,
    tost,
)

ROOT = Path(__file__).resolve().parent.parent
FIGURES: dict[str, Any] = json.loads(coverage.RESULTS.read_text(encoding="utf-8"))


def same(found: Interval, rows: coverage.Rows, study: int) -> bool:
    half = (found.high - found.low) / 2
    expected = (rows.estimate[study], rows.half[study], rows.skewness[study])
    return (found.estimate, half, found.skewness) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("units", [3, 5, 12])
def test_the_simulation_computes_what_the_library_computes(units: int) -> None:
    x = np.random.default_rng(units).normal(0.4, 1, (6, units))
    below = np.exp(0.3 * x[::-1])
    for study in range(6):
        assert same(t_interval(x[study]), coverage.t_rows(x), study)
        assert same(ratio_interval(x[study], below[study]), coverage.ratio_rows(x, below), study)
        far = np.abs(x[study][:, None] - x[study][None])
        whole, without = seed_floor({(i, j): far[i, j] for i in range(units) for j in range(i)})
        found = jackknife_t(math.log(whole), np.log([without[i] for i in range(units)]).tolist(), units)
        assert same(found, coverage.pair_rows(far[None]), 0)
        inside = bool(coverage._tost(x, 1.5)[study])
        assert inside == (tost(t_interval(x[study]), 1.5).p <= 0.05)
    assert log_t_interval(np.exp(x[0])).skewness == pytest.approx(skewness(x[0]), rel=1e-9)


def test_populations_have_mean_zero_variance_one_and_their_skewness() -> None:
    rng = np.random.default_rng(0)
    for draw in coverage.DISTRIBUTIONS.values():
        for nested in (False, True):
            x = coverage.seeds_of(draw, rng, 100_000, 2, nested)
            assert (x.mean(), x.var()) == pytest.approx((0, 1), abs=0.1)
    for skew in (0.5, 1.0, 2.0):
        for draw in (coverage.gamma_of(skew), coverage.lognormal_of(skew)):
            x = draw(rng, (400_000,))
            assert (x.mean(), x.var()) == pytest.approx((0, 1), abs=0.03)
            assert (x**3).mean() == pytest.approx(skew, rel=0.1)


@pytest.mark.parametrize("kind", coverage.KINDS)
def test_normal_differences_are_covered(kind: str) -> None:
    """Of what is committed, at every number of seeds that is promised."""
    rows = [row for row in FIGURES["intervals"][kind] if row["distribution"] == "normal"]
    assert {row["units"] for row in rows} == {3, 5, 8, 10, 20}
    assert min(row["coverage"] for row in rows) >= 0.935


@pytest.mark.parametrize("test", ["sign-flip", "tost", *coverage.FAMILIES])
def test_the_size_under_normality_is_at_most_six_percent(test: str) -> None:
    rows = [row for row in FIGURES["tests"] if row["test"] == test and row["distribution"] in ("normal", test)]
    assert {row["units"] for row in rows} == {3, 5, 8, 10, 20}
    assert max(row["size"] for row in rows) <= 0.06


def test_the_size_of_the_law_test_is_three_to_seven_percent_where_it_can_be_reached() -> None:
    rows = [row for row in FIGURES["law"] if not row["shift"]]
    for row in rows:
        assert row["size"] <= 0.06
        if row["smallestP"] < 0.005 and (row["streams"] > 2 or row["directions"] > 1):
            assert row["size"] >= 0.03, row
    found = {(row["units"], row["streams"]): row["size"] for row in FIGURES["law"] if row["shift"]}
    assert found[8, 4] > 0.7


def test_the_page_and_the_table_are_those_of_the_committed_figures() -> None:
    assert coverage.page(FIGURES) == coverage.PAGE.read_text(encoding="utf-8"), coverage.REMEDY
    assert coverage.lookup(FIGURES) == coverage.TABLE.read_bytes(), coverage.REMEDY


def test_every_interval_finds_its_coverage() -> None:
    for kind in coverage.KINDS:
        for units in range(2 if kind != "jackknife-t-pairs" else 3, 200):
            for skew in (math.nan, 0.0, -0.4, 1.7, -9.0):
                assert 0.5 < simulated_coverage(kind, units, skew) < 0.99
    assert simulated_coverage("t", 7, 0.1) == simulated_coverage("t", 6, 0.1)
    assert simulated_coverage("t", 500, 0.1) == simulated_coverage("t", 30, 0.1)
    assert simulated_coverage("t", 5, -2) == simulated_coverage("t", 5, 2) < simulated_coverage("t", 5, 0)
    assert math.isnan(simulated_coverage("t", 1, 0))
    assert math.isnan(simulated_coverage("bootstrap", 5, 0))


def test_more_skewness_never_covers_more() -> None:
    for bins in json.loads(coverage.TABLE.read_bytes())["methods"].values():
        for cells in bins.values():
            assert cells == sorted(cells, reverse=True)
            assert len(cells) == len(coverage.EDGES) + 1


def test_a_small_study_repeats_bit_for_bit() -> None:
    first, second = (coverage.simulate_tests(np.random.default_rng(1), 4) for _ in range(2))
    assert first == second


def test_a_real_population_is_resampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(0, 0.4, (200, 2))
    for name, population, words in (("one", values[:, 0], "log-t"), ("two", values, "ratio")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(population.tolist()))
        command = [sys.executable, "benchmarks/coverage.py", "--population", str(path), "--simulations", "2000"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert words in done.stdout
        covered = float(done.stdout.split("\n")[4].split()[-1])
        assert 88 < covered < 98
    bad = tmp_path / "bad.json"
    bad.write_text("[[1, 2, 3]]")
    command[3] = str(bad)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a population is" in done.stderr
    assert "Traceback" not in done.stderr
