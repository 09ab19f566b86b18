"""Attention: a mean of the memory whose weights a query chooses.

B batch, S source length, T queries, M memory units, Q query units, D units that are compared, C context units, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn

from seqapp.registry import Probability, Registry, Size

Memory = tuple[Tensor, Tensor, Tensor]
"""What an attention keeps of a source: keys (B, S, D), values (B, S, C), mask (B, S), True where valid.

Every leaf is (B, ...), so that sources are taken apart and put together as carries are.
"""


class Attention(nn.Module, ABC):
    """LAW: a row's context depends on its own valid memory alone; the weights of a query are >= 0 and sum to 1.

    Attributes:
        output_size: C.
        aligned: whether weights say which source positions a context is made of.
    """

    output_size: int
    aligned: bool = True

    def __init__(self, dropout: Probability = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def prepare(self, y: Tensor, mask: Tensor, summary: Tensor | None = None) -> Memory:
        """What is computed once for a source.

        Args:
            y: the encoder's outputs, (B, S, M).
            mask: (B, S), True where valid, at least once in a row.
            summary: what the encoder says of the whole row, (B, Z), for a kind that is not aligned.
        """
        # Where a weight is 0, NaN would still be NaN, and so would a gradient.
        y = y.masked_fill(~mask[..., None], 0)
        return self.keys(y), self.values(y), mask

    def values(self, y: Tensor) -> Tensor:
        """What contexts are means of: y (B, S, M) -> (B, S, C)."""
        return y

    @abstractmethod
    def keys(self, y: Tensor) -> Tensor:
        """What queries are compared with: y (B, S, M) -> (B, S, D)."""

    @abstractmethod
    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """query (B, T, Q), keys (B, S, D) -> how well each fits each, (B, T, S)."""

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """query (B, T, Q) -> context (B, T, C) and the weights it is made with, (B, T, S)."""
        keys, values, mask = memory
        weights = _shares(self.scores(query, keys), mask[:, None])
        return torch.bmm(self.dropout(weights).to(values.dtype), values), weights


def _shares(scores: Tensor, mask: Tensor) -> Tensor:
    """The softmax of the valid scores (..., S), in single precision at least; 0 elsewhere."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


ATTENTIONS: Registry[Attention] = Registry("attention", given=("query_size", "memory_size", "summary_size"))


@ATTENTIONS.register("dot")
class Dot(Attention):
    """score(q, y) = q . y (Luong, Pham & Manning 2015, section 3.1).

    Args:
        query_size: Q, given by the decoder.
        memory_size: M, given by the encoder; equal to Q.
        summary_size: not used.
        dropout: share of weights dropped in training.

    Raises:
        ValueError: if query and memory differ in size.
    """

    def __init__(self, query_size: int, memory_size: int, summary_size: int = 0, *, dropout: Probability = 0.0) -> None:
        super().__init__(dropout)
        if query_size != memory_size:
            raise ValueError(
                f"dot attention compares a query of {query_size} with a memory of {memory_size}; equal sizes fit, or "
                "the kind general"
            )
        self.output_size = memory_size

    def keys(self, y: Tensor) -> Tensor:
        return y

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(query, keys.transpose(1, 2))


@ATTENTIONS.register("general")
class General(Attention):
    """score(q, y) = q . W y (Luong, Pham & Manning 2015, section 3.1).

    Args:
        query_size: Q, given by the decoder.
        memory_size: M, given by the encoder.
        summary_size: not used.
        dropout: share of weights dropped in training.
    """

    def __init__(self, query_size: int, memory_size: int, summary_size: int = 0, *, dropout: Probability = 0.0) -> None:
        super().__init__(dropout)
        self.W = nn.Linear(memory_size, query_size, bias=False)
        self.output_size = memory_size

    def keys(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.W(y))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(query, keys.transpose(1, 2))


@ATTENTIONS.register("additive")
class Additive(Attention):
    """score(q, y) = v . tanh(W q + U y) (Bahdanau, Cho & Bengio 2015, section 3.1 and appendix A.1.2).

    Args:
        query_size: Q, given by the decoder.
        memory_size: M, given by the encoder.
        summary_size: not used.
        size: D, units that query and memory are mapped to.
        dropout: share of weights dropped in training.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        summary_size: int = 0,
        *,
        size: Size = 256,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__(dropout)
        self.W = nn.Linear(query_size, size, bias=False)
        self.U = nn.Linear(memory_size, size)
        self.v = nn.Linear(size, 1, bias=False)
        self.output_size = memory_size

    def keys(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.U(y))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return cast(Tensor, self.v(torch.tanh(self.W(query)[:, :, None] + keys[:, None])))[..., 0]


@ATTENTIONS.register("multi_head")
class MultiHead(Attention):
    """Several attentions side by side, each with softmax(q W_q . y W_k / sqrt(D / H)) (Vaswani et al. 2017, 3.2).

    The weights given are the mean over the heads.

    Args:
        query_size: Q, given by the decoder.
        memory_size: M, given by the encoder.
        summary_size: not used.
        heads: H, how many attentions there are.
        size: D, units of all heads together.
        dropout: share of weights dropped in training.

    Raises:
        ValueError: if the heads cannot share the units.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        summary_size: int = 0,
        *,
        heads: Size = 4,
        size: Size = 256,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__(dropout)
        if size % heads:
            raise ValueError(f"{size} units cannot be shared by {heads} heads; a multiple of {heads} fits")
        self.heads, self.output_size = heads, memory_size
        self.query = nn.Linear(query_size, size)
        self.key, self.value = nn.Linear(memory_size, size), nn.Linear(memory_size, size)
        self.output = nn.Linear(size, memory_size)

    def keys(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.key(y))

    def values(self, y: Tensor) -> Tensor:
        """As of every attention, but before the heads are joined: (B, S, D)."""
        return cast(Tensor, self.value(y))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """As of every attention, but for each head: (B, H, T, S)."""
        q, k = self._split(self.query(query)), self._split(keys)
        return q @ k.transpose(2, 3) / sqrt(q.shape[-1])

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        keys, values, mask = memory
        weights = _shares(self.scores(query, keys), mask[:, None, None])
        mixed = self.dropout(weights).to(values.dtype) @ self._split(values)
        return self.output(mixed.transpose(1, 2).flatten(2)), weights.mean(1)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


@ATTENTIONS.register("none")
class Summary(Attention):
    """No attention: the same vector at every step, what the encoder says of the whole row (Cho et al. 2014).

    Args:
        query_size: not used.
        memory_size: not used.
        summary_size: C, given by the encoder.
    """

    aligned = False

    def __init__(self, query_size: int, memory_size: int, summary_size: int) -> None:
        super().__init__()
        self.output_size = summary_size

    def prepare(self, y: Tensor, mask: Tensor, summary: Tensor | None = None) -> Memory:
        assert summary is not None
        one = summary[:, None]
        return one, one, mask.new_ones(len(mask), 1)

    def keys(self, y: Tensor) -> Tensor:
        return y

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return query.new_zeros(len(query), query.shape[1], 1)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        _, values, _ = memory
        return values.expand(-1, query.shape[1], -1), query.new_ones(len(query), query.shape[1], 1)
