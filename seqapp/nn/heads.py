"""From hidden vectors to classes: a head owns the projection, the exact logits and the training loss.

N rows, I inputs, V classes, M candidates (classes whose scores a training step computes), K draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from math import log
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear, logsigmoid, softplus

from seqapp.nn.proposals import Bigram, Fixed, Follower, Proposal
from seqapp.nn.rows import take_rows
from seqapp.registry import NonNegative, Positive, Probability, Registry, Size

Bigrams = tuple[Tensor, Tensor]
"""Pairs of classes that follow each other in the training text, (pairs, 2), each once, and their counts, (pairs,)."""

ProposalName = Literal["uniform", "log_uniform", "unigram", "bigram"]


class Head(nn.Module, ABC):
    """LAW: in eval mode, ``loss(x, targets) == cross_entropy(logits(x), targets)``, whatever training estimates.

    Attributes:
        exact: whether the training loss is the exact cross-entropy, and so may be shown as a likelihood.
        sparse: whether training gives the tables sparse gradients, of the rows touched only.
        needs_bigrams: whether :meth:`fit` needs the pairs and :meth:`loss` the token before each target.
        self_normalised: whether training drives the sum of exp(logits) to 1, so that a logit alone may serve as a
            log-probability where the sum is too dear.
    """

    exact: bool = False
    sparse: bool = False
    needs_bigrams: bool = False
    self_normalised: bool = False

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Exact scores: x (N, I) -> (N, V). Their softmax is the model's distribution."""

    @abstractmethod
    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        """Training loss of each row, (N,); arguments as of :meth:`loss`."""

    @abstractmethod
    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        """Exact -log p of the targets in nats, (N,), without gradient and without ever holding (N, V) numbers."""

    def loss(
        self, x: Tensor, targets: Tensor, weights: Tensor | None = None, *, previous: Tensor | None = None
    ) -> Tensor:
        """The loss of N rows: in training mode what the head trains by, in eval mode the exact cross-entropy.

        Args:
            x: (N, I).
            targets: (N,), classes.
            weights: (N,); the mean over the rows if None, else the weighted sum.
            previous: (N,), the class before each target, for bigram proposals.

        Returns:
            A scalar, in nats; 0 for no rows.
        """
        if not len(targets):
            return x.sum() * 0.0
        if self.training:
            losses = self.losses(x, targets, previous)
        elif torch.is_grad_enabled():
            losses = cross_entropy(self.logits(x), targets, reduction="none")
        else:
            losses = self.nll(x, targets)
        return losses.mean() if weights is None else losses @ weights

    def tie(self, weight: Tensor) -> None:
        """Use ``weight`` (V, I), the table of the embedding, as output table (Press & Wolf 2017).

        Raises:
            ValueError: if this kind has no table of that shape.
        """
        raise ValueError("this head has no table (classes, inputs) to share with the embedding; any kind but "
                         "'adaptive' has one")  # fmt: skip

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        """Learn the frequencies of the training text, before training; again before a training that goes on.

        Args:
            unigrams: (V,), how often each class is a target.
            bigrams: needed if ``needs_bigrams``.
            start: start the bias at the classes' log-frequencies; False where the weights are trained already.
        """

    def begin_epoch(self, targets: Iterable[Tensor]) -> None:
        """Before an epoch: the targets of each training batch to come, in order; read as training goes on."""


HEADS: Registry[Head] = Registry("head", given=("input_size", "classes"))


class LinearHead(Head):
    """One linear layer for all classes; its kinds differ in how they are trained, not in what they can say.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
    """

    BLOCK = 2**22
    """Most scores that :meth:`nll` holds at a time."""

    def __init__(self, input_size: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, classes)

    def logits(self, x: Tensor) -> Tensor:
        return _wide(self.project(x))

    def candidates(self, x: Tensor, ids: Tensor, targets: Tensor, less: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of some classes only, with gradients for their rows only.

        Args:
            x: (N, I).
            ids: (M,), candidates shared by all rows.
            targets: (N,).
            less: (M,), subtracted from the candidates' scores.

        Returns:
            Each row's score of its target, (N,), and of the candidates, (N, M).
        """
        taken = torch.cat([ids, targets])
        rows, bias = take_rows(self.project.weight, taken), take_rows(self.project.bias, taken)
        M = len(ids)
        others = linear(x, rows[:M], bias[:M] - less.to(bias.dtype))
        return _wide((x * rows[M:]).sum(1) + bias[M:]), _wide(others)

    @torch.no_grad()
    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        found = []
        for rows, wanted in zip(torch.split(x, 1024), torch.split(targets, 1024), strict=True):
            width = max(1, self.BLOCK // max(1, len(rows)))
            log_z, score = [], torch.zeros(())
            for first in range(0, len(self.project.weight), width):
                part = slice(first, first + width)
                scores = _wide(linear(rows, self.project.weight[part], self.project.bias[part]))
                log_z.append(scores.logsumexp(1))
                here = scores.gather(1, (wanted - first).clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
                score = torch.where(wanted >= first, here, score.to(here))
            found.append(torch.stack(log_z).logsumexp(0) - score)
        return torch.cat(found)

    def tie(self, weight: Tensor) -> None:
        if weight.shape != self.project.weight.shape:
            raise ValueError(
                f"the embedding's table is {tuple(weight.shape)} and the head's {tuple(self.project.weight.shape)}; to "
                "share one, what enters the head must be as wide as the embedding"
            )
        self.project.weight = weight

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        if start:
            with torch.no_grad():
                self.project.bias.copy_(_log_share(unigrams))


@HEADS.register("full")
class FullSoftmax(LinearHead):
    """One linear layer and a softmax over every class.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        label_smoothing: share of the target's probability spread over all classes in training (Szegedy et al. 2016).
    """

    def __init__(self, input_size: int, classes: int, *, label_smoothing: Probability = 0.0) -> None:
        super().__init__(input_size, classes)
        self.label_smoothing, self.exact = label_smoothing, label_smoothing == 0

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        losses: Tensor = _CrossEntropy.apply(self.logits(x), targets, self.label_smoothing)  # type: ignore[no-untyped-call]
        return losses


class _CrossEntropy(torch.autograd.Function):
    """(1 - e) -log p_t + e mean_j -log p_j of each row: scores (N, V), targets (N,) -> (N,).

    The same as torch's ``cross_entropy`` with ``label_smoothing`` e, in half the passes over (N, V) numbers: the
    gradient of a score is p_j - e / V, less 1 - e at the target, made in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        log_probs = scores.log_softmax(1)
        losses = (smoothing - 1) * log_probs.gather(1, targets[:, None])[:, 0]
        if smoothing:
            losses -= smoothing * log_probs.mean(1)
        ctx.save_for_backward(log_probs, targets)
        ctx.smoothing = smoothing
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_probs, targets = ctx.saved_tensors
        found = log_probs.exp()
        if ctx.smoothing:
            found -= ctx.smoothing / found.shape[1]
        found[torch.arange(len(found), device=found.device), targets] -= 1 - ctx.smoothing
        return found.mul_(gradients[0][:, None]), None, None


class DrawingHead(LinearHead):
    """A linear head that trains on negatives drawn from a proposal."""

    sparse = True

    def __init__(self, input_size: int, classes: int, proposal: ProposalName) -> None:
        super().__init__(input_size, classes)
        self.proposal_name = proposal
        self.needs_bigrams = proposal == "bigram"
        self._proposal: Proposal | None = None
        if proposal == "uniform":
            self._proposal = Fixed(torch.ones(classes))
        if proposal == "log_uniform":
            self._proposal = Fixed(_log_uniform(torch.arange(classes)))

    @property
    def proposal(self) -> Proposal:
        """Where negatives come from.

        Raises:
            RuntimeError: before ``fit``, if the proposal is one that is learned.
        """
        if self._proposal is None:
            raise RuntimeError(
                f"the {self.proposal_name} proposal is made of the training text's frequencies: call fit before "
                "training, or choose the proposal uniform or log_uniform"
            )
        return self._proposal

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        """As of every head; unigram^0.75 is the proposal of Mikolov et al. 2013.

        Raises:
            ValueError: if the proposal is learned from bigrams and none are given.
        """
        super().fit(unigrams, bigrams, start=start)
        counts = unigrams.to(self.project.weight.device).double().clamp(min=1)
        if self.proposal_name == "log_uniform":
            self._proposal = Fixed(_log_uniform(_ranks(counts)))
        elif self.proposal_name != "uniform":
            self._proposal = Fixed(counts**0.75)
        if self.needs_bigrams:
            if bigrams is None:
                raise ValueError("the bigram proposal is made of bigrams: give fit the pairs and their counts")
            pairs, times = (part.to(counts.device) for part in bigrams)
            assert self._proposal is not None
            self._proposal = Bigram(self._proposal, pairs, times)


@HEADS.register("sampled")
class SampledSoftmax(DrawingHead):
    """Softmax over the target and a sample of the other classes, weighted so that the sum over all is estimated.

    Of K draws from the proposal q, shared by the rows of a batch, each class counts once, with the weight 1 / pi_j,
    where pi_j = 1 - (1 - q_j)^K is the probability that it is among them (Horvitz & Thompson 1952). So
    Z = exp(s_t) + sum over drawn j != t of exp(s_j) / pi_j has the right mean, and the gradient of log Z - s_t is that
    of the full softmax up to a bias of O(1/K). A draw that hits the row's target is left out of its sum. Sources:
    Bengio & Senecal 2003; Jean et al. 2015.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        samples: K, classes drawn for each batch.
        proposal: where they are drawn from: "uniform", "log_uniform" (by rank), "unigram" (to the power 0.75), or
            "bigram", half of it by what follows the previous tokens in the training text.
    """

    def __init__(
        self, input_size: int, classes: int, *, samples: Size = 1024, proposal: ProposalName = "unigram"
    ) -> None:
        super().__init__(input_size, classes, proposal)
        self.samples = samples

    def negatives(self, targets: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Candidates (M,), sorted, each once, and the probability pi (M,) that each is among them."""
        ids = torch.unique(self.proposal.draw(self.samples, previous))
        return ids, _inclusion(self.proposal.probability(ids, previous), self.samples)

    def estimate(self, x: Tensor, targets: Tensor, ids: Tensor, inclusion: Tensor) -> Tensor:
        """Scores whose softmax stands for that over all classes, (N, 1 + M): of the target, of the candidates."""
        score, others = self.candidates(x, ids, targets, inclusion.log())
        scores = torch.cat([score[:, None], others], 1)
        place = torch.searchsorted(ids, targets).clamp_(max=len(ids) - 1)
        hits = (ids[place] == targets).nonzero()[:, 0]
        scores[hits, 1 + place[hits]] = -torch.inf
        return scores

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        return _surprise(self.estimate(x, targets, *self.negatives(targets, previous)))


@HEADS.register("adaptive_importance")
class AdaptiveImportance(SampledSoftmax):
    """Importance sampling whose proposal follows the model and whose sample grows when it says too little.

    Half of the proposal is an exponential mean of the probabilities that the model itself gave to the candidates of
    past batches, the other half stays as it is. The effective sample size of a batch is 1 / mean_n of the relative
    variance of Z_n, which is sum_j (1 - pi_j) p_nj^2 over the candidates j with estimated probability p_nj; for
    small pi that is the (sum w)^2 / sum w^2 of Kong 1992. The number of draws goes with it, so that it
    comes to ``effective_size``. Source: Bengio & Senecal 2008.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        samples: fewest draws for a batch.
        most: most draws for a batch.
        effective_size: effective sample size to keep.
        proposal: the half that stays, as for "sampled".
        memory: batches after which a share of 1/e of what the model said is left in the proposal.
    """

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        samples: Size = 1024,
        most: Size = 8192,
        effective_size: Positive = 100.0,
        proposal: ProposalName = "unigram",
        memory: Annotated[int, Field(ge=2)] = 500,
    ) -> None:
        if most < samples:
            raise ValueError(f"most is {most}, fewer than samples, {samples}; at least as many fit")
        super().__init__(input_size, classes, samples=samples, proposal=proposal)
        self.least, self.most, self.effective_size, self.memory = samples, most, effective_size, memory
        self._noise: Tensor | None = None
        if self._proposal is not None:
            self._follow(torch.ones(classes))

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        if isinstance(self._proposal, Follower):
            self._proposal = self._proposal.stays
        super().fit(unigrams, bigrams, start=start)
        self._follow(unigrams.to(self.project.weight.device).double().clamp(min=1))

    def _follow(self, weights: Tensor) -> None:
        assert self._proposal is not None
        self._start = weights
        self._proposal = Follower(self._proposal, weights, share=0.5, memory=self.memory)

    def begin_epoch(self, targets: Iterable[Tensor]) -> None:
        # What was seen of the model is in no checkpoint; an epoch run again after a cut must be the same epoch.
        if isinstance(self._proposal, Follower):
            self._proposal = self._proposal.stays
            self._follow(self._start.to(self.project.weight.device))
        self._noise, self.samples = None, self.least

    @property
    def effective_sample_size(self) -> float:
        """Smoothed over the last batches; 0 before the first."""
        return 0.0 if self._noise is None else 1 / max(float(self._noise), 1e-12)

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        ids, inclusion = self.negatives(targets, previous)
        scores = self.estimate(x, targets, ids, inclusion)
        self._adapt(ids, inclusion, targets, scores.detach().softmax(1))
        return _surprise(scores)

    def _adapt(self, ids: Tensor, inclusion: Tensor, targets: Tensor, said: Tensor) -> None:
        """Learn from the estimated probabilities (N, 1 + M) of the targets and the candidates."""
        assert isinstance(self.proposal, Follower)
        self.proposal.learn(torch.cat([targets, ids]), torch.cat([said[:, 0], said[:, 1:].sum(0)]))
        noise = (said[:, 1:].square() @ (1 - inclusion).to(said.dtype)).mean()
        self._noise = noise if self._noise is None else self._noise.lerp(noise, 0.1)
        wanted = self.samples * self.effective_size / self.effective_sample_size
        self.samples = round(min(max(wanted, 0.9 * self.samples, self.least), 1.1 * self.samples + 1, self.most))


@HEADS.register("target_sampling")
class TargetSampling(SampledSoftmax):
    """Softmax over the classes that are targets in a part of the training set.

    The batches to come are cut into partitions of at most ``samples`` different targets; a partition's targets are the
    candidates of all its batches, so that the rows a step touches stay the same for a while. Told of no batches, the
    candidates are the targets of the batch and the ``samples`` most frequent classes. Source: Jean et al. 2015, who
    give every candidate the weight 1; then a rare class counts only where it is likely, and exact probabilities suffer.
    ``weighted`` divides by the probability that a class is a target in the partition.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        samples: different targets in a partition; a batch with more is a partition of its own.
        weighted: weigh candidates by their frequency, so that the sum over all classes is estimated.
    """

    frequent: Tensor
    shares: Tensor | None

    def __init__(self, input_size: int, classes: int, *, samples: Size = 4096, weighted: bool = True) -> None:
        super().__init__(input_size, classes, samples=samples, proposal="uniform")
        self.weighted = weighted
        self.register_buffer("frequent", torch.arange(min(samples, classes)), persistent=False)
        self.register_buffer("shares", None, persistent=False)
        self._parts: Iterator[tuple[Tensor, int]] = iter(())

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        super().fit(unigrams, bigrams, start=start)
        unigrams = unigrams.to(self.frequent.device)
        self.shares = _log_share(unigrams).exp()
        self.frequent = unigrams.argsort(descending=True, stable=True)[: self.samples]

    def begin_epoch(self, targets: Iterable[Tensor]) -> None:
        self._parts = partitions(targets, self.samples)

    def negatives(self, targets: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        ids, seen = next(self._parts, (None, len(targets)))
        certain = self.frequent if ids is None else self.frequent[:0]
        ids = torch.unique(torch.cat([certain, targets])) if ids is None else ids.to(targets.device)
        if not self.weighted or self.shares is None:
            return ids, torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        inclusion = _inclusion(self.shares[ids].double(), seen)
        inclusion[torch.searchsorted(ids, certain)] = 1.0
        return ids, inclusion


def partitions(batches: Iterable[Tensor], most: int) -> Iterator[tuple[Tensor, int]]:
    """For each batch of targets, the different targets of its partition and the number of all of them.

    A partition is the longest run of batches, one at least, with ``most`` different targets or fewer.
    """
    ids, run, seen = torch.empty(0, dtype=torch.long), 0, 0
    for batch in batches:
        both = torch.unique(torch.cat([ids.to(batch.device), batch.flatten()]))
        if run and len(both) > most:
            yield from [(ids, seen)] * run
            ids, run, seen = torch.unique(batch), 1, batch.numel()
        else:
            ids, run, seen = both, run + 1, seen + batch.numel()
    yield from [(ids, seen)] * run


@HEADS.register("nce")
class NoiseContrastive(DrawingHead):
    """Tell each target from K draws of noise q, with Z taken to be 1: no sum over classes in training.

    loss = -log sigmoid(s_t - log K q_t) - sum over draws j of log sigmoid(log K q_j - s_j); its gradient tends to that
    of the likelihood with Z = 1 as K grows. The draws are shared by the rows of a batch, and may hit the target.
    Sources: Gutmann & Hyvarinen 2010; Mnih & Teh 2012.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        samples: K, draws for each batch.
        proposal: the noise, as for "sampled".
    """

    self_normalised = True

    def __init__(
        self, input_size: int, classes: int, *, samples: Size = 1024, proposal: ProposalName = "unigram"
    ) -> None:
        super().__init__(input_size, classes, proposal)
        self.samples = samples
        nn.init.constant_(self.project.bias, -log(classes))

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        ids, times = torch.unique(self.proposal.draw(self.samples, previous), return_counts=True)

        def noise(ids: Tensor) -> Tensor:
            """log K q."""
            return (self.samples * self.proposal.probability(ids, previous)).log()

        score, others = self.candidates(x, ids, targets, noise(ids))
        apart: Tensor = softplus(others) @ times.to(others.dtype)
        return apart - logsigmoid(score - noise(targets).to(score.dtype))


@HEADS.register("self_normalised")
class SelfNormalised(SampledSoftmax):
    """Softmax with a penalty on log^2 Z, so that the scores can be read as log-probabilities without the sum.

    loss = log Z - s_t + penalty log^2 Z. Source: Devlin et al. 2014.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        penalty: weight of log^2 Z.
        samples: estimate Z from so many draws, as "sampled" does; from all classes if null.
        proposal: where they are drawn from.
    """

    self_normalised = True

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        penalty: NonNegative = 0.1,
        samples: Size | None = None,
        proposal: ProposalName = "unigram",
    ) -> None:
        super().__init__(input_size, classes, samples=samples or classes, proposal=proposal)
        self.penalty, self.sparse = penalty, samples is not None
        self.needs_bigrams = self.needs_bigrams and self.sparse
        nn.init.constant_(self.project.bias, -log(classes))

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        if self.sparse:
            scores = self.estimate(x, targets, *self.negatives(targets, previous))
            score = scores[:, 0]
        else:
            scores = self.logits(x)
            score = scores.gather(1, targets[:, None])[:, 0]
        log_z = scores.logsumexp(1)
        return log_z - score + self.penalty * log_z.square()


@HEADS.register("adaptive")
class AdaptiveSoftmax(Head):
    """Frequent classes first, the rest in clusters that are looked into only where a target lies in one.

    p(j) = p(j | x) for the classes of the first cluster, p(cluster | x) p(j | cluster, x) for the others. The rarer a
    cluster's classes, the narrower the projection before its table. Source: Grave et al. 2017.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        cutoffs: ranks by frequency at which a cluster ends and the next begins, rising; chosen by V if null.
        shrink: each cluster's projection is so many times narrower than the one before.
        narrowest: least width of a projection.
    """

    exact = True
    rank: Tensor

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        cutoffs: list[Size] | None = None,
        shrink: Size = 2,
        narrowest: Size = 16,
    ) -> None:
        super().__init__()
        cutoffs = default_cutoffs(classes) if cutoffs is None else [cut for cut in cutoffs if cut < classes]
        if cutoffs != sorted(set(cutoffs)):
            raise ValueError(f"cutoffs rise from each to the next; {cutoffs} do not")
        self.cutoffs = [*cutoffs, classes]
        # A buffer, saved with the weights: which class a row of the tables stands for.
        self.register_buffer("rank", torch.arange(classes))
        self.first = nn.Linear(input_size, self.cutoffs[0] + len(cutoffs))
        self.rest = nn.ModuleList()
        for index, (low, high) in enumerate(zip(self.cutoffs, self.cutoffs[1:], strict=False)):
            width = max(1, min(input_size, max(narrowest, input_size // shrink ** (index + 1))))
            self.rest.append(nn.Sequential(nn.Linear(input_size, width, bias=False), nn.Linear(width, high - low)))

    def fit(self, unigrams: Tensor, bigrams: Bigrams | None = None, *, start: bool = True) -> None:
        # A trained table keeps its order.
        if not start:
            return
        with torch.no_grad():
            self.rank.copy_(_ranks(unigrams))
            log_share = torch.empty(self.cutoffs[-1], device=self.rank.device)
            log_share[self.rank] = _log_share(unigrams).to(log_share)
            first, *rest = log_share.tensor_split(self.cutoffs[:-1])
            self.first.bias.copy_(torch.cat([first, *(part.logsumexp(0, keepdim=True) for part in rest)]))
            for tail, part in zip(self.rest, rest, strict=True):
                tail[1].bias.copy_(part - part.logsumexp(0))  # type: ignore[index]

    def logits(self, x: Tensor) -> Tensor:
        """Log-probabilities, (N, V)."""
        first = _wide(self.first(x)).log_softmax(1)
        parts = [first[:, : self.cutoffs[0]]]
        for index, tail in enumerate(self.rest, self.cutoffs[0]):
            parts.append(_wide(tail(x)).log_softmax(1) + first[:, index, None])
        return torch.cat(parts, 1)[:, self.rank]

    def losses(self, x: Tensor, targets: Tensor, previous: Tensor | None = None) -> Tensor:
        rank = self.rank[targets]
        cluster = torch.bucketize(rank, torch.tensor(self.cutoffs[:-1], device=rank.device), right=True)
        entry = torch.where(cluster == 0, rank, self.cutoffs[0] + cluster - 1)
        losses = cross_entropy(_wide(self.first(x)), entry, reduction="none")
        for index, tail in enumerate(self.rest):
            rows = (cluster == index + 1).nonzero()[:, 0]
            within = cross_entropy(_wide(tail(x[rows])), rank[rows] - self.cutoffs[index], reduction="none")
            losses = losses.index_add(0, rows, within)
        return losses

    @torch.no_grad()
    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        # A tail is looked into by the rows that end in it: few of these many are.
        return torch.cat(
            [self.losses(*part) for part in zip(torch.split(x, 256), torch.split(targets, 256), strict=True)]
        )


def default_cutoffs(classes: int) -> list[int]:
    """2,000 classes, then clusters that each hold four times as many."""
    return [cut for cut in (2000 * 4**power for power in range(16)) if cut < classes]


def _wide(scores: Tensor) -> Tensor:
    """float32 at least: a softmax over bfloat16 loses the small probabilities."""
    return scores.float() if scores.dtype.itemsize < 4 else scores


def _surprise(scores: Tensor) -> Tensor:
    """-log of the softmax of the first column, (N,)."""
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device), reduction="none")


def _inclusion(q: Tensor, draws: int) -> Tensor:
    """Probability that a class of probability q is among so many draws."""
    return -torch.expm1(draws * torch.log1p(-q))


def _ranks(counts: Tensor) -> Tensor:
    """0 for the most frequent class, and so on; of equals the lower id first."""
    return counts.argsort(descending=True, stable=True).argsort()


def _log_share(counts: Tensor) -> Tensor:
    """Logs of relative frequencies; a class never seen counts as seen once."""
    counts = counts.double().clamp(min=1)
    return (counts / counts.sum()).log()


def _log_uniform(ranks: Tensor) -> Tensor:
    """Zipf's law: q(rank) ~ log((rank + 2) / (rank + 1))."""
    return torch.log1p(1 / (ranks.double() + 1))
