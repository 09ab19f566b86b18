"""The two clients: one waits, the other awaits; what they send and read is in :mod:`seqapp.client.calls`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, Unpack, overload

import anyio
import httpx2

from seqapp import __version__
from seqapp.client import calls
from seqapp.client.answers import Choice, Completions, Label, Language, Model, Reloaded, Translation, Usage
from seqapp.client.calls import Call, CompletionOptions, Events, Texts, TranslationOptions
from seqapp.client.errors import (
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Unavailable,
    UnreadableAnswer,
    api_error,
)
from seqapp.client.retries import Attempts

A = TypeVar("A")
"""An answer."""
T = TypeVar("T")
"""What is made of a response."""
CONNECT_SECONDS = 5.0
"""How long one try waits for a connection."""
MOST_SECONDS = 1_000_000.0
"""The longest time that the server is told; it takes no longer number."""


class _Caller:
    """What both clients are told, and what they make of it."""

    def __init__(self, url: str, key: str | None, timeout: float | None, retries: int | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ClientError(f"the URL is {url!r}; one like http://127.0.0.1:8000 fits")
        if timeout is not None and not timeout > 0:
            raise ClientError(f"timeout is {timeout}; seconds above 0 fit, or None for no limit")
        if retries is not None and retries < 0:
            raise ClientError(f"retries is {retries}; 0 or more fits")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._headers = {"User-Agent": f"seqapp/{__version__}", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def _attempts(self) -> Attempts:
        return Attempts(self.timeout, self.retries)

    def _request(self, http: httpx2.Client | httpx2.AsyncClient, call: Call[Any], attempts: Attempts) -> httpx2.Request:
        left = attempts.left()
        headers = {} if left is None else {"X-Request-Timeout": f"{min(left, MOST_SECONDS):.3f}"}
        content = None
        if call.body is not None:
            headers["Content-Type"] = "application/json"
            try:
                content = json.dumps(call.body, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ClientError(f"the request cannot be written as JSON: {error}") from None
        connect = CONNECT_SECONDS if left is None else min(left, CONNECT_SECONDS)
        wait = httpx2.Timeout(left, connect=connect)
        return http.build_request(call.method, f"{self.url}{call.path}", content=content, headers=headers, timeout=wait)


@contextmanager
def _failures(attempts: Attempts) -> Iterator[None]:
    """Every failure of the connection as a ClientError."""
    try:
        yield
    except httpx2.ConnectTimeout:
        attempts.left()
        raise ConnectionFailed(f"the server did not take a connection within {CONNECT_SECONDS:g} s") from None
    except ClientError:
        raise
    except (httpx2.TimeoutException, TimeoutError):
        raise attempts.late() from None
    except httpx2.TransportError as error:
        raise ConnectionFailed(f"no answer from the server: {error or type(error).__name__}") from error
    except (httpx2.DecodingError, httpx2.InvalidURL) as error:
        raise UnreadableAnswer(str(error)) from None


@contextmanager
def _breaks(events: Events) -> Iterator[None]:
    """A connection that fails now has cut a stream off."""
    try:
        yield
    except ConnectionFailed as error:
        raise events.cut_off(error.detail) from error


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


async def _asleep(seconds: float) -> None:
    await anyio.sleep(seconds)


class _Told:
    """What a stream has told besides its pieces: known piece by piece, and whole at its end."""

    _events: Events | None = None

    @property
    def id(self) -> str | None:
        """Of the completion."""
        return None if self._events is None else self._events.id

    @property
    def model(self) -> str | None:
        """The id of the model that answers."""
        return None if self._events is None else self._events.model

    @property
    def seed(self) -> int | None:
        """The same request with this seed has the same answer."""
        return None if self._events is None else self._events.seed

    @property
    def usage(self) -> Usage | None:
        """Tokens read and written, at the end."""
        return None if self._events is None else self._events.usage

    @property
    def notes(self) -> list[str]:
        """What a person should know, such as unknown characters."""
        return [] if self._events is None else self._events.notes


class Stream(_Told):
    """The pieces of completions as they come; ``with`` or :meth:`close` lets the server go.

    Nothing is sent before ``with`` is entered or the first piece is asked for. That raises what :meth:`Client.complete`
    raises; a stream that breaks off after it raises StreamFailed, and is not tried again.
    """

    def __init__(self, client: Client, call: Call[None]) -> None:
        self._client, self._call = client, call
        self._response: httpx2.Response | None = None
        self._pieces = self._read()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Choice:
        return next(self._pieces)

    def close(self) -> None:
        """End the stream; the server computes no more of it."""
        self._pieces.close()
        if self._response is not None:
            self._response.close()

    def _open(self) -> httpx2.Response:
        if self._response is None:
            self._attempts = self._client._attempts()
            self._response = self._client._send(self._call, self._attempts, lambda response: response)
            self._events = Events(self._response.headers.get("X-Request-Id", ""))
        return self._response

    def _read(self) -> Generator[Choice]:
        response = self._open()
        assert self._events is not None
        try:
            with _breaks(self._events), _failures(self._attempts):
                for event in httpx2.EventSource(response, max_event_size=None):
                    self._attempts.left()
                    yield from self._events.take(event)
            self._events.end()
        finally:
            response.close()


class AsyncStream(_Told):
    """As :class:`Stream`, for ``async with`` and ``async for``."""

    def __init__(self, client: AsyncClient, call: Call[None]) -> None:
        self._client, self._call = client, call
        self._response: httpx2.Response | None = None
        self._pieces = self._read()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Choice:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """End the stream; the server computes no more of it."""
        await self._pieces.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _open(self) -> httpx2.Response:
        async def same(response: httpx2.Response) -> httpx2.Response:
            return response

        if self._response is None:
            self._attempts = self._client._attempts()
            self._response = await self._client._send(self._call, self._attempts, same)
            self._events = Events(self._response.headers.get("X-Request-Id", ""))
        return self._response

    async def _read(self) -> AsyncGenerator[Choice, None]:
        response = await self._open()
        assert self._events is not None
        source = aiter(httpx2.EventSource(response, max_event_size=None))
        try:
            while True:
                with _breaks(self._events), _failures(self._attempts):
                    with anyio.fail_after(self._attempts.left()):
                        event = await anext(source, None)
                    pieces = self._events.take(event) if event else None
                if pieces is None:
                    break
                for piece in pieces:
                    yield piece
            self._events.end()
        finally:
            await response.aclose()


class Client(_Caller):
    """A server of seqapp, from another program. Threads may share one; ``with`` or :meth:`close` ends its connections.

    Every call raises ApiError for what the server says is wrong, DeadlineExceeded when its time is over,
    ConnectionFailed, or UnreadableAnswer; all are ClientError. 429, 503 and a failed connection are tried again.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        key: if the server asks for one.
        timeout: seconds for a call, its retries and pauses included; the server is told, and stops working when they
            are over. None sets no limit.
        retries: most tries of a call after the first; None tries until its time is over, or 3 times more where it has
            no limit.
        connections: most at once; further calls wait for one.
        transport: instead of the network, such as :class:`httpx2.MockTransport`.

    Raises:
        ClientError: if one of them does not fit.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float | None = 60.0,
        retries: int | None = None,
        connections: int = 100,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx2.Client(headers=self._headers, limits=limits, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections."""
        self._http.close()

    @overload
    def sentiment(
        self, texts: str, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[Label]: ...
    @overload
    def sentiment(
        self, texts: Texts, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[list[Label]]: ...
    def sentiment(
        self, texts: str | Texts, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[Label] | list[list[Label]]:
        """The labels of a text, the most probable first; of several texts a list of such lists.

        Args:
            texts: one or several, none empty.
            top_k: only the k best labels.
            explain: also how much each token speaks for the best label.
            model: by default the server's first for this task.
        """
        found: list[Label] | list[list[Label]] = self._ask(calls.sentiment(texts, top_k, explain, model))
        return found

    def complete(self, prompt: str | Texts = "", **options: Unpack[CompletionOptions]) -> Completions:
        """Texts that go on from a prompt, or from each of several.

        Args:
            prompt: one or several; an empty text starts a new one.
            options: fields of ``POST /v1/completions``.
        """
        return self._ask(calls.complete(prompt, options))

    def stream(self, prompt: str | Texts = "", **options: Unpack[CompletionOptions]) -> Stream:
        """As :meth:`complete`, piece by piece; the time for the call ends the stream, too."""
        return Stream(self, calls.stream(prompt, options))

    @overload
    def translate(
        self, texts: str, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> Translation: ...
    @overload
    def translate(
        self, texts: Texts, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> list[Translation]: ...
    def translate(
        self, texts: str | Texts, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> Translation | list[Translation]:
        """A text in another language; of several texts a list.

        Args:
            texts: one or several, none empty.
            target: code of the language wanted.
            source: code of the language of the texts; ``auto`` lets the server find out.
            options: fields of ``POST /translate``.
        """
        found = self._ask(calls.translate(texts, source, target, options))
        return found[0] if isinstance(texts, str) else found

    def languages(self) -> list[Language]:
        """The languages that are translated from or into."""
        return self._ask(calls.languages())

    def models(self) -> list[Model]:
        """The live models; the first of a task is its default."""
        return self._ask(calls.models())

    def card(self, model: str) -> str:
        """The card of a model, Markdown.

        Args:
            model: its id.
        """
        return self._ask(calls.card(model))

    def reload(self, model: str | None = None) -> list[Reloaded]:
        """Bring what is asked for now to life, such as a new champion of the registry; the key of an admin may.

        Args:
            model: a model, a deployment or a refused reference; None stands for all.

        Raises:
            ApiError: if one did not go live; what was live before still is.
        """
        return self._ask(calls.reload(model))

    def ready(self) -> bool:
        """Whether the server answers now; a server that cannot be reached is not ready."""
        try:
            self._send(calls.ready(), Attempts(self.timeout, 0), httpx2.Response.read)
        except (Unavailable, ConnectionFailed, DeadlineExceeded):
            return False
        return True

    def _ask(self, call: Call[A]) -> A:
        attempts = self._attempts()

        def read(response: httpx2.Response) -> bytes:
            parts = []
            for part in response.iter_bytes():
                attempts.left()
                parts.append(part)
            return b"".join(parts)

        return call.read(self._send(call, attempts, read))

    def _send(self, call: Call[Any], attempts: Attempts, take: Callable[[httpx2.Response], T]) -> T:
        """What ``take`` makes of the answer; one that it is not done with stays open."""
        while True:
            try:
                with _failures(attempts):
                    response = self._http.send(self._request(self._http, call, attempts), stream=True)
                    try:
                        if response.status_code != 200:
                            raise api_error(response.status_code, response.headers, response.read())
                        return take(response)
                    except BaseException:
                        response.close()
                        raise
            except ClientError as error:
                _sleep(attempts.pause(error))


class AsyncClient(_Caller):
    """As :class:`Client`, for ``async with`` and ``await``."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float | None = 60.0,
        retries: int | None = None,
        connections: int = 100,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx2.AsyncClient(headers=self._headers, limits=limits, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all connections."""
        await self._http.aclose()

    @overload
    async def sentiment(
        self, texts: str, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[Label]: ...
    @overload
    async def sentiment(
        self, texts: Texts, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[list[Label]]: ...
    async def sentiment(
        self, texts: str | Texts, *, top_k: int | None = None, explain: bool = False, model: str | None = None
    ) -> list[Label] | list[list[Label]]:
        """As :meth:`Client.sentiment`."""
        found: list[Label] | list[list[Label]] = await self._ask(calls.sentiment(texts, top_k, explain, model))
        return found

    async def complete(self, prompt: str | Texts = "", **options: Unpack[CompletionOptions]) -> Completions:
        """As :meth:`Client.complete`."""
        return await self._ask(calls.complete(prompt, options))

    def stream(self, prompt: str | Texts = "", **options: Unpack[CompletionOptions]) -> AsyncStream:
        """As :meth:`Client.stream`."""
        return AsyncStream(self, calls.stream(prompt, options))

    @overload
    async def translate(
        self, texts: str, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> Translation: ...
    @overload
    async def translate(
        self, texts: Texts, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> list[Translation]: ...
    async def translate(
        self, texts: str | Texts, *, target: str, source: str = "auto", **options: Unpack[TranslationOptions]
    ) -> Translation | list[Translation]:
        """As :meth:`Client.translate`."""
        found = await self._ask(calls.translate(texts, source, target, options))
        return found[0] if isinstance(texts, str) else found

    async def languages(self) -> list[Language]:
        """As :meth:`Client.languages`."""
        return await self._ask(calls.languages())

    async def models(self) -> list[Model]:
        """As :meth:`Client.models`."""
        return await self._ask(calls.models())

    async def card(self, model: str) -> str:
        """As :meth:`Client.card`."""
        return await self._ask(calls.card(model))

    async def reload(self, model: str | None = None) -> list[Reloaded]:
        """As :meth:`Client.reload`."""
        return await self._ask(calls.reload(model))

    async def ready(self) -> bool:
        """As :meth:`Client.ready`."""
        try:
            await self._send(calls.ready(), Attempts(self.timeout, 0), httpx2.Response.aread)
        except (Unavailable, ConnectionFailed, DeadlineExceeded):
            return False
        return True

    async def _ask(self, call: Call[A]) -> A:
        return call.read(await self._send(call, self._attempts(), httpx2.Response.aread))

    async def _send(
        self, call: Call[Any], attempts: Attempts, take: Callable[[httpx2.Response], Coroutine[Any, Any, T]]
    ) -> T:
        while True:
            try:
                with _failures(attempts), anyio.fail_after(attempts.left()):
                    response = await self._http.send(self._request(self._http, call, attempts), stream=True)
                    try:
                        if response.status_code != 200:
                            raise api_error(response.status_code, response.headers, await response.aread())
                        return await take(response)
                    except BaseException:
                        await response.aclose()
                        raise
            except ClientError as error:
                await _asleep(attempts.pause(error))
