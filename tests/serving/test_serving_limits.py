"""How much one client may ask, by worked numbers and beside a slow model of the rule."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.engine import Closed, Engine, Late, Overloaded
from serving.models import go_live
from serving.ratelimit import RateLimit, Table, subject
from serving.settings import Settings


async def nobody(*_: Any) -> None:
    raise AssertionError("nothing is sent here")


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(nobody, table=Table(), rate=2, burst=3, clock=clock)
    assert [limit.ask("a")[0] for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    clock.now += 0.25
    assert limit.ask("a") == (0.25, "requests", 0)
    clock.now += 0.25
    assert [limit.ask("a")[0] for _ in range(2)] == [0, 0.5]
    assert limit.ask("b")[0] == 0
    clock.now += 100
    assert [limit.ask("a")[2] for _ in range(4)] == [2, 1, 0, 0]


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(0, 7), max_size=40),
    gap=st.integers(1, 5),
    burst=st.integers(1, 4),
)
def test_it_is_a_leaky_bucket(steps: list[int], gap: int, burst: int) -> None:
    """A bucket that holds ``burst`` and loses one in ``gap`` seconds takes the same requests."""
    clock = Clock(0.0)
    limit = RateLimit(nobody, table=Table(sets=1), rate=1 / gap, burst=burst, clock=clock)
    water, last = 0.0, 0.0
    for step in steps:
        clock.now += step
        water, last = max(0.0, water - (clock.now - last) / gap), clock.now
        fits = water + 1 <= burst + 1e-9
        water += fits
        wait, _, left = limit.ask("a")
        assert (wait == 0) == fits
        if fits:
            assert left == int(burst - water + 1e-9)
        else:
            assert wait == pytest.approx((water + 1 - burst) * gap)


def test_inputs_are_paid_afterwards() -> None:
    clock = Clock()
    limit = RateLimit(nobody, table=Table(), inputs=10, inputs_burst=20, clock=clock)
    assert limit.ask("a")[0] == 0
    limit.pay("a", 19)
    assert limit.ask("a")[0] == 0
    limit.pay("a", 31)  # 50 in all, 30 too many; the next fits when 31 are paid
    assert limit.ask("a") == (pytest.approx(3.1), "inputs", 0)
    clock.now += 3.1
    assert limit.ask("a")[0] == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=300))
def test_memory_is_bounded_and_who_asks_most_is_remembered(clients: list[int]) -> None:
    """Beside seven others in its set, whoever asks most always keeps its place."""
    clock = Clock()
    table = Table(sets=1)
    limit = RateLimit(nobody, table=table, rate=1, burst=1, clock=clock)
    with table.times("greedy") as times:
        times[:] = clock.now + 1e6, 0.0
    for client in clients:
        limit.ask(str(client))
    assert limit.ask("greedy")[0] > 0


def test_a_client_is_a_key_an_address_or_a_network() -> None:
    assert subject("anna") == "anna"
    assert subject("192.0.2.1") == "192.0.2.1"
    assert subject("::ffff:192.0.2.1") == "192.0.2.1"
    assert subject("2001:db8::1") == subject("2001:db8::ffff:2%eth0") != subject("2001:db8:0:1::1")


def _ask(file: Path, asked: int, out: Any) -> None:
    limit = RateLimit(nobody, table=Table(file, sets=2), rate=1e-9, burst=100, clock=lambda: 5.0)
    out.put(sum(limit.ask(f"client {n % 4}")[0] == 0 for n in range(asked)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_share_one_table(tmp_path: Path) -> None:
    """Of four processes that ask 200 times each for four clients, each with 100 in its burst, just 400 are taken in."""
    fork = multiprocessing.get_context("fork")
    out = fork.Queue()
    processes = [fork.Process(target=_ask, args=(tmp_path / "limits", 200, out)) for _ in range(4)]
    for process in processes:
        process.start()
    taken = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(taken) == 400


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_dies_holds_nobody_up(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def die() -> None:
        with Table(tmp_path / "limits").times("a"):
            os._exit(9)

    process = fork.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert RateLimit(nobody, table=Table(tmp_path / "limits"), rate=1).ask("a")[0] == 0


@pytest.fixture
def limited(tiny: Path) -> Callable[..., TestClient]:
    def make(client: str = "testclient", **chosen: Any) -> TestClient:
        return TestClient(create_app(Settings(**chosen), go_live([str(tiny)], threads=1)), client=(client, 50000))

    return make


def test_over_http(limited: Callable[..., TestClient]) -> None:
    with limited(rate=0.001, rate_burst=2) as client:
        for left in (1, 0):
            assert client.get("/v1/models").headers["RateLimit"] == f'"requests";r={left}'
        answer = client.post("/v1/sentiment", json={"inputs": "good"})
        assert answer.status_code == 429
        assert answer.json()["type"] == "urn:problem-type:seqapp:too-many-requests"
        assert 990 < int(answer.headers["Retry-After"]) <= 1000
        assert answer.headers["RateLimit-Policy"] == '"requests";q=2;w=2000'
        refused = client.post("/v1/completions", json={"prompt": ""})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for probe in ("/livez", "/readyz"):
            assert client.get(probe).status_code == 200


def test_inputs_over_http(limited: Callable[..., TestClient]) -> None:
    with limited(rate_inputs=0.01, rate_inputs_burst=4) as client:
        assert client.post("/v1/sentiment", json={"inputs": ["good"] * 3}).status_code == 200
        assert client.post("/v1/sentiment", json={"inputs": ["good"] * 3}).status_code == 200
        answer = client.post("/v1/sentiment", json={"inputs": "good"})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) in (299, 300)


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (Overloaded("too much", 1), True),
        (Closed("closed"), True),
        (Late("waited", begun=False), True),
        (Late("worked", begun=True), False),
    ],
)
def test_inputs_that_no_model_has_begun_are_not_paid(
    limited: Callable[..., TestClient], error: Exception, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise error

    with limited(rate_inputs=0.01, rate_inputs_burst=4) as client:
        monkeypatch.setattr(Engine, "predict", refuse)
        codes = [client.post("/v1/sentiment", json={"inputs": ["good"] * 100}).status_code for _ in range(2)]
        assert codes[0] == (504 if isinstance(error, Late) else 503)
        assert codes[1] == (codes[0] if free else 429)


def test_servers_with_one_state_share_one_count(limited: Callable[..., TestClient], tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"rate": 0.001, "rate_burst": 3, "state": tmp_path}
    with limited(**chosen) as one, limited(**chosen) as two:
        codes = [client.get("/v1/models").status_code for client in (one, two, one, two, one)]
    assert codes == [200, 200, 200, 429, 429]


def test_nobody_s_forwarded_address_is_believed(limited: Callable[..., TestClient]) -> None:
    with limited(rate=0.001, rate_burst=1) as client:
        codes = [client.get("/v1/models", headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code for n in range(3)]
        assert codes == [200, 429, 429]


def test_but_a_trusted_proxy_s(limited: Callable[..., TestClient]) -> None:
    with limited(rate=0.001, rate_burst=1, trusted_proxies="10.0.9.9, 10.1.0.0/16", client="10.0.9.9") as client:
        sent = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "6.6.6.6, 10.0.0.2", "6.6.6.6, 10.0.0.3, 10.1.2.3"]
        codes = [client.get("/v1/models", headers={"X-Forwarded-For": one}).status_code for one in sent]
        assert codes == [200, 200, 429, 429, 200]
