"""The copies that runs start from: the same every time, and the user's directory is never written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainmem_audit.errors import UsageError
from trainmem_audit.twice import tree as trees
from trainmem_audit.twice.tree import Trees


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """Return a working directory beside a data directory."""
    cwd = tmp_path / "home" / "project"
    (cwd / "package").mkdir(parents=True)
    (tmp_path / "home" / "data").mkdir()
    (tmp_path / "home" / "data" / "x.txt").write_text("data")
    (cwd / "train.py").write_text("print('train')")
    (cwd / "package" / "model.py").write_text("MODEL = 1")
    return cwd


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return where the copies go."""
    root = tmp_path / "scratch"
    root.mkdir()
    return root


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_every_copy_is_new_and_at_the_same_place(cwd: Path, root: Path) -> None:
    copies = Trees(root, cwd)
    first = copies.fresh()
    before = listing(first)
    (first / "last.pt").write_text("a checkpoint")
    (first / "train.py").write_text("changed")
    (first / "package" / "model.py").unlink()
    assert copies.fresh() == first
    assert listing(first) == before == listing(cwd)
    assert first.name == "project"


def test_what_lies_around_is_where_it_was(cwd: Path, root: Path) -> None:
    tree = Trees(root, cwd).fresh()
    assert (tree / ".." / "data" / "x.txt").read_text() == "data"
    assert (tree.parent.parent / "scratch").is_dir()
    (cwd / "sub").mkdir()
    (cwd / "train.py").rename(cwd / "sub" / "train.py")
    inner = Trees(root, cwd / "sub").fresh()
    assert (inner / ".." / "package" / "model.py").read_text() == "MODEL = 1"


def test_caches_and_runs_are_left_out_and_version_control_is_linked(cwd: Path, root: Path) -> None:
    for name in ("__pycache__/a.pyc", ".git/HEAD", "venv/pyvenv.cfg", "run/steps.jsonl", "run/tensors.b3", "out/x.csv"):
        path = cwd / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    tree = Trees(root, cwd).fresh()
    assert sorted(os.listdir(tree)) == [".git", "out", "package", "train.py", "venv"]  # noqa: PTH208
    assert (tree / ".git").readlink() == cwd / ".git"
    assert (tree / "venv").is_symlink()
    assert not (tree / "out").is_symlink()


def test_a_large_file_is_shared_and_made_anew_when_a_run_has_changed_it(
    cwd: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_LARGE", 100)
    (cwd / "big.bin").write_bytes(bytes(1000))
    copies = Trees(root, cwd)
    target = copies.fresh() / "big.bin"
    shared = target.readlink()
    assert shared.is_relative_to(root)
    copies.fresh()
    assert target.readlink() == shared
    target.write_bytes(b"overwritten through the link")
    copies.fresh()
    assert target.read_bytes() == bytes(1000) == (cwd / "big.bin").read_bytes()
    assert any("big.bin" in note for note in copies.notes)


def test_a_directory_of_many_files_is_shared_too(cwd: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_MANY", 5)
    (cwd / "images").mkdir()
    for number in range(8):
        (cwd / "images" / f"{number}.txt").write_text(str(number))
    copies = Trees(root, cwd)
    tree = copies.fresh()
    assert (tree / "images").is_symlink()
    (tree / "images" / "cache.npy").write_text("made by a run")
    assert len(list((copies.fresh() / "images").iterdir())) == 8
    assert len(list((cwd / "images").iterdir())) == 8


def test_links_lead_into_the_copy_or_stay(cwd: Path, root: Path) -> None:
    (cwd / "inner").symlink_to(cwd / "package")
    (cwd / "relative").symlink_to("package/model.py")
    (cwd / "outer").symlink_to(cwd.parent / "data")
    copies = Trees(root, cwd)
    tree = copies.fresh()
    assert (tree / "inner").resolve() == tree / "package"
    assert (tree / "relative").resolve() == tree / "package" / "model.py"
    assert (tree / "outer").resolve() == cwd.parent / "data"
    assert [note for note in copies.notes if "outer" in note and "inner" not in note]


def test_a_path_that_is_only_read_is_linked_where_it_is(cwd: Path, root: Path) -> None:
    (cwd / "data").mkdir()
    assert (Trees(root, cwd, (Path("data"),)).fresh() / "data").readlink() == cwd / "data"
    for wrong in (Path("nothing"), Path("/etc"), Path()):
        with pytest.raises(UsageError, match="no such path"):
            Trees(root, cwd, (wrong,))


def test_a_directory_that_is_too_large_is_refused_with_the_remedy(
    cwd: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_MOST_BYTES", 1000)
    (cwd / "data").mkdir()
    (cwd / "data" / "x").write_bytes(bytes(2000))
    with pytest.raises(UsageError, match="too large") as caught:
        Trees(root, cwd)
    assert "--link data" in caught.value.remedy
    Trees(root, cwd, (Path("data"),))


def test_arguments_that_name_the_directory_lead_into_the_copy(cwd: Path, root: Path) -> None:
    copies = Trees(root, cwd)
    assert copies.argument(f"{cwd}/package") == f"{copies.tree}/package"
    assert copies.argument(f"--data={cwd}") == f"--data={copies.tree}"
    for same in ("--epochs=2", "data/x", f"{cwd}-other", "", f"a={cwd}"):
        assert copies.argument(same) == same


def test_a_scratch_directory_inside_of_it_is_not_copied_into_itself(cwd: Path) -> None:
    root = cwd / "tmp" / "twice-x"
    root.mkdir(parents=True)
    tree = Trees(root, cwd).fresh()
    assert (tree / "tmp").is_dir()
    assert not (tree / "tmp" / "twice-x").exists()


def test_what_may_not_be_read_is_linked(cwd: Path, root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (cwd / "secret").write_text("x")
    (cwd / "secret").chmod(0)
    assert (Trees(root, cwd).fresh() / "secret").is_symlink()
