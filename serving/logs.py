"""What is told of every request: a line for people and one for programs, both written by threads of their own.

A log may be slow, full or gone; the event loop never waits for it. What finds no room is dropped and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import FileIO
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from seqapp.errors import SeqappError

log = logging.getLogger(__name__)

CAPACITY = 10_000
"""Lines that wait for their thread; about ten megabytes at most."""
BATCH = 200
"""Lines written at once, at most."""
PATIENCE = 2.0
"""Seconds at the end for what still waits: a log that does not move must not keep a server from stopping."""

_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


@contextmanager
def noting(facts: dict[str, Any]) -> Iterator[None]:
    """Let :func:`note` add to ``facts`` inside."""
    token = _facts.set(facts)
    try:
        yield
    finally:
        _facts.reset(token)


def note(**facts: Any) -> None:
    """Add to the audit line of the request that is being answered: ``model``, ``version``, ``inputs``, ``tokens``.

    Numbers and lists add up, since one request may ask several models. ``given``, the inputs themselves, is told only
    where the texts of users are; it is not copied here.
    """
    found = _facts.get()
    if found is not None:
        for name, value in facts.items():
            found[name] = found[name] + value if name in found and not isinstance(value, str) else value


class AuditLog:
    """JSON lines in a file or on stderr.

    The file is made with mode 600, is opened again when another stands in its place (rotation), and may be full: the
    server answers on, says so once, and says how many lines were lost when there is room again.

    Args:
        target: path of the file, or ``-`` for stderr.

    Raises:
        SeqappError: if the file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        try:
            handler = _Terminal() if target == "-" else _File(target)
        except OSError as error:
            raise SeqappError(f"the audit log {target}: {error.strerror}; the path of a file fits whose folder exists "
                              "and may be written, or - for stderr") from None  # fmt: skip
        handler.setFormatter(_Json())
        self._handler = handler
        self._door = _Door(handler)

    @property
    def lost(self) -> int:
        """Lines that were dropped since the start."""
        return self._handler.dropped + self._handler.lost

    def write(self, facts: dict[str, Any]) -> None:
        """Tell ``facts``, at once and without waiting."""
        record = logging.LogRecord(__name__, logging.INFO, "", 0, "", (), None)
        record.facts = facts
        self._door.handle(record)

    def start(self) -> None:
        """Begin to write."""
        self._door.listener.start()

    def close(self) -> None:
        """Write what waits and end."""
        self._door.close()
        if not self._door.listener.stuck:
            self._handler.close()


def to_terminal(level: int = logging.WARNING) -> None:
    """Let what is logged go to stderr, from a thread: a terminal may be slow, a pipe may be full.

    ``logging.shutdown``, which Python calls at its end, writes what waits.

    Args:
        level: what is less important is not told.
    """
    handler = _Terminal()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    door = _Door(handler)
    door.addFilter(is_news)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of each try; what came of them is told here
    door.listener.start()
    logging.basicConfig(level=level, handlers=[door])


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn tells anything: its errors of a stop in a hurry are none, nor what is told here, too.

    A stop that cuts requests off is told as a warning.
    """
    if record.name != "uvicorn.error":
        return True
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):  # by a second stop signal
        return False
    said = str(record.msg)
    if "\nasyncio.exceptions.CancelledError" in said:  # likewise, as starlette tells of its lifespan
        return False
    if said.startswith("Cancel %s running task(s)"):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg = "%s requests are cut off: the time in which they may finish after a stop signal is over"
    return said != "Invalid HTTP request received."  # serving.protocol tells who sent it, and what was wrong


class _Door(QueueHandler):
    """Puts records into a bounded queue, or drops them."""

    def __init__(self, handler: _Terminal | _File) -> None:
        waiting: queue.Queue[Any] = queue.Queue(CAPACITY)
        super().__init__(waiting)
        self.listener: _Listener = _Listener(waiting, handler)
        self.handler = handler

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: no other process reads it, so the thread that writes may format it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.handler.dropped += 1

    def close(self) -> None:
        self.listener.stop()
        super().close()


class _Listener(QueueListener):
    """Stops within ``PATIENCE``; its thread is a daemon, so one that is stuck in a write keeps nothing alive."""

    stuck = False

    def __init__(self, waiting: queue.Queue[Any], handler: _Terminal | _File) -> None:
        super().__init__(waiting, handler)
        self._handler = handler
        handler.waiting, handler.lines = waiting, []

    def stop(self) -> None:
        thread = self._thread
        if thread is None:
            return
        with suppress(queue.Full):
            self.queue.put(self._sentinel, timeout=PATIENCE)  # type: ignore[attr-defined]
        thread.join(PATIENCE)
        self.stuck = thread.is_alive()
        self._thread = None
        if not self.stuck:
            self._handler.put_out()


class _Batching(logging.Handler):
    """Writes at once what waits: each write lets another thread run, which a busy one would have to wait for again."""

    waiting: queue.Queue[Any]
    lines: list[str]
    lost = 0
    dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(self.format(record))
        except Exception:  # it would end the thread
            self.handleError(record)
        if self.waiting.empty() or len(self.lines) >= BATCH:
            self.put_out()

    def put_out(self) -> None:
        """Write what was put off."""
        lines, self.lines = self.lines, []
        if lines:
            self.put(lines)

    def put(self, lines: Sequence[str]) -> None:
        """Write ``lines``, or count them as lost."""
        raise NotImplementedError


class _Terminal(_Batching):
    """stderr, whose reader may have gone."""

    def put(self, lines: Sequence[str]) -> None:
        try:
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
        except (OSError, ValueError):  # full, or closed
            self.lost += len(lines)


class _File(_Batching, WatchedFileHandler):
    """A file that may be full.

    It is written without a buffer: what did not fit would stay in one and come again, in the midst of another line.
    """

    stream: FileIO | None  # type: ignore[assignment]

    def __init__(self, path: str) -> None:
        self._failing = 0
        self._told = 0
        self._torn = False
        super().__init__(Path(path))

    def _open(self) -> FileIO:  # type: ignore[override]
        return FileIO(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "a")

    def put(self, lines: Sequence[str]) -> None:
        dropped = self.dropped
        lacking = self._failing + dropped - self._told
        told = [json.dumps({"ts": _now(), "event": "lines-lost", "lines": lacking})] if lacking else []
        data = "".join(f"{line}\n" for line in [*([""] if self._torn else []), *told, *lines]).encode()
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
                self._statstream()
            written = self.stream.write(data) or 0
            if written != len(data):
                self._torn = written > 0
                raise OSError(None, "not all of it fits")
        except OSError as error:
            if not self._failing:
                log.error("the audit log %s cannot be written (%s); the server goes on, lines are lost",
                          self.baseFilename, error.strerror)  # fmt: skip
            self._failing += len(lines)
            self.lost += len(lines)
        else:
            self._torn, self._told = False, dropped
            if self._failing:
                log.warning("the audit log %s is written again; %d lines were lost", self.baseFilename, self._failing)
                self._failing = 0


class _Json(logging.Formatter):
    """ASCII, one line: no text of a client can end a line or begin another."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = vars(record)["facts"]
        return json.dumps(facts, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
