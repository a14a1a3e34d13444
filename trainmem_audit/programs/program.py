"""What a factory returns, and how a factory is found: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.programs.order import Batch, Order

__all__ = ["Factory", "Probe", "Program", "find_factory", "parse_arguments"]


@dataclass(frozen=True)
class Probe:
    """The inputs on which functions are compared, disjoint from what is trained on.

    Parameters
    ----------
    inputs:
        (n, …), what `Program.observe` predicts for, by default `head(inputs)`.
    targets:
        (n,) or (n, …): class numbers (int64) or values (float32); loss and accuracy are taken against them.
    disjoint:
        How it is known that none of them is trained on.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    disjoint: str = ""


@dataclass
class Program:
    """One training, ready for its first step.

    Parameters
    ----------
    model:
        The trained module.
    optimizer:
        What steps it, or several of them.
    order:
        The data order; `step` is given its batches.
    step:
        Does all that one iteration of the training loop does with a batch: exactly one attempt of `optimizer.step()`.
    probe:
        What functions are compared on.
    components:
        What else carries memory from step to step, by name: teachers and averages (modules), schedulers, scalers,
        queues and banks (tensors, arrays, containers, objects with these, or a function that returns them),
        generators. What is in none of them, in a closure's counter say, is not put back where arms branch.
    observe:
        Returns the predictions on the probe by the name of the head, (n, …) float; `{"model": model(probe.inputs)}` in
        eval mode if left out. Whatever it draws from the random streams is taken back.
    forward:
        Passes a batch through the model, for statistics that are recalibrated; the first item of what the order gives
        is passed if left out.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    order: Order
    step: Callable[[Batch], object]
    probe: Probe
    components: Mapping[str, Any] = field(default_factory=dict)
    observe: Callable[[], Mapping[str, torch.Tensor]] | None = None
    forward: Callable[[Batch], object] | None = None

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """All optimizers."""
        one = isinstance(self.optimizer, torch.optim.Optimizer)
        return (self.optimizer,) if one else tuple(self.optimizer)  # type: ignore[arg-type, return-value]


Factory = Callable[..., Program]
"""Takes the seed (`int`) and the program's own arguments by name."""


def find_factory(entry: str, cwd: Path) -> tuple[Factory, Path | None]:
    """Return the function behind `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`, and the file that it is in.

    The directory of a file, and the working directory for a module, are searched for what it imports.

    Raises
    ------
    UsageError
        If there is no such file, module or function.
    """
    name, colon, function = entry.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise UsageError("not a program", where=entry, expected="FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    module = _from_file(cwd / name) if name.endswith(".py") else _from_name(name, cwd)
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError("no such function", where=entry, expected=f"a function {function} in {name}")
    file = getattr(module, "__file__", None)
    return found, None if file is None else Path(file)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    directory = str(path.resolve().parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError("not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_name(name: str, cwd: Path) -> Any:
    if str(cwd) not in sys.path:
        sys.path.insert(0, str(cwd))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError("no such module", where=name, remedy="run in the directory that holds it") from None
        raise


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a factory from `NAME=VALUE` texts; a value that is no Python literal is a string.

    Raises
    ------
    UsageError
        If a text has no name, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise UsageError("not an argument of a program", where=text[:80], expected="NAME=VALUE, each name once")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value
    return found
