"""Steps for generation: the same equations as ``layer.step`` with products made for few rows and many steps.

N rows, I inputs, O outputs, H hidden, V vocabulary.

A step of few rows reads every weight and computes little. oneDNN reads them faster than the BLAS behind ``linear``;
where there are several rows, faster still from a copy in its own order, which many steps are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from seqapp.nn.attention import Memory
from seqapp.nn.cells import GRU, LSTM, GRUResetAfter, LSTMLinearOutput
from seqapp.nn.decoder import AttentionDecoder
from seqapp.nn.heads import Head, LinearHead
from seqapp.nn.recurrent import Carry, Recurrent, Stack, WeightDropout

Advance = Callable[[Carry, Tensor], tuple[Carry, Tensor]]
"""carry, x (N, I) -> carry, y (N, O)."""
AdvanceDecoder = Callable[[Carry, Tensor, Memory], tuple[Carry, Tensor, Tensor]]
"""carry, x (N, E), memory of B sources -> carry, y (N, R), weights (N, S)."""
Product = Callable[[Tensor], Tensor]

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")  # type: ignore[no-untyped-call]
_WORTH_ONEDNN = 2**19
"""Multiplications from which oneDNN's dearer call pays for itself."""
_PACKED_FOR = 8
"""Rows that the copy's order is made for; it serves any number."""


def product(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """x (N, I) -> ``linear(x, weight, bias)`` for N = ``rows``, of the weight (O, I) as it stands now."""
    worth = rows * weight.numel() >= _WORTH_ONEDNN
    if not (_ONEDNN and worth and weight.device.type == "cpu" and weight.dtype == torch.float32):
        return lambda x: linear(x, weight, bias)
    weight = weight.detach()
    if rows > 1:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)

    def multiply(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
        return result

    return multiply


@torch.no_grad()
def fast_step(layer: Recurrent[Any], rows: int) -> Advance:
    """The step of a layer in eval mode, for so many rows and without gradient. LAW: it is ``layer.step``.

    Weights are read as they stand now: make a new one after training on. Kinds without a faster way give their own.
    """
    if layer.training:
        return layer.step
    if type(layer) is Stack:
        return _stack(layer, rows)
    if type(layer) is WeightDropout:
        return fast_step(layer.layer, rows)
    make = _FAST.get(type(layer))
    return layer.step if make is None else make(layer, rows)


@torch.no_grad()
def fast_logits(head: Head, rows: int) -> Product:
    """x (N, I) -> logits (N, V) of so many rows, without gradient. LAW: it is ``head.logits``."""
    if not isinstance(head, LinearHead) or head.project.weight.dtype != torch.float32:
        return head.logits
    return product(head.project.weight, head.project.bias, rows)


@torch.no_grad()
def fast_decoder(decoder: AttentionDecoder, rows: int) -> AdvanceDecoder:
    """The step of a decoder in eval mode, for so many rows and without gradient. LAW: it is ``decoder.step``."""
    if decoder.training:
        return decoder.step
    lower_step = fast_step(decoder.lower, rows)
    upper_step = None if decoder.upper is None else fast_step(decoder.upper, rows)
    combine = product(decoder.combine.weight, decoder.combine.bias, rows)

    def step(carry: Carry, x: Tensor, memory: Memory) -> tuple[Carry, Tensor, Tensor]:
        lower, upper, fed = carry
        lower, h = lower_step(lower, torch.cat([x, fed], -1) if decoder.input_feeding else x)
        context, weights = decoder.attention(h.view(len(memory[0]), -1, h.shape[1]), memory)
        context = context.reshape(len(h), -1)
        joined = torch.cat([h, context], -1)
        if decoder.norm is not None:
            joined = decoder.norm(joined)
        if upper_step is not None:
            upper, top = upper_step(upper, joined)
            joined = torch.cat([top, context], -1)
        y = combine(joined).tanh_()
        if decoder.read_out_norm is not None:
            y = decoder.read_out_norm(y)
        return (lower, upper, y if decoder.input_feeding else fed), y, weights.reshape(len(h), -1)

    return step


def _stack(stack: Stack, rows: int) -> Advance:
    steps = [fast_step(layer, rows) for layer in stack.layers]  # type: ignore[arg-type]

    def step(carry: tuple[Carry, ...], x: Tensor) -> tuple[tuple[Carry, ...], Tensor]:
        after, outputs = [], []
        for advance, before in zip(steps, carry, strict=True):
            new, y = advance(before, x)
            after.append(new)
            x = y + x if stack.residual and y.shape == x.shape else y
            outputs.append(x)
        return tuple(after), torch.cat(outputs, -1) if stack.skip_to_output else x

    return step


def _lstm(layer: LSTM, rows: int) -> Advance:
    V, W = product(layer.V, layer.b, rows), product(layer.W, None, rows)
    H, squash = layer.hidden_size, layer.squash

    def step(carry: tuple[Tensor, Tensor], x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = carry
        z = W(h).add_(V(x))
        g = z[:, 2 * H : 3 * H].tanh()
        i, f, _, o = z.sigmoid_().chunk(4, -1)
        c = torch.addcmul(f * c, i, g)
        h = o * (c.tanh() if squash else c)
        return (h, c), h

    return step


def _gru(layer: GRU, rows: int) -> Advance:
    H = layer.hidden_size
    V, W = product(layer.V, layer.b, rows), product(layer.W[: 2 * H], None, rows)
    W_n = product(layer.W[2 * H :], None, rows)

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z = V(x)
        r, u = W(h).add_(z[:, : 2 * H]).sigmoid_().chunk(2, -1)
        n = W_n(r * h).add_(z[:, 2 * H :]).tanh_()
        h = torch.lerp(n, h, u)
        return h, h

    return step


def _gru_reset_after(layer: GRUResetAfter, rows: int) -> Advance:
    H = layer.hidden_size
    bias = torch.cat([layer.b_inner.new_zeros(2 * H), layer.b_inner])
    V, W = product(layer.V, layer.b, rows), product(layer.W, bias, rows)

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z, inner = V(x), W(h)
        r, u = (z[:, : 2 * H] + inner[:, : 2 * H]).sigmoid_().chunk(2, -1)
        n = torch.addcmul(z[:, 2 * H :], r, inner[:, 2 * H :]).tanh_()
        h = torch.lerp(n, h, u)
        return h, h

    return step


_FAST: dict[type, Callable[[Any, int], Advance]] = {
    LSTM: _lstm, LSTMLinearOutput: _lstm, GRU: _gru, GRUResetAfter: _gru_reset_after,
}  # fmt: skip
