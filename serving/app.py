"""The application: routes, errors and documents around live models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute, Match
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from seqapp import __version__
from seqapp.errors import SeqappError
from serving import problems, tracing
from serving.auth import OPEN, Auth
from serving.envelope import Envelope
from serving.inflight import InFlight
from serving.keys import Keys
from serving.logs import AuditLog
from serving.metrics import Metrics
from serving.models import Models
from serving.observer import Observer
from serving.ratelimit import RateLimit, Table
from serving.reload import Reloader
from serving.routes import completions, health, inference, invocations, models, sentiment, translation
from serving.routes.direct import Direct
from serving.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

STATIC = Path(__file__).parent / "static"
ROUTES = (sentiment, completions, translation, models, inference, invocations, health)
ANSWERED = frozenset(str(module.TASK) for module in ROUTES if hasattr(module, "TASK"))
"""The tasks whose models some route asks."""
TASKS = {
    route.path: str(module.TASK)
    for module in ROUTES
    if hasattr(module, "TASK")
    for route in module.router.routes
    if isinstance(route, APIRoute)
}
"""The task that a path asks."""

# The playground needs nothing from elsewhere and inserts text only as text; this holds it to that.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


# Swagger UI writes styles into its page and draws with data: pictures.
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "img-src 'self'", "img-src 'self' data:"
)
DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>seqapp API</title>
<link rel="icon" href="{up}static/icon.svg">
<link rel="stylesheet" href="{up}static/swagger-ui/swagger-ui.css">
<script src="{up}static/swagger-ui/swagger-ui-bundle.js" defer></script>
<script src="{up}static/docs.js" data-document="{up}openapi.json" defer></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""


def create_app(
    settings: Settings,
    live: Models,
    observer: Observer | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The application that answers from ``live``; it closes them when it shuts down.

    Args:
        settings: limits and paths; host and port are the caller's business.
        live: what :func:`serving.models.go_live` opened.
        observer: told of every answer; by default one that counts for ``/metrics``.
        tracer_provider: makes the spans of requests; by default as the settings say. It is shut down, too.

    Raises:
        SeqappError: if the file of keys, the audit log, the target of traces or the path of the documents does not fit.
    """
    if tracer_provider is None and settings.traces:
        tracer_provider = tracing.provider(settings.traces)
    audit = AuditLog(settings.audit_log) if settings.audit_log else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if audit:
            audit.start()
        app.state.reloader = reloader = Reloader(
            live,
            poll_seconds=settings.poll_seconds,
            drain_seconds=settings.swap_seconds,
            patience=settings.reload_seconds,
            state=settings.state,
        )
        async with reloader.running():
            yield
        live.close()
        if audit:
            audit.close()
        if tracer_provider:
            await run_in_threadpool(tracer_provider.shutdown)

    app = _App(
        title="seqapp",
        summary="Small recurrent sequence models over HTTP",
        description='Errors are `application/problem+json` (RFC 9457), and `{"error": {...}}` under '
        "`/v1/completions`. `X-Request-Id` comes back as it was sent, "
        "or as a new one.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=tracing.telemetry(tracer_provider),
        generate_unique_id_function=_operation_id,
        responses={"default": {**problems.documented("internal-error")[500], "description": "any other error"}},
    )
    app.state.settings = settings
    app.state.models = live
    app.state.stopping = False
    app.state.metrics = observer if isinstance(observer, Metrics) else Metrics(TASKS)
    problems.install(app)
    app.add_middleware(Direct, owner=app, routes=_routes())
    if tracer_provider:
        app.add_middleware(tracing.Named)
    _guard(app, settings, audit, observer or app.state.metrics)
    if tracer_provider:
        app.add_middleware(tracing.Parts, tracer_provider=tracer_provider)
    for module in ROUTES:
        app.include_router(module.router)
    # Swagger UI, Apache License 2.0; its licence stands beside its files.
    app.mount("/static/swagger-ui", StaticFiles(packages=[("fastapi_standalone_docs", "static/swagger")]))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def playground() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

    if settings.docs_url:
        if any(_answers(route, settings.docs_url) for route in app.routes):
            raise SeqappError(f"docs_url: something else answers at {settings.docs_url}; another path fits")
        page = DOCS.format(up="../" * (settings.docs_url.count("/") - 1))

        @app.get(settings.docs_url, include_in_schema=False)
        async def docs() -> HTMLResponse:
            return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})

    return app


def _answers(route: BaseRoute, path: str) -> bool:
    """Whether ``route`` takes some method at ``path``."""
    asked = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    return route.matches(asked)[0] is not Match.NONE


def _routes() -> list[APIRoute]:
    return [route for module in ROUTES for route in module.router.routes if isinstance(route, APIRoute)]


def _guard(app: FastAPI, settings: Settings, audit: AuditLog | None, observer: Observer | None) -> None:
    """Put around ``app`` what the settings ask for, the innermost first."""
    app.add_middleware(InFlight, most=settings.max_in_flight)
    if settings.rate or settings.rate_inputs:
        app.add_middleware(
            RateLimit,
            table=Table(settings.state / "limits" if settings.state else None),
            rate=settings.rate,
            burst=settings.rate_burst,
            inputs=settings.rate_inputs,
            inputs_burst=settings.rate_inputs_burst,
        )
    if settings.keys:
        pages = [settings.docs_url] if settings.docs_url else []
        app.add_middleware(Auth, keys=Keys(settings.keys), pages=pages, metrics=settings.metrics_access)
    around: dict[str, Any] = {}
    if settings.cors_origins:
        around["around"] = partial(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-Id", "X-Request-Timeout"],
            expose_headers=["X-Request-Id", "X-Model-Version", "Server-Timing", "Retry-After", "RateLimit"],
        )
    app.add_middleware(
        Envelope,
        max_bytes=settings.max_bytes,
        deadline_seconds=settings.deadline_seconds,
        hosts=settings.trusted_hosts,
        hsts_seconds=settings.hsts_seconds,
        origins=settings.cors_origins,
        keyed=settings.keys is not None,
        **around,
        access_log=settings.access_log,
        audit=audit,
        log_text=settings.log_text,
        observer=observer,
    )
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document with the problem schemas and the request id, which concern every operation."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            bodies = [body for module in ROUTES for body in getattr(module, "SCHEMAS", ())]
            components.setdefault("schemas", {}).update(problems.schemas(bodies))
            components["securitySchemes"] = {
                "Bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
                "Key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key"},
            }
            # A server without keys asks for none: the empty object says so.
            document["security"] = [{"Bearer": []}, {"Key": []}, *([] if self.state.settings.keys else [{}])]
            text = {"schema": {"type": "string", "maxLength": 128}}
            sent = "printable ASCII without spaces; anything else is replaced"
            components["parameters"] = {
                "RequestId": {"name": "X-Request-Id", "in": "header", "description": sent, **text},
                "RequestTimeout": {
                    "name": "X-Request-Timeout",
                    "in": "header",
                    "description": "seconds after which the answer is of no use; 504 is answered then",
                    "schema": {"type": "number", "minimum": 0.001, "maximum": 1_000_000},
                },
            }
            components["headers"] = {"RequestId": {"description": "the id of the request, as the log has it", **text}}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if path in OPEN:
                        operation["security"] = []
                    operation.setdefault("parameters", []).extend(
                        {"$ref": f"#/components/parameters/{name}"} for name in components["parameters"]
                    )
                    for response in operation["responses"].values():
                        headers = response.setdefault("headers", {})
                        headers["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
        return super().openapi()


def _operation_id(route: APIRoute) -> str:
    return route.name
