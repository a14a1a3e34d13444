"""A program in a process of its own, as a replay runs it: from its start, or from a snapshot of its record.

The log has the steps that are wanted and nothing before them; who compares it with the record knows where they begin.
An arm of a study is trained up to its branch first, and what acted there acts again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import ReplayError
from trainmem_audit.programs.armlog import ArmLog, Setting
from trainmem_audit.programs.block import surroundings
from trainmem_audit.programs.live import Live, start_streams
from trainmem_audit.programs.program import find_factory, parse_arguments
from trainmem_audit.recording.forward import FastForward, Stretch
from trainmem_audit.recording.observing import write_streams
from trainmem_audit.sources.base import Saved

__all__ = ["run"]


def run(order: Mapping[str, Any], arguments: list[str]) -> None:
    """Run a program as told, and log its steps.

    Parameters
    ----------
    order:
        Beside what every launched run has (`recording.launcher.interpreter_command`): `steps`, how many are logged;
        `first`, how many come before them; `state`, the file that holds the state before them, `None` to train up to
        it; `acting`, what is done there; `whole`, after which of the logged steps the state is digested (all: `None`).
    arguments:
        `seed=N`, and the program's own.

    Raises
    ------
    ReplayError
        If the state cannot be put back.
    """
    threads = order["imposed"]["threads"]
    if threads is not None:
        torch.set_num_threads(threads)
    cwd = Path(order["cwd"])
    seed, *own = arguments
    seed = seed.removeprefix("seed=")
    factory, file = find_factory(order["entry"], cwd)
    start_streams(seed)  # after the import, which may draw
    setting = Setting(Path(order["runDir"]), cwd, file, order["command"], list_elsewhere=True)
    live = Live(lambda: factory(seed=int(seed), **parse_arguments(own)))
    first, state = order["first"], order["state"]
    if state is None:
        for _ in range(first):
            live.step()
    else:
        _go_to(live, Path(state))
    whole = order["whole"]
    state_at = None if whole is None else frozenset(whole).__contains__
    log = ArmLog(live, setting, Path(order["runDir"]), {}, state_at=state_at)
    for item in order["acting"]:
        log.intervene(Intervention.model_validate_json(json.dumps(item)), surroundings(live))
    for _ in range(order["steps"]):
        log.step()
    log.end()


class _Cut:
    """Where the optimizer returns in a step that is taken only to get there: the state of the record is put back.

    What a step does after its optimizer (schedules, averages) then comes of that state, as it did.
    """

    steps = 0

    def __init__(self, live: Live, streams: Mapping[str, Stream]) -> None:
        self.problems: list[str] = []
        self._live = live
        self._streams = streams

    def put_back(self, saved: Mapping[str, Saved]) -> list[str]:
        """Put components and random streams back."""
        self.problems = [*self._live.memory.put_back(saved), *write_streams(self._live.streams, self._streams)]
        return self.problems

    def drop_gradients(self) -> None:
        """Leave the gradients: there are none."""


def _go_to(live: Live, path: Path) -> None:
    """Take a step without gradients, put the state back at its cut, and let the step end from there."""
    rest = json.loads(path.with_suffix(".json").read_bytes())
    cut = _Cut(live, {name: Stream.model_validate_json(json.dumps(item)) for name, item in rest["streams"].items()})
    forward = FastForward([Stretch(1, None, path)], path.with_suffix(".problems"))

    def arrive(*_: object) -> None:
        forward.arrive()

    removers = forward.install(cut)
    hooks = [optimizer.register_step_post_hook(arrive) for optimizer in live.program.optimizers]
    live.step()
    for hook in hooks:
        hook.remove()
    for remove in reversed(removers):
        remove()
    if forward.walking or cut.problems:
        problems = "; ".join(cut.problems[:3]) or "its step did not reach the optimizer"
        raise ReplayError(f"the state before the segment cannot be put back: {problems}")
