"""One table of decoders, one set of laws; and the step made for generation is the decoder's own.

B batch, S source length, T target length, E embedding, M memory units, Z summary units, R read-out, K copies of a row.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from seqapp.nn import cells
from seqapp.nn.attention import ATTENTIONS, Memory
from seqapp.nn.decode import fast_decoder
from seqapp.nn.decoder import AttentionDecoder
from seqapp.nn.recurrent import RECURRENT, Carry, map_carry, select, valid_mask

B, S, T, E, M, Z, R = 3, 5, 6, 4, 6, 7, 5
SOURCES, LENGTHS = [5, 1, 3], [6, 2, 4]

NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", "hidden_size": M},
    "gru": {"kind": "gru", "hidden_size": M},
    "elman": {"kind": "elman", "hidden_size": M},
    "stack": {
        "kind": "stack", "residual": True,
        "layers": [{"kind": "lstm", "hidden_size": M}, {"kind": "gru", "hidden_size": M}],
    },
}  # fmt: skip
UPPER = {"none": None, "one": {"kind": "gru", "hidden_size": 3}, "two": NETWORKS["stack"]}
LOOKING: dict[str, dict[str, Any]] = {
    "dot": {"kind": "dot"},
    "general": {"kind": "general"},
    "additive": {"kind": "additive", "size": 4},
    "multi_head": {"kind": "multi_head", "heads": 2, "size": 4},
    "none": {"kind": "none"},
}
# Network, attention, upper layers, input feeding, layer norm: every attention and every network, with and without the
# others.
Row = tuple[str, str, str, bool, bool]
ROWS: list[Row] = [("lstm", looking, upper, feeding, not feeding) for looking, upper, feeding in
                   itertools.product(LOOKING, ("none", "one"), (False, True))]  # fmt: skip
ROWS += [(network, "general", upper, feeding, feeding) for network, upper, feeding in
         itertools.product(("gru", "elman", "stack"), UPPER, (False, True))]  # fmt: skip


def name_of(row: Row) -> str:
    network, looking, upper, feeding, norm = row
    return f"{network} {looking} upper {upper}" + " feeding" * feeding + " norm" * norm


@pytest.fixture(params=ROWS, ids=name_of)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


def build(row: Row, dtype: torch.dtype = torch.float64, *, dropout: float = 0.0) -> AttentionDecoder:
    """A decoder in which no weight is zero, so that none can be forgotten unnoticed."""
    network, looking, upper, feeding, norm = row
    lower = RECURRENT.build(NETWORKS[network], input_size=E + feeding * R)
    attention = ATTENTIONS.build(LOOKING[looking], query_size=M, memory_size=M, summary_size=Z)
    above = None
    if (spec := UPPER[upper]) is not None:
        above = RECURRENT.build(spec, input_size=M + attention.output_size)
    decoder = AttentionDecoder(lower, attention, above, R, input_feeding=feeding, dropout=dropout, layer_norm=norm)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
    return decoder.to(dtype).eval()


def inputs(decoder: AttentionDecoder) -> tuple[Tensor, Tensor, Carry, Memory]:
    """x (B, T, E), lengths (B,), a carry from nowhere and a memory."""
    like = decoder.combine.weight
    x = torch.randn(B, T, E, dtype=like.dtype)
    y, summary = torch.randn(B, S, M, dtype=like.dtype), torch.randn(B, Z, dtype=like.dtype)
    memory = decoder.attention.prepare(y, valid_mask(torch.tensor(SOURCES), S), summary)
    carry = map_carry(torch.rand_like, decoder.initial_carry(B, x))
    return x, torch.tensor(LENGTHS), carry, memory


def close(got: Any, expected: Any) -> None:
    map_carry(lambda one, other: assert_close(one, other) or one, got, expected)


def rows_of(carry: Any, rows: Any) -> Any:
    return map_carry(lambda leaf: leaf[rows], carry)


@pytest.mark.parametrize("ragged", [False, True])
def test_forward_is_step_position_by_position(row: Row, ragged: bool) -> None:
    decoder = build(row)
    x, lengths, start, memory = inputs(decoder)
    y, weights, end = decoder(x, lengths if ragged else None, start, memory)
    assert y.shape == (B, T, R)
    carry = start
    for t in range(T):
        live = t < lengths if ragged else torch.ones(B, dtype=torch.bool)
        new, one, weight = decoder.step(carry, x[:, t], memory)
        carry = select(live, new, carry)
        assert_close(y[live, t], one[live])
        assert_close(weights[live, t], weight[live])
    close(end, carry)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_fast_step_is_the_step(row: Row, copies: int) -> None:
    decoder = build(row, torch.float32)
    x, _, start, memory = inputs(decoder)
    x, carry = (map_carry(lambda leaf: leaf.repeat_interleave(copies, 0), leaf) for leaf in (x, start))
    slow, advance = carry, fast_decoder(decoder, len(x))
    with torch.inference_mode():
        for now in (x + torch.randn(len(x), 1, E)).unbind(1):
            carry, *got = advance(carry, now, memory)
            slow, *expected = decoder.step(slow, now, memory)
            assert_close(got, expected, atol=1e-5, rtol=1e-5)
            close(carry, slow)


def test_copies_of_a_row_share_its_memory(row: Row) -> None:
    decoder = build(row)
    x, _, start, memory = inputs(decoder)
    many = map_carry(lambda leaf: leaf.repeat_interleave(2, 0), start)
    now = torch.randn(2 * B, E, dtype=x.dtype)
    carry, y, weights = decoder.step(many, now, memory)
    for copy in range(2):
        own, *expected = decoder.step(start, now[copy::2], memory)
        assert_close([y[copy::2], weights[copy::2]], expected)
        close(rows_of(carry, slice(copy, None, 2)), own)


def test_a_batch_answers_as_its_rows_alone_whatever_the_padding_holds(row: Row) -> None:
    decoder = build(row)
    x, lengths, start, memory = inputs(decoder)
    x = torch.where(valid_mask(lengths, T)[..., None], x, torch.nan)
    y, weights, end = decoder(x, lengths, start, memory)
    loss = y[valid_mask(lengths, T)].square().sum()
    for gradient in torch.autograd.grad(loss, list(decoder.parameters()), materialize_grads=True):
        assert gradient.isfinite().all()
    for index, size in enumerate(LENGTHS):
        one = slice(index, index + 1)
        alone, looks, after = decoder(x[one, :size], None, rows_of(start, one), rows_of(memory, one))
        assert_close(y[one, :size], alone)
        assert_close(weights[one, :size], looks)
        close(rows_of(end, one), after)


def test_no_output_sees_a_later_token(row: Row) -> None:
    decoder = build(row)
    x, lengths, start, memory = inputs(decoder)
    x.requires_grad_()
    for sizes in (None, lengths):
        y, weights, _ = decoder(x, sizes, start, memory)
        for t in range(T - 1):
            (gradient,) = torch.autograd.grad(y[:, t].sum() + weights[:, t, 0].sum(), x, retain_graph=True)
            assert not gradient[:, t + 1 :].any()
            assert sizes is not None or gradient[:, t].any()


def test_every_parameter_gets_a_gradient(row: Row) -> None:
    decoder = build(row)
    y, _, _ = decoder(*inputs(decoder))
    # The sum of a normalised row is fixed, and so is the softmax of scores that all grow alike.
    (y * torch.randn_like(y)).sum().backward()
    dead = {name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert dead <= {"attention.key.bias"}


def test_gradients_are_those_of_steps(row: Row) -> None:
    decoder = build(row)
    x, _, start, memory = inputs(decoder)
    memory = map_carry(torch.Tensor.detach, memory)
    wanted = [x.requires_grad_(), *decoder.parameters()]
    shape = torch.randn(B, T, R, dtype=x.dtype)

    def scan() -> Tensor:
        carry, outputs = start, []
        for now in x.unbind(1):
            carry, y, _ = decoder.step(carry, now, memory)
            outputs.append(y)
        return torch.stack(outputs, 1)

    whole = torch.autograd.grad((shape * decoder(x, None, start, memory)[0]).sum(), wanted, materialize_grads=True)
    steps = torch.autograd.grad((shape * scan()).sum(), wanted, materialize_grads=True)
    assert_close(whole, steps, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("row", [row for row in ROWS if row[3]], ids=name_of)
def test_dropout_is_locked_with_and_without_input_feeding(row: Row) -> None:
    """Feeding through weights of zero is no feeding, and the same masks must come of the same seed."""
    network, looking, upper, _, norm = row
    fed, plain = build(row, dropout=0.5), build((network, looking, upper, False, norm), dropout=0.5)
    weights = plain.state_dict()
    for name, weight in fed.state_dict().items():
        if weight.shape != weights[name].shape:
            weight[:, E:] = 0
            weight = weight[:, :E]
        weights[name].copy_(weight)
    x, lengths, start, memory = inputs(plain)
    quiet, _, _ = plain(x, lengths, start, memory)

    def trained(decoder: AttentionDecoder, carry: Carry) -> list[Tensor]:
        torch.manual_seed(1)
        y, looks, (lower, above, _) = decoder.train()(x, lengths, carry, memory)
        valid = valid_mask(lengths, T)
        found = [y[valid], looks[valid]]
        map_carry(lambda leaf: found.append(leaf) or leaf, (lower, above))  # type: ignore[func-returns-value]
        return found

    got, expected = trained(fed, (*start[:2], torch.rand(B, R, dtype=x.dtype))), trained(plain, start)
    assert_close(got, expected)
    assert not torch.allclose(expected[0], quiet[valid_mask(lengths, T)])
    assert torch.equal(plain.eval()(x, lengths, start, memory)[0], quiet)


def test_a_step_of_every_network() -> None:
    for kind in RECURRENT:
        if kind in ("stack", "variational", "weight_dropout"):
            continue
        lower = RECURRENT.build({"kind": kind, "hidden_size": M}, input_size=E)
        attention = ATTENTIONS.build("general", query_size=lower.output_size, memory_size=M, summary_size=Z)
        decoder = AttentionDecoder(lower, attention, None, R).eval()
        x, lengths, _, memory = inputs(decoder)
        start = decoder.initial_carry(B, x)
        y, _, _ = decoder(x, lengths, start, memory)
        _, first, _ = decoder.step(start, x[:, 0], memory)
        _, fast, _ = fast_decoder(decoder, B)(start, x[:, 0], memory)
        assert_close(first, y[:, 0], atol=1e-6, rtol=1e-5)
        assert_close(fast, first, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 40])
def test_the_fast_step_is_the_step_where_products_are_large(rows: int) -> None:
    lower, upper = cells.LSTM(E + 600, 512), cells.GRU(1024, 300)
    attention = ATTENTIONS.build("general", query_size=512, memory_size=512, summary_size=512)
    decoder = AttentionDecoder(lower, attention, upper, 600, input_feeding=True, layer_norm=True).eval()
    y, mask = torch.randn(1, S, 512), torch.ones(1, S, dtype=torch.bool)
    memory = attention.prepare(y, mask, y[:, 0])
    carry = slow = decoder.initial_carry(rows, y)
    advance = fast_decoder(decoder, rows)
    with torch.inference_mode():
        for x in torch.randn(3, rows, E):
            carry, *got = advance(carry, x, memory)
            slow, *expected = decoder.step(slow, x, memory)
            assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_in_training_a_decoder_steps_as_it_trains() -> None:
    decoder = build(ROWS[0]).train()
    assert fast_decoder(decoder, 1) == decoder.step


def test_sizes_must_meet() -> None:
    attention = ATTENTIONS.build("general", query_size=4, memory_size=5, summary_size=5)
    with pytest.raises(ValueError, match="the upper layers take 4 inputs and are given 9"):
        AttentionDecoder(cells.GRU(3, 4), attention, cells.GRU(4, 4), 2)
