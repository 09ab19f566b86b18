"""Proposal distributions q over classes, from which a sampled softmax draws its negatives.

N rows, V classes, K draws, M pairs of classes that follow each other. A proposal is shared by the rows of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Proposal(nn.Module, ABC):
    """LAW: ``probability`` of all classes sums to 1, and is the distribution of every entry of ``draw``.

    What a proposal holds is learned again by ``fit``, so none of it is saved with the weights.
    """

    @abstractmethod
    def draw(self, count: int, previous: Tensor | None) -> Tensor:
        """``count`` classes (K,), drawn independently; ``previous`` (N,) are the classes before the targets."""

    @abstractmethod
    def probability(self, ids: Tensor, previous: Tensor | None) -> Tensor:
        """q of ``ids``, float64, of their shape."""


class Fixed(Proposal):
    """One distribution for every batch.

    Args:
        weights: (V,), not negative, of any sum above 0.
    """

    total: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        total = weights.double().cumsum(0)
        # float64 keeps differences of neighbours exact to 1e-16 / q.
        self.register_buffer("total", total / total[-1], persistent=False)

    def draw(self, count: int, previous: Tensor | None) -> Tensor:
        where = torch.rand(count, dtype=torch.float64, device=self.total.device)
        return torch.searchsorted(self.total, where, right=True)

    def probability(self, ids: Tensor, previous: Tensor | None) -> Tensor:
        return self.total[ids] - torch.where(ids > 0, self.total[ids - 1], 0.0)


class Bigram(Proposal):
    """The mean, over the rows of a batch, of what follows their previous classes; the rest of the mass to ``rest``.

    q(j) = share * mean_n p(j | previous_n) + (1 - share * mean_n known_n) rest(j), where p is the relative frequency in
    the training text of the ``most`` classes that follow ``previous_n`` most often and known_n their sum. Source of the
    n-gram proposal: Bengio & Senecal 2008.

    Args:
        rest: proposal of the mass that no pair has.
        pairs: (M, 2), first and second class, each pair once.
        counts: (M,), how often each pair occurs.
        share: mass that follows the previous class, in [0, 1).
        most: classes kept for each previous class; a step's cost grows with it.
    """

    start: Tensor
    follower: Tensor
    known: Tensor
    total: Tensor

    def __init__(self, rest: Proposal, pairs: Tensor, counts: Tensor, *, share: float = 0.5, most: int = 64) -> None:
        super().__init__()
        self.rest, self.share = rest, share
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(pairs[order, 0], stable=True)]
        first, counts = pairs[order, 0], counts[order].double()
        size = int(first.max()) + 1 if len(first) else 0
        of_first = torch.zeros(size, dtype=torch.float64, device=counts.device).index_add_(0, first, counts)
        place = torch.arange(len(first), device=first.device)
        place -= torch.searchsorted(first, first)
        kept = place < most
        first, probability = first[kept], (counts / of_first[first])[kept]
        self.register_buffer("follower", pairs[order[kept], 1], persistent=False)
        self.register_buffer("known", probability, persistent=False)
        self.register_buffer("total", probability.cumsum(0), persistent=False)
        starts = torch.searchsorted(first, torch.arange(size + 1, device=first.device))
        self.register_buffer("start", starts, persistent=False)

    def _lists(self, previous: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each row: where its list starts and ends in ``follower``, the mass before the list and in it."""
        # A class that nothing follows in the training text has an empty list.
        known = previous.clamp(max=len(self.start) - 2)
        first, last = self.start[known], self.start[known + 1]
        last = torch.where(known == previous, last, first)
        before = torch.where(first > 0, self.total[first - 1], 0.0)
        mass = torch.where(last > first, self.total[last - 1] - before, 0.0)
        return first, last, before, mass

    def draw(self, count: int, previous: Tensor | None) -> Tensor:
        drawn = self.rest.draw(count, previous)
        if previous is None:
            raise ValueError("bigram proposals need the token before each target; pass previous (N,) to the loss")
        if not len(self.follower):
            return drawn
        first, last, before, mass = self._lists(previous)
        row = torch.randint(len(previous), (count,), device=drawn.device)
        where = torch.rand(count, dtype=torch.float64, device=drawn.device) / max(self.share, 1e-12)
        inside = where < mass[row]
        place = torch.searchsorted(self.total, before[row] + where, right=True)
        place = torch.minimum(torch.maximum(place, first[row]), (last[row] - 1).clamp(min=0))
        return torch.where(inside, self.follower[place], drawn)

    def probability(self, ids: Tensor, previous: Tensor | None) -> Tensor:
        rest = self.rest.probability(ids, previous)
        if previous is None or not len(self.follower):
            return rest
        seen, times = torch.unique(previous, return_counts=True)
        first, last, _, mass = self._lists(seen)
        weight = self.share * times / len(previous)
        sizes = last - first
        ends = sizes.cumsum(0)
        entry = torch.arange(int(ends[-1]), device=ids.device) + (first - ends + sizes).repeat_interleave(sizes)
        amounts = self.known[entry] * weight.repeat_interleave(sizes)
        wanted, place = torch.unique(ids, return_inverse=True)
        column = torch.searchsorted(wanted, self.follower[entry]).clamp_(max=len(wanted) - 1)
        amounts = torch.where(wanted[column] == self.follower[entry], amounts, 0.0)
        following = torch.zeros(len(wanted), dtype=torch.float64, device=ids.device).index_add_(0, column, amounts)
        q: Tensor = following[place] + (1 - (weight * mass).sum()) * rest
        return q


class Follower(Proposal):
    """A mixture of a proposal that stays and the classes that the model has lately held probable.

    q = (1 - share) stays + share r, where r is an exponential mean of the model's mass over the last ``memory``
    batches, kept as a tree of sums, so that drawing and learning cost O(log V) each. Source of the idea, a proposal
    that is led towards the model while it learns: Bengio & Senecal 2008.

    Args:
        stays: the other proposal.
        weights: (V,), where r starts, of any sum above 0.
        share: of r, in [0, 1).
        memory: batches after which a share of 1/e of a batch's mass is left.
    """

    WIDTH = 32
    HIGHEST = 1e100

    def __init__(self, stays: Proposal, weights: Tensor, *, share: float, memory: int) -> None:
        super().__init__()
        self.stays, self.share, self.memory = stays, share, memory
        self.classes, self.depth, self.growth = len(weights), 0, 1.0
        level = weights.double() / weights.double().sum()
        while self.depth == 0 or len(level) > 1:
            level = nn.functional.pad(level, (0, -len(level) % self.WIDTH))
            self.register_buffer(f"level{self.depth}", level, persistent=False)
            level = level.view(-1, self.WIDTH).sum(1)
            self.depth += 1

    @property
    def levels(self) -> list[Tensor]:
        return [self.get_buffer(f"level{index}") for index in range(self.depth)]

    def draw(self, count: int, previous: Tensor | None) -> Tensor:
        top = self.levels[-1]
        node = torch.zeros(count, dtype=torch.long, device=top.device)
        left = torch.rand(count, dtype=torch.float64, device=top.device) * top.sum()
        for level in reversed(self.levels):
            parts = level.view(-1, self.WIDTH)[node]
            total = parts.cumsum(1)
            # Rounding may leave a little more than the children hold; the last child with any mass takes it.
            left = torch.minimum(left, total[:, -1] * (1 - 1e-15))
            child = torch.searchsorted(total, left[:, None], right=True).clamp_(max=self.WIDTH - 1)
            left = left - (total - parts).gather(1, child)[:, 0]
            node = node * self.WIDTH + child[:, 0]
        recent = torch.rand(count, device=top.device) < self.share
        return torch.where(recent, node.clamp(max=self.classes - 1), self.stays.draw(count, previous))

    def probability(self, ids: Tensor, previous: Tensor | None) -> Tensor:
        recent = self.levels[0][ids] / self.levels[-1].sum()
        return self.share * recent + (1 - self.share) * self.stays.probability(ids, previous)

    def learn(self, ids: Tensor, mass: Tensor) -> None:
        """Move r towards ``mass`` (M,), what the model gave to ``ids`` (M,) in a batch, of any sum above 0."""
        # Growing what comes, instead of shrinking what is there, leaves all other classes alone.
        self.growth /= 1 - 1 / self.memory
        mass = mass.double() * (self.growth / self.memory) / mass.double().sum()
        for level in self.levels:
            level.index_add_(0, ids, mass)
            ids = ids // self.WIDTH
        if self.growth > self.HIGHEST:
            for level in self.levels:
                level /= self.growth
            self.growth = 1.0
