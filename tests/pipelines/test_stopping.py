"""Ctrl-C ends with one sentence and exit status 130, and two processes never train one run at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import run
from pipelines.folder import Busy
from pipelines.locks import held, is_held
from pipelines.sweep import sweep
from pipelines.watch import Bar
from seqapp.errors import SeqappError, Stopped
from tests.pipelines.worlds import Said, World

OVER = ["train.learning_rate=[0.01, 0.02]"]
GRID = ["sweep.sampler=grid", "train.epochs=1"]


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_lock_is_held_by_one_at_a_time_until_it_is_left(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    for _ in range(2):
        with held(tmp_path, "no"):
            assert is_held(tmp_path)
            with pytest.raises(SeqappError, match="no"), held(tmp_path, "no"):
                pass
            assert is_held(tmp_path)
        assert not is_held(tmp_path)


def test_a_run_that_is_trained_is_not_resumed_a_second_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, found = run._fit, []

    def beside(*given: Any, **options: Any) -> None:
        (folder,) = world.path.glob("runs/*-tiny-*")
        with pytest.raises(Busy, match=f"runs/{folder.name}: another process is training this run at this moment"):
            world.train("train.epochs=1", resume=True, register=False)
        found.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_fit", beside)
    for resume in (False, True):
        with pytest.raises(Stopped, match="stopped before"):
            world.train("train.epochs=1", resume=resume, register=False)
    # One that stands still is the last unfinished one, though a newer one is trained.
    monkeypatch.setattr(run, "_fit", fit)
    newer = world.path / "runs" / "sentiment-tiny-ffffffff"
    newer.mkdir()
    (newer / "state.json").write_text((found[0] / "state.json").read_text())
    with held(newer, ""):
        trained = world.train("train.epochs=1", resume=True, register=False)
    assert trained.bundle.parent.name == found[0].name


def test_a_sweep_is_gone_on_with_once_and_a_new_one_beside_it_says_so(
    toy: World, caplog: pytest.LogCaptureFixture
) -> None:
    def beside(*_: Any) -> None:
        with pytest.raises(SeqappError, match=r"runs/toy-sweep-toy-\w+: another process goes on with this sweep"):
            sweep("toy.yaml", GRID, over=OVER, resume=True)
        raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(Stopped, match="stopped after"):
            sweep("toy.yaml", GRID, over=OVER, resume=resume, tell=beside)
    assert "an unfinished sweep" not in caplog.text
    (folder,) = toy.path.glob("runs/*-sweep-*")
    with caplog.at_level(logging.INFO):
        sweep("toy.yaml", GRID, over=OVER)
    assert f"an unfinished sweep of this is in runs/{folder.name}; --resume goes on with it" in caplog.text


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("pipelines.run.splits_of", "stopped before the training began; the same command begins it"),
        ("pipelines.run._fit", "stopped before the first epoch ended; `--resume` begins it again"),
        ("pipelines.run.measure", "stopped after the last epoch; `--resume` goes on from the end of the last epoch"),
        ("pipelines.compare.compare", r"stopped after the training; run \w+ is whole"),
    ],
)
def test_ctrl_c_ends_a_training_with_one_sentence_whenever_it_comes(
    world: World, seqapp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, at: str, said: str
) -> None:
    monkeypatch.setattr(at, stop)
    found = seqapp("train", "tiny.yaml", "train.epochs=1", "--no-register", "--quiet")
    assert found.status == 130
    errors = [line for line in found.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert re.fullmatch(said, errors[0].removeprefix("error: "))
    assert "Traceback" not in found.err


def test_the_bar_counts_epochs_as_the_log_does_and_has_no_version() -> None:
    trainer: Any = SimpleNamespace(max_epochs=9, loggers=[SimpleNamespace(version="1234")], progress_bar_metrics={})
    bar = Bar()
    bar._trainer = trainer
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 8)] == ["epoch 1/9", "epoch 9/9"]
    assert bar.get_metrics(trainer, None) == {}  # type: ignore[arg-type]
