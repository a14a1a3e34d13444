"""What a hostile record can make a replay run: nothing outside of the scratch copy, and none of its own environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import builders
from trainmem_audit.errors import FormatError
from trainmem_audit.replaying import child


def order(tmp_path: Path, **command: Any) -> dict[str, Any]:
    signed = builders.statement().predicate
    return child._order(
        signed.model_copy(update={"command": signed.command.model_copy(update=command)}), tmp_path, tmp_path / "record"
    )


@pytest.mark.parametrize(
    "entry",
    ["{cwd}/../../etc/x.py", "/etc/x.py", "{cwd}//etc/x.py", "{site}/../x.py", "x.py", "{cwd}/a\x00.py", "{home}/x.py"],
)
def test_a_script_outside_of_the_tree_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(FormatError):
        order(tmp_path, kind="script", entry=entry)


@pytest.mark.parametrize("entry", ["../x", "a b", "os; import x", "", "a..b", "-c"])
def test_what_is_no_module_name_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(FormatError):
        order(tmp_path, kind="module", entry=entry)


def test_ordinary_entries_lead_into_the_tree(tmp_path: Path) -> None:
    assert order(tmp_path, kind="script", entry="{cwd}/sub/train.py")["entry"] == "sub/train.py"
    assert order(tmp_path, kind="script", entry="{script}/train.py")["entry"] == "_script/train.py"
    assert order(tmp_path, kind="module", entry="lab.train")["entry"] == "lab.train"


def test_only_the_numeric_profile_is_taken_from_a_recorded_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    signed = builders.statement().predicate
    recorded = {"LD_PRELOAD": "/tmp/evil.so", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3; rm -rf /", "BASH_ENV": "x"}
    hostile = signed.environment.model_copy(update={"variables": recorded})
    found = child._environment(signed.model_copy(update={"environment": hostile}), tmp_path)
    assert found["OMP_NUM_THREADS"] == "3"
    assert not {"LD_PRELOAD", "MKL_NUM_THREADS", "BASH_ENV"} & found.keys()
