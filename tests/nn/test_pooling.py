"""Every pooling obeys the padding law, and each does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from seqapp.nn.pooling import POOLING, Attention, Concat, Pooling
from seqapp.nn.recurrent import gather, valid_mask

B, T, O = 4, 6, 3  # noqa: E741
LENGTHS = torch.tensor([6, 3, 1, 5])

ROWS: dict[str, Any] = {
    "last": "last",
    "mean": "mean",
    "max": "max",
    "attention": "attention",
    "concat": {"kind": "concat", "parts": ["max", {"kind": "concat", "parts": ["last", "attention"]}, "mean"]},
    "concat without last": {"kind": "concat", "parts": ["max", "mean"]},
}


@pytest.fixture(params=ROWS)
def pooling(request: pytest.FixtureRequest) -> Pooling:
    return POOLING.build(ROWS[request.param], size=O).double()


def outputs() -> Tensor:
    return torch.randn(B, T, O, dtype=torch.float64) - 2


def pool(pooling: Pooling, y: Tensor, lengths: Tensor | None = LENGTHS) -> Tensor:
    sizes = torch.full((len(y),), y.shape[1]) if lengths is None else lengths
    last = gather(y, lengths) if pooling.reads_last else None
    pooled: Tensor = pooling(y, valid_mask(sizes, y.shape[1]), last)
    return pooled


def test_every_kind_has_a_row() -> None:
    assert set(POOLING) == {spec if isinstance(spec, str) else spec["kind"] for spec in ROWS.values()}


def test_batch_answers_as_its_rows_alone(pooling: Pooling) -> None:
    y = outputs()
    pooled = pool(pooling, y)
    assert pooled.shape == (B, pooling.output_size)
    for row, size in enumerate(LENGTHS.tolist()):
        assert_close(pooled[row, None], pool(pooling, y[row, None, :size], None), rtol=0, atol=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_padding_never_matters(pooling: Pooling, junk: float) -> None:
    clean = outputs()
    mask = valid_mask(LENGTHS, T)[..., None]

    def run(padding: float) -> list[Tensor]:
        y = torch.where(mask, clean, torch.tensor(padding)).requires_grad_()
        pooled = pool(pooling, y)
        return [pooled, *torch.autograd.grad(pooled.square().sum(), [y, *pooling.parameters()])]

    for got, expected in zip(run(junk), run(0.0), strict=True):
        assert torch.equal(got, expected)
        assert got.isfinite().all()
    gradient = run(junk)[1]
    assert not gradient.masked_select(~mask).any()
    assert gradient.any(-1).any(-1).all(), "a row without influence"


def test_no_mask_is_a_mask_without_padding(pooling: Pooling) -> None:
    y = outputs()
    last = gather(y, None) if pooling.reads_last else None
    assert torch.allclose(pooling(y, None, last), pool(pooling, y, None), rtol=0, atol=1e-12)


def test_gradcheck(pooling: Pooling) -> None:
    y = outputs().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: pool(pooling, y), (y,))


def test_every_parameter_gets_a_gradient(pooling: Pooling) -> None:
    pool(pooling, outputs().requires_grad_()).square().sum().backward()
    assert not [name for name, p in pooling.named_parameters() if p.grad is None or not p.grad.any()]


def test_reads_last_tells_the_truth(pooling: Pooling) -> None:
    y = outputs()
    mask = valid_mask(LENGTHS, T)
    zero, one = (pooling(y, mask, torch.full((B, O), value, dtype=y.dtype)) for value in (0.0, 1.0))
    assert torch.equal(zero, one) != pooling.reads_last


def test_simple_poolings_by_hand() -> None:
    y = outputs()
    rows = [row[:size] for row, size in zip(y, LENGTHS.tolist(), strict=True)]
    for kind, expected in {
        "last": [row[-1] for row in rows],
        "mean": [row.mean(0) for row in rows],
        "max": [row.amax(0) for row in rows],
    }.items():
        assert_close(pool(POOLING.build(kind, size=O), y), torch.stack(expected))


def test_attention_is_the_equation() -> None:
    attention = POOLING.build("attention", size=O).double()
    assert isinstance(attention, Attention)
    y = outputs()
    A, a, q = attention.project.weight, attention.project.bias, attention.query.weight[0]
    weights = attention.weights(y, valid_mask(LENGTHS, T))
    for row, size in enumerate(LENGTHS.tolist()):
        score = torch.tanh(y[row, :size] @ A.T + a) @ q
        alpha = score.exp() / score.exp().sum()
        assert_close(weights[row, :size], alpha, rtol=0, atol=1e-12)
        assert not weights[row, size:].any()
        assert_close(pool(attention, y)[row], alpha @ y[row, :size], rtol=0, atol=1e-12)


def test_concat_is_its_parts_side_by_side() -> None:
    y = outputs()
    whole = pool(POOLING.build({"kind": "concat", "parts": ["mean", "last"]}, size=O), y)
    assert_close(whole, torch.cat([pool(POOLING.build(kind, size=O), y) for kind in ("mean", "last")], -1))
    with pytest.raises(ValueError, match="at least one part"):
        Concat([])
