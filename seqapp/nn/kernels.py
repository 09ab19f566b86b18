"""Whole unrolled recurrences with hand-derived gradients: what is left of a step when everything else is hoisted.

B batch, T time, I inputs, H hidden, F feedback signal. Time comes first here, (T, B, ...), so that a step touches one
contiguous block. Rows stand longest first; ``sizes[t]`` tells how many of them reach step t, so padding is never
computed.

What makes these loops faster than :func:`seqapp.nn.recurrent.scan` on the same weights: the input's share of every step
is one product before the loop, the gradients of the weights are one product after it, a step writes in place into
storage that the backward pass reads again, and autograd sees one node. tanh is computed as 2 sigmoid(2z) - 1, with the
factor folded into the weights, because PyTorch's sigmoid is several times as fast on CPUs; the absolute error is that
of the number format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

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
    """Call ``function`` outside autocast, half-precision tensors widened: a state that lives long needs its digits."""
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


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _at_end(states: Tensor, sizes: Sequence[int]) -> Tensor:
    """states (T, B, H) -> (B, H), each row's at its last step."""
    rows = states.shape[1]
    if sizes[-1] == rows:
        return states[-1].clone()
    lengths = torch.tensor([sum(size > row for size in sizes) for row in range(rows)], device=states.device)
    return states[lengths - 1, torch.arange(rows, device=states.device)]


class _Feedback(torch.autograd.Function):
    """See :func:`feedback`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, u: Tensor, mask: Tensor | None, sizes: Sequence[int], activations: Sequence[str],
        decay: float, taps: int, through_time: bool, V: Tensor, W: Tensor, b: Tensor, *above: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        scale = [_scale(activation) for activation in activations]
        Wt = scale[0] * W.t()
        weights = [factor * weight.t() for factor, weight in zip(scale[1:], above[::2], strict=True)]
        biases = [factor * bias for factor, bias in zip(scale[1:], above[1::2], strict=True)]
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        states = [linear(x, scale[0] * V, scale[0] * b), *(new(T, B, weight.shape[1]) for weight in weights)]
        y = states[-1]
        O = y.shape[2]  # noqa: E741
        # The signal is the last output as it stands, unless it is made of several.
        signals = x.new_zeros(T + 1, B, u.shape[1]) if decay or taps > 1 else None
        if signals is not None:
            signals[0] = u
        for t, n in enumerate(sizes):
            signal = signals[t, :n] if signals is not None else y[t - 1, :n] if t else u[:n]
            below = states[0][t, :n].addmm_(signal if mask is None else signal * mask[:n], Wt)
            _activate_(below, activations[0])
            for k in range(1, len(states)):
                below = torch.addmm(biases[k - 1], below, weights[k - 1], out=states[k][t, :n])
                _activate_(below, activations[k])
            if signals is not None and taps > 1:
                signals[t + 1, :n, O:] = signals[t, :n, :-O]
                signals[t + 1, :n, :O] = below
            elif signals is not None:
                torch.add(below, signal, alpha=decay, out=signals[t + 1, :n])
        for t, n in enumerate(sizes):
            if n < B:
                y[t, n:] = 0
        end = _at_end(y if signals is None else signals[1:], sizes)
        ctx.save_for_backward(x, u, mask, V, W, signals, *above[::2], *states)
        ctx.options = sizes, activations, decay, taps, through_time
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dend = gradients
        sizes, activations, decay, taps, through_time = ctx.options
        x, u, mask, V, W, signals, *rest = ctx.saved_tensors
        depth = len(activations)
        weights, states = rest[: depth - 1], rest[depth - 1 :]
        O = states[-1].shape[2]  # noqa: E741
        ragged = sizes[-1] < len(u)
        deltas = [(torch.zeros_like if ragged else torch.empty_like)(state) for state in states]
        carried = dend.clone()
        for t in range(len(sizes) - 1, -1, -1):
            n = sizes[t]
            gradient = dy[t, :n] + carried[:n, :O]
            for k in range(depth - 1, -1, -1):
                delta = deltas[k][t, :n]
                _pull_back(gradient, states[k][t, :n], activations[k], delta)
                if k:
                    gradient = delta @ weights[k - 1]
            if not through_time:
                carried[:n] = 0
                continue
            older = carried[:n, O:].clone() if taps > 1 else carried[:n] * decay if decay else None
            signal = torch.mm(delta, W, out=carried[:n])
            if mask is not None:
                signal *= mask[:n]
            if older is not None:
                signal[:, : older.shape[1]] += older
        first, last = deltas[0], states[-1]
        if signals is not None:
            came = signals[:-1] if mask is None else signals[:-1] * mask
            dW = _flat(first).t() @ _flat(came)
        else:
            came = last[:-1] if mask is None else last[:-1] * mask
            dW = _flat(first[1:]).t() @ _flat(came)
            dW.addmm_(first[0].t(), u if mask is None else u * mask)
        above: list[Tensor] = []
        for below, delta in zip(states[:-1], deltas[1:], strict=True):
            above += [_flat(delta).t() @ _flat(below), _flat(delta).sum(0)]
        dx = (_flat(first) @ V).view_as(x) if ctx.needs_input_grad[0] else None
        du = carried if through_time else None
        return dx, du, *[None] * 6, _flat(first).t() @ _flat(x), dW, _flat(first).sum(0), *above


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
        mask: (B, F), one for the whole row; None for ones.
        decay: how much of u_t stays in u_{t+1}.
        taps: q.
        through_time: False stops the gradient at u_t.

    Returns:
        y (T, B, O) and u (B, F) after each row's last step.
    """

    def run(x: Tensor, u: Tensor, mask: Tensor | None, *weights: Tensor) -> Any:
        return _Feedback.apply(x, u, mask, sizes, activations, decay, taps, through_time, *weights)  # type: ignore[no-untyped-call]

    y, end = _in_full(run, x, u, mask, V, W, b, *above)
    return y, end


class _LSTM(torch.autograd.Function):
    """See :func:`lstm`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, sizes: Sequence[int], squash: bool,
        V: Tensor, W: Tensor, b: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        H = h.shape[1]
        scale = b.new_ones(4, H, 1)
        scale[2] = 2
        scale = scale.view(-1, 1)
        Wt = (scale * W).t()
        gates = linear(x, scale * V, scale[:, 0] * b)
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        hs, cs, squashed = new(T, B, H), new(T, B, H), new(T, B, H) if squash else None
        for t, n in enumerate(sizes):
            before = hs[t - 1, :n] if t else h[:n]
            z = gates[t, :n].addmm_(before if mask is None else before * mask[:n], Wt).sigmoid_()
            i, f, g, o = z.chunk(4, 1)
            torch.add(_MINUS_ONE, g, alpha=2, out=g)
            memory = torch.mul(f, cs[t - 1, :n] if t else c[:n], out=cs[t, :n]).addcmul_(i, g)
            if squashed is not None:
                memory = torch.mul(memory, 2, out=squashed[t, :n]).sigmoid_()
                torch.add(_MINUS_ONE, memory, alpha=2, out=memory)
            torch.mul(o, memory, out=hs[t, :n])
        ctx.save_for_backward(x, h, c, mask, V, W, gates, hs, cs, squashed)
        ctx.sizes = sizes
        return hs, _at_end(hs, sizes), _at_end(cs, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dh_end, dc_end = gradients
        sizes = ctx.sizes
        x, h, c, mask, V, W, gates, hs, cs, squashed = ctx.saved_tensors
        T, B, H = hs.shape
        i, f, g, o = gates.chunk(4, 2)
        came = torch.cat([c[None], cs[:-1]])
        shown = cs if squashed is None else squashed
        # Everything that a step's gradient is multiplied by, for all steps at once: dz = dc * local for i, f and g,
        # dz = dh * local for o.
        local = torch.empty_like(gates)
        torch.mul(g, i * (1 - i), out=local[..., :H])
        torch.mul(came, f * (1 - f), out=local[..., H : 2 * H])
        torch.mul(i, 1 - g * g, out=local[..., 2 * H : 3 * H])
        torch.mul(shown, o * (1 - o), out=local[..., 3 * H :])
        through = o if squashed is None else o * (1 - squashed * squashed)
        delta = local
        dh, dc = dh_end.clone(), dc_end.clone()
        for t in range(T - 1, -1, -1):
            n = sizes[t]
            dh_t = dh[:n].add_(dy[t, :n])
            dc_t = dc[:n].addcmul_(dh_t, through[t, :n])
            z = delta[t, :n].view(n, 4, H)
            z[:, :3] *= dc_t[:, None]
            z[:, 3] *= dh_t
            dc_t *= f[t, :n]
            torch.mm(delta[t, :n], W, out=dh_t)
            if mask is not None:
                dh_t *= mask[:n]
            if n < B:
                delta[t, n:] = 0
        before = hs[:-1] if mask is None else hs[:-1] * mask
        dW = _flat(delta[1:]).t() @ _flat(before)
        dW.addmm_(delta[0].t(), h if mask is None else h * mask)
        flat = _flat(delta)
        dx = (flat @ V).view_as(x) if ctx.needs_input_grad[0] else None
        return dx, dh, dc, None, None, None, flat.t() @ _flat(x), dW, flat.sum(0)


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

    def run(x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, *weights: Tensor) -> Any:
        return _LSTM.apply(x, h, c, mask, sizes, squash, *weights)  # type: ignore[no-untyped-call]

    y, h, c = _in_full(run, x, h, c, mask, V, W, b)
    return y, (h, c)


class _GRU(torch.autograd.Function):
    """See :func:`gru`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, mask: Tensor | None, sizes: Sequence[int], V: Tensor, W: Tensor, b: Tensor,
        b_inner: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        T, B, _ = x.shape
        H = h.shape[1]
        new = x.new_zeros if sizes[-1] < B else x.new_empty
        gates = linear(x, V[: 2 * H], b[: 2 * H])
        candidates = linear(x, 2 * V[2 * H :], 2 * b[2 * H :])
        W_gates, W_candidate = W[: 2 * H].t(), 2 * W[2 * H :].t()
        # With the reset inside, what it multiplied; with the reset after, the product that it multiplies.
        inner, hs = new(T, B, H), new(T, B, H)
        b_product = None if b_inner is None else 2 * b_inner
        for t, n in enumerate(sizes):
            before = hs[t - 1, :n] if t else h[:n]
            seen = before if mask is None else before * mask[:n]
            r, u = gates[t, :n].addmm_(seen, W_gates).sigmoid_().chunk(2, 1)
            candidate = candidates[t, :n]
            if b_product is None:
                candidate.addmm_(torch.mul(r, seen, out=inner[t, :n]), W_candidate)
            else:
                candidate.addcmul_(r, torch.addmm(b_product, seen, W_candidate, out=inner[t, :n]))
            _activate_(candidate, "tanh")
            torch.lerp(candidate, before, u, out=hs[t, :n])
        ctx.save_for_backward(x, h, mask, V, W, b_inner, gates, candidates, inner, hs)
        ctx.sizes = sizes
        return hs, _at_end(hs, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dend = gradients
        sizes = ctx.sizes
        x, h, mask, V, W, b_inner, gates, candidates, inner, hs = ctx.saved_tensors
        T, B, H = hs.shape
        W_gates, W_candidate = W[: 2 * H], W[2 * H :]
        r, u = gates.chunk(2, 2)
        before = torch.cat([h[None], hs[:-1]])
        seen = before if mask is None else before * mask
        # What a step's gradient is multiplied by, for all steps at once.
        delta = x.new_empty(T, B, 3 * H)
        dr, du, dn = delta.chunk(3, 2)
        torch.mul(seen if b_inner is None else inner / 2, r * (1 - r), out=dr)
        torch.mul(before - candidates, u * (1 - u), out=du)
        torch.mul(1 - candidates * candidates, 1 - u, out=dn)
        product = None if b_inner is None else torch.empty_like(hs)
        carried = dend.clone()
        for t in range(T - 1, -1, -1):
            n = sizes[t]
            dh = carried[:n].add_(dy[t, :n])
            reset, update, candidate = dr[t, :n], du[t, :n], dn[t, :n]
            update *= dh
            candidate *= dh
            dh *= u[t, :n]
            if product is None:
                inside = candidate @ W_candidate
                reset *= inside
                signal = inside.mul_(r[t, :n]).addmm_(delta[t, :n, : 2 * H], W_gates)
            else:
                reset *= candidate
                after = torch.mul(candidate, r[t, :n], out=product[t, :n])
                signal = (after @ W_candidate).addmm_(delta[t, :n, : 2 * H], W_gates)
            dh += signal if mask is None else signal * mask[:n]
            if n < B:
                delta[t, n:] = 0
                if product is not None:
                    product[t, n:] = 0
        flat = _flat(delta)
        behind = flat[:, 2 * H :] if product is None else _flat(product)
        dW = torch.cat([flat[:, : 2 * H].t() @ _flat(seen), behind.t() @ _flat(inner if product is None else seen)])
        dx = (flat @ V).view_as(x) if ctx.needs_input_grad[0] else None
        return dx, carried, None, None, flat.t() @ _flat(x), dW, flat.sum(0), None if product is None else behind.sum(0)


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

    def run(x: Tensor, h: Tensor, mask: Tensor | None, V: Tensor, W: Tensor, b: Tensor, b_inner: Tensor | None) -> Any:
        return _GRU.apply(x, h, mask, sizes, V, W, b, b_inner)  # type: ignore[no-untyped-call]

    y, end = _in_full(run, x, h, mask, V, W, b, b_inner)
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
        chunks: pieces of time worked on side by side; by default one where a step alone keeps a CPU busy, else about
            the root of T, which takes about 2 sqrt(T) dependent steps instead of T.

    Returns:
        (T, B, H).
    """
    if chunks is None:
        busy = h.numel() >= 4096 and h.device.type == "cpu"
        chunks = 1 if busy else max(1, round(len(add) ** 0.5))

    def run(keep: Tensor, add: Tensor, h: Tensor) -> Tensor:
        result: Tensor = _LinearScan.apply(keep, add, h, min(chunks, len(add)))  # type: ignore[no-untyped-call]
        return result

    result: Tensor = _in_full(run, keep, add, h)
    return result
