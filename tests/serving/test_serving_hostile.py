"""Clients that are broken, slow or mean, on real sockets: each is answered or cut off, and the next one is served.

And bundles that attack: none runs anything, or shows a file that is not its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from serving import protocol
from serving.app import create_app
from serving.models import Models, go_live
from serving.settings import Settings

QUICK: dict[str, Any] = {"header_seconds": 0.4, "body_seconds": 0.4, "idle_seconds": 0.4, "stall_seconds": 0.6,
                         "max_connections": 60, "max_client_connections": 60, "client_rate": 20_000,
                         "max_bytes": 300_000, "access_log": False}  # fmt: skip
PATIENCE = 20.0
GOOD = b'{"inputs": "good"}'
PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(body: bytes, path: bytes = b"/v1/sentiment", *more: bytes) -> bytes:
    head = [
        b"POST %s HTTP/1.1" % path,
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join([*head, *more, b"", body])


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}

    @property
    def kind(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self.body
        assert self.headers["x-content-type-options"] == "nosniff"
        assert b"Traceback" not in self.body
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["request_id"] == self.headers["x-request-id"]
        return str(problem["type"]).rpartition(":")[2]


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, receive: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def ask(self, *pieces: bytes) -> list[Answer]:
        """Send ``pieces`` and read until the server closes; every answer must tell its length."""
        with self.connect() as connection:
            with suppress(ConnectionError):  # it need not read all
                for piece in pieces:
                    connection.sendall(piece)
            return answers(read(connection))

    def one(self, *pieces: bytes) -> Answer:
        (answer,) = self.ask(*pieces)
        return answer


def read(connection: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got


def wait(condition: Callable[[], Any]) -> None:
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end
        sleep(0.005)


def answers(raw: bytes) -> list[Answer]:
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        found.append(Answer(raw[: len(head) + 4 + length]))
        raw = rest[length:]
    return found


@pytest.fixture(scope="module")
def app(tiny: Path, writers: list[str]) -> FastAPI:
    app = create_app(Settings(**QUICK), go_live([str(tiny), writers[0]], threads=1))

    app.state.streams = 0

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> Any:
            app.state.streams += 1
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                app.state.streams -= 1

        return StreamingResponse(pieces())

    @app.get("/large")
    async def large() -> Any:
        return StreamingResponse(iter([b"x" * 30_000_000]), headers={"Content-Length": "30000000"})

    return app


@pytest.fixture(scope="module")
def started(app: FastAPI, serve: Callable[..., Any]) -> Iterator[Server]:
    with serve(app, Settings(**QUICK)) as port:
        yield Server(port)


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """After each test a good request is answered, on a new connection and at once."""
    yield started
    end = monotonic() + PATIENCE
    while True:  # connections of the test may have to end first
        answer = started.one(post(GOOD, b"/v1/sentiment", b"Connection: close"))
        if answer.status != 503 or monotonic() > end:
            break
        sleep(0.05)
    assert answer.status == 200
    assert {one["label"] for one in json.loads(answer.body)} == {"positive", "negative"}


# What the parser reads


@pytest.mark.parametrize(
    ("junk", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),  # TLS
        (b"GET /\r\n\r\n", 400),  # HTTP/0.9
        (b"hello\r\n\r\n", 400),
        (b"\x00" * 5000, 400),
        (b"GET / HTTP/3.7\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_is_not_http_is_refused(server: Server, junk: bytes, status: int) -> None:
    answer = server.one(junk)
    assert (answer.status, answer.kind) == (status, "malformed-request")


def test_ten_thousand_headers(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "serving")
    flood = b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n"
    answer = server.one(flood)
    assert (answer.status, answer.kind) == (431, "headers-too-large")
    assert f"request {answer.headers['x-request-id']}" in caplog.text


def test_a_header_that_never_ends(server: Server) -> None:
    answer = server.one(b"GET /livez HTTP/1.1\r\nX-A: ", *[b"y" * 10_000] * 200)
    assert (answer.status, answer.kind) == (431, "headers-too-large")


@pytest.mark.parametrize("name", [b"Authorization: Bearer ", b"X-API-Key: ", b"Cookie: ", b"X-Request-Id: "])
def test_a_header_of_a_megabyte(server: Server, name: bytes) -> None:
    answer = server.one(b"GET /livez HTTP/1.1\r\n" + name + b"k" * 1_000_000 + b"\r\n\r\n")
    assert (answer.status, answer.kind) == (431, "headers-too-large")


def test_refusals_are_counted(server: Server) -> None:
    def count() -> float:
        with server.connect() as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            found = re.search(rb'seqapp_refused_total\{outcome="headers-too-large"\} ([0-9.]+)', read(connection))
        return float(found[1]) if found else 0.0

    before = count()
    server.one(b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 1000)
    assert count() == before + 1


def test_a_path_of_a_megabyte(server: Server) -> None:
    answer = server.one(b"GET /" + b"p" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.kind) == (414, "url-too-long")
    assert len(answer.body) < 2000
    answer = server.one(b"GET /" + b"p" * 8000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert (answer.status, answer.kind) == (404, "unknown-path")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PROPFIND", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/livez", "/v1/sentiment", "/static/app.js", "/", "/nowhere", "*"])
def test_odd_methods(server: Server, method: str, path: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        raw = read(connection)
    answer = Answer(raw)
    assert answer.status in ((200, 404, 405) if method == "HEAD" else (400, 404, 405))
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.kind


def test_requests_in_a_row_are_answered_in_order(server: Server) -> None:
    texts = [f"good {'soup ' * n}" for n in range(20)]
    asked = b"".join(post(json.dumps({"inputs": text}).encode(), b"/v1/sentiment", b"X-Request-Id: %d" % n)
                     for n, text in enumerate(texts))  # fmt: skip
    found = server.ask(asked + b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert [answer.headers["x-request-id"] for answer in found[:-1]] == [str(n) for n in range(20)]
    assert {answer.status for answer in found} == {200}
    assert json.loads(found[-1].body) == {"status": "alive"}


def test_junk_after_a_request_does_not_take_its_answer(server: Server) -> None:
    first, *rest = server.ask(post(GOOD) + b"\x00\x01 junk\r\n\r\n")
    assert first.status == 200
    assert [answer.status for answer in rest] in ([], [400])
    first, *rest = server.ask(post(GOOD) + b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 10_000)
    assert first.status == 200
    assert [answer.status for answer in rest] in ([], [431])


def test_an_upgrade_is_not_taken(server: Server) -> None:
    for kind in (b"websocket", b"h2c"):
        offer = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + kind + b"\r\n\r\n"
        assert server.one(offer).status == 200
        answer = server.one(post(GOOD, b"/v1/sentiment", b"Upgrade: " + kind, b"Connection: Upgrade"))
        assert answer.kind == "malformed-request"


# What the body holds

ASKED = [b"/v1/sentiment", b"/v1/completions", b"/translate", b"/invocations", b"/v2/models/tiny/infer",
         b"/v1/models/reload"]  # fmt: skip


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"inputs":' * 20_000,
        b"[" * 900 + b"]" * 900,
        b'{"inputs": ' + b"[" * 950 + b"]" * 950 + b"}",
        b'{"x": ' * 900 + b"1" + b"}" * 900,
        b'{"inputs": "\xff\xfe"}',
        b'{"inputs": "caf\xe9"}',
        b'{"inputs": "\\ud800"}',
        b'{"model": "\\udc80", "q": "\\ud800", "prompt": "\\ud800"}',
        b'{"inputs": 1e999999}',
        b'{"inputs": NaN}',
        b'{"inputs": ' + b"9" * 100_000 + b"}",
        b"{" + b'"a":1,' * 30_000 + b'"a":1}',
        b'"' + b"\\" * 100_001 + b'"',
        b"",
        b"\x00",
        b"null",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_no_handler_wants(server: Server, path: bytes, body: bytes) -> None:
    began = monotonic()
    answer = server.one(post(body, path, b"Connection: close"))
    # A lone surrogate is a text that a tokenizer may take for an unknown character; a reload needs no body.
    harmless = b"ud800" in body or (path == b"/v1/models/reload" and body in (b"", b"null"))
    assert answer.status in ((200, 400, 404, 422) if harmless else (400, 404, 415, 422)), answer.body
    assert b"Traceback" not in answer.body
    assert monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("path", [b"/v1/sentiment", b"/v1/completions", b"/translate"])
def test_one_word_of_many_bytes(server: Server, path: bytes) -> None:
    """Beyond the characters that fit, and within them: a tokenizer must not take for ever either."""
    for size in (250_000, 190_000):
        word = "w" * size
        fitting = {b"/v1/sentiment": {"inputs": word}, b"/v1/completions": {"prompt": word, "max_tokens": 1}}
        asked = fitting.get(path, {"q": word, "source": "en", "target": "de"})
        answer = server.one(post(json.dumps(asked).encode(), path, b"Connection: close"))
        assert answer.status in (200, 400, 404, 422)
        assert answer.status != 200 or size < 200_000


def flood(connection: socket.socket) -> None:
    for _ in range(100_000):
        connection.sendall(b"x" * 65536)
        sleep(0.001)


def test_a_body_that_is_too_large_is_refused_before_it_came(server: Server) -> None:
    head = b"POST /v1/sentiment HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9000000000\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head)
        assert Answer(connection.recv(65536)).kind == "body-too-large"
        # It is cut off when it goes on all the same.
        with pytest.raises(ConnectionError):
            flood(connection)


def test_a_chunked_body_that_never_ends(server: Server) -> None:
    head = b"POST /v1/sentiment HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.one(head, *[b"ff00\r\n" + b"x" * 0xFF00 + b"\r\n"] * 40)
    assert (answer.status, answer.kind) == (413, "body-too-large")


def test_expect_continue(server: Server) -> None:
    with server.connect() as connection:
        head, _, body = post(GOOD, b"/v1/sentiment", b"Expect: 100-continue").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert Answer(connection.recv(65536)).status == 200
        # Without leave to send it, the body may not come; the connection cannot be used any more.
        connection.sendall(b"POST /v1/sentiment HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 400000\r\n\r\n")
        assert Answer(read(connection)).kind == "body-too-large"


# Names of models


NAMES = ["../../etc/passwd", "..", ".", "/etc/passwd", "....//....//etc/passwd", "a/../../b", "%2e%2e/%2e%2e/etc",
         "\x00", "tiny\x00", "tiny/", "/tiny", "tiny/..", "tiny@../..", "tiny/../tiny", "\\..\\..",
         "file:///etc/passwd", "~", "x" * 9000, "runs:/1", "models:/tiny/1", "tiny\r\nX-Evil: 1",
         "$(id)", "{0.__class__}", "тiny"]  # fmt: skip
PATHS = [b"/v1/models/%s/card", b"/v2/models/%s", b"/v2/models/%s/ready", b"/v2/models/%s/versions/1", b"/%s",
         b"/static/%s", b"/v2/models/tiny/versions/%s"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_path_tricks_in_model_names(server: Server, name: str) -> None:
    for path, body in ((b"/v1/sentiment", {"inputs": "good"}), (b"/v1/completions", {"prompt": ""}),
                       (b"/translate", {"q": "a", "source": "en", "target": "de"}),
                       (b"/invocations", {"inputs": ["good"], "params": {}}), (b"/v1/models/reload", {})):  # fmt: skip
        sent: dict[str, Any] = {**body, "model": name}
        if path == b"/invocations":
            sent = {**body, "params": {"model": name}}
        answer = server.one(post(json.dumps(sent).encode(), path, b"Connection: close"))
        assert answer.status in (400, 404, 405, 422), (path, answer.body)
        assert_harmless(answer)
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())[:6000]
    raw = name.replace("\x00", "%00").replace("\r\n", "%0d%0a").encode("ascii", "replace")[:6000]
    for given in (quoted.encode(), raw):
        for path in PATHS:
            with server.connect() as connection:
                connection.sendall(b"GET " + path % given + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = Answer(read(connection))
            assert answer.status in (200, 400, 404, 405, 422), (path, answer.body)
            assert_harmless(answer)


def assert_harmless(answer: Answer) -> None:
    assert b"root:" not in answer.body
    assert b"Traceback" not in answer.body
    assert "x-evil" not in answer.headers
    assert len(answer.body) < 5000 or answer.status == 200


# Slow and silent


def test_a_body_that_is_cut_off(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(post(GOOD)[:-5])


def test_headers_that_do_not_come(server: Server) -> None:
    answer = server.one(b"GET /livez HTTP/1.1\r\nHost:")
    assert (answer.status, answer.kind) == (408, "request-timeout")


def test_headers_that_come_drop_by_drop(server: Server) -> None:
    """It is the time for all headers that counts, not that between two bytes."""
    with server.connect() as connection:
        connection.settimeout(0.02)
        got = b""
        for _ in range(2000):
            with suppress(ConnectionError):
                connection.sendall(b"a")
            with suppress(TimeoutError):
                got = connection.recv(65536)
                break
    assert Answer(got).kind == "request-timeout" if got.startswith(b"HTTP/1.1 408") else Answer(got).status == 400


def test_a_silent_connection_is_closed(server: Server) -> None:
    with server.connect() as connection:
        assert connection.recv(1) == b""
    with server.connect() as connection:  # empty lines before a request are allowed, but not for ever
        connection.settimeout(0.02)
        for _ in range(2000):
            try:
                connection.sendall(b"\r\n")
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("it is still open")


def test_an_idle_connection_is_closed_after_its_answer(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(post(GOOD))
        assert answers(read(connection))[0].status == 200


@pytest.mark.parametrize("drop", [b"", b"x"])
def test_a_body_that_comes_too_slowly(server: Server, drop: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(post(b'{"inputs": "' + b"a" * 100_000, b"/v1/sentiment", b"X-Request-Id: mine")[:-90_000])
        connection.settimeout(0.05)
        got = b""
        end = monotonic() + PATIENCE + 10
        while not got and monotonic() < end:  # 10 KB at 20 KB/s are 0.5 s besides; drops earn no time
            with suppress(TimeoutError):
                connection.sendall(drop)
                got = connection.recv(65536)
    answer = Answer(got)
    assert (answer.status, answer.kind) == (408, "request-timeout")
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("path", [b"/endless", b"/large"])
def test_a_reader_that_takes_nothing_is_cut_off(server: Server, app: FastAPI, path: bytes) -> None:
    connections = app.state.server.server_state.connections
    with server.connect(receive=4096) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1)
        wait(lambda: not connections)
        assert len(read(connection)) < 30_000_000
    wait(lambda: app.state.streams == 0)


def test_a_reader_that_is_slow_but_reads_gets_all(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        while data := connection.recv(300_000):
            got += len(data)
            sleep(0.01)
    assert got > 30_000_000


def test_clients_that_vanish_while_they_are_answered(server: Server, app: FastAPI) -> None:
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(1000)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by RST
    wait(lambda: app.state.streams == 0)


def test_more_connections_than_fit(server: Server) -> None:
    """Idle ones do not keep others out for longer than they may be idle."""
    with ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(60)]
        answer = server.one(post(GOOD))
        assert (answer.status, answer.kind) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.one(PROBE).status == 200
        crowd = []
        for _ in range(60):  # far beyond, they are cut without a word
            with suppress(ConnectionError):
                crowd.append(stack.enter_context(server.connect()))
        assert len(crowd) > 0
        for connection in idle:
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_no_client_takes_the_connections_of_others(serve: Callable[..., Any]) -> None:
    patient = {**QUICK, "idle_seconds": 30, "header_seconds": 30, "max_client_connections": 3}
    asked = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    settings = Settings(**patient)
    with serve(create_app(settings, Models([])), settings) as port, ExitStack() as stack:
        server = Server(port)
        idle = [stack.enter_context(server.connect()) for _ in range(3)]
        answer = server.one(asked)
        assert (answer.status, answer.kind) == (429, "too-many-requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.one(PROBE).status == 200
        with socket.create_connection(("127.0.0.1", port), PATIENCE, ("127.0.0.2", 0)) as other:
            other.sendall(asked)
            assert Answer(read(other)).status == 404
        idle[0].close()
        wait(lambda: server.one(asked).status == 404)
    settings = Settings(**patient, trusted_proxies="127.0.0.0/24")
    with serve(create_app(settings, Models([])), settings) as port, ExitStack() as stack:
        idle = [stack.enter_context(Server(port).connect()) for _ in range(5)]
        assert Server(port).one(asked).status == 404


def test_one_client_has_a_quarter_of_the_connections() -> None:
    assert protocol.options(Settings(max_connections=100))["http"].limits.share == 25


def test_a_slow_body_has_a_deadline_and_takes_nobodys_place(
    tiny: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER", 0.1)
    settings = Settings(**{**QUICK, "body_seconds": 60, "max_in_flight": 1, "client_rate": 1})
    with serve(create_app(settings, go_live([str(tiny)], threads=1)), settings) as port:
        server = Server(port)
        with server.connect() as slow, server.connect() as late:
            slow.sendall(post(GOOD)[:-1])
            late.sendall(post(b" " * 1000 + GOOD, b"/v1/sentiment", b"X-Request-Timeout: 0.2")[:-1])
            assert server.one(post(GOOD, b"/v1/sentiment", b"Connection: close")).status == 200
            answer = Answer(read(late))  # until it is closed, though it might send for a minute
            assert (answer.status, answer.kind) == (408, "request-timeout")
            slow.sendall(GOOD[-1:])
            assert Answer(slow.recv(65536)).status == 200


def test_five_hundred_idle_connections(app: FastAPI, serve: Callable[..., Any]) -> None:
    patient = {**QUICK, "idle_seconds": 30, "header_seconds": 30, "max_connections": 600, "max_client_connections": 600}
    with serve(app, Settings(**patient)) as port:
        server = Server(port)
        with ExitStack() as stack:
            crowd = [stack.enter_context(server.connect()) for _ in range(500)]
            for connection in crowd[:250]:
                connection.sendall(b"POST /v1/sentiment HTTP/1.1\r\nHost:")
            assert server.one(post(GOOD, b"/v1/sentiment", b"Connection: close")).status == 200


# Bundles


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def reseal(bundle: Path) -> None:
    """Make the manifest agree with the files, as whoever forges a bundle would."""
    manifest = yaml.safe_load((bundle / "bundle.yaml").read_text())
    manifest["files"] = {name: sha256((bundle / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(manifest))


CALL = "!!python/object/apply:os.mkdir [pwned]"
ATTACKS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "pickle as weights": ("weights.safetensors", lambda _: pickle.dumps(Bomb())),
    "pickle as tokenizer": ("tokenizer.json", lambda _: pickle.dumps(Bomb())),
    "tag in config": ("config.yaml", lambda text: text + f"more: {CALL}\n".encode()),
    "tag in manifest": ("bundle.yaml", lambda text: text + f"more: {CALL}\n".encode()),
    "only a tag": ("bundle.yaml", lambda _: CALL.encode()),
    "aliases without end": ("config.yaml", lambda _: b"a: &a [x, x]\n" + b"".join(
        b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (n + 1, n + 1, n, n, n, n) for n in range(97, 121))),
    "kind is an import path": ("config.yaml", lambda text: re.sub(rb"kind: \w+", b"kind: os.mkdir", text)),
    "kind is a dunder": ("config.yaml", lambda text: re.sub(rb"kind: \w+", b"kind: __import__", text)),
    "_target_": ("config.yaml", lambda text: text.replace(b"kind:", b"_target_: os.mkdir\n  kind:", 1)),
    "deep tokenizer": ("tokenizer.json", lambda _: b"[" * 500_000),
    "other tokenizer": ("tokenizer.json", lambda _: b'{"version": "1.0", "model": {"type": "os.mkdir"}}'),
    "deep golden": ("golden.json", lambda _: b"[" * 500_000),
    "golden is no list": ("golden.json", lambda _: b'{"input": 1}'),
    "metrics": ("metrics.json", lambda _: b"[" * 500_000),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_bundle_runs_anything(
    attack: str, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle()
    name, change = ATTACKS[attack]
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    if name != "bundle.yaml":
        reseal(bundle)
    live = go_live([str(bundle)], threads=1)
    live.close()
    assert not Path("pwned").exists()
    (refused,) = live.refused
    assert refused.reason


def test_a_link_out_of_a_bundle_shows_nothing(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the server")
    for unlisted in (False, True):
        bundle = make_bundle(f"b{unlisted}")
        (bundle / "README.md").unlink()
        (bundle / "README.md").symlink_to(tmp_path / "secret")
        if unlisted:
            manifest = yaml.safe_load((bundle / "bundle.yaml").read_text())
            del manifest["files"]["README.md"]
            (bundle / "bundle.yaml").write_text(yaml.safe_dump(manifest))
        live = go_live([str(bundle)], threads=1)
        assert [model.card for model in live] == ([""] if unlisted else [])
        live.close()
