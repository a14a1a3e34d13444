"""The data order of a program: which samples each step trains on, as state that can be copied, put back and changed.

A loader's order is drawn as `DataLoader` draws it in one process, number for number, so a program and a script that
share a loader see the same batches. Changing the order draws from no stream of the training: whatever is drawn for it
comes from a generator of its own. Not here: what a step does with a batch, and who records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import DataLoader, IterableDataset

from trainmem_audit.errors import UsageError
from trainmem_audit.sources.base import ComponentState, Labels, Saved

__all__ = ["Batch", "KeyedOrder", "LoaderOrder", "Order", "OrderSource", "Policy"]

Policy = Literal["reshuffle", "with-replacement", "fixed"]
Window = tuple[int, int]
_LABELS = Labels("S2", "meso", "in-process")


@dataclass(frozen=True)
class Batch:
    """One batch: the indices of its samples, what a step is given, and how many batches came before it."""

    indices: tuple[int, ...]
    data: Any
    number: int


class _Change(Protocol):
    """A change of the order that waits for the epoch in which it takes place."""

    @property
    def windows(self) -> tuple[Window, ...]:
        """Its windows, in batches counted from the first of the run."""
        ...

    def apply(self, batches: list[tuple[int, ...]], first: int) -> None:
        """Change the batches of an epoch whose first has the number `first`."""
        ...


@dataclass(frozen=True)
class _Swap:
    windows: tuple[Window, ...]

    def apply(self, batches: list[tuple[int, ...]], first: int) -> None:
        (a, b), (c, d) = sorted((start - first, stop - first) for start, stop in self.windows)
        _require_equal_sizes(batches, [*range(a, b), *range(c, d)])
        batches[a:d] = [*batches[c:d], *batches[b:c], *batches[a:b]]


@dataclass(frozen=True)
class _Permute:
    windows: tuple[Window, ...]
    seed: int

    def apply(self, batches: list[tuple[int, ...]], first: int) -> None:
        ((a, b),) = ((start - first, stop - first) for start, stop in self.windows)
        _require_equal_sizes(batches, list(range(a, b)))
        moved = _generator(self.seed, "permute-window").permutation(b - a)
        batches[a:b] = [batches[a + int(place)] for place in moved]


@dataclass
class _State:
    """Where an order stands. `numbers` counts the batches that were handed out."""

    epoch: int = -1
    plan: list[tuple[int, ...]] = field(default_factory=list)
    position: int = 0
    number: int = 0
    changes: list[_Change] = field(default_factory=list)
    policy: Policy | None = None
    generator: np.random.Generator | None = None
    fixed: list[tuple[int, ...]] | None = None
    forks: tuple[int, ...] = ()


class Order:
    """Batches without end, epoch after epoch. A subclass draws the plan of an epoch and fetches what a step is given.

    Windows are counted in batches from now on, `[from, to)`, and must lie within one epoch.
    """

    samples: int
    """How many samples there are to draw from."""

    def __init__(self) -> None:
        self._state = _State()

    def draw(self, epoch: int, forks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the batches of an epoch, as sample indices, drawing what its streams give.

        `forks` are the seeds by which an order with a key of its own has been forked.
        """
        raise NotImplementedError

    def fetch(self, indices: tuple[int, ...]) -> Any:
        """Return what a step is given for these samples."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        state = self._state
        if state.position == len(state.plan):
            self._next_epoch()
        indices = state.plan[state.position]
        batch = Batch(indices, self.fetch(indices), state.number)
        state.position += 1
        state.number += 1
        return batch

    def _next_epoch(self) -> None:
        state = self._state
        state.epoch += 1
        drawn = self.draw(state.epoch, state.forks)
        if not drawn:
            raise UsageError("an epoch without batches", where="order", expected="at least one batch")
        state.plan, state.position = self._by_policy(drawn), 0
        self._settle()

    def _settle(self) -> None:
        """Carry out the changes whose windows lie in this epoch."""
        state = self._state
        first = state.number - state.position
        waiting: list[_Change] = []
        for change in state.changes:
            start, stop = min(a for a, _ in change.windows), max(b for _, b in change.windows)
            if start >= first + len(state.plan):
                waiting.append(change)
            elif stop > first + len(state.plan):
                raise UsageError(
                    "the windows reach over the end of an epoch",
                    where="order",
                    expected=f"windows within the epoch that ends after batch {first + len(state.plan) - 1}",
                    got=f"batches {start} to {stop - 1}",
                    remedy="choose windows, or a branch step, inside one epoch: the next one's order is drawn later",
                )
            else:
                change.apply(state.plan, first)
        state.changes = waiting

    # Changing it ---------------------------------------------------------------------------------------------------
    # Each change gives the members of `documents.steplog.OrderChange` beside the windows.

    def swap_windows(self, a: int, b: int, c: int, d: int) -> dict[str, str]:
        """Exchange the batches [a, b) and [c, d).

        Raises
        ------
        UsageError
            If they overlap, reach over the end of an epoch, or hold batches of different sizes.
        """
        (a, b), (c, d) = sorted(((a, b), (c, d)))
        if not (0 <= a < b <= c < d):
            raise UsageError(
                "these windows cannot be exchanged",
                where="order",
                expected="two windows that are not empty and do not overlap",
                got=f"{a}-{b} and {c}-{d}",
            )
        return self._change(_Swap(self._absolute((a, b), (c, d))))

    def permute_window(self, a: int, b: int, seed: int) -> dict[str, str]:
        """Bring the batches [a, b) into an order drawn from a generator of its own."""
        if not 0 <= a < b:
            raise UsageError("an empty window", where="order", got=f"{a}-{b}")
        return self._change(_Permute(self._absolute((a, b)), seed))

    def policy(self, kind: str, seed: int) -> dict[str, str]:
        """Draw samples in another way from the next batch on; the streams of the training move as without it."""
        if kind not in get_args(Policy):
            raise UsageError("no such policy", where="order", expected=", ".join(get_args(Policy)), got=kind)
        state, before = self._state, self.remaining
        state.policy, state.generator, state.fixed = cast(Policy, kind), _generator(seed, "policy"), None
        state.plan[state.position :] = self._by_policy(before) if before else []
        return _planned(before, self.remaining)

    def fork(self, seed: int) -> dict[str, str]:
        """Redraw what is left of this epoch, and what an order with a key of its own will draw in those that follow."""
        state, before = self._state, self.remaining
        flat = [index for batch in before for index in batch]
        moved = _generator(seed, "fork").permutation(len(flat))
        state.plan[state.position :] = _like([flat[int(place)] for place in moved], before)
        state.forks = (*state.forks, seed)
        return _planned(before, self.remaining)

    def _absolute(self, *windows: Window) -> tuple[Window, ...]:
        return tuple((start + self._state.number, stop + self._state.number) for start, stop in windows)

    def _change(self, change: _Change) -> dict[str, str]:
        state, before = self._state, self.remaining
        state.changes.append(change)
        if state.position < len(state.plan):
            try:
                self._settle()
            except UsageError:
                state.changes.pop()
                raise
        found = _planned(before, self.remaining)
        if change not in state.changes:  # its windows are drawn
            places = [place - state.number for start, stop in change.windows for place in range(start, stop)]
            found["multiset"] = _digest(sorted(index for place in places for index in before[place]))
        return found

    def _by_policy(self, drawn: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return batches of the same sizes, filled as the policy says."""
        state = self._state
        if state.policy is None or state.generator is None:
            return drawn
        flat = [index for batch in drawn for index in batch]
        if state.policy == "with-replacement":
            chosen = state.generator.integers(self.samples, size=len(flat))
            return _like([int(index) for index in chosen], drawn)
        if state.policy == "fixed":
            state.fixed = state.fixed if state.fixed is not None and len(state.fixed) >= len(drawn) else drawn
            return [tuple(batch) for batch in state.fixed[: len(drawn)]]
        moved = state.generator.permutation(len(flat))
        return _like([flat[int(place)] for place in moved], drawn)

    # State ---------------------------------------------------------------------------------------------------------

    @property
    def remaining(self) -> list[tuple[int, ...]]:
        """The batches that are left of this epoch."""
        return list(self._state.plan[self._state.position :])

    @property
    def place(self) -> tuple[int, int, int]:
        """The epoch, the batch within it that comes next, and how many were handed out in all."""
        return self._state.epoch, self._state.position, self._state.number

    def go_to(self, place: tuple[int, int, int], rest: list[tuple[int, ...]]) -> Iterator[str]:
        """Go to a place, with these batches left of the epoch; give why that cannot be done."""
        state = self._state
        if state.changes or state.policy is not None or state.forks:
            yield "order: it was changed on purpose"
            return
        epoch, position, number = place
        plan: list[tuple[int, ...]] = [()] * position + rest  # what was handed out is not needed any more
        self._state = _State(epoch=epoch, plan=plan, position=position, number=number)

    def copy(self) -> object:
        """Return its whole state, for `put_back`."""
        return deepcopy(self._state)

    def put_back(self, state: object) -> None:
        """Return to a state that `copy` gave."""
        if not isinstance(state, _State):
            raise TypeError("not the state of an order")
        self._state = deepcopy(state)


class LoaderOrder(Order):
    """The order of a `DataLoader` in one process: draws its numbers where, and as, the loader's own iterator does.

    Parameters
    ----------
    loader:
        A loader over a data set with indices, without worker processes.

    Raises
    ------
    UsageError
        If the loader has workers, or its data set no indices.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__()
        if loader.num_workers:
            raise UsageError(
                "a loader with worker processes cannot be branched",
                where="LoaderOrder",
                got=f"num_workers={loader.num_workers}",
                remedy="num_workers=0: what a worker has fetched ahead cannot be put back",
            )
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            raise UsageError("a data set without indices has no order", where="LoaderOrder")
        self._loader = loader
        self.samples = len(loader.dataset)  # type: ignore[arg-type]

    def draw(self, epoch: int, forks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Draw the seed of the workers that there are not, and then the indices, as the loader's iterator does."""
        torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        assert self._loader.batch_sampler is not None
        return [tuple(int(index) for index in batch) for batch in self._loader.batch_sampler]

    def fetch(self, indices: tuple[int, ...]) -> Any:
        """Return the collated batch."""
        data = self._loader.dataset
        if hasattr(data, "__getitems__") and data.__getitems__:
            return self._loader.collate_fn(data.__getitems__(list(indices)))
        return self._loader.collate_fn([data[index] for index in indices])


class KeyedOrder(Order):
    """Random reshuffling whose permutation of an epoch follows from a key and its number, and from no stream.

    Windows may lie in any epoch, and a fork changes all that follow.

    Parameters
    ----------
    samples, batch_size:
        How many samples there are, and how many a batch has; the last batch of an epoch may have fewer.
    key:
        An integer of any size.
    fetch:
        Returns what a step is given for the indices of a batch; the indices themselves if left out.
    drop_last:
        Leave out a last batch that is not full.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        key: int,
        fetch: Callable[[tuple[int, ...]], Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        if samples < 1 or batch_size < 1:
            raise UsageError("nothing to draw from", where="KeyedOrder", got=f"{samples} samples by {batch_size}")
        self.samples = samples
        self._size, self._key, self._drop_last = batch_size, key, drop_last
        self._fetch = fetch

    def draw(self, epoch: int, forks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the permutation of the epoch, by `numpy.random.SeedSequence` over key, epoch and forks."""
        words = [abs(self._key), int(self._key < 0), epoch, *forks]
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).permutation(self.samples)
        batches = [tuple(int(i) for i in order[at : at + self._size]) for at in range(0, self.samples, self._size)]
        return [batch for batch in batches if len(batch) == self._size] if self._drop_last else batches

    def fetch(self, indices: tuple[int, ...]) -> Any:
        """Return what the function that was given makes of them."""
        return indices if self._fetch is None else self._fetch(indices)


class OrderSource:
    """The order as a component: what is left of the epoch, and where it stands (S2)."""

    name = "order"

    def __init__(self, order: Order) -> None:
        self._order = order

    def components(self) -> Iterator[ComponentState]:
        """Give the remaining indices (int64) with the sizes of their batches, and the place (epoch, batch, count)."""
        rest = self._order.remaining
        flat = torch.tensor([index for batch in rest for index in batch], dtype=torch.int64)
        sizes = torch.tensor([len(batch) for batch in rest], dtype=torch.int64)
        place = torch.tensor(self._order.place, dtype=torch.int64)
        yield ComponentState("order", _LABELS, [("remaining", flat), ("sizes", sizes), ("place", place)])

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Put the place and the rest of the epoch back; changes that wait, and a policy, are not in it."""
        kept = saved.get(self.name)
        if kept is None or kept.tensors is None:
            return
        flat, sizes, place = (kept.tensors[name].tolist() for name in ("remaining", "sizes", "place"))
        yield from self._order.go_to(tuple(place), _like(flat, [(0,) * size for size in sizes]))


def _planned(before: list[tuple[int, ...]], after: list[tuple[int, ...]]) -> dict[str, str]:
    """Return the digests of what was, and is, left of the epoch; nothing where nothing is drawn yet."""
    if not before:
        return {}
    flat = ([index for batch in batches for index in batch] for batches in (before, after))
    return dict(zip(("before", "after"), map(_digest, flat), strict=True))


def _digest(indices: list[int]) -> str:
    return blake3(np.array(indices, "<i8").tobytes()).hexdigest()


def _generator(seed: int, purpose: str) -> np.random.Generator:
    words = [abs(seed), int(seed < 0), *purpose.encode()]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _like(flat: list[int], batches: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    found, at = [], 0
    for batch in batches:
        found.append(tuple(flat[at : at + len(batch)]))
        at += len(batch)
    return found


def _require_equal_sizes(batches: list[tuple[int, ...]], places: list[int]) -> None:
    sizes = {len(batches[place]) for place in places}
    if len(sizes) > 1:
        raise UsageError(
            "the windows hold batches of different sizes, so every later random number would move",
            where="order",
            expected="windows without the ragged last batch of an epoch",
            got=f"sizes {', '.join(map(str, sorted(sizes)))}",
        )
