"""A language model is one distribution, however it is read: whole, in pieces, step by step, alone or in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqapp.data.tokenizers import BOS
from seqapp.models.language_model import LARGE, READ_AT_ONCE, LanguageModel
from seqapp.models.registry import MODELS
from seqapp.nn.recurrent import RECURRENT, map_carry

V = 11
KINDS: dict[str, dict[str, Any]] = {
    "stack": {"layers": [{"kind": "lstm", "hidden_size": 6}, {"kind": "gru", "hidden_size": 6}], "dropout": 0.2,
              "residual": True, "skip_to_output": True},
    "variational": {"layer": {"kind": "lstm", "hidden_size": 6}, "recurrent_dropout": 0.2},
    "weight_dropout": {"layer": {"kind": "lstm", "hidden_size": 6}, "dropout": 0.2},
}  # fmt: skip
"""What networks made of networks need; the others need sizes."""


def options(kind: str) -> dict[str, Any]:
    sizes = {name: 6 for name, option in RECURRENT[kind].options.items() if option.required and name.endswith("_size")}
    return {"kind": kind, **KINDS.get(kind, sizes)}


def model_of(encoder: dict[str, Any], *, conditions: int = 0, **more: Any) -> LanguageModel:
    torch.manual_seed(3)
    spec = {"kind": "language_model", "encoder": encoder, "embedding_size": 5, **more}
    model = MODELS.build(spec, vocabulary_size=V, classes=conditions).double().eval()
    assert isinstance(model, LanguageModel)
    return model


def log_probs(model: LanguageModel, ids: list[int], condition: Tensor | None = None) -> Tensor:
    """log p of each token after BOS, read at once: (T, V)."""
    x, _ = model(torch.tensor([[BOS, *ids]]), condition=condition)
    return model.head.logits(x[0]).log_softmax(-1)


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_stepping_after_a_prompt_equals_reading_the_text_at_once(kind: str) -> None:
    model = model_of(options(kind))
    prompts = [[], [7], [4, 5, 6, 9, 4]]
    goes_on = [8, 3, 10]
    with torch.inference_mode():
        step, carry, tokens = model.start(prompts)
        seen = []
        for token in goes_on:
            logits, carry = step(tokens, carry)
            seen.append(logits.log_softmax(-1))
            tokens = torch.full_like(tokens, token)
        for row, prompt in enumerate(prompts):
            wanted = log_probs(model, [*prompt, *goes_on[:-1]])[len(prompt) :]
            torch.testing.assert_close(torch.stack(seen, 1)[row], wanted)


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_reading_in_pieces_equals_reading_at_once(kind: str) -> None:
    model = model_of(options(kind))
    ids = torch.randint(3, V, (2, 9))
    with torch.inference_mode():
        whole, _ = model(ids)
        first, carry = model(ids[:, :4])
        second, _ = model(ids[:, 4:], carry=carry)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_copies_of_a_row_stand_beside_each_other() -> None:
    model = model_of(options("lstm"))
    with torch.inference_mode():
        step, carry, tokens = model.start([[4, 5], [6]], copies=3)
        alone, (one, other) = model.start([[4, 5], [6]])[0], model.start([[4, 5], [6]])[1]
        assert tokens.tolist() == [5, 5, 5, 6, 6, 6]
        logits, _ = step(tokens, carry)
        single, _ = alone(torch.tensor([5, 6]), (one, other))
    torch.testing.assert_close(logits, single.repeat_interleave(3, 0))


@pytest.mark.parametrize("at", ["start", "every step"])
@pytest.mark.parametrize("kind", ["elman", "gru", "stack", "tdnn", "variational"])
def test_a_condition_changes_what_is_said_and_follows_its_row(kind: str, at: str) -> None:
    model = model_of(options(kind), conditions=3, condition_at=at)
    condition = torch.eye(3, dtype=torch.double)
    with torch.inference_mode():
        step, carry, tokens = model.start([[4]] * 3, condition)
        logits, after = step(tokens, carry)
        for row in range(3):
            wanted = log_probs(model, [4], condition[row : row + 1])[-1]
            torch.testing.assert_close(logits[row].log_softmax(-1), wanted)
        assert not torch.allclose(logits[0], logits[1])
        # A search reorders the carry, and the condition must go with its row.
        order = torch.tensor([2, 0, 1])
        again, _ = step(tokens, map_carry(lambda leaf: leaf[order], after))
        straight, _ = step(tokens, after)
    torch.testing.assert_close(again, straight[order])


@pytest.mark.parametrize("size", [5, 6])
def test_a_tied_table_is_one_parameter_and_learns_from_both_sides(size: int) -> None:
    encoder = {"kind": "gru", "hidden_size": size}
    model = model_of(encoder, tied=True).train()
    assert model.head.project.weight is model.embedding.weight
    assert (model.bridge is None) == (size == 5)
    x, _ = model(torch.tensor([[4, 5]]))
    model.head.loss(x[0], torch.tensor([6, 7])).backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert bool(gradient[[4, 5, 6, 7, 9]].any(1).all()), "read, wanted, and only summed over"


def test_training_draws_new_masks_for_each_piece() -> None:
    model = model_of(options("variational"), output_dropout=0.5).train()
    ids = torch.full((1, 4), 5)
    _, carry = model(ids)
    torch.manual_seed(0)
    masks = [model(ids, carry=carry)[1][2] for _ in range(6)]
    assert any(not torch.equal(masks[0], mask) for mask in masks)


def test_sparse_heads_touch_only_the_rows_they_need() -> None:
    model = model_of({"kind": "lstm", "hidden_size": 5}, head={"kind": "sampled", "samples": 3, "proposal": "uniform"})
    model.float().train()
    x, _ = model(torch.tensor([[4, 5, 5]]))
    model.head.loss(x[0], torch.tensor([5, 5, 6])).backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert gradient.coalesce().indices()[0].tolist() == [4, 5]


def test_one_long_prompt_beside_many_short_ones_takes_the_memory_of_its_pieces() -> None:
    model = model_of({"kind": "lstm", "hidden_size": 5}, embedding_size=64)
    longest = 0

    def watch(layer: Any, given: tuple[Tensor, ...], result: Any) -> None:
        nonlocal longest
        longest = max(longest, given[0].shape[1])

    with torch.inference_mode(), model.encoder.register_forward_hook(watch):
        _, carry, _ = model.start([[4, 5, 6] * 1000, *[[7]] * 9])
        _, alone, _ = model.start([[4, 5, 6] * 1000])
    assert longest == READ_AT_ONCE
    torch.testing.assert_close(carry[0][0], alone[0][0])


def test_a_large_table_that_no_dense_head_shares_gets_sparse_gradients() -> None:
    encoder = {"kind": "gru", "hidden_size": 6}
    for size, tied, sparse in ((LARGE, False, True), (LARGE - 1, False, False), (LARGE, True, False)):
        spec = {"kind": "language_model", "encoder": encoder, "embedding_size": 6, "tied": tied}
        model = MODELS.build(spec, vocabulary_size=size, classes=0)
        assert isinstance(model, LanguageModel)
        x, _ = model(torch.tensor([[4, 5]]))
        model.head.loss(x[0], torch.tensor([6, 7])).backward()
        gradient = model.embedding.weight.grad
        assert gradient is not None
        assert gradient.is_sparse == sparse
