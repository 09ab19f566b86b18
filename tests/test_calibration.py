"""Sums of a reliability against slow readings of their definitions; a temperature, and the answers it is used in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipelines.calibrate import FEWEST, HIGHEST, LOWEST, fit_temperature
from seqapp import bundle
from seqapp.calibration import BINS, Reliability, load_temperature, save_temperature
from seqapp.data.splits import LabelledText
from seqapp.data.steps import Steps
from seqapp.errors import BundleError, SeqappError
from seqapp.metrics import Metric
from seqapp.models.classifier import Classifier
from seqapp.tasks import TASKS
from seqapp.tasks.memory import Memory, MemoryInput
from seqapp.tasks.sentiment import Sentiment, SentimentInput

Draw = st.tuples(st.integers(1, 200), st.integers(2, 5), st.floats(0.1, 8), st.integers(0, 2**31))
temperatures = st.floats(0.05, 20)


def answers(draw: tuple[int, int, float, int]) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a given scale, and true classes (N,) that they partly foretell."""
    count, classes, scale, seed = draw
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    return logits, (logits / scale).softmax(1).multinomial(1, generator=generator)[:, 0]


def nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    return float(cross_entropy(logits.double() / temperature, targets))


# Reliability


@given(Draw, temperatures)
def test_scores_are_what_their_definitions_say(draw: tuple[int, int, float, int], temperature: float) -> None:
    logits, targets = answers(draw)
    probabilities = (logits.double() / temperature).softmax(1)
    bins: dict[int, list[tuple[float, bool]]] = {}
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64).tolist()
    for row, true in zip(probabilities.tolist(), targets.tolist(), strict=True):
        place = next(m for m in range(BINS) if edges[m] < max(row) <= edges[m + 1] or m == BINS - 1)
        bins.setdefault(place, []).append((max(row), row.index(max(row)) == true))
    ece = sum(abs(sum(right for _, right in held) - sum(sure for sure, _ in held)) for held in bins.values())
    found = Reliability.of(logits, targets, temperature)
    classes = list(range(logits.shape[1]))
    assert found.scores() == pytest.approx({
        "ece": ece / len(targets),
        "brier": brier_score_loss(targets.numpy(), _rows(probabilities), labels=classes, scale_by_half=False),
        "nll": nll(logits, targets, temperature),
    }, abs=1e-9)  # fmt: skip
    assert found.counts.tolist() == [len(bins.get(m, ())) for m in range(BINS)]


def _rows(probabilities: Tensor) -> Any:
    """As scikit-learn takes them: the second of two classes, else all."""
    return probabilities[:, 1].numpy() if probabilities.shape[1] == 2 else probabilities.numpy()


@given(Draw, st.integers(0, 200))
def test_parts_add_up_to_the_whole(draw: tuple[int, int, float, int], cut: int) -> None:
    logits, targets = answers(draw)
    together = Reliability.of(logits[:cut], targets[:cut]) + Reliability.of(logits[cut:], targets[cut:])
    whole = Reliability.of(logits, targets)
    assert together.counts.tolist() == whole.counts.tolist()
    assert together.right.tolist() == whole.right.tolist()
    assert together.scores() == pytest.approx(whole.scores(), abs=1e-12)


def test_a_worked_number() -> None:
    # Ten answers "80 % sure" of which six are right, and ten "60 % sure" of which six are: |0.6 - 0.8| / 2 + 0.
    logits = torch.tensor([[math.log(4), 0.0]] * 10 + [[0.0, math.log(1.5)]] * 10, dtype=torch.float64)
    targets = torch.tensor([0] * 6 + [1] * 4 + [1] * 6 + [0] * 4)
    found = Reliability.of(logits, targets).scores()
    assert found["ece"] == pytest.approx(0.1)
    # Right at 0.8: 2 * 0.2^2, wrong: 2 * 0.8^2; right at 0.6: 2 * 0.4^2, wrong: 2 * 0.6^2.
    assert found["brier"] == pytest.approx((6 * 0.08 + 4 * 1.28 + 6 * 0.32 + 4 * 0.72) / 20)
    assert found["nll"] == pytest.approx(-(6 * math.log(0.8) + 4 * math.log(0.2) + 6 * math.log(0.6)
                                           + 4 * math.log(0.4)) / 20)  # fmt: skip


def test_nothing_counted_is_not_a_number() -> None:
    empty = Reliability.of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert isinstance(empty, Metric)
    assert all(math.isnan(value) for value in empty.scores().values())


# The fit


@settings(max_examples=60)
@given(Draw, temperatures)
def test_no_other_temperature_has_less_nll(draw: tuple[int, int, float, int], other: float) -> None:
    logits, targets = answers(draw)
    temperature, note = fit_temperature(logits, targets)
    if temperature is None:
        assert int((logits.argmax(1) != targets).sum()) < FEWEST
        return
    assert bool(note) == (temperature in (LOWEST, HIGHEST))
    least = nll(logits, targets, temperature)
    for tried in (1.0, other, temperature * 1.001, temperature / 1.001):
        if LOWEST <= tried <= HIGHEST:
            assert least <= nll(logits, targets, tried) + 1e-12, tried


def test_the_temperature_that_made_the_answers_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 4, generator=generator)
    targets = (logits / 1.7).softmax(1).multinomial(1, generator=generator)[:, 0]
    temperature, note = fit_temperature(logits, targets)
    assert temperature == pytest.approx(1.7, rel=0.03)
    assert note == ""
    before, after = Reliability.of(logits, targets), Reliability.of(logits, targets, temperature)
    assert after.scores()["ece"] < 0.01 < 0.05 < before.scores()["ece"]
    # What every logit is multiplied with, the temperature is.
    louder, _ = fit_temperature(8 * logits, targets)
    assert louder == pytest.approx(8 * temperature, rel=1e-9)


@pytest.mark.parametrize("wrong", [0, 9, 10])
def test_few_errors_fit_no_temperature(wrong: int) -> None:
    logits = torch.tensor([[2.0, 1.0]] * 50)
    temperature, note = fit_temperature(logits, torch.tensor([1] * wrong + [0] * (50 - wrong)))
    if wrong < 10:
        assert temperature is None
        assert f"{wrong} of 50 validation answers are wrong; 10 or more are needed" in note
    else:
        # What is always said with the same odds is right with those odds: log(40 / 10) = 1 / T.
        assert temperature == pytest.approx(1 / math.log(4))


@pytest.mark.parametrize(
    ("logits", "targets", "bound"),
    [
        ([[9.0, 0.0], [9.0, 0.0]], [0, 1], HIGHEST),  # says always the same: a coin fits better
        ([[9.0, 0.0], [0.0, 9.0]], [1, 0], HIGHEST),  # all wrong
        ([[3e-5, 0.0], [0.0, -1e-5]], [0, 1], LOWEST),  # a hair apart, and more right than wrong
    ],
)
def test_what_has_no_best_temperature_stops_at_a_bound_and_says_so(
    logits: list[list[float]], targets: list[int], bound: float
) -> None:
    temperature, note = fit_temperature(torch.tensor(logits * 20), torch.tensor(targets * 20))
    assert temperature == bound
    assert f"{bound:g}" in note


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(odd: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [odd, 1.0], [1.0, 0.0]])
    with pytest.raises(SeqappError, match="the logits of 1 of 3 validation answers are not finite"):
        fit_temperature(logits, torch.tensor([0, 1, 0]))
    with pytest.raises(SeqappError, match="one or more answers, all finite, fit"):
        fit_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


# Answers

WORDS = ["good", "bad", "so-so", "film", "plot", "the"]
LABELS = ("mixed", "negative", "positive")
SPEC = {"kind": "classifier", "embedding_size": 4, "encoder": {"kind": "gru", "hidden_size": 5}}


def sentiment(labels: tuple[str, ...] = LABELS) -> tuple[Sentiment, Classifier]:
    task = TASKS.build({"kind": "sentiment"})
    assert isinstance(task, Sentiment)
    task.prepare([LabelledText(" ".join(WORDS), label) for label in labels])
    torch.manual_seed(1)
    model = task.build_model(SPEC)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return task, model.eval()


TASK, MODEL = sentiment()


@settings(max_examples=30)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), st.floats(0.01, 100))
def test_a_temperature_changes_how_sure_an_answer_is_and_no_label(text: str, temperature: float) -> None:
    asked = [SentimentInput(text=text)]
    TASK.temperature = None
    (plain,) = TASK.predict(MODEL, asked)
    TASK.temperature = temperature
    (scaled,) = TASK.predict(MODEL, asked)
    TASK.temperature = None
    assert scaled.label == plain.label
    assert sum(scaled.scores.values()) == pytest.approx(1, abs=1e-6)
    assert scaled.score == max(scaled.scores.values()) == scaled.scores[scaled.label]
    logits = torch.tensor([math.log(value) for value in plain.scores.values()], dtype=torch.float64)
    assert list(scaled.scores.values()) == pytest.approx((logits / temperature).softmax(0).tolist(), abs=1e-4)
    assert scaled.score >= plain.score - 1e-6 if temperature < 1 else scaled.score <= plain.score + 1e-6


def test_logits_of_the_task_are_those_of_its_answers() -> None:
    examples = [LabelledText("the good film", "positive"), LabelledText("bad", "negative")]
    logits, targets = TASK.logits(MODEL, TASK.collate(TASK.encode(examples)))
    assert targets.tolist() == [2, 1]
    said = TASK.predict(MODEL, [TASK.as_input(example) for example in examples])
    for row, answer in zip(logits.softmax(1).tolist(), said, strict=True):
        assert row == pytest.approx(list(answer.scores.values()), abs=1e-6)


def test_explanations_are_those_of_the_odds_that_are_told() -> None:
    task, model = sentiment(("negative", "positive"))
    asked = [SentimentInput(text="the good film", explain=True)]
    plain = task.predict(model, asked)[0].tokens
    task.temperature = 4.0
    scaled = task.predict(model, asked)[0].tokens
    assert plain is not None
    assert scaled is not None
    assert [token.weight for token in scaled] == pytest.approx([token.weight / 4 for token in plain], rel=1e-5)


def test_symbols_answered_step_by_step_have_a_temperature_too() -> None:
    task = TASKS.build({"kind": "memory"})
    assert isinstance(task, Memory)
    task.prepare([Steps(("a", "b", "a"), (None, "x", "y")), Steps(("b", "a"), ("x", "y"))])
    torch.manual_seed(0)
    model = task.build_model({"kind": "in_step", "encoder": {"kind": "lstm", "hidden_size": 4}}).eval()
    batch = task.collate(task.encode([Steps(("a", "b", "a"), (None, "x", "y")), Steps(("b",), ("y",))]))
    assert task.calibrates
    with torch.no_grad():
        logits, targets = task.logits(model, batch)
    assert sorted(targets.tolist()) == [0, 1, 1]
    told = task.loss(model, batch)[1]["nll"].scores()["nll"]
    assert nll(logits, targets, 1.0) == pytest.approx(told, abs=1e-6)
    asked = [MemoryInput(inputs=["b"])]
    (plain,) = task.predict(model, asked)
    task.temperature = 0.2
    (sharp,) = task.predict(model, asked)
    assert sharp.outputs == plain.outputs
    assert plain.probabilities is not None
    odds = 5 * math.log(plain.probabilities[0] / (1 - plain.probabilities[0]))
    assert sharp.probabilities == pytest.approx([1 / (1 + math.exp(-odds))], abs=1e-5)
    numbers = TASKS.build({"kind": "memory"})
    numbers.prepare([Steps(((1.5,), (2.0,)), (None, (3.5,))), Steps(((0.5,), (2.0,)), (None, (2.5,)))])
    assert not numbers.calibrates


# Bundles

RESOLVED = {"task": {"kind": "sentiment", "tokenizer": {"kind": "word"}}, "model": SPEC, "data": {}, "train": {}}
ASKED = [SentimentInput(text="the good film"), SentimentInput(text="bad plot")]


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_a_bundle_answers_with_the_temperature_it_was_saved_with(tmp_path: Path, temperature: float | None) -> None:
    task, model = sentiment()
    task.temperature = temperature
    path = bundle.save(tmp_path / "bundle", task=task, model=model, resolved=RESOLVED, metrics={}, name="b",
                       golden=ASKED)  # fmt: skip
    # A bundle without the file is one of before there were temperatures.
    assert (path / "calibration.json").exists() == (temperature is not None)
    loaded = bundle.load(path)
    loaded.check_golden()
    assert loaded.task.temperature == temperature
    assert loaded.predict(ASKED) == task.predict(model, ASKED)
    told = "Its probabilities are not calibrated." if temperature is None else "are calibrated for texts like those"
    assert told in loaded.task.limits


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1 / 3, 100.0])
def test_a_temperature_comes_back_as_it_was(tmp_path: Path, temperature: float) -> None:
    save_temperature(tmp_path, temperature)
    assert load_temperature(tmp_path) == temperature


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"temperature": 0}', '{"temperature": -1.5}', '{"temperature": NaN}', '{"temperature": Infinity}',
     '{"temperature": "2"}', '{"temperature": 2.0, "more": 1}', "\xff"],
)  # fmt: skip
def test_a_file_without_a_temperature_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match=r"calibration\.json: a temperature above 0 fits"):
        load_temperature(tmp_path)
