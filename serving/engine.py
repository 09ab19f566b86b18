"""Where a model computes: one thread of its own, so that the event loop never does.

Requests have turns on that thread, first come, first served. An answer that is asked for as a whole is one turn; a
stream has a short turn at a time and then stands at the end of the queue, so any number of them advance side by side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from seqapp.bundle import Bundle
from seqapp.tasks import InputError

THREAD_PREFIX = "seqapp-model"
TURN = 0.02
"""Seconds after which a stream lets others have their turn: a person sees no pause, and handing over costs little."""


@dataclass(frozen=True)
class Answer:
    """What a model said, and how long that took, in seconds."""

    outputs: list[Any]
    queued: float
    computed: float

    @property
    def timing(self) -> str:
        """As the header ``Server-Timing`` has it."""
        return f"queue;dur={1000 * self.queued:.2f}, model;dur={1000 * self.computed:.2f}"


class Engine:
    """Asks one bundle, one turn after the other.

    Args:
        bundle: the loaded bundle.
        threads: how many threads one forward pass may use.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._executor = ThreadPoolExecutor(1, THREAD_PREFIX, torch.set_num_threads, (threads,))

    async def predict(self, inputs: Sequence[Any]) -> Answer:
        """Answer ``inputs``, each a ``task.Input``. A caller that goes away loses its turn if it has not begun.

        Raises:
            InputError: for an input that cannot be answered.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, inputs, perf_counter())

    def stream(self, inputs: Sequence[Any]) -> Pieces:
        """Answer ``inputs`` piece by piece, for a task that has ``stream(model, input)``.

        Returns:
            the pieces of all inputs side by side, each as (index of its input, piece); the caller closes it.
        """
        return Pieces(self._executor, self._pieces(inputs))

    def close(self) -> None:
        """Take no more requests and drop those that wait; the one being answered is not stopped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _answer(self, inputs: Sequence[Any], asked: float) -> Answer:
        began = perf_counter()
        outputs = self._bundle.predict(inputs)
        return Answer(outputs, began - asked, perf_counter() - began)

    def _pieces(self, inputs: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        task: Any = self._bundle.task
        streams: deque[tuple[int, Any]] = deque()
        first = []
        for index, given in enumerate(inputs):  # an input that cannot be answered is told before any piece is given
            try:
                pieces = task.stream(self._bundle.model, given)
                first.append((index, next(pieces)))
            except InputError as error:
                raise InputError(index, error.problem) from None
            streams.append((index, pieces))
        yield from first
        while streams:
            index, pieces = streams.popleft()
            for piece in pieces:
                yield index, piece
                streams.append((index, pieces))
                break


class Pieces:
    """What a generator yields on an engine's thread, in lists of what one turn brought, for one reader.

    At most one turn runs ahead of the reader: one that reads slowly, or no more, costs the model nothing.

    Args:
        executor: with the engine's thread.
        pieces: the generator; its code runs on that thread only.
    """

    def __init__(self, executor: ThreadPoolExecutor, pieces: Generator[Any, None, None]) -> None:
        self._executor = executor
        self._pieces = pieces
        self._turn: Future[tuple[list[Any], bool]] | None = executor.submit(self._take, 0.0)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> list[Any]:
        """The pieces of the next turn, one at least; the first turn brings the first piece alone.

        Raises:
            Exception: what the generator raised; the stream is over then.
        """
        if self._turn is None:
            raise StopAsyncIteration
        turn, self._turn = self._turn, None
        try:
            taken, ended = await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            self._turn = turn
            raise
        if not ended:
            self._turn = self._executor.submit(self._take, TURN)
        if not taken:
            raise StopAsyncIteration
        return taken

    def close(self) -> None:
        """Drop what was not read and end the generator; a turn of it that runs is the last."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
            with suppress(RuntimeError):  # the engine is closed: nothing is computed any more
                self._executor.submit(self._pieces.close)

    def _take(self, seconds: float) -> tuple[list[Any], bool]:
        taken = []
        end = perf_counter() + seconds
        for piece in self._pieces:
            taken.append(piece)
            if perf_counter() >= end:
                return taken, False
        return taken, True
