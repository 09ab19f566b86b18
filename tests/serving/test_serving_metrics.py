"""What is counted is what happened, in one process and in several; and the dashboard asks for nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from seqapp.tasks.sentiment import SentimentInput
from serving import models
from serving.app import TASKS, create_app
from serving.metrics import Metrics
from serving.models import go_live
from serving.reload import Reloader
from serving.settings import Settings
from tests.serving.conftest import MakeBundle

ROOT = Path(__file__).parents[2]
ALLOWED = {"task", "model", "version", "outcome", "le"}


def figures(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def figure(text: str, name: str, **labels: str) -> float:
    """The sum over all labels that are not given."""
    return sum(
        value
        for (sample, has), value in figures(text).items()
        if sample == name and labels.items() <= dict(has).items()
    )


@pytest.fixture
def counted(settings: Settings, tiny: Path, writers: list[str]) -> Iterator[TestClient]:
    metrics = Metrics(TASKS)
    app = create_app(settings, go_live([str(tiny), writers[0]], threads=1, observer=metrics), metrics)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_what_happened_is_counted(counted: TestClient) -> None:
    before = counted.get("/metrics").text  # what a model was asked before it went live counts, too
    for _ in range(3):
        assert counted.post("/v1/sentiment", json={"inputs": ["good soup", "a bad room"]}).status_code == 200
    assert counted.post("/v1/sentiment", json={"inputs": ""}).status_code == 422
    assert counted.post("/v1/sentiment", json={"inputs": "good", "model": "x\n\"{}'"}).status_code == 404
    assert counted.get("/a/path/of/nobody").status_code == 404
    answer = counted.post("/v1/completions", json={"prompt": "the", "max_tokens": 7, "min_tokens": 7})
    assert answer.json()["usage"]["completion_tokens"] == 7
    after = counted.get("/metrics").text

    def more(name: str, **labels: str) -> float:
        return figure(after, name, **labels) - figure(before, name, **labels)

    of_tiny: dict[str, Any] = {"task": "sentiment", "model": "tiny"}
    assert more("seqapp_http_requests_total", task="sentiment", outcome="200") == 3
    assert more("seqapp_http_requests_total", task="sentiment", outcome="422") == 1
    assert more("seqapp_http_requests_total", task="", outcome="404") == 1
    assert more("seqapp_http_request_seconds_count", task="sentiment") == 5
    assert more("seqapp_requests_total", outcome="ok", **of_tiny) == 3
    assert more("seqapp_requests_total", outcome="invalid", **of_tiny) <= 1
    assert more("seqapp_queue_seconds_count", **of_tiny) == 3
    assert more("seqapp_model_seconds_count", **of_tiny) == 3
    assert more("seqapp_batch_inputs_sum", **of_tiny) in (6, 7)  # the empty text may have been in a step
    assert more("seqapp_step_seconds_count", **of_tiny) == more("seqapp_batch_inputs_count", **of_tiny)
    assert more("seqapp_tokens_total", task="generation") == 7
    assert more("seqapp_refused_total", outcome="unknown-model") == 1
    assert figure(after, "seqapp_model_live", **of_tiny) == 1
    assert figure(after, "seqapp_inputs_in_flight") == 0
    assert figure(after, "seqapp_resident_memory_bytes") > 1e7


def test_labels_are_those_of_the_contract_and_never_what_a_client_sent(counted: TestClient) -> None:
    secret = "s3cr3t"
    for path in (f"/{secret}", f"/v1/models/{secret}/card"):
        counted.get(path)
    counted.request(secret.upper(), "/v1/sentiment")
    counted.post("/v1/sentiment", json={"inputs": secret, "model": secret}, headers={"X-Request-Id": secret})
    said = counted.get("/metrics").text
    assert secret not in said.lower()
    names = {label for _, labels in figures(said) for label, _ in labels}
    assert names <= ALLOWED, names


def test_a_version_that_is_no_more_is_forgotten_with_all_that_it_was_asked() -> None:
    metrics = Metrics()
    for version in ("1", "2"):
        model = ("sentiment", "tiny", version)
        metrics.live(*model, is_live=True)
        metrics.finished(*model, "ok", queued=0, computed=0, tokens=1)
        metrics.batch(*model, inputs=1, seconds=0.1)
        metrics.load(*model, waiting=1, running=1)
        metrics.shadow(*model, agrees=True)
    metrics.live("sentiment", "tiny", "1", is_live=False)
    said = metrics.exposition("")[0].decode()
    assert 'version="1"' not in said
    assert figure(said, "seqapp_inputs_in_flight", version="2") == 2
    # It may come back.
    metrics.live("sentiment", "tiny", "1", is_live=True)
    metrics.finished("sentiment", "tiny", "1", "ok", queued=0, computed=0, tokens=1)
    said = metrics.exposition("")[0].decode()
    assert figure(said, "seqapp_requests_total", version="1") == figure(said, "seqapp_model_live", version="1") == 1


def test_a_swap_leaves_no_figures_of_the_version_before(make_bundle: MakeBundle) -> None:
    metrics = Metrics()
    live = go_live([str(make_bundle())], threads=1, observer=metrics)
    (before,) = live

    async def swap() -> None:
        asked = [asyncio.create_task(before.predict([SentimentInput(text="good soup")])) for _ in range(3)]
        await asyncio.sleep(0)
        make_bundle(seed=1)
        with before.engine.held():  # it is stopped, and tells of those that waited
            await Reloader(live, poll_seconds=0, drain_seconds=0.01).renew()
            await asyncio.wait([leaving] if (leaving := live.places[0].leaving) else [])
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(swap())
    live.close()
    before.engine._thread.join(10)
    said = metrics.exposition("")[0].decode()
    (after,) = live
    assert f'version="{after.version}"' in said
    assert f'version="{before.version}"' not in said


def test_a_version_that_failed_its_warm_up_leaves_no_figures(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    live = go_live([str(make_bundle())], threads=1, observer=metrics)
    before = metrics.exposition("")[0].decode()
    warm_up = models._warm_up

    async def breaks(*given: Any) -> None:
        await warm_up(*given)
        raise RuntimeError("too late")

    monkeypatch.setattr(models, "_warm_up", breaks)
    make_bundle(seed=1)
    (kept,) = asyncio.run(Reloader(live, poll_seconds=0).renew())
    live.close()
    assert kept.outcome == "kept"
    said = metrics.exposition("")[0].decode()
    assert re.findall('version="[^"]*"', said) == re.findall('version="[^"]*"', before)


def test_the_media_type_is_what_prometheus_asks_for(counted: TestClient) -> None:
    assert counted.get("/metrics").headers["content-type"].startswith("text/plain; version=")
    accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"}
    answer = counted.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


COUNTING = """
import sys
from serving.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.finished("sentiment", "tiny", "", "ok", queued=0.5, computed=0.25, tokens=2)
metrics.load("sentiment", "tiny", "", waiting=int(sys.argv[1]), running=1)
print(flush=True)
sys.stdin.readline()
content, media_type = metrics.exposition("")
sys.stdout.write(content.decode())
"""


def test_every_process_tells_the_figures_of_all_and_the_dead_are_not_in_flight(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", COUNTING, number], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True, env=environment, cwd=ROOT)
        for number in ("3", "4", "5")
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
        processes[0].kill()
        processes[0].wait()
        buried = "from prometheus_client.multiprocess import mark_process_dead as m; import sys; m(int(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", buried, str(processes[0].pid)], env=environment, check=True)
        said, _ = processes[1].communicate("\n")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert figure(said, "seqapp_requests_total", outcome="ok") == 12
    assert figure(said, "seqapp_tokens_total") == 24
    assert figure(said, "seqapp_queue_seconds_sum") == 6
    assert figure(said, "seqapp_inputs_waiting") == 9
    assert figure(said, "seqapp_inputs_in_flight") == 11
    assert figure(said, "seqapp_resident_memory_bytes") > 1e7


def test_a_figure_that_cannot_be_written_is_lost_and_nothing_else(
    tiny: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(TASKS)
    app = create_app(settings, go_live([str(tiny)], threads=1, observer=metrics), metrics)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with TestClient(app) as client:
        with monkeypatch.context() as patch:
            patch.setattr("prometheus_client.values.MutexValue.inc", full)
            for _ in range(3):
                assert client.post("/v1/sentiment", json={"inputs": "good soup"}).status_code == 200
        assert client.post("/v1/sentiment", json={"inputs": "good soup"}).status_code == 200
        said = client.get("/metrics").text
    assert figure(said, "seqapp_http_requests_total", outcome="200") == 1
    assert sum("not counted" in record.message for record in caplog.records) >= 1


def told() -> set[str]:
    """The names of all figures of a server that has seen everything once."""
    metrics = Metrics(TASKS)
    model = ("sentiment", "tiny", "1")
    metrics.request("POST", "/v1/sentiment", 200, 0.1)
    metrics.finished(*model, "ok", queued=0, computed=0, tokens=1)
    metrics.batch(*model, inputs=1, seconds=0.1)
    metrics.load(*model, waiting=0, running=1)
    metrics.live(*model, is_live=True)
    metrics.reloaded("tiny", "swapped")
    metrics.refused("overloaded")
    metrics.shadow(*model, agrees=True)
    content, _ = metrics.exposition("")
    return {name for name, _ in figures(content.decode())}


def test_the_dashboard_asks_for_figures_that_exist_and_for_all_that_matter() -> None:
    dashboard = json.loads((ROOT / "deploy/serving/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"seqapp_\w+", query)}
    assert asked <= told(), asked - told()
    assert {re.sub("_(sum|count|bucket)$", "", name) for name in told() - asked} <= {
        re.sub("_(sum|count|bucket)$", "", name) for name in asked
    }
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for query in queries:
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert {label.strip() for label in by.split(",")} <= ALLOWED
