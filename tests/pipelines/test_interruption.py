"""A run that is cut off goes on from its last epoch and ends as if nothing had happened."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines import run
from seqapp.errors import SeqappError, Stopped
from seqapp.tasks.sentiment import Sentiment
from tests.pipelines.worlds import Said, World, steady, texts, write_csv

# Epochs of some seconds, so that a signal meets the middle of one.
SLOW = ("train.epochs=3", "train.batch_rows=2", "train.patience=3", "data.test_share=0", "train.seed=6")
ROWS = texts(1000, longest=12)


def start(world: World) -> subprocess.Popen[str]:
    command = world.command("train", "tiny.yaml", *SLOW, "--quiet")
    return subprocess.Popen(
        command, cwd=world.path, env=world.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_an_epoch(world: World, process: subprocess.Popen[str]) -> None:
    """Return in the middle of the second epoch."""
    deadline = time.monotonic() + 120
    while not list(world.path.glob("runs/*/checkpoints/last.ckpt")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.02)
    time.sleep(0.15)
    assert process.poll() is None


def only_run(world: World) -> Any:
    runs = world.client.search_runs([world.client.get_experiment_by_name("sentiment").experiment_id])
    (found,) = (run for run in runs if run.info.run_name != "comparison")
    return found


def only_folder(world: World) -> Path:
    (found,) = world.path.glob("runs/*/state.json")
    return found.parent


@dataclass(frozen=True)
class Cut:
    """A training that got a signal in its second epoch, what it said, and how long it took to end."""

    world: World
    said: Said
    seconds: float


@pytest.fixture(scope="module")
def cut(make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cut]]:
    """Two trainings with equal choices, side by side; one gets SIGINT, the other SIGKILL."""
    begun: dict[str, tuple[World, subprocess.Popen[str]]] = {}
    sent = {}
    try:
        for name in ("SIGINT", "SIGKILL"):
            world = make_world(tmp_path_factory.mktemp(name))
            write_csv(world.path / "data.csv", ROWS)
            begun[name] = (world, start(world))
        for name, (world, process) in begun.items():
            wait_for_an_epoch(world, process)
            process.send_signal(getattr(signal, name))
            sent[name] = time.monotonic()
        ended = {}
        for name, (world, process) in begun.items():
            out, err = process.communicate(timeout=60)
            ended[name] = Cut(world, Said(process.returncode, out, err), time.monotonic() - sent[name])
        yield ended
    finally:
        for _, process in begun.values():
            process.kill()
            process.communicate()


@pytest.fixture
def killed(cut: dict[str, Cut]) -> World:
    return cut["SIGKILL"].world


@pytest.fixture
def stopped(cut: dict[str, Cut]) -> Cut:
    return cut["SIGINT"]


@pytest.fixture(scope="module")
def whole(
    make_world: Callable[[Path], World],
    tmp_path_factory: pytest.TempPathFactory,
    cut: dict[str, Cut],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """History and weights of the same training, left alone."""
    world = make_world(tmp_path_factory.mktemp("whole"))
    write_csv(world.path / "data.csv", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        world.enter(patch)
        trained = world.train(*SLOW)
        weights = load_file(trained.bundle / "weights.safetensors")
    return steady(world.history(trained.run_id)), weights


def check_resumed(world: World, run_id: str, whole: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> None:
    history, weights = whole
    found = only_run(world)
    assert (found.info.run_id, found.info.status) == (run_id, "FINISHED")
    again = world.history(run_id)
    for name, values in again.items():
        if name.startswith(("train/", "validation/")) and name != "validation/examples":
            assert [step for step, _ in values] == [0, 1, 2], name
    assert steady(again) == history
    resumed = load_file(only_folder(world) / "bundle" / "weights.safetensors")
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    assert "of\n3, trained" in (only_folder(world) / "bundle" / "README.md").read_text()
    assert sum(value for _, value in again["train/seconds"]) == pytest.approx(again["seconds"][-1][1])


def test_sigint_ends_the_run_with_a_sentence_that_says_how_to_go_on(stopped: Cut) -> None:
    world, said = stopped.world, stopped.said
    assert said.status == 130
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: stopped in epoch 2; `--resume` goes on")
    assert "Traceback" not in said.err
    assert stopped.seconds < 20
    assert only_run(world).info.status == "KILLED"
    assert not json.loads((only_folder(world) / "state.json").read_text())["finished"]


def test_sigkill_leaves_a_run_that_can_be_told_apart(killed: World) -> None:
    assert only_run(killed).info.status == "RUNNING"
    # Either of the first epoch's figures has been sent, or it waits in the journal.
    journal = (only_folder(killed) / "outbox" / "journal.jsonl").read_text().splitlines()
    metrics = [metric for line in journal for metric in json.loads(line).get("metrics", ())]
    assert [step for name, _, _, step in metrics if name == "train/nll"] == [0]
    sent = killed.history(only_run(killed).info.run_id).get("train/nll", [])
    assert [step for step, _ in sent] in ([], [0])
    assert not (only_folder(killed) / "bundle").exists()


def test_resume_with_other_choices_names_the_run_and_what_fits(
    killed: World, seqapp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed.enter(monkeypatch)
    said = seqapp("train", "tiny.yaml", "train.epochs=5", "--resume")
    assert said.status == 1
    folder = only_folder(killed).relative_to(killed.path)
    assert re.search(rf"error: tiny: an unfinished run exists in {folder}, but of a config with other", said.err)
    assert only_run(killed).info.status == "RUNNING"


def test_resume_on_other_data_is_refused(
    killed: World, seqapp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed.enter(monkeypatch)
    kept = (killed.path / "data.csv").read_bytes()
    write_csv(killed.path / "data.csv", texts(100, seed=4))
    said = seqapp("train", "tiny.yaml", *SLOW, "--resume")
    (killed.path / "data.csv").write_bytes(kept)
    assert said.status == 1
    assert "error: tiny: the data is not what it was" in said.err
    assert only_run(killed).info.status == "RUNNING"


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    killed: World,
    whole: tuple[dict[str, Any], dict[str, torch.Tensor]],
    seqapp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed.enter(monkeypatch)
    run_id = only_run(killed).info.run_id
    said = seqapp("train", "tiny.yaml", *SLOW, "--resume", "--quiet")
    assert said.status == 0, said.err
    check_resumed(killed, run_id, whole)
    # And then there is nothing left to resume.
    said = seqapp("train", "tiny.yaml", *SLOW, "--resume")
    assert (said.status, said.err) == (1, "error: tiny: no unfinished run in runs/; train without --resume\n")


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    stopped: Cut,
    whole: tuple[dict[str, Any], dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = stopped.world
    world.enter(monkeypatch)
    run_id = only_run(world).info.run_id
    trained = world.train(*SLOW, resume=True)
    assert trained.run_id == run_id
    assert trained.registered is not None
    assert (trained.registered.version, trained.registered.champion) == ("1", True)
    check_resumed(world, run_id, whole)


def lost(*_: Any, **__: Any) -> None:
    raise ConnectionResetError


@pytest.mark.parametrize("after", ["no epoch", "every epoch"])
def test_a_run_cut_off_at_either_end_goes_on(world: World, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    choices = ("train.epochs=2", "train.seed=2", "train.test=false")
    with monkeypatch.context() as patch:
        # As a kill there would: nothing is told to MLflow any more.
        patch.setattr("pipelines.tracking.finish", lambda *_: None)
        patch.setattr(*{"no epoch": (Sentiment, "loss"), "every epoch": (run.bundle, "save")}[after], lost)
        with pytest.raises(ConnectionResetError):
            world.train(*choices)
    resumed = world.train(*choices, resume=True)
    whole = world.train(*choices)
    assert steady(world.history(resumed.run_id)) == steady(world.history(whole.run_id))
    assert resumed.run_id != whole.run_id
    assert world.client.get_run(resumed.run_id).info.status == "FINISHED"


def test_averaged_weights_survive_a_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ("train.epochs=3", "train.average=0.9", "train.test=false")
    whole = world.train(*choices, register=False)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.finish", lambda *_: None)
        loss, calls = Sentiment.loss, []

        def fail(self: Sentiment, model: Any, batch: Any) -> Any:
            calls.append(1)
            if len(calls) > 25:
                raise ZeroDivisionError
            return loss(self, model, batch)

        patch.setattr(Sentiment, "loss", fail)
        with pytest.raises(ZeroDivisionError):
            world.train(*choices, register=False)
    assert [path for path in world.path.glob("runs/*/checkpoints/last.ckpt") if whole.run_id[:8] not in str(path)]
    resumed = world.train(*choices, register=False, resume=True)
    assert steady(world.history(resumed.run_id)) == steady(world.history(whole.run_id))
    weights = [load_file(trained.bundle / "weights.safetensors") for trained in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ctrl_c_in_a_program_leaves_ctrl_c_working(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sentiment, "loss", interrupt)
    with pytest.raises(Stopped, match="stopped in epoch 1"):
        world.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert only_run(world).info.status == "KILLED"


def test_an_error_in_training_fails_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise SeqappError("no")

    monkeypatch.setattr(Sentiment, "loss", fail)
    with pytest.raises(SeqappError, match="no"):
        world.train()
    assert only_run(world).info.status == "FAILED"


def test_nothing_to_resume(world: World, seqapp: Callable[..., Said]) -> None:
    said = seqapp("train", "tiny.yaml", "--resume")
    assert (said.status, said.out) == (1, "")
    assert said.err == "error: tiny: no unfinished run in runs/; train without --resume\n"


def test_a_run_of_another_config_is_not_resumed(world: World, seqapp: Callable[..., Said]) -> None:
    world.train("train.epochs=1", register=False)
    (folder,) = world.path.glob("runs/*")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "finished": False}))
    shutil.copy("tiny.yaml", "other.yaml")
    said = seqapp("train", "other.yaml", "train.epochs=1", "--resume")
    assert (said.status, said.err) == (1, "error: other: no unfinished run in runs/; train without --resume\n")
