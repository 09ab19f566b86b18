"""The long-memory task: what is asked, what the loss sees, pieces that add up to the whole, and a rule learned."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from seqapp import bundle, metrics
from seqapp.data.memory import ROWS, as_steps
from seqapp.data.splits import SOURCES, LabelledText
from seqapp.data.steps import Steps
from seqapp.errors import BundleError, ConfigError, DataError
from seqapp.models.in_step import InStep
from seqapp.nn.recurrent import map_carry
from seqapp.tasks import TASKS, InputError
from seqapp.tasks.memory import Batch, Memory, MemoryInput, MemoryOutput

LSTM = {"kind": "lstm", "hidden_size": 5}
BIRNN = {"kind": "birnn", "layer": LSTM}

# Symbols to symbols at every step, numbers to numbers at the end, symbols that go on with the answer.
EXAMPLES: dict[str, list[Steps]] = {
    "symbols": [
        Steps(("x", 3, "y", 3), (7, None, "yes", 7)),
        Steps(("y",), ("yes",)),
        Steps((3, 3, "x", "y", 3, 3, "x"), (7, None, None, None, "yes", None, None)),
    ],
    "numbers": [
        Steps(((0.5, 1.0), (0.25, 0.0)), (None, (0.5,))),
        Steps(((0.5, 1.0),), ((1.0,),)),
        Steps(((0.1, 0.0), (0.2, 1.0), (0.3, 0.0), (0.4, 1.0), (0.5, 0.0)), (None, None, None, None, (3.0,))),
    ],
    "next": as_steps(ROWS["anbn"](torch.Generator().manual_seed(0), 6, 4), ("a", "b", "end")),
}
OPTIONS: dict[str, dict[str, Any]] = {"symbols": {}, "numbers": {}, "next": {"next_symbol": True}}
kinds = pytest.mark.parametrize("kind", EXAMPLES)


def prepared(kind: str, **options: Any) -> Memory:
    task = TASKS.build({"kind": "memory", **OPTIONS[kind], **options})
    assert isinstance(task, Memory)
    task.prepare(EXAMPLES[kind])
    return task


def spec(kind: str, **options: Any) -> dict[str, Any]:
    numbers = {"reads": "numbers", "answers": "numbers"} if kind == "numbers" else {}
    return {"kind": "in_step", "encoder": LSTM, **numbers, **options}


@functools.cache
def model_for(kind: str) -> InStep:
    torch.manual_seed(3)
    model = prepared(kind).build_model(spec(kind))
    assert isinstance(model, InStep)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.9, 0.9)
    return model.eval()


def batch_of(kind: str, **options: Any) -> tuple[Memory, Batch]:
    task = prepared(kind, **options)
    return task, task.collate(task.encode(EXAMPLES[kind]))


STEPS = {
    "symbols": st.sampled_from(["x", "y", 3]),
    "numbers": st.tuples(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)).map(list),
    "next": st.sampled_from(["a", "b", "end"]),
}


@kinds
@settings(max_examples=25)
@given(data=st.data())
def test_predict_answers_each_input_as_if_alone_and_in_order(kind: str, data: st.DataObject) -> None:
    task, model = prepared(kind), model_for(kind)
    batch = data.draw(st.lists(st.lists(STEPS[kind], min_size=1, max_size=30), max_size=6))
    together = task.predict(model, [MemoryInput(inputs=row) for row in batch])
    assert len(together) == len(batch)
    for row, answer in zip(batch, together, strict=True):
        (alone,) = task.predict(model, [MemoryInput(inputs=row)])
        assert answer.at == ("end" if kind == "numbers" else "every step")
        assert len(answer.outputs) == (1 if kind == "numbers" else len(row))
        if kind == "numbers":
            assert answer.probabilities is None
            assert answer.outputs[0] == pytest.approx(alone.outputs[0], abs=1e-6)
        else:
            assert answer.outputs == alone.outputs
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
            assert len(answer.probabilities or []) == len(row)


def test_many_inputs_in_several_passes_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = prepared("symbols"), model_for("symbols")
    batch = [MemoryInput(inputs=["x", 3, "y"][: 1 + n % 3] * (1 + n % 7)) for n in range(50)]
    whole = task.predict(model, batch)
    monkeypatch.setattr("seqapp.tasks.memory.PREDICT_STEPS", 30)
    passes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(lambda _, given: passes.append(tuple(given[0].shape)))
    parts = task.predict(model, batch)
    handle.remove()
    assert len(passes) > 10
    assert all(rows * size <= 30 for rows, size in passes)
    assert [answer.outputs for answer in parts] == [answer.outputs for answer in whole]
    assert task.predict(model, []) == []


def test_prepare_finds_symbols_channels_and_what_is_asked() -> None:
    symbols, numbers, following = prepared("symbols"), prepared("numbers"), prepared("next")
    assert symbols.fitted.symbols == [3, "x", "y"]
    assert symbols.fitted.classes == [7, "yes"]
    assert symbols.sizes() == {"vocabulary_size": 3, "classes": 2}
    assert not symbols.fitted.at_end
    assert symbols.selection == ("nll", "min")
    assert numbers.sizes() == {"vocabulary_size": 2, "classes": 1}
    assert numbers.fitted.variances == pytest.approx([((0.5 - 1.5) ** 2 + (1 - 1.5) ** 2 + (3 - 1.5) ** 2) / 3])
    assert numbers.fitted.at_end
    assert numbers.selection == ("mse", "min")
    assert following.fitted.symbols == following.fitted.classes == ["a", "b", "end"]
    assert symbols.describe() == "Reads a sequence of 3 symbols and answers one of 2 symbols (7, yes) at every step."
    assert numbers.describe() == "Reads a sequence of 2 number(s) a step and answers 1 number(s) at the end."


@pytest.mark.parametrize(
    ("examples", "options", "problem"),
    [
        ([], {}, "ask for no answer"),
        ([Steps((1, 2), (None, None))], {}, "ask for no answer"),
        ([Steps(("a", (0.5,)), (1, 1))], {}, r"inputs: a step is 'a'; 1 number\(s\) fit"),
        ([Steps(((1.0, 2.0), (0.5,)), (1, 1))], {}, r"inputs: a step has 1 number\(s\): \[0.5\]; 2 fit"),
        ([Steps((1, 2), ((float("nan"),), None))], {}, r"targets: a step is \[nan\]; finite numbers fit"),
        ([Steps(((1.0,), (0.5,)), (1, 1))], {"next_symbol": True}, "next_symbol needs symbols in and out"),
        ([Steps((1, 2), (3, 1))], {"next_symbol": True}, "step 1 asks for 3 but step 2 reads 2; the same symbol fits"),
    ],
)
def test_examples_that_do_not_fit_are_told(examples: list[Steps], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        TASKS.build({"kind": "memory", **options}).prepare(examples)


def test_a_whole_number_among_numbers_is_a_number() -> None:
    task = TASKS.build("memory")
    task.prepare([Steps((1, (0.5,)), (None, 2)), Steps(((0.5,), 2), (None, (1.5,)))])
    assert isinstance(task, Memory)
    assert task.sizes() == {"vocabulary_size": 1, "classes": 1}
    (item,) = task.encode([Steps((1, 2), (None, 2))])
    assert item.inputs.tolist() == [[1], [2]]
    assert item.targets.tolist() == [[0], [2]]


@pytest.mark.parametrize(
    ("kind", "inputs", "problem"),
    [
        ("symbols", [], "the sequence is empty; one step or more fits"),
        ("symbols", ["x", "z"], "no symbol is 'z'; known from training: 3, x, y"),
        ("symbols", [3.0], r"no symbol is 3.0; known"),
        ("symbols", ["3"], r"no symbol is '3'; known"),
        ("symbols", [[3]], r"no symbol is \[3\]; known"),
        ("numbers", [], "the sequence is empty"),
        ("numbers", [[0.5, 1.0], [0.5]], r"a step has 1 number\(s\): \[0.5\]; 2 fit"),
        ("numbers", [0.5], r"a step has 1 number\(s\): \[0.5\]; 2 fit"),
        ("numbers", ["x"], r"a step is 'x'; 2 number\(s\) fit"),
        ("numbers", [[0.5, float("nan")]], r"a step is \[0.5, nan\]; finite numbers fit"),
        ("numbers", [[float("-inf"), 0.0]], r"finite numbers fit"),
        ("numbers", [[1e39, 0.0]], r"finite numbers fit"),
        ("numbers", [[10**400, 0]], r"numbers that a float can hold fit"),
    ],
)
def test_an_input_that_cannot_be_answered_is_told_with_its_index(kind: str, inputs: list[Any], problem: str) -> None:
    task = prepared(kind)
    good = task.as_input(EXAMPLES[kind][0])
    bad = MemoryInput.model_construct(inputs=inputs)
    with pytest.raises(InputError, match=problem) as caught:
        task.predict(model_for(kind), [good, bad, good, bad])
    assert list(caught.value.problems) == [1, 3]


def runaway(deep: bool) -> tuple[Memory, InStep]:
    """A network whose state grows tenfold a step, alone or below another layer, which refuses what is not finite."""
    task = prepared("numbers", loss_at="every")
    linear = {"kind": "elman", "hidden_size": 5, "activation": "identity"}
    encoder = {"kind": "stack", "layers": [linear, LSTM]} if deep else linear
    model = task.build_model(spec("numbers", encoder=encoder))
    assert isinstance(model, InStep)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("encoder.W", "layers.0.W")):
                parameter.copy_(10 * torch.eye(5))
    return task, model.eval()


@pytest.mark.parametrize("deep", [True, False])
def test_a_row_that_overflows_is_told_and_the_others_are_answered(deep: bool) -> None:
    task, model = runaway(deep)
    short, long = MemoryInput(inputs=[[0.5, 1.0]] * 3), MemoryInput(inputs=[[0.5, 1.0]] * 60)
    with pytest.raises(InputError, match=r"grow without bound on this sequence; .* fewer steps fit") as caught:
        task.predict(model, [short, long, short, long])
    assert list(caught.value.problems) == [1, 3]
    (answer,) = task.predict(model, [short])
    assert all(abs(value) < 1e9 for values in answer.outputs for value in values)


def test_a_bad_example_is_told() -> None:
    task = prepared("symbols")
    for example, problem in [
        (Steps(("x", 3), (7,)), "2 inputs and 1 targets"),
        (Steps(("x", 3), (None, None)), "no answer is asked"),
    ]:
        with pytest.raises(InputError, match=f"^input 1: {problem}"):
            task.encode([EXAMPLES["symbols"][0], example])
    with pytest.raises(DataError, match="targets: no answer is 'no'; known from training: 7, yes"):
        task.encode([Steps(("x",), ("no",))])
    with pytest.raises(DataError, match=r"^next_symbol: step 2 asks for 'b' but step 3 reads 'a'"):
        prepared("next").encode([Steps(("end", "a", "a"), (None, "b", None))])
    with pytest.raises(InputError, match="no answer is asked at the last step, which loss_at: end looks at"):
        prepared("symbols", loss_at="end").encode([EXAMPLES["symbols"][2]])


def test_the_loss_is_the_mean_over_answers_and_metrics_are_sums() -> None:
    task, batch = batch_of("symbols")
    model = model_for("symbols")
    assert batch.lengths.tolist() == [4, 1, 7]
    outputs, _ = model(batch.inputs, batch.lengths)
    chances = outputs.log_softmax(-1)
    # (row, step, class): what EXAMPLES asks for.
    wanted = [(0, 0, 0), (0, 2, 1), (0, 3, 0), (1, 0, 1), (2, 0, 0), (2, 4, 1)]
    expected = -sum(chances[place].item() for place in wanted) / 6
    loss, totals = task.loss(model, batch)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    scores = metrics.read(totals)
    right = [outputs[row, step].argmax().item() == answer for row, step, answer in wanted]
    assert scores["nll"] == pytest.approx(expected, abs=1e-6)
    assert scores["accuracy"] == pytest.approx(sum(right) / 6)
    assert scores["solved"] == pytest.approx((all(right[:3]) + right[3] + all(right[4:])) / 3)
    parts: dict[str, metrics.Metric] = {}
    for example in EXAMPLES["symbols"]:
        parts = metrics.add(parts, task.loss(model, task.collate(task.encode([example])))[1])
    assert metrics.read(parts) == pytest.approx(scores, abs=1e-6)


def test_numbers_cost_their_squared_error() -> None:
    task, batch = batch_of("numbers", tolerance=0.5)
    model = model_for("numbers")
    outputs, _ = model(batch.inputs, batch.lengths)
    errors = [outputs[0, 1, 0].item() - 0.5, outputs[1, 0, 0].item() - 1, outputs[2, 4, 0].item() - 3]
    expected = sum(error**2 for error in errors) / 3
    loss, totals = task.loss(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    scores = metrics.read(totals)
    assert scores["mse"] == pytest.approx(expected, rel=1e-5)
    assert scores["relative_mse"] == pytest.approx(expected / task.fitted.variances[0], rel=1e-5)
    assert scores["solved"] == pytest.approx(sum(abs(error) < 0.5 for error in errors) / 3)
    bare, batch = batch_of("numbers", tolerance=None)
    assert set(bare.loss(model, batch)[1]) == {"mse", "relative_mse", "outcomes"}


@pytest.mark.parametrize(("kind", "names"), [("symbols", {"nll", "accuracy", "solved"}),
                                             ("numbers", {"mse", "relative_mse", "solved"})])  # fmt: skip
def test_scores_of_the_last_answer_alone_have_names_of_their_own(kind: str, names: set[str]) -> None:
    examples = [example for example in EXAMPLES[kind] if example.targets[-1] is not None]
    for loss_at, wanted in (("asked", names), ("every", names), ("end", {f"{name}_end" for name in names})):
        task = prepared(kind, loss_at=loss_at)
        _, totals = task.loss(model_for(kind), task.collate(task.encode(examples)))
        assert set(totals) - {"outcomes"} == set(metrics.read(totals)) == wanted
        assert task.selection == (next(name for name in sorted(wanted) if name.startswith(("nll", "mse"))), "min")
        assert wanted <= set(task.titles)
        assert {name for name in wanted if name.startswith(("accuracy", "solved"))} <= set(task.shares)


def test_always_answering_the_mean_has_relative_mse_one() -> None:
    task, batch = batch_of("numbers")
    mean = torch.full((*batch.asked.shape, 1), 1.5)
    assert metrics.read(task._scores(mean, batch))["relative_mse"] == pytest.approx(1)


def test_where_the_loss_looks() -> None:
    examples = [Steps((1, 2, 1, 2), (None, 1, None, 2)), Steps((2, 1), (1, 2))]

    def batch(loss_at: str) -> Batch:
        task = TASKS.build({"kind": "memory", "loss_at": loss_at})
        task.prepare(examples)
        made: Batch = task.collate(task.encode(examples))
        return made

    asked, end, every = batch("asked"), batch("end"), batch("every")
    assert asked.asked.tolist() == asked.trained.tolist() == [[False, True, False, True], [True, True, False, False]]
    assert end.asked.tolist() == end.trained.tolist() == [[False, False, False, True], [False, True, False, False]]
    assert every.asked.tolist() == asked.asked.tolist()
    assert every.trained.tolist() == [[True] * 4, [True, True, False, False]]
    assert every.targets.tolist()[0] == [0, 0, 1, 1]
    assert every.targets.tolist()[1][:2] == [0, 1]
    assert (asked.answers, end.answers, every.answers) == (4, 2, 6)
    task = TASKS.build({"kind": "memory", "loss_at": "end"})
    task.prepare(examples)
    assert isinstance(task, Memory)
    assert task.fitted.at_end
    _, numbers = batch_of("numbers", loss_at="every")
    assert numbers.targets[..., 0].tolist()[2] == [3] * 5
    assert numbers.trained.sum(1).tolist() == [2, 1, 5]


def test_an_input_is_fed_back_where_it_was_the_answer() -> None:
    _, batch = batch_of("next")
    for row, length in enumerate(batch.lengths.tolist()):
        n = length // 2
        assert batch.fed[row].nonzero().flatten().tolist() == [1, *range(n + 2, 2 * n + 1)]
    assert not batch_of("symbols")[1].fed.any()


def test_rows_drawn_as_tensors_make_the_same_batch() -> None:
    for kind in ROWS:
        rows = ROWS[kind](torch.Generator().manual_seed(5), 40, 9)
        names = {"copy": [*range(8), "blank", "go"], "anbn": ["a", "b", "end"]}.get(kind)
        task = TASKS.build({"kind": "memory", "next_symbol": kind == "anbn"})
        assert isinstance(task, Memory)
        examples = as_steps(rows, names)
        task.prepare(examples)
        assert task.sizes() == {"vocabulary_size": rows.vocabulary_size, "classes": rows.classes}
        for one, other in zip(task.batch(rows), task.collate(task.encode(examples)), strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@kinds
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_pieces_add_up_to_the_whole(kind: str, steps: int) -> None:
    task, batch = batch_of(kind)
    model = model_for(kind)
    whole, totals = task.loss(model, batch)
    longest = int(batch.lengths.max())
    carry, loss, added = None, 0.0, {}
    pieces = list(task.chunks(batch, steps))
    assert len(pieces) == -(-longest // steps)
    assert [piece.fresh for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert sum(int(piece.lengths.sum()) for piece in pieces) == int(batch.lengths.sum())
    for piece in pieces:
        assert piece.lengths.tolist() == sorted(piece.lengths.tolist(), reverse=True)
        assert piece.lengths.min() >= 1
        assert piece.inputs.shape[1] == piece.lengths[0] <= steps
        carry = None if piece.fresh else trim(carry, len(piece.lengths))
        part, scores, carry = task.loss_carried(model, piece, carry)
        assert part.requires_grad
        loss += part.item()
        added = metrics.add(added, scores)
    assert loss == pytest.approx(whole.item(), abs=1e-6)
    expected = metrics.read(totals)
    expected.pop("solved")
    assert metrics.read(added) == pytest.approx(expected, abs=1e-6)


def trim(carry: Any, rows: int) -> Any:
    return map_carry(lambda leaf: leaf[:rows].detach(), carry)


@kinds
def test_the_gradient_is_that_of_the_whole_unless_it_is_cut(kind: str) -> None:
    task, batch = batch_of(kind)
    model = model_for(kind)

    def gradients(steps: int | None) -> list[Tensor]:
        model.zero_grad()
        if steps is None:
            task.loss(model, batch)[0].backward()
        else:
            carry = None
            for piece in task.chunks(batch, steps):
                loss, _, carry = task.loss_carried(
                    model, piece, None if piece.fresh else trim(carry, len(piece.lengths))
                )
                loss.backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    whole, longest = gradients(None), int(batch.lengths.max())
    for steps in (longest, longest + 5):
        for one, other in zip(gradients(steps), whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(gradients(1), whole, strict=True))


def test_a_piece_in_which_nothing_is_asked_costs_nothing_and_has_a_gradient() -> None:
    task, batch = batch_of("numbers")
    first = next(task.chunks(batch._replace(lengths=batch.lengths.clamp(min=2)), 1))
    first = first._replace(asked=first.asked & False, trained=first.trained & False)
    loss, scores, _ = task.loss_carried(model_for("numbers"), first, None)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, list(model_for("numbers").parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert metrics.read(scores)["mse"] != metrics.read(scores)["mse"]  # no answer, no mean


def test_an_encoder_that_reads_both_ways_is_not_cut() -> None:
    task, batch = batch_of("symbols")
    model = task.build_model(spec("symbols", encoder=BIRNN))
    task.loss(model, batch)
    with pytest.raises(ConfigError, match=r"train\.truncate: an encoder that reads both ways carries no state"):
        task.loss_carried(model, next(task.chunks(batch, 2)), None)
    with pytest.raises(ConfigError, match=r"train\.truncate: an encoder that reads both ways carries no state"):
        task.check_carries(model)
    task.check_carries(model_for("symbols"))


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("symbols", {"reads": "numbers"}, r"model\.reads: numbers, but the data holds symbols"),
        ("numbers", {"answers": "symbols"}, r"model\.answers: symbols, but the data holds numbers"),
        ("next", {"encoder": BIRNN}, r"model\.encoder: with task\.next_symbol an encoder that reads both ways sees"),
        ("symbols", {"teacher_forcing": "linear"}, r"model\.teacher_forcing: no answer is read again; null fits"),
    ],
)
def test_a_model_that_does_not_fit_is_told(kind: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        prepared(kind).build_model(spec(kind, **options))
    with pytest.raises(ConfigError, match="trains a model of kind 'in_step', not 'classifier'"):
        prepared(kind).build_model({"kind": "classifier", "encoder": LSTM})


@kinds
def test_save_and_restore(kind: str, tmp_path: Path) -> None:
    task = prepared(kind)
    task.save(tmp_path)
    other = TASKS.build({"kind": "memory", **OPTIONS[kind]})
    other.restore(tmp_path)
    given = [task.as_input(example) for example in EXAMPLES[kind]]
    assert other.predict(model_for(kind), given) == task.predict(model_for(kind), given)
    assert other.selection == task.selection
    file = tmp_path / "memory.json"
    content = json.loads(file.read_text())
    damaged: list[Any] = ["", "[]", "[" * 100_000, {}, {**content, "variances": [-1.0]}, {**content, "classes": []},
                          {**content, "symbols": ["a", "a"]}, {**content, "more": 1}]  # fmt: skip
    for bad in damaged:
        file.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        with pytest.raises(BundleError, match=r"memory\.json: "):
            other.restore(tmp_path)
    file.unlink()
    with pytest.raises(BundleError, match=r"memory\.json: not what the task memory writes"):
        other.restore(tmp_path)


@kinds
def test_a_bundle_answers_as_the_model_it_was_made_of(kind: str, tmp_path: Path) -> None:
    task = prepared(kind)
    resolved = {"task": TASKS.check({"kind": "memory", **OPTIONS[kind]}), "model": spec(kind)}
    given = [task.as_input(example) for example in EXAMPLES[kind]]
    bundle.save(tmp_path / "b", task=task, model=model_for(kind), resolved=resolved, metrics={}, name="m", golden=given)
    loaded = bundle.load(tmp_path / "b")
    loaded.check_golden()
    assert loaded.predict(given) == task.predict(model_for(kind), given)


def test_read_examples(tmp_path: Path) -> None:
    task, file = prepared("symbols"), tmp_path / "own.jsonl"
    file.write_text('{"inputs": ["x", 3], "targets": ["yes"]}\n{"i": [3], "targets": [7]}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:2: nothing is called 'inputs'"):
        task.read_examples(file)
    file.write_text('{"inputs": ["x", 3], "targets": ["yes"]}\n')
    assert task.read_examples(file) == [Steps(("x", 3), (None, "yes"))]
    for line, problem in [
        ('{"inputs": ["z"], "targets": [7]}', "no symbol is 'z'; known from training: 3, x, y"),
        ('{"inputs": ["x"], "targets": [8]}', "targets: no answer is 8; known from training: 7, yes"),
    ]:
        file.write_text('{"inputs": ["x"], "targets": [7]}\n' + line)
        with pytest.raises(DataError, match=rf"own\.jsonl:2: {problem}"):
            task.read_examples(file)
    numbers = prepared("numbers")
    file.write_text('{"inputs": [[0.5, 1], [1, NaN]], "targets": [0.5]}')
    with pytest.raises(DataError, match=r"own\.jsonl:1: a step is \[1.0, nan\]; finite numbers fit"):
        numbers.read_examples(file)


def test_wire_types_refuse_what_they_do_not_know() -> None:
    for bad in ({"inputs": [1], "explain": True}, {"inputs": [True]}, {"inputs": [None]}, {"inputs": "ab"}, {}):
        with pytest.raises(ValueError, match="validation error"):
            MemoryInput.model_validate(bad)
    for step, problem in ((None, "a step is None"), ({"a": 1}, "a step is {'a': 1}"), ([], r"a step is \[\]")):
        with pytest.raises(ValidationError, match=rf"{problem}; a symbol") as caught:
            MemoryInput.model_validate({"inputs": [1, step]})
        assert [error["loc"] for error in caught.value.errors()] == [("inputs", 1)]
    given = MemoryInput(inputs=["a", 1, 0.5, [1, 2.5]])
    assert MemoryInput.model_validate_json(given.model_dump_json()) == given
    answer = MemoryOutput(at="end", outputs=["a"], probabilities=[1.0])
    assert MemoryOutput.model_validate_json(answer.model_dump_json()) == answer


def test_the_task_takes_no_other_data() -> None:
    assert TASKS.build("memory").example_type is Steps
    assert not isinstance(LabelledText("a", "b"), Steps)


def fit(task: Memory, model: nn.Module, kind: str, length: int, updates: int, **options: Any) -> None:
    chance = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.02 * min(1.0, 2 * (1 - update / updates))
        if isinstance(model, InStep):
            model.progress = update / updates
        optimizer.zero_grad()
        loss, _ = task.loss(model, task.batch(ROWS[kind](chance, 32, length, **options)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def test_parity_is_learned_without_a_mistake() -> None:
    task = TASKS.build("memory")
    assert isinstance(task, Memory)
    splits = SOURCES.build({"kind": "parity", "length": 20, "train": 50, "validation": 200, "test": 0})
    task.prepare(splits.train)
    model = task.build_model({"kind": "in_step", "encoder": {"kind": "lstm", "hidden_size": 16}})
    fit(task, model, "parity", 20, 300)
    answers = task.predict(model, [task.as_input(example) for example in splits.validation])
    assert all(answer.outputs == list(e.targets) for answer, e in zip(answers, splits.validation, strict=True))


def test_anbn_is_learned_while_training_reads_its_own_symbols() -> None:
    task = TASKS.build({"kind": "memory", "next_symbol": True})
    assert isinstance(task, Memory)
    splits = SOURCES.build({"kind": "anbn", "longest": 5, "validation_longest": 6, "test_longest": 6, "train": 100})
    task.prepare(splits.train)
    model = task.build_model({"kind": "in_step", "encoder": {"kind": "lstm", "hidden_size": 8},
                              "teacher_forcing": {"kind": "linear", "start": 1.0, "end": 0.5}})  # fmt: skip
    fit(task, model, "anbn", 5, 250)
    _, totals = task.loss(model, task.collate(task.encode(splits.train)))
    assert metrics.read(totals)["solved"] == 1


def test_narx_follows_narma_in_its_closed_loop_after_training_in_the_open_one() -> None:
    task = TASKS.build({"kind": "memory", "tolerance": None})
    assert isinstance(task, Memory)
    rows = ROWS["narma"](torch.Generator().manual_seed(2), 60, 40)
    task.prepare(as_steps(rows))
    encoder = {"kind": "narx", "hidden_size": 24, "output_size": 1, "input_delays": 9, "output_delays": 10}
    model = task.build_model({"kind": "in_step", "encoder": encoder, "reads": "numbers", "answers": "numbers"})
    assert isinstance(model, InStep)
    assert model.opens_loop
    batch = task.batch(rows)
    assert batch.open_loop
    fit(task, model, "narma", 40, 250)
    closed = metrics.read(task.loss(model, batch)[1])["relative_mse"]
    opened = metrics.read(task.loss(model.train(), batch)[1])["relative_mse"]
    assert opened < closed < 0.3
    targets = batch.targets.clone()
    targets[:, 20:] = 9
    before, _ = model.teach(batch.inputs, batch.lengths, targets=batch.targets)
    after, _ = model.teach(batch.inputs, batch.lengths, targets=targets)
    assert torch.equal(before[:, :21], after[:, :21])
    assert not torch.equal(before[:, 21], after[:, 21])
    loss, _, carry = 0.0, None, None
    for piece in task.chunks(batch, 7):
        part, _, carry = task.loss_carried(model, piece, carry)
        loss += part.item()
    assert loss == pytest.approx(task.loss(model, batch)[0].item(), rel=1e-4)
