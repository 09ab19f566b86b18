"""Running batches of tasks that answer in one forward pass, or one input after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqapp.data.splits import LabelledText
from seqapp.tasks import InputError
from seqapp.tasks.running import SLACK, Alone, Failed, Passes, Running, Said
from seqapp.tasks.sentiment import Sentiment, SentimentInput

EXAMPLES = [LabelledText("a lovely garden", "positive"), LabelledText("it broke , a bad room", "negative")]
WORDS = ["a", "lovely", "garden", "it", "broke", "bad", "room", ",", "soup"]


@dataclass
class Lengths:
    """A task of integers: n stands for a row of n tokens and is answered by -n; keeps what each pass was of."""

    passes: list[list[int]] = field(default_factory=list)
    reads: list[list[int]] = field(default_factory=list)
    unreadable: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)
    poison: set[int] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)

    def effort(self, given: int) -> int:
        return 1

    def read(self, inputs: Sequence[int]) -> list[int]:
        self.reads.append(list(inputs))
        if set(inputs) & self.unreadable:
            raise RuntimeError("cannot be read")
        if problems := {index: "odd" for index, one in enumerate(inputs) if one in self.bad}:
            raise InputError.of(problems)
        return list(inputs)

    def tokens(self, read: int) -> int:
        return read

    def apart(self, read: int) -> bool:
        return read in self.alone

    def answer(self, model: nn.Module, reads: Sequence[int]) -> list[int]:
        self.passes.append(list(reads))
        if set(reads) & self.poison:
            raise RuntimeError("poison")
        return [-one for one in reads]


def passes(task: Lengths, **bounds: int) -> Any:
    return Passes(task, nn.Identity(), **bounds)


def join(running: Running, inputs: Sequence[Any]) -> None:
    for key, one in enumerate(inputs):
        running.join(key, one)


def run(running: Running) -> dict[Any, Any]:
    """Answers and errors by key; each input ends once, and every step gets on."""
    told: dict[Any, Any] = {}
    steps = 0
    most = 4 * len(running) + 4
    while len(running):
        inside = len(running)
        events = running.step()
        for event in events:
            assert event.key not in told
            told[event.key] = event.value if isinstance(event, Said) else event.error
        assert len(running) == inside - len(events)
        steps += 1
        assert steps < most
    return told


def test_the_oldest_goes_first_with_those_nearest_in_length() -> None:
    task = Lengths()
    running = passes(task, max_tokens=400)
    join(running, [100, 1000, 110, 95, 30, 90, 300, 105])
    run(running)
    # 100 with its neighbours, as many as fit in 400 padded tokens; a row longer than that alone.
    assert task.passes == [[100, 95, 105], [1000], [110, 90], [30], [300]]


@given(
    st.lists(st.integers(1, 60), max_size=30),
    st.integers(1, 200),
    st.integers(1, 8),
    st.sets(st.integers(1, 60)),
    st.sets(st.integers(1, 60)),
)
def test_every_pass_is_bounded_and_begins_with_the_oldest(
    inputs: list[int], tokens: int, rows: int, poison: set[int], alone: set[int]
) -> None:
    task = Lengths(poison=poison, alone=alone)
    running = passes(task, max_tokens=tokens, max_rows=rows)
    join(running, inputs)
    told = run(running)
    assert {key: value for key, value in told.items() if isinstance(value, int)} == {
        key: -one for key, one in enumerate(inputs) if one not in poison
    }
    assert all(str(told[key]) == "poison" for key, one in enumerate(inputs) if one in poison)
    for one in task.passes:
        assert len(one) == 1 or (max(one) * len(one) <= tokens and len(one) <= rows and not alone & set(one))
        assert max(one) <= 4 * (min(one) + SLACK)
    # Nobody is overtaken for ever: a pass holds the oldest of its kind.
    if not poison and not alone:
        left = list(inputs)
        for one in task.passes:
            assert left[0] in one
            for value in one:
                left.remove(value)


def test_all_that_joined_are_read_at_once_and_only_once() -> None:
    task = Lengths()
    running = passes(task, max_tokens=10)
    join(running, [5, 5, 5, 5])
    running.step()
    running.join("late", 5)
    run(running)
    assert task.reads == [[5, 5, 5, 5], [5]]


def test_what_cannot_be_read_fails_alone() -> None:
    task = Lengths(bad={3}, unreadable={7})
    running = passes(task)
    join(running, [1, 7, 3, 2, 3, 7, 4])
    told = run(running)
    assert [told[key] for key in (0, 3, 6)] == [-1, -2, -4]
    assert [(type(told[key]), told[key].index, told[key].problem) for key in (2, 4)] == [(InputError, 0, "odd")] * 2
    assert [type(told[key]) for key in (1, 5)] == [RuntimeError] * 2


def test_a_pass_that_fails_is_taken_apart_while_others_go_on() -> None:
    task = Lengths(poison={2})
    running = passes(task)
    join(running, [1, 2, 3])
    assert running.step() == []
    for key in ("late", "later"):
        running.join(key, 9)
    told = run(running)
    assert (told[0], told[2], str(told[1])) == (-1, -3, "poison")
    assert task.passes == [[1, 2, 3], [1], [9, 9], [2], [3]]


def test_those_that_take_long_take_turns_with_the_others() -> None:
    task = Lengths(alone={100, 101, 102})
    running = passes(task)
    join(running, [100, 101, 102, 7])
    answered = []
    while len(running):
        answered += [event.key for event in running.step()]
    assert answered.index(3) <= 1


@given(st.lists(st.sampled_from(["join", "leave", "step"]), max_size=40), st.randoms(use_true_random=False))
def test_what_has_left_is_neither_computed_nor_told(moves: list[str], chance: random.Random) -> None:
    task = Lengths(alone={4}, poison={5})
    running = passes(task, max_tokens=20)
    inside: set[int] = set()
    key = 0
    for move in moves:
        if move == "join":
            running.join(key, chance.randint(1, 9))
            inside.add(key)
            key += 1
        elif move == "leave" and inside:
            left = chance.choice(sorted(inside))
            running.leave(left)
            running.leave(left)
            inside.remove(left)
        elif move == "step":
            told = {event.key for event in running.step()}
            assert told <= inside
            inside -= told
        assert len(running) == len(inside)
    before = sum(map(len, task.passes))
    for one in inside:
        running.leave(one)
    assert (running.step(), sum(map(len, task.passes)), len(running), running.full) == ([], before, 0, False)


def test_it_is_full_when_some_passes_wait() -> None:
    running = passes(Lengths(), max_tokens=10, max_rows=4)
    for key in range(3):
        running.join(key, 10)
    assert not running.full
    running.step()  # now it is known how long they are
    for key in range(3, 7):
        running.join(key, 10)
    running.step()
    assert running.full
    run(running)
    assert not running.full


@pytest.fixture(scope="module")
def sentiment() -> tuple[Sentiment, nn.Module]:
    task = Sentiment()
    task.prepare(EXAMPLES)
    spec = {"kind": "classifier", "embedding_size": 8, "encoder": {"kind": "lstm", "hidden_size": 8}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task, task.build_model(spec).eval()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.lists(st.sampled_from(WORDS), max_size=60), st.booleans(), st.booleans()), max_size=12))
def test_sentiment_is_answered_as_if_alone(
    sentiment: tuple[Sentiment, nn.Module], asked: list[tuple[list[str], bool, bool]]
) -> None:
    task, model = sentiment
    running = task.running(model)
    told: dict[Any, Any] = {}
    inputs = [SentimentInput(text=" ".join(words), explain=explain) for words, explain, _ in asked]
    for key, (one, (*_, steps)) in enumerate(zip(inputs, asked, strict=True)):
        running.join(key, one)
        if steps:
            told |= {event.key: event for event in running.step()}
    while len(running):
        told |= {event.key: event for event in running.step()}
    for key, one in enumerate(inputs):
        event = told[key]
        if not one.text:
            assert isinstance(event, Failed)
            assert isinstance(event.error, InputError)
            with pytest.raises(InputError, match="the text is empty"):
                task.predict(model, [one])
            continue
        (alone,) = task.predict(model, [one])
        assert event.value.scores == pytest.approx(alone.scores, abs=1e-5)
        assert (event.value.tokens is None) == (not one.explain)
        if one.explain:
            assert alone.tokens is not None
            assert [token.text for token in event.value.tokens] == one.text.split()
            assert [token.weight for token in event.value.tokens] == pytest.approx(
                [token.weight for token in alone.tokens], abs=1e-5
            )


def test_effort_grows_with_the_text_and_the_explanation(sentiment: tuple[Sentiment, nn.Module]) -> None:
    task, _ = sentiment
    short, long = SentimentInput(text="a"), SentimentInput(text="word " * 100)
    assert 1 <= task.effort(short) < task.effort(long)
    assert task.effort(long) == pytest.approx(100, rel=0.2)
    assert task.effort(long) < task.effort(long.model_copy(update={"explain": True}))


def test_a_class_has_no_pieces(sentiment: tuple[Sentiment, nn.Module]) -> None:
    task, model = sentiment
    for running in (task.running(model), Alone(task, model)):
        with pytest.raises(ValueError, match="without stream"):
            running.join(0, SentimentInput(text="a"), stream=True)
        assert len(running) == 0


def test_alone_answers_one_after_the_other_and_one_fails_alone(sentiment: tuple[Sentiment, nn.Module]) -> None:
    task, model = sentiment
    running = Alone(task, model)
    join(running, [SentimentInput(text=text) for text in ("a room", "", "bad soup", "a")])
    running.leave(3)
    order = [running.step()[0] for _ in range(3)]
    assert [event.key for event in order] == [0, 1, 2]
    assert [type(event) for event in order] == [Said, Failed, Said]
    assert running.step() == []
