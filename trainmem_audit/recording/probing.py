"""Predictions of an unmodified script's model on a probe that lies in a file, taken at chosen steps.

The model runs in eval mode and without gradients; modes and random streams are put back, nothing of it is recorded as a
forward, and no tensor of the script's is replaced. Not here: programs, which say themselves what is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.arrays import ArrayFile
from trainmem_audit.errors import RecordingError
from trainmem_audit.observations import observation_name
from trainmem_audit.recording.memory import Memory
from trainmem_audit.recording.observing import aside, write_observation
from trainmem_audit.sources.streams import StreamSet

__all__ = ["Probing"]

_ROWS = 1024
"""How many examples are run through the model at once."""


class Probing:
    """What is to be observed of one run.

    Parameters
    ----------
    file:
        A safetensors file with the inputs as `x`, the first axis over examples.
    head:
        Whose predictions: `model`, or what the record calls another module (`teacher`).
    steps:
        After how many steps.
    place:
        Gives the path of a file of the record.
    own_work:
        What to be in while files of ours are read and written.
    """

    def __init__(
        self,
        file: Path,
        head: str,
        steps: frozenset[int],
        place: Callable[[str], Path],
        own_work: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._file = file
        self._head = head
        self._steps = steps
        self._place = place
        self._own_work = own_work

    @classmethod
    def from_order(
        cls,
        order: Mapping[str, Any],
        place: Callable[[str], Path],
        own_work: Callable[[], AbstractContextManager[object]],
    ) -> Probing:
        """Return what the member `observe` of a launcher's order says: {probe, head, steps}."""
        return cls(Path(order["probe"]), order["head"], frozenset(order["steps"]), place, own_work)

    def wants(self, steps: int) -> bool:
        """Tell whether predictions are taken after so many steps."""
        return steps in self._steps

    def observe(self, steps: int, memory: Memory, streams: StreamSet) -> dict[str, Any]:
        """Write the predictions; return the members of the `observe` line.

        Raises
        ------
        RecordingError
            If there is no such module, or it does not take the probe.
        """
        module = memory.module(self._head)
        if module is None:
            raise RecordingError("no module of that name to observe", where=f"step {steps}", expected=self._head)
        with self._own_work():
            inputs = self._inputs()
        with aside(streams, [module]):
            try:
                outputs = self._outputs(module, inputs)
            except Exception as error:  # the module is the script's
                detail = f"{type(error).__name__}: {error}"[:200]
                raise RecordingError("the model does not take the probe", where=f"step {steps}", got=detail) from None
        name = observation_name(steps)
        with self._own_work():
            size = write_observation(self._place(name), steps, {self._head: outputs})
        return {"t": "observe", "i": steps, "file": name, "size": size}

    def _inputs(self) -> torch.Tensor:
        with self._file.open("rb") as file:
            array = ArrayFile(file, self._file.stat().st_size, self._file.name).array("x")
        return torch.from_numpy(array.copy())

    def _outputs(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        home = next(iter(module.parameters()), inputs)
        parts = []
        for start in range(0, len(inputs), _ROWS):
            batch = inputs[start : start + _ROWS].to(home.device)
            found = module(batch)
            parts.append(_tensor(found).detach().cpu())
        return torch.cat(parts)


def _tensor(output: Any) -> torch.Tensor:
    """Return the predictions in what a model returns: a tensor, its `logits`, or the first of several."""
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise TypeError(f"returns {type(output).__name__}, and no tensor of predictions")
