"""Dropout of whole tokens, of whole word types, and of units for all steps of a row.

B batch, T time, E embedding or output size. Modules in eval mode, or with p = 0, give back what they are given.
"""

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
    """In training, each unit is dropped with probability ``p`` for all steps of its row at once.

    The same mask at every step wears no signal away ("variational" dropout, Gal & Ghahramani 2016, section 4; "locked"
    in Merity et al. 2018, section 4.2). What is kept is scaled by 1 / (1 - p).

    Args:
        p: probability that a unit of a row is dropped.
    """

    def __init__(self, p: Probability) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, E) -> (B, T, E).

        Raises:
            ValueError: if x has another number of dimensions, since the mask would be shared over the wrong one.
        """
        if x.dim() != 3:
            raise ValueError(f"LockedDropout: x has shape {tuple(x.shape)}; (batch, time, units) fits")
        if not self.training or self.p == 0:
            return x
        return x * drop_mask(x.new_empty(len(x), 1, x.shape[2]), self.p)


class EmbeddingDropout(nn.Module):
    """In training, each word type is dropped with probability ``p``: wherever it stands in the batch, its vector is 0.

    What is kept is scaled by 1 / (1 - p) (Gal & Ghahramani 2016, section 4.2; Merity et al. 2018, section 4.3). A fate
    is drawn for the types of the batch alone, so the cost does not grow with the vocabulary.

    Args:
        p: probability that a type is dropped.
    """

    def __init__(self, p: Probability) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """The vectors x (B, T, E) of ids (B, T) -> (B, T, E)."""
        if not self.training or self.p == 0:
            return x
        types, place = torch.unique(ids, return_inverse=True)
        return x * drop_mask(x.new_empty(len(types)), self.p)[place][..., None]


def drop_mask(like: Tensor, p: Probability) -> Tensor:
    """As ``like``, each number 0 with probability p and 1 / (1 - p) otherwise, so that a product keeps its mean."""
    return torch.empty_like(like, requires_grad=False).bernoulli_(1 - p).div_(1 - p)
