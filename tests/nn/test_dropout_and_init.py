"""What is dropped and what is not; where weights start."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from seqapp.nn.cells import GRU, LSTM, Elman, GRUResetAfter, JordanMemory
from seqapp.nn.dropout import TokenDropout
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
