"""Training that runs away, and pieces of time that have nothing to teach."""

import math
from pathlib import Path

import pytest
import torch

from pipelines import run
from pipelines.module import Learner
from pipelines.promotion import register
from seqapp.errors import SeqappError
from seqapp.references import connect
from tests.pipelines.worlds import World

ROOT = Path(__file__).parents[2]
SMALL = ["data.train=64", "data.validation=16", "data.test=16", "train.batch_rows=16"]


def test_a_piece_that_asks_nothing_leaves_the_weights_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    before: list[torch.Tensor] = []
    start, end = Learner.on_train_batch_start, Learner.on_train_batch_end

    def at_start(self: Learner, batch: object, batch_index: int) -> None:
        start(self, batch, batch_index)
        before[:] = [parameter.detach().clone() for parameter in self.model.parameters()]

    def at_end(self: Learner, outputs: object, batch: object, batch_idx: int) -> None:
        end(self, outputs, batch, batch_idx)  # type: ignore[arg-type]
        moved = any(not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
        seen.append((self.task.learns(batch), moved))

    monkeypatch.setattr(Learner, "on_train_batch_start", at_start)
    monkeypatch.setattr(Learner, "on_train_batch_end", at_end)
    run.train(ROOT / "configs/memory/adding.yaml",
              ["data.length=20", *SMALL, "train.epochs=2", "train.truncate=5", "train.weight_decay=0.1",
               "model.encoder.hidden_size=4"], register=False, progress=False)  # fmt: skip
    assert {learns for learns, _ in seen} == {True, False}
    assert all(learns == moved for learns, moved in seen)


def test_a_run_whose_every_validation_is_not_finite_fails_and_is_not_registered(world: World) -> None:
    with pytest.raises(SeqappError, match=r"narma: validation mse is (nan|inf) in every epoch"):
        run.train(ROOT / "configs/memory/narma.yaml",
                  ["data.length=60", *SMALL, "train.epochs=2", "train.learning_rate=1", "train.clip_norm=0",
                   "model.encoder.activation=identity"], progress=False)  # fmt: skip
    assert list(connect().search_registered_models()) == []


def test_a_champion_without_a_figure_gives_way(world: World) -> None:
    first = world.train(register=False)
    kept = {"validation_digest": "d"}
    uri = f"runs:/{first.run_id}/model"
    assert register(first.run_id, uri, "one", score=("mse", math.nan, "min"), **kept).champion
    assert register(first.run_id, uri, "one", score=("mse", 2.0, "min"), **kept).champion
    assert not register(first.run_id, uri, "one", score=("mse", 3.0, "min"), **kept).champion


def test_before_anything_is_learned_the_advice_is_not_to_learn_more_slowly(world: World) -> None:
    with pytest.raises(SeqappError, match=r"in epoch 1, step 1: .*; nothing has been learned yet, so shorter rows"):
        run.train(ROOT / "configs/memory/parity.yaml",
                  ["data.length=3000", "data.train=16", "data.validation=4", "data.test=4", "train.batch_rows=16",
                   "model.encoder={kind: stack, layers: [{kind: jordan_memory, hidden_size: 8, decay: 1.0, "
                   "activation: identity}, {kind: gru, hidden_size: 4}]}"], register=False, progress=False)  # fmt: skip
