"""Several processes at one port: what dies is replaced, what is accepted is answered, and all end together."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import psutil
import pytest

from serving import workers
from serving.settings import Settings

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds that nothing here takes, however busy the machine is."""


HANG = 1.0
"""Seconds of silence after which a worker is killed; it gives ten signs of life in that time."""
STUB = "tests.serving.stub"
"""Starts quickly, since it has no model."""


class Running:
    """``python -m serving`` as a person runs it, or the same processes without models, in a group of their own."""

    def __init__(self, *arguments: str, module: str = "serving", **settings: object) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SEQAPP_")}
        environment |= {f"SEQAPP_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--port", "0"],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def welcome(self) -> list[str]:
        assert self.process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ctrl+C"):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.said}"
            lines.append(line.rstrip())
        url = next(line.split()[1] for line in lines if line.startswith("playground"))
        self.port = int(urlsplit(url).port or 0)
        return lines

    def children(self) -> set[int]:
        found = set()
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                # Python's own helper of spawned processes is a child, too.
                if "resource_tracker" not in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found

    @contextmanager
    def asked(self, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """The answer over a connection of its own: to POST with a body, else to GET."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            sent = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, sent, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                yield answer

    def status(self, path: str, body: Any = None) -> int:
        with self.asked(path, body) as answer:
            answer.read()
            return answer.status

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it and all that it started, whatever state it is in."""
        family = [psutil.Process(child) for child in self.children()] if self.process.poll() is None else []
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(*arguments: str, module: str = "serving", **settings: object) -> Iterator[Running]:
    server = Running(*arguments, module=module, **settings)
    try:
        yield server
    finally:
        server.close()


def until(happened: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@contextmanager
def load(server: Running, threads: int = 2) -> Iterator[Counter[str]]:
    """Ask again and again, each time over a connection of its own; counts what came of it."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                seen[str(server.status("/v1/sentiment", {"inputs": "good soup"}))] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[type(error).__name__] += 1
            time.sleep(0.01)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in asking:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in asking), "a request hangs"


class Held:
    """A request whose last byte has not been sent."""

    def __init__(self, server: Running) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        self._connection.putrequest("POST", "/held")
        self._connection.putheader("Content-Length", "2")
        self._connection.endheaders(b"x")
        self._answer = self._connection.getresponse()
        self.pid = int(self._answer.headers["X-Pid"])

    def finish(self) -> bytes:
        with closing(self._connection):
            assert self._connection.sock is not None
            self._connection.sock.sendall(b"x")
            return self._answer.read()


def hold(server: Running) -> list[Held]:
    """Requests until each of two workers has one."""
    found = [Held(server)]

    def more() -> bool:
        found.append(Held(server))
        return len({one.pid for one in found}) == 2

    until(more)
    return found


@pytest.fixture(scope="module")
def stub() -> Iterator[Running]:
    with running(module=STUB, workers=2, hang_seconds=HANG, shutdown_seconds=30) as server:
        server.welcome()
        yield server


def test_a_killed_worker_is_replaced_and_the_other_goes_on(stub: Running) -> None:
    before = stub.children()
    with load(stub) as seen:
        until(lambda: seen["200"] > 20)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(stub.children() - before) == 1)
        until(lambda: any(f"worker {victim} was ended by SIGKILL" in line for line in stub.said))
        many = seen["200"]
        until(lambda: seen["200"] > many + 20)
    assert victim not in stub.children()
    # Each thread had at most one request in the worker that died, and that one was cut off, not kept waiting.
    assert seen.total() - seen["200"] <= 2, seen
    assert len(stub.children()) == 2


def test_a_worker_that_hangs_is_replaced(stub: Running) -> None:
    victim = min(stub.children(), key=lambda pid: psutil.Process(pid).create_time())  # which is not still loading
    os.kill(victim, signal.SIGSTOP)
    until(lambda: any(re.search(rf"worker {victim} was silent for \d+ s and was killed", line) for line in stub.said))
    until(lambda: len(children := stub.children()) == 2 and victim not in children)


def test_hangup_renews_the_workers_one_after_the_other_without_losing_a_request(stub: Running) -> None:
    before = until(lambda: children if len(children := stub.children()) == 2 else None)
    with load(stub) as seen:
        stub.process.send_signal(signal.SIGHUP)
        until(lambda: len(children := stub.children()) == 2 and not children & before)
        many = seen["200"]
        until(lambda: seen["200"] > many + 10)
    assert set(seen) == {"200"}


def test_a_group_that_is_told_to_stop_answers_what_was_accepted() -> None:
    with running(module=STUB, workers=2, shutdown_seconds=30) as server:
        server.welcome()
        asked = hold(server)
        os.killpg(server.process.pid, signal.SIGTERM)
        until(lambda: refuses(server))
        time.sleep(0.3)  # in which a worker that was told twice would be gone
        assert [one.finish() for one in asked] == [b"done"] * len(asked)
        assert server.end() == 0


def test_a_worker_that_is_renewed_may_finish_though_it_takes_long_and_the_server_stops() -> None:
    with running(module=STUB, workers=2, hang_seconds=HANG, shutdown_seconds=30) as server:
        server.welcome()
        before = server.children()
        asked = hold(server)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: (one := Held(server)).finish() and one.pid not in before)
        time.sleep(HANG + 0.3)  # in which one that is held to be hanging would be gone
        assert before <= server.children()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(server))
        time.sleep(0.3)
        assert [one.finish() for one in asked] == [b"done"] * len(asked)
        assert server.end() == 0
    assert not server.said


def refuses(server: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_two_workers_say_so_once_count_together_and_stop_in_good_order(tiny: Path, writers: list[str]) -> None:
    # Nothing answers so many tokens within the two seconds.
    endless = {"prompt": "", "min_tokens": 4096, "max_tokens": 4096, "n": 64, "stream": True}
    short = {"prompt": "the", "min_tokens": 50, "max_tokens": 50}
    ends: list[list[bytes]] = []
    got: list[int] = []
    nowhere = str(tiny.parent / "nowhere")
    with running(str(tiny), writers[0], nowhere, workers=2, shutdown_seconds=2) as server:
        lines = server.welcome()
        assert lines[0] == "seqapp answers with"
        assert sum("tiny" in line for line in lines) == 1
        assert sum("nowhere is not live" in line for line in server.said) == 1
        assert len(server.children()) == 2
        with server.asked("/metrics") as answer:
            said = answer.read().decode()
        assert re.search(r'^seqapp_model_live{[^}]*model="tiny"[^}]*} 2.0$', said, re.MULTILINE)
        state = until(lambda: folder_of(server))

        def read() -> None:
            with server.asked("/v1/completions", endless) as stream:
                ends.append(stream.read().split(b"\n")[-4:])

        streams = [threading.Thread(target=read) for _ in range(4)]
        whole = [threading.Thread(target=lambda: got.append(server.status("/v1/completions", short))) for _ in range(4)]
        for thread in streams:
            thread.start()
        until(lambda: accepted(server) >= 4)
        for thread in whole:
            thread.start()
        until(lambda: got or accepted(server) >= 8)
        server.process.send_signal(signal.SIGTERM)
        for thread in (*streams, *whole):
            thread.join(PATIENCE)
        assert got == [200] * 4
        assert len(ends) == 4
        for name, data, *_ in ends:
            assert name == b"event: error"
            assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "not_ready"
        assert server.end() == 0
        assert not state.exists()


def accepted(server: Running) -> float:
    with server.asked("/metrics") as answer:
        found = re.findall(r"^seqapp_inputs_in_flight{.*} ([\d.]+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize("count", [1, 2])
def test_it_says_that_it_stops_while_the_port_stays_open_and_a_second_signal_ends_it(count: int) -> None:
    with running(module=STUB, workers=count, drain_delay_seconds=3600) as server:
        server.welcome()
        children = server.children()
        assert server.status("/readyz") == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.status("/readyz") == 503)
        until(lambda: closes(server))
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM
        assert not any(map(psutil.pid_exists, children))


def closes(server: Running) -> bool:
    """Whether an answer says that its connection ends."""
    with server.asked("/") as answer:
        assert answer.status == 200
        return answer.headers["Connection"] == "close"


def folder_of(server: Running) -> Path | None:
    child = min(server.children(), default=None)
    found = child and psutil.Process(child).environ().get("PROMETHEUS_MULTIPROC_DIR")
    return Path(found).parent if found else None


def test_a_stop_signal_while_workers_load_ends_them() -> None:
    with running("loading", module=STUB, workers=2) as server:
        children = until(lambda: found if len(found := server.children()) == 2 else None)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        until(lambda: not any(map(psutil.pid_exists, children)))


def test_a_model_that_no_worker_can_load_ends_the_start() -> None:
    with running("refused", module=STUB, workers=2) as server:
        assert server.end() == 1
        until(lambda: len(server.said) == 2)
    assert server.said == [
        "serving: refused is not live\n",
        "serving: no model is live, so there is nothing to serve\n",
    ]


@pytest.mark.parametrize("model", ["loading", "answering"])
def test_workers_end_with_a_parent_that_was_killed(model: str) -> None:
    with running(model, module=STUB, workers=2) as server:
        if model == "answering":
            server.welcome()
        children = until(lambda: found if len(found := server.children()) == 2 else None)
        server.process.kill()
        until(lambda: not any(map(alive, children)))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class Doomed:
    """A worker that ends as told: ``None`` for one that answers until it is killed, else why it did not start."""

    fates: ClassVar[list[str | None]] = []
    made: ClassVar[list[Doomed]] = []
    fate = "ended"

    def __init__(self, *_: object) -> None:
        Doomed.made.append(self)
        self.pid, self.since = len(self.made), time.monotonic()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        fate = self.fates.pop(0)
        if fate is None:
            self.ready.set_result("welcome")
        else:
            self.ready.set_exception(workers.StartError(fate))
            self.ended.set()

    @property
    def answered(self) -> bool:
        return self.ready.exception() is None

    @property
    def answers(self) -> bool:
        return self.answered and not self.ended.is_set()

    async def watch(self) -> None:
        await self.ended.wait()

    async def stop(self, seconds: float) -> None:
        self.kill()

    def kill(self) -> None:
        self.ended.set()


def supervise(monkeypatch: pytest.MonkeyPatch, fates: list[str | None], then: Callable[[], None]) -> list[str]:
    """What the parent of two workers says; ``then`` is done when both answer."""
    said: list[str] = []
    monkeypatch.setattr(workers, "_Worker", Doomed)
    monkeypatch.setattr(workers, "PAUSE", 0.001)
    monkeypatch.setattr(Doomed, "fates", fates)
    monkeypatch.setattr(Doomed, "made", [])
    with socket.socket() as listener:
        code = workers.supervise(Settings(workers=2), listener, complain=said.append, started=lambda welcome: then())
    return [*said, f"status {code}"]


def test_the_server_gives_up_when_no_worker_can_be_started_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fates: list[str | None] = [None, None, *["the disk is gone"] * 20]
    said = supervise(monkeypatch, fates, lambda: [one.kill() for one in Doomed.made[:2]] and None)
    assert said[-1] == "status 1"
    assert "no other answers" in said[-2]
    assert len(Doomed.made) <= 2 + workers.TRIES + 1


def test_while_another_worker_answers_it_does_not_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def then() -> None:
        Doomed.made[0].kill()
        asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGTERM)

    said = supervise(monkeypatch, [None, None, *["the disk is gone"] * 1000], then)
    assert said[-1] == "status 0"
    assert len(Doomed.made) > 2 + 2 * workers.TRIES
