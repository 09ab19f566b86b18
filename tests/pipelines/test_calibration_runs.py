"""What calibration leaves of a run: figures, pictures, the card, the bundle; and that it changes nothing else."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import figures
from pipelines.calibrate import Calibration
from pipelines.card import _honesty
from pipelines.publish import reliabilities
from pipelines.run import Trained
from seqapp import bundle
from seqapp.calibration import Reliability
from tests.pipelines.worlds import CONFIG, Done, Said, World, steady, texts, write_csv

Seqapp = Callable[..., Said]
SCORES = ("ece", "brier", "nll")


def noisy(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of which one in five has the other label."""
    chance = random.Random(seed)
    other = {"negative": "positive", "positive": "negative"}
    return [(text, label if chance.random() < 0.8 else other[label]) for text, label in texts(count, seed=seed)]


@pytest.fixture(scope="module")
def _run(
    make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, Trained, Trained]:
    world = make_world(tmp_path_factory.mktemp("noisy"))
    write_csv(world.path / "data.csv", noisy(300, seed=0))
    with pytest.MonkeyPatch.context() as patch:
        world.enter(patch)
        options = ("train.epochs=4", "model.encoder.hidden_size=16")
        return world, world.train(*options), world.train(*options, "train.calibrate=false", register=False)


@pytest.fixture
def run(_run: tuple[World, Trained, Trained], monkeypatch: pytest.MonkeyPatch) -> tuple[World, Trained, Trained]:
    """A world, a run that calibrates, and one that does not; its folder is the current directory."""
    _run[0].enter(monkeypatch)
    return _run


def metrics_of(world: World, trained: Trained) -> dict[str, float]:
    found: dict[str, float] = world.client.get_run(trained.run_id).data.metrics
    return found


def artifact(world: World, trained: Trained, name: str) -> Path:
    return Path(world.client.download_artifacts(trained.run_id, name))


def test_the_run_tells_temperature_and_errors_before_and_after(run: tuple[World, Trained, Trained]) -> None:
    world, trained, _ = run
    found = metrics_of(world, trained)
    temperature = found["calibration/temperature"]
    assert temperature == json.loads((trained.bundle / "calibration.json").read_text())["temperature"] != 1
    for split in ("validation", "test"):
        for score in SCORES:
            assert found[f"calibration/{split}_{score}_before"] > 0
            assert found[f"calibration/{split}_{score}_after"] > 0
        # The nll that runs are compared by is that of the logits.
        assert found[f"calibration/{split}_nll_before"] == pytest.approx(trained.scores[split]["nll"], abs=1e-6)
    assert found["calibration/validation_nll_after"] < found["calibration/validation_nll_before"]
    record = json.loads((trained.bundle / "metrics.json").read_text())["calibration"]
    assert record == {name.removeprefix("calibration/"): value for name, value in found.items()
                      if name.startswith("calibration/")}  # fmt: skip


def test_without_it_the_run_is_the_same_but_for_the_probabilities(run: tuple[World, Trained, Trained]) -> None:
    world, trained, plain = run
    with_it, without = (
        {name: values for name, values in steady(world.history(one.run_id)).items()
         if not name.startswith(("calibration/", "latency", "peak_memory", "bundle_bytes"))}
        for one in (trained, plain)
    )  # fmt: skip
    assert with_it == without
    assert not [name for name in metrics_of(world, plain) if name.startswith("calibration/")]
    assert not (plain.bundle / "calibration.json").exists()
    assert "## Calibration" not in (plain.bundle / "README.md").read_text()
    assert "Its probabilities are not calibrated." in (plain.bundle / "README.md").read_text()
    old, new = bundle.load(plain.bundle), bundle.load(trained.bundle)
    asked = [old.task.Input(text=text) for text, _ in noisy(20, seed=5)]
    for one, other in zip(old.predict(asked), new.predict(asked), strict=True):
        assert one.label == other.label
        assert one.score != other.score
    old.check_golden()
    new.check_golden()


def test_evaluate_tells_the_error_of_the_answers_that_are_given(
    run: tuple[World, Trained, Trained], seqapp: Seqapp
) -> None:
    world, trained, plain = run
    rows = noisy(80, seed=9)
    write_csv(world.path / "new.csv", rows)
    for one in (trained, plain):
        loaded = bundle.load(one.bundle)
        said = seqapp("evaluate", one.bundle, "--data", "new.csv")
        told = json.loads(said.out)
        answers = loaded.predict([loaded.task.Input(text=text) for text, _ in rows])
        bins: dict[int, list[tuple[float, bool]]] = {}
        for answer, (_, label) in zip(answers, rows, strict=True):
            bins.setdefault(int(answer.score * 15), []).append((answer.score, answer.label == label))
        ece = sum(abs(sum(right - sure for sure, right in held)) for held in bins.values()) / len(rows)
        brier = sum(sum((chance - (name == label)) ** 2 for name, chance in answer.scores.items())
                    for answer, (_, label) in zip(answers, rows, strict=True)) / len(rows)  # fmt: skip
        assert told["ece"] == pytest.approx(ece, abs=1e-5)
        assert told["brier"] == pytest.approx(brier, abs=1e-5)
        assert told["temperature"] == (loaded.task.temperature or 1.0)


def test_the_card_says_how_sure_to_be(run: tuple[World, Trained, Trained]) -> None:
    world, trained, _ = run
    card = (trained.bundle / "README.md").read_text()
    found = metrics_of(world, trained)
    section = card.partition("## Calibration\n")[2].partition("\n## ")[0]
    assert f"temperature {found['calibration/temperature']:.4g} " in section
    cells = [figures.figure(found[f"calibration/test_{score}_{when}"], share=score == "ece")
             for score in SCORES for when in ("before", "after")]  # fmt: skip
    assert f"| test | 30 | {' | '.join(cells)} |" in section
    assert f"it is: {cells[1]} on the test split" in section.replace("\n", " ")
    assert "are calibrated for texts like those" in card


def test_the_diagrams_are_pictures_and_hold_what_was_counted(run: tuple[World, Trained, Trained]) -> None:
    world, trained, _ = run
    for split in ("validation", "test"):
        with Image.open(artifact(world, trained, f"reliability_{split}.png")) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("RGB")).std() > 5


def reliability(classes: int, count: int, temperature: float = 1.0) -> Reliability:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return Reliability.of(logits, torch.randint(classes, (count,), generator=generator), temperature)


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (2, 900), (10, 40), (100, 300)])
def test_bars_are_shares_of_right_answers_and_counts(classes: int, count: int) -> None:
    before, after = reliability(classes, count), reliability(classes, count, 4.0)
    picture = figures.reliability_diagram({"before": before, "after": after}, "one $title")
    picture.canvas.draw()
    upper, lower = picture.axes[:2], picture.axes[2:]
    for part, shares, counts in zip((before, after), upper, lower, strict=True):
        held = part.counts > 0
        assert [bar.get_height() for bar in shares.patches] == pytest.approx((part.right / part.counts)[held].tolist())
        assert [bar.get_height() for bar in counts.patches] == part.counts.tolist()
        assert [bar.get_alpha() for bar in shares.patches] == [1.0 if n >= 10 else 0.3 for n in part.counts[held]]
        first = float(part.counts.nonzero()[0]) / 15
        assert shares.get_xlim()[0] <= first + 1e-9
    assert f"ECE {before.scores()['ece']:.2%}" in upper[0].get_title()


def test_what_could_not_be_fitted_is_said_and_shown_once(done: Done) -> None:
    part = reliability(2, 50)
    calibration = Calibration(None, "all 50 are right", {"validation": part}, {"validation": part})
    told = _honesty(calibration)
    assert "Probabilities are those of the logits as they are.\nNote: all 50 are right." in told
    assert "| split | answers | calibration error | Brier score | nll |" in told
    assert "on the validation split" in told
    (picture,) = reliabilities(calibration, "tiny").values()
    assert len(picture.axes) == 2
    # The tiny texts give their label away, so hardly a validation answer is wrong.
    assert done.client.get_run(done.trained.run_id).data.metrics["calibration/temperature"] == 1
    assert not (done.trained.bundle / "calibration.json").exists()


def test_a_task_without_classes_has_no_calibration(toy: World) -> None:
    trained = toy.train("train.epochs=1", config="toy.yaml", register=False)
    assert not [name for name in metrics_of(toy, trained) if name.startswith("calibration/")]
    assert "Calibration" not in (trained.bundle / "README.md").read_text()


def test_an_option_that_is_no_yes_or_no_is_refused(world: World, seqapp: Seqapp) -> None:
    world.config("odd.yaml", CONFIG.replace("epochs: 3", "calibrate: 2.5, epochs: 3"))
    said: Any = seqapp("train", "odd.yaml")
    assert said.status != 0
    assert "train.calibrate" in said.err
