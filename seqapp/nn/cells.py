"""The recurrent networks: one class each, the equation in the docstring and code that looks like it.

B batch, T time, I inputs, O outputs, H hidden. A weight is kept as PyTorch keeps it, (outputs, inputs), so the product
``x V`` of the equations is ``linear(x, V)`` here; weights of several gates are stacked along the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seqapp.nn.init import glorot_, orthogonal_
from seqapp.nn.recurrent import RECURRENT, Recurrent, gather, scan, valid_mask, zero_padding
from seqapp.registry import Size

Activation = Literal["tanh", "relu", "sigmoid", "identity"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}

# sigmoid(+-CLOSED) is exactly 0 or 1 in float32, bfloat16 and float64.
CLOSED = 1e4


def _mark_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, I) -> (B, T, I + 1): one more input, 1 on padding, for fused kernels, which know no lengths."""
    padding = ~valid_mask(lengths, x.shape[1])[..., None]
    return torch.cat([x, padding.to(x.dtype)], -1)


@RECURRENT.register("elman")
class Elman(Recurrent[Tensor]):
    """The simple recurrent network (Elman 1990).

    h_t = f(x_t V + h_{t-1} W + b_h),  y_t = g(h_t U + b_y), or y_t = h_t without `output_size`.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        activation: f, the hidden activation.
        output_size: O, units in y_t; null leaves out U and gives y_t = h_t.
        output_activation: g, the activation on y_t.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        activation: Activation = "tanh",
        output_size: Size | None = None,
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = output_size or hidden_size
        self.activation = activation
        self.output_activation = output_activation
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, input_size)))
        self.W = nn.Parameter(orthogonal_(torch.empty(hidden_size, hidden_size)))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Linear(hidden_size, output_size) if output_size else None

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = ACTIVATIONS[self.activation](linear(x, self.V, self.b_h) + linear(carry, self.W))
        return h, self._read_out(h)

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: Tensor) -> tuple[Tensor, Tensor]:
        if self.activation not in ("tanh", "relu"):
            return scan(self.step, carry, x, lengths)
        kernel = torch.rnn_tanh if self.activation == "tanh" else torch.rnn_relu
        V: Tensor = self.V
        if lengths is not None and self.activation == "relu":
            # Shut every unit on padding: h that grows there without bound would turn gradients into 0 * inf.
            x = _mark_padding(x, lengths)
            V = torch.cat([V, torch.full_like(V[:, :1], -CLOSED)], 1)
        weights = [V, self.W, self.b_h, torch.zeros_like(self.b_h)]
        h, end = kernel(x, carry[None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return zero_padding(self._read_out(h), lengths), end[0] if lengths is None else gather(h, lengths)

    def _read_out(self, h: Tensor) -> Tensor:
        return h if self.output is None else ACTIVATIONS[self.output_activation](self.output(h))


@RECURRENT.register("lstm")
class LSTM(Recurrent[tuple[Tensor, Tensor]]):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(x_t V + h_{t-1} W + b),  g = tanh(x_t V + h_{t-1} W + b), each with its own V, W, b;
    c_t = f * c_{t-1} + i * g,  h_t = o * tanh(c_t),  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t and c_t.
        forget_bias: starting value of the forget gate's bias; 1 lets memory last from the start.
    """

    def __init__(self, input_size: int, hidden_size: Size, *, forget_bias: float = 1.0) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(4 * hidden_size, input_size), gates=4))
        self.W = nn.Parameter(orthogonal_(torch.empty(4 * hidden_size, hidden_size), gates=4))
        self.b = nn.Parameter(torch.zeros(4 * hidden_size))
        with torch.no_grad():
            self.b[hidden_size : 2 * hidden_size] = forget_bias

    def initial_carry(self, batch_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        zeros = like.new_zeros(batch_size, self.hidden_size)
        return zeros, zeros

    def step(self, carry: tuple[Tensor, Tensor], x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = carry
        i, f, g, o = (linear(x, self.V, self.b) + linear(h, self.W)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c), h

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        V: Tensor = self.V
        if lengths is not None:
            # Close the input gate and open the forget gate on padding: c ends as every row's own memory.
            x = _mark_padding(x, lengths)
            freeze = torch.zeros(4, self.hidden_size, dtype=V.dtype, device=V.device)
            freeze[0], freeze[1] = -CLOSED, CLOSED
            V = torch.cat([V, freeze.view(-1, 1)], 1)
        weights = [V, self.W, self.b, torch.zeros_like(self.b)]
        h0, c0 = (leaf[None] for leaf in carry)
        y, h, c = torch.lstm(x, (h0, c0), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        if lengths is None:
            return y, (h[0], c[0])
        return zero_padding(y, lengths), (gather(y, lengths), c[0])


@RECURRENT.register("gru")
class GRU(Recurrent[Tensor]):
    """The gated recurrent unit, reset gate inside (Cho et al. 2014).

    r, u = sigmoid(x_t V + h_{t-1} W + b), each with its own V, W, b;
    n = tanh(x_t V_n + (r * h_{t-1}) W_n + b_n),  h_t = (1 - u) * n + u * h_{t-1},  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
    """

    def __init__(self, input_size: int, hidden_size: Size) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(3 * hidden_size, input_size), gates=3))
        self.W = nn.Parameter(orthogonal_(torch.empty(3 * hidden_size, hidden_size), gates=3))
        self.b = nn.Parameter(torch.zeros(3 * hidden_size))

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._advance(carry, linear(x, self.V, self.b))

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: Tensor) -> tuple[Tensor, Tensor]:
        # The input's share of every step in one product; only the recurrent share waits for the step before.
        return scan(self._advance, carry, linear(x, self.V, self.b), lengths)

    def _advance(self, h: Tensor, xV: Tensor) -> tuple[Tensor, Tensor]:
        H = self.hidden_size
        r, u = (xV[:, : 2 * H] + linear(h, self.W[: 2 * H])).sigmoid().chunk(2, -1)
        n = (xV[:, 2 * H :] + linear(r * h, self.W[2 * H :])).tanh()
        h = n + u * (h - n)
        return h, h


@RECURRENT.register("gru_reset_after")
class GRUResetAfter(Recurrent[Tensor]):
    """The gated recurrent unit, reset gate after the product, as cuDNN and PyTorch have it.

    r, u = sigmoid(x_t V + h_{t-1} W + b), each with its own V, W, b;
    n = tanh(x_t V_n + b_n + r * (h_{t-1} W_n + b')),  h_t = (1 - u) * n + u * h_{t-1},  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
    """

    def __init__(self, input_size: int, hidden_size: Size) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(3 * hidden_size, input_size), gates=3))
        self.W = nn.Parameter(orthogonal_(torch.empty(3 * hidden_size, hidden_size), gates=3))
        self.b = nn.Parameter(torch.zeros(3 * hidden_size))
        self.b_inner = nn.Parameter(torch.zeros(hidden_size))

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        xr, xu, xn = linear(x, self.V, self.b).chunk(3, -1)
        hr, hu, hn = linear(carry, self.W).chunk(3, -1)
        r, u = (xr + hr).sigmoid(), (xu + hu).sigmoid()
        n = (xn + r * (hn + self.b_inner)).tanh()
        h = n + u * (carry - n)
        return h, h

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: Tensor) -> tuple[Tensor, Tensor]:
        b_recurrent = torch.cat([self.b_inner.new_zeros(2 * self.hidden_size), self.b_inner])
        weights = [self.V, self.W, self.b, b_recurrent]
        y, end = torch.gru(x, carry[None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return zero_padding(y, lengths), end[0] if lengths is None else gather(y, lengths)
