"""How a connection is read: uvicorn's HTTP/1.1 protocol, with the bounds that it lacks.

No client can hold a connection without end, make the server remember more than a little, or be told nothing: it must
send its headers in time, its body and take its answer at a lowest rate, and stay within bounds of size. What is wrong
is answered by a problem, like every other error. After a refusal the connection is read for a moment and not listened
to, because closing it with unread data would make the client's system throw away the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import uuid
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import Any, ClassVar

import httptools
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.envelope import security_headers
from serving.observer import Observer
from serving.problems import ProblemError, render
from serving.ratelimit import PROBES, subject
from serving.settings import Settings

log = logging.getLogger(__name__)

LINGER = 2.0
"""Seconds in which what a refused client still sends is read and dropped."""
KEPT = 8
"""Connections beyond the most whose first request is read: a probe is answered."""
FLOOD = 1.25
"""Beyond so many times that, one is cut without a word."""

_BODY = (b"content-length", b"transfer-encoding")
_PROBES = frozenset(path.encode() for path in PROBES)


@dataclass(frozen=True)
class Limits:
    """What a connection may do. Times in seconds, sizes in bytes.

    Args:
        connections: most at once, in this process.
        share: most of them from one client that is no proxy.
        url: longest path with its query.
        header_bytes: largest head of a request; one read more may be held.
        headers: most headers.
        header_seconds: to send the head.
        body_seconds: to send a body, besides the time of ``rate``.
        rate: bytes a second that a body is sent, or an answer taken, at least.
        idle_seconds: between requests.
        stall_seconds: to take an answer, besides the time of ``rate``.
    """

    connections: int = 1000
    share: int = 250
    url: int = 8192
    header_bytes: int = 65_536
    headers: int = 100
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    rate: int = 1024
    idle_seconds: float = 15.0
    stall_seconds: float = 60.0

    @property
    def tick(self) -> float:
        """Seconds between two looks at a connection."""
        return min(1.0, min(self.header_seconds, self.body_seconds, self.idle_seconds, self.stall_seconds) / 4)


def options(settings: Settings, observer: Observer | None = None) -> dict[str, Any]:
    """Keywords of :class:`uvicorn.Config` for a server with these settings.

    ``X-Forwarded-For`` is not uvicorn's business here: :func:`serving.app.create_app` believes the proxies that the
    settings name, and nobody else.
    """
    limits = Limits(
        connections=settings.max_connections,
        share=settings.max_client_connections or max(1, settings.max_connections // 4),
        url=settings.max_url,
        header_bytes=settings.max_header_bytes,
        headers=settings.max_headers,
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        rate=settings.client_rate,
        idle_seconds=settings.idle_seconds,
        stall_seconds=settings.stall_seconds,
    )
    own = {
        "limits": limits,
        "observer": observer or Observer(),
        "own_headers": security_headers(settings.hsts_seconds),
        "clients": Counter[str](),
        "proxies": _TrustedHosts(settings.trusted_proxies),
    }
    return {
        "http": type("Guarded", (GuardedProtocol,), own),
        "ws": "none",
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        # The protocol looks at idle connections itself.
        "timeout_keep_alive": 24 * 60 * 60,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
    }


def allow_connections(most: int) -> None:
    """Let this process have ``most`` connections and some files, as far as the system lets it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(FLOOD * (most + KEPT)) + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        fits = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fits, hard))
        if fits < wanted:
            log.warning("%d connections were allowed, but the system allows %d open files", most, fits)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within ``limits``.

    A connection is ``idle`` until a request begins, then in its ``head``, its ``body``, and after that ``whole`` until
    it was answered. ``shut`` ends it: what comes is not read any more, only what was written is sent.
    """

    limits = Limits()
    observer = Observer()
    own_headers = security_headers()
    clients: ClassVar[Counter[str]] = Counter()
    """How many connections each client has."""
    proxies = _TrustedHosts([])

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = "idle"
        self._since = self._expected = 0.0
        self._size = 0
        self._subject = ""
        self._crowded: ProblemError | None = None
        self._refusal: ProblemError | None = None
        self._stalled: tuple[float, int] | None = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = monotonic()
        self._expected = self._since + self.limits.tick
        self._watch = self.loop.call_later(self.limits.tick, self._look)
        _notice_death(transport.get_extra_info("socket"))
        if self.client and self.client[0] not in self.proxies:
            self._subject = subject(self.client[0])
            self.clients[self._subject] += 1
        one, share = self.clients[self._subject], self.limits.share
        everyone, most = len(self.connections), self.limits.connections
        if one > FLOOD * (share + KEPT) or everyone > FLOOD * (most + KEPT):
            transport.abort()
        elif everyone > most:
            self._crowded = ProblemError("overloaded", "too many connections are open", headers={"Retry-After": "5"})
        elif one > share:
            detail = f"{share} connections of one client fit, and so many are open"
            self._crowded = ProblemError("too-many-requests", detail, headers={"Retry-After": "5"})
        if self._crowded and (one > share + KEPT or everyone > most + KEPT):
            self._refuse(self._crowded)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._subject:
            self.clients[self._subject] -= 1
            if not self.clients[self._subject]:
                del self.clients[self._subject]
        if self._watch is not None:
            self._watch.cancel()

    def data_received(self, data: bytes) -> None:
        if self._phase == "shut":
            return
        if self._phase in ("idle", "head"):
            self._size += len(data)
        super().data_received(data)
        if self._phase == "head" and self._size > self.limits.header_bytes:
            self._refuse(_too_large(self.limits))

    # Called by the parser
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._since, self._size = "head", monotonic(), 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.url:
            detail = f"the path and its query have more than {self.limits.url} bytes; long texts fit into a body"
            self._give_up(ProblemError("url-too-long", detail))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self.limits.headers:
            self._give_up(_too_large(self.limits))

    def on_headers_complete(self) -> None:
        if self._crowded and self.url.partition(b"?")[0] not in _PROBES:
            self._give_up(self._crowded)
        if sum(len(name) + len(value) for name, value in self.headers) > self.limits.header_bytes:
            self._give_up(_too_large(self.limits))
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._give_up(ProblemError("malformed-request", "HTTP/1.1 or HTTP/1.0 fits"))
        if self.parser.should_upgrade() and any(name in _BODY and value != b"0" for name, value in self.headers):
            detail = "a body beside an offer to upgrade cannot be read; HTTP/1.1 without Upgrade fits"
            self._give_up(ProblemError("malformed-request", detail))
        super().on_headers_complete()
        self.cycle.transport = _Together(self.transport, self.loop)  # type: ignore[assignment]
        self._phase, self._since, self._size = "body", monotonic(), 0

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        super().on_body(body)
        if self.cycle.response_complete and self._size > HIGH_WATER_LIMIT:
            self._shut()  # answered already, such as a body that is too large: so much more is not wanted

    def on_message_complete(self) -> None:
        if self._phase != "shut":
            answered = self.cycle.response_complete
            self._phase, self._since, self._size = "idle" if answered else "whole", monotonic(), 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._phase == "body" and self.expect_100_continue and not self.pipeline:
            # The body was not asked for, so what comes next may be it or another request.
            self.server_state.total_requests += 1
            self._shut()
            return
        if self._phase == "whole" and not self.pipeline:
            self._phase, self._since = "idle", monotonic()
        elif self._phase == "body" and self.cycle.response_complete:
            self._since = monotonic()
        super().on_response_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """None: the request is answered as HTTP/1.1, which whoever offers an upgrade must take."""

    def _give_up(self, refusal: ProblemError) -> None:
        """Stop the parser, from inside one of its calls."""
        self._refusal = refusal
        raise httptools.HttpParserError(refusal.detail)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where the parser stopped."""
        self._refuse(
            self._refusal or ProblemError("malformed-request", "what came is not HTTP/1.1; nothing was read of it")
        )

    # Called by the transport
    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = monotonic(), self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = None

    def _look(self) -> None:
        """Ask, once in a while, whether the client has kept its times."""
        now, limits = monotonic(), self.limits
        # Time in which the event loop stood still is not the client's: what it sent may not have been read yet.
        self._since += max(0.0, now - self._expected)
        self._expected = now + limits.tick
        self._watch = self.loop.call_later(limits.tick, self._look)
        took = now - self._since
        left = self.transport.get_write_buffer_size()
        if self.transport.is_closing() and self._stalled is None:
            self._stalled = now, left
        if self._stalled is not None:
            began, size = self._stalled
            if now - began > limits.stall_seconds + max(0, size - left) / limits.rate:
                self.transport.abort()
        elif self._phase == "shut":
            if took > LINGER and not self._answering:
                self.transport.close()
        elif self._phase == "idle":
            fresh = self.cycle is None
            if took > (limits.header_seconds if fresh else limits.idle_seconds):
                self.transport.close()
        elif self._phase == "head" and took > limits.header_seconds:
            self._refuse(
                ProblemError("request-timeout", f"the headers did not come within {limits.header_seconds:g} s")
            )
        elif self._phase == "body":
            if self.cycle.response_complete:  # such as one that did not come by its deadline
                if took > LINGER:
                    self._shut()
            elif self.flow.read_paused:  # it is this server that does not read
                self._since = now - min(took, limits.body_seconds / 2)
            elif took > limits.body_seconds + self._size / limits.rate:
                self._refuse(ProblemError("request-timeout", "the body came too slowly, or stopped"))

    def _refuse(self, refusal: ProblemError) -> None:
        """Answer with a problem and read no further."""
        self.observer.refused(refusal.kind)
        client = self.client[0] if self.client else "unknown"
        # A request whose body is not whole has been given an id, which its own line in the log has.
        begun = self.scope["state"] if self._phase == "body" else {}
        request_id = begun.get("request_id") or uuid.uuid4().hex
        log.info("%s from %s: %s, request %s", refusal.kind, client, refusal.detail, request_id)
        if self._answering:
            if self._phase != "body" or self.cycle.response_started:
                # An answer is under way; the client gets that and no more.
                self.cycle.keep_alive = False
                self._phase = "shut"
                return
            if self.pipeline:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # whoever waits for the body is told so
            self.cycle.message_event.set()
        elif self._phase == "body":
            self._shut()
            return
        self.transport.write(_answer(refusal, self.url if self.scope else b"", request_id, self.own_headers))
        self._shut()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _shut(self) -> None:
        self._phase, self._since = "shut", monotonic()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()


class _Together:
    """The transport of one answer, whose head leaves with the body that follows at once: one call of the system less.

    Args:
        transport: of the connection.
        loop: in whose next turn the head leaves alone, where no body has followed.
    """

    __slots__ = ("_begun", "_head", "_loop", "_transport", "_waits")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._begun, self._head = False, b""
        self._waits: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self._head = True, data
            self._waits = self._loop.call_soon(self._flush)
        elif self._head:
            self._flush(data)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self, body: bytes = b"") -> None:
        if self._head:
            head, self._head = self._head, b""
            if self._waits is not None:
                self._waits.cancel()
            self._transport.writelines((head, body))


def _too_large(limits: Limits) -> ProblemError:
    detail = f"at most {limits.headers} headers with {limits.header_bytes} bytes in all fit"
    return ProblemError("headers-too-large", detail)


def _answer(refusal: ProblemError, url: bytes, request_id: str, headers: Any) -> bytes:
    """A whole answer with a problem."""
    path = url.partition(b"?")[0][:200].decode("latin-1")
    status, media_type, problem = render(path, refusal, request_id)
    body = json.dumps(problem.model_dump()).encode()
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {media_type}",
             f"content-length: {len(body)}", f"x-request-id: {request_id}", "connection: close",
             *(f"{name}: {value}" for name, value in (refusal.headers or {}).items()),
             *(f"{name.decode()}: {value.decode()}" for name, value in headers)]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + body


def _notice_death(connection: socket.socket | None) -> None:
    """Have the kernel ask now and then whether the other end still lives; a client may vanish without a word."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
