"""The step made for generation is the layer's own step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seqapp.nn import cells, decode  # noqa: F401  (cells registers the networks by name)
from seqapp.nn import kept as keeping
from seqapp.nn.decode import fast_logits, fast_step, product
from seqapp.nn.heads import HEADS
from seqapp.nn.recurrent import RECURRENT

H = 512  # large enough for the other library
KINDS = ["lstm", "lstm_linear_output", "gru", "gru_reset_after", "mingru"]
LAYERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "hidden_size": H} for kind in KINDS},
    **{f"small {kind}": {"kind": kind, "hidden_size": 5} for kind in KINDS},
    "weight dropout": {"kind": "weight_dropout", "layer": {"kind": "lstm", "hidden_size": H}},
    "variational": {"kind": "variational", "layer": {"kind": "gru", "hidden_size": H}, "recurrent_dropout": 0.5},
    "stack": {"kind": "stack", "layers": [{"kind": kind, "hidden_size": H} for kind in KINDS]},
    "stack of stacks": {
        "kind": "stack", "residual": True, "skip_to_output": True, "dropout": 0.5,
        "layers": [
            {"kind": "stack", "layers": [{"kind": "gru", "hidden_size": H}]},
            {"kind": "lstm", "hidden_size": H},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_the_fast_step_is_the_step(name: str, rows: int) -> None:
    layer = RECURRENT.build(LAYERS[name], input_size=H).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases that start at 0 too
    step = fast_step(layer, rows)
    carry = slow = layer.initial_carry(rows, torch.empty(rows, H))
    with torch.inference_mode():
        for x in torch.randn(4, H, rows).transpose(1, 2):
            carry, y = step(carry, x)
            slow, expected = layer.step(slow, x)
            assert_close(y, expected, atol=1e-5, rtol=1e-5)
            assert_close(carry, slow, atol=1e-5, rtol=1e-5)


def test_a_step_leaves_the_carry_it_was_given() -> None:
    layer = RECURRENT.build(LAYERS["stack"], input_size=H).eval()
    step = fast_step(layer, 3)
    with torch.inference_mode():
        carry, _ = step(layer.initial_carry(3, torch.empty(3, H)), torch.randn(3, H))
        x = torch.randn(3, H)
        first, again = step(carry, x), step(carry, x)
    assert_close(first, again, atol=0, rtol=0)


def test_in_training_a_layer_steps_as_it_trains() -> None:
    layer = RECURRENT.build(LAYERS["stack of stacks"], input_size=H).train()
    assert fast_step(layer, 1) == layer.step


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("kind", ["full", "adaptive", "sampled"])
def test_fast_logits_are_the_logits(kind: str, rows: int) -> None:
    head = HEADS.build({"kind": kind}, input_size=64, classes=9000).eval()
    x = torch.randn(rows, 64)
    with torch.inference_mode():
        assert_close(fast_logits(head, rows)(x), head.logits(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 70])
@pytest.mark.parametrize("shape", [(2048, 512), (70, 512), (3, 2)])
def test_products_are_linear(shape: tuple[int, int], rows: int) -> None:
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(rows, shape[1])
    with torch.inference_mode():
        assert_close(product(weight, bias, rows)(x), torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
        assert_close(product(weight, None, rows)(x), torch.nn.functional.linear(x, weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("part", [slice(None), slice(600), slice(600, None)])
def test_products_of_weights_side_by_side_and_of_a_part_of_their_outputs(rows: int, part: slice) -> None:
    V, W, bias, x = torch.randn(1024, 300), torch.randn(1024, 500), torch.randn(1024)[part], torch.randn(rows, 800)
    expected = torch.nn.functional.linear(x, torch.cat([V, W], 1)[part], bias)
    with torch.inference_mode():
        for _ in range(2):
            assert_close(product([V, W], bias, rows, part)(x), expected, atol=1e-3, rtol=1e-5)
        x = x[:, :300]
        expected = torch.nn.functional.linear(x, V[part], bias)
        assert_close(product(V, bias, rows, part)(x), expected, atol=1e-3, rtol=1e-5)


def train(weight: nn.Parameter, **options: bool) -> None:
    """One step of an optimizer; a fused one leaves the version of the weight as it was."""
    weight.grad = torch.randn_like(weight)
    torch.optim.AdamW([weight], lr=0.1, **options).step()


def replace(weight: nn.Parameter) -> None:
    weight.data = torch.randn_like(weight)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda weight: weight.data.mul_(1.1), id="in place"),
        pytest.param(partial(train, fused=True), id="fused"),
        pytest.param(partial(train, foreach=True), id="foreach"),
        pytest.param(replace, id="replaced"),
    ],
)
def test_a_kept_copy_is_made_anew_once_a_weight_has_changed(change: Callable[[nn.Parameter], None], which: int) -> None:
    weights = [nn.Parameter(torch.randn(1024, 256)) for _ in range(2)]
    x = torch.randn(8, 512)
    for _ in range(3):
        with torch.inference_mode():
            expected = torch.nn.functional.linear(x, torch.cat(weights, 1))
            assert_close(product(weights, None, 8)(x), expected, atol=1e-3, rtol=1e-5)
        change(weights[which])


def test_a_step_made_before_a_change_keeps_to_the_weights_as_they_stood() -> None:
    weight, x = nn.Parameter(torch.randn(1024, 512)), torch.randn(8, 512)
    with torch.no_grad():
        before = product(weight, None, 8)
        expected = before(x)
        weight.add_(1)
        assert not torch.allclose(product(weight, None, 8)(x), expected)
        assert_close(before(x), expected, atol=0, rtol=0)


def test_copies_of_what_no_training_changes_are_kept_and_go_with_their_weight() -> None:
    kept = len(keeping._KEPT)
    trained, weight = nn.Parameter(torch.randn(1024, 512)), torch.randn(1024, 512)
    for one in (trained, weight, weight):
        multiply = product(one, None, 8)
    assert len(keeping._KEPT) == kept + decode._ONEDNN
    weight.add_(1)
    x = torch.randn(8, 512)
    assert_close(product(weight, None, 8)(x), torch.nn.functional.linear(x, weight), atol=1e-3, rtol=1e-5)
    del weight, one
    gc.collect()
    assert len(keeping._KEPT) == kept
    assert multiply(torch.randn(8, 512)).isfinite().all()
