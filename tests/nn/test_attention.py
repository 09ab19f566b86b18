"""One table of attentions, one set of laws: each kind against a loop, and whatever is registered obeys them all.

B batch, S source length, T queries, M memory units, Q query units, Z summary units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqapp.nn.attention import ATTENTIONS, Attention, Dot, Memory, MultiHead
from seqapp.nn.recurrent import map_carry, valid_mask

B, S, T, Q, M, Z = 3, 5, 4, 6, 8, 7
LENGTHS = [5, 1, 3]

# Kind, options, and the query size where Q does not fit.
ROWS: dict[str, tuple[dict[str, Any], int]] = {
    "dot": ({"kind": "dot"}, M),
    "general": ({"kind": "general"}, Q),
    "additive": ({"kind": "additive", "size": 5}, Q),
    "multi_head": ({"kind": "multi_head", "heads": 2, "size": 6}, Q),
    "multi_head of one": ({"kind": "multi_head", "heads": 1, "size": 3}, Q),
    "none": ({"kind": "none"}, Q),
}
ALIGNED = [name for name in ROWS if name != "none"]
LEARNED = [name for name in ALIGNED if name != "dot"]


def build(name: str) -> Attention:
    spec, query_size = ROWS[name]
    return ATTENTIONS.build(spec, query_size=query_size, memory_size=M, summary_size=Z).double().eval()


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query (B, T, Q), memory units (B, S, M), mask (B, S), summary (B, Z)."""
    query, y, summary = torch.randn(B, T, ROWS[name][1]), torch.randn(B, S, M), torch.randn(B, Z)
    return query.double(), y.double(), valid_mask(torch.tensor(LENGTHS), S), summary.double()


def test_every_kind_has_a_row() -> None:
    assert {spec["kind"] for spec, _ in ROWS.values()} == set(ATTENTIONS)


def numbers(attention: Attention) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in attention.named_parameters()}


def loop(name: str, p: dict[str, Any], query: Any, y: Any, summary: Any) -> tuple[Any, Any]:
    """One query (Q,), one source without padding (S, M), one summary (Z,) -> context, weights, written out."""

    def mean(scores: list[float], values: list[Any]) -> tuple[Any, Any]:
        exps = [math.exp(score - max(scores)) for score in scores]
        weights = [value / sum(exps) for value in exps]
        return sum(weight * value for weight, value in zip(weights, values, strict=True)), np.array(weights)

    if name == "none":
        return summary, np.ones(1)
    if name == "dot":
        return mean([query @ one for one in y], y)
    if name == "general":
        return mean([query @ (p["W.weight"] @ one) for one in y], y)
    if name == "additive":
        scores = [(p["v.weight"][0] * np.tanh(p["W.weight"] @ query + p["U.weight"] @ one + p["U.bias"])).sum()
                  for one in y]  # fmt: skip
        return mean(scores, y)

    def project(part: str, x: Any) -> Any:
        return p[f"{part}.weight"] @ x + p[f"{part}.bias"]

    heads = ROWS[name][0]["heads"]
    q = np.split(project("query", query), heads)
    keys = [np.split(project("key", one), heads) for one in y]
    values = [np.split(project("value", one), heads) for one in y]
    found = [
        mean([q[head] @ key[head] / math.sqrt(len(q[head])) for key in keys], [value[head] for value in values])
        for head in range(heads)
    ]
    context = project("output", np.concatenate([context for context, _ in found]))
    return context, np.mean([weights for _, weights in found], 0)


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_is_its_equation(name: str) -> None:
    attention = build(name)
    query, y, mask, summary = inputs(name)
    with torch.no_grad():
        context, weights = attention(query, attention.prepare(y, mask, summary))
    assert weights.dtype == query.dtype
    assert context.shape == (B, T, attention.output_size)
    for row, size in enumerate(LENGTHS):
        for t in range(T):
            expected, shares = loop(name, numbers(attention), query[row, t].numpy(), y[row, :size].numpy(),
                                    summary[row].numpy())  # fmt: skip
            assert_close(context[row, t].numpy(), expected)
            assert_close(weights[row, t, : len(shares)].numpy(), shares)


def test_dot_by_hand() -> None:
    """Scores ln 1, ln 2 and ln 5: weights 1/8, 2/8 and 5/8 of (0, 0), (ln 2, 0), (0, ln 5)."""
    y = torch.tensor([[[0, 0], [math.log(2), 0], [0, math.log(5)], [9, 9]]])
    attention = Dot(2, 2)
    context, weights = attention(torch.ones(1, 1, 2), attention.prepare(y, torch.tensor([[True] * 3 + [False]]), y))
    assert weights[0, 0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8, 0])
    assert context[0, 0].tolist() == pytest.approx([math.log(2) / 4, 5 * math.log(5) / 8])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_is_that_of_torch(heads: int) -> None:
    ours = MultiHead(M, M, heads=heads, size=M).double()
    theirs = nn.MultiheadAttention(M, heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query, y, mask, summary = torch.randn(B, T, M).double(), *inputs("multi_head")[1:]
    got = ours(query, ours.prepare(y, mask, summary))
    expected = theirs(query, y, y, key_padding_mask=~mask)
    assert_close(got, expected)


@pytest.mark.parametrize("name", ROWS)
def test_weights_are_shares_of_what_is_valid(name: str) -> None:
    attention = build(name)
    query, y, mask, summary = inputs(name)
    # Scores far apart: the softmax must neither overflow nor lose its sum.
    _, weights = attention(100 * query, attention.prepare(30 * y, mask, summary))
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(B, T, dtype=weights.dtype))
    if attention.aligned:
        assert weights.shape == (B, T, S)
        assert not weights.masked_select(~mask[:, None]).any()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize("name", ROWS)
def test_padding_never_matters(name: str, junk: float) -> None:
    attention = build(name)
    query, clean, mask, summary = inputs(name)

    def run(fill: float) -> tuple[list[Tensor], Tensor]:
        asked, y = query.clone().requires_grad_(), clean.masked_fill(~mask[..., None], fill).requires_grad_()
        context, weights = attention(asked, attention.prepare(y, mask, summary))
        loss = context.square().sum() + (weights[..., 0] ** 2).sum()
        wanted = [asked, y, *attention.parameters()]
        gradients = torch.autograd.grad(loss, wanted, materialize_grads=True) if loss.requires_grad else ()
        return [context, weights, *gradients], y

    expected, _ = run(0.0)
    got, _ = run(junk)
    for one, other in zip(got, expected, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    if name != "none":
        assert not got[3].masked_select(~mask[..., None]).any()


@pytest.mark.parametrize("name", ROWS)
def test_a_batch_answers_as_its_rows_alone(name: str) -> None:
    attention = build(name)
    query, y, mask, summary = inputs(name)
    memory = attention.prepare(y, mask, summary)
    context, weights = attention(query, memory)
    for row, size in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = attention.prepare(y[one, :size], mask[one, :size], summary[one])
        for t in range(T):  # and a query as if it were asked alone
            got = attention(query[one, t : t + 1], alone)
            assert_close(got[0], context[one, t : t + 1])
            assert_close(got[1], weights[one, t : t + 1, : got[1].shape[2]])
    # A memory is a tree of rows, so that sources are taken apart and put together.
    order = torch.tensor([2, 0, 2])
    taken: Memory = map_carry(lambda leaf: leaf[order], memory)
    assert_close(attention(query[order], taken)[0], context[order])


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_those_of_differences(name: str) -> None:
    attention = build(name)
    names = [name for name, _ in attention.named_parameters()]
    query, y, mask, summary = inputs(name)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = attention

        def forward(self, query: Tensor, y: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
            context, weights = attention(query, attention.prepare(y, mask, summary))
            return context, weights if attention.aligned else context

    whole = Whole()

    def run(query: Tensor, y: Tensor, summary: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        given = {f"inner.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        found: tuple[Tensor, Tensor] = torch.func.functional_call(whole, given, (query, y, summary))
        return found

    wanted = [leaf.detach().requires_grad_() for leaf in (query, y, summary, *attention.parameters())]
    assert torch.autograd.gradcheck(run, wanted, fast_mode=True)


@pytest.mark.parametrize("name", LEARNED)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    attention = build(name)
    query, y, mask, summary = inputs(name)
    context, _ = attention(query, attention.prepare(y, mask, summary))
    context.square().sum().backward()
    # What is added to every key alike changes no softmax.
    dead = {name for name, p in attention.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert dead <= ({"key.bias"} if "multi_head" in name else set())


def test_without_attention_every_query_gets_the_summary() -> None:
    attention = build("none")
    query, y, mask, summary = inputs("none")
    context, weights = attention(query, attention.prepare(y, mask, summary))
    assert torch.equal(context, summary[:, None].expand(B, T, Z))
    assert weights.shape == (B, T, 1)
    assert not attention.aligned


@pytest.mark.parametrize("name", ALIGNED)
def test_dropout_is_of_weights_in_training_alone_and_keeps_their_mean(name: str) -> None:
    spec, query_size = ROWS[name]
    attention = ATTENTIONS.build({**spec, "dropout": 0.5}, query_size=query_size, memory_size=M, summary_size=Z)
    query, y, mask, summary = (given.float() if given.is_floating_point() else given for given in inputs(name))
    memory = attention.prepare(y, mask, summary)
    quiet, weights = attention.eval()(query, memory)
    draws = [attention.train()(query, memory) for _ in range(1500)]
    assert_close(torch.stack([context for context, _ in draws]).mean(0), quiet, rtol=0, atol=0.25)
    assert not torch.allclose(draws[0][0], quiet)
    assert torch.equal(draws[0][1], weights), "what a person is shown is where the model looks"


@pytest.mark.parametrize("name", ROWS)
def test_bfloat16_is_close(name: str) -> None:
    attention = build(name).float()
    query, y, mask, summary = (given.float() if given.is_floating_point() else given for given in inputs(name))
    expected, _ = attention(query, attention.prepare(y, mask, summary))
    with torch.autocast("cpu", torch.bfloat16):
        context, weights = attention(query, attention.prepare(y, mask, summary))
    assert_close(context.float(), expected, rtol=0.05, atol=0.05)
    assert_close(weights.float().sum(-1), torch.ones(B, T))


def test_misfits_are_told() -> None:
    with pytest.raises(ValueError, match="a query of 6 with a memory of 8; equal sizes fit, or the kind general"):
        Dot(6, 8)
    with pytest.raises(ValueError, match="8 units cannot be shared by 3 heads; a multiple of 3 fits"):
        MultiHead(6, 8, heads=3, size=8)
