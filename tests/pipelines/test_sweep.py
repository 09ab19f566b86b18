"""A sweep tries what it was asked to, once each, whatever interrupts it, and says in MLflow how it went."""

import csv
import io
import json
import multiprocessing
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import search, tracking
from pipelines import sweep as sweeping
from pipelines.options import SECTIONS
from pipelines.search import Choices, Range
from pipelines.sweep import Swept, plan_of, sweep
from pipelines.trials import PARENT, Outcome, Trial, markdown
from seqapp import config
from seqapp.errors import ConfigError, SeqappError, Stopped
from seqapp.metrics import Ratio
from tests.pipelines.toys import Toy
from tests.pipelines.worlds import Said, World

RATES = "train.learning_rate=1e-3..1e-1 log"
SIZES = "model.layer.hidden_size=2..16"
ONE = "train.epochs=1"


def run_of(world: World, run_id: str) -> Any:
    return world.client.get_run(run_id)


def text_of(world: World, run_id: str, name: str) -> str:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text(encoding="utf-8")


def values(swept: Swept) -> list[dict[str, Any]]:
    return [dict(trial.values) for trial in swept.trials]


def children(world: World, parent: str) -> list[Any]:
    experiments = [found.experiment_id for found in world.client.search_experiments()]
    return list(world.client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'"))


# What is tried


def test_a_grid_is_the_product_each_once_and_each_is_a_run(toy: World) -> None:
    sizes, layers, rates = [2, 3], ["elman", "gru"], [0.01]
    swept = sweep("toy.yaml", ["sweep.sampler=grid", "sweep.pruner=none", ONE], over=[
        f"model.layer.kind={config.inline(layers)}", "model.layer.hidden_size=2..3",
        "train.learning_rate=[0.01]"])  # fmt: skip
    tried = [(v["model.layer.kind"], v["model.layer.hidden_size"], v["train.learning_rate"]) for v in values(swept)]
    assert sorted(tried) == sorted((k, h, r) for k in layers for h in sizes for r in rates)
    assert len(children(toy, swept.run_id)) == len(swept.trials) == 4
    for trial in swept.trials:
        run = run_of(toy, trial.run_id)
        assert (run.info.status, run.info.run_name) == ("FINISHED", trial.name)
        assert run.data.params["model.layer.kind"] == trial.values["model.layer.kind"]
        assert run.data.params["model.layer.hidden_size"] == str(trial.values["model.layer.hidden_size"])
        assert run.data.params["train.learning_rate"] == str(trial.values["train.learning_rate"])
        assert run.data.params["train.test"] == "False"
        assert not [name for name in run.data.metrics if name.startswith("test/")]
        kind, size, rate = trial.values.values()
        assert trial.name == f"{trial.number}: {kind}, hidden_size {size}, learning_rate {rate:g}"
    assert list(toy.client.search_registered_models()) == []


def test_the_parent_tells_it_all(toy: World) -> None:
    swept = sweep("toy.yaml", ["sweep.trials=5", ONE], over=[RATES, SIZES])
    parent = run_of(toy, swept.run_id)
    assert (parent.info.run_name, parent.info.status) == ("sweep of toy", "FINISHED")
    assert parent.data.params["over.train.learning_rate"] == "0.001..0.1 log"
    assert (parent.data.params["sampler"], parent.data.params["trials"]) == ("tpe", "5")
    assert swept.best.score == min(trial.score or 9 for trial in swept.trials)
    assert parent.data.tags["best_trial"] == swept.best.name
    assert parent.data.tags["best.train.learning_rate"] == config.inline(swept.best.values["train.learning_rate"])
    assert swept.command in parent.data.tags["mlflow.note.content"]
    best = dict(toy.history(swept.run_id)["best/mse"])
    scores = [trial.score or 9 for trial in swept.trials]
    assert best == {number: min(scores[: number + 1]) for number in range(5)}
    rows = list(csv.DictReader(io.StringIO(text_of(toy, swept.run_id, "trials.csv"))))
    assert [float(row["validation_mse"]) for row in rows] == scores
    assert [row["run_id"] for row in rows] == [trial.run_id for trial in swept.trials]
    records = json.loads(text_of(toy, swept.run_id, "trials.json"))["trials"]
    assert [record["values"] for record in records] == values(swept)
    table = text_of(toy, swept.run_id, "trials.md").splitlines()
    assert table[2].startswith(f"| {swept.best.number} | complete |")
    files = {file.path for file in toy.client.list_artifacts(swept.run_id)}
    assert {"history.png", "curves.png", "parallel_coordinate.png", "importance.png", "config.yaml"} <= files
    # A comparison takes trials as any run, and their parent for none.
    assert not [name for name in parent.data.metrics if name.startswith("best_validation/")]
    for trial in swept.trials:
        assert {"task", "network", "metric", "direction", "validation_digest"} <= run_of(
            toy, trial.run_id
        ).data.tags.keys()


def test_a_page_that_is_too_long_for_mlflow_ends_after_a_whole_trial(
    toy: World, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of("toy.yaml", (), [RATES])
    parent = toy.client.create_run(toy.client.create_experiment("toy")).info.run_id
    trials = [Trial(number, f"{number}", "complete", {"train.learning_rate": 0.01}, 1 + number, 2, 1.0, 41, "", "", "")
              for number in range(400)]  # fmt: skip
    sweeping._describe(plan, parent, trials)
    note = run_of(toy, parent).data.tags["mlflow.note.content"]
    shown, pointer = note.rsplit("\n\n", 1)
    whole = markdown(plan, trials)
    assert pointer == "The rest stands in the artifact `trials.md`.\n"
    assert shown.startswith("Best: trial 0, validation mse 1.0000\n\n    seqapp train toy.yaml")
    assert whole.startswith(shown[shown.index("| trial") :] + "\n")
    assert 7_900 < len(note) <= 8_000
    assert not caplog.records


def test_equal_seeds_try_the_same_and_others_do_not(toy: World) -> None:
    choices = ["sweep.trials=3", "sweep.startup=1", ONE]
    first, second = (sweep("toy.yaml", choices, over=[RATES, SIZES]) for _ in range(2))
    assert values(first) == values(second)
    assert [trial.score for trial in first.trials] == [trial.score for trial in second.trials]
    assert len({json.dumps(tried) for tried in values(first)}) == 3
    one, two = (drawn(["sweep.sampler=random", f"sweep.seed={seed}"], [RATES], "toy.yaml") for seed in (1, 2))
    assert len({*one, *two}) == 40


def test_the_printed_command_trains_that_very_trial(toy: World) -> None:
    spec = "model.layer=[{kind: gru, hidden_size: 3}, {kind: elman, hidden_size: 4}]"
    swept = sweep("toy.yaml", ["sweep.trials=2", "sweep.sampler=random", ONE], over=[RATES, spec])
    seqapp, train, path, *choices = shlex.split(swept.command)
    assert (seqapp, train) == ("seqapp", "train")
    again = toy.train(*choices, config=path, register=False)
    assert again.scores["validation"]["mse"] == swept.best.score


def test_a_part_in_choices_goes_before_what_is_inside_it(toy: World) -> None:
    plan = plan_of("toy.yaml", (), ["model.layer.hidden_size=2..4", "model.layer=[{kind: gru, hidden_size: 9}, elman]"])
    resolved = plan.resolved({"model.layer.hidden_size": 3, "model.layer": {"kind": "gru", "hidden_size": 9}})
    assert resolved["model"]["layer"]["hidden_size"] == 3
    assert resolved["model"]["layer"]["kind"] == "gru"


def test_a_section_says_the_same_and_training_leaves_it_alone(toy: World) -> None:
    section = "sweep:\n  sampler: grid\n  over: {model.layer.hidden_size: [2, 3]}\n"
    toy.config("searched.yaml", (toy.path / "toy.yaml").read_text(encoding="utf-8") + section)
    assert plan_of("searched.yaml", (), ()).axes == (Choices("model.layer.hidden_size", (2, 3)),)
    assert config.load("searched.yaml", sections=SECTIONS) == config.load("toy.yaml", sections=SECTIONS)
    toy.config("wrong.yaml", (toy.path / "searched.yaml").read_text(encoding="utf-8").replace("grid", "gird"))
    with pytest.raises(ConfigError, match=r"wrong.yaml:7: sweep.sampler: takes one of tpe, random, grid, not 'gird'"):
        config.load("wrong.yaml", sections=SECTIONS)


# What is stopped, and what fails


def hopeless(task: Toy, model: Any, batch: Any, *_: Any) -> Any:
    """As the toy's own loss, ten times as large for a hidden state of 7."""
    loss, found, after = LOSS(task, model, batch, *_)
    if model.layer.output_size == 7:
        mse = found["mse"]
        found = {**found, "mse": Ratio("mse", 10 * mse.total, mse.count)}
    return loss, found, after


LOSS = Toy.loss_carried


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_hopeless_trial_is_stopped_early(toy: World, monkeypatch: pytest.MonkeyPatch, pruner: str) -> None:
    monkeypatch.setattr(Toy, "loss_carried", hopeless)
    # In this order: a grid's is its own.
    sizes, order = [7, 2, 3, 4], []
    swept = sweep("toy.yaml", ["sweep.sampler=grid", f"sweep.pruner={pruner}", "sweep.startup=1", "sweep.seed=1",
                               "train.epochs=5"],
                  over=[f"model.layer.hidden_size={sizes}"], tell=lambda trial, *_: order.append(trial))  # fmt: skip
    (bad,) = [trial for trial in swept.trials if trial.values["model.layer.hidden_size"] == 7]
    assert bad.number > 0, "the first trial has nothing to be compared with"
    run = run_of(toy, bad.run_id)
    assert (bad.state, run.info.status, run.data.tags["trial_state"]) == ("pruned", "KILLED", "pruned")
    assert bad.epochs < 5
    assert [step for step, _ in toy.history(bad.run_id)["train/mse"]] == list(range(bad.epochs))
    assert "other trials promise more" in run.data.tags["trial_note"]
    assert swept.best.values["model.layer.hidden_size"] != 7


def test_a_trial_that_fails_is_told_and_the_others_go_on(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(task: Toy, model: Any, *rest: Any) -> Any:
        if model.layer.output_size == 3:
            raise SeqappError("no sevens")
        if model.layer.output_size == 4:
            raise ZeroDivisionError
        return LOSS(task, model, *rest)

    monkeypatch.setattr(Toy, "loss_carried", loss)
    told: list[tuple[int, str]] = []
    swept = sweep("toy.yaml", ["sweep.sampler=grid", ONE], over=["model.layer.hidden_size=2..5"],
                  tell=lambda trial, best, ended, total: told.append((ended, trial.state)))  # fmt: skip
    states = {trial.values["model.layer.hidden_size"]: (trial.state, trial.problem) for trial in swept.trials}
    assert states == {2: ("complete", ""), 3: ("failed", "no sevens"), 4: ("failed", "ZeroDivisionError"),
                      5: ("complete", "")}  # fmt: skip
    assert [ended for ended, _ in told] == [1, 2, 3, 4]
    for trial in swept.trials:
        assert run_of(toy, trial.run_id).info.status == ("FAILED" if trial.state == "failed" else "FINISHED")
    assert "no sevens" in text_of(toy, swept.run_id, "trials.md")


def test_a_combination_that_no_training_takes_is_a_failed_trial_with_a_run(toy: World) -> None:
    swept = sweep("toy.yaml", ["sweep.sampler=grid", "train.clip_norm=1", ONE], over=["train.clip_value=[0.0, 0.5]"])
    (bad,) = [trial for trial in swept.trials if trial.state == "failed"]
    assert "clipped by value or by norm" in bad.problem
    assert run_of(toy, bad.run_id).info.status == "FAILED"
    assert bad.values == {"train.clip_value": 0.5}


def test_when_every_trial_fails_the_first_says_why(toy: World, seqapp: Callable[..., Said]) -> None:
    said = seqapp(
        "sweep", "toy.yaml", "train.clip_norm=1", "sweep.sampler=grid", "--over", "train.clip_value=[1.0, 2.0]"
    )
    assert said.status == 1
    assert said.err.splitlines()[-1].startswith(
        "error: toy: none of 2 trials was completed; trial 0 failed: train.clip"
    )


# What interrupts


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls = []

    def loss(task: Toy, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return LOSS(task, *rest)

    monkeypatch.setattr(Toy, "loss_carried", loss)


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_after_ctrl_c_the_same_command_goes_on_as_if_nothing_had_happened(
    toy: World, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    choices = [f"sweep.sampler={sampler}", "sweep.trials=3", "sweep.startup=1", "sweep.pruner=none"]
    over = [RATES + " points 3" * (sampler == "grid")]
    whole = sweep("toy.yaml", choices, over=over)
    with monkeypatch.context() as patch:
        # In the second epoch of the second trial: 7 batches and 3 of the validation split make an epoch.
        interrupt_at(patch, 33)
        with pytest.raises(Stopped, match=r"stopped after 1 of 3 trials; the same command with --resume goes on"):
            sweep("toy.yaml", choices, over=over)
    (parent,) = [run for run in toy.client.search_runs([toy.client.get_experiment_by_name("toy").experiment_id])
                 if run.info.run_name == "sweep of toy" and run.info.run_id != whole.run_id]  # fmt: skip
    assert parent.info.status == "KILLED"
    with pytest.raises(SeqappError, match="no unfinished sweep of this config with these choices"):
        sweep("toy.yaml", [*choices, "sweep.seed=5"], over=over, resume=True)
    resumed = sweep("toy.yaml", choices, over=over, resume=True)
    assert resumed.run_id == parent.info.run_id
    assert run_of(toy, resumed.run_id).info.status == "FINISHED"
    assert values(resumed) == values(whole)
    assert [trial.score for trial in resumed.trials] == [trial.score for trial in whole.trials]
    assert len(children(toy, resumed.run_id)) == 3
    for trial in resumed.trials:
        assert [step for step, _ in toy.history(trial.run_id)["train/mse"]] == [0, 1]
    with pytest.raises(SeqappError, match="no unfinished sweep"):
        sweep("toy.yaml", choices, over=over, resume=True)


CHOICES = ["sweep.sampler=random", "sweep.trials=4", "sweep.pruner=none", "train.epochs=4"]


def finished(world: World) -> list[Path]:
    return [path for path in world.path.glob("runs/*/trials/*/state.json") if json.loads(path.read_text())["finished"]]


def check_whole(world: World, swept: Swept) -> None:
    """Every trial once, with the values that nothing but seed and number decide."""
    assert [(trial.number, trial.state) for trial in swept.trials] == [(number, "complete") for number in range(4)]
    assert [trial.values["train.learning_rate"] for trial in swept.trials] == drawn(CHOICES, [RATES])
    ended = [run for run in children(world, swept.run_id) if run.info.status == "FINISHED"]
    assert sorted(run.data.tags["trial"] for run in ended) == list("0123")
    assert len([run for run in world.client.search_runs(["1"]) if run.info.run_name == "sweep of tiny"]) == 1


def test_a_kill_loses_nothing_and_leaves_nobody_behind(world: World) -> None:
    command = world.command("sweep", "tiny.yaml", *CHOICES, "--over", RATES, "--jobs", "2", "--quiet")
    process = subprocess.Popen(command, cwd=world.path, env=world.environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not finished(world):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
    finally:
        process.kill()
        process.communicate()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    check_whole(world, sweep("tiny.yaml", CHOICES, over=[RATES], resume=True))


def test_two_at_once_survive_a_death_stop_at_ctrl_c_and_go_on(world: World) -> None:
    told: list[int] = []

    def disturb(trial: Trial, *_: Any) -> None:
        told.append(trial.number)
        if len(told) == 1:
            for process in multiprocessing.active_children():
                process.kill()
        else:
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match=r"stopped after [23] of 4 trials"):
        sweep("tiny.yaml", CHOICES, over=[RATES], jobs=2, tell=disturb)
    assert not multiprocessing.active_children()
    assert not [run for run in world.client.search_runs(["1"]) if run.info.status == "RUNNING"]
    check_whole(world, sweep("tiny.yaml", CHOICES, over=[RATES], resume=True))


class Mortal(Executor):
    """Processes that end together where one of ``deadly`` numbers is among their trials."""

    deadly: frozenset[int]

    def __init__(self) -> None:
        self.held: dict[Future[Any], int] = {}

    def submit(self, function: Any, /, plan: Any, parent: Any, folder: Any, number: Any, *_: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self.held[future] = number
        return future

    def proceed(self) -> None:
        if self.deadly.intersection(self.held.values()):
            for future in self.held:
                future.set_exception(BrokenProcessPool())
        else:
            next(iter(self.held)).set_result(Outcome("complete", 1.0))
        self.held = {future: number for future, number in self.held.items() if not future.done()}


@pytest.mark.parametrize(("jobs", "deadly"), [(2, {1}), (2, {0, 3}), (3, {2, 3}), (4, {1, 2, 5}), (2, set(range(6)))])
def test_only_a_trial_whose_process_dies_while_no_other_runs_has_failed(
    toy: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, deadly: set[int]
) -> None:
    pools: list[Mortal] = []

    def pool(_: Any) -> Mortal:
        pools.append(Mortal())
        return pools[-1]

    def proceed(running: Collection[Future[Any]], **_: Any) -> Any:
        pools[-1].proceed()
        return wait(running, timeout=0)

    monkeypatch.setattr(Mortal, "deadly", frozenset(deadly), raising=False)
    monkeypatch.setattr(sweeping._Workers, "_pool", pool)
    monkeypatch.setattr(sweeping, "wait", proceed)
    failed: list[int] = []
    monkeypatch.setattr(sweeping, "close_trial", lambda plan, parent, number, *_: failed.append(number))
    told: list[int] = []
    plan = plan_of("toy.yaml", ["sweep.trials=6", "sweep.sampler=random"], [RATES])
    sweeping._search(plan, "", tmp_path, jobs, told.append)
    assert sorted(told) == list(range(6))
    assert sorted(failed) == sorted(deadly)


def test_the_run_of_a_killed_process_does_not_stay_open(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: Any, parent: str, *_: Any) -> None:
        tracking.create_run(plan.experiment, "0", {PARENT: parent, "trial": "0"})
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "_search", interrupted)
    with pytest.raises(Stopped, match="stopped after 0 of"):
        sweep("toy.yaml", ["sweep.trials=4"], over=[RATES])
    assert {run.info.status for run in toy.client.search_runs(["1"])} == {"KILLED"}


def drawn(choices: list[str], over: list[str], path: str = "tiny.yaml") -> list[float]:
    """What a random sampler draws for the only key."""
    plan = plan_of(path, choices, over)
    (axis,) = plan.axes
    studies = [optuna.create_study(sampler=search.sampler_of_trial(plan.search, plan.axes, "", number))
               for number in range(plan.trials)]  # fmt: skip
    return [axis.value_of(axis.suggest(study.ask())) for study in studies]


# In the end


def test_final_trains_the_best_with_the_test_split_and_registers_it(toy: World, seqapp: Callable[..., Said]) -> None:
    said = seqapp("sweep", "toy.yaml", ONE, "sweep.sampler=grid", "--over", "model.layer.hidden_size=[2, 6]", "--final")
    assert said.status == 0, said.err
    assert "trained once more, test mse " in said.out
    (version,) = toy.client.search_model_versions("name = 'toy-toy'")
    run = run_of(toy, version.run_id)
    assert run.info.run_name == "toy-best"
    assert "test/mse" in run.data.metrics
    parent = run.data.tags["mlflow.parentRunId"]
    best = run_of(toy, parent).data.tags["best.model.layer.hidden_size"]
    assert run.data.params["model.layer.hidden_size"] == best
    assert len(children(toy, parent)) == 3


def test_without_final_the_command_says_what_to_do(toy: World, seqapp: Callable[..., Said]) -> None:
    (toy.path / "toy.yaml").rename(toy.path / "[b]toy.yaml")
    said = seqapp("sweep", "[b]toy.yaml", ONE, "sweep.sampler=grid", "--over", "model.layer.hidden_size=[2, 6]")
    assert said.status == 0, said.err
    assert "sweep of [b]toy: " in said.out
    assert re.search(r"^0: hidden_size \d: complete \d\.\d{4}$", said.out, re.MULTILINE)
    assert re.search(r"seqapp train '\[b\]toy.yaml' train.epochs=1 model.layer.hidden_size=\d$", said.out, re.M)


# What is refused before anything is trained


@pytest.mark.parametrize(("over", "sentence"), [
    ("model.layer.hiddensize=[2, 3]", "model.layer.hiddensize: recurrent layer 'elman' has no option 'hiddensize'; did "
                                      "you mean 'hidden_size'"),
    ("model.layer.hidden_size=[2, 0]", "model.layer.hidden_size: takes int >= 1, not 0"),
    ("model.layer.hidden_size=0..8", "model.layer.hidden_size: takes int >= 1, not 0"),
    ("model.layer.kind=[gru, lsmt]", "no recurrent layer is called 'lsmt'; did you mean 'lstm'"),
    ("train.learning_rate=1e-4..x", "'1e-4..x' is no range; a list of choices, a range such as"),
    ("train.learning_rate=1e-4..1e-2 lg", "is no range; a list of choices"),
    ("train.learning_rate=1e-2..1e-4", "low is 0.01 and high is 0.0001; low must be below high"),
    ("train.learning_rate=0..1e-2 log", "low is 0, but only numbers above 0 have a logarithm"),
    ("train.learning_rate={low: 1, hgih: 2}", "a range has no option 'hgih'; did you mean 'high'"),
    ("train.learning_rate={low: 1}", "a range needs the option 'high'"),
    ("model.layer.hidden_size=2..9 step 4", "from 2 in steps of 4, 9 is not reached; high: 6 would fit"),
    ("model.layer.hidden_size=2..9 log step 4", "step goes with neither log nor points"),
    ("model.layer.hidden_size=[]", "the list of choices is empty"),
    ("model.layer.hidden_size=[2, 3, 2]", "2 stands twice in the list of choices"),
    ("model.layer.hidden_size=3", "3 is no range"),
    ("model.layer.hidden_size", "is not of the form KEY=CHOICES, such as"),
    ("train.lerning_rate=[0.1]", "has no option 'lerning_rate'; did you mean 'learning_rate'"),
    ("nonsense.key=[1]", "no section is called 'nonsense'"),
    ("data.count=[10, 20]", "'data.count' cannot be searched: trials on different data have no score in common"),
    ("train.test=[true, false]", "'train.test' cannot be searched: trials never read the test split"),
    ("sweep.trials=[1, 2]", "'sweep.trials' cannot be searched"),
    ("model.layer.hidden_size.x=[1]", "model.layer.hidden_size holds 5 and has nothing inside"),
])  # fmt: skip
def test_what_does_not_fit_is_told_before_the_first_training(
    toy: World, seqapp: Callable[..., Said], over: str, sentence: str
) -> None:
    said = seqapp("sweep", "toy.yaml", "--over", over)
    assert said.status == 1
    assert sentence in said.err
    assert "--over" in said.err
    assert len(said.err.splitlines()) == 1
    assert toy.client.get_experiment_by_name("toy") is None


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((), "toy.yaml: nothing to search; --over 'train.learning_rate=1e-4..1e-2 log' fits"),
    (("--over", RATES, "sweep.sampler=grid"), "a grid takes no range without steps; `0.001..0.1 log points 4` fits"),
    (("--over", RATES, "sweep.trails=3"), "section 'sweep' has no option 'trails'; did you mean 'trials'"),
    (("--over", RATES, "sweep.trials=0"), "sweep.trials: takes int >= 1 or null, not 0"),
    (("--over", RATES, "--backend", "dask"), "--backend dask: one of optuna, ray fits"),
    (("--over", RATES, "--address", "auto"), "--address is of a Ray cluster; it goes with --backend ray"),
    (("--over", RATES, "--resume"), "toy: no unfinished sweep of this config with these choices in runs/"),
])  # fmt: skip
def test_other_choices_that_do_not_fit(
    toy: World, seqapp: Callable[..., Said], arguments: tuple[str, ...], sentence: str
) -> None:
    said = seqapp("sweep", "toy.yaml", *arguments)
    assert said.status == 1
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1


def test_data_that_cannot_be_read_ends_the_sweep_at_once(world: World, seqapp: Callable[..., Said]) -> None:
    (world.path / "data.csv").write_text("text,label\n", encoding="utf-8")
    said = seqapp("sweep", "tiny.yaml", "--over", RATES)
    assert said.status == 1
    assert "data.csv" in said.err.splitlines()[-1]
    (parent,) = [run for run in world.client.search_runs(["1"]) if run.info.run_name == "sweep of tiny"]
    assert parent.info.status == "FAILED"


# Ranges


@given(low=st.integers(1, 50), steps=st.integers(1, 20), step=st.integers(1, 9))
def test_a_range_of_whole_numbers_in_a_grid_is_all_of_them(low: int, steps: int, step: int) -> None:
    high = low + steps * step
    axis = search._axis("a.b", f"{low}..{high} step {step}", "here")
    assert search.grid([axis], "") == {"a.b": list(range(low, high + 1, step))}


@given(low=st.floats(1e-6, 1), ratio=st.floats(1.1, 1e4), points=st.integers(2, 9))
def test_points_with_log_have_equal_ratios(low: float, ratio: float, points: int) -> None:
    axis = search._axis("a.b", {"low": low, "high": low * ratio, "log": True, "points": points}, "here")
    assert isinstance(axis, Choices)
    assert len(axis.values) == points
    ratios = [b / a for a, b in zip(axis.values, axis.values[1:], strict=False)]
    assert ratios == pytest.approx([ratio ** (1 / (points - 1))] * (points - 1), rel=1e-4)


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), share=st.floats(0, 1))
def test_rounding_what_is_drawn_does_not_leave_the_range(low: float, width: float, share: float) -> None:
    axis = Range("a", low, low + width)
    drawn = min(low + share * width, axis.high)
    assert axis.low <= axis.value_of(drawn) <= axis.high
    assert axis.value_of(drawn) == pytest.approx(drawn, rel=1e-3)


def test_whole_bounds_of_an_option_that_takes_fractions_mean_fractions(toy: World) -> None:
    plan = plan_of("toy.yaml", (), ["train.weight_decay=0..1", "model.layer.hidden_size=2..4"])
    assert plan.axes == (Range("train.weight_decay", 0, 1), Range("model.layer.hidden_size", 2, 4, whole=True))
