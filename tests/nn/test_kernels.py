"""The hand-derived loops against autograd through plain loops, on inputs that nobody picked.

B batch, T time, I inputs, H hidden, F feedback signal; time comes first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from seqapp.nn import cells, kernels
from seqapp.nn.recurrent import RECURRENT, Recurrent

Tensors = list[Tensor]
Answer = tuple[Tensor, Tensors]
Run = Callable[[Tensors], Answer]
"""Inputs that may need a gradient -> y (T, B, O) and the leaves of the state at each row's end."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": lambda z: z.clamp(min=0),
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "identity": lambda z: z,
}


def named(name: str, text: str) -> str:
    return f"{name}: {text}"


def row_by_row(
    step: Callable[[Tensors, Tensor, int], tuple[Tensors, Tensor]], state: Tensors, x: Tensor, sizes: Sequence[int]
) -> Answer:
    """``step`` for one row after another, each as long as ``sizes`` says, in plain autograd."""
    rows, ends = [], []
    for row in range(x.shape[1]):
        now, outputs = [leaf[row : row + 1] for leaf in state], []
        for t in range(sum(size > row for size in sizes)):
            now, y = step(now, x[t, row : row + 1], row)
            outputs.append(y[0])
        padding = [torch.zeros_like(outputs[0])] * (len(sizes) - len(outputs))
        rows.append(torch.stack(outputs + padding))
        ends.append(now)
    return torch.stack(rows, 1), [torch.cat(leaves) for leaves in zip(*ends, strict=True)]


class Case:
    """One kernel, its inputs, and the plain loop that says what is right."""

    def __init__(self, fast: Run, plain: Run, names: str, tensors: Tensors, sizes: Sequence[int]) -> None:
        self.fast, self.plain, self.names, self.tensors, self.sizes = fast, plain, names.split(), tensors, sizes

    def compare(self, seed: int = 0, used: str = "both", dtype_limit: float = 1e-10) -> None:
        needed = [tensor.requires_grad_() for tensor in self.tensors]
        answers = [self.fast(self.tensors), self.plain(self.tensors)]
        gradients = []
        for y, end in answers:
            torch.manual_seed(seed)
            heads = [y, *end] if used == "both" else [y] if used == "y" else end
            gradients.append(
                torch.autograd.grad(
                    heads, needed, [torch.randn_like(head) for head in heads], materialize_grads=True
                )
            )  # fmt: skip
        for got, expected in zip([answers[0][0], *answers[0][1]], [answers[1][0], *answers[1][1]], strict=True):
            assert_close(got, expected, rtol=dtype_limit, atol=dtype_limit)
        for name, got, expected in zip(self.names, *gradients, strict=True):
            assert_close(got, expected, rtol=dtype_limit, atol=dtype_limit, msg=partial(named, name))


def feedback_case(
    sizes: Sequence[int],
    *,
    inputs: int = 3,
    hidden: Sequence[int] = (4,),
    activations: Sequence[Any] = ("tanh",),
    masked: bool = False,
    decay: float = 0.0,
    taps: int = 1,
    through_time: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 0.8,
) -> Case:
    r = torch.Generator().manual_seed(seed)
    T, B, O, F = len(sizes), sizes[0], hidden[-1], taps * hidden[-1]  # noqa: E741

    def new(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    tensors = [new(T, B, inputs), new(B, F), new(hidden[0], inputs), new(hidden[0], F), new(hidden[0])]
    names = "x u V W b"
    for k, (below, above) in enumerate(pairwise(hidden)):
        tensors += [new(above, below), new(above)]
        names += f" U{k} b{k}"
    for t, n in enumerate(sizes):
        tensors[0][t, n:] = 0
    mask = (new(B, F) > 0).to(dtype) * 1.7 if masked else None

    def fast(given: Tensors) -> Answer:
        x, u, *weights = given
        y, end = kernels.feedback(x, sizes, u, *weights, activations=activations, mask=mask, decay=decay, taps=taps,
                                  through_time=through_time)  # fmt: skip
        return y, [end]

    def plain(given: Tensors) -> Answer:
        x, u, V, W, b, *above = given

        def step(state: Tensors, x: Tensor, row: int) -> tuple[Tensors, Tensor]:
            signal = state[0] if through_time else state[0].detach()
            seen = signal if mask is None else signal * mask[row]
            y = FUNCTIONS[activations[0]](x @ V.T + seen @ W.T + b)
            for U, c, name in zip(above[::2], above[1::2], activations[1:], strict=True):
                y = FUNCTIONS[name](y @ U.T + c)
            if taps > 1:
                return [torch.cat([y, signal[:, :-O]], 1)], y
            return [decay * signal + y], y

        return row_by_row(step, [u], x, sizes)

    return Case(fast, plain, names, tensors, sizes)


def lstm_case(
    sizes: Sequence[int], *, inputs: int = 3, hidden: int = 4, masked: bool = False, squash: bool = True, seed: int = 0,
    dtype: torch.dtype = torch.float64, scale: float = 0.8,
) -> Case:  # fmt: skip
    r = torch.Generator().manual_seed(seed)
    T, B, H = len(sizes), sizes[0], hidden

    def new(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    tensors = [new(T, B, inputs), new(B, H), new(B, H), new(4 * H, inputs), new(4 * H, H), new(4 * H)]
    for t, n in enumerate(sizes):
        tensors[0][t, n:] = 0
    mask = (new(B, H) > 0).to(dtype) * 1.7 if masked else None

    def fast(given: Tensors) -> Answer:
        x, h, c, *weights = given
        y, end = kernels.lstm(x, sizes, h, c, *weights, mask=mask, squash=squash)
        return y, list(end)

    def plain(given: Tensors) -> Answer:
        x, h, c, V, W, b = given

        def step(state: Tensors, x: Tensor, row: int) -> tuple[Tensors, Tensor]:
            h, c = state
            seen = h if mask is None else h * mask[row]
            i, f, g, o = torch.split(x @ V.T + seen @ W.T + b, H, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * (torch.tanh(c) if squash else c)
            return [h, c], h

        return row_by_row(step, [h, c], x, sizes)

    return Case(fast, plain, "x h c V W b", tensors, sizes)


def gru_case(
    sizes: Sequence[int], *, inputs: int = 3, hidden: int = 4, masked: bool = False, after: bool = False, seed: int = 0,
    dtype: torch.dtype = torch.float64, scale: float = 0.8,
) -> Case:  # fmt: skip
    r = torch.Generator().manual_seed(seed)
    T, B, H = len(sizes), sizes[0], hidden

    def new(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    tensors = [new(T, B, inputs), new(B, H), new(3 * H, inputs), new(3 * H, H), new(3 * H)]
    tensors += [new(H)] if after else []
    for t, n in enumerate(sizes):
        tensors[0][t, n:] = 0
    mask = (new(B, H) > 0).to(dtype) * 1.7 if masked else None

    def fast(given: Tensors) -> Answer:
        x, h, *weights = given
        y, end = kernels.gru(x, sizes, h, *weights, mask=mask)
        return y, [end]

    def plain(given: Tensors) -> Answer:
        x, h, V, W, b, *inner = given

        def step(state: Tensors, x: Tensor, row: int) -> tuple[Tensors, Tensor]:
            (h,) = state
            seen = h if mask is None else h * mask[row]
            (V_r, V_u, V_n), (W_r, W_u, W_n), (b_r, b_u, b_n) = (torch.split(block, H) for block in (V, W, b))
            r = torch.sigmoid(x @ V_r.T + seen @ W_r.T + b_r)
            u = torch.sigmoid(x @ V_u.T + seen @ W_u.T + b_u)
            product = r * (seen @ W_n.T + inner[0]) if inner else (r * seen) @ W_n.T
            h = (1 - u) * torch.tanh(x @ V_n.T + b_n + product) + u * h
            return [h], h

        return row_by_row(step, [h], x, sizes)

    return Case(fast, plain, "x h V W b" + (" b_inner" if after else ""), tensors, sizes)


def scan_case(T: int, *, chunks: int | None, B: int = 2, H: int = 3, seed: int = 0) -> Case:
    r = torch.Generator().manual_seed(seed)
    keep = torch.rand(T, B, H, generator=r, dtype=torch.float64)
    # Gates that are quite shut or quite open are in every row.
    keep[torch.rand(keep.shape, generator=r) < 0.1] = 0
    keep[torch.rand(keep.shape, generator=r) < 0.1] = 1
    add, h = (torch.randn(*shape, generator=r, dtype=torch.float64) for shape in ((T, B, H), (B, H)))

    def fast(given: Tensors) -> Answer:
        return kernels.linear_scan(*given, chunks=chunks), []

    def plain(given: Tensors) -> Answer:
        keep, add, h = given
        outputs = []
        for t in range(T):
            h = keep[t] * h + add[t]
            outputs.append(h)
        return torch.stack(outputs), []

    return Case(fast, plain, "keep add h", [keep, add, h], [B] * T)


def leak_case(
    sizes: Sequence[int], *, inputs: int = 3, hidden: int = 4, gates: int = 2, seed: int = 0,
    dtype: torch.dtype = torch.float64, scale: float = 0.8,
) -> Case:  # fmt: skip
    r = torch.Generator().manual_seed(seed)
    T, B, H = len(sizes), sizes[0], hidden

    def new(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    tensors = [new(T, B, inputs), new(B, H), new(gates * H, inputs), new(gates * H)]
    for t, n in enumerate(sizes):
        tensors[0][t, n:] = 0

    def fast(given: Tensors) -> Answer:
        x, h, V, b = given
        y, end = kernels.leak(x, sizes, h, V, b)
        return y, [end]

    def plain(given: Tensors) -> Answer:
        x, h, V, b = given

        def step(state: Tensors, x: Tensor, row: int) -> tuple[Tensors, Tensor]:
            (h,) = state
            *opened, n = torch.split(x @ V.T + b, H, 1)
            opened = [torch.sigmoid(gate) for gate in opened]
            share = 1 - opened[0] if gates == 2 else opened[0] / (opened[0] + opened[1])
            h = share * h + (1 - share) * n
            return [h], h

        return row_by_row(step, [h], x, sizes)

    return Case(fast, plain, "x h V b", tensors, sizes)


def window_case(
    sizes: Sequence[int], *, inputs: int = 3, hidden: int = 4, delays: Sequence[int] = (0, 2, 3),
    activation: Any = "tanh", seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 0.8,
) -> Case:  # fmt: skip
    r = torch.Generator().manual_seed(seed)
    T, B = len(sizes), sizes[0]

    def new(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    tensors = [new(delays[-1] + T, B, inputs), new(hidden, len(delays) * inputs), new(hidden)]

    def fast(given: Tensors) -> Answer:
        x, V, b = given
        return kernels.window(x, delays, V, b, activation=activation), []

    def plain(given: Tensors) -> Answer:
        x, V, b = given
        parts = torch.split(V, inputs, 1)
        outputs = []
        for t in range(T):
            seen = (x[t + delays[-1] - delay] @ part.T for delay, part in zip(delays, parts, strict=True))
            outputs.append(FUNCTIONS[activation](sum(seen, b)))
        return torch.stack(outputs), []

    return Case(fast, plain, "x V b", tensors, sizes)


RAGGED = [4, 4, 3, 1, 1, 1]
CASES: dict[str, Callable[..., Case]] = {
    "feedback": lambda **more: feedback_case(RAGGED, **more),
    "feedback relu": lambda **more: feedback_case(RAGGED, activations=["relu"], **more),
    "feedback deep": lambda **more: feedback_case(
        RAGGED, hidden=(4, 5, 2), activations=("relu", "sigmoid", "identity"), **more
    ),
    "feedback masked": lambda **more: feedback_case(RAGGED, masked=True, **more),
    "feedback decay": lambda **more: feedback_case(
        RAGGED, hidden=(4, 2), activations=("tanh", "sigmoid"), decay=0.6, masked=True, **more
    ),
    "feedback taps": lambda **more: feedback_case(
        RAGGED, hidden=(4, 2), activations=("tanh", "identity"), taps=3, masked=True, **more
    ),
    "feedback one step": lambda **more: feedback_case(RAGGED, through_time=False, **more),
    "lstm": lambda **more: lstm_case(RAGGED, **more),
    "lstm masked": lambda **more: lstm_case(RAGGED, masked=True, **more),
    "lstm linear output": lambda **more: lstm_case(RAGGED, squash=False, masked=True, **more),
    "gru": lambda **more: gru_case(RAGGED, **more),
    "gru masked": lambda **more: gru_case(RAGGED, masked=True, **more),
    "gru after": lambda **more: gru_case(RAGGED, after=True, **more),
    "gru after masked": lambda **more: gru_case(RAGGED, after=True, masked=True, **more),
    "leak": lambda **more: leak_case(RAGGED, **more),
    "leak of two gates": lambda **more: leak_case(RAGGED, gates=3, **more),
    "window": lambda **more: window_case(RAGGED, **more),
    "window of one relu": lambda **more: window_case(RAGGED, delays=[0], activation="relu", **more),
    "linear_scan": lambda **more: scan_case(7, chunks=3, **more),
    "linear_scan one chunk": lambda **more: scan_case(7, chunks=1, **more),
}

LOOPS = [name for name in CASES if not name.startswith("linear_scan")]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(lambda given: sorted(given, reverse=True))
size = st.integers(1, 4)
seeds = st.integers(0, 10**6)
heads = st.sampled_from(["both", "y", "end"])


def sizes_of(lengths: Sequence[int]) -> list[int]:
    return [sum(length > t for length in lengths) for t in range(lengths[0])]


@settings(max_examples=60)
@given(
    lengths=lengths, inputs=size, hidden=st.lists(size, min_size=1, max_size=3), masked=st.booleans(),
    memory=st.one_of(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.just(1)), st.tuples(st.just(0.0), st.integers(2, 4))
    ),
    names=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=3, max_size=3), seed=seeds, used=heads,
)  # fmt: skip
def test_feedback_is_the_plain_loop(
    lengths: list[int], inputs: int, hidden: list[int], masked: bool, memory: tuple[float, int], names: list[str],
    seed: int, used: str,
) -> None:  # fmt: skip
    decay, taps = memory
    feedback_case(sizes_of(lengths), inputs=inputs, hidden=hidden, activations=names[: len(hidden)], masked=masked,
                  decay=decay, taps=taps, seed=seed).compare(seed, used)  # fmt: skip


@settings(max_examples=25)
@given(lengths=lengths, inputs=size, hidden=size, masked=st.booleans(), name=st.sampled_from(list(FUNCTIONS)), seed=seeds, used=heads)  # fmt: skip  # noqa: E501
def test_feedback_that_stops_the_gradient_is_the_plain_loop(
    lengths: list[int], inputs: int, hidden: int, masked: bool, name: str, seed: int, used: str
) -> None:
    feedback_case(sizes_of(lengths), inputs=inputs, hidden=[hidden], activations=[name], masked=masked,
                  through_time=False, seed=seed).compare(seed, used)  # fmt: skip


@settings(max_examples=40)
@given(lengths=lengths, inputs=size, hidden=size, masked=st.booleans(), squash=st.booleans(), seed=seeds, used=heads)
def test_lstm_is_the_plain_loop(
    lengths: list[int], inputs: int, hidden: int, masked: bool, squash: bool, seed: int, used: str
) -> None:
    lstm_case(sizes_of(lengths), inputs=inputs, hidden=hidden, masked=masked, squash=squash, seed=seed).compare(
        seed, used
    )


@settings(max_examples=40)
@given(lengths=lengths, inputs=size, hidden=size, masked=st.booleans(), after=st.booleans(), seed=seeds, used=heads)
def test_gru_is_the_plain_loop(
    lengths: list[int], inputs: int, hidden: int, masked: bool, after: bool, seed: int, used: str
) -> None:
    gru_case(sizes_of(lengths), inputs=inputs, hidden=hidden, masked=masked, after=after, seed=seed).compare(seed, used)


@settings(max_examples=40)
@given(lengths=lengths, inputs=size, hidden=size, gates=st.sampled_from([2, 3]), seed=seeds, used=heads)
def test_leak_is_the_plain_loop(lengths: list[int], inputs: int, hidden: int, gates: int, seed: int, used: str) -> None:
    leak_case(sizes_of(lengths), inputs=inputs, hidden=hidden, gates=gates, seed=seed).compare(seed, used)


@settings(max_examples=40)
@given(
    T=size, B=size, inputs=size, hidden=size, count=size, dilation=size, name=st.sampled_from(list(FUNCTIONS)),
    seed=seeds,
)  # fmt: skip
def test_window_is_the_plain_loop(
    T: int, B: int, inputs: int, hidden: int, count: int, dilation: int, name: str, seed: int
) -> None:
    window_case([B] * T, inputs=inputs, hidden=hidden, delays=range(0, count * dilation, dilation), activation=name,
                seed=seed).compare(seed)  # fmt: skip


@pytest.mark.parametrize("kind", ["mingru", "minlstm"])
@pytest.mark.parametrize("ragged", [False, True])
def test_both_ways_of_a_layer_gated_by_its_input_agree(
    kind: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = RECURRENT.build({"kind": kind, "hidden_size": 6}, input_size=3).double()
    x, lengths = torch.randn(4, 9, 3, dtype=torch.float64), torch.tensor([9, 2, 5, 1]) if ragged else None
    carry = torch.randn(4, 6, dtype=torch.float64)
    answers = []
    for busy in (10**9, 0):
        monkeypatch.setattr(cells, "BUSY", busy)
        y, end = layer(x, lengths, carry)
        answers.append([y, end, *torch.autograd.grad(y.square().sum() + end.sum(), list(layer.parameters()))])
    for one, other in zip(*answers, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", [1, 2, 5, 8, 9])
def test_linear_scan_is_the_plain_loop_however_it_is_cut(T: int) -> None:
    for chunks in [None, *range(1, T + 4)]:
        scan_case(T, chunks=chunks, seed=T).compare(dtype_limit=1e-12)
    scan_case(T, chunks=None, B=1, H=1).compare()


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 8])
def test_linear_scan_gradcheck(chunks: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in scan_case(5, chunks=chunks).tensors]
    assert torch.autograd.gradcheck(lambda *given: kernels.linear_scan(*given, chunks=chunks), tensors)


def test_linear_scan_picks_chunks_that_change_no_answer() -> None:
    for B, H in [(1, 1), (64, 64)]:  # the second keeps a CPU busy, so that one loop runs
        case = scan_case(37, chunks=None, B=B, H=H)
        case.compare(dtype_limit=1e-11)


@pytest.mark.parametrize("gate", [0.0, 1e-30, 0.5, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("T", [1, 63, 2000])
def test_linear_scan_with_extreme_gates_in_float32(gate: float, T: int) -> None:
    keep = torch.full((T, 2, 3), gate)
    add, h = torch.randn(T, 2, 3), torch.randn(2, 3)
    expected, state = [], h.double()
    for t in range(T):
        state = keep[t].double() * state + add[t].double()
        expected.append(state)
    for chunks in (None, 1, 7, 44, T):
        y = kernels.linear_scan(keep, add, h, chunks=chunks)
        assert_close(y.double(), torch.stack(expected), rtol=1e-5, atol=1e-5 * float(torch.stack(expected).abs().max()))


def test_second_backward_through_the_same_graph_gives_the_same(case: Case) -> None:
    for tensor in case.tensors:
        tensor.requires_grad_()
    y, end = case.fast(case.tensors)
    loss = y.square().sum() + sum(leaf.square().sum() for leaf in end)
    assert isinstance(loss, Tensor)
    first = torch.autograd.grad(loss, case.tensors, retain_graph=True, materialize_grads=True)
    second = torch.autograd.grad(loss, case.tensors, materialize_grads=True)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("used", ["y", "end"])
def test_backward_from_some_of_the_outputs(case: Case, used: str) -> None:
    if used == "end" and not case.fast(case.tensors)[1]:
        used = "y"
    case.compare(used=used)


def test_each_input_may_be_the_only_one_that_needs_a_gradient(case: Case) -> None:
    for tensor in case.tensors:
        tensor.requires_grad_()
    y, end = case.plain(case.tensors)
    heads = [y, *end]
    expected = torch.autograd.grad(
        heads, case.tensors, [torch.ones_like(head) for head in heads], materialize_grads=True
    )
    for place, name in enumerate(case.names):
        alone = [tensor.detach().requires_grad_(index == place) for index, tensor in enumerate(case.tensors)]
        y, end = case.fast(alone)
        heads = [y, *end]
        (got,) = torch.autograd.grad(
            heads, alone[place], [torch.ones_like(head) for head in heads], materialize_grads=True
        )
        assert_close(got, expected[place], rtol=1e-10, atol=1e-10, msg=partial(named, name))


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, every other place of a larger storage, the axes laid out back to front."""
    axes = tuple(reversed(range(tensor.dim())))
    storage = tensor.new_full([2 * size for size in tensor.permute(axes).shape], float("nan"))
    view = storage[(slice(None, None, 2),) * tensor.dim()].permute(axes)
    return view.copy_(tensor)


def test_strides_of_inputs_and_gradients_do_not_matter(case: Case) -> None:
    plain = [tensor.requires_grad_() for tensor in case.tensors]
    odd = [strided(tensor.detach()).requires_grad_() for tensor in case.tensors]
    assert not odd[0].is_contiguous()
    y, end = case.fast(plain)
    y_odd, end_odd = case.fast(odd)
    heads, heads_odd = [y, *end], [y_odd, *end_odd]
    gradients = [torch.randn_like(head) for head in heads]
    expected = torch.autograd.grad(heads, plain, gradients, materialize_grads=True, retain_graph=True)
    got = torch.autograd.grad(heads_odd, odd, [strided(one) for one in gradients], materialize_grads=True)
    for one, other in zip([*heads_odd, *got], [*heads, *expected], strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    expanded = torch.autograd.grad([head.sum() for head in heads], plain, materialize_grads=True, retain_graph=True)
    full = torch.autograd.grad(heads, plain, [torch.ones_like(head) for head in heads], materialize_grads=True)
    for one, other in zip(expanded, full, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_inputs_are_left_alone_and_outputs_share_nothing(case: Case) -> None:
    before = [tensor.clone() for tensor in case.tensors]
    for tensor in case.tensors:
        tensor.requires_grad_()
    y, end = case.fast(case.tensors)
    torch.autograd.grad([head.sum() for head in [y, *end]], case.tensors, materialize_grads=True)
    for tensor, same in zip(case.tensors, before, strict=True):
        assert torch.equal(tensor.detach(), same)
    places = [tensor.untyped_storage().data_ptr() for tensor in [*case.tensors, y, *end]]
    assert len(set(places)) == len(places)


def test_writing_to_an_output_never_changes_a_gradient_silently(case: Case) -> None:
    def gradients(*, write_to_y: bool = False, write_to_end: bool = False) -> tuple[Tensor, ...]:
        y, end = case.fast(case.tensors)
        loss = torch.stack([head.sum() for head in [y, *end]]).sum()  # which saves neither y nor end itself
        with torch.no_grad():
            for head in [y] * write_to_y + end * write_to_end:
                head.fill_(7)
        return torch.autograd.grad(loss, case.tensors, materialize_grads=True)

    for tensor in case.tensors:
        tensor.requires_grad_()
    for got, expected in zip(gradients(write_to_end=True), gradients(), strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(write_to_y=True)


def test_two_uses_before_one_backward(case: Case) -> None:
    others = [1.3 * tensor for tensor in case.tensors]
    for t, n in enumerate(case.sizes):
        others[0][t, n:] = 0

    def gradients(*uses: Tensors) -> list[Tensor]:
        answers = [case.fast(use) for use in uses]
        loss = torch.stack([y.square().sum() + sum(leaf.sum() for leaf in end) for y, end in answers]).sum()
        return list(torch.autograd.grad(loss, [tensor for use in uses for tensor in use], materialize_grads=True))

    for tensor in [*case.tensors, *others]:
        tensor.requires_grad_()
    together = gradients(case.tensors, others)
    for got, expected in zip(together, gradients(case.tensors) + gradients(others), strict=True):
        assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_numbers_are_the_same(case: Case) -> None:
    y, end = case.fast([tensor.requires_grad_() for tensor in case.tensors])
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            y_quiet, end_quiet = case.fast(case.tensors)
        assert not y_quiet.requires_grad
        for one, other in zip([y_quiet, *end_quiet], [y, *end], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", LOOPS)
def test_autocast_keeps_states_in_full(name: str) -> None:
    case = CASES[name](dtype=torch.float32)
    for tensor in case.tensors:
        tensor.requires_grad_()
    y, end = case.fast(case.tensors)
    with torch.autocast("cpu", torch.bfloat16):
        y_cast, end_cast = case.fast(case.tensors)
    for one, other in zip([y_cast, *end_cast], [y, *end], strict=True):
        assert torch.equal(one, other)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in case.tensors]
    with torch.autocast("cpu", torch.bfloat16):
        y_half, _ = case.fast(halves)
        widened, _ = case.fast([tensor.float() for tensor in halves])
    assert y_half.dtype == torch.float32
    assert torch.equal(y_half, widened)
    for gradient in torch.autograd.grad(y_half.sum(), halves, materialize_grads=True):
        assert gradient.dtype == torch.bfloat16
        assert gradient.isfinite().all()


LONG = [3] * 200 + [2] * 200 + [1] * 100
LONG_CASES: dict[str, Callable[..., Case]] = {
    "feedback": lambda **more: feedback_case(LONG, scale=0.4, **more),
    "feedback relu": lambda **more: feedback_case(LONG, activations=["relu"], scale=0.3, **more),
    "feedback decay": lambda **more: feedback_case(
        LONG, hidden=(4, 2), activations=("tanh", "identity"), decay=0.9, scale=0.2, **more
    ),
    "feedback taps": lambda **more: feedback_case(
        LONG, hidden=(4, 2), activations=("tanh", "identity"), taps=3, scale=0.3, **more
    ),
    "lstm": lambda **more: lstm_case(LONG, masked=True, scale=0.4, **more),
    "lstm linear output": lambda **more: lstm_case(LONG, squash=False, scale=0.4, **more),
    "gru": lambda **more: gru_case(LONG, scale=0.4, **more),
    "gru after": lambda **more: gru_case(LONG, after=True, masked=True, scale=0.4, **more),
}


@pytest.mark.parametrize("name", LONG_CASES)
def test_float32_stays_near_the_truth_over_500_steps(name: str) -> None:
    short, truth = (LONG_CASES[name](dtype=dtype) for dtype in (torch.float32, torch.float64))
    answers = []
    for case in (short, truth):
        tensors = [tensor.requires_grad_() for tensor in case.tensors]
        y, end = case.fast(tensors)
        loss = y.square().mean() + sum(leaf.square().sum() for leaf in end)
        answers.append([y, *end, *torch.autograd.grad(loss, tensors, materialize_grads=True)])
    for got, expected in zip(*answers, strict=True):
        assert_close(got.double(), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.detach().abs().max())))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("block", [1, 8, 12, 16, 23])
def test_where_time_is_cut_into_blocks_changes_nothing(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a block, blocks that divide the row, blocks that do not."""
    monkeypatch.setattr(kernels, "BLOCK_ROWS", block)
    for used in ("both", "y", "end"):
        CASES[name]().compare(used=used)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("block", [8, 2048])
def test_the_way_of_large_products_is_right_for_small_ones(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, short = CASES[name](), CASES[name](dtype=torch.float32)
    monkeypatch.setattr(kernels, "BLOCK_ROWS", block)
    monkeypatch.setattr(kernels, "_WORTH_ONEDNN", 0)
    monkeypatch.setattr(kernels, "_WORTH_ONEDNN_SUM", 0)
    odd = [strided(tensor.detach()) for tensor in short.tensors]
    expected: list[Tensor] = []
    for run, tensors in ((truth.plain, truth.tensors), (short.fast, short.tensors), (short.fast, odd)):
        for tensor in tensors:
            tensor.requires_grad_()
        y, end = run(tensors)
        heads = [y.square().sum(), *(leaf.sum() for leaf in end)]
        gradients = torch.autograd.grad(heads, tensors, materialize_grads=True)
        got = [y, *end, *gradients]
        expected = expected or got
        for one, other in zip(got, expected, strict=True):
            assert_close(one.double(), other.double(), rtol=0, atol=5e-5 * max(1.0, float(other.detach().abs().max())))
    with torch.inference_mode():
        y, _ = short.fast(short.tensors)
    assert_close(y.double(), expected[0].detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [[1], [3], [1, 1, 1]])
def test_one_row_one_step_one_unit(sizes: list[int]) -> None:
    for masked in (False, True):
        feedback_case(sizes, inputs=1, hidden=[1], masked=masked).compare()
        feedback_case(sizes, inputs=1, hidden=[1, 1], activations=["relu", "tanh"], taps=2, masked=masked).compare()
        feedback_case(sizes, inputs=1, hidden=[1], decay=0.5, masked=masked).compare()
        lstm_case(sizes, inputs=1, hidden=1, masked=masked).compare()
        gru_case(sizes, inputs=1, hidden=1, masked=masked).compare()
        gru_case(sizes, inputs=1, hidden=1, masked=masked, after=True).compare()


def test_rows_go_longest_first_and_come_back_in_their_places() -> None:
    lengths, seen = torch.tensor([2, 5, 1, 5]), []

    def loop(x: Tensor, sizes: Sequence[int], carry: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        assert mask is not None
        seen.append((list(sizes), x.shape, mask[:, 0].tolist()))
        return x.clone(), (carry[0] + 1, carry[1])

    x = torch.arange(4 * 6, dtype=torch.float32).view(4, 6, 1) + 1
    x[torch.arange(6) >= lengths[:, None]] = 0
    carry = (torch.arange(4.0)[:, None], torch.arange(4)[:, None] * 10.0)
    y, end = kernels.longest_first(loop, x, lengths, carry, torch.arange(4.0)[:, None])
    assert seen == [([4, 3, 2, 2, 2], torch.Size([5, 4, 1]), [1, 3, 0, 2])]
    assert torch.equal(y, x)
    assert end[0].flatten().tolist() == [1, 2, 3, 4]
    assert end[1].flatten().tolist() == [0, 10, 20, 30]


LAYERS: list[Callable[[], Recurrent[Any]]] = [
    lambda: cells.Elman(3, 4),
    lambda: cells.JordanMemory(3, 4, output_size=2),
    lambda: cells.NARX(3, 4, output_size=2),
    lambda: cells.StateSpace(3, 4, layers=3),
    lambda: cells.LSTMLinearOutput(3, 4),
    lambda: cells.GRU(3, 4),
    lambda: cells.GRUResetAfter(3, 4),
    lambda: cells.MinGRU(3, 4),
]


@pytest.mark.parametrize("make", LAYERS)
def test_functional_call_and_deep_copies(make: Callable[[], Recurrent[Any]]) -> None:
    layer, other = make().double(), make().double()
    x, lengths = torch.randn(3, 5, 3, dtype=torch.float64), torch.tensor([5, 2, 4])
    weights = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    called, _ = torch.func.functional_call(layer, weights, (x, lengths))
    expected, _ = other(x, lengths)
    assert torch.equal(called, expected)
    called.sum().backward()
    expected.sum().backward()
    for name, p in other.named_parameters():
        assert p.grad is not None
        assert_close(weights[name].grad, p.grad, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in layer.parameters())
    twin = copy.deepcopy(layer)
    before = layer(x, lengths)[0].detach()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert torch.equal(layer(x, lengths)[0], before)
    assert not torch.equal(twin(x, lengths)[0], before)
