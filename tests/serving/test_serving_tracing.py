"""Spans of requests: whose child they are, what their parts are, and nothing at all when nobody asked for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from seqapp.errors import SeqappError
from serving import tracing
from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced(settings: Settings, tiny: Path, writers: list[str]) -> Iterator[tuple[TestClient, InMemorySpanExporter]]:
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    live = go_live([str(tiny), writers[0]], threads=1)
    with TestClient(create_app(settings, live, tracer_provider=provider), raise_server_exceptions=False) as client:
        yield client, kept


def test_a_request_is_a_span_of_the_callers_trace_with_its_wait_and_its_model(
    traced: tuple[TestClient, InMemorySpanExporter],
) -> None:
    client, kept = traced
    answer = client.post(
        "/v1/sentiment", json={"inputs": "good soup"}, headers={"traceparent": CALLER, "X-Request-Id": "mine"}
    )
    spans = {span.name: span for span in kept.get_finished_spans()}
    request, queue, model = spans["POST /v1/sentiment"], spans["queue"], spans["model"]
    assert len(spans) == 3
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {CALLER.split("-")[1]}
    assert answer.headers["traceresponse"] == f"00-{CALLER.split('-')[1]}-{request.context.span_id:016x}-01"
    assert request.attributes is not None
    assert request.attributes["seqapp.request_id"] == answer.headers["x-request-id"] == "mine"
    assert request.attributes["http.response.status_code"] == 200
    for part in (queue, model):
        assert part.parent is not None
        assert part.parent.span_id == request.context.span_id
    # One after the other, and both within the request.
    times = [request.start_time, queue.start_time, queue.end_time, model.start_time, model.end_time, request.end_time]
    assert times == sorted(time or 0 for time in times)
    told = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    assert milliseconds(model) == pytest.approx(float(told["model"]), abs=0.001)
    assert "good soup" not in "".join(span.to_json() for span in spans.values())


def milliseconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e6


def test_refused_requests_and_streams_are_spans_and_probes_are_none(
    traced: tuple[TestClient, InMemorySpanExporter],
) -> None:
    client, kept = traced
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in client.get(path).headers
    assert not kept.get_finished_spans()
    assert "traceresponse" in client.post("/v1/sentiment", json={"inputs": ""}).headers
    client.post("/v1/completions", json={"prompt": "the", "max_tokens": 3, "stream": True})
    refused, stream = (span for span in kept.get_finished_spans() if span.name.startswith("POST"))
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 422
    assert stream.name == "POST /v1/completions"
    assert [span.name for span in kept.get_finished_spans() if span.name in ("queue", "model")] == ["queue"]


def test_a_target_that_does_not_fit_is_told() -> None:
    with pytest.raises(SeqappError, match="console fits"):
        tracing.provider("collector:4318")


def test_without_traces_the_sdk_is_not_even_imported(settings: Settings, tiny: Path) -> None:
    before = forget()
    try:
        app = import_module("serving.app")
        assert app.create_app is not create_app  # it was imported anew
        live = import_module("serving.models").go_live([str(tiny)], threads=1)
        with TestClient(app.create_app(import_module("serving.settings").Settings(), live)) as client:
            assert client.get("/readyz").status_code == 200
            answer = client.post("/v1/sentiment", json={"inputs": "good"})
            assert answer.status_code == 200
            assert "traceresponse" not in answer.headers
        assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
    finally:
        forget()
        sys.modules.update(before)


def forget() -> dict[str, ModuleType]:
    """The server's modules and those of the SDK, which are imported anew from now on."""
    names = [name for name in sys.modules if f"{name}.".startswith(("serving.", "opentelemetry.sdk."))]
    return {name: sys.modules.pop(name) for name in names}
