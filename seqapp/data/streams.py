"""One long text as rows that are read on and on: truncated back-propagation with carried state.

R rows, T steps, n tokens.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqapp.data.batching import Idle
from seqapp.data.tokenizers import BOS, EOS, PAD
from seqapp.errors import DataError

CONTEXT = 512
"""Tokens that a row of an evaluation reads before the first one it scores."""
EVALUATION_ROWS = 64
"""Most rows of an evaluation."""
EVALUATION_STEPS = 256
"""Steps of a piece of an evaluation."""


class Batch(NamedTuple):
    """Rows of text, or a piece of them.

    Args:
        inputs: ids (R, T), BOS where a document begins, PAD past a row's end.
        lengths: (R,).
        targets: ids (R, T), the token after each input.
        scored: (R, T), True where a target counts.
        characters: how many characters of text the scored targets stand for.
        condition: (R, C), or None.
        fresh: whether this is the first piece of its rows.
        parts: (R, T), which part of the text each target is in; None: each row is a text of its own.
        worth: (R, T) or (R, 1), how many characters each target stands for; None: all as many.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    scored: Tensor
    characters: float
    condition: Tensor | None = None
    fresh: bool = True
    parts: Tensor | None = None
    worth: Tensor | None = None


@dataclass(frozen=True)
class Stream:
    """The tokens of a text in order, each document closed by EOS where it ends; ``len`` counts them.

    Nothing but the piece that is read is in memory.

    Args:
        ids: (n,) unsigned integers, memory-mapped.
        characters: of the text.
        parts: tokens and characters of each part of the text, in order, that add up to those of the text; none: it is
            one.
    """

    ids: NDArray[Any]
    characters: int
    parts: Sequence[tuple[int, int]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def write(
        cls, documents: Iterable[Sequence[int] | NDArray[Any]], characters: int | None = None, *, vocabulary_size: int
    ) -> Stream:
        """Lay documents one after the other in a temporary file, which goes with the process.

        Args:
            documents: ids of one after the other.
            characters: of the text; None counts a token as one.
            vocabulary_size: V, which decides between two and four bytes a token.

        Raises:
            DataError: if the file cannot be written.
        """
        kind = numpy.dtype(numpy.uint16 if vocabulary_size <= 2**16 else numpy.uint32)
        with tempfile.TemporaryFile() as file:
            size = 0
            for ids in documents:
                content = numpy.asarray(ids, kind).tobytes()
                try:
                    size += file.write(content) // kind.itemsize
                    file.flush()
                except OSError as error:
                    raise DataError(f"{tempfile.gettempdir()}: the tokens of the text cannot be written: "
                                    f"{error.strerror}; TMPDIR names another folder") from None  # fmt: skip
            # A mapping of nothing is refused; the file may be unlinked while the mapping lives.
            ids = numpy.memmap(file, kind, mode="r", shape=(size,)) if size else numpy.empty(0, kind)
        return cls(ids, size if characters is None else characters)

    def targets(self, start: int, stop: int) -> NDArray[numpy.int64]:
        """Tokens ``start`` to ``stop``."""
        return self.ids[start:stop].astype(numpy.int64)

    def inputs(self, start: int, stop: int) -> NDArray[numpy.int64]:
        """The token before each of those, BOS where there is none or a document ended."""
        before = self.ids[max(0, start - 1) : max(0, stop - 1)].astype(numpy.int64)
        before[before == EOS] = BOS
        return before if start else numpy.concatenate([[BOS], before])

    def places(self, start: int, stop: int) -> tuple[NDArray[numpy.int64], NDArray[numpy.float64]]:
        """The part in which each of tokens ``start`` to ``stop`` stands, and how many characters it stands for."""
        tokens, characters = numpy.array(self.parts or [(len(self), self.characters)], numpy.float64).T
        part = numpy.searchsorted(tokens.cumsum(), numpy.arange(start, stop), side="right")
        return part, (characters / tokens)[part]


class Span(NamedTuple):
    """One row: tokens ``start`` to ``stop``, the first ``skip`` of which are read but not scored."""

    start: int
    stop: int
    skip: int = 0


class Pieces(Iterable[Any]):
    """Rows of a stream cut along time into pieces of ``steps``, the first of ``first`` steps.

    LAW: the scored targets of all pieces are those of all rows, each once. Rows stand longest first and those that
    have ended are left out, so the rows of a piece are the first rows of the piece before. With several processes a
    row is read by one of them to its end, and the pieces of all are cut at the same places; a process whose rows have
    ended gets an :class:`Idle` in place of a :class:`Batch`.

    Args:
        stream: the text.
        spans: the rows.
        steps: T, most steps of a piece.
        first: of the first piece; None for ``steps``.
        rank: of this process, from 0.
        world: number of processes.
        parts: tell of each target in which part of the stream it is, and how many characters it stands for.
    """

    def __init__(
        self,
        stream: Stream,
        spans: Sequence[Span],
        *,
        steps: int,
        first: int | None = None,
        rank: int = 0,
        world: int = 1,
        parts: bool = False,
    ) -> None:
        self.stream, self.steps, self.parts = stream, steps, parts
        rows = sorted(spans, key=lambda span: span.start - span.stop)
        self.longest = rows[0].stop - rows[0].start
        self.spans = rows[rank::world]
        self.cuts = range(min(first or steps, self.longest), self.longest, steps)
        """Where one piece ends and another begins."""

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def __iter__(self) -> Iterator[Any]:
        share = self.stream.characters / max(1, len(self.stream))
        for begin, end in pairwise(chain([0], self.cuts, [self.longest])):
            rows = [span for span in self.spans if span.stop - span.start > begin]
            if not rows:
                yield Idle()
                continue
            lengths = [min(end, span.stop - span.start) - begin for span in rows]
            inputs, targets = (torch.full((len(rows), end - begin), PAD) for _ in range(2))
            scored = torch.zeros(len(rows), end - begin, dtype=torch.bool)
            parts, worth = torch.zeros_like(targets), torch.zeros(targets.shape, dtype=torch.float64)
            for row, (span, length) in enumerate(zip(rows, lengths, strict=True)):
                place = span.start + begin
                inputs[row, :length] = torch.from_numpy(self.stream.inputs(place, place + length))
                targets[row, :length] = torch.from_numpy(self.stream.targets(place, place + length))
                scored[row, max(0, span.skip - begin) : length] = True
                if self.parts:
                    part, characters = self.stream.places(place, place + length)
                    parts[row, :length], worth[row, :length] = torch.from_numpy(part), torch.from_numpy(characters)
            count = int(scored.sum())
            told = {"parts": parts, "worth": worth} if self.parts else {}
            yield Batch(inputs, torch.tensor(lengths), targets, scored, count * share, fresh=begin == 0, **told)


def training_pieces(
    stream: Stream, *, rows: int, steps: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Pieces:
    """Every token once, in ``rows`` rows of equal length, the last one shorter, dealt to ``world`` processes.

    The length of the first piece depends on seed and epoch, so that the gradient is not cut at the same places in each
    epoch.
    """
    first = random.Random(f"{seed}:{epoch}").randint(1, steps)
    length = -(-len(stream) // max(1, min(rows, len(stream))))
    spans = [Span(start, min(start + length, len(stream))) for start in range(0, len(stream), length)]
    return Pieces(stream, spans, steps=steps, first=first, rank=rank, world=world)


def evaluation_pieces(
    stream: Stream,
    *,
    context: int = CONTEXT,
    rows: int = EVALUATION_ROWS,
    steps: int = EVALUATION_STEPS,
    rank: int = 0,
    world: int = 1,
) -> Pieces:
    """Every token scored once, each after at least ``context`` of the tokens before it.

    Rows at least eight contexts long start that far ahead of what they score, so that many can be read at once and
    none begins without a past. One row would give each token all of its past, and take many times longer.

    Args:
        stream: the text.
        context: tokens read before the first one scored, if there are as many.
        rows: most rows.
        steps: of a piece.
        rank: of this process, from 0.
        world: number of processes, to which the rows are dealt.
    """
    count = max(1, min(rows, len(stream) // (8 * context)))
    length = -(-len(stream) // count)
    spans = [
        Span(max(0, start - context), min(start + length, len(stream)), min(context, start))
        for start in range(0, len(stream), length)
    ]
    return Pieces(stream, spans, steps=steps, rank=rank, world=world, parts=True)
