"""Every error is ``application/problem+json`` and says what was wrong, where, and what would fit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from serving.app import create_app
from serving.models import Models
from serving.problems import Problem
from serving.settings import Settings

JSON = {"Content-Type": "application/json"}


def problem(answer: Response, status: int, kind: str) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content, strict=True)
    assert found.status == status
    assert found.type == f"urn:problem-type:seqapp:{kind}"
    assert found.request_id == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return found


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "inputs", "is required"),
        ({"inputs": ""}, "inputs", "the text is empty"),
        ({"inputs": "\n \t"}, "inputs", "the text is empty"),
        ({"inputs": ["good", "  ", "bad"]}, "inputs[1]", "the text is empty"),
        ({"inputs": []}, "inputs", "the list is empty"),
        ({"inputs": 3}, "inputs", "not a number"),
        ({"inputs": None}, "inputs", "not null"),
        ({"inputs": ["good", ["bad"]]}, "inputs[1]", "not a list"),
        ({"inputs": ["a"] * 5}, "inputs", "5 texts are too many; at most 4"),
        ({"inputs": ["a", "b" * 60_001]}, "inputs[1]", "60001 characters; at most 60000"),
        ({"inputs": "b" * 60_001}, "inputs", "60001 characters"),
        ({"inputs": "a", "explane": True}, "explane", "did you mean 'explain'?"),
        ({"inputs": "a", "explain": "yes"}, "explain", "boolean, not 'yes'"),
        ({"inputs": "a", "model": 3}, "model", "valid string, not 3"),
        ({"inputs": "a", "parameters": {"topk": 3}}, "parameters.topk", "did you mean 'top_k'?"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k", "greater than or equal to 1, not 0"),
        ({"inputs": "a", "parameters": {"top_k": 1001}}, "parameters.top_k", "less than or equal to 1000"),
        ({"inputs": "a", "parameters": {"top_k": "2"}}, "parameters.top_k", "integer, not '2'"),
        ({"inputs": "a", "parameters": {"top_k": True}}, "parameters.top_k", "integer"),
        ({"inputs": "a", "parameters": None}, "parameters", "a JSON object fits, not null"),
        ([], "body", "a JSON object fits, not a list"),
        ("good", "body", "a JSON object fits, not a text"),
    ],
)
def test_a_misfit_names_its_field(client: TestClient, body: Any, field: str, says: str) -> None:
    found = problem(client.post("/v1/sentiment", json=body), 422, "invalid-request")
    assert [one.field for one in found.errors] == [field]
    assert says in found.errors[0].detail
    assert field in found.detail


def test_every_misfit_is_listed_but_not_a_million(client: TestClient) -> None:
    body = {"inputs": [1] * 30, "explain": 1}
    found = problem(client.post("/v1/sentiment", json=body), 422, "invalid-request")
    assert len(found.errors) == 20
    found = problem(client.post("/v1/sentiment", json={str(n): 0 for n in range(5000)}), 422, "invalid-request")
    assert len(found.errors) == 20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inputs": ', "not JSON: Expecting value at character 11"),
        (b"", "the body is empty"),
        (b'{"inputs": "caf\xe9"}', "not UTF-8: byte 15"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
)
def test_an_unreadable_body(client: TestClient, body: bytes, says: str) -> None:
    found = problem(client.post("/v1/sentiment", content=body, headers=JSON), 400, "malformed-body")
    assert says in found.detail


@pytest.mark.parametrize("declared", [{}, {"Content-Type": "text/plain"}])
def test_a_body_that_is_not_declared_as_json(client: TestClient, declared: dict[str, str]) -> None:
    answer = client.post("/v1/sentiment", content=b'{"inputs": "good"}', headers=declared)
    assert "application/json" in problem(answer, 415, "unsupported-media-type").detail


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(client: TestClient, declared: bool) -> None:
    body = b'{"inputs": "' + b"a " * 60_000 + b'"}'

    def chunks() -> Iterator[bytes]:
        yield from (body[at : at + 1000] for at in range(0, len(body), 1000))

    answer = client.post("/v1/sentiment", content=body if declared else chunks(), headers=JSON)
    assert ("content-length" in answer.request.headers) == declared
    assert "100000 bytes" in problem(answer, 413, "body-too-large").detail


def test_an_unknown_model_is_named_with_what_there_is(client: TestClient) -> None:
    found = problem(client.post("/v1/sentiment", json={"inputs": "a", "model": "tinny"}), 404, "unknown-model")
    assert "'tinny'; did you mean 'tiny'? known: tiny, other" in found.detail
    assert [one.field for one in found.errors] == ["model"]
    body = json.dumps({"inputs": "a", "model": "\ud800"})
    problem(client.post("/v1/sentiment", content=body, headers=JSON), 404, "unknown-model")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/sentiment/", "/v1", "/static/nothing.js", "/static/%00", "/%00%ff"])
def test_an_unknown_path(client: TestClient, path: str) -> None:
    problem(client.get(path), 404, "unknown-path")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/sentiment", {"POST"}),
        ("OPTIONS", "/v1/sentiment", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/static/app.js", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method(client: TestClient, method: str, path: str, allowed: set[str]) -> None:
    answer = client.request(method, path)
    problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_a_failure_of_ours_tells_nothing_but_the_request_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("serving.models.Models.find", fail)
    answer = client.post("/v1/sentiment", json={"inputs": "a"}, headers={"X-Request-Id": "mine-1"})
    assert "mine-1" in problem(answer, 500, "internal-error").detail
    assert "secret" not in answer.text
    assert "mine-1" in caplog.text
    assert "a secret of the server" in caplog.text


def test_no_live_model(settings: Settings) -> None:
    with TestClient(create_app(settings, Models([]))) as client:
        answer = client.get("/readyz")
        problem(answer, 503, "not-ready")
        assert answer.headers["Retry-After"]
        assert client.get("/livez").status_code == 200
        answer = client.post("/v1/sentiment", json={"inputs": "a"})
        assert "no sentiment model is live" in problem(answer, 404, "unknown-model").detail
        assert client.get("/v1/models").json()["data"] == []


def test_a_server_that_stops_is_alive_and_not_ready(settings: Settings) -> None:
    app = create_app(settings, Models([]))
    with TestClient(app) as client:
        app.state.stopping = True
        answer = client.get("/readyz")
        assert problem(answer, 503, "not-ready").detail == "the server is stopping"
        assert answer.headers["Retry-After"] == "5"
        assert client.get("/livez").status_code == 200


def test_a_request_that_is_cut_off_when_the_server_stops(settings: Settings) -> None:
    app = create_app(settings, Models([]))

    @app.get("/slow")
    async def slow() -> None:
        raise asyncio.CancelledError

    with TestClient(app) as client:
        answer = client.get("/slow")
        assert "stopping" in problem(answer, 503, "not-ready").detail
        assert answer.headers["Retry-After"]
