"""The application: routes, errors and documents around live models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from seqapp import __version__
from serving import problems
from serving.envelope import Envelope
from serving.models import Models
from serving.routes import completions, health, models, sentiment, translation
from serving.settings import Settings

STATIC = Path(__file__).parent / "static"
ROUTES = (sentiment, completions, translation, models, health)
ANSWERED = frozenset(str(module.TASK) for module in ROUTES if hasattr(module, "TASK"))
"""The tasks whose models some route asks."""

# The playground needs nothing from elsewhere and inserts text only as text; this holds it to that.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(settings: Settings, live: Models) -> FastAPI:
    """The application that answers from ``live``; it closes them when it shuts down.

    Args:
        settings: limits and paths; host and port are the caller's business.
        live: what :func:`serving.models.go_live` opened.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        live.close()

    app = _App(
        title="seqapp",
        summary="Small recurrent sequence models over HTTP",
        description='Errors are `application/problem+json` (RFC 9457), and `{"error": {...}}` under '
        "`/v1/completions`. `X-Request-Id` comes back as it was sent, "
        "or as a new one.",
        version=__version__,
        docs_url=settings.docs_url,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        responses={"default": {**problems.documented("internal-error")[500], "description": "any other error"}},
    )
    app.state.settings = settings
    app.state.models = live
    problems.install(app)
    app.add_middleware(Envelope, max_bytes=settings.max_bytes, access_log=settings.access_log)
    for module in ROUTES:
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def playground() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document with the problem schemas and the request id, which concern every operation."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(problems.schemas())
            text = {"schema": {"type": "string", "maxLength": 128}}
            sent = "printable ASCII without spaces; anything else is replaced"
            components["parameters"] = {
                "RequestId": {"name": "X-Request-Id", "in": "header", "description": sent, **text}
            }
            components["headers"] = {"RequestId": {"description": "the id of the request, as the log has it", **text}}
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/RequestId"})
                    for response in operation["responses"].values():
                        headers = response.setdefault("headers", {})
                        headers["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
        return super().openapi()


def _operation_id(route: APIRoute) -> str:
    return route.name
