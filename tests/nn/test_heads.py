"""Every head: in eval mode its loss is the cross-entropy of its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from seqapp.nn.heads import HEADS, Head

ROWS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "full, smoothed": {"kind": "full", "label_smoothing": 0.2},
}


@pytest.fixture(params=ROWS)
def head(request: pytest.FixtureRequest) -> Head:
    return HEADS.build(ROWS[request.param], input_size=5, classes=7)


def test_every_kind_has_a_row() -> None:
    assert set(HEADS) == {spec["kind"] for spec in ROWS.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_in_eval_mode_is_the_cross_entropy_of_the_logits(head: Head, dtype: torch.dtype) -> None:
    head = head.to(dtype).eval()
    x, targets = torch.randn(11, 5, dtype=dtype), torch.randint(0, 7, (11,))
    logits = head.logits(x)
    assert logits.shape == (11, 7)
    assert logits.dtype == dtype
    log_probs = logits - logits.exp().sum(1, keepdim=True).log()
    assert_close(head.loss(x, targets), -log_probs[torch.arange(11), targets].mean())


def test_every_parameter_gets_a_gradient_in_training(head: Head) -> None:
    head.train().loss(torch.randn(11, 5), torch.randint(0, 7, (11,))).backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]


def test_training_lowers_the_exact_loss(head: Head) -> None:
    x, targets = torch.randn(20, 5), torch.arange(20) % 7
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    before = cross_entropy(head.logits(x), targets).item()
    for _ in range(20):
        optimizer.zero_grad()
        head.train().loss(x, targets).backward()
        optimizer.step()
    assert cross_entropy(head.logits(x), targets).item() < before - 0.1


def test_logits_leave_bfloat16(head: Head) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert head.logits(torch.randn(2, 5)).dtype == torch.float32


def test_label_smoothing_holds_in_training_only() -> None:
    head = HEADS.build(ROWS["full, smoothed"], input_size=5, classes=7)
    x, targets = torch.randn(11, 5), torch.randint(0, 7, (11,))
    log_probs = head.logits(x).log_softmax(1)
    smoothed = -(0.8 * log_probs[torch.arange(11), targets] + 0.2 * log_probs.mean(1)).mean()
    assert_close(head.train().loss(x, targets), smoothed)
    assert not torch.isclose(head.eval().loss(x, targets), smoothed)
