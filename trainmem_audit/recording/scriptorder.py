"""The order of an unmodified script's batches, so that it can be intervened on as that of a program is.

An epoch's plan is drawn whole when the first of its batches is asked for, from the loader's own samplers; from then on
the loader is handed the batches of the plan, one by one. Torch's samplers draw all their numbers at that moment anyway,
or from a generator of their own (only one *with replacement* that was given a generator draws from it later, in a bare
run). A loader with workers has handed batches to them before anybody can act, and is refused. Not here: what a change
does to a plan (`programs.order`).
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from blake3 import blake3

from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.errors import InterventionError, UsageError
from trainmem_audit.programs.order import Order
from trainmem_audit.recording.order import describe_loader

__all__ = ["ScriptOrder", "ScriptOrders"]

_MOST = 2**24
"""How many batches of one epoch are planned; a sampler without an end has no plan."""


class ScriptOrder(Order):
    """The order of one loader of a script: the plan of its running epoch, and what is to be changed in later ones."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = weakref.ref(loader)
        self._description = describe_loader(loader)
        self._single = False
        self._drawn: list[tuple[int, ...]] = []
        self.samples = _samples(loader)

    def is_of(self, loader: Any) -> bool:
        """Tell whether it is the order of this loader, or of one that is gone and was set up like it."""
        live = self._loader()
        if live is None and describe_loader(loader) == self._description:  # a script may make one for every epoch
            self._loader = weakref.ref(loader)
            return True
        return live is loader

    def draw(self, epoch: int, forks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the batches that the loader's own samplers have drawn for the epoch."""
        return self._drawn

    def fetch(self, indices: tuple[int, ...]) -> Any:
        """Return the indices as the loader takes them: a list, or one index where it makes no batches."""
        return indices[0] if self._single else list(indices)

    def take_over(self, iterator: Any) -> None:
        """Hand out the batches of an iterator that has handed out none yet."""
        iterator._sampler_iter = self._feed(iterator._sampler_iter)

    def _feed(self, own: Iterator[Any]) -> Iterator[Any]:
        drawn = list(islice(own, _MOST))
        if len(drawn) == _MOST:
            raise UsageError("a sampler without an end has no plan", where="order", expected=f"fewer than {_MOST}")
        self._single = bool(drawn) and not isinstance(drawn[0], (list, tuple))
        self._drawn = [(batch,) if self._single else tuple(batch) for batch in drawn]
        if not drawn:
            return
        try:
            self._next_epoch()
        except UsageError as error:
            raise InterventionError("order", error) from None
        while self.remaining:
            yield next(self).data

    def multiset(self, windows: Sequence[tuple[int, int]]) -> dict[str, str]:
        """Return the digest of the sorted indices in windows of the running epoch, counted from its first batch."""
        plan = self._state.plan
        if any(to > len(plan) for _, to in windows):
            return {}  # they lie in a later epoch
        found = sorted(index for first, to in windows for batch in plan[first:to] for index in batch)
        return {"multiset": blake3(array("q", found).tobytes()).hexdigest()}


class ScriptOrders:
    """The orders of all loaders of a script: which of them trains is known only when a step has used its batches."""

    def __init__(self) -> None:
        self._orders: list[ScriptOrder] = []
        self._first: list[Intervention] = []
        self._refused = ""
        self.begun: ScriptOrder | None = None

    def begin_with(self, interventions: Sequence[Intervention]) -> None:
        """Act on the first loader that draws an order, before its first batch is handed out."""
        self._first = list(interventions)

    def see(self, loader: Any, iterator: Any) -> ScriptOrder | str:
        """Take over an iterator that a loader has just made; return its order, or why it cannot be acted on."""
        if why := _why_not(loader, iterator):
            self._refused = self._refused or why
            return why
        order = next((order for order in self._orders if order.is_of(loader)), None)
        if order is None:
            order = ScriptOrder(loader)
            self._orders.append(order)
        order.take_over(iterator)
        if self._first and self.begun is None and _draws(loader):
            self.begun = order
            for said in self._first:
                change(order, said)
        return order

    def begun_with(self, said: Intervention) -> _Begun:
        """Return what tells of an intervention on the order that was made before the first step.

        Raises
        ------
        UsageError
            If no loader drew an order before it.
        """
        if self.begun is None:
            why = self._refused or "no data loader drew an order before the first step"
            raise UsageError("the order of this script cannot be acted on", where="order", got=why)
        return _Begun(self.begun)

    @staticmethod
    def training(plan: ScriptOrder | str | None) -> ScriptOrder:
        """Return the order of the epoch of training, of which `see` said `plan`.

        Raises
        ------
        UsageError
            If there is none, or it cannot be acted on.
        """
        if not isinstance(plan, ScriptOrder):
            why = plan or "no batch of a data loader was trained on so far"
            raise UsageError("the order of this script cannot be acted on", where="order", got=why)
        return plan


class _Begun:
    """The order of the running first epoch, where interventions were done before its first batch."""

    def __init__(self, order: ScriptOrder) -> None:
        self._order = order

    def swap_windows(self, a: int, b: int, c: int, d: int) -> dict[str, str]:
        """Tell what was exchanged."""
        return self._order.multiset([(a, b), (c, d)])

    def permute_window(self, a: int, b: int, seed: int) -> dict[str, str]:
        """Tell what was permuted."""
        return self._order.multiset([(a, b)])

    def policy(self, kind: str, seed: int) -> dict[str, str]:
        """Tell nothing: no sample was planned before."""
        return {}

    def fork(self, seed: int) -> dict[str, str]:
        """Redraw what is left."""
        return self._order.fork(seed)


def change(order: ScriptOrder, said: Intervention) -> Mapping[str, str]:
    """Do an intervention on the order."""
    windows, seed = said.windows or (), int(said.seed or "0")
    if said.primitive == "swap-windows":
        return order.swap_windows(windows[0].first, windows[0].to, windows[1].first, windows[1].to)
    if said.primitive == "permute-window":
        return order.permute_window(windows[0].first, windows[0].to, seed)
    return order.policy(said.policy or "", seed)


def _samples(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except Exception:  # it is the script's own method
        return 0


def _why_not(loader: Any, iterator: Any) -> str:
    """Return why the batches of a loader cannot be planned."""
    if getattr(iterator, "_sampler_iter", None) is None:
        return "the loader has no sampler"
    if getattr(loader, "_dataset_kind", 0) == 1 or not _samples(loader):
        return "the data set has no indices"
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    samplers.append(getattr(samplers[1], "sampler", None))
    for sampler in samplers:
        if sampler is not None and type(sampler).__module__.split(".")[0] not in ("torch", "torchdata", "builtins"):
            return f"a sampler of the script's own ({type(sampler).__qualname__}) may draw from what is trained"
    if vars(iterator).get("_send_idx", 0):
        return "its workers fetch batches ahead; with num_workers=0 it can be acted on"
    return ""


def _draws(loader: Any) -> bool:
    """Tell whether a loader draws its order, as one for training does, and one for evaluation does not."""
    effective = getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(loader, "sampler", None)
    return type(effective).__name__ != "SequentialSampler"
