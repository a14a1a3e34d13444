"""What is shipped (wheel, sdist, the wheel from it), and where each kind of installation finds its data."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA_FOLDERS = ("schema", "templates", "validators")
NOT_COPIED = (
    ".git",
    ".venv",
    "demo-out",
    "dist",
    "build",
    "out",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
)

WHERE = "from trainmem_audit.resources import data_root; print(*map(data_root, {folders!r}), sep='\\n')"


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    wheel_from_sdist: Path


def build(source: Path, out: Path, *options: str) -> None:
    # With the build backend at hand no isolated environment has to be made, and no network is needed.
    isolation = () if importlib.util.find_spec("hatchling") is None else ("--no-isolation",)
    command = [sys.executable, "-m", "build", *isolation, "--outdir", str(out), *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build everything from a copy of the tree."""
    base = tmp_path_factory.mktemp("distribution")
    shutil.copytree(ROOT, base / "tree", ignore=shutil.ignore_patterns(*NOT_COPIED))
    build(base / "tree", base / "direct", "--wheel")
    build(base / "tree", base / "both")  # an sdist, and a wheel from it
    (wheel,) = (base / "direct").glob("*.whl")
    (sdist,) = (base / "both").glob("*.tar.gz")
    (wheel_from_sdist,) = (base / "both").glob("*.whl")
    return Built(wheel, sdist, wheel_from_sdist)


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def locate(cwd: Path, *site: Path) -> list[Path]:
    """Ask an interpreter elsewhere for the data folders; `site` goes first on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, site))
    code = WHERE.format(folders=DATA_FOLDERS)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(built: Built) -> None:
    names = members(built.wheel)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trainmem_audit"}
    assert "trainmem_audit/py.typed" in names
    assert not [name for name in names if name.endswith((".pyc", ".pyo"))]
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trainmem_audit").rglob("*.py")}
    assert code <= names


@pytest.mark.parametrize("folder", DATA_FOLDERS)
def test_the_wheel_holds_every_data_file(built: Built, folder: str) -> None:
    shipped = members(built.wheel)
    expected = {
        f"trainmem_audit/_data/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected, f"{folder}/ holds no file"
    assert expected <= shipped, sorted(expected - shipped)


def test_the_wheel_has_the_licence_and_one_command(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    (entry_points,) = (text for name, text in texts.items() if name.endswith("entry_points.txt"))
    (metadata,) = (text for name, text in texts.items() if name.endswith("METADATA"))
    assert "trainmem-audit = trainmem_audit.__main__:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in texts)


def test_the_wheel_from_the_sdist_has_the_same_files(built: Built) -> None:
    assert members(built.wheel_from_sdist) == members(built.wheel)


def test_the_sdist_holds_what_the_project_is_tested_with(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md"):
        assert name in names
    for name in (
        "tests/test_distribution.py",
        "examples/demo.py",
        "examples/digits/train.py",
        "docs/threat-model.md",
    ):
        assert name in names
    assert not [name for name in names if name.startswith((".venv/", "demo-out/", "dist/", ".git/"))]


def test_an_installed_wheel_finds_its_data_inside_the_package(built: Built, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(built.wheel) as archive:  # a pure wheel is installed by unpacking it
        archive.extractall(site)
    assert locate(tmp_path, site) == [site / "trainmem_audit" / "_data" / folder for folder in DATA_FOLDERS]


def test_the_checkout_finds_its_data_beside_the_package(tmp_path: Path) -> None:
    assert locate(tmp_path, ROOT) == [ROOT / folder for folder in DATA_FOLDERS]


def test_an_editable_install_finds_the_checkout(tmp_path: Path) -> None:
    """Whatever installation the tests run in: it is found from anywhere, with its data."""
    for folder, path in zip(DATA_FOLDERS, locate(tmp_path), strict=True):
        assert path.name == folder
        assert any(path.iterdir())
