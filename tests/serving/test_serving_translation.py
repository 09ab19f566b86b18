"""``POST /translate`` and ``GET /languages``: the answers, who answers, and the errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from httpx2 import Response

from seqapp import bundle
from seqapp.data.pairs import SentencePair
from seqapp.tasks import TASKS
from seqapp.tasks.translation import END_COST, Translation
from seqapp.translation import TranslationInput
from serving.app import create_app
from serving.models import LiveModel, go_live
from serving.problems import Problem
from serving.routes.translation import Language, TranslationAnswer
from serving.settings import Settings

PATH = "/translate"
JSON = {"Content-Type": "application/json"}
LIMITS = Settings(max_items=4, max_characters=5_000, max_beam_characters=20_000, max_attention_characters=200)
TASK = {"kind": "translation", "tokenizer": {"kind": "word"}}
MODEL = {
    "kind": "translator",
    "embedding_size": 8,
    "encoder": {"kind": "birnn", "layer": {"kind": "gru", "hidden_size": 4}},
    "decoder": {"kind": "gru", "hidden_size": 8},
}
TEXTS = {
    "en": [
        "the man sleeps .",
        "what does the woman read ?",
        "why do they wait there ?",
        "the dog runs with the child .",
    ],
    "de": ["der Mann schläft .", "was liest die Frau ?", "warum warten sie dort ?", "der Hund läuft mit dem Kind ."],
    "fr": ["l' homme dort .", "que lit la femme ?", "pourquoi attendent - ils là ?", "le chien court avec l' enfant ."],
}


def write_translator(path: Path, source: str, target: str, *, seed: int = 0, named: bool = True) -> str:
    """A translator that has learned nothing, but knows its two languages."""
    languages = (source, target) if named else ("", "")
    task = Translation(tokenizer={"kind": "word"})
    task.prepare([SentencePair(*pair, languages) for pair in zip(TEXTS[source], TEXTS[target], strict=True)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.build_model(MODEL).eval()
    return str(
        bundle.save(
            path,
            task=task,
            model=model,
            resolved={"task": TASKS.check(TASK), "model": MODEL},
            metrics={"scores": {"validation": {"bleu": 1.5}}},
            name=path.name,
            golden=[TranslationInput(text=TEXTS[source][0], beam_size=2)],
        )
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("translators")
    pairs = {"en-de": ("en", "de"), "again": ("en", "de"), "fr-de": ("fr", "de"), "en-fr": ("en", "fr")}
    written = [write_translator(folder / name, *pair, seed=i) for i, (name, pair) in enumerate(pairs.items())]
    return [*written, write_translator(folder / "toy", "de", "en", named=False)]


@pytest.fixture(scope="module")
def translator(tiny: Path, bundles: list[str]) -> Iterator[TestClient]:
    models = go_live([str(tiny), *bundles], threads=1)
    assert not models.refused
    with TestClient(create_app(LIMITS, models), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, q: str | list[str] = "the man sleeps .", **body: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"q": q, "source": "en", "target": "de", "beam_size": 2, **body})
    assert answer.status_code == 200, answer.text
    TranslationAnswer.model_validate_json(answer.content, strict=True)
    found: dict[str, Any] = answer.json()
    return found


def problem(answer: Response, field: str, says: str) -> None:
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content, strict=True)
    assert [one.field for one in found.errors] == [field]
    assert says in found.errors[0].detail


# The answer


def test_the_shape_that_clients_know(translator: TestClient, bundles: list[str]) -> None:
    body = {"q": "the man sleeps .", "source": "en", "target": "de", "format": "text", "api_key": ""}
    answer = translator.post(PATH, json=body)
    (expected,) = bundle.load(bundles[0]).predict([TranslationInput(text="the man sleeps .")])
    assert answer.json() == {"translatedText": expected.text, "notices": expected.notices}
    assert re.fullmatch(r"queue;dur=\d+\.\d\d, model;dur=\d+\.\d\d", answer.headers["Server-Timing"])


def test_a_list_is_answered_by_lists_as_if_each_were_alone(translator: TestClient) -> None:
    more: dict[str, Any] = {"alternatives": 1, "return_scores": True, "return_attention": True, "source": "auto"}
    together = ask(translator, [*TEXTS["en"][:2], TEXTS["fr"][3]], **more)
    alone = [ask(translator, [text], **more) for text in (*TEXTS["en"][:2], TEXTS["fr"][3])]
    assert together.keys() == {"translatedText", "alternatives", "detectedLanguage", "scores", "sentences", "notices"}
    assert all(len(values) == 3 for values in together.values())
    for name in ("translatedText", "alternatives", "detectedLanguage", "notices"):
        assert together[name] == [one[name][0] for one in alone], name
    assert together["scores"] == pytest.approx([one["scores"][0] for one in alone], abs=1e-4)
    single = ask(translator, TEXTS["en"][0], **more)
    assert single == {name: values[0] for name, values in alone[0].items()}


def test_what_is_not_asked_for_is_not_told(translator: TestClient) -> None:
    assert ask(translator).keys() == {"translatedText", "notices"}
    assert ask(translator, alternatives=None, return_scores=False) == ask(translator)
    scored = ask(translator, return_scores=True)
    assert scored.keys() == {"translatedText", "scores", "sentences", "notices"}
    assert scored["sentences"][0].keys() == {"source", "translation", "score", "log_prob", "finished", "alternatives"}


def test_the_attention_has_a_weight_for_each_pair_of_tokens(translator: TestClient) -> None:
    (sentence,) = ask(translator, return_attention=True)["sentences"]
    assert len(sentence["attention"]) == len(sentence["target_tokens"]) > 0
    for row in sentence["attention"]:
        assert len(row) == len(sentence["source_tokens"])
        assert sum(row) == pytest.approx(1, abs=1e-3)


def test_alternatives_differ_and_widen_the_search(translator: TestClient) -> None:
    found = ask(translator, alternatives=6, beam_size=None)
    assert len({found["translatedText"], *found["alternatives"]}) == 7


def test_every_field_reaches_the_task(translator: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TranslationInput] = []
    predict = LiveModel.predict

    async def spy(model: LiveModel, inputs: list[TranslationInput], *more: Any) -> Any:
        seen.extend(inputs)
        return await predict(model, inputs, *more)

    monkeypatch.setattr(LiveModel, "predict", spy)
    given = {
        "beam_size": 3,
        "length_penalty": 0.5,
        "coverage_penalty": 0.25,
        "alternatives": 2,
        "return_attention": True,
    }
    ask(translator, "go .", **given)
    assert seen == [TranslationInput(text="go .", **given)]


@pytest.mark.parametrize("text", [r"\ud800", r"a\udfff b", r"a\u0000", r"\ud83d\ude00", r"\u4f60\u597d", r"a\n\n\r\nb"])
def test_odd_texts_are_answered(translator: TestClient, text: str) -> None:
    body = f'{{"q": "{text}", "source": "en", "target": "de", "return_attention": true, "beam_size": 2}}'
    assert translator.post(PATH, content=body, headers=JSON).status_code == 200


def test_another_script_is_noticed_and_answered(translator: TestClient) -> None:
    notices = ask(translator, "Собака бежит по улице вместе с ребёнком.")["notices"]
    assert any("Cyrillic" in notice for notice in notices)


# Who answers


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "en-de"),
        ({"source": "EN", "target": "De"}, "en-de"),
        ({"model": "again"}, "again"),
        ({"target": "fr"}, "en-fr"),
        ({"source": "fr"}, "fr-de"),
        ({"source": "auto", "target": "fr"}, "en-fr"),
        ({"source": "auto", "model": "again"}, "again"),
        ({"model": "toy"}, "toy"),
        ({"model": "toy", "source": "", "target": ""}, "toy"),
        ({"model": "toy", "source": "auto"}, "toy"),
    ],
)
def test_the_pair_chooses_the_model(
    translator: TestClient, monkeypatch: pytest.MonkeyPatch, bundles: list[str], body: dict[str, str], name: str
) -> None:
    asked = []
    predict = LiveModel.predict

    async def spy(model: LiveModel, *inputs: Any) -> Any:
        asked.append(model.bundle.manifest.name)
        return await predict(model, *inputs)

    monkeypatch.setattr(LiveModel, "predict", spy)
    ask(translator, **body)
    assert asked == [name]


def test_the_language_of_each_text_is_found_out(translator: TestClient) -> None:
    found = ask(translator, [TEXTS["fr"][3], TEXTS["en"][1], TEXTS["fr"][2]], source="auto")
    assert [one["language"] for one in found["detectedLanguage"]] == ["fr", "en", "fr"]
    assert all(50 < one["confidence"] <= 100 for one in found["detectedLanguage"])
    named = [ask(translator, TEXTS[source][i], source=source) for source, i in (("fr", 3), ("en", 1), ("fr", 2))]
    assert found["translatedText"] == [one["translatedText"] for one in named]


def test_a_text_without_letters_goes_to_the_first_model_and_nobody_is_sure(translator: TestClient) -> None:
    assert ask(translator, "1 2 3", source="auto")["detectedLanguage"] == {"language": "en", "confidence": 0}


def test_languages_are_listed_with_their_targets(translator: TestClient, client: TestClient) -> None:
    answer = translator.get("/languages")
    assert [Language.model_validate(one) for one in answer.json()] == [
        Language(code="en", name="English", targets=["de", "fr"], models={"de": ["en-de", "again"], "fr": ["en-fr"]}),
        Language(code="de", name="German", targets=[], models={}),
        Language(code="fr", name="French", targets=["de"], models={"de": ["fr-de"]}),
    ]
    assert client.get("/languages").json() == []


# Errors


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"q": ""}, "q", "it is empty; a sentence fits"),
        ({"q": " \n\t"}, "q", "it is empty; a sentence fits"),
        ({"q": "", "source": "auto"}, "q", "it is empty; a sentence fits"),
        ({"q": ["go .", "", "go ."]}, "q[1]", "it is empty; a sentence fits"),
        ({"q": [TEXTS["en"][1], TEXTS["fr"][3], " "], "source": "auto"}, "q[2]", "it is empty; a sentence fits"),
        ({"q": []}, "q", "the list is empty"),
        ({"q": None}, "q", "is required"),
        ({"q": ["go .", 3]}, "q[1]", "a text fits, not a number"),
        ({"q": ["a"] * 5}, "q", "5 texts are too many; at most 4"),
        ({"q": ["a", "b" * 5_001]}, "q[1]", "5001 characters; at most 5000"),
        ({"q": "b" * 4_001}, "q", "20005 (characters + 10 x sentence ends) x beams in all; at most 20000"),
        ({"q": "go.\n" * 200}, "q", "24000 (characters + 10 x sentence ends) x beams"),
        (
            {"q": "b" * 100, "beam_size": 64, "return_attention": True, "alternatives": 64},
            "alternatives",
            "less than 64",
        ),
        ({"q": ["b" * 2_000] * 3}, "q", "30000 (characters + 10 x sentence ends) x beams"),
        ({"q": "b" * 201, "return_attention": True}, "return_attention", "201 characters with attention in all"),
        ({"source": "de", "target": "de"}, "target", "it is 'de', and so is source"),
        ({"target": "xx"}, "target", "no live model translates 'en' -> 'xx'; what fits: en -> de, en -> fr, fr -> de"),
        ({"source": "cs"}, "source", "no live model translates 'cs' -> 'de'; what fits: en -> de"),
        ({"source": "auto", "target": "en"}, "target", "no live model translates into 'en'"),
        ({"model": "fr-de"}, "source", "'fr-de' does not translate 'en' -> 'de'; what fits: fr -> de"),
        ({"source": None}, "source", "is required"),
        ({"target": 3}, "target", "valid string, not 3"),
        ({"format": "html"}, "format", "html is not supported"),
        ({"format": "xml"}, "format", "'text'"),
        ({"beam_size": 0}, "beam_size", "greater than or equal to 1"),
        ({"beam_size": 10_000}, "beam_size", "less than or equal to"),
        ({"alternatives": -1}, "alternatives", "greater than or equal to 0"),
        ({"alternatives": 3, "beam_size": 3}, "alternatives", "a beam_size of 4 fits"),
        ({"length_penalty": -11}, "length_penalty", "greater than or equal to -10"),
        ({"beamsize": 3}, "beamsize", "did you mean 'beam_size'?"),
    ],
)
def test_a_misfit_names_its_field(translator: TestClient, body: dict[str, Any], field: str, says: str) -> None:
    answer = translator.post(PATH, json={"q": "go .", "source": "en", "target": "de", **body})
    problem(answer, field, says)


def test_ten_thousand_words_fit_in_one_request(settings: Settings) -> None:
    """Five beams, six characters a word with its space, ten words a sentence."""
    assert settings.max_beam_characters >= (60_000 + END_COST * 1_000) * 5


def test_other_models_do_not_translate(translator: TestClient, client: TestClient) -> None:
    body = {"q": "go .", "source": "en", "target": "de"}
    for answer, says in (
        (client.post(PATH, json=body), "no translation model is live"),
        (
            translator.post(PATH, json={**body, "model": "tiny"}),
            "'tiny' is a sentiment model; translation models: en-de",
        ),
        (translator.post(PATH, json={**body, "model": "en-dee"}), "did you mean 'en-de'?"),
    ):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:problem-type:seqapp:unknown-model"
        assert says in answer.json()["detail"]


def test_the_documented_examples_are_accepted(translator: TestClient) -> None:
    operation = translator.get("/openapi.json").json()["paths"][PATH]["post"]
    assert {"400", "404", "413", "415", "422", "500"} <= operation["responses"].keys()
    requests = operation["requestBody"]["content"]["application/json"]["examples"]
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert requests.keys() == answers.keys()
    for name, example in requests.items():
        answer = translator.post(PATH, json=example["value"])
        assert answer.status_code == 200
        TranslationAnswer.model_validate(answers[name]["value"], strict=True)
        assert answer.json().keys() == answers[name]["value"].keys()
