"""From ids to vectors without learning: one-hot."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """Each id becomes a unit vector; the row of V that it meets above is then what an embedding would have learned.

    Args:
        size: V, known ids.
        padding_idx: the id that becomes zeros; None for no such id.
    """

    def __init__(self, size: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings = self.embedding_dim = size
        weight = torch.eye(size)
        if padding_idx is not None:
            weight[padding_idx] = 0
        # A buffer that is not saved: it follows the module to its device and dtype, and the bundle stays small.
        self.register_buffer("weight", weight, persistent=False)

    weight: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, V)."""
        return nn.functional.embedding(ids, self.weight)
