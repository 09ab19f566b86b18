"""Laws of the n-gram vectors and of adversarial training."""

import pytest
import torch
from torch import Tensor

from seqapp.models.classifier import Classifier, build_classifier
from seqapp.nn.embedding import NgramEmbedding

UNK = 1


def filled(longest: int = 3, dropout: float = 0.0) -> NgramEmbedding:
    torch.manual_seed(0)
    layer = NgramEmbedding(longest, 4, buckets=997, dropout=dropout, unk=UNK).eval()
    torch.nn.init.normal_(layer.weight)
    return layer


def test_a_position_sees_the_ngrams_that_end_there_and_nothing_else() -> None:
    layer = filled()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    y = layer(ids)
    assert torch.equal(y[0, 0], torch.zeros(4))
    torch.testing.assert_close(y[0, 3], layer(torch.tensor([[6, 7, 8]]))[0, 2])
    other = ids.clone()
    other[0, 0] = 50
    torch.testing.assert_close(layer(other)[0, 3:], y[0, 3:])
    assert not torch.allclose(layer(other)[0, 1:3], y[0, 1:3])


def test_order_matters_and_different_ngrams_rarely_share_a_vector() -> None:
    layer = filled(longest=2)
    pairs = torch.tensor([[a, b] for a in range(2, 22) for b in range(2, 22)])
    vectors = layer(pairs)[:, 1]
    distinct = len({tuple(row) for row in vectors.tolist()})
    # 400 keys thrown at random into 997 buckets fill 997 (1 - (1 - 1/997)^400) = 330 of them on average.
    assert 300 < distinct < 360


def test_an_ngram_with_an_unknown_token_adds_nothing() -> None:
    layer = filled(longest=2)
    y = layer(torch.tensor([[5, UNK, 6, 7]]))
    assert torch.equal(y[0, :3], torch.zeros(3, 4))
    assert y[0, 3].abs().sum() > 0


@pytest.mark.parametrize("row", [[5], [5, 6], [5, 6, 7, 8]])
def test_batch_equals_singles(row: list[int]) -> None:
    layer = filled()
    alone = layer(torch.tensor([row]))[0]
    padded = torch.tensor([row + [0] * (6 - len(row)), [9, 8, 7, 6, 5, 4]])
    torch.testing.assert_close(layer(padded)[0, : len(row)], alone)


def test_dropout_leaves_out_whole_ngrams_in_training_only() -> None:
    layer = filled(longest=2, dropout=0.5)
    ids = torch.randint(2, 500, (50, 40))
    whole = layer(ids)[:, 1:]
    layer.train()
    thinned = layer(ids)[:, 1:]
    kept = (thinned == whole).all(-1)
    assert bool((kept | (thinned == 0).all(-1)).all())
    assert 0.45 < float(kept.float().mean()) < 0.55


def test_too_short_an_ngram_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, not 1"):
        NgramEmbedding(1, 4, buckets=10, dropout=0.0, unk=UNK)


def classifier(adversarial: float) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        30, 2, encoder={"kind": "lstm", "hidden_size": 5}, embedding_size=6, ngrams=2, ngram_buckets=50,
        adversarial=adversarial,
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(2, 30, (4, 7)), torch.tensor([7, 3, 5, 1]), torch.tensor([0, 1, 1, 0])


def test_adversarial_loss_is_the_mean_with_the_worst_case_of_the_stated_size() -> None:
    model, (ids, lengths, targets) = classifier(0.1).train(), batch()
    loss, logits = model.loss(ids, lengths, targets)
    plain = model.head.loss(model.features(model.embed(ids), lengths), targets)
    assert bool(loss > plain)
    torch.testing.assert_close(logits, model(ids, lengths))
    # By hand: one step up the gradient, its length a tenth of each row's own.
    vectors = model.embed(ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.head.loss(model.features(vectors, lengths), targets), vectors)
    moved = vectors.detach().clone()
    for row, length in enumerate(lengths.tolist()):
        g, v = gradient[row, :length], vectors[row, :length].detach()
        moved[row, :length] += 0.1 * v.norm() * g / g.norm()
    worst = model.head.loss(model.features(moved, lengths), targets)
    torch.testing.assert_close(loss, (plain + worst) / 2)


def test_adversarial_training_changes_nothing_in_evaluation() -> None:
    ids, lengths, targets = batch()
    with_it, without = classifier(0.1).eval(), classifier(0.0).eval()
    assert torch.equal(with_it.loss(ids, lengths, targets)[0], without.loss(ids, lengths, targets)[0])


def test_adversarial_training_reaches_every_parameter() -> None:
    model, (ids, lengths, targets) = classifier(0.1).train(), batch()
    torch.nn.init.normal_(model.ngrams.weight) if model.ngrams else None
    model.loss(ids, lengths, targets)[0].backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
