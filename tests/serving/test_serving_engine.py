"""The engine: who waits, who is refused, who is late, who has left; and that everything ends."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given as drawn
from hypothesis import strategies as st

from seqapp.tasks import InputError
from seqapp.tasks.running import Running
from serving import engine as module
from serving import inflight, routes
from serving.engine import Answer, Closed, Died, Engine, Late, Limits, Overloaded, Refused, _Pace
from serving.inflight import InFlight
from serving.observer import Observer
from serving.settings import Settings
from tests.serving.scripted import MakeApp, Scripted, bundle_of

PATH = "/v1/completions"
HELD = Limits(inputs=3, tokens=1000)


class Told(Observer):
    """Keeps what an engine tells."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.batches: list[int] = []
        self.loads: list[tuple[int, int]] = []
        self.tokens = 0

    def finished(self, *labels: str, outcome: str = "", **figures: Any) -> None:
        self.outcomes.append(labels[3])
        self.tokens += figures["tokens"]
        assert labels[:3] == ("scripted", "m", "1")
        assert figures["queued"] >= 0
        assert figures["computed"] >= 0

    def batch(self, *labels: str, inputs: int, seconds: float) -> None:
        self.batches.append(inputs)

    def load(self, *labels: str, waiting: int, running: int) -> None:
        self.loads.append((waiting, running))


def run(
    test: Callable[[Engine], Coroutine[Any, Any, Any]],
    running: Running | Callable[[], Running],
    limits: Limits | None = None,
    observer: Observer | None = None,
) -> Any:
    """What ``test`` returns of an engine, which ends empty."""
    make = running if callable(running) else lambda: running
    engine = Engine(bundle_of(make), 1, name="m", version="1", limits=limits or Limits(), observer=observer)

    async def timed() -> Any:
        async with asyncio.timeout(20):
            found = await test(engine)
            await engine.drain()
            await until(lambda: not engine.alive or (engine.load[:2] == (0, 0) and engine._tokens == 0))
            return found

    try:
        found = asyncio.run(timed())
        engine.close()
        engine._thread.join(10)
        assert not engine._thread.is_alive()
        assert engine.load[:2] == (0, 0)
        assert engine._tokens == 0
        return found
    finally:
        engine.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def outcome(asked: Any) -> Any:
    """The outputs of what was asked, or the error."""
    try:
        answer = await asked
        return answer.outputs if isinstance(answer, Answer) else answer
    except Exception as error:
        return error


# Answers


def test_requests_share_steps_and_get_their_own_answers() -> None:
    running, told = Scripted(held=True), Told()

    async def ask(engine: Engine) -> list[Any]:
        first = asyncio.create_task(engine.predict([("ok", 1)]))
        await asyncio.to_thread(running.began.wait, 10)
        others = [asyncio.create_task(engine.predict([("ok", n), ("ok", n + 1)])) for n in (3, 5)]
        await asyncio.sleep(0)
        running.gate.set()
        return [(await one).outputs for one in (first, *others)]

    assert run(ask, running, observer=told) == [[[1]], [[1, 2, 3], [1, 2, 3, 4]], [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]]
    assert max(told.batches) == 4 + 1
    # The longest has 6 pieces and an end, and began one step after the first at most.
    assert running.steps <= 8
    assert told.outcomes == ["ok"] * 3
    assert told.tokens == 1 + 7 + 11
    assert {name.startswith(module.THREAD_PREFIX) for name in running.threads} == {True}


def test_one_bad_request_in_a_batch_fails_alone() -> None:
    async def ask(engine: Engine) -> list[Any]:
        return await asyncio.gather(*[
            outcome(engine.predict(inputs))
            for inputs in ([("ok", 2)], [("ok", 9), ("bad", 2)], [("ok", 1), ("odd", 1), ("ok", 1), ("odd", 2)],
                           [("ok", 3)])
        ])  # fmt: skip

    told, running = Told(), Scripted()
    first, bad, odd, last = run(ask, running, observer=told)
    assert (first, last) == ([[1, 2]], [[1, 2, 3]])
    assert (type(bad), str(bad)) == (RuntimeError, "bad 2")
    assert isinstance(odd, InputError)
    assert odd.problems == {1: "odd 1", 3: "odd 2"}
    assert sorted(told.outcomes) == ["failed", "invalid", "ok", "ok"]
    # What stood beside the bad one was dropped with it, and what stood beside the odd one never began.
    assert running.computed == {("ok", 2): 3, ("ok", 9): 2, ("bad", 2): 2, ("ok", 3): 4}


def test_a_large_request_holds_up_no_small_one() -> None:
    running = Scripted(room=2, held=True)
    order: list[str] = []

    async def ask(engine: Engine) -> None:
        async def one(name: str, inputs: list[Any]) -> None:
            await engine.predict(inputs)
            order.append(name)

        first = asyncio.create_task(one("large", [("ok", 3)] * 40))
        await asyncio.to_thread(running.began.wait, 10)
        others = [asyncio.create_task(one("small", [("ok", 3)])) for _ in range(3)]
        await asyncio.sleep(0)
        running.gate.set()
        await asyncio.gather(first, *others)

    run(ask, running)
    assert order == ["small"] * 3 + ["large"]


def test_queued_and_computed_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)

    class Slow(Scripted):
        def step(self) -> Any:
            nonlocal now
            now += 2
            return super().step()

    async def ask(engine: Engine) -> list[float]:
        answer = await engine.predict([("ok", 2)])
        assert answer.timing == f"queue;dur={1000 * answer.queued:.2f}, model;dur={1000 * answer.computed:.2f}"
        return [answer.queued, answer.computed]

    # Three steps of two seconds; where one step answers, the others were waiting.
    assert run(ask, Slow()) == [0, 6]
    assert run(ask, Slow(one_step=True)) == [4, 2]


@drawn(st.integers(0, 10**6))
def test_requests_that_come_and_go_at_random_all_end(seed: int) -> None:
    chance = random.Random(seed)
    running, told = Scripted(room=5, pauses=chance.random() < 0.8), Told()

    async def ask(engine: Engine) -> list[Any]:
        async def one() -> Any:
            inputs = [
                (chance.choice(["ok"] * 6 + ["odd", "bad"]), chance.randint(1, 4)) for _ in range(chance.randint(1, 4))
            ]
            deadline = time.monotonic() + chance.choice([0.001, 10]) if chance.random() < 0.2 else None
            if chance.random() < 0.5:
                return inputs, await outcome(engine.predict(inputs, deadline))
            said: dict[int, list[int]] = {index: [] for index in range(len(inputs))}
            try:
                pieces = engine.stream(inputs, deadline)
            except (Refused, Late) as error:
                return inputs, error
            try:
                async for taken in pieces:
                    for index, piece in taken:
                        said[index].append(piece)
            except Exception as error:
                return inputs, error
            finally:
                pieces.close()
            return inputs, list(said.values())

        tasks = []
        for _ in range(40):
            tasks.append(asyncio.create_task(one()))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: told.loads[-1:] in ([], [(0, 0)]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_AHEAD", chance.choice([1, 2, 256]))
        found = run(ask, running, Limits(inputs=50), told)
    assert len(running) == 0
    for one in found:
        if isinstance(one, asyncio.CancelledError):
            continue
        inputs, said = one
        kinds = {kind for kind, _ in inputs}
        if isinstance(said, InputError):
            assert said.problems == {index: f"odd {n}" for index, (kind, n) in enumerate(inputs) if kind == "odd"}
        elif isinstance(said, RuntimeError):
            assert "bad" in kinds
        elif not isinstance(said, Late | Overloaded):
            assert kinds == {"ok"}
            assert said == [list(range(1, n + 1)) for _, n in inputs]


# Too much


def test_beyond_the_bound_is_refused_at_once_and_later_accepted() -> None:
    running, told = Scripted(room=1, held=True), Told()

    async def ask(engine: Engine) -> list[Any]:
        first = asyncio.create_task(engine.predict([("ok", 1)]))
        await asyncio.to_thread(running.began.wait, 10)
        waiting = [asyncio.create_task(engine.predict([("ok", 1)])) for _ in range(2)]
        # A request is not too large: what counts is what waits before it.
        waiting.append(asyncio.create_task(engine.predict([("ok", 1)] * 100)))
        await asyncio.sleep(0)
        assert engine.load[:3] == (4, 102, 0)
        with pytest.raises(Overloaded, match="102 inputs wait already") as refused:
            await engine.predict([("ok", 1)])
        with pytest.raises(Overloaded):
            engine.stream([("ok", 1)])
        assert refused.value.retry_after >= 1
        running.gate.set()
        await asyncio.gather(first, *waiting)
        return (await engine.predict([("ok", 2)])).outputs

    assert run(ask, running, HELD, told) == [[1, 2]]
    assert told.outcomes.count("overloaded") == 2


def test_work_is_bounded_too() -> None:
    running = Scripted(room=1, held=True)

    async def ask(engine: Engine) -> None:
        tasks = [asyncio.create_task(engine.predict([("ok", 1)]))]
        await asyncio.to_thread(running.began.wait, 10)
        tasks.append(asyncio.create_task(engine.predict([("odd", 1000)])))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.predict([("ok", 1)])
        running.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(ask, running, HELD)


def test_the_pace_is_that_of_what_waits() -> None:
    pace = _Pace()
    assert pace.seconds(1000) == 0
    pace.joined(500)  # nobody waited: nothing is learned
    pace.worked(0.5, saturated=False)
    assert pace.seconds(1000) == 0
    pace.worked(0.5, saturated=True)
    pace.joined(100)
    assert pace.seconds(1000) == pytest.approx(5)
    # Twice as fast from now on: after a long time that alone counts.
    for _ in range(100):
        pace.worked(0.5, saturated=True)
        pace.joined(200)
    assert pace.seconds(1000) == pytest.approx(2.5, rel=0.01)


def test_a_wait_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Scripted(room=1, held=True)

    async def ask(engine: Engine) -> None:
        tasks = [asyncio.create_task(engine.predict([("ok", 1)]))]
        await asyncio.to_thread(running.began.wait, 10)
        tasks.append(asyncio.create_task(engine.predict([("ok", 30)])))
        await asyncio.sleep(0)
        monkeypatch.setattr(engine._pace, "seconds", lambda tokens: tokens / 10)
        with pytest.raises(Overloaded, match=r"about 3\.0 s, longer than the deadline allows"):
            await engine.predict([("ok", 1)], time.monotonic() + 2)
        tasks.append(asyncio.create_task(engine.predict([("ok", 40)])))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"about 7\.0 s") as refused:
            await engine.predict([("ok", 1)])
        assert refused.value.retry_after == 2
        assert engine.load.seconds == 7
        running.gate.set()
        await asyncio.gather(*tasks)

    run(ask, running, Limits(seconds=5))


# Late, or gone


def test_a_deadline_stops_the_work_and_frees_the_place() -> None:
    running, told = Scripted(room=1, held=True), Told()

    async def ask(engine: Engine) -> list[Any]:
        late = asyncio.create_task(engine.predict([("ok", 10**9)], time.monotonic() + 0.05))
        waits = asyncio.create_task(engine.predict([("ok", 10**8)], time.monotonic() + 0.05))
        with pytest.raises(Late, match="the deadline has passed") as begun:
            await late  # while its step is computed
        with pytest.raises(Late) as waited:
            await waits
        with pytest.raises(Late, match="already") as never:
            await engine.predict([("ok", 1)], time.monotonic())
        assert [error.value.begun for error in (begun, waited, never)] == [True, False, False]
        running.gate.set()
        return (await engine.predict([("ok", 2)], time.monotonic() + 10)).outputs

    assert run(ask, running, observer=told) == [[1, 2]]
    assert running.computed == {("ok", 10**9): 1, ("ok", 2): 3}
    assert told.outcomes == ["late", "late", "late", "ok"]


def test_a_caller_that_is_cancelled_stops_its_work() -> None:
    running, told = Scripted(held=True), Told()

    async def ask(engine: Engine) -> None:
        task = asyncio.create_task(engine.predict([("ok", 10**9), ("ok", 10**8)]))
        await asyncio.to_thread(running.began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        running.gate.set()
        await engine.predict([("ok", 3)])

    run(ask, running, observer=told)
    assert running.computed == {("ok", 10**9): 1, ("ok", 10**8): 1, ("ok", 3): 4}
    assert told.outcomes == ["gone", "ok"]


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    years = iter([0.0, 10**9, -(10**9)] * 1000)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(years))

    async def ask(engine: Engine) -> list[Any]:
        return await asyncio.gather(*[
            outcome(engine.predict([("ok", n)], time.monotonic() + 10)) for n in range(1, 20)
        ])  # fmt: skip

    assert run(ask, Scripted(room=2)) == [[list(range(1, n + 1))] for n in range(1, 20)]


# Streams


def test_a_stream_is_bounded_by_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN", 0.0)
    running = Scripted()

    async def ask(engine: Engine) -> tuple[int, list[int]]:
        pieces = engine.stream([("ok", 3000)])
        said = [piece for _, piece in await anext(pieces)]
        await until(lambda: running.computed[("ok", 3000)] - len(said) >= module.MOST_AHEAD)
        await engine.predict([("ok", 500)])  # others go on
        ahead = running.computed[("ok", 3000)] - len(said)
        async for taken in pieces:
            said += [piece for _, piece in taken]
        return ahead, said

    ahead, said = run(ask, running)
    assert said == list(range(1, 3001))
    assert ahead == module.MOST_AHEAD
    assert not running.paused


def test_a_stream_that_cannot_pause_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUT_OFF", 300)
    monkeypatch.setattr(module, "TURN", 0.0)
    running = Scripted(pauses=False)

    async def ask(engine: Engine) -> None:
        pieces = engine.stream([("ok", 10**9)])
        await engine.predict([("ok", 2000)])
        assert len(await anext(pieces)) == 301
        with pytest.raises(Late, match="300 pieces behind"):
            await anext(pieces)

    run(ask, running)
    assert running.computed[("ok", 10**9)] == 301


@pytest.mark.parametrize("pauses", [True, False])
def test_what_is_kept_until_all_have_joined_is_nobodys_delay(pauses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUT_OFF", 600)
    running = Scripted(room=2, pauses=pauses)

    async def ask(engine: Engine) -> tuple[int, list[tuple[int, int]]]:
        pieces = engine.stream([("ok", 800), ("ok", 700), ("ok", 600)])
        first = await anext(pieces)
        said = [*first, *[one for taken in [taken async for taken in pieces] for one in taken]]
        return len(first), said

    # Two are far when the third joins.
    first, said = run(ask, running)
    assert first <= 2 * module.MOST_AHEAD or not pauses
    for index, steps in enumerate((800, 700, 600)):
        assert [piece for at, piece in said if at == index] == list(range(1, steps + 1))


@pytest.mark.parametrize("how", ["left", "closed", "died"])
def test_nothing_is_left_in_the_load_that_was_told(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running, told = Scripted(room=1, script=lambda given: iter(range(10**9))), Told()

    async def ask(engine: Engine) -> None:
        tasks = [asyncio.create_task(outcome(engine.predict([("ok", 9)]))) for _ in range(2)]
        await until(lambda: (1, 1) in told.loads)
        if how == "left":
            for task in tasks:
                task.cancel()
            await until(lambda: told.loads[-1] == (0, 0))
            return
        if how == "died":
            monkeypatch.setattr(engine, "_turn", None)
            await until(lambda: told.loads[-1] == (0, 0))
        # A version that is closed tells nothing more, even if a step ends later: who closed it has said so.
        running.gate.clear()
        running.began.clear()
        if how == "closed":
            await asyncio.to_thread(running.began.wait, 10)
        engine.close()
        before = len(told.loads), len(told.batches)
        running.gate.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(engine._thread.join, 10)
        assert (len(told.loads), len(told.batches)) == before

    run(ask, running, observer=told)


def test_what_is_wrong_with_one_input_is_told_before_any_piece() -> None:
    async def ask(engine: Engine) -> None:
        for inputs in ([("ok", 3), ("odd", 1)], [("odd", 1), ("ok", 3)]):
            pieces = engine.stream(inputs)
            with pytest.raises(InputError) as wrong:
                await anext(pieces)
            assert set(wrong.value.problems.values()) == {"odd 1"}
            pieces.close()

    run(ask, Scripted(room=1))


def test_a_stream_that_fails_tells_what_it_had() -> None:
    async def ask(engine: Engine) -> list[int]:
        pieces, said = engine.stream([("bad", 4)]), list[int]()

        async def read() -> None:
            async for taken in pieces:
                said.extend(piece for _, piece in taken)

        with pytest.raises(RuntimeError, match="bad 4"):
            await read()
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
        return said

    assert run(ask, Scripted()) == [1, 2, 3]


@pytest.mark.parametrize("how", ["closed", "late"])
def test_a_stream_that_is_left_stops(how: str) -> None:
    running = Scripted()

    async def ask(engine: Engine) -> None:
        pieces = engine.stream([("ok", 10**9)], time.monotonic() + 0.05 if how == "late" else None)
        await anext(pieces)
        if how == "late":
            with pytest.raises(Late):
                async for _ in pieces:
                    pass
        pieces.close()
        pieces.close()
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
        await until(lambda: len(running) == 0)
        before = running.steps
        await engine.predict([("ok", 1)])
        assert running.steps == before + 2

    run(ask, running)


# The end of an engine


def test_drain_waits_for_requests_and_for_holders() -> None:
    running = Scripted(held=True)

    async def ask(engine: Engine) -> None:
        await engine.drain()
        asked = asyncio.create_task(engine.predict([("ok", 1)]))
        with engine.held():
            drained = asyncio.create_task(engine.drain())
            await asyncio.to_thread(running.began.wait, 10)
            assert not drained.done()
            running.gate.set()
            await asked
            await asyncio.sleep(0.01)
            assert not drained.done()
        await drained

    run(ask, running)


def test_close_fails_those_who_wait_even_while_a_step_hangs() -> None:
    running = Scripted(room=1, held=True)

    async def ask(engine: Engine) -> None:
        tasks = [asyncio.create_task(engine.predict([("ok", 1)])) for _ in range(2)]
        pieces = engine.stream([("ok", 1)])
        await asyncio.to_thread(running.began.wait, 10)
        engine.close()
        for one in (*tasks, anext(pieces)):
            with pytest.raises(Closed, match="taken out of service"):
                await one
        assert not engine.alive
        with pytest.raises(Closed):
            await engine.predict([("ok", 1)])
        running.gate.set()

    run(ask, running)


def test_a_step_that_breaks_fails_those_inside_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted(room=1, held=True))
        return made[-1]

    async def ask(engine: Engine) -> list[Any]:
        inside = asyncio.create_task(outcome(engine.predict([("ok", 1)])))
        await until(lambda: bool(made) and made[0].began.is_set())
        waits = asyncio.create_task(outcome(engine.predict([("ok", 2)])))
        await asyncio.sleep(0)
        made[0].broken = ValueError("a bug")
        made[0].gate.set()
        await until(lambda: len(made) == 2)
        made[1].gate.set()
        assert engine.alive
        return [await inside, await waits]

    broken, well = run(ask, make)
    assert (str(broken), well) == ("a bug", [[1, 2]])
    assert "a step of m failed" in caplog.text


def test_an_engine_that_dies_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def make() -> Running:
        gate.wait(10)
        raise RuntimeError("no memory for a batch")

    async def ask(engine: Engine) -> None:
        tasks = [asyncio.create_task(engine.predict([("ok", 1)])) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        for one in tasks:
            with pytest.raises(Died):
                await one
        assert not engine.alive
        with pytest.raises(Closed):
            await engine.predict([("ok", 1)])

    run(ask, make)
    assert "has died" in caplog.text


def test_an_event_loop_that_ends_leaves_its_requests_and_no_other() -> None:
    running = Scripted(held=True)
    engine = Engine(bundle_of(lambda: running), 1)

    async def leave() -> None:
        asyncio.get_running_loop().create_task(engine.predict([("ok", 3)]))
        engine.stream([("ok", 10**9)])
        await asyncio.to_thread(running.began.wait, 10)

    asyncio.run(leave())
    running.gate.set()

    async def ask() -> Any:
        return (await engine.predict([("ok", 2)])).outputs

    assert asyncio.run(ask()) == [[1, 2]]
    for _ in range(1000):
        if not engine.load.requests:
            break
        time.sleep(0.01)
    assert engine.load[:2] == (0, 0)
    engine.close()


def test_a_closed_engine_is_forgotten() -> None:
    made: list[weakref.ref[Running]] = []

    def make() -> Running:
        running = Scripted()
        made.append(weakref.ref(running))
        return running

    engine = Engine(bundle_of(make), 1)
    asyncio.run(engine.predict([("ok", 2)]))
    engine.close()
    engine._thread.join(10)
    gc.collect()
    assert [one() for one in made] == [None]


# Over HTTP


class Call:
    """A call of an ASGI application; its client may leave."""

    def __init__(self, app: Any, body: dict[str, Any], *headers: tuple[bytes, bytes], path: str = PATH) -> None:
        self.gone, self.sent, self.status = asyncio.Event(), list[bytes](), 0
        self.headers: dict[bytes, bytes] = {}
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "path": path,
                 "raw_path": path.encode(), "headers": [(b"content-type", b"application/json"), *headers],
                 "query_string": b"", "root_path": "",
                 "app": app, "client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http"}  # fmt: skip
        self._messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        for message in self._messages:
            return message
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.headers |= dict(message.get("headers", ()))
        self.sent.append(message.get("body", b""))


def test_a_client_that_leaves_before_its_answer_stops_the_work(
    scripted: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "WATCH_AFTER", 0.01)
    running, make = scripted
    running.script = lambda given: iter(range(10**9))
    app = make()

    async def leave() -> int:
        call = Call(app, {"prompt": "a"})
        await asyncio.to_thread(running.began.wait, 10)
        call.gone.set()
        await until(call.task.done)
        running.gate.set()
        await until(lambda: len(running) == 0)
        return call.status

    assert asyncio.run(leave()) == 499
    assert list(running.computed.values()) == [1]


def test_a_quick_answer_is_not_watched(scripted: MakeApp, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    async def quick() -> list[str]:
        asked: list[str] = []

        class Request:
            async def receive(self) -> dict[str, str]:
                asked.append("receive")
                await asyncio.sleep(30)
                return {}

        assert await routes.awaited(Request(), asyncio.sleep(0, "answer")) == "answer"  # type: ignore[arg-type]
        assert await routes.awaited(Request(), asyncio.sleep(0.1, "late")) == "late"  # type: ignore[arg-type]
        cancelled = asyncio.create_task(routes.awaited(Request(), asyncio.sleep(30)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        cancelled.cancel()  # by the server, which is no client
        with suppress(asyncio.CancelledError):
            await cancelled
        assert cancelled.cancelled()
        return asked

    assert asyncio.run(quick()) == ["receive"]


def test_a_deadline_over_http(scripted: MakeApp) -> None:
    running, make = scripted
    app = make()

    async def wait() -> list[Any]:
        calls = [
            Call(app, {"prompt": "a", "stream": stream}, (b"x-request-timeout", b"0.05")) for stream in (0 > 1, 1 > 0)
        ]
        await asyncio.wait([call.task for call in calls])
        running.gate.set()
        await until(lambda: len(running) == 0)
        return [(call.status, json.loads(b"".join(call.sent))["error"]["code"]) for call in calls]

    assert asyncio.run(wait()) == [(504, "deadline_exceeded")] * 2
    assert running.steps <= 2


def test_a_deadline_within_a_stream_is_its_last_event(scripted: MakeApp) -> None:
    from seqapp.completion import Piece

    running, make = scripted
    running.gate.set()
    running.script = lambda given: iter(lambda: Piece(index=0, text="a"), None)
    app = make()

    async def read() -> bytes:
        call = Call(app, {"prompt": "a", "stream": True}, (b"x-request-timeout", b"0.2"))
        await call.task
        assert call.status == 200
        return b"".join(call.sent)

    first, *_, last, rest = asyncio.run(read()).split(b"\n\n")
    assert first.startswith(b'data: {"id":"cmpl-')
    assert last.startswith(b"event: error\ndata: ")
    assert json.loads(last.partition(b"data: ")[2])["error"]["code"] == "deadline_exceeded"
    assert rest == b""


def test_too_much_is_503_with_retry_after_and_then_it_recovers(scripted: MakeApp) -> None:
    running, make = scripted
    running.room = 1
    running.script = lambda given: iter(())
    app = make(limits=Limits(inputs=1))

    async def ask() -> list[Any]:
        calls = []
        for _ in range(3):
            calls.append(Call(app, {"prompt": "a"}))
            await asyncio.to_thread(running.began.wait, 10)
            await asyncio.sleep(0.01)
        await calls[-1].task
        assert int(calls[-1].headers[b"retry-after"]) >= 1
        assert json.loads(calls[-1].sent[-1])["error"]["code"] == "overloaded"
        running.gate.set()
        await asyncio.wait([call.task for call in calls])
        return [call.status for call in calls]

    # A script that says nothing has no outputs: 500 tells that the first two were answered.
    assert asyncio.run(ask()) == [500, 500, 503]


def test_more_in_hand_than_the_process_takes_is_503_and_probes_are_answered(
    scripted: MakeApp,
) -> None:
    running, make = scripted
    app = make(max_in_flight=1)

    async def ask() -> tuple[int, int, int, bytes]:
        first = Call(app, {"prompt": "a"})
        await asyncio.to_thread(running.began.wait, 10)
        second = Call(app, {"prompt": "a"})
        await second.task
        probe = await asyncio.to_thread(lambda: TestClient(app).get("/livez").status_code)
        running.gate.set()
        await first.task
        third = Call(app, {"model": "nobody"})
        await third.task
        return second.status, third.status, probe, second.headers[b"retry-after"]

    assert asyncio.run(ask()) == (503, 404, 200, b"1")


def test_many_refusals_are_spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "APART", 0.01)

    async def refuse() -> tuple[list[float], InFlight]:
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        times: list[float] = []
        began = loop.time()

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await release.wait()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        app = InFlight(answer, most=1)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 503
                times.append(loop.time() - began)

        async def call() -> None:
            scope = {"type": "http", "method": "POST", "path": "/", "state": {"request_id": "r"}}
            await app(scope, receive, send)

        accepted = asyncio.create_task(call())
        await asyncio.sleep(0)
        await asyncio.gather(*[call() for _ in range(5)])
        assert (app.count, app.refusing) == (1, 0)
        release.set()
        await accepted
        return times, app

    times, app = asyncio.run(refuse())
    assert len(times) == 5
    assert all(at >= 0.009 * (place + 1) for place, at in enumerate(times))
    assert app.count == 0


@pytest.mark.parametrize(("size", "beside"), [(1, False), (routes.MUCH, False), (routes.MUCH + 1, True)])
def test_a_long_answer_is_written_beside_the_event_loop(size: int, beside: bool) -> None:
    async def write() -> bool:
        return await routes.written(size, threading.get_ident) != threading.get_ident()

    assert asyncio.run(write()) == beside
