"""What surrounds every request: its id, deadline and size, the headers of every answer, the log, the last word."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from random import getrandbits
from time import monotonic, perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.logs import AuditLog, noting
from serving.observer import Observer
from serving.problems import ProblemError, fields, respond
from serving.ratelimit import PROBES

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[!-~]{1,128}")
"""A client's ``X-Request-Id`` is kept if it is this: printable ASCII without spaces, at most 128 characters."""
POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""``Content-Security-Policy`` of an answer that has none of its own: nothing in it is a page."""

_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
_LONGEST_PATH = 500
_DULL = PROBES | {"/metrics"}


class Envelope:
    """ASGI middleware; it stands outside of everything that may fail.

    It writes into ``scope["state"]``: ``request_id``; ``client``, the address, until a key gives a better name;
    ``deadline``, in seconds of ``time.monotonic``; ``facts``, what the audit line will say; and it sends the pairs of
    bytes in ``headers`` along. FastAPI's own ``max_body_size`` is not used: its 413 is written as plain text outside
    of every middleware.

    Args:
        app: what answers.
        max_bytes: the largest body.
        deadline_seconds: the longest time for an answer.
        hosts: names that a request may ask for, ``*.name`` for all below; none stands for every name.
        hsts_seconds: so long a browser shall come back by https only; 0 says nothing.
        origins: those whose pages may read answers and call; * allows all.
        keyed: who calls brings a key, which no browser sends by itself; else pages of other origins may not POST.
        around: stands around what answers ``app``'s requests, and around refusals here, so that a page may read them.
        access_log: log one line per request, except for probes and scrapes that went well.
        audit: where JSON lines go.
        log_text: tell what users have sent, too.
        observer: told of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        deadline_seconds: float = 300.0,
        hosts: Collection[str] = (),
        hsts_seconds: int = 0,
        origins: Collection[str] = (),
        keyed: bool = True,
        around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
        access_log: bool = True,
        audit: AuditLog | None = None,
        log_text: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.app = around(app)
        self.around = around
        self.max_bytes = max_bytes
        self.deadline_seconds = deadline_seconds
        self.hosts = frozenset(host.lower() for host in hosts if not host.startswith("*"))
        self.domains = tuple(host[1:].lower() for host in hosts if host.startswith("*"))
        self.origins = frozenset(origins)
        self.keyed = keyed
        self.access_log = access_log
        self.audit = audit
        self.log_text = log_text
        self.observer = observer or Observer()
        self._headers = security_headers(hsts_seconds, shared=bool(origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else f"{getrandbits(128):032x}"
        method, status, received, sent, complete, gone = scope["method"], 0, 0, 0, False, False
        if method == "HEAD":  # whatever answers GET answers HEAD; the server leaves the body out
            scope = {**scope, "method": "GET"}
        facts: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["client"] = (scope.get("client") or ("unknown",))[0]
        state["facts"] = facts

        async def limited() -> Message:
            nonlocal received, gone
            message = await receive()
            if message["type"] == "http.disconnect":
                gone = not complete
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        async def labelled(message: Message) -> None:
            nonlocal status, sent, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", ()))
                own += self._headers
                own += state.get("headers", ())
                own.append((b"x-request-id", request_id.encode()))
                if not any(name == b"content-security-policy" for name, _ in own):
                    own.append((b"content-security-policy", POLICY))
                message["headers"] = own
            else:
                sent += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            await send(message)

        async def tell(problem: ProblemError) -> None:
            await self.around(respond(scope, problem))(scope, receive, labelled)

        try:
            with noting(facts):
                refusal = self._refusal(scope, state, headers)
                if refusal is None:
                    await self.app(scope, limited, labelled)
                else:
                    await tell(refusal)
        except asyncio.CancelledError:  # the server stops and the time for running requests is over
            if status:
                raise
            await tell(ProblemError("not-ready", "the server is stopping", headers={"Retry-After": "5"}))
        except Exception:
            log.exception("%s %r failed, request %s", method, scope["path"], request_id)
            if status:  # too late for another answer: the server cuts the connection
                raise
            detail = f"this is not your fault; the server's log has it as {request_id}"
            await tell(ProblemError("internal-error", detail))
        finally:
            took = perf_counter() - began
            problem = state.get("problem")
            outcome = "gone" if gone else problem or ("ok" if complete else "cut")
            route = scope.get("route")
            self.observer.request(method, route.path if route else "", status, took)
            if problem and problem != "internal-error":
                self.observer.refused(problem)
            if self.access_log and not (status < 400 and scope["path"] in _DULL):
                log.info("%s %r %d %.1f ms, request %s", method, scope["path"], status, 1000 * took, request_id)
            if self.audit:
                given = facts.pop("given", None)
                self.audit.write({
                    "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": request_id,
                    "client": state["client"],
                    "method": method,
                    "path": scope["path"][:_LONGEST_PATH],
                    "status": status,
                    "ms": round(1000 * took, 3),
                    "outcome": outcome,
                    "bytes_in": received,
                    "bytes_out": sent,
                    **facts,
                    **({"given": given} if self.log_text and given is not None else {}),
                })  # fmt: skip

    def _refusal(self, scope: Scope, state: dict[str, Any], headers: dict[bytes, bytes]) -> ProblemError | None:
        """What is wrong with a request by its headers alone."""
        patience = headers.get(b"x-request-timeout", b"")
        seconds = self.deadline_seconds
        if patience:
            asked = float(patience) if _SECONDS.fullmatch(patience) else 0.0
            if not asked:
                shown = patience[:40].decode("latin-1")
                return fields(("X-Request-Timeout", f"seconds in digits fit, such as 2.5, not {shown!r}"))
            seconds = min(asked, seconds)
        state["deadline"] = monotonic() + seconds
        if (self.hosts or self.domains) and scope["path"] not in PROBES:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = re.sub(r":\d*$", "", host)
            if name not in self.hosts and not name.endswith(self.domains or ("\0",)):
                detail = f"this server is not {name[:80]!r}; whoever runs it may name it in SEQAPP_TRUSTED_HOSTS"
                return ProblemError("misdirected", detail)
        if not self.keyed and scope["method"] == "POST" and self._is_foreign(headers):
            shown = headers[b"origin"][:80].decode("latin-1")
            detail = f"pages of {shown!r} may not call; whoever runs this server may name them in SEQAPP_CORS_ORIGINS"
            return ProblemError("forbidden", detail)
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self.max_bytes:
            return self._too_large()
        return None

    def _is_foreign(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a page of another origin asks, as browsers tell.

        A browser sends ``Origin`` with each POST, and ``Sec-Fetch-Site`` (W3C Fetch Metadata) beside it where it trusts
        the connection; a proxy in between may have changed ``Host``.
        """
        origin = headers.get(b"origin")
        if origin is None or not self.origins.isdisjoint(("*", origin.decode("latin-1"))):
            return False
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site not in (b"same-origin", b"none")
        host = headers.get(b"host", b"").lower()
        return not host or origin.partition(b"://")[2].lower() != host

    def _too_large(self) -> ProblemError:
        return ProblemError("body-too-large", f"the body is larger than {self.max_bytes} bytes")


def security_headers(hsts_seconds: int = 0, *, shared: bool = False) -> Sequence[tuple[bytes, bytes]]:
    """The headers that every answer has.

    Args:
        hsts_seconds: so long a browser shall come back by https only; 0 says nothing.
        shared: pages of other origins may read answers.
    """
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"cross-origin" if shared else b"same-origin"),
    ]
    if hsts_seconds:
        headers.append((b"strict-transport-security", b"max-age=%d" % hsts_seconds))
    return headers
