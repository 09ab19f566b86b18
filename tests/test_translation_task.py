"""The translation task against a slow reader of the same model: search, scores, attention, texts, and what is refused.

B sources, S source length, T target length.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from seqapp import metrics
from seqapp.beam_search import Hypothesis
from seqapp.data.pairs import SentencePair
from seqapp.data.tokenizers import BOS, EOS, UNK
from seqapp.errors import BundleError, ConfigError, DataError
from seqapp.models.translator import Translator
from seqapp.tasks import TASKS, InputError
from seqapp.tasks.translation import Item, Translation
from seqapp.translation import TranslationInput, TranslationOutput, align, limit, score, search

LANGUAGES = ("en", "de")
TEXTS = [
    ("The dog sleeps.", "Der Hund schläft."),
    ("The old cat sees the dog.", "Die alte Katze sieht den Hund."),
    ("A man reads.", "Ein Mann liest."),
    ("Today the man sees a cat, and the dog sleeps.", "Heute sieht der Mann eine Katze, und der Hund schläft."),
]
PAIRS = [SentencePair(*texts, LANGUAGES) for texts in TEXTS]
TOKENIZERS: dict[str, dict[str, Any]] = {
    "word": {"kind": "word"},
    "bpe": {"kind": "subword", "max_vocabulary": 60},
    "character": {"kind": "character"},
}
MODELS: dict[str, dict[str, Any]] = {
    "attention": {"attention": {"kind": "general"}},
    "multi_head": {"attention": {"kind": "multi_head", "heads": 2, "size": 6}, "input_feeding": True},
    "plain": {"attention": {"kind": "none"}},
}
OPTIONS: list[dict[str, Any]] = [
    {"text": "The dog sees a cat."},
    {"text": "The dog sleeps. A man sees the dog!\n\n  The cat reads.\n", "alternatives": 2, "beam_size": 4},
    {"text": "the", "beam_size": 1, "length_penalty": 0.0, "return_attention": True},
    {"text": "A cat and a dog see the old man.", "coverage_penalty": 0.4, "max_tokens": 3, "return_attention": True},
    {"text": "A man", "target": "Ein Hund liest", "return_attention": True},
    {"text": "A man", "target": "Ein Hund", "coverage_penalty": 0.4, "length_penalty": 0.5},
    {"text": "🙂 sleeps", "replace_unknown": False, "alternatives": 1},
    {"text": "The man sees 你好.", "beam_size": 3, "coverage_penalty": 0.4, "max_tokens": 5},
]
"""Requests of every sort; together they also make mixed batches."""


def prepared(tokenizer: str = "word", **options: Any) -> Translation:
    task = TASKS.build({"kind": "translation", "tokenizer": TOKENIZERS[tokenizer], **options})
    assert isinstance(task, Translation)
    task.prepare(PAIRS)
    return task


@functools.cache
def translator(
    tokenizer: str = "word", model: str = "attention", shared: bool = True, seed: int = 0
) -> tuple[Translation, Translator]:
    """An untrained network that is sure of itself, in float64, so that a batch says what its rows say."""
    task = prepared(tokenizer, shared=shared)
    torch.manual_seed(seed)
    network = {"kind": "gru", "hidden_size": 8}
    built = task.build_model({"kind": "translator", "embedding_size": 6, "decoder": network, "upper": network,
                              "encoder": {"kind": "birnn", "layer": network}, **MODELS[model]})  # fmt: skip
    assert isinstance(built, Translator)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)
        built.head.get_parameter("project.bias")[EOS] = 1.0
    return task, built.double().eval()


def close(got: Any, wanted: Any) -> bool:
    """Equal, floats but for their last digits."""
    if isinstance(got, float) and isinstance(wanted, float):
        return math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(close(got[key], wanted[key]) for key in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(close(*pair) for pair in zip(got, wanted, strict=True))
    return bool(got == wanted)


def ask(task: Translation, model: Translator, **fields: Any) -> TranslationOutput:
    (output,) = task.predict(model, [TranslationInput(**fields)])
    return output


def log_probs(models: Sequence[Translator], source: Sequence[int], said: Sequence[int]) -> list[float]:
    """Of each token of ``said``, the log of the mean of the models' probabilities, read all at once."""
    with torch.no_grad():
        each = [model.head.logits(model(torch.tensor([source]), torch.tensor([len(source)]),
                                        torch.tensor([[BOS, *said[:-1]]]))[0][0]).softmax(-1)
                for model in models]  # fmt: skip
    mean = torch.stack(each).mean(0)
    return [math.log(mean[place, token]) for place, token in enumerate(said)]


def said_by(one: Hypothesis) -> list[int]:
    return [*one.tokens, *([EOS] if one.finished else [])]


# Search

SOURCES = [[5, 6, 7, 8, EOS], [9, EOS], [4, 4, 10, 11, 12, 6, EOS], [7, 5, EOS]]
LIMITS = [6, 2, 9, 4]


def models_of(count: int, kind: str = "attention") -> list[Translator]:
    return [translator(model=kind, seed=seed)[1] for seed in range(count)]


@pytest.mark.parametrize("coverage_penalty", [0.0, 0.7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(("count", "kind"), [(1, "attention"), (2, "attention"), (1, "multi_head"), (3, "multi_head")])
def test_what_is_found_is_scored_as_a_slow_reader_would(
    count: int, kind: str, length_penalty: float, coverage_penalty: float
) -> None:
    models = models_of(count, kind)
    rows = search(models, SOURCES, LIMITS, 4, 4, length_penalty, coverage_penalty)
    for source, most, found in zip(SOURCES, LIMITS, rows, strict=True):
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in found:
            said = said_by(one)
            assert len(said) <= most
            assert one.log_probs == pytest.approx(log_probs(models, source, said))
            expected = one.log_prob / len(said) ** length_penalty
            (weights,) = align(models, [source], [one.tokens])
            assert weights.shape == (len(one.tokens) + 1, len(source))
            # Of a translation that was cut the end was never said.
            for column in weights[: len(said)].double().T.tolist():
                expected += coverage_penalty * math.log(min(max(sum(column), 1e-6), 1))
            assert one.score == pytest.approx(expected, abs=1e-5)
        assert len({tuple(said_by(one)) for one in found}) == len(found)


def test_coverage_changes_what_is_best() -> None:
    models = models_of(1)
    plain, covered = (search(models, SOURCES, LIMITS, 6, 6, 1.0, weight) for weight in (0.0, 3.0))
    assert [row[0].tokens for row in plain] != [row[0].tokens for row in covered]


def test_a_model_without_attention_has_no_coverage() -> None:
    models = models_of(1, "plain")
    assert search(models, SOURCES, LIMITS, 3, 2, 1.0, 5.0) == search(models, SOURCES, LIMITS, 3, 2, 1.0, 0.0)


@pytest.mark.parametrize("coverage_penalty", [0.0, 0.7])
def test_one_model_twice_is_that_model(coverage_penalty: float) -> None:
    (model,) = models_of(1)
    one, twice = (search(models, SOURCES, LIMITS, 3, 3, 1.0, coverage_penalty) for models in ([model], [model, model]))
    for row, same in zip(one, twice, strict=True):
        assert [said_by(found) for found in row] == [said_by(found) for found in same]
        assert [found.score for found in row] == pytest.approx([found.score for found in same])


@pytest.mark.parametrize("count", [1, 2])
def test_scores_and_attention_of_known_translations(count: int) -> None:
    models = models_of(count)
    targets = [[5, 6], [], [7, UNK, 7, 4], [9]]
    rows, looks = score(models, SOURCES, targets), align(models, SOURCES, targets)
    for source, target, row, weights in zip(SOURCES, targets, rows, looks, strict=True):
        assert row == pytest.approx(log_probs(models, source, [*target, EOS]))
        torch.testing.assert_close(weights.sum(1), torch.ones(len(target) + 1))
        alone = [align([model], [source], [target])[0] for model in models]
        torch.testing.assert_close(weights, torch.stack(alone).mean(0))


# Answers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_mixed_batch_is_answered_as_each_request_alone(
    tokenizer: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, built = translator(tokenizer, model, shared=tokenizer == "bpe")
    requests = [TranslationInput(**fields) for fields in OPTIONS]
    together = task.predict(built, requests)
    monkeypatch.setattr("seqapp.translation.ROWS_AT_ONCE", 2)
    backwards = task.predict(built, requests[::-1])[::-1]
    for request, batch, turned in zip(requests, together, backwards, strict=True):
        (alone,) = task.predict(built, [request])
        assert close(batch.model_dump(), alone.model_dump()), request
        assert close(turned.model_dump(), alone.model_dump()), request


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_an_answer_is_what_the_search_found(model: str, fields: dict[str, Any]) -> None:
    task, built = translator("character", model)
    asked, output = TranslationInput(**fields), ask(task, built, **fields)
    beam_size, penalty = asked.beam_size or 5, 1.0 if asked.length_penalty is None else asked.length_penalty
    for sentence in output.sentences:
        ids = [*task.source_tokenizer.encode(sentence.source).ids, EOS]
        if asked.target is None:
            ((best, *others),) = search([built], [ids], [limit(len(ids), asked.max_tokens)], beam_size,
                                        asked.alternatives + 1, penalty, asked.coverage_penalty)  # fmt: skip
            assert (sentence.score, sentence.log_prob) == pytest.approx((best.score, best.log_prob))
            assert sentence.finished is best.finished
            tokens = best.tokens
            assert [one.score for one in sentence.alternatives] == pytest.approx([one.score for one in others])
        else:
            tokens = task.target_tokenizer.encode(asked.target).ids
            assert sentence.log_prob == pytest.approx(sum(log_probs([built], ids, [*tokens, EOS])))
            assert sentence.translation == asked.target
        if UNK not in tokens and asked.target is None:
            assert sentence.translation == task.target_tokenizer.decode(tokens)
        if asked.return_attention:
            assert sentence.source_tokens == [*map(task.source_tokenizer.token_text, ids)]
            whole = [*tokens, EOS] if sentence.finished else tokens
            assert sentence.target_tokens == [*map(task.target_tokenizer.token_text, whole)]
            assert (sentence.attention is None) == (model == "plain")
            if sentence.attention is not None:
                (weights,) = align([built], [ids], [tokens])
                found = torch.tensor(sentence.attention)
                torch.testing.assert_close(found, weights[: len(whole)], atol=6e-5, rtol=0)
        else:
            assert [sentence.source_tokens, sentence.target_tokens, sentence.attention] == [None] * 3
    assert output.score == pytest.approx(sum(one.score for one in output.sentences) / len(output.sentences))


@pytest.mark.parametrize("coverage_penalty", [0.0, 0.8])
@pytest.mark.parametrize("length_penalty", [0.3, 1.0])
def test_what_was_found_is_scored_alike_when_it_is_given_back(length_penalty: float, coverage_penalty: float) -> None:
    task, model = learned()
    keywords = {"text": "A man reads.", "length_penalty": length_penalty, "coverage_penalty": coverage_penalty}
    (found,) = ask(task, model, **keywords, alternatives=4).sentences
    ways = [(found.translation, found.score, found.log_prob)]
    ways += [(one.text, one.score, one.log_prob) for one in found.alternatives]
    same = 0
    for text, ranked, log_prob in ways:
        (again,) = ask(task, model, **keywords, target=text).sentences
        # Another way to the same text may have been found.
        if again.log_prob == pytest.approx(log_prob, abs=1e-4):
            assert again.score == pytest.approx(ranked, abs=1e-4)
            same += 1
    assert same >= 3


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_texts_come_back_with_their_white_space(tokenizer: str) -> None:
    task, built = translator(tokenizer)
    text = "\n The dog sleeps.  A man reads!\r\n\n\tThe cat.\n"
    output = ask(task, built, text=text)
    assert [one.source for one in output.sentences] == ["The dog sleeps.", "A man reads!", "The cat."]
    said = [one.translation for one in output.sentences]
    assert output.text == f"\n {said[0]}  {said[1]}\r\n\n\t{said[2]}\n"


def test_alternatives_of_a_text_are_those_of_its_sentences() -> None:
    output = ask(*translator("bpe"), text="A man sees. The cat.", alternatives=3, beam_size=4)
    first, second = output.sentences
    assert len(first.alternatives) == len(second.alternatives) == 3
    expected = [f"{one.text} {other.text}" for one, other in zip(first.alternatives, second.alternatives, strict=True)]
    assert output.alternatives == [way for way in dict.fromkeys(expected) if way != output.text]


def test_ten_thousand_words_are_cut_and_joined_and_nothing_is_lost() -> None:
    task, built = translator("word")
    chance = random.Random(0)
    words = [chance.choice(["dog", "cat,", "man", "sleeps.", "sees", "reads!\n"]) for _ in range(10_000)]
    text = " ".join(words)
    output = ask(task, built, text=text, beam_size=1, max_tokens=2)
    assert "".join("".join(one.source.split()) for one in output.sentences) == "".join(text.split())
    assert all(len(task.source_tokenizer.encode(one.source).ids) <= task.longest for one in output.sentences)
    assert len(output.text.splitlines()) == len(text.splitlines())


def unknowing(task: Translation, *, ending: float) -> Translator:
    """A network that says unknown words, or ends."""
    built = task.build_model({"kind": "translator", "embedding_size": 6, "encoder": {"kind": "gru", "hidden_size": 8},
                              "decoder": {"kind": "gru", "hidden_size": 8}}).double().eval()  # fmt: skip
    assert isinstance(built, Translator)
    with torch.no_grad():
        bias = built.head.get_parameter("project.bias")
        bias[UNK], bias[EOS] = 40, ending
    return built


def test_unknown_tokens_become_the_source_words_that_they_look_at() -> None:
    task, model = translator("word", seed=3)
    built = unknowing(task, ending=30)
    text = "Zebras, the yaks"
    output = ask(task, built, text=text, max_tokens=4, beam_size=2, return_attention=True)
    (sentence,) = output.sentences
    assert sentence.attention is not None
    assert sentence.target_tokens == ["<unk>"] * 4
    offsets = task.source_tokenizer.encode(text).offsets
    looked = [max(range(len(offsets)), key=row.__getitem__) for row in sentence.attention[:4]]
    assert sentence.translation == " ".join(text[slice(*offsets[place])] for place in looked)
    assert ask(task, built, text=text, max_tokens=4, replace_unknown=False).text == ""
    assert any("does not know 'Zebras', 'yaks'" in notice for notice in output.notices)
    assert any("sentence 1 came to no end" in notice for notice in output.notices)
    assert not any("no end" in notice for notice in ask(task, model, text=text, target="Der Hund").notices)


def test_unknown_tokens_of_alternatives_are_replaced_too() -> None:
    task = prepared()
    built = unknowing(task, ending=39)
    for fields in ({}, {"return_attention": True}):
        output = ask(task, built, text="Zebras", max_tokens=2, alternatives=2, length_penalty=0.0, **fields)
        (sentence,) = output.sentences
        said = {sentence.translation, *(one.text for one in sentence.alternatives)}
        assert said == {"", "Zebras", "Zebras Zebras"}


@pytest.mark.parametrize("turned", [False, True])
def test_of_several_models_those_with_attention_look(turned: bool) -> None:
    task, looking = translator()
    models = [looking, translator(model="plain")[1]]
    request = TranslationInput(text="The man sees 你好.", coverage_penalty=0.4, return_attention=True, alternatives=1)
    scored = TranslationInput(text="The man", target="Ein Hund", coverage_penalty=0.4, return_attention=True)
    for given in (request, scored):
        (output,) = task.translate(models[::-1] if turned else models, [given])
        (sentence,) = output.sentences
        ids = [*task.source_tokenizer.encode(sentence.source).ids, EOS]
        said = [task.target_tokenizer.token_id(token) for token in sentence.target_tokens or ()]
        said = said[: len(said) - sentence.finished]
        weights = align([looking], [ids], [[index for index in said if index is not None]])[0]
        weights = weights[: len(said) + sentence.finished].float()
        torch.testing.assert_close(torch.tensor(sentence.attention), weights, atol=6e-5, rtol=0)
        seen = sum(math.log(min(1, float(share))) for share in weights[: len(said) + sentence.finished].sum(0))
        mean = sentence.log_prob / (len(said) + sentence.finished)
        assert sentence.score == pytest.approx(mean + 0.4 * seen, abs=1e-6)
        assert not any("coverage" in notice for notice in output.notices)
    (output,) = task.translate(models[1:], [request])
    assert "the model has no attention, so coverage_penalty changes nothing" in output.notices


def test_who_waits_is_told_of_every_input() -> None:
    task, built = translator()
    for inputs in (OPTIONS, OPTIONS[:1], [*OPTIONS, *OPTIONS[::-1]] * 5):
        told: list[int] = []
        task.translate([built], [TranslationInput(**fields) for fields in inputs], done=told.append)
        assert sum(told) == len(inputs)


@pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
def test_white_space_between_words_is_read_as_in_training(tokenizer: str) -> None:
    task, model = translator(tokenizer)
    wanted = ask(task, model, text="The dog sees a cat.")
    got = ask(task, model, text="The dog\tsees  a\u00a0cat.")
    assert (got.text, got.notices) == (wanted.text, wanted.notices)
    assert got.sentences[0].source == "The dog\tsees  a\u00a0cat."


def test_no_break_spaces_that_training_had_stay() -> None:
    task = TASKS.build({"kind": "translation", "tokenizer": {"kind": "character"}})
    assert isinstance(task, Translation)
    task.prepare([SentencePair("Ça\u00a0va\u00a0? " * 3, "How are you? " * 3, ("fr", "en"))] * 3)
    model = task.build_model({"kind": "translator", "embedding_size": 4, "decoder": {"kind": "gru", "hidden_size": 4},
                              "encoder": {"kind": "gru", "hidden_size": 4}}).eval()  # fmt: skip
    scores = [task.predict(model, [TranslationInput(text=text, target="How?")])[0].score
              for text in ("Ça\u00a0va", "Ça va")]  # fmt: skip
    assert scores[0] != scores[1]


def test_a_translation_that_says_nothing_is_noticed() -> None:
    task, model = translator()
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.head.get_parameter("project.bias")[EOS] = 1e3
    output = ask(task, model, text="The dog sleeps. A man reads.")
    assert output.text.strip() == ""
    assert "the translation of sentence 1, 2 is empty" in output.notices


def test_one_table_takes_one_vocabulary() -> None:
    task = prepared("bpe", shared=False)
    _, model = translator("bpe", shared=False)
    model = copy.deepcopy(model)
    model.source_embedding = model.target_embedding
    with pytest.raises(ConfigError, match=r"tied: all is one table for both languages, but with task\.shared: false"):
        task.fit_model(model, task.encode(PAIRS))


def test_a_file_in_the_other_language_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = TASKS.build({"kind": "translation", "tokenizer": {"kind": "word"}})
    assert isinstance(task, Translation)
    task.prepare([pair for pair in PAIRS for _ in range(20)])
    for place, name in enumerate(("source", "target")):
        (tmp_path / name).write_text("\n".join(texts[place] for texts in TEXTS) + "\n", encoding="utf-8")
    task.read_examples(tmp_path / "source", target=tmp_path / "target")
    assert caplog.messages == []
    task.read_examples(tmp_path / "target", target=tmp_path / "source")
    assert [message.startswith(f"{tmp_path / 'target'}: the text looks like de") for message in caplog.messages] == [
        True
    ]


def test_what_is_empty_is_named() -> None:
    task, built = translator()
    with pytest.raises(InputError) as caught:
        task.predict(built, [TranslationInput(text="A man"), TranslationInput(text=" \n")])
    assert "it is empty; a sentence fits" in str(caught.value)
    with pytest.raises(InputError, match=r"target: it has 1,001 tokens; at most 1,000 fit where"):
        task.predict(built, [TranslationInput(text="A man", target="Hund " * 1001)])
    with pytest.raises(InputError, match=r"text: it has 1,001 tokens"):
        task.predict(built, [TranslationInput(text="dog " * 1001, target="Hund")])
    misfits: list[tuple[dict[str, Any], str]] = [
        ({"text": "a", "beam_size": 2, "alternatives": 2}, "alternatives is 2; fewer than beam_size, 2, fit"),
        ({"text": "a", "beam_size": 0}, "greater than or equal to 1"),
        ({"text": "a", "target": "b", "alternatives": 1}, "there is no search; 0 fits"),
        ({"text": "a", "coverage": 1}, "Extra inputs are not permitted"),
    ]
    for fields, message in misfits:
        with pytest.raises(ValidationError, match=message):
            TranslationInput(**fields)


# Training


def test_items_end_with_eos_and_batches_are_padded() -> None:
    task = prepared("word", shared=False)
    items = task.encode(PAIRS)
    assert task.languages == LANGUAGES
    assert task.sizes() == {"source_size": task.source_tokenizer.size, "vocabulary_size": task.target_tokenizer.size}
    for item, pair in zip(items, PAIRS, strict=True):
        assert item.source == [*task.source_tokenizer.encode(pair.source).ids, EOS]
        assert item.target == [*task.target_tokenizer.encode(pair.target).ids, EOS]
        assert task.length(item) == (len(item.source), len(item.target))
    batch = task.collate(items)
    for row, item in enumerate(items):
        assert batch.source[row, : batch.source_lengths[row]].tolist() == item.source
        assert batch.inputs[row, : batch.lengths[row]].tolist() == [BOS, *item.target[:-1]]
        assert batch.targets[row, : batch.lengths[row]].tolist() == item.target


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_the_mean_surprise_of_a_token(model: str) -> None:
    task, built = translator("bpe", model)
    items = task.encode(PAIRS)
    each = [log_probs([built], item.source, item.target) for item in items]
    with torch.no_grad():
        loss, scores = task.loss(built, task.collate(items))
    expected = -sum(map(sum, each)) / sum(map(len, each))
    assert float(loss) == pytest.approx(expected)
    assert metrics.read(scores)["nll"] == pytest.approx(expected)
    parts = [task.loss(built, task.collate([item]))[1] for item in items]
    added = parts[0]
    for part in parts[1:]:
        added = metrics.add(added, part)
    assert metrics.read(added) == pytest.approx(metrics.read(scores))
    letters = sum(len(pair.target) for pair in PAIRS)
    assert metrics.read(scores)["bits_per_character"] == pytest.approx(-sum(map(sum, each)) / letters / math.log(2))


@functools.cache
def learned() -> tuple[Translation, Translator]:
    """A model that has learned its sentences by heart."""
    task = TASKS.build({"kind": "translation", "tokenizer": {"kind": "word", "lowercase": False}})
    assert isinstance(task, Translation)
    task.prepare(PAIRS)
    items = task.encode(PAIRS)
    network = {"kind": "gru", "hidden_size": 24}
    torch.manual_seed(0)
    model = task.build_model({"kind": "translator", "embedding_size": 16, "decoder": network,
                              "encoder": {"kind": "birnn", "layer": network}})  # fmt: skip
    assert isinstance(model, Translator)
    task.fit_model(model, items)
    batch = task.collate(items)
    optimizer = torch.optim.Adam(model.train().parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model, batch)[0].backward()
        optimizer.step()
    return task, model.eval()


def test_it_learns_a_few_sentences_by_heart_and_shows_them() -> None:
    task, model = learned()
    items = task.encode(PAIRS)
    judged = metrics.read(task.judge(model, task.collate(items)))
    assert judged["bleu"] == pytest.approx(100)
    assert judged["ter"] == 0
    outputs = task.predict(model, [TranslationInput(text=pair.source) for pair in PAIRS])
    for output, pair in zip(outputs, PAIRS, strict=True):
        assert output.text == pair.target
        assert output.notices == []
    shown = task.sample(model, items)
    for pair, output in zip(PAIRS, outputs, strict=True):
        assert f"{pair.source}\n  says  {output.text}\n  right {pair.target}\n" in shown
    pictures = task.matrices(model, items)
    assert len(pictures) == 3
    assert task.matrices(translator(model="plain")[1], items) == {}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_regularisation_says_the_same_in_other_pieces(algorithm: str) -> None:
    tokenizer = {"kind": "subword", "algorithm": algorithm, "max_vocabulary": 90}
    task = TASKS.build({"kind": "translation", "tokenizer": tokenizer, "regularisation": 0.5, "shared": False})
    assert isinstance(task, Translation)
    task.prepare(PAIRS)
    items = task.encode(PAIRS)
    chance = random.Random(0)
    drawn: list[Item] = [task.augment(item, chance) for item in items * 5]
    for item, other in zip(items * 5, drawn, strict=True):
        for tokenizer_of, one, two in ((task.source_tokenizer, item.source, other.source),
                                       (task.target_tokenizer, item.target, other.target)):  # fmt: skip
            assert two[-1] == EOS
            assert tokenizer_of.decode(one[:-1]) == tokenizer_of.decode(two[:-1])
    assert any(item != other for item, other in zip(items * 5, drawn, strict=True))
    plain = prepared("bpe")
    (first, *_) = plain.encode(PAIRS)
    assert plain.augment(first, chance) is first
    with pytest.raises(ConfigError, match=r"task\.regularisation: "):
        prepared("word", regularisation=0.1)


def test_pairs_that_do_not_fit_are_told() -> None:
    task = TASKS.build({"kind": "translation", "tokenizer": {"kind": "word"}})
    other = SentencePair("A man", "Un homme", ("en", "fr"))
    with pytest.raises(DataError, match="example 1 goes from en to de and example 5 from en to fr; pairs of one"):
        task.prepare([*PAIRS, other])
    with pytest.raises(DataError, match="both sides are 'en'; two languages fit"):
        task.prepare([SentencePair("a", "b", ("en", "en"))])
    task = prepared("word")
    with pytest.raises(InputError) as caught:
        task.encode([PAIRS[0], SentencePair("A man", " ", LANGUAGES), SentencePair("", "Ein", LANGUAGES)])
    assert "the target is empty; a sentence fits" in str(caught.value)
    with pytest.raises(InputError) as caught:
        task.encode([SentencePair("dog " * 1001, "Hund", LANGUAGES)])
    assert "the source has 1,001 tokens; at most 1,000 fit" in str(caught.value)


def test_files_are_read_as_a_command_line_asks(tmp_path: Path) -> None:
    task = prepared()
    path = tmp_path / "pairs.tsv"
    path.write_text("1\tDer Hund schläft.\tThe dog sleeps.\n2\tEin Mann\tA man\n", encoding="utf-8")
    wanted = [
        SentencePair("The dog sleeps.", "Der Hund schläft.", LANGUAGES),
        SentencePair("A man", "Ein Mann", LANGUAGES),
    ]
    assert task.read_examples(path, columns="3,2") == wanted
    assert task.read_examples(path, columns="3,2", max_characters="10", on_bad="skip") == wanted[1:]
    for name, value, says in [
        ("max_characters", "many", "max_characters: .* not 'many'"),
        ("max_characters", "0", "max_characters: .* not '0'"),
        ("on_bad", "ignore", "on_bad: .*'error' or 'skip', not 'ignore'"),
        ("format", "xls", "format: "),
        ("columns", "0,1", "columns: takes two names or two numbers from 1"),
        ("columns", "a,b,c", "columns: takes two names"),
    ]:
        with pytest.raises(ConfigError, match=says):
            task.read_examples(path, **{name: value})
    with pytest.raises(DataError, match=r"pairs\.tsv:1: the target has 17 characters; 10 fit"):
        task.read_examples(path, columns="3,2", max_characters="10")


@pytest.mark.parametrize("shared", [True, False])
def test_a_restored_task_answers_the_same(shared: bool, tmp_path: Path) -> None:
    task, built = translator("bpe", "attention", shared)
    task.save(tmp_path)
    again = TASKS.build({"kind": "translation", "tokenizer": TOKENIZERS["bpe"], "shared": shared})
    assert isinstance(again, Translation)
    again.restore(tmp_path)
    assert again.languages == LANGUAGES
    assert again.like(task)
    requests = [TranslationInput(**fields) for fields in OPTIONS]
    for one, other in zip(task.predict(built, requests), again.predict(built, requests), strict=True):
        assert one == other
    assert not again.like(prepared("word", shared=shared))
    broken = json.loads((tmp_path / "translation.json").read_text())
    for longest in (0, 1001):
        (tmp_path / "translation.json").write_text(json.dumps({**broken, "longest": longest}))
        with pytest.raises(BundleError, match=r"translation\.json"):
            again.restore(tmp_path)


def test_several_models_answer_by_their_mean() -> None:
    task, first = translator(seed=0)
    second = translator(seed=1)[1]
    request = TranslationInput(text="The dog sees a cat.", alternatives=1, return_attention=True)
    (both,) = task.translate([first, second], [request])
    (sentence,) = both.sentences
    ids: list[int] = [*task.source_tokenizer.encode(sentence.source).ids, EOS]
    ((best, _),) = search([first, second], [ids], [limit(len(ids))], 5, 2)
    assert sentence.log_prob == pytest.approx(sum(log_probs([first, second], ids, said_by(best))))
    weights: Tensor = align([first, second], [ids], [best.tokens])[0][: len(said_by(best))]
    torch.testing.assert_close(torch.tensor(sentence.attention), weights, atol=6e-5, rtol=0)
