"""Metrics as sums and counts, never averages of averages: parts of any size add up to the whole.

Adding works over batches, processes and machines alike; a score is computed once, from the total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

LARGEST_EXPONENT = 700.0
"""Above it exp leaves the range of a float."""


@runtime_checkable
class Metric(Protocol):
    """What can be added up and then read."""

    def __add__(self, other: Self) -> Self: ...
    def scores(self) -> dict[str, float]:
        """Name -> value, from the totals."""
        ...


@dataclass(frozen=True)
class Ratio:
    """A sum over a count, such as nats over tokens.

    Args:
        name: of the score.
        total: the sum.
        count: what it is divided by.
    """

    name: str
    total: Tensor
    count: int

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.name, self.total + other.total, self.count + other.count)

    def scores(self) -> dict[str, float]:
        return {self.name: float(self.total) / self.count if self.count else float("nan")}


@dataclass(frozen=True)
class Surprise:
    """How well a text was foretold.

    Args:
        nats: sum of -log p over its tokens.
        tokens: how many were scored.
        characters: how many characters of text they stand for.
    """

    nats: Tensor
    tokens: int
    characters: float

    def __add__(self, other: Surprise) -> Surprise:
        return Surprise(self.nats + other.nats, self.tokens + other.tokens, self.characters + other.characters)

    def scores(self) -> dict[str, float]:
        """nll, nats per token; perplexity, exp of that; bits per character, which no choice of tokens changes."""
        if not self.tokens:
            return dict.fromkeys(("nll", "perplexity", "bits_per_character"), float("nan"))
        nats = float(self.nats)
        nll = nats / self.tokens
        return {
            "nll": nll,
            "perplexity": math.exp(nll) if nll < LARGEST_EXPONENT else float("inf"),
            "bits_per_character": nats / math.log(2) / self.characters if self.characters else float("nan"),
        }


@dataclass(frozen=True)
class Confusion:
    """How often class i (row) was called class j (column).

    Args:
        counts: (C, C) integers.
        names: the C classes.
    """

    counts: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, names: Sequence[str]) -> Confusion:
        """Count one batch: logits (N, C), targets (N,)."""
        classes = logits.shape[1]
        cells = targets * classes + logits.argmax(1)
        counts = torch.bincount(cells, minlength=classes * classes).view(classes, classes)
        return cls(counts, tuple(names))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.names)

    def scores(self) -> dict[str, float]:
        """Accuracy, the share of rows called right; macro F1, the mean over classes of 2 TP / (2 TP + FP + FN).

        A class that neither occurs nor is predicted counts F1 = 0, as in scikit-learn with `labels` given.
        """
        counts = self.counts
        right = counts.diagonal()
        f1 = 2 * right / (counts.sum(0) + counts.sum(1)).clamp(min=1)
        total = float(counts.sum())
        return {"accuracy": float(right.sum()) / total if total else float("nan"), "macro_f1": float(f1.mean())}

    def records(self) -> list[dict[str, object]]:
        """One record a true class: how often it was called what."""
        return [
            {"true": name, **dict(zip(self.names, row, strict=True))}
            for name, row in zip(self.names, self.counts.tolist(), strict=True)
        ]


def add(totals: dict[str, Metric], new: dict[str, Metric]) -> dict[str, Metric]:
    """``totals`` with ``new`` added name by name."""
    return {**totals, **{name: totals[name] + metric if name in totals else metric for name, metric in new.items()}}


def read(totals: dict[str, Metric]) -> dict[str, float]:
    """Every score of every metric."""
    return {name: value for metric in totals.values() for name, value in metric.scores().items()}


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927).

    Args:
        successes: how many came out right.
        trials: how many there were; at least 1.
        z: quantile of the normal distribution.
    """
    if trials < 1:
        raise ValueError(f"an interval needs at least one trial, not {trials}")
    share, square = successes / trials, z * z
    middle = share + square / (2 * trials)
    margin = z * ((share * (1 - share) + square / (4 * trials)) / trials) ** 0.5
    scale = 1 + square / trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)
