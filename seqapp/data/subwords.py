"""Subword regularisation: the pieces of each word drawn anew every time a text is read in training."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from seqapp.data.tokenizers import PAD, SPECIALS, UNK, Tokenizer

_TEXTS = _WORDS = 1 << 16  # most that are kept for the next time
_VARIANTS = 64
_LONGEST = 100  # letters of a word; merging takes the square of them in time

_Draw = Callable[[random.Random], Sequence[int]]


class _Arrivals(NamedTuple):
    """What may be the last piece of a beginning of a word."""

    shares: list[float]
    """Their probabilities, added up; the last is the sum."""
    pieces: list[tuple[int, int]]
    """Where each begins, and its id."""


class Resegmenter:
    """Text -> ids, the pieces of each word drawn anew at every call.

    For a tokenizer of merges (``bpe``, ``byte_bpe``) this is BPE-dropout (Provilkov et al. 2020, algorithm 1): at each
    step every merge that is possible in the word is skipped with probability ``rate``, the first by rank of the others
    is made, and when all are skipped the word stays as it is. For ``unigram`` each word is drawn with probability
    ``rate``, and else cut as it is most probable; a segmentation x is drawn with probability p(x)^a / sum p(x')^a over
    all of the word, where a is ``smoothing`` (Kudo 2018; by forward filtering and backward sampling).

    LAW: at rate 0, sample(text) == encode(text).ids. LAW: at every rate, decode(sample(text)) ==
    decode(encode(text).ids). The ids depend on the text and the state of ``chance`` alone.

    The segmentations of a word in which a first merge is skipped are picked from 64 that are drawn once and are the
    same in every run; how often none is skipped is exact. A word of more than 100 letters is not drawn.

    Args:
        tokenizer: a fitted one of kind ``subword`` or ``byte_bpe``.
        rate: from 0 for the tokenizer's own pieces to below 1: the share of merges skipped, or of words drawn.
        smoothing: unigram: above 0; at 1 the model decides, and the nearer to 0, the more alike all segmentations are.

    Raises:
        ValueError: if the tokenizer is of another kind or not fitted, or a number is out of its range.
    """

    def __init__(self, tokenizer: Tokenizer, rate: float, *, smoothing: float = 0.2) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate is {rate}; a number from 0 to below 1 fits")
        if not 0 < smoothing < math.inf:
            raise ValueError(f"smoothing is {smoothing}; a number above 0 fits")
        model: dict[str, Any] = json.loads(tokenizer.core.to_str())["model"]
        if model["type"] not in ("BPE", "Unigram"):
            raise ValueError("this tokenizer has no pieces of words to draw; one of kind subword or byte_bpe fits")
        if tokenizer.size <= len(SPECIALS):
            raise ValueError("this tokenizer is not fitted; fit it on the training texts first")
        self.tokenizer, self.rate = tokenizer, rate
        drawing = _merge_dropout(model, rate) if model["type"] == "BPE" else _smoothed(model, rate, smoothing)
        tokenize = tokenizer.core.model.tokenize

        @functools.lru_cache(_WORDS)
        def draw_of(word: str) -> _Draw:
            ids = [token.id for token in tokenize(word)]
            return (lambda _: ids) if len(word) > _LONGEST else drawing(word, ids)

        @functools.lru_cache(_TEXTS)
        def draws_of(text: str) -> list[_Draw]:
            words = tokenizer.core.pre_tokenizer.pre_tokenize_str(tokenizer.normalise(text))
            return [draw_of(word) for word, _ in words]

        self._draws_of = draws_of

    def sample(self, text: str, chance: random.Random) -> list[int]:
        """The ids of ``text``, drawn with ``chance``."""
        if self.rate == 0:
            return self.tokenizer.encode(text).ids
        return [index for draw in self._draws_of(text) for index in draw(chance)]


def _merge_dropout(model: Mapping[str, Any], rate: float) -> Callable[[str, Sequence[int]], _Draw]:
    """What draws a word by its merges."""
    vocabulary: dict[str, int] = model["vocab"]
    merges = {
        (vocabulary[left], vocabulary[right]): (rank, vocabulary[left + right])
        for rank, (left, right) in enumerate(model["merges"])
    }
    log_kept = math.log1p(-rate)

    def possible(pieces: Sequence[int]) -> list[tuple[int, int, int]]:
        """The merges in a word, the first by rank first: rank, place and what is made."""
        pairs = enumerate(itertools.pairwise(pieces))
        return sorted([(merges[pair][0], place, merges[pair][1]) for place, pair in pairs if pair in merges])

    def drawing(word: str, ids: Sequence[int]) -> _Draw:
        letters = [vocabulary.get(letter, UNK) for letter in word]
        start = [one for one, before in zip(letters, [PAD, *letters], strict=False) if not one == before == UNK]
        steps = len(start) - len(ids)
        whole = (1 - rate) ** steps  # probability that no first merge is skipped
        variants: dict[int, tuple[int, ...]] = {}

        def variant(chance: random.Random) -> tuple[int, ...]:
            """A segmentation with a first merge skipped."""
            pieces = start.copy()
            before = int(math.log1p(chance.random() * (whole - 1)) / log_kept)  # geometric, below steps
            for _ in range(min(before, steps - 1)):
                _, place, piece = possible(pieces)[0]
                pieces[place : place + 2] = [piece]
            left = possible(pieces)[1:]
            while made := next((merge for merge in left if chance.random() >= rate), None):
                pieces[made[1] : made[1] + 2] = [made[2]]
                left = possible(pieces)
            return tuple(pieces)

        def draw(chance: random.Random) -> Sequence[int]:
            if chance.random() < whole:
                return ids
            number = int(chance.random() * _VARIANTS)
            if number not in variants:
                variants[number] = variant(random.Random(f"{number} {word}"))
            return variants[number]

        return draw

    return drawing


def _smoothed(model: Mapping[str, Any], rate: float, smoothing: float) -> Callable[[str, Sequence[int]], _Draw]:
    """What draws a word by the probabilities of its pieces."""
    names = [piece for piece, _ in model["vocab"]]
    pieces = {
        piece: (index, smoothing * score)
        for index, (piece, score) in enumerate(model["vocab"])
        if piece not in SPECIALS
    }
    longest = max(map(len, pieces))

    def lattice(letters: str) -> list[_Arrivals]:
        """What may be the last piece of each beginning of ``letters``, by forward filtering."""
        sums, arrivals = [0.0], [_Arrivals([], [])]  # log of the sum over all segmentations of a beginning
        for end in range(1, len(letters) + 1):
            starts = range(max(0, end - longest), end)
            found = [(start, *piece) for start in starts if (piece := pieces.get(letters[start:end]))]
            logs = [sums[start] + score for start, _, score in found]
            top = max(logs, default=-math.inf)
            shares = list(itertools.accumulate(math.exp(log - top) if log > -math.inf else 0.0 for log in logs))
            sums.append(top + math.log(shares[-1]) if top > -math.inf else -math.inf)
            arrivals.append(_Arrivals(shares, [(start, index) for start, index, _ in found]))
        return arrivals

    def drawing(word: str, ids: Sequence[int]) -> _Draw:
        # What the tokenizer does not know stays unknown; the letters between are drawn by themselves.
        runs = [
            [] if unknown else lattice("".join(names[index] for index in run))
            for unknown, run in itertools.groupby(ids, UNK.__eq__)
        ]

        def draw(chance: random.Random) -> Sequence[int]:
            if chance.random() >= rate:
                return ids
            drawn: list[int] = []
            for arrivals in reversed(runs):
                end = len(arrivals) - 1
                if end < 0:
                    drawn.append(UNK)
                while end > 0:
                    shares, last = arrivals[end]
                    end, index = last[bisect.bisect(shares, chance.random() * shares[-1])]
                    drawn.append(index)
            return drawn[::-1]

        return draw

    return drawing
