"""``POST /v1/completions``: the answers, the stream and the errors."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from seqapp.completer import Completer
from seqapp.completion import GenerationInput, Piece
from seqapp.tasks.generation import Generation
from serving.app import create_app
from serving.models import LiveModel, Models, go_live
from serving.routes.completions import CompletionAnswer, CompletionRequest
from serving.settings import Settings
from tests.serving.conftest import TEXTS
from tests.serving.scripted import MakeApp

PATH = "/v1/completions"
JSON = {"Content-Type": "application/json"}
LIMITS = Settings(max_items=3, max_characters=1000, max_completions=6, max_tokens=400, max_beam_tokens=500,
                  max_logprobs=20_000,
                  max_bytes=100_000, stall_seconds=0.05)  # fmt: skip


@pytest.fixture(scope="module")
def writer(writers: list[str]) -> Iterator[TestClient]:
    models = go_live(writers, threads=1)
    assert not models.refused
    with TestClient(create_app(LIMITS, models), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    CompletionAnswer.model_validate_json(answer.content, strict=True)
    found: dict[str, Any] = answer.json()
    return found


def events(answer: Response) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(chunk.startswith("data: ") for chunk in chunks)
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def streamed(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    return events(client.post(PATH, json={**body, "stream": True}))


def error(answer: Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"]
    found = answer.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    assert found["error"]["code"] == code
    assert found["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "Traceback" not in answer.text
    return dict(found["error"])


# The answer


def test_the_shape_that_clients_know(writer: TestClient) -> None:
    answer = writer.post(PATH, json={"model": "writer", "prompt": "the ", "max_tokens": 5, "min_tokens": 5, "seed": 1})
    found = answer.json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", found.pop("id"))
    assert isinstance(found.pop("created"), int)
    (choice,) = found.pop("choices")
    assert found == {
        "object": "text_completion",
        "model": "writer",
        "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9},
        "seed": 1,
        "notes": [],
        "beams": None,
    }
    assert len(choice.pop("text")) == 5
    assert choice.pop("score") < 0
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length"}
    assert re.fullmatch(r"queue;dur=\d+\.\d\d, model;dur=\d+\.\d\d", answer.headers["Server-Timing"])


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": ""}, {"n": None, "temperature": None, "stop": None}])
def test_nothing_given_is_a_new_text_of_16_tokens(writer: TestClient, body: dict[str, Any]) -> None:
    found = ask(writer, seed=4, **body)
    assert found == ask(writer, prompt="", max_tokens=16, temperature=1.0, n=1, seed=4) | {
        name: found[name] for name in ("id", "created")
    }
    assert found["usage"]["prompt_tokens"] == 0


def test_a_drawn_seed_is_told_and_gives_the_same_text_again(writer: TestClient) -> None:
    first = ask(writer, prompt="the ")
    assert first["choices"] == ask(writer, prompt="the ", seed=first["seed"])["choices"]
    assert first["seed"] != ask(writer, prompt="the ")["seed"]
    assert ask(writer, prompt="the ", temperature=0)["seed"] is None
    assert ask(writer, prompt="the ", beam_size=2)["seed"] is None


def test_every_prompt_has_n_choices_in_order_as_if_alone(writer: TestClient) -> None:
    prompts = ["the ", "a ", "the "]
    together = ask(writer, prompt=prompts, n=2, seed=7)
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    alone = [ask(writer, prompt=prompt, n=2, seed=7 + i) for i, prompt in enumerate(prompts)]
    assert [choice["text"] for choice in together["choices"]] == [
        choice["text"] for one in alone for choice in one["choices"]
    ]
    assert together["choices"][0]["text"] != together["choices"][4]["text"]
    assert together["usage"] == {
        name: sum(one["usage"][name] for one in alone)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }


def test_every_field_reaches_the_task(writer: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GenerationInput] = []
    predict = LiveModel.predict

    async def spy(model: LiveModel, inputs: list[GenerationInput], *more: Any) -> Any:
        seen.extend(inputs)
        return await predict(model, inputs, *more)

    monkeypatch.setattr(LiveModel, "predict", spy)
    fields: dict[str, Any] = {
        "condition": "Greek", "max_tokens": 3, "min_tokens": 1, "n": 2, "seed": 5, "temperature": 0.5, "top_k": 4,
        "top_p": 0.5, "min_p": 0.25, "typical_p": 0.75, "repetition_penalty": 1.5, "frequency_penalty": 0.25,
        "presence_penalty": -0.5, "no_repeat_ngram_size": 3, "logit_bias": {"a": -100}, "stop": ["x", "y"],
        "beam_size": 4, "length_penalty": 0.5, "beam_groups": 2, "diversity": 1.0, "logprobs": 2, "echo": True,
        "return_beams": True,
    }  # fmt: skip
    assert fields.keys() | {"prompt"} == GenerationInput.model_fields.keys()
    ask(writer, model="names", prompt="a", user="u-1", best_of=2, suffix="", **fields)
    assert seen == [GenerationInput(prompt="a", **fields)]
    ask(writer, prompt="a", stop="x", condition=None)
    assert seen[1].stop == ["x"]


def test_log_probabilities_stand_in_columns(writer: TestClient) -> None:
    found = ask(writer, prompt="the ", max_tokens=4, min_tokens=4, logprobs=2)
    (choice,) = found["choices"]
    columns = choice["logprobs"]
    assert columns.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(columns["tokens"]) == choice["text"]
    assert sum(columns["token_logprobs"]) == pytest.approx(choice["score"])
    for token, log_prob, top, offset in zip(*columns.values(), strict=True):
        assert choice["text"][offset : offset + len(token)] == token
        assert top[token] == log_prob
        assert len(top) in (2, 3)
        assert log_prob <= max(top.values())
    (bare,) = ask(writer, prompt="the ", max_tokens=4, min_tokens=4, logprobs=0, seed=found["seed"])["choices"]
    assert bare["logprobs"] == columns | {"top_logprobs": None}


def test_echo_gives_the_prompt_back(writer: TestClient) -> None:
    plain = ask(writer, prompt="the ", seed=3)
    (choice,) = ask(writer, prompt="the ", seed=3, echo=True, logprobs=0)["choices"]
    assert choice["text"] == "the " + plain["choices"][0]["text"]
    assert choice["logprobs"]["tokens"][:4] == list("the ")
    assert ask(writer, prompt="the ", seed=3, echo=True)["usage"] == plain["usage"]


def test_unknown_characters_are_noted_once(writer: TestClient) -> None:
    found = ask(writer, prompt=["the Ω", "the Ω"])
    assert found["notes"] == ["unknown to this model and read as <unk>: 'Ω' at 4"]
    chunks = streamed(writer, prompt="the Ω")
    assert [chunk["notes"] for chunk in chunks if "notes" in chunk] == [
        ["unknown to this model and read as <unk>: 'Ω' at 4"]
    ]


def test_the_search_tree_comes_when_asked_for(writer: TestClient) -> None:
    beams = ask(writer, prompt="the ", beam_size=2, return_beams=True)["beams"]
    assert 1 <= len(beams) <= 16
    assert all(1 <= sum(node["kept"] for node in step) <= 4 for step in beams)
    assert beams[0][0].keys() == {"token", "parent", "log_prob", "score", "kept", "finished", "group"}


def test_a_condition_is_a_class_or_features(writer: TestClient) -> None:
    assert ask(writer, model="names", prompt="a", condition="Greek")["model"] == "names"
    assert ask(writer, model="shapes", prompt="a", condition=[1, 0.5])["model"] == "shapes"
    listed = {model["id"]: model for model in writer.get("/v1/models").json()["data"]}
    assert [listed[name]["conditions"] for name in ("writer", "names", "shapes")] == [[], ["Greek", "Welsh"], []]
    assert [listed[name]["features"] for name in ("writer", "names", "shapes")] == [0, 0, 2]


@pytest.mark.parametrize("text", [r"\ud800", r"a\udfff", r"\u0000", r"\ud83d\ude00", ""])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_odd_prompts_are_answered(writer: TestClient, text: str, stream: str) -> None:
    body = f'{{"prompt": "{text}", "stream": {stream}, "echo": true}}'
    assert writer.post(PATH, content=body, headers=JSON).status_code == 200


# The stream


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "the ", "max_tokens": 60},
        {"prompt": ["the ", "a "], "n": 3},
        {"prompt": "the ", "echo": True, "logprobs": 2},
        {"prompt": "the ", "max_tokens": 0},
        {"prompt": "", "temperature": 0},
        {"prompt": "a", "beam_size": 2, "n": 2},
        {"prompt": "a", "stop": ["o"], "max_tokens": 300},
    ],
)
def test_the_pieces_of_a_stream_are_the_whole_answer(writer: TestClient, body: dict[str, Any]) -> None:
    whole = ask(writer, seed=11, **body)
    *chunks, last = streamed(writer, seed=11, stream_options={"include_usage": True}, **body)
    assert {chunk["id"] for chunk in [*chunks, last]} == {last["id"]}
    assert all(chunk["usage"] is None and chunk["seed"] == 11 for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        pieces = [one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces][:-1] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        assert pieces[-1]["score"] == pytest.approx(choice["score"])
        for column, values in (choice["logprobs"] or {}).items():
            assert [value for piece in pieces for value in piece["logprobs"][column]] == values


def test_a_stream_is_marked_as_one_that_nothing_may_hold_back(writer: TestClient) -> None:
    answer = writer.post(PATH, json={"prompt": "the ", "stream": True})
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Accel-Buffering"] == "no"
    # How long the model takes is not known yet.
    assert re.fullmatch(r"queue;dur=\d+\.\d\d", answer.headers["Server-Timing"])
    chunks = events(answer)
    assert "usage" not in chunks[0]
    assert chunks[0]["object"] == "text_completion"


def test_a_character_of_several_bytes_is_in_one_piece(writer: TestClient) -> None:
    bias = {"é": 30, "😀": 30}
    chunks = streamed(writer, prompt=TEXTS[0], max_tokens=40, seed=2, logit_bias=bias)
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    assert set(texts) == {"é", "😀"}


def test_a_failure_after_the_first_piece_is_an_event(scripted: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    running, make = scripted

    def fail(_: object) -> Iterator[Piece]:
        yield Piece(index=0, text="a")
        raise RuntimeError("a secret of the server")

    running.script = fail
    running.gate.set()
    with TestClient(make(), raise_server_exceptions=False) as client:
        answer = client.post(PATH, json={"stream": True}, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 200
    piece, failure, rest = answer.text.split("\n\n")
    assert '"text":"a"' in piece
    assert rest == ""
    name, data = failure.splitlines()
    assert name == "event: error"
    found = json.loads(data.removeprefix("data: "))["error"]
    assert (found["type"], found["code"]) == ("server_error", "internal_error")
    assert "mine-1" in found["message"]
    assert "secret" not in answer.text
    assert "a secret of the server" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_piece_is_a_status(scripted: MakeApp, stream: bool) -> None:
    running, make = scripted

    class Fails:
        def __iter__(self) -> Iterator[Piece]:
            return self

        def __next__(self) -> Piece:
            raise RuntimeError("a secret of the server")

    running.script = lambda _: Fails()
    running.gate.set()
    with TestClient(make(), raise_server_exceptions=False) as client:
        answer = client.post(PATH, json={"stream": stream}, headers={"X-Request-Id": "mine-2"})
    assert "mine-2" in error(answer, 500, "internal_error")["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(("ends", "outcome"), [("fails", "internal-error"), ("waits", "deadline-exceeded")])
def test_the_log_has_why_a_stream_failed_and_what_was_written(
    scripted: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, outcome: str
) -> None:
    running, make = scripted
    monkeypatch.setattr(Generation, "written", lambda task, said: said.tokens)
    over = threading.Event()

    def script(_: object) -> Iterator[Piece]:
        yield Piece(index=0, text="ab", tokens=2)
        assert ends == "waits"
        over.wait(10)
        yield Piece(index=0, text="c", tokens=1)

    running.script = script
    running.gate.set()
    file = tmp_path / "audit.jsonl"
    with TestClient(make(audit_log=str(file)), raise_server_exceptions=False) as client:
        seconds = "0.3" if ends == "waits" else "60"
        answer = client.post(PATH, json={"stream": True}, headers={"X-Request-Timeout": seconds})
        over.set()
        assert "event: error" in answer.text
    line = json.loads(file.read_bytes().splitlines()[0])
    assert (line["status"], line["outcome"], line["tokens"]) == (200, outcome, 2)


class Caller:
    """A client of an ASGI application that leaves, or takes nothing more, after some events."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.received = b""

    async def stream(self, events: int, then: str) -> bytes:
        asked, gone = False, asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b'{"stream": true}'}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.received += message.get("body", b"")
            if self.received.count(b"\n\n") >= events:
                if then == "leaves":
                    gone.set()
                await asyncio.sleep(30)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "path": PATH, "headers": headers,
                 "query_string": b"", "root_path": "", "app": self.app}  # fmt: skip
        async with asyncio.timeout(10):
            await self.app(scope, receive, send)
        return self.received


@pytest.mark.parametrize("then", ["leaves", "stalls"])
def test_the_model_is_free_when_the_reader_of_a_stream_has_gone(scripted: MakeApp, then: str) -> None:
    running, make = scripted
    running.script = lambda _: iter(lambda: Piece(index=0, text="a"), None)
    running.gate.set()
    app = make(stall_seconds=0.05)

    async def leave() -> None:
        received = await Caller(app).stream(1, then)
        assert received.count(b'"text":"a"') == 1
        async with asyncio.timeout(10):
            while len(running):
                await asyncio.sleep(0.01)

    asyncio.run(leave())
    steps = running.steps
    assert steps >= 1
    assert not running.step()
    assert not app.state.models.get("writer").engine.load.requests


def test_a_stream_that_is_cut_off_when_the_server_stops_says_so(scripted: MakeApp) -> None:
    running, make = scripted
    running.script = lambda _: iter(lambda: Piece(index=0, text="a"), None)
    running.gate.set()
    app = make()

    async def cancel() -> bytes:
        caller = Caller(app)
        asked = asyncio.create_task(caller.stream(10**9, "stalls"))
        while b"data" not in caller.received:
            await asyncio.sleep(0.01)
        asked.cancel()
        return await asked

    *_, last, rest = asyncio.run(cancel()).split(b"\n\n")
    assert rest == b""
    assert last.startswith(b'event: error\ndata: {"error":{"message":"the server is stopping"')


# Errors


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": 3}, "prompt", "a text or a list of texts fits, not a number"),
        ({"prompt": []}, "prompt", "the list is empty"),
        ({"prompt": ["a", 3.5]}, "prompt[1]", "a text fits, not a number"),
        ({"prompt": [464, 7]}, "prompt", "token ids are not taken"),
        ({"prompt": [[464, 7]]}, "prompt", "token ids are not taken"),
        ({"prompt": ["a"] * 4}, "prompt", "4 prompts are too many; at most 3"),
        ({"prompt": ["a", "b" * 1001]}, "prompt[1]", "1001 characters; at most 1000"),
        ({"prompt": "b" * 1001}, "prompt", "1001 characters; at most 1000"),
        ({"prompt": ["a", "b"], "n": 4}, "n", "8 completions in all; at most 6"),
        ({"n": 0}, "n", "greater than or equal to 1, not 0"),
        ({"n": 1.5}, "n", "valid integer, not 1.5"),
        ({"max_tokens": 401}, "max_tokens", "401 tokens; at most 400"),
        ({"max_tokens": 4097}, "max_tokens", "less than or equal to 4096, not 4097"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"beam_size": 5, "max_tokens": 101}, "beam_size", "505 prompts x beams x tokens in all; at most 500"),
        ({"prompt": "x" * 1000, "echo": True, "logprobs": 20, "max_tokens": 0}, "logprobs", "21000 log-probabilities"),
        ({"no_repeat_ngram_size": 65}, "no_repeat_ngram_size", "64"),
        ({"beam_size": 0}, "beam_size", "greater than or equal to 1"),
        ({"beam_size": 65}, "beam_size", "less than or equal to 64"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0, not -0.1"),
        ({"temperature": "hot"}, "temperature", "valid number, not 'hot'"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1, not 1.5"),
        ({"top_k": 0}, "top_k", "greater than or equal to 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"logit_bias": {"a": 101}}, "logit_bias.a", "less than or equal to 100"),
        ({"stop": ["a", ""]}, "stop[1]", "may not be empty"),
        ({"stop": ""}, "stop", "may not be empty"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": 3}, "stop", "a text or a list of texts fits"),
        ({"stream": "yes"}, "stream", "boolean, not 'yes'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream: true"),
        (
            {"stream": True, "stream_options": {"usage": True}},
            "stream_options.usage",
            "no such field; known: include_usage",
        ),
        ({"stream": True, "beam_size": 2, "return_beams": True}, "return_beams", "without stream it fits"),
        ({"prompt": ["a", "b"], "beam_size": 2, "return_beams": True}, "return_beams", "one prompt"),
        ({"best_of": 3}, "best_of", "only the value of n, 1, fits, not 3"),
        ({"suffix": "end"}, "suffix", "cannot see what follows"),
        ({"max_token": 3}, "max_token", "did you mean 'max_tokens'?"),
        ({"condition": "Greek"}, "condition", "trained without"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens", "5, more than max_tokens, 3"),
        ({"n": 3, "beam_size": 2}, "n", "3, more than the 2 hypotheses"),
        ({"beam_size": 3, "beam_groups": 2}, "beam_size", "3 cannot be shared by 2 beam_groups"),
        ({"beam_size": 64, "max_tokens": 1}, "beam_size", "64 is more than the"),
        ({"return_beams": True}, "return_beams", "belongs to a beam search"),
        ({"logit_bias": {"xyz": 1}}, "logit_bias", "no token of this model is 'xyz'"),
        ({"condition": 3}, "condition", "a class or a list of numbers fits, not a number"),
        ({"condition": [1, "x"]}, "condition[1]", "a number fits, not a text"),
        ({"model": "names"}, "condition", "one of Greek, Welsh fits"),
        ({"model": "names", "condition": "Greec"}, "condition", "did you mean 'Greek'?"),
        ({"model": "shapes", "condition": [1]}, "condition", "2 numbers fit"),
        ({"model": 3}, "model", "valid string"),
        ([], "body", "a JSON object fits, not a list"),
        ("the", "body", "a JSON object fits, not a text"),
    ],
)
def test_a_misfit_names_its_field(writer: TestClient, body: Any, param: str, says: str) -> None:
    found = error(writer.post(PATH, json=body), 400, "invalid_request")
    assert found["param"] == param
    assert says in found["message"]
    assert found["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_the_task_refuses_is_named_by_its_place(
    writer: TestClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def refuse(completer: Completer, given: GenerationInput, condition: Any) -> Any:
        if given.prompt == "b":
            raise ValueError("too odd")
        return request(completer, given, condition)

    request = Completer.request
    monkeypatch.setattr(Completer, "request", refuse)
    found = error(writer.post(PATH, json={"prompt": ["a", "b"], "stream": stream}), 400, "invalid_request")
    assert (found["param"], found["message"]) == ("prompt[1]", "prompt[1]: too odd")
    several = error(writer.post(PATH, json={"prompt": ["b", "a", "b"]}), 400, "invalid_request")
    assert several["message"] == "prompt[0]: too odd; prompt[2]: too odd"


@pytest.mark.parametrize(
    ("body", "says"),
    [(b'{"prompt": ', "not JSON"), (b"", "the body is empty"), (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 15"),
     (b'{"top_p": NaN}', "top_p")],
)  # fmt: skip
def test_an_unreadable_body(writer: TestClient, body: bytes, says: str) -> None:
    answer = writer.post(PATH, content=body, headers=JSON)
    code = "invalid_request" if b"NaN" in body else "malformed_body"
    assert says in error(answer, 400, code)["message"]


def test_other_errors_have_the_same_shape(writer: TestClient) -> None:
    found = error(writer.post(PATH, json={"model": "nme"}), 404, "model_not_found")
    assert found["param"] == "model"
    assert "known: writer, names, shapes" in found["message"]
    error(writer.post(PATH, content=b"{}"), 415, "unsupported_media_type")
    error(writer.post(PATH, json={"prompt": "a" * 200_000}), 413, "body_too_large")
    error(writer.get(PATH), 405, "method_not_allowed")
    error(writer.post(f"{PATH}/", json={}), 404, "unknown_path")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_what_openai_has_and_this_server_has_not_is_told(writer: TestClient, path: str) -> None:
    assert f"{PATH} takes a prompt" in error(writer.post(path, json={}), 404, "unknown_path")["message"]


def test_one_model_is_told_as_the_list_tells_it(writer: TestClient) -> None:
    for told in writer.get("/v1/models").json()["data"]:
        assert writer.get(f"/v1/models/{told['id']}").json() == told
    assert error(writer.get("/v1/models/nme"), 404, "model_not_found")["param"] == "model"


def test_no_live_model() -> None:
    with TestClient(create_app(LIMITS, Models([]))) as client:
        assert "no generation model is live" in error(client.post(PATH, json={}), 404, "model_not_found")["message"]


def test_a_model_of_another_task_is_refused(client: TestClient) -> None:
    found = error(client.post(PATH, json={"model": "tiny"}), 404, "model_not_found")
    assert "'tiny' is a sentiment model" in found["message"]


# The document


def test_the_documented_examples_are_accepted(writer: TestClient) -> None:
    operation = writer.get("/openapi.json").json()["paths"][PATH]["post"]
    assert {"400", "404", "413", "415", "500"} <= operation["responses"].keys()
    requests = operation["requestBody"]["content"]["application/json"]["examples"]
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert requests.keys() == answers.keys()
    for name, example in requests.items():
        # FastAPI leaves null out of the document.
        found = filled(ask(writer, **example["value"]))
        shown = answers[name]["value"]
        assert found.keys() == shown.keys()
        assert [filled(choice).keys() for choice in found["choices"]] == [choice.keys() for choice in shown["choices"]]
    assert "data: [DONE]" in operation["responses"]["200"]["content"]["text/event-stream"]["example"]
    fields = operation["requestBody"]["content"]["application/json"]["schema"]
    assert fields == {"$ref": "#/components/schemas/CompletionRequest"}


def test_the_page_shows_requests_that_are_accepted_and_the_limits_that_hold(
    writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    bodies = [body for body in re.findall(r"^  -d '(.*)'$", page, flags=re.MULTILINE) if '"prompt"' in body]
    assert len(bodies) == 3
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SEQAPP_{name.upper()}", raising=False)
    with TestClient(create_app(Settings(), go_live(writers[:1], threads=1))) as client:
        for body in bodies:
            assert client.post(PATH, content=body, headers=JSON).status_code == 200
    limits = re.findall(r"^\| `SEQAPP_(\w+)` \| (\d+)", page, flags=re.MULTILINE)
    assert {name.lower(): int(value) for name, value in limits} == {
        name: getattr(Settings(), name)
        for name in (
            "max_items",
            "max_characters",
            "max_completions",
            "max_tokens",
            "max_beam_tokens",
            "max_logprobs",
            "max_beam_characters",
            "max_attention_characters",
        )
    }
    shown = set(re.findall(r"`(\w+)`", page[page.index("| field |") : page.index("`user` is taken")]))
    assert CompletionRequest.model_fields.keys() - {"user", "suffix"} <= shown


def filled(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if value is not None}
