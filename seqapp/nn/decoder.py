"""A recurrent decoder that looks at a memory at every step.

B batch, N rows (= B K, the K rows of a source beside each other), S source length, T target length, E embedding,
D outputs of the lower layers, C context, R read-out.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from seqapp.nn.attention import Attention, Memory
from seqapp.nn.dropout import LockedDropout
from seqapp.nn.recurrent import Carry, Recurrent, select, zero_padding
from seqapp.registry import Probability


class AttentionDecoder(nn.Module):
    """Lower layers, attention, upper layers, read-out:

        h_t = lower(x_t),  c_t = attention(h_t),  u_t = upper([h_t; c_t]),  y_t = tanh(W [u_t; c_t])

    Without upper layers the read-out takes [h_t; c_t] itself.
    Queries come from the lower layers and contexts go to the upper ones (as in Wu et al. 2016, section 3), so nothing
    of a step waits for the read-out of the step before, and a whole known target runs at once. With input feeding x_t
    is [x_t; y_{t-1}] (Luong, Pham & Manning 2015, section 3.3), and targets run step by step.

    LAW: ``forward`` is ``step`` position by position.

    Args:
        lower: from E, or E + R with input feeding, to D.
        attention: from D to C.
        upper: from D + C; None reads out [h_t; c_t].
        size: R.
        input_feeding: give each step the read-out of the step before.
        dropout: share of [h_t; c_t] dropped, the same units at every step of a row.
        layer_norm: normalise [h_t; c_t] and y_t (Ba, Kiros & Hinton 2016).

    Raises:
        ValueError: if two sizes do not meet.
    """

    def __init__(
        self,
        lower: Recurrent[Any],
        attention: Attention,
        upper: Recurrent[Any] | None,
        size: int,
        *,
        input_feeding: bool = False,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        joined = lower.output_size + attention.output_size
        if upper is not None and upper.input_size != joined:
            raise ValueError(f"the upper layers take {upper.input_size} inputs and are given {joined}")
        self.lower, self.attention, self.upper = lower, attention, upper
        self.input_feeding, self.output_size = input_feeding, size
        top = lower.output_size if upper is None else upper.output_size
        self.combine = nn.Linear(top + attention.output_size, size)
        self.dropout = LockedDropout(dropout)
        self.norm = nn.LayerNorm(joined) if layer_norm else None
        self.read_out_norm = nn.LayerNorm(size) if layer_norm else None

    def initial_carry(self, batch_size: int, like: Tensor) -> Carry:
        """Before the first step: (lower, upper, read-out), the last two empty where there are none."""
        upper = () if self.upper is None else self.upper.initial_carry(batch_size, like)
        fed = like.new_zeros(batch_size, self.output_size) if self.input_feeding else ()
        return self.lower.initial_carry(batch_size, like), upper, fed

    def forward(self, x: Tensor, lengths: Tensor | None, carry: Carry, memory: Memory) -> tuple[Tensor, Tensor, Carry]:
        """Read a known target.

        Args:
            x: (B, T, E).
            lengths: (B,) valid steps per row; None when all are.
            carry: of B rows.
            memory: of B sources.

        Returns:
            y (B, T, R), the weights (B, T, S) and the carry at each row's end. What stands past a row's length is not
            defined.
        """
        if self.input_feeding:
            return self._scan(x, lengths, carry, memory)
        lower, upper, fed = carry
        h, lower = self.lower(x, lengths, lower)
        context, weights = self.attention(h, memory)
        joined = self.dropout(self._join(h, context))
        if self.upper is not None:
            top, upper = self.upper(joined, lengths, upper)
            joined = torch.cat([top, context], -1)
        return self._read_out(joined), weights, (lower, upper, fed)

    def _scan(self, x: Tensor, lengths: Tensor | None, carry: Carry, memory: Memory) -> tuple[Tensor, Tensor, Carry]:
        outputs, weights, carries = [], [], []
        mask = self._mask(x) if self.training else None
        for now in zero_padding(x, lengths).unbind(1):
            carry, y, weight = self._advance(carry, now, memory, mask)
            outputs.append(y)
            weights.append(weight)
            carries.append(carry)
        # Rows go on past their ends, where nobody looks: choosing each row's carry afterwards costs less than freezing
        # it at every step.
        if lengths is not None:
            for end in torch.unique(lengths).tolist():
                carry = select(lengths == end, carries[end - 1], carry)
        return torch.stack(outputs, 1), torch.stack(weights, 1), carry

    def _mask(self, x: Tensor) -> Tensor:
        """What [h; c] is multiplied by at every step of a row, as dropout would: (B, D + C)."""
        ones = x.new_ones(len(x), 1, self.lower.output_size + self.attention.output_size)
        return cast(Tensor, self.dropout(ones))[:, 0]

    def step(self, carry: Carry, x: Tensor, memory: Memory) -> tuple[Carry, Tensor, Tensor]:
        """One position: carry, x (N, E), memory of B sources -> carry, y (N, R), weights (N, S)."""
        return self._advance(carry, x, memory, None)

    def _advance(self, carry: Carry, x: Tensor, memory: Memory, mask: Tensor | None) -> tuple[Carry, Tensor, Tensor]:
        lower, upper, fed = carry
        lower, h = self.lower.step(lower, torch.cat([x, fed], -1) if self.input_feeding else x)
        context, weights = (
            part.flatten(0, 1) for part in self.attention(h.view(len(memory[0]), -1, h.shape[1]), memory)
        )
        joined = self._join(h, context)
        if mask is not None:
            joined = joined * mask
        if self.upper is not None:
            upper, top = self.upper.step(upper, joined)
            joined = torch.cat([top, context], -1)
        y = self._read_out(joined)
        return (lower, upper, y if self.input_feeding else fed), y, weights

    def _join(self, h: Tensor, context: Tensor) -> Tensor:
        joined = torch.cat([h, context], -1)
        return joined if self.norm is None else cast(Tensor, self.norm(joined))

    def _read_out(self, joined: Tensor) -> Tensor:
        y = torch.tanh(self.combine(joined))
        return y if self.read_out_norm is None else cast(Tensor, self.read_out_norm(y))
