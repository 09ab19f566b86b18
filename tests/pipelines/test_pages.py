"""What MLflow's pages show of a run, its data, its experiment and its machine."""

import base64
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipelines import run, tracking
from pipelines.outbox import Outbox
from pipelines.system import system_metrics
from pipelines.views import experiment_tags
from seqapp.errors import SeqappError
from tests.pipelines.worlds import Done, World


def test_a_run_tells_its_figures_in_a_sentence(done: Done) -> None:
    tags = done.client.get_run(done.trained.run_id).data.tags
    scores = done.trained.scores
    note = tags["mlflow.note.content"]
    for split, count in (("validation", "32 texts"), ("test", "16 texts")):
        assert f"{split} {scores[split]['accuracy']:.2%} ({count})" in note
    assert f"{done.trained.parameters:,} parameters" in note


def test_a_run_tells_who_made_it_how_and_from_which_source(done: Done) -> None:
    tags = done.client.get_run(done.trained.run_id).data.tags
    assert tags["mlflow.user"] == tracking.user()
    assert tags["mlflow.source.git.commit"] == done.commit
    assert tags["mlflow.source.name"] == tags["command"]
    assert tags["command"].split()[0] == "seqapp"


@pytest.mark.parametrize(("typed", "source"), [
    (["train", "configs/sentiment/a.yaml", "configs/sentiment/b.yaml", "x=1"], "configs/sentiment/a.yaml"),
    (["train", "configs/translation/a.yaml", "configs/sentiment/a.yaml"], "configs/sentiment/a.yaml"),
    (["baseline", "configs/sentiment/b.yaml"], "seqapp baseline configs/sentiment/b.yaml"),
])  # fmt: skip
def test_of_several_configs_a_run_names_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, typed: list[str], source: str
) -> None:
    monkeypatch.setattr("sys.argv", ["seqapp", *typed])
    run_id = tracking.create_run("sentiment", "a", {})
    assert world.client.get_run(run_id).data.tags["mlflow.source.name"] == source


def test_a_run_that_fails_says_why(world: World) -> None:
    with pytest.raises(SeqappError) as raised:
        world.train("train.learning_rate=1e37", "train.clip_norm=0", "train.schedule=constant", "train.warmup=0")
    (found,) = world.client.search_runs([world.client.get_experiment_by_name("sentiment").experiment_id])
    assert found.info.status == "FAILED"
    assert found.data.tags["mlflow.note.content"] == f"Failed: {raised.value}"


def test_the_data_of_each_split_tell_their_size_and_where_they_are_from(done: Done) -> None:
    inputs = done.client.get_run(done.trained.run_id).inputs.dataset_inputs
    found = {given.tags[0].value: given.dataset for given in inputs}
    sizes = {split: json.loads(dataset.profile)["num_rows"] for split, dataset in found.items()}
    assert sizes == {"train": 112, "validation": 32, "test": 16}
    assert (found["train"].source_type, json.loads(found["train"].source)) == ("local", {"uri": "data.csv"})
    assert found["test"].source_type == "code"  # a share of the file
    assert json.loads(found["test"].source)["tags"]["test_share"] == "0.1"


def test_the_logged_model_has_the_name_and_the_figures_of_its_run(done: Done) -> None:
    found = done.client.get_run(done.trained.run_id)
    model = done.client.get_logged_model(found.outputs.model_outputs[-1].model_id)
    assert model.name == "tiny"
    figures = {metric.key: metric.value for metric in model.metrics}
    assert figures["best_validation/accuracy"] == done.trained.scores["validation"]["accuracy"]
    assert figures["parameters"] == done.trained.parameters
    assert len(done.history(done.trained.run_id)["best_validation/accuracy"]) == 1


def test_an_experiment_says_what_it_is_and_offers_a_view(done: Done) -> None:
    tags = done.client.get_experiment_by_name("sentiment").tags
    assert "seqapp compare sentiment" in tags["mlflow.note.content"]
    state = unpacked(tags)
    metrics = done.client.get_run(done.trained.run_id).data.metrics
    columns = [column[9:-1] for column in state["selectedColumns"] if column.startswith("metrics.`")]
    assert set(columns) <= set(metrics)  # no column would be empty
    tagged = [column[6:-1] for column in state["selectedColumns"] if column.startswith("tags.`")]
    assert tagged == ["network", "dataset", "validation_digest"]
    assert set(tagged) <= set(done.client.get_run(done.trained.run_id).data.tags)
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best_validation/accuracy`", False)


def test_of_a_loss_the_smallest_stands_first_and_without_a_score_there_is_no_view() -> None:
    assert unpacked(experiment_tags("memory", {"metric": "mse", "direction": "min"}))["orderByAsc"] is True
    assert set(experiment_tags("diagnose", {})) == {"mlflow.note.content", "mlflow.experimentKind"}


def unpacked(tags: dict[str, str]) -> dict[str, Any]:
    packed = json.loads(tags["mlflow.sharedViewState.seqapp"])["state"]
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    return state


# The machine


def watched(world: World, folder: Path, count: int) -> dict[str, list[tuple[int, float]]]:
    """System metrics of a run after at least ``count`` intervals, and then an error."""
    known = world.client.get_experiment_by_name("machine")
    experiment = known.experiment_id if known else world.client.create_experiment("machine")
    runs = world.client.search_runs([experiment])
    run_id = runs[0].info.run_id if runs else world.client.create_run(experiment).info.run_id
    outbox = Outbox(folder, run_id)
    wanted = outbox.next_step("system/") + count

    def work() -> None:
        with system_metrics(outbox, interval=0.01):
            while outbox.next_step("system/") < wanted:
                threading.Event().wait(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}
    outbox.flush()
    outbox.close()
    return {name: values for name, values in world.history(run_id).items() if name.startswith("system/")}


def test_the_machine_is_watched_until_the_end_whatever_it_is(world: World, tmp_path: Path) -> None:
    found = watched(world, tmp_path / "box", 3)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(found)
    for name, points in found.items():
        assert [step for step, _ in points] == list(range(len(points))), name
    assert all(0 < value <= 100 for _, value in found["system/system_memory_usage_percentage"])
    more = watched(world, tmp_path / "box", 2)  # resumed: it counts on
    for name, points in more.items():
        assert [step for step, _ in points] == list(range(len(points))), name
        assert len(points) >= len(found[name]) + 2


def test_without_an_outbox_nothing_is_watched() -> None:
    with system_metrics(None):
        assert "system metrics" not in {thread.name for thread in threading.enumerate()}


def test_a_baseline_is_described_like_a_network(world: World) -> None:
    run.baseline("tiny.yaml")
    experiment = world.client.get_experiment_by_name("sentiment")
    for found in world.client.search_runs([experiment.experiment_id]):
        assert found.data.tags["baseline"] == found.info.run_name
        assert found.data.tags["mlflow.note.content"].startswith("**accuracy: validation ")
        assert len(found.inputs.dataset_inputs) == 3
