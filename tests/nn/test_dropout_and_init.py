"""What is dropped and what is not; where weights start."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from seqapp.nn.cells import GRU, LSTM, Elman, GRUResetAfter, JordanMemory
from seqapp.nn.dropout import EmbeddingDropout, LockedDropout, TokenDropout
from seqapp.nn.init import glorot_, orthogonal_

PAD, UNK = 0, 1


def test_token_dropout_replaces_valid_tokens_by_unknown_and_nothing_else() -> None:
    ids = torch.randint(2, 50, (200, 40))
    ids[:, 30:] = PAD
    dropped = TokenDropout(0.3, unk=UNK, pad=PAD)(ids)
    changed = dropped != ids
    assert (dropped[changed] == UNK).all()
    assert not changed[:, 30:].any()
    share = changed[:, :30].float().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 6000)
    assert changed[:, :30].any(0).all()
    assert (ids[:, :30] >= 2).all(), "the input was changed in place"


def test_dropout_does_nothing_at_zero_or_in_eval_mode() -> None:
    ids = torch.randint(0, 50, (5, 7))
    for module in (TokenDropout(0.9, unk=UNK, pad=PAD).eval(), TokenDropout(0.0, unk=UNK, pad=PAD)):
        assert torch.equal(module(ids), ids)


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_locked_dropout_keeps_one_mask_for_all_steps_and_the_mean(p: float) -> None:
    x = torch.rand(300, 5, 80) + 1
    factors = LockedDropout(p)(x) / x
    assert_close(factors, factors[:, :1].expand_as(factors))
    assert {round(value, 4) for value in factors.unique().tolist()} <= {0.0, round(1 / (1 - p), 4)}
    dropped = (factors[:, 0] == 0).float()
    spread = math.sqrt(p * (1 - p))
    assert abs(dropped.mean().item() - p) < 4 * spread / math.sqrt(dropped.numel())
    assert (dropped.mean(0) - p).abs().max() < 6 * spread / math.sqrt(300), "each row draws for itself"
    assert (dropped.mean(1) - p).abs().max() < 6 * spread / math.sqrt(80), "each unit draws for itself"
    assert abs(factors.mean().item() - 1) < 4 * spread / (1 - p) / math.sqrt(dropped.numel())


def test_embedding_dropout_gives_a_type_one_fate_in_the_whole_batch() -> None:
    table = torch.nn.Embedding(500_000, 4)
    ids = torch.cat([torch.randint(0, 500_000, (20, 40)), torch.randint(0, 30, (20, 40))], 1)
    p, x = 0.3, table(ids)
    factors = (EmbeddingDropout(p)(x, ids) / x).detach()
    assert_close(factors, factors[..., :1].expand_as(factors))
    fates = factors[..., 0]
    assert {round(value, 4) for value in fates.unique().tolist()} == {0.0, round(1 / (1 - p), 4)}
    for one in range(30):
        assert len(fates[ids == one].round(decimals=4).unique()) == 1
    rare = fates[:, :40]
    assert abs((rare == 0).float().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / rare.numel())
    assert abs(rare.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / rare.numel())


def test_a_dropped_type_gets_no_gradient_and_a_kept_one_a_scaled_one() -> None:
    table = torch.nn.Embedding(50, 3)
    ids = torch.arange(50).repeat(2, 1)
    y = EmbeddingDropout(0.5)(table(ids), ids)
    y.sum().backward()
    assert table.weight.grad is not None
    expected = torch.where((y[0] != 0).any(-1, keepdim=True), 4.0, 0.0).expand(50, 3)
    assert torch.equal(table.weight.grad, expected)
    assert 0 < int((expected[:, 0] == 0).sum()) < 50


def test_each_call_draws_anew_and_eval_or_zero_draws_nothing() -> None:
    x, ids = torch.randn(3, 4, 50), torch.randint(0, 50, (3, 4))
    for first, second in (
        (LockedDropout(0.5)(x), LockedDropout(0.5)(x)),
        (EmbeddingDropout(0.5)(x, ids), EmbeddingDropout(0.5)(x, ids)),
    ):
        assert not torch.equal(first, second)
    for locked, embedding in (
        (LockedDropout(0.9).eval(), EmbeddingDropout(0.9).eval()),
        (LockedDropout(0.0), EmbeddingDropout(0.0)),
    ):
        assert locked(x) is x
        assert embedding(x, ids) is x


def test_locked_dropout_names_what_fits() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\); \(batch, time, units\) fits"):
        LockedDropout(0.5)(torch.ones(3, 4))


def test_orthogonal_blocks_keep_the_norm_and_differ() -> None:
    weight = orthogonal_(torch.empty(12, 4, dtype=torch.float64), gates=3)
    blocks = weight.chunk(3)
    for block in blocks:
        assert_close(block.T @ block, torch.eye(4, dtype=torch.float64))
    assert not torch.allclose(blocks[0], blocks[1])


def test_glorot_bound_is_that_of_one_block() -> None:
    weight = glorot_(torch.empty(4 * 300, 100), gates=4)
    bound = math.sqrt(6 / (300 + 100))
    assert weight.abs().max() <= bound
    for block in weight.chunk(4):
        assert block.abs().max() > 0.99 * bound
        assert abs(block.std().item() - bound / math.sqrt(3)) < 0.02 * bound


@pytest.mark.parametrize(
    "layer", [Elman(6, 8), LSTM(6, 8), GRU(6, 8), GRUResetAfter(6, 8)], ids=lambda layer: type(layer).__name__
)
def test_every_layer_starts_orthogonal(layer: torch.nn.Module) -> None:
    W = layer.get_parameter("W")
    for block in W.view(-1, 8, 8):
        assert_close(block.T @ block, torch.eye(8), rtol=0, atol=1e-5)


def test_forget_bias_is_set_on_the_forget_gate_alone() -> None:
    for bias in (1.0, -3.0):
        layer = LSTM(6, 8, forget_bias=bias)
        assert layer.b.tolist() == [0.0] * 8 + [bias] * 8 + [0.0] * 16
    x = torch.zeros(1, 1, 6)
    remembering = LSTM(6, 8, forget_bias=100.0)
    with torch.no_grad():
        remembering.W.zero_()
    c = torch.randn(1, 8)
    _, (_, after) = remembering(x, None, (torch.zeros(1, 8), c))
    assert_close(after, c)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.9])
def test_the_loop_of_a_jordan_memory_starts_with_norm_one(decay: float) -> None:
    layer = JordanMemory(3, 6, decay=decay).double()
    loop = decay * torch.eye(6, dtype=torch.float64) + layer.output.weight @ layer.W
    assert 0.5 < torch.linalg.matrix_norm(loop, 2) <= 1 + 1e-6
