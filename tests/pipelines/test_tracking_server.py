"""Training against a server that may go away: everything arrives, in order and once, and the log says what happened."""

import http.server
import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
from pytorch_lightning.callbacks import Callback

from pipelines import patience, tracking
from seqapp import bundle
from seqapp.references import ReferenceNotFound, resolve
from tests.pipelines.servers import Server, free_port
from tests.pipelines.worlds import World, steady

CHOICES = ("train.epochs=4", "data.count=20")


class At(Callback):
    """Does something in the middle of an epoch, after its samples and before its figures."""

    def __init__(self, epoch: int, act: Callable[[], Any]) -> None:
        self.epoch, self.act = epoch, act

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.act()


@pytest.fixture(scope="module")
def _server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    server = Server(folder, f"sqlite:///{folder / 'mlflow.db'}")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(_server: Server, toy: World, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A running one, which the toy world tracks to."""
    if _server.process is None:
        _server.start()
    _server.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _server.uri)
    mlflow.set_tracking_uri(_server.uri)
    mlflow.set_registry_uri(_server.uri)
    return _server


@pytest.fixture
def whole(toy: World, server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """History of the same training with a database file, without a server."""
    with monkeypatch.context() as patch:
        toy.enter(patch)
        return steady(toy.history(toy.train(*CHOICES, config="toy.yaml", register=False).run_id))


def history(server: Server, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = server.client
    names = client.get_run(run_id).data.metrics
    return {name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)] for name in names}


def check(server: Server, run_id: str, whole: dict[str, Any], name: str, tmp_path: Path) -> None:
    """The run is finished and holds each thing once, its model is registered once and answers."""
    client = server.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert steady(history(server, run_id)) == whole
    assert {file.path for file in client.list_artifacts(run_id)} >= {
        "config.yaml", "environment.txt", "learning_curves.png", "model_card.md",
    }  # fmt: skip
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert client.get_model_version_by_alias(name, "champion").version == version.version == "1"
    assert version.run_id == run_id
    loaded = bundle.load(resolve(name).path)
    assert loaded.predict([loaded.task.Input(values=[0.5])])


def test_a_run_by_http_is_the_run_by_file(toy: World, server: Server, whole: dict[str, Any], tmp_path: Path) -> None:
    trained = toy.train(*CHOICES, "train.model_name=plain", config="toy.yaml")
    check(server, trained.run_id, whole, "plain", tmp_path)
    journal = (tmp_path / trained.bundle.parent / "outbox" / "journal.jsonl").read_text().splitlines()
    assert json.loads(journal[-1])["sent"] == sum("entry" in json.loads(line) for line in journal)


def test_a_server_that_goes_away_for_a_while_loses_nothing(
    toy: World,
    server: Server,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build, killed = mlflow.pyfunc.save_model, []

    def build_without_server(*arguments: Any, **options: Any) -> None:
        build(*arguments, **options)
        killed.append(server.kill())
        server.start()

    monkeypatch.setattr(mlflow.pyfunc, "save_model", build_without_server)
    with caplog.at_level(logging.WARNING):
        trained = toy.train(
            *CHOICES, "train.model_name=away", config="toy.yaml", callbacks=[At(1, server.kill), At(3, server.start)]
        )
    check(server, trained.run_id, whole, "away", tmp_path)
    assert len(killed) == 1
    told = [message for message in caplog.messages if "tracking server" in message]
    assert "does not answer (Connection refused); going on, what the run logs is kept in runs/" in told[0]
    assert "waiting for the tracking server" in told[1]
    assert "answers again" in told[2]
    assert "does not answer (Connection refused); waiting for it, 300 s at most" in told[3]
    assert "answers again, after" in told[4]
    assert len(told) == 5


def test_a_server_gone_for_good_leaves_a_run_that_resume_finishes(
    toy: World, server: Server, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.WAIT, "0.3")
    choices = (*CHOICES, "train.model_name=gone")

    sentence = r"does not answer within 0\.3 s.*; checkpoints, figures and bundle are safe in runs/.*`--resume` sends"
    with pytest.raises(patience.Unreachable, match=sentence):
        toy.train(*choices, config="toy.yaml", callbacks=[At(1, server.kill)])
    (folder,) = (
        path.parent for path in Path("runs").glob("*/state.json") if not json.loads(path.read_text())["finished"]
    )
    entries = [json.loads(line) for line in (folder / "outbox" / "journal.jsonl").read_text().splitlines()]
    assert sum("entry" in entry for entry in entries) > max(entry.get("sent", 0) for entry in entries)
    assert (folder / "bundle" / "weights.safetensors").is_file()
    server.start()
    server.wait()
    trained = toy.train(*choices, config="toy.yaml", resume=True)
    assert str(folder).endswith(trained.run_id[:8])
    check(server, trained.run_id, whole, "gone", tmp_path)


def test_a_run_is_not_made_twice_where_the_answer_was_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make = mlflow.MlflowClient.create_run
    calls = []

    def lose(self: Any, *arguments: Any, **options: Any) -> Any:
        made = make(self, *arguments, **options)
        calls.append(made.info.run_id)
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", lose)
    run_id = tracking.create_run("once", "twin", {"a": "b"})
    assert calls == [run_id]
    experiment = server.client.get_experiment_by_name("once")
    (run,) = server.client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.data.tags["a"]) == (run_id, "twin", "b")


class Page(http.server.BaseHTTPRequestHandler):
    """Answers everything alike, and is no MLflow."""

    status, body = 200, b"<!DOCTYPE html>\n<html>hello</html>"

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST  # noqa: N815  (as http.server wants it)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def page(status: int, body: bytes) -> Iterator[int]:
    """A foreign web server; yields its port."""
    handler = type("Handler", (Page,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as foreign:
        thread = threading.Thread(target=foreign.serve_forever, daemon=True)
        thread.start()
        yield foreign.server_port
        foreign.shutdown()
        thread.join()


NO_MLFLOW = "there is no MLflow server at this address ({}); its first part or its path may be wrong"
UNKNOWN = ("it does not know the user or the password (HTTP code 401); MLFLOW_TRACKING_USERNAME and "
           "MLFLOW_TRACKING_PASSWORD give them")  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<!DOCTYPE html>\n<html>hello</html>", NO_MLFLOW.format("an answer that is not JSON")),
        (404, b"<html>nothing here</html>", NO_MLFLOW.format("HTTP code 404")),
        (401, b"who are you", UNKNOWN),
        (403, b"Invalid Host header\n - possible attack", "HTTP code 403: Invalid Host header - possible attack"),
        (500, b"oops", "it answers with the HTTP code 500"),
    ],
)
def test_a_server_that_is_of_no_use_is_one_sentence(
    toy: World, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, said: str
) -> None:
    with page(status, body) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:geheim@127.0.0.1:{port}/path")
        with pytest.raises(ReferenceNotFound) as raised:
            toy.train(config="toy.yaml")
    assert str(raised.value) == f"the tracking server http://me:***@127.0.0.1:{port}/path cannot be used: {said}"
    assert not Path("runs").exists()


def test_a_server_without_tls_is_one_sentence(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with page(200, b"{}") as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{port}")
        with pytest.raises(ReferenceNotFound, match=r"cannot be used: it does not speak TLS as https:// wants it \("):
            toy.train(config="toy.yaml")


def test_nobody_there_is_one_sentence(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ReferenceNotFound, match=r"http://127\.0\.0\.1:\d+ cannot be used: Connection refused$"):
        toy.train(config="toy.yaml")


def test_a_database_that_is_locked_for_a_while_is_waited_for(toy: World, caplog: pytest.LogCaptureFixture) -> None:
    # MLflow asks SQLite to wait 20 s itself.
    def shorten(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "busy_timeout" in statement:
            cursor.execute("PRAGMA busy_timeout = 20")

    # After the statement, so that this has the last word.
    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", shorten)
    blocker = sqlite3.connect(toy.path / "mlflow.db", isolation_level=None)
    told = "does not answer (database is locked); going on"

    def lock() -> None:
        blocker.execute("BEGIN EXCLUSIVE")

    def release() -> None:
        deadline = time.monotonic() + 60
        while not any(told in message for message in caplog.messages) and time.monotonic() < deadline:
            time.sleep(0.01)
        blocker.rollback()

    try:
        trained = toy.train(*CHOICES, config="toy.yaml", register=False, callbacks=[At(1, lock), At(3, release)])
    finally:
        blocker.close()
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", shorten)
    assert [step for step, _ in toy.history(trained.run_id)["train/mse"]] == [0, 1, 2, 3]
    assert any(told in message for message in caplog.messages)


def test_a_folder_without_its_journal_takes_the_curves_from_mlflow(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steady(toy.history(toy.train(*CHOICES, config="toy.yaml", register=False).run_id))

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "save", fail)
        with pytest.raises(ZeroDivisionError):
            toy.train(*CHOICES, config="toy.yaml", register=False)
    states = {path.parent: json.loads(path.read_text()) for path in Path("runs").glob("*/state.json")}
    (folder,) = (path for path, state in states.items() if not state["finished"])
    shutil.rmtree(folder / "outbox")
    trained = toy.train(*CHOICES, config="toy.yaml", register=False, resume=True)
    assert str(folder).endswith(trained.run_id[:8])
    assert steady(toy.history(trained.run_id)) == whole
    assert "of\n4, trained" in (folder / "bundle" / "README.md").read_text()
