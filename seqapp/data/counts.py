"""How frequent tokens and pairs of tokens are, which heads are told before training.

V vocabulary, M distinct pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

Blocks = Iterator[tuple[NDArray[numpy.int64], NDArray[numpy.int64]]]
"""Inputs and targets of a part of the training data at a time, equally many."""


def unigrams(blocks: Blocks, size: int) -> Tensor:
    """How often each token of a vocabulary of ``size`` is to be predicted: (V,)."""
    counts: NDArray[Any] = numpy.zeros(size, numpy.int64)
    for _, targets in blocks:
        counts += numpy.bincount(targets, minlength=size)
    return torch.from_numpy(counts)


def bigrams(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Each token with the one after it, (M, 2), and how often they stand so, (M,); the first of a text follows BOS."""
    pairs, counts = numpy.empty(0, numpy.int64), numpy.empty(0, numpy.int64)
    for inputs, targets in blocks:
        found, times = numpy.unique(inputs << 32 | targets, return_counts=True)
        pairs, place = numpy.unique(numpy.concatenate([pairs, found]), return_inverse=True)
        counts = numpy.bincount(place, numpy.concatenate([counts, times]), minlength=len(pairs)).astype(numpy.int64)
    return torch.from_numpy(numpy.stack([pairs >> 32, pairs & 0xFFFFFFFF], 1)), torch.from_numpy(counts)
