"""Beam search against brute force over all sequences, a slow readable search, and a chain worked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from seqapp.beam_search import Ensemble, Hypotheses, Hypothesis, beam_search, best_of_logits
from seqapp.decoding import (
    Bias,
    MinimumLength,
    NoRepeatNgram,
    Processor,
    RepetitionPenalty,
    UsePenalty,
    forbid,
    generate,
    reorder,
)

EOS = 0
NEVER = -math.inf


@dataclass
class Model:
    """Any distribution over sequences of up to T tokens: a row of logits for every beginning.

    The carry is (how many beginnings are shorter or earlier, the one before, source row), so that rows whose carry is
    not reordered, or only in part, answer wrongly.
    """

    logits: Tensor
    """(sources, beginnings, V)"""
    steps: int = 0

    @property
    def size(self) -> int:
        return self.logits.shape[2]

    def start(self, sources: Sequence[int], copies: int) -> tuple[tuple[Tensor, tuple[Tensor, ...]], Tensor]:
        source = torch.tensor(sources).repeat_interleave(copies)
        return (torch.full_like(source, -1)[:, None], (source,)), torch.full_like(source, self.size)

    def step(self, tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        self.steps += 1
        before, (source,) = carry
        # Beginnings in order: (), (0), (1), .., (0, 0), (0, 1), ..; the token fed first is none of them.
        place = torch.where(before[:, 0] < 0, 0, before[:, 0] * self.size + tokens + 1)
        return self.logits[source, place], (place[:, None], (source,))

    def log_probs(self, source: int, text: Sequence[int]) -> Tensor:
        place = 0
        for token in text:
            place = place * self.size + token + 1
        return self.logits[source, place].log_softmax(0)

    def log_prob(self, source: int, text: Sequence[int]) -> float:
        return float(sum(self.log_probs(source, text[:end])[text[end]].double() for end in range(len(text))))

    def search(
        self, sources: Sequence[int], beam_size: int, max_steps: int | Sequence[int], **keywords: Any
    ) -> Hypotheses:
        carry, tokens = self.start(sources, beam_size)
        return beam_search(self.step, carry, tokens, eos_id=EOS, beam_size=beam_size, max_steps=max_steps, **keywords)


@dataclass
class Bound:
    """The step of a model that is bound to its source rows, and so must be narrowed as the search is."""

    model: Model
    sources: Tensor
    taken: list[list[int]]

    def __call__(self, tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        source = self.sources.repeat_interleave(len(tokens) // len(self.sources))
        logits, (before, _) = self.model.step(tokens, (carry, (source,)))
        return logits, before

    def take(self, sources: Tensor) -> Bound:
        self.taken.append(sources.tolist())
        return Bound(self.model, self.sources[sources], self.taken)

    def join(self, other: Bound, carry: Any, joining: Any) -> tuple[Bound, Any]:
        both = torch.cat([self.sources, other.sources])
        return Bound(self.model, both, self.taken), torch.cat([carry, joining])


def bind(model: Model, sources: Sequence[int], beam_size: int) -> tuple[Bound, Tensor, Tensor]:
    (before, _), tokens = model.start(sources, beam_size)
    return Bound(model, torch.tensor(sources), []), before, tokens


def model_of(size: int, max_steps: int, sources: int = 1, spread: float = 1.5, seed: int = 0) -> Model:
    generator = torch.Generator().manual_seed(seed)
    beginnings = sum(size**length for length in range(max_steps))
    return Model(spread * torch.randn(sources, beginnings, size, generator=generator))


def whole(hypothesis: Hypothesis) -> tuple[int, ...]:
    return (*hypothesis.tokens, *([EOS] if hypothesis.finished else []))


def every_text(size: int, max_steps: int) -> list[tuple[int, ...]]:
    """All texts that eos ended, and all that were cut."""
    others = [token for token in range(size) if token != EOS]
    ended = [(*text, EOS) for length in range(max_steps) for text in itertools.product(others, repeat=length)]
    return ended + list(itertools.product(others, repeat=max_steps))


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize(("size", "max_steps"), [(2, 5), (3, 3), (4, 3)])
def test_a_wide_search_finds_the_best_of_all_texts(size: int, max_steps: int, length_penalty: float) -> None:
    model = model_of(size, max_steps)
    scored = sorted(
        ((model.log_prob(0, text) / len(text) ** length_penalty, text) for text in every_text(size, max_steps)),
        reverse=True,
    )
    beam_size = size**max_steps
    for n_best in (1, 4, beam_size):
        (found,) = model.search([0], beam_size, max_steps, n_best=n_best, length_penalty=length_penalty).rows
        expected = scored[:n_best]
        assert [whole(one) for one in found] == [text for _, text in expected]
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected])


def test_the_hand_made_chain_where_greedy_is_wrong_and_two_beams_are_right() -> None:
    """From the start a has .6 and b .4; after a everything is even, after b eos is nearly sure.

    Texts: a then one of three others .6 / 4 = .15 each; b eos .4 * .97 = .388.
    """
    a, b = 1, 2
    chances = torch.full((5, 4), 0.25)
    chances[4] = torch.tensor([0, 0.6, 0.4, 0])
    chances[b] = torch.tensor([0.97, 0.01, 0.01, 0.01])

    def step(tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return chances.log()[tokens], carry

    def best(beam_size: int, **keywords: Any) -> list[Hypothesis]:
        first = torch.full((beam_size,), 4)
        return beam_search(step, (), first, eos_id=EOS, beam_size=beam_size, max_steps=2, length_penalty=0,
                           **keywords).rows[0]  # fmt: skip

    assert best(1)[0].tokens[0] == a
    assert best(1)[0].log_prob == pytest.approx(math.log(0.15))
    right, second = best(2, n_best=2)
    assert whole(right) == (b, EOS)
    assert right.log_probs == pytest.approx([math.log(0.4), math.log(0.97)], abs=1e-6)
    assert right.log_prob == pytest.approx(math.log(0.388))
    assert second.tokens[0] == a
    assert second.log_prob == pytest.approx(math.log(0.15))


def slow_search(
    model: Model,
    source: int,
    beam_size: int,
    max_steps: int,
    *,
    n_best: int,
    length_penalty: float,
    groups: int = 1,
    diversity: float = 0.0,
    processors: Sequence[Processor] = (),
) -> list[tuple[float, tuple[int, ...]]]:
    """One row, lists of texts, no early end: the definition of the search."""
    W = beam_size // groups
    live: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(groups)]
    ended: set[tuple[int, ...]] = set()
    for _ in range(max_steps):
        taken = [0] * model.size
        for group in range(groups):
            candidates = []
            for score, text in live[group]:
                bent = model.log_probs(source, text)[None]
                for processor in processors:
                    bent = processor(torch.tensor([text]).long().view(1, -1), bent)
                if bent.max() == NEVER:
                    bent[0, EOS] = model.log_probs(source, text)[EOS]
                for token, value in enumerate(bent[0].tolist()):
                    if value > NEVER:
                        candidates.append((score + value - diversity * taken[token], score + value, (*text, token)))
            candidates = sorted(candidates, key=lambda one: -one[0])[: 2 * W]
            ended |= {text for _, _, text in candidates[:W] if text[-1] == EOS}
            live[group] = [(score, text) for _, score, text in candidates if text[-1] != EOS][:W]
            for _, text in live[group]:
                taken[text[-1]] += 1
    texts = ended | {text for group in live for _, text in group}
    return sorted(((model.log_prob(source, text) / len(text) ** length_penalty, text) for text in texts),
                  reverse=True)[:n_best]  # fmt: skip


def variants(size: int) -> list[list[Processor]]:
    return [
        [],
        [forbid([size - 1], size)],
        [NoRepeatNgram(2), MinimumLength(EOS, 2)],
        [RepetitionPenalty(1.7), UsePenalty(0.5, 0.2)],
        [Bias(torch.linspace(-1, 1, size)), NoRepeatNgram(1)],
    ]


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 5),
    max_steps=st.integers(1, 5),
    shape=st.sampled_from([(1, 1), (2, 1), (3, 1), (5, 1), (9, 1), (2, 2), (4, 2), (6, 3), (6, 2)]),
    diversity=st.sampled_from([0.0, 0.7, 50.0]),
    length_penalty=st.sampled_from([0.0, 1.0, 0.5, -1.0]),
    spread=st.sampled_from([0.3, 1.5, 6.0]),
    variant=st.integers(0, 4),
)
def test_the_search_keeps_its_definition_alone_and_in_a_batch(
    seed: int,
    size: int,
    max_steps: int,
    shape: tuple[int, int],
    diversity: float,
    length_penalty: float,
    spread: float,
    variant: int,
) -> None:
    beam_size, groups = shape
    model = model_of(size, max_steps, sources=3, spread=spread, seed=seed)
    processors = variants(size)[variant]
    n_best = min(beam_size, 3)
    keywords: dict[str, Any] = {
        "n_best": n_best, "length_penalty": length_penalty, "groups": groups, "diversity": diversity,
        "processors": processors,
    }  # fmt: skip
    sources = [0, 1, 2, 1]
    together = model.search(sources, beam_size, max_steps, return_tree=True, **keywords)
    assert together.trees is not None
    for row, source in enumerate(sources):
        alone = model.search([source], beam_size, max_steps, return_tree=True, **keywords)
        assert alone.rows[0] == together.rows[row]
        assert alone.trees is not None
        assert alone.trees[0] == together.trees[row]
    for row, source in enumerate(sources[:3]):
        expected = slow_search(model, source, beam_size, max_steps, **keywords)
        found = together.rows[row]
        assert [whole(one) for one in found] == [text for _, text in expected]
        for one in found:
            assert one.log_prob == pytest.approx(model.log_prob(source, whole(one)), abs=1e-5)
            assert one.log_prob == pytest.approx(sum(one.log_probs), abs=1e-6)
            assert one.score == pytest.approx(one.log_prob / len(whole(one)) ** length_penalty)
            if variant < 3:
                assert one.search_score == pytest.approx(one.log_prob, abs=1e-4)
        assert len({whole(one) for one in found}) == len(found)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_one_beam_ranked_by_log_probability_is_greedy(seed: int) -> None:
    model = model_of(4, 5, seed=seed)
    carry, tokens = model.start([0], 1)
    greedy = generate(model.step, carry, tokens, eos_id=EOS, max_steps=5)
    (one,) = model.search([0], 1, 5, length_penalty=0).rows[0]
    assert list(whole(one)) == greedy.tokens[0].tolist()
    assert one.log_probs == pytest.approx(greedy.log_probs[0].tolist(), abs=1e-6)


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_a_beam_goes_on_beside_its_end(beam_size: int) -> None:
    for seed in range(20):
        model = model_of(4, 5, seed=seed)
        expected = slow_search(model, 0, beam_size, 5, n_best=1, length_penalty=2.0)
        (found,) = model.search([0], beam_size, 5, length_penalty=2.0).rows
        assert [whole(one) for one in found] == [text for _, text in expected]


def test_the_first_group_searches_as_if_alone_and_the_others_differ() -> None:
    model = model_of(5, 4, seed=3)
    (plain,) = model.search([0], 2, 4, n_best=1).rows[0]
    found = model.search([0], 6, 4, n_best=6, groups=3, diversity=100.0, return_tree=True)
    assert whole(plain) in [whole(one) for one in found.rows[0]]
    assert found.trees is not None
    kept = [node.token for node in found.trees[0][0] if node.kept and not node.finished]
    assert sorted(kept[:4]) == [1, 2, 3, 4]
    same = model.search([0], 6, 4, n_best=6, groups=3)
    assert len({whole(one) for one in same.rows[0]}) == len(same.rows[0])


def test_the_tree_tells_the_whole_search() -> None:
    beam_size, max_steps = 3, 4
    model = model_of(4, max_steps, sources=2, seed=5)
    found = model.search([1, 0], beam_size, max_steps, n_best=3, return_tree=True)
    assert found.trees is not None
    for source, tree, hypotheses in zip([1, 0], found.trees, found.rows, strict=True):
        ended: set[tuple[int, ...]] = set()
        before: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        for place, nodes in enumerate(tree):
            texts = []
            for node in nodes:
                assert place == 0 or (tree[place - 1][node.parent].kept and not tree[place - 1][node.parent].finished)
                text, total = before[node.parent if place else 0]
                texts.append(((*text, node.token), node.total))
                assert node.parent == -1 if place == 0 else node.parent >= 0
                assert node.finished == (node.token == EOS)
                assert node.log_prob == pytest.approx(float(model.log_probs(source, text)[node.token]))
                assert node.total == pytest.approx(total + node.log_prob)
                if node.finished and node.kept:
                    ended.add(texts[-1][0])
            assert [node.total for node in nodes] == sorted((node.total for node in nodes), reverse=True)
            on = [node.kept for node in nodes if not node.finished]
            assert on == sorted(on, reverse=True)
            assert sum(on) <= beam_size
            assert len(nodes) <= 2 * beam_size
            before = texts
        if len(tree) == max_steps:
            ended |= {text for (text, _), node in zip(before, tree[-1], strict=True) if node.kept}
        assert {whole(one) for one in hypotheses} <= ended


def test_the_search_ends_as_soon_as_nothing_better_can_come() -> None:
    sure = torch.zeros(1, sum(3**length for length in range(9)), 3)
    sure[..., EOS] = 8
    model = Model(sure)
    (best,) = model.search([0], 4, 9).rows[0]
    assert whole(best) == (EOS,)
    assert model.steps < 9
    # Ranked by the mean, a live text may still gain until its sum divided by the greatest length is worse.
    model.steps = 0
    model.search([0], 4, 9, length_penalty=0)
    assert model.steps == 1


def test_more_beams_than_tokens() -> None:
    model = model_of(2, 4)
    (found,) = model.search([0], 7, 4, n_best=7).rows
    assert len(found) == 5
    only_eos = Model(torch.zeros(1, 3, 1))
    ((one,),) = only_eos.search([0], 3, 3, n_best=3).rows
    assert whole(one) == (EOS,)
    assert one.log_prob == 0


def test_no_steps_give_the_empty_text() -> None:
    ((first,), (second,)) = model_of(3, 1, sources=2).search([0, 1], 4, 0, n_best=2).rows
    assert first == second == Hypothesis([], [], 0.0, 0.0, 0.0, False)


def test_where_everything_is_barred_the_hypothesis_ends() -> None:
    model = model_of(3, 4)
    (found,) = model.search([0], 4, 4, n_best=4, processors=[NoRepeatNgram(1), MinimumLength(EOS, 9)]).rows
    assert sorted(map(whole, found)) == [(1, 2, EOS), (2, 1, EOS)]
    for one in found:
        assert one.log_prob == pytest.approx(model.log_prob(0, whole(one)))


def test_reorder_takes_rows_of_every_leaf() -> None:
    carry = (torch.arange(3), (torch.arange(6).view(3, 2), ()))
    numbers, (pairs, nothing) = reorder(carry, torch.tensor([2, 0, 2]))
    assert numbers.tolist() == [2, 0, 2]
    assert pairs.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert nothing == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_format_are_searched(dtype: torch.dtype) -> None:
    model = model_of(4, 3, sources=2, spread=4.0)
    other = Model(model.logits.to(dtype))
    for processors in ([], [MinimumLength(EOS, 1)]):
        for found, expected in zip(other.search([0, 1], 3, 3, processors=processors).rows,
                                   model.search([0, 1], 3, 3, processors=processors).rows, strict=True):  # fmt: skip
            assert whole(found[0]) == whole(expected[0])
            assert found[0].log_prob == pytest.approx(expected[0].log_prob, abs=0.1)


def test_nan_is_named() -> None:
    model = model_of(3, 3, sources=2)
    model.logits[1, 0] = math.nan
    with pytest.raises(ValueError, match="NaN for row 2 at step 0"):
        model.search([0, 1], 2, 3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0; 1 or more fits"),
        ({"max_steps": -1}, "max_steps is -1; 0 or more fits"),
        ({"max_steps": [-2]}, "max_steps is -2; 0 or more fits"),
        ({"max_steps": [2, 2]}, "max_steps has 2 numbers for 1 source rows; one each fits"),
        ({"n_best": 0}, "n_best is 0; 1 or more fits"),
        ({"n_best": 5}, "n_best is 5, more than the 4 beams searched; up to 4 fits"),
        ({"length_penalty": math.nan}, "length_penalty is nan; a finite number fits"),
        ({"groups": 0}, "groups is 0; 1 or more fits"),
        ({"groups": 3}, "4 beams cannot be shared by 3 groups; a divisor of 4 fits"),
        ({"diversity": -1.0}, "diversity is -1.0; a finite number from 0 fits"),
        ({"beam_size": 3}, "4 rows are not a multiple of the 3 beams of a source row"),
    ],
)
def test_bad_parameters_are_named(keywords: dict[str, Any], message: str) -> None:
    model = model_of(3, 2)
    carry, tokens = model.start([0], 4)
    call: Callable[..., Hypotheses] = beam_search
    with pytest.raises(ValueError, match=message):
        call(model.step, carry, tokens, **{"eos_id": EOS, "beam_size": 4, "max_steps": 2, **keywords})


def place_of(text: Sequence[int], size: int) -> int:
    place = 0
    for token in text:
        place = place * size + token + 1
    return place


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
def test_a_wide_search_with_a_bonus_and_a_limit_for_each_row_finds_the_best_of_all_texts(
    weight: float, length_penalty: float
) -> None:
    size, limits = 3, [3, 0, 1, 2, 3]
    model = model_of(size, max(limits), sources=len(limits))
    extra = -weight * torch.rand(model.logits.shape[:2])
    beam_size = size ** max(limits)

    def bonus(carry: Any) -> Tensor:
        place, (source,) = carry
        return extra[source, place[:, 0]]

    def score(source: int, text: tuple[int, ...]) -> float:
        if not text:
            return 0.0
        ends = float(extra[source, place_of(text[:-1], size)])
        return model.log_prob(source, text) / len(text) ** length_penalty + ends

    for n_best in (1, 3, beam_size):
        rows = model.search(range(len(limits)), beam_size, limits, n_best=n_best, length_penalty=length_penalty,
                            bonus=bonus).rows  # fmt: skip
        for source, (limit, found) in enumerate(zip(limits, rows, strict=True)):
            expected = sorted(((score(source, text), text) for text in every_text(size, limit)), reverse=True)[:n_best]
            assert [whole(one) for one in found] == [text for _, text in expected]
            assert [one.score for one in found] == pytest.approx([value for value, _ in expected])
            assert [one.log_prob for one in found] == pytest.approx(
                [model.log_prob(source, text) for _, text in expected]
            )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 5),
    limits=st.lists(st.integers(0, 5), min_size=1, max_size=7),
    shape=st.sampled_from([(1, 1), (2, 1), (5, 1), (9, 1), (2, 2), (6, 3), (6, 2)]),
    diversity=st.sampled_from([0.0, 0.7]),
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    spread=st.sampled_from([0.3, 1.5, 6.0]),
    variant=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    weight=st.sampled_from([None, 0.5]),
)
def test_rows_that_end_apart_are_searched_as_if_alone_narrowed_or_not(
    seed: int,
    size: int,
    limits: list[int],
    shape: tuple[int, int],
    diversity: float,
    length_penalty: float,
    spread: float,
    variant: int,
    weight: float | None,
) -> None:
    beam_size, groups = shape
    model = model_of(size, 5, sources=len(limits), spread=spread, seed=seed)

    def bonus(carry: Any) -> Tensor:
        before = carry[0] if isinstance(carry, tuple) else carry
        return -(weight or 0.0) * (before[:, 0] % 3)

    keywords: dict[str, Any] = {
        "n_best": min(beam_size, 2), "length_penalty": length_penalty, "groups": groups, "diversity": diversity,
        "processors": variants(size)[variant],
    }  # fmt: skip
    given = keywords if weight is None else {**keywords, "bonus": bonus}
    sources = range(len(limits))
    whole_batch = model.search(sources, beam_size, limits, **given).rows
    step, carry, tokens = bind(model, sources, beam_size)
    narrowed = beam_search(step, carry, tokens, eos_id=EOS, beam_size=beam_size, max_steps=limits, **given).rows
    for source, limit in enumerate(limits):
        (alone,) = model.search([source], beam_size, limit, **given).rows
        assert whole_batch[source] == alone
        assert narrowed[source] == alone
        if weight is None and limit:
            expected = slow_search(model, source, beam_size, limit, **keywords)
            assert [whole(one) for one in alone] == [text for _, text in expected]


def test_a_step_is_narrowed_to_the_rows_that_are_searched() -> None:
    model = model_of(3, 5, sources=6, spread=0.3)
    step, carry, tokens = bind(model, range(6), 2)
    # Too few to end by themselves: the limits decide.
    beam_search(step, carry, tokens, eos_id=EOS, beam_size=2, max_steps=[5, 1, 2, 5, 4, 4], length_penalty=-4,
                n_best=2, processors=[MinimumLength(EOS, 5)])  # fmt: skip
    assert step.taken == [[0, 2, 3, 4, 5], [0, 2, 3, 4], [0, 1]]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    units=st.one_of(st.integers(1, 3), st.integers(10, 40)),
    beams=st.integers(1, 9),
    size=st.one_of(st.integers(1, 600), st.integers(600, 3000), st.sampled_from([256, 320, 1024, 2048])),
    k=st.integers(1, 18),
    kind=st.sampled_from(["normal", "few values", "mostly -inf", "first beam alone"]),
)
def test_the_best_of_logits_are_the_best_of_all_sums(
    seed: int, units: int, beams: int, size: int, k: int, kind: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(units * beams, size, generator=generator)
    score = torch.randn(units, beams, generator=generator)
    if kind == "few values":
        logits, score = logits.round(), score.round()
    elif kind == "mostly -inf":
        barred = torch.rand(logits.shape, generator=generator) < 0.995
        logits = logits.masked_fill(barred.index_fill_(1, torch.tensor([size - 1]), False), NEVER)
    elif kind == "first beam alone":
        score[:, 1:] = NEVER
    best, places, log_probs = best_of_logits(logits, score, k)
    own = logits.log_softmax(-1).view(units, beams, size)
    sums = (own + score[..., None]).flatten(1)
    assert_close(best, sums.topk(min(k, beams * size)).values, atol=0, rtol=1e-6)
    assert_close(sums.gather(1, places), best, atol=0, rtol=1e-6)
    assert_close(own.flatten(1).gather(1, places), log_probs, atol=0, rtol=1e-6)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@pytest.mark.parametrize("place", [3, 1279, 1299])
def test_the_best_of_logits_show_nan(place: int) -> None:
    logits = torch.randn(6, 1300)
    logits[4, place] = math.nan
    best, places, _ = best_of_logits(logits, torch.zeros(3, 2), 4)
    assert best[2, 0].isnan()
    assert places[2, 0] < 1300
    assert best[:2].isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_an_ensemble_says_the_mean_of_the_probabilities(seed: int) -> None:
    size, limits, beam_size = 4, [5, 1, 3, 2, 5], 3
    one, other = (model_of(size, 5, sources=5, seed=10 * seed + index) for index in range(2))
    mean = Model(((one.logits.softmax(-1) + other.logits.softmax(-1)) / 2).log())

    def search(models: Sequence[Model]) -> list[list[Hypothesis]]:
        bound = [bind(model, range(5), beam_size) for model in models]
        tokens = bound[0][2]
        return beam_search(Ensemble([step for step, _, _ in bound]), tuple(carry for _, carry, _ in bound), tokens,
                           eos_id=EOS, beam_size=beam_size, max_steps=limits, n_best=3).rows  # fmt: skip

    for models, expected in (([one, other], mean), ([one, one], one), ([other, one, one], None)):
        if expected is None:
            expected = Model(((other.logits.softmax(-1) + 2 * one.logits.softmax(-1)) / 3).log())
        for found, wanted in zip(
            search(models), expected.search(range(5), beam_size, limits, n_best=3).rows, strict=True
        ):
            assert [whole(hypothesis) for hypothesis in found] == [whole(hypothesis) for hypothesis in wanted]
            for hypothesis, right in zip(found, wanted, strict=True):
                assert hypothesis.log_probs == pytest.approx(right.log_probs, abs=1e-5)


def test_an_ensemble_of_which_one_is_sure_that_a_token_never_comes() -> None:
    one, other = (torch.tensor([[0.0, NEVER, 0.0]]), torch.tensor([[NEVER, NEVER, 0.0]]))
    steps: list[Any] = [lambda tokens, carry, logits=logits: (logits, carry) for logits in (one, other)]
    log_probs, _ = Ensemble(steps)(torch.tensor([0]), ((), ()))
    assert log_probs.exp()[0].tolist() == pytest.approx([0.25, 0, 0.75])


def test_what_is_not_finite_is_named_by_the_row_it_was_given_as() -> None:
    for value in (math.nan, math.inf):
        model = model_of(3, 4, sources=4, spread=0.1)
        model.logits[3, place_of([1], 3)] = value
        step, carry, tokens = bind(model, range(4), 2)
        with pytest.raises(ValueError, match=r"NaN for row [67] at step 1 "):
            beam_search(step, carry, tokens, eos_id=EOS, beam_size=2, max_steps=[1, 1, 1, 4])
        assert step.taken == [[3]]
    with pytest.raises(ValueError, match="NaN for row 0 at step 0"):
        model_of(3, 3).search([0], 1, 3, processors=[Bias(torch.tensor([math.nan, 0, 0]))])
