"""What can go wrong between a client and a server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from seqapp.errors import SeqappError


class ClientError(SeqappError):
    """A call has no answer.

    Args:
        detail: what was wrong, for a person.
    """

    retryable = False
    """Whether the same call may well be answered a little later."""
    retry_after: float | None = None
    """The seconds that the server asks to wait."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class ConnectionFailed(ClientError):
    """The server was not reached, or went away before it answered."""

    retryable = True


class DeadlineExceeded(ClientError, TimeoutError):
    """The time for the call is over, by the client's clock or by the server's (504)."""


class UnreadableAnswer(ClientError):
    """What answered is no server of seqapp, or one of another version."""


class FieldError(NamedTuple):
    """One thing that is wrong with a request."""

    field: str
    detail: str


class ApiError(ClientError):
    """The server says what is wrong; the subclasses go by status.

    Args:
        detail: what was wrong this time, and what would fit.
        status: of the answer.
        kind: what a program looks at, such as ``unknown-model``.
        errors: the fields that are wrong.
        request_id: by which the server's log knows the call.
        retry_after: seconds to wait, if it said so.
    """

    def __init__(
        self,
        detail: str,
        status: int,
        kind: str = "",
        errors: tuple[FieldError, ...] = (),
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.errors, self.request_id = status, kind, errors, request_id
        self.retry_after = retry_after


class InvalidRequest(ApiError):
    """400, 413, 415 or 422: the request does not fit; ``errors`` names the fields."""


class Unauthorized(ApiError):
    """401: no key, or not one that the server knows."""


class Forbidden(ApiError):
    """403: the key does not allow this."""


class NotFound(ApiError):
    """404: there is no such model or path."""


class TooManyRequests(ApiError):
    """429: this client asks more often than it may."""

    retryable = True


class ServerError(ApiError):
    """5xx: the server failed; its log has the request id."""


class Unavailable(ServerError):
    """503: the server is busy, starts or stops."""

    retryable = True


class ServerDeadline(ServerError, DeadlineExceeded):
    """504: the server has stopped working at the call, since its time is over."""


class StreamFailed(ApiError):
    """A stream broke off after its first piece; ``kind`` is ``cut-off`` where the server could not say why."""


_Said = tuple[str, str, tuple[FieldError, ...]]
"""Detail, kind, wrong fields."""
_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: TooManyRequests,
    503: Unavailable,
    504: ServerDeadline,
}


def api_error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The exception for an answer that is an error: RFC 9457, OpenAI's shape, or anything else.

    Args:
        status: 400 or above, or a redirection, which is not followed.
        headers: by names in any case.
        body: whole.
    """
    detail, kind, errors = _said(status, body)
    known = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    wait = retry_after(headers.get("Retry-After"), headers.get("Date"))
    return known(detail, status, kind, errors, headers.get("X-Request-Id", ""), wait)


def stream_failed(data: str, request_id: str) -> StreamFailed:
    """The exception for an ``event: error``.

    Args:
        data: of the event.
        request_id: of the stream's answer.
    """
    try:
        detail, kind, errors = _openai(json.loads(data)["error"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        detail, kind, errors = "the stream failed, and the server did not say why", "", ()
    return StreamFailed(detail, 200, kind, errors, request_id)


def _said(status: int, body: bytes) -> _Said:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("detail"), str):
        listed = said.get("errors")
        errors = (one for one in (listed if isinstance(listed, list) else []) if isinstance(one, dict))
        named = tuple(FieldError(str(one.get("field", "")), str(one.get("detail", ""))) for one in errors)
        return said["detail"], str(said.get("type", "")).rpartition(":")[2], named
    if isinstance(said, dict) and isinstance(said.get("error"), dict):
        return _openai(said["error"])
    return f"the server answered {status}, and not as seqapp does", "", ()


def _openai(error: dict[str, Any]) -> _Said:
    detail, field = str(error.get("message", "")), error.get("param")
    errors = (FieldError(str(field), detail.partition(": ")[2] or detail),) if field else ()
    return detail, str(error.get("code", "")).replace("_", "-"), errors


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """The seconds that a ``Retry-After`` asks for (RFC 9110, section 10.2.3), at least 0; None if it says nothing.

    Args:
        value: seconds, or the date until which to wait.
        date: the answer's ``Date``: a date is meant by the server's clock, not by this machine's.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    until = _moment(value)
    now = _moment(date) if date else None
    return None if until is None else max(0.0, until - (time.time() if now is None else now))


def _moment(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
