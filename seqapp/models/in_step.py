"""Many to many in step: one answer per input; many to one where only the last answer is asked.

B batch, T time, I channels, E encoder inputs, O encoder outputs, V symbols, C classes or values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from seqapp.models.registry import MODELS
from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.inputs import OneHot
from seqapp.nn.recurrent import ENCODERS, Carry, Encoder, Recurrent, gather, select, valid_mask, zero_padding
from seqapp.nn.teaching import RATES, Rate, mix
from seqapp.registry import Probability, Size, Spec

Kind = Literal["symbols", "numbers"]


@runtime_checkable
class OpensLoop(Protocol):
    """A network that feeds its own output back, and in training can be fed the right one: NARX."""

    output_size: int

    def open_loop(
        self,
        x: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        carry: Any = None,
        *,
        teacher_forcing: float = 1.0,
    ) -> tuple[Tensor, Any]:
        """x (B, T, I), targets (B, T, O), which are fed back instead of the outputs -> y (B, T, O), carry."""
        ...


class InStep(nn.Module):
    """Read a step, go on, answer.

    A *carry* here is a pair: the encoder's carry and the answers (B, C) at each row's end, which the next step may
    read. ``progress``, from 0 at the start of training to 1 at its end, is set by whoever trains.

    Args:
        inputs: ids (B, T) or values (B, T, I) -> vectors (B, T, E) of the encoder's input size.
        encoder: reads the row; causal or both ways.
        read_out: y (..., O) -> answers (..., C).
        reads: whether inputs are ids of symbols or rows of numbers.
        answers: whether outputs are logits of symbols or numbers.
        dropout: share of the encoder's outputs dropped in training before the read-out.
        teaching: probability that training feeds back the right answer, by progress; None always does. See
            :meth:`teach`.

    Raises:
        ValueError: if `teaching` is given but nothing can be fed back, or `dropout` without a read-out.
    """

    def __init__(
        self,
        inputs: nn.Module,
        encoder: Encoder,
        read_out: nn.Module,
        *,
        reads: Kind = "symbols",
        answers: Kind = "symbols",
        dropout: Probability = 0.0,
        teaching: Rate | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.encoder, self.read_out = inputs, encoder, read_out
        self.dropout = nn.Dropout(dropout)
        self.reads, self.answers = reads, answers
        self.teaching = teaching
        self.progress = 0.0
        if dropout and isinstance(read_out, nn.Identity):
            raise ValueError("dropout comes before a read-out, and here the encoder gives the answers itself; 0 fits")
        symbols = (reads, answers) == ("symbols", "symbols") and isinstance(encoder, Recurrent)
        if teaching is not None and not symbols and not (answers == "numbers" and isinstance(encoder, OpensLoop)):
            raise ValueError("teacher_forcing needs answers that are read again: a causal encoder from symbols to "
                             "symbols, or a narx that gives numbers")  # fmt: skip

    @property
    def opens_loop(self) -> bool:
        """Whether the encoder's outputs are the answers and can be replaced by the right ones where it feeds back."""
        return isinstance(self.encoder, OpensLoop) and isinstance(self.read_out, nn.Identity)

    @property
    def causal(self) -> bool:
        """Whether no answer depends on later inputs, so that a row can be read in pieces."""
        return isinstance(self.encoder, Recurrent)

    @property
    def rate(self) -> float:
        """The probability that training now feeds back the right answer."""
        return 1.0 if self.teaching is None else self.teaching(self.progress)

    def forward(self, x: Tensor, lengths: Tensor | None = None, carry: Carry = None) -> tuple[Tensor, Carry]:
        """Answer on its own.

        Args:
            x: ids (B, T) or values (B, T, I).
            lengths: (B,) valid steps per row; None when all are.
            carry: where to go on from; None starts afresh.

        Returns:
            answers (B, T, C), logits or values, zero past each row's length, and the carry at each row's end.

        Raises:
            ValueError: if a carry is given and the encoder reads both ways.
        """
        vectors = self.inputs(x)
        if carry is None:
            y, after = self.encoder(vectors, lengths)
        else:
            y, after = self._recurrent()(vectors, lengths, carry[0])
        return self._answer(y, after, lengths)

    def teach(
        self,
        x: Tensor,
        lengths: Tensor,
        carry: Carry = None,
        *,
        fed: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        """Answer while right answers are fed back with probability :attr:`rate`, else the model's own.

        What is fed back is an input symbol that was the answer to the step before (scheduled sampling, Bengio et al.
        2015; the model's own is drawn from its softmax), or what a NARX network reads of its own output (its open
        loop; the model's own is its output). No gradient flows through what was fed back. With rate 1, and where
        nothing is fed back, this is one fast pass over the row.

        Args:
            x: as in :meth:`forward`.
            lengths: (B,).
            carry: as in :meth:`forward`.
            fed: (B, T), True where the input is the answer to the step before; None for nowhere.
            targets: right values (B, T, C) at every step, for an encoder with an open loop.
        """
        if targets is not None and self.opens_loop:
            encoder = cast(OpensLoop, self.encoder)
            before = None if carry is None else carry[0]
            y, after = encoder.open_loop(self.inputs(x), targets, lengths, before, teacher_forcing=self.rate)
            return self._answer(y, after, lengths)
        if fed is None or self.rate >= 1:
            return self(x, lengths, carry)  # type: ignore[no-any-return]
        return self._sample(x, lengths, carry, fed)

    def _sample(self, x: Tensor, lengths: Tensor, carry: Carry, fed: Tensor) -> tuple[Tensor, Carry]:
        encoder = self._recurrent()
        if carry is None:
            like = self.inputs(x[:, :1])[:, 0]
            # No row feeds back at its very first step, so what stands for the answer before it does not matter.
            carry = encoder.initial_carry(len(x), like), like.new_zeros(len(x), self.classes)
            fed = fed & (torch.arange(x.shape[1], device=x.device) > 0)
        inside = valid_mask(lengths, x.shape[1])
        state, answers = carry
        outputs = []
        for t in range(x.shape[1]):
            symbols = x[:, t]
            if bool((fed[:, t] & inside[:, t]).any()):
                own = torch.multinomial(answers.detach().float().softmax(-1), 1)[:, 0]
                symbols = torch.where(fed[:, t], mix(symbols, own, self.rate), symbols)
            new, y = encoder.step(state, self.inputs(symbols[:, None])[:, 0])
            now = self.read_out(self.dropout(y))
            state, answers = select(inside[:, t], (new, now), (state, answers))
            outputs.append(now)
        return zero_padding(torch.stack(outputs, 1), lengths), (state, answers)

    @property
    def classes(self) -> int:
        """C, how many logits or values an answer has."""
        return int(getattr(self.read_out, "out_features", self.encoder.output_size))

    def _answer(self, y: Tensor, after: Carry, lengths: Tensor | None) -> tuple[Tensor, Carry]:
        outputs = zero_padding(self.read_out(self.dropout(y)), lengths)
        return outputs, (after, gather(outputs, lengths))

    def _recurrent(self) -> Recurrent[Any]:
        if not isinstance(self.encoder, Recurrent):
            raise ValueError(f"{type(self.encoder).__name__} reads both ways and cannot go on from a carry; "
                             "a causal encoder, or the row as a whole, fits")  # fmt: skip
        return self.encoder


@MODELS.register("in_step")
def build_in_step(
    vocabulary_size: int,
    classes: int,
    *,
    encoder: Annotated[Spec, ENCODERS],
    reads: Kind = "symbols",
    answers: Kind = "symbols",
    embedding_size: Size | None = None,
    dropout: Probability = 0.0,
    teacher_forcing: Annotated[Spec, RATES] | None = None,
) -> InStep:
    """A sequence in, one answer a step out: a symbol, or numbers.

    Args:
        encoder: the recurrent network that reads the row. A narx whose output_size is the number of values answered
            gives the answers itself, without a read-out, and is trained in its open loop where a right answer stands
            at every step.
        reads: what a row is made of.
        answers: what is answered.
        embedding_size: values per symbol, learned; null feeds one-hot vectors. Numbers are read as they are.
        dropout: share of the encoder's outputs dropped in training before the read-out.
        teacher_forcing: probability that training feeds back the right answer where answers are read again; null
            always does.

    Raises:
        ValueError: if an embedding is asked for numbers, or teacher forcing where nothing is fed back.
    """
    if reads == "numbers":
        if embedding_size is not None:
            raise ValueError("embedding_size is for symbols; null fits where numbers are read")
        inputs, size = cast(nn.Module, nn.Identity()), vocabulary_size
    elif embedding_size is None:
        inputs, size = OneHot(vocabulary_size), vocabulary_size
    else:
        inputs, size = nn.Embedding(vocabulary_size, embedding_size), embedding_size
    reader = ENCODERS.build(encoder, input_size=size)
    itself = answers == "numbers" and isinstance(reader, OpensLoop) and reader.output_size == classes
    return InStep(
        inputs,
        reader,
        nn.Identity() if itself else nn.Linear(reader.output_size, classes),
        reads=reads,
        answers=answers,
        dropout=dropout,
        teaching=None if teacher_forcing is None else RATES.build(teacher_forcing),
    )
