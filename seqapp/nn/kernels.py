"""Whole unrolled recurrences with hand-derived gradients: what is left of a step when everything else is hoisted.

B batch, T time, I inputs, H hidden, F feedback signal. Time comes first here, (T, B, ...), so that a step touches one
contiguous block. Rows stand longest first; ``sizes[t]`` tells how many of them reach step t, so padding is never
computed.

What makes these loops faster than :func:`seqapp.nn.recurrent.scan` on the same weights: the input's share of many steps
is one product before them, the gradients of the weights are one product after them, a step writes in place into
storage that the backward pass reads again, and autograd sees one node. Time is cut into blocks that stay in the cache.
Large products go through oneDNN, which on CPUs is up to twice as fast in float32 as the BLAS behind ``torch.mm``. tanh
is computed as 2 sigmoid(2z) - 1, with the factor folded into the weights, because PyTorch's sigmoid costs less than its
tanh on CPUs; the absolute error is that of the number format.

Under autocast large products round their two sides and their result to its format; biases, gates, states, sums over
steps and what the backward pass carries from step to step stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, logsigmoid

from seqapp.nn.recurrent import map_carry, valid_mask

Activation = Literal["tanh", "relu", "sigmoid", "identity"]

Loop = Callable[[Tensor, "Sequence[int]", Any, Tensor | None], tuple[Tensor, Any]]
"""x (T, B, I), sizes, carry, mask -> y (T, B, O), zero past each row's end, and the carry at each row's end."""


def longest_first(
    loop: Loop, x: Tensor, lengths: Tensor | None, carry: Any, mask: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Call ``loop`` on rows in the order it wants, and put its answer back in theirs.

    Args:
        loop: runs time-major.
        x: (B, T, I).
        lengths: (B,); None when every position is valid.
        carry: the state before the first step.
        mask: (B, F), handed to the loop.

    Returns:
        y (B, T, O) and the carry at each row's end.
    """
    rows, time = x.shape[:2]
    if lengths is None:
        y, end = loop(x.transpose(0, 1), [rows] * time, carry, mask)
        return y.transpose(0, 1), end
    order = lengths.argsort(descending=True, stable=True)
    back = order.argsort()
    longest = int(lengths.max())
    sizes = valid_mask(lengths, longest).sum(0).tolist()

    def sort(leaf: Tensor) -> Tensor:
        return leaf.index_select(0, order)

    y, end = loop(sort(x[:, :longest]).transpose(0, 1), sizes, map_carry(sort, carry),
                  None if mask is None else sort(mask))  # fmt: skip
    y = y.transpose(0, 1).index_select(0, back)
    if longest < time:
        y = torch.cat([y, y.new_zeros(rows, time - longest, y.shape[2])], 1)
    return y, map_carry(lambda leaf: leaf.index_select(0, back), end)


def _in_full(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` outside autocast, half-precision tensors widened: a state that lives long needs its digits.

    Products may still be rounded: see :func:`_product_format`.
    """
    device = next(one for one in arguments if isinstance(one, Tensor)).device.type
    if not torch.is_autocast_enabled(device):
        return function(*arguments)
    with torch.autocast(device, enabled=False):
        return function(
            *(
                one.float() if isinstance(one, Tensor) and one.is_floating_point() and one.dtype.itemsize < 4 else one
                for one in arguments
            )
        )


def _product_format(x: Tensor) -> torch.dtype:
    """The format of large products: autocast's where it is on, else that of x."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device)


_MINUS_ONE = torch.tensor(-1.0)


def _scale(activation: str) -> float:
    """What a pre-activation is multiplied by before :func:`_activate_`."""
    return 2.0 if activation == "tanh" else 1.0


def _activate_(z: Tensor, activation: str) -> None:
    """In place f(z / :func:`_scale`)."""
    if activation == "tanh":
        torch.add(_MINUS_ONE, z.sigmoid_(), alpha=2, out=z)
    elif activation == "relu":
        z.relu_()
    elif activation == "sigmoid":
        z.sigmoid_()


def _pull_back(gradient: Tensor, y: Tensor, activation: str, out: Tensor) -> None:
    """``out`` = gradient * f'(z), from y = f(z)."""
    if activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=out)
    elif activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(gradient, y, 0.0, grad_input=out)
    elif activation == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(gradient, y, grad_input=out)
    else:
        out.copy_(gradient)


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
_WORTH_ONEDNN = 5e6
"""Operations of a product from which oneDNN's dearer call pays for itself."""
_WORTH_ONEDNN_SUM = 1.5e8
"""The same for a sum of outer products, for which it copies both sides."""
_WORTH_ROUNDING = 5e6
"""Operations of a product from which rounding its sides pays for itself."""

BLOCK_ROWS = 2048
"""Rows of one block of steps: enough for a product to run at full speed, few enough to stay in the cache."""


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def _round(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """weight in ``dtype``, the format of products, if products with ``rows`` rows are large enough to gain by it."""
    return weight.to(dtype) if 2 * rows * weight.numel() >= _WORTH_ROUNDING else weight


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, I), weight (O, I), bias (O,) -> (N, O), without a graph, by the fastest way on this machine.

    A weight that is rounded has x and the product rounded with it; the sum with the bias is in the format of the bias.
    """
    if x.dtype != weight.dtype:
        y = linear(x.to(weight.dtype), weight).to(x.dtype)
        return y if bias is None else y.add_(bias)
    if _fits_onednn(x, weight) and 2 * x.shape[0] * weight.numel() >= _WORTH_ONEDNN:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
        return result
    return linear(x, weight, bias)


def _add_product_(z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """In place z + x weight'."""
    if x.dtype != weight.dtype or 2 * x.shape[0] * weight.numel() >= _WORTH_ONEDNN:
        return z.add_(product(x, weight))
    return z.addmm_(x, weight.t())


def _product_into(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """``out`` = x weight'."""
    if x.dtype != weight.dtype or 2 * x.shape[0] * weight.numel() >= _WORTH_ONEDNN:
        return out.copy_(product(x, weight))
    return torch.mm(x, weight.t(), out=out)


def _add_outer_(total: Tensor, delta: Tensor, x: Tensor) -> None:
    """In place total + delta' x, for delta (N, H) and x (N, I): the gradient of a weight (H, I) from N rows."""
    if _fits_onednn(x, delta) and 2 * delta.numel() * x.shape[1] >= _WORTH_ONEDNN_SUM:
        outer, _ = torch.ops.aten.mkldnn_linear_backward_weights(delta.to_mkldnn(), x.to_mkldnn(), total, False)
        total += outer.to_dense() if outer.is_mkldnn else outer
    elif delta.dtype != total.dtype:
        total += delta.t() @ x.to(delta.dtype)
    else:
        total.addmm_(delta.t(), x)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _steps(states: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """states (T, B, H) -> for each step the rows that reach it; views, made at once because a step is short."""
    rows = states.shape[1]
    return [state if size == rows else state[:size] for state, size in zip(states.unbind(0), sizes, strict=True)]


def _block_rows(x: Tensor) -> int:
    """Rows of a block of x (T, B, I)."""
    time, rows = x.shape[:2]
    return min(time * rows, max(rows, BLOCK_ROWS))


def _blocks(time: int, rows: int) -> list[slice]:
    size = max(1, BLOCK_ROWS // max(1, rows))
    return [slice(start, min(start + size, time)) for start in range(0, time, size)]


def _before(first: Tensor, states: Tensor, block: slice) -> Tensor:
    """What stood before each step of ``block``: states (T, B, H) one step late, ``first`` (B, H) at the start."""
    if block.start:
        return states[block.start - 1 : block.stop - 1]
    return torch.cat([first[None], states[: block.stop - 1]])


def _steps_before(first: Tensor, states: Tensor, block: slice, sizes: Sequence[int]) -> list[Tensor]:
    """What stands before each step of ``block``, as views that see what is written there later."""
    earlier = states[max(0, block.start - 1) : block.stop - 1].unbind(0)
    states_before = earlier if block.start else (first, *earlier)
    rows = len(first)
    return [state if size == rows else state[:size] for state, size in zip(states_before, sizes, strict=True)]


def _at_end(states: Tensor, sizes: Sequence[int]) -> Tensor:
    """states (T, B, H) -> (B, H), each row's at its last step."""
    rows = states.shape[1]
    if sizes[-1] == rows:
        return states[-1].clone()
    row = torch.arange(rows, device=states.device)
    lengths = (torch.tensor(sizes, device=states.device)[:, None] > row).sum(0)
    return states[lengths - 1, row]


class _Weights:
    """Gradients of V (H, I), W (H, F) and b (H,), added up block by block, and that of the input."""

    def __init__(self, x: Tensor, V: Tensor, W: Tensor, dtype: torch.dtype, *, wants_x: bool) -> None:
        self.dV, self.dW = torch.zeros_like(V), torch.zeros_like(W)
        self.db = V.new_zeros(len(V))
        self.dx = x.new_empty(x.shape) if wants_x else None
        self.back = _round(V, _block_rows(x), dtype).t()

    def add(self, block: slice, x: Tensor, delta: Tensor) -> Tensor:
        """x (N, I) and the gradients delta (N, H) of the pre-activations of a block -> delta as products take it."""
        self.db += delta.sum(0)
        delta = delta.to(self.back.dtype)
        _add_outer_(self.dV, delta, x)
        if self.dx is not None:
            self.dx[block] = product(delta, self.back).view_as(self.dx[block])
        return delta


class _Feedback(torch.autograd.Function):
    """See :func:`feedback`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, u: Tensor, mask: Tensor | None, sizes: Sequence[int], dtype: torch.dtype,
        activations: Sequence[str], decay: float, taps: int, through_time: bool, V: Tensor, W: Tensor, b: Tensor,
        *above: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        scale = [_scale(activation) for activation in activations]
        V_scaled, W_scaled = _round(scale[0] * V, _block_rows(x), dtype), _round(scale[0] * W, B, dtype)
        b_scaled = scale[0] * b
        weights = [factor * weight.t() for factor, weight in zip(scale[1:], above[::2], strict=True)]
        biases = [factor * bias for factor, bias in zip(scale[1:], above[1::2], strict=True)]
        depth, O = len(activations), len(above[-1]) if above else len(b)  # noqa: E741
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        y = new(T, B, O)
        # The signal is the last output as it stands, unless it is made of several.
        signals = x.new_zeros(T + 1, B, u.shape[1]) if decay or taps > 1 else None
        if signals is not None:
            signals[0] = u
        hidden: list[Tensor] = []
        for block in _blocks(T, B):
            length, reach = block.stop - block.start, sizes[block]
            z = product(_flat(x[block]), V_scaled, b_scaled).view(length, B, len(V))
            if depth == 1:
                states = [y[block].copy_(z)]
            else:
                states = [z, *(new(length, B, weight.shape[1]) for weight in weights[:-1]), y[block]]
            steps = [_steps(state, reach) for state in states]
            came = _steps_before(u, y, block, reach) if signals is None else _steps(signals[block], reach)
            later = None if signals is None else _steps(signals[block.start + 1 : block.stop + 1], reach)
            for t, n in enumerate(reach):
                signal = came[t]
                below = _add_product_(steps[0][t], signal if mask is None else signal * mask[:n], W_scaled)
                _activate_(below, activations[0])
                for k in range(1, depth):
                    below = torch.addmm(biases[k - 1], below, weights[k - 1], out=steps[k][t])
                    _activate_(below, activations[k])
                if later is None:
                    continue
                if taps > 1:
                    later[t][:, O:] = signal[:, :-O]
                    later[t][:, :O] = below
                else:
                    torch.add(below, signal, alpha=decay, out=later[t])
            hidden += states[:-1]
        if sizes[-1] < B:
            for t, n in enumerate(sizes):
                y[t, n:] = 0
        end = _at_end(y if signals is None else signals[1:], sizes)
        ctx.save_for_backward(x, u, mask, V, W, signals, y, *above[::2], *hidden)
        ctx.options = sizes, dtype, activations, decay, taps, through_time
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dend = gradients
        sizes, dtype, activations, decay, taps, through_time = ctx.options
        x, u, mask, V, W, signals, y, *rest = ctx.saved_tensors
        T, B, O = y.shape  # noqa: E741
        depth = len(activations)
        weights, hidden = rest[: depth - 1], rest[depth - 1 :]
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        sums = _Weights(x, V, W, dtype, wants_x=ctx.needs_input_grad[0])
        above = [part for weight in weights for part in (torch.zeros_like(weight), weight.new_zeros(len(weight)))]
        back = _round(W, B, dtype).t()
        carried = dend.clone()
        for index, block in reversed(list(enumerate(_blocks(T, B)))):
            reach = sizes[block]
            states = [*hidden[index * (depth - 1) : (index + 1) * (depth - 1)], y[block]]
            deltas = [new(state.shape) for state in states]
            came = [_steps(state, reach) for state in states]
            left = [_steps(delta, reach) for delta in deltas]
            asked = _steps(dy[block], reach)
            for t in range(len(reach) - 1, -1, -1):
                here = carried[: reach[t]]
                older: Tensor | None
                if taps > 1:
                    gradient = asked[t] + here[:, :O]
                    older = here[:, O:].clone()
                else:
                    older = here * decay if decay else None
                    gradient = here.add_(asked[t])
                for k in range(depth - 1, -1, -1):
                    delta = left[k][t]
                    _pull_back(gradient, came[k][t], activations[k], delta)
                    if k:
                        gradient = delta @ weights[k - 1]
                if not through_time:
                    here.zero_()
                    continue
                _product_into(delta, back, here)
                if mask is not None:
                    here *= mask[: reach[t]]
                if older is not None:
                    here[:, : older.shape[1]] += older
            first = _flat(deltas[0])
            seen = _before(u, y, block) if signals is None else signals[block]
            rounded = sums.add(block, _flat(x[block]), first)
            _add_outer_(sums.dW, rounded, _flat(seen if mask is None else seen * mask))
            for k in range(1, depth):
                delta = _flat(deltas[k])
                _add_outer_(above[2 * k - 2], delta, _flat(states[k - 1]))
                above[2 * k - 1] += delta.sum(0)
        return sums.dx, carried if through_time else None, *[None] * 7, sums.dV, sums.dW, sums.db, *above


def feedback(
    x: Tensor,
    sizes: Sequence[int],
    u: Tensor,
    V: Tensor,
    W: Tensor,
    b: Tensor,
    *above: Tensor,
    activations: Sequence[Activation],
    mask: Tensor | None = None,
    decay: float = 0.0,
    taps: int = 1,
    through_time: bool = True,
) -> tuple[Tensor, Tensor]:
    """A perceptron whose output comes back: the loop of Elman, Jordan, NARX and their relatives.

    s^1_t = f_1(x_t V + (mask * u_t) W + b),  s^k_t = f_k(s^{k-1}_t U_k + b_k),  y_t = s^K_t, and the signal that comes
    back is u_{t+1} = decay * u_t + y_t, or with ``taps`` q > 1 the last q outputs, the newest first.

    Args:
        x: (T, B, I).
        sizes: T counts, never rising: rows that reach step t.
        u: (B, F), the signal before the first step; F = taps * O.
        V: (H, I).
        W: (H, F).
        b: (H,).
        above: U_2 (H_2, H), b_2, U_3, b_3, ...
        activations: f_1, f_2, ...
        mask: (B, F), one for the whole row, and no gradient goes there; None for ones.
        decay: how much of u_t stays in u_{t+1}.
        taps: q.
        through_time: False stops the gradient at u_t.

    Returns:
        y (T, B, O) and u (B, F) after each row's last step.
    """

    dtype = _product_format(x)

    def run(x: Tensor, u: Tensor, mask: Tensor | None, *weights: Tensor) -> Any:
        return _Feedback.apply(x, u, mask, sizes, dtype, activations, decay, taps, through_time, *weights)  # type: ignore[no-untyped-call]

    y, end = _in_full(run, x, u, mask, V, W, b, *above)
    return y, end


class _LSTM(torch.autograd.Function):
    """See :func:`lstm`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, sizes: Sequence[int], dtype: torch.dtype,
        squash: bool, V: Tensor, W: Tensor, b: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        H = h.shape[1]
        scale = b.new_ones(4, H)
        scale[2] = 2
        scale = scale.view(-1)
        V_scaled, W_scaled = _round(scale[:, None] * V, _block_rows(x), dtype), _round(scale[:, None] * W, B, dtype)
        b_scaled = scale * b
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        hs, cs = new(T, B, H), new(T, B, H)
        saved: list[Tensor] = []
        for block in _blocks(T, B):
            length = block.stop - block.start
            gates = product(_flat(x[block]), V_scaled, b_scaled).view(length, B, len(V))
            shown = new(length, B, H) if squash else None
            reach = sizes[block]
            steps, out, memories = _steps(gates, reach), _steps(hs[block], reach), _steps(cs[block], reach)
            outs_before, memories_before = _steps_before(h, hs, block, reach), _steps_before(c, cs, block, reach)
            squashed = None if shown is None else _steps(shown, reach)
            for t, n in enumerate(reach):
                before = outs_before[t]
                z = _add_product_(steps[t], before if mask is None else before * mask[:n], W_scaled).sigmoid_()
                i, f, g, o = z.chunk(4, 1)
                torch.add(_MINUS_ONE, g, alpha=2, out=g)
                memory = torch.mul(f, memories_before[t], out=memories[t]).addcmul_(i, g)
                if squashed is not None:
                    memory = torch.mul(memory, 2, out=squashed[t]).sigmoid_()
                    torch.add(_MINUS_ONE, memory, alpha=2, out=memory)
                torch.mul(o, memory, out=out[t])
            saved += [gates] if shown is None else [gates, shown]
        ctx.save_for_backward(x, h, c, mask, V, W, hs, cs, *saved)
        ctx.options = sizes, dtype, squash
        return hs, _at_end(hs, sizes), _at_end(cs, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dh_end, dc_end = gradients
        sizes, dtype, squash = ctx.options
        x, h, c, mask, V, W, hs, cs, *saved = ctx.saved_tensors
        T, B, H = hs.shape
        sums = _Weights(x, V, W, dtype, wants_x=ctx.needs_input_grad[0])
        back = _round(W, B, dtype).t()
        dh, dc = dh_end.clone(), dc_end.clone()
        for index, block in reversed(list(enumerate(_blocks(T, B)))):
            gates, shown = (saved[2 * index], saved[2 * index + 1]) if squash else (saved[index], cs[block])
            i, f, g, o = gates.chunk(4, 2)
            # Everything that a step's gradient is multiplied by, for all steps of the block at once: dz = dc * delta
            # for i, f and g, dz = dh * delta for o.
            delta = torch.empty_like(gates)
            torch.mul(g, i * (1 - i), out=delta[..., :H])
            torch.mul(_before(c, cs, block), f * (1 - f), out=delta[..., H : 2 * H])
            torch.mul(i, 1 - g * g, out=delta[..., 2 * H : 3 * H])
            torch.mul(shown, o * (1 - o), out=delta[..., 3 * H :])
            through = o * (1 - shown * shown) if squash else o
            reach = sizes[block]
            steps, asked = _steps(delta, reach), _steps(dy[block], reach)
            kept, opened = _steps(f, reach), _steps(through, reach)
            for t in range(len(reach) - 1, -1, -1):
                n = reach[t]
                dh_t = dh[:n].add_(asked[t])
                dc_t = dc[:n].addcmul_(dh_t, opened[t])
                z = steps[t].view(n, 4, H)
                z[:, :3] *= dc_t[:, None]
                z[:, 3] *= dh_t
                dc_t *= kept[t]
                _product_into(steps[t], back, dh_t)
                if mask is not None:
                    dh_t *= mask[:n]
                if n < B:
                    delta[t, n:] = 0
            came = _before(h, hs, block)
            rounded = sums.add(block, _flat(x[block]), _flat(delta))
            _add_outer_(sums.dW, rounded, _flat(came if mask is None else came * mask))
        return sums.dx, dh, dc, *[None] * 4, sums.dV, sums.dW, sums.db


def lstm(
    x: Tensor,
    sizes: Sequence[int],
    h: Tensor,
    c: Tensor,
    V: Tensor,
    W: Tensor,
    b: Tensor,
    *,
    mask: Tensor | None = None,
    squash: bool = True,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The LSTM's loop, for what the fused kernel cannot do: a mask on the recurrent path, an output without tanh.

    Args:
        x: (T, B, I).
        sizes: T counts, never rising: rows that reach step t.
        h: (B, H), output before the first step.
        c: (B, H), memory before the first step.
        V: (4H, I), gates in the order input, forget, cell, output.
        W: (4H, H).
        b: (4H,).
        mask: (B, H), multiplies h on its way into the gates; None for ones.
        squash: h = o * tanh(c); False leaves the tanh out.

    Returns:
        y (T, B, H), and (h, c) after each row's last step.
    """

    dtype = _product_format(x)

    def run(x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, *weights: Tensor) -> Any:
        return _LSTM.apply(x, h, c, mask, sizes, dtype, squash, *weights)  # type: ignore[no-untyped-call]

    y, h, c = _in_full(run, x, h, c, mask, V, W, b)
    return y, (h, c)


class _GRU(torch.autograd.Function):
    """See :func:`gru`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, mask: Tensor | None, sizes: Sequence[int], dtype: torch.dtype, V: Tensor,
        W: Tensor, b: Tensor, b_inner: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        H = h.shape[1]
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        V_gates, V_candidate = (_round(part, _block_rows(x), dtype) for part in (V[: 2 * H], 2 * V[2 * H :]))
        W_gates, W_candidate = (_round(part, B, dtype) for part in (W[: 2 * H], 2 * W[2 * H :]))
        b_gates, b_candidate = b[: 2 * H], 2 * b[2 * H :]
        b_product = None if b_inner is None else 2 * b_inner
        hs = new(T, B, H)
        saved: list[Tensor] = []
        for block in _blocks(T, B):
            length = block.stop - block.start
            flat = _flat(x[block])
            gates = product(flat, V_gates, b_gates).view(length, B, 2 * H)
            candidates = product(flat, V_candidate, b_candidate).view(length, B, H)
            # With the reset inside, what it multiplied; with the reset after, the product that it multiplies.
            inner = new(length, B, H)
            reach = sizes[block]
            opened, news, inside = (_steps(part, reach) for part in (gates, candidates, inner))
            out, outs_before = _steps(hs[block], reach), _steps_before(h, hs, block, reach)
            for t, n in enumerate(reach):
                before = outs_before[t]
                seen = before if mask is None else before * mask[:n]
                r, u = _add_product_(opened[t], seen, W_gates).sigmoid_().chunk(2, 1)
                candidate = news[t]
                if b_product is None:
                    _add_product_(candidate, torch.mul(r, seen, out=inside[t]), W_candidate)
                else:
                    _product_into(seen, W_candidate, inside[t]).add_(b_product)
                    candidate.addcmul_(r, inside[t])
                _activate_(candidate, "tanh")
                torch.lerp(candidate, before, u, out=out[t])
            saved += [gates, candidates, inner]
        ctx.save_for_backward(x, h, mask, V, W, b_inner, hs, *saved)
        ctx.options = sizes, dtype
        return hs, _at_end(hs, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dend = gradients
        sizes, dtype = ctx.options
        x, h, mask, V, W, b_inner, hs, *saved = ctx.saved_tensors
        T, B, H = hs.shape
        after = b_inner is not None
        back_gates, back_candidate = (_round(part, B, dtype).t() for part in (W[: 2 * H], W[2 * H :]))
        sums = _Weights(x, V, W, dtype, wants_x=ctx.needs_input_grad[0])
        db_inner = torch.zeros_like(b_inner) if after else None
        carried = dend.clone()
        for index, block in reversed(list(enumerate(_blocks(T, B)))):
            gates, candidates, inner = saved[3 * index : 3 * index + 3]
            r, u = gates.chunk(2, 2)
            before = _before(h, hs, block)
            seen = before if mask is None else before * mask
            # What a step's gradient is multiplied by, for all steps of the block at once.
            delta = gates.new_empty(*gates.shape[:2], 3 * H)
            dr, du, dn = delta.chunk(3, 2)
            torch.mul(inner / 2 if after else seen, r * (1 - r), out=dr)
            torch.mul(before - candidates, u * (1 - u), out=du)
            torch.mul(1 - candidates * candidates, 1 - u, out=dn)
            # The gradient at the product of state and W_n: dn itself, or with the reset after, r dn.
            behind = torch.empty_like(inner) if after else dn
            reach = sizes[block]
            resets, updates, news = _steps(dr, reach), _steps(du, reach), _steps(dn, reach)
            gated, both = _steps(delta[..., : 2 * H], reach), _steps(gates, reach)
            asked, products = _steps(dy[block], reach), _steps(behind, reach)
            for t in range(len(reach) - 1, -1, -1):
                n = reach[t]
                dh = carried[:n].add_(asked[t])
                r, u = both[t].chunk(2, 1)
                candidate = news[t]
                updates[t] *= dh
                candidate *= dh
                dh *= u
                if after:
                    resets[t] *= candidate
                    signal = product(torch.mul(candidate, r, out=products[t]), back_candidate)
                else:
                    signal = product(candidate, back_candidate)
                    resets[t] *= signal
                    signal *= r
                _add_product_(signal, gated[t], back_gates)
                dh += signal if mask is None else signal.mul_(mask[:n])
                if n < B:
                    delta[t, n:] = 0
                    behind[t, n:] = 0
            rounded = sums.add(block, _flat(x[block]), _flat(delta))
            _add_outer_(sums.dW[: 2 * H], rounded[:, : 2 * H], _flat(seen))
            last = _flat(behind).to(rounded.dtype) if after else rounded[:, 2 * H :]
            _add_outer_(sums.dW[2 * H :], last, _flat(seen if after else inner))
            if db_inner is not None:
                db_inner += _flat(behind).sum(0)
        return sums.dx, carried, None, None, None, sums.dV, sums.dW, sums.db, db_inner


def gru(
    x: Tensor,
    sizes: Sequence[int],
    h: Tensor,
    V: Tensor,
    W: Tensor,
    b: Tensor,
    b_inner: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loop of both gated recurrent units.

    Args:
        x: (T, B, I).
        sizes: T counts, never rising: rows that reach step t.
        h: (B, H), the state before the first step.
        V: (3H, I), gates in the order reset, update, candidate.
        W: (3H, H).
        b: (3H,).
        b_inner: (H,), the bias that the reset gate multiplies too; None puts the reset gate inside the product.
        mask: (B, H), multiplies h on its way into gates and candidate, not where it is kept; None for ones.

    Returns:
        y (T, B, H) and h (B, H) after each row's last step.
    """

    dtype = _product_format(x)

    def run(x: Tensor, h: Tensor, mask: Tensor | None, V: Tensor, W: Tensor, b: Tensor, b_inner: Tensor | None) -> Any:
        return _GRU.apply(x, h, mask, sizes, dtype, V, W, b, b_inner)  # type: ignore[no-untyped-call]

    y, end = _in_full(run, x, h, mask, V, W, b, b_inner)
    return y, end


class _Window(torch.autograd.Function):
    """See :func:`window`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delays: Sequence[int], dtype: torch.dtype, activation: str, V: Tensor, b: Tensor
    ) -> Tensor:
        T, B = len(x) - delays[-1], x.shape[1]
        V_scaled, b_scaled = _round(_scale(activation) * V, _block_rows(x), dtype), _scale(activation) * b
        y = x.new_empty(T, B, len(V))
        for block in _blocks(T, B):
            part = y[block]
            part.copy_(product(_flat(_windows(x, delays, block)), V_scaled, b_scaled).view_as(part))
            _activate_(part, activation)
        ctx.save_for_backward(x, V, y)
        ctx.options = delays, dtype, activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        delays, dtype, activation = ctx.options
        x, V, y = ctx.saved_tensors
        T, B, H = y.shape
        dV, db, back = torch.zeros_like(V), V.new_zeros(H), _round(V, _block_rows(x), dtype).t()
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for block in _blocks(T, B):
            delta = torch.empty_like(y[block])
            _pull_back(dy[block], y[block], activation, delta)
            db += _flat(delta).sum(0)
            flat = _flat(delta).to(back.dtype)
            _add_outer_(dV, flat, _flat(_windows(x, delays, block)))
            if dx is None:
                continue
            parts = product(flat, back).view(len(delta), B, -1).chunk(len(delays), -1)
            for delay, part in zip(delays, parts, strict=True):
                shift = delays[-1] - delay
                dx[block.start + shift : block.stop + shift] += part
        return dx, None, None, None, dV, db


def _windows(x: Tensor, delays: Sequence[int], block: slice) -> Tensor:
    """x (P + T, B, I) -> the inputs ``delays`` before each step of ``block``, side by side."""
    shifts = [delays[-1] - delay for delay in delays]
    return torch.cat([x[block.start + shift : block.stop + shift] for shift in shifts], -1)


def window(x: Tensor, delays: Sequence[int], V: Tensor, b: Tensor, *, activation: Activation) -> Tensor:
    """y_t = f([x_{t - d_1}, x_{t - d_2}, ...] V + b), a dilated causal convolution, some windows at a time.

    Args:
        x: (P + T, B, I), P = the largest delay.
        delays: rising, from 0.
        V: (H, len(delays) * I).
        b: (H,).
        activation: f.

    Returns:
        (T, B, H).
    """

    dtype = _product_format(x)

    def run(x: Tensor, V: Tensor, b: Tensor) -> Tensor:
        result: Tensor = _Window.apply(x, delays, dtype, activation, V, b)  # type: ignore[no-untyped-call]
        return result

    result: Tensor = _in_full(run, x, V, b)
    return result


class _Leak(torch.autograd.Function):
    """See :func:`leak`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, sizes: Sequence[int], dtype: torch.dtype, V: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        H = h.shape[1]
        V_rounded = _round(V, _block_rows(x), dtype)
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        y = new(T, B, H)
        saved: list[Tensor] = []
        for block in _blocks(T, B):
            reach = sizes[block]
            gates = product(_flat(x[block]), V_rounded, b).view(len(reach), B, len(V))
            keep = keep_share(gates, H)
            n = gates[..., -H:]
            out, before = _steps(y[block], reach), _steps_before(h, y, block, reach)
            added, kept = _steps(torch.addcmul(n, keep, n, value=-1), reach), _steps(keep, reach)
            for t in range(len(reach)):
                torch.addcmul(added[t], kept[t], before[t], out=out[t])
            saved += [gates, keep]
        ctx.save_for_backward(x, h, V, y, *saved)
        ctx.options = sizes, dtype
        return y, _at_end(y, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dend = gradients
        sizes, dtype = ctx.options
        x, h, V, y, *saved = ctx.saved_tensors
        T, B, H = y.shape
        sums = _Weights(x, V, V, dtype, wants_x=ctx.needs_input_grad[0])
        carried = dend.clone()
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        for index, block in reversed(list(enumerate(_blocks(T, B)))):
            reach = sizes[block]
            gates, keep = saved[2 * index], saved[2 * index + 1]
            dh = new(keep.shape)
            asked, kept, left = _steps(dy[block], reach), _steps(keep, reach), _steps(dh, reach)
            for t in range(len(reach) - 1, -1, -1):
                here = carried[: reach[t]]
                torch.add(asked[t], here, out=left[t])
                torch.mul(left[t], kept[t], out=here)
            n = gates[..., -H:]
            delta = torch.empty_like(gates)
            flow = (_before(h, y, block) - n).mul_(dh).mul_(keep).mul_(1 - keep)
            torch.addcmul(dh, dh, keep, value=-1, out=delta[..., -H:])
            if gates.shape[-1] == 2 * H:
                torch.neg(flow, out=delta[..., :H])
            else:
                shut = torch.sigmoid(-gates[..., : 2 * H])
                torch.mul(flow, shut[..., :H], out=delta[..., :H])
                torch.mul(flow.neg_(), shut[..., H:], out=delta[..., H : 2 * H])
            sums.add(block, _flat(x[block]), _flat(delta))
        return sums.dx, carried, None, None, sums.dV, sums.db


def keep_share(gates: Tensor, size: int) -> Tensor:
    """The share of the state that stays, from (z, n) of a minGRU or (f, i, n) of a minLSTM, each ``size`` wide."""
    if gates.shape[-1] == 2 * size:
        return torch.sigmoid(-gates[..., :size])
    # The log of f / i, so that the shares stay defined where both gates are shut.
    opened = logsigmoid(gates[..., : 2 * size])
    return torch.sigmoid(opened[..., :size] - opened[..., size:])


def leak(x: Tensor, sizes: Sequence[int], h: Tensor, V: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = keep_t * h_{t-1} + (1 - keep_t) * n_t with gates that see x_t alone, block by block in the cache.

    Args:
        x: (T, B, I).
        sizes: T counts, never rising: rows that reach step t.
        h: (B, H), the state before the first step.
        V: (2H, I) for z and n, keep = 1 - sigmoid(z), or (3H, I) for f, i and n, keep = sigmoid(f) / (sigmoid(f) +
            sigmoid(i)).
        b: (2H,) or (3H,).

    Returns:
        y (T, B, H) and h (B, H) after each row's last step.
    """

    dtype = _product_format(x)

    def run(x: Tensor, h: Tensor, V: Tensor, b: Tensor) -> Any:
        return _Leak.apply(x, h, sizes, dtype, V, b)  # type: ignore[no-untyped-call]

    y, end = _in_full(run, x, h, V, b)
    return y, end


def _linear_scan(keep: Tensor, add: Tensor, h: Tensor, chunks: int, *, reverse: bool = False) -> Tensor:
    """h_t = keep_t * h_{t-1} + add_t for all t; keep, add (T, B, H), h (B, H) -> (T, B, H).

    The row is cut into ``chunks``, whose loops run side by side from zero beside the running product of ``keep``; a
    short loop over the chunks then hands the state on (the two-level scan of Blelloch 1990).
    """
    T = len(add)
    y = add.new_empty(add.shape)
    if chunks == 1:
        before = h
        for t in range(T - 1, -1, -1) if reverse else range(T):
            before = torch.addcmul(add[t], keep[t], before, out=y[t])
        return y
    size = -(-T // chunks)
    spare = chunks * size - T
    if spare:
        ends = (keep.new_zeros(spare, *keep.shape[1:]), add.new_zeros(spare, *add.shape[1:]))
        keep, add = (
            torch.cat([end, part] if reverse else [part, end]) for part, end in zip((keep, add), ends, strict=True)
        )
    keep, add = (part.reshape(chunks, size, *h.shape) for part in (keep, add))
    y, product = add.new_empty(add.shape), add.new_empty(add.shape)
    steps = range(size - 1, -1, -1) if reverse else range(size)
    first = steps[0]
    y[:, first], product[:, first] = add[:, first], keep[:, first]
    for done, t in pairwise(steps):
        torch.addcmul(add[:, t], keep[:, t], y[:, done], out=y[:, t])
        torch.mul(keep[:, t], product[:, done], out=product[:, t])
    for chunk in range(chunks - 1, -1, -1) if reverse else range(chunks):
        y[chunk].addcmul_(product[chunk], h)
        h = y[chunk, steps[-1]]
    y = y.flatten(0, 1)
    return y[spare:] if reverse else y[:T]


class _LinearScan(torch.autograd.Function):
    """See :func:`linear_scan`."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, add: Tensor, h: Tensor, chunks: int) -> Tensor:
        y = _linear_scan(keep, add, h, chunks)
        ctx.save_for_backward(keep, h, y)
        ctx.chunks = chunks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        keep, h, y = ctx.saved_tensors
        # The gradient runs the same recurrence from the end: delta_t = keep_{t+1} * delta_{t+1} + dy_t.
        later = torch.cat([keep[1:], torch.zeros_like(keep[:1])])
        delta = _linear_scan(later, gradients[0], torch.zeros_like(h), ctx.chunks, reverse=True)
        return delta * torch.cat([h[None], y[:-1]]), delta, delta[0] * keep[0], None


def linear_scan(keep: Tensor, add: Tensor, h: Tensor, *, chunks: int | None = None) -> Tensor:
    """h_t = keep_t * h_{t-1} + add_t over all positions, without a step-by-step graph.

    Args:
        keep: (T, B, H).
        add: (T, B, H).
        h: (B, H), the state before the first step.
        chunks: pieces of time worked on side by side; by default about the root of T, which takes about 2 sqrt(T)
            dependent steps instead of T.

    Returns:
        (T, B, H).

    Raises:
        ValueError: if there are no chunks.
    """
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks: {chunks}; 1 or more fits")
    if chunks is None:
        chunks = max(1, round(len(add) ** 0.5))

    def run(keep: Tensor, add: Tensor, h: Tensor) -> Tensor:
        result: Tensor = _LinearScan.apply(keep, add, h, min(chunks, len(add)))  # type: ignore[no-untyped-call]
        return result

    result: Tensor = _in_full(run, keep, add, h)
    return result
