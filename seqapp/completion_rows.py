"""The rows of completions: what was asked of each, its text as it grows, and how it chooses its tokens.

N rows that grow together, M rows of them, V vocabulary, C condition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seqapp.completion import BeamNode, Completion, GenerationInput, GenerationOutput, ScoredToken, TokenChance
from seqapp.data.tokenizers import BOS, EOS, PAD, SPECIALS, UNK, Encoded, Tokenizer, clean
from seqapp.decoding import (
    EVERY,
    Bias,
    Growing,
    MinimumLength,
    NoRepeatNgram,
    OnRows,
    Processor,
    RepetitionPenalty,
    Sample,
    StopStrings,
    UsePenalty,
    forbid,
    uniform,
)

SHOWN_UNKNOWN = 5
"""Most unknown parts of a prompt named in a note."""
_SPACE = re.compile(r"(?<=\S) (?=\S)")


@dataclass(eq=False)
class Request:
    """One input, checked; its prompt becomes tokens by :meth:`encode`.

    Args:
        tokenizer: of the model.
        given: the input.
        condition: (C,), for a model that has one.
        bias: (V,) added to the logits, or None.
        seed: of what is drawn, or None.
        encoded: the prompt, once it is encoded.
    """

    tokenizer: Tokenizer
    given: GenerationInput
    condition: Tensor | None
    bias: Tensor | None
    seed: int | None
    encoded: Encoded = field(default_factory=lambda: Encoded([], []))

    def encode(self, most: int) -> Iterator[int]:
        """Make tokens of the prompt, about ``most`` characters at a time; yields how many those were.

        LAW: they are those of the whole prompt: it is cut before a single space alone, which no token spans.
        """
        prompt, start = self.given.prompt, 0
        while start < len(prompt):
            space = _SPACE.search(prompt, start + most)
            end = space.start() if space else len(prompt)
            part = self.tokenizer.encode(prompt[start:end])
            self.encoded.ids.extend(part.ids)
            self.encoded.offsets.extend([(a + start, b + start) for a, b in part.offsets] if start else part.offsets)
            yield end - start
            start = end

    @cached_property
    def past(self) -> Tensor:
        """The ids of the prompt, (P,)."""
        return torch.tensor(self.encoded.ids, dtype=torch.int64, device="cpu")

    @cached_property
    def used(self) -> Tensor:
        """The ids in the prompt, each once."""
        return torch.tensor(sorted(set(self.encoded.ids)), dtype=torch.int64, device="cpu")

    @cached_property
    def last(self) -> list[int]:
        """The last token of the prompt that is no special one, if there is one: how the next is spelt depends on it."""
        return [next((index for index in reversed(self.encoded.ids) if index >= len(SPECIALS)), BOS)]

    @cached_property
    def notes(self) -> list[str]:
        """What a person should know."""
        notes, prompt = self.given.changes_nothing(), self.given.prompt
        spans = zip(self.encoded.ids, self.encoded.offsets, strict=True) if UNK in self.encoded.ids else ()
        unknown = [span for index, span in spans if index == UNK]
        if unknown:
            shown = ", ".join(f"{prompt[start:end]!r} at {start}" for start, end in unknown[:SHOWN_UNKNOWN])
            more = f" and {len(unknown) - SHOWN_UNKNOWN} more" if len(unknown) > SHOWN_UNKNOWN else ""
            notes.append(f"unknown to this model and read as <unk>: {shown}{more}")
        return notes

    @property
    def alike(self) -> tuple[Any, ...]:
        """Searches of requests with equal ones share steps."""
        given = self.given
        return (given.beam_size, given.n, given.length_penalty, given.beam_groups, given.diversity, given.return_beams)


@dataclass(eq=False)
class Asked:
    """A request inside, and what has come of it so far.

    Args:
        encoding: of its prompt, while that lasts.
        first: what its first piece tells besides.
        scored: the tokens of its prompt, if they are asked for.
        growing: rows that have not ended.
        over: it is answered, or has left.
        paused: its rows stay as they are.
    """

    key: Hashable
    request: Request
    stream: bool
    encoding: Iterator[int] | None = None
    first: dict[str, Any] = field(default_factory=dict)
    scored: list[ScoredToken] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    growing: int = 0
    over: bool = False
    paused: bool = False

    @property
    def places(self) -> int:
        """Rows that grow for it."""
        return self.request.given.beam_size or self.request.given.n

    def output(self, completions: list[Completion], beams: list[list[BeamNode]] | None = None) -> GenerationOutput:
        given = self.request.given
        if given.echo:
            for one in completions:
                one.text = clean(given.prompt) + one.text
                if one.logprobs is not None:
                    one.logprobs = self.scored + self.moved(one.logprobs)
        return GenerationOutput(completions=completions, beams=beams, **self.first)

    def moved(self, scored: Sequence[ScoredToken]) -> list[ScoredToken]:
        """The tokens of a completion, counted from the start of the prompt if that is given back."""
        given = self.request.given
        if not given.echo:
            return list(scored)
        return [one.model_copy(update={"offset": one.offset + len(given.prompt)}) for one in scored]


class Row:
    """The text of one completion as it grows.

    Args:
        asked: the request.
        number: of the completion.
        tokenizer: of the model.

    Attributes:
        told: how many of its ``tokens`` pieces have told.
    """

    def __init__(self, asked: Asked, number: int, tokenizer: Tokenizer) -> None:
        self.asked, self.number = asked, number
        request = asked.request
        self.draws = uniform(_seed(request.seed or 0, number)) if request.given.samples else iter(())
        self.turn = 0
        self.tokens, self.score = 0, 0.0
        self.told = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self._tokenizer, self._given = tokenizer, request.given
        self._decoding = tokenizer.decoding(request.last)
        self._stops = StopStrings(self._given.stop)
        self._decoded = 0
        self._shown = 0
        self._waiting: list[ScoredToken] = []
        self._kept: list[str] = []
        self._kept_scored: list[ScoredToken] = []

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.finish_reason is not None

    def add(self, token: int, log_prob: float, top: Sequence[tuple[int, float]] = ()) -> tuple[str, list[ScoredToken]]:
        """The text that is sure now, and its tokens."""
        self.score += log_prob
        new = "" if token == EOS else self._decoding.add(token)
        if self._given.logprobs is not None:
            likely = [TokenChance(token=self._tokenizer.token_text(index), log_prob=chance) for index, chance in top]
            name = self._tokenizer.token_text(token)
            # Of new text, a token's own is the end: a space before a word, or a character left broken, is not its.
            offset = self._decoded + max(0, len(new) - len(self._tokenizer.decode([token])))
            self._waiting.append(ScoredToken(token=name, log_prob=log_prob, offset=offset, top=likely))
        if token == EOS:
            return self._finish("stop")
        self.tokens += 1
        self._decoded += len(new)
        text = self._stops.push(new)
        if self._stops.stopped:
            self.finish_reason = "stop"
        elif self.tokens >= self._given.max_tokens:
            rest, scored = self._finish("length")
            return self._give(text)[0] + rest, scored
        return self._give(text)

    def keep(self, text: str, scored: Sequence[ScoredToken]) -> None:
        """Hold what was added until the text is whole."""
        self._kept.append(text)
        self._kept_scored += scored

    def completion(self) -> Completion:
        """What was kept, as one."""
        return Completion(
            text="".join(self._kept),
            score=self.score,
            tokens=self.tokens,
            finish_reason=self.finish_reason or "length",
            logprobs=self._kept_scored if self._given.logprobs is not None else None,
        )

    def _finish(self, reason: Literal["stop", "length"]) -> tuple[str, list[ScoredToken]]:
        text = self._stops.push(self._decoding.finish()) + self._stops.finish()
        self.finish_reason = "stop" if self._stops.stopped else reason
        return self._give(text)

    def _give(self, text: str) -> tuple[str, list[ScoredToken]]:
        # A token is told with its text; those of a stop text are never told.
        self._shown += len(text)
        end = self.finish_reason is not None and not self._stops.stopped
        told = [one for one in self._waiting if end or one.offset < self._shown]
        self._waiting = self._waiting[len(told) :]
        return text, told


@dataclass(frozen=True, slots=True)
class Choosing:
    """How some rows choose their tokens."""

    sampler: Sample
    processors: list[Processor]
    top: int
    top_of: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Row], size: int, device: torch.device) -> Choosing:
        """How these choose, each as it was asked, of a vocabulary of ``size``."""
        requests = [row.asked.request for row in rows]
        given = [one.given for one in requests]
        with device:
            sampler = Sample(
                [row.draws for row in rows],
                temperature=_rows([one.temperature for one in given]),
                top_k=_rows([EVERY if one.top_k is None or one.top_k >= size else one.top_k for one in given]),
                top_p=_rows([one.top_p for one in given]),
                min_p=_rows([one.min_p for one in given]),
                typical_p=_rows([one.typical_p for one in given]),
            )
            told = [place for place, one in enumerate(given) if one.logprobs]
            top_of = None if len(told) == len(rows) else torch.tensor(told)
        top = max((one.logprobs or 0 for one in given), default=0)
        return cls(sampler, processors_of(requests, size, device), top, top_of)


@dataclass(eq=False)
class Beside:
    """Rows that grow side by side.

    Args:
        rows: N.
        growing: what the model knows of them, N rows.
        choosing: how they choose, once that is made.
    """

    rows: list[Row]
    growing: Growing
    choosing: Choosing | None = None

    @staticmethod
    def join(parts: Sequence[Beside]) -> Beside | None:
        """The rows of all parts, or None where there are none."""
        if len(parts) < 2:
            return parts[0] if parts else None
        return Beside([row for part in parts for row in part.rows], Growing.join([part.growing for part in parts]))

    def take(self, places: Sequence[int]) -> Beside:
        """Some of the rows, in this order."""
        return Beside([self.rows[place] for place in places], self.growing.take(places))

    def parted(self, first: Callable[[Row], bool]) -> tuple[Beside | None, Beside | None]:
        """Those that are ``first`` and the others; None where there are none."""
        places: tuple[list[int], list[int]] = [], []
        for place, row in enumerate(self.rows):
            places[not first(row)].append(place)
        if not places[1]:
            return self, None
        return (self.take(places[0]) if places[0] else None), (self.take(places[1]) if places[0] else self)

    def without_over(self) -> Beside | None:
        """Those that go on, or None where none does."""
        kept = [place for place, row in enumerate(self.rows) if not (row.ended or row.asked.over)]
        return None if not kept else self if len(kept) == len(self.rows) else self.take(kept)


def processors_of(requests: Sequence[Request], size: int, device: torch.device) -> list[Processor]:
    """What changes the logits of rows, one request each, of a vocabulary of ``size``."""
    bent = [place for place, one in enumerate(requests) if _bends(one)]
    with device:
        made: list[Processor] = [forbid([PAD, UNK, BOS], size)]
        chain = _bending([requests[place] for place in bent], size) if bent else []
        if len(bent) == len(requests):
            return made + chain
        return [*made, OnRows(torch.tensor(bent), chain)] if bent else made


def _bends(request: Request) -> bool:
    given = request.given
    return bool(
        request.bias is not None
        or given.repetition_penalty != 1
        or given.frequency_penalty
        or given.presence_penalty
        or given.no_repeat_ngram_size
        or given.min_tokens
    )


def _bending(requests: Sequence[Request], size: int) -> list[Processor]:
    given = [one.given for one in requests]
    made: list[Processor] = []
    if any(one.repetition_penalty != 1 for one in given):
        penalty = _rows([one.repetition_penalty for one in given])
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        used = _side_by_side([one.used if one.given.repetition_penalty != 1 else none for one in requests])
        made.append(RepetitionPenalty(penalty, used))
    frequency, presence = (_rows([getattr(one, f"{name}_penalty") for one in given])
                           for name in ("frequency", "presence"))  # fmt: skip
    if isinstance(frequency, Tensor) or isinstance(presence, Tensor) or frequency or presence:
        made.append(UsePenalty(frequency, presence))
    if any(one.bias is not None for one in requests):
        zeros = torch.zeros(size)
        made.append(Bias(torch.stack([zeros if one.bias is None else one.bias.to(zeros.device) for one in requests])))
    for n in sorted({one.no_repeat_ngram_size for one in given} - {0}):
        places = [place for place, one in enumerate(given) if one.no_repeat_ngram_size == n]
        barring = NoRepeatNgram(n, _side_by_side([requests[place].past for place in places]))
        made.append(barring if len(places) == len(given) else OnRows(torch.tensor(places), [barring]))
    if any(one.min_tokens for one in given):
        made.append(MinimumLength(EOS, torch.tensor([one.min_tokens for one in given])))
    return made


def _side_by_side(prompts: Sequence[Tensor]) -> Tensor | None:
    """(M, P), each prompt at the end of its row and -1 before it; None where all are empty."""
    width = max(map(len, prompts))
    if not width:
        return None
    found: Tensor = pad_sequence(list(prompts), batch_first=True, padding_value=-1, padding_side="left")
    return found.to(torch.get_default_device())


def _rows(values: Sequence[Any]) -> Any:
    """One number where all rows have the same, else (N,)."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float64)


def _seed(seed: int, number: int) -> int:
    """A seed of its own for each completion of a prompt."""
    return int(numpy.random.SeedSequence([seed, number]).generate_state(1, numpy.uint64)[0])
