"""One router per subject, and what their handlers ask for.

A module whose routes ask the models of a task names it in ``TASK``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from serving.models import Models
from serving.problems import ProblemError
from serving.settings import Settings


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _deadline(request: Request) -> float | None:
    found: float | None = request.scope["state"].get("deadline")
    return found


LiveModels = Annotated[Models, Depends(_models)]
ServerSettings = Annotated[Settings, Depends(_settings)]
Deadline = Annotated[float | None, Depends(_deadline)]
"""When the answer must be there, in seconds of ``time.monotonic``."""
ENGINE_PROBLEMS = ("overloaded", "not-ready", "deadline-exceeded")
"""Kinds of problems of a request that an engine does not answer."""
TIMING: dict[str, Any] = {
    "Server-Timing": {
        "description": "milliseconds: `queue;dur=0.1, model;dur=2.5`; of a stream the first alone",
        "schema": {"type": "string"},
    },
    "X-Model-Version": {
        "description": "the version that answered, as `GET /v1/models` tells it",
        "schema": {"type": "string"},
    },
}
"""The OpenAPI ``headers`` of an answer that tells how long it took."""

WATCH_AFTER = 0.05
"""Seconds after which it is watched whether a client still waits for its answer; most answers are quicker."""
MUCH = 500
"""Things in an answer that take the event loop about a millisecond to write down."""

T = TypeVar("T")


async def awaited(request: Request, answer: Awaitable[T]) -> T:
    """The answer that a client waits for; one that leaves cancels it, so that its work stops.

    Args:
        request: whose body has been read.
        answer: what is awaited.

    Raises:
        ProblemError: ``client-gone``, which nobody reads.
    """
    loop, asking = asyncio.get_running_loop(), asyncio.current_task()
    assert asking is not None
    watching: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        asking.cancel()

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    timer = loop.call_later(WATCH_AFTER, begin)
    try:
        return await answer
    except asyncio.CancelledError:
        if not gone or asking.uncancel():
            raise
        raise ProblemError("client-gone", "the client has left") from None
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


async def written(size: int, write: Callable[[], T]) -> T:
    """What ``write`` returns; a long answer is written beside the event loop.

    Args:
        size: about how many things the answer holds.
        write: writes it.
    """
    return write() if size <= MUCH else await run_in_threadpool(write)
