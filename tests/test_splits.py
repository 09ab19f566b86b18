"""Splits share nothing: whole groups, near the wanted shares, the same every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data.bundled import reviews
from seqapp.data.splits import LabelledText, Splits, digest, split_by_group
from seqapp.errors import DataError

SHARES = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any).map(
    lambda parts: [part / sum(parts) for part in parts]
)  # fmt: skip


@given(st.lists(st.integers(0, 12), max_size=80), SHARES, st.integers(0, 5))
def test_groups_stay_whole_and_shares_are_near(groups: list[int], shares: list[float], seed: int) -> None:
    examples = list(enumerate(groups))
    try:
        parts = split_by_group(examples, lambda example: example[1], shares, seed)
    except DataError:
        # Only when groups are few or large beside the smallest share may a part come out empty.
        largest = max(map(groups.count, groups), default=0)
        assert min(share for share in shares if share) * len(groups) <= largest
        return
    assert sorted(example for part in parts for example in part) == examples
    assert all(part == sorted(part) for part in parts), "each part keeps the order"
    seen = [{group for _, group in part} for part in parts]
    for index, one in enumerate(seen):
        for other in seen[:index]:
            assert not one & other
    largest = max(map(groups.count, groups), default=0)
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - share * len(examples)) <= largest + 1e-6
        assert part or not share
        assert share or not part


@given(st.lists(st.integers(0, 12), min_size=40, max_size=80), st.integers(0, 5))
def test_deterministic_and_fixed_by_the_seed(groups: list[int], seed: int) -> None:
    examples = list(enumerate(groups))

    def deal(seed: int) -> object:
        try:
            return split_by_group(examples, lambda example: example[1], [0.5, 0.5], seed)
        except DataError:
            return None

    assert deal(seed) == deal(seed)


def test_another_seed_is_another_split() -> None:
    examples = list(range(200))
    deals = [split_by_group(examples, lambda example: example // 4, [0.8, 0.1, 0.1], seed) for seed in range(4)]
    assert all(one != other for index, one in enumerate(deals) for other in deals[:index])
    assert [len(part) for part in deals[0]] == [160, 20, 20]


def test_single_examples_are_dealt_to_the_number() -> None:
    parts = split_by_group(list(range(1000)), lambda example: example, [0.7, 0.2, 0.1], 0)
    assert [len(part) for part in parts] == [700, 200, 100]


def test_too_few_groups_are_told() -> None:
    with pytest.raises(DataError, match=r"1 group\(s\) in 50 example\(s\) are too few to split by \[0.8, 0.2\]"):
        split_by_group(list(range(50)), lambda _: 0, [0.8, 0.2], 0)
    with pytest.raises(DataError, match="too few"):
        split_by_group([], lambda _: 0, [1.0], 0)


@pytest.mark.parametrize("shares", [[0.5, 0.4], [1.2, -0.2]])
def test_shares_must_add_up(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        split_by_group([1, 2], lambda example: example, shares, 0)


def test_digest_tells_content_and_order() -> None:
    one, two = LabelledText("good", "positive"), LabelledText("bad", "negative")
    assert digest([one, two]) == digest([LabelledText("good", "positive"), two])
    different = [[one, two], [two, one], [one], [one, one, two], [LabelledText("goodp", "ositive"), two], []]
    assert len({digest(examples) for examples in different}) == len(different)
    assert len(digest([LabelledText("half a pair \ud800", "x")])) == 64
    splits = Splits("toy", [one], [two])
    assert splits.digests() == {"train": digest([one]), "validation": digest([two]), "test": digest([])}


def test_bundled_reviews_share_nothing() -> None:
    splits = reviews()
    texts = [{example.text.casefold() for example in part} for part in (splits.train, splits.validation, splits.test)]
    assert all(texts)
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    for part in (splits.train, splits.validation, splits.test):
        share = sum(example.label == "positive" for example in part) / len(part)
        assert {example.label for example in part} == {"positive", "negative"}
        assert 0.4 < share < 0.6
