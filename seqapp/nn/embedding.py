"""Vectors for runs of tokens, so that a network meets "not good" as one thing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqapp.registry import Probability, Size

MULTIPLIER = 0x5851F42D4C957F2D
"""Knuth's 64-bit linear congruential multiplier: mixes ids well in its high bits."""


class NgramEmbedding(nn.Module):
    """The sum of one vector for each n-gram, n = 2 .. ``longest``, that ends at a position.

    N-grams share ``buckets`` vectors by hashing (Bojanowski et al. 2017), so no list of n-grams has to be kept. An
    n-gram that reaches before the first token, or holds an unknown one, adds nothing.

    Args:
        longest: the longest n-gram, 2 or more.
        size: values per vector.
        buckets: vectors in the table.
        dropout: probability that an n-gram is left out in training.
        unk: the id that stands for an unknown token; ids up to it are special.

    Raises:
        ValueError: if ``longest`` is below 2.
    """

    def __init__(self, longest: Size, size: Size, *, buckets: Size, dropout: Probability, unk: int) -> None:
        super().__init__()
        if longest < 2:
            raise ValueError(f"an n-gram has 2 tokens or more, so longest is at least 2, not {longest}")
        self.longest, self.size, self.buckets, self.dropout, self.unk = longest, size, buckets, dropout, unk
        self.weight = nn.Parameter(torch.zeros(buckets, size))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, size)."""
        total = self.weight.new_zeros(*ids.shape, self.size)
        key, known = ids, ids > self.unk
        for n in range(2, self.longest + 1):
            if ids.shape[1] < n:
                break
            # key[:, t] stands for the n tokens that end at t + n - 1 of the row.
            key = key[:, :-1] * MULTIPLIER + ids[:, n - 1 :] + 1
            known = known[:, :-1] & (ids[:, n - 1 :] > self.unk)
            kept = known
            if self.training and self.dropout > 0:
                kept = known & (torch.rand(key.shape, device=key.device) >= self.dropout)
            bucket = (((key * MULTIPLIER) >> 24) % self.buckets).masked_fill(~kept, 0)
            vectors = nn.functional.embedding(bucket, self.weight) * kept[..., None]
            total = total + nn.functional.pad(vectors, (0, 0, n - 1, 0))
        return total
