"""What a training leaves in MLflow, on disk and in the registry, and that a seed fixes all of it."""

import io
import json
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pipelines import figures, promotion, run, tracking
from seqapp import bundle
from seqapp.data.splits import SOURCES
from seqapp.errors import SeqappError
from seqapp.references import ReferenceNotFound, resolve
from tests.pipelines.worlds import Done, World, steady, texts, write_csv

EPOCHS = 4


def artifacts(done: Done) -> Path:
    return Path(done.client.download_artifacts(done.trained.run_id, ""))


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict | list):
        return [leaf for child in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(child)]
    return [tree]


# The run


def test_the_run_is_finished_and_named_after_its_config(done: Done) -> None:
    info = done.client.get_run(done.trained.run_id).info
    assert (info.status, info.run_name) == ("FINISHED", "tiny")
    assert done.client.get_experiment(info.experiment_id).name == "sentiment"


def test_params_are_the_resolved_config_leaf_by_leaf(done: Done) -> None:
    params = done.client.get_run(done.trained.run_id).data.params
    assert params["train.seed"] == "3"
    assert params["train.learning_rate"] == "0.02"
    assert params["model.encoder.hidden_size"] == "8"
    assert params["data.kind"] == "table"
    config = yaml.safe_load((artifacts(done) / "config.yaml").read_text())
    assert sorted(map(str, leaves(config))) == sorted(params.values())
    assert config["train"]["epochs"] == EPOCHS


def test_tags_tell_what_was_trained_on_what(done: Done) -> None:
    tags = done.client.get_run(done.trained.run_id).data.tags
    config = yaml.safe_load((artifacts(done) / "config.yaml").read_text())
    digests = SOURCES.build(config["data"]).digests()
    wanted = {
        "task": "sentiment",
        "network": "lstm",
        "validation_digest": digests["validation"],
        "test_digest": digests["test"],
        "seed": "3",
        "git_commit": done.commit,
        "git_dirty": "false",
    }
    assert {name: tags.get(name) for name in wanted} == wanted
    assert "data.csv" in tags["dataset"]


def test_every_epoch_has_one_value_of_each_score(done: Done) -> None:
    history = done.history(done.trained.run_id)
    names = {f"{split}/{name}" for split in ("train", "validation") for name in ("nll", "accuracy", "macro_f1")}
    names |= {f"train/{name}" for name in ("learning_rate", "gradient_norm", "seconds", "tokens_per_second")}
    assert names <= set(history)
    for name in names:
        assert [step for step, _ in history[name]] == list(range(EPOCHS)), name
        assert all(np.isfinite(value) for _, value in history[name]), name
    for name in ("train/seconds", "train/tokens_per_second", "train/gradient_norm"):
        assert all(value > 0 for _, value in history[name]), name
    assert sum(value for _, value in history["train/seconds"]) < 60
    assert history["train/nll"][-1][1] < history["train/nll"][0][1]


def test_the_learning_curves_have_epochs_on_their_axis(done: Done) -> None:
    history = tracking.history(done.trained.run_id)
    titles = {axes.get_title() for axes in figures.learning_curves(history, "tiny").axes}
    assert titles == {"nll", "accuracy", "macro_f1"}
    figure = figures.learning_curves(history, "tiny", bundle.load(done.trained.bundle).task.titles)
    assert {axes.get_title() for axes in figure.axes} == {"nll (nats per text)", "accuracy", "macro F1"}
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["train", "validation"]
        for line in axes.lines:
            assert list(line.get_xdata()) == list(range(1, EPOCHS + 1))


def test_the_pictures_are_pictures(done: Done) -> None:
    for name in ("learning_curves.png", "confusion_validation.png", "confusion_test.png"):
        with Image.open(artifacts(done) / name) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) >= 200, name
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, name
        assert pixels.std() > 5, name


def test_environment_and_model_card_are_kept(done: Done) -> None:
    environment = (artifacts(done) / "environment.txt").read_text()
    assert f"torch=={torch.__version__}" in environment
    assert f"mlflow=={mlflow.__version__}" in environment
    card = (artifacts(done) / "model_card.md").read_text()
    assert card == (done.trained.bundle / "README.md").read_text()
    for wanted in (
        done.trained.run_id,
        done.commit,
        "negative, positive",
        f"of\n{EPOCHS},",
        f"{done.trained.parameters:,} parameters",
        f"{done.trained.scores['test']['accuracy']:.2%}",
        f"{done.trained.scores['validation']['nll']:.4f}",
    ):
        assert wanted in card


def test_mlflow_knows_the_data_of_each_split(done: Done) -> None:
    found = done.client.get_run(done.trained.run_id)
    digests = json.loads((done.trained.bundle / "metrics.json").read_text())["digests"]
    inputs = {given.tags[0].value: given.dataset for given in found.inputs.dataset_inputs}
    assert {name: given.digest for name, given in inputs.items()} == {
        name: digest[:16] for name, digest in digests.items()
    }


# The bundle


def test_the_bundle_scores_what_the_run_says(done: Done) -> None:
    loaded = bundle.load(done.trained.bundle)
    splits = SOURCES.build(loaded.config["data"])
    metrics = done.client.get_run(done.trained.run_id).data.metrics
    for split, prefix in (("validation", "best_validation"), ("test", "test")):
        examples = getattr(splits, split)
        path = write_csv(done.path / f"{split}.csv", [(example.text, example.label) for example in examples])
        figures = run.evaluate(loaded, path)
        for name in ("accuracy", "macro_f1", "nll"):
            assert figures[name] == metrics[f"{prefix}/{name}"], (split, name)
        assert figures["examples"] == metrics[f"{split}/examples"] == len(examples)
        answers = loaded.predict([loaded.task.as_input(example) for example in examples])
        right = sum(answer.label == example.label for answer, example in zip(answers, examples, strict=True))
        assert right / len(examples) == pytest.approx(figures["accuracy"], abs=1e-12)


def test_the_bundle_is_the_best_epoch_and_not_the_last(done: Done) -> None:
    history = [value for _, value in done.history(done.trained.run_id)["validation/accuracy"]]
    assert done.trained.scores["validation"]["accuracy"] == pytest.approx(max(history), abs=1e-6)
    best = torch.load(done.trained.bundle.parent / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == history.index(max(history))
    kept = load_file(done.trained.bundle / "weights.safetensors")
    assert all(torch.equal(kept[name], best["state_dict"][f"model.{name}"]) for name in kept)
    bundle.load(done.trained.bundle).check_golden()


def test_nothing_in_the_logged_model_is_a_pickle(done: Done) -> None:
    version = done.client.get_model_version_by_alias("sentiment-tiny", "champion")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/sentiment-tiny/{version.version}"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in files)
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"), path
        content = path.read_bytes()
        assert not zipfile.is_zipfile(io.BytesIO(content)), path
        assert not content.startswith(b"\x80"), path
        if path.suffix not in (".py", ".md", ".txt", ".yaml", ".tsv"):
            assert not is_pickle(content), path


def is_pickle(content: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(content)))
    except (ValueError, IndexError, UnicodeDecodeError):
        return False


def test_a_pickle_would_be_noticed() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert is_pickle(pickle.dumps({"weights": [1.0, 2.0]}, protocol))
    assert not is_pickle(b'{"weights": [1.0, 2.0]}')


# References


def test_every_way_to_name_the_model_leads_to_an_equal_bundle(done: Done) -> None:
    registered = done.trained.registered
    assert registered is not None
    assert (registered.name, registered.version, registered.champion) == ("sentiment-tiny", "1", True)
    ways = [
        str(done.trained.bundle),
        str(done.trained.bundle.parent),
        done.trained.run_id,
        "sentiment-tiny",
        "sentiment-tiny@champion",
        "sentiment-tiny/1",
    ]
    found = [resolve(way) for way in ways]
    manifests = [(reference.path / "bundle.yaml").read_bytes() for reference in found]
    assert manifests == [manifests[0]] * len(ways)
    asked = [bundle.load(reference.path) for reference in found]
    given = [asked[0].task.Input(text=text) for text, _ in texts(20, seed=9)]
    answers = [loaded.predict(given) for loaded in asked]
    assert answers == [answers[0]] * len(ways)
    assert [(way.name, way.version, way.alias) for way in found[3:]] == [
        ("sentiment-tiny", "1", "champion"),
        ("sentiment-tiny", "1", "champion"),
        ("sentiment-tiny", "1", ""),
    ]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nobody", "nobody@champion: not in the registry .* registered: sentiment-tiny@champion"),
        ("sentiment-tinny", r"at \S+; did you mean 'sentiment-tiny@champion'\? registered: "),
        ("sentiment-tiny@challenger", "sentiment-tiny@challenger: not in the registry"),
        ("sentiment-tiny/7", "sentiment-tiny/7: not in the registry"),
        ("runs/nothing", "runs/nothing: no such directory"),
        ("0" * 32, f"run {'0' * 32}: "),
    ],
)
def test_a_reference_that_leads_nowhere_says_so(done: Done, reference: str, said: str) -> None:
    with pytest.raises(ReferenceNotFound, match=said):
        resolve(reference)


def test_a_run_without_a_model_says_so(world: World) -> None:
    run_id = tracking.create_run("sentiment", "bare", {})
    with pytest.raises(ReferenceNotFound, match=rf"run {run_id} \(running\) has logged no model"):
        resolve(run_id)


def test_pyfunc_answers_a_data_frame_as_the_bundle_does(done: Done) -> None:
    model = mlflow.pyfunc.load_model("models:/sentiment-tiny@champion")
    given = [text for text, _ in texts(30, seed=8)]
    frame = model.predict(pandas.DataFrame({"text": given}))
    loaded = bundle.load(done.trained.bundle)
    answers = loaded.predict([loaded.task.Input(text=text) for text in given])
    assert list(frame["label"]) == [answer.label for answer in answers]
    assert list(frame["score"]) == [answer.score for answer in answers]
    assert "tokens" not in frame
    explained = model.predict(pandas.DataFrame({"text": given[:1]}), params={"explain": True})
    assert [token["text"] for token in explained["tokens"][0]] == given[0].split()


# Seeds


def test_one_seed_gives_one_model_and_another_seed_another(world: World) -> None:
    first, again, other = (
        world.train("train.epochs=2", f"train.seed={seed}", register=False) for seed in ("4", "4", "5")
    )
    assert first.run_id != again.run_id
    assert steady(world.history(first.run_id)) == steady(world.history(again.run_id))
    weights = [load_file(trained.bundle / "weights.safetensors") for trained in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in ("embedding.weight",))
    assert steady(world.history(first.run_id)) != steady(world.history(other.run_id))


# The champion


def test_the_champion_moves_only_for_a_better_score_on_the_same_data(world: World) -> None:
    weak = world.train("train.epochs=1", "train.learning_rate=1e-6", "train.test=false")
    strong = world.train("train.epochs=4", "train.learning_rate=3e-2", "train.test=false")
    again = world.train("train.epochs=1", "train.learning_rate=1e-6", "train.test=false")
    write_csv(world.path / "data.csv", texts(150, seed=1))
    elsewhere = world.train("train.epochs=4", "train.learning_rate=3e-2", "train.test=false")
    registered = [trained.registered for trained in (weak, strong, again, elsewhere)]
    assert [one and (one.version, one.champion) for one in registered] == [
        ("1", True), ("2", True), ("3", False), ("4", False),
    ]  # fmt: skip
    low, high = (trained.scores["validation"]["accuracy"] for trained in (weak, strong))
    assert low < high
    assert [one and one.reason for one in registered] == [
        "the first version",
        f"validation accuracy {high:.4f} beats {low:.4f} of version 1",
        f"validation accuracy {low:.4f} is not better than {high:.4f} of the champion, version 2",
        "the champion, version 2, was measured on other validation data, so the two cannot be compared",
    ]
    assert world.client.get_model_version_by_alias("sentiment-tiny", "champion").version in ("2", 2)
    assert resolve("sentiment-tiny").version == "2"


@pytest.mark.parametrize(
    ("direction", "value", "moves"),
    [("max", 0.5, False), ("max", 0.51, True), ("min", 0.5, False), ("min", 0.49, True), ("min", 0.51, False)],
)
def test_better_means_what_the_task_says(
    done: Done, direction: str, value: float, moves: bool, request: pytest.FixtureRequest
) -> None:
    name = re.sub(r"\W", "-", request.node.name)
    run_id = done.trained.run_id
    uri = f"models:/{done.client.get_run(run_id).outputs.model_outputs[-1].model_id}"
    # Another address of the same model, since the same model is not registered twice.
    for source, score in ((f"runs:/{run_id}/model", 0.5), (uri, value)):
        last = promotion.register(run_id, source, name, score=("nll", score, direction), validation_digest="d")
    try:
        assert last.champion is moves
        assert str(done.client.get_model_version_by_alias(name, "champion").version) == ("2" if moves else "1")
    finally:
        done.client.delete_registered_model(name)


def test_a_registry_that_fails_crowns_nobody(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("the server is tired")

    uri = f"models:/{done.client.get_run(done.trained.run_id).outputs.model_outputs[-1].model_id}"
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_registered_model", fail)
        with pytest.raises(mlflow.exceptions.MlflowException, match="tired"):
            promotion.register(
                done.trained.run_id, uri, "sentiment-tiny", score=("accuracy", 0.0, "max"), validation_digest="d"
            )
    assert resolve("sentiment-tiny").version == "1"


# Choices


def test_no_test_split_no_registration(world: World) -> None:
    trained = world.train("train.test=false", "train.epochs=1", register=False)
    assert set(trained.scores) == {"validation"}
    assert trained.registered is None
    metrics = world.client.get_run(trained.run_id).data.metrics
    assert not [name for name in metrics if name.startswith("test/") and name != "test/examples"]
    assert list(world.client.search_registered_models()) == []


def test_model_name_names_the_registered_model(world: World) -> None:
    trained = world.train("train.epochs=1", "train.model_name=mine")
    assert trained.registered is not None
    assert trained.registered.name == "mine"
    assert resolve("mine@champion").version == "1"


def test_three_labels(world: World) -> None:
    write_csv(world.path / "data.csv", texts(180, labels=("negative", "mixed", "positive")))
    trained = world.train("train.epochs=4", "train.learning_rate=5e-2", register=False)
    loaded = bundle.load(trained.bundle)
    (answer,) = loaded.predict([loaded.task.Input(text="the film was great")])
    assert set(answer.scores) == {"negative", "mixed", "positive"}
    assert trained.scores["validation"]["accuracy"] > 1 / 2
    assert [row["true"] for row in loaded.metrics["confusion"]["validation"]] == ["mixed", "negative", "positive"]


def test_patience_stops_early_and_keeps_the_best_epoch(world: World) -> None:
    # With a rate this small nothing changes, so no epoch is better than the first.
    trained = world.train("train.epochs=30", "train.learning_rate=1e-9", "train.patience=2", register=False)
    history = world.history(trained.run_id)
    assert [step for step, _ in history["validation/accuracy"]] == [0, 1, 2]
    assert world.client.get_run(trained.run_id).info.status == "FINISHED"
    assert "epoch 1 of\n3," in (trained.bundle / "README.md").read_text()


def test_a_layer_that_runs_away_is_named_with_what_fits(world: World) -> None:
    layer = "{kind: elman, hidden_size: 8, activation: relu}"
    with pytest.raises(SeqappError, match=r"in epoch \d+, step \d+: Elman: x holds .*; a lower train.learning_rate"):
        world.train(f"model.encoder={{kind: stack, layers: [{layer}, {layer}]}}", "train.learning_rate=1e25",
                    "train.clip_norm=0", "train.schedule=constant", "train.warmup=0")  # fmt: skip


def test_a_loss_that_is_not_a_number_fails_the_run_and_says_what_fits(world: World) -> None:
    with pytest.raises(SeqappError, match=r"in epoch \d+, step \d+: .*(nan|inf).*; a lower train.learning_rate"):
        world.train("train.learning_rate=1e37", "train.clip_norm=0", "train.schedule=constant", "train.warmup=0")
    (found,) = world.client.search_runs([world.client.get_experiment_by_name("sentiment").experiment_id])
    assert found.info.status == "FAILED"
    assert list(world.client.search_registered_models()) == []
    assert not list(world.path.glob("runs/*/bundle"))
