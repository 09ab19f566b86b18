"""The short way to a handler answers as FastAPI's own way does, and leaves everything else to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from serving import app as application
from serving.models import go_live
from serving.routes import direct
from serving.settings import Settings

TEXTS: Any = st.one_of(st.text(max_size=8), st.sampled_from(["a lovely garden", "\udc80", "\x00", "😀"]))
VALUES: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["inputs", "parameters", "explain", "model", "prompt", "q", "source", "more"]
BODIES: Any = st.one_of(
    st.binary(max_size=12),
    VALUES.map(json.dumps).map(str.encode),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(json.dumps).map(str.encode),
    st.sampled_from([
        b'{"inputs": "good soup", "inputs": "a bad room"}', b'{"inputs": "\\ud800"}', b'{"inputs": "a"} x',
        b"[" * 5000, b'{"inputs": NaN}', b'\xef\xbb\xbf{"inputs": "a"}', '{"inputs": "a"}'.encode("utf-16"),
        b'{"inputs": "good soup", "parameters": {"top_k": 1}}', b'{"inputs": ["good soup", "it broke"]}',
        b'{"inputs": "a", "parameters": {"top_k": 1e400}}', b'{"inputs": ["a"], "explain": true}', b"",
    ]),
)  # fmt: skip
TYPES = [None, "application/json", "application/json; charset=utf-8", "application/problem+json", "text/plain"]


@pytest.fixture(scope="module")
def clients(settings: Settings, tiny: Path) -> Iterator[tuple[TestClient, TestClient]]:
    """A server as it is, and one where nothing takes the short way."""
    apps = [application.create_app(settings, go_live([str(tiny)], threads=1)) for _ in range(2)]
    apps[1].user_middleware[:] = [one for one in apps[1].user_middleware if one.cls is not direct.Direct]
    with (
        TestClient(apps[0], raise_server_exceptions=False) as short,
        TestClient(apps[1], raise_server_exceptions=False) as long,
    ):
        yield short, long


@pytest.mark.parametrize("path", ["/v1/sentiment", "/v1/completions", "/translate"])
@given(body=BODIES, kind=st.sampled_from(TYPES))
def test_both_ways_give_the_same_answer(
    clients: tuple[TestClient, TestClient], path: str, body: bytes, kind: str | None
) -> None:
    headers = {"X-Request-Id": "same"} | ({"Content-Type": kind} if kind else {})
    short, long = (client.post(path, content=body, headers=headers) for client in clients)
    assert (short.status_code, short.json()) == (long.status_code, long.json())
    timed = {"server-timing", "date"}
    assert {name: value for name, value in short.headers.items() if name not in timed} == {
        name: value for name, value in long.headers.items() if name not in timed
    }
    assert ("server-timing" in short.headers) == ("server-timing" in long.headers)


def test_a_body_that_fits_takes_the_short_way(
    clients: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, _ = clients
    monkeypatch.setattr(direct, "_again", lambda *given: pytest.fail("FastAPI's own way was taken"))
    assert short.post("/v1/sentiment", json={"inputs": "good soup"}).status_code == 200
    pieces = (piece for piece in (b'{"inputs": ', b'"good', b' soup"}'))
    answer = short.post("/v1/sentiment", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.json() == short.post("/v1/sentiment", json={"inputs": "good soup"}).json()


def test_a_handler_that_fails_is_answered_alike(
    clients: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise ZeroDivisionError

    for client in clients:
        monkeypatch.setattr(client.app.state.models, "find", broken)  # type: ignore[attr-defined]
    short, long = (
        client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Id": "same"}) for client in clients
    )
    assert short.status_code == long.status_code == 500
    assert short.json() == long.json()


def test_the_routes_that_answer_short_texts_are_taken(clients: tuple[TestClient, TestClient]) -> None:
    app: Any = clients[0].app
    (found,) = (one for one in app.user_middleware if one.cls is direct.Direct)
    assert {"/v1/sentiment", "/v1/completions", "/translate"} <= set(direct.Direct(app, **found.kwargs).paths)
