"""A run is trained again from what MLflow holds of it, and its figures are told apart to the last digit."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import reproduce as reproduction
from pipelines import run, tracking
from pipelines.reproduce import Figure, Original, Reproduction, differences, environment, read, reproduce
from seqapp.errors import DataError, SeqappError
from tests.pipelines.worlds import Done, Said, World, texts, write_csv

Seqapp = Callable[..., Said]
NUMBERS = st.floats(allow_infinity=False)


# Figures


@given(NUMBERS, NUMBERS, st.floats(0, 0.5))
def test_equal_implies_within_and_within_is_symmetric(old: float, new: float, tolerance: float) -> None:
    figure, turned = Figure("f", old, new), Figure("f", new, old)
    assert figure.within(tolerance) or not figure.equal
    assert figure.within(tolerance) == turned.within(tolerance)
    assert Figure("f", old, old).equal
    assert figure.equal == figure.within(0)


@pytest.mark.parametrize(
    ("old", "new", "equal", "near"),
    [
        (0.5, 0.5, True, True),
        (math.nan, math.nan, True, True),
        (math.nan, 0.5, False, False),
        (100.0, 100.09, False, True),
        (100.0, 100.11, False, False),
        (1e-6, 1.1e-6, False, False),  # small figures are held to their own size
        (0.0, 1e-9, False, False),
        (0.5, None, False, False),
        (None, 0.5, False, False),
    ],
)
def test_a_worked_table_of_figures(old: float | None, new: float | None, equal: bool, near: bool) -> None:
    figure = Figure("f", old, new)
    assert (figure.equal, figure.within(1e-3)) == (equal, near)


def test_the_verdict_names_the_worst() -> None:
    original = Original("a" * 32, "n", {}, "", {}, {}, {}, {})

    def said(*figures: Figure) -> tuple[str, bool]:
        found = Reproduction("b" * 32, original, [], list(figures), 1e-3)
        return str(found), found.matches

    same, near, far = Figure("s", 1.0, 1.0), Figure("n", 1.0, 1.0001), Figure("f", 1.0, 2.0)
    assert said(same, same) == ("reproduced: all 2 figures are equal to the last digit", True)
    assert said(same, near) == ("reproduced: all 2 figures are equal within 0.001 of their size", True)
    assert said(same, near, far) == ("not reproduced: 1 of 3 figures differ by more than 0.001 of their size", False)


def test_of_a_curve_the_worst_epoch_is_shown() -> None:
    old = {0: 1.0, 1: 2.0, 2: 3.0}
    assert reproduction._worst("c", old, {0: 1.0, 1: 2.5, 2: 3.1}) == Figure("c, epoch 2 of 3", 2.0, 2.5)
    assert reproduction._worst("c", old, old) == Figure("c, epoch 3 of 3", 3.0, 3.0)
    assert reproduction._worst("c", old, {0: 1.0, 1: 2.5}) == Figure("c, epoch 3 of 3", 3.0, None)


# What a run has logged


def test_the_environment_is_read_as_it_was_written() -> None:
    found = environment(tracking.environment())
    assert found["torch"] == torch.__version__ or found["torch"].startswith(torch.__version__.partition("+")[0])
    assert found["threads"] == str(torch.get_num_threads())
    assert found["python"] == tracking.machine()["python"]


def test_what_is_not_as_it_was_is_said(done: Done) -> None:
    original = read(done.trained.run_id[:10])
    assert differences(original) == []
    elsewhere = replace(
        original,
        tags={**original.tags, "git_commit": "c" * 40, "git_dirty": "true"},
        environment={**original.environment, "torch": "1.0", "gpu": "a big one", "threads": "4096"},
    )
    assert differences(elsewhere) == [
        f"code: commit {'c' * 12} then, {done.commit[:12]} here; `git checkout {'c' * 12}` gives it back",
        "code: uncommitted changes then, which the commit does not hold",
        f"torch: 1.0 then, {environment(tracking.environment())['torch']} here",
        "gpu: a big one then, None here",
        f"threads: 4096 then, {torch.get_num_threads()} here",
    ]
    unknown = replace(original, tags={}, environment={})
    assert f"code: commit unknown then, {done.commit[:12]} here" in differences(unknown)


def test_without_git_no_commit_is_known(world: World) -> None:
    trained = world.train("train.epochs=1", register=False)
    assert differences(read(trained.run_id)) == ["code: neither then nor here is a git commit known"]


# Training again


def test_the_same_machine_gives_the_same_figures(world: World, seqapp: Seqapp) -> None:
    trained = world.train("train.epochs=3", "train.seed=7")
    (world.path / "tiny.yaml").unlink()  # MLflow alone says what to do
    before = len(list(world.client.search_model_versions()))
    said = seqapp("reproduce", trained.run_id[:8], "--quiet")
    assert (said.status, said.err) == (0, "")
    assert "figures are equal to the last digit" in said.out
    assert "validation/accuracy, epoch 3 of 3" in said.out
    assert "best_validation/nll" in said.out
    assert "test/macro_f1" in said.out
    assert len(list(world.client.search_model_versions())) == before
    (child,) = world.client.search_runs(
        [world.client.get_experiment_by_name("sentiment").experiment_id], f"tags.reproduces = '{trained.run_id}'"
    )
    assert child.info.run_name == "tiny-again"
    assert child.data.tags["mlflow.parentRunId"] == trained.run_id
    assert child.data.tags["reproduction"].startswith("reproduced: all ")
    assert "Repeats tiny, reproduced: all" in child.data.tags["mlflow.note.content"]
    report = run.Path(world.client.download_artifacts(child.info.run_id, reproduction.REPORT)).read_text()
    assert trained.run_id in report
    assert "| best_validation/accuracy |" in report
    assert "neither then nor here" in report
    # a reproduction can be reproduced, too
    assert reproduce(read(child.info.run_id), progress=False).matches


def test_a_difference_is_found_and_fails(world: World, seqapp: Seqapp) -> None:
    trained = world.train("train.epochs=1", register=False)
    kept = world.client.get_run(trained.run_id).data.metrics["test/nll"]
    world.client.log_metric(trained.run_id, "test/nll", kept * 1.01)
    world.client.log_metric(trained.run_id, "calibration/strange", 1.0)
    said = seqapp("reproduce", trained.run_id, "--quiet")
    assert said.status == 1
    assert "not reproduced: 2 of " in said.out
    again = seqapp("reproduce", trained.run_id, "--quiet", "--tolerance", "0.02")
    assert (again.status, "not reproduced: 1 of " in again.out) == (1, True)


def test_processes_and_a_name_in_brackets_do_not_stand_in_the_way(world: World, seqapp: Seqapp) -> None:
    trained = world.train("train.epochs=1", register=False)
    world.client.update_run(trained.run_id, name="[/red] :smile:")
    text = run.Path(world.client.download_artifacts(trained.run_id, "config.yaml")).read_text()
    world.client.log_text(trained.run_id, text.replace("nodes: 1", "nodes: 3"), "config.yaml")
    said = seqapp("reproduce", trained.run_id, "--quiet")
    assert (said.status, said.err) == (0, "")
    assert f"repeating run {trained.run_id} ([/red] :smile:)" in said.out
    told = "processes: 3 then, 1 here, which moves figures by rounding"
    assert told in said.out
    (child,) = [one for one in _runs(world) if "reproduces" in one.data.tags]
    assert (child.data.params["train.devices"], child.data.params["train.nodes"]) == ("1", "1")
    report = run.Path(world.client.download_artifacts(child.info.run_id, reproduction.REPORT)).read_text()
    assert f"- {told}" in report


def test_other_data_is_refused_before_a_run_is_begun(world: World) -> None:
    write_csv(world.path / "mine.csv", texts(40, seed=5))
    trained = world.train(
        "train.epochs=1", "data={kind: table, train: data.csv, validation: mine.csv, test_share: 0.1}", register=False
    )
    original = read(trained.run_id)
    count = len(_runs(world))
    write_csv(world.path / "mine.csv", texts(40, seed=6))
    with pytest.raises(DataError, match="the validation data is not what it was"):
        reproduce(original, progress=False)
    assert len(_runs(world)) == count


def test_as_many_threads_as_then_are_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = world.train("train.epochs=1", register=False)
    original = read(trained.run_id)
    two = replace(original, environment={**original.environment, "threads": "2"})
    monkeypatch.setattr(reproduction.os, "cpu_count", lambda: 2)
    seen = []
    monkeypatch.setattr(run, "train_resolved", lambda *_, **__: seen.append(torch.get_num_threads()) or trained)
    assert reproduce(two, progress=False).matches
    assert (seen, torch.get_num_threads()) == ([2], 1)


def test_a_baseline_is_fitted_again(world: World) -> None:
    run.baseline("tiny.yaml")
    (found,) = [one for one in _runs(world) if one.info.run_name == "nb-svm"]
    original = read(found.info.run_id)
    assert (original.baseline, set(original.config)) == ("nb-svm", {"task", "data"})
    again = reproduce(original)
    assert str(again).endswith("equal to the last digit")
    assert "test/accuracy" in {figure.name for figure in again.figures}
    assert reproduce(read(again.run_id)).matches


# What cannot be repeated


@pytest.fixture
def lonely(world: World) -> World:
    world.client.create_experiment("sentiment")
    return world


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("KILLED", "was stopped, so there are no figures to match; a finished run fits"),
        ("FAILED", "has failed, so there are no figures"),
        ("RUNNING", "is still running, so there are no figures"),
        ("FINISHED", "is no training of seqapp: it has no config.yaml or no validation score"),
    ],
)
def test_a_run_without_figures_is_refused(lonely: World, status: str, said: str) -> None:
    run_id = tracking.create_run("sentiment", "bare", {})
    lonely.client.set_terminated(run_id, status)
    with pytest.raises(SeqappError, match=rf"run {run_id} \(bare\) {said}"):
        read(run_id)


def test_a_run_whose_artifacts_are_gone_is_told_so(lonely: World) -> None:
    run_id = tracking.create_run("sentiment", "bare", {"network": "lstm", "metric": "accuracy"})
    tracking.log_metrics(run_id, {"best_validation/accuracy": 0.5})
    tracking.finish(run_id)
    with pytest.raises(SeqappError, match=rf"run {run_id} \(bare\): its artifacts cannot be read"):
        read(run_id)


@pytest.mark.parametrize("reference", ["f" * 32, "abc", "tiny", "", "A' OR 1=1"])
def test_an_unknown_run_is_one_sentence(lonely: World, reference: str) -> None:
    with pytest.raises(SeqappError, match="there is none at"):
        read(reference)


def test_a_baseline_that_is_gone_is_refused(lonely: World) -> None:
    run_id = tracking.create_run("sentiment", "old", {"network": "none (linear)", "metric": "accuracy"})
    lonely.client.log_text(run_id, "task: {kind: sentiment}\n", "config.yaml")
    lonely.client.log_metric(run_id, "best_validation/accuracy", 0.5)
    tracking.finish(run_id)
    with pytest.raises(SeqappError, match="there is no baseline 'old'; known: tfidf-logistic-regression"):
        read(run_id)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, math.nan])
def test_a_tolerance_is_a_share(done: Done, tolerance: float) -> None:
    with pytest.raises(SeqappError, match="tolerance: a share from 0 to 1 fits"):
        reproduce(read(done.trained.run_id), tolerance=tolerance)


def _runs(world: World) -> list[run.Any]:
    return list(world.client.search_runs([world.client.get_experiment_by_name("sentiment").experiment_id]))
