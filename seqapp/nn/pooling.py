"""From one vector per position to one per row: y (B, T, O) -> (B, output_size)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from seqapp.registry import Registry, Spec


class Pooling(nn.Module, ABC):
    """LAW: what the padding holds never matters, and a batch answers as its rows do alone."""

    output_size: int
    reads_last: bool = False
    """Whether :meth:`forward` needs ``last``."""

    @abstractmethod
    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        """Pool over time.

        Args:
            y: (B, T, O).
            mask: (B, T), True where valid; every row has at least one. None stands for no padding.
            last: (B, O), the outputs that have read the whole row; None unless :attr:`reads_last`.
        """


POOLING: Registry[Pooling] = Registry("pooling", given=("size",))


@POOLING.register("last")
class Last(Pooling):
    """The output that has read the whole row."""

    reads_last = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = size

    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        assert last is not None
        return last


@POOLING.register("mean")
class Mean(Pooling):
    """The average over valid positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = size

    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        if mask is None:
            return y.mean(1)
        total = torch.where(mask[..., None], y, torch.zeros((), dtype=y.dtype, device=y.device)).sum(1)
        return total / mask.sum(1, keepdim=True)


@POOLING.register("max")
class Max(Pooling):
    """The largest value of each unit over valid positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = size

    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        return (y if mask is None else y.masked_fill(~mask[..., None], float("-inf"))).amax(1)


@POOLING.register("attention")
class Attention(Pooling):
    """The average weighted by softmax_t(tanh(y_t A + a) . q), A, a and q learned (Yang et al. 2016, equations 5-7)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = size
        self.project = nn.Linear(size, size)
        self.query = nn.Linear(size, 1, bias=False)

    def weights(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T), zero on padding, summing to 1 over each row."""
        score: Tensor = self.query(self.project(y).tanh()).squeeze(-1)
        score = score.float() if score.dtype.itemsize < 4 else score
        return (score if mask is None else score.masked_fill(~mask, float("-inf"))).softmax(1)

    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        if mask is not None:
            y = torch.where(mask[..., None], y, torch.zeros((), dtype=y.dtype, device=y.device))
        return torch.einsum("bt,bto->bo", self.weights(y, mask).to(y.dtype), y)


class Concat(Pooling):
    """Several poolings side by side.

    Args:
        parts: at least one pooling.
    """

    def __init__(self, parts: list[Pooling]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("concat needs at least one part")
        self.parts = nn.ModuleList(parts)
        self.output_size = sum(part.output_size for part in parts)
        self.reads_last = any(part.reads_last for part in parts)

    def forward(self, y: Tensor, mask: Tensor | None, last: Tensor | None) -> Tensor:
        return torch.cat([part(y, mask, last) for part in self.parts], -1)


@POOLING.register("concat")
def build_concat(size: int, *, parts: list[Annotated[Spec, POOLING]]) -> Concat:
    """Several poolings side by side.

    Args:
        parts: the poolings whose outputs are joined.
    """
    return Concat([POOLING.build(part, size=size) for part in parts])
