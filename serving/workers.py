"""The processes that answer: one by itself, or several that a parent keeps alive.

uvicorn has a supervisor, too (``uvicorn.supervisors.Multiprocess``); docs/decisions/0021 says what it lacks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from seqapp.errors import SeqappError
from serving import logs
from serving.observer import Observer
from serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serving.models import LiveModel, Models

log = logging.getLogger(__name__)

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which processes count together; prometheus_client reads it when imported."""
FAREWELL = 1.0
"""Seconds in which those who were cut off are told so, when the time for running requests is over."""
LEEWAY = 10.0
"""Seconds beyond the time it was given after which a worker that does not end is killed."""
BEAT = 1.0
"""Seconds from one sign of life of a worker to the next."""
STEADY = 60.0
"""A worker that answered for so many seconds is replaced at once; one that ended sooner, after a pause that doubles."""
PAUSE = 30.0
"""The longest such pause, in seconds."""
TRIES = 5
"""So often in a row a worker may fail to start while no other answers; then the server gives up."""


class StartError(Exception):
    """The server cannot start; the message says why and what would help.

    Args:
        message: for the person at the terminal.
        code: exit status: 1 for a failure, 2 for a wrong choice.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Server(uvicorn.Server):
    """uvicorn's server, which says at once that it stops, lets the port stay open a while, and lets last words out.

    Args:
        config: of uvicorn.
        app: the application, whose state is told that it stops.
        drain_delay: seconds from a stop signal to the end of the listening port.
        started: called when requests are answered.
        beat: called about once in ``BEAT`` seconds, from the event loop.
        heeds: the signals that stop it; another that uvicorn would heed is ignored.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        *,
        drain_delay: float = 0,
        started: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
        heeds: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM),
    ) -> None:
        super().__init__(config)
        self.forced = 0
        self._app, self._drain_delay, self._started, self._beat, self._heeds = app, drain_delay, started, beat, heeds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and tell."""
        await super().startup(sockets)
        if self.started:
            self._started()

    async def on_tick(self, counter: int) -> bool:
        """Say ten times a second whether to stop, and once in ``BEAT`` seconds that the event loop turns."""
        if counter % max(1, round(10 * BEAT)) == 0:
            self._beat()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in good order, the second at once; none is raised again at the end."""
        if sig not in self._heeds:
            return
        if self.should_exit:
            self.force_exit, self.forced = True, sig
        self.stop()

    def stop(self) -> None:
        """Stop in good order, asked from any thread and as often as one likes."""
        self.should_exit = self._app.state.stopping = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was accepted, or tell those whose answer takes too long that it ends."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await self._wait(self._drain_delay, lambda: True)
        for server in self.servers:
            server.close()
        # uvicorn closes a connection that was accepted and has not asked yet, though the question is on its way.
        await self._wait(
            FAREWELL, lambda: any(getattr(one, "cycle", self) is None for one in self.server_state.connections)
        )
        await super().shutdown(sockets)
        await self._wait(FAREWELL, lambda: bool(self.server_state.tasks or self.server_state.connections))

    async def _wait(self, seconds: float, going_on: Callable[[], bool]) -> None:
        end = monotonic() + seconds
        while monotonic() < end and not self.force_exit and going_on():
            await asyncio.sleep(0.02)


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    complain: Callable[[str], None],
    started: Callable[[str], None],
    beat: Callable[[], None] = lambda: None,
    begins: Callable[[Server], None] = lambda server: None,
    heeds: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM),
) -> int:
    """Load the models and answer from them in this process until a stop signal.

    Args:
        settings: of the server.
        listener: a bound socket.
        complain: told of each model that does not go live.
        started: told what answers, when it does.
        beat: called about once in ``BEAT`` seconds while the event loop turns.
        begins: given the server before it accepts anything.
        heeds: the signals that stop it.

    Returns:
        the exit status: 0, or 128 and the signal that made it stop at once.

    Raises:
        StartError: if no model is live.
        SeqappError: if the registry has none.
    """
    logs.to_terminal()
    logging.getLogger("serving").setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # These bring torch, which takes seconds; a wrong option or a taken port has been told by now.
    import torch

    from serving import protocol
    from serving.app import TASKS, create_app
    from serving.engine import THREAD_PREFIX
    from serving.metrics import Metrics

    torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    metrics = Metrics(TASKS)
    models = load(settings, metrics)
    for refusal in models.refused:
        complain(str(refusal))
    if not len(models) and not (settings.deployment and settings.poll_seconds):
        raise StartError("no model is live, so there is nothing to serve")
    host, port = listener.getsockname()[:2]
    url = url_of(str(host), port)
    app = create_app(settings.at(str(host)), models, metrics)
    protocol.allow_connections(settings.max_connections)
    config = uvicorn.Config(app, **protocol.options(settings, metrics))
    server = Server(
        config,
        app,
        drain_delay=settings.drain_delay_seconds,
        started=lambda: started(_welcome(models, url, settings)),
        beat=beat,
        heeds=heeds,
    )
    # What the imports and the models made stays: to look through all of it for garbage stops every request for long.
    gc.collect()
    gc.freeze()
    begins(server)
    server.run([listener])
    code = 128 + server.forced if server.forced else 0
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_PREFIX):
            thread.join(0.5)
            if thread.is_alive():  # a forward pass cannot be stopped, and its caller has been cut off
                sys.stdout.flush()
                sys.stderr.flush()
                logging.shutdown()
                os._exit(code)
    return code


def url_of(host: str, port: int) -> str:
    """Where a browser finds a server that listens at ``host``; one that listens everywhere is told by its name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load(settings: Settings, observer: Observer) -> Models:
    """The models that ``settings`` name, live.

    Args:
        settings: of the server.
        observer: is told what happens to them.

    Raises:
        SeqappError: if nothing is asked for and the registry has no champion, or the file of deployments does not fit.
    """
    from serving import deployment
    from serving.app import ANSWERED
    from serving.engine import Limits
    from serving.models import go_live

    return go_live(
        settings.models,
        settings.threads,
        ANSWERED,
        deployments=deployment.read(settings.deployment) if settings.deployment else (),
        observer=observer,
        limits=Limits(settings.max_waiting, settings.max_waiting_tokens, settings.max_wait_seconds),
    )


def supervise(
    settings: Settings, listener: socket.socket, *, complain: Callable[[str], None], started: Callable[[str], None]
) -> int:
    """Keep ``settings.workers`` processes that answer at one port, and replace those that die or hang.

    SIGTERM and SIGINT stop all of them, a second one at once; SIGHUP starts them anew one after the other, each when
    its successor answers. Workers themselves heed no signal, since one may be sent to the whole group: the parent tells
    them through a pipe.

    Args:
        settings: of the server.
        listener: a bound socket, which all workers share: what one of them has not accepted another does.
        complain: told in a line what goes wrong.
        started: told what answers, when all workers do.

    Returns:
        the exit status, as :func:`serve` has it, or 1 if no worker could be kept alive.

    Raises:
        StartError: if a worker cannot start.
    """
    with tempfile.TemporaryDirectory(prefix="seqapp-", ignore_cleanup_errors=True) as folder:
        metrics = Path(folder) / "metrics"
        metrics.mkdir()
        shared = settings.model_copy(update={"state": Path(folder)})
        before = os.environ.get(MULTIPROCESS)
        os.environ[MULTIPROCESS] = str(metrics)
        try:
            with asyncio.Runner() as runner:
                return runner.run(_Parent(shared, listener, complain, started).run())
        finally:
            os.environ.pop(MULTIPROCESS)
            if before is not None:
                os.environ[MULTIPROCESS] = before


class _Worker:
    """A process that answers, as its parent sees it; made inside of an event loop."""

    def __init__(self, settings: Settings, listener: socket.socket, complain: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(settings, listener, theirs), daemon=True)
        self._process.start()
        theirs.close()  # or its end would not be noticed
        self._complain, self._settings, self._asked = complain, settings, False
        self.ready: asyncio.Future[str] = self._loop.create_future()
        self.ended = asyncio.Event()
        self.fate = ""
        """What became of it, as words that follow its name; known when it has ended."""
        self.since = self._heard = monotonic()
        self._loop.add_reader(self._pipe.fileno(), self._read)
        self._loop.add_reader(self._process.sentinel, self._end)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def answered(self) -> bool:
        """Whether it ever did."""
        return self.ready.done() and self.ready.exception() is None

    @property
    def answers(self) -> bool:
        return self.answered and not self.ended.is_set()

    def kill(self) -> None:
        self._process.kill()

    async def watch(self) -> None:
        """Kill it if it is silent for too long, until it is asked to stop: then :meth:`stop` says how long it may."""
        while not self.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), BEAT)
            if self._asked:
                return
            silent = monotonic() - self._heard
            if silent > (self._settings.hang_seconds if self.answered else self._settings.start_seconds):
                self.fate = f"was silent for {silent:.0f} s and was killed"
                self.kill()
                await self.ended.wait()

    async def stop(self, seconds: float) -> None:
        """Ask it to stop, and kill it if it has not ended after so many seconds; to ask again hastens nothing."""
        if not self._asked:
            self._asked = True
            with suppress(OSError):
                self._pipe.send_bytes(b"stop")
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            self._complain(f"worker {self.pid} did not end within {seconds:.0f} s and is killed")
            self.kill()
            await self.ended.wait()

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                message = json.loads(self._pipe.recv_bytes())
                self._heard = monotonic()
                if "complaint" in message:
                    self._complain(message["complaint"])
                if "failed" in message and not self.ready.done():
                    self.ready.set_exception(StartError(message["failed"]))
                if "ready" in message and not self.ready.done():
                    self.since = monotonic()
                    self.ready.set_result(message["ready"])
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())

    def _end(self) -> None:
        self._read()  # its last words
        self._loop.remove_reader(self._process.sentinel)
        self._loop.remove_reader(self._pipe.fileno())
        self._process.join()
        self._pipe.close()
        code = self._process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        self.fate = self.fate or how
        if not self.ready.done():
            self.ready.set_exception(StartError(f"worker {self.pid} {self.fate} before it answered"))
        if not self.answered:
            self.fate = f"did not start: {self.ready.exception()}"
        self.ended.set()
        assert self._settings.state is not None
        (self._settings.state / "reload" / f"worker-{self.pid}").unlink(missing_ok=True)
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(self.pid)  # type: ignore[no-untyped-call]


class _Parent:
    """What keeps the workers; of use for one run."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        complain: Callable[[str], None],
        started: Callable[[str], None],
    ) -> None:
        self._settings, self._listener, self._complain, self._started = settings, listener, complain, started
        self._allowed = settings.drain_delay_seconds + settings.shutdown_seconds + FAREWELL + LEEWAY
        self._places: list[_Worker] = []
        self._processes: set[_Worker] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewing = asyncio.Lock()
        self._failed = self._forced = 0

    async def run(self) -> int:
        """Start the workers, keep them, and stop them after a signal."""
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            await self._until_over(self._start())
            code = await self._over
            for task in self._tasks:
                task.cancel()
            self._listener.close()
            await asyncio.gather(*(worker.stop(self._allowed) for worker in self._processes))
            return self._forced or code
        finally:
            for worker in self._processes:
                worker.kill()
            await asyncio.gather(*(worker.ended.wait() for worker in self._processes))

    def _signalled(self, number: int) -> None:
        if self._over.done():  # the second one
            self._forced = 128 + number
            for worker in self._processes:
                worker.kill()
        elif number != signal.SIGHUP:
            self._over.set_result(0)
        elif self._places:
            self._go_on(self._renew())

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_over(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {task, self._over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        task.cancel()

    async def _start(self) -> None:
        said: set[str] = set()

        def once(line: str) -> None:  # every worker loads the same models
            if line not in said:
                said.add(line)
                self._complain(line)

        workers = [self._new(once) for _ in range(self._settings.workers)]
        welcome, *_ = await asyncio.gather(*(asyncio.shield(worker.ready) for worker in workers))
        self._places = workers
        for place in range(len(workers)):
            self._go_on(self._keep(place))
        self._started(welcome)

    def _new(self, complain: Callable[[str], None] | None = None) -> _Worker:
        worker = _Worker(self._settings, self._listener, complain or self._complain)
        self._processes.add(worker)
        self._go_on(worker.watch())
        worker.ready.add_done_callback(lambda ready: ready.exception())  # whether anybody asks or not
        return worker

    async def _keep(self, place: int) -> None:
        """Have a worker at ``place``, whatever becomes of the one that is there."""
        pause = 0.0
        while True:
            worker = self._places[place]
            await worker.ended.wait()
            self._processes.discard(worker)
            if self._places[place] is not worker:  # it was renewed
                continue
            steady = worker.answered and monotonic() - worker.since > STEADY
            self._failed = 0 if worker.answered else self._failed + 1
            if self._failed >= TRIES and not any(other.answers for other in self._processes):
                self._complain(
                    f"worker {worker.pid} {worker.fate}; {TRIES} in a row did, and no other answers: the server ends"
                )
                if not self._over.done():
                    self._over.set_result(1)
                return
            pause = 0.0 if steady else pause
            self._complain(
                f"worker {worker.pid} {worker.fate}; another starts {f'in {pause:.0f} s' if pause else 'now'}"
            )
            await asyncio.sleep(pause)
            pause = min(PAUSE, 2 * pause or 1.0)
            if self._places[place] is worker:
                self._places[place] = self._new()

    async def _renew(self) -> None:
        """Replace each worker by a new one that answers already."""
        async with self._renewing:
            for place in range(len(self._places)):
                new = self._new()
                try:
                    await asyncio.shield(new.ready)
                except StartError as error:
                    self._complain(f"no worker is started anew, since the first one did not start: {error}")
                    self._processes.discard(new)
                    return
                old, self._places[place] = self._places[place], new
                await old.stop(self._allowed)


def _work(settings: Settings, listener: socket.socket, parent: Connection) -> None:
    """Be a worker, until the parent says or ends."""
    # A terminal or a service manager may signal every process of a group, but the parent is who decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    servers: list[Server] = []
    threading.Thread(target=_obey, args=(parent, servers), daemon=True).start()

    def tell(**message: str) -> None:
        with suppress(OSError):
            parent.send_bytes(json.dumps(message).encode())

    try:
        code = serve(
            settings,
            listener,
            complain=lambda line: tell(complaint=line),
            started=lambda welcome: tell(ready=welcome),
            beat=tell,
            begins=servers.append,
            heeds=(),
        )
    except (StartError, SeqappError) as error:
        tell(failed=str(error))
        code = 1
    sys.exit(code)


def _obey(parent: Connection, servers: list[Server]) -> None:
    """Stop when the parent says so or is gone; at once if no server has begun yet, since nobody waits for it."""
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    if servers:
        servers[0].stop()
    else:
        os._exit(0)


def _welcome(models: Models, url: str, settings: Settings) -> str:
    width = max((len(model.id) for model in models), default=0)
    lines = ["seqapp answers with"]
    for model in models:
        version = f"version {model.reference.version}" if model.reference.version else ""
        alias = f"@{model.reference.alias}" if model.reference.alias else ""
        cached = model.source if model.since else ""
        about = ", ".join(filter(None, (model.task, version, alias, _figure(model), cached)))
        lines.append(f"  {model.id:<{width}}  {about}")
    lines += [f"playground  {url}/"] + ([f"documents   {url}{settings.docs_url}"] if settings.docs_url else [])
    return "\n".join([*lines, "Ctrl+C stops it."])


def _figure(model: LiveModel) -> str:
    """The score that chose the model's weights, as a person reads it."""
    task = model.bundle.task
    name = task.selection[0]
    split = next((split for split in ("test", "validation") if name in model.scores.get(split, {})), None)
    title = task.titles.get(name, name)
    if split is None:
        return f"no {title} known"
    value = model.scores[split][name]
    return f"{value:.1%} {split} {title}" if name in task.shares else f"{value:.3f} {split} {title}"
