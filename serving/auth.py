"""Who may call: the middleware that asks for a key."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.keys import Keys
from serving.problems import ProblemError, respond

OPEN = frozenset({"/", "/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/openapi.json"})
"""Paths that need no key, beside the pages: probes, and what any copy of this program tells."""
ADMIN = frozenset({"/v1/models/reload"})
"""Paths that need the key of an admin."""
METRICS = "/metrics"
STATIC = "/static/"
"""Everything below needs no key."""

_CHALLENGE = 'Bearer realm="seqapp"'


class Auth:
    """ASGI middleware: lets in those who send a known key, and writes its name into the state as ``client``.

    Args:
        app: what answers.
        keys: those who may call.
        pages: further paths without a key, such as the documentation's.
        metrics: who may read the metrics: ``open``, ``user`` or ``admin``.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, pages: Iterable[str] = (), metrics: str = "user") -> None:
        self.app = app
        self.keys = keys
        self.open = OPEN | set(pages) | ({METRICS} if metrics == "open" else set())
        self.admin = ADMIN | ({METRICS} if metrics == "admin" else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        if scope["type"] != "http" or path in self.open or path.startswith(STATIC):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope, path)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await respond(scope, refusal)(scope, receive, send)

    def _refusal(self, scope: Scope, path: str) -> ProblemError | None:
        presented = _presented(scope)
        if not presented:
            detail = "send a key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`"
            return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": _CHALLENGE})
        key = self.keys.find(presented)
        if key is None:
            challenge = f'{_CHALLENGE}, error="invalid_token"'
            detail = "this key is not known, or has expired; whoever runs this server can make another"
            return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": challenge})
        scope["state"]["client"] = key.name
        if path in self.admin and key.role != "admin":
            return ProblemError(
                "forbidden", f"{path} needs the key of an admin; the key {key.name!r} is a {key.role}'s"
            )
        return None


def route_path(scope: Scope) -> str:
    """The path as the routes have it: without what a proxy or a mount put before."""
    path: str = scope.get("path", "")
    root = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def _presented(scope: Scope) -> str:
    """The key that a request brings, or an empty text."""
    headers = dict(scope["headers"])
    given: bytes = headers.get(b"x-api-key", b"")
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        given = credentials
    return given.strip().decode("latin-1")
