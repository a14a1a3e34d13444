"""`study.toml`: what is filled in, what is refused and how it is said, and the digest that all arms carry."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.studying import STUDIES, arrays_bytes, study_directory
from trainmem_audit.arrays import ArrayFile
from trainmem_audit.canonical import float_text
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.backflow import REGIMES
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.study.plan import Declared, read_plan, read_study

INVALID = {
    "no_toml": ("study.toml", "TOML"),
    "unknown_member": ("noise_stremas", "did you mean noiseStreams?"),
    "written_twice": ("noiseStreams", "keep one"),
    "no_seeds": ("seeds", "nothing"),
    "seed_twice": ("seeds", "different seeds"),
    "seed_as_float": ("seeds", "integers"),
    "true_for_a_count": ("noiseStreams", "True"),
    "step_below_zero": ("branchSteps", "0 or more"),
    "horizon_twice": ("horizons", "different steps"),
    "no_margin": ("analysis.equivalenceMargin", "a number"),
    "margin_of_nothing": ("analysis.equivalenceMargin", "between 0"),
    "alpha_of_one": ("analysis.alpha", "between 0 and 1"),
    "no_such_script": ("program.entry", "no such file"),
    "path_upwards": ("program.entry", "below the directory"),
    "seed_nowhere": ("program.arguments", "{seed}"),
    "secret_in_an_argument": ("program.arguments", "no secret"),
    "intervention_unknown": ("interventions.reset", "resett"),
    "intervention_with_a_step": ("interventions.reset", "branch_steps"),
    "intervention_as_table": ("interventions.reset", "text form"),
    "fork_by_hand": ("interventions.reset", "by itself"),
    "name_of_two_cases": ("interventions.reset", "more than case"),
    "name_with_a_slash": ("interventions.a/b", "letters, digits"),
    "name_of_a_null_player": ("interventions.kick", "a null player"),
    "windows_that_meet": ("interventions.reset", "overlap"),
    "window_of_nothing": ("interventions.reset", "an empty window"),
    "equalise_in_a_script": ("interventions.reset", "as a program"),
    "contrast_with_nobody": ("contrasts.reset.control", "carry"),
    "contrast_with_itself": ("contrasts.reset", "two different arms"),
    "contrast_of_no_family": ("contrasts.reset.family", "confirmatory or exploratory"),
    "combination_of_one": ("combinations.both", "two names"),
    "combination_of_strangers": ("combinations.both", "did you mean reset?"),
    "primary_at_no_horizon": ("primary.horizon", "one of 1, 3"),
    "primary_without_a_horizon": ("primary.horizon", "an integer"),
    "primary_of_no_contrast": ("primary.contrast", "did you mean reset?"),
    "primary_distance_of_a_functional": ("primary.observable", "a distance"),
    "primary_signed_of_a_distance": ("primary.observable", "a functional"),
    "law_effect_of_one_stream": ("primary.estimand", "two noise streams"),
    "no_task": ("task", "classification or regression"),
    "unknown_observable": ("observables", "total-variation"),
    "no_probe": ("probe.sha256", "`file`"),
    "no_such_probe": ("probe.file", "cannot be read"),
    "probe_that_is_none": ("train.py", "safetensors"),
    "probe_of_another_digest": ("probe.sha256", "that of the file"),
    "more_of_fewer_streams": ("fewer_streams.streams", "less than"),
    "fewer_streams_after_no_horizon": ("fewer_streams.after", "one of the horizons"),
    "regime_unknown": ("backFlow.regimes", "resonant-strong"),
    "regime_without_a_rate": ("backFlow.regimes.short.lr", "a number"),
    "regime_of_forgotten_steps": ("backFlow.regimes.short.steps", "from 1 to 24"),
    "regime_name_with_a_space": ("backFlow.regimes.so short", "hyphens"),
    "overlap_of_two": ("backFlow.regimes.short.overlap", "from 0 to 1"),
    "frozen_in_another_sense": ("backFlow.batchNorm", "batch-statistics or eval-mode"),
    "more_diagnostics_than_repeats": ("backFlow.diagnosticRepeats", "from 0 to 3"),
    "no_such_subject": ("backFlow.entry", "no such file"),
    "clip_of_nothing": ("backFlow.clip", "between 0"),
    "program_without_null_players": ("nullPlayers", "leave nullPlayers out"),
}


def declared(directory: Path, name: str) -> Declared:
    return read_study(study_directory(directory, STUDIES / f"{name}.toml"))


@pytest.mark.parametrize("path", sorted((STUDIES / "invalid").iterdir()), ids=lambda path: path.stem)
def test_an_invalid_study_is_refused_at_its_fault(path: Path, tmp_path: Path) -> None:
    where, said = INVALID[path.stem]
    with pytest.raises((UsageError, FormatError)) as caught:
        declared(tmp_path, f"invalid/{path.stem}")
    assert where in caught.value.where or where in str(caught.value).splitlines()[0]
    assert said in str(caught.value)


@pytest.mark.parametrize("path", sorted((STUDIES / "valid").iterdir()), ids=lambda path: path.stem)
def test_a_valid_study_fits_the_schema_and_comes_back(path: Path, tmp_path: Path) -> None:
    plan = declared(tmp_path, f"valid/{path.stem}").plan
    assert not our_schemas().findings(plan.to_json(), "plan")
    (tmp_path / "plan.json").write_bytes(plan.canonical())
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.digest == hashlib.sha256((tmp_path / "plan.json").read_bytes()).hexdigest()


def test_what_is_left_out_is_filled_in_and_said(tmp_path: Path) -> None:
    study = declared(tmp_path, "valid/small")
    plan = study.plan
    assert {name: item.primitive for name, item in plan.interventions.items()} == {
        "reset": "reset",
        "carry": "carry",
        "kick": "kick",
        "butterfly": "butterfly",
        "placebo": "placebo",
    }
    assert plan.interventions["kick"].sigma == float_text(1e-3) == plan.analysis.kick
    assert [(item.name, item.control, item.family) for item in plan.contrasts] == [
        ("reset", "carry", "confirmatory"),
        ("kick", "carry", "null-player"),
        ("butterfly", "carry", "null-player"),
        ("placebo", "carry", "null-player"),
    ]
    assert (plan.primary.contrast, plan.primary.estimand) == ("reset", "law-effect")
    assert plan.primary.observable == "total-variation"
    assert plan.probe.size == 10
    for said in ("SeedSequence(0)", "added a null player: kick", "reset against carry, confirmatory", "observables:"):
        assert any(said in note for note in study.notes), said


def test_null_players_of_a_script_can_be_left_out(tmp_path: Path) -> None:
    plan = declared(tmp_path, "valid/quiet_script").plan
    assert set(plan.interventions) == {"reset", "carry"}
    assert [item.name for item in plan.contrasts] == ["reset"]


def test_what_is_said_is_taken(tmp_path: Path) -> None:
    plan = declared(tmp_path, "valid/everything").plan
    assert plan.seeds == ("3", "18446744073709551615")
    assert plan.horizons == (1, 3, 30)
    assert plan.analysis.kick == float_text(0.01) == plan.interventions["shove"].sigma
    assert "kick" not in plan.interventions
    assert {item.name: item.family for item in plan.contrasts} == {
        "reset": "confirmatory",
        "half": "exploratory",
        "together": "confirmatory",
        "shove": "null-player",
        "butterfly": "null-player",
        "placebo": "null-player",
    }
    assert [item.primitive for item in plan.acting("both")] == ["reset", "swap-windows"]
    assert plan.horizons_of(0) == (1, 3, 30)
    assert plan.horizons_of(1) == (1, 3)


def test_arms_are_seeds_by_branches_by_streams_by_treatments(tmp_path: Path) -> None:
    plan = declared(tmp_path, "valid/everything").plan
    arms = [str(arm) for arm in plan.arms()]
    assert len(arms) == len(set(arms)) == 2 * 2 * 4 * len(plan.treatments)
    assert "reset.s1.b8.r3" in arms
    assert "swapped.s0.b4.r0" not in arms, "only the combination is in a contrast"


def test_drawn_seeds_are_distinct_and_grow_at_their_end(tmp_path: Path) -> None:
    small = study_directory(tmp_path, STUDIES / "valid/small.toml")
    three = read_study(small).plan.seeds
    small.write_text(small.read_text().replace("seeds = 3", "seeds = 300"))
    many = read_study(small).plan.seeds
    assert many[:3] == three
    assert len(set(many)) == 300
    assert all(0 <= int(seed) < 2**32 for seed in many)
    small.write_text(small.read_text().replace("seeds = 300", "seeds = 3\nseed_base = 1"))
    assert not set(read_study(small).plan.seeds) & set(three)


def test_the_digest_is_of_content_not_of_spelling(tmp_path: Path) -> None:
    small = study_directory(tmp_path, STUDIES / "valid/small.toml")
    digest = read_study(small).plan.digest
    text = small.read_text()
    small.write_text(text.replace("noise_streams", "noiseStreams").replace("seeds = 3", "seed_base = 0\nseeds = 3"))
    assert read_study(small).plan.digest == digest
    small.write_text(text.replace("0.05", "0.06"))
    assert read_study(small).plan.digest != digest
    small.write_text(text)
    (tmp_path / "train.py").write_text("# another script\n")
    assert read_study(small).plan.digest != digest, "the plan binds the code"


def test_a_plan_that_is_not_canonical_is_refused(tmp_path: Path) -> None:
    plan = declared(tmp_path, "valid/small").plan
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json(), indent=1))
    with pytest.raises(FormatError, match="canonical"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "none.json")


def array_file(data: bytes) -> ArrayFile:
    return ArrayFile(io.BytesIO(data), len(data), "file")


def test_arrays_come_back() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2])
    file = array_file(arrays_bytes(x=x, y=y))
    assert np.array_equal(file.array("x"), x)
    assert np.array_equal(file.array("y"), y)
    with pytest.raises(FormatError, match="x y"):
        file.array("z")


@given(st.binary(max_size=200))
def test_a_file_of_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        array_file(data)


@given(st.integers(0, 300), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_is_refused_or_read_within_its_bounds(at: int, patch: bytes) -> None:
    whole = bytearray(arrays_bytes(x=np.zeros((2, 3), np.float32), y=np.zeros(2, np.int64)))
    whole[at : at + len(patch)] = patch
    try:
        file = array_file(bytes(whole))
        sizes = sum(file.array(name).nbytes for name in file.entries)
    except FormatError:
        return
    assert sizes <= 2 * len(whole)


def test_regimes_are_named_or_written_out(tmp_path: Path) -> None:
    study = declared(tmp_path, "valid/back_flow")
    part = study.plan.back_flow
    assert part is not None
    assert part.regimes["short"].to_json() == {
        "steps": 2,
        "lr": float_text(0.1),
        "momentum": float_text(0.5),
        "first": "weak",
        "other": "strong",
        "second": "none",
        "overlap": float_text(1.0),
        "sameClasses": True,
    }
    assert (part.weight_decay, part.clip, part.diagnostic_repeats) == (float_text(0.0), float_text(0.5), 3)
    assert part.sha256 == hashlib.sha256((STUDIES / "program.py").read_bytes()).hexdigest()
    text = (STUDIES / "valid" / "back_flow.toml").read_text()
    published, _, _ = text.partition("\n[back_flow.regimes")
    (tmp_path / "study.toml").write_text(published.replace('batch_norm = ["eval-mode", "batch-statistics"]\n', ""))
    study = read_study(tmp_path / "study.toml")
    assert study.plan.back_flow is not None
    assert study.plan.back_flow.regimes == REGIMES
    assert study.plan.back_flow.batch_norm == ("batch-statistics",)
    assert sum(note.startswith("back-flow: ") for note in study.notes) == 2
