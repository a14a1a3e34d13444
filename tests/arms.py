"""Arms of a pair without training: fake runs with interventions, and sabotage that a certificate must find.

`reset(FakeArm())` has its momentum reset before step 3; `.change(5, "rng.torch.cpu")` draws once more at step 5.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, Self

from blake3 import blake3

from tests.logs import BATCH, FakeRun, digest, stream, written
from trainmem_audit.documents.steplog import Line
from trainmem_audit.pairing import Arm
from trainmem_audit.steplog import LogReader

__all__ = ["AT", "FakeArm", "carry", "kicked", "read", "reset"]

AT = 3
"""Before which step the arms branch."""


def read(lines: list[bytes]) -> list[Line]:
    """Return the lines as a reader gives them."""
    reader = LogReader()
    return [reader.read(line) for line in lines]


class FakeArm(FakeRun):
    """Some steps of an arm, with interventions between them."""

    def __init__(self, steps: int = 8, ended: bool = True) -> None:
        super().__init__(steps, ended)
        self.plan = list(range(steps))
        self.contract: dict[str, Any] | None = None
        self.branch: dict[str, Any] | None = None
        self.thinned: set[int] = set()
        self.dropped: set[int] = set()
        self.lines_before: dict[int, list[dict[str, Any]]] = {}
        self.keyed: set[str] = set()
        self.unused: dict[str, str] = {}
        self.begin_state: dict[str, str] = {}

    def intervene(
        self,
        document: dict[str, Any],
        *changed: str,
        at: int = AT,
        aliases: tuple[str, ...] = (),
        streams: tuple[str, ...] = (),
        effect: bool = True,
    ) -> Self:
        """Intervene before step `at`: `changed` (and `aliases`, by shared storage) have other digests right after it,
        the `streams` too, and with an `effect` all components from step `at` on.
        """
        earlier = self.lines_before.setdefault(at, [])
        before = earlier[-1]["state"]["after"] if earlier else self.state(at - 1)
        rng = earlier[-1]["rng"]["after"] if earlier else self.rng(at - 1)
        after = before | {name: digest("after", document, name) for name in (*changed, *aliases)}
        moved = rng | {name: digest("moved", document, name) for name in streams}
        earlier.append(
            {
                "t": "intervention",
                "i": at,
                "intervention": document,
                "state": {"before": before, "after": after},
                "rng": {"before": rng, "after": moved},
                "changed": sorted(changed),
            }
        )
        if changed and effect:
            self.change(at, *self.tensors)
        return self

    def change(self, step: int, *what: str) -> Self:
        """Give `what` other values from `step` on, as in `FakeRun`; the first change of a thing stays."""
        for name in what:
            super().change(min(step, self._changes.get(name, step)), name)
        return self

    def declare(self, **pairings: str) -> Self:
        """Declare how streams pair: `torch_cpu="independent"`."""
        streams = {name.replace("_", "."): {"pairing": pairing} for name, pairing in pairings.items()}
        self.contract = {"contractVersion": "0.1.0-draft", "streams": streams}
        return self

    def state(self, step: int) -> dict[str, str]:
        """Return the component digests at a step; a branched arm begins with those of its prefix."""
        return self.begin_state if step < 0 and self.begin_state else super().state(step)

    def rng(self, step: int) -> dict[str, str]:
        """Return the digests of the streams: those that are keyed follow the batch, those unused stay."""
        found = super().rng(step)
        found |= {name: digest("keyed", name, self.plan[step]) for name in self.keyed if 0 <= step < self.steps}
        for name, state in self.unused.items():
            salt = self._salt(f"rng.{name}", step)
            found[name] = blake3(base64.b64decode(state) + salt.encode()).hexdigest()
        return found

    def indices(self, step: int) -> bytes:
        """Return the sample indices of a step, as the plan has them."""
        if self._salt("index", step):
            return super().indices(step)
        first = BATCH * self.plan[step]
        return b"".join((first + n).to_bytes(8, "little") for n in range(BATCH))

    def members(self) -> Iterator[dict[str, Any]]:
        """Yield the members of every line."""
        dropped, slots = 0, [name for name in self.tensors if name.startswith("optimizer")]
        for line in super().members():
            if line["t"] == "begin":
                line["streams"] |= {name: stream(name, state) for name, state in self.unused.items()}
                line |= {} if self.contract is None else {"declaredContract": self.contract}
                line |= {} if self.branch is None else {"study": {"branch": self.branch}}
            if line["t"] == "inventory" and "state" in line:  # slots are not introduced yet
                line["state"] = {name: text for name, text in line["state"].items() if name not in slots}
            if line["t"] in ("step", "end"):
                yield from self.lines_before.get(line["i"], ())
                if line["i"] in self.dropped:
                    dropped += 1
                    continue
                line["i"] -= dropped
            if line["t"] == "step" and line["i"] in self.thinned:
                line["state"] = {}
                line.pop("values", None)
            yield line

    def order(self) -> bytes:
        """Return `order/rank-0.i64`."""
        return b"".join(self.indices(step) for step in range(self.steps) if step not in self.dropped)

    def arm(self, prefix: FakeRun | None = None, indices: bool = True) -> Arm:
        """Return what a certificate is made from."""
        lines = read(written(list(self.members())))
        before = None if prefix is None else prefix.parsed()
        return Arm(lines, before, io.BytesIO(self.order()) if indices else None)


def carry(arm: FakeArm, at: int = AT) -> FakeArm:
    """Make it a control."""
    return arm.intervene({"primitive": "carry"}, at=at)


def reset(arm: FakeArm, component: str = "optimizer.momentum", *touched: str, at: int = AT) -> FakeArm:
    """Reset a component, and touch others besides."""
    return arm.intervene({"primitive": "reset", "component": component}, component, *touched, at=at)


def kicked(arm: FakeArm) -> FakeArm:
    """Kick the weights."""
    return arm.intervene({"primitive": "kick", "sigma": "0x1.0624dd2f1a9fcp-10", "seed": "7"}, "model.params")
