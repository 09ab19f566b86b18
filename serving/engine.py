"""Where a model computes: one thread of its own, on which requests are answered side by side.

The thread takes in what waits, computes one step of the running batch, tells the event loop what came of it, and begins
again. Between two steps requests join and leave. The event loop itself only counts and waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

import torch

from seqapp.bundle import Bundle
from seqapp.errors import SeqappError
from seqapp.tasks import InputError
from seqapp.tasks.running import Failed, Running, Said
from serving.observer import Observer

log = logging.getLogger(__name__)

THREAD_PREFIX = "seqapp-model"
MOST_AHEAD = 256
"""Pieces of a stream that wait for its reader before its work pauses."""
CUT_OFF = 4096
"""Pieces that wait for the reader of a stream whose work cannot pause before it is cut off."""
TURN = 0.02
"""Seconds for which pieces of a stream are gathered before they are told, all but the first: a person sees no pause."""
HALF_LIFE = 2.0
"""Seconds of work after which a measured speed counts half."""


class Refused(SeqappError):
    """The engine does not take, or does not finish, a request now; later it may.

    Args:
        problem: why not, for a person.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(self, problem: str, retry_after: float = 1.0) -> None:
        super().__init__(problem)
        self.retry_after = max(1, math.ceil(retry_after))


class Overloaded(Refused):
    """Too much waits already."""


class Closed(Refused):
    """The engine is closed, or closes, or has died."""


class Late(SeqappError):
    """A request took too long, or its reader did, and its work has stopped.

    Args:
        message: what took too long.
        begun: whether there was any work.
    """

    def __init__(self, message: str, *, begun: bool = True) -> None:
        super().__init__(message)
        self.begun = begun


class Died(RuntimeError):
    """An engine stopped while it had requests: a fault of the server."""


@dataclass(frozen=True)
class Limits:
    """What may wait for one engine. Beyond that requests are refused, so that those accepted are answered in time.

    A request is never too large for an engine: what counts is what waits when it comes.

    Args:
        inputs: most inputs that wait.
        tokens: most tokens of work that wait, about (:meth:`seqapp.tasks.base.Task.effort`).
        seconds: longest estimated wait.
    """

    inputs: int = 1024
    tokens: int = 2_000_000
    seconds: float = 5.0


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


class Load(NamedTuple):
    """How much an engine has to do.

    Args:
        requests: accepted and not answered.
        waiting: inputs that have not joined the running batch.
        running: inputs that have.
        seconds: estimated wait of a new input.
    """

    requests: int
    waiting: int
    running: int
    seconds: float


class Engine:
    """Answers requests with one bundle.

    Args:
        bundle: the loaded bundle.
        threads: how many threads one forward pass may use.
        name: of the model, for the observer.
        version: of the model, for the observer.
        limits: what may wait.
        observer: told of steps and of requests that end.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        *,
        name: str = "",
        version: str = "",
        limits: Limits = Limits(),
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits
        self._bundle = bundle
        self._observer = observer or Observer()
        self._labels = bundle.manifest.task, name, version
        self._name = name or bundle.manifest.name
        self._threads = threads
        # New requests, those that have left, those whose reader took something; None closes.
        self._inbox: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._running = self._tokens = 0
        self._load_told = 0, 0
        self._pace = _Pace()
        self._requests: set[_Request] = set()
        self._held = 0
        self._idle: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._end: Closed | Died | None = None
        self._thread = threading.Thread(target=self._work, name=f"{THREAD_PREFIX} {name}".strip(), daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers: it has neither been closed nor died."""
        return self._end is None

    @property
    def load(self) -> Load:
        """How much it has to do."""
        return Load(len(self._requests), self._waiting, self._running, self._pace.seconds(self._tokens))

    async def predict(self, inputs: Sequence[Any], deadline: float | None = None) -> Answer:
        """Answer ``inputs``, each a ``task.Input``. The work of a caller that is cancelled stops.

        Args:
            inputs: one or more.
            deadline: of the answer, in seconds of ``time.monotonic``.

        Raises:
            InputError: for every input that cannot be answered.
            Overloaded: at once, if too much waits, or the deadline would pass before the first step.
            Late: when the deadline passes.
            Closed: if the engine does not answer any more.
        """
        request = self._ask(inputs, deadline, None)
        try:
            return await request.future
        finally:
            self._leave(request, "gone")  # nothing happens to one that is answered

    def stream(self, inputs: Sequence[Any], deadline: float | None = None) -> Pieces:
        """Answer ``inputs`` piece by piece, for a task whose running batch gives pieces.

        Returns:
            the pieces of all inputs side by side, each as (index of its input, piece); the caller closes it.

        Raises:
            Overloaded, Late, Closed: at once, as :meth:`predict`; the other errors come with the pieces.
        """
        pieces = Pieces(self)
        pieces.request = self._ask(inputs, deadline, pieces)
        return pieces

    @contextmanager
    def held(self) -> Iterator[None]:
        """Count as a request that is not answered, so that :meth:`drain` waits."""
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
            self._tell_idle()

    async def drain(self) -> None:
        """Wait until every request is answered and nobody holds the engine."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            self._idle.append((loop, future))
        self._tell_idle()
        await future

    def close(self) -> None:
        """Take no more requests and fail those that wait; a step that runs is not stopped."""
        with self._lock:
            self._end = self._end or Closed("the model is being taken out of service")
        self._fail_all()
        self._inbox.put(None)

    # On the event loop

    def _ask(self, inputs: Sequence[Any], deadline: float | None, pieces: Pieces | None) -> _Request:
        loop = asyncio.get_running_loop()
        effort = self._bundle.task.effort
        request = _Request(loop, inputs, [effort(given) for given in inputs], pieces)
        with self._lock:
            if self._end is not None:
                raise Closed(str(self._end))
            problem = self._too_much(deadline, request.asked)
            if problem is None:
                self._waiting += len(inputs)
                self._tokens += sum(request.efforts)
                self._requests.add(request)
        if problem is not None:
            outcome = "late" if isinstance(problem, Late) else "overloaded"
            self._observer.finished(*self._labels, outcome, queued=0.0, computed=0.0, tokens=0)
            raise problem
        if deadline is not None:
            request.timer = loop.call_later(deadline - request.asked, self._leave, request, "late")
        self._inbox.put(request)
        return request

    def _too_much(self, deadline: float | None, now: float) -> Exception | None:
        if deadline is not None and deadline <= now:
            return Late("the deadline has passed already", begun=False)
        seconds = self._pace.seconds(self._tokens)
        if self._waiting >= self.limits.inputs or self._tokens >= self.limits.tokens:
            return Overloaded(f"{self._waiting} inputs wait already", seconds)
        if seconds > self.limits.seconds:
            return Overloaded(f"the wait would be about {seconds:.1f} s", seconds - self.limits.seconds)
        if deadline is not None and now + seconds > deadline:
            return Overloaded(f"the wait would be about {seconds:.1f} s, longer than the deadline allows", seconds)
        return None

    def _leave(self, request: _Request, outcome: str) -> None:
        """End a request that is not answered, and let the thread forget it."""
        if not request.over:
            late = Late("the deadline has passed, and the work was stopped", begun=request.joined > 0)
            self._finish(request, outcome, late if outcome == "late" else None)
            self._inbox.put(request)

    def _deliver(self, told: Sequence[_Told]) -> None:
        for request, pieces, outcome, result in told:
            if request.over:
                continue
            if request.pieces is not None and pieces:
                request.written += sum(self._bundle.task.written(piece) for _, piece in pieces)
                request.pieces.add(pieces)
            if outcome:
                self._finish(request, outcome, result)

    def _finish(self, request: _Request, outcome: str, result: Answer | Exception | None) -> None:
        request.over = True
        if request.timer is not None:
            request.timer.cancel()
        with self._lock:
            self._requests.discard(request)
        if request.pieces is not None:
            request.pieces.end(result if isinstance(result, Exception) else None)
        elif isinstance(result, Answer):
            request.written = sum(map(self._bundle.task.written, result.outputs))
            if not request.future.done():
                request.future.set_result(result)
        elif not request.future.done():
            request.future.set_exception(result or asyncio.CancelledError())
            request.future.exception()  # a caller that has left does not ask
        self._observer.finished(*self._labels, outcome, queued=request.queued, computed=request.computed,
                                tokens=request.written)  # fmt: skip
        self._tell_idle()

    def _tell_idle(self) -> None:
        with self._lock:
            if not self._idle or self._held or self._requests:
                return
            idle, self._idle = self._idle, []
        for loop, future in idle:
            with suppress(RuntimeError):  # that loop is closed, and nobody waits
                loop.call_soon_threadsafe(_set, future)

    # On the thread

    def _work(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            self._answer_all()
        except BaseException as error:
            log.exception("the engine of %s has died", self._name)
            with self._lock:
                if self._end is None:
                    self._observer.load(*self._labels, waiting=0, running=0)
                self._end = Died(f"the model has stopped: {type(error).__name__}")
        self._fail_all()
        self._waiting = self._running = self._tokens = 0  # nothing is taken in or let go any more

    def _fail_all(self) -> None:
        end = self._end
        assert end is not None
        with self._lock:
            left = list(self._requests)
        outcome = "failed" if isinstance(end, Died) else "gone"
        # Each has an exception of its own, which would keep what it was raised through in memory.
        self._send([(request, [], outcome, type(end)(str(end))) for request in left])

    def _answer_all(self) -> None:
        running = self._bundle.task.running(self._bundle.model)
        waiting: deque[_Request] = deque()
        paused: set[_Request] = set()
        while self._take_in(running, waiting, paused):
            running = self._turn(running, waiting, paused)

    def _take_in(self, running: Running, waiting: deque[_Request], paused: set[_Request]) -> bool:
        """Read the inbox, and wait for it if there is nothing to compute; False if the engine is closed."""
        for request in [one for one in paused if not one.inside]:
            paused.discard(request)
            request.paused = False
        idle = _halted(running, paused) and not waiting
        if idle:
            self._tell_load(running)
        while idle or not self._inbox.empty():
            idle = False
            came = self._inbox.get()
            if came is None:
                return False
            if came.over:
                self._forget(running, came)
            elif not came.seen:
                came.seen = True
                waiting.append(came)
            elif came in paused:
                paused.discard(came)
                self._pause(running, came, paused=False)
        return True

    def _turn(self, running: Running, waiting: deque[_Request], paused: set[_Request]) -> Running:
        """Let in what there is room for, compute a step and tell what came of it; the batch for the next turn."""
        touched = self._join(running, waiting, paused)
        inputs = len(running)
        began = now = monotonic()
        if computes := not _halted(running, paused):
            try:
                events = running.step()
            except Exception as error:  # nobody knows whose fault it is: those inside fail, not those who wait
                log.exception("a step of %s failed", self._name)
                events = []
                touched |= self._fail_inside(running, error)
                running = self._bundle.task.running(self._bundle.model)
                paused.clear()
            now = monotonic()
            touched |= self._collect(running, events, began, now)
            inputs = len(events) if running.one_step else inputs
        told = []
        for request in touched:
            pieces = request.ready(now - TURN)
            if request.joined < len(request.inputs) and not request.outcome:
                # What is kept until the last input has joined is bounded, too; to pause makes room for it.
                self._hold_back(running, request, len(request.early), 0, paused)
            elif pieces and not request.outcome and request.pieces is not None:
                behind = request.sent - request.pieces.taken
                request.sent += len(pieces)
                self._hold_back(running, request, behind + len(pieces), behind, paused)
            if pieces or request.outcome:
                told.append((request, pieces, request.outcome, request.result))
        if computes:  # told before the answers are, so that whoever has one finds it counted
            self._pace.worked(now - began, saturated=bool(waiting))
            self._tell_load(running, (inputs, now - began))
        if told:
            self._send(told)
        return running

    def _tell_load(self, running: Running, step: tuple[int, float] | None = None) -> None:
        """Tell how much there is to do, if that has changed, and of a ``step`` its inputs and seconds.

        Nothing is told after the end: nobody would correct it.
        """
        self._running = len(running)
        with self._lock:
            if self._end is not None:
                return
            if step is not None:
                self._observer.batch(*self._labels, inputs=step[0], seconds=step[1])
            load = self._waiting, self._running
            if load != self._load_told:
                self._load_told = load
                self._observer.load(*self._labels, waiting=load[0], running=load[1])

    def _join(self, running: Running, waiting: deque[_Request], paused: set[_Request]) -> dict[_Request, None]:
        """Let inputs in while there is room, one of each request in turn, so that a large one holds up no other.

        Where all inside pause there is room, too: some may pause until another has joined.
        """
        touched: dict[_Request, None] = {}
        inputs = tokens = 0
        while waiting and (not running.full or _halted(running, paused)):
            request = waiting.popleft()
            if request.over or request.joined == len(request.inputs):
                continue
            index = request.joined
            request.joined += 1
            inputs += 1
            tokens += request.efforts[index]
            if request.began is None and not running.one_step:
                request.began = monotonic()
            try:
                running.join((request, index), request.inputs[index], stream=request.pieces is not None)
                request.inside.add(index)
                if request in paused:
                    running.pause((request, index), paused=True)
            except InputError as error:
                request.problems[index] = error.problem
                request.misfit = True
            except Exception as error:
                self._fail(running, request, error)
                touched[request] = None
                continue
            if request.joined < len(request.inputs):
                waiting.append(request)
            elif request.misfit:
                self._fail(running, request, InputError.of(request.problems))
                touched[request] = None
            elif request.early:
                touched[request] = None
        if inputs:
            self._pace.joined(tokens)
            with self._lock:
                self._waiting -= inputs
                self._tokens -= tokens
        return touched

    def _collect(
        self, running: Running, events: Sequence[Said | Failed], began: float, now: float
    ) -> dict[_Request, None]:
        """Hand what a step said to the requests that asked."""
        touched: dict[_Request, None] = {}
        for event in events:
            key: Any = event.key  # as it joined
            request: _Request = key[0]
            index: int = key[1]
            if request.outcome:
                continue
            touched[request] = None
            request.ended = now
            if request.began is None:
                request.began = began
            if isinstance(event, Said):
                if request.pieces is None:
                    request.outputs[index] = event.value
                elif event.value is not None:
                    request.early.append((index, event.value))
                if not event.last:
                    continue
            elif isinstance(event.error, InputError):
                request.problems[index] = event.error.problem
            else:
                request.inside.discard(index)
                self._fail(running, request, event.error)
                continue
            request.inside.discard(index)
            request.left -= 1
            if not request.left:
                if request.problems:
                    self._fail(running, request, InputError.of(request.problems))
                else:
                    request.outcome = "ok"
                    request.result = Answer(request.outputs, request.queued, request.computed)
        return touched

    def _fail(self, running: Running, request: _Request, error: Exception) -> None:
        request.outcome = "invalid" if isinstance(error, InputError) else "failed"
        request.result = error
        self._forget(running, request)

    def _fail_inside(self, running: Running, error: Exception) -> dict[_Request, None]:
        with self._lock:
            inside = {request: None for request in self._requests if request.inside}
        for request in inside:
            request.inside.clear()
            self._fail(running, request, error)
        return inside

    def _forget(self, running: Running, request: _Request) -> None:
        """Stop the work of a request, and count what waits of it no more."""
        for index in request.inside:
            running.leave((request, index))
        request.inside.clear()
        rest = request.efforts[request.joined :]
        request.joined = len(request.inputs)
        with self._lock:
            self._waiting -= len(rest)
            self._tokens -= sum(rest)

    def _hold_back(self, running: Running, request: _Request, ahead: int, behind: int, paused: set[_Request]) -> None:
        """Let a stream wait that is ahead of its reader, and end it where the reader is far behind what it was told."""
        if behind >= CUT_OFF:
            self._fail(running, request, Late(f"the reader is {behind} pieces behind, and the work was stopped"))
        elif ahead >= MOST_AHEAD and request not in paused:
            paused.add(request)
            self._pause(running, request, paused=True)

    def _pause(self, running: Running, request: _Request, *, paused: bool) -> None:
        request.paused = paused
        for index in request.inside:
            running.pause((request, index), paused=paused)

    def _send(self, told: Sequence[_Told]) -> None:
        """Tell each event loop, once, what there is for its requests."""
        loops: dict[asyncio.AbstractEventLoop, list[_Told]] = {}
        for one in told:
            loops.setdefault(one[0].loop, []).append(one)
        for loop, own in loops.items():
            try:
                loop.call_soon_threadsafe(self._deliver, own)
            except RuntimeError:  # that loop is closed, and nobody waits
                for request, *_ in own:
                    request.over = True
                    self._inbox.put(request)
                    with self._lock:
                        self._requests.discard(request)


class Pieces:
    """The pieces of a stream, in lists of what came since the last, for one reader.

    Some may wait for the reader; then the work pauses, so that one who reads slowly, or no more, costs little.

    Args:
        engine: that computes.
    """

    request: _Request

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self.waiting: list[tuple[int, Any]] = []
        self.taken = 0
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> list[tuple[int, Any]]:
        """What came since the last call, one piece at least; the first call tells what is wrong with any input.

        Raises:
            InputError: in the first call, for every input that cannot be answered.
            Late: when the deadline has passed, or the reader is too far behind.
            Closed: if the engine does not answer any more.
        """
        while not self.waiting:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            self._reader = self.request.loop.create_future()
            await self._reader
        taken, self.waiting = self.waiting, []
        self.taken += len(taken)
        if self.request.paused and self._engine is not None:
            self._engine._inbox.put(self.request)
        return taken

    @property
    def timing(self) -> str:
        """As the header ``Server-Timing`` has it, once there is a piece; how long all take is not known then."""
        return f"queue;dur={1000 * self.request.queued:.2f}"

    @property
    def written(self) -> int:
        """Tokens so far, read or not."""
        return self.request.written

    def close(self) -> None:
        """Drop what was not read and stop the work."""
        self.waiting, self._error = [], None
        if self._engine is not None:
            self._engine._leave(self.request, "gone")

    def add(self, pieces: Sequence[tuple[int, Any]]) -> None:
        """Let the reader have some more."""
        self.waiting += pieces
        self._wake()

    def end(self, error: Exception | None) -> None:
        """Let the reader know that no more come, and why."""
        self._ended, self._error = True, error
        self._engine = None  # it and its request refer to one another, and would keep a replaced model in memory
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            _set(self._reader)


class _Request:
    """What was asked at once, and how far it is. The thread writes all but ``over``, ``written`` and ``timer``."""

    __slots__ = (
        "asked", "began", "early", "efforts", "ended", "future", "inputs", "inside", "joined", "left", "loop",
        "misfit", "outcome", "outputs", "over", "paused", "pieces", "problems", "result", "seen", "sent", "timer",
        "told", "written",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, inputs: Sequence[Any], efforts: list[int], pieces: Pieces | None
    ) -> None:
        self.loop, self.inputs, self.efforts, self.pieces = loop, inputs, efforts, pieces
        self.future: asyncio.Future[Answer] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.over = self.seen = self.paused = self.misfit = False
        self.asked = monotonic()
        self.began: float | None = None
        self.ended: float | None = None
        self.told: float | None = None
        self.joined, self.left, self.inside = 0, len(inputs), set[int]()
        self.outputs: list[Any] = [None] * len(inputs)
        self.problems: dict[int, str] = {}
        self.early: list[tuple[int, Any]] = []
        self.outcome, self.sent, self.written = "", 0, 0
        self.result: Answer | Exception | None = None

    @property
    def queued(self) -> float:
        return (monotonic() if self.began is None else self.began) - self.asked

    @property
    def computed(self) -> float:
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began

    def ready(self, before: float) -> list[tuple[int, Any]]:
        """Pieces to tell, if some were told ``before`` that time or never, and in any case at the end.

        None is told until every input has joined, for what is wrong with one is told before any.
        """
        waits = self.told is not None and self.told > before and not self.outcome
        if not self.early or waits or self.joined < len(self.inputs) or self.problems:
            return []
        self.told = self.ended
        early, self.early = self.early, []
        return early


_Told = tuple[_Request, list[tuple[int, Any]], str, Answer | Exception | None]
"""Pieces of a request, and its outcome if it has ended."""


class _Pace:
    """How quickly what waits is let in, measured while something waits."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._saturated = False

    def joined(self, tokens: int) -> None:
        """So many tokens of work were let in."""
        self._tokens += tokens * self._saturated

    def worked(self, seconds: float, *, saturated: bool) -> None:
        """A step took so long; ``saturated``: something waited meanwhile."""
        self._saturated = saturated
        if saturated:
            kept = 0.5 ** (seconds / HALF_LIFE)
            self._tokens, self._seconds = self._tokens * kept, self._seconds * kept + seconds

    def seconds(self, tokens: int) -> float:
        """How long so many tokens wait; 0 as long as nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


def _halted(running: Running, paused: set[_Request]) -> bool:
    """Whether there is nothing to compute: nobody is inside whose reader keeps up."""
    return len(running) <= sum(len(request.inside) for request in paused)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
