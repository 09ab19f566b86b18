"""What each run writes down of every item adds up to the figures it logs, in the order of the examples."""

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import run, tracking
from pipelines.baselines import run_baseline
from pipelines.compare import compare
from pipelines.data import Data
from pipelines.measure import measure
from pipelines.outcomes import fetch_outcomes
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import LabelledText, Splits
from seqapp.data.steps import Steps
from seqapp.data.text import Passage
from seqapp.metrics import read
from seqapp.outcomes import Outcomes
from seqapp.tasks import TASKS
from seqapp.tasks import generation as generating
from seqapp.tasks.generation import Generation
from tests.pipelines.worlds import Done, Said, World

CHANCE = random.Random(0)
WORDS = ("red", "a", "b", "dogs", "sing", "runs.", "Café", "12")


def sentence(longest: int = 12) -> str:
    return " ".join(CHANCE.choice(WORDS) for _ in range(CHANCE.randint(1, longest)))


TEXTS = [LabelledText(sentence(), CHANCE.choice(("up", "down"))) for _ in range(40)]
PASSAGES = [Passage("\n".join(sentence() for _ in range(4)), ends=place % 2 == 0) for place in range(12)]
SYMBOLS = [
    Steps(
        tuple(CHANCE.choice("xyz") for _ in range(size)),
        (*(CHANCE.choice(("p", None)) for _ in range(size - 1)), "q"),
    )
    for size in (CHANCE.randint(2, 9) for _ in range(30))
]
NUMBERS = [
    Steps(tuple((CHANCE.random(),) for _ in range(size)), tuple((CHANCE.random(),) for _ in range(size)))
    for size in (CHANCE.randint(2, 9) for _ in range(30))
]
PAIRS = [SentencePair(sentence(), sentence(), ("en", "de")) for _ in range(25)]
LSTM = {"kind": "lstm", "hidden_size": 4}
READER = {"kind": "language_model", "embedding_size": 4, "encoder": LSTM}
IN_STEP = {"kind": "in_step", "encoder": LSTM}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any]]] = {
    "sentiment": ({"kind": "sentiment"}, {"kind": "classifier", "embedding_size": 4, "encoder": LSTM}, TEXTS),
    "symbols": ({"kind": "memory"}, IN_STEP, SYMBOLS),
    "the end": ({"kind": "memory", "loss_at": "end"}, IN_STEP, SYMBOLS),
    "numbers": ({"kind": "memory"}, {**IN_STEP, "reads": "numbers", "answers": "numbers"}, NUMBERS),
    "stream": ({"kind": "generation"}, READER, PASSAGES),
    "rows": ({"kind": "generation", "reads": "rows"}, READER, PASSAGES),
    "lines": ({"kind": "generation", "reads": "lines"}, READER, PASSAGES),
    "translation": ({"kind": "translation", "beam_size": 2, "tokenizer": {"kind": "word"}},
                    {"kind": "translator", "embedding_size": 4, "encoder": LSTM, "decoder": LSTM}, PAIRS),
}  # fmt: skip


def measured(name: str, examples: list[Any] | None = None, *, batch_rows: int = 7) -> tuple[Any, dict[str, Any]]:
    """The task and its metrics on ``examples``, of a fresh model that all of the examples were shown to."""
    spec, model, known = CASES[name]
    task = TASKS.build(spec)
    task.prepare(known)
    torch.manual_seed(0)
    made = task.build_model(model)
    splits = Splits("made up", known, examples or known)
    data = Data(task, splits, batch_tokens=40, batch_rows=batch_rows, seed=0)
    task.fit_model(made, data.train_items)
    return task, measure(task, made, data, data.validation_items)


@pytest.mark.parametrize("name", CASES)
def test_the_sum_over_all_items_is_the_score_that_is_logged(name: str) -> None:
    task, totals = measured(name)
    outcomes, scores = totals["outcomes"], read(totals)
    assert next(iter(outcomes.scores_of)) == task.selection[0]
    assert len(outcomes) > 1
    for score in outcomes.scores_of:
        assert outcomes.score(score) == pytest.approx(scores[score], rel=1e-6), score
    assert task.metric_definition.startswith(task.selection[0].partition("_")[0])


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("stream", "lines")])
def test_items_stand_in_the_order_of_the_examples(name: str) -> None:
    known = CASES[name][2]
    whole = measured(name)[1]["outcomes"]
    assert len(whole) == len(known)
    turned = measured(name, known[::-1])[1]["outcomes"]
    assert turned.values[::-1] == pytest.approx(whole.values, rel=1e-5)
    for place in (0, len(known) // 2):
        alone = measured(name, known[place : place + 1])[1]["outcomes"]
        assert alone.values[0] == pytest.approx(whole.values[place], rel=1e-5)


def test_training_mode_tells_no_outcomes() -> None:
    task, _, known = TASKS.build({"kind": "sentiment"}), None, TEXTS
    task.prepare(known)
    model = task.build_model(CASES["sentiment"][1]).train()
    assert "outcomes" not in task.loss(model, task.collate(task.encode(known)))[1]


# A stream in parts


TOKENIZERS = [{"kind": "character"}, {"kind": "word"}, {"kind": "whitespace"},
              {"kind": "byte_bpe", "max_vocabulary": 270},
              {"kind": "subword", "max_vocabulary": 40, "min_frequency": 1}]  # fmt: skip
PIECES = ("a", "bc", " ", "  ", "\n", " \n", "x.", "'s", " Ä", "é", "\t", "…", "12", " '", " ́")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join), st.booleans()),
             min_size=1, max_size=4),
    st.sampled_from(TOKENIZERS),
)  # fmt: skip
def test_a_text_has_the_tokens_it_has_uncut(texts: list[tuple[str, bool]], tokenizer: dict[str, Any]) -> None:
    task = Generation(tokenizer=tokenizer)
    examples = [Passage("a bc x. 12 ", ends=True), *(Passage(text, ends=ends) for text, ends in texts)]
    task.prepare(examples)
    stream = task.encode(examples)
    wanted = [index for one in examples for index in [*task.tokenizer.encode(one.text).ids, *([3] if one.ends else [])]]
    assert list(stream.ids) == wanted  # type: ignore[union-attr]
    tokens, characters = zip(*stream.parts, strict=True)  # type: ignore[union-attr]
    assert (sum(tokens), sum(characters)) == (len(stream), sum(len(one.text) for one in examples))
    assert min(tokens) > 0


def test_parts_are_of_equal_shares_of_the_text_whatever_the_tokens_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "PARTS", 10)
    examples = [Passage(" ".join(sentence() for _ in range(90)), ends=False) for _ in range(3)]
    total = sum(len(one.text) for one in examples)
    found = set()
    for tokenizer in TOKENIZERS:
        task = Generation(tokenizer=tokenizer)
        task.prepare(examples)
        stream = task.encode(examples)
        found.add(tuple(characters for _, characters in stream.parts))  # type: ignore[union-attr]
    (sizes,) = found
    assert len(sizes) == 10
    assert max(sizes) - min(sizes) < 12
    assert sum(sizes) == total


def test_a_text_without_a_place_to_cut_is_one_part() -> None:
    task = Generation()
    examples = [Passage("abcdefgh" * 30, ends=False)]
    task.prepare(examples)
    assert list(task.encode(examples).parts) == [(240, 240)]  # type: ignore[union-attr]


# Simple methods


@pytest.mark.parametrize(
    ("name", "task", "examples"),
    [
        ("nb-svm", {"kind": "sentiment"}, TEXTS),
        ("kneser-ney", {"kind": "generation"}, PASSAGES),
        ("kneser-ney", {"kind": "generation", "reads": "rows"}, PASSAGES),
        ("translation-memory", {"kind": "translation"}, PAIRS),
    ],
)
def test_a_baseline_tells_the_same_items_as_a_network(name: str, task: dict[str, Any], examples: list[Any]) -> None:
    case = {"stream": "stream", "rows": "rows"}.get(task.get("reads", "stream"), "")
    network = measured({"sentiment": "sentiment", "translation": "translation"}.get(task["kind"], case))[1]["outcomes"]
    built = TASKS.build(task)
    found = run_baseline(name, built, Splits("made up", examples, examples, examples))
    for split, outcomes in found.outcomes.items():
        assert outcomes.score() == pytest.approx(found.scores[split][built.selection[0]])
        assert outcomes.alike(network)
        assert len(outcomes) == len(network)
        same = {"sentiment": ["texts"], "generation": ["tokens", "characters"], "translation": ["expected"]}[
            task["kind"]
        ]
        for column in same:
            place = network.columns.index(column)
            assert outcomes.values[:, place] == pytest.approx(network.values[:, place])
    assert "outcomes" not in found.record()


# Whole runs


def test_a_run_and_the_baselines_beside_it_log_their_outcomes(done: Done, seqapp: Callable[..., Said]) -> None:
    trained = done.trained
    outcomes = fetch_outcomes(trained.run_id)
    assert set(outcomes) == {"validation", "test"}
    for split, found in outcomes.items():
        assert found.score() == pytest.approx(trained.scores[split]["accuracy"])
    tags = done.client.get_run(trained.run_id).data.tags
    assert tags["metric_definition"] == "accuracy"
    assert tags["machine"] == tracking.machine_line()
    (told,) = compare("sentiment", runs=[trained.run_id])
    (row,) = told.groups[0].rows
    assert isinstance(row.outcomes["test"], Outcomes)
    assert row.quality["test"].interval is not None


def test_two_seeds_a_second_network_and_a_baseline(world: World, seqapp: Callable[..., Said]) -> None:
    for seed in (1, 2):
        world.train(f"train.seed={seed}", "train.epochs=1", register=False)
    world.train("model.encoder.kind=gru", "train.epochs=1", register=False)
    run.baseline("tiny.yaml")
    (told,) = compare()
    (group,) = told.groups
    rows = {(row.name, row.network.partition("_")[0]): row for row in group.rows}
    assert set(rows) == {("tiny", "lstm"), ("tiny", "gru"), ("nb-svm", "none (linear)"),
                         ("tfidf-logistic-regression", "none (linear)")}  # fmt: skip
    assert rows["tiny", "lstm"].seeds == 2
    sizes = {len(row.outcomes[split]) for row in rows.values() for split in ("validation",)}
    assert sizes == {32}
    assert all(numpy.isfinite(row.parameters or 0) for row in rows.values())
    assert "cannot be tested" not in group.advice


TEXT = """
task: {kind: generation, tokenizer: {kind: word, max_vocabulary: 9}}
model: {kind: language_model, embedding_size: 4, encoder: {kind: elman, hidden_size: 4}}
data: {kind: text, train: text.txt, validation_share: 0.2, test_share: 0.2}
train: {epochs: 1, batch_rows: 4, truncate: 8, test: false}
"""


def test_a_model_that_knows_few_words_wins_nothing(world: World) -> None:
    (world.path / "text.txt").write_text("".join(f"{sentence()}\n" for _ in range(300)), encoding="utf-8")
    world.config("text.yaml", TEXT)
    knowing = ["task.tokenizer.kind=byte_bpe", "task.tokenizer.max_vocabulary=300"]
    for words in ([], ["task.tokenizer.max_vocabulary=10"], knowing):
        world.train(*words, config="text.yaml")
        run.baseline("text.yaml", [*words, "train.test=false"])
    (told,) = compare()
    found = {group.definition: sorted(row.name for row in group.rows) for group in told.groups}
    read = "bits_per_character, read as stream"
    assert found == {
        definition: ["kneser-ney", "text"]
        for definition in (
            read,
            f"{read}, unknown tokens as one of 9 of the tokenizer word",
            f"{read}, unknown tokens as one of 10 of the tokenizer word",
        )
    }
    # Nor does it take the place of a champion that reads every word.
    first, *others = sorted(
        world.client.search_model_versions("name = 'generation-text'"), key=lambda v: int(v.version)
    )
    assert first.tags["metric_definition"].endswith("one of 9 of the tokenizer word")
    assert world.client.get_registered_model("generation-text").aliases["champion"] == first.version
    assert len({version.tags["metric_definition"] for version in (first, *others)}) == 3


@pytest.mark.parametrize(("unknown", "refined"), [(0.0, False), (0.01, True)])
def test_unknown_tokens_of_any_split_refine_the_definition(unknown: float, refined: bool) -> None:
    task, _ = measured("stream")
    scores = {"validation": {"unknown": 0.0}, "test": {"unknown": unknown}}
    assert (task.definition_of(scores) != task.metric_definition) is refined
    other, _ = measured("sentiment")
    assert other.definition_of({"validation": {"accuracy": 0.5}}) == other.metric_definition
