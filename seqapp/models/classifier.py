"""Many to one: a sequence of ids in, one class out.

B batch, T time, E embedding, O encoder outputs, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from seqapp.data.tokenizers import PAD, UNK
from seqapp.models.registry import MODELS
from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.dropout import TokenDropout
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.inputs import OneHot
from seqapp.nn.ngrams import NgramBag
from seqapp.nn.pooling import POOLING, Last, Pooling
from seqapp.nn.recurrent import ENCODERS, Encoder, Recurrent, valid_mask
from seqapp.registry import Count, NonNegative, Probability, Size, Spec


class Classifier(nn.Module):
    """Embed, read, pool, classify.

    Args:
        embedding: ids -> vectors of the encoder's input size.
        encoder: reads the row; causal or both ways.
        pooling: takes the encoder's outputs.
        head: takes the pooled vector, and the bag's beside it.
        bag: reads n-grams, past the encoder.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.
        adversarial: size of the worst change of the embedded row, relative to its norm, that training also learns from.
        replicate: share of the training loss that asks for the class at every position instead of at the end.

    Raises:
        ValueError: if two sizes do not meet.
    """

    def __init__(
        self,
        embedding: nn.Embedding | OneHot,
        encoder: Encoder,
        pooling: Pooling,
        head: Head,
        *,
        bag: NgramBag | None = None,
        token_dropout: Probability = 0.0,
        embedding_dropout: Probability = 0.0,
        dropout: Probability = 0.0,
        adversarial: NonNegative = 0.0,
        replicate: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        super().__init__()
        if embedding.embedding_dim != encoder.input_size:
            raise ValueError(f"the embedding gives {embedding.embedding_dim} values, the encoder takes "
                             f"{encoder.input_size}")  # fmt: skip
        if pooling.reads_last and not encoder.has_last:
            raise ValueError("pooling: last needs an encoder whose directions stay apart; a birnn with merge: concat, "
                             "or pooling: max, mean or attention fits")  # fmt: skip
        if replicate and not (isinstance(encoder, Recurrent) and isinstance(pooling, Last) and bag is None):
            raise ValueError("replicate asks every position as the last one is asked at the end; pooling: last over an "
                             "encoder that reads one way, without a bag, fits")  # fmt: skip
        self.token_dropout = TokenDropout(token_dropout, unk=UNK, pad=PAD)
        self.embedding = embedding
        self.bag = bag
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.encoder, self.pooling = encoder, pooling
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.adversarial, self.replicate = adversarial, replicate

    def forward(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """ids (B, T), lengths (B,), or None where there is no padding -> logits (B, C)."""
        return self.head.logits(self.features(self.embed(ids), ids, lengths))

    def loss(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean training loss, and the logits (B, C) it was computed at.

        With ``adversarial`` e > 0 the loss in training is the mean of the loss at the embedded rows v and at
        v + e |v| g / |g|, where g is the gradient at v (Miyato et al. 2017, equation 6, made relative to |v| so that
        growing embeddings cannot outrun it). With ``replicate`` r > 0 a row's loss in training is (1 - r) times the one
        at its end plus r times the mean over its positions, whose answers are not used otherwise (target replication,
        Lipton et al. 2016, equation 1).
        """
        vectors = self.embed(ids)
        if self.training and self.adversarial and not vectors.requires_grad:
            vectors.requires_grad_()  # one-hot vectors, which nothing below learns from
        loss, logits = self._loss(vectors, ids, lengths, targets)
        if not self.training or self.adversarial == 0:
            return loss, logits
        (gradient,) = torch.autograd.grad(loss, vectors, retain_graph=True)
        inside = valid_mask(lengths, ids.shape[1])[..., None]
        with torch.no_grad():
            size = self.adversarial * (vectors * inside).flatten(1).norm(dim=1)
            scale = size / gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
            change = gradient * scale[:, None, None]
        worst, _ = self._loss(vectors + change, ids, lengths, targets)
        return (loss + worst) / 2, logits

    def _loss(self, vectors: Tensor, ids: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training or self.replicate == 0:
            features = self.features(vectors, ids, lengths)
            return self.head.loss(features, targets), self.head.logits(features)
        y, _ = self.encoder(vectors, lengths)
        end = self.dropout(self.encoder.last(y, lengths))
        inside = valid_mask(lengths, y.shape[1])
        weights = (1 / (lengths * len(lengths))).to(y.dtype).repeat_interleave(lengths)
        every = self.head.loss(self.dropout(y[inside]), targets.repeat_interleave(lengths), weights)
        loss = (1 - self.replicate) * self.head.loss(end, targets) + self.replicate * every
        return loss, self.head.logits(end)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, E)."""
        # The time of a short row is that of calls: those that do nothing outside training are left out.
        vectors: Tensor = self.embedding(self.token_dropout(ids) if self.training else ids)
        if self.training:
            vectors = self.embedding_dropout(vectors)
        return vectors

    def features(self, vectors: Tensor, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """Embedded rows (B, T, E) and their ids (B, T) -> what the head sees (B, P)."""
        y, _ = self.encoder(vectors, lengths)
        last = self.encoder.last(y, lengths) if self.pooling.reads_last else None
        mask = None if lengths is None else valid_mask(lengths, y.shape[1])
        pooled: Tensor = self.dropout(self.pooling(y, mask, last))
        return pooled if self.bag is None else torch.cat([pooled, self.bag(ids, lengths)], -1)


@MODELS.register("classifier")
def build_classifier(
    vocabulary_size: int,
    classes: int,
    *,
    encoder: Annotated[Spec, ENCODERS],
    embedding_size: Size | None = 128,
    pooling: Annotated[Spec, POOLING] = {"kind": "max"},  # noqa: B006  (copied before use)
    head: Annotated[Spec, HEADS] = {"kind": "full"},  # noqa: B006
    bag_ngrams: Count = 0,
    bag_size: Size = 8,
    bag_buckets: Size = 524_288,
    bag_dropout: Probability = 0.0,
    token_dropout: Probability = 0.0,
    embedding_dropout: Probability = 0.0,
    dropout: Probability = 0.0,
    adversarial: NonNegative = 0.0,
    replicate: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> Classifier:
    """A sequence in, one class out: embed, read, pool, classify.

    Args:
        encoder: the recurrent network that reads the text.
        embedding_size: E, values per token; null feeds one-hot vectors, for small vocabularies such as characters.
        pooling: how one vector is made of one per position.
        head: the softmax and its loss.
        bag_ngrams: longest run of tokens in a bag of n-grams beside the encoder; 0 for no bag.
        bag_size: values per n-gram of the bag.
        bag_buckets: vectors that all n-grams of the bag share by hashing.
        bag_dropout: probability that an n-gram of the bag is left out in training.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.
        adversarial: size of the worst change of the embedded row, relative to its norm, that training also learns
            from; the configs here use 0.03 and 0.04. Costs a second pass in each step; 0 leaves it out.
        replicate: share of the training loss that asks for the class at every position instead of at the end; with
            pooling last.
    """
    embedding: nn.Embedding | OneHot
    if embedding_size is None:
        embedding = OneHot(vocabulary_size, padding_idx=PAD)
    else:
        embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        with torch.no_grad():
            embedding.weight.normal_(0, 0.1)
            embedding.weight[PAD] = 0
    reader = ENCODERS.build(encoder, input_size=embedding.embedding_dim)
    pool = POOLING.build(pooling, size=reader.output_size)
    bag = None
    if bag_ngrams:
        bag = NgramBag(bag_ngrams, bag_size, buckets=bag_buckets, dropout=bag_dropout, unk=UNK)
    return Classifier(
        embedding,
        reader,
        pool,
        HEADS.build(head, input_size=pool.output_size + (bag.size if bag else 0), classes=classes),
        bag=bag,
        token_dropout=token_dropout,
        embedding_dropout=embedding_dropout,
        dropout=dropout,
        adversarial=adversarial,
        replicate=replicate,
    )
