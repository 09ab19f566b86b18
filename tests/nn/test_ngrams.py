"""Laws of the bag of n-grams and of adversarial training."""

import pytest
import torch
from torch import Tensor

from seqapp.models.classifier import Classifier, build_classifier
from seqapp.nn.ngrams import GAIN, NgramBag

UNK = 1


def filled(longest: int = 3, dropout: float = 0.0) -> NgramBag:
    torch.manual_seed(0)
    bag = NgramBag(longest, 4, buckets=9973, dropout=dropout, unk=UNK).eval()
    torch.nn.init.normal_(bag.weight)
    return bag


def one(bag: NgramBag, *ids: int) -> Tensor:
    """The sum of the vectors of a row's n-grams."""
    total: Tensor = bag(torch.tensor([ids]), torch.tensor([len(ids)]))[0] * len(ids) ** 0.5 / GAIN
    return total


def test_a_row_is_the_sum_of_its_ngrams() -> None:
    bag, single = filled(longest=2), filled(longest=1)
    pair = one(bag, 5, 6) - one(single, 5) - one(single, 6)
    other = one(bag, 6, 7) - one(single, 6) - one(single, 7)
    words = one(single, 5) + one(single, 6) + one(single, 7)
    torch.testing.assert_close(one(bag, 5, 6, 7), words + pair + other)
    assert pair.abs().sum() > 0


def test_order_matters_from_pairs_on() -> None:
    torch.testing.assert_close(one(filled(longest=1), 5, 6, 7), one(filled(longest=1), 7, 6, 5))
    assert not torch.allclose(one(filled(longest=2), 5, 6, 7), one(filled(longest=2), 7, 6, 5))


def test_different_ngrams_rarely_share_a_vector() -> None:
    bag = NgramBag(2, 4, buckets=997, dropout=0.0, unk=UNK).eval()
    torch.nn.init.normal_(bag.weight)
    single = NgramBag(1, 4, buckets=997, dropout=0.0, unk=UNK).eval()
    single.load_state_dict(bag.state_dict())
    vectors = [one(bag, a, b) - one(single, a) - one(single, b) for a in range(2, 22) for b in range(2, 22)]
    distinct = len({tuple((vector * 1e3).round().int().tolist()) for vector in vectors})
    # 400 keys thrown at random into 997 buckets fill 997 (1 - (1 - 1/997)^400) = 330 of them on average.
    assert 300 < distinct < 360


def test_an_ngram_with_an_unknown_token_adds_nothing() -> None:
    bag, single = filled(longest=2), filled(longest=1)
    torch.testing.assert_close(one(bag, 5, UNK, 6), one(single, 5) + one(single, 6))
    assert torch.equal(one(bag, UNK, UNK), torch.zeros(4))


@pytest.mark.parametrize("row", [[5], [5, 6], [5, 6, 7, 8]])
@pytest.mark.parametrize("junk", [0, 9])
def test_batch_equals_singles_whatever_the_padding_holds(row: list[int], junk: int) -> None:
    bag = filled()
    padded = torch.tensor([row + [junk] * (6 - len(row)), [9, 8, 7, 6, 5, 4]])
    batch = bag(padded, torch.tensor([len(row), 6]))
    torch.testing.assert_close(batch[0], bag(torch.tensor([row]), torch.tensor([len(row)]))[0])


def test_dropout_keeps_the_mean_and_acts_in_training_only() -> None:
    bag = filled(longest=2, dropout=0.5)
    ids, lengths = torch.randint(2, 500, (1, 40)).expand(4000, 40), torch.full((4000,), 40)
    whole = bag(ids, lengths)
    assert torch.equal(whole, bag(ids, lengths))
    thinned = bag.train()(ids, lengths)
    thinned = thinned.detach()
    assert float(thinned.std(0).min()) > 0.1
    torch.testing.assert_close(thinned.mean(0), whole[0].detach(), atol=0.08 * float(thinned.std(0).max()), rtol=0)


def test_every_ngram_gets_a_gradient() -> None:
    bag = filled(longest=2)
    bag(torch.tensor([[5, 6, 7]]), torch.tensor([3])).sum().backward()
    assert bag.weight.grad is not None
    assert int(bag.weight.grad.any(1).sum()) == 5


def classifier(adversarial: float) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        30, 2, encoder={"kind": "lstm", "hidden_size": 5}, embedding_size=6, bag_ngrams=2, bag_buckets=50,
        adversarial=adversarial,
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(2, 30, (4, 7)), torch.tensor([7, 3, 5, 1]), torch.tensor([0, 1, 1, 0])


def test_adversarial_loss_is_the_mean_with_the_worst_case_of_the_stated_size() -> None:
    model, (ids, lengths, targets) = classifier(0.1).train(), batch()
    loss, logits = model.loss(ids, lengths, targets)
    plain = model.head.loss(model.features(model.embed(ids), ids, lengths), targets)
    assert bool(loss > plain)
    torch.testing.assert_close(logits, model(ids, lengths))
    # By hand: one step up the gradient, its length a tenth of each row's own.
    vectors = model.embed(ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.head.loss(model.features(vectors, ids, lengths), targets), vectors)
    moved = vectors.detach().clone()
    for row, length in enumerate(lengths.tolist()):
        g, v = gradient[row, :length], vectors[row, :length].detach()
        moved[row, :length] += 0.1 * v.norm() * g / g.norm()
    worst = model.head.loss(model.features(moved, ids, lengths), targets)
    torch.testing.assert_close(loss, (plain + worst) / 2)


def test_adversarial_training_changes_nothing_in_evaluation() -> None:
    ids, lengths, targets = batch()
    with_it, without = classifier(0.1).eval(), classifier(0.0).eval()
    assert torch.equal(with_it.loss(ids, lengths, targets)[0], without.loss(ids, lengths, targets)[0])


def test_adversarial_training_reaches_every_parameter() -> None:
    model, (ids, lengths, targets) = classifier(0.1).train(), batch()
    assert model.bag is not None
    torch.nn.init.normal_(model.bag.weight)
    model.loss(ids, lengths, targets)[0].backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
