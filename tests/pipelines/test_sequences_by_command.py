"""The commands on sequences of symbols and numbers: files, what is wrong with them, sizes beyond any machine."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines import run
from pipelines.data import Data
from seqapp import bundle
from seqapp.data.splits import Splits
from seqapp.data.steps import Steps
from seqapp.errors import DataError
from seqapp.tasks import TASKS, InputError
from tests.pipelines.worlds import Said, World

Seqapp = Callable[..., Said]

CONFIG = """
task: {kind: memory}
model: {kind: in_step, encoder: {kind: lstm, hidden_size: 3}}
data: {kind: parity, length: 6, train: 20, validation: 5, test: 5}
train: {epochs: 1, test: false}
"""
SHORT, LONG = [[0.5]] * 3, [[0.5]] * 60


def write_bundle(path: Path, *, deep: bool = True) -> Path:
    """Numbers in and out; a state that grows tenfold a step, below a layer that refuses infinity or at the top."""
    task = TASKS.build("memory")
    task.prepare([Steps(((0.5,), (1.0,)), ((0.5,), (1.5,)))])
    linear = {"kind": "elman", "hidden_size": 2, "activation": "identity"}
    encoder = {"kind": "stack", "layers": [linear, {"kind": "gru", "hidden_size": 2}]} if deep else linear
    spec = {"kind": "in_step", "reads": "numbers", "answers": "numbers", "encoder": encoder}
    model = task.build_model(spec)
    with torch.no_grad():
        model.get_parameter("encoder.layers.0.W" if deep else "encoder.W").copy_(10 * torch.eye(2))
    resolved = {"task": TASKS.check("memory"), "model": spec}
    return bundle.save(path, task=task, model=model, resolved=resolved, metrics={}, name="runaway")


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(said: Said) -> str:
    assert said.status == 1, said
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 1, said.err
    return said.err


@pytest.mark.parametrize("deep", [True, False])
def test_predict_answers_what_does_not_overflow(tmp_path: Path, seqapp: Seqapp, deep: bool) -> None:
    path = write_bundle(tmp_path / "b", deep=deep)
    file = write_lines(tmp_path / "rows.jsonl", {"inputs": SHORT}, {"inputs": LONG}, {"inputs": SHORT})
    said = seqapp("predict", path, file)
    found = [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
    assert [set(row) for row in found] == [{"line", "at", "outputs"}, {"line", "error"}, {"line", "at", "outputs"}]
    assert "grow without bound" in found[1]["error"]
    assert (said.status, said.err) == (1, "error: 1 row(s) could not be answered; each says why in its line\n")


def test_an_answer_that_is_not_finite_is_no_json(
    tmp_path: Path, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "b")
    record = {"line": 3, "outputs": [[math.nan]]}
    monkeypatch.setattr("pipelines.predict.predict_file", lambda *_, **__: iter([record]))
    said = seqapp("predict", path, "-")
    assert json.loads(said.out) == {"line": 3, "error": "the answer holds a number that is not finite"}
    assert said.status == 1


@pytest.mark.parametrize("deep", [True, False])
def test_evaluate_names_the_file_and_the_row_that_overflows(tmp_path: Path, seqapp: Seqapp, deep: bool) -> None:
    path = write_bundle(tmp_path / "b", deep=deep)
    good, bad = {"inputs": SHORT, "targets": [1.0]}, {"inputs": LONG, "targets": [1.0]}
    file = write_lines(tmp_path / "rows.jsonl", good, bad)
    assert f"{file}: example 2: the network's numbers grow without bound" in refused(
        seqapp("evaluate", path, "--data", file)
    )


def test_evaluate_says_which_figure_is_not_finite(
    tmp_path: Path, seqapp: Seqapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "b")
    file = write_lines(tmp_path / "rows.jsonl", {"inputs": SHORT, "targets": [1.0]})
    monkeypatch.setattr("pipelines.run.metrics.read", lambda _: {"mse": math.inf, "solved": 0.0})
    assert refused(seqapp("evaluate", path, "--data", file)) == f"error: {file}: mse: not finite\n"


def test_evaluate_reads_columns_of_other_names(tmp_path: Path, seqapp: Seqapp) -> None:
    path = write_bundle(tmp_path / "b")
    file = write_lines(tmp_path / "rows.jsonl", {"x": SHORT, "y": [1.0]})
    said = seqapp("evaluate", path, "--data", file, "--column", "inputs=x", "--column", "targets=y")
    assert (said.status, said.err) == (0, "")
    assert json.loads(said.out)["examples"] == 1
    wrong = refused(seqapp("evaluate", path, "--data", file, "--column", "input=x"))
    assert wrong == "error: files of the task 'memory' have no option 'input'; known: inputs, targets, encoding\n"
    for choice in ("inputs", "=x"):
        assert "is not of the form NAME=VALUE" in refused(seqapp("evaluate", path, "--data", file, "--column", choice))


def test_a_null_is_no_empty_cell(tmp_path: Path, seqapp: Seqapp) -> None:
    path = write_bundle(tmp_path / "b")
    file = write_lines(tmp_path / "rows.jsonl", {"inputs": None}, {"inputs": [0.5, None]}, {}, {"inputs": [0.5]})
    said = seqapp("predict", path, file)
    errors = [json.loads(line).get("error") for line in said.out.splitlines()]
    assert errors == [
        "inputs: Input should be a valid list",
        "inputs.1: a step is None; a symbol (text or whole number), a number or a list of numbers fits",
        "inputs: Field required",
        None,
    ]
    lines = file.read_text()
    stdin = [json.loads(line) for line in seqapp("predict", path, stdin=lines.encode()).out.splitlines()]
    assert [row.get("error") for row in stdin] == errors
    (tmp_path / "rows.csv").write_text('id,inputs\n1,\n2,"[0.5]"\n')
    table = [json.loads(line) for line in seqapp("predict", path, tmp_path / "rows.csv").out.splitlines()]
    assert [row.get("error") for row in table] == ["inputs: Field required", None]


# Data


def test_a_symbol_that_only_another_split_holds_is_told_with_the_split(world: World, seqapp: Seqapp) -> None:
    write_lines(world.path / "a.jsonl", *({"inputs": ["a", "b", n], "targets": ["yes"]} for n in (1, 2)))
    data = "{kind: sequences, train: a.jsonl, validation: b.jsonl, test: a.jsonl}"
    world.config("own.yaml", CONFIG.replace("{kind: parity, length: 6, train: 20, validation: 5, test: 5}", data))
    for row, problem in (
        ({"inputs": ["a", "z"], "targets": ["yes"]}, "example 2: no symbol is 'z'; known from training: 1, 2, a, b"),
        ({"inputs": ["a"], "targets": ["no"]}, "targets: no answer is 'no'; known from training: yes"),
    ):
        write_lines(world.path / "b.jsonl", {"inputs": ["b"], "targets": ["yes"]}, row)
        said = refused(seqapp("train", "own.yaml"))
        assert said == f"error: sequences a.jsonl: validation split: {problem}\n"
        assert not list(world.path.glob("runs/*"))


def test_a_split_that_training_does_not_encode_is_told_too() -> None:
    task = TASKS.build("memory")
    known, unknown = Steps(("a",), ("a",)), Steps(("z",), ("a",))
    task.prepare([known])
    sizes = {"batch_tokens": 64, "batch_rows": 8, "seed": 1}
    data = Data(task, Splits("mine", [known], [known], [known, unknown]), **sizes)
    with pytest.raises(DataError, match=r"^mine: test split: example 2: no symbol is 'z'; known from training: a$"):
        data.encode("test")
    with pytest.raises(InputError, match=r"^input 1: no symbol is 'z'"):
        Data(task, Splits("a file", [], [known, unknown]), **sizes)


# Sizes


@pytest.mark.parametrize(
    "choice",
    [
        "model.encoder.hidden_size=10000000000000",
        "model.encoder={kind: tdnn, hidden_size: 2, dilation: 10000000000000}",
        "model.encoder={kind: tdnn, hidden_size: 2, dilation: 10000000000000000000}",
    ],
)
def test_sizes_that_no_machine_has_are_one_sentence(world: World, seqapp: Seqapp, choice: str) -> None:
    world.config("own.yaml", CONFIG)
    said = refused(seqapp("train", "own.yaml", choice))
    assert said.startswith("error: memory does not suffice for the sizes that model says; smaller ones fit")


def test_other_runtime_errors_are_not_taken_for_it(world: World, seqapp: Seqapp, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(run, "train", fail)
    world.config("own.yaml", CONFIG)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        seqapp("train", "own.yaml")


def test_networks_nested_without_bound_are_one_sentence(world: World, seqapp: Seqapp) -> None:
    world.config("own.yaml", CONFIG)
    deep = "{kind: variational, layer: " * 300 + "{kind: lstm, hidden_size: 3}" + "}" * 300
    world.config("own.yaml", CONFIG.replace("{kind: lstm, hidden_size: 3}", deep))
    assert "layer: components stand more than 32 deep inside one another; 32 fit" in refused(
        seqapp("config", "own.yaml")
    )
