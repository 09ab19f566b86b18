"""Laws with known answers: powers, products, forced gates, a single tap.

B batch, T time, I inputs, O outputs, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqapp import diagnostics
from seqapp.diagnostics import SIGNALS, TAP_ACTIVATIONS, GradientFlow, Signal, TapActivation
from seqapp.nn import cells
from seqapp.nn.cells import GRU, LSTM, NARX, TDNN, Elman, ElmanOneStep, GRUResetAfter, Jordan, JordanMemory, MinGRU
from seqapp.nn.recurrent import RECURRENT, Bidirectional, Recurrent, Stack, Variational

B, T, I, H = 3, 7, 4, 5  # noqa: E741

SPECS: list[dict[str, Any]] = [
    *({"kind": kind, "hidden_size": H} for kind in RECURRENT if "hidden_size" in RECURRENT[kind].options),
    {"kind": "elman", "hidden_size": H, "output_size": 2, "output_activation": "sigmoid"},
    {"kind": "variational", "layer": {"kind": "lstm", "hidden_size": H}, "recurrent_dropout": 0.5},
    {"kind": "stack", "layers": [{"kind": "gru", "hidden_size": I}, {"kind": "lstm", "hidden_size": I}],
     "residual": True, "dropout": 0.5},
    {"kind": "stack", "layers": [{"kind": "tdnn", "hidden_size": 3}, {"kind": "narx", "hidden_size": 2}],
     "skip_to_output": True},
]  # fmt: skip


def title(spec: dict[str, Any]) -> str:
    return f"{spec['kind']}{' with U' if 'output_size' in spec else ''}{' residual' if 'residual' in spec else ''}"


def build(spec: dict[str, Any]) -> Recurrent[Any]:
    layer = RECURRENT.build(spec, input_size=I).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def inputs(rows: int = B, steps: int = T) -> Tensor:
    return torch.randn(rows, steps, I, dtype=torch.float64)


def linear_elman(W: Tensor) -> Elman:
    layer = Elman(I, len(W), activation="identity")
    with torch.no_grad():
        layer.W.copy_(W)
    return layer


def orthogonal(size: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64))


# gradient flow


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 1.5])
def test_a_scaled_rotation_gives_exact_powers(scale: float) -> None:
    layer = linear_elman(scale * orthogonal(H)).double()
    with torch.no_grad():
        layer.W.copy_(scale * orthogonal(H))
    flow = diagnostics.gradient_flow(layer, inputs(steps=200))
    distances = torch.arange(200, dtype=torch.float64)
    assert flow.exact
    assert flow.state_size == H
    assert_close(flow.state, (distances * math.log10(scale)).expand(B, -1), rtol=1e-10, atol=1e-10)
    assert diagnostics.fitted_rate(flow.state[0]) == pytest.approx(scale, rel=1e-9)
    shift = diagnostics.largest_singular_value(layer.V.detach()).log10()
    assert_close(flow.output, flow.state + shift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", SPECS, ids=title)
def test_norms_are_those_of_the_whole_unrolled_map(spec: dict[str, Any]) -> None:
    layer, x = build(spec), inputs()
    flow = diagnostics.gradient_flow(layer, x)
    for d in (0, 1, 3, T - 1):
        k = T - 1 - d

        def y_of(x_k: Tensor, row: int, k: int = k) -> Tensor:
            y, _ = layer(torch.cat([x[row, :k], x_k[None], x[row, k + 1 :]])[None])
            return y[0, -1]

        for row in range(B):
            whole = torch.autograd.functional.jacobian(lambda x_k, row=row: y_of(x_k, row), x[row, k])  # type: ignore[no-untyped-call,misc]
            norm = torch.linalg.matrix_norm(whole, 2)
            assert_close(10 ** flow.output[row, d], norm, rtol=1e-6, atol=1e-12)


def test_state_norms_are_those_of_the_unrolled_carry() -> None:
    layer, x = build({"kind": "lstm", "hidden_size": H}), inputs()
    flow = diagnostics.gradient_flow(layer, x)
    for d in (1, 4):
        _, (h, c) = layer(x[:, : T - d])

        def end(flat: Tensor, row: int, d: int = d) -> Tensor:
            _, carry = layer(x[row : row + 1, T - d :], None, (flat[None, :H], flat[None, H:]))
            return torch.cat(carry, 1)[0]

        for row in range(B):
            start = torch.cat([h[row], c[row]]).detach()
            whole = torch.autograd.functional.jacobian(lambda flat, row=row: end(flat, row), start)  # type: ignore[no-untyped-call,misc]
            assert_close(10 ** flow.state[row, d], torch.linalg.matrix_norm(whole, 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=title)
def test_probes_in_every_direction_are_exact_and_fewer_a_lower_bound(spec: dict[str, Any]) -> None:
    layer, x = build(spec), inputs()
    exact = diagnostics.gradient_flow(layer, x)
    every = diagnostics.gradient_flow(layer, x, exact_up_to=-1, probes=1000)
    some = diagnostics.gradient_flow(layer, x, exact_up_to=-1, probes=2)
    assert (exact.exact, every.exact, some.exact, some.probes) == (True, False, False, 2)
    assert_close(every.state, exact.state, rtol=1e-6, atol=1e-6)
    assert_close(every.output, exact.output, rtol=1e-6, atol=1e-6)
    assert bool((some.state <= exact.state + 1e-9).all())
    assert bool((some.output <= exact.output + 1e-9).all())


def test_chunks_of_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = build({"kind": "gru", "hidden_size": H}), inputs()
    whole = diagnostics.gradient_flow(layer, x)
    monkeypatch.setattr(diagnostics, "_JACOBIAN_VALUES", 2 * B * (2 * H) * (H + I))
    parts = diagnostics.gradient_flow(layer, x)
    assert_close(parts.state, whole.state, rtol=1e-12, atol=1e-12)
    assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-12)


def test_one_step_training_reaches_back_nowhere() -> None:
    flow = diagnostics.gradient_flow(ElmanOneStep(I, H), inputs())
    assert bool((flow.state[:, 1:] == -math.inf).all())
    assert bool((flow.output[:, 1:] == -math.inf).all())
    assert bool(flow.output[:, 0].isfinite().all())
    assert diagnostics.fitted_rate(flow.state[0]) == 0


def test_a_window_is_a_delay_line_and_then_exactly_nothing() -> None:
    flow = diagnostics.gradient_flow(TDNN(I, H, window=3), inputs())
    assert_close(flow.state[:, :2], torch.zeros(B, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((flow.state[:, 2:] == -math.inf).all())
    assert bool(flow.output[:, :3].isfinite().all())
    assert bool((flow.output[:, 3:] == -math.inf).all())


@pytest.mark.parametrize("network", ["lstm", "mingru"])
def test_an_open_forget_gate_keeps_the_gradient(network: str) -> None:
    layer: Recurrent[Any]
    if network == "lstm":
        layer = LSTM(I, H, forget_bias=1e4)
        with torch.no_grad():
            # Nothing but c is left: no gate or candidate listens to h.
            layer.W.zero_()
    else:
        layer = MinGRU(I, H, update_bias=-1e4)
        with torch.no_grad():
            layer.V.zero_()
    flow = diagnostics.gradient_flow(layer, inputs(steps=50))
    # dc_T/dc_k = 1; dh_T/dc_k is the rest of the norm for the LSTM: at most o tanh'.
    low, high = (0.0, 0.0) if network == "mingru" else (0.0, 0.5 * math.log10(2))
    assert bool((flow.state[:, 1:] >= low - 1e-12).all())
    assert bool((flow.state[:, 1:] <= high + 1e-12).all())


def test_masks_in_a_carry_are_no_state() -> None:
    inner = build({"kind": "gru", "hidden_size": H})
    layer = Variational(inner, input_dropout=0.5, recurrent_dropout=0.5)
    x = inputs()
    bare, wrapped = diagnostics.gradient_flow(inner, x), diagnostics.gradient_flow(layer, x)
    assert wrapped.state_size == bare.state_size == H
    assert_close(wrapped.state, bare.state)
    assert_close(wrapped.output, bare.output)


def test_the_layer_is_left_as_it_was() -> None:
    layer = LSTM(I, H).train()
    diagnostics.gradient_flow(layer, inputs())
    diagnostics.clipped_gradients(layer, inputs(), [2, 5])
    assert layer.training
    assert layer.W.requires_grad
    assert layer.W.dtype == torch.float32
    assert layer.W.grad is None


def test_a_state_without_bound_is_named() -> None:
    layer = linear_elman(1e200 * orthogonal(H)).double()
    with torch.no_grad():
        layer.W.copy_(1e200 * orthogonal(H))
    with pytest.raises(ValueError, match=r"Elman is not finite after step 3; fewer steps fit"):
        diagnostics.gradient_flow(layer, inputs())


def test_rates_and_distances_of_a_curve() -> None:
    curve = torch.tensor([0.0, -1.0, -2.0, -4.0, -math.inf])
    assert diagnostics.first_beyond(curve, below=-3) == 3
    assert diagnostics.first_beyond(curve, above=3) is None
    assert diagnostics.fitted_rate(torch.tensor([0.0, -1.0, -2.0, -math.inf])) == pytest.approx(0.1)
    rows = torch.stack([curve, curve + 1, curve - 1])
    assert [part[1].item() for part in diagnostics.row_quantiles(rows, (0.0, 0.5, 1.0))] == [-2, -1, 0]


# clipping


def test_clipping_cuts_the_gradient_of_the_weights() -> None:
    layer = linear_elman(1.5 * orthogonal(H)).double()
    torch.manual_seed(1)
    found = diagnostics.clipped_gradients(layer, inputs(steps=60), [1, 2, 60], threshold=1.0, limit=0.01)
    assert [point.length for point in found] == [1, 2, 60]
    assert found[2].norm > 1e6
    assert found[2].by_norm == 1.0
    count = sum(parameter.numel() for parameter in layer.parameters())
    assert found[2].by_value <= 0.01 * math.sqrt(count) + 1e-12
    assert found[2].cosine < 0.999
    loose = diagnostics.clipped_gradients(layer, inputs(steps=2), [2], threshold=1e9, limit=1e9)
    assert loose[0].norm == loose[0].by_norm == pytest.approx(loose[0].by_value)
    assert loose[0].cosine == pytest.approx(1.0)


# recurrent matrices


def test_spectral_radius_and_norm_of_known_matrices() -> None:
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    assert_close(diagnostics.spectral_radius(0.9 * turn), torch.tensor(0.9))
    jordan_block = torch.tensor([[0.5, 100.0], [0.0, 0.5]])
    assert_close(diagnostics.spectral_radius(jordan_block), torch.tensor(0.5))
    for shape in ((6, 6), (3, 8), (8, 3)):
        matrix = torch.randn(4, *shape, dtype=torch.float64) * 1e-200
        assert_close(diagnostics.largest_singular_value(matrix), torch.linalg.matrix_norm(matrix, 2), rtol=1e-9, atol=0)
    square = torch.randn(9, 9, dtype=torch.float64)
    assert_close(diagnostics.spectral_radius(square), torch.linalg.eigvals(square).abs().max())


def test_blocks_are_named_by_gate_and_cut_in_the_order_of_the_weights() -> None:
    lstm, gru, elman = LSTM(I, H), GRU(I, H), Elman(2 * H, 3, output_size=3)
    model = nn.ModuleDict({"encoder": Bidirectional(lstm, gru), "top": Stack([elman])})
    blocks = diagnostics.recurrent_blocks(model)
    assert list(blocks) == [
        "encoder.ahead.input", "encoder.ahead.forget", "encoder.ahead.cell", "encoder.ahead.output",
        "encoder.back.reset", "encoder.back.update", "encoder.back.candidate", "top.layers.0",
    ]  # fmt: skip
    assert_close(blocks["encoder.ahead.forget"], lstm.W.detach()[H : 2 * H])
    assert_close(blocks["encoder.back.candidate"], gru.W.detach()[2 * H :])
    assert_close(blocks["top.layers.0"], elman.W.detach())


def test_a_block_of_fed_back_outputs_is_the_whole_loop() -> None:
    """With identity activations the step Jacobian of the carry is the loop itself."""
    x = torch.zeros(1, I)
    loops: list[Recurrent[Any]] = [
        Jordan(I, H, output_size=3, activation="identity"),
        JordanMemory(I, H, output_size=3, activation="identity", decay=0.25),
        NARX(I, H, output_size=2, input_delays=0, output_delays=3, layers=2, activation="identity"),
        cells.StateSpace(I, H, layers=3, activation="identity"),
    ]
    for layer in loops:
        (block,) = diagnostics.recurrent_blocks(layer).values()
        jacobian = diagnostics.step_jacobians(layer, layer.initial_carry(1, x), x)[0][0]
        assert_close(block, jacobian)


@pytest.mark.parametrize("kind", [kind for kind in RECURRENT if "hidden_size" in RECURRENT[kind].options])
def test_every_kind_has_square_blocks_or_none(kind: str) -> None:
    layer = RECURRENT.build({"kind": kind, "hidden_size": H}, input_size=I)
    blocks = diagnostics.recurrent_blocks(layer)
    assert all(block.shape == (block.shape[0],) * 2 for block in blocks.values())
    assert bool(blocks) == hasattr(layer, "W")


def test_gates_without_names_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRUResetAfter, "gate_names", ())
    assert list(diagnostics.recurrent_blocks(GRUResetAfter(I, H))) == [f"gruresetafter.{index}" for index in range(3)]


# gates


def test_forced_gates_are_wholly_saturated() -> None:
    layer = LSTM(I, H, forget_bias=100.0)
    with torch.no_grad():
        layer.b[:H] = -100.0
        layer.b[3 * H :] = 0
        layer.V.zero_()
        layer.W.zero_()
    found = diagnostics.gate_saturation(layer, inputs().float())
    assert list(found) == ["input", "forget", "output"]
    ones, zeros = torch.ones(H, dtype=torch.float64), torch.zeros(H, dtype=torch.float64)
    for gate, left, right in (("input", ones, zeros), ("forget", zeros, ones), ("output", zeros, zeros)):
        assert_close(found[gate].left, left)
        assert_close(found[gate].right, right)


def test_padding_counts_in_no_gate() -> None:
    layer = GRU(I, H)
    with torch.no_grad():
        layer.V.mul_(20)
    x, lengths = inputs().float(), torch.tensor([T, 2, 4])
    together = diagnostics.gate_saturation(layer, x, lengths)
    noisy = x.clone()
    noisy[1, 2:] = 1e3
    assert_close(diagnostics.gate_saturation(layer, noisy, lengths)["update"].left, together["update"].left)
    alone = [diagnostics.gate_saturation(layer, x[row : row + 1, :n]) for row, n in enumerate(lengths.tolist())]
    for gate, part in together.items():
        whole = sum(found[gate].right * n for found, n in zip(alone, lengths.tolist(), strict=True))
        assert_close(part.right, whole / lengths.sum())


def test_layers_without_gates_have_none_and_wrapped_ones_have_theirs() -> None:
    x = inputs().float()
    assert diagnostics.gate_saturation(Elman(I, H), x) == {}
    wrapped = diagnostics.gate_saturation(Variational(LSTM(I, H)).eval(), x)
    assert list(wrapped) == ["input", "forget", "output"]


# what layers read


def test_every_layer_is_recorded_with_its_own_input() -> None:
    stack = Stack([GRU(I, H), LSTM(H, H)], dropout=0.9)
    model = nn.ModuleDict({"encoder": Bidirectional(stack, Elman(I, H)), "idle": LSTM(I, H)}).train()
    x, lengths = inputs().float(), torch.tensor([T, 2, 4])
    found = diagnostics.record(model, lambda: model["encoder"](x, lengths))
    assert set(found) == {"encoder.ahead", "encoder.ahead.layers.0", "encoder.ahead.layers.1", "encoder.back"}
    assert diagnostics.outermost(list(diagnostics.recurrent_layers(model))) == ["encoder.ahead", "encoder.back", "idle"]
    below, _ = stack.layers[0](x, lengths)
    assert_close(found["encoder.ahead.layers.1"].x, below)
    assert_close(found["encoder.back"].x[1, :2], x[1, :2].flip(0))
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.modules())


# one tap


def end_of(activation: TapActivation, w: float, signal: Signal, steps: int = 4000) -> Tensor:
    return diagnostics.one_tap(activation, torch.tensor([w], dtype=torch.float64), steps, signal)[0]


WEIGHTS = [-2.0, -1.5, -1.25, -1.05, -1.0, -0.9, -0.5, 0.0, 0.5, 0.9, 1.0, 1.05, 1.5, 2.0]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("activation", TAP_ACTIVATIONS)
@pytest.mark.parametrize("w", WEIGHTS)
def test_the_verdict_on_one_tap_is_what_simulation_finds(activation: TapActivation, w: float, signal: Signal) -> None:
    verdict = diagnostics.one_tap_verdict(activation, w, signal)
    h = end_of(activation, w, signal)
    assert verdict.bounded == bool((h.abs() <= 1e3).all())
    if verdict.kind == "grows exponentially":
        assert float(h[200] / h[199]) == pytest.approx(math.copysign(verdict.rate, w), rel=1e-3)
    elif verdict.kind == "grows linearly":
        assert_close(h, torch.arange(1, len(h) + 1, dtype=torch.float64))
    elif verdict.kind == "oscillates":
        assert_close(h[-1], h[-3])
        assert abs(float(h[-1] - h[-2])) > 0.1
    else:
        assert verdict.limit is not None
        assert (verdict.limit == 0) == (verdict.kind == "fades")
        # At |w f'| = 1 it comes near only as 1 / sqrt(t).
        assert float(h[-1]) == pytest.approx(verdict.limit, abs=0.03 if verdict.rate == 1 else 1e-6)
        away = (h - verdict.limit).abs()
        far = [t for t in range(2, 30) if float(away[t]) > 1e-9]
        if verdict.rate < 1 and far:
            assert float(away[far[-1]] / away[far[-1] - 1]) == pytest.approx(verdict.rate, rel=0.1, abs=1e-3)


def test_regions_of_one_tap_meet_at_one() -> None:
    weights = [round(-2 + 0.25 * index, 2) for index in range(17)]
    regions = diagnostics.one_tap_regions("identity", weights, "impulse")
    assert [(low, high, verdict.kind) for low, high, verdict in regions] == [
        (-2.0, -1.25, "grows exponentially"),
        (-1.0, -1.0, "oscillates"),
        (-0.75, 0.75, "fades"),
        (1.0, 1.0, "settles"),
        (1.25, 2.0, "grows exponentially"),
    ]
    for activation in ("sigmoid", "tanh"):
        assert all(part[2].bounded for part in diagnostics.one_tap_regions(activation, weights, "constant"))


@pytest.mark.parametrize("measure", [diagnostics.gradient_flow])
def test_one_row_and_one_step_are_enough(measure: Callable[..., GradientFlow]) -> None:
    flow = measure(GRU(I, H), inputs(rows=1, steps=1))
    assert flow.state.shape == flow.output.shape == (1, 1)
    assert float(flow.state) == pytest.approx(0, abs=1e-12)
