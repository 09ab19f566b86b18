"""How much one client may ask: a bound on requests and on inputs a second, shared by all workers.

The rule is the generic cell rate algorithm (ITU-T I.371, 1996, annex A), a leaky bucket that needs one number a client:
the time t at which all that it has asked would have been asked at the lasting rate. With T seconds between requests
and a burst of b, a request at the time now fits if t - now <= (b - 1) T, and then t = max(t, now) + T. Time is
``time.monotonic``, which has one zero for all processes of a machine, so a jump of the clock changes nothing.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.auth import route_path
from serving.problems import ProblemError, respond

PROBES = frozenset({"/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"})
"""Paths without a limit: whoever watches the process must always learn how it is."""

_ENTRY = struct.Struct("<Qdd")
_WAYS = 8
_SET = _WAYS * _ENTRY.size
_SALT = 16


class Table:
    """Two times for each client, in memory that processes may share; it never grows.

    A client has a place in one of many sets of eight. Where a set is full, the client that has asked least of late
    makes room; it is forgiven what it has asked. The sets are salted, so nobody can aim at one.

    Args:
        file: shared by the processes that name it; None keeps the table in this process.
        sets: how many; eight clients fit in each, 24 bytes a client.

    Raises:
        OSError: if the file cannot be made.
    """

    def __init__(self, file: Path | None = None, sets: int = 4096) -> None:
        self._sets = sets
        size = _SALT + sets * _SET
        self._file = None
        if file is None:
            self._map = mmap.mmap(-1, size)
            self._map[:_SALT] = os.urandom(_SALT)
        else:
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._file, fcntl.LOCK_EX, _SALT)
            try:
                if os.fstat(self._file).st_size < size:
                    os.ftruncate(self._file, size)
                    os.pwrite(self._file, os.urandom(_SALT), 0)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _SALT)
            self._map = mmap.mmap(self._file, size)
        self._salt = bytes(self._map[:_SALT])

    @contextmanager
    def times(self, client: str) -> Iterator[list[float]]:
        """The two times of ``client``, to read and to change; other processes wait meanwhile."""
        name = int.from_bytes(blake2b(client.encode("utf-8", "replace"), digest_size=8, key=self._salt).digest()) | 1
        start = _SALT + name % self._sets * _SET
        # The kernel gives the lock back if this process dies, and a set torn by that holds times at worst.
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX, _SET, start)
        try:
            entries = list(_ENTRY.iter_unpack(self._map[start : start + _SET]))
            place = next((i for i, (known, _, _) in enumerate(entries) if known == name), None)
            times = [0.0, 0.0]
            if place is None:
                place = min(range(_WAYS), key=lambda i: max(entries[i][1:]))
            else:
                times[:] = entries[place][1:]
            yield times
            _ENTRY.pack_into(self._map, start + place * _ENTRY.size, name, *times)
        finally:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _SET, start)

    def close(self) -> None:
        """Let go of the memory."""
        self._map.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None


class RateLimit:
    """ASGI middleware: answers 429 to a client that asks too much.

    Requests are paid at once. How many inputs a request has is known when it was answered, so inputs are paid
    afterwards, and a client in debt waits until its rate has paid it: it may overdraw by what it asks at once. Inputs
    of a request that ``scope["state"]["free"]`` says no model has begun are not paid.

    Args:
        app: what answers.
        table: of the clients.
        rate: requests a second of one client, lasting; None has no bound.
        burst: requests at once.
        inputs: inputs a second, lasting; None has no bound.
        inputs_burst: inputs at once.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        table: Table,
        rate: float | None = None,
        burst: int | None = None,
        inputs: float | None = None,
        inputs_burst: int | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.app = app
        self.table = table
        self.clock = clock
        self.gap = 1 / rate if rate else 0.0
        self.burst = burst or max(1, math.ceil(rate or 0))
        self.inputs_gap = 1 / inputs if inputs else 0.0
        self.inputs_burst = inputs_burst or max(1, math.ceil(10 * (inputs or 0)))
        policies = []
        if rate:
            policies.append(f'"requests";q={self.burst};w={math.ceil(self.burst / rate)}')
        if inputs:
            policies.append(f'"inputs";q={self.inputs_burst};w={math.ceil(self.inputs_burst / inputs)}')
        self._policy = ", ".join(policies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in PROBES:
            await self.app(scope, receive, send)
            return
        client = subject(scope["state"]["client"])
        wait, what, left = self.ask(client)
        if wait:
            bound = f"{1 / self.gap:g} requests" if what == "requests" else f"{1 / self.inputs_gap:g} inputs"
            detail = f"{bound} a second fit for one client; the next fits in {wait:.3g} s"
            seconds = str(max(1, math.ceil(wait)))
            headers = {
                "Retry-After": seconds,
                "RateLimit-Policy": self._policy,
                "RateLimit": f'"{what}";r=0;t={seconds}',
            }
            await respond(scope, ProblemError("too-many-requests", detail, headers=headers))(scope, receive, send)
            return
        if self.gap:
            scope["state"].setdefault("headers", []).append((b"ratelimit", b'"requests";r=%d' % left))
        try:
            await self.app(scope, receive, send)
        finally:
            asked = scope["state"]["facts"].get("inputs", 0)
            if self.inputs_gap and asked and not scope["state"].get("free"):
                self.pay(client, asked)

    def ask(self, client: str) -> tuple[float, str, int]:
        """Take one request in.

        Returns:
            the seconds after which it would fit, or 0 if it fits now; which bound holds it; how many more fit at once.
        """
        now = self.clock()
        with self.table.times(client) as times:
            debt = times[1] - now - (self.inputs_burst - 1) * self.inputs_gap
            if self.inputs_gap and debt > 0:
                return debt, "inputs", 0
            if not self.gap:
                return 0.0, "", 0
            slack = (self.burst - 1) * self.gap - (times[0] - now)
            # A time is a sum of many gaps, so it is right to some parts of 2^52 only.
            if slack < -1e-9:
                return -slack, "requests", 0
            times[0] = max(times[0], now) + self.gap
            return 0.0, "", int(min(self.burst - 1, slack / self.gap + 1e-9))

    def pay(self, client: str, inputs: int) -> None:
        """Count ``inputs`` that were asked."""
        with self.table.times(client) as times:
            times[1] = max(times[1], self.clock()) + inputs * self.inputs_gap


@lru_cache(4096)
def subject(client: str) -> str:
    """Who is counted as one client: a key's name, an IPv4 address, or the /64 network of an IPv6 address.

    Whoever has one IPv6 address has 2^64 of them.
    """
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return client
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
