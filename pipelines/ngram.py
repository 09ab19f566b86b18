"""The model of counts that stands beside every neural language model: interpolated modified Kneser-Ney.

n tokens in a row, m places asked about, N order, V vocabulary, M_k distinct k-grams; M_0 = 1, the empty context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqapp.data.tokenizers import BOS, PAD, UNK

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

FEW = (0.5, 1.0, 1.5)
"""Discounts where there are too few k-grams to estimate them from, as in KenLM (Heafield et al. 2013)."""


class NGram:
    """p(w | h), where the context h is the last N - 1 tokens, and h' is h without the first of them.

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + p(w | h') sum_v D(c(h v)) / c(h), and p(w | h') where h was never seen;
    below the empty context every token but PAD and BOS, which are no targets, has 1 / (V - 2). The counts c are those
    of the text for the longest context, and for a shorter one how many different tokens h w was seen to follow, or the
    count in the text if h begins with BOS, which nothing precedes. Sources: Kneser & Ney 1995; Chen & Goodman 1999,
    section 3.

    LAW: in any context the probabilities of the V tokens sum to 1, and a context reaches back to BOS and no further.

    Args:
        text: (n,) the ids of one document after the other, each with BOS before it.
        order: N, or less if no document is as long. The model answers for every order from 1 to N.
        vocabulary_size: V.

    Raises:
        ValueError: if the order is below 1 or there is nothing to count.
    """

    def __init__(self, text: Ids, *, order: int, vocabulary_size: int) -> None:
        if order < 1:
            raise ValueError(f"the order is {order}; at least 1 fits")
        if not (text != BOS).any():
            raise ValueError("the text holds no token to count; one with some fits")
        self.vocabulary_size = vocabulary_size
        self.levels: list[_Level] = []
        contexts = nodes = np.zeros(len(text), np.int64)
        for before in range(order):
            seen = np.flatnonzero(contexts >= 0)
            if not len(seen):
                break
            keys, first, found, counts = np.unique(
                contexts[seen] * vocabulary_size + text[seen],
                return_index=True, return_inverse=True, return_counts=True,
            )  # fmt: skip
            first = seen[first]
            if before:
                self.levels[-1].follow(nodes[first])
            else:
                counts[keys == BOS] = 0
            self.levels.append(_Level(keys, counts, vocabulary_size, begins=text[first - before] == BOS))
            nodes = np.full(len(text), -1)
            nodes[seen] = found
            contexts = _move_on(nodes, text)

    @property
    def order(self) -> int:
        """N."""
        return len(self.levels)

    def nats(self, text: Ids) -> Numbers:
        """-log p of every token but BOS: text (n,), laid out as in training -> (N, m), a row for each order."""
        places = np.flatnonzero(text != BOS)
        contexts = [nodes[places] for nodes in self._contexts(text)]
        nats: Numbers = -np.log(self._interpolate(contexts, text[places]))
        return nats

    def probabilities(self, context: Sequence[int]) -> Numbers:
        """p(w | context) of every token: (N, V), a row for each order.

        Args:
            context: ids, from BOS or from anywhere in a document.
        """
        last = [nodes[-1] for nodes in self._contexts(np.array([*context, UNK]))]
        return self._interpolate(
            [np.full(self.vocabulary_size, node) for node in last], np.arange(self.vocabulary_size)
        )

    def _contexts(self, text: Ids) -> list[Ids]:
        """For k = 0 .. N - 1 the node of the k tokens before each token of text (n,), -1 where that was never seen."""
        contexts = [np.zeros(len(text), np.int64)]
        for level in self.levels[:-1]:
            contexts.append(_move_on(level.find(contexts[-1], text), text))
        return contexts

    def _interpolate(self, contexts: Sequence[Ids], words: Ids) -> Numbers:
        """p of words (m,) after contexts, N times (m,): (N, m)."""
        shorter = np.where((words == PAD) | (words == BOS), 0.0, 1 / (self.vocabulary_size - 2))
        rows = []
        for level, nodes in zip(self.levels, contexts, strict=True):
            found = level.find(nodes, words)
            rows.append(level.stood.probability(nodes, found, shorter))
            if level.followed:
                shorter = level.followed.probability(nodes, found, shorter)
        return np.stack(rows)


class _Level:
    """The k-grams of a text, each one a node below that of its first k - 1 tokens, in the order of their keys.

    Args:
        keys: (M_k,) sorted: the node above times V, plus the last token.
        counts: (M_k,) how often each stood in the text.
        vocabulary_size: V.
        begins: (M_k,) whether it begins with BOS.
    """

    def __init__(self, keys: Ids, counts: Ids, vocabulary_size: int, *, begins: NDArray[np.bool_]) -> None:
        self.keys, self.vocabulary_size, self.begins = keys, vocabulary_size, begins
        self.stood = _Counts(counts, keys // vocabulary_size)
        self.followed: _Counts | None = None

    def follow(self, ends: Ids) -> None:
        """Count the tokens that each k-gram follows: ends (M_{k+1},) the k-gram at the end of each (k + 1)-gram."""
        counts = np.bincount(ends, minlength=len(self.keys))
        self.followed = _Counts(np.where(self.begins, self.stood.counts, counts), self.keys // self.vocabulary_size)

    def find(self, contexts: Ids, words: Ids) -> Ids:
        """contexts (m,) nodes above, words (m,) -> nodes (m,), -1 for what was never seen."""
        wanted = np.where(contexts >= 0, contexts * self.vocabulary_size + words, -1)
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        nodes: Ids = np.where(self.keys[places] == wanted, places, -1)
        return nodes


class _Counts:
    """c(h w) of all k-grams h w, and what the discounts leave of them.

    Args:
        counts: (M_k,) c.
        contexts: (M_k,) the node of h.
    """

    def __init__(self, counts: Ids, contexts: Ids) -> None:
        self.counts = counts.astype(np.int32)
        self.discounts = np.array([0.0, *discounts(counts)])
        self.totals = np.bincount(contexts, counts)
        self.taken = np.bincount(contexts, self.discounts[counts.clip(max=3)])

    def probability(self, contexts: Ids, nodes: Ids, shorter: Numbers) -> Numbers:
        """p(w | h): contexts (m,) of h, nodes (m,) of h w, shorter (m,) p(w | h') -> (m,)."""
        # A context at the very end of the text has nothing below it, not even a total.
        known = (contexts >= 0) & (contexts < len(self.totals))
        contexts = np.where(known, contexts, 0)
        known &= self.totals[contexts] > 0
        counts = np.where(nodes >= 0, self.counts[nodes], 0)
        kept = counts - self.discounts[counts.clip(max=3)] + self.taken[contexts] * shorter
        p: Numbers = np.where(known, kept / self.totals[contexts].clip(min=1), shorter)
        return p


def discounts(counts: NDArray[Any]) -> tuple[float, float, float]:
    """What is taken off counts of 1, of 2, and of 3 and more.

    D(c) = c - (c + 1) Y n_{c+1} / n_c with Y = n_1 / (n_1 + 2 n_2), where n_c of the counts are c (Chen & Goodman 1999,
    section 3). Where there is no n_c, or D(c) is not above 0 and up to c, :data:`FEW` stands in.
    """
    n = np.bincount(counts[counts < 5], minlength=5).tolist()
    if not n[1]:
        return FEW
    Y = n[1] / (n[1] + 2 * n[2])
    found = [c - (c + 1) * Y * n[c + 1] / n[c] if n[c] else 0.0 for c in (1, 2, 3)]
    one, two, three = (d if 0 < d <= c else few for c, d, few in zip((1, 2, 3), found, FEW, strict=True))
    return one, two, three


def _move_on(nodes: Ids, text: Ids) -> Ids:
    """The node before each token, -1 before the first and before BOS: nodes (n,), text (n,) -> (n,)."""
    before = np.concatenate([[-1], nodes[:-1]])
    before[text == BOS] = -1
    return before
