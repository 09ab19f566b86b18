"""How many requests one process has in hand."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import ProblemError, respond

APART = 0.001
"""Seconds between refusals, about."""


class InFlight:
    """ASGI middleware that refuses requests, before their bodies are read, while too many are in hand.

    It is for the case that the event loop is what cannot keep up: a refusal costs it little. Of many, each waits for
    those before it, so that clients that ask again at once do not take the time of requests that were accepted. Only
    POST counts, so that probes are answered whatever else waits.

    Args:
        app: what answers.
        most: requests at once.
    """

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app, self.most = app, most
        self.count = self.refusing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST":
            await self.app(scope, receive, send)
        elif self.count >= self.most:
            full = ProblemError("overloaded", f"{self.most} requests are in hand already", headers={"Retry-After": "1"})
            self.refusing += 1
            try:
                await asyncio.sleep(APART * self.refusing)
            finally:
                self.refusing -= 1
            await respond(scope, full)(scope, receive, send)
        else:
            self.count += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.count -= 1
