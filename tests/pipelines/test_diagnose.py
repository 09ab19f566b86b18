"""`seqapp diagnose` from end to end on tiny data, and the recurrent matrices that training logs."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines import diagnose, watch
from pipelines import diagnose_figures as drawn
from pipelines.diagnose import Options
from seqapp import bundle, diagnostics
from seqapp.errors import ConfigError, SeqappError
from seqapp.nn.cells import LSTM
from seqapp.nn.recurrent import RECURRENT
from tests.pipelines.worlds import CONFIG, Done, Said, World

Seqapp = Callable[..., Said]

SMALL = Options(steps=6, rows=3, hidden=4)
PNG = b"\x89PNG"


def artifacts(world: World, run_id: str) -> set[str]:
    return {Path(found.path).name for found in world.client.list_artifacts(run_id, diagnose.FOLDER)}


def refused(said: Said) -> str:
    assert said.status == 1, said
    assert "Traceback" not in said.err
    return said.err


def read(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "diagnosis.json").read_text())
    return found


# fresh networks


def test_fresh_networks_of_every_kind(world: World) -> None:
    progress: list[tuple[str, int, int]] = []
    found = diagnose.diagnose([], options=SMALL, progress=lambda *said: progress.append(said))
    assert found.directory == Path("runs/diagnosis/networks")
    assert [file.name for file in found.files] == ["gradient_flow.png", "clipping.png", "one_tap.png", "diagnosis.json"]
    for file in found.files[:-1]:
        assert file.read_bytes().startswith(PNG)
    record = read(found.directory)
    assert record == json.loads(json.dumps(found.record))
    names = {curve["network"] for curve in record["curves"]}
    assert {"elman", "elman-identity-relu", "elman-small", "elman-large", "lstm-stack", "lstm-stack-residual"} <= names
    assert {kind for kind in RECURRENT if "hidden_size" in RECURRENT[kind].options} <= names
    for key in ("command", "config", "commit", "machine", "seed", "curves"):
        assert key in record
    one_step = next(curve for curve in record["curves"] if curve["network"] == "elman_1step")
    assert one_step["state"]["zero_from"] == 1
    assert one_step["state"]["log10_median"] == [pytest.approx(0, abs=1e-9), None, None, None, None, None]
    # Every network and every part of the work was told of, and each part came to its end.
    assert all(done <= total for _, done, total in progress)
    assert {what for what, done, total in progress if done == total} == {"gradient flow", "clipping", "one tap"}
    (run_id,) = found.run_ids
    assert artifacts(world, run_id) == {file.name for file in found.files}
    run = world.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert world.client.get_experiment(run.info.experiment_id).name == "diagnose"
    assert run.data.params["hidden"] == "4"


def test_the_command_shows_a_table_and_names_its_files(world: World, seqapp: Seqapp) -> None:
    said = seqapp("diagnose", "--networks", "elman-small, lstm", "--steps", "20", "--rows", "2", "--out", "found")
    assert (said.status, said.err) == (0, "")
    assert "elman-small" in said.out
    assert [line for line in said.out.splitlines() if line.startswith("found/")] == [
        f"found/{name}" for name in ("gradient_flow.png", "clipping.png", "one_tap.png", "diagnosis.json")
    ]
    curve = read(world.path / "found")["curves"][0]
    assert curve["state"]["rate_per_step"] == pytest.approx(0.5, abs=0.03)
    assert 8 <= curve["state"]["vanished"] <= 15


def test_a_choice_of_networks_changes_no_curve(world: World) -> None:
    curves = [
        {curve["network"]: curve for curve in diagnose.diagnose([], networks=names, options=SMALL).record["curves"]}
        for names in (["lstm"], ["elman", "lstm", "gru"])
    ]
    assert list(curves[1]) == ["elman", "lstm", "gru"]
    assert curves[0]["lstm"] == curves[1]["lstm"]


def test_starts_are_what_their_names_say() -> None:
    known = diagnose.fresh_networks(SMALL)
    for name, radius in (("elman-small", 0.5), ("elman-large", 1.5), ("elman", 1.0), ("elman-identity-relu", 1.0)):
        layer = RECURRENT.build(known[name].spec, input_size=4)
        start = known[name].start
        if start:
            start(layer)
        assert float(diagnostics.spectral_radius(layer.get_parameter("W").detach())) == pytest.approx(radius, rel=1e-4)


def test_many_curves_are_cut_into_panels() -> None:
    values = torch.zeros(2, 3, dtype=torch.float64)
    curves = [drawn.Curve(str(index), "a", values, values, ("", "")) for index in range(drawn.MOST_CURVES + 1)]
    assert [curve.group for curve in diagnose._grouped(curves)][-2:] == ["a", "a (2)"]


# configs and runs


def test_a_config_on_its_own_data(world: World, seqapp: Seqapp) -> None:
    world.config("tiny.yaml", CONFIG.replace(
        "{kind: lstm, hidden_size: 8}", "{kind: birnn, layer: {kind: lstm, hidden_size: 8}, back: elman}"
    ).replace("back: elman", "back: {kind: elman, hidden_size: 8}"))  # fmt: skip
    said = seqapp("diagnose", "tiny.yaml", "model.embedding_size=6", "train.clip_norm=0.25", "--out", "found")
    assert (said.status, said.err) == (0, "")
    record = read(world.path / "found")
    assert [curve["network"] for curve in record["curves"]] == ["tiny (fresh) encoder.ahead",
                                                               "tiny (fresh) encoder.back"]  # fmt: skip
    assert "training rows" in record["curves"][0]["data"]
    assert record["config"]["tiny"]["model"]["embedding_size"] == 6
    assert record["clip_norm"] == 0.25
    assert set(record["gates"]["tiny encoder.ahead"]["fresh"]) == {"input", "forget", "output"}
    assert "encoder.ahead.forget" in record["recurrent_matrices"]["tiny"]
    for name in ("gradient_flow.png", "clipping.png", "gates.png", "one_tap.png", "diagnosis.json"):
        assert f"found/{name}" in said.out
        assert (world.path / "found" / name).is_file()
    assert not (world.path / "found" / "spectra.png").exists()


@pytest.mark.parametrize("by", ["run", "bundle", "alias"])
def test_a_run_beside_its_start_and_over_training(done: Done, seqapp: Seqapp, tmp_path: Path, by: str) -> None:
    reference = {"run": done.trained.run_id, "bundle": str(done.trained.bundle), "alias": "sentiment-tiny@champion"}[by]
    said = seqapp("diagnose", reference, "--out", tmp_path / "found", "--rows", "4", "--quiet")
    assert (said.status, said.err) == (0, "")
    assert f"in MLflow: run {done.trained.run_id}, folder diagnosis" in said.out
    record = read(tmp_path / "found")
    assert [curve["network"] for curve in record["curves"]] == ["tiny (trained) encoder", "tiny (fresh) encoder"]
    assert all(curve["rows"] == 4 for curve in record["curves"])
    files = {path.name for path in (tmp_path / "found").iterdir()}
    assert "spectra.png" in files
    assert files <= artifacts(done, done.trained.run_id)
    radii = record["recurrent_matrices"]["tiny"]["encoder.forget"]["spectral_radius"]
    assert [epoch for epoch, _ in radii] == [0, 1, 2, 3, 4]
    assert radii[0][1] == pytest.approx(1, abs=1e-4)  # an orthogonal start
    assert radii[4][1] != pytest.approx(1, abs=1e-4)
    assert done.client.get_run(done.trained.run_id).info.status == "FINISHED"


def test_a_bundle_from_elsewhere_is_logged_in_a_run_of_its_own(done: Done, world: World, seqapp: Seqapp) -> None:
    said = seqapp("diagnose", done.path / done.trained.bundle, "--out", "found")
    assert said.status == 0, said.err
    assert "no history of recurrent matrices" in said.out
    assert world.client.get_experiment_by_name("diagnose") is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "lstn"], "no network is called 'lstn'; did you mean 'lstm'?"),
        (["absent.yaml"], "absent.yaml: no such file; there are"),
        (["train.epochs=3"], "train.epochs=3: a choice changes a config, and none is given"),
        (["tiny.yaml", "--networks", "lstm"], "--networks names fresh networks; configs and runs bring their own"),
        (["tiny.yaml", "--out", "data.csv"], "data.csv: is a file; --out takes a directory"),
        (["f" * 32], "f" * 32),
    ],
)
def test_errors_teach(world: World, seqapp: Seqapp, arguments: list[str], message: str) -> None:
    assert message in refused(seqapp("diagnose", *arguments)).replace("\n", " ")


def test_a_run_without_its_data_says_so(done: Done, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch,
                                        tmp_path: Path) -> None:  # fmt: skip
    source = done.path / done.trained.bundle
    monkeypatch.chdir(tmp_path)
    assert "the data it was trained on is needed, and cannot be read" in refused(seqapp("diagnose", source))


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    world: World, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_fresh", lambda *_: pytest.fail("measured first"))
    assert "data.csv/found: cannot be written: Not a directory" in refused(
        seqapp("diagnose", "--out", "data.csv/found")
    )


def test_a_file_that_cannot_be_written_is_told(world: World) -> None:
    (world.path / "found" / "one_tap.png").mkdir(parents=True)
    with pytest.raises(SeqappError, match=r"^found: cannot be written: Is a directory"):
        diagnose.diagnose([], networks=["elman"], out=Path("found"), options=SMALL)


def test_the_data_of_a_backward_layer_is_what_it_reads_first() -> None:
    x = torch.randn(2, 7, 3)
    reading = diagnostics.Reading(LSTM(3, 4), x, torch.tensor([7, 7]), None)
    assert diagnose._subject("back", "group", LSTM(3, 4), reading, SMALL).data == (
        "2 training rows, the first 6 positions that it reads"
    )


def test_a_stepped_layer_is_shown_on_random_input() -> None:
    layer = LSTM(3, 4)
    subject = diagnose._subject("decoder", "group", layer, None, SMALL)
    assert subject.x.shape == (3, 6, 3)
    assert "random" in subject.data


# watching


def test_training_logs_its_recurrent_matrices(done: Done) -> None:
    history = done.history(done.trained.run_id)
    for gate in LSTM.gate_names:
        for what in (watch.RADIUS, watch.SINGULAR):
            points = history[f"recurrent/encoder.{gate}/{what}"]
            assert [step for step, _ in points] == [0, 1, 2, 3]
            assert all(value > 0 for _, value in points)
        radius = [value for _, value in history[f"recurrent/encoder.{gate}/{watch.RADIUS}"]]
        norm = [value for _, value in history[f"recurrent/encoder.{gate}/{watch.SINGULAR}"]]
        assert all(small <= large * (1 + 1e-5) for small, large in zip(radius, norm, strict=True))


def test_what_is_logged_is_what_the_weights_are(done: Done) -> None:
    model = bundle.load(done.trained.bundle).model
    found = watch.measure(model)
    W = model.get_parameter("encoder.W").detach()
    assert found["recurrent/encoder.input/spectral_radius"] == pytest.approx(
        float(torch.linalg.eigvals(W[:8]).abs().max()), rel=1e-4
    )
    assert found["recurrent/encoder.output/largest_singular_value"] == pytest.approx(
        float(torch.linalg.matrix_norm(W[24:], 2)), rel=1e-4
    )


def test_blocks_too_large_to_watch_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.ModuleDict({"encoder": LSTM(3, 4)})
    assert watch.measure(model, largest=3) == {}
    holder: Any = torch.nn.Module()
    holder.model = model
    with caplog.at_level(logging.INFO):
        watch.RecurrentWatch(largest=3).on_fit_start(None, holder)  # type: ignore[arg-type]
    assert "encoder.forget has 4 rows; its eigenvalues are not watched" in caplog.text


def test_diagnosis_needs_a_recurrent_layer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose.diagnostics, "recurrent_layers", lambda model: {})
    with pytest.raises(SeqappError, match="has no recurrent layer, so there is nothing to diagnose"):
        diagnose.diagnose(["tiny.yaml"], options=SMALL)


class Bookish:
    """A task whose rows are books, which it can cut or not."""

    def __init__(self, *, cuts: bool) -> None:
        self.cuts = cuts
        self.calls: list[str] = []

    def chunks(self, batch: Any, steps: int) -> Iterator[str]:
        if not self.cuts:
            raise ConfigError("carries no state")
        yield f"the first {steps}"

    def loss_carried(self, model: Any, piece: str, carry: None) -> None:
        self.calls.append(piece)

    def loss(self, model: Any, batch: Any) -> None:
        self.calls.append("whole")


@pytest.mark.parametrize(
    ("length", "cuts", "read_part"), [(2000, True, "whole"), (2001, True, "the first 2000"), (2001, False, "whole")]
)
def test_a_book_is_read_in_part(length: int, cuts: bool, read_part: str) -> None:
    task: Any = Bookish(cuts=cuts)
    diagnose._run(task, torch.nn.Module(), SimpleNamespace(lengths=torch.tensor([3, length])))
    assert task.calls == [read_part]
