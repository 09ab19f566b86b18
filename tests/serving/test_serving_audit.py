"""What is told of each request, to whom, and what happens when it cannot be written; and the headers of answers."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from seqapp.errors import SeqappError
from serving import logs
from serving.app import create_app
from serving.keys import create
from serving.logs import AuditLog
from serving.models import Models, go_live
from serving.observer import Observer
from serving.settings import Settings

ALWAYS = {"ts", "request_id", "client", "method", "path", "status", "ms", "outcome", "bytes_in", "bytes_out"}
SECRET = "a lovely secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def asked(file: Path, tiny: Path, writers: list[str]) -> Callable[..., list[dict[str, Any]]]:
    """The audit lines of what ``ask`` does with a client."""

    def run(ask: Callable[[TestClient], Any], **chosen: Any) -> list[dict[str, Any]]:
        live = go_live([str(tiny), writers[0]], threads=1)
        with TestClient(create_app(Settings(audit_log=str(file), **chosen), live)) as client:
            ask(client)
        return [json.loads(line) for line in file.read_bytes().splitlines()]

    return run


def wait(condition: Callable[[], Any]) -> None:
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.002)


def test_a_line_for_each_request(asked: Callable[..., list[dict[str, Any]]], file: Path) -> None:
    def ask(client: TestClient) -> None:
        client.post("/v1/sentiment", json={"inputs": [SECRET, "good"]}, headers={"X-Request-Id": "r-1"})
        client.post("/v1/sentiment", json={"inputs": SECRET, "model": "tinny"})
        client.get("/nowhere", headers={"Authorization": f"Bearer {SECRET}"})
        client.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 3, "min_tokens": 3, "stream": True})

    first, second, third, fourth = asked(ask)
    assert first.keys() == ALWAYS | {"model", "version", "inputs"}
    sent = json.dumps({"inputs": [SECRET, "good"]}, separators=(",", ":"))
    known = {"request_id": "r-1", "client": "testclient", "method": "POST", "path": "/v1/sentiment", "status": 200,
             "outcome": "ok", "bytes_in": len(sent), "model": "tiny", "inputs": 2}  # fmt: skip
    assert {name: first[name] for name in known} == known
    assert first["ms"] > 0
    assert first["bytes_out"] > 50
    assert (second["status"], second["outcome"]) == (404, "unknown-model")
    assert (third["method"], third["path"], third["outcome"]) == ("GET", "/nowhere", "unknown-path")
    assert (fourth["model"], fourth["inputs"], fourth["tokens"], fourth["status"]) == ("writer", 1, 3, 200)
    assert SECRET not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_texts_are_told_only_if_asked_for(asked: Callable[..., list[dict[str, Any]]]) -> None:
    (line,) = asked(lambda client: client.post("/v1/sentiment", json={"inputs": [SECRET]}), log_text=True)
    assert [one["text"] for one in line["given"]] == [SECRET]


def test_no_line_can_be_forged(asked: Callable[..., list[dict[str, Any]]], file: Path) -> None:
    forged = '"}\n{"client": "root"}\r\u2028\x85\x00\x1b[2J'
    lines = asked(lambda client: [
        client.get("/" + "".join(f"%{byte:02x}" for byte in forged.encode())),
        client.get("/x", headers={b"X-Request-Id": b'a"}\\n{"client'}),
        client.post("/v1/sentiment", content=b'{"inputs": "\\ud800", "model": "\\ud800"}',
                    headers={"Content-Type": "application/json"}),
        client.get("/" + "p" * 5000),
    ], log_text=True)  # fmt: skip
    assert len(lines) == 4
    assert lines[0]["path"] == "/" + forged
    assert all(line["client"] == "testclient" for line in lines)
    assert file.read_bytes().isascii()
    assert len(lines[3]["path"]) == 500


def test_the_key_s_name_is_told(asked: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    key = create(tmp_path / "keys", "anna")

    def ask(client: TestClient) -> None:
        client.get("/v1/models", headers={"X-API-Key": key})
        client.get("/v1/models")

    known, unknown = asked(ask, keys=tmp_path / "keys")
    assert (known["client"], known["outcome"]) == ("anna", "ok")
    assert (unknown["client"], unknown["outcome"], unknown["status"]) == ("testclient", "unauthorized", 401)


# A log that cannot be written


@pytest.fixture
def audit(file: Path) -> Iterator[AuditLog]:
    found = AuditLog(str(file))
    found.start()
    yield found
    found.close()


def test_a_full_disk_is_said_once_and_counted(
    audit: AuditLog, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None:
            pass

        close = flush

    audit.write({"n": 0})
    wait(lambda: file.read_text())
    handler = audit._handler
    healthy, handler.stream = handler.stream, Full()  # type: ignore[assignment]
    for n in range(1, 6):
        audit.write({"n": n})
    wait(lambda: audit.lost == 5)
    handler.stream = healthy
    audit.write({"n": 6})
    audit.write({"n": 7})
    audit.close()
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["n"] for line in told if "n" in line] == [0, 6, 7]
    assert told[1]["event"] == "lines-lost"
    assert told[1]["lines"] == 5
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "No space left" in caplog.text


def test_a_line_that_is_cut_does_not_spoil_the_next(audit: AuditLog, file: Path) -> None:
    class Nearly:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, data: bytes) -> int:
            return int(self.stream.write(data[:5]))

        def flush(self) -> None:
            pass

    handler = audit._handler
    healthy, handler.stream = handler.stream, Nearly(handler.stream)  # type: ignore[assignment]
    audit.write({"n": 1})
    wait(lambda: audit.lost)
    handler.stream = healthy
    audit.write({"n": 2})
    audit.close()
    cut, lost, whole = file.read_text().splitlines()
    assert cut == '{"n":'
    assert json.loads(lost)["lines"] == 1
    assert json.loads(whole) == {"n": 2}


def test_the_server_answers_while_the_disk_is_full(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no device that is always full")
    app = create_app(Settings(audit_log="/dev/full", access_log=False), go_live([str(tiny)], threads=1))
    with TestClient(app) as client:
        for _ in range(20):
            assert client.post("/v1/sentiment", json={"inputs": "good"}).status_code == 200
    assert len([record for record in caplog.records if record.name == "serving.logs"]) == 1


def test_a_file_that_was_rotated_is_opened_again(audit: AuditLog, file: Path) -> None:
    audit.write({"n": 1})
    wait(lambda: file.exists() and file.read_text())
    old = file.rename(file.with_suffix(".1"))
    audit.write({"n": 2})
    wait(lambda: file.exists() and file.read_text())
    file.unlink()
    audit.write({"n": 3})
    audit.close()
    assert old.read_text() == '{"n": 1}\n'
    assert file.read_text() == '{"n": 3}\n'


def test_a_log_that_stands_still_delays_nobody(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CAPACITY", 10)
    monkeypatch.setattr(logs, "PATIENCE", 0.05)
    audit = AuditLog(str(file))
    go, entered = threading.Event(), threading.Event()

    class Stuck:
        def write(self, data: bytes) -> int:
            entered.set()
            go.wait(20)
            return len(data)

        def flush(self) -> None:
            pass

    healthy, audit._handler.stream = audit._handler.stream, Stuck()  # type: ignore[assignment]
    audit.start()
    audit.write({"n": 0})
    assert entered.wait(20)
    for n in range(1, 100):
        audit.write({"n": n})
    assert audit.lost == 89  # one is being written, ten wait
    audit.close()
    audit._handler.stream = healthy
    go.set()
    wait(lambda: len(file.read_text().splitlines()) == 11)
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("lines", line.get("n")) for line in told] == [89, *range(1, 11)]
    healthy.close()  # type: ignore[union-attr]


def test_a_log_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SeqappError, match="No such file or directory; the path of a file fits"):
        create_app(Settings(audit_log=str(tmp_path / "nowhere" / "audit")), Models([]))


def test_logs_go_to_the_terminal_from_a_thread(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    logs.to_terminal()
    (door,) = root.handlers
    logging.getLogger("serving.test").warning("with %s", "arguments")
    door.close()
    assert capfd.readouterr().err.endswith(" WARNING serving.test: with arguments\n")


def test_what_uvicorn_says_of_our_own_doing_is_not_told_as_its_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.to_terminal()
    (door,) = logging.getLogger().handlers
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.warning("Invalid HTTP request received.")
    try:
        raise asyncio.CancelledError
    except asyncio.CancelledError as error:
        uvicorn.error("Exception in ASGI application\n", exc_info=error)
        uvicorn.error(traceback.format_exc())  # as starlette gives it to uvicorn
    logging.getLogger("urllib3.connectionpool").warning("Retrying (Retry(total=1)) after connection broken")
    uvicorn.error("Cancel %s running task(s), timeout graceful shutdown exceeded", 2)
    try:
        raise ValueError("a true one")
    except ValueError as error:
        uvicorn.error("Exception in ASGI application\n", exc_info=error)
    door.close()
    first, *rest = capfd.readouterr().err.splitlines()
    assert " WARNING uvicorn.error: 2 requests are cut off: " in first
    assert rest[0].endswith(" ERROR uvicorn.error: Exception in ASGI application")
    assert rest[-1] == "ValueError: a true one"


def test_probes_that_go_well_are_told_to_programs_only(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = ["/livez", "/ping", "/v2/health/live", "/metrics", "/v1/models", "/readyz"]
    caplog.set_level(logging.INFO, "serving.envelope")
    with TestClient(create_app(Settings(audit_log=str(file)), Models([]))) as client:
        codes = {path: client.get(path).status_code for path in paths}
    assert codes["/livez"] == 200
    assert codes["/readyz"] == 503
    told = {path for path in paths if f"GET '{path}'" in caplog.text}
    assert told == {path for path in paths if codes[path] != 200} | {"/v1/models"}
    assert [json.loads(line)["path"] for line in file.read_bytes().splitlines()] == paths


# The headers of answers


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), Models([])), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/nowhere", "/openapi.json", "/static/app.js", "/readyz"])
def test_every_answer_has_the_headers_that_browsers_heed(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in headers
    assert "Server" not in headers
    for name in ("Content-Security-Policy", "X-Request-Id"):
        assert len(headers.get_list(name)) == 1


def test_the_documents_need_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "https://" not in page.text
    assert "<script>" not in page.text
    linked = re.findall(r'(?:src|href|data-document)="([^"]+)"', page.text)
    assert len(linked) == 5
    for link in linked:
        assert client.get(f"/{link}").status_code == 200, link
    assert client.get("/static/swagger-ui/LICENSE").status_code == 200


def test_the_documents_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQAPP_DOCS_URL", "none")
    with TestClient(create_app(Settings(), Models([]))) as client:
        assert client.get("/docs").status_code == 404


def test_hsts_only_by_setting() -> None:
    with TestClient(create_app(Settings(hsts_seconds=31_536_000), Models([]))) as client:
        assert client.get("/livez").headers["Strict-Transport-Security"] == "max-age=31536000"


def test_no_other_origin_may_read_unless_it_is_named(client: TestClient, tmp_path: Path) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    assert "Access-Control-Allow-Origin" not in client.get("/livez", headers=asked).headers
    assert client.options("/v1/sentiment", headers=asked).status_code == 405
    create(tmp_path / "keys", "anna")
    app = create_app(Settings(cors_origins="https://a.example", keys=tmp_path / "keys"), Models([]))
    with TestClient(app) as open_client:
        preflight = open_client.options("/v1/sentiment", headers=asked)  # which never brings a key
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        refused = open_client.post("/v1/sentiment", json={"inputs": "a"}, headers=asked)
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example"
        other = open_client.options("/v1/sentiment", headers={**asked, "Origin": "https://b.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


def test_a_page_reads_why_it_is_refused_before_any_route() -> None:
    chosen: dict[str, Any] = {"trusted_hosts": "a.example", "max_bytes": 10}
    asked = {"Origin": "https://b.example", "Host": "a.example"}
    refused = [({"Host": "x"}, 421), ({"Content-Length": "11"}, 413), ({"X-Request-Timeout": "x"}, 422)]
    with TestClient(create_app(Settings(cors_origins="https://b.example", **chosen), Models([]))) as client:
        for headers, status in refused:
            answer = client.post("/v1/sentiment", headers=asked | headers)
            assert answer.status_code == status
            assert answer.headers.get_list("Access-Control-Allow-Origin") == ["https://b.example"]


PAGES = [
    ({}, True),
    ({"Origin": "http://testserver"}, True),
    ({"Origin": "https://TestServer"}, True),
    ({"Origin": "http://testserver:81"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": "null", "Host": ""}, False),
    # A proxy may have changed Host, but a page cannot change what its browser says of it.
    ({"Origin": "https://a.example", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"}, False),
    ({"Origin": "https://a.example", "Sec-Fetch-Site": "same-site"}, False),
]


@pytest.mark.parametrize(("headers", "taken"), PAGES)
def test_without_keys_no_page_of_another_origin_may_post(
    client: TestClient, headers: dict[str, str], taken: bool
) -> None:
    answer = client.post("/nowhere", headers=headers)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (
        (404, "unknown-path") if taken else (403, "forbidden")
    )


@pytest.mark.parametrize("origins", ["https://a.example", "*"])
def test_but_one_that_is_named(origins: str) -> None:
    page = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
    with TestClient(create_app(Settings(cors_origins=origins), Models([]))) as client:
        assert client.post("/v1/models/reload", headers=page, json={}).status_code == 200
        simple = client.post("/v1/models/reload", headers={**page, "Content-Type": "text/plain"})
        assert simple.json()["type"] == "urn:problem-type:seqapp:unsupported-media-type"
        assert client.post("/v1/models/reload").status_code == 200  # no page, and no body


def test_with_keys_a_page_needs_one(tmp_path: Path) -> None:
    key = create(tmp_path / "keys", "anna")
    with TestClient(create_app(Settings(keys=tmp_path / "keys"), Models([]))) as client:
        headers = {"Origin": "https://a.example", "X-API-Key": key}
        assert client.post("/nowhere", headers=headers).status_code == 404


def test_without_keys_this_machine_alone_is_asked_by_its_own_names(tmp_path: Path) -> None:
    assert Settings().trusted_hosts == []
    with TestClient(create_app(Settings(host="box").at("127.0.0.2"), Models([]))) as client:
        for host in ("localhost", "LOCALHOST:8000", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "127.0.0.2", "box"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "evillocalhost", "10.0.0.1", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 421, host
    named = Settings(trusted_hosts="a.example")
    keyed = Settings(keys=tmp_path / "keys")
    for settings, address in ((named, "127.0.0.1"), (keyed, "::1"), (Settings(), "0.0.0.0"), (Settings(), "fe80::1%x")):
        assert settings.at(address) is settings


def test_only_trusted_hosts_are_answered() -> None:
    app = create_app(Settings(trusted_hosts="api.example.org *.Example.com localhost [::1]"), Models([]))
    with TestClient(app) as client:
        for host in ("api.example.org", "API.example.org:8000", "a.example.com", "localhost:1", "[::1]:8000"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host
        for host in ("example.org", "evil.com", "aexample.com", "api.example.org.evil.com", "x", "", ":80"):
            answer = client.get("/v1/models", headers={"Host": host})
            assert (answer.status_code, answer.json()["title"]) == (421, "Another host was asked for"), host
        assert client.get("/livez", headers={"Host": "10.0.0.7:8000"}).status_code == 200


# How long an answer may take


@pytest.mark.parametrize(
    ("sent", "seconds"), [(None, 30), ("2.5", 2.5), ("30", 30), ("31", 30), ("999999999", 30), ("0.000001", 1e-6)]
)
def test_the_deadline_is_the_client_s_within_the_server_s(sent: str | None, seconds: float) -> None:
    app = create_app(Settings(deadline_seconds=30), Models([]))
    found: list[float] = []

    async def seen(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["state"]["deadline"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    app.router.routes.insert(0, Mount("/deadline", seen))
    with TestClient(app) as client:
        before = monotonic()
        client.get("/deadline/", headers={"X-Request-Timeout": sent} if sent else {})
        assert before + seconds <= found[0] <= monotonic() + seconds


@pytest.mark.parametrize("sent", ["0", "-1", "soon", "nan", "inf", "1e3", "1_0", "+1", "9999999999"])
def test_a_timeout_that_is_none_is_told(client: TestClient, sent: str) -> None:
    answer = client.get("/v1/models", headers={"X-Request-Timeout": sent})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "X-Request-Timeout"
    assert "seconds in digits fit" in answer.json()["detail"]


def test_the_observer_is_told_routes_not_paths(tiny: Path) -> None:
    told: list[Any] = []

    class Counting(Observer):
        def request(self, method: str, route: str, status: int, seconds: float) -> None:
            assert seconds > 0
            told.append((method, route, status))

        def refused(self, kind: str) -> None:
            told.append(kind)

    app = create_app(Settings(), go_live([str(tiny)], threads=1), Counting())
    with TestClient(app) as client:
        client.get("/v1/models/tiny/card")
        client.head("/livez")
        client.get("/v1/nowhere")
        client.post("/v1/sentiment", json={})
    assert told == [("GET", "/v1/models/{model_id:path}/card", 200), ("HEAD", "/livez", 200), ("GET", "", 404),
                    "unknown-path", ("POST", "/v1/sentiment", 422), "invalid-request"]  # fmt: skip


def test_the_page_tells_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`SEQAPP_[^|]*`) \| ([^|]*) \|", page, flags=re.MULTILINE)
    told = {
        name: default.strip()
        for names, defaults in rows
        for name, default in zip(re.findall(r"`SEQAPP_(\w+)`", names), defaults.split(", "), strict=True)
    }
    assert len(told) > 20
    for name, default in told.items():
        known = Settings.model_fields[name.lower()].default
        if known in (None, []):
            assert default in ("none", "all") or default.startswith(("those of", "a quarter of")), name
        else:
            assert default == (str(known).lower() if isinstance(known, bool) else str(known)), name
