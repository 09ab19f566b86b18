"""Many to one: a sequence of ids in, one class out.

B batch, T time, E embedding, O encoder outputs, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from seqapp.data.tokenizers import PAD, UNK
from seqapp.models.registry import MODELS
from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.dropout import TokenDropout
from seqapp.nn.embedding import NgramEmbedding
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.pooling import POOLING, Pooling
from seqapp.nn.recurrent import ENCODERS, Encoder, valid_mask
from seqapp.registry import NonNegative, Probability, Size, Spec


class Classifier(nn.Module):
    """Embed, read, pool, classify.

    Args:
        embedding: ids -> vectors of the encoder's input size.
        encoder: reads the row; causal or both ways.
        pooling: takes the encoder's outputs.
        head: takes the pooled vector.
        ngrams: vectors of n-grams, put beside those of the tokens.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.
        adversarial: size of the worst change of the embedded row, relative to its norm, that training also learns from.

    Raises:
        ValueError: if two sizes do not meet.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        encoder: Encoder,
        pooling: Pooling,
        head: Head,
        *,
        ngrams: NgramEmbedding | None = None,
        token_dropout: Probability = 0.0,
        embedding_dropout: Probability = 0.0,
        dropout: Probability = 0.0,
        adversarial: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        size = embedding.embedding_dim + (ngrams.size if ngrams else 0)
        if size != encoder.input_size:
            raise ValueError(f"the embeddings give {size} values, the encoder takes {encoder.input_size}")
        if pooling.reads_last and not encoder.has_last:
            raise ValueError("pooling: last needs an encoder whose directions stay apart; a birnn with merge: concat, "
                             "or pooling: max, mean or attention fits")  # fmt: skip
        self.token_dropout = TokenDropout(token_dropout, unk=UNK, pad=PAD)
        self.embedding = embedding
        self.ngrams = ngrams
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.encoder, self.pooling = encoder, pooling
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.adversarial = adversarial

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, T), lengths (B,) -> logits (B, C)."""
        return self.head.logits(self.features(self.embed(ids), lengths))

    def loss(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean training loss, and the logits (B, C) it was computed at.

        With ``adversarial`` e > 0 the loss in training is the mean of the loss at the embedded rows v and at
        v + e |v| g / |g|, where g is the gradient at v (Miyato et al. 2017, equation 6, made relative to |v| so that
        growing embeddings cannot outrun it).
        """
        vectors = self.embed(ids)
        features = self.features(vectors, lengths)
        loss, logits = self.head.loss(features, targets), self.head.logits(features)
        if not self.training or self.adversarial == 0:
            return loss, logits
        (gradient,) = torch.autograd.grad(loss, vectors, retain_graph=True)
        inside = valid_mask(lengths, ids.shape[1])[..., None]
        with torch.no_grad():
            size = self.adversarial * (vectors * inside).flatten(1).norm(dim=1)
            scale = size / gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
            change = gradient * scale[:, None, None]
        worst = self.head.loss(self.features(vectors + change, lengths), targets)
        return (loss + worst) / 2, logits

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, E)."""
        ids = self.token_dropout(ids)
        vectors = self.embedding(ids)
        if self.ngrams is not None:
            vectors = torch.cat([vectors, self.ngrams(ids)], -1)
        dropped: Tensor = self.embedding_dropout(vectors)
        return dropped

    def features(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Embedded rows (B, T, E) -> what the head sees (B, P)."""
        y, _ = self.encoder(vectors, lengths)
        last = self.encoder.last(y, lengths) if self.pooling.reads_last else None
        pooled: Tensor = self.pooling(y, valid_mask(lengths, y.shape[1]), last)
        dropped: Tensor = self.dropout(pooled)
        return dropped


@MODELS.register("classifier")
def build_classifier(
    vocabulary_size: int,
    classes: int,
    *,
    encoder: Annotated[Spec, ENCODERS],
    embedding_size: Size = 128,
    pooling: Annotated[Spec, POOLING] = {"kind": "max"},  # noqa: B006  (copied before use)
    head: Annotated[Spec, HEADS] = {"kind": "full"},  # noqa: B006
    ngrams: Size = 1,
    ngram_size: Size = 32,
    ngram_buckets: Size = 131_072,
    ngram_dropout: Probability = 0.0,
    token_dropout: Probability = 0.0,
    embedding_dropout: Probability = 0.0,
    dropout: Probability = 0.0,
    adversarial: NonNegative = 0.0,
) -> Classifier:
    """A sequence in, one class out: embed, read, pool, classify.

    Args:
        encoder: the recurrent network that reads the text.
        embedding_size: E, values per token.
        pooling: how one vector is made of one per position.
        head: the softmax and its loss.
        ngrams: the longest run of tokens that has a vector of its own beside its tokens'; 1 for none.
        ngram_size: values per n-gram.
        ngram_buckets: vectors that all n-grams share by hashing.
        ngram_dropout: probability that an n-gram is left out in training.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.
        adversarial: size of the worst change of the embedded row, relative to its norm, that training also learns
            from; about 0.02 to 0.1 helps against overfitting and doubles the time of a step. 0 leaves it out.
    """
    embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
    with torch.no_grad():
        embedding.weight.normal_(0, 0.1)
        embedding.weight[PAD] = 0
    runs = None
    if ngrams > 1:
        runs = NgramEmbedding(ngrams, ngram_size, buckets=ngram_buckets, dropout=ngram_dropout, unk=UNK)
    reader = ENCODERS.build(encoder, input_size=embedding_size + (ngram_size if runs else 0))
    pool = POOLING.build(pooling, size=reader.output_size)
    return Classifier(
        embedding,
        reader,
        pool,
        HEADS.build(head, input_size=pool.output_size, classes=classes),
        ngrams=runs,
        token_dropout=token_dropout,
        embedding_dropout=embedding_dropout,
        dropout=dropout,
        adversarial=adversarial,
    )
