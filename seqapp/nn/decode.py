"""Steps for generation: the same equations as ``layer.step`` with products made for few rows and many steps.

N rows, I inputs, O outputs, H hidden, V vocabulary.

A step of few rows reads every weight and computes little. oneDNN reads them faster than the BLAS behind ``linear``;
where there are several rows, faster still from a copy in its own order, which many steps are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from seqapp.nn.attention import Attention, Dot, General, Memory
from seqapp.nn.cells import GRU, LSTM, GRUResetAfter, LSTMLinearOutput
from seqapp.nn.decoder import AttentionDecoder
from seqapp.nn.heads import Head, LinearHead
from seqapp.nn.kept import kept
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


def _packed(weights: Sequence[Tensor], part: slice) -> Tensor:
    """The part of the rows of weights (O, I) side by side, in the other library's order, as the weights stand now."""

    def pack() -> Tensor:
        joined = torch.cat([weight.detach()[part] for weight in weights], 1)
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(joined, _PACKED_FOR))

    return kept(weights, (part.start, part.stop, len(weights)), pack)


def product(weight: Tensor | Sequence[Tensor], bias: Tensor | None, rows: int, part: slice = slice(None)) -> Product:
    """x (N, I) -> ``linear(x, weight, bias)`` for N = ``rows``, of the weight (O, I) as it stands now.

    Args:
        weight: or several, whose inputs stand side by side in x.
        bias: of the outputs, or None.
        rows: N.
        part: which outputs are wanted.
    """
    weights = [weight] if isinstance(weight, Tensor) else list(weight)
    like, size = weights[0], sum(own[part].numel() for own in weights)
    if not (_ONEDNN and rows * size >= _WORTH_ONEDNN and like.device.type == "cpu" and like.dtype == torch.float32):
        joined = like[part] if len(weights) == 1 else torch.cat([own[part] for own in weights], 1)
        return lambda x: linear(x, joined, bias)
    # One row reads a packed copy no faster than the weight itself.
    ready = like.detach()[part] if len(weights) == 1 and rows == 1 else _packed(weights, part)

    def multiply(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), ready, bias, "none", [], "")
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
    look = _attention(decoder.attention)

    def step(carry: Carry, x: Tensor, memory: Memory) -> tuple[Carry, Tensor, Tensor]:
        lower, upper, fed = carry
        lower, h = lower_step(lower, torch.cat([x, fed], -1) if decoder.input_feeding else x)
        context, weights = look(h.view(len(memory[0]), -1, h.shape[1]), memory)
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


def _attention(attention: Attention) -> Callable[[Tensor, Memory], tuple[Tensor, Tensor]]:
    """As ``attention.forward``; a memory is masked once, by what is added to its scores, and not at every step."""
    if type(attention) not in (Dot, General):
        return attention
    seen, bias = torch.empty(0), torch.empty(0)

    def look(query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        nonlocal seen, bias
        keys, values, mask = memory
        if keys.dtype not in (torch.float32, torch.float64):
            return cast(tuple[Tensor, Tensor], attention(query, memory))
        if mask is not seen:
            seen, bias = mask, keys.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)[:, None]
        weights = torch.baddbmm(bias, query, keys.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, values), weights

    return look


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
    VW = product([layer.V, layer.W], layer.b, rows)
    H, squash = layer.hidden_size, layer.squash

    def step(carry: tuple[Tensor, Tensor], x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = carry
        z = VW(torch.cat([x, h], 1))
        g = z[:, 2 * H : 3 * H].tanh()
        i, f, _, o = z.sigmoid_().chunk(4, -1)
        c = torch.addcmul(f * c, i, g)
        h = o * (c.tanh() if squash else c)
        return (h, c), h

    return step


def _gru(layer: GRU, rows: int) -> Advance:
    H = layer.hidden_size
    V, W = product(layer.V, layer.b, rows), product(layer.W, None, rows, slice(2 * H))
    W_n = product(layer.W, None, rows, slice(2 * H, None))

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
