"""The architecture, read from the imports: layers, cycles, where torch is, data folders without code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from trainmem_audit.documents.common import Document
from trainmem_audit.documents.steplog import LINE_TYPES
from trainmem_audit.documents.studies import STUDY_LINE_TYPES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "trainmem_audit"
DATA_FOLDERS = ("schema", "templates", "validators")

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "canonical", "resources", "text"),
    ("documents",),
    (
        *(
            "privacy",
            "commitments",
            "merkle",
            "contract",
            "snapshots",
            "arrays",
            "interventions",
            "sizes",
            "norms",
            "lineforms",
            "interventions",
            "observations",
            "steplog",
            "studylog",
            "sidefiles",
        ),
        *("divergence", "pairing", "checkpoints", "segments", "conformance", "versions", "gathering", "checks"),
        *("elementary", "distances", "estimands", "intervals", "seedtables", "estimation", "backflows", "witnesses"),
    ),
    ("envelope", "keys", "trust", "attestations", "rundir", "runs", "pathlength", "packing", "assemble"),
    ("digests", "sources", "intervening", "recording", "replaying", "programs", "pinning"),
    (
        "verify",
        "parentage",
        "compliance",
        "studycheck",
        "explain",
        "handbook",
        "report",
        "show",
        "screen",
        "formats",
        "doctor",
        "twice",
        "study",
        "figures",
        "study_report",
        "schema_page",
    ),
    ("cli", "__main__"),
)
TORCH_LAYER = 4
ROOT_NAMES = {"__version__"}
"""What a module may take from the package itself; everything else there is lazy and lives higher up."""


def module_name(path: Path, base: Path = ROOT) -> str:
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    if len(parts) == 1:
        return 0
    return next((number for number, names in enumerate(LAYERS) if parts[1] in names), None)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, str]]:
    """Give (line, module, name or "") for every import, wherever it stands, by a constant name too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            case ast.ImportFrom():
                origin = node.module or ""
                if node.level:
                    parts = module.split(".")
                    parents = parts[: len(parts) - node.level + is_package]
                    origin = ".".join([*parents, origin] if origin else parents)
                yield from ((node.lineno, origin, alias.name) for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name, ""


def imports_of(path: Path, module: str) -> list[tuple[int, str, str]]:
    return list(imports(ast.parse(path.read_text(encoding="utf-8")), module, path.stem == "__init__"))


def inner_imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str, str]]:
    """Give (line, imported module of the package, name taken from it)."""
    for line, origin, name in imports_of(path, module):
        if origin.split(".")[0] != PACKAGE:
            continue
        if f"{origin}.{name}" in modules:
            yield line, f"{origin}.{name}", ""
        else:
            yield line, origin, name


def test_every_module_is_in_a_layer() -> None:
    homeless = [module for module in sources() if layer_of(module) is None]
    assert not homeless, f"in no layer: {homeless}; add them to LAYERS and to the docstring of the package"


def test_the_package_docstring_names_every_module_of_the_layers() -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    present = {module.split(".")[1] for module in sources() if "." in module}
    missing = sorted(name for name in present if f"`{name}`" not in docstring)
    assert not missing, f"the docstring of {PACKAGE} does not name {missing}"


def test_a_module_imports_only_from_its_own_layer_or_lower_ones() -> None:
    modules = sources()
    wrong = []
    for module, path in modules.items():
        if module == PACKAGE:
            continue
        own = layer_of(module)
        for line, target, name in inner_imports(module, path, modules):
            layer = layer_of(target)
            if target == PACKAGE and name not in ROOT_NAMES:
                wrong.append(f"{path.relative_to(ROOT)}:{line} takes {name or 'everything'} from {PACKAGE}")
            elif own is not None and layer is not None and layer > own:
                wrong.append(f"{path.relative_to(ROOT)}:{line} L{own} imports L{layer} {target}")
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_nothing_of_its_own_when_it_is_imported() -> None:
    path = ROOT / PACKAGE / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = (ast.FunctionDef, ast.If)  # functions, and `if TYPE_CHECKING:`
    lazy = {id(node) for block in tree.body if isinstance(block, later) for node in ast.walk(block)}
    eager = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in lazy and PACKAGE in ast.unparse(node)
    ]
    assert not eager, f"imports at the top of {path.relative_to(ROOT)}: lines {eager}"


def test_no_import_cycles() -> None:
    modules = sources()
    graph = {
        module: {target for _, target, _ in inner_imports(module, path, modules) if target not in (module, PACKAGE)}
        for module, path in modules.items()
        if module != PACKAGE
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " → ".join(error.args[1]))


def test_torch_is_imported_in_its_layer_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for module, path in sources().items()
        if layer_of(module) != TORCH_LAYER
        for line, target, _ in imports_of(path, module)
        if target.split(".")[0] in {"torch", "safetensors"}
    ]
    assert not wrong, f"torch outside of L{TORCH_LAYER}: {wrong}"


@pytest.mark.parametrize("folder", DATA_FOLDERS)
def test_data_folders_are_no_packages(folder: str) -> None:
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_nobody_imports_a_data_folder() -> None:
    folders = (PACKAGE, "tests", "examples", "benchmarks", *DATA_FOLDERS)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, target, _ in imports_of(path, module_name(path))
        if target.split(".")[0] in DATA_FOLDERS
    ]
    assert not wrong, f"data folders are loaded by path, through `resources`: {wrong}"


@pytest.mark.parametrize("model", [*LINE_TYPES.values(), *STUDY_LINE_TYPES.values()], ids=lambda model: model.__name__)
def test_chain_sorts_before_every_other_member_of_a_line(model: type[Document]) -> None:
    """Decision 0002: the body of a line is a splice of it."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    assert min(names) == "chain", f"these sort before `chain`: {sorted(n for n in names if n < 'chain')}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import torch.nn", [("torch.nn", "")]),
        ("def f():\n    from torch import nn", [("torch", "nn")]),
        ("if TYPE_CHECKING:\n    import torch", [("torch", "")]),
        ("from . import b", [("p", "b")]),
        ("from .c import d", [("p.c", "d")]),
        ("from .. import x", [("", "x")]),
        ("importlib.import_module('torch')", [("torch", "")]),
        ("__import__('torch')", [("torch", "")]),
    ],
)
def test_the_reader_of_imports_sees(code: str, found: list[tuple[str, str]]) -> None:
    assert [(target, name) for _, target, name in imports(ast.parse(code), "p.a", False)] == found
