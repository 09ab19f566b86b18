"""A tracking server that is away for a while: how that is told from a refusal, and calls that wait for it.

Every call that may be made twice without harm is repeated while the server is away. A call that makes something new is
not, since its answer may be what was lost: :func:`once` looks for what it made before it is made again.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from seqapp.errors import SeqappError
from seqapp.references import causes, connect, masked, reason, tracking_uri

# MLflow's own repetition would hide an outage for a while, and would send again what must not be made twice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT, DEFAULT_WAIT = "SEQAPP_TRACKING_WAIT", 300.0
"""Environment variable: seconds to wait for a server that is away where nothing can be done without it."""

BUSY = (408, 429)
"""Codes of HTTP below 500 that ask to come again."""


class Unreachable(SeqappError):
    """The tracking server was away for longer than anybody wanted to wait."""


_limit: ContextVar[float] = ContextVar("limit", default=math.inf)


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Within, no call waits longer for a server that is away."""
    before = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(before)


def longest_wait() -> float:
    """Seconds from ``SEQAPP_TRACKING_WAIT``, or 300; at most what :func:`no_longer_than` says.

    Raises:
        SeqappError: if that is no number of seconds.
    """
    text = os.environ.get(WAIT) or str(DEFAULT_WAIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SeqappError(f"{WAIT}: a number of seconds from 0 on fits, such as 300, not {text!r}")
    return min(seconds, _limit.get())


def pauses() -> Iterator[float]:
    """Seconds between attempts: from a quarter, each twice the one before, up to ten."""
    seconds = 0.25
    while True:
        yield seconds
        seconds = min(10.0, 2 * seconds)


def is_away(error: BaseException) -> bool:
    """Whether ``error`` says that the server cannot answer now; otherwise it has refused, and will again.

    Away are: no connection, one that broke, no answer in time, a code of HTTP from 500 on or in :data:`BUSY`, and a
    database that is locked or gone. A certificate that is not trusted is a refusal, and so are all other codes.
    """
    import requests
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError

    chain = causes(error)
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        if isinstance(cause, sqlite3.Error):
            return any(text in str(cause) for text in ("locked", "unable to open"))
    for cause in chain:
        if isinstance(cause, RestException):
            return _comes_again(int(cause.get_http_status_code()))  # type: ignore[no-untyped-call]
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            return _comes_again(cause.response.status_code)
        lost = (
            requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError,
            requests.exceptions.ChunkedEncodingError, OperationalError, ConnectionError, TimeoutError,
        )  # fmt: skip
        if isinstance(cause, lost):
            return True
        if isinstance(cause, MlflowException) and cause.error_code == "TEMPORARILY_UNAVAILABLE":
            return True
    return False


def patiently(call: Callable[[], T]) -> T:
    """``call()``, made again while the server is away, for :func:`longest_wait` at most.

    Raises:
        Unreachable: when that time is over.
        Exception: what ``call`` raises when it is refused.
    """
    lost = None
    told = False
    for pause in pauses():
        try:
            answer = call()
        except Exception as error:
            if not is_away(error):
                raise
            limit = longest_wait()
            if lost is None:
                # Nothing is said of the first: a server may close a connection just when it is used again.
                lost = time.monotonic()
            elif not told:
                told = True
                log.warning("%s (%s); waiting for it, %.0f s at most", away(), reason(error), limit)
            left = lost + limit - time.monotonic()
            if left <= 0:
                raise Unreachable(f"{away()} within {limit:g} s: {reason(error)}") from None
            time.sleep(min(pause, left))
        else:
            if told and lost is not None:
                log.warning("the tracking server answers again, after %.0f s", time.monotonic() - lost)
            return answer
    raise AssertionError


def once(make: Callable[[], T], find: Callable[[], T | None]) -> T:
    """``make()``, for what must not be made twice.

    Args:
        make: makes something new on the server.
        find: returns it if it is there already; asked before each further attempt, for the answer may have been lost
            when all else was done.
    """
    tried = False

    def attempt() -> T:
        nonlocal tried
        found = find() if tried else None
        tried = True
        return make() if found is None else found

    return patiently(attempt)


def client() -> Any:
    """An MLflow client whose calls are made :func:`patiently`, but for ``create_...`` and ``copy_...``.

    For those see :func:`once`.

    Raises:
        ReferenceNotFound: at once, if the server does not answer the first question of this process.
    """
    return _Patient(connect())


class _Patient:
    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)
        if not callable(method) or name.startswith(("create_", "copy_")):
            return method

        @functools.wraps(method)
        def repeated(*arguments: Any, **options: Any) -> Any:
            return patiently(lambda: method(*arguments, **options))

        return repeated


def away() -> str:
    """The beginning of a sentence about an outage."""
    return f"the tracking server {masked(tracking_uri())} does not answer"


def _comes_again(status: int) -> bool:
    return status >= 500 or status in BUSY
