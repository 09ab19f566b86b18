"""Completions that grow side by side: each is what it is alone, whoever comes, goes, pauses or fails beside it."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqapp import completer
from seqapp.completion import GenerationInput, GenerationOutput, Piece
from seqapp.data.tokenizers import Tokenizer
from seqapp.models.language_model import LanguageModel
from seqapp.tasks import InputError
from seqapp.tasks.generation import Generation
from seqapp.tasks.running import Failed, Said
from tests.test_generation_task import OPTIONS, PARTS, TOKENIZERS, close, joined, writer

TEXT = st.text("the catsodm.", max_size=12)
REQUESTS = st.fixed_dictionaries(
    {"prompt": st.one_of(TEXT, st.just("the cat sat on the mat, and the dog sat too. " * 3))},
    optional={
        "echo": st.booleans(),
        "logprobs": st.integers(0, 3),
        "stop": st.lists(st.text("the ac", min_size=1, max_size=2), max_size=2),
        "logit_bias": st.dictionaries(st.sampled_from(["t", "e", "<eos>"]), st.sampled_from([-9.0, 3.0]), max_size=2),
        "repetition_penalty": st.sampled_from([0.7, 1.4]),
        "frequency_penalty": st.sampled_from([-1.0, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 2.0]),
        "no_repeat_ngram_size": st.integers(0, 3),
    },
)
SAMPLED = st.fixed_dictionaries(
    {"seed": st.integers(0, 5), "max_tokens": st.integers(0, 12), "n": st.integers(1, 4)},
    optional={
        "temperature": st.sampled_from([0.0, 0.0, 0.6, 1.7]),
        "top_k": st.integers(1, 9),
        "top_p": st.sampled_from([0.3, 0.9]),
        "min_p": st.sampled_from([0.1, 0.4]),
        "typical_p": st.sampled_from([0.4, 0.9]),
    },
)
SEARCHED = st.fixed_dictionaries(
    {"beam_size": st.sampled_from([1, 2, 4]), "max_tokens": st.integers(0, 7)},
    optional={"length_penalty": st.sampled_from([0.0, 2.0]), "return_beams": st.booleans()},
)


@st.composite
def inputs(draw: st.DrawFn) -> GenerationInput:
    """Requests of every sort."""
    how = draw(st.one_of(SAMPLED, SAMPLED, SEARCHED))
    return GenerationInput(**draw(REQUESTS), **how, min_tokens=draw(st.integers(0, how["max_tokens"] // 2)))


@st.composite
def visits(draw: st.DrawFn) -> tuple[GenerationInput, int, bool, int | None, tuple[int, int]]:
    """An input, the step it comes at, whether it streams, after how many it goes, and from when to when it pauses."""
    leaves = draw(st.one_of(st.none(), st.none(), st.integers(0, 9)))
    pause = draw(st.integers(0, 9)), draw(st.integers(0, 6))
    return draw(inputs()), draw(st.integers(0, 12)), draw(st.booleans()), leaves, pause


@functools.cache
def alone(text: str) -> GenerationOutput:
    """What an input, given as JSON, is answered by itself."""
    task, model = writer()
    (output,) = task.predict(model, [GenerationInput.model_validate_json(text)])
    return output


def agrees(given: GenerationInput, said: list[Any]) -> None:
    """The whole answer, or its pieces put together, are what the input is answered alone."""
    wanted = alone(given.model_dump_json())
    if isinstance(said[0], GenerationOutput):
        assert close(said[0].model_dump(), wanted.model_dump())
        return
    told = [
        {**one.model_dump(include={"text", "score", "tokens", "finish_reason"}),
         "logprobs": [token.model_dump() for token in one.logprobs or []]}
        for one in wanted.completions
    ]  # fmt: skip
    assert close(joined(said, len(wanted.completions)), told)
    first, *others = said
    assert (first.notes, first.prompt_tokens, first.seed) == (wanted.notes, wanted.prompt_tokens, wanted.seed)
    assert all(piece.prompt_tokens is None for piece in others)


BOUNDS = {"ROWS_AT_ONCE": 5, "TURN": 3, "READ_AT_ONCE": 8, "READ_AT_LEAST": 3, "READ_AT_MOST": 7, "ENCODED_FOR_ONE": 2}
"""What requests of a few tokens reach."""


@contextmanager
def bounded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BOUNDS.items():
            patch.setattr(completer, name, value)
        yield


def run(
    task: Generation, model: LanguageModel, asked: dict[Hashable, GenerationInput], *, stream: bool = False
) -> dict[Hashable, list[Any] | Exception]:
    """What all are told that come together."""
    running = task.running(model)
    told: dict[Hashable, Any] = {key: [] for key in asked}
    for key, one in asked.items():
        running.join(key, one, stream=stream)
    while len(running):
        for said in running.step():
            if isinstance(said, Failed):
                told[said.key] = said.error
            else:
                told[said.key].append(said.value)
    return told


# An input is answered as if it were alone


@settings(max_examples=60)
@given(st.lists(visits(), min_size=1, max_size=6))
def test_each_is_answered_as_alone_whoever_comes_and_goes(
    visits: list[tuple[GenerationInput, int, bool, int | None, tuple[int, int]]],
) -> None:
    task, model = writer()
    for given_, *_ in visits:
        alone(given_.model_dump_json())
    with bounded():
        running = task.running(model)
        said: dict[int, list[Any]] = {index: [] for index in range(len(visits))}
        over: set[int] = set()
        inside: set[int] = set()
        for clock in range(2000):
            for index, (one, comes, streams, goes, (pauses, lasts)) in enumerate(visits):
                if clock == comes:
                    running.join(index, one, stream=streams)
                    inside.add(index)
                if goes is not None and clock == comes + goes:
                    running.leave(index)
                    inside.discard(index)
                    over.add(index)
                if clock in (comes + pauses, comes + pauses + lasts):
                    running.pause(index, paused=clock < comes + pauses + lasts)
            for told in running.step():
                assert isinstance(told, Said)
                assert told.key in inside, "nobody is told of what has left"
                said[told.key].append(told.value)
                if told.last:
                    inside.discard(told.key)
                    over.add(told.key)
                    agrees(visits[told.key][0], said[told.key])
            assert len(running) == len(inside)
            if len(over) == len(visits) and clock > 12:
                break
        assert len(over) == len(visits)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "condition", "at", "encoder"),
    [("byte_bpe", "none", "start", "gru"), ("word", "none", "start", "mingru"), ("character", "class", "start", "lstm"),
     ("character", "features", "every step", "lstm")],
)  # fmt: skip
def test_each_is_answered_as_alone_by_every_sort_of_model(
    kind: str, condition: str, at: str, encoder: str, stream: bool
) -> None:
    task, model = writer(kind, condition, at, encoder)
    given = {"none": [None], "class": ["Greek", "Welsh"], "features": [[0.5, -1.0], [2.0, 0.25]]}[condition]
    asked = {
        (index, place): GenerationInput(**{**fields, "condition": one})
        for index, fields in enumerate(OPTIONS)
        for place, one in enumerate(given)
    }
    told = run(task, model, dict(asked), stream=stream)
    for key, one in asked.items():
        said = told[key]
        assert isinstance(said, list)
        (wanted,) = task.predict(model, [one])
        texts = [piece["text"] for piece in joined(said, one.n)] if stream else [c.text for c in said[0].completions]
        if condition == "none":
            assert texts == [completion.text for completion in wanted.completions]
        scores = [piece["score"] for piece in joined(said, one.n)] if stream else [c.score for c in said[0].completions]
        # Conditions are read in float32.
        assert scores == pytest.approx([c.score for c in wanted.completions], abs=1e-9 if condition == "none" else 1e-4)


@settings(max_examples=40)
@given(
    text=st.lists(st.sampled_from([*PARTS, "cat", "\u03a3", " ", "  ", " the"]), max_size=14).map("".join),
    kind=st.sampled_from(list(TOKENIZERS)),
    most=st.integers(1, 6),
)
def test_a_prompt_encoded_in_pieces_is_the_prompt(text: str, kind: str, most: int) -> None:
    task, model = writer(kind)
    request = completer.Completer(task.tokenizer, model).request(GenerationInput(prompt=text), None)
    assert sum(request.encode(most)) == len(text)
    assert request.encoded == task.tokenizer.encode(text)


# What is computed


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step of a model had."""
    seen: list[int] = []
    made = LanguageModel.steps

    def counted(model: LanguageModel, rows: int) -> Any:
        step = made(model, rows)

        def one(tokens: Tensor, carry: Any) -> Any:
            seen.append(len(tokens))
            return step(tokens, carry)

        return one

    monkeypatch.setattr(LanguageModel, "steps", counted)
    return seen


def long(**fields: Any) -> GenerationInput:
    return GenerationInput(**{"prompt": "the", "seed": 1, "max_tokens": 100, "min_tokens": 100, **fields})


@pytest.mark.parametrize("fields", [{}, {"seed": None, "beam_size": 3}])
def test_nothing_is_computed_for_those_that_left_or_pause(rows: list[int], fields: dict[str, Any]) -> None:
    task, model = writer()
    running = task.running(model)
    width = fields.get("beam_size", 2)
    running.join("a", long(**fields, n=2), stream=True)
    running.join("b", long(**fields, n=2, max_tokens=99, min_tokens=99))
    for _ in range(3):
        running.step()
    assert rows[-1] == 2 * width
    running.leave("b")
    running.leave("b")
    running.step()
    assert rows[-1] == width
    assert len(running) == 1
    if not fields:
        running.pause("a", paused=True)
        counted = len(rows)
        assert running.step() == []
        assert len(rows) == counted
        assert len(running) == 1
        running.pause("a", paused=False)
        assert running.step()
        assert rows[-1] == 2
    running.leave("a")
    counted = len(rows)
    assert running.step() == []
    assert (len(rows), len(running)) == (counted, 0)


def test_those_that_wait_for_a_place_pause_too(rows: list[int]) -> None:
    task, model = writer()
    with bounded():
        running = task.running(model)
        for key in range(4):
            running.join(key, long(n=3), stream=True)
        for _ in range(9):
            running.step()
        assert rows[-1] == completer.ROWS_AT_ONCE
        for key in range(3):
            running.pause(key, paused=True)
        for _ in range(9):
            assert {said.key for said in running.step()} == {3}
            assert rows[-1] == 3
        running.pause(1, paused=False)
        assert {said.key for _ in range(9) for said in running.step()} == {1, 3}


def test_all_share_one_step_of_the_model(rows: list[int]) -> None:
    task, model = writer()
    running = task.running(model)
    mixed = [long(**fields) for fields in (
        {}, {"temperature": 0}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}, {"logprobs": 3}, {"top_k": 3},
        {"min_tokens": 4}, {"repetition_penalty": 2.0}, {"logit_bias": {"a": 1}}, {"n": 3})]  # fmt: skip
    for key, one in enumerate(mixed):
        running.join(key, one)
    running.step()
    assert rows == [12]


def test_weights_are_made_ready_once_for_about_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = writer()
    sizes: list[int] = []
    made = LanguageModel.steps

    def counted(model: LanguageModel, rows: int) -> Any:
        sizes.append(rows)
        return made(model, rows)

    monkeypatch.setattr(LanguageModel, "steps", counted)
    running = task.running(model)
    for key in range(20):
        running.join(key, long(max_tokens=3 + key, min_tokens=0))
        running.step()
    while len(running):
        running.step()
    assert len(sizes) == len(set(sizes)) <= 6


def test_a_long_prompt_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = writer()
    read: list[int] = []
    reads = LanguageModel.read

    def counted(model: LanguageModel, parts: Any, carry: Any) -> Any:
        read.append(len(parts) * max(map(len, parts)))
        return reads(model, parts, carry)

    def scores(x: Tensor, targets: Tensor) -> Tensor:
        scored.append(len(targets))
        return nll(x, targets)

    scored: list[int] = []
    nll = model.head.nll
    monkeypatch.setattr(LanguageModel, "read", counted)
    monkeypatch.setattr(model.head, "nll", scores)
    running = task.running(model)
    running.join("grows", long(), stream=True)
    running.step()
    for number in range(4):
        prompt = "the cat sat on the mat " * 200
        running.join(f"reads {number}", GenerationInput(prompt=prompt, max_tokens=1, seed=0, echo=number == 3,
                                                        logprobs=0))  # fmt: skip
    running.join("short", GenerationInput(prompt="dog", max_tokens=2, seed=0, min_tokens=2))
    told: list[Hashable] = []
    steps = 0
    while len(running) > 1 and steps < 1000:
        steps += 1
        said = running.step()
        assert "grows" in {one.key for one in said} or "grows" in told, "a token a step"
        told += [one.key for one in said if isinstance(one, Said) and one.last]
    assert max(read) <= completer.READ_AT_ONCE
    assert max(scored) == completer.READ_AT_LEAST, "of each there may be as many numbers as tokens in the vocabulary"
    assert told[0] == "short"
    assert steps > 4 * 4600 // completer.READ_AT_ONCE


def test_a_turn_is_several_tokens_long() -> None:
    task, model = writer()
    told: dict[Hashable, list[int]] = {}
    with bounded():
        running = task.running(model)
        for key in range(7):
            running.join(key, long(max_tokens=30, min_tokens=30), stream=True)
        for clock in range(30):
            for said in running.step():
                told.setdefault(said.key, []).append(clock)
    assert len(told) == 7
    for clocks in told.values():
        pauses = [place for place in range(1, len(clocks)) if clocks[place] > clocks[place - 1] + 1]
        assert all(turn >= BOUNDS["TURN"] for turn in map(operator.sub, pauses, [0, *pauses]))


def test_long_completions_let_a_short_one_have_its_turn(rows: list[int]) -> None:
    task, model = writer()
    with bounded():
        _have_turns(task, model, rows)


def _have_turns(task: Generation, model: LanguageModel, rows: list[int]) -> None:
    running = task.running(model)
    for key in range(4):
        running.join(key, long(n=3))
    for _ in range(10):
        running.step()
    assert not running.full
    running.join("short", GenerationInput(prompt="the", seed=3, max_tokens=4, min_tokens=4))
    # Turns of all others before its own, twice.
    for _ in range(24):
        if "short" in (said := [one.key for one in running.step()]):
            break
    assert "short" in said
    assert max(rows) == completer.ROWS_AT_ONCE
    running.join("more", long(n=9))
    assert running.full


# What fails, and whom it fails


def test_a_misfit_is_told_at_the_door_and_touches_nobody() -> None:
    task, model = writer()
    running = task.running(model)
    running.join("good", GenerationInput(**OPTIONS[0]))
    running.step()
    for fields, says in (({"condition": "Greek"}, "condition"), ({"logit_bias": {"zebra": 1}}, "zebra"),
                         ({"beam_size": 60}, "beam_size")):  # fmt: skip
        with pytest.raises(InputError, match=f"input 0: .*{says}"):
            running.join("bad", GenerationInput(**fields))
    assert len(running) == 1
    said: list[Any] = []
    while len(running):
        said += running.step()
    agrees(GenerationInput(**OPTIONS[0]), [said[0].value])


def failing(token: int, how: str) -> LanguageModel:
    """A model that cannot read a token: its numbers are NaN from there on, or it raises."""
    task, model = writer()
    broken = task.build_model({"kind": "language_model", "embedding_size": 6,
                               "encoder": {"kind": "lstm", "hidden_size": 7}}).double().eval()  # fmt: skip
    assert isinstance(broken, LanguageModel)
    broken.load_state_dict(model.state_dict())
    if how == "nan":
        with torch.no_grad():
            broken.embedding.weight[token] = math.nan
    else:
        made, reads = broken.steps, broken.read

        def steps(rows: int) -> Any:
            step = made(rows)

            def one(tokens: Tensor, carry: Any) -> Any:
                if bool((tokens == token).any()):
                    raise RuntimeError("cannot")
                return step(tokens, carry)

            return one

        def read(parts: Any, carry: Any) -> Any:
            if any(token in part for part in parts):
                raise RuntimeError("cannot")
            return reads(parts, carry)

        broken.steps, broken.read = steps, read  # type: ignore[method-assign, assignment]
    return broken


@pytest.mark.parametrize("how", ["nan", "raises"])
@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "the d", "seed": 1},
        {"prompt": "d the", "seed": 1},
        {"prompt": "d the", "seed": 1, "echo": True, "logprobs": 2},
        {"logit_bias": {"d": 100}, "temperature": 0},
        {"logit_bias": {"d": 100}, "beam_size": 2},
        {"logit_bias": {"d": 100}, "beam_size": 2, "logprobs": 2},
        {"prompt": "the d", "beam_size": 2, "n": 2, "max_tokens": 3},
    ],
)
def test_what_fails_for_one_fails_that_one_alone(how: str, bad: dict[str, Any]) -> None:
    task, _ = writer()
    token = task.tokenizer.token_id("d")
    assert token is not None
    model = failing(token, how)
    # What is barred from the token is untouched by it.
    good = [GenerationInput(**{**fields, "prompt": "the cat", "logit_bias": {"d": -100}}) for fields in OPTIONS]
    asked: dict[Hashable, GenerationInput] = dict(enumerate(good[:7]))
    asked["bad"] = GenerationInput(**{"max_tokens": 9, **bad})
    asked |= dict(enumerate(good[7:], 7))
    told = run(task, model, asked)
    assert isinstance(told.pop("bad"), (ValueError, RuntimeError))
    for key, said in told.items():
        assert isinstance(said, list), said
        agrees(asked[key], said)


def test_a_failure_is_raised_by_predict_and_stream() -> None:
    task, _ = writer()
    d = task.tokenizer.token_id("d")
    assert d is not None
    model, request = failing(d, "nan"), GenerationInput(logit_bias={"d": 100}, max_tokens=9, seed=0)
    with pytest.raises(ValueError, match="NaN for token 1 of completion 0"):
        task.predict(model, [request])
    with pytest.raises(ValueError, match="NaN for token 1 of completion 0"):
        list(task.stream(model, request))


# How much work it is


@given(inputs())
def test_effort_counts_tokens_without_encoding(given: GenerationInput) -> None:
    task, model = writer()

    def never(*_: Any) -> Any:
        raise AssertionError("it encodes")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "encode", never)
        effort = task.effort(given)
        longer = task.effort(given.model_copy(update={"prompt": given.prompt + "the cat " * 9}))
        task.running(model).join(0, given)
    assert 1 <= effort < longer
    assert effort >= given.max_tokens * (given.beam_size or given.n)


def test_written_tokens_are_counted_once() -> None:
    task, model = writer()
    for fields in OPTIONS:
        request = GenerationInput(**fields)
        (output,) = task.predict(model, [request])
        pieces = list(task.stream(model, request))
        assert all(isinstance(piece, Piece) for piece in pieces)
        assert task.written(output) == sum(map(task.written, pieces)) == sum(c.tokens for c in output.completions)
