"""The simple methods that stand beside every network."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from pipelines import baselines
from pipelines.baselines import LINEAR, ORDERS, STRENGTHS, NaiveBayesWeights, foretell, run_baseline
from pipelines.ngram import NGram
from seqapp.data.bundled import reviews
from seqapp.data.splits import LabelledText, Splits
from seqapp.data.text import Passage
from seqapp.data.tokenizers import BOS, EOS
from seqapp.metrics import read
from seqapp.tasks.generation import Generation
from seqapp.tasks.sentiment import Sentiment
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


@pytest.mark.parametrize("name", list(LINEAR))
def test_the_cue_words_are_found(name: str) -> None:
    result = run_baseline(name, Sentiment(), splits())
    assert result.strength in STRENGTHS
    assert result.scores["validation"]["accuracy"] > 0.8
    assert result.scores["test"]["accuracy"] > 0.8


@pytest.mark.parametrize("name", list(LINEAR))
def test_three_classes(name: str) -> None:
    result = run_baseline(name, Sentiment(), splits(240, ("negative", "mixed", "positive")))
    assert result.scores["validation"]["accuracy"] > 0.7
    assert result.scores["test"]["accuracy"] > 0.7


@pytest.mark.parametrize("name", list(LINEAR))
def test_the_strength_is_chosen_on_validation_alone(name: str) -> None:
    given = splits()
    turned = {"negative": "positive", "positive": "negative"}
    wrong = [LabelledText(example.text, turned[example.label]) for example in given.test]
    plain, other = (
        run_baseline(name, Sentiment(), given),
        run_baseline(name, Sentiment(), Splits("made up", given.train, given.validation, wrong)),
    )
    assert (plain.strength, plain.scores["validation"]) == (other.strength, other.scores["validation"])
    assert other.scores["test"]["accuracy"] == pytest.approx(1 - plain.scores["test"]["accuracy"])
    alone = [
        run_one(name, given, strength, lambda examples: [example.label for example in examples])
        for strength in STRENGTHS
    ]
    assert plain.scores["validation"]["accuracy"] == max(alone)
    assert plain.strength == STRENGTHS[alone.index(max(alone))]


def run_one(name: str, given: Splits[LabelledText], strength: float, labels: Callable[[object], list[str]]) -> float:
    vectoriser, model = LINEAR[name](strength)
    train = vectoriser.fit_transform([example.text for example in given.train])
    model.fit(train, np.array([example.label for example in given.train]))
    predicted = model.predict(vectoriser.transform([example.text for example in given.validation]))
    return float(np.mean([a == b.label for a, b in zip(predicted, given.validation, strict=True)]))


def test_the_test_split_can_be_left_alone() -> None:
    assert set(run_baseline("nb-svm", Sentiment(), splits(), test=False).scores) == {"validation"}


def test_both_beat_chance_on_the_bundled_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STRENGTHS", (1.0, 3.0))
    for name in LINEAR:
        result = run_baseline(name, Sentiment(), reviews())
        assert 0.65 < result.scores["validation"]["accuracy"] < 1, name
        assert 0.65 < result.scores["test"]["accuracy"] < 1, name


def passages(count: int, seed: int = 0, *, condition: str | None = None, ends: bool = True) -> list[Passage]:
    """Sentences of a small grammar, each word told by the two before it."""
    chance = random.Random(seed)
    texts = (f"{chance.choice(('the cat', 'a dog'))} {chance.choice(('sees', 'hears'))} it. " for _ in range(count))
    return [Passage(text, ends=ends, condition=condition) for text in texts]


def corpus(**options: Any) -> Splits[Passage]:
    return Splits("made up", passages(60, 1, **options), passages(20, 2, **options), passages(30, 3, **options))


@pytest.mark.parametrize("tokenizer", ["character", "word"])
@pytest.mark.parametrize("reads", ["stream", "rows"])
def test_a_text_is_foretold_in_the_units_of_a_network(
    tokenizer: str, reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, given = Generation(tokenizer={"kind": tokenizer}, reads=reads), corpus()
    result = run_baseline("kneser-ney", task, given)
    assert set(result.scores) == {"validation", "test"}
    tokens = [[*task.tokenizer.encode(passage.text).ids, EOS] for passage in given.test]
    text = np.array([token for row in tokens for token in [BOS, *row]])
    V, size = task.tokenizer.size, sum(map(len, tokens))
    counted = [[BOS, *task.tokenizer.encode(passage.text).ids, EOS] for passage in given.train]
    order = ORDERS[0]
    model = NGram(np.array([token for row in counted for token in row]), order=order, vocabulary_size=V)
    nats = model.nats(text)[int(result.strength) - 1].sum()
    characters = sum(len(passage.text) for passage in given.test)
    assert result.scores["test"] == pytest.approx(
        {"nll": nats / size, "perplexity": math.exp(nats / size), "unknown": 0.0,
         "bits_per_character": nats / math.log(2) / characters}
    )  # fmt: skip
    # Two choices of two a sentence are all there is to know.
    assert 2 * math.log(2) < nats / len(tokens) < 3 * math.log(2)

    monkeypatch.setattr(baselines, "BLOCK_TOKENS", 37)
    monkeypatch.setattr(baselines, "BLOCK_ROWS", 3)
    again = run_baseline("kneser-ney", Generation(tokenizer={"kind": tokenizer}, reads=reads), given)
    assert again.scores["test"] == pytest.approx(result.scores["test"])


def test_the_order_is_chosen_on_validation_alone() -> None:
    given = corpus()
    task = Generation()
    result = run_baseline("kneser-ney", task, given)
    garbled = [Passage(passage.text[::-1]) for passage in given.test]
    other = run_baseline("kneser-ney", Generation(), Splits("made up", given.train, given.validation, garbled))
    assert (result.strength, result.scores["validation"]) == (other.strength, other.scores["validation"])
    assert other.scores["test"]["nll"] > 2 * result.scores["test"]["nll"]
    text = np.concatenate([part for part, _ in baselines.blocks(task.encode(given.train))])
    model = NGram(text, order=ORDERS[0], vocabulary_size=task.tokenizer.size)
    found = [read(totals)["nll"] for totals in foretell(model, task.encode(given.validation))]
    assert result.scores["validation"]["nll"] == min(found)
    assert result.strength == 1 + found.index(min(found))
    assert result.strength > 1


def test_a_text_that_goes_on_has_no_borders() -> None:
    result = run_baseline("kneser-ney", Generation(), corpus(ends=False))
    joined = Splits("made up", *([Passage("".join(row.text for row in rows), ends=False)]
                                 for rows in (corpus().train, corpus().validation, corpus().test)))  # fmt: skip
    assert run_baseline("kneser-ney", Generation(), joined).scores == result.scores


def test_a_condition_is_not_looked_at() -> None:
    names = run_baseline("kneser-ney", Generation(reads="rows"), corpus(condition="english"))
    assert names.scores == run_baseline("kneser-ney", Generation(reads="rows"), corpus()).scores


def test_more_text_than_can_be_counted_is_cut_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baselines, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(baselines, "MOST_TOKENS", 150)
    run_baseline("kneser-ney", Generation(), corpus())
    assert "the n-grams are those of the first 200 tokens of the training text" in caplog.text


def test_the_command_logs_each_beside_the_networks(world: World, seqapp: Callable[..., Said]) -> None:
    said = seqapp("baseline", "tiny.yaml")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(LINEAR)
    experiment = world.client.get_experiment_by_name("sentiment")
    runs = {run.info.run_name: run for run in world.client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(LINEAR)
    for line in lines:
        run = runs[line.partition(":")[0]]
        assert run.info.status == "FINISHED"
        assert f"validation accuracy {run.data.metrics['best_validation/accuracy']:.4f}, test accuracy" in line
        assert float(run.data.params["strength"]) in STRENGTHS
        assert {given.tags[0].value for given in run.inputs.dataset_inputs} == {"train", "validation", "test"}
    compared = seqapp("compare").out
    assert compared.count("validation data") == 1
    assert all(name in compared for name in LINEAR)


def test_the_command_logs_the_n_grams_beside_the_language_models(world: World, seqapp: Callable[..., Said]) -> None:
    world.config(
        "text.yaml",
        """
task: {kind: generation}
model: {kind: language_model, encoder: {kind: elman, hidden_size: 4}}
data: {kind: documentation}
train: {truncate: 8}
""",
    )
    said = seqapp("baseline", "text.yaml")
    assert said.status == 0, said.err
    experiment = world.client.get_experiment_by_name("generation")
    (run,) = world.client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "kneser-ney"
    found = run.data.metrics
    assert f"kneser-ney: validation nll {found['best_validation/nll']:.4f}, validation perplexity" in said.out
    assert 1 < found["best_validation/bits_per_character"] < 2
    assert 1 < found["test/bits_per_character"] < 2
    assert run.data.tags["network"] == "none (n-gram)"
    assert "kneser-ney" in seqapp("compare", "generation").out
