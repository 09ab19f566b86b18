"""Batches of rows of similar length, bounded by tokens, so that little time goes into padding.

Right-padded batches with lengths keep the fused kernels, which packed sequences do not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from seqapp.data.tokenizers import PAD

Length = int | tuple[int, int]
"""Tokens of a row, or of its source and of its target."""


class Idle(NamedTuple):
    """Stands where one of several processes has no rows of a batch, so that all of them take equally many steps.

    Args:
        weight: how much the mean loss of the batch is still a mean over what this process has had of it.
    """

    weight: float = 0.0


def pad(rows: Sequence[Sequence[int]], value: int = PAD) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids (B, T), right-padded with ``value``, and lengths (B,)."""
    lengths = [len(row) for row in rows]
    size = max(lengths)
    ids = torch.tensor([[*row, *[value] * (size - len(row))] for row in rows], dtype=torch.int64)
    return ids, torch.tensor(lengths)


def cut_by_tokens(order: Sequence[int], lengths: Sequence[Length], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Cut ``order`` into batches whose padded size stays within ``max_tokens``.

    The padded size is rows x longest, and for pairs rows x (longest source + longest target): what the two rectangles
    of a batch hold, padding included.

    Args:
        order: indices into ``lengths``, rows of similar length beside each other.
        lengths: tokens per row, or of source and target.
        max_tokens: bound on the padded size; a longer single row is a batch of its own.
        max_rows: bound on rows.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest: tuple[int, ...] = ()
    for index in order:
        own = _sides(lengths[index])
        grown = tuple(map(max, longest, own)) if batch else own
        if batch and (sum(grown) * (len(batch) + 1) > max_tokens or len(batch) == max_rows):
            batches.append(batch)
            batch, grown = [], own
        batch.append(index)
        longest = grown
    if batch:
        batches.append(batch)
    return batches


def _sides(length: Length) -> tuple[int, ...]:
    return length if isinstance(length, tuple) else (length,)


def _place(length: Length) -> tuple[int, int]:
    """Where a row stands in the order: by its longer side, and among equals by how much longer the source is.

    The second goes up and down by turns, so that neighbours stay alike where the first changes.
    """
    sides = _sides(length)
    longer, lead = max(sides), sides[0] - sides[-1]
    return longer, lead if longer % 2 else -lead


class LengthBuckets(Sampler[list[int]]):
    """Every index once an epoch, in batches of similar length and random order.

    Rows are shuffled, cut into pools of ``pool`` batches, sorted by length within a pool, cut into batches, and the
    batches shuffled. The order depends on ``seed`` and the epoch alone, so a resumed epoch repeats exactly. Of pairs
    both sides count, so that rows of a similar source and a similar target stand together.

    LAW: the batches are the same whatever ``world`` is. Process ``rank`` gets every ``world``-th row of each of them,
    so that shares are alike in length and in number, and none where a batch has fewer rows than there are processes.

    Args:
        lengths: tokens per row, or of source and target.
        max_tokens: bound on the padded size of a batch, as of :func:`cut_by_tokens`.
        max_rows: bound on rows in a batch.
        seed: of the shuffles.
        shuffle: False keeps one order, sorted by length, for evaluation.
        pool: how many batches are sorted together; more means less padding and less randomness.
        rank: of this process, from 0.
        world: number of processes.
    """

    def __init__(
        self,
        lengths: Sequence[Length],
        *,
        max_tokens: int,
        max_rows: int = 1024,
        seed: int = 0,
        shuffle: bool = True,
        pool: int = 50,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank, self.world = rank, world
        self.lengths, self.max_tokens, self.max_rows = lengths, max_tokens, max_rows
        self.seed, self.shuffle, self.pool = seed, shuffle, pool
        self.epoch = 0
        self._batches: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """The batches of the current epoch, those of all processes together."""
        if self._batches is None or self._batches[0] != self.epoch:
            self._batches = (self.epoch, self._make())
        return self._batches[1]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.rank :: self.world] for batch in self.batches())

    def __len__(self) -> int:
        return len(self.batches())

    def _make(self) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        if not self.shuffle:
            order.sort(key=lambda index: _place(self.lengths[index]))
            return cut_by_tokens(order, self.lengths, self.max_tokens, self.max_rows)
        chance = random.Random(f"{self.seed}:{self.epoch}")
        chance.shuffle(order)
        mean = max(1.0, sum(sum(_sides(length)) for length in self.lengths) / max(1, len(self.lengths)))
        rows = max(1, int(min(self.max_tokens / mean, self.max_rows) * self.pool))
        pooled = [
            index
            for start in range(0, len(order), rows)
            for index in sorted(order[start : start + rows], key=lambda index: _place(self.lengths[index]))
        ]
        batches = cut_by_tokens(pooled, self.lengths, self.max_tokens, self.max_rows)
        chance.shuffle(batches)
        return batches
