"""A recurrent network that says how likely each next token is (one to many).

B batch, T time, N rows, E embedding, O encoder outputs, V vocabulary, C conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from seqapp.data.batching import pad
from seqapp.data.tokenizers import BOS
from seqapp.models.registry import MODELS
from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.decode import fast_logits, fast_step
from seqapp.nn.dropout import EmbeddingDropout, LockedDropout
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.recurrent import RECURRENT, Carry, Recurrent, map_carry, select
from seqapp.nn.rows import take_rows
from seqapp.registry import Probability, Size, Spec

LARGE = 10_000
"""Rows of a table from which sparse gradients are the cheaper ones."""
READ_AT_ONCE = 512
"""Steps of a prompt in memory."""
Step = Callable[[Tensor, Carry], tuple[Tensor, Carry]]
"""tokens (N,), carry -> logits (N, V), carry."""


class LanguageModel(nn.Module):
    """p(w_t | w_1 .. w_{t-1}), factor by factor: embed, recur, project.

    A condition is read as a step of its own before the first token (as the image in Vinyals et al. 2015), so it starts
    the state of any network alike.

    Args:
        embedding: the table (V, E).
        encoder: causal, from E to O.
        head: from O to V, or from E to V where there is a ``bridge``.
        bridge: from O to E, so that a tied head fits; None where the sizes are equal.
        condition: from C to E; None for a model without.
        at_every_step: add the condition to every embedding, too.
        embedding_dropout: share of all words that read as zero, the same ones in the whole batch.
        input_dropout: share of the embedding's values dropped, the same ones at every step of a row.
        output_dropout: share of the encoder's outputs dropped, the same ones at every step of a row.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        encoder: Recurrent[Any],
        head: Head,
        *,
        bridge: nn.Linear | None = None,
        condition: nn.Linear | None = None,
        at_every_step: bool = False,
        embedding_dropout: Probability = 0.0,
        input_dropout: Probability = 0.0,
        output_dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.embedding, self.encoder, self.head = embedding, encoder, head
        self.bridge, self.condition, self.at_every_step = bridge, condition, at_every_step
        self.embedding_dropout = EmbeddingDropout(embedding_dropout)
        self.input_dropout, self.output_dropout = LockedDropout(input_dropout), LockedDropout(output_dropout)

    @property
    def by_row(self) -> bool:
        """Whether training gives the table sparse gradients: it is large, and no dense head shares it."""
        tied = any(parameter is self.embedding.weight for parameter in self.head.parameters())
        return self.head.sparse or (not tied and self.vocabulary_size >= LARGE)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.embedding.num_embeddings

    def forward(
        self, ids: Tensor, lengths: Tensor | None = None, carry: Carry = None, condition: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """Read on.

        Args:
            ids: (B, T).
            lengths: (B,) valid steps per row; None when all are.
            carry: where to go on from; None starts afresh.
            condition: (B, C), for a model that has one.

        Returns:
            what the head projects, (B, T, O) or (B, T, E), and the carry at each row's end.
        """
        x = self.embed(ids, condition)
        carry = self.begin(x[:, 0], condition) if carry is None else self.encoder.renew(carry)
        y, carry = self.encoder(x, lengths, carry)
        return self._read_out(self.output_dropout(y)), carry

    def embed(self, ids: Tensor, condition: Tensor | None = None) -> Tensor:
        """ids (B, T) -> (B, T, E)."""
        table = self.embedding.weight
        x = take_rows(table, ids) if self.by_row and self.training else nn.functional.embedding(ids, table)
        x = self.embedding_dropout(x, ids)
        if self.condition is not None and self.at_every_step:
            x = x + self.condition(condition)[:, None]
        return cast(Tensor, self.input_dropout(x))

    def begin(self, like: Tensor, condition: Tensor | None = None) -> Carry:
        """The carry before the first token: like (B, E), condition (B, C)."""
        carry = self.encoder.initial_carry(len(like), like)
        if self.condition is None:
            return carry
        return self.encoder(self.condition(condition)[:, None], None, carry)[1]

    def step(self, tokens: Tensor, carry: Carry, condition: Tensor | None = None) -> tuple[Tensor, Carry]:
        """One token: tokens (N,), carry -> logits (N, V), carry."""
        carry, y = self.encoder.step(carry, self.embed(tokens[:, None], condition)[:, 0])
        return self.head.logits(self._read_out(y)), carry

    def start(
        self, prompts: Sequence[Sequence[int]], condition: Tensor | None = None, copies: int = 1
    ) -> tuple[Step, Carry, Tensor]:
        """Read BOS and each prompt but its last token.

        Args:
            prompts: ids of each row, each possibly empty.
            condition: (B, C), for a model that has one.
            copies: how often each row is wanted; copies stand beside each other, N = B * copies.

        Returns:
            step, the carry to step from, and the tokens (N,) to step with: the last of each prompt.
        """
        rows = [[BOS, *prompt] for prompt in prompts]
        carry = self.fresh(len(rows), condition)
        for first in range(0, max(map(len, rows)) - 1, READ_AT_ONCE):
            carry = self.read([row[first : min(first + READ_AT_ONCE, len(row) - 1)] for row in rows], carry)[1]
        copied = map_carry(lambda leaf: leaf.repeat_interleave(copies, 0), carry)
        tokens = torch.tensor([row[-1] for row in rows], device=self.embedding.weight.device)
        return self.steps(len(rows) * copies), copied, tokens.repeat_interleave(copies)

    def fresh(self, rows: int, condition: Tensor | None = None) -> Carry:
        """What :meth:`steps` and :meth:`read` go on from before BOS: condition (N, C) of the rows, or None."""
        carry = self.begin(self.embedding.weight.new_zeros(rows, self.embedding.embedding_dim), condition)
        return (carry, condition) if self._conditions_steps else carry

    def read(self, parts: Sequence[Sequence[int]], carry: Carry) -> tuple[Tensor, Carry]:
        """Read on in rows, some tokens of each; a row that has none stays as it is.

        Args:
            parts: ids of each row, some of one at least.
            carry: of the rows, from :meth:`fresh` or from before.

        Returns:
            what the head projects, (N, T, O) or (N, T, E), and the carry.
        """
        ids, lengths = (part.to(self.embedding.weight.device) for part in pad(parts))
        condition = None
        if self._conditions_steps:
            carry, condition = carry
        y, after = self.encoder(self.embed(ids, condition), lengths.clamp(min=1), carry)
        if bool((lengths == 0).any()):
            after = select(lengths > 0, after, carry)
        return self._read_out(y), (after, condition) if self._conditions_steps else after

    def steps(self, rows: int) -> Step:
        """:meth:`step` for about so many rows, with the weights as they stand now.

        Where the condition enters at every step it is part of the carry, so that rows can be reordered.
        """
        if self._conditions_steps:
            return self._conditioned_step
        return self.step if self.training else self._fast_step(rows)

    @property
    def _conditions_steps(self) -> bool:
        return self.condition is not None and self.at_every_step

    def _fast_step(self, rows: int) -> Step:
        """As :meth:`step` for so many rows, with the weights as they stand now."""
        advance, logits = fast_step(self.encoder, rows), fast_logits(self.head, rows)
        table = self.embedding.weight

        def step(tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            carry, y = advance(carry, nn.functional.embedding(tokens, table))
            return logits(self._read_out(y)), carry

        return step

    def _conditioned_step(self, tokens: Tensor, carry: tuple[Carry, Tensor]) -> tuple[Tensor, tuple[Carry, Tensor]]:
        inner, condition = carry
        logits, inner = self.step(tokens, inner, condition)
        return logits, (inner, condition)

    def _read_out(self, y: Tensor) -> Tensor:
        return y if self.bridge is None else cast(Tensor, self.bridge(y))


@MODELS.register("language_model")
def build_language_model(
    vocabulary_size: int,
    classes: int,
    *,
    encoder: Annotated[Spec, RECURRENT],
    head: Annotated[Spec, HEADS] = {"kind": "full"},  # noqa: B006  (copied before use)
    embedding_size: Size = 256,
    tied: bool = False,
    condition_at: Literal["start", "every step"] = "start",
    embedding_dropout: Probability = 0.0,
    input_dropout: Probability = 0.0,
    output_dropout: Probability = 0.0,
) -> LanguageModel:
    """How likely each next token is, given those before it.

    Args:
        encoder: the recurrent network that reads the text; a causal one.
        head: from the network's outputs to the vocabulary: the softmax or a cheaper stand-in for training.
        embedding_size: values per token.
        tied: one table for reading tokens and for choosing them (Press & Wolf 2017; Inan et al. 2017).
        condition_at: a class or features, where the data has them, are read before the first token, or also added to
            every embedding.
        embedding_dropout: share of all tokens that read as zero in a batch (Merity et al. 2018).
        input_dropout: share of an embedding's values dropped in training, the same ones at every step of a row (Gal &
            Ghahramani 2016).
        output_dropout: share of the network's outputs dropped in training, the same ones at every step of a row.

    Raises:
        ValueError: if the head cannot share a table.
    """
    embedding = nn.Embedding(vocabulary_size, embedding_size)
    with torch.no_grad():
        embedding.weight.normal_(0, embedding_size**-0.5)
    network = RECURRENT.build(encoder, input_size=embedding_size)
    bridge = None
    if tied and network.output_size != embedding_size:
        bridge = nn.Linear(network.output_size, embedding_size)
    output = HEADS.build(head, input_size=embedding_size if bridge else network.output_size, classes=vocabulary_size)
    if tied:
        output.tie(embedding.weight)
    return LanguageModel(
        embedding,
        network,
        output,
        bridge=bridge,
        condition=nn.Linear(classes, embedding_size) if classes else None,
        at_every_step=condition_at == "every step",
        embedding_dropout=embedding_dropout,
        input_dropout=input_dropout,
        output_dropout=output_dropout,
    )
