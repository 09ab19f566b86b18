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


class Running:
    """``python -m serving`` as a person runs it."""

    def __init__(self, *arguments: str, **settings: object) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SEQAPP_")}
        environment |= {f"SEQAPP_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving", *arguments, "--port", "0"],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
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
def running(*arguments: str, **settings: object) -> Iterator[Running]:
    server = Running(*arguments, **settings)
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


@pytest.fixture(scope="module")
def two(tiny: Path, writers: list[str]) -> Iterator[Running]:
    with running(str(tiny), writers[0], "nowhere", workers=2, hang_seconds=2, shutdown_seconds=5) as server:
        server.lines = server.welcome()  # type: ignore[attr-defined]
        yield server


def test_all_workers_are_there_when_it_says_so_and_it_says_so_once(two: Running) -> None:
    lines: list[str] = two.lines  # type: ignore[attr-defined]
    assert lines[0] == "seqapp answers with"
    assert sum("tiny" in line for line in lines) == 1
    assert sum("nowhere is not live" in line for line in two.said) == 1
    assert len(two.children()) == 2


def test_every_worker_tells_the_figures_of_all(two: Running) -> None:
    with two.asked("/metrics") as answer:
        said = answer.read().decode()
    assert re.search(r'^seqapp_model_live{[^}]*model="tiny"[^}]*} 2.0$', said, re.MULTILINE)


def test_a_killed_worker_is_replaced_and_the_other_goes_on(two: Running) -> None:
    before = two.children()
    with load(two) as seen:
        until(lambda: seen["200"] > 20)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(two.children() - before) == 1)
        until(lambda: any(f"worker {victim} was ended by SIGKILL" in line for line in two.said))
        many = seen["200"]
        until(lambda: seen["200"] > many + 20)
    assert victim not in two.children()
    # Each thread had at most one request in the worker that died, and that one was cut off, not kept waiting.
    assert seen.total() - seen["200"] <= 2, seen
    assert len(two.children()) == 2


def test_a_worker_that_hangs_is_replaced(two: Running) -> None:
    victim = min(two.children(), key=lambda pid: psutil.Process(pid).create_time())  # which is not still loading
    os.kill(victim, signal.SIGSTOP)
    until(lambda: any(re.search(rf"worker {victim} was silent for \d+ s and was killed", line) for line in two.said))
    until(lambda: len(children := two.children()) == 2 and victim not in children)


def test_hangup_renews_the_workers_one_after_the_other_without_losing_a_request(two: Running) -> None:
    before = until(lambda: children if len(children := two.children()) == 2 else None)
    with load(two) as seen:
        two.process.send_signal(signal.SIGHUP)
        until(lambda: len(children := two.children()) == 2 and not children & before)
        many = seen["200"]
        until(lambda: seen["200"] > many + 10)
    assert set(seen) == {"200"}


def test_stop_ends_streams_with_an_event_and_answers_what_was_accepted(tiny: Path, writers: list[str]) -> None:
    # Nothing answers so many tokens within the two seconds.
    endless = {"prompt": "", "min_tokens": 4096, "max_tokens": 4096, "n": 64, "stream": True}
    short = {"prompt": "the", "min_tokens": 50, "max_tokens": 50}
    ends: list[list[bytes]] = []
    got: list[int] = []
    with running(str(tiny), writers[0], workers=2, shutdown_seconds=2) as server:
        server.welcome()
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


def test_it_says_that_it_stops_while_the_port_stays_open_and_a_second_signal_ends_it(tiny: Path) -> None:
    with running(str(tiny), drain_delay_seconds=3600) as server:
        server.welcome()
        assert server.status("/readyz") == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.status("/readyz") == 503)
        with server.asked("/readyz") as answer:
            assert answer.headers["Retry-After"] == "5"
            assert json.load(answer)["detail"] == "the server is stopping"
        until(lambda: closes(server))
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM


def closes(server: Running) -> bool:
    """Whether an answer says that its connection ends."""
    with server.asked("/v1/sentiment", {"inputs": "good soup"}) as answer:
        assert answer.status == 200
        return answer.headers["Connection"] == "close"


def folder_of(server: Running) -> Path | None:
    child = min(server.children(), default=None)
    found = child and psutil.Process(child).environ().get("PROMETHEUS_MULTIPROC_DIR")
    return Path(found).parent if found else None


def test_a_stop_signal_while_workers_load_ends_them(tiny: Path) -> None:
    with running(str(tiny), workers=2) as server:
        children = until(lambda: found if len(found := server.children()) == 2 else None)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        until(lambda: not any(map(psutil.pid_exists, children)))


def test_a_model_that_no_worker_can_load_ends_the_start(tmp_path: Path) -> None:
    with running(str(tmp_path), workers=2) as server:
        assert server.end() == 1
        until(lambda: len(server.said) == 2)
    assert "not a bundle" in server.said[0]
    assert server.said[1] == "serving: no model is live, so there is nothing to serve\n"


def test_workers_end_with_a_parent_that_was_killed(tiny: Path) -> None:
    with running(str(tiny), workers=2) as server:
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
