"""Batches: every row once an epoch, bounded, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data.batching import Length, LengthBuckets, cut_by_tokens, pad

LENGTHS = st.lists(st.integers(1, 60), max_size=120)
PAIRS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=120)


def padded_size(batch: Sequence[int], pairs: Sequence[tuple[int, int]]) -> int:
    return len(batch) * (max(pairs[index][0] for index in batch) + max(pairs[index][1] for index in batch))


@given(LENGTHS, st.integers(1, 200), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_index_once_an_epoch_within_the_bounds(
    lengths: list[int], max_tokens: int, max_rows: int, seed: int, epoch: int, shuffle: bool
) -> None:
    buckets = LengthBuckets(lengths, max_tokens=max_tokens, max_rows=max_rows, seed=seed, shuffle=shuffle)
    buckets.set_epoch(epoch)
    batches = list(buckets)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(buckets) == len(batches)
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= max_tokens or len(batch) == 1


@given(PAIRS, st.integers(1, 400), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_pair_once_an_epoch_within_the_bounds_of_both_sides(
    pairs: list[tuple[int, int]], max_tokens: int, max_rows: int, seed: int, epoch: int, shuffle: bool
) -> None:
    buckets = LengthBuckets(pairs, max_tokens=max_tokens, max_rows=max_rows, seed=seed, shuffle=shuffle)
    buckets.set_epoch(epoch)
    batches = list(buckets)
    assert sorted(index for batch in batches for index in batch) == list(range(len(pairs)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert padded_size(batch, pairs) <= max_tokens or len(batch) == 1


@given(
    st.one_of(LENGTHS, PAIRS), st.integers(1, 400), st.integers(1, 20), st.integers(1, 7), st.integers(0, 5),
    st.booleans(),
)  # fmt: skip
def test_processes_share_the_batches_of_one(
    lengths: Sequence[Length], max_tokens: int, max_rows: int, world: int, epoch: int, shuffle: bool
) -> None:
    def made(rank: int, world: int) -> list[list[int]]:
        buckets = LengthBuckets(
            lengths, max_tokens=max_tokens, max_rows=max_rows, seed=2, shuffle=shuffle, rank=rank, world=world
        )
        buckets.set_epoch(epoch)
        assert len(buckets) == len(list(buckets))
        return list(buckets)

    alone, shares = made(0, 1), [made(rank, world) for rank in range(world)]
    assert [len(share) for share in shares] == [len(alone)] * world
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(row for part in parts for row in part) == sorted(batch)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        # Shares are alike in length, too: none is longer at any place than the one before it at the next.
        if not shuffle:
            sides = [[max(length) if isinstance(length := lengths[row], tuple) else length for row in part]
                     for part in parts]  # fmt: skip
            assert all(a <= b for one in sides for other in sides for a, b in zip(one, other[1:], strict=False))


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.booleans())
def test_equal_sides_are_batched_as_one_of_half_the_bound(
    lengths: list[int], max_tokens: int, seed: int, shuffle: bool
) -> None:
    one = LengthBuckets(lengths, max_tokens=max_tokens, seed=seed, shuffle=shuffle)
    two = LengthBuckets([(n, n) for n in lengths], max_tokens=2 * max_tokens, seed=seed, shuffle=shuffle)
    assert list(one) == list(two)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_order_depends_only_on_seed_and_epoch(lengths: list[int], max_tokens: int, seed: int, epoch: int) -> None:
    direct = LengthBuckets(lengths, max_tokens=max_tokens, seed=seed)
    direct.set_epoch(epoch)
    wandering = LengthBuckets(lengths, max_tokens=max_tokens, seed=seed)
    for visited in (3, 0, epoch):
        wandering.set_epoch(visited)
        random.seed(visited)
        list(wandering)
    assert list(wandering) == list(direct) == list(direct)


def test_another_epoch_and_another_seed_are_another_order() -> None:
    chance = random.Random(0)
    lengths = [chance.randint(1, 30) for _ in range(500)]

    def order(seed: int, epoch: int) -> list[list[int]]:
        buckets = LengthBuckets(lengths, max_tokens=128, seed=seed)
        buckets.set_epoch(epoch)
        return list(buckets)

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    batches = [{frozenset(batch) for batch in one} for one in orders]
    assert len(batches[0] & batches[1]) < len(batches[0]) / 4, "batches must be mixed anew, not only reordered"
    firsts = [sum(lengths[index] for index in one[0]) / len(one[0]) for one in orders]
    assert max(firsts) - min(firsts) > 3, "batches must not come in the order of their lengths"


def test_order_is_the_same_in_another_process() -> None:
    code = "from seqapp.data.batching import LengthBuckets as L; print(list(L(range(1, 40), max_tokens=90, seed=7)))"
    command, env = [sys.executable, "-c", code], {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == f"{list(LengthBuckets(range(1, 40), max_tokens=90, seed=7))}\n"


@given(LENGTHS.filter(bool), st.integers(1, 200), st.integers(0, 9))
def test_evaluation_keeps_one_order_by_length(lengths: list[int], max_tokens: int, epoch: int) -> None:
    buckets = LengthBuckets(lengths, max_tokens=max_tokens, seed=epoch, shuffle=False)
    first = list(buckets)
    buckets.set_epoch(epoch)
    assert list(buckets) == first
    flat = [index for batch in first for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: lengths[index])


def test_little_goes_into_padding() -> None:
    chance = random.Random(0)
    lengths = [int(chance.lognormvariate(3, 0.8)) + 1 for _ in range(5000)]

    def waste(pool: int) -> float:
        batches = list(LengthBuckets(lengths, max_tokens=2048, pool=pool))
        return 1 - sum(lengths) / sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)

    assert waste(50) < 0.08
    assert waste(1) > 2 * waste(50)


def test_little_of_pairs_goes_into_padding() -> None:
    chance = random.Random(0)
    pairs = [(n, max(1, round(n * chance.uniform(0.6, 1.4)))) for n in (chance.randint(4, 40) for _ in range(5000))]

    def waste(lengths: Sequence[int | tuple[int, int]], max_tokens: int) -> float:
        batches = list(LengthBuckets(lengths, max_tokens=max_tokens))
        return 1 - sum(map(sum, pairs)) / sum(padded_size(batch, pairs) for batch in batches)

    assert waste(pairs, 4096) < 0.11
    assert waste([source for source, _ in pairs], 2048) > 1.5 * waste(pairs, 4096)
    assert waste([source + target for source, target in pairs], 4096) > 1.5 * waste(pairs, 4096)


def test_cut_by_tokens_fills_batches_greedily() -> None:
    assert cut_by_tokens([0, 1, 2], [(2, 9), (3, 1), (1, 1)], max_tokens=24, max_rows=9) == [[0, 1], [2]]
    assert cut_by_tokens([0, 1, 2, 3], [2, 2, 3, 10], max_tokens=6, max_rows=9) == [[0, 1], [2], [3]]
    assert cut_by_tokens([3, 0, 1, 2], [1, 1, 1, 1], max_tokens=9, max_rows=3) == [[3, 0, 1], [2]]
    assert cut_by_tokens([0, 1, 2], [4, 1, 1], max_tokens=4, max_rows=9) == [[0], [1, 2]]
    assert cut_by_tokens([], [], max_tokens=1, max_rows=1) == []


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=9), st.integers(-1, 0))
def test_pad_adds_only_on_the_right(rows: list[list[int]], value: int) -> None:
    ids, lengths = pad(rows, value)
    assert ids.shape == (len(rows), max(map(len, rows)))
    assert str(ids.dtype) == str(lengths.dtype) == "torch.int64"
    for row, padded, size in zip(rows, ids.tolist(), lengths.tolist(), strict=True):
        assert padded[:size] == row
        assert set(padded[size:]) <= {value}


def test_pad_uses_id_zero() -> None:
    assert pad([[5, 6], [7]])[0].tolist() == [[5, 6], [7, 0]]
    with pytest.raises(ValueError, match="empty"):
        pad([])
