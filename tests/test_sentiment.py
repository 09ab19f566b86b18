"""One class for a text: each input answered as if alone, explained by its gradient, learned on a toy language."""

from __future__ import annotations

import copy
import functools
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.data import Batches
from seqapp import metrics
from seqapp.data.batching import LengthBuckets
from seqapp.data.splits import LabelledText
from seqapp.data.tokenizers import PAD, UNK
from seqapp.errors import BundleError, ConfigError, DataError
from seqapp.models.classifier import Classifier
from seqapp.nn.recurrent import RECURRENT
from seqapp.tasks import TASKS, InputError
from seqapp.tasks.sentiment import Item, Sentiment, SentimentInput, SentimentOutput

WORDS = ["good", "bad", "fine", "poor", "film", "plot", "cast", "the", "a", "it", "was", "not", ",", ".", "!"]
LABELS = ["mixed", "negative", "positive"]


def prepared(**options: Any) -> Sentiment:
    task = TASKS.build({"kind": "sentiment", **options})
    assert isinstance(task, Sentiment)
    task.prepare([LabelledText(" ".join(WORDS), label) for label in LABELS])
    return task


ENCODERS: dict[str, Any] = {
    "lstm": {"kind": "lstm", "hidden_size": 6},
    "birnn": {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 4}},
    "birnn sum": {"kind": "birnn", "layer": {"kind": "elman", "hidden_size": 4}, "merge": "sum"},
}
POOLING = {"kind": "concat", "parts": ["max", "mean", "attention"]}


@functools.cache
def model_for(encoder: str) -> Classifier:
    torch.manual_seed(3)
    parts = [*POOLING["parts"], *(["last"] if encoder != "birnn sum" else [])]
    spec = {"kind": "classifier", "embedding_size": 5, "encoder": ENCODERS[encoder],
            "pooling": {"kind": "concat", "parts": parts}}  # fmt: skip
    model = prepared().build_model(spec)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.9, 0.9)
        model.embedding.weight[PAD] = 0
    return model.eval()


TASK = prepared()
texts = st.lists(st.sampled_from([*WORDS, "unseen"]), min_size=1, max_size=40).map(" ".join)
encoders = pytest.mark.parametrize("encoder", ENCODERS)


@encoders
@settings(max_examples=25)
@given(batch=st.lists(texts, max_size=8))
def test_predict_answers_each_input_as_if_alone_and_in_order(encoder: str, batch: list[str]) -> None:
    model = model_for(encoder)
    together = TASK.predict(model, [SentimentInput(text=text) for text in batch])
    assert len(together) == len(batch)
    for text, answer in zip(batch, together, strict=True):
        (alone,) = TASK.predict(model, [SentimentInput(text=text)])
        assert answer.scores == pytest.approx(alone.scores, abs=1e-6)
        assert list(answer.scores) == LABELS
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-6)
        assert answer.score == answer.scores[answer.label] == max(answer.scores.values())
        assert answer.tokens is None


def test_many_inputs_in_several_passes_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    batch = [SentimentInput(text=" ".join(chance.choices(WORDS, k=chance.randint(1, 60)))) for _ in range(80)]
    whole = TASK.predict(model_for("lstm"), batch)
    monkeypatch.setattr("seqapp.tasks.sentiment.PREDICT_TOKENS", 100)
    passes: list[tuple[int, ...]] = []
    handle = model_for("lstm").register_forward_pre_hook(lambda _, given: passes.append(tuple(given[0].shape)))
    parts = TASK.predict(model_for("lstm"), batch)
    handle.remove()
    assert len(passes) > 10
    assert all(rows * size <= 100 for rows, size in passes)
    for one, other in zip(parts, whole, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_a_trailing_unknown_word_is_read_too() -> None:
    one, other = TASK.predict(model_for("lstm"), [SentimentInput(text="good"), SentimentInput(text="good unseen")])
    assert one.scores != pytest.approx(other.scores, abs=1e-4)


@encoders
def test_explained_weights_are_the_gradient_and_offsets_point_at_the_text(encoder: str) -> None:
    model = model_for(encoder)
    text = "The  film was\tNOT good , it was unseen !"
    plain, explained = TASK.predict(model, [SentimentInput(text=text), SentimentInput(text=text, explain=True)])
    assert explained.tokens is not None
    assert explained.scores == pytest.approx(plain.scores, abs=1e-6)
    assert [token.text for token in explained.tokens] == text.split()
    assert all(text[token.start : token.end] == token.text for token in explained.tokens)
    exact = copy.deepcopy(model).double()
    ids = torch.tensor([TASK.tokenizer.encode(text).ids])
    vectors = exact.embedding(ids).detach()
    best = LABELS.index(explained.label)

    def log_odds(vectors: Tensor) -> float:
        chance = (
            exact.head.logits(exact.features(vectors, ids, torch.tensor([ids.shape[1]]))).softmax(1)[0, best].item()
        )
        return torch.tensor(chance, dtype=torch.float64).logit().item()

    for index, token in enumerate(explained.tokens):
        scaled = [vectors.clone(), vectors.clone()]
        scaled[0][0, index] *= 1 - 1e-5
        scaled[1][0, index] *= 1 + 1e-5
        slope = (log_odds(scaled[1]) - log_odds(scaled[0])) / 2e-5
        assert token.weight == pytest.approx(slope, abs=2e-4)
    assert max(abs(token.weight) for token in explained.tokens) > 0.01
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_long_text_is_answered_and_explained() -> None:
    text = " ".join(random.Random(0).choices(WORDS, k=10_000))
    (answer,) = TASK.predict(model_for("lstm"), [SentimentInput(text=text, explain=True)])
    assert answer.tokens is not None
    assert len(answer.tokens) == 10_000
    assert all(map(torch.isfinite, torch.tensor([token.weight for token in answer.tokens])))


@pytest.mark.parametrize("empty", ["", " \n\t", "\u00a0\u3000"])
def test_an_empty_text_is_told_with_its_index(empty: str) -> None:
    with pytest.raises(InputError, match=r"^input 2: the text is empty") as caught:
        TASK.predict(model_for("lstm"), [SentimentInput(text=text) for text in ("good", "bad", empty, "")])
    assert caught.value.index == 2
    with pytest.raises(InputError) as caught:
        TASK.encode([LabelledText("good", "positive"), LabelledText(empty, "positive")])
    assert caught.value.index == 1


def test_no_input_no_answer() -> None:
    assert TASK.predict(model_for("lstm"), []) == []


def test_what_max_tokens_cuts_is_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    task = prepared(max_tokens=3)
    given = [SentimentInput(text=text) for text in ("good film", "good film , not bad", "the cast was poor")]
    with caplog.at_level(logging.WARNING):
        answers = task.predict(model_for("lstm"), given)
    assert caplog.messages == [
        "2 of 3 text(s) are longer than max_tokens=3; 3 token(s) at their ends are not read"
    ]  # fmt: skip
    (cut,) = TASK.predict(model_for("lstm"), [SentimentInput(text="good film ,")])
    assert answers[1].scores == pytest.approx(cut.scores, abs=1e-6)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        (explained,) = task.predict(model_for("lstm"), [SentimentInput(text="good film ,", explain=True)])
    assert not caplog.messages
    assert explained.tokens is not None
    assert len(explained.tokens) == 3


def test_crop_is_a_random_piece_in_training_only() -> None:
    task = prepared(crop=4)
    item = Item(list(range(4, 30)), 1)
    pieces = {tuple(task.augment(item, random.Random(seed)).ids) for seed in range(300)}
    assert pieces == {tuple(range(start, start + 4)) for start in range(4, 27)}
    short = Item([5, 6, 7, 8], 0)
    assert task.augment(short, random.Random(0)) == short
    assert [task.augmented_length(Item([4] * length, 0)) for length in (1, 4, 5, 99)] == [1, 4, 4, 4]
    assert [prepared().augmented_length(Item([4] * length, 0)) for length in (1, 99)] == [1, 99]
    assert prepared().augment(item, random.Random(0)) is item
    text = " ".join(WORDS)
    assert len(task.encode([LabelledText(text, "mixed")])[0].ids) == len(WORDS)
    (cropping,) = task.predict(model_for("lstm"), [SentimentInput(text=text)])
    (reading,) = TASK.predict(model_for("lstm"), [SentimentInput(text=text)])
    assert cropping == reading


def test_crops_depend_on_seed_epoch_and_row_alone() -> None:
    task = prepared(crop=4)
    items = [Item(list(range(4, 40)), 1)] * 6

    def crop(seed: int, epoch: int, rows: list[int], *, augment: bool = True) -> list[list[int]]:
        buckets = LengthBuckets([4] * 6, max_tokens=8, seed=seed)
        buckets.set_epoch(epoch)
        ids: Tensor = Batches(task, items, buckets, augment=augment)[rows].ids
        return ids.tolist()

    assert crop(1, 0, [0, 1, 2]) == crop(1, 0, [0, 1, 2])
    assert crop(1, 0, [2, 0]) == [crop(1, 0, [0, 1, 2])[index] for index in (2, 0)]
    different = [crop(1, 0, list(range(6))), crop(1, 1, list(range(6))), crop(2, 0, list(range(6)))]
    assert different[0] != different[1] != different[2] != different[0]
    assert len({tuple(row) for row in different[0]}) > 1
    assert crop(1, 0, [0], augment=False) == [items[0].ids]


def test_prepare_orders_labels_and_needs_two() -> None:
    assert TASK.labels.names == LABELS
    assert TASK.sizes() == {"vocabulary_size": 4 + len(WORDS), "classes": 3}
    with pytest.raises(DataError, match=r"have 1 label\(s\); two or more fit"):
        TASKS.build("sentiment").prepare([LabelledText("good", "positive")] * 3)
    with pytest.raises(DataError, match=r"no class is called 'positiv'; did you mean 'positive'\?"):
        TASK.encode([LabelledText("good", "positiv")])


def test_loss_is_the_mean_and_the_metrics_are_sums() -> None:
    model = model_for("lstm")
    examples = [LabelledText("good film", "positive"), LabelledText("bad", "negative"), LabelledText("it was", "mixed")]
    batch = TASK.collate(TASK.encode(examples))
    assert batch.ids.tolist()[1][1:] == [PAD]
    loss, totals = TASK.loss(model, batch)
    chances = [
        answer.scores[example.label]
        for answer, example in zip(TASK.predict(model, [TASK.as_input(e) for e in examples]), examples, strict=True)
    ]
    expected = -torch.tensor(chances).log().mean().item()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert metrics.read(totals)["nll"] == pytest.approx(expected, abs=1e-5)
    parts: dict[str, metrics.Metric] = {}
    for example in examples:
        parts = metrics.add(parts, TASK.loss(model, TASK.collate(TASK.encode([example])))[1])
    assert metrics.read(parts) == pytest.approx(metrics.read(totals), abs=1e-6)


def test_save_and_restore(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    other = TASKS.build("sentiment")
    other.restore(tmp_path)
    given = [SentimentInput(text="good film , unseen", explain=True)]
    assert other.predict(model_for("lstm"), given) == TASK.predict(model_for("lstm"), given)
    for content in ("", "{}", "[]", '["a"]', '["a", 1]', '["a", "a"]', "[" * 100_000):
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(BundleError, match=r"labels\.json: "):
            other.restore(tmp_path)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(BundleError, match=r"labels\.json: not a readable list of labels"):
        other.restore(tmp_path)


def test_a_model_that_does_not_fit_is_told_when_it_is_built() -> None:
    for spec, problem in [
        ({"kind": "translator"}, "this task trains a model of kind 'classifier', not 'translator'"),
        ({"kind": "classifier", "encoder": {"kind": "lstm"}}, "needs the option 'hidden_size'"),
        ({"kind": "classifier", "encoder": ENCODERS["birnn sum"], "pooling": "last"}, "a birnn with merge: concat"),
        ({"kind": "classifier", "encoder": ENCODERS["birnn sum"],
          "pooling": {"kind": "concat", "parts": ["max", "last"]}}, "a birnn with merge: concat"),
        ({"kind": "classifier", "encoder": {"kind": "stack", "layers": []}}, "at least one layer"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=problem):
            TASK.build_model(spec)


def test_wire_types_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        SentimentInput.model_validate({"text": "x", "explian": True})
    answer = SentimentOutput(label="a", score=1.0, scores={"a": 1.0})
    assert SentimentOutput.model_validate_json(answer.model_dump_json()) == answer


def test_dropout_holds_in_training_only() -> None:
    model = TASK.build_model({
        "kind": "classifier", "encoder": ENCODERS["lstm"], "embedding_size": 5, "dropout": 0.5,
        "token_dropout": 0.5, "embedding_dropout": 0.5,
    })  # fmt: skip
    assert isinstance(model, Classifier)
    ids, lengths = torch.randint(4, 12, (6, 9)), torch.full((6,), 9)
    model.eval()
    assert torch.equal(model(ids, lengths), model(ids, lengths))
    model.train()
    assert not torch.equal(model(ids, lengths), model(ids, lengths))
    model.token_dropout.p = 1.0
    assert torch.equal(model.token_dropout(ids), torch.full_like(ids, UNK))


def test_a_toy_language_is_learned_over_a_distance_of_thirty() -> None:
    """The label is whether the first of 31 tokens is "a"."""
    torch.manual_seed(1)
    chance = random.Random(1)

    def examples(count: int) -> list[LabelledText]:
        rows = [[chance.choice("ab"), *chance.choices("abcdefgh", k=30)] for _ in range(count)]
        return [LabelledText(" ".join(row), "yes" if row[0] == "a" else "no") for row in rows]

    task = TASKS.build("sentiment")
    training, held_out = examples(512), examples(200)
    task.prepare(training)
    model = task.build_model({
        "kind": "classifier", "embedding_size": 8, "pooling": "last",
        "encoder": {"kind": "lstm", "hidden_size": 16, "forget_bias": 4.0},
    })  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    items = task.encode(training)
    seen: set[str] = set()
    for epoch in range(12):
        buckets = LengthBuckets([31] * len(items), max_tokens=64 * 31, seed=epoch)
        for rows in buckets:
            optimizer.zero_grad()
            loss, _ = task.loss(model, task.collate([items[row] for row in rows]))
            loss.backward()
            seen |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert seen == {name for name, _ in model.named_parameters()}
    assert isinstance(model, Classifier)
    assert not model.embedding.weight[PAD].any()
    answers = task.predict(model.eval(), [task.as_input(example) for example in held_out])
    wrong = [example for example, answer in zip(held_out, answers, strict=True) if answer.label != example.label]
    assert not wrong


NEEDS_MORE = {
    "stack": {"layers": [{"kind": "elman", "hidden_size": 6}]},
    "variational": {"layer": {"kind": "elman", "hidden_size": 6}, "recurrent_dropout": 0.2},
    "weight_dropout": {"layer": {"kind": "lstm", "hidden_size": 6}},
}


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_one_word_of_the_config_puts_any_network_in_the_place_of_another(kind: str) -> None:
    spec = {"kind": "classifier", "encoder": {"kind": kind, **NEEDS_MORE.get(kind, {"hidden_size": 6})}}
    model = TASK.build_model(spec)
    loss, _ = TASK.loss(
        model, TASK.collate(TASK.encode([LabelledText("good bad", "positive"), LabelledText("bad", "negative")]))
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    both = TASK.predict(model.eval(), [SentimentInput(text="good bad good"), SentimentInput(text="bad")])
    assert both[0].score == pytest.approx(TASK.predict(model, [SentimentInput(text="good bad good")])[0].score)


def test_one_hot_input_learns_what_an_embedding_of_unit_vectors_would() -> None:
    spec = {
        "kind": "classifier",
        "embedding_size": None,
        "encoder": {"kind": "gru", "hidden_size": 4},
        "adversarial": 0.1,
    }
    model = TASK.build_model(spec)
    assert isinstance(model, Classifier)
    size = TASK.sizes()["vocabulary_size"]
    assert model.encoder.input_size == size
    assert not any("embedding" in name for name in model.state_dict())
    batch = TASK.collate(TASK.encode([LabelledText("good bad", "positive"), LabelledText("bad", "negative")]))
    vectors = model.embed(batch.ids)
    assert vectors.sum().item() == batch.lengths.sum().item()
    assert torch.equal(vectors.argmax(-1) * (batch.ids != PAD), batch.ids)
    loss, _ = TASK.loss(model, batch)
    loss.backward()
    assert model.encoder.V.grad is not None
    (answer,) = TASK.predict(model.eval(), [SentimentInput(text="good", explain=True)])
    assert answer.tokens is not None


def test_replicated_targets_are_the_mean_over_positions_beside_the_end() -> None:
    spec = {"kind": "classifier", "encoder": {"kind": "lstm", "hidden_size": 4}, "pooling": {"kind": "last"}}
    model = TASK.build_model({**spec, "replicate": 0.25})
    assert isinstance(model, Classifier)
    batch = TASK.collate(TASK.encode([LabelledText("good bad good", "positive"), LabelledText("bad", "negative")]))
    y, _ = model.encoder(model.embed(batch.ids), batch.lengths)
    logits = model.head.logits(y)
    good, bad = batch.targets.tolist()
    nll = -logits.log_softmax(-1)
    end = (nll[0, 2, good] + nll[1, 0, bad]) / 2
    every = (nll[0, :, good].mean() + nll[1, 0, bad]) / 2
    torch.testing.assert_close(model.loss(*batch)[0], 0.75 * end + 0.25 * every)
    torch.testing.assert_close(model.eval().loss(*batch)[0], end)
    birnn = {"kind": "birnn", "layer": {"kind": "lstm", "hidden_size": 4}}
    for wrong in ({"pooling": {"kind": "max"}}, {"encoder": birnn}, {"bag_ngrams": 1}):
        with pytest.raises(ConfigError, match="encoder that reads one way, without a bag, fits"):
            TASK.build_model({**spec, **wrong, "replicate": 0.5})
