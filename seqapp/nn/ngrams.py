"""A bag of n-grams: what single words and short runs say, whatever their order in the row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from seqapp.nn.recurrent import valid_mask
from seqapp.registry import Probability, Size

MULTIPLIER = 0x5851F42D4C957F2D
"""Knuth's 64-bit linear congruential multiplier: mixes ids well in its high bits."""

GAIN = 10.0
"""Makes the bag's values about as large as a recurrent layer's, so that one learning rate suits both."""


class NgramBag(nn.Module):
    """A row as 10 / sqrt(T) times the sum of one vector for each of its n-grams, n = 1 .. ``longest``.

    N-grams share ``buckets`` vectors by hashing (Weinberger et al. 2009), so no list of them has to be kept. An n-gram
    that holds an unknown token adds nothing. Beside a recurrent network it is the "wide" part of a wide and deep
    model (Cheng et al. 2016): what a bag of words knows the network need not learn.

    Args:
        longest: the longest n-gram.
        size: values per row.
        buckets: vectors in the table.
        dropout: probability that an n-gram is left out in training; what stays is scaled by 1 / (1 - dropout).
        unk: the id that stands for an unknown token; ids up to it are special.
    """

    def __init__(self, longest: Size, size: Size, *, buckets: Size, dropout: Probability, unk: int) -> None:
        super().__init__()
        self.longest, self.size, self.buckets, self.dropout, self.unk = longest, size, buckets, dropout, unk
        self.weight = nn.Parameter(torch.zeros(buckets, size))

    def forward(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """ids (B, T), lengths (B,), or None where there is no padding -> (B, size)."""
        total = self.weight.new_zeros(len(ids), self.size)
        valid = ids > self.unk
        if lengths is None:
            lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        else:
            valid &= valid_mask(lengths, ids.shape[1])
        key, known = torch.zeros_like(ids), torch.ones_like(valid)
        for n in range(1, min(self.longest, ids.shape[1]) + 1):
            # key[:, t] stands for the n tokens that end at position t + n - 1.
            shorter = slice(None, key.shape[1] - (n > 1))
            key = key[:, shorter] * MULTIPLIER + ids[:, n - 1 :] + 1
            known = known[:, shorter] & valid[:, n - 1 :]
            share = known.to(self.weight.dtype)
            if self.training and self.dropout > 0:
                share = share * (torch.rand_like(share) >= self.dropout) / (1 - self.dropout)
            bucket = (((key * MULTIPLIER) >> 24) % self.buckets).masked_fill(~known, 0)
            total = total + torch.einsum("bt,bts->bs", share, embedding(bucket, self.weight))
        return total * (GAIN / lengths[:, None].sqrt())
