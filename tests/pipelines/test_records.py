"""What is written down of a run: at once, whole, and without a password."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines import tracking
from pipelines.folder import STATE, last_unfinished, write_state
from seqapp.errors import SeqappError
from seqapp.references import masked
from tests.pipelines.worlds import Said, World

# state.json


def test_a_kill_while_the_state_is_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "toy-tiny-12345678"
    folder.mkdir()
    write_state(folder, "r", {"a": 1}, {}, finished=False)
    before = (folder / "state.json").read_text()
    assert json.loads(before)["finished"] is False

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("os.fsync", "pathlib.Path.replace", "json.dumps"):
        with monkeypatch.context() as patch:
            patch.setattr(name, kill)
            with pytest.raises(KeyboardInterrupt):
                write_state(folder, "r", {"a": 1}, {}, finished=True)
        assert (folder / "state.json").read_text() == before, name
    write_state(folder, "r", {"a": 1}, {}, finished=True)
    assert json.loads((folder / "state.json").read_text())["finished"] is True
    assert [file.name for file in folder.iterdir()] == ["state.json"]


def test_a_damaged_state_is_passed_over_and_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.run._fit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.train("train.epochs=1")
    broken = world.path / "runs" / "sentiment-tiny-00000000"
    broken.mkdir()
    (broken / "state.json").write_text('{"run_id": "')
    resumed = world.train("train.epochs=1", resume=True, register=False)
    assert resumed.run_id[:8] in str(resumed.bundle)
    assert "runs/sentiment-tiny-00000000/state.json: damaged" in caplog.text


@pytest.mark.parametrize("foreign", ["[]", "{}", '"x"', "null", '{"name": "tiny", "finished": false}', "\0", None])
def test_a_state_of_another_program_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, foreign: str | None
) -> None:
    mine, other = tmp_path / "toy-tiny-12345678", tmp_path / "another"
    for folder in (mine, other):
        folder.mkdir()
    if foreign is None:
        (other / STATE).mkdir()
    else:
        (other / STATE).write_text(foreign)
    with pytest.raises(SeqappError, match="tiny: no unfinished run in"):
        last_unfinished(tmp_path, "tiny", {"a": 1})
    write_state(mine, "r", {"a": 1}, {}, finished=False)
    assert last_unfinished(tmp_path, "tiny", {"a": 1}) == mine
    assert "another/state.json: damaged or not made by seqapp, so nothing in that folder can be resumed" in caplog.text


# Params and metrics


def test_a_figure_that_the_run_has_is_not_logged_again(world: World) -> None:
    run_id = tracking.create_run("sentiment", "again", {})
    tracking.log_metrics(run_id, {"latency_ms": 3.0, "test/nll": float("nan")})
    tracking.log_metrics(run_id, {"latency_ms": 4.0, "test/nll": float("nan"), "parameters": 7.0})  # after a kill
    assert {name: len(points) for name, points in world.history(run_id).items()} == {
        "latency_ms": 1, "test/nll": 1, "parameters": 1,
    }  # fmt: skip
    assert world.history(run_id)["latency_ms"] == [(0, 3.0)]


def test_a_run_that_is_gone_does_not_hide_what_has_happened(world: World, caplog: pytest.LogCaptureFixture) -> None:
    run_id = tracking.create_run("sentiment", "gone", {})
    world.client.delete_run(run_id)
    with pytest.raises(ZeroDivisionError), tracking.failing(run_id):
        raise ZeroDivisionError
    assert f"run {run_id} is not closed as FAILED: " in caplog.text


def test_params_are_logged_a_hundred_in_one_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = mlflow.MlflowClient.log_batch

    def log_batch(self: Any, run_id: str, *arguments: Any, **options: Any) -> Any:
        calls.append(len(options.get("params", ())))
        return plain(self, run_id, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    run_id = tracking.create_run("sentiment", "many", {})
    wanted = {f"p{place}": place for place in range(230)}
    tracking.log_start(run_id, {"data": {"kind": "none"}, "many": wanted, "long": "x" * 900}, {"train": "d" * 64}, "d")
    assert calls == [100, 100, 32]
    params = world.client.get_run(run_id).data.params
    assert {name.removeprefix("many."): int(value) for name, value in params.items() if "many." in name} == wanted
    assert params["long"] == "x" * 500
    tracking.log_metrics(run_id, {"a": 1, "b": 1 / 3})
    assert world.history(run_id) == {"a": [(0, 1.0)], "b": [(0, 1 / 3)]}


# Passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:s3cret@host:5000 says no", "http://ann:***@host:5000 says no"),
        ("postgresql+psycopg2://ann:p@ss/w:rd@db/mlflow", "postgresql+psycopg2://ann:***@db/mlflow"),
        ("https://:token@host/x", "https://:***@host/x"),
        ("mysql://host/db?user=ann&password=s3cret&x=1", "mysql://host/db?user=ann&password=***&x=1"),
        ("http://host:5000/api?alias=name@champion", "http://host:5000/api?alias=name@champion"),
        ("http://127.0.0.1:9 cannot be used; name@champion", "http://127.0.0.1:9 cannot be used; name@champion"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
        ("http://ann@host", "http://ann@host"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "arguments", [("compare",), ("predict", "nobody"), ("train", "tiny.yaml"), ("export", "nobody", "out")]
)
def test_no_message_shows_the_password_of_the_server(
    world: World,
    seqapp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9")
    said = seqapp(*arguments)
    assert said.status == 1
    assert said.err.startswith("error: the tracking server http://ann:***@127.0.0.1:9 cannot be used: ")
    assert "s3cret" not in said.err + said.out + caplog.text
