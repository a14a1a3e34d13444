"""Fast-forward: runs an unmodified script to a snapshot without its gradients, and goes on from there for real.

A replay of segments asks for it. While the script is *walked*, `backward` does nothing: gradients stay `None`, so that
optimizer steps do nothing, and the script's data, random numbers and counters advance as they would. Steps are logged
without state. When the step of a snapshot returns, the snapshot is put back in place (tensors and values; random
streams are not touched, they must have come to be what they were), and from there everything is done and logged for
real, up to the stretch's last step.

`torch.autograd.grad` is left alone: what it gives enters a script's own arithmetic (a gradient penalty, say), where
nothing would raise. Steps that come of it do no harm, since a snapshot replaces what they change.

Not here: what a difference means (`replaying.segments`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.utils.clip_grad as clip_grad
from torch.amp.grad_scaler import GradScaler, OptState, _refresh_per_optimizer_state

from trainmem_audit.recording.wrapping import wrap
from trainmem_audit.runs import values_at
from trainmem_audit.sources.base import Saved
from trainmem_audit.sources.restoring import read_tensors

__all__ = ["FastForward", "Stretch"]

_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Stretch:
    """Steps that are done for real, from `first` to `last` (`None`: to the end of the run, and what comes after it).

    Parameters
    ----------
    state:
        The tensors of the state before `first` (safetensors); beside it lies what else there is, as JSON. `None` for a
        stretch from the beginning of the run.
    skipped:
        Which of the last steps before it a gradient scaler skipped when the run was recorded.
    """

    first: int
    last: int | None
    state: Path | None = None
    skipped: frozenset[int] = frozenset()


class _Session(Protocol):
    """What is asked of the recording session."""

    steps: int

    def put_back(self, saved: Mapping[str, Saved]) -> list[str]: ...

    def drop_gradients(self) -> None: ...


class FastForward:
    """Walks to each stretch in turn.

    Parameters
    ----------
    stretches:
        In their order, with steps between them.
    problems:
        The file to which is written what could not be put back.
    own_work:
        What to be in while files are read, so that they are taken for no inputs of the script.
    """

    def __init__(
        self,
        stretches: Iterable[Stretch],
        problems: Path,
        own_work: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._own_work = own_work
        self._stretches = list(stretches)
        self._problems = problems
        self._attempts: list[tuple[Any, Any, int]] = []
        self._session: _Session
        self.walking = not self._stretches or self._stretches[0].first > 0

    @classmethod
    def from_order(
        cls, order: Mapping[str, Any], own_work: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> FastForward:
        """Return what the order of a replay asks for."""
        stretches = [
            Stretch(
                item["first"],
                item["last"],
                None if item.get("state") is None else Path(item["state"]),
                frozenset(item.get("skipped", ())),
            )
            for item in order["stretches"]
        ]
        return cls(stretches, Path(order["problems"]), own_work)

    def arrive(self) -> bool:
        """Put the snapshot of this step back, if it is wanted; return whether the state of the step is to be logged."""
        step = self._session.steps
        stretch = self._stretches[0] if self._stretches else None
        if self.walking and stretch is not None and stretch.first == step + 1 and stretch.state is not None:
            with self._own_work():
                problems = self._session.put_back(_read(stretch.state))
                told = {str(step): [text[:300] for text in problems[:_MOST_PROBLEMS]]}
                self._problems.write_text(json.dumps(told))
            self._settle(stretch)
            self.walking = False
            return True
        return not self.walking

    def leave(self) -> None:
        """Walk on, if this step was the last of its stretch."""
        if not self.walking and self._stretches and self._stretches[0].last == self._session.steps:
            del self._stretches[0]
            self.walking = True
            self._session.drop_gradients()

    def install(self, session: _Session) -> list[Callable[[], None]]:
        """Replace what computes gradients and what needs them, for `session`; return what puts it back."""
        self._session = session
        return [
            wrap(torch.autograd, "backward", self._backward),
            wrap(GradScaler, "step", self._scaler_step),
            wrap(GradScaler, "update", self._scaler_update),
            wrap(clip_grad, "_group_tensors_by_device_and_dtype", self._group),
        ]

    def _group(self, real: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
        """Group no gradients into no groups: `clip_grad_value_` of parameters without any would raise."""
        return {} if self.walking and not any(tensors) else real(tensors, *args, **kwargs)

    def _backward(self, real: Any, *args: Any, **kwargs: Any) -> Any:
        return None if self.walking else real(*args, **kwargs)

    def _scaler_step(self, real: Any, scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Step without a look at the gradients, of which there are none: the real one would raise."""
        if not self.walking or not scaler.is_enabled():
            return real(scaler, optimizer, *args, **kwargs)
        self._attempts.append((scaler, optimizer, self._session.steps))
        return optimizer.step(*args, **kwargs)

    def _scaler_update(self, real: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.walking or not scaler.is_enabled():
            return real(scaler, *args, **kwargs)
        scaler._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
        self._attempts.clear()
        return None

    def _settle(self, stretch: Stretch) -> None:
        """Let the scaler know what it found at the steps since its last update, which is still to come."""
        for scaler, optimizer, step in self._attempts:
            found = torch.full((), float(step in stretch.skipped), dtype=torch.float32, device=scaler._scale.device)
            scaler._per_optimizer_states[id(optimizer)] = {
                "stage": OptState.STEPPED,
                "found_inf_per_device": {scaler._scale.device: found},
            }
        self._attempts.clear()


def _read(path: Path) -> dict[str, Saved]:
    """Return the state that a replay has laid out for a stretch, each component by its name."""
    file = values_at(path)
    rest = json.loads(path.with_suffix(".json").read_bytes())
    saved = {name: Saved(values=values) for name, values in rest["values"].items()}
    return saved | {name: Saved(read_tensors(file, name, tensors)) for name, tensors in rest["tensors"].items()}
