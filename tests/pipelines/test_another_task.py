"""A task that is no text and has no accuracy goes the whole way: trained, logged, registered, asked."""

import json
from collections.abc import Callable
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
from pydantic import BaseModel

from pipelines import run, tracking
from pipelines.card import intervals, network_of
from pipelines.figures import figure, learning_curves
from pipelines.predict import predict
from seqapp import bundle
from seqapp.errors import ConfigError, DataError
from seqapp.metrics import Confusion, Ratio, wilson_interval
from seqapp.references import resolve
from seqapp.tasks import TASKS, InputError
from tests.pipelines.toys import Toy
from tests.pipelines.worlds import Done, Said, World

Seqapp = Callable[..., Said]


def rows_of(said: Said) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.out.splitlines()]


def test_it_is_trained_logged_registered_and_carded(toy: World) -> None:
    trained = toy.train("model.layer={kind: stack, layers: [{kind: gru, hidden_size: 4}]}", config="toy.yaml")
    found = toy.client.get_run(trained.run_id).data
    wanted = {"task": "toy", "network": "stack of gru", "metric": "mse", "direction": "min", "scale": "number"}
    assert {name: found.tags.get(name) for name in wanted} == wanted
    assert found.metrics["best_validation/mse"] == trained.scores["validation"]["mse"]
    assert found.metrics["test/mse"] == trained.scores["test"]["mse"]
    history = toy.history(trained.run_id)
    assert trained.scores["validation"]["mse"] == pytest.approx(min(v for _, v in history["validation/mse"]), rel=1e-6)
    assert "train/nll" not in history
    assert trained.registered is not None
    version = toy.client.get_model_version("toy-toy", "1")
    assert (version.tags["metric"], version.tags["direction"]) == ("mse", "min")
    assert resolve("toy-toy@champion").version == "1"
    card = (trained.bundle / "README.md").read_text()
    assert "| split | series | squared error | solved (95 % interval) |\n|---|---|---|---|\n" in card
    solved = trained.scores["test"]["solved"]
    low, high = wilson_interval(solved * 20, 20)
    line = next(line for line in card.splitlines() if line.startswith("| test |"))
    mse = figure(trained.scores["test"]["mse"])
    assert line == f"| test | 20 | {mse} | {solved:.2%} ({low:.2%} to {high:.2%}) |"
    assert "- validation: 20 series, SHA-256" in card
    assert "covers the choice of series, not of seeds" in card
    assert "`stack of gru`, " in card
    assert "## Limits\n\nIt adds up small numbers only.\n" in card
    assert "text" not in card.partition("## Origin")[0].replace("text_", "")
    bundle.load(trained.bundle).check_golden()


def test_the_card_of_a_text_task_says_what_it_said(done: Done) -> None:
    card = (done.trained.bundle / "README.md").read_text()
    heads = "| split | texts | accuracy (95 % interval) | nll (nats per text) | macro F1 |"
    assert heads in card
    assert "Its probabilities are not calibrated." in card
    values = done.trained.scores["validation"]
    low, high = wilson_interval(values["accuracy"] * 32, 32)
    assert (
        f"| validation | 32 | {values['accuracy']:.2%} ({low:.2%} to {high:.2%}) | "
        f"{values['nll']:.4f} | {values['macro_f1']:.4f} |"
    ) in card


def test_the_logged_model_answers_lists_as_the_bundle_does(toy: World) -> None:
    trained = toy.train("train.epochs=1", config="toy.yaml")
    model = mlflow.pyfunc.load_model("models:/toy-toy@champion")
    # Whole numbers among them, which MLflow would refuse in a column of lists of floats.
    given = [[1, 2, 3], [0.5], [1, 0.25]]
    loaded = bundle.load(trained.bundle)
    wanted = [answer.sums for answer in loaded.predict([loaded.task.Input(values=values) for values in given])]
    assert list(model.predict(pandas.DataFrame({"values": given}))["sums"]) == wanted
    arrays = pandas.DataFrame({"values": [np.array(values, dtype=np.float64) for values in given]})
    assert list(model.predict(arrays)["sums"]) == wanted
    negated = model.predict(pandas.DataFrame({"values": given}), params={"negate": True})
    assert list(negated["sums"]) == [[-value for value in sums] for sums in wanted]
    with pytest.raises(mlflow.exceptions.MlflowException, match="values"):
        model.predict(pandas.DataFrame({"texts": ["no"]}))


def test_the_signature_of_sentiment_is_the_one_it_had() -> None:
    shown = tracking.signature(TASKS.build({"kind": "sentiment"})).to_dict()
    assert {name: value and json.loads(value) for name, value in shown.items()} == {
        "inputs": [{"type": "string", "name": "text", "required": True}],
        "outputs": [
            {"type": "string", "name": "label", "required": True},
            {"type": "double", "name": "score", "required": True},
        ],
        "params": [{"name": "explain", "default": False, "shape": None, "type": "boolean"}],
    }


def test_the_signature_of_lists_and_of_what_cannot_be_said() -> None:
    class Given(BaseModel):
        rows: list[list[float]]
        either: list[int] | list[str]
        symbol: int | str
        count: int
        rate: float
        note: str | None = None
        steps: int = 3

    class Answer(BaseModel):
        rows: list[list[float]]
        symbols: list[int | str]
        scores: dict[str, float]
        label: str
        more: list[str] | None = None

    class Odd(Toy):
        Input, Output = Given, Answer

    shown = tracking.signature(Odd())
    assert [(column.name, str(column.type), column.required) for column in shown.inputs] == [
        ("rows", "Array(Any)", True),
        ("either", "Array(Any)", True),
        ("symbol", "Any", True),
        ("count", "DataType.long", True),
        ("rate", "Any", True),
        ("note", "DataType.string", False),
    ]
    assert [(param.name, str(param.dtype), param.default) for param in shown.params] == [("steps", "DataType.long", 3)]
    assert [(column.name, str(column.type)) for column in shown.outputs] == [
        ("rows", "Array(Array(double))"),
        ("symbols", "Array(Any)"),
        ("label", "DataType.string"),
    ]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"kind": "classifier", "pooling": {"kind": "max"}, "encoder": {"kind": "lstm"}}, "lstm"),
        ({"kind": "in_step", "layer": {"kind": "gru", "hidden_size": 3}}, "gru"),
        ({"kind": "pair", "inner": {"kind": "other", "layer": {"kind": "elman"}}}, "elman"),
        ({"kind": "row", "layers": [{"kind": "lstm"}, {"kind": "gru"}]}, "lstm"),
        ({"kind": "plain", "size": 3}, "plain"),
    ],
)
def test_the_network_of_a_model_is_the_first_it_names(spec: dict[str, object], kind: str) -> None:
    assert network_of(spec) == kind


def test_only_shares_of_whole_examples_have_an_interval() -> None:
    import torch

    task = Toy()
    totals = {
        "accuracy": Ratio("accuracy", torch.tensor(30.0), 60),
        "solved": Ratio("solved", torch.tensor(4.0), 10),
        "mse": Ratio("mse", torch.tensor(4.0), 10),
    }
    assert intervals(task, totals, 10) == {"solved": wilson_interval(4, 10)}
    confusion = Confusion(torch.tensor([[3, 1], [2, 4]]), ("a", "b"))
    assert intervals(task, {"confusion": confusion}, 10) == {"accuracy": wilson_interval(7, 10)}
    assert intervals(task, {}, 0) == {}


@pytest.mark.parametrize(
    ("value", "share", "shown"),
    [(0.5, False, "0.5000"), (0.5, True, "50.00%"), (0.0, False, "0.0000"), (0.01, False, "0.0100"),
     (1.234e-5, False, "1.234e-05"), (-2.0, False, "-2.0000"), (float("nan"), False, "nan")],
)  # fmt: skip
def test_figures_as_a_person_reads_them(value: float, share: bool, shown: str) -> None:
    assert figure(value, share=share) == shown


def test_learning_curves_of_scores_that_both_splits_have() -> None:
    history = {
        "train/mse": [(0, 1.0)],
        "validation/mse": [(0, 2.0)],
        "train/loss": [(0, 1.0)],
        "parameters": [(0, 3.0)],
    }
    assert [axes.get_title() for axes in learning_curves(history, "toy", {"mse": "squared error"}).axes] == [
        "squared error"
    ]
    assert learning_curves({}, "nothing").axes == []


def test_learning_curves_of_scores_that_training_does_not_tell() -> None:
    history = {
        "train/objective": [(0, 2.0), (1, 1.0)],
        "validation/nll": [(0, 2.0), (1, 1.0)],
        "validation/bleu": [(0, 5.0), (1, 6.0)],
        "validation/ter": [(0, 5.0), (1, 4.0)],
        "validation/flat": [(0, 1.0), (1, 1.0)],
    }
    drawn = learning_curves(history, "toy", alone=("nll", "bleu", "flat")).axes
    assert [axes.get_title() for axes in drawn] == ["nll", "bleu"]
    assert [line.get_label() for axes in drawn for line in axes.lines] == ["validation", "validation"]


# The commands


def test_evaluate_gives_what_the_task_measures(toy: World, seqapp: Seqapp) -> None:
    trained = toy.train("train.epochs=1", config="toy.yaml", register=False)
    splits = toy.path / "given.jsonl"
    splits.write_text("".join(json.dumps({"values": [i / 10, 1.0, 0.5]}) + "\n" for i in range(12)))
    said = seqapp("evaluate", trained.bundle, "--data", splits)
    assert said.status == 0, said.err
    figures = json.loads(said.out)
    assert set(figures) == {"model", "data", "examples", "mse", "solved", "solved_interval_95"}
    assert figures["examples"] == 12
    loaded = bundle.load(trained.bundle)
    answers = loaded.predict([loaded.task.Input(values=[i / 10, 1.0, 0.5]) for i in range(12)])
    errors = [(a - b) ** 2 for i, answer in enumerate(answers)
              for a, b in zip(answer.sums, np.cumsum([i / 10, 1.0, 0.5]), strict=True)]  # fmt: skip
    assert figures["mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    said = seqapp("evaluate", trained.bundle, "--data", splits, "--text", "body")
    assert said.err == "error: files of the task 'toy' have no option 'text'; known: encoding\n"
    with pytest.raises(ConfigError, match="known: encoding"):
        run.evaluate(loaded, splits, label="x")
    splits.write_text('{"values": [1]}\n{"values": []}\n')
    with pytest.raises(DataError, match=r"given\.jsonl: example 2: no numbers"):
        run.evaluate(loaded, splits)


GIVEN = [
    {"values": [1, 2.5], "id": 7},
    {"values": ["x", None, 2, {}, []]},
    {"values": []},
    {"body": [1]},
    {"values": [0.25], "negate": True},
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "stdin"])
def test_predict_reads_the_fields_of_the_input(toy: World, seqapp: Seqapp, kind: str) -> None:
    trained = toy.train("train.epochs=1", config="toy.yaml", register=False)
    content = "".join(json.dumps(row) + "\n" for row in GIVEN)
    if kind == "csv":
        cells = [[json.dumps(row["values"]) if "values" in row else "", str(row.get("negate", ""))] for row in GIVEN]
        quoted = ['{},"{}",{}\n'.format(i, a.replace('"', '""'), b) for i, (a, b) in enumerate(cells)]
        content = "id,values,negate\n" + "".join(quoted)
    file = toy.path / f"given.{kind}"
    file.write_text(content)
    said = seqapp("predict", trained.bundle, *([] if kind == "stdin" else [file]),
                  stdin=content.encode() if kind == "stdin" else b"")  # fmt: skip
    found = rows_of(said)
    assert said.status == 1
    assert "3 row(s) could not be answered" in said.err
    assert [row["line"] for row in found] == [i + (2 if kind == "csv" else 1) for i in range(5)]
    loaded = bundle.load(trained.bundle)
    good = [loaded.task.Input(values=[1, 2.5]), loaded.task.Input(values=[0.25], negate=True)]
    assert [found[0]["sums"], found[4]["sums"]] == [answer.sums for answer in loaded.predict(good)]
    assert str(found[1]["error"]).startswith("values.0: Input should be a valid number")
    assert str(found[1]["error"]).endswith("; and 1 more")
    assert found[2]["error"] == "no numbers"
    assert found[3]["error"] == "values: Field required"


def test_predict_says_which_line_is_no_json(toy: World, seqapp: Seqapp) -> None:
    trained = toy.train("train.epochs=1", config="toy.yaml", register=False)
    found = rows_of(seqapp("predict", trained.bundle, stdin=b'{"values": [1]}\n\n{"values"\n[1]\n'))
    assert [row["line"] for row in found] == [1, 3, 4]
    assert all(row["error"] == "not a JSON object; one with values, negate fits" for row in found[1:])
    said = seqapp("predict", trained.bundle, "--text", "body", stdin=b"{}")
    assert said.err.startswith("error: the task 'toy' takes no text but values, negate; columns of these names fit")


def test_the_baselines_refuse_what_is_no_text(toy: World, seqapp: Seqapp) -> None:
    said = seqapp("baseline", "toy.yaml")
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "error: toy.yaml: the baselines classify, continue or translate texts; the data 'toy' yields Series, "
        "LabelledText, Passage or SentencePair fits\n"
    )


# Many bad rows


def test_predict_asks_once_more_however_many_rows_are_bad(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = bundle.load(done.trained.bundle)
    asked: list[int] = []
    plain = loaded.task.predict

    def count(model: object, inputs: list[object]) -> list[object]:
        asked.append(len(inputs))
        return plain(model, inputs)

    monkeypatch.setattr(loaded.task, "predict", count)
    given = [loaded.task.Input(text="" if place % 3 else "good film") for place in range(90)]
    given.insert(4, InputError(4, "no"))
    answers = list(predict(loaded, given))
    assert asked == [90, 30]
    assert len(answers) == 91
    assert answers[4].problem == "no"
    assert [place for place, answer in enumerate(answers) if isinstance(answer, InputError)] == [
        place for place, one in enumerate(given) if isinstance(one, InputError) or not one.text
    ]
    assert all(answer.index == place for place, answer in enumerate(answers) if isinstance(answer, InputError))


def test_an_input_error_tells_every_bad_input() -> None:
    error = InputError.of({5: "late", 2: "early"})
    assert (error.index, error.problem, str(error)) == (2, "early", "input 2: early")
    assert error.problems == {2: "early", 5: "late"}
    assert InputError(3, "alone").problems == {3: "alone"}


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ({"kind": "narx", "layers": 1}, "narx"),
        ({"kind": "birnn", "layer": {"kind": "lstm"}, "back": None}, "birnn of lstm"),
        ({"kind": "stack", "layers": [{"kind": "gru"}, {"kind": "birnn", "layer": {"kind": "lstm"}}]},
         "stack of gru, birnn of lstm"),
    ],
)  # fmt: skip
def test_a_network_is_called_by_its_kinds(encoder: dict[str, Any], said: str) -> None:
    assert network_of({"kind": "classifier", "encoder": encoder, "pooling": {"kind": "max"}}) == said


def test_a_model_without_a_network_is_called_by_its_own_kind() -> None:
    assert network_of({"kind": "toy", "layer": {"kind": "max"}}) == "toy"
