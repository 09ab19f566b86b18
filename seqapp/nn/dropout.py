"""Dropout of whole tokens."""

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
