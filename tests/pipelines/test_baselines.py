"""The linear methods that stand beside every network."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from pipelines import baselines
from pipelines.baselines import BASELINES, STRENGTHS, NaiveBayesWeights, run_baseline
from seqapp.data.bundled import reviews
from seqapp.data.splits import LabelledText, Splits
from tests.pipelines.worlds import Said, World, texts


def splits(count: int = 120, labels: tuple[str, ...] = ("negative", "positive")) -> Splits[LabelledText]:
    rows = [LabelledText(text, label) for text, label in texts(count, labels=labels, seed=2)]
    return Splits("made up", rows[: count // 2], rows[count // 2 : 3 * count // 4], rows[3 * count // 4 :])


def test_naive_bayes_ratio_by_hand() -> None:
    # Three n-grams; two rows of the class, three of the other.
    counts = csr_matrix([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    weights = NaiveBayesWeights().fit(counts, np.array([1, 1, 0, 0, 0]))
    p, q = [3, 2, 2], [1, 4, 2]
    wanted = [math.log(p[i] / 7) - math.log(q[i] / 7) for i in range(3)]
    assert weights.ratio_ == pytest.approx(wanted)
    assert wanted == pytest.approx([math.log(3), math.log(0.5), 0.0])
    assert weights.transform(counts).toarray()[0] == pytest.approx([wanted[0], 0.0, wanted[2]])


def test_naive_bayes_ratio_normalises_by_the_size_of_the_class() -> None:
    counts = csr_matrix([[1, 1], [1, 0], [1, 0]])
    ratio = NaiveBayesWeights().fit(counts, np.array([1, 0, 0])).ratio_
    assert ratio == pytest.approx([math.log((2 / 4) / (3 / 4)), math.log((2 / 4) / (1 / 4))])


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_cue_words_are_found(name: str) -> None:
    result = run_baseline(name, splits())
    assert result.strength in STRENGTHS
    assert result.validation > 0.8
    assert result.test is not None
    assert result.test > 0.8


@pytest.mark.parametrize("name", list(BASELINES))
def test_three_classes(name: str) -> None:
    result = run_baseline(name, splits(240, ("negative", "mixed", "positive")))
    assert result.validation > 0.7
    assert result.test is not None
    assert result.test > 0.7


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_strength_is_chosen_on_validation_alone(name: str) -> None:
    given = splits()
    turned = {"negative": "positive", "positive": "negative"}
    wrong = [LabelledText(example.text, turned[example.label]) for example in given.test]
    plain, other = (
        run_baseline(name, given),
        run_baseline(name, Splits("made up", given.train, given.validation, wrong)),
    )
    assert (plain.strength, plain.validation) == (other.strength, other.validation)
    assert plain.test is not None
    assert other.test == pytest.approx(1 - plain.test)
    alone = [
        run_one(name, given, strength, lambda examples: [example.label for example in examples])
        for strength in STRENGTHS
    ]
    assert plain.validation == max(alone)
    assert plain.strength == STRENGTHS[alone.index(max(alone))]


def run_one(name: str, given: Splits[LabelledText], strength: float, labels: Callable[[object], list[str]]) -> float:
    vectoriser, model = BASELINES[name](strength)
    train = vectoriser.fit_transform([example.text for example in given.train])
    model.fit(train, np.array([example.label for example in given.train]))
    predicted = model.predict(vectoriser.transform([example.text for example in given.validation]))
    return float(np.mean([a == b.label for a, b in zip(predicted, given.validation, strict=True)]))


def test_the_test_split_can_be_left_alone() -> None:
    assert run_baseline("nb-svm", splits(), test=False).test is None


def test_both_beat_chance_on_the_bundled_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STRENGTHS", (1.0, 3.0))
    for name in BASELINES:
        result = run_baseline(name, reviews())
        assert 0.65 < result.validation < 1, name
        assert result.test is not None
        assert 0.65 < result.test < 1, name


def test_the_command_logs_each_beside_the_networks(world: World, seqapp: Callable[..., Said]) -> None:
    said = seqapp("baseline", "tiny.yaml")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(BASELINES)
    experiment = world.client.get_experiment_by_name("sentiment")
    runs = {run.info.run_name: run for run in world.client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(BASELINES)
    for line in lines:
        run = runs[line.partition(":")[0]]
        assert run.info.status == "FINISHED"
        assert f"validation {run.data.metrics['best_validation/accuracy']:.2%}, test" in line
        assert float(run.data.params["strength"]) in STRENGTHS
        assert {given.tags[0].value for given in run.inputs.dataset_inputs} == {"train", "validation", "test"}
    compared = seqapp("compare").out
    assert compared.count("validation data") == 1
    assert all(name in compared for name in BASELINES)
