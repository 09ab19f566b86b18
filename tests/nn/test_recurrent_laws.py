"""One table of layers, one set of laws: whatever is registered as a recurrent layer obeys them all.

B batch, T time, I inputs, O outputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from seqapp.nn import cells
from seqapp.nn.recurrent import RECURRENT, Recurrent, Stack, map_carry, scan, select, valid_mask

B, T, I = 4, 7, 3  # noqa: E741
LENGTHS = [7, 3, 1, 5]

# Every kind, every value of every choice, and stacks that hand different carries from layer to layer.
ROWS: dict[str, dict[str, Any]] = {
    "elman tanh": {"kind": "elman", "hidden_size": 5},
    "elman relu": {"kind": "elman", "hidden_size": 5, "activation": "relu"},
    "elman sigmoid": {"kind": "elman", "hidden_size": 5, "activation": "sigmoid"},
    "elman identity": {"kind": "elman", "hidden_size": 5, "activation": "identity"},
    "elman with U": {"kind": "elman", "hidden_size": 5, "output_size": 2},
    "elman relu with U": {
        "kind": "elman", "hidden_size": 5, "activation": "relu", "output_size": 2, "output_activation": "sigmoid",
    },
    "elman U tanh": {"kind": "elman", "hidden_size": 5, "output_size": 2, "output_activation": "tanh"},
    "elman U relu": {"kind": "elman", "hidden_size": 5, "output_size": 4, "output_activation": "relu"},
    "elman uniform start": {"kind": "elman", "hidden_size": 5, "recurrent_init": "uniform"},
    "elman identity start": {"kind": "elman", "hidden_size": 5, "activation": "relu", "recurrent_init": "identity"},
    "elman_1step": {"kind": "elman_1step", "hidden_size": 5},
    "elman_1step relu with U": {
        "kind": "elman_1step", "hidden_size": 5, "activation": "relu", "output_size": 2, "output_activation": "tanh",
    },
    "jordan": {"kind": "jordan", "hidden_size": 5},
    "jordan relu tanh": {
        "kind": "jordan", "hidden_size": 5, "output_size": 2, "activation": "relu", "output_activation": "tanh",
    },
    "jordan sigmoid relu": {
        "kind": "jordan", "hidden_size": 4, "output_size": 6, "activation": "sigmoid", "output_activation": "relu",
    },
    "jordan identity sigmoid": {
        "kind": "jordan", "hidden_size": 4, "activation": "identity", "output_activation": "sigmoid",
    },
    "jordan_memory": {"kind": "jordan_memory", "hidden_size": 5, "output_size": 2},
    "jordan_memory long": {
        "kind": "jordan_memory", "hidden_size": 5, "decay": 0.9, "activation": "relu", "output_activation": "sigmoid",
    },
    "output_recurrent": {"kind": "output_recurrent", "hidden_size": 5},
    "output_recurrent relu": {"kind": "output_recurrent", "hidden_size": 5, "activation": "relu"},
    "state_space": {"kind": "state_space", "hidden_size": 5},
    "state_space depth 1": {"kind": "state_space", "hidden_size": 5, "layers": 1, "activation": "sigmoid"},
    "state_space depth 3": {"kind": "state_space", "hidden_size": 4, "layers": 3, "activation": "identity"},
    "tdnn": {"kind": "tdnn", "hidden_size": 5, "window": 3},
    "tdnn dilated": {"kind": "tdnn", "hidden_size": 5, "window": 3, "dilation": 2, "layers": 2, "activation": "relu"},
    "tdnn wider than the row": {"kind": "tdnn", "hidden_size": 2, "window": 4, "dilation": 3},
    "tdnn of one input": {"kind": "tdnn", "hidden_size": 2, "window": 1},
    "narx": {"kind": "narx", "hidden_size": 5},
    "narx one delay": {
        "kind": "narx", "hidden_size": 5, "output_size": 2, "input_delays": 0, "output_delays": 1,
        "output_activation": "tanh",
    },
    "narx long delays": {
        "kind": "narx", "hidden_size": 4, "output_size": 2, "input_delays": 9, "output_delays": 4, "layers": 2,
        "activation": "relu", "output_activation": "sigmoid",
    },
    "lstm_linear_output": {"kind": "lstm_linear_output", "hidden_size": 5},
    "mingru": {"kind": "mingru", "hidden_size": 5},
    "mingru slow": {"kind": "mingru", "hidden_size": 5, "update_bias": -2.0},
    "minlstm": {"kind": "minlstm", "hidden_size": 5},
    "minlstm forget bias": {"kind": "minlstm", "hidden_size": 5, "forget_bias": -1.0},
    **{
        f"variational {layer['kind']}": {
            "kind": "variational", "layer": layer, "input_dropout": 0.3, "recurrent_dropout": 0.4,
        }
        for layer in [
            {"kind": "elman", "hidden_size": 5},
            {"kind": "elman_1step", "hidden_size": 5},
            {"kind": "jordan", "hidden_size": 5, "output_size": 2},
            {"kind": "jordan_memory", "hidden_size": 5, "output_size": 2},
            {"kind": "output_recurrent", "hidden_size": 5},
            {"kind": "state_space", "hidden_size": 5},
            {"kind": "narx", "hidden_size": 5, "output_size": 2},
            {"kind": "lstm", "hidden_size": 5},
            {"kind": "lstm_linear_output", "hidden_size": 5},
            {"kind": "gru", "hidden_size": 5},
            {"kind": "gru_reset_after", "hidden_size": 5},
        ]
    },
    "variational mingru": {"kind": "variational", "layer": {"kind": "mingru", "hidden_size": 5}, "input_dropout": 0.3},
    **{
        f"weight_dropout {layer['kind']}": {"kind": "weight_dropout", "layer": layer, "dropout": 0.4}
        for layer in [
            {"kind": "lstm", "hidden_size": 5},
            {"kind": "gru_reset_after", "hidden_size": 5},
            {"kind": "narx", "hidden_size": 5, "output_size": 2},
            {"kind": "variational", "layer": {"kind": "gru", "hidden_size": 5}, "recurrent_dropout": 0.4},
        ]
    },
    "variational weight_dropout": {
        "kind": "variational", "layer": {"kind": "weight_dropout", "layer": {"kind": "lstm", "hidden_size": 5}},
        "input_dropout": 0.3,
    },
    "stack of weight_dropout": {
        "kind": "stack", "dropout": 0.2,
        "layers": [{"kind": "weight_dropout", "layer": {"kind": kind, "hidden_size": 4}} for kind in ("elman", "lstm")],
    },
    "lstm": {"kind": "lstm", "hidden_size": 5},
    "lstm forget bias": {"kind": "lstm", "hidden_size": 5, "forget_bias": -2.0},
    "gru": {"kind": "gru", "hidden_size": 5},
    "gru_reset_after": {"kind": "gru_reset_after", "hidden_size": 5},
    "stack": {"kind": "stack", "layers": [{"kind": "lstm", "hidden_size": 5}, {"kind": "gru", "hidden_size": 4}]},
    "stack residual": {
        "kind": "stack",
        "residual": True,
        "layers": [
            {"kind": "gru_reset_after", "hidden_size": I},
            {"kind": "lstm", "hidden_size": I},
            {"kind": "elman", "hidden_size": 5, "output_size": 2},
        ],
    },
    "stack skip_to_output": {
        "kind": "stack",
        "skip_to_output": True,
        "layers": [{"kind": "jordan", "hidden_size": 4, "output_size": 2}, {"kind": "tdnn", "hidden_size": 3}],
    },
    "stack of stacks": {
        "kind": "stack",
        "layers": [
            {"kind": "stack", "layers": [{"kind": "elman", "hidden_size": 2}, {"kind": "lstm", "hidden_size": 3}]},
            {"kind": "gru", "hidden_size": 4},
        ],
    },
}  # fmt: skip

LIMIT = {torch.float32: 2e-6, torch.float64: 1e-12}


def build(spec: Mapping[str, Any], dtype: torch.dtype = torch.float64, *, spread: float = 0.7) -> Recurrent[Any]:
    """A layer in which no weight is zero, so that none can be forgotten unnoticed."""
    layer = RECURRENT.build(spec, input_size=I).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-spread, spread))
    return layer.eval()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, I, dtype=dtype), torch.tensor(LENGTHS)


def random_carry(layer: Recurrent[Any], x: Tensor) -> Any:
    return map_carry(torch.rand_like, layer.initial_carry(len(x), x))


def leaves(carry: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_carry(lambda leaf: found.append(leaf) or leaf, carry)  # type: ignore[func-returns-value]
    return found


def close(got: Any, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    """Equal to the precision of ``dtype``, for tensors and trees of tensors alike."""
    mine, theirs = leaves(got), leaves(expected)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        # Rounding is relative to the largest number that took part.
        size = max(1.0, float(other.detach().abs().max())) if other.numel() else 1.0
        assert_close(one, other, rtol=LIMIT[dtype], atol=LIMIT[dtype] * size)


def _mentioned(spec: Any) -> Iterator[tuple[str, str, Any]]:
    """(kind, option, value) of a spec and of every spec inside it, defaults written out."""
    if isinstance(spec, list):
        for item in spec:
            yield from _mentioned(item)
    elif isinstance(spec, Mapping):
        for name, value in spec.items():
            yield spec["kind"], name, str(value)
            yield from _mentioned(value)


def _choices(kind: str) -> Iterator[tuple[str, Any]]:
    """Each option of ``kind`` that has a choice of values, and each value."""
    for option in RECURRENT[kind].options.values():
        schema = option.json_schema()
        for value in schema.get("enum", [False, True] if schema.get("type") == "boolean" else []):
            yield option.name, value


def _covered() -> set[tuple[str, str, Any]]:
    return {mention for row in ROWS.values() for mention in _mentioned(RECURRENT.check(row))}


# A choice that no row above makes gets one: the first row of its kind with that choice.
for kind in {row["kind"]: None for row in ROWS.values()}:
    base = next(row for row in ROWS.values() if row["kind"] == kind)
    for option, value in _choices(kind):
        if (kind, option, str(value)) not in _covered():
            ROWS[f"{kind} {option} {value}"] = {**base, option: value}


@pytest.fixture(params=ROWS)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ROWS[request.param]


def test_every_kind_and_every_choice_has_a_row() -> None:
    wanted = {(kind, "kind", kind) for kind in RECURRENT}
    wanted |= {(kind, option, str(value)) for kind in RECURRENT for option, value in _choices(kind)}
    assert wanted <= _covered(), f"no row of the table covers {sorted(wanted - _covered())}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_forward_is_scan_of_step(spec: dict[str, Any], dtype: torch.dtype, ragged: bool, fresh: bool) -> None:
    layer = build(spec, dtype)
    x, lengths = inputs(dtype)
    carry = None if fresh else random_carry(layer, x)
    start = layer.initial_carry(B, x) if carry is None else carry
    got = layer(x, lengths if ragged else None, carry)
    expected = scan(layer.step, start, x, lengths if ragged else None)
    assert got[0].shape == (B, T, layer.output_size)
    assert all(leaf.shape[0] == B for leaf in leaves(got[1]))
    assert got[0].dtype == dtype
    close(got, expected, dtype)


@pytest.mark.parametrize("ragged", [False, True])
def test_gradient_of_forward_is_gradient_of_scan(spec: dict[str, Any], ragged: bool) -> None:
    layer = build(spec)
    x, lengths = inputs()
    sizes = lengths if ragged else None
    carry = random_carry(layer, x)
    wanted = [x, *leaves(carry), *layer.parameters()]
    for leaf in wanted:
        leaf.requires_grad_()

    def gradients(y: Tensor, end: Any) -> list[Tensor]:
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        loss = (weights * y).sum() + sum(leaf.square().sum() for leaf in leaves(end))
        return list(torch.autograd.grad(loss, wanted, materialize_grads=True))

    for one, other in zip(
        gradients(*layer(x, sizes, carry)), gradients(*scan(layer.step, carry, x, sizes)), strict=True
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_batch_answers_as_its_rows_alone(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, lengths = inputs()
    carry = random_carry(layer, x)
    y, end = layer(x, lengths, carry)
    for row, size in enumerate(LENGTHS):
        y_alone, end_alone = layer(x[row, None, :size], None, map_carry(lambda leaf, row=row: leaf[row, None], carry))
        close(y[row, None, :size], y_alone)
        close(map_carry(lambda leaf, row=row: leaf[row, None], end), end_alone)
        assert not y[row, size:].any()


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
def test_padding_never_matters(spec: dict[str, Any], junk: float) -> None:
    layer = build(spec)
    clean, lengths = inputs()
    mask = valid_mask(lengths, T)[..., None]

    def run(x: Tensor) -> tuple[Tensor, Any, list[Tensor]]:
        x = x.clone().requires_grad_()
        y, end = layer(x, lengths)
        loss = y.square().sum() + sum(leaf.sum() for leaf in leaves(end))
        return y, end, list(torch.autograd.grad(loss, [x, *layer.parameters()]))

    y, end, (x_gradient, *gradients) = run(torch.where(mask, clean, torch.zeros(())))
    y_junk, end_junk, (x_gradient_junk, *gradients_junk) = run(torch.where(mask, clean, torch.tensor(junk)))
    for got, expected in zip([y_junk, *leaves(end_junk), x_gradient_junk, *gradients_junk],
                             [y, *leaves(end), x_gradient, *gradients], strict=True):  # fmt: skip
        assert torch.equal(got, expected)
        assert got.isfinite().all()
    assert not x_gradient_junk.masked_select(~mask).any()


def test_long_padding_of_an_unstable_layer_changes_neither_answer_nor_gradient(spec: dict[str, Any]) -> None:
    layer = build(spec, torch.float32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)
    x, lengths = torch.rand(2, 3, I), torch.tensor([3, 2])

    def run(x: Tensor) -> list[Tensor]:
        y, end = layer(x, lengths)
        loss = y[:, :3].sum() + sum(leaf.sum() for leaf in leaves(end))
        return [y[:, :3], *leaves(end), *torch.autograd.grad(loss, list(layer.parameters()))]

    for got, expected in zip(run(torch.cat([x, torch.zeros(2, 297, I)], 1)), run(x), strict=True):
        assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_state_handed_over_at_any_cut_equals_one_long_run(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, _ = inputs()
    whole = layer(x)
    for cut in range(1, T):
        before, carry = layer(x[:, :cut])
        after, end = layer(x[:, cut:], None, carry)
        close((torch.cat([before, after], 1), end), whole)


def test_output_sees_no_later_input(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, lengths = inputs()
    x.requires_grad_()
    for sizes in (None, lengths):
        y, _ = layer(x, sizes)
        for t in range(T):
            (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
            assert not gradient[:, t + 1 :].any()
            assert sizes is not None or gradient[:, t].any()
    changed = x.detach().clone()
    changed[:, 4:] += 1
    close(layer(changed)[0][:, :4], layer(x)[0][:, :4])


def test_every_parameter_gets_a_gradient(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, lengths = inputs()
    layer(x, lengths)[0].square().sum().backward()
    dead = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_gradcheck_with_lengths(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x = torch.randn(2, 3, I, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, 2])
    if "elman_1step" in str(spec):  # whose gradient is meant to leave out what goes through time
        x, lengths = torch.randn(2, 1, I, dtype=torch.float64, requires_grad=True), torch.tensor([1, 1])
    names = [name for name, _ in layer.named_parameters()]
    carry = leaves(random_carry(layer, x))
    # Masks and a state whose gradient is stopped are data.
    free = 0 if "elman_1step" in str(spec) else len(carry) - 2 if "variational" in str(spec) else len(carry)
    flat = [leaf.detach().requires_grad_() for leaf in [*carry[:free], *layer.parameters()]]

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter([*tensors[:free], *carry[free:]])
        start = map_carry(lambda _: next(given), layer.initial_carry(2, x))
        weights = dict(zip(names, tensors[free:], strict=True))
        y, end = torch.func.functional_call(layer, weights, (x, lengths, start))
        return (y, *leaves(end)[:free])

    assert torch.autograd.gradcheck(run, (x, *flat), fast_mode=True)


def test_state_dict_round_trip(spec: dict[str, Any]) -> None:
    layer, other = build(spec), build(spec)
    x, lengths = inputs()
    assert not torch.equal(other(x)[0], layer(x)[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, lengths)[0], layer(x, lengths)[0])
    with torch.device("meta"):
        empty = RECURRENT.build(spec, input_size=I)
    empty.eval().load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x, lengths)[0], layer(x, lengths)[0])


def test_reordering_the_carry_between_steps_reorders_the_batch(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, _ = inputs()
    order = torch.tensor([2, 2, 0, 1])
    carry = layer.initial_carry(B, x)
    for t in range(3):
        carry, _ = layer.step(carry, x[:, t])
    carry = map_carry(lambda leaf: leaf[order], carry)
    outputs = []
    for t in range(3, T):
        carry, y = layer.step(carry, x[order, t])
        outputs.append(y)
    expected, end = layer(x[order])
    close((torch.stack(outputs, 1), carry), (expected[:, 3:], end))


def test_renewing_changes_masks_in_training_and_nothing_else(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, _ = inputs()
    carry = random_carry(layer, x)
    renewed = layer.renew(carry)
    for one, other in zip(leaves(renewed), leaves(carry), strict=True):
        assert torch.equal(one, other)
    layer.train()
    _, carry = layer(x, None, layer.initial_carry(B, x))
    renewed = layer.renew(carry)
    masks = 2 if "variational" in str(spec) else 0
    states = len(leaves(carry)) - masks
    for one, other in zip(leaves(renewed)[:states], leaves(carry)[:states], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(leaves(renewed)[states:], leaves(carry)[states:], strict=True):
        dropped = bool((other != 1).any())
        assert torch.equal(one, other) is not dropped, "a mask was kept"


def test_map_state_reaches_every_state_and_no_mask(spec: dict[str, Any]) -> None:
    layer = build(spec).train()
    x, _ = inputs()
    _, carry = layer(x)
    mapped = layer.map_state(lambda leaf: leaf + 1, carry)
    masks = 2 if "variational" in str(spec) else 0
    for place, (one, other) in enumerate(zip(leaves(mapped), leaves(carry), strict=True)):
        assert torch.equal(one, other if place >= len(leaves(carry)) - masks else other + 1)
    close(layer.map_state(lambda leaf: leaf, carry), carry)


def test_training_by_steps_is_training_by_rows_with_the_same_masks(spec: dict[str, Any]) -> None:
    layer = build(spec).train()
    for inner in layer.modules():
        if isinstance(inner, torch.nn.Dropout):
            inner.eval()  # which draws at each step on purpose
    x, lengths = inputs()
    start = layer.initial_carry(B, x)
    whole = layer(x, lengths, start)
    close(scan(layer.step, start, x, lengths), whole)
    first, middle = layer(x[:, :2], lengths.clamp(max=2), start)
    longer = lengths > 2
    rest = map_carry(lambda leaf: leaf[longer], middle)
    second, _ = layer(x[longer, 2:], lengths[longer] - 2, rest)
    close(torch.cat([first[longer], second], 1), whole[0][longer])


def test_strided_input_and_one_row(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, lengths = inputs()
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    close(layer(strided, lengths), layer(x, lengths))
    assert layer(x[:1], lengths[:1])[0].shape == (1, T, layer.output_size)


def test_misfits_name_the_layer_and_what_fits(spec: dict[str, Any]) -> None:
    layer = build(spec)
    x, lengths = inputs()
    name = type(layer).__name__
    for given, sizes, fits in [
        (x[0], None, rf"\(batch, time, {I}\) fits"),
        (x[..., :2], None, rf"shape \({B}, {T}, 2\); \(batch, time, {I}\) fits"),
        (x[:, :0], None, "no time steps; at least one fits"),
        (x, lengths[:2], rf"lengths have shape \(2,\); \({B},\) fits"),
        (x, lengths - 1, f"lengths go from 0 to 6; 1 to {T} fits"),
        (x, lengths + 1, f"lengths go from 2 to 8; 1 to {T} fits"),
        (x.long(), None, "dtype torch.int64; a floating-point one fits"),
        (
            x.index_put((torch.tensor(1), torch.tensor(2), torch.tensor(0)), torch.tensor(float("nan")).double()),
            None,
            r"x holds nan in row 1, step 2, input 0 .*; finite numbers fit",
        ),
        (
            x.index_put((torch.tensor(3), torch.tensor(0), torch.tensor(2)), -torch.tensor(float("inf")).double()),
            lengths,
            r"x holds -inf in row 3, step 0, input 2 .*; finite numbers fit",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: .*{fits}"):
            layer(given, sizes)
    with pytest.raises(ValueError, match=rf"^{name}: carry has shape .*\({B - 1}, .* fits"):
        layer(x[1:], None, layer.initial_carry(B, x))


def test_bfloat16_is_close_and_padding_does_not_wear_its_carry_off(spec: dict[str, Any]) -> None:
    layer = build(spec, torch.float32, spread=0.3)
    x, lengths = inputs(torch.float32)
    expected, expected_end = layer(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, end = layer(x, lengths)
        longer_y, longer_end = layer(torch.cat([x, torch.randn(B, 30, I)], 1), lengths)
        loss = y.float().square().sum() + sum(leaf.float().sum() for leaf in leaves(end))
    for got, wanted in zip([y, *leaves(end)], [expected, *leaves(expected_end)], strict=True):
        assert_close(got.float(), wanted, rtol=0.05, atol=0.05)
    # A product of another shape may be summed in another order, and no more than that.
    for got, wanted in zip([longer_y[:, :T], *leaves(longer_end)], [y, *leaves(end)], strict=True):
        assert_close(got, wanted, rtol=0.02, atol=0.01)
    for gradient in torch.autograd.grad(loss, list(layer.parameters())):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_residual_stack_by_hand() -> None:
    below = build({"kind": "lstm", "hidden_size": I})
    above = build({"kind": "gru", "hidden_size": 4})
    x, lengths = inputs()
    stack = Stack([below, above], residual=True)
    first, carry_below = below(x, lengths)
    zeroed = torch.where(valid_mask(lengths, T)[..., None], x, torch.zeros((), dtype=x.dtype))
    second, carry_above = above(first + zeroed, lengths)
    close(stack(x, lengths), (second, (carry_below, carry_above)))
    plain = Stack([below, above])
    assert not torch.allclose(plain(x, lengths)[0], second)


def test_dropout_of_a_stack_spares_the_first_input_and_the_recurrent_path() -> None:
    below, top = build({"kind": "lstm", "hidden_size": 5}), cells.Elman(5, 5, activation="identity").double()
    stack = Stack([below, top], dropout=0.5)
    x, _ = inputs()
    quiet, _ = stack.eval()(x)
    loud, carry = stack.train()(x)
    assert not torch.allclose(loud, quiet)
    close(carry[0], below(x)[1])
    start = stack.initial_carry(B, x)
    steps = [stack.step(start, x[:, 0]) for _ in range(2)]
    close(steps[0][0][0], steps[1][0][0])
    assert not torch.allclose(steps[0][1], steps[1][1]), "a step drops as a whole run does"
    with torch.no_grad():
        for parameter in (top.V, top.b_h):
            parameter.zero_()
        top.W.copy_(torch.eye(5))
    memory = torch.rand(B, 5, dtype=x.dtype)
    y, _ = stack(x, None, (below.initial_carry(B, x), memory))
    close(y, memory[:, None].expand(B, T, 5))


def test_sizes_of_a_stack_must_meet() -> None:
    with pytest.raises(ValueError, match="layer 0 gives 4 outputs, layer 1 takes 5"):
        Stack([cells.GRU(3, 4), cells.LSTM(5, 4)])
    with pytest.raises(ValueError, match="at least one layer"):
        Stack([])


def test_select_and_map_carry_go_leaf_by_leaf() -> None:
    carry = (torch.zeros(3, 2), (torch.zeros(3), torch.zeros(3, 2, 2)))
    ones = map_carry(torch.ones_like, carry)
    chosen = select(torch.tensor([True, False, True]), ones, carry)
    for leaf in leaves(chosen):
        assert leaf.flatten(1).amax(1).tolist() == [1, 0, 1] if leaf.dim() > 1 else leaf.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="zip"):
        map_carry(torch.add, carry, (torch.zeros(3, 2),))
