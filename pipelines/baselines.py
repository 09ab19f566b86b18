"""The simple methods that stand beside every neural figure on text: linear models over n-grams, from scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from seqapp.data.splits import LabelledText, Splits

TOKEN = r"\w+(?:'\w+)?|[^\w\s]"
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation strengths to choose from on the validation split."""


@dataclass(frozen=True)
class BaselineResult:
    """Accuracy of one method, its strength chosen on validation data."""

    name: str
    strength: float
    validation: float
    test: float | None
    seconds: float


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


BASELINES: dict[str, Callable[[float], tuple[Any, Any]]] = {
    "tfidf-logistic-regression": tfidf_logistic_regression,
    "nb-svm": nb_svm,
}


def run_baseline(name: str, splits: Splits[LabelledText], *, test: bool = True) -> BaselineResult:
    """Fit one method for every strength, keep the best on validation, and read the test split once with it.

    Args:
        name: one of ``BASELINES``.
        splits: labelled texts.
        test: read the test split.
    """
    started = time.perf_counter()
    vectoriser, _ = BASELINES[name](1.0)
    train = vectoriser.fit_transform(_texts(splits.train))
    validation = vectoriser.transform(_texts(splits.validation))
    labels = _labels(splits.train)
    scored = []
    for strength in STRENGTHS:
        model = BASELINES[name](strength)[1].fit(train, labels)
        scored.append((float((model.predict(validation) == _labels(splits.validation)).mean()), strength, model))
    best, strength, model = max(scored, key=lambda entry: (entry[0], -entry[1]))
    accuracy = None
    if test and splits.test:
        accuracy = float((model.predict(vectoriser.transform(_texts(splits.test))) == _labels(splits.test)).mean())
    return BaselineResult(name, strength, best, accuracy, time.perf_counter() - started)


def _texts(examples: Sequence[LabelledText]) -> list[str]:
    return [example.text for example in examples]


def _labels(examples: Sequence[LabelledText]) -> np.ndarray:
    return np.array([example.label for example in examples])
