"""Language models trained by the real pipeline: toy texts learned to a bound, every head, state carried from piece to
piece, a run cut off, and what MLflow and the bundle keep."""

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn

from pipelines.data import Data
from pipelines.measure import measure
from pipelines.module import Learner
from seqapp import bundle, metrics
from seqapp.completion import GenerationInput
from seqapp.data import streams
from seqapp.data.splits import Splits
from seqapp.data.text import Passage
from seqapp.data.tokenizers import BOS
from seqapp.errors import ConfigError, DataError
from seqapp.models.language_model import LanguageModel
from seqapp.nn.heads import HEADS
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation
from tests.pipelines.worlds import Done, Said, World, steady

Seqapp = Callable[..., Said]

CYCLE = "round and on, "
CONFIG = """
task: {kind: generation}
model: {kind: language_model, embedding_size: 8, encoder: {kind: gru, hidden_size: 16}}
data: {kind: text, train: cycle.txt, validation_share: 0.1, test_share: 0.1}
train: {epochs: 3, batch_rows: 8, truncate: 16, learning_rate: 3e-2}
"""
WAYS = {"up": "abcd", "down": "dcba"}
NAMES = """
task: {kind: generation, reads: rows}
model: {kind: language_model, embedding_size: 8, encoder: {kind: lstm, hidden_size: 16}}
data: {kind: conditioned, train: ways.csv}
train: {epochs: 8, batch_rows: 16, learning_rate: 3e-2}
"""


def write_cycle(path: Path) -> None:
    (path / "cycle.txt").write_text(CYCLE * 400, encoding="utf-8")


def write_ways(path: Path) -> Path:
    """Texts that go round four letters, in the direction that the class says."""
    chance = random.Random(0)
    rows = set()
    for way, letters in WAYS.items():
        for start in range(4):
            for size in range(3, 16):
                rows.add(("".join(letters[(start + place) % 4] for place in range(size)), way))
    with (path / "ways.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "condition"), *chance.sample(sorted(rows), len(rows))])
    return path / "ways.csv"


@pytest.fixture(scope="module")
def _cycle(make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory) -> Done:
    made = make_world(tmp_path_factory.mktemp("cycle"))
    write_cycle(made.path)
    made.config("cycle.yaml", CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        trained = made.train(config="cycle.yaml")
    return Done(made.path, trained, "")


@pytest.fixture
def cycle(_cycle: Done, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A model of a text that goes round; tests leave it as it is."""
    _cycle.enter(monkeypatch)
    return _cycle


# A short way to train, without MLflow


def task_of(tokenizer: str = "character", reads: str = "stream") -> Generation:
    task = TASKS.build({"kind": "generation", "tokenizer": {"kind": tokenizer}, "reads": reads})
    assert isinstance(task, Generation)
    return task


def learned(
    text: str,
    head: dict[str, Any] | None = None,
    *,
    epochs: int = 2,
    steps: int = 16,
    rows: int = 4,
    tokenizer: str = "character",
    encoder: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    rate: float = 2e-2,
    dropout: float = 0.0,
    tied: bool = False,
    **trainer: Any,
) -> tuple[Generation, LanguageModel, Data, Learner]:
    task = task_of(tokenizer)
    splits = Splits("a text", [Passage(text, ends=False)], [Passage(text[:200], ends=False)], [])
    task.prepare(splits.train)
    torch.manual_seed(5)
    spec = {"kind": "language_model", "embedding_size": 8, "encoder": encoder or {"kind": "gru", "hidden_size": 16},
            "head": head or {"kind": "full"}, "output_dropout": dropout, "tied": tied}  # fmt: skip
    model = task.build_model(spec)
    assert isinstance(model, LanguageModel)
    data = Data(task, splits, batch_tokens=512, batch_rows=rows, seed=3, truncate=steps)
    task.fit_model(model, data.train_items)
    learner = Learner(task, model, learning_rate=rate, schedule="constant", warmup=0.0, weight_decay=0.0, seed=3,
                      truncated=True)  # fmt: skip
    keeps: list[pl.Callback] = (
        [ModelCheckpoint(checkpoint, filename="last", enable_version_counter=False)] if checkpoint else []
    )
    fit = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=keeps, enable_checkpointing=bool(keeps), num_sanity_val_steps=0, use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1, log_every_n_steps=1, **trainer,
    )  # fmt: skip
    path = str(checkpoint / "last.ckpt") if checkpoint and resume else None
    fit.fit(learner, data, ckpt_path=path, weights_only=True)
    return task, model, data, learner


def nll(task: Generation, model: nn.Module, data: Data) -> float:
    return metrics.read(measure(task, model, data, data.validation_items))["nll"]


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*",
    "ignore:.*lr_scheduler.step.*",
)  # fmt: skip


@quiet
def test_what_is_longer_ago_than_a_piece_is_known_by_the_carried_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # After a letter comes either, as the one before it says; and no piece holds two. The rows are at different places.
    text = "aabb" * 301
    *_, carried = learned(text, steps=1)
    whole = streams.Pieces.__iter__
    monkeypatch.setattr(streams.Pieces, "__iter__", lambda self: (one._replace(fresh=True) for one in whole(self)))
    *_, control = learned(text, steps=1)
    kept, forgot = (metrics.read(one._totals)["nll"] for one in (carried, control))
    assert kept < 0.2
    assert forgot == pytest.approx(math.log(2), abs=0.02)


# Every head, one exact figure


HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "adaptive": {"cutoffs": [5, 9], "narrowest": 4},
    "sampled": {"samples": 8},
    "adaptive_importance": {"samples": 8, "most": 16},
    "target_sampling": {"samples": 8},
    "nce": {"samples": 8},
}
heads = pytest.mark.parametrize("kind", list(HEADS))
WORDS = "the cat sat on the mat , and then a dog sat on it . one two three four five six . "


@quiet
@heads
@pytest.mark.parametrize("clip", ["norm", "value"])
def test_every_head_learns_and_is_measured_by_the_exact_softmax(kind: str, clip: str) -> None:
    task, model, data, _ = learned(
        WORDS * 30, {"kind": kind, **HEAD_OPTIONS.get(kind, {})}, tokenizer="word", epochs=4,
        gradient_clip_val=0.5 if clip == "norm" else 0.05, gradient_clip_algorithm=clip,
    )  # fmt: skip
    ids = task.tokenizer.encode((WORDS * 30)[:200]).ids
    with torch.inference_mode():
        x, _ = model.eval()(torch.tensor([[BOS, *ids[:-1]]]))
        exact = nn.functional.cross_entropy(model.head.logits(x[0]), torch.tensor(ids))
    found = nll(task, model, data)
    assert found == pytest.approx(float(exact), abs=1e-5)
    # The text says everything; guessing among its words costs about three nats.
    assert found < 1


@quiet
@heads
def test_a_head_goes_on_after_a_cut_as_if_nothing_had_happened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"head": {"kind": kind, **HEAD_OPTIONS.get(kind, {})}, "tokenizer": "word", "epochs": 3,
                             "dropout": 0.1}  # fmt: skip
    text = WORDS * 12
    _, whole, _, _ = learned(text, **asked)
    with monkeypatch.context() as patch:
        begin = Learner.on_train_epoch_start

        def cut(self: Learner) -> None:
            if self.current_epoch == 2:
                raise ZeroDivisionError
            begin(self)

        patch.setattr(Learner, "on_train_epoch_start", cut)
        with pytest.raises(ZeroDivisionError):
            learned(text, **asked, checkpoint=tmp_path)
    _, resumed, _, _ = learned(text, **asked, checkpoint=tmp_path, resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@quiet
def test_half_precision_learns_too() -> None:
    for head in ({"kind": "full"}, {"kind": "sampled", "samples": 8}):
        task, model, data, _ = learned(WORDS * 30, head, tokenizer="word", epochs=4, precision="bf16-mixed",
                                       gradient_clip_val=1.0)  # fmt: skip
        assert all(parameter.dtype == torch.float for parameter in model.parameters())
        assert nll(task, model, data) < 1


# One run through everything


def test_a_text_that_goes_round_is_learned(cycle: Done) -> None:
    for split in ("validation", "test"):
        scores = cycle.trained.scores[split]
        assert scores["nll"] < 0.05
        assert scores["perplexity"] == pytest.approx(math.exp(scores["nll"]))
        assert scores["bits_per_character"] == pytest.approx(scores["nll"] / math.log(2))
        assert scores["unknown"] == 0
    loaded = bundle.load(cycle.trained.bundle)
    (answer,) = loaded.predict([GenerationInput(prompt=CYCLE * 2, temperature=0, max_tokens=len(CYCLE))])
    assert answer.completions[0].text == CYCLE


def test_a_person_can_watch_it_learn(cycle: Done) -> None:
    run_id = cycle.trained.run_id
    files = [file.path for file in cycle.client.list_artifacts(run_id, "samples")]
    assert files == [f"samples/epoch-{epoch:03}.txt" for epoch in range(4)]
    said = [Path(cycle.client.download_artifacts(run_id, file)).read_text(encoding="utf-8") for file in files]
    assert len(set(said)) == 4
    assert CYCLE * 3 not in said[0]
    assert CYCLE * 3 in said[-1]
    assert "learning_curves.png" in [file.path for file in cycle.client.list_artifacts(run_id)]
    history = cycle.history(run_id)
    for name in ("train/nll", "validation/nll", "validation/bits_per_character", "validation/perplexity"):
        assert [step for step, _ in history[name]] == [0, 1, 2]
    assert history["validation/nll"][-1][1] < history["validation/nll"][0][1]
    tags = cycle.client.get_run(run_id).data.tags
    assert (tags["metric"], tags["direction"], tags["network"]) == ("bits_per_character", "min", "gru")


def test_the_card_speaks_of_bits_per_character(cycle: Done) -> None:
    card = (cycle.trained.bundle / "README.md").read_text(encoding="utf-8")
    assert "| split | passages | bits per character |" in card
    assert "Goes on from a prompt" in card


def test_the_bundle_still_answers_as_it_did(cycle: Done) -> None:
    loaded = bundle.load(cycle.trained.bundle)
    golden = json.loads((cycle.trained.bundle / "golden.json").read_text(encoding="utf-8"))
    assert golden[0]["input"]["prompt"]
    assert len(golden[0]["output"]["completions"][0]["logprobs"]) == golden[0]["output"]["prompt_tokens"] > 9
    loaded.check_golden()


def test_mlflow_answers_with_the_logged_model(cycle: Done) -> None:
    model = mlflow.pyfunc.load_model("models:/generation-cycle@champion")
    (row,) = model.predict(pandas.DataFrame({"prompt": [CYCLE * 2]}),
                           params={"temperature": 0.0, "max_tokens": 5}).to_dict("records")  # fmt: skip
    assert row["completions"][0]["text"] == CYCLE[:5]


def test_a_text_file_is_evaluated(cycle: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    whole = bundle.load(cycle.trained.bundle)
    file = tmp_path / "other.txt"
    text = (CYCLE * 20).replace("on", "no", 3) + "ж"
    file.write_text(text, encoding="utf-8")
    said = seqapp("evaluate", cycle.trained.bundle, "--data", file)
    assert (said.status, said.err) == (0, "")
    found = json.loads(said.out)
    task, model = whole.task, whole.model
    assert isinstance(task, Generation)
    assert isinstance(model, LanguageModel)
    ids = task.tokenizer.encode(text).ids
    with torch.inference_mode():
        x, _ = model(torch.tensor([[BOS, *ids[:-1]]]))
        nats = float(nn.functional.cross_entropy(model.head.logits(x[0]), torch.tensor(ids), reduction="sum"))
    assert found["nll"] == pytest.approx(nats / len(ids), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert found["unknown"] == pytest.approx(1 / len(text))
    latin = tmp_path / "latin.txt"
    latin.write_bytes((CYCLE + "é").encode("latin-1"))
    refused = seqapp("evaluate", cycle.trained.bundle, "--data", latin)
    assert refused.status == 1
    assert f"{latin}:1: byte {len(CYCLE)} (0xe9) is not utf-8 text" in refused.err
    assert seqapp("evaluate", cycle.trained.bundle, "--data", latin, "--encoding", "latin-1").status == 0
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    said = seqapp("evaluate", cycle.trained.bundle, "--data", empty)
    assert (said.status, len(said.err.splitlines())) == (1, 1)
    assert "holds no text" in said.err


def test_dynamic_evaluation_stands_beside_the_static_figures(cycle: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    # A text that it foretells badly until it has learned from it.
    file.write_text(CYCLE[::-1] * 60, encoding="utf-8")
    found = json.loads(seqapp("evaluate", cycle.trained.bundle, "--data", file, "--dynamic", "3e-3").out)
    assert found["dynamic"]["nll"] < 0.9 * found["nll"]
    static = json.loads(seqapp("evaluate", cycle.trained.bundle, "--data", file).out)
    assert "dynamic" not in static
    assert static["nll"] == found["nll"]
    # What learns too fast may end in an infinite perplexity, which is no JSON.
    said = seqapp("evaluate", cycle.trained.bundle, "--data", file, "--dynamic", "300")
    assert (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)


def test_runs_of_language_models_are_compared(cycle: Done, seqapp: Seqapp) -> None:
    said = seqapp("compare", "generation")
    assert said.status == 0
    assert "bits_per_character" in said.out
    assert "cycle" in said.out
    assert "gru" in said.out


def test_a_config_of_a_stream_is_diagnosed(cycle: Done, seqapp: Seqapp, tmp_path: Path) -> None:
    said = seqapp("diagnose", "cycle.yaml", "--steps", "12", "--rows", "2", "--out", tmp_path / "drawn", "--quiet")
    assert said.status == 0, said.err
    assert list((tmp_path / "drawn").glob("*.png"))


def test_lines_of_a_file_are_prompts(cycle: Done, seqapp: Seqapp) -> None:
    said = seqapp(
        "predict",
        cycle.trained.bundle,
        "-",
        stdin=b"round\nand on\n",
    )
    assert said.status == 0, said.err
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [row["line"] for row in found] == [1, 2]
    assert all(row["completions"][0]["tokens"] for row in found)


# Texts that depend on something


def test_each_class_has_its_own_texts(world: World, seqapp: Seqapp) -> None:
    file = write_ways(world.path)
    world.config("ways.yaml", NAMES)
    said = seqapp("train", "ways.yaml", "--quiet")
    assert said.status == 0, said.err
    (folder,) = world.path.glob("runs/*/bundle")
    loaded = bundle.load(folder)
    loaded.check_golden()
    for way, letters in WAYS.items():
        rows = letters * 12
        answers = loaded.predict([
            GenerationInput(condition=way, prompt="b", seed=1, n=8, temperature=0.3, max_tokens=40),
        ])  # fmt: skip
        for completion in answers[0].completions:
            assert "b" + completion.text in rows, (way, completion.text)
    run_id = json.loads((folder.parent / "state.json").read_text())["run_id"]
    last = Path(world.client.download_artifacts(run_id, "samples/epoch-008.txt")).read_text(encoding="utf-8")
    assert [line.partition(":")[0] for line in last.splitlines()] == ["down", "up"]
    # The file is read as it was for training.
    figures = json.loads(seqapp("evaluate", folder, "--data", file).out)
    assert figures["examples"] == len(file.read_text().splitlines()) - 1
    assert figures["nll"] < 0.9
    other = world.path / "other.csv"
    other.write_text("text,condition\nabc,sideways\n")
    refused = seqapp("evaluate", folder, "--data", other)
    assert refused.status == 1
    assert "example 1" in refused.err
    assert "'sideways'" in refused.err
    # On the command line the class is an option.
    assert seqapp("generate", folder, "b", "--condition", "up", "--temperature", "0").out.startswith("bcda")
    assert seqapp("generate", folder, "b", "--condition", "down", "--temperature", "0").out.startswith("badc")


# What does not fit, and a run that is cut off


def test_pieces_that_do_not_fit_are_refused_before_a_run_is_opened(world: World) -> None:
    write_cycle(world.path)
    world.config("cycle.yaml", CONFIG)
    with pytest.raises(ConfigError, match=r"train.truncate: .*0 does not fit, 128 would"):
        world.train("train.truncate=0", config="cycle.yaml")
    with pytest.raises(ConfigError, match=r"train.truncate: .*0 would fit, not 16"):
        world.train("task.reads=rows", config="cycle.yaml")
    with pytest.raises(ConfigError, match="this head has no table"):
        world.train("model.head={kind: adaptive}", "model.tied=true", config="cycle.yaml")
    with pytest.raises(ConfigError, match=r"encoder"):
        world.train("model.encoder={kind: birnn, layer: {kind: lstm, hidden_size: 4}}", config="cycle.yaml")
    (world.path / "cycle.txt").write_text("")
    with pytest.raises(DataError, match=r"cycle\.txt: the file holds no text"):
        world.train(config="cycle.yaml")
    assert not list(world.path.glob("runs/*"))


def test_a_stream_that_was_cut_off_goes_on_as_if_nothing_had_happened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cycle(world.path)
    world.config("cycle.yaml", CONFIG)
    choices = ("train.average=0.9", "model.output_dropout=0.2", "model.embedding_dropout=0.1", "train.test=false",
               "train.epochs=2")  # fmt: skip
    options: dict[str, Any] = {"config": "cycle.yaml", "register": False}
    whole = world.train(*choices, **options)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.finish", lambda *_: None)
        loss = Generation.loss_carried

        def fail(self: Generation, model: Any, batch: Any, carry: Any) -> Any:
            if model.training and len(list(world.path.glob("runs/*/checkpoints/last.ckpt"))) > 1:
                raise ZeroDivisionError
            return loss(self, model, batch, carry)

        patch.setattr(Generation, "loss_carried", fail)
        with pytest.raises(ZeroDivisionError):
            world.train(*choices, **options)
    resumed = world.train(*choices, **options, resume=True)
    assert resumed.run_id != whole.run_id
    assert steady(world.history(resumed.run_id)) == steady(world.history(whole.run_id))
    weights = [load_file(trained.bundle / "weights.safetensors") for trained in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    files = [
        [file.path for file in world.client.list_artifacts(trained.run_id, "samples")] for trained in (whole, resumed)
    ]
    assert files[0] == files[1]
    said = [
        [Path(world.client.download_artifacts(trained.run_id, file)).read_text(encoding="utf-8") for file in files[0]]
        for trained in (whole, resumed)
    ]
    assert said[0] == said[1]


def test_a_head_that_keeps_an_order_can_be_averaged(world: World) -> None:
    write_cycle(world.path)
    world.config("cycle.yaml", CONFIG)
    trained = world.train("model.head={kind: adaptive, cutoffs: [3], narrowest: 4}", "train.average=0.9",
                          "train.epochs=1", config="cycle.yaml")  # fmt: skip
    assert bundle.load(trained.bundle).task.sizes()["vocabulary_size"] > 3


def test_the_last_epoch_is_kept_where_validation_must_choose_nothing(world: World) -> None:
    write_cycle(world.path)
    world.config("cycle.yaml", CONFIG)
    # At this rate the first epoch is the best.
    choices = ("train.learning_rate=0.5", "train.schedule=constant", "train.epochs=3", "train.test=false")
    best, last = (world.train(*choices, f"train.keep={kept}", config="cycle.yaml") for kept in ("best", "last"))
    history = [value for _, value in world.history(last.run_id)["validation/bits_per_character"]]
    assert last.scores["validation"]["bits_per_character"] == pytest.approx(history[-1], rel=1e-4)
    assert best.scores["validation"]["bits_per_character"] == pytest.approx(min(history), rel=1e-4)
    assert "No split chose between epochs." in (last.bundle / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"keep: last .*patience=2"):
        world.train("train.keep=last", "train.patience=2", config="cycle.yaml")
