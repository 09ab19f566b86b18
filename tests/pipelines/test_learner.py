"""The optimiser: rates, clipping, decay, and that an epoch is every row once."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.data import Batches
from pipelines.module import Learner, rate_at
from pipelines.optim import AdamWByRow
from seqapp.data.batching import LengthBuckets
from seqapp.data.splits import LabelledText
from seqapp.errors import ConfigError
from seqapp.metrics import Ratio
from seqapp.tasks import TASKS
from tests.pipelines.toys import Toy
from tests.pipelines.worlds import World, texts, write_csv


def learner(model: nn.Module | None = None, **options: Any) -> Learner:
    task = TASKS.build({"kind": "sentiment"})
    task.prepare([LabelledText(text, label) for text, label in texts(20)])
    encoder = {"kind": "lstm", "hidden_size": 4}
    built = model or task.build_model({"kind": "classifier", "embedding_size": 4, "encoder": encoder})
    chosen = {"learning_rate": 0.1, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "seed": 1}
    return Learner(task, built, **{**chosen, **options})


# The rate


@pytest.mark.parametrize(
    ("step", "schedule", "warmup", "rate"),
    [
        (0, "constant", 0.0, 1.0),
        (99, "constant", 0.0, 1.0),
        (0, "linear", 0.0, 1.0),
        (50, "linear", 0.0, 0.5),
        (100, "linear", 0.0, 0.0),
        (25, "cosine", 0.0, 0.5 * (1 + math.sqrt(0.5))),
        (50, "cosine", 0.0, 0.5),
        (100, "cosine", 0.0, 0.0),
        (150, "cosine", 0.0, 0.0),
        (0, "constant", 0.1, 1 / 11),
        (9, "constant", 0.1, 10 / 11),
        (10, "constant", 0.1, 1.0),
        (10, "cosine", 0.1, 1.0),
        (55, "cosine", 0.1, 0.5),
        (55, "linear", 0.1, 0.5),
        (99, "constant", 1.0, 100 / 101),
    ],
)
def test_rate_by_hand(step: int, schedule: str, warmup: float, rate: float) -> None:
    assert rate_at(step, 100, schedule, warmup) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 7, 100])
def test_the_rate_rises_then_never_rises_again(schedule: str, total: int) -> None:
    rates = [rate_at(step, total, schedule, 0.2) for step in range(total + 1)]
    top = rates.index(max(rates))
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_schedule_ends_where_training_ends(world: World) -> None:
    trained = world.train("train.epochs=2", "train.schedule=linear", "train.warmup=0", register=False)
    rates = [value for _, value in world.history(trained.run_id)["train/learning_rate"]]
    assert rates[0] == pytest.approx(0.02 * 0.5, rel=0.1)
    assert rates[1] == pytest.approx(0.0, abs=1e-4)


# Decay and clipping


class _Trainer:
    estimated_stepping_batches = 10


def groups(of: Learner, monkeypatch: pytest.MonkeyPatch) -> dict[float, set[str]]:
    monkeypatch.setattr(Learner, "trainer", _Trainer())
    optimizer = of.configure_optimizers()["optimizer"]
    names = {id(parameter): name for name, parameter in of.model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return found


def test_decay_spares_biases_and_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(weight_decay=0.3)
    found = groups(made, monkeypatch)
    assert set(found) == {0.0, 0.3}
    every = {name for name, _ in made.model.named_parameters()}
    assert found[0.0] | found[0.3] == every
    assert not found[0.0] & found[0.3]
    assert found[0.0] == {"embedding.weight", "encoder.b", "head.project.bias"}
    assert all(dict(made.model.named_parameters())[name].dim() == 2 for name in found[0.3])


def test_decay_shrinks_the_matrices_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(weight_decay=0.5)
    monkeypatch.setattr(Learner, "trainer", _Trainer())
    optimizer = made.configure_optimizers()["optimizer"]
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in made.model.named_parameters():
        spared = name in ("embedding.weight", "encoder.b", "head.project.bias")
        wanted = before[name] if spared else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(parameter, wanted, atol=1e-7), name


def test_clip_norm_bounds_the_gradient(world: World) -> None:
    free, clipped, never = (
        world.train("train.epochs=1", f"train.clip_norm={norm}", register=False) for norm in ("0", "1e-3", "1e6")
    )
    losses = [world.history(one.run_id)["validation/nll"] for one in (free, clipped, never)]
    norms = [world.history(one.run_id)["train/gradient_norm"][0][1] for one in (free, clipped, never)]
    # Adam divides by the size of the gradient, so clipping changes the path a little, not its length.
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    # The logged norm is the one before clipping: it tells whether the bound is reached.
    assert norms[0] == norms[2] > 1e-2
    assert norms[1] > 1e-2


def stepped_with(monkeypatch: pytest.MonkeyPatch, gradient: float) -> list[torch.Tensor]:
    """The gradients that reach the optimiser, flat, when the task's are ``gradient`` times 1, -2, 3, -4, ..."""

    def loss(task: Toy, model: nn.Module, batch: Any) -> Any:
        parameters = list(model.parameters())
        flat = torch.cat([parameter.flatten() for parameter in parameters])
        total = (flat * known(len(flat), gradient)).sum()
        return total, {"mse": Ratio("mse", total.detach().double(), 1)}

    found: list[torch.Tensor] = []
    plain = AdamWByRow.step

    def step(self: AdamWByRow, closure: Any = None) -> Any:
        # Lightning computes and clips the gradients inside the closure.
        result = closure()
        found.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        plain(self)
        return result

    monkeypatch.setattr(Toy, "loss", loss)
    monkeypatch.setattr(AdamWByRow, "step", step)
    return found


def known(size: int, scale: float) -> torch.Tensor:
    return scale * torch.arange(1.0, size + 1) * (-1.0) ** torch.arange(size)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_clipping_by_norm_is_pascanu_s_law(
    toy: World, monkeypatch: pytest.MonkeyPatch, threshold: float, scale: float
) -> None:
    found = stepped_with(monkeypatch, scale)
    trained = toy.train("train.epochs=1", f"train.clip_norm={threshold}", config="toy.yaml", register=False)
    g = known(trained.parameters, scale)
    norm = float(g.norm())
    wanted = g * threshold / norm if threshold and norm > threshold else g
    assert len(found) > 1
    for gradient in found:
        torch.testing.assert_close(gradient.sort().values, wanted.sort().values, rtol=1e-5, atol=1e-7)
    # What is logged is the norm before clipping.
    assert toy.history(trained.run_id)["train/gradient_norm"][0][1] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.5, 3.0, 1e6])
def test_clipping_by_value_bounds_each_component(toy: World, monkeypatch: pytest.MonkeyPatch, threshold: float) -> None:
    found = stepped_with(monkeypatch, 1.0)
    choices = ("train.epochs=1", "train.clip_norm=0", f"train.clip_value={threshold}")
    trained = toy.train(*choices, config="toy.yaml", register=False)
    wanted = known(trained.parameters, 1.0).clamp(-threshold, threshold)
    assert len(found) > 1
    for gradient in found:
        assert torch.equal(gradient.sort().values, wanted.sort().values)


def test_clipping_both_ways_is_refused(world: World) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.clip_value is 0\.5 and train\.clip_norm is 1; .* train\.clip_norm=0"
    ):
        world.train("train.clip_value=0.5")
    assert not list(world.path.glob("runs/*"))


# Scores


def test_scores_are_logged_in_double_precision(toy: World) -> None:
    trained = toy.train(config="toy.yaml", register=False)
    history = toy.history(trained.run_id)
    for name in ("train/mse", "validation/mse", "train/solved"):
        assert [step for step, _ in history[name]] == [0, 1]
    values = [value for name in ("train/mse", "validation/mse") for _, value in history[name]]
    assert any(float(np.float32(value)) != value for value in values)
    assert min(value for _, value in history["validation/mse"]) == trained.scores["validation"]["mse"]


# Epochs


def uneven() -> list[int]:
    """Seeds under which the number of batches differs between epochs, the first one having more, and fewer."""
    found = {}
    lengths = [len(text.split()) for text, _ in texts(400, longest=30)]
    for seed in range(60):
        counts = []
        for epoch in range(4):
            buckets = LengthBuckets(lengths, max_tokens=128, max_rows=16, seed=seed, pool=50)
            buckets.set_epoch(epoch)
            counts.append(len(buckets))
        if counts[0] > min(counts):
            found.setdefault("more", seed)
        if counts[0] < max(counts):
            found.setdefault("fewer", seed)
    return [found["more"], found["fewer"]]


@pytest.mark.parametrize("case", [0, 1], ids=["the first epoch has more", "the first epoch has fewer"])
def test_every_epoch_sees_every_row_once_and_is_validated(
    world: World, monkeypatch: pytest.MonkeyPatch, case: int
) -> None:
    rows = texts(400, longest=30)
    write_csv(world.path / "data.csv", rows)
    write_csv(world.path / "validation.csv", texts(40, seed=77))
    seed = uneven()[case]
    epochs: list[Counter[int]] = []
    batches: list[int] = []
    fetch = Batches.__getitem__

    def watch(self: Batches, chosen: list[int]) -> Any:
        if self.augment:
            if self.buckets.epoch == len(epochs):
                epochs.append(Counter())
                batches.append(0)
            epochs[-1].update(chosen)
            batches[-1] += 1
        return fetch(self, chosen)

    monkeypatch.setattr(Batches, "__getitem__", watch)
    trained = world.train(
        "data.validation=validation.csv", "data.test_share=0", "train.epochs=4", f"train.seed={seed}", register=False
    )
    assert len(set(batches)) > 1, "the case is not the one that this test is about"
    assert epochs == [Counter(range(len(rows)))] * 4
    history = world.history(trained.run_id)
    assert [step for step, _ in history["validation/accuracy"]] == [0, 1, 2, 3]
    assert all(value < 60 for _, value in history["train/seconds"])


def test_mixed_precision_clips_averages_and_learns(world: World) -> None:
    trained = world.train("train.precision=bf16-mixed", "train.clip_norm=0.5", "train.average=0.9", "train.epochs=2")
    series = world.client.get_metric_history(trained.run_id, "train/nll")
    assert series[1].value < series[0].value
