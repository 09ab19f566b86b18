"""Estimates of the softmax: their means over all draws, their proposals, and what each kind adapts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from seqapp.nn.heads import HEADS, default_cutoffs, partitions
from seqapp.nn.proposals import Bigram, Fixed, Follower, Proposal

N, I, V = 3, 4, 5  # noqa: E741


def problem(kind: str, **options: Any) -> tuple[Any, Tensor, Tensor]:
    """A head over few classes, x (N, I), targets (N,)."""
    torch.manual_seed(0)
    head = HEADS.build({"kind": kind, **options}, input_size=I, classes=V).double()
    head.fit(torch.tensor([9, 5, 3, 2, 1]), (torch.tensor([[0, 1], [2, 3]]), torch.tensor([4, 1])))
    return head, torch.randn(N, I, dtype=torch.float64), torch.tensor([0, 3, 3])


def gradient(head: Any, loss: Tensor) -> Tensor:
    """Of every parameter, flat."""
    found = torch.autograd.grad(loss, list(head.parameters()))
    return torch.cat([part.to_dense().flatten() for part in found])


def samples(q: Tensor, draws: int) -> Iterator[tuple[Tensor, float]]:
    """Every set of classes that ``draws`` from q can hit, and its probability (inclusion and exclusion)."""
    for size in range(1, V + 1):
        for chosen in combinations(range(V), size):
            parts = (part for less in range(size + 1) for part in combinations(chosen, less))
            probability = sum((-1) ** (size - len(part)) * float(q[list(part)].sum()) ** draws for part in parts)
            yield torch.tensor(chosen), probability


PROPOSALS = ["uniform", "log_uniform", "unigram", "bigram"]


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("draws", [1, 2, 7])
def test_the_sum_over_all_classes_is_estimated_without_bias(proposal: str, draws: int) -> None:
    head, x, targets = problem("sampled", samples=draws, proposal=proposal)
    q = head.proposal.probability(torch.arange(V), torch.tensor([0, 2, 2]))
    mean, total = torch.zeros(N, dtype=torch.float64), 0.0
    for ids, probability in samples(q, draws):
        inclusion = 1 - (1 - q[ids]) ** draws
        mean += probability * head.estimate(x, targets, ids, inclusion).detach().exp().sum(1)
        total += probability
    assert total == pytest.approx(1)
    assert_close(mean, head.logits(x).detach().exp().sum(1))


def test_the_expected_gradient_tends_to_that_of_the_full_softmax() -> None:
    biases, limits = [], (1, 4, 16, 64, 1024)
    for draws in limits:
        head, x, targets = problem("sampled", samples=draws, proposal="uniform")
        with torch.no_grad():
            head.project.weight.mul_(3)  # nearer to even scores every estimate is good
        full = gradient(head, cross_entropy(head.logits(x), targets))
        q = head.proposal.probability(torch.arange(V), None)
        mean = torch.zeros_like(full)
        for ids, probability in samples(q, draws):
            scores = head.estimate(x, targets, ids, 1 - (1 - q[ids]) ** draws)
            mean += probability * gradient(head, -scores.log_softmax(1)[:, 0].mean())
        biases.append(float((mean - full).norm() / full.norm()))
    assert all(more > 2 * less for more, less in pairwise(biases)), biases
    assert biases[0] > 0.05
    assert biases[-1] < 1e-10


@pytest.mark.parametrize(
    "spec", [{"kind": "sampled", "samples": 20_000}, {"kind": "target_sampling", "samples": V}], ids=str
)
def test_with_every_class_as_candidate_it_is_the_full_softmax(spec: dict[str, Any]) -> None:
    head, x, targets = problem(**spec)
    full = cross_entropy(head.logits(x), targets)
    loss = head.train().loss(x, targets)
    assert_close(loss, full)
    assert_close(gradient(head, loss), gradient(head, full))


def test_a_draw_that_hits_the_target_does_not_count() -> None:
    head, x, targets = problem("sampled", samples=1)
    with torch.no_grad():
        scores = head.estimate(x, torch.full_like(targets, 2), torch.tensor([2]), torch.tensor([0.5]))
    assert_close(scores.softmax(1), torch.tensor([[1.0, 0.0]] * N, dtype=torch.float64))
    loss = head.loss(x, torch.full_like(targets, 2))
    assert gradient(head, loss).isfinite().all()


def test_the_gradient_of_nce_tends_to_that_of_the_likelihood() -> None:
    differences = []
    for draws in (20, 200, 2_000, 20_000):
        head, x, targets = problem("nce", samples=draws, proposal="uniform")
        x, targets = x[:1], targets[:1]
        with torch.no_grad():
            head.project.bias -= head.logits(x).logsumexp(1)  # Z is 1, as NCE takes it to be
        full = gradient(head, cross_entropy(head.logits(x), targets))
        # The loss is a sum over draws, so that its mean is that of draws in their expected numbers.
        head.proposal.draw = lambda count, previous: torch.arange(V).repeat(count // V)
        differences.append(float((gradient(head, head.train().loss(x, targets)) - full).norm()))
    assert all(more > 5 * less for more, less in pairwise(differences)), differences
    assert differences[-1] < 1e-3


def test_the_penalty_is_on_the_square_of_log_z() -> None:
    for samples_ in (None, 20_000):
        head, x, targets = problem("self_normalised", penalty=0.3, samples=samples_)
        logits = head.logits(x)
        expected = cross_entropy(logits, targets) + 0.3 * logits.logsumexp(1).square().mean()
        assert_close(head.train().loss(x, targets), expected)


# Proposals


def proposals() -> dict[str, Proposal]:
    torch.manual_seed(0)
    classes = 70
    pairs = torch.stack([torch.tensor([0, 0, 0, 1, 5, 5]), torch.tensor([3, 4, 69, 0, 5, 6])], 1)
    fixed = Fixed(torch.rand(classes) + 0.01)
    bigram = Bigram(fixed, pairs, torch.tensor([5, 1, 3, 2, 1, 1]), share=0.6, most=2)
    follower = Follower(bigram, torch.rand(classes), share=0.5, memory=3)
    for _ in range(5):
        follower.learn(torch.tensor([0, 33, 69, 33]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    empty = Bigram(fixed, pairs[:0], torch.tensor([], dtype=torch.long))
    return {"fixed": fixed, "bigram": bigram, "follower": follower, "bigram without pairs": empty}


@pytest.mark.parametrize("name", proposals())
def test_probabilities_sum_to_one_and_are_those_of_the_draws(name: str) -> None:
    proposal = proposals()[name]
    for previous in (torch.tensor([0, 1, 0, 5, 69, 2]), torch.tensor([7])):
        q = proposal.probability(torch.arange(70), previous)
        assert_close(q.sum(), torch.tensor(1.0, dtype=torch.float64))
        assert (q > 0).all()
        count = 200_000
        found = torch.bincount(proposal.draw(count, previous), minlength=70) / count
        assert ((found - q).abs() < 5 * (q * (1 - q) / count).sqrt() + 1e-5).all()
        some = torch.tensor([4, 69, 4])
        assert_close(proposal.probability(some, previous), q[some])


def test_bigrams_are_the_mean_over_the_rows_of_what_follows() -> None:
    proposal = proposals()["bigram"]
    assert isinstance(proposal, Bigram)
    rest = proposal.rest.probability(torch.arange(70), None)
    q = proposal.probability(torch.arange(70), torch.tensor([0, 0, 1, 9]))
    # 0 -> 3 (5 of 9) and 69 (3 of 9), since two are kept; 1 -> 0 always; nothing is known of 9.
    expected = (1 - 0.6 * (2 * 8 / 9 + 1) / 4) * rest
    expected[3] += 0.6 * 2 / 4 * 5 / 9
    expected[69] += 0.6 * 2 / 4 * 3 / 9
    expected[0] += 0.6 / 4
    assert_close(q, expected)
    with pytest.raises(ValueError, match=r"pass previous \(N,\) to the loss"):
        proposal.draw(3, None)


@pytest.mark.parametrize("highest", [1e100, 1.5])
def test_the_follower_is_an_exponential_mean(highest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Follower, "HIGHEST", highest)
    start = torch.rand(1100, dtype=torch.float64)
    follower = Follower(Fixed(torch.ones(1100)), start, share=1 - 1e-9, memory=7)
    mean = start / start.sum()
    for _ in range(30):
        ids, mass = torch.randint(0, 1100, (20,)), torch.rand(20, dtype=torch.float64)
        follower.learn(ids, mass)
        mean = (1 - 1 / 7) * mean + torch.zeros(1100).double().index_add(0, ids, mass / mass.sum()) / 7
    assert_close(follower.probability(torch.arange(1100), None), mean, rtol=1e-6, atol=1e-10)
    levels = follower.levels
    for lower, upper in pairwise(levels):
        assert_close(upper[: len(lower) // 32], lower.view(-1, 32).sum(1))


# Adaptive importance sampling


def adaptive_importance(**options: Any) -> Any:
    torch.manual_seed(0)
    head = HEADS.build({"kind": "adaptive_importance", **options}, input_size=I, classes=200).train()
    head.fit(torch.arange(200, 0, -1))
    return head


def test_the_sample_grows_while_it_says_too_little_and_shrinks_again() -> None:
    head = adaptive_importance(samples=16, most=128, effective_size=1000.0)
    sizes = []
    for effective_size in (1000.0, 1e-3):
        head.effective_size = effective_size
        for _ in range(60):
            head.loss(torch.randn(20, I), torch.randint(0, 200, (20,)))
            sizes.append(head.samples)
    assert max(sizes[:20]) > 40
    assert sizes[59] == 128
    assert sizes[-1] == 16


def test_the_effective_sample_size_is_that_of_the_weights() -> None:
    head = adaptive_importance(samples=50)
    x, targets = torch.randn(4, I), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(3)
    ids, inclusion = head.negatives(targets, None)
    torch.manual_seed(3)
    with torch.no_grad():
        head.loss(x, targets)
        noise = torch.zeros(4, dtype=torch.float64)
        for row, target in enumerate(targets):
            others = [place for place, index in enumerate(ids) if index != target]
            scores = head.logits(x[row : row + 1])[0].double()
            weights = scores[ids[others]].exp() / inclusion[others]
            z = weights.sum() + scores[target].exp()
            noise[row] = ((weights / z) ** 2 * (1 - inclusion[others])).sum()
    assert head.effective_sample_size == pytest.approx(float(1 / noise.mean()), rel=1e-4)


def test_the_proposal_follows_the_model() -> None:
    head = adaptive_importance(samples=64)
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.copy_(torch.arange(200) / 20)  # the opposite of the frequencies
    said = head.logits(torch.zeros(1, I)).softmax(1)[0].double().detach()

    def divergence() -> float:
        return float((said * (said / head.proposal.probability(torch.arange(200), None)).log()).sum())

    before = divergence()
    for _ in range(1500):
        head.loss(torch.zeros(8, I), torch.multinomial(said, 8))
    assert before > 1
    # Half of it stays, so that no more than log 2 is to be had.
    assert divergence() < 0.7


# Target sampling


@given(
    batches=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), max_size=12),
    most=st.integers(1, 12),
)
def test_partitions_are_the_longest_runs_that_fit(batches: list[list[int]], most: int) -> None:
    found = [(set(ids.tolist()), seen) for ids, seen in partitions(map(torch.tensor, batches), most)]
    expected: list[tuple[set[int], int]] = []
    while len(expected) < len(batches):
        first = last = len(expected)
        while last < len(batches) and (last == first or len(set().union(*batches[first : last + 1])) <= most):
            last += 1
        part = batches[first:last]
        expected += [(set().union(*part), sum(map(len, part)))] * len(part)
    assert found == expected


def test_partitions_read_no_further_than_they_must() -> None:
    read = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(len(read))
            yield torch.arange(3) + 3 * len(read)

    parts = partitions(endless(), 9)
    for _ in range(4):
        next(parts)
    assert len(read) == 7  # two partitions of three batches, and the first of the next


def test_candidates_are_the_targets_to_come() -> None:
    torch.manual_seed(0)
    head: Any = HEADS.build({"kind": "target_sampling", "samples": 4}, input_size=I, classes=50).train()
    head.fit(torch.arange(50))
    batches = [torch.tensor(ids) for ids in ([7, 8], [8, 9], [20, 21, 22, 23, 24, 25], [3])]
    head.begin_epoch(batches)
    expected = [{7, 8, 9}, {7, 8, 9}, {20, 21, 22, 23, 24, 25}, {3}, {3, 46, 47, 48, 49}]
    for targets, candidates in zip([*batches, batches[-1]], expected, strict=True):
        head.zero_grad()
        head.loss(torch.randn(len(targets), I), targets).backward()
        assert set(head.project.weight.grad.coalesce().indices()[0].tolist()) == candidates


# Adaptive softmax


def test_clusters_stand_for_classes_by_frequency() -> None:
    torch.manual_seed(0)
    head: Any = HEADS.build({"kind": "adaptive", "cutoffs": [2, 5]}, input_size=I, classes=9)
    counts = torch.tensor([1, 50, 3, 40, 5, 30, 7, 20, 9])
    head.fit(counts)
    order = counts.argsort(descending=True)
    x = torch.randn(2, I)
    first = head.first(x).softmax(1)
    expected = torch.empty(2, 9)
    expected[:, order[:2]] = first[:, :2]
    expected[:, order[2:5]] = first[:, 2:3] * head.rest[0](x).softmax(1)
    expected[:, order[5:]] = first[:, 3:4] * head.rest[1](x).softmax(1)
    assert_close(head.logits(x).exp(), expected)
    assert_close(expected.sum(1), torch.ones(2))


def test_a_step_of_the_adaptive_softmax_costs_less_than_that_of_the_full_one() -> None:
    classes = 60_000
    targets = (classes ** torch.rand(500)).long()
    products = {}
    for kind in ("full", "adaptive"):
        head = HEADS.build({"kind": kind}, input_size=16, classes=classes).train()
        with FlopCounterMode(display=False) as counter:
            head.loss(torch.randn(500, 16), targets).backward()
        products[kind] = counter.get_total_flops()
    assert products["adaptive"] < products["full"] / 5


def test_clusters_grow_from_the_first_to_the_last() -> None:
    assert default_cutoffs(100) == []
    for classes in (5_000, 30_000, 500_000):
        cutoffs = [0, *default_cutoffs(classes)]
        assert all(low < high for low, high in pairwise(cutoffs))
        assert cutoffs[-1] < classes


@pytest.mark.parametrize(
    ("options", "problem_"),
    [
        ({"kind": "adaptive", "cutoffs": [4, 2]}, r"cutoffs rise from each to the next; \[4, 2\] do not"),
        ({"kind": "adaptive_importance", "samples": 9, "most": 8}, "most is 8, fewer than samples, 9"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], problem_: str) -> None:
    with pytest.raises(ValueError, match=problem_):
        HEADS.build(options, input_size=I, classes=V)


def test_bigram_proposals_need_bigrams() -> None:
    head = HEADS.build({"kind": "sampled", "proposal": "bigram"}, input_size=I, classes=V)
    assert head.needs_bigrams
    with pytest.raises(ValueError, match="give fit the pairs and their counts"):
        head.fit(torch.ones(V))
