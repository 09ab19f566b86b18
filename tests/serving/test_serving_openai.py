"""``POST /v1/completions`` and ``GET /v1/models`` for the package ``openai``, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from seqapp import bundle
from seqapp.completion import GenerationInput
from serving.app import create_app
from serving.keys import create
from serving.models import Models, go_live
from serving.settings import Settings
from tests.serving.conftest import answering

LIMITS = Settings(max_tokens=4000, max_completions=4, shutdown_seconds=1)
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def live(tiny: Path, writers: list[str]) -> Models:
    return go_live([str(tiny), writers[0]], threads=1)


@pytest.fixture(scope="module")
def url(live: Models) -> Iterator[str]:
    with answering(create_app(LIMITS, live), LIMITS) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_a_completion_is_what_the_model_says(client: OpenAI, writers: list[str]) -> None:
    answer = client.completions.create(model="writer", prompt="the ", **GREEDY)
    (said,) = bundle.load(writers[0]).predict([GenerationInput(prompt="the ", temperature=0, max_tokens=12)])
    assert answer.choices[0].text == said.completions[0].text
    assert answer.choices[0].finish_reason == said.completions[0].finish_reason
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        said.prompt_tokens,
        said.completions[0].tokens,
    )


def test_n_stop_seed_and_several_prompts(client: OpenAI) -> None:
    asked = {"model": "writer", "prompt": ["the ", "a"], "n": 2, "seed": 5, "max_tokens": 30, "stop": ["e", "o"]}
    one, other = (client.completions.create(**asked) for _ in range(2))
    assert [choice.index for choice in one.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in one.choices] == [choice.text for choice in other.choices]
    assert not any(mark in choice.text for choice in one.choices for mark in "eo")


def test_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt="the ", logprobs=3, **GREEDY)
    (choice,) = answer.choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens).startswith(choice.text)
    for token, chance, rivals in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert chance <= 0
        assert rivals[token] == chance == max(rivals.values())  # temperature 0 takes the likeliest


def test_a_stream_holds_the_same_text(client: OpenAI) -> None:
    whole = client.completions.create(model="writer", prompt="the ", n=2, seed=3, max_tokens=40)
    texts, usage = {0: "", 1: ""}, None
    with client.completions.create(model="writer", prompt="the ", n=2, seed=3, max_tokens=40, stream=True,
                                   stream_options={"include_usage": True}) as chunks:  # fmt: skip
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert [texts[0], texts[1]] == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "writer"]
    assert client.models.retrieve("writer").id == "writer"


def test_errors_are_the_packages_own(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        client.completions.create(model="writer", prompt="a", temperature=-1)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_request",
        "invalid_request_error",
    )
    assert bad.value.request_id  # x-request-id
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt'") as unknown:
        client.completions.create(model="gpt", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="is a sentiment model"):
        client.completions.create(model="tiny", prompt="a")
    with pytest.raises(openai.BadRequestError, match="token ids are not taken"):
        client.completions.create(model="writer", prompt=[1, 2])
    with pytest.raises(openai.APIStatusError) as wrong:
        client.chat.completions.create(model="writer", messages=[{"role": "user", "content": "a"}])
    assert wrong.value.status_code == 404


def test_a_key_is_asked_for_and_taken(writers: list[str], tmp_path: Path) -> None:
    key = create(tmp_path / "keys", "somebody")
    settings = LIMITS.model_copy(update={"keys": tmp_path / "keys", "rate": 1e-3, "rate_burst": 1})
    with answering(create_app(settings, go_live([writers[0]], threads=1)), settings) as port:
        asked = {"base_url": f"http://127.0.0.1:{port}/v1", "max_retries": 0}
        with OpenAI(api_key="none", **asked) as stranger, pytest.raises(openai.AuthenticationError) as refused:
            stranger.completions.create(model="writer", prompt="a")
        assert refused.value.code == "invalid_api_key"
        with OpenAI(api_key=key, **asked) as client:
            client.completions.create(model="writer", prompt="a", max_tokens=1)
            with pytest.raises(openai.RateLimitError) as limited:
                client.completions.create(model="writer", prompt="a", max_tokens=1)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["Retry-After"]) >= 1


def test_a_deadline_is_kept(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as late:
        client.completions.create(
            model="writer", prompt="a", max_tokens=4000, extra_body={"min_tokens": 4000},
            extra_headers={"X-Request-Timeout": "0.05"},
        )  # fmt: skip
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")


def test_whoever_leaves_a_stream_stops_its_work(url: str, live: Models) -> None:
    async def leave() -> int:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            chunks = await client.completions.create(
                model="writer", prompt="a", max_tokens=4000, extra_body={"min_tokens": 4000}, stream=True
            )
            await anext(aiter(chunks))
            await chunks.close()
        engine = live.get("writer").engine
        for _ in range(1000):
            if engine.load.requests == 0:
                break
            await asyncio.sleep(0.01)
        return engine.load.requests

    assert asyncio.run(leave()) == 0


def test_a_client_that_gives_up_stops_the_work(url: str, live: Models) -> None:
    async def give_up() -> int:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.05) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.completions.create(
                    model="writer", prompt="a", max_tokens=4000, n=4, extra_body={"min_tokens": 4000}
                )
        engine = live.get("writer").engine
        for _ in range(1000):
            if engine.load.requests == 0:
                break
            await asyncio.sleep(0.01)
        return engine.load.requests

    assert asyncio.run(give_up()) == 0
