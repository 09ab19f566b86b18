"""Every network against loops in NumPy written from the equations, and against what must hold whatever the weights.

B batch, T time, I inputs, O outputs, H hidden. A weight is kept as (outputs, inputs), so ``x V`` is ``x @ V.T`` here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from seqapp.nn import cells, kernels
from seqapp.nn.init import glorot_, recurrent_
from seqapp.nn.inputs import OneHot
from seqapp.nn.recurrent import (
    RECURRENT,
    Masked,
    NotFinite,
    Recurrent,
    Stack,
    Variational,
    WeightDropout,
    map_carry,
    scan,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
F = Literal["tanh", "relu", "sigmoid", "identity"]

B, T, I, H = 3, 6, 3, 4  # noqa: E741
LENGTHS = torch.tensor([6, 2, 4])

KINDS: dict[str, dict[str, Any]] = {
    **{
        name: {"kind": name, "hidden_size": H}
        for name in (
            "elman", "elman_1step", "jordan", "jordan_memory", "output_recurrent", "state_space", "tdnn", "narx",
            "lstm", "lstm_linear_output", "gru", "gru_reset_after", "mingru", "minlstm",
        )
    },
    "variational": {"kind": "variational", "layer": {"kind": "lstm", "hidden_size": H}, "recurrent_dropout": 0.3},
    "weight_dropout": {"kind": "weight_dropout", "layer": {"kind": "lstm", "hidden_size": H}},
    "stack": {"kind": "stack", "layers": [{"kind": "lstm", "hidden_size": 5}, {"kind": "gru", "hidden_size": H}]},
}  # fmt: skip
MASKED = [
    "elman", "elman_1step", "jordan", "jordan_memory", "output_recurrent", "state_space", "narx", "lstm",
    "lstm_linear_output", "gru", "gru_reset_after",
]  # fmt: skip

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": lambda z: np.asarray(1 / (1 + np.exp(-z))),
    "identity": lambda z: z,
}


def spread(layer: Any, by: float = 0.7) -> Any:
    """``layer`` in double precision with no weight left at zero."""
    layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-by, by))
    return layer


def build(kind: str, dtype: torch.dtype = torch.float64, *, input_size: int = I) -> Recurrent[Any]:
    layer: Recurrent[Any] = spread(RECURRENT.build(KINDS[kind], input_size=input_size)).to(dtype)
    return layer


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def random_input(*shape: int) -> tuple[Tensor, Array]:
    x = torch.randn(*(shape or (B, T, I)), dtype=torch.float64)
    return x, array(x)


def leaves(carry: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_carry(lambda leaf: found.append(leaf) or leaf, carry)  # type: ignore[func-returns-value]
    return found


def same(got: Tensor, expected: Array | list[Array], limit: float = 1e-12) -> None:
    """``got`` (B, T, O) against one array a step."""
    wanted = np.stack(expected, 1) if isinstance(expected, list) else expected
    np.testing.assert_allclose(array(got), wanted, rtol=limit, atol=limit)


def test_every_kind_has_a_row() -> None:
    assert set(KINDS) == set(RECURRENT)
    assert set(MASKED) == {kind for kind in KINDS if isinstance(build(kind), Masked)}


# --- The equations -----------------------------------------------------------------------------------------------


def test_elman_1step_has_the_numbers_of_elman_and_the_gradient_of_one_step() -> None:
    layer, elman = spread(cells.ElmanOneStep(I, H)), cells.Elman(I, H).double()
    elman.load_state_dict(layer.state_dict())
    x, _ = random_input()
    x.requires_grad_()
    y, end = layer(x, LENGTHS)
    y_elman, end_elman = elman(x, LENGTHS)
    assert torch.equal(y, y_elman)
    assert torch.equal(end, end_elman)
    y, _ = layer(x)
    y_elman, _ = elman(x)
    for t in range(T):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        (long,) = torch.autograd.grad(y_elman[:, t].sum(), x, retain_graph=True)
        for s in range(T):
            assert bool(gradient[:, s].any()) is (s == t)
            assert bool(long[:, s].any()) is (s <= t)
        assert torch.equal(gradient[:, t], long[:, t])


def test_elman_1step_learns_by_the_rule_of_one_step_back() -> None:
    """With loss sum c_t h_t and tanh, dW = sum_t (c_t (1 - h_t^2))' h_{t-1}, and likewise V and b."""
    layer = spread(cells.ElmanOneStep(I, H))
    (x, x_array), (c, c_array), (h0, h_before) = random_input(), random_input(B, T, H), random_input(B, H)
    h0.requires_grad_()
    y, end = layer(x, None, h0)
    (c * y).sum().backward()
    dV, dW, db = np.zeros((H, I)), np.zeros((H, H)), np.zeros(H)
    for t in range(T):
        h = array(y)[:, t]
        delta = c_array[:, t] * (1 - h**2)
        dV, dW, db = dV + delta.T @ x_array[:, t], dW + delta.T @ h_before, db + delta.sum(0)
        h_before = h
    for parameter, expected in ((layer.V, dV), (layer.W, dW), (layer.b_h, db)):
        np.testing.assert_allclose(array(parameter.grad), expected, rtol=1e-12, atol=1e-12)
    assert h0.grad is None or not h0.grad.any()
    assert torch.equal(end, y[:, -1])


@pytest.mark.parametrize("f", ["tanh", "relu"])
@pytest.mark.parametrize("g", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("decay", [None, 0.3, 1.0])
def test_jordan_with_and_without_memory(f: F, g: F, decay: float | None) -> None:
    layer = spread(
        cells.Jordan(I, H, output_size=2, activation=f, output_activation=g)
        if decay is None
        else cells.JordanMemory(I, H, output_size=2, decay=decay, activation=f, output_activation=g),
        0.3,
    )
    (x, x_array), (start, m) = random_input(), random_input(B, 2)
    V, W, b, U, c = (array(p) for p in (layer.V, layer.W, layer.b_h, layer.output.weight, layer.output.bias))
    expected = []
    for t in range(T):
        h = FUNCTIONS[f](x_array[:, t] @ V.T + m @ W.T + b)
        y = FUNCTIONS[g](h @ U.T + c)
        m = (decay or 0) * m + y
        expected.append(y)
    got, end = layer(x, None, start)
    same(got, expected)
    np.testing.assert_allclose(array(end), m, rtol=1e-12, atol=1e-12)
    single, _ = copy.deepcopy(layer).float()(x.float(), None, start.float())
    same(single, expected, 1e-5 if decay == 1 else 1e-6)


@pytest.mark.parametrize("decay", [0.25, 0.5, 0.9, 1.0])
def test_memory_of_a_constant_output_is_the_geometric_sum(decay: float) -> None:
    layer = spread(cells.JordanMemory(I, H, output_size=2, decay=decay))
    constant = torch.tensor([0.5, -2.0], dtype=torch.float64)
    with torch.no_grad():
        layer.output.weight.zero_()
        layer.output.bias.copy_(constant)
    x, _ = random_input(B, 9, I)
    for steps in range(1, 10):
        y, m = layer(x[:, :steps])
        assert torch.equal(y, constant.expand(B, steps, 2))
        share = steps if decay == 1 else (1 - decay**steps) / (1 - decay)
        assert_close(m, (share * constant).expand(B, 2), rtol=1e-12, atol=0)
    _, m = layer(x, torch.tensor([9, 1, 3]))
    sums = torch.tensor([[sum(decay**k for k in range(n))] for n in (9, 1, 3)], dtype=torch.float64)
    assert_close(m, sums * constant, rtol=1e-12, atol=0)


def test_weights_of_the_memory_are_fixed() -> None:
    layer = spread(cells.JordanMemory(I, H, decay=0.7))
    plain = cells.Jordan(I, H)
    assert set(layer.state_dict()) == set(plain.state_dict()) == {"V", "W", "b_h", "output.weight", "output.bias"}
    assert isinstance(layer.decay, float)
    layer(random_input()[0])[0].sum().backward()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    optimizer.step()
    assert layer.decay == 0.7


def test_state_space_of_depth_1_is_elman() -> None:
    layer, elman = spread(cells.StateSpace(I, H, layers=1)), cells.Elman(I, H).double()
    elman.load_state_dict(layer.state_dict())
    x, _ = random_input()
    for one, other in zip(layer(x, LENGTHS), elman(x, LENGTHS), strict=True):
        assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("f", list(FUNCTIONS))
def test_deep_state_space(depth: int, f: F) -> None:
    layer = spread(cells.StateSpace(I, H, layers=depth, activation=f), 0.3)
    (x, x_array), (start, h) = random_input(), random_input(B, H)
    expected = []
    for t in range(T):
        # The concatenated form: [x; h] @ [V; W].
        h = FUNCTIONS[f](np.concatenate([x_array[:, t], h], 1) @ np.concatenate([array(layer.V), array(layer.W)], 1).T
                         + array(layer.b_h))  # fmt: skip
        for above in layer.above:
            h = FUNCTIONS[f](h @ array(above.weight).T + array(above.bias))
        expected.append(h)
    same(layer(x, None, start)[0], expected)


@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (1, 3), (3, 1), (4, 2), (2, 5)])
def test_tdnn_sees_its_taps_and_nothing_else(window: int, dilation: int) -> None:
    layer = spread(cells.TDNN(I, H, window=window, dilation=dilation, layers=2), 0.2)
    taps = {k * dilation for k in range(window)}
    assert layer.initial_carry(2, torch.zeros(2, 1, I)).shape == (2, max(taps), I), "no more is kept than is seen"
    size = 14
    x, _ = random_input(1, size, I)
    y, _ = layer(x)
    for s in range(size):
        changed = x.clone()
        changed[:, s] += 1
        moved = (layer(changed)[0] != y).any(-1)[0]
        assert moved.tolist() == [t - s in taps for t in range(size)]


@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 4)])
def test_tdnn_is_a_causal_convolution(window: int, dilation: int) -> None:
    layer = spread(cells.TDNN(I, H, window=window, dilation=dilation, activation="relu"))
    kernel = layer.V.view(H, window, I).flip(1).transpose(1, 2)
    x, _ = random_input()
    padded = nn.functional.pad(x.transpose(1, 2), ((window - 1) * dilation, 0))
    expected = nn.functional.conv1d(padded, kernel, layer.b_h, dilation=dilation).relu().transpose(1, 2)
    assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)


def narx(**options: Any) -> cells.NARX:
    layer: cells.NARX = spread(cells.NARX(I, H, **{"output_size": 2, **options}), 0.4)
    return layer


def narx_loop(layer: cells.NARX, x: Array, back: Array | None, inputs: Array, outputs: Array) -> list[Array]:
    """The equation, with ``back`` (B, T, O) coming back, or its own outputs; the carry as forward takes it."""
    seen = [inputs[:, k] for k in range(inputs.shape[1])]
    said = [outputs[:, k] for k in reversed(range(outputs.shape[1]))]
    answers = []
    for t in range(x.shape[1]):
        seen.append(x[:, t])
        h = array(layer.b_h)
        for k in range(layer.input_delays + 1):
            h = h + seen[-1 - k] @ array(layer.V)[:, k * I : (k + 1) * I].T
        O = layer.output_size  # noqa: E741
        for k in range(layer.output_delays):
            h = h + said[-1 - k] @ array(layer.W)[:, k * O : (k + 1) * O].T
        h = FUNCTIONS[layer.activations[0]](h)
        for above, f in zip([*layer.above, layer.output], layer.activations[1:], strict=True):
            assert isinstance(above, nn.Linear)
            h = FUNCTIONS[f](h @ array(above.weight).T + array(above.bias))
        answers.append(h)
        said.append(h if back is None else back[:, t])
    return answers


NARXES: list[dict[str, Any]] = [
    {},
    {"input_delays": 0, "output_delays": 1},
    {"input_delays": 7, "output_delays": 8, "layers": 3},
    {"activation": "relu", "output_activation": "tanh", "output_delays": 3},
]


@pytest.mark.parametrize("options", NARXES)
def test_narx_closed_and_open(options: dict[str, Any]) -> None:
    layer = narx(**options)
    (x, x_array), (targets, back) = random_input(), random_input(B, T, 2)
    (inputs, p), (outputs, q) = random_input(B, layer.input_delays, I), random_input(B, layer.output_delays, 2)
    same(layer(x, None, (inputs, outputs))[0], narx_loop(layer, x_array, None, p, q))
    same(layer.open_loop(x, targets, None, (inputs, outputs))[0], narx_loop(layer, x_array, back, p, q))
    same(layer.open_loop(x, targets)[0], narx_loop(layer, x_array, back, 0 * p, 0 * q))


@pytest.mark.parametrize("options", NARXES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_narx_modes_agree_when_the_predictions_are_the_targets(options: dict[str, Any], lengths: Tensor | None) -> None:
    layer = narx(**options)
    x, _ = random_input()
    carry = map_carry(torch.randn_like, layer.initial_carry(B, x))
    closed, end = layer(x, lengths, carry)
    for rate in (1.0, 0.6, 0.0):
        opened, end_open = layer.open_loop(x, closed.detach(), lengths, carry, teacher_forcing=rate)
        assert_close((opened, end_open), (closed, end), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.0])
def test_open_loop_ragged_and_handed_over(rate: float) -> None:
    layer = narx(output_delays=3)
    x, _ = random_input()
    targets, _ = random_input(B, T, 2)
    carry = map_carry(torch.randn_like, layer.initial_carry(B, x))

    def run(x: Tensor, targets: Tensor, lengths: Tensor | None, carry: Any) -> Any:
        torch.manual_seed(3)
        return layer.open_loop(x, targets, lengths, carry, teacher_forcing=rate)

    y, end = run(x, targets, LENGTHS, carry)
    junk_x, junk_targets = x.clone(), targets.clone()
    for row, n in enumerate(LENGTHS.tolist()):
        assert not y[row, n:].any()
        junk_x[row, n:], junk_targets[row, n:] = float("nan"), float("nan")
        if rate != 0.5:  # where a coin is tossed for each row
            alone, end_alone = run(
                x[row : row + 1, :n], targets[row : row + 1, :n], None, map_carry(lambda leaf: leaf[row : row + 1], carry)  # noqa: B023, E501
            )  # fmt: skip
            assert_close(y[row : row + 1, :n], alone, rtol=1e-12, atol=1e-12)
            assert_close(map_carry(lambda leaf: leaf[row : row + 1], end), end_alone, rtol=1e-12, atol=1e-12)  # noqa: B023
    y_junk, end_junk = run(junk_x, junk_targets, LENGTHS, carry)
    assert torch.equal(y_junk, y)
    assert all(torch.equal(one, other) for one, other in zip(leaves(end_junk), leaves(end), strict=True))
    if rate != 0.5:
        whole = run(x, targets, None, carry)
        for cut in range(1, T):
            first, middle = run(x[:, :cut], targets[:, :cut], None, carry)
            second, last = run(x[:, cut:], targets[:, cut:], None, middle)
            assert_close((torch.cat([first, second], 1), last), whole, rtol=1e-12, atol=1e-12)


def test_teacher_forcing_at_its_ends_and_between() -> None:
    layer = narx(output_delays=1, input_delays=0)
    x, _ = random_input(200, T, I)
    targets, _ = random_input(200, T, 2)
    opened, closed = layer.open_loop(x, targets)[0], layer(x)[0]
    assert_close(layer.open_loop(x, targets, teacher_forcing=1 - 1e-9)[0], opened, rtol=1e-12, atol=1e-12)
    assert_close(layer.open_loop(x, targets, teacher_forcing=0.0)[0], closed, rtol=1e-12, atol=1e-12)
    half = layer.open_loop(x, targets, teacher_forcing=0.5)[0]
    assert_close(half[:, 0], opened[:, 0], rtol=1e-12, atol=1e-12)
    true = torch.isclose(half[:, 1], opened[:, 1], rtol=0, atol=1e-12).all(-1)
    own = torch.isclose(half[:, 1], closed[:, 1], rtol=0, atol=1e-12).all(-1)
    assert (true ^ own).all(), "at each row one or the other comes back, whole"
    assert 60 < int(true.sum()) < 140


def test_no_gradient_goes_through_what_is_fed_back() -> None:
    layer = narx()
    x, _ = random_input()
    targets, _ = random_input(B, T, 2)
    x.requires_grad_()
    reach = layer.input_delays
    for rate in (1.0, 0.5, 0.0):
        y, _ = layer.open_loop(x, targets, teacher_forcing=rate)
        for t in range(T):
            (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
            for s in range(T):
                assert bool(gradient[:, s].any()) is (0 <= t - s <= reach)
    y, _ = layer(x)
    (gradient,) = torch.autograd.grad(y[:, -1].sum(), x)
    assert gradient[:, 0].any(), "a closed loop is trained through its own outputs"


def test_narx_uses_no_later_target() -> None:
    layer = narx()
    x, _ = random_input()
    targets, _ = random_input(B, T, 2)
    y, _ = layer.open_loop(x, targets)
    for t in range(T):
        changed = targets.clone()
        changed[:, t] += 1
        moved = (layer.open_loop(x, changed)[0] != y).any(-1).any(0)
        assert moved.tolist() == [t < s <= t + layer.output_delays for s in range(T)]


@pytest.mark.parametrize("shape", [(B, T, 3), (B, T - 1, 2), (B + 1, T, 2), (B, T), (1, T, 2)])
def test_targets_that_do_not_fit(shape: tuple[int, ...]) -> None:
    x, _ = random_input()
    for rate in (1.0, 0.5):
        with pytest.raises(ValueError, match=rf"^NARX: targets have shape .*; \({B}, {T}, 2\) fits"):
            narx().open_loop(x, torch.zeros(shape, dtype=x.dtype), teacher_forcing=rate)


def test_targets_that_are_not_finite_are_named() -> None:
    x, _ = random_input()
    targets = torch.zeros(B, T, 2, dtype=x.dtype)
    targets[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^NARX: targets hold nan in row 1, step 2"):
        narx().open_loop(x, targets)


@pytest.mark.parametrize("squash", [True, False])
def test_lstm_with_and_without_tanh_on_the_way_out(squash: bool) -> None:
    layer = spread(cells.LSTM(I, H) if squash else cells.LSTMLinearOutput(I, H))
    x, x_array = random_input()
    (h0, h), (c0, c) = random_input(B, H), random_input(B, H)
    V, W, b = array(layer.V), array(layer.W), array(layer.b)
    s, expected = FUNCTIONS["sigmoid"], []
    for t in range(T):
        i, f, g, o = np.split(np.concatenate([x_array[:, t], h], 1) @ np.concatenate([V, W], 1).T + b, 4, 1)
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * (np.tanh(c) if squash else c)
        expected.append(h)
    y, end = layer(x, None, (h0, c0))
    same(y, expected)
    np.testing.assert_allclose(array(end[0]), h, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(array(end[1]), c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [cells.LSTM, cells.LSTMLinearOutput])
def test_forget_bias_starts_on_the_forget_gate(kind: type[cells.LSTM]) -> None:
    assert kind(I, H).b.tolist() == [0] * H + [1] * H + [0] * 2 * H
    assert kind(I, H, forget_bias=-2.5).b.tolist() == [0] * H + [-2.5] * H + [0] * 2 * H
    shut, zero = kind(I, H, forget_bias=-100.0), (torch.zeros(1, H), torch.ones(1, H))
    with torch.no_grad():
        shut.V.zero_()
        shut.W.zero_()
    assert not shut(torch.zeros(1, 1, I), None, zero)[1][1].any()


@pytest.mark.parametrize("after", [False, True])
def test_gru_with_the_reset_inside_and_after(after: bool) -> None:
    layer = spread(cells.GRUResetAfter(I, H) if after else cells.GRU(I, H))
    (x, x_array), (h0, h) = random_input(), random_input(B, H)
    (V_r, V_u, V_n), (W_r, W_u, W_n), (b_r, b_u, b_n) = (np.split(array(p), 3) for p in (layer.V, layer.W, layer.b))
    s, expected = FUNCTIONS["sigmoid"], []
    for t in range(T):
        r = s(x_array[:, t] @ V_r.T + h @ W_r.T + b_r)
        u = s(x_array[:, t] @ V_u.T + h @ W_u.T + b_u)
        product = r * (h @ W_n.T + array(layer.b_inner)) if after else (r * h) @ W_n.T
        h = (1 - u) * np.tanh(x_array[:, t] @ V_n.T + product + b_n) + u * h
        expected.append(h)
    same(layer(x, None, h0)[0], expected)


def scanned(layer: Any, x: Array, h: Array) -> list[Array]:
    s, answers = FUNCTIONS["sigmoid"], []
    V, b = array(layer.V), array(layer.b)
    for t in range(x.shape[1]):
        if isinstance(layer, cells.MinGRU):
            z, n = np.split(x[:, t] @ V.T + b, 2, 1)
            h = (1 - s(z)) * h + s(z) * n
        else:
            f, i, n = np.split(x[:, t] @ V.T + b, 3, 1)
            h = s(f) / (s(f) + s(i)) * h + s(i) / (s(f) + s(i)) * n
        answers.append(h)
    return answers


@pytest.mark.parametrize("kind", [cells.MinGRU, cells.MinLSTM])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_mingru_and_minlstm(kind: Any, steps: int) -> None:
    layer = spread(kind(I, H))
    (x, x_array), (h0, h) = random_input(B, steps, I), random_input(B, H)
    same(layer(x, None, h0)[0], scanned(layer, x_array, h))


@pytest.mark.parametrize("kind", [cells.MinGRU, cells.MinLSTM])
@pytest.mark.parametrize("bias", [0.0, 8.0, -8.0, 90.0, -90.0, 1e4, -1e4])
def test_parallel_scan_is_the_loop_over_2000_steps_with_extreme_gates(kind: Any, bias: float) -> None:
    layer, x = kind(I, H), torch.randn(2, 2000, I)
    with torch.no_grad():
        layer.b[:H] += bias
    h0 = torch.randn(2, H)
    y, end = layer(x, None, h0)
    expected, end_expected = scan(layer.step, h0, x)
    assert y.isfinite().all()
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert_close(end, end_expected, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kind", [cells.MinGRU, cells.MinLSTM])
def test_state_stays_between_its_start_and_the_candidates(kind: Any) -> None:
    layer = spread(kind(I, H), 2)
    x, _ = random_input(B, 200, I)
    h0 = torch.randn(B, H, dtype=x.dtype)
    candidates = nn.functional.linear(x, layer.V, layer.b)[..., -H:]
    seen = torch.cat([h0[:, None], candidates], 1)
    y, _ = layer(x, None, h0)
    assert (y <= seen.cummax(1).values[:, 1:] + 1e-12).all()
    assert (y >= seen.cummin(1).values[:, 1:] - 1e-12).all()
    with torch.no_grad():  # one candidate for ever, and the state goes there and never past it
        layer.V[-H:] = 0
        layer.b[-H:] = 0.5
    distance = (layer(x, None, h0)[0] - 0.5).abs()
    assert (distance.diff(dim=1) <= 1e-12).all()


# --- Starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("stack", "variational", "weight_dropout", "tdnn", "narx", "mingru", "minlstm")])  # fmt: skip  # noqa: E501
def test_recurrent_weights_start_orthogonal_gate_by_gate(kind: str) -> None:
    W = RECURRENT.build(KINDS[kind], input_size=I).double().get_parameter("W")
    blocks = torch.split(W, H)
    for block in blocks:
        assert_close(block.T @ block, torch.eye(H, dtype=W.dtype), rtol=0, atol=1e-6)
    assert all(not torch.allclose(blocks[0], block) for block in blocks[1:])


@pytest.mark.parametrize("kind", ["elman", "elman_1step", "output_recurrent", "state_space"])
def test_other_starts(kind: str) -> None:
    def start_of(start: str, size: int) -> Tensor:
        return RECURRENT.build(
            {"kind": kind, "hidden_size": size, "recurrent_init": start}, input_size=I
        ).get_parameter("W")

    assert torch.equal(start_of("identity", H), torch.eye(H))
    bound = (6 / 400) ** 0.5
    uniform = start_of("uniform", 200)
    assert 0.99 * bound < float(uniform.detach().abs().max()) <= bound
    assert abs(uniform.std().item() - bound / 3**0.5) < 0.02 * bound
    assert torch.equal(recurrent_(torch.empty(3, 3), "identity"), torch.eye(3))
    assert float(glorot_(torch.empty(30, 50)).abs().max()) <= (6 / 80) ** 0.5


@pytest.mark.parametrize("sizes", [(5, 3), (3, 5)])
def test_jordan_starts_orthogonal_whatever_the_sizes(sizes: tuple[int, int]) -> None:
    hidden, outputs = sizes
    layer = cells.Jordan(I, hidden, output_size=outputs)
    for weight in (layer.W, layer.output.weight):
        small = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
        assert_close(small, torch.eye(3), rtol=0, atol=1e-5)


# --- Input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_one_hot_is_an_embedding_by_the_identity(padding: int | None) -> None:
    table = torch.eye(5)
    if padding is not None:
        table[padding] = 0
    embedding = nn.Embedding(5, 5, padding_idx=padding, _weight=table)
    layer, ids = OneHot(5, padding), torch.randint(0, 5, (4, 9))
    assert torch.equal(layer(ids), embedding(ids))
    assert torch.equal(layer(ids).sum(-1), (ids != (padding if padding is not None else -1)).float())
    assert layer.embedding_dim == layer.num_embeddings == 5
    V = torch.randn(2, 5)
    if padding is None:
        assert torch.equal(nn.functional.linear(layer(ids), V), V.T[ids])


def test_one_hot_has_nothing_to_learn_or_to_save_and_follows_its_dtype() -> None:
    layer = OneHot(5, 0)
    assert not layer.state_dict()
    assert not list(layer.parameters())
    ids = torch.tensor([[0, 4, 1]])
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert layer.to(dtype)(ids).dtype == dtype
    assert not layer(ids).requires_grad
    assert torch.equal(copy.deepcopy(layer)(ids), layer(ids))
    y = layer(ids)
    y.fill_(7)
    assert torch.equal(layer(ids), OneHot(5, 0)(ids)), "writing to an output changed the table"


# --- Storage, order, modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, LENGTHS, torch.tensor([2, 2, 1])])
def test_outputs_and_carries_share_no_storage(kind: str, lengths: Tensor | None) -> None:
    """Who writes to an output must not change the state that goes on, nor the other way round."""
    layer, (x, _) = build(kind), random_input()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y, end = layer(x, lengths)
        places = [leaf.untyped_storage().data_ptr() for leaf in [x, y, *leaves(end)] if leaf.numel()]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_of_a_fresh_carry_share_no_storage(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    places = [leaf.untyped_storage().data_ptr() for leaf in leaves(layer.initial_carry(B, x)) if leaf.numel()]
    assert len(set(places)) == len(places)


def test_writing_to_h_of_a_fresh_carry_leaves_c_alone() -> None:
    """As a decoder does that starts from a picture."""
    layer, (x, _) = build("lstm"), random_input()
    h, c = layer.initial_carry(B, x)
    h += 1
    assert not c.any()


def test_gradients_by_h_and_by_c_of_a_fresh_carry_are_not_added_up() -> None:
    """As for a start that is learned, or for ||dh_T/dh_0||."""
    layer, (x, _) = build("lstm"), random_input()
    zeros = [torch.zeros(B, H, dtype=x.dtype, requires_grad=True) for _ in range(2)]
    fresh = [leaf.requires_grad_() for leaf in layer.initial_carry(B, x)]
    expected = torch.autograd.grad(layer(x, None, tuple(zeros))[0].sum(), zeros)
    got = torch.autograd.grad(layer(x, None, tuple(fresh))[0].sum(), fresh)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, T), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_any_lengths_answer_and_learn_as_the_readable_loop(kind: str, lengths: list[int], seed: int) -> None:
    """Longest rows shorter than the batch, equal rows, one row: values and gradients."""
    torch.manual_seed(seed)
    layer, (x, _) = build(kind), random_input(len(lengths), T, I)
    sizes = torch.tensor(lengths)
    x = torch.where((torch.arange(T) < sizes[:, None])[..., None], x, torch.zeros((), dtype=x.dtype))
    carry = map_carry(torch.rand_like, layer.initial_carry(len(x), x))
    wanted = [x.requires_grad_(), *layer.parameters()]
    answers = []
    for y, end in (layer(x, sizes, carry), scan(layer.step, carry, x, sizes)):
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        loss = loss + torch.stack([leaf.square().sum() for leaf in leaves(end)]).sum()
        answers.append([y, *leaves(end), *torch.autograd.grad(loss, wanted, materialize_grads=True)])
    for one, other in zip(*answers, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_handed_over_carries_are_left_alone(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    carry = map_carry(torch.rand_like, layer.initial_carry(B, x))
    before = [leaf.clone() for leaf in [x, LENGTHS, *leaves(carry)]]
    y, _ = layer(x, LENGTHS, carry)
    y.sum().backward()
    layer.step(carry, x[:, 0])
    for leaf, same in zip([x, LENGTHS, *leaves(carry)], before, strict=True):
        assert torch.equal(leaf, same)


@pytest.mark.parametrize("kind", KINDS)
def test_called_twice_before_one_backward(kind: str) -> None:
    layer, (x, _), (other, _) = build(kind), random_input(), random_input()
    parameters = list(layer.parameters())

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(torch.stack([layer(x, LENGTHS)[0].square().sum() for x in inputs]).sum(), parameters)

    for both, one, two in zip(gradients(x, other), gradients(x), gradients(other), strict=True):
        assert_close(both, one + two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_modes_give_the_same_numbers(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    for lengths in (None, LENGTHS):
        y, end = layer(x, lengths)
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                y_quiet, end_quiet = layer(x, lengths)
            for one, other in zip([y_quiet, *leaves(end_quiet)], [y, *leaves(end)], strict=True):
                assert_close(one.clone(), other.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_by_input_and_carry_are_there_with_all_weights_frozen(kind: str, lengths: Tensor | None) -> None:
    layer, (x, _) = build(kind).requires_grad_(False), random_input()
    x.requires_grad_()
    carry = map_carry(lambda leaf: torch.rand_like(leaf).requires_grad_(), layer.initial_carry(B, x))
    wanted = [leaf for leaf in leaves(carry) if leaf.numel()]
    if kind == "variational":
        wanted = wanted[:-2]  # masks are data
    y, _ = layer(x, lengths, carry)
    got = torch.autograd.grad(y.square().sum(), [x, *wanted], materialize_grads=True)
    expected = torch.autograd.grad(
        scan(layer.step, carry, x, lengths)[0].square().sum(), [x, *wanted], materialize_grads=True
    )
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert kind == "elman_1step" or one.any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_no_trouble(kind: str) -> None:
    layer = build(kind)
    for lengths in (None, torch.zeros(0, dtype=torch.long)):
        y, end = layer(torch.zeros(0, T, I, dtype=torch.float64), lengths)
        assert y.shape == (0, T, H)
        assert all(leaf.shape[0] == 0 for leaf in leaves(end))


def round_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all layers were wide."""
    monkeypatch.setattr(kernels, "_WORTH_ROUNDING", 0)
    monkeypatch.setattr(cells, "BUSY", 0)


ROUNDED = ["elman", "jordan", "state_space", "tdnn", "narx", "lstm_linear_output", "gru", "gru_reset_after", "mingru",
           "minlstm"]  # fmt: skip


@pytest.mark.parametrize("kind", [*ROUNDED, "variational"])
@pytest.mark.parametrize("ragged", [False, True])
def test_rounded_products_keep_answers_and_gradients(kind: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32 on the same weights, over a row cut into blocks: the error is that of bfloat16."""
    size, steps = 48, 40
    spec = {**KINDS[kind], "hidden_size": size} if kind != "variational" else {
        "kind": "variational", "layer": {"kind": "lstm", "hidden_size": size}, "recurrent_dropout": 0.5,
    }  # fmt: skip
    layer: Any = RECURRENT.build(spec, input_size=size).train()
    x = torch.randn(8, steps, size, requires_grad=True)
    lengths = torch.tensor([40, 40, 33, 17, 16, 9, 2, 1]) if ragged else None
    start = layer.initial_carry(8, x.detach())
    round_every_product(monkeypatch)
    monkeypatch.setattr(kernels, "BLOCK_ROWS", 8 * 16)

    def run(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, end = layer(x, lengths, start)
        assert y.dtype == torch.float32
        assert all(leaf.dtype == torch.float32 for leaf in leaves(end))
        weights = torch.linspace(-1, 2, y.numel()).view_as(y)
        loss = (weights * y).sum() + sum(leaf.square().sum() for leaf in leaves(end))
        return [y, *leaves(end), *torch.autograd.grad(loss, [x, *layer.parameters()])]

    changed = False
    for got, expected in zip(run(True), run(False), strict=True):
        error = (got - expected).norm()
        assert error <= 0.02 * expected.norm()
        changed |= bool(error)
    assert changed, "nothing was rounded"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_stream_read_in_pieces_under_autocast_is_the_whole_stream(
    kind: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The carry between two pieces is of its own format and loses nothing that the layer would have kept."""
    layer: Any = RECURRENT.build(KINDS[kind], input_size=I).eval()
    round_every_product(monkeypatch)
    x = torch.randn(B, T, I)
    with torch.autocast("cpu", torch.bfloat16):
        whole, whole_end = layer(x, LENGTHS if ragged else None)
        for cut in range(1, T):
            longer = cut < LENGTHS if ragged else torch.ones(B, dtype=torch.bool)
            first, carry = layer(x[:, :cut], LENGTHS.clamp(max=cut) if ragged else None)
            assert all(leaf.dtype == torch.float32 for leaf in leaves(carry))
            rest = map_carry(lambda leaf: leaf[longer], carry)  # noqa: B023
            second, end = layer(x[longer, cut:], LENGTHS[longer] - cut if ragged else None, rest)
            got = [torch.cat([first[longer], second], 1), *leaves(end)]
            for one, other in zip(got, [whole, *leaves(whole_end)], strict=True):
                assert_close(one, other[longer], rtol=1e-6, atol=1e-6)


# All but the fused LSTM, which says so.
SLOW = {"lstm_linear_output": 1, "gru": 1, "gru_reset_after": 1, "mingru": 0, "minlstm": 0}


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("rounded", [False, True])
def test_a_long_memory_is_kept_under_autocast(kind: str, rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate of 0.998 keeps 0.37 over 500 steps; rounded to bfloat16 it would be 1 and keep everything."""
    if rounded:
        round_every_product(monkeypatch)
    layer: Any = RECURRENT.build(KINDS[kind], input_size=I)
    logit = float(torch.tensor(0.998).logit())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        if kind == "mingru":
            layer.b[:H] = -logit
        elif kind == "minlstm":
            layer.b[:H] = 20.0
            layer.b[H : 2 * H] = float(torch.tensor(1 / 0.998 - 1).logit())
        else:
            layer.b[H : 2 * H] = logit
    x = torch.zeros(2, 500, I)
    carry = map_carry(torch.ones_like, layer.initial_carry(2, x))
    kept = [leaves(layer(x, None, carry)[1])[-1]]
    with torch.autocast("cpu", torch.bfloat16):
        kept.append(leaves(layer(x, None, carry)[1])[-1])
    for state in kept:
        # Where products are rounded one by one, biases are not.
        assert_close(state.float(), torch.full((2, H), 0.998**500), rtol=0.002 if rounded else 0.02, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_carry_made_under_autocast_fits_where_autocast_has_ended(kind: str) -> None:
    layer = RECURRENT.build(KINDS[kind], input_size=I)
    x = torch.randn(2, 5, I)
    with torch.autocast("cpu", torch.bfloat16):
        _, carry = layer(x)
        _, carry = layer(x, torch.tensor([5, 3]), carry)
    layer(x, None, carry)


# --- Variational dropout -----------------------------------------------------------------------------------------


def linear_elman(size: int = 6, *, seen: bool = True, kept: bool = True) -> cells.Elman:
    """h_t = x_t [seen] + h_{t-1} [kept]."""
    layer = cells.Elman(size, size, activation="identity")
    with torch.no_grad():
        layer.V.copy_(torch.eye(size) * seen)
        layer.W.copy_(torch.eye(size) * kept)
    return layer


def test_input_mask_is_one_for_a_row_and_each_row_has_its_own() -> None:
    layer = Variational(linear_elman(40, kept=False), input_dropout=0.4).train()
    x = torch.rand(20, 7, 40) + 1
    y, _ = layer(x)
    factors = y / x
    assert_close(factors, factors[:, :1].expand_as(factors))
    assert {round(value, 4) for value in factors.flatten().tolist()} == {0.0, round(1 / 0.6, 4)}
    assert len({tuple(row) for row in (factors[:, 0] > 0).tolist()}) == 20
    assert not torch.equal(layer(x)[0], y), "another run, another mask"


def test_recurrent_mask_is_one_for_a_row_and_each_row_has_its_own() -> None:
    layer = Variational(linear_elman(40, seen=False), recurrent_dropout=0.4).train()
    x = torch.rand(20, 5, 40)
    _, seen, kept = layer.initial_carry(20, x)
    y, _ = layer(x, None, (torch.ones(20, 40), seen, kept))
    for t in range(5):
        assert_close(y[:, t], kept ** (t + 1))
    assert {round(value, 4) for value in kept.flatten().tolist()} == {0.0, round(1 / 0.6, 4)}
    assert len({tuple(row) for row in kept.tolist()}) == 20


def test_each_dropout_keeps_to_its_own_path() -> None:
    x, start = torch.randn(5, 7, 6), torch.randn(5, 6)

    def noisy(inner: cells.Elman, **rates: float) -> bool:
        layer = Variational(inner, **rates).train()
        _, seen, kept = layer.initial_carry(5, x)
        y, _ = layer(x, None, (start, seen, kept))
        return not torch.allclose(y, inner(x, None, start)[0])

    assert not noisy(linear_elman(seen=False), input_dropout=0.9)
    assert not noisy(linear_elman(kept=False), recurrent_dropout=0.9)
    assert noisy(linear_elman(kept=False), input_dropout=0.9)
    assert noisy(linear_elman(seen=False), recurrent_dropout=0.9)


@pytest.mark.parametrize("kind", MASKED)
def test_recurrent_dropout_leaves_the_first_step_from_rest_alone(kind: str) -> None:
    inner = build(kind)
    layer = Variational(inner, recurrent_dropout=0.6).train()
    x, _ = random_input()
    y, _ = layer(x)
    plain, _ = inner(x)
    assert_close(y[:, 0], plain[:, 0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(y[:, -1], plain[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_is_the_plain_layer(kind: str) -> None:
    inner, (x, _) = build(kind), random_input()
    layer = Variational(inner, input_dropout=0.5, recurrent_dropout=0.5 if kind in MASKED else 0.0).eval()
    for lengths in (None, LENGTHS):
        y, end = layer(x, lengths)
        expected, end_expected = inner(x, lengths)
        assert torch.equal(y, expected)
        for one, other in zip(leaves(end[0]), leaves(end_expected), strict=True):
            assert torch.equal(one, other)


def test_expectation_is_preserved() -> None:
    rows = 40000
    layer = Variational(linear_elman(2), input_dropout=0.3, recurrent_dropout=0.2).train()
    x = torch.tensor([1.0, -2.0]).expand(rows, 2, 2)
    y, _ = layer(x)
    assert_close(y[:, 0].mean(0), torch.tensor([1.0, -2.0]), rtol=0.02, atol=0)
    assert_close(y[:, 1].mean(0), torch.tensor([2.0, -4.0]), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["tdnn", "mingru", "minlstm"])
def test_a_layer_without_recurrent_weights_is_refused(kind: str) -> None:
    name = type(build(kind)).__name__
    with pytest.raises(ValueError, match=rf"^{name} multiplies no recurrent signal.*recurrent_dropout.*; 0 fits"):
        Variational(build(kind), recurrent_dropout=0.1)
    assert Variational(build(kind), input_dropout=0.1).output_size == H


def test_refusal_of_a_stack_does_not_say_that_it_has_no_recurrent_weights() -> None:
    with pytest.raises(ValueError, match="Stack") as caught:
        Variational(build("stack"), recurrent_dropout=0.1)
    assert "multiplies no recurrent signal" not in str(caught.value), "the layers inside it do"


@pytest.mark.parametrize("kind", MASKED)
def test_masks_go_with_their_rows_and_on_over_a_cut(kind: str) -> None:
    layer = Variational(build(kind), input_dropout=0.4, recurrent_dropout=0.4).train()
    x, _ = random_input()
    start = layer.initial_carry(B, x)
    whole, end = layer(x, None, start)
    first, middle = layer(x[:, :2], None, start)
    second, last = layer(x[:, 2:], None, middle)
    assert_close((torch.cat([first, second], 1), last), (whole, end), rtol=1e-12, atol=1e-12)
    order = torch.tensor([2, 0, 0, 1])
    reordered, _ = layer(x[order, 2:], None, map_carry(lambda leaf: leaf[order], middle))
    assert_close(reordered, whole[order, 2:], rtol=1e-12, atol=1e-12)
    stepwise, carry = [], start
    for t in range(T):
        carry, y = layer.step(carry, x[:, t])
        stepwise.append(y)
    assert_close(torch.stack(stepwise, 1), whole, rtol=1e-12, atol=1e-12)
    ragged, ragged_end = layer(x, LENGTHS, start)
    for row, n in enumerate(LENGTHS.tolist()):
        assert_close(ragged[row, :n], whole[row, :n], rtol=1e-12, atol=1e-12)
    assert torch.equal(ragged_end[2], start[2])


def test_a_handed_over_carry_draws_no_new_masks() -> None:
    layer = Variational(build("elman"), input_dropout=0.4, recurrent_dropout=0.4).train()
    x, _ = random_input()
    carry = layer.initial_carry(B, x)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    layer(x, None, carry)
    assert torch.equal(torch.rand(3), expected), "random numbers were drawn and thrown away"


# --- Weight dropout ----------------------------------------------------------------------------------------------


def dropped_entries(layer: WeightDropout[Any], h: Tensor) -> Tensor:
    """What each row of a linear network without input, started from each unit vector, says W to be: (H, H)."""
    y, _ = layer(torch.zeros(len(h), 1, layer.input_size, dtype=h.dtype), None, h)
    return y[:, 0].T


def test_one_mask_of_weights_serves_all_rows_and_steps_until_it_is_renewed() -> None:
    inner = spread(linear_elman(30, seen=False))
    with torch.no_grad():
        inner.b_h.zero_()
    layer = WeightDropout(inner, dropout=0.4).train()
    units = torch.eye(30, dtype=torch.float64)
    layer.initial_carry(1, units)
    W = dropped_entries(layer, units)
    factors = W / inner.W
    assert {round(value, 4) for value in factors.flatten().tolist()} == {0.0, round(1 / 0.6, 4)}
    assert abs((factors == 0).double().mean().item() - 0.4) < 4 * 0.49 / 30
    assert_close(dropped_entries(layer, units), W)
    y, _ = layer(torch.zeros(30, 3, 30, dtype=torch.float64), None, units)
    assert_close(y[:, 2].T, W @ W @ W)
    layer.renew(units)
    renewed = dropped_entries(layer, units)
    assert not torch.equal(renewed, W)
    layer(torch.zeros(1, 1, 30, dtype=torch.float64))
    assert not torch.equal(dropped_entries(layer, units), renewed), "rows that start draw anew"
    assert_close(dropped_entries(layer.eval(), units), inner.W)


def test_entries_of_weights_keep_their_mean() -> None:
    layer = WeightDropout(spread(linear_elman(3)), dropout=0.3).train()
    masks = []
    for _ in range(2000):
        layer.renew(torch.zeros(1, 3))
        masks.append(layer._masks["W"])
    assert_close(torch.stack(masks).mean(0), torch.ones(3, 3, dtype=torch.float64), rtol=0, atol=0.07)


@pytest.mark.parametrize("kind", MASKED)
def test_weights_that_are_dropped_are_the_layers_own_with_holes(kind: str) -> None:
    """The numbers and gradients of the plain layer whose W was multiplied by the mask, whatever kernel runs."""
    inner = build(kind)
    layer, (x, _) = WeightDropout(copy.deepcopy(inner), dropout=0.5).train(), random_input()
    start = layer.initial_carry(B, x)
    mask = layer._masks["W"]
    with torch.no_grad():
        inner.W.mul_(mask)
    y, end = layer(x, LENGTHS, start)
    expected, end_expected = inner(x, LENGTHS, start)
    assert_close((y, end), (expected, end_expected), rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), other in zip(inner.named_parameters(), layer.layer.parameters(), strict=True):
        assert one.grad is not None
        assert_close(other.grad, one.grad * mask if name == "W" else one.grad, rtol=1e-10, atol=1e-12)
    plain, _ = copy.deepcopy(layer.layer)(x, LENGTHS, start)
    assert not torch.allclose(plain, y)
    assert torch.equal(layer.eval()(x, LENGTHS, start)[0], plain)


def test_dropped_weights_keep_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    fused = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *given: called.append(1) or fused(*given))  # type: ignore[func-returns-value]
    layer = WeightDropout(build("lstm"), dropout=0.5).train()
    layer(random_input()[0])
    assert called == [1]


@pytest.mark.parametrize("kind", MASKED)
def test_weights_load_with_and_without_weight_dropout(kind: str) -> None:
    inner = build(kind)
    layer = WeightDropout(build(kind), dropout=0.5).train()
    layer(random_input()[0])[0].sum().backward()
    assert list(layer.state_dict()) == [f"layer.{name}" for name in inner.state_dict()]
    inner.load_state_dict({name.removeprefix("layer."): value for name, value in layer.state_dict().items()})
    for one, other in zip(inner.parameters(), layer.parameters(), strict=True):
        assert torch.equal(one, other)
    twin = copy.deepcopy(layer).eval()
    x, _ = random_input()
    assert torch.equal(twin(x)[0], layer.eval()(x)[0])


@pytest.mark.parametrize("kind", ["tdnn", "mingru", "minlstm"])
def test_weight_dropout_refuses_a_layer_without_recurrent_weights(kind: str) -> None:
    name = type(build(kind)).__name__
    with pytest.raises(ValueError, match=rf"^{name} has no recurrent weights for weight_dropout to drop; .*lstm, fits"):
        WeightDropout(build(kind))


@pytest.mark.parametrize("kind", ["stack", "weight_dropout"])
def test_weight_dropout_goes_round_each_layer_of_a_stack(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^{type(build(kind)).__name__}: .*around each layer inside fits"):
        WeightDropout(build(kind))


def test_recurrent_dropout_goes_inside_weight_dropout() -> None:
    with pytest.raises(ValueError, match=r"WeightDropout: recurrent_dropout .* variational around the layers inside"):
        Variational(build("weight_dropout"), recurrent_dropout=0.1)
    layer = WeightDropout(Variational(build("gru"), recurrent_dropout=0.5), dropout=0.5).train()
    start = layer.initial_carry(B, random_input()[0])
    assert set(layer._masks) == {"layer.W"}
    renewed = layer.renew(start)
    assert not torch.equal(renewed[2], start[2])


def test_renewing_reaches_what_lies_inside() -> None:
    dropping = WeightDropout(build("lstm"), dropout=0.5)
    below = Variational(dropping, input_dropout=0.5)
    above = WeightDropout(Variational(build("gru", input_size=H), recurrent_dropout=0.5), dropout=0.5)
    stack = Stack([below, above]).train()
    x, _ = random_input()
    _, carry = stack(x)
    before = [dropping._masks["W"], above._masks["layer.W"]]
    renewed = stack.renew(carry)
    assert not torch.equal(before[0], dropping._masks["W"])
    assert not torch.equal(before[1], above._masks["layer.W"])
    fresh = [renewed[0][1], renewed[1][2]]
    for mask, old in zip(fresh, [carry[0][1], carry[1][2]], strict=True):
        assert not torch.equal(mask, old)
        assert {round(value, 4) for value in mask.flatten().tolist()} == {0.0, 2.0}
    kept = ([*leaves(renewed[0][0]), renewed[1][0]], [*leaves(carry[0][0]), carry[1][0]])
    for one, other in zip(*kept, strict=True):
        assert one is other, "the state itself is handed on"


# --- Stacks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weight_dropout"])  # which drops on that very path
def test_dropout_between_layers_never_meets_the_recurrent_path(kind: str) -> None:
    """What comes from below is zero, and so is what dropout leaves of it."""
    silent = cells.TDNN(I, I).double()
    with torch.no_grad():
        silent.V.zero_()
    top = build(kind)
    stack = Stack([silent, top], dropout=0.7)
    x, _ = random_input()
    carry = (silent.initial_carry(B, x), map_carry(torch.rand_like, top.initial_carry(B, x)))
    assert_close(stack.train()(x, None, carry)[0], stack.eval()(x, None, carry)[0], rtol=0, atol=0)
    last = Stack([top], dropout=0.7)
    if kind == "variational":  # which drops by itself
        return
    start = last.initial_carry(B, x)
    assert torch.equal(last.train().step(start, x[:, 0])[1], last.eval().step(start, x[:, 0])[1])
    assert torch.equal(last.train()(x)[0], last.eval()(x)[0]), "neither the first input nor the last output is dropped"


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_nested_and_mixed_stacks_by_hand(residual: bool, skip: bool, lengths: Tensor | None) -> None:
    inner = [spread(cells.JordanMemory(I, 5, output_size=I)), spread(cells.MinGRU(I, I))]
    nested = Stack(inner, residual=True, skip_to_output=True)
    layers: list[Any] = [
        spread(cells.TDNN(I, I)),
        nested,
        spread(cells.LSTM(2 * I, 2 * I)),
        spread(cells.GRU(2 * I, 5)),
    ]
    stack = Stack(layers, residual=residual, skip_to_output=skip)
    x, _ = random_input()
    if lengths is not None:
        x = torch.where((torch.arange(T) < lengths[:, None])[..., None], x, torch.zeros((), dtype=x.dtype))

    first = layers[0](x, lengths)[0] + residual * x
    low = inner[0](first, lengths)[0] + first
    second = torch.cat([low, inner[1](low, lengths)[0] + low], -1)
    third = layers[2](second, lengths)[0] + residual * second
    fourth = layers[3](third, lengths)[0]
    expected = torch.cat([first, second, third, fourth], -1) if skip else fourth
    y, end = stack(x, lengths)
    assert y.shape[-1] == stack.output_size == (I + 4 * I + 5 if skip else 5)
    assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert len(end) == 4
    assert len(end[1]) == 2
    if lengths is None:
        assert_close(scan(stack.step, stack.initial_carry(B, x), x)[0], expected, rtol=1e-12, atol=1e-12)


def tanh_layers(depth: int, size: int, scale: float) -> list[cells.Elman]:
    layers = [cells.Elman(size, size).double() for _ in range(depth)]
    with torch.no_grad():
        for layer in layers:
            layer.W.mul_(scale)
            layer.V.mul_(scale)
    return layers


def reach(stack: Stack, x: Tensor) -> Tensor:
    """Norm of the Jacobian of the last output by each input: (T,)."""
    jacobian = torch.autograd.functional.jacobian(lambda x: stack(x)[0][0, -1], x)  # type: ignore[no-untyped-call]
    assert isinstance(jacobian, Tensor)
    return jacobian[:, 0].square().sum((0, 2)).sqrt()


@pytest.mark.parametrize("scale", [0.4, 0.6, 1.0])
def test_gradients_live_longer_with_skip_connections_to_the_output(scale: float) -> None:
    layers, x = tanh_layers(6, 6, scale), torch.randn(1, 16, 6, dtype=torch.float64)
    plain, long = reach(Stack(layers), x), reach(Stack(layers, skip_to_output=True), x)
    assert (plain > 0).all()
    assert (long > 1.05 * plain).all()


def test_gradients_get_deeper_with_residual_connections() -> None:
    layers, x = tanh_layers(10, 6, 0.4), torch.randn(1, 4, 6, dtype=torch.float64)
    plain, deep = ([float(reach(Stack(layers[:n], residual=residual), x)[-1]) for n in range(1, 11)]
                   for residual in (False, True))  # fmt: skip
    assert plain == sorted(plain, reverse=True)
    assert plain[-1] < 0.01
    assert min(deep) > 1


def test_sizes_that_do_not_meet_are_told_wherever_they_are() -> None:
    with pytest.raises(ValueError, match="layer 1 gives 4 outputs, layer 2 takes 8"):
        Stack([cells.Elman(3, 4), cells.Elman(4, 4), cells.Elman(8, 4)])
    skipping = Stack([cells.Elman(3, 4), cells.Elman(4, 5)], skip_to_output=True)
    with pytest.raises(ValueError, match="layer 0 gives 9 outputs, layer 1 takes 5"):
        Stack([skipping, cells.Elman(5, 4)])
    assert Stack([skipping, cells.Elman(9, 4)]).output_size == 4


# --- What does not fit -------------------------------------------------------------------------------------------


def refused(layer: Recurrent[Any], fits: str, *arguments: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{type(layer).__name__}: .*{fits}"):
        layer(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_input_that_does_not_fit(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    for misfit in (x[0], x[0, 0], x[..., None], x[..., :2], torch.cat([x, x], -1), x[..., :0]):
        refused(layer, rf"\(batch, time, {I}\) fits", misfit)
    refused(layer, "at least one fits", x[:, :0])
    for dtype in (torch.long, torch.bool, torch.complex64):
        refused(layer, f"dtype {dtype}", x.to(dtype))


def refused_or(layer: Recurrent[Any], expected: Tensor | None, *arguments: Any) -> None:
    """ValueError that names the layer, or the expected answer: never an error of PyTorch's own."""
    try:
        y, _ = layer(*arguments)
    except ValueError as refusal:
        if not re.match(rf"{type(layer).__name__}: .* fits", str(refusal)):
            raise
    else:
        assert expected is not None
        assert_close(y, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("kind", KINDS)
def test_input_of_another_precision_than_the_weights(kind: str) -> None:
    layer, (x, _) = build(kind, torch.float32), random_input()
    refused_or(layer, layer(x.float())[0], x)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_named_where_they_count(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    clean, _ = layer(x, LENGTHS)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = x.clone()
        bad[1, 1, 2] = value
        for lengths in (None, LENGTHS):
            with pytest.raises(NotFinite, match=rf"^{type(layer).__name__}: x holds {value} in row 1, step 1, input 2"):
                layer(bad, lengths)
        padded = x.clone()
        padded[1, 2:] = value
        assert torch.equal(layer(padded, LENGTHS)[0], clean)
    huge = torch.full((B, T, I), 1e308, dtype=torch.float64)
    layer.prepare_input(huge, None)  # whose sum is infinite though no value is


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_do_not_fit(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    for shape in (LENGTHS[:2], LENGTHS[:, None], LENGTHS.repeat(2), torch.tensor(3)):
        refused(layer, rf"lengths have shape .*; \({B},\) fits", x, shape)
    for outside in (torch.tensor([6, 0, 3]), torch.tensor([6, -1, 3]), torch.tensor([7, 1, 3])):
        refused(layer, f"; 1 to {T} fits", x, outside)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_are_no_integers(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    for lengths in (LENGTHS.float(), LENGTHS.double() - 0.5, LENGTHS.bool()):
        refused(layer, "lengths .* fits", x, lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_any_integer_dtype_are_the_same_lengths(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        refused_or(layer, layer(x, LENGTHS)[0], x, LENGTHS.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_carries_of_the_wrong_shape_or_structure(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    fresh = layer.initial_carry(B, x)
    first = leaves(fresh)[0]
    wrong: list[Any] = [
        layer.initial_carry(B + 1, x), layer.initial_carry(1, x), (fresh,), (fresh, fresh), (),
        map_carry(lambda leaf: torch.cat([leaf, leaf], -1), fresh), map_carry(lambda leaf: leaf[0], fresh),
    ]  # fmt: skip
    wrong += [first] if isinstance(fresh, tuple) else [(first,), (first, first)]
    for carry in wrong:
        refused(layer, "carry has shape .* fits", x, None, carry)


@pytest.mark.parametrize("kind", KINDS)
def test_carries_that_are_no_tensors(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    fresh = layer.initial_carry(B, x)
    wrong: list[Any] = [(None, None), 0, "carry", {"h": fresh}, np.zeros((B, H))]
    if isinstance(fresh, tuple):
        wrong.append((fresh[0], *[None] * (len(fresh) - 1)))
    for carry in wrong:
        refused(layer, "carry .* fits", x, None, carry)


@pytest.mark.parametrize("kind", KINDS)
def test_carries_of_another_dtype(kind: str) -> None:
    layer, (x, _) = build(kind), random_input()
    fresh = layer.initial_carry(B, x)
    for dtype in (torch.float32, torch.bfloat16, torch.long):
        refused_or(layer, layer(x, None, fresh)[0], x, None, map_carry(lambda leaf: leaf.to(dtype), fresh))  # noqa: B023
