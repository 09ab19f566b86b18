"""Parts of any size add up to the whole, and the whole is what others compute."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch.nn.functional import one_hot

from seqapp.metrics import Confusion, Metric, Ratio, add, read, wilson_interval

NAMES = ("a", "b", "c")
CALLS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


def confusion(calls: list[tuple[int, int]]) -> Confusion:
    targets = torch.tensor([true for true, _ in calls], dtype=torch.int64)
    called = torch.tensor([called for _, called in calls], dtype=torch.int64)
    return Confusion.of(one_hot(called, 3).float() * 5 - 2, targets, NAMES)


@given(CALLS, st.lists(st.integers(0, 60), max_size=5))
def test_parts_add_up_to_the_whole(calls: list[tuple[int, int]], cuts: list[int]) -> None:
    nats = torch.linspace(0.1, 3, len(calls), dtype=torch.float64)
    bounds = [0, *sorted(min(cut, len(calls)) for cut in cuts), len(calls)]
    totals: dict[str, Metric] = {}
    for start, end in pairwise(bounds):
        part = calls[start:end]
        totals = add(totals, {"nll": Ratio("nll", nats[start:end].sum(), len(part)), "confusion": confusion(part)})
    whole = read({"nll": Ratio("nll", nats.sum(), len(calls)), "confusion": confusion(calls)})
    assert read(totals) == pytest.approx(whole)
    assert whole["nll"] == pytest.approx(float(nats.mean()))


@given(CALLS)
def test_confusion_scores_equal_scikit_learn(calls: list[tuple[int, int]]) -> None:
    true, called = zip(*calls, strict=True)
    mine = confusion(calls)
    assert mine.counts.tolist() == confusion_matrix(true, called, labels=range(3)).tolist()
    assert mine.scores() == pytest.approx({
        "accuracy": accuracy_score(true, called),
        "macro_f1": f1_score(true, called, labels=range(3), average="macro", zero_division=0),
    })  # fmt: skip
    assert mine.records() == [
        {"true": name, **dict(zip(NAMES, row, strict=True))}
        for name, row in zip(NAMES, confusion_matrix(true, called, labels=range(3)).tolist(), strict=True)
    ]


def test_rows_are_true_classes_and_columns_calls() -> None:
    assert confusion([(0, 2), (0, 2), (1, 1)]).counts.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_an_average_of_averages_would_differ() -> None:
    parts = [Ratio("x", torch.tensor(10.0), 1), Ratio("x", torch.tensor(0.0), 9)]
    assert (parts[0] + parts[1]).scores() == {"x": 1.0}


def test_nothing_counted_is_not_a_number() -> None:
    assert math.isnan(Ratio("x", torch.tensor(0.0), 0).scores()["x"])
    empty = Confusion(torch.zeros(3, 3, dtype=torch.int64), NAMES)
    assert math.isnan(empty.scores()["accuracy"])
    calls = [(0, 1), (2, 2)]
    assert (empty + confusion(calls)).scores() == confusion(calls).scores()


def test_metrics_are_metrics() -> None:
    for metric in (confusion([(0, 0)]), Ratio("x", torch.tensor(1.0), 1)):
        assert isinstance(metric, Metric)


def test_add_keeps_what_only_one_side_has_and_changes_neither() -> None:
    one: dict[str, Any] = {"a": Ratio("a", torch.tensor(1.0), 1)}
    other: dict[str, Any] = {"a": Ratio("a", torch.tensor(3.0), 1), "b": Ratio("b", torch.tensor(5.0), 2)}
    assert read(add(one, other)) == {"a": 2.0, "b": 2.5}
    assert read(one) == {"a": 1.0}
    assert read(other) == {"a": 3.0, "b": 2.5}


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_against_newcombe(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials, 1.959964) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_a_share(trials: int, share: float) -> None:
    low, high = wilson_interval(share * trials, trials)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert wilson_interval((1 - share) * trials, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wide = wilson_interval(share * trials, trials, 2.576)
    assert wide[0] <= low + 1e-12
    assert high - 1e-12 <= wide[1]


def test_wilson_interval_needs_a_trial() -> None:
    with pytest.raises(ValueError, match="at least one trial, not 0"):
        wilson_interval(0, 0)
