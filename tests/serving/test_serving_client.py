"""``seqapp.client``: its answers from a real server, and how it tries again (against a script, without waiting)."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp import client as package
from seqapp.bundle import load
from seqapp.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    Forbidden,
    InvalidRequest,
    NotFound,
    ServerDeadline,
    ServerError,
    StreamFailed,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnreadableAnswer,
)
from seqapp.client import transports as client_transports
from seqapp.client.errors import retry_after
from seqapp.client.retries import FIRST_PAUSE, LONGEST_PAUSE, MOST_PATIENCE, Attempts
from seqapp.completion import GenerationInput
from seqapp.tasks.sentiment import SentimentInput
from serving.app import create_app
from serving.keys import create
from serving.models import go_live
from serving.problems import KINDS, ProblemError, render
from serving.settings import Settings
from tests.serving.conftest import answering
from tests.serving.test_serving_translation import write_translator

URL = "http://server"
LABELS = [{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}]
Answers = list[httpx2.Response | Exception]


class Script:
    """A server that gives one answer after the other, and remembers what it was sent."""

    def __init__(self, answers: Answers) -> None:
        self.answers, self.asked = list(answers), list[httpx2.Request]()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


Ask = Callable[..., tuple[Any, Script, list[float]]]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Let either client make a call against a script: what came of it, the script, and the pauses it made."""

    def run(answers: Answers, call: str = "sentiment", *given: Any, **options: Any) -> tuple[Any, Script, list[float]]:
        script, pauses = Script(answers), list[float]()

        async def asleep(seconds: float) -> None:
            pauses.append(seconds)

        monkeypatch.setattr(client_transports, "_sleep", pauses.append)
        monkeypatch.setattr(client_transports, "_asleep", asleep)
        given = given or (("good soup",) if call in ("sentiment", "stream") else ())
        transport = httpx2.MockTransport(script)
        try:
            if request.param == "sync":
                with Client(URL, transport=transport, **options) as client:
                    found = getattr(client, call)(*given)
                    return (list(found) if call == "stream" else found), script, pauses

            async def main() -> Any:
                async with AsyncClient(URL, transport=transport, **options) as client:
                    if call == "stream":
                        async with client.stream(*given) as pieces:
                            return [piece async for piece in pieces]
                    return await getattr(client, call)(*given)

            return asyncio.run(main()), script, pauses
        except ClientError as error:
            return error, script, pauses

    return run


def problem(kind: str, path: str = "/v1/sentiment", **headers: str) -> httpx2.Response:
    """As the server writes it."""
    status, media_type, body = render(path, ProblemError(kind, "so it is"), "r-1")
    return httpx2.Response(status, json=body.model_dump(), headers={"Content-Type": media_type, "X-Request-Id": "r-1",
                                                                     **headers})  # fmt: skip


def ok() -> httpx2.Response:
    return httpx2.Response(200, json=LABELS)


# What is tried again


def test_busy_servers_and_lost_connections_are_tried_again(ask: Ask) -> None:
    found, script, pauses = ask(
        [problem("overloaded", **{"Retry-After": "3"}), httpx2.ConnectError("refused"),
         problem("too-many-requests", **{"Retry-After": "1"}), ok()],
    )  # fmt: skip
    assert [one.label for one in found] == ["good", "bad"]
    assert len(script.asked) == 4
    assert len(pauses) == 3
    for seconds, asked, longest in zip(pauses, (3, 0, 1), (FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE), strict=True):
        assert asked <= seconds <= asked + longest


@pytest.mark.parametrize("kind", [kind for kind, told in KINDS.items() if told.status not in (429, 503)])
def test_nothing_else_is_tried_again(ask: Ask, kind: str) -> None:
    found, script, pauses = ask([problem(kind)])
    assert isinstance(found, ApiError)
    assert (found.kind, found.status, found.detail) == (kind, KINDS[kind].status, "so it is")
    assert (found.request_id, len(script.asked), pauses) == ("r-1", 1, [])


def test_retries_end(ask: Ask) -> None:
    found, script, _ = ask([problem("overloaded", **{"Retry-After": "1"})] * 5, retries=2)
    assert isinstance(found, Unavailable)
    assert found.retry_after == 1
    assert len(script.asked) == 3


@pytest.mark.parametrize(("timeout", "tries"), [(None, 4), (1000, 9)])
def test_without_a_bound_tries_go_on_until_the_deadline(ask: Ask, timeout: float | None, tries: int) -> None:
    found, script, _ = ask([*[httpx2.ConnectError("refused")] * (tries - (timeout is not None)), ok()], timeout=timeout)
    assert len(script.asked) == tries
    assert isinstance(found, list) == (timeout is not None)


def test_no_pause_is_begun_that_the_deadline_would_cut(ask: Ask) -> None:
    found, script, pauses = ask([problem("overloaded", **{"Retry-After": "30"})], timeout=20)
    assert isinstance(found, Unavailable)
    assert (len(script.asked), pauses) == (1, [])


def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(ask: Ask) -> None:
    asked = str(int(MOST_PATIENCE) + 1)
    found, _, pauses = ask([problem("too-many-requests", **{"Retry-After": asked})], timeout=None)
    assert isinstance(found, TooManyRequests)
    assert pauses == []


def test_the_deadline_is_sent_and_shrinks(ask: Ask) -> None:
    _, script, _ = ask([httpx2.ConnectError("refused"), ok()], timeout=9)
    first, second = (float(request.headers["X-Request-Timeout"]) for request in script.asked)
    assert 0 < second <= first <= 9
    _, script, _ = ask([ok()], timeout=None)
    assert "X-Request-Timeout" not in script.asked[0].headers


@pytest.mark.parametrize("error", [httpx2.ReadTimeout("slow"), httpx2.PoolTimeout("busy"), httpx2.WriteTimeout("slow")])
def test_a_wait_that_is_over_is_the_deadline(ask: Ask, error: Exception) -> None:
    found, script, _ = ask([error], timeout=5)
    assert isinstance(found, DeadlineExceeded)
    assert isinstance(found, TimeoutError)
    assert str(found) == "no answer within 5 s"
    assert len(script.asked) == 1


@given(st.integers(0, 40), st.floats(0, MOST_PATIENCE), st.floats(0, 1))
def test_pauses_grow_and_are_bounded(failures: int, asked: float, share: float) -> None:
    """LAW: Retry-After <= pause <= Retry-After + min(LONGEST_PAUSE, FIRST_PAUSE 2^failures)."""
    attempts = Attempts(None, 100, clock=lambda: 0.0, chance=lambda low, high: low + share * (high - low))
    error = ConnectionFailed("refused")
    for _ in range(failures):
        attempts.pause(error)
    error.retry_after = asked
    pause = attempts.pause(error)
    assert pause == pytest.approx(asked + share * min(LONGEST_PAUSE, FIRST_PAUSE * 2**failures))


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 100), max_size=20))
def test_tries_and_pauses_never_pass_the_deadline(timeout: float, took: list[float]) -> None:
    """LAW: whatever each try takes, no pause ends after the deadline."""
    now = [0.0]
    attempts = Attempts(timeout, 100, clock=lambda: now[0], chance=lambda low, high: high)
    for seconds in took:
        try:
            attempts.left()
            now[0] += seconds
            now[0] += attempts.pause(ConnectionFailed("refused"))
        except ClientError:
            return
        assert now[0] < timeout


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("7", None, 7.0),
        ("0", None, 0.0),
        (formatdate(1_000_060, usegmt=True), formatdate(1_000_000, usegmt=True), 60.0),
        (formatdate(1_000_000, usegmt=True), formatdate(1_000_060, usegmt=True), 0.0),
        ("soon", None, None),
        ("-1", None, None),
        ("Fri, 99 Jan 2026 00:00:00 GMT", None, None),
        (None, None, None),
        ("9" * 5000, None, 999_999_999.0),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(value: str | None, date: str | None, seconds: float | None) -> None:
    assert retry_after(value, date) == seconds


def test_a_date_is_meant_by_the_clock_of_the_server(ask: Ask) -> None:
    """A machine whose clock is years off waits as long as it should."""
    headers = {"Retry-After": formatdate(1_000_002, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)}
    _, _, (pause,) = ask([problem("not-ready", **headers), ok()])
    assert 2 <= pause <= 2 + FIRST_PAUSE


# Errors


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("unauthorized", Unauthorized), ("forbidden", Forbidden), ("unknown-model", NotFound),
     ("invalid-request", InvalidRequest), ("body-too-large", InvalidRequest), ("too-many-requests", TooManyRequests),
     ("overloaded", Unavailable), ("deadline-exceeded", ServerDeadline), ("internal-error", ServerError)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/sentiment", "/v1/completions"])
def test_each_problem_is_an_exception_of_its_own(ask: Ask, kind: str, expected: type[ApiError], path: str) -> None:
    call = "complete" if path == "/v1/completions" else "sentiment"
    found, _, _ = ask([problem(kind, path)], call, retries=0)
    assert type(found) is expected
    assert found.detail == "so it is"


def test_the_fields_that_are_wrong_are_told(ask: Ask) -> None:
    errors = [{"field": "inputs[0]", "detail": "the text is empty"}]
    body = {
        "type": "urn:problem-type:seqapp:invalid-request",
        "detail": "inputs[0]: the text is empty",
        "errors": errors,
    }
    found, _, _ = ask([httpx2.Response(422, json=body)])
    assert found.errors == (FieldError("inputs[0]", "the text is empty"),)
    openai = {"error": {"message": "top_p: too large", "type": "x", "param": "top_p", "code": "invalid_request"}}
    found, _, _ = ask([httpx2.Response(400, json=openai)], "complete")
    assert (found.errors, found.kind) == ((FieldError("top_p", "too large"),), "invalid-request")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": 3}', b'{"error": "no"}', b"\xff", b"[" * 99_999])
def test_an_error_of_something_else_is_told_by_its_status(ask: Ask, body: bytes) -> None:
    found, _, _ = ask([httpx2.Response(502, content=body)])
    assert type(found) is ServerError
    assert found.detail == "the server answered 502, and not as seqapp does"


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'[{"label": 1}]', b"\xff"])
def test_an_answer_of_something_else_is_not_taken(ask: Ask, body: bytes) -> None:
    found, _, _ = ask([httpx2.Response(200, content=body)])
    assert isinstance(found, UnreadableAnswer)


def test_a_redirection_is_not_followed(ask: Ask) -> None:
    found, script, _ = ask([httpx2.Response(307, headers={"Location": "http://elsewhere/"})])
    assert isinstance(found, ApiError)
    assert len(script.asked) == 1  # the key goes to nobody else


def test_a_field_that_the_client_does_not_know_is_left_out(ask: Ask) -> None:
    found, _, _ = ask([httpx2.Response(200, json=[{**LABELS[0], "new": 1}])])
    assert found == [package.Label("good", 0.75)]


@pytest.mark.parametrize("options", [{"url": "server"}, {"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_a_choice_that_does_not_fit(options: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="fit"):
            kind(**{"url": URL, **options})


def test_what_is_no_json_is_told_before_it_is_sent(ask: Ask) -> None:
    found, script, _ = ask([], "sentiment", [object()])
    assert "cannot be written as JSON" in str(found)
    assert script.asked == []


# Streams


def event(text: str, **more: Any) -> str:
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": None}
    head = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "seed": 3}
    return f"data: {json.dumps({**head, 'choices': [choice], **more}, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
FAILURE = 'event: error\ndata: {"error": {"message": "stopping", "type": "server_error", "code": "not_ready"}}\n\n'


class Parts(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes in parts, and may break."""

    def __init__(self, parts: list[bytes | Exception]) -> None:
        self.parts = parts
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def streamed(*parts: str | bytes | Exception) -> httpx2.Response:
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    headers = {"Content-Type": "text/event-stream", "X-Request-Id": "r-2"}
    return httpx2.Response(200, headers=headers, stream=Parts(encoded))


def test_pieces_come_however_the_bytes_are_cut(ask: Ask) -> None:
    texts = ["né", " 😀", "line\u2028line\x85", "\r\n", ""]
    raw = "".join(map(event, texts)).encode() + DONE.encode()
    for size in (1, 7, len(raw)):
        found, _, _ = ask([streamed(*(raw[i : i + size] for i in range(0, len(raw), size)))], "stream")
        assert [piece.text for piece in found] == texts


def test_a_stream_is_tried_again_before_its_first_piece_and_never_after(ask: Ask) -> None:
    busy = problem("overloaded", "/v1/completions", **{"Retry-After": "1"})
    found, script, _ = ask([busy, httpx2.ConnectError("refused"), streamed(event("a"), DONE)], "stream")
    assert ([piece.text for piece in found], len(script.asked)) == (["a"], 3)
    for broken in (httpx2.ReadError("reset"), httpx2.RemoteProtocolError("incomplete")):
        found, script, _ = ask([streamed(event("a"), broken)], "stream")
        assert isinstance(found, StreamFailed)
        assert (found.kind, found.request_id, len(script.asked)) == ("cut-off", "r-2", 1)


def test_a_stream_that_says_it_failed_raises(ask: Ask) -> None:
    found, _, _ = ask([streamed(event("a"), FAILURE)], "stream")
    assert isinstance(found, StreamFailed)
    assert (found.detail, found.kind) == ("stopping", "not-ready")


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([event("a")], StreamFailed),
        ([], StreamFailed),
        (["event: error\ndata: what\n\n"], StreamFailed),
        (["data: {}\n\n", DONE], UnreadableAnswer),
    ],
)
def test_a_stream_without_its_end_raises(ask: Ask, parts: list[str], kind: type[ClientError]) -> None:
    found, _, _ = ask([streamed(*parts)], "stream")
    assert isinstance(found, kind)


def test_closing_lets_the_server_go() -> None:
    body = Parts([event("a").encode(), event("b").encode(), DONE.encode()])
    response = httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)
    with Client(URL, transport=httpx2.MockTransport(Script([response]))) as client:
        with client.stream("x") as pieces:
            assert next(pieces).text == "a"
            assert not body.closed
        assert body.closed
        assert (pieces.id, pieces.model, pieces.seed, pieces.usage) == ("c", "m", 3, None)
        assert list(pieces) == []


# A real server


@pytest.fixture(scope="module")
def server(
    tiny: Path, writers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, list[str]]]:
    """Its URL, an admin's key, and its bundles."""
    folder = tmp_path_factory.mktemp("client")
    bundles = [str(tiny), writers[0], write_translator(folder / "en-de", "en", "de")]
    key = create(folder / "keys", "me", admin=True)
    settings = Settings(keys=folder / "keys", max_tokens=4000)
    with answering(create_app(settings, go_live(bundles, threads=1)), settings) as port:
        yield f"http://127.0.0.1:{port}/", key, bundles


def test_every_call(server: tuple[str, str, list[str]]) -> None:
    url, key, bundles = server
    sentiment, writer, _ = map(load, bundles)
    with Client(url, key, timeout=30) as client:
        assert client.ready()
        (said,) = sentiment.predict([SentimentInput(text="good soup", explain=True)])
        best, other = client.sentiment("good soup", explain=True)
        assert (best.label, best.score) == (said.label, pytest.approx(said.score))
        assert best.tokens is not None
        assert other.tokens is None
        assert [token.text for token in best.tokens] == [token.text for token in said.tokens or []]
        several = client.sentiment(["good soup", "it broke"], top_k=1)
        assert (len(several), [one.label for one in several[0]]) == (2, [said.label])

        (said,) = writer.predict([GenerationInput(prompt="the ", temperature=0, max_tokens=9)])
        answer = client.complete("the ", temperature=0, max_tokens=9, logprobs=1)
        assert answer.text == said.completions[0].text
        assert answer.choices[0].logprobs is not None
        tree = client.complete("the ", beam_size=2, max_tokens=3, return_beams=True).beams
        assert tree is not None
        assert len(tree) == 3

        whole = client.complete(["the ", "a"], n=2, seed=7, max_tokens=30)
        pieces: dict[int, str] = dict.fromkeys(range(4), "")
        with client.stream(["the ", "a"], n=2, seed=7, max_tokens=30) as stream:
            for piece in stream:
                pieces[piece.index] += piece.text
        assert list(pieces.values()) == [choice.text for choice in whole.choices]
        assert (stream.seed, stream.model) == (7, "writer")
        assert stream.usage == whole.usage

        one = client.translate("the man sleeps .", source="en", target="de", return_scores=True, alternatives=1)
        (same, _) = client.translate(["the man sleeps .", "why ?"], source="en", target="de", return_scores=True,
                                     alternatives=1)  # fmt: skip
        assert (one.text, one.alternatives) == (same.text, same.alternatives)
        assert one.sentences is not None
        assert client.translate("the man sleeps .", target="de").detected is not None
        assert {language.code: language.targets for language in client.languages()} == {"en": ["de"], "de": []}
        assert [model.id for model in client.models()] == ["tiny", "writer", "en-de"]
        assert client.models()[0].metrics["validation"]["accuracy"] == 0.75
        assert client.card("tiny").startswith("# tiny")
        assert [(one.model, one.outcome) for one in client.reload("tiny")] == [("tiny", "unchanged")]
        with pytest.raises(InvalidRequest) as wrong:
            client.sentiment(["fine", ""])
        assert wrong.value.errors[0].field == "inputs[1]"
        with pytest.raises(NotFound):
            client.sentiment("fine", model="nobody")


def test_both_clients_have_the_same_answers(server: tuple[str, str, list[str]]) -> None:
    url, key, _ = server

    async def main() -> list[Any]:
        async with AsyncClient(url, key, timeout=30) as client:
            async with client.stream("the ", seed=3, max_tokens=20) as stream:
                text = "".join([piece.text async for piece in stream])
            return [
                await client.ready(),
                await client.sentiment("good soup"),
                (await client.complete("the ", seed=3, max_tokens=20)).text,
                text,
                await client.translate("why ?", source="en", target="de"),
                await client.languages(),
                await client.models(),
                await client.card("writer"),
                await client.reload("tiny"),
            ]

    with Client(url, key, timeout=30) as client:
        with client.stream("the ", seed=3, max_tokens=20) as stream:
            text = "".join(piece.text for piece in stream)
        assert asyncio.run(main()) == [
            client.ready(),
            client.sentiment("good soup"),
            client.complete("the ", seed=3, max_tokens=20).text,
            text,
            client.translate("why ?", source="en", target="de"),
            client.languages(),
            client.models(),
            client.card("writer"),
            client.reload("tiny"),
        ]


def test_without_the_key_and_beyond_the_deadline(server: tuple[str, str, list[str]]) -> None:
    url, key, _ = server
    with Client(url) as client, pytest.raises(Unauthorized):
        client.sentiment("fine")
    with Client(url, key, timeout=0.05) as client, pytest.raises(DeadlineExceeded):
        client.complete("a", max_tokens=4000, min_tokens=4000, n=8)
    with Client(url, key, timeout=0.2) as client, pytest.raises((DeadlineExceeded, StreamFailed)):
        list(client.stream("a", max_tokens=4000, min_tokens=4000, n=8))


def test_a_port_where_nobody_listens() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client:
        assert not client.ready()
        with pytest.raises(ConnectionFailed):
            client.models()


def test_the_blocks_of_its_page(server: tuple[str, str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    settings = Settings()
    with answering(create_app(settings, go_live(server[2], threads=1)), settings) as port:
        for block in blocks:
            exec(compile(block.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), "client.md", "exec"), {})
    assert "inputs[1] the text is empty" in capsys.readouterr().out


def test_importing_it_is_light() -> None:
    heavy = "{'torch', 'numpy', 'mlflow', 'fastapi', 'tokenizers', 'seqapp.tasks'}"
    code = f"import sys, seqapp.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
