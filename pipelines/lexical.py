"""Translation word by word, with a table of which word stands for which, learned from pairs of sentences.

S words of a source, T of its target; V, U different words of all sources and of all targets; M pairs of a source word
and a target word that stand in some pair of sentences together.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

log = logging.getLogger(__name__)

PIECE = re.compile(r"\s*(?:\w+(?:['’-]\w+)*|[^\w\s])")
"""A word or a sign, with the white space before it."""
EMPTY = ""
"""The source word that stands for a target word without counterpart."""
MOST_CELLS = 20_000_000
"""Sum of S * T over the pairs of sentences that are read, the first ones: the cells are held in memory."""


@dataclass(frozen=True)
class Lexicon:
    """What Model 1 makes of a corpus.

    Args:
        p: source word -> target word -> p(t | s), of those that stand in some pair of sentences together.
        log_likelihoods: nats, the sum of log p(target | source) before each round and after the last.
    """

    p: dict[str, dict[str, float]]
    log_likelihoods: list[float]


def ibm_model_1(
    sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], *, rounds: int, empty: bool = True
) -> Lexicon:
    """p(t | s), the probability that source word s is translated by target word t, whatever stands around them.

    p(target | source) = prod_j 1 / (S + 1) sum_i p(t_j | s_i) over target places j and source places i, of which i = 0
    is the empty word. Expectation: c(s, t) = sum of p(t_j | s_i) / sum_k p(t_j | s_k) over all places where s_i = s and
    t_j = t. Maximisation: p(t | s) = c(s, t) / sum_u c(s, u). At first p is uniform. Source: Brown et al. 1993,
    section 4.1.

    LAW: no round lowers the likelihood, and over t the p(t | s) sum to 1.

    Args:
        sources: sentences as words.
        targets: their translations as words.
        rounds: of expectation and maximisation.
        empty: put the empty word into each source.

    Raises:
        ValueError: if the sides are not equally many, or no pair has words on both.
    """
    rows = [([EMPTY, *s] if empty else list(s), list(t)) for s, t in zip(sources, targets, strict=True) if s and t]
    if not rows:
        raise ValueError("no pair of sentences has words on both sides; one with some fits")
    rows = _first(rows)
    V, source_rows = _numbered([s for s, _ in rows])
    U, target_rows = _numbered([t for _, t in rows])
    # A cell is a source place beside a target place of the same pair of sentences.
    cells = np.concatenate([np.add.outer(s * len(U), t).ravel() for s, t in zip(source_rows, target_rows, strict=True)])
    starts = np.cumsum([0, *map(len, target_rows)])
    places = np.concatenate(
        [np.tile(np.arange(start, start + len(t)), len(s))
         for start, s, t in zip(starts, source_rows, target_rows, strict=False)]
    )  # fmt: skip
    keys, entries = np.unique(cells, return_inverse=True)
    s_of, t_of = np.divmod(keys, len(U))
    widths = np.log(np.bincount(places)).sum()
    p, log_likelihoods = np.full(len(keys), 1 / len(U)), []
    for _ in range(rounds + 1):
        likelihoods = np.bincount(places, p[entries])
        log_likelihoods.append(float(np.log(likelihoods).sum() - widths))
        if len(log_likelihoods) <= rounds:
            counts = np.bincount(entries, p[entries] / likelihoods[places])
            p = counts / np.bincount(s_of, counts)[s_of]
    table: dict[str, dict[str, float]] = {word: {} for word in V}
    for s, t, probability in zip(s_of.tolist(), t_of.tolist(), p.tolist(), strict=True):
        table[V[s]][U[t]] = probability
    return Lexicon(table, log_likelihoods)


class WordByWord:
    """Each word of a source is replaced by its likeliest translation, in the order of the source.

    Capital and small letters are the same. A word whose likeliest translation is an unlikely one has no counterpart and
    is left out; signs and unknown words stay as they are. A target word is spelled as it mostly is inside a sentence,
    white space before it included, and the first letter is a capital one if most targets begin so.

    Args:
        sources: texts.
        targets: their translations.
        rounds: of expectation and maximisation.

    Raises:
        ValueError: as of :func:`ibm_model_1`.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str], *, rounds: int) -> None:
        spelled = [PIECE.findall(text) for text in targets]
        lexicon = ibm_model_1([_words(PIECE.findall(text)) for text in sources], [_words(row) for row in spelled],
                              rounds=rounds)  # fmt: skip
        self._likeliest = {word: max((p, target) for target, p in row.items()) for word, row in lexicon.p.items()}
        inside = Counter(piece for row in spelled for piece in row[1:]).most_common()
        first = Counter(" " + piece for row in spelled for piece in row[:1]).most_common()
        self._spelling: dict[str, str] = {}
        for piece, _ in [*inside, *first]:
            self._spelling.setdefault(_word(piece), piece)
        self._capital = 2 * sum(text[:1].isupper() for text in targets) > len(targets)

    def translate(self, text: str, *, least: float) -> str:
        """``text`` word by word.

        Args:
            text: a source.
            least: the least p(t | s) of a word that is translated.
        """
        pieces = []
        for piece in PIECE.findall(text):
            p, target = self._likeliest.get(_word(piece), (1.0, None))
            if p >= least:
                pieces.append(piece if target is None else self._spelling[target])
        found = "".join(pieces).strip()
        return found[:1].upper() + found[1:] if self._capital else found


def _word(piece: str) -> str:
    return piece.strip().lower()


def _words(pieces: Sequence[str]) -> list[str]:
    """The words among ``pieces``, without the signs."""
    return [word for word in map(_word, pieces) if re.match(r"\w", word)]


def _first(rows: list[tuple[list[str], list[str]]]) -> list[tuple[list[str], list[str]]]:
    sizes = np.cumsum([len(s) * len(t) for s, t in rows])
    if sizes[-1] <= MOST_CELLS:
        return rows
    count = max(1, int(np.searchsorted(sizes, MOST_CELLS, side="right")))
    log.warning("the table of words is that of the first %s of %s sentence pairs", f"{count:,}", f"{len(rows):,}")
    return rows[:count]


def _numbered(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[Ids]]:
    """The different words, and each row as their numbers."""
    numbers: dict[str, int] = {}
    found = [np.array([numbers.setdefault(word, len(numbers)) for word in row]) for row in rows]
    return list(numbers), found
