"""Subword regularisation: the same text in other pieces, as often as the papers say."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from seqapp.data import subwords
from seqapp.data.subwords import Resegmenter
from seqapp.data.tokenizers import SPECIALS, TOKENIZERS, UNK, Tokenizer

TEXTS = ["low lower lowest newer newest wider widest", "slow slower, the lowest show; <pad> <", "wow ww lolo ☃ ☃☃"]
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"kind": "subword", "max_vocabulary": 60, "min_frequency": 1},
    "unigram": {"kind": "subword", "algorithm": "unigram"},
    "byte_bpe": {"kind": "byte_bpe", "max_vocabulary": 300, "min_frequency": 1},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def fitted(kind: str) -> Tokenizer:
    tokenizer = TOKENIZERS.build(KINDS[kind])
    if kind == "unigram":  # the library does not fit it alike twice
        letters = dict.fromkeys("▁lowernstidhpab,;<>", -6.0)
        pieces = {"▁low": -3.0, "lo": -4.0, "ow": -4.0, "▁lo": -4.5, "er": -3.0, "est": -3.5, "es": -5.0, "we": -5.5}
        table = [*((name, 0.0) for name in SPECIALS), *letters.items(), *pieces.items()]
        tokenizer.core.model = models.Unigram(table, UNK)
        tokenizer.core.add_special_tokens(SPECIALS)
        return Tokenizer(tokenizer.core)
    tokenizer.fit(TEXTS * 3)
    return tokenizer


@functools.cache
def resegmenter(kind: str, rate: float, smoothing: float = 0.2) -> Resegmenter:
    return Resegmenter(fitted(kind), rate, smoothing=smoothing)


def model_of(kind: str) -> dict[str, Any]:
    return dict(json.loads(fitted(kind).core.to_str())["model"])


def by_merges(kind: str, word: str, rate: float) -> dict[tuple[str, ...], float]:
    """Algorithm 1 of BPE-dropout, all its chances followed."""
    rank = {tuple(pair): place for place, pair in enumerate(model_of(kind)["merges"])}
    found: dict[tuple[str, ...], float] = defaultdict(float)

    def follow(pieces: tuple[str, ...], probability: float) -> None:
        places = [place for place, pair in enumerate(itertools.pairwise(pieces)) if pair in rank]
        for kept in itertools.product([True, False], repeat=len(places)):
            chance = probability * math.prod(1 - rate if one else rate for one in kept)
            left = [place for place, one in zip(places, kept, strict=True) if one]
            if not left:
                found[pieces] += chance
                continue
            place = min(left, key=lambda place: (rank[pieces[place], pieces[place + 1]], place))
            follow((*pieces[:place], pieces[place] + pieces[place + 1], *pieces[place + 2 :]), chance)

    follow(tuple(word), 1.0)
    return found


def by_probability(word: str, rate: float, smoothing: float) -> dict[tuple[str, ...], float]:
    """Every segmentation of a word, weighed."""
    scores = dict(model_of("unigram")["vocab"][len(SPECIALS) :])
    weights = {}
    for cuts in itertools.product([True, False], repeat=len(word) - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(word)]
        pieces = tuple(word[start:end] for start, end in itertools.pairwise(edges))
        if all(piece in scores for piece in pieces):
            weights[pieces] = math.exp(smoothing * sum(scores[piece] for piece in pieces))
    found = {pieces: rate * weight / sum(weights.values()) for pieces, weight in weights.items()}
    best = tuple(token.value for token in fitted("unigram").core.model.tokenize(word))
    found[best] += 1 - rate
    return found


def drawn(kind: str, word: str, rate: float, times: int, smoothing: float = 0.2) -> Counter[tuple[str, ...]]:
    chance, own = random.Random(7), Resegmenter(fitted(kind), rate, smoothing=smoothing)
    name = fitted(kind).core.id_to_token
    return Counter(tuple(map(name, own.sample(word, chance))) for _ in range(times))


def distance(exact: Mapping[tuple[str, ...], float], counts: Counter[tuple[str, ...]]) -> float:
    """Total variation."""
    return sum(abs(exact.get(one, 0) - counts[one] / counts.total()) for one in {*exact, *counts}) / 2


@pytest.mark.parametrize("word", ["lowest", "newer", "lolo"])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_merges_are_skipped_as_often_as_by_brute_force(word: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subwords, "_VARIANTS", 20_000)
    exact = by_merges("bpe", f"▁{word}", rate)
    assert len(exact) >= 5
    assert sum(exact.values()) == pytest.approx(1)
    counts = drawn("bpe", word, rate, 20_000)
    assert counts.keys() <= exact.keys()
    assert distance(exact, counts) < 0.03


@pytest.mark.parametrize(("rate", "bound"), [(0.1, 0.05), (0.4, 0.25)])
def test_few_variants_leave_the_whole_word_as_often_as_it_is(rate: float, bound: float) -> None:
    exact = by_merges("bpe", "▁lowest", rate)
    counts = drawn("bpe", "lowest", rate, 5000)
    assert 3 < len(counts) < len(exact)
    assert distance(exact, counts) < bound
    assert counts[("▁lowest",)] / 5000 == pytest.approx(exact[("▁lowest",)], abs=0.03)


@pytest.mark.parametrize(("rate", "smoothing"), [(0.9, 0.2), (0.5, 1.0), (0.1, 1e-3)])
def test_segmentations_are_drawn_by_their_probability(rate: float, smoothing: float) -> None:
    exact = by_probability("▁lowest", rate, smoothing)
    assert len(exact) >= 10
    counts = drawn("unigram", "lowest", rate, 10_000, smoothing)
    assert counts.keys() <= exact.keys()
    assert distance(exact, counts) < 0.03


anything = st.text(max_size=30) | st.lists(st.sampled_from([*TEXTS, "", "  ", "▁low", "l▁", "\ud800"])).map(" ".join)


@kinds
@given(text=anything)
def test_nothing_is_skipped_at_rate_0(kind: str, text: str) -> None:
    assert resegmenter(kind, 0.0).sample(text, random.Random(0)) == fitted(kind).encode(text).ids


@kinds
@given(text=anything, rate=st.sampled_from([1e-9, 0.1, 0.5, 0.99]), seed=st.integers(0, 9))
def test_other_pieces_are_the_same_text(kind: str, text: str, rate: float, seed: int) -> None:
    ids = resegmenter(kind, rate).sample(text, random.Random(seed))
    whole = fitted(kind).encode(text).ids
    assert fitted(kind).decode(ids) == fitted(kind).decode(whole)
    assert all(UNK <= index < fitted(kind).size and index not in (2, 3) for index in ids)
    assert ids.count(UNK) == whole.count(UNK)
    if rate < 1e-6:
        assert ids == whole


@kinds
def test_earlier_texts_change_nothing(kind: str) -> None:
    fresh = [Resegmenter(fitted(kind), 0.4).sample(text, random.Random(3)) for text in TEXTS]
    used = Resegmenter(fitted(kind), 0.4)
    for text in reversed(TEXTS * 20):
        used.sample(text, random.Random(5))
    assert [used.sample(text, random.Random(3)) for text in TEXTS] == fresh
    assert used.sample(TEXTS[0], random.Random(4)) != fresh[0]


@kinds
def test_every_process_draws_the_same(kind: str, tmp_path: Path) -> None:
    fitted(kind).save(tmp_path / "tokenizer.json")
    code = (
        "import random, sys; from pathlib import Path; from seqapp.data.subwords import Resegmenter;"
        "from seqapp.data.tokenizers import Tokenizer; chance = random.Random(11);"
        "own = Resegmenter(Tokenizer.load(Path(sys.argv[1])), 0.4);"
        f"print([own.sample(text, chance) for text in {TEXTS!r}])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    answers = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    chance, own = random.Random(11), Resegmenter(fitted(kind), 0.4)
    assert [json.loads(one) for one in answers] == [[own.sample(text, chance) for text in TEXTS]]


@kinds
def test_a_word_without_an_end_is_no_trouble(kind: str) -> None:
    text = "lowest" * 5000
    assert resegmenter(kind, 0.5).sample(text, random.Random(0)) == fitted(kind).encode(text).ids


def test_what_does_not_fit_is_told() -> None:
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"rate is .*; a number from 0 to below 1 fits"):
            Resegmenter(fitted("bpe"), rate)
    for smoothing in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"smoothing is .*; a number above 0 fits"):
            Resegmenter(fitted("unigram"), 0.1, smoothing=smoothing)
    words = TOKENIZERS.build("word")
    words.fit(TEXTS)
    with pytest.raises(ValueError, match="no pieces of words to draw; one of kind subword or byte_bpe fits"):
        Resegmenter(words, 0.1)
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="not fitted; fit it on the training texts first"):
            Resegmenter(TOKENIZERS.build(kind), 0.1)
