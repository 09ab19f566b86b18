"""Every head: what it trains by may be an estimate, what it says in eval mode is exact."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.optim import AdamWByRow
from seqapp.nn.heads import HEADS, Head

I, V = 5, 40  # noqa: E741
ROWS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "full, smoothed": {"kind": "full", "label_smoothing": 0.2},
    "sampled, uniform": {"kind": "sampled", "samples": 30, "proposal": "uniform"},
    "sampled, log-uniform": {"kind": "sampled", "samples": 30, "proposal": "log_uniform"},
    "sampled, unigram": {"kind": "sampled", "samples": 30},
    "sampled, bigram": {"kind": "sampled", "samples": 30, "proposal": "bigram"},
    "adaptive importance": {"kind": "adaptive_importance", "samples": 15, "most": 60},
    "adaptive importance, bigram": {"kind": "adaptive_importance", "samples": 30, "proposal": "bigram"},
    "target sampling": {"kind": "target_sampling", "samples": 20},
    "target sampling, not weighted": {"kind": "target_sampling", "samples": 20, "weighted": False},
    "nce": {"kind": "nce", "samples": 100},
    "nce, bigram": {"kind": "nce", "samples": 100, "proposal": "bigram"},
    "self-normalised": {"kind": "self_normalised"},
    "self-normalised, sampled": {"kind": "self_normalised", "samples": 30},
    "adaptive": {"kind": "adaptive", "cutoffs": [5, 15]},
    "adaptive, one cluster": {"kind": "adaptive"},
}
BIASED = ("full, smoothed", "target sampling, not weighted")
"""What these are trained to say is not the distribution of the data."""


def build(name: str, *, fitted: bool = True) -> Head:
    """The head of a row, told the frequencies of a text in which class j comes 40 - j times."""
    torch.manual_seed(1)
    head = HEADS.build(ROWS[name], input_size=I, classes=V)
    if fitted:
        pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))[::7]
        head.fit(V - torch.arange(V), (pairs, 1 + torch.arange(len(pairs)) % 5))
    return head


def rows(count: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, I), targets (N,), and the classes before them (N,)."""
    return torch.randn(count, I), torch.randint(0, V, (count,)), torch.randint(0, V, (count,))


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_kind_has_a_row() -> None:
    assert set(HEADS) == {spec["kind"] for spec in ROWS.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", [True, False])
def test_loss_in_eval_mode_is_the_cross_entropy_of_the_logits(name: str, dtype: torch.dtype, gradient: bool) -> None:
    head = build(name).to(dtype).eval()
    x, targets, _ = rows()
    x = x.to(dtype)
    with torch.set_grad_enabled(gradient):
        logits = head.logits(x)
        assert logits.shape == (11, V)
        assert logits.dtype == dtype
        log_probs = logits - logits.exp().sum(1, keepdim=True).log()
        exact = -log_probs[torch.arange(11), targets]
        assert_close(head.loss(x, targets), exact.mean())
        weights = torch.rand(11, dtype=dtype)
        assert_close(head.loss(x, targets, weights), exact @ weights)


def test_nll_is_that_loss_row_by_row_and_block_by_block(name: str) -> None:
    head = build(name).train()
    x, targets, _ = rows(60)
    exact = cross_entropy(head.logits(x), targets, reduction="none")
    for block in (1, 200, 1000, 10**6):
        head.BLOCK = block  # type: ignore[assignment]
        found = head.nll(x.clone().requires_grad_(), targets)
        assert not found.requires_grad
        assert_close(found, exact.detach())
    assert head.nll(x[:0], targets[:0]).shape == (0,)


def test_training_loss_of_weighted_rows_is_their_weighted_sum(name: str) -> None:
    head, (x, targets, previous) = build(name).train(), rows()
    found = []
    for weights in (None, torch.full((11,), 1 / 11), torch.full((11,), 2 / 11)):
        torch.manual_seed(0)
        found.append(copy.deepcopy(head).loss(x, targets, weights, previous=previous))
    assert_close(found[1], found[0])
    assert_close(found[2], 2 * found[0])


def test_the_mean_over_no_rows_is_zero(name: str) -> None:
    head, (x, targets, previous) = build(name), rows(0)
    for mode in (True, False):
        loss = head.train(mode).loss(x.requires_grad_(), targets, previous=previous)
        loss.backward()
        assert loss.item() == 0


def test_exact_heads_train_by_the_exact_loss(name: str) -> None:
    head, (x, targets, previous) = build(name), rows()
    loss = head.train().loss(x, targets, previous=previous)
    assert torch.isclose(loss, head.eval().loss(x, targets), rtol=1e-6) == head.exact


def test_every_parameter_gets_a_gradient_in_training(name: str) -> None:
    head, (x, targets, previous) = build(name), rows(50)
    head.train().loss(x, targets, previous=previous).backward()
    for parameter, value in head.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.is_sparse == head.sparse, parameter
        assert value.grad.to_dense().any(), parameter


def test_learns_the_distribution_of_the_data(name: str) -> None:
    head = build(name)
    generator = torch.Generator().manual_seed(0)
    truth = (2 * torch.randn(I, V, generator=generator) - torch.arange(V) / 10).softmax(1)
    optimizer = AdamWByRow(head.parameters(), lr=0.1, weight_decay=0.0)
    batches = []
    for _ in range(200):
        context = torch.randint(0, I, (128,), generator=generator)
        batches.append((context, torch.multinomial(truth[context], 1, generator=generator)[:, 0]))
    counts = torch.bincount(torch.cat([targets for _, targets in batches]), minlength=V)
    pairs = torch.cartesian_prod(torch.arange(I), torch.arange(V))
    head.fit(counts, (pairs, (truth[pairs[:, 0], pairs[:, 1]] * 1e4).long()))
    head.train().begin_epoch(targets for _, targets in batches)
    for step, (context, targets) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / len(batches))
        optimizer.zero_grad()
        head.loss(torch.eye(I)[context], targets, previous=context).backward()
        optimizer.step()
    said = head.eval().logits(torch.eye(I)).log_softmax(1)
    divergence = (truth * (truth.log() - said)).sum(1).mean()
    assert divergence < 0.05 or (name in BIASED and divergence < 0.5)
    if head.self_normalised:
        assert head.logits(torch.eye(I)).logsumexp(1).abs().max() < 0.3


def test_logits_leave_bfloat16_and_training_does_too(name: str) -> None:
    head, (x, targets, previous) = build(name).train(), rows(50)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.logits(x).dtype == torch.float32
        loss = head.loss(x.bfloat16(), targets, previous=previous)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())


def test_weights_alone_say_the_same_again(name: str) -> None:
    head, (x, targets, _) = build(name), rows()
    again = build(name, fitted=False)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.logits(x), head.logits(x))
    assert torch.equal(again.eval().loss(x, targets), head.eval().loss(x, targets))


def test_fitting_starts_at_the_frequencies_and_leaves_trained_weights_alone(name: str) -> None:
    head = build(name)
    start = head.logits(torch.zeros(1, I)).softmax(1)[0]
    assert_close(start, (V - torch.arange(V)) / (V * (V + 1) / 2))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    head.fit(torch.arange(V), (pairs, torch.ones(len(pairs), dtype=torch.long)), start=False)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_a_shared_table_gets_both_gradients(name: str) -> None:
    head, embedding = build(name), nn.Embedding(V, I)
    if ROWS[name]["kind"] == "adaptive":
        with pytest.raises(ValueError, match=r"any kind but 'adaptive'"):
            head.tie(embedding.weight)
        return
    with pytest.raises(ValueError, match=r"\(40, 6\).*\(40, 5\)"):
        head.tie(nn.Embedding(V, 6).weight)
    head.tie(embedding.weight)
    assert [key for key, _ in nn.ModuleList([embedding, head]).named_parameters()] == ["0.weight", "1.project.bias"]
    x, _, _ = rows()
    assert_close(head.logits(x), x @ embedding.weight.T + dict(head.named_parameters())["project.bias"])


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that was made while the mode was on, apart from those in ``known``."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.numbers, self.what = known, 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not tensor.is_sparse:
                held = tensor.untyped_storage().data_ptr()
                if held not in self.known and tensor.untyped_storage().nbytes() // tensor.itemsize > self.numbers:
                    self.numbers, self.what = tensor.untyped_storage().nbytes() // tensor.itemsize, str(func)
        return made


@pytest.mark.parametrize("name", [row for row in ROWS if build(row).sparse])
def test_a_training_step_makes_nothing_as_large_as_the_vocabulary(name: str) -> None:
    classes = 50_000
    spec = {**ROWS[name], "samples": 40}
    head = HEADS.build(spec, input_size=4, classes=classes).train()
    pairs = torch.stack([torch.arange(classes), torch.arange(classes).flip(0)], 1)
    head.fit(torch.arange(classes) + 1, (pairs, torch.ones(classes, dtype=torch.long)))
    optimizer = AdamWByRow(head.parameters(), lr=0.1, weight_decay=0.1)
    x, targets = torch.randn(6, 4), torch.randint(0, classes, (6,))

    def step() -> None:
        optimizer.zero_grad()
        head.loss(x, targets, previous=targets).backward()
        optimizer.step()

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    known = {held.untyped_storage().data_ptr() for held in [*head.parameters(), *head.buffers(), *states]}
    with Largest(known) as largest:
        step()
    assert 0 < largest.numbers < 5_000, largest.what


def test_label_smoothing_holds_in_training_only() -> None:
    head = build("full, smoothed")
    x, targets, _ = rows()
    log_probs = head.logits(x).log_softmax(1)
    smoothed = -(0.8 * log_probs[torch.arange(11), targets] + 0.2 * log_probs.mean(1)).mean()
    assert_close(head.train().loss(x, targets), smoothed)
    assert not torch.isclose(head.eval().loss(x, targets), smoothed)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_full_loss_and_its_gradients_are_those_of_torch(smoothing: float) -> None:
    head = HEADS.build({"kind": "full", "label_smoothing": smoothing}, input_size=5, classes=13).double().train()
    x, targets, weights = torch.randn(11, 5, dtype=torch.double), torch.randint(13, (11,)), torch.rand(11).double()
    x.requires_grad_()
    inputs = [x, *head.parameters()]
    ours = head.losses(x, targets)
    theirs = torch.nn.functional.cross_entropy(head.logits(x), targets, reduction="none", label_smoothing=smoothing)
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours @ weights, inputs), torch.autograd.grad(theirs @ weights, inputs))


def test_a_head_without_frequencies_says_so_or_starts_from_none(name: str) -> None:
    head, (x, targets, previous) = build(name, fitted=False).train(), rows()
    if ROWS[name].get("proposal", "unigram") in ("unigram", "bigram") and head.sparse and "target" not in name:
        with pytest.raises(RuntimeError, match=r"call fit before training"):
            head.loss(x, targets, previous=previous)
    else:
        assert head.loss(x, targets, previous=previous).isfinite()
        assert math.isfinite(head.nll(x, targets).sum())
