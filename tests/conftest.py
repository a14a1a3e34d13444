"""One small real run for all tests: recorded once through the command line, copied for each test that wants one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools import SCRIPTS, Run, record

pytest.register_assert_rewrite("tests.specimens")


@pytest.fixture(scope="session")
def recorded_once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run of `scripts/tiny.py`; never change it."""
    where = tmp_path_factory.mktemp("tiny")
    return Run(record(SCRIPTS / "tiny.py", where, home=where / "home"), where / "home")


@pytest.fixture
def run(recorded_once: Run, tmp_path: Path) -> Run:
    """Return a copy of that run, to be damaged; `home` holds the author's key."""
    path = tmp_path / "run"
    shutil.copytree(recorded_once.path, path)
    return Run(path, recorded_once.home)
