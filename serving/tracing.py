"""OpenTelemetry spans of requests: FastAPI makes them itself; this says where they go, and adds the parts.

The span of a request has the children ``queue`` and ``model`` where the answer tells their times (``Server-Timing``),
and the answer has a ``traceresponse`` header (W3C Trace Context, level 2).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from time import time_ns
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seqapp import __version__
from seqapp.errors import SeqappError
from serving.ratelimit import PROBES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CONSOLE = "console"


def provider(target: str) -> TracerProvider:
    """What makes spans and sends them on; the SDK's own variables, such as ``OTEL_TRACES_SAMPLER``, count.

    Args:
        target: ``console``, or the OTLP endpoint of a collector, such as ``http://localhost:4318``.

    Raises:
        SeqappError: if it is neither, or no exporter is installed.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    processor: SpanProcessor
    if target == CONSOLE:
        processor = SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr))
    elif target.startswith(("http://", "https://")):
        try:
            exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter
        except ImportError:
            raise SeqappError("SEQAPP_TRACES names a collector, and the exporter is not installed: "
                              "pip install 'seqapp[otel]'; console needs none") from None  # fmt: skip
        processor = BatchSpanProcessor(exporter(endpoint=f"{target.rstrip('/')}/v1/traces"))
    else:
        raise SeqappError(f"SEQAPP_TRACES is {target!r}; console fits, or an endpoint such as http://localhost:4318")
    name = os.environ.get("OTEL_SERVICE_NAME", "seqapp")
    found = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    found.add_span_processor(processor)
    return found


def telemetry(tracer_provider: TracerProvider | None) -> TelemetryConfig:
    """What FastAPI shall do: nothing, or spans of requests, without those of probes and of its own inner steps."""
    off: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False,
                            "auto_configure": False}  # fmt: skip
    if tracer_provider is None:
        return off
    return {**off, "tracing": True, "tracer_provider": tracer_provider, "exclude": _is_probe}


class Named:
    """ASGI middleware, inside of all others, that names the span of a request after the route that answers it.

    FastAPI does so where it matches the path itself (not :class:`serving.routes.direct.Direct`).

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            route = scope.get("route")
            if message["type"] == "http.response.start" and route is not None:
                from opentelemetry import trace

                span = trace.get_current_span()
                span.update_name(f"{scope['method']} {route.path}")
                span.set_attribute("http.route", route.path)
            await send(message)

        await self.app(scope, receive, told)


class Parts:
    """ASGI middleware that adds to the span of a request what its answer tells.

    Args:
        app: what answers.
        tracer_provider: makes the spans.
    """

    def __init__(self, app: ASGIApp, *, tracer_provider: TracerProvider) -> None:
        self.app = app
        self._tracer = tracer_provider.get_tracer("seqapp", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_probe(scope):
            await self.app(scope, receive, send)
            return
        from opentelemetry import trace

        span = trace.get_current_span()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                context = span.get_span_context()
                headers["traceresponse"] = (
                    f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
                )
                span.set_attribute("seqapp.request_id", headers.get("x-request-id", ""))
                if "x-model-version" in headers:
                    span.set_attribute("seqapp.model_version", headers["x-model-version"])
                self._add(headers)
            await send(message)

        await self.app(scope, receive, told)

    def _add(self, headers: Headers) -> None:
        """Spans one after the other that end now: the answer says how long each took, and writing it took no time."""
        took: list[tuple[str, int]] = []
        for part in headers.get("server-timing", "").split(","):
            name, _, milliseconds = part.strip().partition(";dur=")
            if milliseconds:
                took.append((name, int(1e6 * float(milliseconds))))
        begin = time_ns() - sum(nanoseconds for _, nanoseconds in took)
        for name, nanoseconds in took:
            self._tracer.start_span(name, start_time=begin).end(begin + nanoseconds)
            begin += nanoseconds


def _is_probe(scope: Any) -> bool:
    return scope.get("path") in PROBES or scope.get("path") == "/metrics"
