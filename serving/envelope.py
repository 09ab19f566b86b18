"""What surrounds every request: its id, the size of its body, the log line, and the last word on a failure."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import ProblemError, respond

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""A client's ``X-Request-Id`` is kept if it is this: printable ASCII without spaces, at most 128 characters."""


class Envelope:
    """ASGI middleware; it stands outside of everything that may fail.

    FastAPI's own ``max_body_size`` is not used: its 413 is written as plain text outside of every middleware.

    Args:
        app: what answers.
        max_bytes: the largest body.
        access_log: log one line per request.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, access_log: bool) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        method, status, received = scope["method"], 0, 0
        # Whatever answers GET answers HEAD; the server leaves the body out.
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            declared = headers.get("content-length", "")
            if declared.isdecimal() and int(declared[:20]) > self.max_bytes:
                await respond(scope, self._too_large())(scope, receive, labelled)
            else:
                await self.app(scope, limited, labelled)
        except asyncio.CancelledError:  # the server stops and the time for running requests is over
            if status:
                raise
            stopping = ProblemError("not-ready", "the server is stopping", headers={"Retry-After": "5"})
            await respond(scope, stopping)(scope, receive, labelled)
        except Exception:
            log.exception("%s %r failed, request %s", method, scope["path"], request_id)
            if status:  # too late for another answer: the server cuts the connection
                raise
            failure = ProblemError("internal-error", f"this is not your fault; the server's log has it as {request_id}")
            await respond(scope, failure)(scope, receive, labelled)
        finally:
            if self.access_log:
                took = 1000 * (perf_counter() - began)
                log.info("%s %r %d %.1f ms, request %s", method, scope["path"], status, took, request_id)

    def _too_large(self) -> ProblemError:
        return ProblemError("body-too-large", f"the body is larger than {self.max_bytes} bytes")
