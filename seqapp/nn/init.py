"""Starting values for recurrent weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

RecurrentInit = Literal["orthogonal", "identity", "uniform"]


def orthogonal_(weight: Tensor, gates: int = 1) -> Tensor:
    """Fill each of the ``gates`` square blocks of ``weight`` (gates * H, H) with its own orthogonal matrix, W'W = I.

    An orthogonal start keeps the norm of what is carried from step to step (Saxe et al. 2014).
    """
    for block in weight.chunk(gates, 0):
        nn.init.orthogonal_(block)
    return weight


def glorot_(weight: Tensor, gates: int = 1) -> Tensor:
    """Fill each block of ``weight`` (gates * H, I) uniformly by the Glorot & Bengio (2010) rule for its own size."""
    for block in weight.chunk(gates, 0):
        nn.init.xavier_uniform_(block)
    return weight


def recurrent_(weight: Tensor, start: RecurrentInit) -> Tensor:
    """Fill a recurrent matrix: "orthogonal"; "identity" (Le et al. 2015); or "uniform", by the Glorot rule."""
    if start == "identity":
        nn.init.eye_(weight)
        return weight
    return orthogonal_(weight) if start == "orthogonal" else glorot_(weight)
