"""Layers that read both ways, and what they are made of: flip, gather, masks.

B batch, T time, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from seqapp.nn import cells
from seqapp.nn.recurrent import (
    ENCODERS,
    RECURRENT,
    Bidirectional,
    Encoder,
    EncoderStack,
    Recurrent,
    Stack,
    flip,
    gather,
    scan,
    valid_mask,
    zero_padding,
)
from seqapp.registry import InvalidOption

B, T, I = 4, 6, 3  # noqa: E741
LENGTHS = torch.tensor([6, 3, 1, 5])

ROWS: dict[str, dict[str, Any]] = {
    "birnn concat": {"kind": "birnn", "layer": {"kind": "lstm", "hidden_size": 4}},
    "birnn sum": {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 4}, "merge": "sum"},
    "birnn mean": {
        "kind": "birnn", "merge": "mean",
        "layer": {"kind": "gru_reset_after", "hidden_size": 4}, "back": {"kind": "elman", "hidden_size": 4},
    },
    "birnn of unlike layers": {
        "kind": "birnn",
        "layer": {"kind": "lstm", "hidden_size": 4},
        "back": {"kind": "stack", "layers": [{"kind": "elman", "hidden_size": 2}, {"kind": "gru", "hidden_size": 5}]},
    },
    "stack": {
        "kind": "stack",
        "layers": [
            {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 2}},
            {"kind": "lstm", "hidden_size": 5},
            {"kind": "birnn", "layer": {"kind": "elman", "hidden_size": 4}},
        ],
    },
    "stack residual": {
        "kind": "stack", "residual": True,
        "layers": [
            {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": I}, "merge": "sum"},
            {"kind": "birnn", "layer": {"kind": "elman", "hidden_size": I}, "merge": "mean"},
        ],
    },
}  # fmt: skip


def build(spec: dict[str, Any]) -> Encoder:
    encoder = ENCODERS.build(spec, input_size=I).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.7, 0.7))
    return encoder.eval()


def inputs() -> Tensor:
    return torch.randn(B, T, I, dtype=torch.float64)


@pytest.fixture(params=ROWS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return build(ROWS[request.param])


def test_every_own_kind_has_a_row_and_the_recurrent_ones_are_included() -> None:
    assert set(ENCODERS.own) == {row["kind"] for row in ROWS.values()}
    assert set(ENCODERS) == set(ENCODERS.own) | set(RECURRENT)


def test_batch_answers_as_its_rows_alone(encoder: Encoder) -> None:
    x = inputs()
    y, _ = encoder(x, LENGTHS)
    assert y.shape == (B, T, encoder.output_size)
    for row, size in enumerate(LENGTHS.tolist()):
        alone, _ = encoder(x[row, None, :size])
        assert_close(y[row, None, :size], alone, rtol=0, atol=1e-12)
        assert not y[row, size:].any()
        if encoder.has_last:
            assert_close(encoder.last(y, LENGTHS)[row, None], encoder.last(alone, None), rtol=0, atol=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
def test_padding_never_matters(encoder: Encoder, junk: float) -> None:
    clean = inputs()
    mask = valid_mask(LENGTHS, T)[..., None]

    def run(padding: float) -> list[Tensor]:
        x = torch.where(mask, clean, torch.tensor(padding)).requires_grad_()
        y, _ = encoder(x, LENGTHS)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *encoder.parameters()])]

    for got, expected in zip(run(junk), run(0.0), strict=True):
        assert torch.equal(got, expected)
        assert got.isfinite().all()
    assert not run(junk)[1].masked_select(~mask).any()


def test_every_parameter_gets_a_gradient(encoder: Encoder) -> None:
    encoder(inputs(), LENGTHS)[0].square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_gradcheck_with_lengths(encoder: Encoder) -> None:
    x = torch.randn(2, 3, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x, torch.tensor([3, 2]))[0], (x,), fast_mode=True)


def test_misfits_name_the_layer(encoder: Encoder) -> None:
    name = type(encoder).__name__
    with pytest.raises(ValueError, match=rf"^{name}: x has shape .*; \(batch, time, {I}\) fits"):
        encoder(inputs()[..., :2])
    with pytest.raises(ValueError, match=rf"^{name}: lengths go from 0 to 5; 1 to {T} fits"):
        encoder(inputs(), LENGTHS - 1)


def test_last_of_merged_directions_is_refused(encoder: Encoder) -> None:
    if encoder.has_last:
        assert encoder.last(encoder(inputs())[0], None).shape == (B, encoder.output_size)
    else:
        with pytest.raises(ValueError, match=r"known only with merge: concat, not '(sum|mean)'"):
            encoder.last(encoder(inputs())[0], None)


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_after", "elman"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_reversing_the_input_and_swapping_directions_reverses_the_output(kind: str, lengths: Tensor | None) -> None:
    encoder = build({"kind": "birnn", "layer": {"kind": kind, "hidden_size": 4}})
    assert isinstance(encoder, Bidirectional)
    swapped = Bidirectional(encoder.back, encoder.ahead)
    x = inputs()
    y, (ahead, back) = encoder(x, lengths)
    y_swapped, (back_swapped, ahead_swapped) = swapped(flip(x, lengths), lengths)
    assert_close(torch.cat([y_swapped[..., 4:], y_swapped[..., :4]], -1), flip(y, lengths), rtol=0, atol=1e-12)
    assert_close((ahead, back), (ahead_swapped, back_swapped), rtol=0, atol=0)
    assert not torch.allclose(y_swapped, flip(y, lengths))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("hidden", [4, 64])
def test_kept_copies_of_weights_read_as_the_step_does_and_see_each_change(
    lengths: Tensor | None, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = cells.LSTM(I, hidden).float().eval().requires_grad_(False)
    x = zero_padding(torch.randn(B, T, I, dtype=torch.float32), lengths)
    start = torch.randn(2, B, hidden, dtype=torch.float32).unbind()
    monkeypatch.setattr(torch, "lstm", lambda *given: pytest.fail("the weights were put in order anew"))
    if not cells._ONEDNN:
        monkeypatch.undo()
    with torch.inference_mode():
        for change in (0.0, 0.5):
            layer.V.add_(change)
            layer.W.sub_(change)
            assert_close(layer(x, lengths, start), scan(layer.step, start, x, lengths), rtol=1e-5, atol=1e-5)
            y, end = scan(layer.step, layer.initial_carry(B, x), flip(x, lengths), lengths)
            assert_close(layer.read_back(x, lengths), (flip(y, lengths), end), rtol=1e-5, atol=1e-5)


def test_merges_are_made_of_the_same_directions() -> None:
    parts = cells.GRU(I, 4), cells.LSTM(I, 4)
    x = torch.randn(B, T, I)
    y, _ = Bidirectional(*parts)(x, LENGTHS)
    total, _ = Bidirectional(*parts, merge="sum")(x, LENGTHS)
    mean, _ = Bidirectional(*parts, merge="mean")(x, LENGTHS)
    assert_close(total, y[..., :4] + y[..., 4:])
    assert_close(mean, total / 2)
    assert_close(y[..., :4], parts[0](x, LENGTHS)[0])


def test_last_has_read_the_whole_row_in_both_directions() -> None:
    encoder = build(ROWS["birnn of unlike layers"])
    x = inputs().requires_grad_()
    last = encoder.last(encoder(x, LENGTHS)[0], LENGTHS)
    mask = valid_mask(LENGTHS, T)
    for unit in (0, 4):
        (gradient,) = torch.autograd.grad(last[:, unit].sum(), x, retain_graph=True)
        assert torch.equal(gradient.ne(0).any(-1), mask)


def test_a_decoder_cannot_accept_what_reads_both_ways() -> None:
    encoder = build(ROWS["birnn concat"])
    assert not isinstance(encoder, Recurrent)
    assert not hasattr(encoder, "step")
    assert not hasattr(encoder, "initial_carry")
    assert "birnn" not in RECURRENT
    for spec in (ROWS["birnn concat"], {"kind": "stack", "layers": [ROWS["birnn concat"]]}):
        with pytest.raises(InvalidOption, match="no recurrent layer is called 'birnn'"):
            RECURRENT.build(spec, input_size=I)


def test_a_stack_is_recurrent_exactly_when_all_its_layers_are() -> None:
    lstm = {"kind": "lstm", "hidden_size": 4}
    assert isinstance(ENCODERS.build({"kind": "stack", "layers": [lstm, lstm]}, input_size=I), Stack)
    mixed = ENCODERS.build({"kind": "stack", "layers": [lstm, {"kind": "birnn", "layer": lstm}]}, input_size=I)
    assert isinstance(mixed, EncoderStack)
    assert not isinstance(mixed, Recurrent)


def test_directions_must_fit() -> None:
    with pytest.raises(ValueError, match="take 3 and 2 inputs"):
        Bidirectional(cells.GRU(3, 4), cells.GRU(2, 4))
    with pytest.raises(ValueError, match="merge 'sum' needs directions of equal size, not 4 and 5"):
        Bidirectional(cells.GRU(3, 4), cells.GRU(3, 5), merge="sum")


@pytest.mark.parametrize("shape", [(B, T), (B, T, 3), (B, T, 2, 2)])
def test_flip_reverses_each_row_within_its_length(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    flipped = flip(x, LENGTHS)
    for row, size in enumerate(LENGTHS.tolist()):
        assert torch.equal(flipped[row, :size], x[row, :size].flip(0))
        assert torch.equal(flipped[row, size:], x[row, size:])
    assert torch.equal(flip(flipped, LENGTHS), x)
    assert torch.equal(flip(x, torch.full((B,), T)), flip(x))


def test_flip_has_right_first_and_second_derivatives() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 2, 3])

    def cubed(x: Tensor) -> Tensor:
        return flip(x, lengths) ** 3

    assert torch.autograd.gradcheck(cubed, (x,))
    assert torch.autograd.gradgradcheck(cubed, (x,))


def test_gather_takes_the_last_valid_output() -> None:
    y = torch.randn(B, T, 2)
    assert torch.equal(gather(y, LENGTHS), torch.stack([row[n - 1] for row, n in zip(y, LENGTHS, strict=True)]))
    assert torch.equal(gather(y, None), y[:, -1])
    assert valid_mask(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]


KINDS: dict[str, dict[str, Any]] = {
    **{
        name: {"kind": name, "hidden_size": 4}
        for name in RECURRENT
        if name not in ("stack", "variational", "weight_dropout")
    },
    "weight_dropout": {"kind": "weight_dropout", "layer": {"kind": "lstm", "hidden_size": 4}},
    "stack": {"kind": "stack", "layers": [{"kind": "lstm", "hidden_size": 5}, {"kind": "mingru", "hidden_size": 4}]},
    "variational": {
        "kind": "variational", "layer": {"kind": "gru", "hidden_size": 4}, "input_dropout": 0.3,
        "recurrent_dropout": 0.3,
    },
}  # fmt: skip


def leaves(carry: Any) -> list[Tensor]:
    return [carry] if isinstance(carry, Tensor) else [leaf for part in carry for leaf in leaves(part)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_swapped_directions_read_the_reversed_input(kind: str, lengths: Tensor | None) -> None:
    """Of every kind, in both ways of reading, outputs and carries."""
    encoder = build({"kind": "birnn", "layer": KINDS[kind]})
    assert isinstance(encoder, Bidirectional)
    assert all(p is not q for p, q in zip(encoder.ahead.parameters(), encoder.back.parameters(), strict=True))
    swapped = Bidirectional(encoder.back, encoder.ahead)
    x = inputs()
    mirrored = x.clone()
    for row, n in enumerate(LENGTHS.tolist() if lengths is not None else [T] * B):
        mirrored[row, :n] = x[row, :n].flip(0)
    y, ends = encoder(x, lengths)
    y_swapped, ends_swapped = swapped(mirrored, lengths)
    for row, n in enumerate(LENGTHS.tolist() if lengths is not None else [T] * B):
        wanted = y[row, :n].flip(0)
        assert_close(y_swapped[row, :n], torch.cat([wanted[:, 4:], wanted[:, :4]], 1), rtol=0, atol=1e-12)
        assert not y_swapped[row, n:].any()
    for one, other in zip(leaves(ends), leaves((ends_swapped[1], ends_swapped[0])), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merge", ["concat", "sum", "mean"])
def test_birnn_of_every_kind_is_two_layers_run_row_by_row(kind: str, merge: str) -> None:
    encoder = build({"kind": "birnn", "layer": KINDS[kind], "merge": merge})
    assert isinstance(encoder, Bidirectional)
    x = inputs()
    x[torch.arange(T) >= LENGTHS[:, None]] = float("nan")
    y, (ahead, back) = encoder(x, LENGTHS)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = x[row : row + 1, :n]
        one, end_ahead = encoder.ahead(alone)
        two, end_back = encoder.back(alone.flip(1))
        two = two.flip(1)
        expected = torch.cat([one, two], 2) if merge == "concat" else (one + two) / (2 if merge == "mean" else 1)
        assert_close(y[row : row + 1, :n], expected, rtol=0, atol=1e-12)
        assert not y[row, n:].any()
        for batch, single in zip(leaves((ahead, back)), leaves((end_ahead, end_back)), strict=True):
            assert_close(batch[row : row + 1], single, rtol=0, atol=1e-12)
        if merge == "concat":
            assert_close(encoder.last(y, LENGTHS)[row], torch.cat([one[0, -1], two[0, 0]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_birnn_of_every_kind_has_the_gradient_of_its_rows(kind: str) -> None:
    encoder = build({"kind": "birnn", "layer": KINDS[kind]})
    x = inputs().requires_grad_()
    parameters = [x, *encoder.parameters()]
    together = torch.autograd.grad(encoder(x, LENGTHS)[0].square().sum(), parameters)
    rows = [encoder(x[row : row + 1, :n])[0].square().sum() for row, n in enumerate(LENGTHS.tolist())]
    for one, other in zip(together, torch.autograd.grad(torch.stack(rows).sum(), parameters), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-11)


MIXED: dict[str, Any] = {
    "kind": "stack",
    "layers": [
        {"kind": "birnn", "layer": {"kind": "minlstm", "hidden_size": 3}},
        {"kind": "tdnn", "hidden_size": 6},
        {"kind": "birnn", "layer": {"kind": "jordan", "hidden_size": 2}, "back": {"kind": "lstm", "hidden_size": 4}},
    ],
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_stack_that_reads_both_ways_by_hand(residual: bool, skip: bool, lengths: Tensor | None) -> None:
    encoder = build({**MIXED, "residual": residual, "skip_to_output": skip})
    assert isinstance(encoder, EncoderStack)
    low, middle, top = encoder.layers
    x = inputs()
    first = low(x, lengths)[0]
    second = middle(first, lengths)[0] + residual * first
    third = top(second, lengths)[0] + residual * second
    y, carries = encoder(x, lengths)
    assert_close(y, torch.cat([first, second, third], -1) if skip else third, rtol=0, atol=1e-12)
    assert encoder.output_size == y.shape[-1] == (18 if skip else 6)
    assert len(carries) == 3
    assert encoder.has_last
    ends = (LENGTHS if lengths is not None else torch.full((B,), T)) - 1
    rows = torch.arange(B)

    def both_ways(y: Tensor, size: int) -> Tensor:
        return torch.cat([y[rows, ends, :size], y[:, 0, size:]], -1)

    wanted = [both_ways(first, 3), second[rows, ends], both_ways(third, 2)]
    expected = torch.cat(wanted, -1) if skip else wanted[-1]
    assert_close(encoder.last(y, lengths), expected, rtol=0, atol=1e-12)


def test_last_of_a_stack_that_skips_over_a_merged_birnn_is_refused() -> None:
    merged = {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 4}, "merge": "sum"}
    spec = {"kind": "stack", "layers": [merged, {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 2}}]}
    assert build(spec).has_last
    skipping = build({**spec, "skip_to_output": True})
    assert not skipping.has_last
    with pytest.raises(ValueError, match="known only with merge: concat, not 'sum'"):
        skipping.last(skipping(inputs())[0], None)
    nested = build({"kind": "stack", "layers": [{**spec, "skip_to_output": True}, {"kind": "lstm", "hidden_size": 2}]})
    assert nested.has_last
    assert not build({"kind": "stack", "skip_to_output": True, "layers": [spec, merged]}).has_last


def test_a_stack_in_a_stack_finds_its_last_outputs() -> None:
    inner = {**MIXED, "skip_to_output": True}
    encoder = build({"kind": "stack", "skip_to_output": True, "layers": [inner, {"kind": "gru", "hidden_size": 2}]})
    assert isinstance(encoder, EncoderStack)
    x = inputs()
    y, _ = encoder(x, LENGTHS)
    below, _ = encoder.layers[0](x, LENGTHS)
    above, _ = encoder.layers[1](below, LENGTHS)
    inside = encoder.layers[0]
    assert isinstance(inside, EncoderStack)
    expected = torch.cat([inside.last(below, LENGTHS), gather(above, LENGTHS)], -1)
    assert torch.equal(encoder.last(y, LENGTHS), expected)


def test_sizes_of_a_stack_that_reads_both_ways_must_meet() -> None:
    both = Bidirectional(cells.GRU(3, 4), cells.GRU(3, 4))
    with pytest.raises(ValueError, match="layer 0 gives 8 outputs, layer 1 takes 4"):
        EncoderStack([both, cells.GRU(4, 4)])
    with pytest.raises(ValueError, match="at least one layer"):
        EncoderStack([])


def test_dropout_of_a_stack_that_reads_both_ways_is_between_layers_alone() -> None:
    spec = {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 3}}
    one = build({"kind": "stack", "dropout": 0.5, "layers": [spec]})
    x = inputs()
    assert torch.equal(one.train()(x)[0], one.eval()(x)[0])
    two = build({"kind": "stack", "dropout": 0.5, "layers": [spec, spec], "skip_to_output": True})
    loud, quiet = two.train()(x)[0], two.eval()(x)[0]
    assert torch.equal(loud[..., :6], quiet[..., :6])
    assert not torch.allclose(loud[..., 6:], quiet[..., 6:])


@pytest.mark.parametrize("kind", KINDS)
def test_misfits_of_a_birnn_name_it(kind: str) -> None:
    encoder, x = build({"kind": "birnn", "layer": KINDS[kind]}), inputs()
    bad = x.clone()
    bad[2, 0, 1] = float("inf")
    for given, lengths, fits in [
        (x[..., :2], None, r"\(batch, time, 3\) fits"),
        (x[:, :0], None, "at least one fits"),
        (x.long(), None, "a floating-point one fits"),
        (x, LENGTHS[:2], r"\(4,\) fits"),
        (x, LENGTHS.float(), "lengths .* fits"),
        (bad, LENGTHS, "x holds inf in row 2, step 0, input 1"),
    ]:
        with pytest.raises(ValueError, match=f"^Bidirectional: .*{fits}"):
            encoder(given, lengths)


@pytest.mark.parametrize("encoder", ROWS, indirect=True)
def test_encoders_leave_their_input_alone_and_share_no_storage_with_it(encoder: Encoder) -> None:
    x = inputs()
    before = x.clone()
    y, ends = encoder(x, LENGTHS)
    y_whole, _ = encoder(x)
    assert torch.equal(x, before)
    for leaf in [*leaves(ends), x]:
        assert leaf.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
    assert y_whole.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
