"""The recurrent networks: one class each, the equation in the docstring and code that looks like it.

B batch, T time, I inputs, O outputs, H hidden. A weight is kept as PyTorch keeps it, (outputs, inputs), so the product
``x V`` of the equations is ``linear(x, V)`` here; weights of several gates are stacked along the first axis. ``step``
is the equation; ``unroll`` runs the same weights over a whole row by a faster way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from seqapp.nn import kernels
from seqapp.nn.init import RecurrentInit, glorot_, orthogonal_, recurrent_
from seqapp.nn.kept import kept, stays
from seqapp.nn.kernels import Activation, longest_first
from seqapp.nn.recurrent import RECURRENT, Masked, Recurrent, gather, scan, valid_mask, zero_padding
from seqapp.nn.teaching import mix
from seqapp.registry import Count, Share, Size

Bias = Annotated[float, Field(ge=-100, le=100)]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight")  # type: ignore[no-untyped-call]
_LSTM_MODE = 2
"""PyTorch's number for an LSTM among recurrent kernels."""

# sigmoid(+-CLOSED) is exactly 0 or 1 in float32, bfloat16 and float64.
CLOSED = 1e4


def _masked(signal: Tensor, mask: Tensor | None) -> Tensor:
    return signal if mask is None else signal * mask


@RECURRENT.register("elman")
class Elman(Masked[Tensor]):
    """The simple recurrent network (Elman 1990).

    h_t = f(x_t V + h_{t-1} W + b_h),  y_t = g(h_t U + b_y), or y_t = h_t without `output_size`.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        activation: f, the hidden activation.
        output_size: O, units in y_t; null leaves out U and gives y_t = h_t.
        output_activation: g, the activation on y_t.
        recurrent_init: how W starts; with relu, identity is the IRNN of Le et al. 2015.
    """

    through_time: ClassVar[bool] = True

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        activation: Activation = "tanh",
        output_size: Size | None = None,
        output_activation: Activation = "identity",
        recurrent_init: RecurrentInit = "orthogonal",
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.recurrent_size = hidden_size
        self.output_size = output_size or hidden_size
        self.activation: Activation = activation
        self.output_activation = output_activation
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, input_size)))
        self.W = nn.Parameter(recurrent_(torch.empty(hidden_size, hidden_size), recurrent_init))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Linear(hidden_size, output_size) if output_size else None

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.through_time:
            carry = carry.detach()
        h = ACTIVATIONS[self.activation](linear(x, self.V, self.b_h) + linear(_masked(carry, mask), self.W))
        return h, self._read_out(h)

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def loop(x: Tensor, sizes: Sequence[int], h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return kernels.feedback(x, sizes, h, self.V, self.W, self.b_h, activations=[self.activation],
                                      mask=mask, through_time=self.through_time)  # fmt: skip

        h, end = longest_first(loop, x, lengths, carry, mask)
        return (h, end) if self.output is None else (zero_padding(self._read_out(h), lengths), end)

    def _read_out(self, h: Tensor) -> Tensor:
        return h if self.output is None else ACTIVATIONS[self.output_activation](self.output(h))


@RECURRENT.register("elman_1step")
class ElmanOneStep(Elman):
    """Elman's network with the training rule it was published with: the gradient stops at h_{t-1} (Elman 1990).

    h_t = f(x_t V + stop(h_{t-1}) W + b_h): the numbers of `elman`, and W still learns from one step back.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        activation: f, the hidden activation.
        output_size: O, units in y_t; null leaves out U and gives y_t = h_t.
        output_activation: g, the activation on y_t.
        recurrent_init: how W starts.
    """

    through_time = False


@RECURRENT.register("jordan")
class Jordan(Masked[Tensor]):
    """The output is fed back to the hidden layer (Jordan 1986).

    h_t = f(x_t V + y_{t-1} W + b_h),  y_t = g(h_t U + b_y). The carry is y.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        output_size: O, units in y_t; null takes H.
        activation: f, the hidden activation.
        output_activation: g, the activation on y_t.
    """

    decay: float = 0.0

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        output_size: Size | None = None,
        activation: Activation = "tanh",
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = self.recurrent_size = output_size or hidden_size
        self.activation: Activation = activation
        self.output_activation: Activation = output_activation
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, input_size)))
        self.W = nn.Parameter(orthogonal_(torch.empty(hidden_size, self.output_size)))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Linear(hidden_size, self.output_size)
        orthogonal_(self.output.weight)

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.output_size)

    def step(self, carry: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = ACTIVATIONS[self.activation](linear(x, self.V, self.b_h) + linear(_masked(carry, mask), self.W))
        y = ACTIVATIONS[self.output_activation](self.output(h))
        return self.decay * carry + y if self.decay else y, y

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def loop(x: Tensor, sizes: Sequence[int], memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return kernels.feedback(
                x, sizes, memory, self.V, self.W, self.b_h, self.output.weight, self.output.bias,
                activations=[self.activation, self.output_activation], mask=mask, decay=self.decay,
            )  # fmt: skip

        return longest_first(loop, x, lengths, carry, mask)


@RECURRENT.register("jordan_memory")
class JordanMemory(Jordan):
    """Jordan's network with a memory of all outputs that fades (Jordan 1986).

    m_t = a m_{t-1} + y_{t-1},  h_t = f(x_t V + m_t W + b_h),  y_t = g(h_t U + b_y). The memory's own weights, a and 1,
    are fixed. The carry is the m of the next step.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        output_size: O, units in y_t; null takes H.
        decay: a, how much of the memory stays at each step.
        activation: f, the hidden activation.
        output_activation: g, the activation on y_t.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        output_size: Size | None = None,
        decay: Share = 0.5,
        activation: Activation = "tanh",
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__(
            input_size, hidden_size, output_size=output_size, activation=activation, output_activation=output_activation
        )
        self.decay = decay
        with torch.no_grad():
            # The loop is a I + U W: this start keeps its norm at 1, as without the memory.
            self.output.weight *= max(1 - decay, 0.1)


@RECURRENT.register("output_recurrent")
class OutputRecurrent(Elman):
    """The output is fed back to the output.

    h_t = x_t V + b_h,  o_t = f(h_t + o_{t-1} W),  y_t = o_t. As the hidden layer is linear and as wide as the output,
    these are the numbers of `elman` without a read-out.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t and o_t.
        activation: f, the activation on o_t.
        recurrent_init: how W starts.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        activation: Activation = "tanh",
        recurrent_init: RecurrentInit = "orthogonal",
    ) -> None:
        super().__init__(input_size, hidden_size, activation=activation, recurrent_init=recurrent_init)


@RECURRENT.register("state_space")
class StateSpace(Masked[Tensor]):
    """A perceptron of any depth, shared over time, computes the state; with one layer it is `elman`.

    h_t = f(s^D_t),  s^1_t = x_t V + h_{t-1} W + b_h,  s^k_t = f(s^{k-1}_t) U_k + b_k,  y_t = h_t. The deep transition
    of Pascanu et al. 2014.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t and in every layer.
        layers: D, layers of the perceptron.
        activation: f, after every layer.
        recurrent_init: how W starts.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        layers: Size = 2,
        activation: Activation = "tanh",
        recurrent_init: RecurrentInit = "orthogonal",
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = self.recurrent_size = hidden_size
        self.activation: Activation = activation
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, input_size)))
        self.W = nn.Parameter(recurrent_(torch.empty(hidden_size, hidden_size), recurrent_init))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.above = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(layers - 1))
        for layer in self.above:
            assert isinstance(layer, nn.Linear)
            recurrent_(layer.weight, recurrent_init)

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        f = ACTIVATIONS[self.activation]
        h = f(linear(x, self.V, self.b_h) + linear(_masked(carry, mask), self.W))
        for layer in self.above:
            h = f(layer(h))
        return h, h

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        above = [tensor for layer in self.above for tensor in layer.parameters()]

        def loop(x: Tensor, sizes: Sequence[int], h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return kernels.feedback(x, sizes, h, self.V, self.W, self.b_h, *above,
                                      activations=[self.activation] * (1 + len(self.above)), mask=mask)  # fmt: skip

        return longest_first(loop, x, lengths, carry, mask)


def _delayed(past: Tensor, x: Tensor, delays: Sequence[int]) -> Tensor:
    """For each position of x its inputs ``delays`` steps back, side by side.

    past (B, P, I) came before x (B, T, I), oldest first -> (B, T, len(delays) * I).
    """
    P, T = past.shape[1], x.shape[1]
    both = torch.cat([past, x], 1)
    return torch.cat([both[:, P - delay : P - delay + T] for delay in delays], -1)


def _latest(past: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
    """The last P positions of each row, with past (B, P, I) before x (B, T, I): (B, P, I), oldest first."""
    P = past.shape[1]
    both = torch.cat([past, x], 1)
    if lengths is None:
        return both[:, both.shape[1] - P :]
    places = lengths[:, None] + torch.arange(P, device=x.device)
    return both[torch.arange(len(x), device=x.device)[:, None], places]


@RECURRENT.register("tdnn")
class TDNN(Recurrent[Tensor]):
    """A perceptron over a window of the input: a finite response, no feedback (Waibel et al. 1989).

    y_t = f(... f(x_t V_0 + x_{t-d} V_1 + ... + x_{t-(N-1)d} V_{N-1} + b_h) ... U_k + b_k). A stack of them is a stack
    of dilated causal convolutions. The carry is the (N - 1) d inputs before.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in every layer and in y_t.
        window: N, inputs seen at once.
        dilation: d, steps between two inputs of the window.
        layers: layers of the perceptron.
        activation: f, after every layer.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        window: Size = 5,
        dilation: Size = 1,
        layers: Size = 1,
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.activation: Activation = activation
        self.delays = range(0, window * dilation, dilation)
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, window * input_size)))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.above = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(layers - 1))

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.delays[-1], self.input_size)

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([carry, x[:, None]], 1)
        window = torch.cat([seen[:, -1 - delay] for delay in self.delays], -1)
        return seen[:, 1:], self._climb(ACTIVATIONS[self.activation](linear(window, self.V, self.b_h)))

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([carry, x], 1).transpose(0, 1)
        y = kernels.window(both, self.delays, self.V, self.b_h, activation=self.activation)
        return zero_padding(self._climb(y.transpose(0, 1)), lengths), _latest(carry, x, lengths)

    def _climb(self, y: Tensor) -> Tensor:
        for layer in self.above:
            y = ACTIVATIONS[self.activation](layer(y))
        return y


@RECURRENT.register("narx")
class NARX(Masked[tuple[Tensor, Tensor]]):
    """A nonlinear autoregression on its own outputs with outer inputs (Leontaritis & Billings 1985; Lin et al. 1996).

    h_t = f(x_t V_0 + ... + x_{t-p} V_p + y_{t-1} W_1 + ... + y_{t-q} W_q + b_h),  y_t = g(h_t U + b_y), with more
    hidden layers if asked. :meth:`forward` closes the loop (parallel mode): its own outputs come back.
    :meth:`open_loop` lets the true ones come back (series-parallel mode), as in training. The carry is the last p
    inputs, oldest first, and the last q outputs, newest first.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in every hidden layer.
        output_size: O, units in y_t; null takes H.
        input_delays: p, inputs before x_t that are seen.
        output_delays: q, outputs before y_t that are seen.
        layers: hidden layers.
        activation: f, after every hidden layer.
        output_activation: g, the activation on y_t.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        *,
        output_size: Size | None = None,
        input_delays: Count = 2,
        output_delays: Size = 2,
        layers: Size = 1,
        activation: Activation = "tanh",
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = output_size or hidden_size
        self.recurrent_size = output_delays * self.output_size
        self.input_delays, self.output_delays = input_delays, output_delays
        self.activations: list[Activation] = [activation] * layers + [output_activation]
        self.V = nn.Parameter(glorot_(torch.empty(hidden_size, (input_delays + 1) * input_size)))
        self.W = nn.Parameter(glorot_(torch.empty(hidden_size, self.recurrent_size)))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        self.above = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(layers - 1))
        self.output = nn.Linear(hidden_size, self.output_size)

    def initial_carry(self, batch_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return (
            like.new_zeros(batch_size, self.input_delays, self.input_size),
            like.new_zeros(batch_size, self.output_delays, self.output_size),
        )

    def step(
        self, carry: tuple[Tensor, Tensor], x: Tensor, mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        inputs, outputs = carry
        seen = torch.cat([inputs, x[:, None]], 1)
        y = self._perceptron(seen.flip(1).flatten(1), _masked(outputs.flatten(1), mask))
        return (seen[:, 1:], torch.cat([y[:, None], outputs[:, :-1]], 1)), y

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs, outputs = carry
        above = [tensor for layer in [*self.above, self.output] for tensor in layer.parameters()]

        def loop(x: Tensor, sizes: Sequence[int], signal: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return kernels.feedback(x, sizes, signal, self.V, self.W, self.b_h, *above,
                                      activations=self.activations, mask=mask, taps=self.output_delays)  # fmt: skip

        seen = _delayed(inputs, x, range(self.input_delays + 1))
        y, end = longest_first(loop, seen, lengths, outputs.flatten(1), mask)
        return y, (_latest(inputs, x, lengths), end.view_as(outputs))

    def open_loop(
        self,
        x: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        carry: tuple[Tensor, Tensor] | None = None,
        *,
        teacher_forcing: float = 1.0,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run with true outputs coming back; all positions at once, since none waits for another.

        Args:
            x: (B, T, I).
            targets: (B, T, O), the true outputs; y_t sees those before t only.
            lengths: (B,) valid positions per row.
            carry: where to go on from; None starts afresh.
            teacher_forcing: probability that a true output comes back; else the network's own does, without gradient
                (scheduled sampling, Bengio et al. 2015), which takes step after step.

        Returns:
            y (B, T, O), zero past each row's length, and the carry at each row's end.

        Raises:
            ValueError: if a shape does not fit.
        """
        x, lengths, carry = self.prepare(x, lengths, carry)
        wanted = (*x.shape[:2], self.output_size)
        if targets.shape != wanted:
            raise ValueError(f"NARX: targets have shape {tuple(targets.shape)}; {wanted} fits")
        targets = zero_padding(targets, lengths)
        self.check_finite(targets, "targets hold", "output")
        if teacher_forcing < 1:
            return self._half_open(x, targets, lengths, carry, teacher_forcing)
        inputs, outputs = carry
        earlier = outputs.flip(1)
        y = self._perceptron(
            _delayed(inputs, x, range(self.input_delays + 1)),
            _delayed(earlier, targets, range(1, self.output_delays + 1)),
        )
        return zero_padding(y, lengths), (_latest(inputs, x, lengths), _latest(earlier, targets, lengths).flip(1))

    def _half_open(
        self, x: Tensor, targets: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor], teacher_forcing: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        def step(carry: tuple[Tensor, Tensor], now: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            x, target = torch.split(now, [self.input_size, self.output_size], 1)
            (inputs, outputs), y = self.step(carry, x)
            back = mix(target, y.detach(), teacher_forcing)
            return (inputs, torch.cat([back[:, None], outputs[:, 1:]], 1)), y

        return scan(step, carry, torch.cat([x, targets], -1), lengths)

    def _perceptron(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        y = ACTIVATIONS[self.activations[0]](linear(inputs, self.V, self.b_h) + linear(outputs, self.W))
        for layer, activation in zip([*self.above, self.output], self.activations[1:], strict=True):
            y = ACTIVATIONS[activation](layer(y))
        return y


def _mark_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, I) -> (B, T, I + 1): one more input, 1 on padding, for fused kernels, which know no lengths."""
    padding = ~valid_mask(lengths, x.shape[1])[..., None]
    return torch.cat([x, padding.to(x.dtype)], -1)


@RECURRENT.register("lstm")
class LSTM(Masked[tuple[Tensor, Tensor]]):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(x_t V + h_{t-1} W + b),  g = tanh(x_t V + h_{t-1} W + b), each with its own V, W, b;
    c_t = f * c_{t-1} + i * g,  h_t = o * tanh(c_t),  y_t = h_t.

    Under bfloat16 autocast the fused kernel keeps c in bfloat16 as well: fast, with a memory of two to three digits.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t and c_t.
        forget_bias: starting value of the forget gate's bias; 1 lets memory last from the start.
    """

    gate_names: ClassVar[tuple[str, ...]] = ("input", "forget", "cell", "output")
    squash: ClassVar[bool] = True

    def __init__(self, input_size: int, hidden_size: Size, *, forget_bias: Bias = 1.0) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = self.recurrent_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(4 * hidden_size, input_size), gates=4))
        self.W = nn.Parameter(orthogonal_(torch.empty(4 * hidden_size, hidden_size), gates=4))
        self.b = nn.Parameter(torch.zeros(4 * hidden_size))
        with torch.no_grad():
            self.b[hidden_size : 2 * hidden_size] = forget_bias

    def initial_carry(self, batch_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(batch_size, self.hidden_size), like.new_zeros(batch_size, self.hidden_size)

    def step(
        self, carry: tuple[Tensor, Tensor], x: Tensor, mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = carry
        i, f, g, o = (linear(x, self.V, self.b) + linear(_masked(h, mask), self.W)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * (c.tanh() if self.squash else c)
        return (h, c), h

    def gates(self, carry: tuple[Tensor, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Each gate (B, H) at one step: carry, x (B, I)."""
        i, f, _, o = (linear(x, self.V, self.b) + linear(carry[0], self.W)).sigmoid().chunk(4, -1)
        return {"input": i, "forget": f, "output": o}

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.squash and mask is None:
            return self._fused(x, lengths, carry)

        def loop(
            x: Tensor, sizes: Sequence[int], state: tuple[Tensor, Tensor], mask: Tensor | None
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            h, c = state
            return kernels.lstm(x, sizes, h, c, self.V, self.W, self.b, mask=mask, squash=self.squash)

        return longest_first(loop, x, lengths, carry, mask)

    def read_back(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if not (self.squash and self._keeps_weights(x)):
            return super().read_back(x, lengths)
        # The padding comes first: the state is still zero there, and so is what is told of it.
        return self._read_kept(x, lengths, self.initial_carry(len(x), x), back=True)

    def _fused(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self._keeps_weights(x):
            y, (h, c) = self._read_kept(x, lengths, carry, back=False)
        else:
            weights = [self.V, self.W, self.b, torch.zeros_like(self.b)]
            if lengths is not None:
                x, weights[0] = _mark_padding(x, lengths), self._marked()
            start = carry[0][None], carry[1][None]
            y, h, c = torch.lstm(x, start, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
            h, c = h[0], c[0]
        if lengths is not None:
            y, h = zero_padding(y, lengths), gather(y, lengths)
        # Autocast gives bfloat16; the carry stays what it was, so that it fits where autocast has ended.
        return y, (h.to(carry[0].dtype), c.to(carry[1].dtype))

    def _keeps_weights(self, x: Tensor) -> bool:
        """Whether the weights may be read from a copy in oneDNN's order, which saves a short row much of its time."""
        return (
            _ONEDNN
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.V.dtype == torch.float32
            and len(x) > 0
            and stays((self.V, self.W, self.b))
            and not torch.is_autocast_enabled("cpu")
        )

    def _read_kept(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[Tensor, Tensor], *, back: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All positions, from the last to the first if ``back``; what y holds on the padding is told by no one."""
        padded = lengths is not None
        if lengths is not None:
            x = _mark_padding(x, lengths)
        weights = kept((self.V, self.W, self.b), (padded, back), partial(self._packed, padded, back))
        y, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(
            x.transpose(0, 1).contiguous(), *weights, *carry,
            back, [], _LSTM_MODE, self.hidden_size, 1, True, False, False, False,
        )  # fmt: skip
        return y.transpose(0, 1), (h, c)

    def _marked(self) -> Tensor:
        """V (4H, I + 1), whose last input closes the input gate and opens the forget gate: c stays as it is."""
        freeze = torch.zeros(4, self.hidden_size, dtype=self.V.dtype, device=self.V.device)
        freeze[0], freeze[1] = -CLOSED, CLOSED
        return torch.cat([self.V, freeze.view(-1, 1)], 1)

    def _packed(self, padded: bool, back: bool) -> list[Tensor]:
        """V and W in oneDNN's order and the two biases it adds up; every call of ``torch.lstm`` makes these anew."""
        V = self._marked() if padded else self.V.detach()
        order = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight
        return [*order(V, self.W.detach(), self.hidden_size, back, True, False, None), self.b.detach(),
                torch.zeros_like(self.b)]  # fmt: skip


@RECURRENT.register("lstm_linear_output")
class LSTMLinearOutput(LSTM):
    """The LSTM without tanh on the way out, so that what is read is the memory itself, as large as it has grown.

    As `lstm`, but h_t = o * c_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t and c_t.
        forget_bias: starting value of the forget gate's bias; 1 lets memory last from the start.
    """

    squash = False


@RECURRENT.register("gru")
class GRU(Masked[Tensor]):
    """The gated recurrent unit, reset gate inside (Cho et al. 2014).

    r, u = sigmoid(x_t V + h_{t-1} W + b), each with its own V, W, b;
    n = tanh(x_t V_n + (r * h_{t-1}) W_n + b_n),  h_t = (1 - u) * n + u * h_{t-1},  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
    """

    gate_names: ClassVar[tuple[str, ...]] = ("reset", "update", "candidate")

    def __init__(self, input_size: int, hidden_size: Size) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = self.recurrent_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(3 * hidden_size, input_size), gates=3))
        self.W = nn.Parameter(orthogonal_(torch.empty(3 * hidden_size, hidden_size), gates=3))
        self.b = nn.Parameter(torch.zeros(3 * hidden_size))

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def step(self, carry: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = _masked(carry, mask)
        xr, xu, xn = linear(x, self.V, self.b).chunk(3, -1)
        W_r, W_u, W_n = self.W.chunk(3)
        r, u = (xr + linear(h, W_r)).sigmoid(), (xu + linear(h, W_u)).sigmoid()
        n = (xn + linear(r * h, W_n)).tanh()
        h = n + u * (carry - n)
        return h, h

    def gates(self, carry: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Each gate (B, H) at one step: carry, x (B, I). An update gate of 1 keeps the state."""
        H = self.hidden_size
        z = linear(x, self.V[: 2 * H], self.b[: 2 * H]) + linear(carry, self.W[: 2 * H])
        r, u = z.sigmoid().chunk(2, -1)
        return {"reset": r, "update": u}

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def loop(x: Tensor, sizes: Sequence[int], h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return kernels.gru(x, sizes, h, self.V, self.W, self.b, self._inner_bias(), mask=mask)

        return longest_first(loop, x, lengths, carry, mask)

    def _inner_bias(self) -> Tensor | None:
        return None


@RECURRENT.register("gru_reset_after")
class GRUResetAfter(GRU):
    """The gated recurrent unit, reset gate after the product, as cuDNN and PyTorch have it.

    r, u = sigmoid(x_t V + h_{t-1} W + b), each with its own V, W, b;
    n = tanh(x_t V_n + b_n + r * (h_{t-1} W_n + b')),  h_t = (1 - u) * n + u * h_{t-1},  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
    """

    def __init__(self, input_size: int, hidden_size: Size) -> None:
        super().__init__(input_size, hidden_size)
        self.b_inner = nn.Parameter(torch.zeros(hidden_size))

    def step(self, carry: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        xr, xu, xn = linear(x, self.V, self.b).chunk(3, -1)
        hr, hu, hn = linear(_masked(carry, mask), self.W).chunk(3, -1)
        r, u = (xr + hr).sigmoid(), (xu + hu).sigmoid()
        n = (xn + r * (hn + self.b_inner)).tanh()
        h = n + u * (carry - n)
        return h, h

    def _inner_bias(self) -> Tensor | None:
        return self.b_inner


def _full(z: Tensor) -> Tensor:
    """z in float32 at least: a share near 1 that is kept at every step needs its digits."""
    return z.float() if z.dtype.itemsize < 4 else z


BUSY = 4096
"""Numbers in a state from which one step alone keeps a CPU busy."""


class _InputGated(Recurrent[Tensor]):
    """A layer whose gates see the input alone, so that h_t is a linear function of h_{t-1}."""

    hidden_size: int
    V: nn.Parameter
    b: nn.Parameter

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.hidden_size)

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: Tensor) -> tuple[Tensor, Tensor]:
        # Where a step alone keeps a CPU busy, step by step in the cache; elsewhere in parallel over time.
        if carry.numel() >= BUSY and carry.device.type == "cpu":

            def loop(x: Tensor, sizes: Sequence[int], h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
                return kernels.leak(x, sizes, h, self.V, self.b)

            return longest_first(loop, x, lengths, carry)
        gates = _full(linear(x.transpose(0, 1), self.V, self.b))
        keep, n = kernels.keep_share(gates, self.hidden_size), gates[..., -self.hidden_size :]
        h = kernels.linear_scan(keep, n - keep * n, carry).transpose(0, 1)
        return zero_padding(h, lengths), gather(h, lengths).clone()


@RECURRENT.register("mingru")
class MinGRU(_InputGated):
    """A gated unit whose gate sees the input alone, so that it trains in parallel over time (Feng et al. 2024).

    z = sigmoid(x_t V_z + b_z),  n = x_t V_n + b_n,  h_t = (1 - z) * h_{t-1} + z * n,  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        update_bias: starting value of b_z; below 0 the state lasts longer from the start.
    """

    def __init__(self, input_size: int, hidden_size: Size, *, update_bias: Bias = 0.0) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(2 * hidden_size, input_size), gates=2))
        self.b = nn.Parameter(torch.zeros(2 * hidden_size))
        with torch.no_grad():
            self.b[:hidden_size] = update_bias

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z, n = _full(linear(x, self.V, self.b)).chunk(2, -1)
        keep = (-z).sigmoid()
        h = keep * carry + (n - keep * n)
        return h, h

    def gates(self, carry: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The gate (B, H) at one step: carry, x (B, I). An update gate of 0 keeps the state."""
        H = self.hidden_size
        return {"update": linear(x, self.V[:H], self.b[:H]).sigmoid()}


@RECURRENT.register("minlstm")
class MinLSTM(_InputGated):
    """An LSTM whose gates see the input alone and share one unit of flow (Feng et al. 2024).

    f, i = sigmoid(x_t V + b), each with its own V and b,  n = x_t V_n + b_n;
    h_t = f / (f + i) * h_{t-1} + i / (f + i) * n,  y_t = h_t.

    Args:
        input_size: I, given by what lies below.
        hidden_size: H, units in h_t.
        forget_bias: starting value of the forget gate's bias; above 0 the state lasts longer from the start.
    """

    def __init__(self, input_size: int, hidden_size: Size, *, forget_bias: Bias = 1.0) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = self.output_size = hidden_size
        self.V = nn.Parameter(glorot_(torch.empty(3 * hidden_size, input_size), gates=3))
        self.b = nn.Parameter(torch.zeros(3 * hidden_size))
        with torch.no_grad():
            self.b[:hidden_size] = forget_bias

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        f, i, n = _full(linear(x, self.V, self.b)).chunk(3, -1)
        # sigmoid(f) / (sigmoid(f) + sigmoid(i)), defined where both gates are shut too.
        keep = (logsigmoid(f) - logsigmoid(i)).sigmoid()
        h = keep * carry + (n - keep * n)
        return h, h

    def gates(self, carry: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Each gate (B, H) at one step, before they share the flow: carry, x (B, I)."""
        f, i, _ = linear(x, self.V, self.b).chunk(3, -1)
        return {"forget": f.sigmoid(), "input": i.sigmoid()}
