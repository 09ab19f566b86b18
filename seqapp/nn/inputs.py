"""From ids to vectors without learning: one-hot."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """Each id becomes a unit vector; the column of V that it meets above is then what an embedding would have learned.

    Args:
        size: V, known ids.
        padding_idx: the id that becomes zeros; None for no such id.
    """

    weight: Tensor

    def __init__(self, size: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings = self.embedding_dim = size
        self.padding_idx = padding_idx
        # The 1 of a unit vector. It follows the module to its device and dtype and is in no file, so it needs its
        # value even where parameters wait for theirs on the meta device.
        self.register_buffer("weight", torch.ones((), device="cpu"), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, V).

        Raises:
            ValueError: if an id is not one of the V.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_embeddings:
            raise ValueError(f"OneHot: ids go from {int(ids.min())} to {int(ids.max())}; "
                             f"0 to {self.num_embeddings - 1} fits")  # fmt: skip
        hit = self.weight.expand(ids.shape)
        if self.padding_idx is not None:
            hit = hit.masked_fill(ids == self.padding_idx, 0)
        return self.weight.new_zeros(*ids.shape, self.num_embeddings).scatter_(-1, ids[..., None], hit[..., None])
