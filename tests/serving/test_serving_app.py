"""The other paths, the request id, the page and the OpenAPI document."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from serving.app import STATIC


def test_models_are_listed_in_order_with_figures_and_card(client: TestClient, card: str) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "other"]
    assert [model["default"] for model in listed["data"]] == [True, False]
    model = listed["data"][0]
    assert model["task"] == "sentiment"
    assert re.fullmatch("[0-9a-f]{12}", model["version"])
    assert model["alias"] is None
    assert model["metrics"] == {"validation": {"accuracy": 0.75, "nll": 0.6}, "test": {"accuracy": 0.74}}
    assert model["parameters"] > 0
    loaded = datetime.fromisoformat(model["loaded_at"])
    assert timedelta(0) <= datetime.now(UTC) - loaded < timedelta(minutes=5)
    assert int(loaded.timestamp()) == model["created"]
    answer = client.get(model["card"])
    assert answer.text == card
    assert answer.headers["Content-Type"] == "text/markdown; charset=utf-8"


def test_the_card_of_an_unknown_model(client: TestClient) -> None:
    assert client.get("/v1/models/a/b/card").json()["detail"] == "no model is called 'a/b'; known: tiny, other"


def test_probes(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    ready = {"status": "ready", "models": ["tiny", "other"], "refused": {}, "kept": {}, "cached": {}}
    assert client.get("/readyz").json() == ready


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/", "/v1/models", "/static/app.js"])
def test_head_is_answered_where_get_is(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("given", ["abc-1", "!~", "x" * 128])
def test_a_fitting_request_id_comes_back(client: TestClient, given: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given
    assert client.get("/nowhere", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"caf\xe9", b"a\tb"])
def test_any_other_request_id_is_replaced(client: TestClient, given: bytes) -> None:
    ids = {client.get("/livez", headers={b"X-Request-Id": given}).headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_a_log_line_per_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "serving")
    client.get("/no%0Awhere", headers={"X-Request-Id": "r-7"})
    (line,) = [record.message for record in caplog.records if record.name == "serving.envelope"]
    assert re.fullmatch(r"GET '/no\\nwhere' 404 \d+\.\d ms, request r-7", line)


def test_the_playground_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"static/app.js", "static/style.css", "static/icon.svg"} <= set(linked)
    for link in linked:
        assert client.get(f"/{link}").status_code == 200, link
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file


def test_docs(client: TestClient) -> None:
    assert "swagger-ui" in client.get("/docs").text
