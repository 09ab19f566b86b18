"""One answer per input: alone or padded, whole or in pieces, and what it reads again in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqapp.errors import ConfigError
from seqapp.models.in_step import InStep
from seqapp.models.registry import MODELS
from seqapp.nn.recurrent import Recurrent, map_carry
from seqapp.nn.teaching import RATES

SYMBOLS, CLASSES = 5, 5

CAUSAL: dict[str, Any] = {
    "lstm": {"kind": "lstm", "hidden_size": 6},
    "elman": {"kind": "elman", "hidden_size": 6, "output_size": 4},
    "stack": {"kind": "stack", "layers": [{"kind": "gru", "hidden_size": 4}, {"kind": "lstm", "hidden_size": 3}]},
}
BIRNN: dict[str, Any] = {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 4}}
KINDS = {"one-hot": {}, "embedding": {"embedding_size": 3}, "numbers": {"reads": "numbers", "answers": "numbers"}}

encoders = pytest.mark.parametrize("encoder", CAUSAL)
kinds = pytest.mark.parametrize("kind", KINDS)


def build(encoder: Any, **options: Any) -> InStep:
    model = MODELS.build({"kind": "in_step", "encoder": encoder, **options}, vocabulary_size=SYMBOLS, classes=CLASSES)
    assert isinstance(model, InStep)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.9, 0.9)
    return model.eval()


def rows_for(kind: str, lengths: list[int]) -> Tensor:
    shape = (len(lengths), max(lengths))
    return torch.rand(*shape, SYMBOLS) if kind == "numbers" else torch.randint(SYMBOLS, shape)


class Echo(Recurrent[Tensor]):
    """y_t = x_t + y_{t-1} / 2, as a network that reads its own output again and whose answers can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = self.output_size = 1
        self.forced: list[float] = []

    def initial_carry(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, 1)

    def step(self, carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + carry / 2
        return y, y

    def open_loop(
        self,
        x: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        carry: Any = None,
        *,
        teacher_forcing: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        self.forced.append(teacher_forcing)
        first = torch.zeros_like(targets[:, :1]) if carry is None else carry[:, None]
        return x + torch.cat([first, targets[:, :-1]], 1) / 2, targets[:, -1]


@encoders
@kinds
def test_a_padded_batch_answers_as_its_rows_do_alone(encoder: str, kind: str) -> None:
    model = build(CAUSAL[encoder], **KINDS[kind])
    lengths = [7, 1, 4]
    x = rows_for(kind, lengths)
    outputs, (_, last) = model(x, torch.tensor(lengths))
    assert outputs.shape == (3, 7, CLASSES)
    for row, length in enumerate(lengths):
        alone, _ = model(x[row : row + 1, :length])
        torch.testing.assert_close(outputs[row : row + 1, :length], alone, atol=1e-6, rtol=0)
        assert not outputs[row, length:].any()
        assert torch.equal(last[row], outputs[row, length - 1])


@encoders
@kinds
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_row_in_pieces_answers_as_the_whole(encoder: str, kind: str, steps: int) -> None:
    model = build(CAUSAL[encoder], **KINDS[kind])
    x = rows_for(kind, [7, 7])
    whole, end = model(x)
    carry, pieces = None, []
    for start in range(0, 7, steps):
        outputs, carry = model(x[:, start : start + steps], None, carry)
        pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)
    map_carry(lambda one, other: torch.testing.assert_close(one, other, atol=1e-6, rtol=0) or one, carry, end)


def test_an_encoder_that_reads_both_ways_has_no_pieces() -> None:
    model = build(BIRNN)
    assert not model.causal
    x = rows_for("one-hot", [4])
    outputs, carry = model(x)
    assert outputs.shape == (1, 4, CLASSES)
    with pytest.raises(ValueError, match=r"Bidirectional reads both ways and cannot go on from a carry; a causal"):
        model(x, None, carry)


def test_answers_by_hand() -> None:
    """A tap that sums its input, and a read-out that doubles the sum and adds one."""
    spec = {"kind": "in_step", "encoder": {"kind": "elman", "hidden_size": 1, "activation": "identity"},
            "reads": "numbers", "answers": "numbers"}  # fmt: skip
    model = MODELS.build(spec, vocabulary_size=1, classes=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        model.get_parameter("encoder.b_h").zero_()
        model.get_parameter("read_out.weight").fill_(2)
    outputs, (state, last) = model(torch.tensor([[[1.0], [2.0], [-4.0]]]))
    assert outputs.flatten().tolist() == [3, 7, -1]
    assert (state.item(), last.item()) == (-1, -1)


def test_one_hot_and_embedding_are_the_same_function() -> None:
    """V of a one-hot network holds what embedding times V of the other does."""
    one, other = build(CAUSAL["lstm"]), build(CAUSAL["lstm"], embedding_size=3)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name == "encoder.V":
                parameter.copy_(other.get_parameter(name) @ other.get_parameter("inputs.weight").T)
            else:
                parameter.copy_(other.get_parameter(name))
    x = rows_for("one-hot", [6, 6, 6])
    torch.testing.assert_close(one(x)[0], other(x)[0], atol=1e-6, rtol=0)


def certain(rate: Any = 0.0) -> InStep:
    """A model so sure of its answers that what it draws is its argmax."""
    model = build(CAUSAL["lstm"], teacher_forcing={"kind": "constant", "rate": rate})
    with torch.no_grad():
        model.get_parameter("read_out.weight").mul_(1e5)
    return model.double().train()


def read_by(model: InStep, x: Tensor, lengths: Tensor, fed: Tensor, carry: Any = None) -> tuple[Tensor, Tensor, Any]:
    """What the model reads, step by step, what it answers, and its carry."""
    seen: list[Tensor] = []
    handle = model.inputs.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    outputs, carry = model.teach(x, lengths, carry, fed=fed)
    handle.remove()
    return torch.cat(seen[-x.shape[1] :], 1), outputs, carry


def fed_after_first(x: Tensor) -> Tensor:
    fed = torch.ones(x.shape, dtype=torch.bool)
    fed[:, 0] = False
    return fed


def test_at_rate_one_training_is_the_fast_pass() -> None:
    model, x = certain(1.0), rows_for("one-hot", [6, 6])
    lengths = torch.tensor([6, 3])
    calls: list[int] = []
    handle = model.inputs.register_forward_pre_hook(lambda *_: calls.append(1))
    outputs, _ = model.teach(x, lengths, fed=fed_after_first(x))
    handle.remove()
    assert len(calls) == 1
    assert torch.equal(outputs, model(x, lengths)[0])


def test_at_rate_zero_it_reads_its_own_symbols_only() -> None:
    model, x = certain(), rows_for("one-hot", [8] * 16)
    seen, outputs, _ = read_by(model, x, torch.full((16,), 8), fed_after_first(x))
    assert torch.equal(seen[:, 0], x[:, 0])
    assert torch.equal(seen[:, 1:], outputs.argmax(-1)[:, :-1])
    assert not torch.equal(seen, x)
    torch.testing.assert_close(outputs, model(seen)[0])
    other = torch.randint(SYMBOLS, x.shape)
    other[:, 0] = x[:, 0]
    assert torch.equal(read_by(model, other, torch.full((16,), 8), fed_after_first(x))[1], outputs)


def test_what_is_not_fed_back_stays_and_padding_stays_out() -> None:
    model, x = certain(), rows_for("one-hot", [8] * 16)
    lengths = torch.tensor([8, 3] * 8)
    fed = fed_after_first(x)
    fed[:, 4] = False
    seen, outputs, (_, last) = read_by(model, x, lengths, fed)
    assert torch.equal(seen[:, 4], x[:, 4])
    assert torch.equal(seen[::2, 1:4], outputs.argmax(-1)[::2, :3])
    assert not outputs[1::2, 3:].any()
    assert torch.equal(last[1::2], outputs[1::2, 2])
    torch.testing.assert_close(outputs, model(seen, lengths)[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_its_own_symbol_crosses_the_border_of_pieces(steps: int) -> None:
    model, x = certain(), rows_for("one-hot", [8] * 16)
    fed = fed_after_first(x)
    _, whole, _ = read_by(model, x, torch.full((16,), 8), fed)
    carry, pieces = None, []
    for start in range(0, 8, steps):
        piece = slice(start, start + steps)
        width = x[:, piece].shape[1]
        _, outputs, carry = read_by(model, x[:, piece], torch.full((16,), width), fed[:, piece], carry)
        pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_in_between_rows_are_fed_the_right_symbol_as_often_as_the_rate_says() -> None:
    """The answers are drawn from (0.1, 0.2, 0.3, 0.4, 0), the right symbol is always 4."""
    model = build({"kind": "elman", "hidden_size": 2}, teacher_forcing={"kind": "linear", "start": 1.0, "end": 0.2})
    with torch.no_grad():
        model.get_parameter("read_out.weight").zero_()
        model.get_parameter("read_out.bias").copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).log())
    model.train()
    model.progress = 0.5
    assert model.rate == pytest.approx(0.6)
    x = torch.full((4000, 3), 4)
    seen, _, _ = read_by(model, x, torch.full((4000,), 3), fed_after_first(x))
    shares = torch.bincount(seen[:, 1:].flatten(), minlength=5) / 8000
    assert shares.tolist() == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.6], abs=0.03)


def test_no_gradient_flows_through_what_was_drawn() -> None:
    """The loss of the last step alone reaches the read-out of the last step alone."""
    model, x = certain(), rows_for("one-hot", [3] * 4)
    read_out_calls: list[Tensor] = []
    handle = model.read_out.register_forward_hook(lambda *call: read_out_calls.append(call[2].retain_grad() or call[2]))
    outputs, _ = model.teach(x, torch.full((4,), 3), fed=fed_after_first(x))
    handle.remove()
    outputs[:, -1].square().sum().backward()
    assert [y.grad is not None and bool(y.grad.any()) for y in read_out_calls] == [False, False, True]
    assert model.get_parameter("encoder.W").grad is not None


def test_an_open_loop_is_taken_where_targets_are_given() -> None:
    echo = Echo()
    model = InStep(nn.Identity(), echo, nn.Identity(), reads="numbers", answers="numbers",
                   teaching=RATES.build({"kind": "linear", "start": 1.0, "end": 0.5}))  # fmt: skip
    assert model.opens_loop
    assert model.classes == 1
    x = torch.tensor([[[1.0], [1.0], [1.0], [1.0]]])
    right = torch.tensor([[[10.0], [20.0], [30.0], [40.0]]])
    lengths = torch.tensor([4])
    model.progress = 0.5
    outputs, _ = model.teach(x, lengths, targets=right)
    assert outputs.flatten().tolist() == [1, 6, 11, 16]
    first, carry = model.teach(x[:, :2], lengths - 2, targets=right[:, :2])
    second, _ = model.teach(x[:, 2:], lengths - 2, carry, targets=right[:, 2:])
    assert torch.equal(torch.cat([first, second], 1), outputs)
    assert echo.forced == [0.75] * 3
    closed = [1, 1.5, 1.75, 1.875]
    assert model(x)[0].flatten().tolist() == closed
    assert model.teach(x, lengths)[0].flatten().tolist() == closed


@encoders
@kinds
def test_every_parameter_gets_a_gradient(encoder: str, kind: str) -> None:
    model = build(CAUSAL[encoder], **KINDS[kind]).train()
    outputs, _ = model(rows_for(kind, [5, 5, 5]), torch.tensor([5, 2, 4]))
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_dropout_holds_in_training_only() -> None:
    model, x = build(CAUSAL["lstm"], dropout=0.5), rows_for("one-hot", [5])
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"reads": "numbers", "embedding_size": 4}, "embedding_size is for symbols; null fits"),
        ({"encoder": BIRNN, "teacher_forcing": "linear"}, "teacher_forcing needs answers that are read again"),
        ({"reads": "numbers", "teacher_forcing": "linear"}, "teacher_forcing needs answers that are read again"),
        ({"answers": "numbers", "teacher_forcing": "linear"}, "teacher_forcing needs answers that are read again"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=problem):
        build(**{"encoder": CAUSAL["lstm"], **options})
    with pytest.raises(ValueError, match="the encoder gives the answers itself; 0 fits"):
        InStep(nn.Identity(), Echo(), nn.Identity(), reads="numbers", answers="numbers", dropout=0.1)
