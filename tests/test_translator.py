"""The translator: what is searched is what is trained, and it learns a toy language.

B batch, S source length, T target length, K beams, U source tokens, V target tokens.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from seqapp.beam_search import Hypothesis, beam_search
from seqapp.data.batching import pad
from seqapp.data.tokenizers import BOS, EOS, PAD, UNK
from seqapp.decoding import generate
from seqapp.errors import ConfigError
from seqapp.models.registry import MODELS
from seqapp.models.translator import Bridge, Translator
from seqapp.nn.recurrent import RECURRENT, map_carry, valid_mask

U, V, E = 12, 10, 6
LSTM, GRU = ({"kind": kind, "hidden_size": E} for kind in ("lstm", "gru"))
BOTH_WAYS = {"kind": "birnn", "layer": {"kind": "lstm", "hidden_size": 3}}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"encoder": LSTM, "decoder": LSTM, "attention": {"kind": "none"}, "layer_norm": True},
    "plain both ways": {
        "encoder": {"kind": "stack", "layers": [BOTH_WAYS, BOTH_WAYS]}, "decoder": GRU, "upper": LSTM,
        "attention": {"kind": "none"},
    },
    "general": {"encoder": BOTH_WAYS, "decoder": GRU},
    "deep": {
        "encoder": {"kind": "stack", "layers": [BOTH_WAYS, LSTM]}, "decoder": LSTM, "upper": GRU, "layer_norm": True,
        "attention": {"kind": "multi_head", "heads": 2, "size": 4}, "tied": "target",
        "head": {"kind": "full", "label_smoothing": 0.1},
    },
    "feeding": {
        "encoder": BOTH_WAYS, "decoder": {"kind": "stack", "layers": [LSTM, GRU]}, "upper": GRU, "layer_norm": True,
        "attention": {"kind": "additive", "size": 4}, "input_feeding": True, "read_out_size": 5,
    },
    "merged": {
        "encoder": {**BOTH_WAYS, "merge": "mean"}, "decoder": {"kind": "gru", "hidden_size": 3}, "bridge": False,
        "attention": {"kind": "dot"}, "input_feeding": True,
    },
    "dropped": {
        "encoder": {"kind": "variational", "layer": GRU, "input_dropout": 0.3},
        "decoder": {"kind": "variational", "layer": LSTM, "input_dropout": 0.3, "recurrent_dropout": 0.4},
        "upper": {"kind": "weight_dropout", "layer": LSTM}, "head": {"kind": "adaptive", "cutoffs": [5]},
    },
}  # fmt: skip
SOURCES = [[5, 6, 7, 8, 9, EOS], [10, EOS], [4, 4, 11, EOS]]
TARGETS = [[4, 5, EOS], [6, 7, 8, 9, 9, 4, EOS], [UNK, EOS]]


def build(name: str, *, spread: float = 0.5, **more: Any) -> Translator:
    """A model in which no weight is zero, so that none can be forgotten unnoticed."""
    spec = {"kind": "translator", "embedding_size": E, **CONFIGS[name], **more}
    model = MODELS.build(spec, source_size=U, vocabulary_size=V, classes=0)
    assert isinstance(model, Translator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-spread, spread))
    return model.double().eval()


def batch(sources: list[list[int]] = SOURCES, targets: list[list[int]] = TARGETS) -> tuple[Tensor, ...]:
    """source (B, S), its lengths, inputs (B, T), targets (B, T), lengths (B,)."""
    inputs, lengths = pad([[BOS, *target[:-1]] for target in targets])
    return *pad(sources), inputs, pad(targets)[0], lengths


def loss_of(model: Translator, *given: Tensor) -> Tensor:
    source, source_lengths, inputs, targets, lengths = given
    y, _ = model(source, source_lengths, inputs, lengths)
    valid = valid_mask(lengths, y.shape[1])
    return model.head.loss(y[valid], targets[valid])


def search(model: Translator, sources: list[list[int]], beam_size: int, max_steps: int = 8) -> list[list[Hypothesis]]:
    step, carry, tokens = model.start(sources, beam_size)
    return beam_search(step, carry, tokens, eos_id=EOS, beam_size=beam_size, max_steps=max_steps, n_best=beam_size).rows


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_a_search_finds_has_the_probability_that_training_gives_it(name: str) -> None:
    model = build(name)
    for source, found in zip(SOURCES, search(model, SOURCES, 4), strict=True):
        assert len(found) == 4
        for one in found:
            said = [*one.tokens, *([EOS] if one.finished else [])]
            inputs = torch.tensor([[BOS, *said[:-1]]])
            with torch.no_grad():
                y, _ = model(torch.tensor([source]), torch.tensor([len(source)]), inputs)
                log_probs = model.head.logits(y[0]).log_softmax(-1)[range(len(said)), said]
                assert_close(model.head.nll(y[0], torch.tensor(said)), -log_probs)
            assert one.log_probs == pytest.approx(log_probs.tolist())
            assert one.log_prob == pytest.approx(float(log_probs.sum()))


def test_a_batch_is_searched_as_its_rows_alone(name: str) -> None:
    model = build(name)
    together = search(model, SOURCES, 3)
    for source, found in zip(SOURCES, together, strict=True):
        (alone,) = search(model, [source], 3)
        assert [one.tokens for one in found] == [one.tokens for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone])


def test_a_batch_answers_as_its_rows_alone_whatever_the_padding_holds(name: str) -> None:
    model = build(name)
    source, source_lengths, inputs, _, lengths = batch()
    junk = torch.randint(0, U, (len(source), source.shape[1] + 3))
    source = torch.where(valid_mask(source_lengths, junk.shape[1]), torch.nn.functional.pad(source, (0, 3)), junk)
    inputs = torch.where(valid_mask(lengths, inputs.shape[1]), inputs, torch.randint(0, V, inputs.shape))
    y, weights = model(source, source_lengths, inputs, lengths)
    for row, (one, said) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone, looks = model(torch.tensor([one]), torch.tensor([len(one)]), torch.tensor([[BOS, *said[:-1]]]))
        assert_close(y[row, : len(said)], alone[0])
        if model.aligned:
            assert_close(weights[row, : len(said), : len(one)], looks[0])
            assert not weights[row, : len(said), len(one) :].any()


def test_every_parameter_gets_a_gradient_of_what_is_valid_alone(name: str) -> None:
    model = build(name).train()
    loss_of(model, *batch()).backward()
    dead = {part for part, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert dead <= {"decoder.attention.key.bias"}, "what is added to every key alike changes no softmax"
    grown = model.source_embedding.weight.grad
    assert grown is not None
    assert sorted(grown.any(1).nonzero().flatten().tolist()) == sorted({index for row in SOURCES for index in row})


def test_copies_are_narrowed_and_counted_with_their_source(name: str) -> None:
    model = build(name)
    step, carry, tokens = model.start(SOURCES, 2, coverage=True)
    assert tokens.tolist() == [BOS] * 6
    inputs = torch.tensor([[4, 5, 6], [7, 8, 9]] * 3)
    places = torch.tensor([2, 0])
    rows = torch.tensor([4, 5, 0, 1])
    with torch.no_grad():
        fewer, some = step.take(places), map_carry(lambda leaf: leaf[rows], carry)
        for now in inputs.unbind(1):
            logits, carry = step(now, carry)
            less, some = fewer(now[rows], some)
            assert_close(less, logits[rows])
        map_carry(lambda one, other: assert_close(one, other[rows]) or one, some, carry)
        source, lengths = (part.repeat_interleave(2, 0) for part in pad(SOURCES))
        _, weights = model(source, lengths, inputs)
    if model.aligned:
        assert_close(carry[1], weights.sum(1) + (source == PAD), check_dtype=False)


@pytest.mark.parametrize("more", [{"bridge": True}, {"attention": {"kind": "none"}}])
def test_merged_outputs_start_no_decoder_and_sum_up_no_source(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="merge: concat fits"):
        build("merged", **more)


@pytest.mark.parametrize(
    "network",
    [
        LSTM,
        GRU,
        {"kind": "stack", "layers": [LSTM, GRU, LSTM]},
        {"kind": "variational", "layer": LSTM, "input_dropout": 0.5, "recurrent_dropout": 0.5},
        {"kind": "weight_dropout", "layer": {"kind": "variational", "layer": GRU, "input_dropout": 0.5}},
        {"kind": "stack", "layers": [{"kind": "variational", "layer": GRU, "recurrent_dropout": 0.5}, LSTM]},
    ],
    ids=str,
)
def test_a_bridge_starts_every_state_and_leaves_masks_alone(network: dict[str, Any]) -> None:
    layer = RECURRENT.build(network, input_size=4).train()
    bridge, summary = Bridge(5, layer), torch.randn(50, 5)
    states: list[Tensor] = []
    started = bridge(summary, layer, layer.initial_carry(50, summary))
    layer.map_state(lambda leaf: states.append(leaf) or leaf, started)  # type: ignore[func-returns-value]
    kinds = str(network)
    assert len(states) == 2 * kinds.count("lstm") + kinds.count("gru")
    assert_close(torch.cat(states, 1), torch.tanh(summary @ bridge.project.weight.T + bridge.project.bias))
    leaves: list[Tensor] = []
    map_carry(lambda leaf: leaves.append(leaf) or leaf, started)  # type: ignore[func-returns-value]
    masks = [leaf for leaf in leaves if not any(leaf is state for state in states)]
    assert len(masks) == 2 * kinds.count("variational")
    for mask in masks:
        assert set(mask.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert any((mask == 0).any() for mask in masks) == bool(masks)
    y, _ = layer(torch.randn(50, 3, 4), None, started)
    (gradient,) = torch.autograd.grad(y.square().sum(), bridge.project.weight)
    assert gradient.any(1).all(), "every unit of every state matters"


def test_without_a_bridge_the_decoder_starts_from_zero() -> None:
    for bridge in (False, True):
        _, (lower, *_) = build("general", bridge=bridge).encode(*pad(SOURCES))
        assert bool(lower.any()) is bridge


@pytest.mark.parametrize("tied", ["none", "target", "all"])
def test_tied_tables_are_one_parameter(tied: str) -> None:
    spec = {"kind": "translator", "embedding_size": E, "tied": tied, **CONFIGS["general"]}
    model = MODELS.build(spec, source_size=V, vocabulary_size=V, classes=0)
    assert isinstance(model, Translator)
    tables = [model.source_embedding.weight, model.target_embedding.weight, model.head.get_parameter("project.weight")]
    assert len({id(table) for table in tables}) == {"none": 3, "target": 2, "all": 1}[tied]
    assert (tables[1] is tables[2]) == (tied != "none")
    given = batch([[8, EOS]], [[5, EOS]])
    loss_of(model.train(), *given).backward()
    gradient = model.target_embedding.weight.grad
    assert gradient is not None
    assert bool(gradient[8].any()) == (tied != "none")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dropped"])
@pytest.mark.parametrize("option", ["source", "target", "memory", "decoder", "output"])
def test_each_dropout_drops_in_training_alone_and_the_same_for_all_steps(name: str, option: str) -> None:
    model = build(name, **{f"{option}_dropout": 0.5})
    given = batch()[:3]
    quiet, _ = model(*given)
    loud, _ = model.train()(*given)
    assert not torch.allclose(loud, quiet)
    if option == "output":
        share = loud / quiet
        assert_close(share, share[:, :1].expand_as(share))
    assert torch.equal(model.eval()(*given)[0], quiet)


def forced(model: Translator, rate: float, *given: Tensor) -> Tensor:
    """What scheduled sampling reads, token by token."""
    source, source_lengths, inputs, _, lengths = given
    model.forcing = lambda progress: rate
    seen: list[Tensor] = []
    with model.target_embedding.register_forward_hook(lambda module, read, result: seen.append(read[0])):  # type: ignore[func-returns-value]
        model.train()(source, source_lengths, inputs, lengths)
    return seen[-1]


@pytest.mark.parametrize("name", ["general", "deep", "feeding"])
def test_scheduled_sampling_reads_the_right_tokens_or_the_models_own(name: str) -> None:
    model = build(name)
    given = batch(SOURCES * 40, TARGETS * 40)
    source, source_lengths, inputs, _, lengths = given
    own = inputs.clone()
    with torch.no_grad():
        for row in range(len(SOURCES)):
            size = int(source_lengths[row])
            step, carry, _ = model.start([source[row, :size].tolist()])
            for t in range(int(lengths[row]) - 1):
                logits, carry = step(inputs[row, t : t + 1], carry)
                own[row :: len(SOURCES), t + 1] = logits.argmax(-1)
    assert not torch.equal(own, inputs)
    assert torch.equal(forced(model, 1.0, *given), inputs)
    assert torch.equal(forced(model, 0.0, *given), own)
    mixed = forced(model, 0.7, *given)
    assert bool(((mixed == inputs) | (mixed == own)).all())
    differs = inputs != own
    right = (mixed == inputs)[differs].double().mean().item()
    assert right == pytest.approx(0.7, abs=4 * (0.21 / int(differs.sum())) ** 0.5)
    assert (mixed[:, 0] == BOS).all()
    assert (mixed[~valid_mask(lengths, inputs.shape[1])] == PAD).all()


def test_forcing_goes_by_the_progress_of_the_training_and_ends_with_it() -> None:
    model = build("general", forcing={"kind": "linear", "start": 1.0, "end": 0.0})
    assert model.forcing is not None
    given = batch(SOURCES * 10, TARGETS * 10)
    expected, _ = model(*given[:3], given[4])
    for progress, same in ((0.0, True), (1.0, False)):
        model.progress = progress
        assert torch.allclose(model.train()(*given[:3], given[4])[0], expected) is same
        assert torch.equal(model.eval()(*given[:3], given[4])[0], expected)
    assert build("general").forcing(0.5) == 1.0  # type: ignore[misc]


def test_bfloat16_is_close(name: str) -> None:
    model = build(name, spread=0.1).float()
    given = batch()
    expected = loss_of(model, *given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, *given)
    assert_close(loss.float(), expected, rtol=0.02, atol=0.02)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tied": "all"}, "the source has 12 tokens and the target 10; task.shared: true, or tied: target, fits"),
        ({"tied": "target", "read_out_size": 5}, "read_out_size must be 6, not 5"),
        ({"attention": {"kind": "dot"}, "decoder": {"kind": "gru", "hidden_size": 4}}, "equal sizes fit, or the kind"),
        ({"decoder": {"kind": "tdnn", "hidden_size": 4}}, "bridge: .* keeps no state .*; bridge: false fits"),
        ({"decoder": BOTH_WAYS}, "birnn"),
    ],
)
def test_what_does_not_fit_is_told(more: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        build("general", **more)


DIGITS = range(4, 14)


def learn(lengths: range, steps: int, **spec: Any) -> tuple[float, Translator]:
    """Train to reverse strings of digits; the share of unseen strings that greedy decoding gets whole."""
    chance = random.Random(0)

    def draw(count: int) -> list[list[int]]:
        return [chance.choices(DIGITS, k=chance.choice(lengths)) for _ in range(count)]

    asked = draw(100)
    unseen = set(map(tuple, asked))
    model = MODELS.build({"kind": "translator", "tied": "all", **spec}, source_size=14, vocabulary_size=14, classes=0)
    assert isinstance(model, Translator)
    model.train()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.015, total_steps=steps)
    for _ in range(steps):
        rows = [row for row in draw(64) if tuple(row) not in unseen]
        given = batch([[*row, EOS] for row in rows], [[*row[::-1], EOS] for row in rows])
        optimizer.zero_grad()
        loss_of(model, *given).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        step, carry, tokens = model.start([[*row, EOS] for row in asked])
        said = generate(step, carry, tokens, eos_id=EOS, max_steps=max(lengths) + 2).tokens.tolist()
    right = [list(itertools.takewhile(lambda token: token != EOS, one)) == row[::-1]
             for one, row in zip(said, asked, strict=True)]  # fmt: skip
    return sum(right) / len(right), model


def test_with_attention_it_learns_to_reverse_strings() -> None:
    share, model = learn(range(3, 8), 140, embedding_size=32, encoder={"kind": "birnn", "layer": {"kind": "gru",
                         "hidden_size": 32}}, decoder={"kind": "gru", "hidden_size": 64})  # fmt: skip
    assert share > 0.95
    # It has found out by itself that the last is the first.
    row = [4, 9, 5, 8, 6]
    _, weights = model(torch.tensor([[*row, EOS]]), torch.tensor([6]), torch.tensor([[BOS, *row[::-1]]]))
    assert weights[0, :5].argmax(-1).tolist() == [4, 3, 2, 1, 0]


def test_without_attention_it_learns_to_reverse_short_strings() -> None:
    share, _ = learn(range(2, 4), 120, embedding_size=32, encoder={"kind": "gru", "hidden_size": 64},
                     decoder={"kind": "gru", "hidden_size": 64}, attention={"kind": "none"})  # fmt: skip
    assert share > 0.5
