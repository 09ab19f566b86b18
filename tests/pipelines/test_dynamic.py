"""Dynamic evaluation: score first, then learn, and give the model back as it was."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pipelines.dynamic import Diverged, dynamic_scores, mean_squares, search
from seqapp import metrics
from seqapp.data.streams import Pieces, Span, Stream
from seqapp.data.tokenizers import EOS, UNK
from seqapp.errors import SeqappError
from seqapp.models.language_model import LanguageModel
from seqapp.models.registry import MODELS
from seqapp.nn.heads import FullSoftmax
from seqapp.tasks.generation import Generation

V = 12
LSTM = {"kind": "lstm", "hidden_size": 16}
RULES = [{"rule": "rms"}, {"rule": "sgd"}]


def language_model(encoder: dict[str, Any] = LSTM, head: str = "full", **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    spec = {"kind": "language_model", "encoder": encoder, "head": {"kind": head}, "embedding_size": 8, **options}
    model = MODELS.build(spec, vocabulary_size=V, classes=0)
    assert isinstance(model, LanguageModel)
    return model


def stream_of(ids: list[int], characters: int | None = None) -> Stream:
    return Stream.write([ids], characters, vocabulary_size=V)


def some(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = numpy.random.default_rng(seed).integers(4, V, count).tolist()
    ids[count // 3], ids[count // 2] = EOS, UNK
    return ids


def nll(model: LanguageModel, stream: Stream, **options: Any) -> float:
    return metrics.read(dynamic_scores(model, stream, **options))["nll"]


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize(
    "encoder",
    [LSTM, {"kind": "stack", "layers": [{"kind": "gru", "hidden_size": 9}, {"kind": "mingru", "hidden_size": 7}]}],
)
def test_without_learning_it_is_the_static_evaluation_of_one_row(
    encoder: dict[str, Any], options: dict[str, Any]
) -> None:
    model, stream = language_model(encoder, output_dropout=0.5), stream_of(some(101), characters=77)
    model.eval()
    task, carry = Generation(), None
    totals: dict[str, metrics.Metric] = {}
    with torch.no_grad():
        for piece in Pieces(stream, [Span(0, len(stream))], steps=8):
            _, found, carry = task.loss_carried(model, piece, carry)
            totals = metrics.add(totals, found)
    wanted = metrics.read(totals)
    found = metrics.read(dynamic_scores(model.train(), stream, learning_rate=0, decay=0.5, steps=8, **options))
    assert set(found) == set(wanted)
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("options", [*RULES, {"rule": "rms", "squares": True}])
def test_updates_are_those_of_the_equations(options: dict[str, Any]) -> None:
    model, stream = language_model().double(), stream_of(some(40))
    steps, rate, decay, epsilon = 7, 0.01, 0.2, 1e-3
    given = mean_squares(model, stream_of(some(50, seed=1)), steps=steps) if options.get("squares") else None
    found = nll(model, stream, learning_rate=rate, decay=decay, steps=steps,
                rule=options["rule"], epsilon=epsilon, squares=given)  # fmt: skip

    names = list(dict(model.named_parameters()))
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    weights, squares = dict(trained), {name: torch.zeros_like(weight) for name, weight in trained.items()}
    ids, total, carry = stream.targets(0, 40), 0.0, None
    for segment, start in enumerate(range(0, 40, steps), 1):
        stop = min(start + steps, 40)
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        inputs = torch.from_numpy(stream.inputs(start, stop))[None]
        x, carry = torch.func.functional_call(model, leaves, (inputs, None, carry))
        logits = x[0] @ leaves["head.project.weight"].T + leaves["head.project.bias"]
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(ids[start:stop]))
        total += loss.item() * (stop - start)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        carry = tuple(leaf.detach() for leaf in carry)
        if options["rule"] == "sgd":
            weights = {n: w + decay * (trained[n] - w) - rate * gradients[n] for n, w in weights.items()}
            continue
        squares = {n: (s * (segment - 1) + gradients[n] ** 2) / segment for n, s in squares.items()}
        roots = {n: s.sqrt() for n, s in squares.items()}
        if given is not None:
            roots = {n: s.sqrt() for n, s in zip(names, given, strict=True)}
        mean = torch.cat([root.flatten() for root in roots.values()]).mean()
        weights = {
            n: w
            + (decay * roots[n] / mean).clamp(max=1) * (trained[n] - w)
            - rate * gradients[n] / (roots[n] + epsilon)
            for n, w in weights.items()
        }
    assert found == pytest.approx(total / 40, rel=1e-9)


@pytest.mark.parametrize("options", RULES)
def test_a_score_depends_on_nothing_that_comes_later(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, scored = language_model(), some(96), []

    def loss(head: FullSoftmax, x: Tensor, targets: Tensor) -> Tensor:
        nats = nn.functional.cross_entropy(head.logits(x), targets, reduction="none")
        scored.extend(nats.tolist())
        return nats.mean()

    monkeypatch.setattr(FullSoftmax, "loss", loss)

    def scores(ids: list[int]) -> list[float]:
        scored.clear()
        dynamic_scores(model, stream_of(ids), learning_rate=0.01, steps=8, **options)
        return list(scored)

    whole = scores(ids)
    assert len(whole) == 96
    for known in (8, 13, 64):
        other = scores([*ids[:known], *[UNK] * (96 - known)])
        assert other[:known] == pytest.approx(whole[:known], rel=1e-6)
        assert other[known:] != pytest.approx(whole[known:], rel=1e-2)
    assert scores(ids[:13]) == pytest.approx(whole[:13], rel=1e-6)


@pytest.mark.parametrize("options", RULES)
def test_the_model_is_given_back_as_it_was(options: dict[str, Any]) -> None:
    model, stream = language_model().train(), stream_of(some(60))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.inference_mode():
        first = nll(model, stream, learning_rate=0.05, steps=5, **options)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert first == nll(model, stream, learning_rate=0.05, steps=5, **options)
    assert first != pytest.approx(nll(model, stream, learning_rate=0, steps=5), rel=1e-3)


@pytest.mark.parametrize("head", ["full", "sampled", "target_sampling", "nce", "self_normalised", "adaptive", "tied"])
def test_every_head_learns_by_its_exact_scores(head: str) -> None:
    options = {"head": "sampled", "tied": True} if head == "tied" else {"head": head}
    model, stream = language_model(**options), stream_of(some(200))
    plain = nll(model, stream, learning_rate=0)
    with torch.no_grad():
        x, _ = model.eval()(torch.from_numpy(stream.inputs(0, 200))[None])
        exact = nn.functional.cross_entropy(model.head.logits(x[0]), torch.from_numpy(stream.targets(0, 200)))
    assert plain == pytest.approx(exact.item(), rel=1e-5)
    # Half of the vocabulary's random tokens never come, which is soon learned.
    few = stream_of([token - token % 2 for token in some(200)])
    assert nll(model.train(), few, learning_rate=0.01, steps=5) < 0.95 * nll(model, few, learning_rate=0)


TWICE = numpy.repeat(numpy.random.default_rng(3).integers(4, 8, 150), 2).tolist()
"""A text in which every token comes twice."""


@lru_cache
def trained() -> LanguageModel:
    model, text = language_model(), torch.tensor(TWICE)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        x, _ = model(text[None, :-1])
        optimiser.zero_grad()
        model.head.loss(x[0], text[1:]).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": 1e-2}, {"learning_rate": 2e-3, "squares": True}, {"learning_rate": 0.3, "rule": "sgd"}],
)
def test_it_learns_what_a_text_repeats_and_training_never_showed(options: dict[str, Any]) -> None:
    model, odd = trained(), stream_of([8, 4, 9, 5, 10] * 60)
    if "squares" in options:
        options = {**options, "squares": mean_squares(model, stream_of(TWICE), steps=10)}
    assert nll(model, odd, steps=10, **options) < 0.6 * nll(model, odd, learning_rate=0)


def test_decay_leads_back_to_the_trained_weights() -> None:
    model, stream = language_model(), stream_of(some(90))
    still = nll(model, stream, learning_rate=0)
    # A step of SGD comes after the way back, so one step is left of all of them.
    far, near = (nll(model, stream, learning_rate=0.05, decay=decay, steps=3, rule="sgd") for decay in (0.0, 1.0))
    assert abs(near - still) < 0.5 * abs(far - still)


def test_mean_squares_are_those_of_the_segments_read() -> None:
    model, ids = language_model().double(), some(25)
    squares = mean_squares(model, stream_of(ids), steps=10, segments=2)
    same = mean_squares(model, stream_of(ids[:20]), steps=10)
    assert all(torch.equal(one, other) for one, other in zip(squares, same, strict=True))
    first = mean_squares(model, stream_of(ids[:10]), steps=10)
    x, _ = model.eval()(torch.from_numpy(stream_of(ids).inputs(0, 10))[None])
    model.head.loss(x[0], torch.from_numpy(stream_of(ids).targets(0, 10))).backward()
    for weight, square in zip(model.parameters(), first, strict=True):
        assert weight.grad is not None
        assert torch.allclose(square, weight.grad**2)


def test_the_search_tries_all_and_puts_the_best_first() -> None:
    model, stream = language_model(), stream_of([4, 5, 6, 7] * 40)
    found = search(model, stream, learning_rate=(0.0, 5e-3, 1e38), steps=(10,), decay=(0.0, 0.1))
    assert len(found) == 6
    assert [nats for _, nats in found] == sorted(nats for _, nats in found)
    assert found[0][0]["learning_rate"] == 5e-3
    assert found[0][1] == nll(model, stream, **found[0][0])
    assert {options["learning_rate"] for options, nats in found if nats == math.inf} == {1e38}


def test_a_loss_that_is_no_number_is_told_even_in_the_last_segment() -> None:
    # The first step ruins the head alone, whose inputs stay finite.
    model = language_model()
    with torch.no_grad():
        model.head.project.bias[4] = -math.inf
    with pytest.raises(Diverged, match="after 5 tokens"):
        nll(model, stream_of([5, 6, 7, 8, 9, 4]), steps=5)


def test_leaving_the_range_of_numbers_is_told() -> None:
    with pytest.raises(Diverged, match=r"no longer finite after \d+ tokens; a learning_rate below 1e\+38 fits"):
        nll(language_model(), stream_of(some(200)), learning_rate=1e38, steps=5)


def test_a_model_that_is_no_good_from_the_start_is_not_blamed_on_learning() -> None:
    model = language_model()
    with torch.no_grad():
        model.embedding.weight.fill_(math.nan)
    with pytest.raises(SeqappError, match="the model cannot be evaluated: LSTM"):
        nll(model, stream_of(some(20)))


def test_weights_that_lie_askew_learn_too() -> None:
    straight, askew, stream = language_model(), language_model(), stream_of(some(60))
    weight = askew.head.project.weight
    weight.data = weight.data.T.contiguous().T
    options = {"learning_rate": 0.01, "steps": 5}
    assert nll(askew, stream, **options) == pytest.approx(nll(straight, stream, **options), rel=1e-5)


def test_a_model_with_a_condition_is_refused() -> None:
    spec = {"kind": "language_model", "encoder": LSTM, "embedding_size": 8}
    with pytest.raises(SeqappError, match="a model with a condition reads texts of their own"):
        dynamic_scores(MODELS.build(spec, vocabulary_size=V, classes=2), stream_of(some(20)))


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": -1.0}, {"learning_rate": math.nan}, {"decay": 1.5}, {"steps": 0}, {"epsilon": 0.0},
     {"rule": "sgd", "squares": []}, {"squares": []},
     {"squares": [torch.zeros(2, 2)]}],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fit"):
        dynamic_scores(language_model(), stream_of(some(20)), **options)
