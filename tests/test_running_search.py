"""Searches and translations that others join and leave: each is answered as if it were alone, and costs no more."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqapp import translation
from seqapp.beam_search import BeamSearch, BoundStep, Ensemble, Found, beam_search
from seqapp.data.tokenizers import EOS
from seqapp.decoding import Bias, MinimumLength, NoRepeatNgram, Processor, RepetitionPenalty, UsePenalty
from seqapp.models.translator import Translator
from seqapp.tasks import InputError
from seqapp.tasks.running import Failed, Running, Said
from seqapp.tasks.translation import Translation
from seqapp.translation import Translating, TranslationInput, limit, search
from tests.test_beam_search import Model, bind, model_of, slow_search, whole
from tests.test_translation_task import OPTIONS, close, translator
from tests.test_translator import CONFIGS, build

STOP, NEVER = 0, -math.inf
"""What ends a text of a table, which is not what ends one of a translator."""


class Arrivals:
    """Source rows that come to a search and go, each at a step of its own.

    Args:
        make: sources -> step, carry, tokens.
        joins: of each source, before which step it comes; those of one step in one block or one by one.
        leaves: of some sources, before which step they go.
        limits: of each.
    """

    def __init__(
        self,
        make: Callable[[Sequence[int]], tuple[Any, Any, Tensor]],
        joins: Sequence[int],
        leaves: dict[int, int],
        limits: Sequence[int],
        *,
        one_by_one: bool = False,
    ) -> None:
        self.make, self.joins, self.leaves, self.limits, self.one_by_one = make, joins, leaves, limits, one_by_one

    def run(self, search: BeamSearch) -> dict[int, Any]:
        """What is told of each."""
        told: dict[int, Any] = {}
        step = 0
        while step <= max(self.joins) or len(search):
            for source, when in self.leaves.items():
                if when == step:
                    search.leave(source)
            block = [source for source, when in enumerate(self.joins) if when == step]
            for some in [[one] for one in block] if self.one_by_one else [block] if block else []:
                search.join(some, *self.make(some), [self.limits[source] for source in some])
            inside = len(search)
            found = search.advance()
            assert len(search) == inside - len(found)
            for source, one in found:
                assert source not in told
                told[source] = one
            step += 1
        return told


def processors_of(variant: int, size: int) -> Callable[[Sequence[int], int], list[Processor]] | None:
    """Keys of sources and the rows of each -> processors, most of which tell the sources apart."""

    def rows(values: Sequence[float], copies: int) -> Tensor:
        return torch.tensor(values).repeat_interleave(copies)

    def made(keys: Sequence[int], copies: int) -> list[Processor]:
        # A source whose number is odd has a prompt, and one of two tokens is shorter than one of three.
        prompt = torch.tensor([[-1, 1, size - 1] if key % 4 == 1 else [1, 1, 1] if key % 2 else [-1, -1, -1]
                               for key in keys]).repeat_interleave(copies, 0)  # fmt: skip
        bias = torch.stack([torch.linspace(-key, key, size) / 3 for key in keys]).repeat_interleave(copies, 0)
        return [
            [MinimumLength(STOP, rows([key % 3 for key in keys], copies).long())],
            [NoRepeatNgram(2, prompt), RepetitionPenalty(rows([1 + key / 5 for key in keys], copies), prompt)],
            [Bias(bias), UsePenalty(rows([key / 4 for key in keys], copies), 0.1), NoRepeatNgram(2)],
        ][variant - 1]

    return made if variant else None


@settings(max_examples=120)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 5),
    sources=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.one_of(st.none(), st.integers(0, 9))),
                     min_size=1, max_size=7),
    shape=st.sampled_from([(1, 1), (2, 1), (5, 1), (9, 1), (2, 2), (6, 3), (6, 2)]),
    diversity=st.sampled_from([0.0, 0.7]),
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    spread=st.sampled_from([0.3, 1.5, 6.0]),
    variant=st.integers(0, 3),
    weight=st.sampled_from([0.0, 0.5]),
    tree=st.booleans(),
    bound=st.booleans(),
    one_by_one=st.booleans(),
)  # fmt: skip
def test_source_rows_that_come_and_go_are_searched_as_if_alone(
    seed: int,
    size: int,
    sources: list[tuple[int, int, int | None]],
    shape: tuple[int, int],
    diversity: float,
    length_penalty: float,
    spread: float,
    variant: int,
    weight: float,
    tree: bool,
    bound: bool,
    one_by_one: bool,
) -> None:
    beam_size, groups = shape
    model = model_of(size, 5, sources=len(sources), spread=spread, seed=seed)
    made = processors_of(variant, size)

    def make(some: Sequence[int]) -> tuple[Any, Any, Tensor]:
        return bind(model, some, beam_size) if bound else (model.step, *model.start(some, beam_size))

    def bonus(carry: Any) -> Tensor:
        before = carry[0] if isinstance(carry, tuple) else carry
        return -weight * (before[:, 0] % 3)

    keywords: dict[str, Any] = {
        "eos_id": STOP, "beam_size": beam_size, "n_best": min(beam_size, 2), "length_penalty": length_penalty,
        "groups": groups, "diversity": diversity, "bonus": bonus if weight else None, "return_tree": tree,
    }  # fmt: skip
    limits, joins, leaves = zip(*sources, strict=True)
    going = {source: joins[source] + after for source, after in enumerate(leaves) if after is not None}
    arrivals = Arrivals(make, joins, going, limits, one_by_one=one_by_one)
    told = arrivals.run(BeamSearch(**keywords, processors=made and (lambda keys: made(keys, beam_size))))
    assert {source for source in range(len(sources)) if source not in going} <= set(told)
    for source, found in told.items():
        alone = beam_search(*make([source]), max_steps=limits[source], **keywords,
                            processors=made([source], beam_size) if made else ())  # fmt: skip
        assert found == Found(alone.rows[0], alone.trees[0] if alone.trees else None)
        if not variant and not weight and limits[source]:
            expected = slow_search(model, source, beam_size, limits[source], n_best=keywords["n_best"],
                                   length_penalty=length_penalty, groups=groups, diversity=diversity)  # fmt: skip
            assert [whole(one) for one in found.hypotheses] == [text for _, text in expected]


class Counting:
    """The step of a table, and how many rows it was asked for."""

    def __init__(self, model: Model) -> None:
        self.model, self.rows = model, list[int]()

    def __call__(self, tokens: Tensor, carry: Any) -> tuple[Tensor, Any]:
        self.rows.append(len(tokens))
        return self.model.step(tokens, carry)


@pytest.mark.parametrize("processed", [False, True])
def test_no_row_is_computed_that_nobody_waits_for(processed: bool) -> None:
    model = model_of(3, 6, sources=4, spread=0.3)
    model.logits[..., STOP] = -30  # the limits decide
    step = Counting(model)
    search = BeamSearch(eos_id=STOP, beam_size=2, processors=(lambda keys: [NoRepeatNgram(9)]) if processed else None)
    search.join([0, 1], step, *model.start([0, 1], 2), [6, 3])
    first = 4 if processed else 2
    assert search.advance() == []
    search.join([2, 3], step, *model.start([2, 3], 2), [6, 0])
    assert len(search) == 4
    assert [key for key, _ in search.advance()] == [3]
    search.leave(2)
    search.leave(2)
    search.leave("nobody")
    assert search.keys == [0, 1]
    assert [key for key, _ in search.advance()] == [1]
    search.join([2], step, *model.start([2], 2), 6)
    assert search.advance() == []
    search.leave(0)
    assert search.advance() == []
    search.leave(2)
    assert len(search) == 0
    assert search.advance() == []
    assert step.rows == [first, 6, 4, 4, 2]


def test_of_whom_the_model_says_nan_is_told_alone() -> None:
    model = model_of(4, 4, sources=3, spread=0.5)
    model.logits[1, 2:] = math.nan
    make = lambda some: (model.step, *model.start(some, 3))  # noqa: E731
    for joins in ([0, 0, 0], [1, 0, 1], [0, 2, 1]):
        for groups in (1, 3):
            told = Arrivals(make, joins, {}, [4] * 3).run(BeamSearch(eos_id=STOP, beam_size=3, groups=groups))
            assert isinstance(told[1], ValueError)
            row = 3 * sorted(range(3), key=joins.__getitem__).index(1)
            assert any(f"NaN for row {row + beam} at step 1 " in str(told[1]) for beam in range(3))
            for source in (0, 2):
                assert told[source].hypotheses == model.search([source], 3, 4, groups=groups).rows[0]


def test_what_does_not_fit_a_search_is_told() -> None:
    model = model_of(3, 3, sources=2)
    search = BeamSearch(eos_id=STOP, beam_size=2)
    with pytest.raises(ValueError, match="2 rows are given for 2 source rows; 2 each fit"):
        search.join([0, 1], model.step, *model.start([0], 2), 3)
    with pytest.raises(ValueError, match="max_steps has 1 numbers for 2 source rows"):
        search.join([0, 1], model.step, *model.start([0, 1], 2), [3])
    search.join([0], model.step, *model.start([0], 2), 3)
    for keys in ([0, 1], [1, 1]):
        with pytest.raises(ValueError, match="a key is that of a source row inside"):
            search.join(keys, model.step, *model.start([0, 1], 2), 3)
    assert search.keys == [0]


def test_an_n_gram_goes_on_from_the_prompt_into_a_prefix_that_began_later() -> None:
    logits = torch.zeros(2, 5)
    prompt = torch.tensor([[-1, 3, 1], [3, 4, 1]])
    alone = NoRepeatNgram(2, prompt)(torch.tensor([[2, 1, 3], [2, 1, 3]]), logits)
    young = NoRepeatNgram(2, prompt)(torch.tensor([[-1, 2, 1, 3], [-1, 2, 1, 3]]), logits)
    assert torch.equal(alone, young)
    assert (alone == NEVER).nonzero().tolist() == [[0, 1], [1, 4]]
    # After the prompt's last token came 2; a gap between them would hide it.
    barred = NoRepeatNgram(2, prompt)(torch.tensor([[-1, -1, 2, 1], [-1, -1, 2, 1]]), logits)
    assert (barred == NEVER).nonzero().tolist() == [[0, 2], [1, 2]]


# Memories

SOURCES = [[5, 6, 7, 8, EOS], [9, EOS], [4, 4, 10, 11, 9, 6, 5, 5, 8, EOS], [7, 5, EOS], [11, 10, 7, EOS]]


@settings(max_examples=60)
@given(
    kind=st.sampled_from([name for name in CONFIGS if name != "dropped"]),
    count=st.integers(1, 2),
    joins=st.lists(st.integers(0, 6), min_size=5, max_size=5),
    leaves=st.dictionaries(st.integers(0, 4), st.integers(1, 9), max_size=2),
    beam_size=st.integers(1, 4),
    weight=st.sampled_from([0.0, 0.7]),
    one_by_one=st.booleans(),
    seed=st.integers(0, 100),
)
def test_memories_of_other_lengths_join_and_go(
    kind: str,
    count: int,
    joins: list[int],
    leaves: dict[int, int],
    beam_size: int,
    weight: float,
    one_by_one: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    models = [build(kind, spread=1.5) for _ in range(count)]
    limits = [7, 3, 9, 5, 8]

    def make(some: Sequence[int]) -> tuple[Any, Any, Tensor]:
        return translation._start(models, [SOURCES[source] for source in some], beam_size, weight)

    arrivals = Arrivals(make, joins, leaves, limits, one_by_one=one_by_one)
    with torch.inference_mode():
        told = arrivals.run(
            BeamSearch(eos_id=EOS, beam_size=beam_size, n_best=beam_size, bonus=translation._covered(models, weight))
        )
    assert {*range(5)} - {*leaves} <= set(told)
    for source, found in told.items():
        (alone,) = search(models, [SOURCES[source]], [limits[source]], beam_size, beam_size, 1.0, weight)
        assert close([vars_of(one) for one in found.hypotheses], [vars_of(one) for one in alone])


def vars_of(one: Any) -> dict[str, Any]:
    # The scores are compared in float32.
    return {name: getattr(one, name) for name in ("tokens", "log_prob", "score", "finished", "log_probs")}


@pytest.mark.parametrize("kind", ["general", "deep", "plain"])
def test_a_memory_is_as_long_as_the_longest_inside(kind: str) -> None:
    model = build(kind)
    with torch.inference_mode():
        short, carry, _ = model.start([SOURCES[1], SOURCES[3]], 2)
        long, other, _ = model.start([SOURCES[2]], 2)
        assert isinstance(short, BoundStep)
        both, _ = short.join(long, carry, other)
    sizes = [step.memory[2].shape[1] for step in (short, long, both, both.take(torch.tensor([0, 1])))]
    assert sizes == ([3, 10, 10, 3] if model.aligned else [1] * 4)


def test_an_ensemble_joins_its_steps() -> None:
    models = [build("general"), build("feeding")]
    with torch.inference_mode():
        step, carry, tokens = translation._start(models, SOURCES, 1, 0.0)
        first, before, _ = translation._start(models, SOURCES[:2], 1, 0.0)
        second, after, _ = translation._start(models, SOURCES[2:], 1, 0.0)
        assert isinstance(first, Ensemble)
        joined, both = first.join(second, before, after)  # type: ignore[arg-type]
        torch.testing.assert_close(joined(tokens, both)[0], step(tokens, carry)[0])


# Texts


def answered(running: Running, requests: Sequence[TranslationInput], chance: random.Random) -> dict[Hashable, Any]:
    """The answers to requests that come at random; some of them go, and come again."""
    waiting, told = list(range(len(requests))), {}
    inside: list[int] = []
    while waiting or len(running):
        while waiting and chance.random() < 0.4:
            inside.append(waiting.pop(chance.randrange(len(waiting))))
            running.join(inside[-1], requests[inside[-1]])
        if inside and chance.random() < 0.05:
            waiting.append(inside.pop(chance.randrange(len(inside))))
            running.leave(waiting[-1])
        for one in running.step():
            assert isinstance(one, Said), one
            assert one.last
            assert one.key not in told
            told[one.key] = one.value
            inside.remove(one.key)
        assert len(running) == len(inside)
    return told


@pytest.mark.parametrize(
    ("model", "tokenizer", "rows"),
    [("attention", "word", 2), ("multi_head", "bpe", 12), ("plain", "character", 320), ("attention", "word", 320)],
)
def test_texts_that_come_and_go_are_answered_as_if_alone(
    model: str, tokenizer: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, built = translator(tokenizer, model, shared=tokenizer == "bpe")
    requests = [TranslationInput(**fields) for fields in OPTIONS]
    expected = [task.predict(built, [one])[0].model_dump() for one in requests]
    for name, value in {"ROWS_AT_ONCE": rows, "CUT_AT_ONCE": 30, "ENCODED_AT_ONCE": 20, "READ_AT_ONCE": 7,
                        "READ_TOGETHER": 60}.items():  # fmt: skip
        monkeypatch.setattr(translation, name, value)
    for seed in range(2):
        told = answered(task.running(built), requests, random.Random(seed))
        for place, wanted in enumerate(expected):
            assert close(told[place].model_dump(), wanted), requests[place]


class Watched(Translating):
    """Tells how many hypotheses each of its searches grew in a step, and what was encoded."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.grown: list[int] = []

    def step(self) -> list[Any]:
        self.grown.append(sum(len(search) * search.beam_size for search, _ in self._searches.values()))
        return super().step()


def test_a_long_text_starves_no_short_one_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    task, built = translator()
    monkeypatch.setattr(translation, "ROWS_AT_ONCE", 10)
    sentence = "The old cat sees the dog. "
    longest = limit_of(task, sentence)
    running = Watched(task._interpreter([built]))
    running.join("long", TranslationInput(text=sentence * 400, beam_size=2))
    for _ in range(3):
        running.step()
    for key, beams in (("short", 2), ("wide", 6)):
        running.join(key, TranslationInput(text=sentence, beam_size=beams))
    told: dict[Hashable, int] = {}
    while len(running):
        for key, output in running.step():
            assert not isinstance(output, Exception)
            told[key] = len(running.grown)
    # Until places are free and they are encoded, one search at most; then their own, which has every other turn, or
    # every third with the encoder.
    assert max(told["short"], told["wide"]) <= 3 + 8 * longest < told["long"] / 2
    assert max(running.grown) <= 10
    assert running._rows_waiting == 0
    assert not running._searches


def limit_of(task: Translation, sentence: str) -> int:
    return limit(len(task.source_tokenizer.encode(sentence).ids) + 1)


def test_who_leaves_costs_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    task, built = translator()
    monkeypatch.setattr(translation, "READ_AT_ONCE", 20)
    long = TranslationInput(text="The old cat sees the dog. " * 30, replace_unknown=False)
    scored = TranslationInput(text="A man " * 200, target="Ein Hund " * 200)
    for steps in (0, 1, 2, 5):
        running = Watched(task._interpreter([built]))
        running.join("long", long)
        running.join("scored", scored)
        for _ in range(steps):
            assert running.step() == []
        for key in ("long", "scored", "nobody"):
            running.leave(key)
        assert len(running) == 0
        assert running._rows_waiting == 0
        with pytest.MonkeyPatch.context() as patched:
            for name in ("advance", "join"):
                patched.setattr(BeamSearch, name, None)
            patched.setattr(Translator, "read", None)
            assert [running.step() for _ in range(3)] == [[], [], []]
        running.join("long", TranslationInput(text="A man"))
        while not (told := running.step()):
            pass
        assert [key for key, _ in told] == ["long"]


def told_by(running: Running, requests: Sequence[TranslationInput]) -> dict[Hashable, Any]:
    for key, one in enumerate(requests):
        running.join(key, one)
    told: dict[Hashable, Any] = {}
    while len(running):
        told |= {one.key: one for one in running.step()}
    return told


@pytest.mark.parametrize("table", ["source_embedding", "target_embedding"])
@pytest.mark.parametrize("known", [False, True])
def test_what_is_not_finite_fails_its_text_alone(table: str, known: bool) -> None:
    task, built = translator(seed=2)
    texts = ["The dog sleeps. A man reads.", "The dog sleeps. The cat reads. A man reads.", "A man reads."]
    requests = [TranslationInput(text=text, beam_size=1, replace_unknown=False,
                                 target=said if known else None)
                for text, said in zip(texts, ("Ein Hund", "Die Katze", "Ein Mann"), strict=True)]  # fmt: skip

    def fails(model: Translator, one: TranslationInput) -> bool:
        try:
            task.predict(model, [one])
        except ValueError as error:
            return "nan" in str(error).lower()
        return False

    # A token that the second alone meets.
    for token in range(len(built.get_submodule(table).get_parameter("weight"))):
        ill = copy.deepcopy(built)
        with torch.no_grad():
            ill.get_submodule(table).get_parameter("weight")[token] = math.nan
        if [fails(ill, one) for one in requests] == [False, True, False]:
            break
    else:
        pytest.fail("no such token")
    told = told_by(task.running(ill), requests)
    assert isinstance(told[1], Failed)
    assert "nan" in str(told[1].error).lower()
    for key in (0, 2):
        (alone,) = task.predict(ill, [requests[key]])
        assert close(told[key].value.model_dump(), alone.model_dump())


@pytest.mark.parametrize("name", ["start", "read"])
def test_what_breaks_fails_those_it_was_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, built = translator()
    scored = TranslationInput(text="A man", target="Ein Hund")
    searched = TranslationInput(text="A man reads. The dog.", replace_unknown=False)

    def broken(*given: Any, **keywords: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Translator, name, broken)
    told = told_by(task.running(built), [scored, searched, scored])
    failed, fine = (1, 0) if name == "start" else (0, 1)
    assert str(told[failed].error) == "out of order"
    assert isinstance(told[fine], Said)


@pytest.mark.parametrize("name", ["advance", "join"])
@pytest.mark.parametrize("guilty", [None, 1])
def test_a_search_that_breaks_fails_the_guilty_alone(
    name: str, guilty: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, built = translator(seed=2)
    texts = ["The dog sleeps.", "The cat reads. A man reads.", "A man reads.", "The old cat sees the dog. A man."]
    requests = [TranslationInput(text=text, replace_unknown=False) for text in texts]
    alone = [task.predict(built, [one])[0] for one in requests]
    honest = getattr(BeamSearch, name)

    def breaks(search: BeamSearch, *given: Any) -> Any:
        inside = [*search.keys, *(given[0] if given else [])]
        if len(inside) > 1 if guilty is None else any(text.key == guilty for text, _ in inside):
            raise RuntimeError("out of memory")
        return honest(search, *given)

    monkeypatch.setattr(BeamSearch, name, breaks)
    running = task.running(built)
    told = told_by(running, requests)
    assert len(told) == len(texts)
    for key, expected in enumerate(alone):
        if key == guilty:
            assert str(told[key].error) == "out of memory"
        else:
            assert close(told[key].value.model_dump(), expected.model_dump())
    assert running.step() == []


def test_what_cannot_be_translated_is_told_at_once() -> None:
    task, built = translator()
    running = task.running(built)
    for fields, message in [
        ({"text": " \n"}, "text: it is empty; a sentence fits"),
        ({"text": "A man", "target": "Hund " * 1001}, "target: it has 1,001 tokens"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            running.join("a", TranslationInput(**fields))
        assert caught.value.index == 0
    with pytest.raises(ValueError, match="no pieces to stream; stream=False fits"):
        running.join("a", TranslationInput(text="A man"), stream=True)
    assert len(running) == 0
    assert running.step() == []


def test_a_running_batch_is_full_when_the_next_steps_have_enough_to_choose_from() -> None:
    task, built = translator()
    running = task.running(built)
    for key in range(128):
        assert not running.full
        running.join(key, TranslationInput(text="A man reads. " * 50))
    assert running.full
    running.leave(5)
    assert not running.full


@given(text=st.text(alphabet="ab .!?\n。", min_size=1, max_size=80), beams=st.integers(1, 9), more=st.integers(0, 3))
def test_the_effort_is_as_the_search_would_have(text: str, beams: int, more: int) -> None:
    task, _ = translator("character")
    fields: dict[str, Any] = {"text": text, "beam_size": beams + more, "alternatives": more}
    effort = task.effort(TranslationInput(**fields))
    parts = list(task._interpreter([translator()[1]])._parts(TranslationInput(**fields)))
    read = sum(len(part.ids) - 1 for part in parts)
    assert effort >= read * (beams + more)
    # A sentence of one character may be searched for ten tokens and more.
    assert effort >= 10 * (beams + more) * sum(len(part.ids) > 1 for part in parts)
    assert effort == (beams + more) * task.effort(TranslationInput(text=text, beam_size=1))
    assert task.effort(TranslationInput(text=text)) == 5 * task.effort(TranslationInput(text=text, beam_size=1))
