"""What came of each item of a split, in sums from which scores are computed, and how certain such a score is.

N items, K columns, R resamples.

A corpus score such as BLEU is no mean over sentences, but a function of sums over them. So are an accuracy and bits per
character. With the summands of each item written down, the score of any choice of items is one matrix product away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[numpy.float64]

RESAMPLES = 2_000
"""Of an interval."""
SHUFFLES = 9_999
"""Of a test, so that its p-value is a multiple of 1/10,000; where there are fewer ways to shuffle, each is tried."""
LEVEL = 0.95
"""Of an interval."""
SIGNIFICANT = 0.05
"""The largest p-value at which two models are said to differ."""
_CELLS = 2**21
"""Weights that are held at a time."""
_QUIET = numpy.errstate(over="ignore", invalid="ignore")
"""Where what is not finite is looked for."""
_EXACT_ITEMS = 13
"""Items that differ, up to which each of the 2 ** n ways is tried."""


def ratio(sums: Floats) -> Floats:
    """a / b of sums (..., 2)."""
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return numpy.asarray(sums[..., 0] / sums[..., 1])


def bits(sums: Floats) -> Floats:
    """Nats over characters, (..., 2), in bits."""
    return ratio(sums) / math.log(2)


def bleu(sums: Floats) -> Floats:
    """BLEU (Papineni et al. 2002) with "exp" smoothing (Lin & Och 2004), as sacreBLEU computes it, in percent.

    Args:
        sums: (..., 10): tokens of the hypotheses and of the references, then for n-grams of order 1 to 4 how many are
            right, then how many there are.
    """
    said, right_length, right, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    # The k-th order without a right n-gram counts as having 1 / 2 ** k of one.
    smooth = numpy.where(right == 0, 0.5 ** numpy.cumsum(right == 0, -1), right)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        logarithms = numpy.log(smooth / total).mean(-1)
        penalty = numpy.minimum(0.0, 1 - right_length / said)
        found = 100 * numpy.exp(logarithms + penalty)
    return numpy.where((total > 0).all(-1) & (right > 0).any(-1), found, 0.0)


FORMULAS: Mapping[str, Callable[[Floats], Floats]] = {"ratio": ratio, "bits": bits, "bleu": bleu}
"""Name -> summed columns (..., k) -> scores (...)."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Summands of the scores of N items; a :class:`seqapp.metrics.Metric` without scores of its own.

    LAW: the score of the sums over all items is the score that the metrics beside it tell.

    Args:
        columns: K names.
        scores_of: score -> the formula, one of ``FORMULAS``, and the columns it reads, such as
            ``{"accuracy": ("ratio", "right", "texts")}``; the first is the one that chooses between models.
        values: (N, K).
        items: (N,), which item each row is of, where rows of one item are to be added up; None: the rows are the items.
    """

    columns: tuple[str, ...]
    scores_of: Mapping[str, tuple[str, ...]]
    values: Floats
    items: NDArray[numpy.int64] | None = None

    def __post_init__(self) -> None:
        rows = self.values.shape
        if len(rows) != 2 or rows[1] != len(self.columns) or (self.items is not None and len(self.items) != rows[0]):
            raise ValueError(f"values {rows} do not fit {len(self.columns)} columns"
                             + ("" if self.items is None else f" and {len(self.items)} items"))  # fmt: skip

    @classmethod
    def of(
        cls, scores_of: Mapping[str, tuple[str, ...]], *, items: ArrayLike | None = None, **columns: Any
    ) -> Outcomes:
        """From one row of N numbers a column, a tensor or array each.

        Args:
            scores_of: as of the class.
            items: as of the class.
            columns: name -> (N,).
        """
        arrays = [numpy.asarray(column.cpu() if hasattr(column, "cpu") else column, numpy.float64)
                  for column in columns.values()]  # fmt: skip
        return cls(tuple(columns), scores_of, numpy.stack(arrays, 1),
                   None if items is None else numpy.asarray(items, numpy.int64))  # fmt: skip

    def __len__(self) -> int:
        return len(self.values)

    def __add__(self, other: Outcomes) -> Outcomes:
        if not self.alike(other) or (self.items is None) != (other.items is None):
            raise ValueError(f"outcomes in {', '.join(self.columns)} and in {', '.join(other.columns)} do not add up")
        items = None
        if self.items is not None and other.items is not None:
            items = numpy.concatenate([self.items, other.items])
        return Outcomes(self.columns, self.scores_of, numpy.concatenate([self.values, other.values]), items)

    def scores(self) -> dict[str, float]:
        """None: the metrics beside it tell them."""
        return {}

    def alike(self, other: Outcomes) -> bool:
        """Whether the columns mean the same."""
        return self.columns == other.columns and dict(self.scores_of) == dict(other.scores_of)

    def ordered(self, order: Sequence[int] | None = None) -> Outcomes:
        """One row an item, in the order of the items.

        Args:
            order: the item of each row, where they are not told; None: they stand in order.
        """
        items = self.items if order is None else numpy.asarray(order, numpy.int64)
        if items is None:
            return self
        values = numpy.zeros((int(items.max(initial=-1)) + 1, len(self.columns)))
        numpy.add.at(values, items, self.values)
        return Outcomes(self.columns, self.scores_of, values)

    def part(self, score: str = "") -> Floats:
        """The columns of a score, (N, k).

        Args:
            score: its name; "" for the one that chooses.
        """
        return self.values[:, [self.columns.index(name) for name in self._spec(score)[1:]]]

    def formula(self, score: str = "") -> Callable[[Floats], Floats]:
        """Sums of :meth:`part` -> scores."""
        return FORMULAS[self._spec(score)[0]]

    def score(self, score: str = "") -> float:
        """The score of all items."""
        return float(self.formula(score)(self.part(score).sum(0)))

    def _spec(self, score: str) -> tuple[str, ...]:
        return self.scores_of[score or next(iter(self.scores_of))]


def mean(runs: Sequence[Outcomes]) -> Outcomes:
    """Of several runs over the same items, such as those of other seeds, the mean summands of each item.

    Raises:
        ValueError: if they are not of the same items.
    """
    first = runs[0]
    if any(len(run) != len(first) or not first.alike(run) for run in runs):
        raise ValueError("outcomes of other items have no mean")
    return Outcomes(first.columns, first.scores_of, numpy.mean([run.values for run in runs], 0))


def resampled(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Sums over R samples of N items, drawn with replacement, (R, K).

    Several models over the same items beside each other, (N, K * models), see the same samples.

    Args:
        values: (N, K).
        resamples: R.
        seed: equal seeds draw the same samples of equally many items.
    """
    return numpy.concatenate([weights @ values for weights in _draws(len(values), resamples, seed)])


def _draws(items: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each item is in each sample, (rows, N), some rows at a time."""
    chance = numpy.random.default_rng(seed)
    rows = max(1, _CELLS // max(1, items))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = chance.integers(items, size=(count, items), dtype=numpy.int32).astype(numpy.int64)
        drawn += items * numpy.arange(count)[:, None]
        yield numpy.bincount(drawn.ravel(), minlength=count * items).reshape(count, items).astype(numpy.float64)


def bca(estimate: float, replicates: Floats, left_out: Floats, *, level: float = LEVEL) -> tuple[float, float] | None:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987, section 3).

        z0 = G^-1(share of replicates below the estimate)
        a = sum(d^3) / (6 sum(d^2)^(3/2)), d = mean of the left-out estimates - each of them
        end = replicate at the share G(z0 + (z0 + z) / (1 - a (z0 + z)))

    G the normal distribution, z its quantile at (1 - level) / 2 and at 1 minus that. It moves with bias and skew, which
    scores near their bounds and BLEU have, and the interval of a function of the score is the function of the interval.

    Args:
        estimate: the score of all items.
        replicates: (R,), of the resamples.
        left_out: (N,), the score without each of the items.
        level: how often such intervals hold the true score.

    Returns:
        Both ends; None where the items do not differ, so that there is nothing to resample, or a score is not finite.
    """
    if not (numpy.isfinite(replicates).all() and numpy.isfinite(left_out).all() and math.isfinite(estimate)):
        return None
    d = left_out.mean() - left_out
    spread = float((d**2).sum())
    if numpy.ptp(replicates) == 0 or spread == 0:
        return None
    normal = NormalDist()
    below = ((replicates < estimate).mean() + (replicates <= estimate).mean()) / 2
    z0 = normal.inv_cdf(min(max(float(below), 0.5 / len(replicates)), 1 - 0.5 / len(replicates)))
    a = float((d**3).sum()) / (6 * spread**1.5)
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = z0 + normal.inv_cdf(share)
        ends.append(float(numpy.quantile(replicates, normal.cdf(z0 + z / (1 - a * z)))))
    return ends[0], ends[1]


@_QUIET
def intervals(models: Sequence[Outcomes], score: str = "", *, seed: int = 0) -> list[tuple[float, float] | None]:
    """The 95 % interval of a score of each of several models over equally many items, over the choice of items.

    Args:
        models: their outcomes, all alike.
        score: its name; "" for the one that chooses.
        seed: of the samples.

    Returns:
        One each; None as of :func:`bca`.
    """
    found: list[tuple[float, float] | None] = [None] * len(models)
    parts = {place: part for place, part in enumerate(model.part(score) for model in models)
             if len(part) > 1 and _finite(part)}  # fmt: skip
    if not parts:
        return found
    formula = models[0].formula(score)
    sums = numpy.split(resampled(numpy.concatenate(list(parts.values()), 1), seed=seed), len(parts), 1)
    for (place, part), replicates in zip(parts.items(), sums, strict=True):
        whole = part.sum(0)
        found[place] = bca(float(formula(whole)), formula(replicates), formula(whole - part))
    return found


def _finite(values: Floats) -> bool:
    """Whether all of them and their sums are numbers; infinity times a weight of 0 is none."""
    return bool(numpy.isfinite(values.sum(0)).all())


@dataclass(frozen=True)
class Difference:
    """How far apart two models are on the same items.

    Args:
        value: score of the first less that of the second; not finite where one of them is not.
        p: how often chance alone would make them so far apart, two-sided.
        interval: of 95 %; None where no item tells them apart.
        items: those that the two answer differently.
    """

    value: float
    p: float
    interval: tuple[float, float] | None
    items: int

    @property
    def least(self) -> float:
        """The smallest p that so many items can give: the shuffle that exchanges all is always as far apart."""
        return min(1.0, 2.0 ** (1 - self.items))


@_QUIET
def difference(a: Outcomes, b: Outcomes, score: str = "", *, seed: int = 0) -> Difference:
    """Two models on the same items in the same order, by approximate randomisation (Riezler & Maxwell 2005).

    If the two are as good as each other, it does not matter which of them answered which item. So the answers to each
    item are exchanged or not by the toss of a coin, and p is the share of such shuffles that set the two as far apart
    as they are, themselves counted (Noreen 1989): P(p <= x) <= x for every x. Items that both answer alike change
    nothing. Where at most 13 differ, all shuffles are tried and p is exact. Scores that are not finite have p = 1. The
    interval is :func:`bca` of the difference over samples of the items, both models on the same ones (Koehn 2004).

    Args:
        a: one.
        b: the other.
        score: its name; "" for the one that chooses.
        seed: of shuffles and samples.

    Raises:
        ValueError: if the two are not of the same items.
    """
    if len(a) != len(b) or not a.alike(b):
        raise ValueError(f"outcomes of {len(a)} and of {len(b)} items cannot be paired")
    first, second, formula = a.part(score), b.part(score), a.formula(score)
    differs = (first != second).any(1)
    items = int(differs.sum())
    value = math.nan
    if _finite(first) and _finite(second):
        totals = first.sum(0), second.sum(0)
        value = float(formula(totals[0]) - formula(totals[1]))
    if not math.isfinite(value) or not items:
        return Difference(value, 1.0, None, items)
    exchanged = (second - first)[differs]
    extreme = tried = 0
    for swaps in _swaps(len(exchanged), seed):
        moved = swaps @ exchanged
        apart = formula(totals[0] + moved) - formula(totals[1] - moved)
        # Sums in another order differ in their last digits; a shuffle without a score speaks for no difference.
        extreme += int((~(numpy.abs(apart) < abs(value) * (1 - 1e-9))).sum())
        tried += len(apart)
    given = items > _EXACT_ITEMS
    p = (extreme + given) / (tried + given)
    width = first.shape[1]
    both = numpy.concatenate([first, second], 1)

    def apart_in(sums: Floats) -> Floats:
        return formula(sums[..., :width]) - formula(sums[..., width:])

    return Difference(value, p, bca(value, apart_in(resampled(both, seed=seed)), apart_in(both.sum(0) - both)), items)


def _swaps(items: int, seed: int) -> Iterator[Floats]:
    """Which items are exchanged in each shuffle, (rows, n) of 0 and 1: all ways where they are few."""
    if items <= _EXACT_ITEMS:
        yield (numpy.arange(2**items)[:, None] >> numpy.arange(items) & 1).astype(numpy.float64)
        return
    chance = numpy.random.default_rng(seed)
    rows = max(1, _CELLS // items)
    for start in range(0, SHUFFLES, rows):
        count = min(rows, SHUFFLES - start)
        coins = numpy.frombuffer(chance.bytes(-(-count * items // 8)), numpy.uint8)
        yield numpy.unpackbits(coins)[: count * items].reshape(count, items).astype(numpy.float64)


def holm(p: Sequence[float]) -> list[float]:
    """P-values of several tests adjusted so that one of them or more is wrongly at most x with probability x at most.

    Source: Holm 1979. In the order given.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted
