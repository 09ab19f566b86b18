"""The simple methods that stand beside every neural figure on text.

Linear models over n-grams, from scikit-learn, where texts have labels; counts of n-grams where a text is continued; the
nearest sentence of the training data, and a table of words, where it is translated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from pipelines.lexical import WordByWord
from pipelines.ngram import Ids, NGram
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import LabelledText, Splits
from seqapp.data.streams import Stream
from seqapp.data.text import Passage
from seqapp.data.tokenizers import BOS, UNK
from seqapp.metrics import Metric, Ratio, Surprise, add, read
from seqapp.outcomes import Outcomes
from seqapp.tasks import Task
from seqapp.tasks.generation import surprises
from seqapp.translation_scores import Translations

log = logging.getLogger(__name__)

TOKEN = r"\w+(?:'\w+)?|[^\w\s]"
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation strengths to choose from on the validation split."""
FEW_TOKENS = 1000
"""A vocabulary up to this size is one of characters, which need longer contexts than words."""
ORDERS = (10, 6)
"""The highest order of n-grams tried: for characters, and for subwords and words."""
MOST_TOKENS = 10_000_000
"""Tokens of a training text that are counted, the first ones: the counts are held in memory."""
BLOCK_TOKENS, BLOCK_ROWS = 2**20, 2**14
"""Tokens of a stream, or rows, that are looked at together."""
ROUNDS = 10
"""Of expectation and maximisation, for the table of words."""
SURE = (0.0, 0.1, 0.2, 0.3)
"""Least probabilities of a translation of a word, to choose from on the validation split."""
LETTERS = (0.0, 0.25, 0.5)
"""Weights of n-grams of letters beside those of words, to choose from on the validation split."""
SENTENCES = 512
"""Sentences that are looked up together: each has a similarity to every training sentence."""


Totals = dict[str, dict[str, Metric]]
"""Split -> its metrics, outcomes among them."""


@dataclass(frozen=True)
class BaselineResult:
    """What one method reaches, its strength chosen on validation data.

    Args:
        name: of the method.
        strength: the inverse regularisation of a linear model, the order of a model of n-grams, the weight of letters
            beside words in a search, or the least probability of a word's translation.
        scores: of "validation" and, where they were read, "test" and the further test splits: name -> value.
        seconds: for everything.
        outcomes: split -> what came of each example.
    """

    name: str
    strength: float
    scores: Mapping[str, Mapping[str, float]]
    seconds: float
    outcomes: Mapping[str, Outcomes]

    def record(self) -> dict[str, Any]:
        """Everything but the outcomes, ready for JSON."""
        return {"name": self.name, "strength": self.strength, "scores": self.scores, "seconds": self.seconds}


@dataclass(frozen=True)
class Baseline:
    """A method, and what it is for.

    Args:
        kind: the family of methods.
        example_type: what the data must yield.
        run: task, splits and whether to read the test split -> strength, and split -> its metrics.
    """

    kind: str
    example_type: type
    run: Callable[[Task[Any, Any], Splits[Any], bool], tuple[float, Totals]]


class NaiveBayesWeights:
    """Binary n-grams scaled by r = log((1 + p) / |1 + p|_1) - log((1 + q) / |1 + q|_1).

    Source: Wang & Manning 2012, equation 2.

    ``p`` counts the rows of the class that have the n-gram, ``q`` the other rows.
    """

    def fit(self, counts: Any, labels: np.ndarray) -> NaiveBayesWeights:
        p = 1 + np.asarray(counts[labels == 1].sum(0)).ravel()
        q = 1 + np.asarray(counts[labels != 1].sum(0)).ravel()
        self.ratio_ = np.log(p / p.sum()) - np.log(q / q.sum())
        return self

    def transform(self, counts: Any) -> Any:
        return counts.multiply(self.ratio_).tocsr()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def set_params(self, **_: Any) -> NaiveBayesWeights:
        return self


def tfidf_logistic_regression(strength: float) -> tuple[Any, Any]:
    """TF-IDF of words and pairs of words, logistic regression."""
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, sublinear_tf=True)
    return vectoriser, LogisticRegression(C=strength, max_iter=1000)


def nb_svm(strength: float) -> tuple[Any, Any]:
    """Binary words and pairs of words weighted by naive Bayes, linear support vector machine."""
    vectoriser = CountVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, binary=True)
    machine = make_pipeline(NaiveBayesWeights(), LinearSVC(C=strength / 100, loss="hinge", max_iter=20_000))
    return vectoriser, OneVsRestClassifier(machine)


LINEAR: dict[str, Callable[[float], tuple[Any, Any]]] = {
    "tfidf-logistic-regression": tfidf_logistic_regression,
    "nb-svm": nb_svm,
}
"""Name -> strength -> vectoriser and classifier."""


def run_linear(name: str, _: Task[Any, Any], splits: Splits[LabelledText], test: bool) -> tuple[float, Totals]:
    """Accuracy of one of ``LINEAR``, fitted with every one of ``STRENGTHS``."""
    vectoriser, _ = LINEAR[name](1.0)
    train = vectoriser.fit_transform(_texts(splits.train))
    validation = vectoriser.transform(_texts(splits.validation))
    labels = _labels(splits.train)
    scored = []
    for strength in STRENGTHS:
        model = LINEAR[name](strength)[1].fit(train, labels)
        scored.append((model.predict(validation) == _labels(splits.validation), strength, model))
    right, strength, model = max(scored, key=lambda entry: (entry[0].mean(), -entry[1]))
    found = {"validation": _counted_right(right)}
    if test and splits.test:
        right = model.predict(vectoriser.transform(_texts(splits.test))) == _labels(splits.test)
        found["test"] = _counted_right(right)
    return strength, found


def _counted_right(right: np.ndarray) -> dict[str, Metric]:
    outcomes = Outcomes.of({"accuracy": ("ratio", "right", "texts")}, right=right, texts=np.ones(len(right)))
    return {"accuracy": Ratio("accuracy", torch.tensor(float(right.sum())), len(right)), "outcomes": outcomes}


def run_ngram(task: Task[Any, Any], splits: Splits[Passage], test: bool) -> tuple[float, Totals]:
    """What :class:`NGram` makes of the tokens of ``task``, with the order that is best on validation.

    Its figures compare with those of a network on the same tokens. A condition is not looked at.
    """
    task.prepare(splits.train)
    V = task.sizes()["vocabulary_size"]
    model = NGram(_counted(task.encode(splits.train)), order=ORDERS[V > FEW_TOKENS], vocabulary_size=V)
    found = foretell(model, task.encode(splits.validation))
    best = min(range(model.order), key=lambda row: read(found[row])["nll"])
    totals = {"validation": found[best]}
    if test and splits.test:
        totals["test"] = foretell(model, task.encode(splits.test))[best]
    return best + 1, totals


def foretell(model: NGram, items: Any) -> list[dict[str, Metric]]:
    """The metrics of a language model, for each order.

    Args:
        model: with V of the tokens.
        items: an encoded text: a stream, or rows with ``ids`` and ``characters``.
    """
    found: list[dict[str, Metric]] = [{} for _ in range(model.order)]
    start = 0
    for text, count in blocks(items, overlap=model.order - 1):
        unknown = Ratio("unknown", torch.tensor(int((text[text != BOS][-count:] == UNK).sum())), count)
        index, characters = _places(items, start, count)
        for order, nats in enumerate(model.nats(text)[:, -count:]):
            new: dict[str, Metric] = {
                "nll": Surprise(torch.tensor(nats.sum()), count, characters.sum()),
                "unknown": unknown,
                "outcomes": surprises(nats, index, characters, rows=False),
            }
            found[order] = add(found[order], new)
        start += count
    for totals in found:
        totals["outcomes"] = totals["outcomes"].ordered()  # type: ignore[attr-defined]
    return found


def _places(items: Any, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The item that each of ``count`` tokens from ``start`` on is of, and the characters that it stands for."""
    if isinstance(items, Stream):
        return items.places(start, start + count)
    sizes = np.array([len(item.ids) for item in items])
    index = np.repeat(np.arange(len(items)), sizes)[start : start + count]
    return index, (np.array([item.characters for item in items]) / sizes)[index]


def blocks(items: Any, *, overlap: int = 0) -> Iterator[tuple[Ids, int]]:
    """An encoded text part by part: ids with BOS before each document, and how many of the last tokens are new.

    Args:
        items: a stream, or rows with ``ids``, each a document.
        overlap: tokens of a stream that are repeated from the part before, as context.
    """
    if isinstance(items, Stream):
        for start in range(0, len(items), BLOCK_TOKENS):
            first, stop = max(0, start - overlap), min(start + BLOCK_TOKENS, len(items))
            begins = np.flatnonzero(items.inputs(first, stop) == BOS)
            yield np.insert(items.targets(first, stop), begins, BOS), stop - start
    else:
        for start in range(0, len(items), BLOCK_ROWS):
            rows = [[BOS, *item.ids] for item in items[start : start + BLOCK_ROWS]]
            yield np.concatenate(rows), sum(len(row) - 1 for row in rows)


def _counted(items: Any) -> Ids:
    parts, tokens = [], 0
    for text, count in blocks(items):
        parts.append(text)
        tokens += count
        if tokens >= MOST_TOKENS:
            log.warning("the n-grams are those of the first %s tokens of the training text", f"{tokens:,}")
            break
    return np.concatenate(parts)


class TranslationMemory:
    """The translation of the training sentence that is most like a given one.

    Likeness is (1 - w) times the cosine of the TF-IDF vectors of words and pairs of words, and w times that of 2 to 4
    letters within words; of equals the first counts.

    Args:
        pairs: sentences with their translations.
    """

    def __init__(self, pairs: Sequence[SentencePair]) -> None:
        self._targets = [pair.target for pair in pairs]
        self._views = [
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, sublinear_tf=True, dtype=np.float32),
            TfidfVectorizer(ngram_range=(2, 4), analyzer="char_wb", sublinear_tf=True, dtype=np.float32),
        ]
        self._rows = [view.fit_transform([pair.source for pair in pairs]).T.tocsr() for view in self._views]

    def translate(self, texts: Sequence[str], weights: Sequence[float]) -> list[list[str]]:
        """For each w of ``weights`` the translations of ``texts``."""
        found: list[list[str]] = [[] for _ in weights]
        for start in range(0, len(texts), SENTENCES):
            part = texts[start : start + SENTENCES]
            words, letters = (
                (view.transform(part) @ rows).toarray() for view, rows in zip(self._views, self._rows, strict=True)
            )
            for w, answers in zip(weights, found, strict=True):
                nearest = ((1 - w) * words + w * letters).argmax(1)
                answers += [self._targets[index] for index in nearest]
        return found


def run_memory(_: Task[Any, Any], splits: Splits[SentencePair], test: bool) -> tuple[float, Totals]:
    """What :class:`TranslationMemory` reaches."""
    memory = TranslationMemory(splits.train)
    return _translated(memory.translate, LETTERS, splits, test)


def run_word_by_word(_: Task[Any, Any], splits: Splits[SentencePair], test: bool) -> tuple[float, Totals]:
    """What :class:`pipelines.lexical.WordByWord` reaches."""
    model = WordByWord([pair.source for pair in splits.train], [pair.target for pair in splits.train], rounds=ROUNDS)
    return _translated(
        lambda texts, sure: [[model.translate(text, least=least) for text in texts] for least in sure],
        SURE, splits, test,
    )  # fmt: skip


def _translated(
    translate: Callable[[Sequence[str], Sequence[float]], list[list[str]]],
    strengths: Sequence[float],
    splits: Splits[SentencePair],
    test: bool,
) -> tuple[float, Totals]:
    """The strength of the best BLEU on validation, of equals the smallest, and the metrics with it.

    Args:
        translate: texts, strengths -> for each strength the translations.
        strengths: to choose from, rising.
        splits: pairs.
        test: read the test split, and those beside it.
    """

    def translations(pairs: Sequence[SentencePair], strengths: Sequence[float]) -> list[Translations]:
        sources, references = tuple(pair.source for pair in pairs), tuple(pair.target for pair in pairs)
        found = translate(sources, strengths)
        return [Translations(sources, tuple(row), references, pairs[0].languages) for row in found]

    tried = translations(splits.validation, strengths)
    # One row of all lengths: BLEU without the other scores, which take much longer.
    bleu = [found.by_length(edges=())[0].bleu for found in tried]
    best = bleu.index(max(bleu))
    parts = {"test": splits.test, **splits.further} if test else {}
    chosen = {"validation": tried[best]}
    chosen |= {name: translations(part, strengths[best : best + 1])[0] for name, part in parts.items() if part}
    return strengths[best], {
        split: {"translations": found, "outcomes": found.outcomes()} for split, found in chosen.items()
    }


BASELINES: dict[str, Baseline] = {
    **{name: Baseline("linear", LabelledText, partial(run_linear, name)) for name in LINEAR},
    "kneser-ney": Baseline("n-gram", Passage, run_ngram),
    "translation-memory": Baseline("nearest sentence", SentencePair, run_memory),
    "word-by-word": Baseline("table of words", SentencePair, run_word_by_word),
}


def run_baseline(name: str, task: Task[Any, Any], splits: Splits[Any], *, test: bool = True) -> BaselineResult:
    """Fit one method on training data, choose its strength on validation, and read the test split once with that.

    Args:
        name: one of ``BASELINES`` that takes such examples.
        task: of the config; a language model's says how a text becomes tokens, and is fitted here.
        splits: the examples.
        test: read the test split.
    """
    started = time.perf_counter()
    strength, totals = BASELINES[name].run(task, splits, test)
    scores = {split: read(metrics) for split, metrics in totals.items()}
    outcomes = {split: found for split, metrics in totals.items()
                if isinstance(found := metrics["outcomes"], Outcomes)}  # fmt: skip
    return BaselineResult(name, strength, scores, time.perf_counter() - started, outcomes)


def _texts(examples: Sequence[LabelledText]) -> list[str]:
    return [example.text for example in examples]


def _labels(examples: Sequence[LabelledText]) -> np.ndarray:
    return np.array([example.label for example in examples])
