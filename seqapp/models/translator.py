"""Encoder and decoder: a sequence in, another sequence out (many to many, delayed).

B batch, N rows searched (= B K), S source length, T target length, E embedding, M encoder outputs, Z summary,
R read-out, V target vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from seqapp.data.batching import pad
from seqapp.data.tokenizers import BOS, PAD
from seqapp.models.registry import MODELS
from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.attention import ATTENTIONS, Memory
from seqapp.nn.decode import fast_decoder, fast_logits
from seqapp.nn.decoder import AttentionDecoder
from seqapp.nn.dropout import LockedDropout
from seqapp.nn.heads import HEADS, Head
from seqapp.nn.recurrent import ENCODERS, RECURRENT, Carry, Encoder, Recurrent, map_carry, valid_mask
from seqapp.nn.teaching import RATES, Rate
from seqapp.registry import Probability, Size, Spec


class Bridge(nn.Module):
    """Starts each state of a network from what the encoder says of the source: s = tanh(W z).

    Source: Bahdanau, Cho & Bengio 2015, appendix A.2.2.

    Args:
        summary_size: Z.
        network: whose states are started, those of its leaves that are (B, H).

    Raises:
        ValueError: if it has none.
    """

    def __init__(self, summary_size: int, network: Recurrent[Any]) -> None:
        super().__init__()
        self.sizes: list[int] = []

        def note(leaf: Tensor) -> Tensor:
            if leaf.dim() == 2:
                self.sizes.append(leaf.shape[1])
            return leaf

        network.map_state(note, network.initial_carry(1, torch.empty(0, device="meta")))
        if not self.sizes:
            raise ValueError(f"bridge: {type(network).__name__} keeps no state that a vector could start; bridge: "
                             "false fits")  # fmt: skip
        self.project = nn.Linear(summary_size, sum(self.sizes))

    def forward(self, summary: Tensor, network: Recurrent[Any], fresh: Carry) -> Carry:
        """summary (B, Z) and the carry of ``network`` before anything -> the carry to start from."""
        states = iter(torch.split(torch.tanh(self.project(summary)), self.sizes, 1))
        return network.map_state(lambda leaf: next(states) if leaf.dim() == 2 else leaf, fresh)


class Translator(nn.Module):
    """p(y_t | y_1 .. y_{t-1}, x): an encoder reads x, a decoder that looks at what it read says y, factor by factor.

    Sources: Sutskever, Vinyals & Le 2014; Cho et al. 2014; Bahdanau, Cho & Bengio 2015.

    Args:
        source_embedding: the table of the source tokens, (U, E).
        encoder: from E to M, both ways or causal.
        decoder: looks at the memory; from E to R.
        target_embedding: the table of the target tokens, (V, E).
        head: from R to V.
        bridge: start the decoder's lower layers from the encoder's summary; otherwise they start from zero.
        source_dropout: share of the source embedding's values dropped, the same ones at every step of a row.
        target_dropout: the same of the target embedding.
        memory_dropout: share of the encoder's outputs dropped, the same ones at every step of a row.
        output_dropout: share of the read-out dropped, the same ones at every step of a row.
        layer_norm: normalise the encoder's outputs.
        forcing: how often training reads the right token before, as training goes on; None always.

    Raises:
        ValueError: if the bridge or the attention asks for outputs that have read the whole row, and none can be told.
    """

    def __init__(
        self,
        source_embedding: nn.Embedding,
        encoder: Encoder,
        decoder: AttentionDecoder,
        target_embedding: nn.Embedding,
        head: Head,
        *,
        bridge: bool = True,
        source_dropout: Probability = 0.0,
        target_dropout: Probability = 0.0,
        memory_dropout: Probability = 0.0,
        output_dropout: Probability = 0.0,
        layer_norm: bool = False,
        forcing: Rate | None = None,
    ) -> None:
        super().__init__()
        if not encoder.has_last and (bridge or not decoder.attention.aligned):
            raise ValueError(
                "encoder: its merged outputs do not tell which have read the whole row, which a bridge and attention: "
                "none ask for; merge: concat fits, or bridge: false with an attention"
            )
        self.source_embedding, self.encoder = source_embedding, encoder
        self.decoder, self.target_embedding, self.head = decoder, target_embedding, head
        self.bridge = Bridge(encoder.output_size, decoder.lower) if bridge else None
        self.source_dropout, self.target_dropout = LockedDropout(source_dropout), LockedDropout(target_dropout)
        self.memory_dropout, self.output_dropout = LockedDropout(memory_dropout), LockedDropout(output_dropout)
        self.memory_norm = nn.LayerNorm(encoder.output_size) if layer_norm else None
        self.forcing = forcing
        self.progress = 0.0

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.target_embedding.num_embeddings

    @property
    def aligned(self) -> bool:
        """Whether attention says which source token each target token comes from."""
        return self.decoder.attention.aligned

    def forward(
        self, source: Tensor, source_lengths: Tensor, inputs: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a source and, step by step, the target before each step.

        Args:
            source: (B, S).
            source_lengths: (B,).
            inputs: (B, T), the target from BOS on, without its last token.
            lengths: (B,) valid steps of the target.

        Returns:
            what the head projects, (B, T, R), and the attention, (B, T, S).
        """
        memory, carry = self.encode(source, source_lengths)
        rate = 1.0 if self.forcing is None or not self.training else self.forcing(self.progress)
        if rate < 1:
            inputs = self._mixed(inputs, lengths, carry, memory, rate)
        y, weights, _ = self.decoder(self._embed(inputs), lengths, carry, memory)
        return self.output_dropout(y), weights

    @torch.no_grad()
    def _mixed(self, inputs: Tensor, lengths: Tensor | None, carry: Carry, memory: Memory, rate: float) -> Tensor:
        """``inputs`` (B, T) with a share of the tokens replaced by what the model says there, given the right ones.

        One more pass over the whole target stands for as many steps of free running (Mihaylova & Martins 2019).
        """
        y, _, _ = self.decoder(self._embed(inputs), lengths, carry, memory)
        own = self.head.logits(y.flatten(0, 1)).argmax(-1).view_as(inputs)
        said = torch.cat([inputs[:, :1], own[:, :-1]], 1)
        right = torch.rand(inputs.shape, device=inputs.device) < rate
        return torch.where(right | (inputs == PAD), inputs, said)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, Carry]:
        """source (B, S), lengths (B,) -> the memory and the decoder's carry before the first token."""
        y, _ = self.encoder(self.source_dropout(self.source_embedding(source)), lengths)
        if self.memory_norm is not None:
            y = self.memory_norm(y)
        dropped = self.memory_dropout(y)
        summary = None if self.aligned else self.encoder.last(dropped, lengths)
        memory = self.decoder.attention.prepare(dropped, valid_mask(lengths, y.shape[1]), summary)
        carry = self.decoder.initial_carry(len(source), y)
        if self.bridge is not None:
            lower, *rest = carry
            carry = (self.bridge(self.encoder.last(y, lengths), self.decoder.lower, lower), *rest)
        return memory, carry

    def read(self, inputs: Tensor, carry: Carry, memory: Memory) -> tuple[Tensor, Tensor, Carry]:
        """Read a piece of a known target, in eval mode.

        Args:
            inputs: (B, T), of the first piece from BOS on.
            carry: after the piece before, or as :meth:`encode` gives it.
            memory: of the sources.

        Returns:
            what the head projects (B, T, R), the attention (B, T, S), and the carry after the piece.
        """
        return cast(tuple[Tensor, Tensor, Carry], self.decoder(self._embed(inputs), None, carry, memory))

    def _embed(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.target_dropout(self.target_embedding(tokens)))

    def start(
        self, sources: Sequence[Sequence[int]], copies: int = 1, *, coverage: bool = False
    ) -> tuple[Step, Carry, Tensor]:
        """Read each source once.

        Args:
            sources: ids of each row, none empty.
            copies: how often each row is wanted; copies stand beside each other, N = B * copies.
            coverage: keep in the carry how much attention each source token has had, (N, S).

        Returns:
            step, the carry to step from, and the tokens (N,) to step with, all of them BOS.
        """
        device = self.source_embedding.weight.device
        ids, lengths = (part.to(device) for part in pad(sources))
        memory, carry = self.encode(ids, lengths)
        rows = len(sources) * copies
        carry = map_carry(lambda leaf: leaf.repeat_interleave(copies, 0), carry)
        if coverage:
            # Padding counts as seen, so that it never lacks attention.
            carry = (carry, (~memory[2]).to(memory[1].dtype).repeat_interleave(copies, 0))
        return Step(self, memory, rows, coverage=coverage), carry, torch.full((rows,), BOS, device=device)


class Step:
    """One token for each row: tokens (N,), carry -> logits (N, V), carry.

    The memory is bound to it, B sources for N = B K rows: a search reorders the K rows of a source among themselves and
    so never the memory. LAW: a row's logits are the same, whichever sources are taken and joined.

    Args:
        model: in eval mode.
        memory: of B sources.
        rows: N.
        coverage: whether the carry is (carry, attention so far).
    """

    def __init__(self, model: Translator, memory: Memory, rows: int, *, coverage: bool = False) -> None:
        self.memory, self.coverage, self.rows = memory, coverage, rows
        self._advance, self._logits = fast_decoder(model.decoder, rows), fast_logits(model.head, rows)
        self._table = model.target_embedding.weight

    def __call__(self, tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        x = nn.functional.embedding(tokens, self._table)
        if not self.coverage:
            carry, y, _ = self._advance(carry, x, self.memory)
            return self._logits(y), carry
        inner, seen = carry
        inner, y, weights = self._advance(inner, x, self.memory)
        return self._logits(y), (inner, _as_long(seen, weights.shape[1], 1) + weights)

    def take(self, sources: Tensor) -> Step:
        """The step of some of the sources: their places, (B',)."""
        fewer = copy.copy(self)
        mask = self.memory[2].index_select(0, sources)
        size = int(mask.sum(1).max())
        fewer.memory = map_carry(lambda leaf: leaf[:, :size].index_select(0, sources), self.memory)
        return fewer

    def join(self, other: Step, carry: Carry, joining: Carry) -> tuple[Step, Carry]:
        """The step of these sources and, after them, of another's; with its carry, made of both."""
        size = max(self.memory[2].shape[1], other.memory[2].shape[1])

        def join(one: Tensor, two: Tensor) -> Tensor:
            return torch.cat([one, two])

        both = copy.copy(self if self.rows >= other.rows else other)
        both.memory = map_carry(
            lambda one, two: join(_as_long(one, size, 0), _as_long(two, size, 0)), self.memory, other.memory
        )
        if not self.coverage:
            return both, map_carry(join, carry, joining)
        (inner, seen), (joining_inner, joining_seen) = carry, joining
        seen = join(_as_long(seen, size, 1), _as_long(joining_seen, size, 1))
        return both, (map_carry(join, inner, joining_inner), seen)


def _as_long(leaf: Tensor, size: int, value: float) -> Tensor:
    """A leaf (B, S, ...) cut to ``size`` positions, or filled up to them with ``value``."""
    if leaf.shape[1] >= size:
        return leaf[:, :size]
    return torch.cat([leaf, leaf.new_full((len(leaf), size - leaf.shape[1], *leaf.shape[2:]), value)], 1)


@MODELS.register("translator")
def build_translator(
    source_size: int,
    vocabulary_size: int,
    *,
    encoder: Annotated[Spec, ENCODERS],
    decoder: Annotated[Spec, RECURRENT],
    upper: Annotated[Spec, RECURRENT] | None = None,
    attention: Annotated[Spec, ATTENTIONS] = {"kind": "general"},  # noqa: B006  (copied before use)
    head: Annotated[Spec, HEADS] = {"kind": "full"},  # noqa: B006
    forcing: Annotated[Spec, RATES] = {"kind": "constant"},  # noqa: B006
    embedding_size: Size = 256,
    read_out_size: Size | None = None,
    tied: Literal["none", "target", "all"] = "none",
    input_feeding: bool = False,
    bridge: bool = True,
    layer_norm: bool = False,
    source_dropout: Probability = 0.0,
    target_dropout: Probability = 0.0,
    memory_dropout: Probability = 0.0,
    decoder_dropout: Probability = 0.0,
    output_dropout: Probability = 0.0,
) -> Translator:
    """An encoder that reads the source and a decoder that says the target.

    Args:
        encoder: the network that reads the source; birnn reads it both ways.
        decoder: the causal network that reads the target so far and asks the attention.
        upper: causal network above decoder and attention; null reads out what they give.
        attention: how the decoder looks at the source; none gives it the encoder's last outputs at every step.
        head: from the read-out to the target vocabulary.
        forcing: how often training reads the right token before, and otherwise the model's own (scheduled sampling).
        embedding_size: values per token.
        read_out_size: values that are projected to the vocabulary; null takes the embedding's.
        tied: target shares the table of the target embedding and the output (Press & Wolf 2017); all shares the source
            embedding's, too, for one vocabulary of both languages.
        input_feeding: give each step the read-out of the step before (Luong et al. 2015), which trains step by step.
        bridge: start the decoder from the encoder's last outputs.
        layer_norm: normalise the encoder's outputs, what decoder and attention give, and the read-out.
        source_dropout: share of the source embedding's values dropped, the same ones at every step of a row.
        target_dropout: the same of the target embedding.
        memory_dropout: share of the encoder's outputs dropped, the same ones at every step of a row.
        decoder_dropout: share of what decoder and attention give dropped, the same units at every step of a row.
        output_dropout: share of the read-out dropped, the same ones at every step of a row.

    Raises:
        ValueError: if tables cannot be shared, or sizes do not meet.
    """
    if tied == "all" and source_size != vocabulary_size:
        raise ValueError(
            f"tied: all shares one table, but the source has {source_size} tokens and the target {vocabulary_size}; "
            "task.shared: true, or tied: target, fits"
        )
    size = read_out_size or embedding_size
    if tied != "none" and size != embedding_size:
        raise ValueError(f"tied: {tied} shares the embedding's table, so read_out_size must be {embedding_size}, "
                         f"not {size}")  # fmt: skip
    target_embedding = _table(vocabulary_size, embedding_size)
    source_embedding = target_embedding if tied == "all" else _table(source_size, embedding_size)
    reader = ENCODERS.build(encoder, input_size=embedding_size)
    lower = RECURRENT.build(decoder, input_size=embedding_size + (size if input_feeding else 0))
    looking = ATTENTIONS.build(
        attention, query_size=lower.output_size, memory_size=reader.output_size, summary_size=reader.output_size
    )
    above = None
    if upper is not None:
        above = RECURRENT.build(upper, input_size=lower.output_size + looking.output_size)
    output = HEADS.build(head, input_size=size, classes=vocabulary_size)
    if tied != "none":
        output.tie(target_embedding.weight)
    return Translator(
        source_embedding,
        reader,
        AttentionDecoder(
            lower,
            looking,
            above,
            size,
            input_feeding=input_feeding,
            dropout=decoder_dropout,
            layer_norm=layer_norm,
        ),
        target_embedding,
        output,
        bridge=bridge,
        source_dropout=source_dropout,
        target_dropout=target_dropout,
        memory_dropout=memory_dropout,
        output_dropout=output_dropout,
        layer_norm=layer_norm,
        forcing=RATES.build(forcing),
    )


def _table(size: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(size, width)
    with torch.no_grad():
        embedding.weight.normal_(0, width**-0.5)
    return embedding
