"""Modified Kneser-Ney against its formulas written out with dictionaries, and by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ngram import FEW, NGram, discounts
from seqapp.data.tokenizers import BOS, EOS, PAD, UNK

V = 9
A, B, C = 4, 5, 6


def laid_out(documents: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([token for document in documents for token in [BOS, *document]], np.int64)


TEXTS = st.lists(st.lists(st.integers(3, V - 1), max_size=8), min_size=1, max_size=8).filter(any)


class Slow:
    """p(w | h) of Chen & Goodman 1999, section 3, with dictionaries, one number at a time."""

    def __init__(self, documents: Sequence[Sequence[int]], order: int) -> None:
        self.order = order
        stood: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            row = [BOS, *document]
            stood.update(tuple(row[start : end + 1]) for end in range(1, len(row)) for start in range(end + 1))
        before = defaultdict(set)
        for gram in stood:
            before[gram[1:]].add(gram[0])
        self.counts = {
            gram: times if len(gram) == order or gram[0] == BOS else len(before[gram]) for gram, times in stood.items()
        }
        self.discounts = {
            k: (0.0, *discounts(np.array([count for gram, count in self.counts.items() if len(gram) == k])))
            for k in range(1, max(map(len, stood)) + 1)
        }

    def __call__(self, context: tuple[int, ...], word: int) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        lowest = 0.0 if word in (PAD, BOS) else 1 / (V - 2)
        shorter = self(context[1:], word) if context else lowest
        counts = {v: self.counts[*context, v] for v in range(V) if (*context, v) in self.counts}
        if not counts:
            return shorter
        D, c = self.discounts[len(context) + 1], counts.get(word, 0)
        taken = sum(D[min(count, 3)] for count in counts.values())
        return (c - D[min(c, 3)] + taken * shorter) / sum(counts.values())


def from_bos(tokens: Sequence[int]) -> tuple[int, ...]:
    """What of ``tokens`` a context may hold: nothing before the last BOS."""
    last = max((place for place, token in enumerate(tokens) if token == BOS), default=0)
    return tuple(tokens[last:])


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 4), TEXTS)
def test_every_probability_is_that_of_the_formula(
    documents: list[list[int]], order: int, others: list[list[int]]
) -> None:
    fast = NGram(laid_out(documents), order=order, vocabulary_size=V)
    text = laid_out([*others, *documents[:2]])
    nats = fast.nats(text)
    places = np.flatnonzero(text != BOS)
    for row in range(fast.order):
        slow = Slow(documents, row + 1)
        wanted = [slow(from_bos(text[:place].tolist()), int(text[place])) for place in places]
        assert np.exp(-nats[row]) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 5), st.lists(st.integers(0, V - 1), max_size=6))
def test_the_vocabulary_shares_a_probability_of_one_in_any_context(
    documents: list[list[int]], order: int, context: list[int]
) -> None:
    model = NGram(laid_out(documents), order=order, vocabulary_size=V)
    for given_context in (context, [BOS, *context], [*documents[0], EOS]):
        p = model.probabilities(given_context)
        assert p.sum(1) == pytest.approx(np.ones(model.order))
        assert (p[:, [PAD, BOS]] == 0).all()
        assert (p[:, [UNK, EOS, A]] > 0).all(), "nothing that can come is impossible"


def test_by_hand() -> None:
    # a b a b | a c: a stands 3 times, b 2, c 1; the pairs are BOS a (2), a b (2), b a, a c.
    text = laid_out([[A, B, A, B], [A, C]])
    model = NGram(text, order=2, vocabulary_size=V)
    # Order 1, counts 3, 2, 1: n1 = n2 = n3 = 1, Y = 1/3, D1 = 1/3, D2 = 2 - 3/3 = 1, D3 = 3 as there is no n4.
    assert discounts(np.array([3, 2, 1])) == pytest.approx((1 / 3, 1, 3))
    left = (1 / 3 + 1 + 3) / 6 / (V - 2)
    assert model.probabilities([])[0][[A, B, C, EOS]] == pytest.approx([left, 1 / 6 + left, 2 / 18 + left, left])
    # As shorter context a follows BOS and b, b follows a, c follows a: counts 2, 1, 1; n1 = 2, n2 = 1, Y = 1/2,
    # D1 = 1 - 2 / 2 / 2 = 1/2, D2 = 2.
    left = (2 + 1 / 2 + 1 / 2) / 4 / (V - 2)
    unigram = {A: left, B: 1 / 8 + left, C: 1 / 8 + left, EOS: left}
    # Order 2, counts 2, 2, 1, 1: n1 = n2 = 2, Y = 1/3, D1 = 1/3, D2 = 2. After a: b 2, c 1.
    after = {A: 0, B: 0, C: 2 / 9, EOS: 0}
    wanted = [after[word] + (2 + 1 / 3) / 3 * unigram[word] for word in (A, B, C, EOS)]
    assert model.probabilities([BOS, A])[1][[A, B, C, EOS]] == pytest.approx(wanted)


def test_order_one_is_the_smoothed_share_of_each_token() -> None:
    counts = {EOS: 1, A: 1, B: 2, C: 2, 7: 3, 8: 9}
    text = laid_out([[word] * count for word, count in counts.items()])
    one, two, three = discounts(np.array(list(counts.values())))
    taken = {1: one, 2: two}
    left = (2 * one + 2 * two + 2 * three) / 18 / (V - 2)
    found = NGram(text, order=1, vocabulary_size=V).probabilities([A, B])[0]
    for word, count in counts.items():
        assert found[word] == pytest.approx((count - taken.get(count, three)) / 18 + left)
    assert found[UNK] == pytest.approx(left)


@pytest.mark.parametrize("counts", [[1], [2, 2], [1, 1, 4], [1, 2, 3, 3, 3, 3], list(range(1, 9))])
def test_discounts_leave_something_and_take_no_more_than_there_is(counts: list[int]) -> None:
    for c, discount in zip((1, 2, 3), discounts(np.array(counts)), strict=True):
        assert 0 < discount <= c


def test_discounts_fall_back_where_nothing_stands_once() -> None:
    assert discounts(np.array([2, 2, 3])) == FEW


def test_a_document_is_foretold_alike_whatever_stands_before_it() -> None:
    chance = np.random.default_rng(0)
    documents = [chance.integers(3, V, 12).tolist() for _ in range(30)]
    model = NGram(laid_out(documents[:20]), order=4, vocabulary_size=V)
    together = model.nats(laid_out(documents[20:]))
    alone = np.concatenate([model.nats(laid_out([document])) for document in documents[20:]], 1)
    assert together == pytest.approx(alone)


def test_longer_contexts_pay_where_the_text_has_them() -> None:
    # The third token is that of two places before, so pairs are of no use.
    chance = np.random.default_rng(1)

    def text(count: int) -> np.ndarray:
        pairs = chance.integers(4, V, (count, 2))
        return laid_out([[a, b, a, b, a, b] for a, b in pairs.tolist()])

    nats = NGram(text(300), order=4, vocabulary_size=V).nats(text(50)).mean(1)
    assert nats[2] < 0.7 * nats[1]
    assert nats[1] == pytest.approx(nats[0], rel=0.2)


@pytest.mark.parametrize(("text", "order", "said"), [([BOS, A], 0, "order is 0"), ([BOS, BOS], 2, "no token")])
def test_what_cannot_be_counted_is_refused(text: list[int], order: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NGram(np.array(text), order=order, vocabulary_size=V)
