"""Scores from sums, intervals over samples of items, and paired tests: by brute force and against SciPy."""

import itertools
import math
import tracemalloc
import warnings

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from scipy import stats

from seqapp import outcomes as module
from seqapp.metrics import add, read
from seqapp.outcomes import Outcomes, bca, bits, bleu, difference, holm, intervals, mean, ratio, resampled
from seqapp.translation_scores import Translations

COUNTED = {"accuracy": ("ratio", "right", "texts")}


def counted(right: list[int] | numpy.ndarray) -> Outcomes:
    return Outcomes.of(COUNTED, right=right, texts=numpy.ones(len(right)))


def costs(values: numpy.ndarray, counts: numpy.ndarray) -> Outcomes:
    return Outcomes.of({"nll": ("ratio", "cost", "answers")}, cost=values, answers=counts)


# Sums


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=7).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_bleu_of_the_sums_is_that_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    said, right = (tuple(side) for side in zip(*pairs, strict=True))
    found = Translations(said, said, right)
    assert found.outcomes().score() == pytest.approx(found.scores()["bleu"], abs=1e-9)
    # And of any sample of the sentences.
    chosen = [0, len(pairs) - 1, 0]
    sums = found.outcomes().values[chosen].sum(0)
    wanted = BLEU(tokenize="13a", force=True).corpus_score([said[i] for i in chosen], [[right[i] for i in chosen]])
    assert bleu(sums) == pytest.approx(wanted.score, abs=1e-9)


def test_formulas_take_any_leading_shape() -> None:
    sums = numpy.array([[[1.0, 4.0], [3.0, 4.0]]])
    assert ratio(sums).tolist() == [[0.25, 0.75]]
    assert bits(sums)[0, 0] == pytest.approx(0.25 / math.log(2))
    assert math.isnan(ratio(numpy.zeros(2)))


def test_parts_join_and_have_no_score_of_their_own() -> None:
    first, second = counted([1, 0]), counted([1])
    joined = add({"outcomes": first}, {"outcomes": second})
    assert read(joined) == {}
    whole = joined["outcomes"]
    assert isinstance(whole, Outcomes)
    assert whole.values.tolist() == [[1, 1], [0, 1], [1, 1]]
    assert whole.score() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="do not add up"):
        first + costs(numpy.ones(1), numpy.ones(1))
    with pytest.raises(ValueError, match="do not fit"):
        Outcomes(("a",), {"a": ("ratio", "a", "a")}, numpy.ones((2, 2)))


def test_rows_of_one_item_are_added_up_and_items_put_in_order() -> None:
    found = Outcomes.of(COUNTED, items=[2, 0, 2], right=[1, 0, 1], texts=[1, 1, 3])
    assert found.ordered().values.tolist() == [[0, 1], [0, 0], [2, 4]]
    assert counted([1, 0, 0]).ordered([2, 0, 1]).values[:, 0].tolist() == [0, 0, 1]


def test_seeds_have_the_mean_of_each_item() -> None:
    assert mean([counted([1, 0]), counted([1, 1])]).values.tolist() == [[1, 1], [0.5, 1]]
    with pytest.raises(ValueError, match="other items"):
        mean([counted([1, 0]), counted([1])])


# Intervals


def test_samples_are_those_of_a_bootstrap() -> None:
    values = numpy.array([[1.0], [10.0], [100.0]])
    sums = resampled(values, resamples=20_000, seed=1)[:, 0]
    # Each digit of a sum counts one item, and the three counts are of 3 draws.
    digits = numpy.array([[int(s) % 10, int(s) // 10 % 10, int(s) // 100] for s in sums])
    assert (digits.sum(1) == 3).all()
    for counts in itertools.product(range(4), repeat=3):
        if sum(counts) == 3:
            wanted = math.factorial(3) / math.prod(map(math.factorial, counts)) / 27
            assert (digits == counts).all(1).mean() == pytest.approx(wanted, abs=0.015)
    assert (resampled(values, seed=1) == resampled(values, seed=1)).all()


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_interval_is_that_of_scipy(seed: int) -> None:
    values = numpy.random.default_rng(seed).gamma(0.7, size=25)
    theirs = stats.bootstrap((values,), numpy.mean, n_resamples=499, method="BCa", rng=seed)
    left_out = (values.sum() - values) / (len(values) - 1)
    mine = bca(float(values.mean()), theirs.bootstrap_distribution, left_out)
    assert mine == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), rel=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    chance = numpy.random.default_rng(0)
    held = 0
    for trial in range(200):
        ends = intervals([counted(chance.random(80) < 0.8)], seed=trial)[0]
        assert ends is not None
        held += ends[0] <= 0.8 <= ends[1]
    assert 180 <= held <= 199


def test_models_beside_each_other_have_the_intervals_they_have_alone() -> None:
    chance = numpy.random.default_rng(0)
    models = [counted(chance.random(40) < p) for p in (0.3, 0.9)]
    assert intervals(models) == [intervals([model])[0] for model in models]


def test_items_that_do_not_differ_have_no_interval() -> None:
    assert intervals([counted([1, 1, 1]), counted([0, 1, 1])])[0] is None
    assert intervals([counted([1])]) == [None]
    assert intervals([counted([])]) == [None]
    # A sample may hold no answer at all.
    odd = costs(numpy.array([1.0, 0.0]), numpy.array([1.0, 0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert intervals([odd]) == [None]


# Paired tests


def brute(a: Outcomes, b: Outcomes) -> float:
    """The p-value by the definition: every way to exchange the answers to items."""
    apart = abs(a.score() - b.score())
    found = []
    for swaps in itertools.product([False, True], repeat=len(a)):
        mask = numpy.array(swaps)[:, None]
        one, other = numpy.where(mask, b.values, a.values), numpy.where(mask, a.values, b.values)
        found.append(abs(float(ratio(one.sum(0)) - ratio(other.sum(0)))) >= apart - 1e-12)
    return sum(found) / len(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_few_items_are_tested_exactly(items: int, seed: int) -> None:
    chance = numpy.random.default_rng(seed)
    counts = chance.integers(1, 5, items)
    a, b = (costs(chance.integers(0, 4, items) * 1.0, counts) for _ in range(2))
    found = difference(a, b)
    assert found.p == pytest.approx(brute(a, b))
    assert found.value == pytest.approx(a.score() - b.score())


def test_the_exact_test_is_that_of_scipy() -> None:
    chance = numpy.random.default_rng(3)
    a, b = chance.random(9), chance.random(9)
    theirs = stats.permutation_test((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), permutation_type="samples",
                                    vectorized=True, n_resamples=numpy.inf)  # fmt: skip
    assert difference(costs(a, numpy.ones(9)), costs(b, numpy.ones(9))).p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize(("won", "lost"), [(9, 1), (30, 18), (60, 60), (25, 5)])
def test_shares_are_tested_by_their_signs(won: int, lost: int) -> None:
    # McNemar's test: items that both get right or both wrong tell nothing.
    a = counted([1] * 200 + [1] * won + [0] * lost)
    b = counted([1] * 200 + [0] * won + [1] * lost)
    exact = stats.binomtest(won, won + lost).pvalue
    assert difference(a, b).p == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000) + 1e-4)


def test_p_is_small_no_more_often_than_it_says() -> None:
    # Under the null each exchange of answers is as likely, so over all of them p <= x for a share of x at most.
    chance = numpy.random.default_rng(1)
    a, b = chance.random((8, 1)), chance.random((8, 1))
    found = []
    for swaps in itertools.product([False, True], repeat=8):
        mask = numpy.array(swaps)[:, None]
        one, other = numpy.where(mask, b, a)[:, 0], numpy.where(mask, a, b)[:, 0]
        found.append(difference(costs(one, numpy.ones(8)), costs(other, numpy.ones(8))).p)
    for x in numpy.linspace(0.01, 1, 100):
        assert (numpy.array(found) <= x + 1e-12).mean() <= x + 1e-12


def test_drawn_shuffles_are_calibrated_under_the_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUFFLES", 199)
    chance = numpy.random.default_rng(2)
    found = numpy.array([
        difference(costs(chance.gamma(1, size=30), numpy.ones(30)), costs(chance.gamma(1, size=30), numpy.ones(30)),
                   seed=trial).p
        for trial in range(400)
    ])  # fmt: skip
    assert found.min() >= 1 / 200
    # 400 draws of a share of 5 %: 20, give or take 4.4.
    assert 7 <= (found <= 0.05).sum() <= 34
    assert 0.44 < found.mean() < 0.56


def test_a_real_difference_is_found_and_the_order_of_items_matters() -> None:
    chance = numpy.random.default_rng(0)
    hard = chance.gamma(2, size=300)
    better, worse = costs(hard, numpy.ones(300)), costs(hard + 0.05 * chance.random(300), numpy.ones(300))
    found = difference(better, worse)
    assert found.p == 1 / 10_000
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1] < 0
    shuffled = Outcomes(worse.columns, worse.scores_of, chance.permutation(worse.values))
    assert difference(better, shuffled).p > 0.05
    assert found == difference(better, worse)


def test_a_difference_turned_round_is_the_same() -> None:
    chance = numpy.random.default_rng(0)
    a, b = (costs(chance.gamma(2, size=40), chance.integers(1, 9, 40)) for _ in range(2))
    there, back = difference(a, b), difference(b, a)
    assert there.value == pytest.approx(-back.value)
    assert there.p == pytest.approx(back.p, abs=0.03)
    assert difference(a, a).p == 1
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(a, costs(numpy.ones(3), numpy.ones(3)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(p: list[float]) -> None:
    found = holm(p)
    for level in (0.01, 0.05, 0.3):
        # The smallest p-values are rejected one after the other, until one is above level / (how many are left).
        rejected = set()
        for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] * (len(p) - rank) > level:
                break
            rejected.add(index)
        assert {index for index, adjusted in enumerate(found) if adjusted <= level} == rejected


def test_holm_never_puts_a_larger_p_below_a_smaller_one() -> None:
    assert holm([0.02, 0.021]) == [0.04, 0.04]
    assert holm([0.021, 0.02, 0.9]) == [0.06, 0.06, 0.9]


def test_holm_goes_on_with_the_highest_so_far() -> None:
    # Adjusted p-values keep the order of the p-values: 2 * 0.02, then no less for 0.021.
    assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])


@given(st.integers(1, 9), st.integers(0, 10_000))
def test_no_p_is_smaller_than_so_few_items_can_give(items: int, seed: int) -> None:
    chance = numpy.random.default_rng(seed)
    alike = [1] * 5
    a, b = counted([*chance.integers(0, 2, items), *alike]), counted([*chance.integers(0, 2, items), *alike])
    found = difference(a, b)
    assert found.items == (a.values != b.values).any(1).sum()
    assert found.p >= found.least
    won = difference(counted([1] * items + alike), counted([0] * items + alike))
    assert won.p == won.least == 2 / 2**items


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_significant_nor_certain(bad: float) -> None:
    chance = numpy.random.default_rng(0)
    good = costs(chance.random(40), numpy.ones(40))
    odd = costs(numpy.where(numpy.arange(40) < 3, bad, chance.random(40)), numpy.ones(40))
    empty = costs(numpy.ones(40), numpy.zeros(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, other in ((good, odd), (odd, good), (odd, costs(odd.values[::-1, 0], numpy.ones(40))), (good, empty)):
            found = difference(one, other)
            assert not math.isfinite(found.value)
            assert (found.p, found.interval) == (1, None)
        assert intervals([odd, good, empty]) == [None, *intervals([good]), None]
        assert intervals([good])[0] is not None


def test_many_items_are_weighed_a_part_at_a_time() -> None:
    # All weights of 10,000 items at once would be 160 MB, and all shuffles 800 MB.
    columns = ("cost", "answers")
    chance = numpy.random.default_rng(0)
    models = [Outcomes(columns, {"nll": ("ratio", *columns)}, chance.random((10_000, 2))) for _ in range(2)]
    tracemalloc.start()
    intervals(models)
    difference(*models)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
