"""``POST /v1/sentiment``: the answers."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from seqapp import bundle
from seqapp.tasks.sentiment import SentimentInput
from serving.engine import Engine


def test_one_text_is_answered_with_its_labels_best_first(client: TestClient, tiny: Path) -> None:
    answer = client.post("/v1/sentiment", json={"inputs": "a lovely garden"})
    assert answer.status_code == 200
    labels = answer.json()
    assert {label["label"] for label in labels} == {"positive", "negative"}
    assert labels[0]["score"] >= labels[1]["score"]
    assert all(label.keys() == {"label", "score"} for label in labels)
    (expected,) = bundle.load(tiny).predict([SentimentInput(text="a lovely garden")])
    assert {label["label"]: label["score"] for label in labels} == pytest.approx(expected.scores)


def test_a_list_is_answered_with_one_list_each_as_if_alone(client: TestClient) -> None:
    texts = ["good soup", "it broke after a day, a bad room", "good"]
    together = client.post("/v1/sentiment", json={"inputs": texts}).json()
    for text, labels in zip(texts, together, strict=True):
        alone = client.post("/v1/sentiment", json={"inputs": [text]}).json()[0]
        assert [one["label"] for one in labels] == [one["label"] for one in alone]
        assert [one["score"] for one in labels] == pytest.approx([one["score"] for one in alone], abs=1e-6)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (1000, 2), (None, 2)])
def test_top_k_keeps_the_best(client: TestClient, top_k: int | None, count: int) -> None:
    everything = client.post("/v1/sentiment", json={"inputs": "good"}).json()
    some = client.post("/v1/sentiment", json={"inputs": "good", "parameters": {"top_k": top_k}}).json()
    assert some == everything[:count]


def test_an_explanation_stands_on_the_best_label_and_keeps_the_shape(client: TestClient) -> None:
    text = "A lovely garden, 😀 good!"
    first, second = client.post("/v1/sentiment", json={"inputs": text, "explain": True}).json()
    assert "tokens" not in second
    assert first.keys() == {"label", "score", "tokens"}
    assert [text[token["start"] : token["end"]] for token in first["tokens"]] == [
        "A", "lovely", "garden", ",", "😀", "good", "!",
    ]  # fmt: skip
    assert all(token["text"] == text[token["start"] : token["end"]] for token in first["tokens"])
    assert any(token["weight"] != 0 for token in first["tokens"])


@pytest.mark.parametrize("text", [r"\ud800", r"good \udfff soup", r"\u0000", r"a\u0000b", r"\ud83d\ude00", r"\u200b"])
@pytest.mark.parametrize("explain", ["false", "true"])
def test_odd_texts_are_answered(client: TestClient, text: str, explain: str) -> None:
    body = f'{{"inputs": "{text}", "explain": {explain}}}'
    answer = client.post("/v1/sentiment", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert len(answer.json()) == 2


@pytest.mark.parametrize("explain", [False, True])
def test_ten_thousand_words_are_answered(client: TestClient, explain: bool) -> None:
    answer = client.post("/v1/sentiment", json={"inputs": "good " * 10_000, "explain": explain})
    assert answer.status_code == 200
    assert len(answer.json()[0].get("tokens", [])) == (10_000 if explain else 0)


def test_the_first_model_answers_unless_one_is_named(client: TestClient) -> None:
    def ask(**more: str) -> object:
        return client.post("/v1/sentiment", json={"inputs": "good soup", **more}).json()

    assert ask() == ask(model="tiny")
    assert ask() != ask(model="other")


def test_timing_is_told(client: TestClient) -> None:
    timing = client.post("/v1/sentiment", json={"inputs": "good"}).headers["Server-Timing"]
    assert re.fullmatch(r"queue;dur=\d+\.\d\d, model;dur=\d+\.\d\d", timing)


def test_parallel_requests_get_their_own_answers(client: TestClient) -> None:
    texts = ["good", "bad", "a lovely garden", "it broke"] * 10
    alone = {text: client.post("/v1/sentiment", json={"inputs": text}).json() for text in set(texts)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: client.post("/v1/sentiment", json={"inputs": text}).json(), texts))
    assert answers == [alone[text] for text in texts]


def test_a_caller_that_leaves_is_no_error_and_the_next_is_answered(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = bundle.load(tiny)
    began, go_on = threading.Event(), threading.Event()
    asked: list[str] = []
    answer = loaded.task.answer  # type: ignore[attr-defined]

    def slow(model: object, reads: list[Any]) -> list[object]:
        asked.extend(read.given.text for read in reads)
        began.set()
        assert go_on.wait(10)
        return answer(model, reads)  # type: ignore[no-any-return]

    monkeypatch.setattr(loaded.task, "answer", slow)
    engine = Engine(loaded, threads=1)

    async def leave_then_ask() -> int:
        gone = [asyncio.create_task(engine.predict([SentimentInput(text="good")]))]
        await asyncio.to_thread(began.wait, 10)
        gone.append(asyncio.create_task(engine.predict([SentimentInput(text="bad")])))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        assert all(task.cancelled() for task in gone)
        go_on.set()
        return len((await engine.predict([SentimentInput(text="soup")])).outputs)

    assert asyncio.run(leave_then_ask()) == 1
    assert asked == ["good", "soup"]
    engine.close()


def test_the_event_loop_goes_on_while_a_model_computes(tiny: Path) -> None:
    engine = Engine(bundle.load(tiny), threads=1)

    async def count_while_it_computes() -> int:
        asked = asyncio.create_task(engine.predict([SentimentInput(text="good " * 10_000)]))
        ticks = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(count_while_it_computes()) > 5
    engine.close()
