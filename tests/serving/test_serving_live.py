"""Models that are replaced while they answer: what goes live, what stays, and who notices."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient
from hypothesis import strategies as st

from seqapp import bundle, references
from seqapp.errors import ConfigError, SeqappError
from seqapp.references import Reference, ReferenceNotFound, Target, Unreachable
from seqapp.tasks.sentiment import SentimentInput
from serving import deployment, models
from serving.app import ANSWERED, create_app
from serving.cache import Cache
from serving.deployment import Deployment, Wanted
from serving.engine import Engine
from serving.models import Deployed, LiveModel, Models, Place, UnknownModel, go_live
from serving.observer import Observer
from serving.reload import Reloader
from serving.settings import Settings
from tests.pipelines.servers import Server
from tests.serving.conftest import MakeBundle, write_bundle, write_writer
from tests.serving.scripted import Scripted, bundle_of

ROOT = Path(__file__).parents[2]
TEXTS = ["good soup", "a bad room, and it broke"]
WAITING = 20.0


def version_of(path: Path) -> str:
    return hashlib.sha256((path / "bundle.yaml").read_bytes()).hexdigest()[:12]


def scores_of(path: Path) -> list[float]:
    return [one.score for one in bundle.load(path).predict([SentimentInput(text=text) for text in TEXTS])]


def rewrite(path: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a bundle, and its digest with it."""
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAITING
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Registry:
    """A tracking server whose models lie in directories, and which can be down."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.downloads = 0
        self.bundles: dict[str, Path] = {}
        self.aliases: dict[str, str] = {}
        patch.setattr(references, "locate", self.locate)
        patch.setattr(references, "download", self.download)
        patch.setattr(references, "champions", self.champions)

    def locate(self, reference: str) -> Target:
        self.knock()
        name, _, alias = reference.partition("@")
        name, _, version = name.partition("/")
        version = version or self.aliases.get(reference, "")
        if f"{name}/{version}" not in self.bundles:
            raise ReferenceNotFound(f"{reference}: not in the registry")
        return Target(f"models:/{name}/{version}", "", name, version, alias)

    def download(self, target: Target, folder: Path) -> Path:
        self.knock()
        self.downloads += 1
        return Path(shutil.copytree(self.bundles[f"{target.name}/{target.version}"], folder / "bundle"))

    def champions(self) -> list[str]:
        self.knock()
        return [reference for reference in self.aliases if reference.endswith("@champion")]

    def knock(self) -> None:
        if self.down:
            raise Unreachable("the tracking server http://nowhere cannot be used: Connection refused")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tiny: Path, other: Path) -> Registry:
    found = Registry(monkeypatch)
    found.bundles = {"m/1": tiny, "m/2": other}
    found.aliases = {"m@champion": "1"}
    return found


@contextmanager
def serving(live: Models, **settings: Any) -> Iterator[TestClient]:
    app = create_app(Settings(poll_seconds=0, access_log=False, **settings), live)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, **more: Any) -> tuple[str, list[float]]:
    answer = client.post("/v1/sentiment", json={"inputs": TEXTS, "parameters": {"top_k": 1}, **more})
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Model-Version"], [one[0]["score"] for one in answer.json()]


def expect(client: TestClient, version: str, path: Path, **more: Any) -> None:
    """It is this version that answers, as its bundle does."""
    spoke, scores = ask(client, **more)
    assert spoke == version
    assert scores == pytest.approx(scores_of(path), abs=1e-5)


def renew(client: TestClient) -> Any:
    """What the clock does."""
    app: Any = client.app
    assert client.portal is not None
    return client.portal.call(partial(app.state.reloader.renew, asked=False))


# Under load


@contextmanager
def listening(live: Models) -> Iterator[str]:
    config = uvicorn.Config(create_app(Settings(poll_seconds=0, access_log=False), live), log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAITING)


def post(url: str, **body: Any) -> tuple[str, bytes]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAITING) as answer:
        return answer.headers["X-Model-Version"], answer.read()


def test_twenty_swaps_under_load_fail_nothing_and_mix_nothing(tmp_path: Path) -> None:
    sources = [write_bundle(tmp_path / f"version-{seed}", seed=seed) for seed in range(3)]
    writers = [write_writer(tmp_path / f"writer-{seed}", seed=seed) for seed in range(3)]
    asked = {"prompt": ["the ", "a "], "max_tokens": 12, "temperature": 0}
    scores = {version_of(path): scores_of(path) for path in sources}
    live, writer = tmp_path / "live", tmp_path / "writer"
    bundle.copy(sources[0], live)
    bundle.copy(writers[0], writer)
    told: dict[str, set[str]] = {}
    for path in writers:
        with serving(go_live([str(path)], threads=1)) as client:
            texts = [one["text"] for one in client.post("/v1/completions", json=asked).json()["choices"]]
            told[version_of(path)] = set(texts)
    answered: Counter[str] = Counter()
    failures: list[object] = []
    over = threading.Event()

    def load(streams: bool) -> None:
        while not over.is_set():
            try:
                if streams:
                    version, body = post(f"{url}/v1/completions", stream=True, **asked)
                    events = [line.removeprefix("data: ") for line in body.decode().splitlines() if "data: {" in line]
                    choices = [json.loads(event)["choices"][0] for event in events]
                    found = {"".join(one["text"] for one in choices if one["index"] == index) for index in (0, 1)}
                    assert found == told[version]
                    assert body.endswith(b"data: [DONE]\n\n")
                else:
                    version, body = post(f"{url}/v1/sentiment", inputs=TEXTS, parameters={"top_k": 1})
                    assert [one[0]["score"] for one in json.loads(body)] == pytest.approx(scores[version], abs=1e-5)
                answered[version] += 1
            except Exception as error:
                failures.append(error)
                return

    with listening(go_live([str(live), str(writer)], threads=1)) as url:
        threads = [threading.Thread(target=load, args=(index % 4 == 0,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for swap in range(1, 21):
            bundle.copy(sources[swap % 3], live)
            bundle.copy(writers[swap % 3], writer)
            done = json.loads(post(f"{url}/v1/models/reload")[1])
            assert [one["outcome"] for one in done["data"]] == ["swapped", "swapped"]
            assert [one["after"] for one in done["data"]] == [
                version_of(sources[swap % 3]),
                version_of(writers[swap % 3]),
            ]
        over.set()
        for thread in threads:
            thread.join(WAITING)
    assert failures == []
    assert set(answered) == {*scores, *told}


def test_what_was_replaced_leaves_the_memory_once_its_last_answer_is_given(make_bundle: MakeBundle,
                                                                           tmp_path: Path) -> None:  # fmt: skip
    path, writer = make_bundle(), write_writer(tmp_path / "writer")
    live = go_live([str(path), str(writer)], threads=1)
    gc.collect()
    gc.disable()
    try:
        with serving(live) as client:
            ask(client)
            for stream in (False, True):
                assert client.post("/v1/completions", json={"prompt": "the ", "stream": stream}).status_code == 200
            models = [live.get("tiny"), live.get("writer")]
            parts = [weakref.ref(part) for old in models for part in (old, old.bundle, old.bundle.model, old.engine)]
            engine: Any = models[0].engine
            held: Any = engine.held()
            del models, engine
            make_bundle(seed=1)
            write_writer(writer, seed=1)
            with held:
                told = client.post("/v1/models/reload").json()["data"]
                assert [one["outcome"] for one in told] == ["swapped", "swapped"]
                assert ask(client)[0] == version_of(path)
                assert all(part() is not None for part in parts[1:4])
            held = None
            eventually(lambda: all(part() is None for part in parts))
    finally:
        gc.enable()


def test_one_that_does_not_end_is_stopped(make_bundle: MakeBundle) -> None:
    live = go_live([str(make_bundle())], threads=1)
    with serving(live, swap_seconds=0.01) as client:
        engine = live.get("tiny").engine
        with engine.held():
            make_bundle(seed=1)
            client.post("/v1/models/reload")
            eventually(lambda: not engine.alive)


# What stays as it was


def cut(path: Path) -> None:
    (path / "weights.safetensors").write_bytes(b"{}")


def lose(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def lie(path: Path) -> None:
    rewrite(path, "golden.json", lambda golden: golden[0]["output"].update(score=2.0))


def misname(path: Path) -> None:
    manifest = (path / "bundle.yaml").read_text()
    (path / "bundle.yaml").write_text(manifest.replace("task: sentiment", "task: nothing"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "damaged: its SHA-256"),
        (lose, "weights.safetensors: missing"),
        (lie, "the golden input"),
        (misname, "says task 'nothing'"),
        (lambda path: (path / "bundle.yaml").unlink(), "not a bundle"),
        (shutil.rmtree, "no such directory"),
    ],
    ids=["damaged", "missing", "golden", "foreign", "no manifest", "nothing"],
)
def test_what_cannot_go_live_leaves_the_old_one_answering(
    make_bundle: MakeBundle, spoil: Callable[[Path], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle()
    live = go_live([str(path)], threads=1)
    with serving(live) as client:
        before = ask(client)
        spoil(path)
        answer = client.post("/v1/models/reload")
        assert answer.status_code == 409
        problem = answer.json()
        assert problem["type"] == "urn:problem-type:seqapp:reload-failed"
        ((error,), version) = problem["errors"], before[0]
        assert error["field"] == "tiny"
        assert said in error["detail"]
        assert error["detail"].endswith(f"; version {version} stays")
        assert ask(client) == before
        (listed,) = client.get("/v1/models").json()["data"]
        assert (listed["state"], listed["version"], said in listed["reason"]) == ("kept", version, True)
        assert said in client.get("/readyz").json()["kept"]["tiny"]
        # The clock does not try the same again and again; a person may, and so may the clock when it is mended.
        opened = []

        def open_one(*given: Any, really: Callable[..., Any] = live.opener.open) -> Any:
            opened.append(1)
            return really(*given)

        monkeypatch.setattr(live.opener, "open", open_one)
        for _ in range(3):
            assert renew(client)[0].outcome == "kept"
        assert opened == []
        assert client.post("/v1/models/reload", json={"model": "tiny"}).status_code == 409
        shutil.rmtree(path, ignore_errors=True)
        make_bundle(seed=1)
        assert renew(client)[0].outcome == "swapped"
        assert ask(client)[0] == version_of(path) != version
        assert client.get("/readyz").json()["kept"] == {}


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, load, seeds = make_bundle(), bundle.load, [2]
    with serving(go_live([str(path)], threads=1)) as client:

        def replaced(path: Path) -> bundle.Bundle:
            loaded = load(path)

            def check() -> None:
                if seeds:
                    make_bundle(seed=seeds.pop())

            loaded.check_golden = check  # type: ignore[method-assign]
            return loaded

        monkeypatch.setattr(bundle, "load", replaced)
        make_bundle(seed=1)
        answer = client.post("/v1/models/reload")
        assert (answer.status_code, "another bundle was put there" in answer.text) == (409, True)
        assert renew(client)[0].outcome == "swapped"
        monkeypatch.undo()
        expect(client, version_of(path), path)


def test_one_that_does_not_warm_up_does_not_go_live(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Engine] = []

    class Cold(Engine):
        async def predict(self, inputs: Sequence[Any], deadline: float | None = None) -> Any:
            made.append(self)
            raise RuntimeError("frozen")

    path = make_bundle()
    live = go_live([str(path)], threads=1)
    with serving(live) as client:
        before = ask(client)
        make_bundle(seed=1)
        monkeypatch.setattr("serving.models.Engine", Cold)
        answer = client.post("/v1/models/reload")
        assert (answer.status_code, "RuntimeError: frozen" in answer.text) == (409, True)
        assert not made[0].alive
        assert ask(client) == before


def test_a_file_that_is_written_to_does_not_change_what_was_loaded(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    with serving(go_live([str(path)], threads=1)) as client:
        before = ask(client)
        size = (path / "weights.safetensors").stat().st_size
        with (path / "weights.safetensors").open("r+b") as file:
            file.write(bytes(size))
        assert ask(client) == before


def test_nothing_new_is_told_even_if_the_files_were_touched(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    live = go_live([str(path)], threads=1)
    with serving(live) as client:
        model = live.get("tiny")
        version = version_of(path)
        for _ in range(2):
            told = client.post("/v1/models/reload").json()
            (one,) = told["data"]
            assert (one["outcome"], one["before"], one["after"]) == ("unchanged", version, version)
            assert told["workers"] == 1
            os.utime(path / "weights.safetensors", (1, 1))
        assert live.get("tiny") is model


def test_one_that_was_refused_goes_live_when_it_is_mended(make_bundle: MakeBundle, tmp_path: Path, tiny: Path) -> None:
    live = go_live([str(tmp_path / "late"), str(tiny)], threads=1, tasks=ANSWERED)
    assert [(one.reference, "no such directory" in one.reason) for one in live.refused] == [(f"{tmp_path}/late", True)]
    with serving(live) as client:
        assert client.post("/v1/models/reload", json={"model": f"{tmp_path}/late"}).status_code == 409
        make_bundle("late", seed=1)
        (late, other) = client.post("/v1/models/reload").json()["data"]
        assert (late["model"], late["before"], late["outcome"]) == ("late", None, "swapped")
        assert other["outcome"] == "unchanged"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["late", "tiny"]
        assert client.get("/readyz").json()["refused"] == {}
        assert ask(client, model="late")[0] == version_of(tmp_path / "late")


def test_a_server_that_is_not_ready_becomes_so(make_bundle: MakeBundle, tmp_path: Path) -> None:
    live = go_live(deployments=[Deployment("m", (Wanted(str(tmp_path / "tiny")),))], threads=1)
    with serving(live) as client:
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/models").json()["data"] == []
        assert client.post("/v1/sentiment", json={"inputs": TEXTS}).status_code == 404
        make_bundle()
        renew(client)
        assert client.get("/readyz").json()["models"] == ["m"]
        ask(client, model="m")


def test_an_engine_that_has_died_is_replaced(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    live = go_live([str(make_bundle())], threads=1)
    with serving(live) as client:
        live.get("tiny").engine.close()
        assert client.post("/v1/sentiment", json={"inputs": TEXTS}).status_code == 503
        assert renew(client)[0].outcome == "swapped"
        ask(client)


def test_an_unknown_model_cannot_be_reloaded(tiny: Path) -> None:
    with serving(go_live([str(tiny)], threads=1)) as client:
        assert client.post("/v1/models/reload", json={"model": "../tiny"}).status_code == 404
        assert client.post("/v1/models/reload", json={"models": "tiny"}).status_code == 422
        assert client.get("/v1/models/reload").status_code == 405


def test_two_reloads_at_once_stand_in_line(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle()
    live = go_live([str(path)], threads=1)
    inside = most = 0
    open_one = live.opener.open

    def slow(*given: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        try:
            return open_one(*given)
        finally:
            inside -= 1

    monkeypatch.setattr(live.opener, "open", slow)

    async def twice() -> list[str]:
        reloader = Reloader(live, poll_seconds=0)
        async with reloader.running():
            done = await asyncio.gather(reloader.renew(), reloader.renew(), reloader.renew(asked=False))
        return [one[0].outcome for one in done]

    make_bundle(seed=1)
    assert asyncio.run(twice()) == ["swapped", "unchanged", "unchanged"]
    assert most == 1
    live.close()


def test_no_place_waits_for_a_reload_of_another(tmp_path: Path) -> None:
    paths = [write_bundle(tmp_path / name) for name in ("first", "second")]
    live = go_live([str(path) for path in paths], threads=1)
    first, second = live
    hangs, open_one = threading.Event(), live.opener.open

    def opened(found: Any, place: Place, taken: Any) -> LiveModel:
        if place.live is first:
            assert hangs.wait(WAITING)
        return open_one(found, place, taken)

    async def both() -> list[Any]:
        live.opener.open = opened  # type: ignore[method-assign]
        reloader = Reloader(live, poll_seconds=0)
        slow = asyncio.create_task(reloader.renew())
        await asyncio.sleep(0)
        async with asyncio.timeout(WAITING / 2):
            while live.get("second") is second:
                await asyncio.sleep(0.01)
            quick = await reloader.renew("second")
            looked = await reloader.renew(asked=False)
        assert live.get("first") is first
        hangs.set()
        return [[one.outcome for one in outcomes] for outcomes in (await slow, quick, looked)]

    for path in paths:
        write_bundle(path, seed=1)
    try:
        assert asyncio.run(both()) == [["swapped"] * 2, ["unchanged"], ["unchanged"] * 2]
    finally:
        hangs.set()
        live.close()


def test_two_that_have_no_name_yet_do_not_take_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "same" for folder in ("a", "b")]
    live = go_live([str(path) for path in paths], threads=1)
    for path in paths:
        write_bundle(path)
    (kept,) = [one for one in asyncio.run(Reloader(live, poll_seconds=0).renew()) if one.outcome == "kept"]
    assert "called 'same' is live already" in kept.reason
    assert [model.id for model in live] == ["same"]
    live.close()


def test_a_warm_up_that_hangs_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WARM_UP", 0.02)
    running = Scripted(held=True)
    engine = Engine(bundle_of(lambda: running), 1)
    asked: Any = SimpleNamespace(golden=lambda: ([("ok", 1)], []))
    with pytest.raises(SeqappError, match=r"not answered its golden questions within 0\.02 s"):
        asyncio.run(models._warm_up(asked, engine))
    engine.close()
    running.gate.set()


def test_a_reload_that_takes_longer_than_its_answer_may_goes_on(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    live = go_live([str(path)], threads=1)
    goes_on, find = threading.Event(), live.opener.find

    def slow(reference: str) -> Any:
        assert goes_on.wait(WAITING)
        return find(reference)

    with TestClient(create_app(Settings(poll_seconds=0, access_log=False), live)) as client:
        live.opener.find = slow  # type: ignore[method-assign]
        make_bundle(seed=1)
        answer = client.post("/v1/models/reload", headers={"X-Request-Timeout": "0.05"})
        assert answer.status_code == 504
        assert "goes on" in answer.json()["detail"]
        goes_on.set()
        eventually(lambda: ask(client)[0] == version_of(path))


def test_the_clock_notices_a_new_bundle(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    app = create_app(Settings(poll_seconds=0.02, access_log=False), go_live([str(path)], threads=1))
    with TestClient(app) as client:
        make_bundle(seed=1)
        eventually(lambda: ask(client)[0] == version_of(path))


# Several versions under one name


def split(tmp_path: Path, *weights: float, shadow: bool = False, **options: Any) -> Models:
    paths = [write_bundle(tmp_path / f"part-{seed}", seed=seed) for seed in range(len(weights))]
    versions = tuple(Wanted(str(path), weight) for path, weight in zip(paths, weights, strict=True))
    extra = str(write_bundle(tmp_path / "shadow", seed=7)) if shadow else None
    return go_live(threads=1, deployments=[Deployment("both", versions, extra)], seed=0, **options)


def test_requests_are_split_by_weight(tmp_path: Path) -> None:
    live = split(tmp_path, 3, 1, 0)
    count = 4000
    drawn = Counter(live.find("sentiment", "both" if index % 2 else None).id for index in range(count))
    first, second, third = (model.id for model in live)
    assert drawn[third] == 0
    # Binomial(4000, 3/4): ten standard deviations are 274; the seed is fixed.
    assert abs(drawn[first] - 3000) < 110
    assert drawn[first] + drawn[second] == count
    assert [round(live.weight(model), 9) for model in live] == [0.75, 0.25, 0.0]
    again = split(tmp_path / "again", 3, 1, 0)
    assert Counter(again.find("sentiment").bundle.path.name for _ in range(count)) == Counter(
        {"part-0": drawn[first], "part-1": drawn[second]}
    )
    live.close()
    again.close()


def test_an_answer_tells_its_version_and_a_request_may_name_one(tmp_path: Path) -> None:
    with serving(split(tmp_path, 1, 1)) as client:
        listed = client.get("/v1/models").json()["data"]
        versions = [version_of(tmp_path / name) for name in ("part-0", "part-1")]
        assert [one["version"] for one in listed] == versions
        assert [one["id"] for one in listed] == [f"both/{version}" for version in versions]
        assert [(one["deployment"], one["weight"], one["default"]) for one in listed] == [("both", 0.5, True)] * 2
        expected = dict(zip(versions, (scores_of(tmp_path / "part-0"), scores_of(tmp_path / "part-1")), strict=True))
        seen = set()
        for _ in range(20):
            version, scores = ask(client, model="both")
            assert scores == pytest.approx(expected[version], abs=1e-5)
            seen.add(version)
        assert seen == set(versions)
        for version in versions:
            assert ask(client, model=f"both/{version}")[0] == version
            assert client.get(f"/v1/models/both/{version}/card").status_code == 200
        for wrong in ("both/3", "both@champion", "part-0", "/both", "both/../both", "BOTH"):
            assert client.post("/v1/sentiment", json={"inputs": "good", "model": wrong}).status_code == 404, wrong


def test_the_share_of_a_version_that_is_not_live_goes_to_the_others(tmp_path: Path, make_bundle: MakeBundle) -> None:
    wanted = (Wanted(str(tmp_path / "nowhere"), 9), Wanted(str(make_bundle())), Wanted(str(make_bundle("unasked")), 0))
    live = go_live(threads=1, deployments=[Deployment("m", wanted)])
    assert {live.find("sentiment", "m").bundle.path.name for _ in range(50)} == {"tiny"}
    live.close()
    live = go_live(threads=1, deployments=[Deployment("m", (wanted[0], wanted[2]))])
    with pytest.raises(UnknownModel):  # nobody wanted it to answer just any request
        live.find("sentiment")
    assert live.find("sentiment", next(iter(live)).id)
    live.close()


def test_each_deployment_of_a_task_gives_one_version(tmp_path: Path, make_bundle: MakeBundle) -> None:
    both = Deployment("both", (Wanted(str(make_bundle("a"))), Wanted(str(make_bundle("b", seed=1)))))
    live = go_live([str(make_bundle("c"))], threads=1, deployments=[both], seed=0)
    drawn = Counter(tuple(model.bundle.path.name for model in live.each("sentiment")) for _ in range(40))
    assert set(drawn) == {("a", "c"), ("b", "c")}
    assert live.each("translation") == []
    live.close()


def test_one_name_is_of_one_task(tmp_path: Path, make_bundle: MakeBundle) -> None:
    versions = (Wanted(str(make_bundle())), Wanted(str(write_writer(tmp_path / "writer"))))
    live = go_live(threads=1, deployments=[Deployment("m", versions)])
    assert [one.reason for one in live.refused] == [
        "m answers the task 'sentiment', and this model is for 'generation'"
    ]
    live.close()


class Counts(Observer):
    def __init__(self) -> None:
        self.shadows: list[bool] = []
        self.lives: list[tuple[str, str, bool]] = []

    def shadow(self, task: str, model: str, version: str, *, agrees: bool) -> None:
        self.shadows.append(agrees)

    def live(self, task: str, model: str, version: str, *, is_live: bool) -> None:
        self.lives.append((model, version, is_live))


def test_a_shadow_is_asked_and_nobody_hears_it(tmp_path: Path) -> None:
    counts = Counts()
    live = split(tmp_path, 1, shadow=True, observer=counts)
    (place,) = [place for place in live.places if place.shadow]
    same = bundle.load(tmp_path / "part-0"), bundle.load(tmp_path / "shadow")
    labels = [[one.label for one in model.predict([SentimentInput(text=text) for text in TEXTS])] for model in same]
    with serving(live) as client:

        def told(count: int) -> bool:
            return len(counts.shadows) == count

        for count in range(1, 4):
            assert ask(client)[0] == version_of(tmp_path / "part-0")
            eventually(partial(told, count))
        assert counts.shadows == [labels[0] == labels[1]] * 3
        (listed,) = client.get("/v1/models").json()["data"]
        assert listed["shadow"] == {
            "id": f"both/{version_of(tmp_path / 'shadow')}",
            "version": version_of(tmp_path / "shadow"),
            "compared": 3,
            "agreed": sum(counts.shadows),
            "dropped": 0,
            "reason": "",
        }
        wrong = client.post("/v1/sentiment", json={"inputs": "good", "model": listed["shadow"]["id"]})
        assert wrong.status_code == 404
        # One that becomes the same model as the live one agrees; what it was before is gone.
        bundle.copy(tmp_path / "part-0", tmp_path / "shadow")
        assert client.post("/v1/models/reload").json()["data"][-1]["outcome"] == "swapped"
        ask(client)
        eventually(lambda: len(counts.shadows) == 4)
        assert counts.shadows[-1]
        # It fails: nobody notices.
        assert place.live is not None
        place.live.engine.close()
        ask(client)
        eventually(lambda: client.get("/v1/models").json()["data"][0]["shadow"]["dropped"] == 1)


def test_a_shadow_never_stands_in_a_queue(tmp_path: Path) -> None:
    async def ask_many() -> tuple[int, int]:
        live = split(tmp_path, 1, shadow=True)
        (place,) = [place for place in live.places if place.shadow]
        assert place.live is not None
        assert place.shadow is not None
        release, entered = asyncio.Event(), asyncio.Event()

        async def slow(inputs: Sequence[Any], deadline: float | None = None) -> Any:
            entered.set()
            await release.wait()
            raise RuntimeError

        place.live.engine.predict = slow  # type: ignore[method-assign]
        model = live.find("sentiment")
        inputs = [SentimentInput(text="good")]
        for _ in range(5):
            await model.predict(inputs)
        await entered.wait()
        waiting = place.shadow.dropped
        release.set()
        while place.shadow.dropped == waiting:
            await asyncio.sleep(0)
        place.shadow.ask(inputs, [], busy=True)
        dropped = place.shadow.dropped
        live.close()
        return waiting, dropped

    assert asyncio.run(ask_many()) == (4, 6)


def test_who_counts_is_told_what_is_live(make_bundle: MakeBundle) -> None:
    path, counts = make_bundle(), Counts()
    with serving(go_live([str(path)], threads=1, observer=counts)) as client:
        first = version_of(path)
        make_bundle(seed=1)
        client.post("/v1/models/reload")
        second = version_of(path)
        eventually(lambda: len(counts.lives) == 3)
    assert counts.lives == [("tiny", first, True), ("tiny", second, True), ("tiny", first, False)]


# A registry


def test_an_alias_that_moves_is_noticed(registry: Registry, tmp_path: Path, tiny: Path, other: Path) -> None:
    registry.aliases["m@challenger"] = "2"
    live = go_live(["m@champion", "m@challenger", "m/1"], threads=1, cache=Cache(tmp_path))
    with serving(live) as client:
        assert [ask(client, model=name)[0] for name in ("m", "m@challenger", "m@v1")] == ["1", "2", "1"]
        registry.aliases = {"m@champion": "2", "m@challenger": "1"}  # promote
        assert [one.outcome for one in renew(client)] == ["swapped", "swapped", "unchanged"]
        expect(client, "2", other, model="m")
        assert [ask(client, model=name)[0] for name in ("m@champion", "m@challenger", "m/1", "m/2")] == list("2112")
        registry.aliases = {"m@champion": "1", "m@challenger": "2"}  # rollback
        renew(client)
        assert ask(client, model="m")[0] == "1"
        assert {one["source"] for one in client.get("/v1/models").json()["data"]} == {"registry"}
    assert registry.downloads == 2


def test_a_registry_that_says_no_is_believed(registry: Registry, tmp_path: Path) -> None:
    with serving(go_live(["m@champion"], threads=1, cache=Cache(tmp_path))) as client:
        del registry.aliases["m@champion"]
        assert [one.outcome for one in renew(client)] == ["kept"]
        (listed,) = client.get("/v1/models").json()["data"]
        assert (listed["state"], listed["source"]) == ("kept", "registry")
        assert "not in the registry" in listed["reason"]
        assert ask(client)[0] == "1"
    assert "not in the registry" in go_live(["m@champion"], threads=1, cache=Cache(tmp_path)).refused[0].reason


def test_a_registry_made_anew_has_another_version_1(registry: Registry, tmp_path: Path, other: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with serving(go_live(["m@champion"], threads=1, cache=Cache(tmp_path))) as client:
        registry.bundles["m/1"] = other
        monkeypatch.setattr(references, "locate", lambda reference: replace(registry.locate(reference), stamp="new"))
        assert renew(client)[0].outcome == "swapped"
        assert ask(client)[1] == pytest.approx(scores_of(other), abs=1e-5)


def test_a_server_starts_from_the_cache_while_the_registry_is_down(
    registry: Registry, tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_live(threads=1, cache=Cache(tmp_path)).close()
    registry.down = True
    live = go_live(threads=1, cache=Cache(tmp_path))
    assert "m is served from the cache" in caplog.text
    assert "the champions are those of 2" in caplog.text
    assert "Connection refused" in caplog.text
    refused = go_live(["m@challenger", "m/2"], threads=1, cache=Cache(tmp_path)).refused
    assert [("Connection refused" in one.reason) for one in refused] == [True, True]
    with serving(live) as client:
        expect(client, "1", tiny)
        (listed,) = client.get("/v1/models").json()["data"]
        assert listed["source"].startswith("cache since 2")
        assert client.get("/readyz").json()["cached"] == {"m": listed["source"].removeprefix("cache since ")}
        told = client.post("/v1/models/reload")
        assert (told.status_code, "Connection refused" in told.text) == (409, True)
        registry.down = False
        told = client.post("/v1/models/reload")
        assert (told.status_code, told.json()["data"][0]["outcome"]) == (200, "unchanged")
        assert client.get("/v1/models").json()["data"][0]["source"] == "registry"
    assert registry.downloads == 1


def test_a_registry_that_goes_away_is_told_once(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "serving.reload")
    live = go_live(["m@champion"], threads=1, cache=Cache(tmp_path))
    now = 0.0
    monkeypatch.setattr("serving.reload.monotonic", lambda: now)
    asked = 0

    def locate(reference: str) -> Target:
        nonlocal asked
        asked += 1
        return registry.locate(reference)

    monkeypatch.setattr(references, "locate", locate)
    with serving(live) as client:
        renew(client)
        registry.down = True
        for _ in range(1000):
            renew(client)
            now += 1.0
        assert asked < 15  # each pause is twice as long as the one before
        assert ask(client)[0] == "1"
        registry.down, registry.aliases["m@champion"] = False, "2"
        now += 3600
        renew(client)
        assert ask(client)[0] == "2"
    told = [record.getMessage() for record in caplog.records if record.name == "serving.reload"]
    assert len(told) == 2
    assert "m: version 1 stays" in told[0]
    assert "Connection refused" in told[0]
    assert "m is live in version 2" in told[1]


@pytest.mark.parametrize("down", [False, True])
def test_a_damaged_copy_is_fetched_again_or_refused(registry: Registry, tmp_path: Path, down: bool) -> None:
    go_live(["m@champion"], threads=1, cache=Cache(tmp_path)).close()
    (weights,) = tmp_path.rglob("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    registry.down = down
    live = go_live(["m@champion"], threads=1, cache=Cache(tmp_path))
    if down:
        (refused,) = live.refused
        assert "the copy in the cache is damaged" in refused.reason
        assert "Connection refused" in refused.reason
    else:
        assert (len(live), registry.downloads) == (1, 2)
    live.close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"told": {"uri": "x"}, "when": "now"}', '{"told": 3, "when": 3}'])
def test_a_damaged_memory_of_what_was_meant_is_no_memory(registry: Registry, tmp_path: Path, text: str) -> None:
    go_live(["m@champion"], threads=1, cache=Cache(tmp_path)).close()
    (file,) = tmp_path.rglob("meant/*.json")
    file.write_text(text)
    registry.down = True
    (refused,) = go_live(["m@champion"], threads=1, cache=Cache(tmp_path)).refused
    assert "Connection refused" in refused.reason


def test_a_damaged_memory_of_champions_is_told(registry: Registry, tmp_path: Path) -> None:
    Cache(tmp_path).champions()
    (file,) = tmp_path.rglob("meant/*.json")
    file.write_text('{"told": [3], "when": "now"}')
    registry.down = True
    with pytest.raises(Unreachable, match="Connection refused; what the cache knows of champions is damaged"):
        go_live(threads=1, cache=Cache(tmp_path))


def test_a_registry_whose_file_is_lost_is_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'lost.db'}")
    with pytest.MonkeyPatch.context() as patch:
        registry = Registry(patch)
        registry.bundles, registry.aliases = {"m/1": tiny}, {"m@champion": "1"}
        go_live(["m@champion"], threads=1, cache=Cache(tmp_path)).close()
    live = go_live(["m@champion", "n@champion"], threads=1, cache=Cache(tmp_path))
    assert [model.version for model in live if model.source.startswith("cache since")] == ["1"]
    assert ["there is no registry" in one.reason for one in live.refused] == [True]
    live.close()


def test_no_home_and_no_cache_is_told(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("SEQAPP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (refused,) = go_live(["m@champion"], threads=1).refused
    assert refused.reason == "there is no home folder to keep models in; SEQAPP_CACHE names another"


def test_a_damaged_download_is_not_kept(registry: Registry, tmp_path: Path, make_bundle: MakeBundle) -> None:
    registry.bundles["m/1"] = make_bundle("damaged")
    cut(registry.bundles["m/1"])
    live = go_live(["m@champion"], threads=1, cache=Cache(tmp_path / "cache"))
    assert "damaged" in live.refused[0].reason
    assert not list((tmp_path / "cache").rglob("weights.safetensors"))


def test_the_cache_is_bounded(registry: Registry, tmp_path: Path, tiny: Path) -> None:
    cache = Cache(tmp_path, keep=2)
    for version in range(1, 6):
        registry.bundles[f"m/{version}"] = tiny
        path = cache.fetch(cache.locate(f"m/{version}")[0])
        os.utime(path, (version, version))
        registry.bundles["n/1"] = tiny
        os.utime(cache.fetch(cache.locate("n/1")[0]), (0, 0))
    kept = sorted(path.parent.name.rsplit("-", 1)[0] for path in tmp_path.rglob("bundle.yaml"))
    assert kept == ["m-4", "m-5", "n-1"]


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_serve(
    registry: Registry, tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(references, "download", lambda target: tiny)
    live = go_live(["m@champion"], threads=1, cache=Cache(tmp_path / "file"))
    assert [model.version for model in live] == ["1"]
    assert "is not kept for a time without tracking server" in caplog.text
    live.close()


def test_many_may_write_the_cache_at_once(registry: Registry, tmp_path: Path) -> None:
    found: list[object] = []

    def fetch() -> None:
        cache = Cache(tmp_path)
        target, _ = cache.locate("m@champion")
        found.append(bundle.load(cache.fetch(target)).manifest.task)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAITING)
    assert found == ["sentiment"] * 8
    assert len(list(tmp_path.rglob("bundle.yaml"))) == 1
    assert not list(tmp_path.rglob(".draft-*"))


def test_names_of_a_registry_are_no_paths(registry: Registry, tmp_path: Path, tiny: Path) -> None:
    for name in ("..", ".", "a b", "c:\\d", "é" * 300):
        registry.bundles[f"{name}/1"] = tiny
        path = Cache(tmp_path / "cache").fetch(Target(f"models:/{name}/1", "", name, "1"))
        assert path.parent.name == "bundles"
        assert path.is_relative_to(tmp_path / "cache")
    assert len(list(tmp_path.rglob("bundle.yaml"))) == 5


@pytest.fixture(scope="module", autouse=True)
def _starting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | None]:
    """A tracking server that starts, which takes seconds, while others are tested, if a test takes one."""
    if not any("tracking" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("tracking")
    server = Server(folder, f"sqlite:///{folder / 'mlflow.db'}")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def tracking(_starting: Server) -> Server:
    _starting.wait()
    return _starting


def test_a_real_tracking_server_promotes_rolls_back_and_goes_down(
    tracking: Server, tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("SEQAPP_CACHE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = tracking.client
    registry.create_registered_model("m")
    for path in (tiny, other):
        run = registry.create_run("0")
        registry.log_artifacts(run.info.run_id, str(path), "bundle")
        registry.create_model_version("m", run.info.artifact_uri, run.info.run_id)
    registry.set_registered_model_alias("m", "champion", "1")
    with serving(go_live(threads=1)) as client:
        expect(client, "1", tiny)
        for version, path in (("2", other), ("1", tiny)):
            registry.set_registered_model_alias("m", "champion", version)
            assert [one.outcome for one in renew(client)] == ["swapped"]
            expect(client, version, path)
        tracking.kill()
        assert [one.outcome for one in renew(client)] == ["kept"]
        assert client.post("/v1/models/reload").status_code == 409
        assert ask(client)[0] == "1"
    with serving(go_live(threads=1)) as client:
        expect(client, "1", tiny)
        assert client.get("/v1/models").json()["data"][0]["source"].startswith("cache since")


# Several workers


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that does nothing, in whose name a worker speaks."""
    with subprocess.Popen(["sleep", "3600"]) as alive:
        try:
            yield alive
        finally:
            alive.kill()


def test_a_reload_asked_of_one_worker_reaches_all(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = make_bundle(), tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr("serving.reload.GLANCE", 0.02)
    lives = [go_live([str(path)], threads=1) for _ in range(2)]

    def speak() -> list[str]:
        return [next(iter(live)).version for live in lives]

    def worker(live: Models, pid: int, patience: float) -> Reloader:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid)
            return Reloader(live, poll_seconds=0, patience=patience, state=state)

    async def reload(first: Reloader, second: Reloader) -> None:
        async with first.running(), second.running():
            assert speak() == [version_of(path)] * 2
            make_bundle(seed=1)
            told = await second.reload()
            assert (told.workers, [one.outcome for one in told.outcomes]) == (2, ["swapped"])
            assert speak() == [version_of(path)] * 2
            # One that does not move is told of, and obeys later.
            moves, renew = asyncio.Event(), second.renew

            async def stands(*given: Any, **options: Any) -> Any:
                await moves.wait()
                return await renew(*given, **options)

            monkeypatch.setattr(second, "renew", stands)
            make_bundle(seed=2)
            told = await first.reload()
            assert (told.workers, told.missing) == (1, [mute.pid])
            assert speak()[0] == version_of(path) != speak()[1]
            moves.set()
            # Both at the same time, each waiting for the other.
            make_bundle(seed=3)
            both = await asyncio.gather(first.reload(), second.reload())
            assert [(told.workers, told.missing) for told in both] == [(2, [])] * 2
            assert speak() == [version_of(path)] * 2
            # One that is dead is not waited for.
            mute.kill()
            mute.wait()
            moves.clear()
            told = await first.reload()
            assert (told.workers, told.missing) == (1, [])
            assert {file.name.partition("-")[0] for file in (state / "reload").iterdir()} == {"worker"}

    with process() as mute:
        # Only the first waits in vain, and not for long.
        asyncio.run(reload(worker(lives[0], os.getpid(), 1.0), worker(lives[1], mute.pid, WAITING)))
    for live in lives:
        live.close()


# The file


WHOLE = """\
sentiment:
  versions:
    - {model: sentiment-bundled@champion, weight: 9}
    - model: runs/x/bundle
  shadow: sentiment-bundled/7
writer:
  versions: [generation-bundled]
"""


def test_a_file_of_deployments_is_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(WHOLE)
    assert deployment.read(file) == [
        Deployment(
            "sentiment", (Wanted("sentiment-bundled@champion", 9.0), Wanted("runs/x/bundle")), "sentiment-bundled/7"
        ),
        Deployment("writer", (Wanted("generation-bundled"),)),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  versions:\n    - {model: x, weigt: 1}\n",
         "3: a.versions.0.weigt: a version has no option 'weigt'; did you mean 'weight'?"),
        ("a:\n  versions:\n    - x\n    - {model: y, weight: -1}\n", "4: a.versions.1.weight: takes float >= 0"),
        ("a:\n  versions:\n    - {weight: 1}\n", "3: a.versions.0: a version needs the option 'model'"),
        ("a:\n  version: [x]\n", "2: a.version: the served name 'a' has no option 'version'; did you mean 'versions'?"),
        ("a: {shadow: x}\n", "1: a: the served name 'a' needs the option 'versions'"),
        ("a:\n  versions: []\n", "2: a.versions: the list is empty; one version or more fits"),
        ("a:\n  versions:\n    - x\n    - x\n", "4: a.versions.1: x stands twice"),
        ("a:\n  versions:\n    - {model: x, weight: 0}\n", "2: a.versions: every weight is 0; one above 0 fits"),
        ("a/b: {versions: [x]}\n", "1: a/b: a served name has 1 to 100 characters, none of them white space, / or @"),
        ("- a\n", ": a config is a mapping of NAME: {versions: [MODEL, ...]}"),
        ("{}\n", ": it names nothing to serve; NAME: {versions: [MODEL, ...]} fits"),
        ("a: {versions: [x]}\na: {versions: [y]}\n", "2: a stands twice"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        deployment.read(file)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{file}:")


def test_a_file_and_plain_references_make_the_same_thing(tmp_path: Path, tiny: Path, other: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"tiny:\n  versions: [{tiny}]\nother:\n  versions: [{other}]\n")
    first, second = go_live(deployments=deployment.read(file), threads=1), go_live([str(tiny), str(other)], threads=1)

    def shown(live: Models) -> Any:
        with serving(live) as client:
            listed = client.get("/v1/models").json()["data"]
        return [{name: value for name, value in one.items() if name not in ("loaded_at", "created")} for one in listed]

    assert shown(first) == shown(second)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(0, 99))
def test_shares_are_those_of_the_weights_and_what_has_none_is_not_drawn(weights: list[int], seed: int) -> None:
    hypothesis.assume(any(weights))
    deployed = Deployed("m")
    for index, weight in enumerate(weights):
        loaded: Any = SimpleNamespace(manifest=SimpleNamespace(task="sentiment"))
        engine: Any = None
        model = LiveModel(f"m/{index}", Reference(Path(), "m", str(index)), loaded, engine, "", datetime.now(UTC))
        deployed.places.append(Place(deployed, Wanted("", float(weight)), live=model))
    live = Models([deployed], seed=seed)
    for model, weight in zip(live, weights, strict=True):
        assert live.weight(model) == pytest.approx(weight / sum(weights))
        assert live.find("sentiment", model.id) is model
    assert all(live.weight(live.find("sentiment")) > 0 for _ in range(50))
