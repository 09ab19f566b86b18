"""The same answers through Ray Serve, on a Ray of this machine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic", "ignore::DeprecationWarning:ray")
def test_what_a_person_chooses_reaches_ray(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.ray_serve import Options, app

    monkeypatch.chdir(tiny.parent)
    built = app(Options(models=tiny.name, max_replicas=7, target_ongoing_requests=5, settings={"shutdown_seconds": 3}))
    deployment = built._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 7, 5)
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 3
    (given,) = deployment.init_args
    assert given["models"] == [str(tiny)]
    assert given["shutdown_seconds"] == 3
    # A replica has another working directory.
    for audit_log, meant in (("audit.jsonl", str(tiny.parent / "audit.jsonl")), ("-", "-")):
        (given,) = app(Options(settings={"audit_log": audit_log}))._bound_deployment.init_args
        assert given["audit_log"] == meant
    with pytest.raises(ValidationError, match="max_items"):
        app(Options(settings={"max_items": "many"}))
    with pytest.raises(ValidationError, match="replicas"):
        Options(replicas=3)  # type: ignore[call-arg]


@pytest.fixture
def served(tiny: Path, writers: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SEQAPP_", "RAY_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", str(tiny), writers[0], "--backend", "ray", "--port", "0"],
        cwd=ROOT, env={**environment, "SEQAPP_MAX_ITEMS": "4"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = []
        while not said or not said[-1].startswith("Ctrl+C"):
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        port = next(int(line.split(":")[2].split("/")[0]) for line in said if line.startswith("seqapp answers"))
        yield process, port
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.communicate()


def ask(port: int, path: str, body: Any = None) -> tuple[int, str, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        sent = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()


def test_it_answers_streams_refuses_and_ends(served: tuple[subprocess.Popen[str], int]) -> None:
    process, port = served
    status, _, content = ask(port, "/v1/sentiment", {"inputs": "good soup"})
    assert status == 200
    assert sum(one["score"] for one in json.loads(content)) == pytest.approx(1, abs=1e-4)

    same = {"prompt": "the ", "max_tokens": 9, "min_tokens": 9, "seed": 3}
    whole = json.loads(ask(port, "/v1/completions", same)[2])["choices"][0]["text"]
    status, media_type, content = ask(port, "/v1/completions", {**same, "stream": True})
    assert (status, media_type.split(";")[0]) == (200, "text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in content.decode().split("\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole

    status, media_type, content = ask(port, "/v1/sentiment", {"inputs": ["x"] * 5})
    assert (status, media_type) == (422, "application/problem+json")
    assert json.loads(content)["errors"][0]["field"] == "inputs"
    assert ask(port, "/nowhere")[:2] == (404, "application/problem+json")
    assert json.loads(ask(port, "/readyz")[2])["status"] == "ready"

    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not psutil.wait_procs(family, timeout=30)[1]
