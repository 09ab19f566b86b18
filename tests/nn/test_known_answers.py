"""The networks against answers that were not computed by them: PyTorch's own, worked numbers, loops in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from seqapp.nn.cells import GRU, LSTM, Elman, GRUResetAfter, OutputRecurrent
from seqapp.nn.recurrent import Bidirectional, Recurrent, Stack

LENGTHS = torch.tensor([6, 2, 4, 1])


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.6, 0.6)
    return module


def copy_weights(source: nn.RNNBase, layer: Recurrent[object], suffix: str) -> None:
    """PyTorch's weights of one layer and direction (such as ``l0_reverse``) into ours; it has one bias more."""
    V, W, b, b2 = (
        getattr(source, f"{name}_{suffix}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state = {"V": V, "W": W, "b": b + b2}
    if isinstance(layer, Elman):
        state["b_h"] = state.pop("b")
    if isinstance(layer, GRUResetAfter):
        inner = 2 * layer.hidden_size
        state |= {"b": torch.cat([(b + b2)[:inner], b[inner:]]), "b_inner": b2[inner:]}
    layer.load_state_dict(state)


CASES: dict[str, tuple[Callable[..., nn.Module], Callable[..., Recurrent[Any]]]] = {
    "lstm": (lambda *sizes, **more: nn.LSTM(*sizes, **more), LSTM),
    "gru": (lambda *sizes, **more: nn.GRU(*sizes, **more), GRUResetAfter),
    "tanh": (lambda *sizes, **more: nn.RNN(*sizes, **more), Elman),
    "relu": (
        lambda *sizes, **more: nn.RNN(*sizes, nonlinearity="relu", **more),
        lambda i, h: Elman(i, h, activation="relu"),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_pytorch(case: str, ragged: bool) -> None:
    theirs_of, ours_of = CASES[case]
    theirs = randomised(theirs_of(3, 5, num_layers=2, batch_first=True))
    assert isinstance(theirs, nn.RNNBase)
    layers = [ours_of(3, 5), ours_of(5, 5)]
    for index, layer in enumerate(layers):
        copy_weights(theirs, layer, f"l{index}")
    x, start = torch.randn(4, 6, 3), torch.rand(2, 4, 5)
    state = (start, start - 0.5) if case == "lstm" else start
    carry = tuple((start[i], start[i] - 0.5) if case == "lstm" else start[i] for i in range(2))
    y, end = Stack(layers)(x, LENGTHS if ragged else None, carry)
    if ragged:
        packed, last = theirs(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False), state)
        expected, _ = pad_packed_sequence(packed, batch_first=True)
    else:
        expected, last = theirs(x, state)
    assert_close(y, expected, rtol=0, atol=1e-6)
    for index in range(2):
        if case == "lstm":
            assert_close(end[index], (last[0][index], last[1][index]), rtol=0, atol=1e-6)
        else:
            assert_close(end[index], last[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_bidirectional_equals_pytorch(case: str) -> None:
    theirs_of, ours_of = CASES[case]
    theirs = randomised(theirs_of(3, 5, bidirectional=True, batch_first=True))
    assert isinstance(theirs, nn.RNNBase)
    ours = Bidirectional(ours_of(3, 5), ours_of(3, 5))
    copy_weights(theirs, ours.ahead, "l0")
    copy_weights(theirs, ours.back, "l0_reverse")
    x = torch.randn(4, 6, 3)
    packed, last = theirs(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    y, _ = ours(x, LENGTHS)
    assert_close(y, pad_packed_sequence(packed, batch_first=True)[0], rtol=0, atol=1e-6)
    h = last[0] if case == "lstm" else last
    assert_close(ours.last(y, LENGTHS), torch.cat([h[0], h[1]], -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stepwise", [False, True])
def test_worked_numbers_a(stepwise: bool) -> None:
    """The reference's numbers, exactly: relu on both layers."""
    layer = Elman(2, 3, activation="relu", output_size=2, output_activation="relu")
    assert layer.output is not None
    with torch.no_grad():
        layer.V.copy_(torch.tensor([[-1.0, -3, 0], [-2, -1, 2]]).T)
        layer.W.copy_(torch.tensor([[1.0, -1, 0], [0, 1, 1], [-1, 2, 0]]).T)
        layer.b_h.copy_(torch.tensor([1.0, 0, -1]))
        layer.output.weight.copy_(torch.tensor([[1.0, -1], [1, 2], [-2, 1]]).T)
        layer.output.bias.copy_(torch.tensor([-1.0, 1]))
    x = torch.tensor([[[-1.0, 1], [1, -2], [3, -4]]])
    hidden, outputs = [], []
    h = layer.initial_carry(1, x)
    for t in range(3):
        if stepwise:
            h, y = layer.step(h, x[:, t])
        else:
            y, h = layer(x[:, : t + 1])
            y = y[:, -1]
        hidden.append(h[0].tolist())
        outputs.append(y[0].tolist())
    assert hidden == [[0, 2, 1], [3, 3, 0], [9, 0, 0]]
    assert outputs == [[0, 6], [5, 4], [8, 0]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_gru_is_the_equation_with_the_reset_gate_inside() -> None:
    layer = GRU(3, 4).double()
    randomised(layer)
    x, h = np.random.default_rng(0).normal(size=(2, 6, 3)), np.random.default_rng(1).normal(size=(2, 4))
    V, W, b = (parameter.detach().numpy() for parameter in (layer.V, layer.W, layer.b))
    (V_r, V_u, V_n), (W_r, W_u, W_n), (b_r, b_u, b_n) = (np.split(block, 3) for block in (V, W, b))
    y, end = layer(torch.from_numpy(x), None, torch.from_numpy(h))
    for t in range(6):
        r = sigmoid(x[:, t] @ V_r.T + h @ W_r.T + b_r)
        u = sigmoid(x[:, t] @ V_u.T + h @ W_u.T + b_u)
        n = np.tanh(x[:, t] @ V_n.T + (r * h) @ W_n.T + b_n)
        h = (1 - u) * n + u * h
        np.testing.assert_allclose(y[:, t].detach().numpy(), h, atol=1e-12)
    np.testing.assert_allclose(end.detach().numpy(), h, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "identity"])
def test_elman_is_the_equation_split_or_concatenated(activation: str) -> None:
    layer = Elman(3, 4, activation=activation, output_size=2, output_activation=activation).double()  # type: ignore[arg-type]
    randomised(layer)
    assert layer.output is not None
    f: Any = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "identity": lambda a: a}[
        activation
    ]
    x, h = np.random.default_rng(0).normal(size=(2, 6, 3)), np.zeros((2, 4))
    VW = torch.cat([layer.V, layer.W], 1).detach().numpy()
    U, b_y = layer.output.weight.detach().numpy(), layer.output.bias.detach().numpy()
    y, _ = layer(torch.from_numpy(x))
    for t in range(6):
        h = f(np.concatenate([x[:, t], h], 1) @ VW.T + layer.b_h.detach().numpy())
        np.testing.assert_allclose(y[:, t].detach().numpy(), f(h @ U.T + b_y), atol=1e-12)


def test_memory_of_an_lstm_survives_frozen_padding_exactly() -> None:
    layer = LSTM(3, 5)
    randomised(layer)
    carry: tuple[Tensor, Tensor] = (torch.randn(2, 5), 100 * torch.randn(2, 5))
    x = torch.randn(2, 50, 3)
    _, (_, c) = layer(x, torch.tensor([1, 2]), carry)
    _, (_, c_short) = layer(x[:, :3], torch.tensor([1, 2]), carry)
    assert torch.equal(c, c_short)


V_B = [
    [-0.6200572, 0.7433989], [0.242517, -0.12119704], [-0.38525409, 0.2638626], [0.8809836, -0.12017238],
    [0.2964511, 0.19422936],
]  # fmt: skip
W_B = [[0.98796964, 0.15464693], [-0.15464693, 0.9879698]]
OUTPUTS_B = [[0.39241, 0.74433], [0.80116, 0.99130], [0.95468, 0.99931]]


@pytest.mark.parametrize("stepwise", [False, True])
def test_worked_numbers_b(stepwise: bool) -> None:
    """The reference's numbers: the output comes back to the output."""
    layer = OutputRecurrent(5, 2)
    with torch.no_grad():
        layer.V.copy_(torch.tensor(V_B).T)
        layer.W.copy_(torch.tensor(W_B).T)
    x = torch.arange(1.0, 4)[:, None].expand(1, 3, 5)
    assert_close(
        nn.functional.linear(x, layer.V, layer.b_h)[0],
        torch.tensor([[0.41464, 0.96012]]) * torch.arange(1.0, 4)[:, None], rtol=0, atol=5e-5,
    )  # fmt: skip
    if stepwise:
        carry, outputs = layer.initial_carry(1, x), []
        for t in range(3):
            carry, y = layer.step(carry, x[:, t])
            outputs.append(y)
        y = torch.stack(outputs, 1)
    else:
        y, carry = layer(x)
    assert_close(y[0], torch.tensor(OUTPUTS_B), rtol=0, atol=5e-5)
    assert_close(carry[0], torch.tensor(OUTPUTS_B[-1]), rtol=0, atol=5e-5)
    # By hand too, so that it is the equation which gives these numbers.
    o = np.zeros(2)
    for t, expected in enumerate(OUTPUTS_B):
        o = np.tanh((t + 1) * np.sum(V_B, 0) + o @ np.array(W_B))
        np.testing.assert_allclose(o, expected, atol=5e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "identity"])
def test_output_recurrent_is_the_equation(activation: str) -> None:
    layer = OutputRecurrent(3, 4, activation=activation).double()  # type: ignore[arg-type]
    randomised(layer)
    f: Any = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "identity": lambda a: a}[
        activation
    ]
    V, W, b = (parameter.detach().numpy() for parameter in (layer.V, layer.W, layer.b_h))
    x, o = np.random.default_rng(0).normal(size=(2, 6, 3)), np.random.default_rng(1).normal(size=(2, 4))
    y, end = layer(torch.from_numpy(x), None, torch.from_numpy(o))
    for t in range(6):
        o = f((x[:, t] @ V.T + b) + o @ W.T)
        np.testing.assert_allclose(y[:, t].detach().numpy(), o, atol=1e-12)
    np.testing.assert_allclose(end.detach().numpy(), o, atol=1e-12)


def test_worked_numbers_a_in_the_concatenated_form() -> None:
    """[x ; h] @ [V ; W] gives what x V + h W gives, exactly."""
    VW = np.array([[-1.0, -3, 0], [-2, -1, 2], [1, -1, 0], [0, 1, 1], [-1, 2, 0]])
    U, h, seen = np.array([[1.0, -1], [1, 2], [-2, 1]]), np.zeros(3), []
    for x in ([-1.0, 1], [1, -2], [3, -4]):
        split = np.maximum(x @ VW[:2] + h @ VW[2:] + [1, 0, -1], 0)
        h = np.maximum(np.concatenate([x, h]) @ VW + [1, 0, -1], 0)
        assert (split == h).all()
        seen.append((h.tolist(), np.maximum(h @ U + [-1, 1], 0).tolist()))
    assert seen == [([0, 2, 1], [0, 6]), ([3, 3, 0], [5, 4]), ([9, 0, 0], [8, 0])]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_pytorch(case: str, ragged: bool, dtype: torch.dtype) -> None:
    theirs_of, ours_of = CASES[case]
    theirs = randomised(theirs_of(3, 5, batch_first=True)).to(dtype)
    assert isinstance(theirs, nn.RNNBase)
    ours = ours_of(3, 5).to(dtype)
    copy_weights(theirs, ours, "l0")
    x = torch.randn(4, 6, 3, dtype=dtype, requires_grad=True)
    start, cotangent = torch.rand(4, 5, dtype=dtype, requires_grad=True), torch.randn(4, 6, 5, dtype=dtype)
    y, end = ours(x, LENGTHS if ragged else None, (start, start - 0.5) if case == "lstm" else start)
    state = (start[None], start[None] - 0.5) if case == "lstm" else start[None]
    if ragged:
        packed, last = theirs(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False), state)
        expected, _ = pad_packed_sequence(packed, batch_first=True)
    else:
        expected, last = theirs(x, state)
    leaves, lasts = (end, last) if case == "lstm" else ((end,), (last,))
    limit = 2e-5 if dtype == torch.float32 else 1e-12
    assert_close(y, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
    got = torch.autograd.grad(
        (cotangent * y).sum() + sum(leaf.square().sum() for leaf in leaves), [x, start, *ours.parameters()]
    )
    wanted = torch.autograd.grad(
        (cotangent * expected).sum() + sum(leaf.square().sum() for leaf in lasts), [x, start, *theirs.parameters()]
    )
    H = 5
    dx, dstart, dV, dW, db, db2 = wanted
    biases = [db]
    if case == "gru":
        assert_close(db[: 2 * H], db2[: 2 * H], rtol=0, atol=limit)
        biases = [db, db2[2 * H :]]
    for one, other in zip(got, [dx, dstart, dV, dW, *biases], strict=True):
        assert_close(one, other, rtol=limit, atol=limit)
