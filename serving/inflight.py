"""How many requests one process has in hand."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import ProblemError, respond

APART = 0.0005
"""Seconds between refusals, about."""


class InFlight:
    """ASGI middleware that refuses requests while too many are in hand, and bodies that do not come in time.

    It is for the case that the event loop is what cannot keep up: a refusal costs it little. Of many, each waits for
    those before it, so that clients that ask again at once do not take the time of requests that were accepted. Only
    POST counts, so that probes are answered whatever else waits.

    A request is in hand once its body is whole, so that nobody takes the places of others by sending slowly. It is
    refused before its body is read if there is no place even then. The body must be whole by the request's deadline.

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
            return
        if self.count >= self.most:
            await respond(scope, await self._full())(scope, receive, send)
            return
        deadline = scope["state"].get("deadline")
        in_hand = False

        async def timely() -> Message:
            nonlocal in_hand
            if in_hand:
                return await receive()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ProblemError("request-timeout", "the body was not whole by the request's deadline") from None
            if message["type"] == "http.request" and not message.get("more_body", False):
                if self.count >= self.most:
                    raise await self._full()
                self.count += 1
                in_hand = True
            return message

        try:
            await self.app(scope, timely, send)
        finally:
            self.count -= in_hand

    async def _full(self) -> ProblemError:
        """The refusal, when its turn has come."""
        self.refusing += 1
        try:
            await asyncio.sleep(APART * self.refusing)
        finally:
            self.refusing -= 1
        return ProblemError("overloaded", f"{self.most} requests are in hand already", headers={"Retry-After": "1"})
