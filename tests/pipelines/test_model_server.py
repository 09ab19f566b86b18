"""The registered model behind MLflow's own server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from seqapp import bundle
from tests.pipelines.worlds import Done, texts


def ask(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        return str(answer.read().decode())


def test_mlflow_serves_the_champion_as_the_bundle_answers(done: Done) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/sentiment-tiny@champion"]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = done.path / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, *options], env=done.environment(), cwd=done.path, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                ask(f"http://127.0.0.1:{port}/ping")
                break
            except OSError:
                time.sleep(0.2)
        given = [text for text, _ in texts(5, seed=30)]
        body = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in given]}}
        answered = json.loads(ask(f"http://127.0.0.1:{port}/invocations", body))["predictions"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"http://127.0.0.1:{port}/invocations", {"dataframe_split": {"columns": ["body"], "data": [["x"]]}})
        assert refused.value.code == 400
        refused.value.close()
    finally:
        # The server and its workers are a process group of their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    loaded = bundle.load(done.trained.bundle)
    wanted = loaded.predict([loaded.task.Input(text=text) for text in given])
    assert [row["label"] for row in answered] == [answer.label for answer in wanted]
    for row, answer in zip(answered, wanted, strict=True):
        assert row["score"] == pytest.approx(answer.score, abs=1e-5)
        assert row["scores"] == pytest.approx(answer.scores, abs=1e-5)
