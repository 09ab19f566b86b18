"""Dropout that follows time: whole tokens, or one mask for a whole row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqapp.registry import Probability


class TokenDropout(nn.Module):
    """In training, each valid id becomes ``unk`` with probability ``p`` ("word dropout", Iyyer et al. 2015).

    Args:
        p: probability of replacement.
        unk: the id that stands for an unknown token.
        pad: the id that is never replaced.
    """

    def __init__(self, p: Probability, *, unk: int, pad: int) -> None:
        super().__init__()
        self.p, self.unk, self.pad = p, unk, pad

    def forward(self, ids: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return ids
        drop = (torch.rand(ids.shape, device=ids.device) < self.p) & (ids != self.pad)
        return ids.masked_fill(drop, self.unk)


class LockedDropout(nn.Module):
    """In training, zero units with probability ``p``, the same ones at every position of a row (Gal & Ghahramani 2016).

    Args:
        p: probability that a unit is dropped; what is kept is scaled by 1 / (1 - p).
    """

    def __init__(self, p: Probability) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, O) -> (B, T, O)."""
        if not self.training or self.p == 0:
            return x
        keep = torch.empty(x.shape[0], 1, x.shape[2], device=x.device, dtype=x.dtype).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)
