"""The generation task against a slow reader of the same model: texts, scores, offsets, limits, and what is refused."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from seqapp import metrics
from seqapp.completion import MOST_TOKENS, GenerationInput, GenerationOutput, Piece, ScoredToken
from seqapp.data.counts import bigrams, unigrams
from seqapp.data.streams import Stream
from seqapp.data.text import Passage
from seqapp.data.tokenizers import BOS, EOS, PAD, UNK
from seqapp.errors import BundleError, DataError
from seqapp.models.language_model import LanguageModel
from seqapp.tasks import TASKS, InputError
from seqapp.tasks.generation import Generation, blocks

TEXTS = ["The cat sat on the mat, and the dog sat too.\n", "A naïve café: 你好! 🙂 “no”\n", "the the cat's mat"]
TOKENIZERS: dict[str, dict[str, Any]] = {
    "character": {"kind": "character"},
    "byte_bpe": {"kind": "byte_bpe", "max_vocabulary": 280},
    "subword": {"kind": "subword", "max_vocabulary": 60},
    "word": {"kind": "word"},
    "whitespace": {"kind": "whitespace"},
}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)
CONDITIONS: dict[str, list[Any]] = {
    "none": [None, None, None],
    "class": ["Greek", "Welsh", "Greek"],
    "features": [(0.5, -1.0), (2.0, 0.25), (0.0, 0.0)],
}
OPTIONS: list[dict[str, Any]] = [
    {"prompt": "the cat", "seed": 5, "max_tokens": 12, "n": 3},
    {"prompt": "", "seed": 5, "max_tokens": 9, "temperature": 0.5, "logprobs": 2},
    {"prompt": "The", "seed": 6, "max_tokens": 20, "top_k": 3, "echo": True, "logprobs": 0, "n": 2},
    {"prompt": "A naïve ", "seed": 7, "max_tokens": 15, "top_p": 0.7, "min_tokens": 10},
    {"prompt": "A naïve ", "temperature": 0, "max_tokens": 8, "logprobs": 3},
    {"prompt": "dog", "seed": 1, "max_tokens": 14, "min_p": 0.2, "typical_p": 0.9, "repetition_penalty": 1.5},
    {"prompt": "dog", "seed": 1, "max_tokens": 0, "echo": True, "logprobs": 1},
    {"prompt": "z", "seed": 2, "max_tokens": 30, "stop": ["a", "the "], "frequency_penalty": 0.5},
    {"prompt": "the mat", "temperature": 0, "max_tokens": 9, "presence_penalty": 2.0, "min_tokens": 9},
    {"prompt": "the the", "temperature": 0, "max_tokens": 9, "no_repeat_ngram_size": 2},
    {"prompt": "sat", "max_tokens": 6, "beam_size": 4, "n": 3, "logprobs": 0},
    {"prompt": "", "max_tokens": 6, "beam_size": 4, "n": 3, "logprobs": 0, "echo": True},
    {"prompt": "on", "max_tokens": 5, "beam_size": 4, "beam_groups": 2, "diversity": 1.0, "n": 2},
    {"prompt": "on", "max_tokens": 5, "beam_size": 3, "length_penalty": 0.0, "return_beams": True, "min_tokens": 2},
]
"""Requests of every sort; together they also make mixed batches."""


def prepared(kind: str = "character", conditions: Sequence[Any] = (None,) * 3, reads: str = "rows") -> Generation:
    task = TASKS.build({"kind": "generation", "tokenizer": TOKENIZERS[kind], "reads": reads})
    assert isinstance(task, Generation)
    task.prepare([Passage(text, True, condition) for text, condition in zip(TEXTS, conditions, strict=True)])
    return task


@functools.cache
def writer(
    kind: str = "character", condition: str = "none", at: str = "start", encoder: str = "lstm"
) -> tuple[Generation, LanguageModel]:
    """An untrained network that is sure of itself; in float64, but for conditions, so that a batch says the same."""
    task = prepared(kind, CONDITIONS[condition])
    torch.manual_seed(4)
    network = {"kind": encoder, "hidden_size": 7}
    spec = {"kind": "language_model", "embedding_size": 6, "encoder": network, "condition_at": at}
    model = task.build_model(spec)
    assert isinstance(model, LanguageModel)
    with torch.no_grad():
        model.embedding.weight.mul_(3)
        model.head.get_parameter("project.weight").mul_(9)
        model.head.get_parameter("project.bias")[EOS] = 1.0
        if model.condition is not None:
            model.condition.weight.mul_(4)
    # A condition is read in float32.
    return task, (model.double() if condition == "none" else model).eval()


def ask(task: Generation, model: LanguageModel, **fields: Any) -> GenerationOutput:
    (output,) = task.predict(model, [GenerationInput(**fields)])
    return output


def one(task: Generation, model: LanguageModel, **fields: Any) -> Any:
    (completion,) = ask(task, model, **fields).completions
    return completion


@torch.inference_mode()
def log_probs(model: LanguageModel, ids: Sequence[int], condition: Tensor | None = None) -> Tensor:
    """log p of what may follow BOS, and each of ``ids``, all read at once: (T + 1, V)."""
    x, _ = model(torch.tensor([[BOS, *ids]]), condition=None if condition is None else condition[None])
    return model.head.logits(x[0]).log_softmax(-1)


def vector(task: Generation, condition: Any) -> Tensor | None:
    if condition is None:
        return None
    if isinstance(condition, str):
        return torch.tensor([float(name == condition) for name in task.conditions.names], dtype=torch.float)
    return torch.tensor(condition, dtype=torch.float)


def ids_of(task: Generation, scored: Sequence[ScoredToken]) -> list[int]:
    found = [task.tokenizer.token_id(token.token) for token in scored]
    assert None not in found
    return [index for index in found if index is not None]


def close(got: Any, wanted: Any, within: float = 1e-9) -> bool:
    """Equal, floats but for their last digits."""
    if isinstance(got, float) and isinstance(wanted, float):
        return math.isclose(got, wanted, rel_tol=within, abs_tol=within)
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(close(got[key], wanted[key], within) for key in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(close(*pair, within) for pair in zip(got, wanted, strict=True))
    return bool(got == wanted)


def joined(pieces: Sequence[Piece], n: int) -> list[dict[str, Any]]:
    """The completions that pieces make up, in the form of an answer's; checks what each piece promises."""
    found = []
    for number in range(n):
        ours = [piece for piece in pieces if piece.index == number]
        *before, last = ours
        assert all(piece.finish_reason is None and piece.score is None for piece in before)
        assert last.finish_reason is not None
        found.append(
            {
                "text": "".join(piece.text for piece in ours),
                "score": last.score,
                "tokens": sum(piece.tokens for piece in ours),
                "finish_reason": last.finish_reason,
                "logprobs": [token.model_dump() for piece in ours for token in piece.logprobs],
            }
        )
    assert {piece.index for piece in pieces} == set(range(n))
    return found


# An input is answered as if it were alone


@kinds
def test_a_mixed_batch_is_answered_as_each_request_alone(kind: str) -> None:
    task, model = writer(kind)
    requests = [GenerationInput(**fields) for fields in OPTIONS]
    together = task.predict(model, requests)
    backwards = task.predict(model, requests[::-1])[::-1]
    for request, batch, turned in zip(requests, together, backwards, strict=True):
        (alone,) = task.predict(model, [request])
        if request.seed is None and request.samples:
            continue
        assert close(batch.model_dump(), alone.model_dump()), request
        assert close(turned.model_dump(), alone.model_dump()), request


@pytest.mark.parametrize("at", ["start", "every step"])
@pytest.mark.parametrize("condition", ["class", "features"])
def test_each_row_of_a_batch_follows_its_own_condition(condition: str, at: str) -> None:
    task, model = writer("character", condition, at)
    requests = [
        GenerationInput(**{**fields, "condition": list(one) if isinstance(one, tuple) else one})
        for fields in (OPTIONS[0], OPTIONS[4], OPTIONS[10])
        for one in dict.fromkeys(CONDITIONS[condition])
    ]
    together = task.predict(model, requests)
    for request, batch in zip(requests, together, strict=True):
        assert close(batch.model_dump(), task.predict(model, [request])[0].model_dump(), 1e-5)
    assert not close(together[0].completions[0].score, together[1].completions[0].score, 1e-4)
    # And it is the model of that condition that scored it.
    for request, output in zip(requests, together, strict=True):
        if request.logprobs is None:
            continue
        for completion in output.completions:
            assert completion.logprobs is not None
            prompt, ids = task.tokenizer.encode(request.prompt).ids, ids_of(task, completion.logprobs)
            wanted = log_probs(model, [*prompt, *ids], vector(task, request.condition))
            chances = wanted[len(prompt) : -1].gather(1, torch.tensor(ids)[:, None])
            assert completion.score == pytest.approx(float(chances.sum()), abs=1e-4)


def test_more_rows_than_are_decoded_together_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = writer()
    requests = [GenerationInput(**fields) for fields in OPTIONS[:9]]
    whole = task.predict(model, requests)
    monkeypatch.setattr("seqapp.completer.ROWS_AT_ONCE", 2)
    assert all(close(a.model_dump(), b.model_dump())
               for a, b in zip(task.predict(model, requests), whole, strict=True))  # fmt: skip


def test_equal_seeds_give_equal_texts_and_others_others() -> None:
    task, model = writer()
    asked: dict[str, Any] = {"prompt": "the ", "max_tokens": 30, "n": 4, "min_tokens": 30}
    texts = [completion.text for completion in ask(task, model, seed=3, **asked).completions]
    assert texts == [completion.text for completion in ask(task, model, seed=3, **asked).completions]
    assert len(set(texts)) == 4
    assert not {c.text for c in ask(task, model, seed=4, **asked).completions} & set(texts)
    # The k-th completion does not depend on how many are wanted.
    assert one(task, model, **{**asked, "seed": 3, "n": 1}).text == texts[0]
    drawn = ask(task, model, **asked)
    assert drawn.seed is not None
    assert [c.text for c in drawn.completions] == [
        c.text for c in ask(task, model, seed=drawn.seed, **asked).completions
    ]
    assert ask(task, model, **asked).seed != drawn.seed
    assert ask(task, model, prompt="the ", seed=2**63 - 1, max_tokens=3).seed == 2**63 - 1


# Streaming


@kinds
def test_the_pieces_of_a_stream_are_the_whole_answer(kind: str) -> None:
    task, model = writer(kind)
    for fields in OPTIONS:
        request = GenerationInput(**fields)
        (output,) = task.predict(model, [request])
        pieces = list(task.stream(model, request))
        wanted = [
            {**c.model_dump(include={"text", "score", "tokens", "finish_reason"}),
             "logprobs": [token.model_dump() for token in c.logprobs or []]}
            for c in output.completions
        ]  # fmt: skip
        assert close(joined(pieces, request.n), wanted), fields
        assert (pieces[0].notes, pieces[0].prompt_tokens) == (output.notes, output.prompt_tokens)
        assert all(not piece.notes for piece in pieces[1:])


def test_a_stream_is_computed_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = writer()
    steps: list[int] = []
    made = LanguageModel.steps

    def counted(model: LanguageModel, rows: int) -> Any:
        step = made(model, rows)

        def one(*state: Any) -> Any:
            steps.append(1)
            return step(*state)

        return one

    monkeypatch.setattr(LanguageModel, "steps", counted)
    reader = task.stream(model, GenerationInput(prompt="the", temperature=0, max_tokens=50, min_tokens=50))
    assert not steps
    for _ in range(3):
        next(reader)
    assert len(steps) == 3


def test_a_request_that_does_not_fit_is_refused_before_the_first_piece() -> None:
    task, model = writer()
    with pytest.raises(InputError, match="condition"):
        task.stream(model, GenerationInput(condition="Greek"))


def test_a_character_of_several_bytes_is_never_cut() -> None:
    task, model = writer("byte_bpe")
    wanted = "你🙂"
    tokens = [task.tokenizer.token_text(index) for index in task.tokenizer.encode(wanted).ids]
    assert len(tokens) > 2
    # Each byte is allowed once, and bytes of other characters not at all: the only text left is the one wanted.
    bias = {name: 100.0 - 8 * place for place, name in enumerate(tokens)}
    request = GenerationInput(
        logit_bias=bias, temperature=0, max_tokens=len(tokens), frequency_penalty=100, logprobs=0, min_tokens=1
    )
    pieces = list(task.stream(model, request))
    assert [token.token for piece in pieces for token in piece.logprobs] == tokens
    assert "".join(piece.text for piece in pieces) == wanted
    assert {piece.text for piece in pieces} <= {"", *wanted}
    offsets = [token.offset for piece in pieces for token in piece.logprobs]
    assert offsets == sorted(offsets)
    assert set(offsets) == {0, 1}
    # Cut inside a character, it is a mark and no crash.
    short = request.model_copy(update={"max_tokens": len(tokens) - 1})
    assert one(task, model, **short.model_dump()).text == "你\ufffd"
    assert "".join(piece.text for piece in task.stream(model, short)) == "你\ufffd"


# Scores


@kinds
@pytest.mark.parametrize(
    "how", [{"seed": 8}, {"temperature": 0}, {"beam_size": 3, "n": 3}, {"seed": 3, "temperature": 2.0, "top_k": 9}]
)
@pytest.mark.parametrize("prompt", ["", "The cat"])
def test_the_score_is_the_models_own_log_probability_of_the_text(kind: str, how: dict[str, Any], prompt: str) -> None:
    task, model = writer(kind)
    asked = {"prompt": prompt, "max_tokens": 10, "logprobs": 3, "repetition_penalty": 1.3, "logit_bias": {"the": 0.5}}
    if task.tokenizer.token_id("the") is None:
        del asked["logit_bias"]
    for completion in ask(task, model, **asked, **how).completions:
        scored = completion.logprobs
        assert scored is not None
        ids = ids_of(task, scored)
        before = task.tokenizer.encode(prompt).ids
        wanted = log_probs(model, [*before, *ids])[len(before) : -1]
        chances = [float(row[index]) for row, index in zip(wanted, ids, strict=True)]
        assert [token.log_prob for token in scored] == pytest.approx(chances, abs=1e-9)
        assert completion.score == pytest.approx(sum(chances), abs=1e-9)
        assert completion.finish_reason == ("stop" if ids[-1:] == [EOS] else "length")
        assert completion.tokens == len(ids) - (ids[-1:] == [EOS])
        assert not {PAD, UNK, BOS} & set(ids)
        if "beam_size" not in how:
            for token, row in zip(scored, wanted, strict=True):
                best = row.topk(3)
                assert [top.log_prob for top in token.top] == pytest.approx(best.values.tolist(), abs=1e-9)
                assert [task.tokenizer.token_id(top.token) for top in token.top] == best.indices.tolist()


@kinds
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("how", [{"seed": 5}, {"beam_size": 2}])
def test_offsets_point_at_the_tokens_in_the_text(kind: str, how: dict[str, Any], echo: bool) -> None:
    task, model = writer(kind)
    completion = one(task, model, prompt="the cat", max_tokens=25, logprobs=0, echo=echo, min_tokens=25, **how)
    assert completion.logprobs is not None
    named = [token for token in completion.logprobs if "<0x" not in token.token and token.token != "<eos>"]
    assert len(named) > (7 if kind == "byte_bpe" else 20)
    for token in named:
        rest = completion.text[token.offset :]
        # Words stand without the space before them, and a space at the very start of a text is not shown.
        assert rest.lstrip(" ").startswith(token.token.lstrip(" ")), (token, completion.text)
    if kind == "character":
        assert "".join(token.token for token in completion.logprobs) == completion.text


def test_beam_search_gives_the_likeliest_texts_of_all() -> None:
    task = TASKS.build({"kind": "generation", "tokenizer": {"kind": "character"}, "reads": "rows"})
    assert isinstance(task, Generation)
    task.prepare([Passage("ab")])
    torch.manual_seed(2)
    spec = {"kind": "language_model", "embedding_size": 4, "encoder": {"kind": "gru", "hidden_size": 5}}
    model = task.build_model(spec).double().eval()
    assert isinstance(model, LanguageModel)
    with torch.no_grad():
        model.head.get_parameter("project.weight").mul_(5)
    letters = task.tokenizer.encode("ab").ids
    start = task.tokenizer.encode("a").ids
    for longest, penalty in product((1, 2, 3), (0.0, 1.0, 2.5, -1.0)):
        ranked = []
        for length in range(longest + 1):
            for ids in product(letters, repeat=length):
                row = [*ids, *[EOS] * (length < longest)]
                chances = log_probs(model, [*start, *row])[len(start) : -1]
                score = float(chances.gather(1, torch.tensor(row)[:, None]).sum())
                ranked.append((score / len(row) ** penalty, score, task.tokenizer.decode(ids)))
        ranked.sort(reverse=True)
        asked: dict[str, Any] = {"prompt": "a", "max_tokens": longest, "length_penalty": penalty, "beam_size": 6}
        found = ask(task, model, n=2, **asked).completions
        assert [completion.text for completion in found] == [text for _, _, text in ranked[:2]]
        assert [completion.score for completion in found] == pytest.approx([score for _, score, _ in ranked[:2]])


@pytest.mark.parametrize("groups", [1, 2])
def test_the_search_tree_is_the_search(groups: int) -> None:
    task, model = writer()
    output = ask(task, model, prompt="the", max_tokens=6, beam_size=4, n=1, beam_groups=groups, diversity=0.5 * (
        groups > 1), return_beams=True, logprobs=0)  # fmt: skip
    steps = output.beams
    assert steps is not None
    paths: list[dict[int, list[str]]] = []
    prompt = task.tokenizer.encode("the").ids
    for depth, nodes in enumerate(steps):
        paths.append({})
        for place, node in enumerate(nodes):
            if depth == 0:
                assert node.parent == -1
                before, total = [], 0.0
            else:
                parent = steps[depth - 1][node.parent]
                assert parent.kept
                assert not parent.finished
                assert parent.group == node.group
                before, total = paths[depth - 1][node.parent], parent.score
            paths[depth][place] = [*before, node.token]
            assert node.score == pytest.approx(total + node.log_prob)
            ids = [task.tokenizer.token_id(name) for name in paths[depth][place]]
            assert None not in ids
            wanted = log_probs(model, [*prompt, *[index for index in ids[:-1] if index is not None]])[-1]
            assert node.log_prob == pytest.approx(float(wanted[ids[-1]]))
        for group in range(groups):
            ours = [node for node in nodes if node.group == group]
            assert sum(node.kept and not node.finished for node in ours) <= 4 // groups
            going_on = [node for node in ours if not node.finished]
            if groups == 1:
                pruned = [node.score for node in going_on if not node.kept]
                assert min(node.score for node in going_on if node.kept) >= max(pruned, default=-math.inf)
    best = output.completions[0]
    assert best.logprobs is not None
    names = [token.token for token in best.logprobs]
    assert any(path == names and steps[depth][place].kept
               for depth, found in enumerate(paths) for place, path in found.items())  # fmt: skip


@kinds
@pytest.mark.parametrize("condition", ["none", "class"])
def test_a_prompt_is_scored_as_by_teacher_forcing(kind: str, condition: str) -> None:
    task, model = writer(kind, condition)
    prompt = "The cat's dog, zq naïve 你"
    given = "Welsh" if condition == "class" else None
    encoded = task.tokenizer.encode(prompt)
    wanted = log_probs(model, encoded.ids, vector(task, given))
    asked = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 0, "condition": given}
    for how in ({}, {"beam_size": 2}, {"n": 2}):
        for completion in ask(task, model, **asked, **how).completions:
            assert (completion.text, completion.tokens, completion.score) == (prompt, 0, 0.0)
            assert completion.finish_reason == "length"
            scored = completion.logprobs
            assert scored is not None
            chances = wanted[:-1].gather(1, torch.tensor(encoded.ids)[:, None])[:, 0].tolist()
            assert [token.log_prob for token in scored] == pytest.approx(chances, abs=1e-5)
            assert [token.offset for token in scored] == [start for start, _ in encoded.offsets]
            for token, row in zip(scored, wanted, strict=False):
                assert [top.log_prob for top in token.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)
    # What follows is counted on from there.
    longer = one(task, model, **{**asked, "max_tokens": 5, "temperature": 0, "min_tokens": 5})
    assert longer.logprobs is not None
    assert len(longer.logprobs) == len(encoded.ids) + 5
    assert longer.logprobs[len(encoded.ids)].offset - len(prompt) in (0, 1), "a word stands after its space"
    assert longer.score == pytest.approx(sum(token.log_prob for token in longer.logprobs[len(encoded.ids) :]))


# Penalties, limits and ends, against a slow reader that reads the whole text anew for each token


def greedily(task: Generation, model: LanguageModel, request: GenerationInput) -> list[int]:
    """The tokens that temperature 0 takes, by the definitions of the options; EOS included."""
    prompt = task.tokenizer.encode(request.prompt).ids
    found: list[int] = []
    while len(found) < request.max_tokens:
        logits = log_probs(model, [*prompt, *found])[-1].clone()
        x, _ = model(torch.tensor([[BOS, *prompt, *found]]))
        raw = model.head.logits(x[0, -1:])[0].detach()
        logits = raw.clone()
        logits[[PAD, UNK, BOS]] = -math.inf
        uses = Counter(found)
        for token in {*prompt, *found} - {PAD, UNK, BOS}:
            factor = request.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        for token, count in uses.items():
            logits[token] -= request.frequency_penalty * count + request.presence_penalty
        for name, bias in request.logit_bias.items():
            index = task.tokenizer.token_id(name)
            assert index is not None
            logits[index] += bias
        size, text = request.no_repeat_ngram_size, [*prompt, *found]
        for start in range(len(text) - size + 1 if size else 0):
            if text[start : start + size - 1] == text[len(text) - size + 1 :]:
                logits[text[start + size - 1]] = -math.inf
        if len(found) < request.min_tokens:
            logits[EOS] = -math.inf
        if bool(logits.isneginf().all()):
            return [*found, EOS]
        found.append(int(logits.argmax()))
        if found[-1] == EOS:
            break
    return found


REQUESTS = st.builds(
    GenerationInput,
    prompt=st.text("the catso", max_size=8),
    temperature=st.just(0.0),
    max_tokens=st.integers(4, 9),
    min_tokens=st.integers(0, 4),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.7, 40.0]),
    frequency_penalty=st.sampled_from([0.0, -3.0, 2.0]),
    presence_penalty=st.sampled_from([0.0, -2.0, 5.0]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2, 3]),
    logit_bias=st.dictionaries(st.sampled_from(["t", "e", "<eos>", " "]), st.sampled_from([-100.0, 3.0, 30.0]),
                               max_size=2),
    logprobs=st.just(0),
)  # fmt: skip


@settings(max_examples=25)
@given(st.lists(REQUESTS, min_size=1, max_size=3))
def test_penalties_and_limits_do_what_they_say(requests: list[GenerationInput]) -> None:
    task, model = writer()
    for request, output in zip(requests, task.predict(model, requests), strict=True):
        (completion,) = output.completions
        assert completion.logprobs is not None
        assert ids_of(task, completion.logprobs) == greedily(task, model, request), request


@pytest.mark.parametrize("echo", [False, True])
def test_the_rivals_of_a_searched_token_are_the_models_own(echo: bool) -> None:
    task, model = writer()
    request = GenerationInput(prompt="the", max_tokens=5, beam_size=3, n=3, logprobs=2, echo=echo, stop=["!"])
    (output,) = task.predict(model, [request])
    assert len(output.completions) == 3
    for completion in output.completions:
        assert completion.logprobs
        scored = completion.logprobs[3 if echo else 0 :]
        ids = task.tokenizer.encode("the").ids
        for one in scored:
            chances = log_probs(model, ids)[-1]
            best = chances.topk(2)
            assert [rival.token for rival in one.top] == [task.tokenizer.token_text(int(i)) for i in best.indices]
            assert [rival.log_prob for rival in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)
            token = task.tokenizer.token_id(one.token)
            assert token is not None
            ids = [*ids, token]


def test_a_length_penalty_without_beams_is_told_to_change_nothing() -> None:
    task, model = writer()
    asked = [GenerationInput(max_tokens=1, length_penalty=2, **more) for more in ({}, {"temperature": 0})]
    for output in task.predict(model, asked):
        assert any("length_penalty" in note for note in output.notes)
    (searched,) = task.predict(model, [GenerationInput(max_tokens=1, length_penalty=2, beam_size=2)])
    assert not searched.notes


def test_ngrams_that_go_on_from_a_prompt_are_barred_beside_a_longer_prompt_too() -> None:
    task, model = writer()
    asked = [GenerationInput(prompt=prompt, max_tokens=6, temperature=0, no_repeat_ngram_size=2, logit_bias={"t": 20})
             for prompt in ("tt", "the cat sat on the mat")]  # fmt: skip
    together = [output.completions[0].text for output in task.predict(model, asked)]
    assert together == [task.predict(model, [one])[0].completions[0].text for one in asked]
    assert together[0][0] != "t", "'tt' stands in the prompt"


def test_a_bias_can_force_and_bar_a_token_and_the_end() -> None:
    task, model = writer()
    forced = one(task, model, prompt="the", max_tokens=7, logit_bias={"c": 100}, seed=1)
    assert (forced.text, forced.finish_reason, forced.tokens) == ("ccccccc", "length", 7)
    ended = one(task, model, prompt="the", max_tokens=7, logit_bias={"<eos>": 100}, seed=1)
    assert (ended.text, ended.finish_reason, ended.tokens) == ("", "stop", 0)
    assert ended.score == pytest.approx(float(log_probs(model, task.tokenizer.encode("the").ids)[-1, EOS]))
    kept = one(task, model, prompt="the", max_tokens=7, logit_bias={"<eos>": 100}, min_tokens=3, seed=1)
    assert (kept.tokens, kept.finish_reason) == (3, "stop")


@kinds
def test_cuts_that_leave_one_token_are_greedy(kind: str) -> None:
    task, model = writer(kind)
    asked: dict[str, Any] = {"prompt": "the", "max_tokens": 9}
    wanted = one(task, model, temperature=0, **asked)
    for how in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}, {"beam_size": 1,
                "length_penalty": 0.0}):  # fmt: skip
        found = one(task, model, **{"seed": 1} if "beam_size" not in how else {}, **asked, **how)
        assert (found.text, found.tokens, found.finish_reason) == (wanted.text, wanted.tokens, wanted.finish_reason)
        assert found.score == pytest.approx(wanted.score)


@kinds
@settings(max_examples=12)
@given(
    stops=st.lists(st.text("the catsom.,'\n你", min_size=1, max_size=3), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_a_stop_text_cuts_where_it_is_complete_first(kind: str, stops: list[str], seed: int) -> None:
    task, model = writer(kind)
    asked: dict[str, Any] = {"prompt": "the", "max_tokens": 25, "seed": seed, "logprobs": 0}
    whole = one(task, model, **asked)
    cut = one(task, model, stop=stops, **asked)
    ends = [(found + len(stop), found) for stop in stops if (found := whole.text.find(stop)) >= 0]
    assert "".join(piece.text for piece in task.stream(model, GenerationInput(stop=stops, **asked))) == cut.text
    if not ends:
        assert cut == whole
        return
    assert cut.text == whole.text[: min(ends)[1]]
    assert cut.finish_reason == "stop"
    assert cut.tokens <= whole.tokens
    assert cut.score == pytest.approx(sum(token.log_prob for token in whole.logprobs[: cut.tokens]))
    # Tokens of which nothing is shown are not told; the others are those of the whole text.
    assert cut.logprobs == whole.logprobs[: len(cut.logprobs)]
    assert all(token.offset < len(cut.text) for token in cut.logprobs)
    shown = sum(token.offset < len(cut.text) for token in whole.logprobs)
    assert len(cut.logprobs) == shown


def test_a_stop_text_ends_a_searched_text_too() -> None:
    task, model = writer()
    asked: dict[str, Any] = {
        "prompt": "the", "max_tokens": 8, "beam_size": 3, "n": 3, "min_tokens": 8, "logprobs": 0,
    }  # fmt: skip
    for whole, cut in zip(
        ask(task, model, **asked).completions, ask(task, model, stop=["a", "t"], **asked).completions, strict=True
    ):
        place = min((whole.text.find(stop) % 99 for stop in ("a", "t")), default=99)
        assert cut.text == whole.text[:place]
        assert cut.finish_reason == ("stop" if place < 98 else "length")
        # What is counted and scored is what was added up to the stop text, as without a search.
        assert whole.logprobs is not None
        assert cut.score == pytest.approx(sum(token.log_prob for token in whole.logprobs[: cut.tokens]))


def test_a_prompt_is_no_place_to_stop() -> None:
    task, model = writer()
    asked: dict[str, Any] = {"prompt": "the cat", "temperature": 0, "max_tokens": 4, "min_tokens": 4}
    whole = one(task, model, **asked)
    assert one(task, model, stop=["cat"], echo=True, **asked).text == "the cat" + whole.text
    (last,) = {prompt[-1] for prompt in ("the cat",)}
    assert one(task, model, stop=[last + whole.text[0]], **asked).text == whole.text


def test_an_empty_prompt_starts_a_text() -> None:
    task, model = writer()
    output = ask(task, model, prompt="", temperature=0, max_tokens=1, min_tokens=1, logprobs=1)
    assert output.prompt_tokens == 0
    chances = log_probs(model, [])[0].clone()
    chances[[PAD, UNK, BOS, EOS]] = -math.inf
    assert output.completions[0].text == task.tokenizer.decode([int(chances.argmax())])
    assert output.completions[0].score == pytest.approx(float(chances.max()))


def test_ten_thousand_words_are_a_prompt() -> None:
    for kind in ("character", "word"):
        task, model = writer(kind)
        prompt = " ".join(["the cat sat on the mat"] * 1667)
        output = ask(task, model, prompt=prompt, max_tokens=3, temperature=0, min_tokens=3)
        ids = task.tokenizer.encode(prompt).ids
        assert output.prompt_tokens == len(ids) >= 10_000
        wanted = one(task, model, prompt=prompt[-600:].partition(" ")[2], max_tokens=3, temperature=0, min_tokens=3)
        # A network this small has forgotten by then what was first.
        assert output.completions[0].text == wanted.text


# Odd text


PARTS = (
    "\ud800", "\udfff", "\0", "🙂", "👩\u200d👧", "e\u0301", "\u0301", "\ufffd", "\u202e", "\u2028", "<eos>", "<0x41>",
    "\u2581", "\u0120", "\r\n", " ", "the", "\ufb01", "\u0130",
)  # fmt: skip
ODD = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)


@kinds
@settings(max_examples=15)
@given(prompt=ODD, stop=ODD, echo=st.booleans(), beams=st.sampled_from([None, 2]))
def test_odd_text_is_answered_and_the_answer_is_json(
    kind: str, prompt: str, stop: str, echo: bool, beams: int | None
) -> None:
    task, model = writer(kind)
    request = GenerationInput(
        prompt=prompt, stop=[stop] if stop else [], echo=echo, beam_size=beams, seed=0 if beams is None else None,
        max_tokens=4, logprobs=1, repetition_penalty=1.2, no_repeat_ngram_size=3,
    )  # fmt: skip
    (output,) = task.predict(model, [request])
    assert json.loads(output.model_dump_json()) == output.model_dump(mode="json")
    pieces = list(task.stream(model, request))
    for piece in pieces:
        piece.model_dump_json()
    assert "".join(piece.text for piece in pieces) == output.completions[0].text


def test_special_tokens_written_in_a_prompt_are_text() -> None:
    task, _ = writer()
    assert not {PAD, BOS, EOS} & set(task.tokenizer.encode("<eos><bos><pad>").ids)


def test_unknown_parts_are_noted_with_their_offset() -> None:
    task, model = writer()
    output = ask(task, model, prompt="the Z!\0", temperature=0, max_tokens=2)
    (note,) = [note for note in output.notes if "unknown" in note]
    assert "'Z' at 4" in note
    assert "'\\x00' at 6" in note
    assert "'!'" not in note
    assert output.prompt_tokens == 7
    many = ask(task, model, prompt="ZYXWVUQ", temperature=0, max_tokens=2).notes[-1]
    assert "2 more" in many
    words, word_model = writer("word")
    (note,) = ask(words, word_model, prompt="the zebra sat", temperature=0, max_tokens=2).notes
    assert "'zebra' at 4" in note
    every, byte_model = writer("byte_bpe")
    assert ask(every, byte_model, prompt="Z\0 zebra ж", temperature=0, max_tokens=2).notes == []


# What is refused, and what changes nothing


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature.*greater than or equal to 0"),
    ({"temperature": math.nan}, "temperature.*finite"),
    ({"temperature": math.inf}, "temperature.*finite"),
    ({"top_p": 0}, "top_p.*greater than 0"),
    ({"top_p": 1.5}, "top_p.*less than or equal to 1"),
    ({"top_p": math.nan}, "top_p.*finite"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"top_k": 0}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": math.nan}, "frequency_penalty"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": MOST_TOKENS + 1}, f"max_tokens.*{MOST_TOKENS}"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, more than max_tokens, 8"),
    ({"n": 0}, "n\n"),
    ({"n": 3, "beam_size": 2}, "n is 3, more than the 2 hypotheses that beam_size keeps"),
    ({"beam_size": 0}, "beam_size"),
    ({"beam_size": 4, "beam_groups": 3}, "beam_size 4 cannot be shared by 3 beam_groups"),
    ({"return_beams": True}, "return_beams belongs to a beam search"),
    ({"beam_groups": 2}, "beam_groups belongs to a beam search"),
    ({"diversity": 1.0}, "diversity belongs to a beam search"),
    ({"length_penalty": math.nan}, "length_penalty"),
    ({"stop": [""]}, "a stop text is empty"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"logit_bias": {"a": math.nan}}, "logit_bias"),
    ({"logit_bias": {"a": 101}}, "logit_bias"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt": None}, "prompt"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("fields", "says"), MISFITS, ids=lambda given: json.dumps(given)[:40])
def test_a_value_outside_its_range_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){says}") as caught:
        GenerationInput(**fields)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("condition", "fields", "says"),
    [
        ("none", {"beam_size": 60}, r"^beam_size: 60 is more than the \d+ tokens this model knows; at most \d+ fits"),
        ("none", {"logit_bias": {"zebra": 1}}, "^logit_bias: no token of this model is 'zebra'"),
        ("none", {"logit_bias": {"": 1}}, "^logit_bias: no token of this model is ''"),
        ("none", {"condition": "Greek"}, "^condition: this model was trained without; null fits"),
        ("none", {"condition": [1.0]}, "^condition: this model was trained without; null fits"),
        ("class", {}, "^condition: one of Greek, Welsh fits, not None"),
        ("class", {"condition": "Grek"}, "^condition: .*'Grek'.*Greek"),
        ("class", {"condition": ""}, "^condition: .*''.*Greek"),
        ("class", {"condition": [1.0, 0.0]}, r"^condition: one of Greek, Welsh fits, not \[1.0, 0.0\]"),
        ("features", {}, "^condition: 2 numbers fit, not None"),
        ("features", {"condition": "Greek"}, "^condition: 2 numbers fit, not 'Greek'"),
        ("features", {"condition": [1.0]}, r"^condition: 2 numbers fit, not \[1.0\]"),
        ("features", {"condition": [1.0] * 3}, r"^condition: 2 numbers fit, not \[1.0, 1.0, 1.0\]"),
        ("features", {"condition": []}, r"^condition: 2 numbers fit, not \[\]"),
        ("features", {"condition": [1.0, 1e38]}, "^condition: finite numbers fit"),
    ],
)
def test_what_does_not_fit_the_model_is_told_with_what_would(condition: str, fields: dict[str, Any], says: str) -> None:
    task, model = writer("character", condition)
    with pytest.raises(InputError, match=f"input 0: {says[1:]}"):
        ask(task, model, **fields)


def test_every_bad_request_of_a_call_is_told() -> None:
    task, model = writer()
    requests = [GenerationInput(), GenerationInput(beam_size=64), GenerationInput(), GenerationInput(condition="x")]
    with pytest.raises(InputError) as caught:
        task.predict(model, requests)
    assert list(caught.value.problems) == [1, 3]
    assert task.predict(model, []) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 0, "top_p": 0.5, "seed": 3}, ["top_p", "seed"]),
        ({"temperature": 0, "n": 2}, ["all 2 completions are equal"]),
        ({"beam_size": 2, "temperature": 0.5, "top_k": 3}, ["top_k", "temperature"]),
        ({"seed": 3, "top_p": 0.5, "n": 2}, []),
        ({"beam_size": 2, "n": 2}, []),
    ],
)
def test_options_that_change_nothing_are_noted(fields: dict[str, Any], told: list[str]) -> None:
    task, model = writer()
    output = ask(task, model, max_tokens=3, **fields)
    assert len(output.notes) == bool(told) * max(1, len(output.notes))
    assert all(any(part in note for note in output.notes) for part in told)
    neutral = {key: value for key, value in fields.items() if key not in ("seed", "top_p", "top_k", "temperature")}
    if told and "beam_size" in fields:
        same = ask(task, model, max_tokens=3, **neutral)
        assert [c.text for c in same.completions] == [c.text for c in output.completions]


# Data


@kinds
def test_bits_per_character_are_nats_over_characters_by_hand(kind: str) -> None:
    """With any tokenizer, as rows and as one stream."""
    task, model = writer(kind)
    passages = [Passage(text) for text in TEXTS]
    items = task.encode(passages)
    assert isinstance(items, list)
    with torch.inference_mode():
        _, totals = task.loss(model, task.collate(items))
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = [*task.tokenizer.encode(text).ids, EOS]
        nats -= float(log_probs(model, ids[:-1]).gather(1, torch.tensor(ids)[:, None]).sum())
        tokens += len(ids)
    scores = metrics.read(totals)
    assert scores["nll"] == pytest.approx(nats / tokens)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert scores["bits_per_character"] == pytest.approx(nats / math.log(2) / sum(map(len, TEXTS)))
    assert scores["unknown"] == 0


@kinds
def test_a_stream_closes_each_document_where_it_ends_and_counts_its_characters(kind: str) -> None:
    task = prepared(kind, reads="stream")
    stream = task.encode([Passage(TEXTS[0], False), Passage(TEXTS[1]), Passage(TEXTS[2], False)])
    assert isinstance(stream, Stream)
    encode = task.tokenizer.encode
    wanted = [*encode(TEXTS[0]).ids, *encode(TEXTS[1]).ids, EOS, *encode(TEXTS[2]).ids]
    assert stream.targets(0, len(stream)).tolist() == wanted
    assert stream.characters == sum(map(len, TEXTS))
    after = wanted.index(EOS) + 1
    assert stream.inputs(0, len(stream)).tolist()[after] == BOS
    assert EOS not in stream.inputs(0, len(stream)).tolist()


def test_rows_end_where_their_passage_does() -> None:
    task = prepared()
    items = task.encode([Passage("cat"), Passage("cat", False)])
    ids = task.tokenizer.encode("cat").ids
    assert isinstance(items, list)
    assert [item.ids for item in items] == [[*ids, EOS], ids]
    batch = task.collate(items)
    assert batch.inputs.tolist() == [[BOS, *ids], [BOS, *ids[:-1], PAD]]
    assert batch.scored.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert batch.characters == 6
    with pytest.raises(InputError, match="input 1: the text is empty"):
        task.encode([Passage("cat"), Passage("", False)])


def test_unknown_characters_are_counted_as_a_share() -> None:
    task, model = writer()
    items = task.encode([Passage("cZt")])
    assert isinstance(items, list)
    with torch.inference_mode():
        _, totals = task.loss(model, task.collate(items))
    assert metrics.read(totals)["unknown"] == pytest.approx(1 / 4)


def test_frequencies_are_those_of_the_text() -> None:
    for reads in ("rows", "stream"):
        task = prepared(reads=reads)
        items = task.encode([Passage("cat"), Passage("aac")])
        c, a, t = task.tokenizer.encode("cat").ids
        counts = unigrams(blocks(items), task.tokenizer.size)
        assert {index: int(n) for index, n in enumerate(counts) if n} == {c: 2, a: 3, t: 1, EOS: 2}
        pairs, times = bigrams(blocks(items))
        found = {tuple(pair): n for pair, n in zip(pairs.tolist(), times.tolist(), strict=True)}
        assert found == {(BOS, c): 1, (c, a): 1, (a, t): 1, (t, EOS): 1, (BOS, a): 1, (a, a): 1, (a, c): 1,
                         (c, EOS): 1}  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_was_fitted_comes_back(tmp_path: Path, condition: str) -> None:
    task, model = writer("byte_bpe", condition)
    task.save(tmp_path)
    again = TASKS.build({"kind": "generation", "tokenizer": TOKENIZERS["byte_bpe"], "reads": "rows"})
    again.restore(tmp_path)
    assert again.sizes() == task.sizes()
    given = CONDITIONS[condition][1]
    request = GenerationInput(prompt="naïve", seed=3, condition=list(given) if isinstance(given, tuple) else given)
    assert again.predict(model, [request]) == task.predict(model, [request])
    assert again.describe() == task.describe()


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"classes": ["a", "a"]}', '{"features": -1}', '{"features": "2"}', '{"other": 1}', '{"classes": [1]}',
     "\xff", '{"classes": ["a"], "features": 2}'],
)  # fmt: skip
def test_damaged_conditions_are_told(tmp_path: Path, content: str) -> None:
    task = prepared()
    task.save(tmp_path)
    (tmp_path / "conditions.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match=r"conditions.json: not the conditions of a text"):
        prepared().restore(tmp_path)
    (tmp_path / "conditions.json").unlink()
    with pytest.raises(BundleError, match=r"conditions.json"):
        prepared().restore(tmp_path)


@pytest.mark.parametrize(
    ("conditions", "place"),
    [
        (["a", None, "b"], 2),
        ([None, None, "b"], 3),
        ([None, (1.0,), (1.0,)], 2),
        (["a", "b", (1.0,)], 3),
        ([(1.0, 2.0), (1.0, 2.0), (1.0,)], 3),
    ],
)
def test_conditions_of_different_sorts_are_refused_with_the_example(conditions: list[Any], place: int) -> None:
    with pytest.raises(DataError, match=f"example 1 has the condition .* and example {place} "):
        prepared(conditions=conditions)


def test_a_stream_depends_on_nothing() -> None:
    with pytest.raises(DataError, match=r"task\.reads: rows fits"):
        prepared(conditions=["a", "b", "c"], reads="stream")
    with pytest.raises(DataError, match=r"task\.reads: rows fits"):
        prepared(conditions=[None, "b", "c"], reads="stream")


def test_an_example_of_validation_with_an_unknown_class_is_told() -> None:
    task = prepared(conditions=["Greek", "Welsh", "Greek"])
    with pytest.raises(InputError, match=r"input 1: condition: .*'Norse'"):
        task.encode([Passage("cat", True, "Welsh"), Passage("cat", True, "Norse")])


def test_each_line_of_a_file_or_of_each_file_of_a_folder_is_a_text_of_its_own(tmp_path: Path) -> None:
    for name, text in (("a.txt", "the cat\n\nsat\u2028on\n"), ("b.txt", "the mat"), ("c.txt", "a dog\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    task = Generation(tokenizer={"kind": "character"}, reads="lines")
    task.prepare(list(task.read_examples(tmp_path)))

    def lines(path: Path) -> list[str]:
        items = task.encode(list(task.read_examples(path)))
        assert not isinstance(items, Stream)
        assert all(item.ids[-1] == EOS and item.characters == len(item.ids) - 1 for item in items)
        return [task.tokenizer.decode(item.ids) for item in items]

    assert lines(tmp_path / "a.txt") == ["the cat", "sat\u2028on"]
    assert lines(tmp_path) == ["the cat", "sat\u2028on", "the mat", "a dog"]


def test_a_sample_is_the_same_each_time_and_of_each_class() -> None:
    task, model = writer("character", "class")
    text = task.sample(model)
    assert text == task.sample(model)
    assert [line.partition(":")[0] for line in text.splitlines() if ": " in line][:1] == ["Greek"]
    assert "\nWelsh: " in text
    plain, plain_model = writer()
    assert plain.sample(plain_model) == one(
        plain, plain_model, seed=0, temperature=0.8, max_tokens=300
    ).text + "\n"  # fmt: skip
