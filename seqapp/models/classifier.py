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
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.pooling import POOLING, Pooling
from seqapp.nn.recurrent import ENCODERS, Encoder, valid_mask
from seqapp.registry import Probability, Size, Spec


class Classifier(nn.Module):
    """Embed, read, pool, classify.

    Args:
        embedding: ids -> vectors of the encoder's input size.
        encoder: reads the row; causal or both ways.
        pooling: takes the encoder's outputs.
        head: takes the pooled vector.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.

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
        token_dropout: Probability = 0.0,
        embedding_dropout: Probability = 0.0,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        if embedding.embedding_dim != encoder.input_size:
            raise ValueError(f"the embedding gives {embedding.embedding_dim} values, the encoder takes "
                             f"{encoder.input_size}")  # fmt: skip
        if pooling.reads_last and not encoder.has_last:
            raise ValueError("pooling: last needs an encoder whose directions stay apart; a birnn with merge: concat, "
                             "or pooling: max, mean or attention fits")  # fmt: skip
        self.token_dropout = TokenDropout(token_dropout, unk=UNK, pad=PAD)
        self.embedding = embedding
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.encoder, self.pooling = encoder, pooling
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, T), lengths (B,) -> logits (B, C)."""
        return self.head.logits(self.features(self.embed(ids), lengths))

    def loss(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean training loss, and the logits (B, C) it was computed at."""
        features = self.features(self.embed(ids), lengths)
        return self.head.loss(features, targets), self.head.logits(features)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, E)."""
        vectors: Tensor = self.embedding_dropout(self.embedding(self.token_dropout(ids)))
        return vectors

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
    token_dropout: Probability = 0.0,
    embedding_dropout: Probability = 0.0,
    dropout: Probability = 0.0,
) -> Classifier:
    """A sequence in, one class out: embed, read, pool, classify.

    Args:
        encoder: the recurrent network that reads the text.
        embedding_size: E, values per token.
        pooling: how one vector is made of one per position.
        head: the softmax and its loss.
        token_dropout: probability that a token is read as unknown in training.
        embedding_dropout: share of embedding values dropped in training.
        dropout: share of pooled values dropped in training.
    """
    embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
    with torch.no_grad():
        embedding.weight.normal_(0, 0.1)
        embedding.weight[PAD] = 0
    reader = ENCODERS.build(encoder, input_size=embedding_size)
    pool = POOLING.build(pooling, size=reader.output_size)
    return Classifier(
        embedding,
        reader,
        pool,
        HEADS.build(head, input_size=pool.output_size, classes=classes),
        token_dropout=token_dropout,
        embedding_dropout=embedding_dropout,
        dropout=dropout,
    )
