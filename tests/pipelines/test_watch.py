"""Gates and gradients as they are logged each epoch: what they say, and that watching changes nothing."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines import run, watch
from pipelines.module import gradient_scores
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import LabelledText
from seqapp.data.text import Passage
from seqapp.models.classifier import Classifier
from seqapp.nn.recurrent import NotFinite
from seqapp.tasks import TASKS, Task
from tests.pipelines.worlds import Done, World, steady

LONG = 100
GRU = {"kind": "gru", "hidden_size": 5}
LSTM = {"kind": "lstm", "hidden_size": 4}
WORDS = ["the", "good", "film", "was", "not", "bad", "but", "poor", "and", "fine"]
GATES_OF_GRU, GATES_OF_LSTM = ("update", "reset"), ("input", "forget", "output")


def sentiment(encoder: Any, pooling: str = "max") -> tuple[Task[Any, Any], Any]:
    """A prepared task and ten items, one of them longer than what is watched."""
    task = TASKS.build({"kind": "sentiment"})
    examples = [LabelledText(" ".join(WORDS[: 1 + place]), ("good", "bad")[place % 2]) for place in range(9)]
    examples.append(LabelledText(" ".join(WORDS[place % 10] for place in range(LONG)), "good"))
    task.prepare(examples)
    torch.manual_seed(0)
    model = task.build_model({"kind": "classifier", "embedding_size": 3, "encoder": encoder, "dropout": 0.5,
                              "token_dropout": 0.3, "pooling": {"kind": pooling}})  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-3, 3)
    return task, SimpleNamespace(model=model, items=task.encode(examples))


def names(found: dict[str, float]) -> set[str]:
    return {name.removeprefix(watch.GATES).rpartition("/")[0] for name in found}


def test_training_logs_the_gates_of_every_epoch(done: Done) -> None:
    history = done.history(done.trained.run_id)
    for gate in GATES_OF_LSTM:
        shares = [history[f"gates/encoder.{gate}/{what}"] for what in ("left_saturated", "right_saturated", "mean")]
        for points in shares:
            assert [step for step, _ in points] == [0, 1, 2, 3]
            assert all(0 <= value <= 1 for _, value in points)
        assert len({value for _, value in shares[2]}) == 4, "the same rows, other weights"


@pytest.mark.parametrize("encoder", [GRU, LSTM])
def test_gates_are_counted_over_units_and_the_first_positions_of_each_row(encoder: Any) -> None:
    task, made = sentiment(encoder)
    batch = watch.few(task, made.items)
    found = watch.gates(task, made.model, batch)
    layer = made.model.encoder
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            carry = layer.initial_carry(1, torch.zeros(1, 3))
            for token in ids[: min(length, watch.STEPS)]:
                x = made.model.embedding(token[None])
                for gate, opened in layer.gates(carry, x).items():
                    values.setdefault(gate, []).extend(opened[0].tolist())
                carry, _ = layer.step(carry, x)
    wanted = {}
    for gate, every in values.items():
        wanted |= {
            f"gates/encoder.{gate}/left_saturated": sum(value < 0.1 for value in every) / len(every),
            f"gates/encoder.{gate}/right_saturated": sum(value > 0.9 for value in every) / len(every),
            f"gates/encoder.{gate}/mean": sum(every) / len(every),
        }
    assert found == pytest.approx(wanted, abs=1e-5)
    assert any(value > 0 for name, value in wanted.items() if "saturated" in name)


def test_the_rows_are_few_and_always_the_same() -> None:
    task, made = sentiment(GRU)
    batch = watch.few(task, made.items)
    assert len(batch.lengths) == watch.ROWS
    assert torch.equal(watch.few(task, made.items).ids, batch.ids)
    assert len(watch.few(task, made.items[:3]).lengths) == 3


@pytest.mark.parametrize("training", [True, False])
def test_watching_leaves_model_and_chance_alone(training: bool) -> None:
    task, made = sentiment(LSTM)
    made.model.train(training)
    before, state = copy.deepcopy(made.model.state_dict()), torch.get_rng_state()
    found = watch.gates(task, made.model, watch.few(task, made.items))
    assert found == watch.gates(task, made.model, watch.few(task, made.items)), "no dropout"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in made.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert all(parameter.grad is None for parameter in made.model.parameters())


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        ({"kind": "elman", "hidden_size": 4}, set()),
        ({"kind": "birnn", "layer": GRU}, {f"encoder.{way}.{gate}" for way in ("ahead", "back")
                                           for gate in GATES_OF_GRU}),
        ({"kind": "stack", "layers": [LSTM, {"kind": "elman", "hidden_size": 3}, GRU]},
         {*(f"encoder.layers.0.{gate}" for gate in GATES_OF_LSTM),
          *(f"encoder.layers.2.{gate}" for gate in GATES_OF_GRU)}),
        ({"kind": "variational", "layer": LSTM, "input_dropout": 0.3}, {f"encoder.{gate}" for gate in GATES_OF_LSTM}),
    ],
    ids=["no gates", "both ways", "stack", "wrapped"],
)  # fmt: skip
def test_every_layer_is_named_once(encoder: Any, wanted: set[str]) -> None:
    task, made = sentiment(encoder)
    assert names(watch.gates(task, made.model, watch.few(task, made.items))) == wanted


@pytest.mark.parametrize("count", [1, 70, 5000])
def test_a_stream_is_looked_at_in_a_few_places(count: int) -> None:
    task = TASKS.build({"kind": "generation"})
    passages = [Passage("abcde" * (count // 5 + 1))]
    task.prepare(passages)
    stream: Any = task.encode([Passage(passages[0].text[:count], ends=False)])
    batch = watch.few(task, stream)
    assert len(batch.lengths) <= watch.ROWS
    assert int(batch.lengths.max()) == min(watch.STEPS, len(stream))
    model = task.build_model({"kind": "language_model", "embedding_size": 3, "encoder": GRU})
    assert names(watch.gates(task, model, batch)) == {f"encoder.{gate}" for gate in GATES_OF_GRU}


def test_a_translator_shows_the_layers_that_run_over_a_row() -> None:
    task = TASKS.build({"kind": "translation", "tokenizer": {"kind": "word"}})
    pairs = [SentencePair("a b c", "x y", ("en", "de")), SentencePair("c b", "y", ("en", "de"))]
    task.prepare(pairs)
    model = task.build_model({"kind": "translator", "encoder": {"kind": "birnn", "layer": LSTM}, "decoder": LSTM,
                              "embedding_size": 4})  # fmt: skip
    found = watch.gates(task, model, watch.few(task, task.encode(pairs)))
    assert {f"encoder.{way}.{gate}" for way in ("ahead", "back") for gate in GATES_OF_LSTM} <= names(found)
    assert all(math.isfinite(value) for value in found.values())


def test_numbers_out_of_hand_say_nothing_of_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    task, made = sentiment(GRU)

    def grow(*given: Any) -> Any:
        raise NotFinite("a state is not finite")

    monkeypatch.setattr(Classifier, "loss", grow)
    assert watch.gates(task, made.model.train(), watch.few(task, made.items)) == {}
    assert made.model.training


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_one_alone_logs(first: bool) -> None:
    task, made = sentiment(GRU)
    logged: list[tuple[dict[str, float], int]] = []
    logger = SimpleNamespace(log_metrics=lambda found, step: logged.append((found, step)))
    trainer: Any = SimpleNamespace(
        is_global_zero=first, current_epoch=3, loggers=[logger], datamodule=SimpleNamespace(validation_items=made.items)
    )
    module: Any = SimpleNamespace(
        task=task, model=made.model, device="cpu", transfer_batch_to_device=lambda batch, device, index: batch
    )
    for callback in (watch.GateWatch(), watch.RecurrentWatch()):
        callback.on_fit_start(trainer, module)
        callback.on_train_epoch_end(trainer, module)
    assert [step for _, step in logged] == ([3, 3] if first else [])
    assert not first or names(logged[0][0]) == {f"encoder.{gate}" for gate in GATES_OF_GRU}


def test_watching_changes_no_weight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = []
    for watched in (True, False):
        if not watched:
            monkeypatch.setattr(run, "GateWatch", Callback)
        trained = world.train("train.epochs=2", "train.average=0.5", register=False)
        history = steady(world.history(trained.run_id))
        assert any(name.startswith(watch.GATES) for name in history) == watched
        histories.append(
            {name: values for name, values in history.items() if name.startswith(("train/", "validation/"))}
        )
    assert histories[0] == histories[1]


# Gradients


def test_gradients_are_told_by_their_mean_their_largest_and_the_share_that_was_clipped() -> None:
    norms = [torch.tensor(value, dtype=torch.float64) for value in (0.5, 1.0, 4.0, 2.5)]
    assert gradient_scores(norms, 1.0) == {
        "train/gradient_norm": 2.0, "train/largest_gradient_norm": 4.0, "train/clipped_share": 0.5,
    }  # fmt: skip
    assert "train/clipped_share" not in gradient_scores(norms, None)
    assert all(math.isnan(value) for name, value in gradient_scores([], None).items())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(("train.clip_norm=1e-6",), [1.0]), (("train.clip_norm=0", "train.clip_value=1e-6"), None)],
)  # fmt: skip
def test_a_run_tells_how_many_steps_were_clipped(
    world: World, options: tuple[str, ...], wanted: list[float] | None
) -> None:
    trained = world.train("train.epochs=1", "train.test=false", *options, register=False)
    found = world.history(trained.run_id)
    told = found.get("train/clipped_share")
    assert (told and [value for _, value in told]) == wanted
    assert found["train/largest_gradient_norm"][0][1] >= found["train/gradient_norm"][0][1] > 0
