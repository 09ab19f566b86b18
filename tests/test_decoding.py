"""Choosing token after token: samplers against their distributions, processors against worked numbers, streams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqapp import decoding
from seqapp.decoding import (
    Bias,
    Chosen,
    MinimumLength,
    NoRepeatNgram,
    OnRows,
    RepetitionPenalty,
    Sample,
    StopStrings,
    UsePenalty,
    forbid,
    generate,
    greedy,
    stream,
    uniform,
)

EOS = 3
NEVER = -math.inf


def table_step(logits: Tensor) -> decoding.StepFn:
    """A first-order chain: logits (V, V), row by last token; the carry counts steps."""

    def step(tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return logits[tokens], carry + 1

    return step


def run(logits: Tensor, start: Sequence[int], max_steps: int = 8, **keywords: Any) -> decoding.Generated:
    tokens = torch.tensor(start)
    return generate(table_step(logits), torch.zeros(len(start)), tokens, eos_id=EOS, max_steps=max_steps, **keywords)


def tensor(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows)


# Samplers


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = tensor([0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0])
    assert greedy(logits).tolist() == [1, 0]
    assert Sample([1, 2], temperature=0)(logits).tolist() == [1, 0]
    assert Sample([1, 2], temperature=torch.zeros(2), top_k=3)(logits).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float) -> None:
    logits = tensor([1.0, 0.0, -1.0, 2.0, NEVER])
    draws = 20_000
    tokens = Sample(range(draws), temperature=temperature)(logits.expand(draws, -1))
    found = tokens.bincount(minlength=5) / draws
    expected = (logits[0] / temperature).softmax(0)
    assert (found - expected).abs().max() < 4 * 0.5 / draws**0.5
    assert found[4] == 0


def test_draws_of_one_row_follow_the_softmax_too() -> None:
    logits = tensor([1.0, 0.0, -1.0])
    sampler = Sample([5])
    found = torch.cat([sampler(logits) for _ in range(4000)]).bincount(minlength=3) / 4000
    assert (found - logits[0].softmax(0)).abs().max() < 4 * 0.5 / 4000**0.5


def weights_of(*shares: float) -> Tensor:
    return torch.tensor([shares])


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        (lambda w: decoding.keep_top_k(w, 2), [0.4, 0, 0.3, 0, 0]),
        (lambda w: decoding.keep_top_k(w, 9), [0.4, 0.1, 0.3, 0.15, 0.05]),
        (lambda w: decoding.keep_top_k(w, torch.tensor([3])), [0.4, 0, 0.3, 0.15, 0]),
        (lambda w: decoding.keep_top_p(w, 0.39), [0.4, 0, 0, 0, 0]),
        (lambda w: decoding.keep_top_p(w, 0.41), [0.4, 0, 0.3, 0, 0]),
        (lambda w: decoding.keep_top_p(w, torch.tensor([0.8])), [0.4, 0, 0.3, 0.15, 0]),
        (lambda w: decoding.keep_top_p(w, 1.0), [0.4, 0.1, 0.3, 0.15, 0.05]),
        (lambda w: decoding.keep_min_p(w, 0.3), [0.4, 0, 0.3, 0.15, 0]),
        (lambda w: decoding.keep_min_p(w, 1.0), [0.4, 0, 0, 0, 0]),
        # The entropy is 1.39 nats; surprises are .92, 2.3, 1.2, 1.9, 3.0: 0.3 is the most typical, then 0.4 and 0.15.
        (lambda w: decoding.keep_typical(w, 0.3), [0, 0, 0.3, 0, 0]),
        (lambda w: decoding.keep_typical(w, 0.6), [0.4, 0, 0.3, 0, 0]),
        (lambda w: decoding.keep_typical(w, 0.8), [0.4, 0, 0.3, 0.15, 0]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_cuts_by_worked_numbers(cut: Callable[[Tensor], Tensor], kept: list[float], scale: float) -> None:
    weights = weights_of(0.4, 0.1, 0.3, 0.15, 0.05)
    assert torch.allclose(cut(weights * scale), weights_of(*kept) * scale)


def test_ties_stay_together() -> None:
    weights = weights_of(0.25, 0.125, 0.25, 0.25, 0.125)
    assert decoding.keep_top_k(weights, 2).tolist() == [[0.25, 0, 0.25, 0.25, 0]]
    assert decoding.keep_top_p(weights, 0.5).tolist() == [[0.25, 0, 0.25, 0.25, 0]]


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_nucleus_of_a_large_vocabulary(spread: float) -> None:
    """Whether it fits the likeliest tokens looked at first or not."""
    weights = (spread * torch.randn(3, 4 * decoding.LIKELIEST)).softmax(1)
    kept = decoding.keep_top_p(weights, 0.9)
    for before, after in zip(weights, kept, strict=True):
        ordered = before.sort(descending=True).values.double()
        count = int((ordered.cumsum(0) < 0.9).sum()) + 1
        assert after.count_nonzero() == count
        assert after.sum() >= 0.9 - 1e-6
        assert after.max() == before.max()


SAMPLERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 1.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical": {"typical_p": 0.6},
    "all": {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_gives_the_same_tokens_alone_as_in_any_batch(name: str) -> None:
    table = 2 * torch.randn(9, 9)
    table[:, EOS] = -1
    seeds, starts = [7, 0, 2**60, 7], [1, 2, 4, 1]
    steps = decoding.BLOCK + 10 if name == "plain" else 30
    together = run(table, starts, steps, sampler=Sample(seeds, **SAMPLERS[name]))
    for row, (seed, start) in enumerate(zip(seeds, starts, strict=True)):
        alone = run(table, [start], steps, sampler=Sample([seed], **SAMPLERS[name]))
        n = int(alone.lengths)
        assert together.lengths[row] == n
        assert together.tokens[row, :n].tolist() == alone.tokens[0].tolist()
        assert together.log_probs[row, :n].tolist() == alone.log_probs[0].tolist()
    assert together.tokens[0].tolist() == together.tokens[3].tolist()


def test_rows_with_parameters_of_their_own_answer_as_alone() -> None:
    table = 2 * torch.randn(9, 9)
    own: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.5, "top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.4, "typical_p": 0.7},
        {},
    ]
    neutral = {"temperature": 1.0, "top_k": 9, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    columns = {name: torch.tensor([row.get(name, value) for row in own]) for name, value in neutral.items()}
    seeds = range(10, 15)
    together = run(table, [1] * 5, 40, sampler=Sample(seeds, **columns))
    for row, keywords in enumerate(own):
        alone = run(table, [1], 40, sampler=Sample([seeds[row]], **keywords))
        assert together.tokens[row, : int(alone.lengths)].tolist() == alone.tokens[0].tolist()


def test_a_very_low_temperature_does_not_overflow() -> None:
    assert Sample([0], temperature=1e-45)(tensor([1.0, 3.0, 2.0])).tolist() == [1]


# Processors


def apply(processor: decoding.Processor, prefix: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    before = logits.clone()
    after = processor(torch.tensor(prefix).long().view(len(logits), -1), logits)
    assert torch.equal(logits, before)
    return after


def test_repetition_penalty_by_worked_numbers() -> None:
    logits = tensor([2.0, -2.0, 1.0, NEVER])
    assert apply(RepetitionPenalty(2.0), [[0, 1, 1, 3]], logits).tolist() == [[1, -4, 1, NEVER]]
    prompt = torch.tensor([[-1, 2]])
    assert apply(RepetitionPenalty(torch.tensor([2.0]), prompt), [[]], logits).tolist() == [[2, -2, 0.5, NEVER]]


def test_use_penalties_by_worked_numbers() -> None:
    logits = tensor([2.0, -2.0, 1.0], [0.0, 0.0, 0.0])
    found = apply(UsePenalty(frequency=0.5, presence=torch.tensor([0.25, 1.0])), [[0, 1, 1], [2, -1, -1]], logits)
    assert found.tolist() == [[1.25, -3.25, 1.0], [0, 0, -1.5]]


def test_bias_forbids_and_favours() -> None:
    assert apply(Bias(torch.tensor([0.0, 1.0, NEVER])), [[]], tensor([1.0, 1.0, 1.0])).tolist() == [[1, 2, NEVER]]
    assert apply(forbid([0, 2], 3), [[]], tensor([1.0, 1.0, 1.0])).tolist() == [[NEVER, 1, NEVER]]


def test_minimum_length_bars_eos() -> None:
    logits = torch.zeros(2, 5)
    found = apply(MinimumLength(EOS, torch.tensor([2, 3])), [[1, 1], [1, 1]], logits)
    assert found[:, EOS].tolist() == [0, NEVER]
    assert found.isfinite().sum() == 9


@given(
    size=st.integers(1, 4),
    prompt=st.lists(st.integers(0, 3), max_size=4),
    prefix=st.lists(st.integers(0, 3), max_size=8),
)
def test_no_ngram_comes_twice(size: int, prompt: list[int], prefix: list[int]) -> None:
    text = prompt + prefix
    grams = {tuple(text[place : place + size]) for place in range(len(text) - size + 1)}
    begun = tuple(text[len(text) - size + 1 :]) if len(text) >= size - 1 else None
    expected = [begun is not None and (*begun, token) in grams for token in range(4)]
    padded = torch.tensor([[-1, -1, *prompt]])
    found = apply(NoRepeatNgram(size, padded), [prefix], torch.zeros(1, 4))
    assert (found == NEVER).tolist() == [expected]


def test_where_everything_is_barred_the_row_ends() -> None:
    table = torch.zeros(6, 6)
    found = run(table, [0, 1], 10, processors=[NoRepeatNgram(1), forbid([0, 1, 2], 6), MinimumLength(EOS, 9)])
    assert found.tokens.tolist() == [[4, 5, 3], [4, 5, 3]]
    assert found.finished.all()
    assert torch.allclose(found.log_probs, torch.full((2, 3), -math.log(6)))
    # Even where the model says that eos cannot come.
    table[:, EOS] = NEVER
    assert run(table, [0], 10, processors=[forbid([0, 1, 2, 4, 5], 6)]).tokens.tolist() == [[EOS]]


def test_log_probs_are_the_models_own_whatever_bends_the_choice() -> None:
    table = torch.randn(7, 7)
    bent: list[decoding.Processor] = [
        RepetitionPenalty(1.5), UsePenalty(0.3, 0.2), forbid([0, 1, 2], 7), NoRepeatNgram(2),
    ]  # fmt: skip
    found = run(table, [0, 1, 2], 12, sampler=Sample([1, 2, 3], temperature=3.0, top_k=5), processors=bent)
    log_probs = table.log_softmax(1)
    for row, start in enumerate([0, 1, 2]):
        text = [start, *found.tokens[row, : int(found.lengths[row])].tolist()]
        expected = torch.stack([log_probs[a, b] for a, b in itertools.pairwise(text)])
        assert torch.equal(found.log_probs[row, : len(expected)], expected)
        assert found.log_probs[row, len(expected) :].count_nonzero() == 0


# Streams


def chain(*path: int, size: int = 6) -> Tensor:
    """Logits by which each token of the path follows the one before."""
    table = torch.zeros(size, size)
    for before, after in itertools.pairwise(path):
        table[before, after] = 5
    return table


def test_a_row_that_ended_stays_ended_and_the_stream_ends_with_the_last() -> None:
    table = chain(0, 1, 2, 4, EOS)
    table[EOS, 5] = 9  # what would come if eos were fed as a token
    found = list(stream(table_step(table), torch.zeros(2), torch.tensor([0, 2]), eos_id=EOS, max_steps=9))
    assert [chosen.tokens.tolist() for chosen in found] == [[1, 4], [2, EOS], [4, EOS], [EOS, EOS]]
    assert [chosen.live.tolist() for chosen in found] == [[True, True], [True, True], [True, False], [True, False]]
    assert [chosen.finished.tolist() for chosen in found][1:] == [[False, True], [False, True], [True, True]]
    assert found[2].log_probs[1] == 0
    collected = run(table, [0, 2], 9)
    assert collected.lengths.tolist() == [4, 2]
    assert collected.tokens.tolist() == [[1, 2, 4, EOS], [4, EOS, EOS, EOS]]


def test_max_steps_cuts() -> None:
    found = run(chain(0, 1, 2, 4, EOS), [0, 2], 2)
    assert found.tokens.tolist() == [[1, 2], [4, EOS]]
    assert found.finished.tolist() == [False, True]
    nothing = run(chain(0, 1), [0, 2], 0)
    assert nothing.tokens.shape == (2, 0)
    assert not nothing.finished.any()


def test_nothing_is_computed_that_nobody_reads() -> None:
    steps = []

    def step(tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        steps.append(tokens.tolist())
        assert torch.is_inference_mode_enabled()
        return chain(0, 1, 2, 4, 5)[tokens], carry

    pieces = stream(step, (), torch.tensor([0]), eos_id=EOS, max_steps=9)
    assert not steps
    next(pieces), next(pieces)
    assert not torch.is_inference_mode_enabled()
    pieces.close()  # type: ignore[attr-defined]
    assert steps == [[0], [1]]


def test_a_consumer_ends_rows() -> None:
    found: list[Chosen] = []
    for chosen in stream(table_step(torch.zeros(6, 6)), torch.zeros(2), torch.tensor([0, 1]), eos_id=EOS, max_steps=9):
        found.append(chosen)
        chosen.stop([0] if len(found) == 2 else [1] if len(found) == 4 else [])
    assert [chosen.tokens.tolist() for chosen in found] == [[0, 0], [0, 0], [EOS, 0], [EOS, 0]]
    assert [chosen.live.tolist() for chosen in found][2] == [False, True]


def test_top_tokens_are_the_models_own() -> None:
    table = torch.randn(6, 6)
    (chosen,) = stream(table_step(table), torch.zeros(1), torch.tensor([2]), eos_id=EOS, max_steps=1,
                       processors=[forbid([0, 1, 2], 6)], top=9)  # fmt: skip
    assert chosen.top is not None
    log_probs, ids = chosen.top
    assert ids.tolist() == [table[2].argsort(descending=True).tolist()]
    assert torch.equal(log_probs, table[2].log_softmax(0)[ids])


def test_nan_is_named_with_row_and_step() -> None:
    table = chain(0, 1, 2)
    table[2, 4] = math.nan
    for sampler in (greedy, Sample([0, 0], top_p=0.5, typical_p=0.5, temperature=0.01)):
        with pytest.raises(ValueError, match="NaN for row 1 at step 1"):
            run(table, [5, 1], sampler=sampler)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Sample([0], temperature=-0.1), "temperature is -0.1; a finite number from 0 fits"),
    (lambda: Sample([0], temperature=math.inf), "temperature is inf"),
    (lambda: Sample([0], temperature=math.nan), "temperature is nan"),
    (lambda: Sample([0, 1], temperature=torch.tensor([1.0, -1.0])), "temperature is -1.0"),
    (lambda: Sample([0], top_k=0), "top_k is 0; 1 or more fits"),
    (lambda: Sample([0], top_p=0.0), "top_p is 0.0; a share above 0, up to 1, fits"),
    (lambda: Sample([0], top_p=1.5), "top_p is 1.5"),
    (lambda: Sample([0], min_p=-0.5), "min_p is -0.5; a share from 0 to 1 fits"),
    (lambda: Sample([0], typical_p=0), "typical_p is 0"),
    (lambda: Sample([-1]), "seed is -1; a whole number from 0 fits"),
    (lambda: Sample([0, 1])(torch.zeros(3, 4)), "3 rows are sampled with 2 seeds; one for each fits"),
    (lambda: RepetitionPenalty(0.0), "repetition_penalty is 0.0; a number above 0 fits"),
    (lambda: UsePenalty(frequency=math.nan), "frequency_penalty is nan; a finite number fits"),
    (lambda: UsePenalty(presence=math.inf), "presence_penalty is inf; a finite number fits"),
    (lambda: NoRepeatNgram(0), "no_repeat_ngram_size is 0; 1 or more fits"),
    (lambda: MinimumLength(EOS, -1), "min_tokens is -1; 0 or more fits"),
    (lambda: forbid([9], 9), "token 9 cannot be forbidden: ids go from 0 to 8"),
    (lambda: run(torch.zeros(4, 4), [0], -1), "max_steps is -1; 0 or more fits"),
    (lambda: stream(table_step(torch.zeros(4, 4)), (), torch.tensor([0]), eos_id=EOS, max_steps=1, top=-1),
     "top is -1; 0 or more fits"),
    (lambda: StopStrings(["a", ""]), "a stop text is empty; at least one character fits"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Stop texts


def cut_by_hand(text: str, stops: Sequence[str]) -> str:
    """The text before the stop text that is complete first, the longest of those that end there."""
    for end in range(len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ending))]
    return text


@settings(max_examples=400)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_texts_against_a_search_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    expected = cut_by_hand(text, stops)
    if len(stops) == 1:
        assert expected == text.partition(stops[0])[0]
    matcher, out = StopStrings(stops), ""
    for count, piece in enumerate(pieces):
        out += matcher.push(piece)
        assert expected.startswith(out)
        # Only what a stop text may begin with is held back.
        so_far = "".join(pieces[: count + 1])
        if not matcher.stopped and out != so_far:
            assert any(stop.startswith(so_far[len(out) :]) for stop in stops)
    assert matcher.stopped == (expected != text)
    assert out + matcher.finish() == expected
    assert matcher.finish() == ""


def test_a_stop_text_over_several_pieces() -> None:
    matcher = StopStrings(["\n\nEnd", "stop"])
    assert [matcher.push(piece) for piece in ["one sto", "ne\n", "\nEn", "d of it", " all"]] == [
        "one ", "stone", "", "", ""
    ]  # fmt: skip
    assert matcher.stopped
    assert matcher.finish() == ""


# Rows that come and go


@given(
    size=st.integers(1, 4),
    prompts=st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=2, max_size=2),
    prefixes=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=2, max_size=2),
)
def test_ngrams_of_rows_that_began_later_are_those_of_the_rows_alone(
    size: int, prompts: list[list[int]], prefixes: list[list[int]]
) -> None:
    def left(rows: list[list[int]]) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[-1] * (width - len(row)) + row for row in rows]).long().view(len(rows), width)

    together = apply(NoRepeatNgram(size, left(prompts)), left(prefixes).tolist(), torch.zeros(2, 3))
    for row in range(2):
        alone = NoRepeatNgram(size, torch.tensor([prompts[row]]).long())
        assert together[row].tolist() == apply(alone, [prefixes[row]], torch.zeros(1, 3))[0].tolist()


def test_processors_of_some_rows_leave_the_others_as_they_are() -> None:
    logits = tensor([2.0, -2.0, 1.0], [0.5, 1.0, 1.5], [3.0, 3.0, 3.0])
    found = apply(
        OnRows(torch.tensor([2, 0]), [Bias(tensor([1.0, 0.0, 0.0], [0.0, 0.0, 5.0])), UsePenalty(frequency=0.5)]),
        [[1, 1], [2, 2], [-1, 0]],
        logits,
    )
    assert found.tolist() == [[2, -3, 6], [0.5, 1, 1.5], [3.5, 3, 3]]


def test_draws_go_on_where_they_stand() -> None:
    table, draws = torch.randn(9), uniform(4)
    whole = Sample([4])
    wanted = [int(whole(table[None])) for _ in range(12)]
    assert [int(Sample([draws])(table[None])) for _ in range(12)] == wanted


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6), st.data())
def test_a_row_grows_as_alone_whoever_comes_and_goes(visits: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """By a step that counts, so that rows which take each other's carry are found out."""
    table = 3 * torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    processors = [UsePenalty(0.5, 0.3), NoRepeatNgram(3)]

    def step(tokens: Tensor, carry: tuple[Tensor, tuple[Tensor]]) -> tuple[Tensor, Any]:
        count, (total,) = carry
        logits = table[tokens] + (count[:, None] * torch.arange(6)).sin() + total.cos()[:, None] * table[0]
        return logits, (count + 1, (total + tokens,))

    def begin(start: int) -> decoding.Growing:
        return decoding.Growing.begin((torch.tensor([0.5]), (torch.tensor([1.0]),)), torch.tensor([start]))

    names: list[int] = []
    inside: decoding.Growing | None = None
    told: dict[int, list[int]] = {}
    for clock in range(15):
        coming = [name for name, (comes, _, _) in enumerate(visits) if comes == clock]
        parts = [begin(visits[name][1]) for name in coming]
        if parts or inside is not None:
            inside = decoding.Growing.join([*parts, *([] if inside is None else [inside])])
            names = coming + names
            for name, token in zip(names, _grown(inside, step, processors), strict=True):
                told.setdefault(name, []).append(token)
            kept = [place for place, name in enumerate(names) if len(told[name]) < visits[name][2]]
            kept = data.draw(st.permutations(kept))
            names, inside = [names[place] for place in kept], inside.take(kept) if kept else None
    for name, (_, start, steps) in enumerate(visits):
        alone = begin(start)
        assert told[name] == [_grown(alone, step, processors)[0] for _ in range(steps)]


def _grown(rows: decoding.Growing, step: decoding.StepFn, processors: Sequence[decoding.Processor]) -> list[int]:
    return rows.step(step, eos_id=EOS, processors=processors).tokens.tolist()


def test_nan_is_told_of_its_row_and_the_others_go_on() -> None:
    table = chain(0, 1, 2)
    table[5] = math.nan
    rows = decoding.Growing.begin((), torch.tensor([0, 5, 1]))
    found = rows.step(lambda tokens, carry: (table[tokens], carry), eos_id=EOS, sampler=Sample([1, 2, 3], top_p=0.5),
                      processors=[UsePenalty(1.0)])  # fmt: skip
    assert found.nan == [1]
    assert found.tokens[[0, 2]].tolist() == [1, 2]
    assert found.log_probs[[0, 2]].isfinite().all()
