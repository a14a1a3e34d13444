"""Orders of programs: the numbers of `DataLoader`, put back whole, changed without touching a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from trainmem_audit.errors import UsageError
from trainmem_audit.programs import Batch, KeyedOrder, LoaderOrder, Order


class Noisy(Dataset[torch.Tensor]):
    """Samples that draw from the global stream when they are fetched, as an augmentation does."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(2)


def _weighted(data: Noisy) -> DataLoader[torch.Tensor]:
    weights = [1.0 + index % 3 for index in range(len(data))]
    return DataLoader(data, batch_size=4, sampler=WeightedRandomSampler(weights, 20))


def _batches(data: Noisy) -> DataLoader[torch.Tensor]:
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 5, drop_last=True))


LOADERS: dict[str, Callable[[Noisy], DataLoader[torch.Tensor]]] = {
    "shuffled": lambda data: DataLoader(data, batch_size=4, shuffle=True),
    "in order": lambda data: DataLoader(data, batch_size=4),
    "ragged, dropped": lambda data: DataLoader(data, batch_size=5, shuffle=True, drop_last=True),
    "with replacement": lambda data: DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True)),
    "weighted": _weighted,
    "batch sampler": _batches,
    "own generator": lambda data: DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
}


def epochs(loader: DataLoader[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    for _ in range(count):
        yield from loader


def keyed(samples: int = 23, size: int = 4) -> KeyedOrder:
    return KeyedOrder(samples, size, key=7)


def indices(order: Order, count: int) -> list[tuple[int, ...]]:
    return [next(order).indices for _ in range(count)]


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_gives_the_same_batches_and_leaves_the_same_stream(name: str) -> None:
    torch.manual_seed(0)
    expected = list(epochs(LOADERS[name](Noisy(23)), 3))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    order = LoaderOrder(LOADERS[name](Noisy(23)))
    got = [next(order).data for _ in expected]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert torch.equal(after, torch.get_rng_state())


@settings(deadline=None, max_examples=40)
@given(before=st.integers(0, 14), count=st.integers(1, 14))
def test_it_is_put_back_whole(before: int, count: int) -> None:
    order = keyed()
    indices(order, before)
    state, place = order.copy(), order.place
    first = indices(order, count)
    order.put_back(state)
    assert order.place == place
    assert indices(order, count) == first


def test_a_copy_is_not_changed_by_what_follows() -> None:
    order = keyed()
    indices(order, 2)
    state = order.copy()
    order.swap_windows(0, 1, 1, 2)
    changed = indices(order, 3)
    order.put_back(state)
    assert indices(order, 3) == [changed[1], changed[0], changed[2]]


@settings(deadline=None, max_examples=60)
@given(starts=st.lists(st.integers(0, 5), min_size=4, max_size=4, unique=True))
def test_swapped_windows_hold_the_same_samples(starts: list[int]) -> None:
    a, b, c, d = sorted(starts)
    plain, swapped = keyed(24), keyed(24)
    swapped.swap_windows(a, b, c, d)
    x, y = indices(plain, 12), indices(swapped, 12)
    assert y[a:d] == [*x[c:d], *x[b:c], *x[a:b]]
    assert x[:a] == y[:a] and x[d:] == y[d:]


def test_a_permuted_window_holds_the_same_batches() -> None:
    plain, permuted = keyed(24), keyed(24)
    permuted.permute_window(1, 6, seed=3)
    x, y = indices(plain, 12), indices(permuted, 12)
    assert sorted(x[1:6]) == sorted(y[1:6]) and x[1:6] != y[1:6]
    assert x[:1] == y[:1] and x[6:] == y[6:]


def test_a_change_says_what_it_changed() -> None:
    order = keyed(24)
    indices(order, 1)
    said = order.swap_windows(0, 1, 2, 3)
    assert said.keys() == {"before", "after", "multiset"} and said["before"] != said["after"]
    assert order.swap_windows(0, 1, 2, 3) == {**said, "before": said["after"], "after": said["before"]}
    assert order.swap_windows(7, 8, 9, 10).keys() == {"before", "after"}  # that epoch is not drawn yet


def test_a_window_of_a_later_epoch_waits_for_it() -> None:
    plain, swapped = keyed(24), keyed(24)
    swapped.swap_windows(6, 7, 8, 9)
    x, y = indices(plain, 12), indices(swapped, 12)
    assert (y[6], y[8]) == (x[8], x[6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda order: order.swap_windows(0, 2, 1, 3), "cannot be exchanged"),
        (lambda order: order.swap_windows(0, 2, 4, 8), "over the end of an epoch"),
        (lambda order: order.swap_windows(0, 1, 4, 5), "different sizes"),
        (lambda order: order.permute_window(2, 2, 1), "empty window"),
    ],
)
def test_windows_that_break_the_pairing_are_refused(change: Callable[[Order], None], message: str) -> None:
    order = keyed(23)
    indices(order, 1)
    state = order.copy()
    with pytest.raises(UsageError, match=message):
        change(order)
    got = indices(order, 9)
    order.put_back(state)
    assert got == indices(order, 9)


@pytest.mark.parametrize("policy", ["reshuffle", "with-replacement", "fixed"])
def test_a_policy_moves_no_stream_and_keeps_the_sizes(policy: str) -> None:
    torch.manual_seed(0)
    plain = LoaderOrder(LOADERS["shuffled"](Noisy(23)))
    x = [batch.indices for batch in (next(plain) for _ in range(15))]
    after = torch.get_rng_state()
    torch.manual_seed(0)
    order = LoaderOrder(LOADERS["shuffled"](Noisy(23)))
    y = indices(order, 3)
    order.policy(policy, seed=1)
    y += indices(order, 12)
    assert x[:3] == y[:3] and list(map(len, x)) == list(map(len, y))
    assert torch.equal(after, torch.get_rng_state())
    second, third = y[6:12], y[12:15]
    if policy == "fixed":
        assert second[:3] == third
    else:
        assert x[3:] != y[3:]


def test_a_fork_redraws_the_rest_of_the_epoch_and_of_keyed_ones_all_that_follow() -> None:
    plain, forked = keyed(24), keyed(24)
    x, y = indices(plain, 2), indices(forked, 2)
    forked.fork(5)
    x, y = x + indices(plain, 10), y + indices(forked, 10)
    assert sorted(i for batch in x[:6] for i in batch) == sorted(i for batch in y[:6] for i in batch)
    assert x[2:6] != y[2:6] and x[6:] != y[6:]


def test_loaders_that_cannot_be_branched_are_refused() -> None:
    with pytest.raises(UsageError, match="worker"):
        LoaderOrder(DataLoader(Noisy(4), num_workers=1))


def test_a_batch_says_its_number() -> None:
    order = KeyedOrder(4, 2, key=0, fetch=lambda found: sum(found))
    batches: list[Batch] = [next(order) for _ in range(3)]
    assert [batch.number for batch in batches] == [0, 1, 2]
    assert [batch.data for batch in batches] == [sum(batch.indices) for batch in batches]
