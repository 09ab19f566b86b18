"""From a text to its translation: sentence by sentence, by beam search, by one model or several.

B sources, N rows searched, S source length, T target length.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from seqapp.beam_search import BeamSearch, Ensemble, Hypothesis, beam_search
from seqapp.data.batching import pad
from seqapp.data.languages import LanguageProfile
from seqapp.data.pairs import even_spaces
from seqapp.data.sentences import segments
from seqapp.data.tokenizers import BOS, EOS, SPECIALS, UNK, Tokenizer
from seqapp.decoding import StepFn
from seqapp.models.translator import Translator
from seqapp.nn.recurrent import Carry

MOST_BEAMS = 64
"""Most hypotheses kept in a search."""
MOST_TOKENS = 1024
"""Most tokens of the translation of one sentence."""
ROWS_AT_ONCE = 320
"""Most hypotheses that grow together, of one sentence at least."""
ENCODED_AT_ONCE = 2048
"""Most source tokens that are encoded together, padding counted, of one sentence at least."""
CUT_AT_ONCE = 4096
"""Most characters that are cut into sentences in one step, of one sentence at least."""
READ_TOGETHER = 4096
"""Most tokens of known translations that are read side by side, padding counted, of one at least."""
READ_AT_ONCE = 512
"""Most of them that are read in one step."""
SHOWN = 5
"""Most things named in a notice."""
NO_BREAK = "\u00a0\u202f"
"""Spaces that are part of a text where training had them, in French above all."""


class TranslationInput(BaseModel):
    """A text to translate, and how to search for its translation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    text: str = Field(description="what to translate, one sentence or many; line ends are kept")
    target: str | None = Field(
        default=None, description="score this translation of the text, as one sentence, and search for no other"
    )
    beam_size: int | None = Field(
        default=None,
        ge=1,
        le=MOST_BEAMS,
        description="hypotheses kept in the search; null takes the model's own",
    )
    length_penalty: float | None = Field(
        default=None, ge=-10, le=10, description="rank by log-probability / length ** this; null takes the model's own"
    )
    coverage_penalty: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="above 0 ranks lower what leaves source tokens without attention; for a model with attention",
    )
    alternatives: int = Field(default=0, ge=0, lt=MOST_BEAMS, description="next best translations of each sentence")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description="most tokens for a sentence; null goes by its length",
    )
    replace_unknown: bool = Field(
        default=True, description="copy the source word that an unknown token looks at, for a model with attention"
    )
    return_attention: bool = Field(
        default=False,
        description="also give the tokens of both sides, and where each target token looks",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TranslationInput:
        if self.beam_size is not None and self.alternatives >= self.beam_size:
            raise ValueError(f"alternatives is {self.alternatives}; fewer than beam_size, {self.beam_size}, fit")
        if self.target is not None and self.alternatives:
            raise ValueError("alternatives are searched for, and with a target there is no search; 0 fits")
        return self


class Alternative(BaseModel):
    """Another translation of a sentence."""

    text: str
    score: float = Field(description="what translations are ranked by")
    log_prob: float = Field(description="the model's log-probability of it, in nats")


class Sentence(BaseModel):
    """A sentence as it was translated."""

    source: str
    translation: str
    score: float = Field(description="what translations are ranked by: log-probability / length ** length_penalty, and "
                                     "what coverage_penalty takes off")  # fmt: skip
    log_prob: float = Field(description="the model's log-probability of the translation, in nats")
    finished: bool = Field(description="whether the model ended it; else it was cut at the most tokens")
    alternatives: list[Alternative] = Field(default=[], description="the next best, the best first")
    source_tokens: list[str] | None = Field(default=None, description="with return_attention; <eos> is the last")
    target_tokens: list[str] | None = Field(
        default=None, description="with return_attention; <eos> is the last if the translation is finished"
    )
    attention: list[list[float]] | None = Field(
        default=None,
        description="with return_attention, of a model that has attention: a row for each target token, a number for "
        "each source token",
    )


class TranslationOutput(BaseModel):
    """A text in the other language."""

    text: str
    alternatives: list[str] = Field(
        default=[], description="the whole text with the next best translation of each sentence, the best first"
    )
    score: float = Field(description="the mean of the sentences' scores")
    sentences: list[Sentence] = Field(description="what the text was cut into, in order")
    notices: list[str] = Field(default=[], description="what a person should know about this translation")


class Searched(NamedTuple):
    """How sentences are searched."""

    beam_size: int
    n_best: int
    length_penalty: float
    coverage_penalty: float


@dataclass(slots=True, eq=False)
class _Part:
    """A sentence of an input: ids, EOS included; what follows it in the text; what was found.

    ``weights`` holds the attention (T + 1, S) of those of ``found``, by their places, for which it is needed; so many
    of which are ``missing``. ``sentence`` is what is told of it.
    """

    text: str
    gap: str
    ids: list[int]
    found: list[Hypothesis] = field(default_factory=list)
    weights: dict[int, Tensor] = field(default_factory=dict)
    missing: int = 0
    sentence: Sentence | None = None


@dataclass(slots=True, eq=False)
class _Text:
    """An input that is being answered: its parts, those that wait to be searched (the longest last), and what is open.

    Parts that are not done count as ``open``, and so does the rest that was not cut into parts.
    """

    key: Hashable
    given: TranslationInput
    asked: Searched
    parts: list[_Part] = field(default_factory=list)
    waiting: list[_Part] = field(default_factory=list)
    open: int = 1


class _Reading(NamedTuple):
    """A known translation to be read, to score it or to see where the model looks."""

    of: _Text
    part: _Part
    place: int
    tokens: list[int]


class Interpreter:
    """Translates texts with one model, or with several of the same vocabularies as one.

    Args:
        source: of the language translated from.
        target: of the language translated into.
        models: in eval mode, at least one.
        language: code of the source language, which tells where sentences end.
        longest: most tokens of a sentence; a longer one is cut.
        beam_size: where a request names none.
        length_penalty: where a request names none.
        profile: tells a text that is in another language; None does not look.
    """

    def __init__(
        self,
        source: Tokenizer,
        target: Tokenizer,
        models: Sequence[Translator],
        *,
        language: str = "",
        longest: int = 100,
        beam_size: int = 5,
        length_penalty: float = 1.0,
        profile: LanguageProfile | None = None,
    ) -> None:
        self.source, self.target, self.models = source, target, models
        self.looking = [model for model in models if model.aligned]
        self.language, self.longest, self.profile = language, longest, profile
        self.beam_size, self.length_penalty = beam_size, length_penalty

    def answer(
        self, inputs: Sequence[TranslationInput], *, done: Callable[[int], None] | None = None
    ) -> list[TranslationOutput]:
        """The translation of each input, or the score of the one that it brings; no text is empty.

        Args:
            inputs: that fit this model.
            done: told how many inputs are finished, as they are.
        """
        running, outputs = Translating(self), dict[Hashable, TranslationOutput]()
        # Those of similar length beside each other; the longest first, so that none of them is left over at the end.
        for index in sorted(range(len(inputs)), key=lambda index: -len(inputs[index].text)):
            running.join(index, inputs[index])
        while len(running):
            told = running.step()
            for key, output in told:
                if isinstance(output, Exception):
                    raise output
                outputs[key] = output
            if done is not None and told:
                done(len(told))
        return [outputs[index] for index in range(len(inputs))]

    def _asked(self, given: TranslationInput) -> Searched:
        beam_size = self.beam_size if given.beam_size is None else given.beam_size
        penalty = self.length_penalty if given.length_penalty is None else given.length_penalty
        return Searched(max(beam_size, given.alternatives + 1), given.alternatives + 1, penalty, given.coverage_penalty)

    def _parts(self, given: TranslationInput) -> Iterator[_Part]:
        def length(piece: str) -> int:
            return len(self.source.encode(self._plain(piece)).ids)

        whole = [(given.text, "")]
        cut = whole if given.target is not None else segments(given.text, self.language, self.longest, length)
        for piece, gap in cut:
            yield _Part(piece, gap, [*self.source.encode(self._plain(piece)).ids, EOS])

    def _plain(self, text: str) -> str:
        """``text`` with the white space that training had: a blank for a run of it, and for an unknown no-break one."""
        text = even_spaces(text)
        for space in NO_BREAK:
            if space in text and any(space in part for _, part in self.source.unknown(text)):
                text = text.replace(space, " ")
        return text

    def _scored(self, of: _Text, tokens: list[int], log_probs: list[float], weights: Tensor | None) -> Hypothesis:
        """A translation that was given, with its score."""
        total, (*_, penalty, weight) = sum(log_probs), of.asked
        ranked = total / len(log_probs) ** penalty
        if weights is not None:
            ranked += float(coverage(weights.sum(0)[None], weight))
        return Hypothesis(tokens, log_probs, total, total, ranked, True)

    def _wanted(self, given: TranslationInput, part: _Part) -> list[int]:
        """Which of those found need attention: to be given, or to replace unknown tokens."""
        return [
            place
            for place, one in enumerate(part.found)
            if (given.return_attention and place == 0) or (given.replace_unknown and UNK in one.tokens)
        ] if self.looking else []  # fmt: skip

    def _output(self, given: TranslationInput, parts: Sequence[_Part]) -> TranslationOutput:
        sentences = [part.sentence for part in parts if part.sentence]
        ways = [""] * (given.alternatives + 1)
        for part in parts:
            found = part.sentence
            each = [found.translation, *(one.text for one in found.alternatives)] if found else [part.text]
            for way in range(len(ways)):
                # A sentence with fewer alternatives keeps its last.
                ways[way] += each[: way + 1][-1] + part.gap
        scores = [sentence.score for sentence in sentences]
        return TranslationOutput(
            text=ways[0],
            alternatives=[way for way in dict.fromkeys(ways[1:]) if way != ways[0]],
            score=sum(scores) / len(scores) if scores else 0.0,
            sentences=sentences,
            notices=self._notices(given, parts, sentences),
        )

    def _sentence(self, given: TranslationInput, part: _Part) -> Sentence:
        best, *others = part.found
        sentence = Sentence(
            source=part.text,
            translation=self._text(given, part, 0) if given.target is None else given.target,
            score=best.score,
            log_prob=best.log_prob,
            finished=best.finished,
            alternatives=[Alternative(text=self._text(given, part, place), score=one.score, log_prob=one.log_prob)
                          for place, one in enumerate(others, 1)],
        )  # fmt: skip
        if given.return_attention:
            sentence.source_tokens = [self.source.token_text(index) for index in part.ids]
            said = [*best.tokens, EOS] if best.finished else best.tokens
            sentence.target_tokens = [self.target.token_text(index) for index in said]
            if part.weights:
                rows = part.weights[0][: len(said)].tolist()
                sentence.attention = [[round(weight, 4) for weight in row] for row in rows]
        return sentence

    def _text(self, given: TranslationInput, part: _Part, place: int) -> str:
        """One of what was found as text; unknown tokens are the source words they look at (Jean et al. 2015, 3.3)."""
        tokens, weights = part.found[place].tokens, part.weights.get(place)
        if not given.replace_unknown or weights is None or UNK not in tokens:
            return self.target.decode(tokens)
        text = self._plain(part.text)
        offsets = self.source.encode(text).offsets
        pieces = []
        for index, row in zip(tokens, weights, strict=False):
            if index == UNK:
                start, end = offsets[int(row[: len(offsets)].argmax())]
                pieces.append(text[start:end])
            elif index >= len(SPECIALS):
                pieces.append(str(self.target.core.id_to_token(index)))
        decoder = self.target.core.decoder
        return str(decoder.decode(pieces)) if decoder else " ".join(pieces)

    def _notices(self, given: TranslationInput, parts: Sequence[_Part], sentences: Sequence[Sentence]) -> list[str]:
        notices = []
        if given.coverage_penalty and not self.looking:
            notices.append("the model has no attention, so coverage_penalty changes nothing")
        if self.profile is not None and (notice := self.profile.notice(given.text)):
            notices.append(notice)
        unknowing = [self._plain(part.text) for part in parts if UNK in part.ids]
        unknown = list(dict.fromkeys(one for text in unknowing for _, one in self.source.unknown(text)))
        if unknown:
            named = ", ".join(repr(part) for part in unknown[:SHOWN])
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            notices.append(f"the model does not know {named}{more}")
        cut = [index + 1 for index, sentence in enumerate(sentences) if not sentence.finished]
        if cut:
            named = ", ".join(map(str, cut[:SHOWN])) + (" ..." if len(cut) > SHOWN else "")
            notices.append(f"the translation of sentence {named} came to no end and was cut")
        silent = [index + 1 for index, sentence in enumerate(sentences) if not sentence.translation.strip()]
        if silent:
            named = ", ".join(map(str, silent[:SHOWN])) + (" ..." if len(silent) > SHOWN else "")
            notices.append(f"the translation of sentence {named} is empty")
        return notices


class Translating:
    """Texts that one interpreter translates side by side; they join and leave between its steps.

    LAW: each is answered as if it were alone, whoever joins and leaves, up to rounding.

    Sentences of all texts that are searched alike share one :class:`seqapp.beam_search.BeamSearch`. A text has one
    sentence after the other put into its search: the longest first, so that those side by side are of similar length,
    and in turn with the other texts, so that none waits for a long one. Where more wait than fit, several are put in at
    once, so that they share the work of the encoder. A step cuts some text into sentences and then does one of these,
    by turns: sentences are encoded; one of the searches takes a step; some tokens of known translations are read.

    Args:
        interpreter: with the models.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._of = interpreter
        self._texts: dict[Hashable, _Text] = {}
        self._uncut: deque[tuple[_Text, Iterator[_Part]]] = deque()
        self._line: deque[_Text] = deque()
        self._rows_waiting = 0
        # By how they search; of what is searched alone by that.
        self._searches: dict[Hashable, tuple[BeamSearch, Callable[[], bool]]] = {}
        self._again: deque[tuple[_Text, _Part]] = deque()  # of a search that broke
        self._unread: deque[_Reading] = deque()
        self._halves: list[list[_Reading]] = []  # of those that could not be read together
        self._reading: tuple[list[_Reading], Generator[tuple[Tensor | None, Tensor | None]]] | None = None
        self._pieces: list[tuple[Tensor | None, Tensor | None]] = []
        self._told: list[tuple[Hashable, TranslationOutput | Exception]] = []
        self._turns: deque[Callable[[], bool]] = deque([self._encode, self._read])

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def rows(self) -> int:
        """Hypotheses that one sentence of each text inside has."""
        return sum(text.asked.beam_size for text in self._texts.values())

    def join(self, key: Hashable, given: TranslationInput) -> None:
        """Take in a text that fits the model, which the next steps answer.

        Args:
            key: by which its answer is told; none inside has it.
            given: a text, not empty.
        """
        text = self._texts[key] = _Text(key, given, self._of._asked(given))
        self._uncut.append((text, self._of._parts(given)))

    def leave(self, key: Hashable) -> None:
        """Forget a text; nothing more is computed for it from the next step on."""
        if key not in self._texts:
            return
        text = self._texts.pop(key)
        if text.waiting:
            self._line.remove(text)
            self._rows_waiting -= len(text.waiting) * text.asked.beam_size
        for name, (search, _) in list(self._searches.items()):
            for inside in search.keys:
                if inside[0] is text:
                    search.leave(inside)
            self._close(name)
        self._again = deque(one for one in self._again if one[0] is not text)
        self._uncut = deque(one for one in self._uncut if one[0] is not text)
        self._unread = deque(one for one in self._unread if one.of is not text)
        if self._reading and not any(self._inside(one.of) for one in self._reading[0]):
            self._reading = None

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, TranslationOutput | Exception]]:
        """Compute one step.

        Returns:
            of each text that is answered, and has left, its key and its translation, or what went wrong with it.
        """
        self._cut()
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if self._turns[-1]():
                break
        told, self._told = self._told, []
        return told

    def _inside(self, text: _Text) -> bool:
        return self._texts.get(text.key) is text

    def _cut(self) -> None:
        """Put sentences in line, of each text in turn."""
        size = 0
        while self._uncut and size < CUT_AT_ONCE:
            text, parts = self._uncut.popleft()
            try:
                part = next(parts, None)
            except Exception as error:
                self._fail([text], error)
                continue
            if part is None:
                self._less(text)
                continue
            self._uncut.append((text, parts))
            text.parts.append(part)
            size += len(part.text) + 1
            if text.given.target is not None:
                text.open, part.missing = text.open + 1, 1
                self._unread.append(_Reading(text, part, 0, self._of.target.encode(text.given.target).ids))
            elif len(part.ids) > 1:
                text.open += 1
                if not text.waiting:
                    self._line.append(text)
                bisect.insort(text.waiting, part, key=lambda one: len(one.ids))
                self._rows_waiting += text.asked.beam_size

    def _done(self, text: _Text, part: _Part) -> None:
        try:
            part.sentence = self._of._sentence(text.given, part)
        except Exception as error:
            self._fail([text], error)
        else:
            self._less(text)

    def _less(self, text: _Text) -> None:
        text.open -= 1
        if text.open:
            return
        try:
            output: TranslationOutput | Exception = self._of._output(text.given, text.parts)
        except Exception as error:
            output = error
        del self._texts[text.key]
        self._told.append((text.key, output))

    def _fail(self, texts: Iterable[_Text], error: Exception) -> None:
        for text in texts:
            if self._inside(text):
                self.leave(text.key)
                self._told.append((text.key, error))

    def _close(self, name: Hashable) -> None:
        """Forget a search with nothing inside."""
        search, turn = self._searches[name]
        if not len(search):
            del self._searches[name]
            self._turns.remove(turn)

    def _encode(self) -> bool:
        """Let sentences in line join their searches; before them one that begins anew, alone."""
        if self._again:
            job = self._again.popleft()
            self._begin(job, job[0].asked, [job])
            return True
        rows = sum(len(search) * search.beam_size for search, _ in self._searches.values())
        if rows and self._rows_waiting > ROWS_AT_ONCE - rows < ROWS_AT_ONCE // 2:
            return False  # until enough places are free that they are worth an encoder's call
        chosen: dict[Searched, list[tuple[_Text, _Part]]] = {}
        count = longest = 0
        while self._line:
            text = self._line[0]
            size = max(longest, len(text.waiting[-1].ids))
            full = rows and rows + text.asked.beam_size > ROWS_AT_ONCE
            if full or (count and (count + 1) * size > ENCODED_AT_ONCE):
                break
            self._line.popleft()
            chosen.setdefault(text.asked, []).append((text, text.waiting.pop()))
            if text.waiting:
                self._line.append(text)
            rows, count, longest = rows + text.asked.beam_size, count + 1, size
            self._rows_waiting -= text.asked.beam_size
        for asked, jobs in chosen.items():
            self._begin(asked, asked, jobs)
        return bool(chosen)

    def _begin(self, name: Hashable, asked: Searched, jobs: Sequence[tuple[_Text, _Part]]) -> None:
        """Let sentences join the search of this name; by halves where all cannot be encoded."""
        jobs = [job for job in jobs if self._inside(job[0])]
        if not jobs:
            return
        try:
            started = _start(self._of.models, [part.ids for _, part in jobs], asked.beam_size, asked.coverage_penalty)
        except Exception as error:
            if len(jobs) == 1:
                self._fail([jobs[0][0]], error)
            else:
                self._begin(name, asked, jobs[: len(jobs) // 2])
                self._begin(name, asked, jobs[len(jobs) // 2 :])
            return
        if name not in self._searches:
            search = BeamSearch(
                eos_id=EOS,
                beam_size=asked.beam_size,
                n_best=asked.n_best,
                length_penalty=asked.length_penalty,
                bonus=_covered(self._of.models, asked.coverage_penalty),
            )
            self._searches[name] = search, partial(self._advance, name)
            self._turns.append(self._searches[name][1])
        search, _ = self._searches[name]
        inside = search.keys
        limits = [limit(len(part.ids), text.given.max_tokens) for text, part in jobs]
        try:
            search.join(jobs, *started, limits)
        except Exception as error:
            self._part(name, [*inside, *jobs], error)

    def _part(self, name: Hashable, inside: Sequence[tuple[_Text, _Part]], error: Exception) -> None:
        """Let all inside of a search that broke begin anew, each alone, so that the guilty fail alone."""
        _, turn = self._searches.pop(name)
        self._turns.remove(turn)
        if len(inside) == 1:
            self._fail([inside[0][0]], error)
        else:
            self._again += inside

    def _advance(self, name: Hashable) -> bool:
        """One step of a search."""
        search, _ = self._searches[name]
        inside = search.keys
        try:
            told = search.advance()
        except Exception as error:
            self._part(name, inside, error)
            return True
        for (text, part), found in told:
            if isinstance(found, ValueError):
                self._fail([text], found)
            elif self._inside(text):
                part.found = found.hypotheses
                wanted = self._of._wanted(text.given, part)
                self._unread.extend(_Reading(text, part, place, part.found[place].tokens) for place in wanted)
                part.missing = len(wanted)
                if not wanted:
                    self._done(text, part)
        if name in self._searches:
            self._close(name)
        return True

    def _read(self) -> bool:
        """One piece of known translations."""
        if self._reading is None:
            jobs = self._next_readings()
            if not jobs:
                return False
            scores = jobs[0].of.given.target is not None
            pieces = _read(
                self._of.models if scores else self._of.looking,
                [one.part.ids for one in jobs],
                [one.tokens for one in jobs],
                scores=scores,
                step=max(1, READ_AT_ONCE // len(jobs)),
            )
            self._reading, self._pieces = (jobs, pieces), []
        jobs, pieces = self._reading
        try:
            piece = next(pieces, None)
            if piece is not None:
                self._pieces.append(piece)
                return True
            log_probs, weights = _joined(self._pieces)
        except Exception as error:
            self._reading = None
            if len(jobs) == 1:
                self._fail([jobs[0].of], error)
            else:
                self._halves += [jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]]
            return True
        self._reading = None
        for row, (text, part, place, tokens) in enumerate(jobs):
            if not self._inside(text):
                continue
            scores = text.given.target is not None
            if weights is not None and (not scores or text.given.return_attention or text.asked.coverage_penalty):
                part.weights[place] = weights[row, : len(tokens) + 1, : len(part.ids)]
            if scores and log_probs is not None:
                chances = log_probs[row, : len(tokens) + 1].tolist()
                part.found = [self._of._scored(text, tokens, chances, part.weights.get(0))]
            part.missing -= 1
            if not part.missing:
                self._done(text, part)
        return True

    def _next_readings(self) -> list[_Reading]:
        """The first of those that wait, and others of its kind; none if none waits."""
        while self._halves:
            if half := [one for one in self._halves.pop() if self._inside(one.of)]:
                return half
        jobs: list[_Reading] = []
        size = 0
        while self._unread:
            one = self._unread[0]
            size = max(size, len(one.tokens) + 1, len(one.part.ids))
            alike = not jobs or (one.of.given.target is None) == (jobs[0].of.given.target is None)
            if jobs and not (alike and size * (len(jobs) + 1) <= READ_TOGETHER):
                break
            jobs.append(self._unread.popleft())
        return jobs


def limit(source: int, most: int | None = None) -> int:
    """Most tokens of the translation of a sentence of ``source`` tokens."""
    return min(2 * source + 10, most or MOST_TOKENS)


@torch.inference_mode()
def search(
    models: Sequence[Translator],
    sources: Sequence[Sequence[int]],
    limits: Sequence[int],
    beam_size: int,
    n_best: int = 1,
    length_penalty: float = 1.0,
    coverage_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The best translations of each source, by the mean of the models' probabilities.

    Each is ranked by log-probability / length ** ``length_penalty``, and :func:`coverage` added.

    Args:
        models: in eval mode, of the same vocabularies.
        sources: ids, EOS included, each searched as if it were alone.
        limits: most tokens of the translation of each.
        beam_size: hypotheses kept for each.
        n_best: how many translations to give for each.
        length_penalty: rank by log-probability / length ** this.
        coverage_penalty: 0 or more; goes by the models with attention, and changes nothing where none has it.
    """
    step, carry, tokens = _start(models, sources, beam_size, coverage_penalty)
    return beam_search(
        step,
        carry,
        tokens,
        eos_id=EOS,
        beam_size=beam_size,
        max_steps=limits,
        n_best=n_best,
        length_penalty=length_penalty,
        bonus=_covered(models, coverage_penalty),
    ).rows


def _start(
    models: Sequence[Translator], sources: Sequence[Sequence[int]], beam_size: int, coverage_penalty: float
) -> tuple[StepFn, Carry, Tensor]:
    """Read sources, for so many hypotheses of each."""
    started = [
        model.start(sources, beam_size, coverage=looks)
        for model, looks in zip(models, _looks(models, coverage_penalty), strict=True)
    ]
    if len(models) == 1:
        return started[0]
    return Ensemble([one for one, _, _ in started]), tuple(carry for _, carry, _ in started), started[0][2]


def _looks(models: Sequence[Translator], coverage_penalty: float) -> list[bool]:
    return [coverage_penalty > 0 and model.aligned for model in models]


def _covered(models: Sequence[Translator], coverage_penalty: float) -> Callable[[Carry], Tensor] | None:
    """What is added to the score of hypotheses that end, told by their carry; None where nothing is."""
    looking = _looks(models, coverage_penalty)

    def covered(carry: Carry) -> Tensor:
        each = [carry] if len(models) == 1 else carry
        seen = [one[1] for one, looks in zip(each, looking, strict=True) if looks]
        return coverage(torch.stack(seen).mean(0), coverage_penalty)

    return covered if any(looking) else None


def coverage(seen: Tensor, weight: float) -> Tensor:
    """weight * sum_s log min(a_s, 1): seen (N, S), the attention a_s each source token had in all -> (N,).

    Source: Wu et al. 2016, equation 14; attention below 1e-6 counts as that, so that all hypotheses compare.
    """
    return weight * seen.clamp(1e-6, 1).log().sum(1)


@torch.inference_mode()
def score(
    models: Sequence[Translator], sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probability of each token of known translations, and of EOS, by the mean of the models' probabilities.

    Args:
        models: in eval mode, of the same vocabularies.
        sources: ids, EOS included.
        targets: ids, without EOS.
    """
    log_probs, _ = _joined([*_read(models, sources, targets, scores=True)])
    assert log_probs is not None
    return [row[: len(target) + 1] for row, target in zip(log_probs.tolist(), targets, strict=True)]


@torch.inference_mode()
def align(
    models: Sequence[Translator], sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The attention of known translations, the mean over the models: for each source (T + 1, S), EOS in the last row.

    Args:
        models: in eval mode, each with attention.
        sources: ids, EOS included.
        targets: ids, without EOS.
    """
    _, weights = _joined([*_read(models, sources, targets, scores=False)])
    assert weights is not None
    return [row[: len(target) + 1, : len(ids)] for row, target, ids in zip(weights, targets, sources, strict=True)]


def _read(
    models: Sequence[Translator],
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    scores: bool,
    step: int | None = None,
) -> Generator[tuple[Tensor | None, Tensor | None]]:
    """Read known translations, piece by piece.

    Args:
        models: in eval mode, of the same vocabularies.
        sources: ids, EOS included.
        targets: ids, without EOS.
        scores: tell log-probabilities, too.
        step: tokens of a piece; None reads all at once.

    Yields:
        the log-probability of each token, EOS at the end, by the mean of the models' probabilities, (B, t), and the
        mean of the attention of those that have it, (B, t, S). What stands past a translation's end is not defined.
    """
    device = models[0].source_embedding.weight.device
    source, source_lengths = (part.to(device) for part in pad(sources))
    inputs = pad([[BOS, *target] for target in targets])[0].to(device)
    wanted = pad([[*target, EOS] for target in targets])[0].to(device)
    encoded = [model.encode(source, source_lengths) for model in models]
    carries = [carry for _, carry in encoded]
    for start in range(0, inputs.shape[1], step or inputs.shape[1]):
        piece = slice(start, start + (step or inputs.shape[1]))
        chances, looks = [], []
        for place, (model, (memory, _)) in enumerate(zip(models, encoded, strict=True)):
            y, weights, carries[place] = model.read(inputs[:, piece], carries[place], memory)
            if scores:
                nll = model.head.nll(y.flatten(0, 1), wanted[:, piece].flatten())
                chances.append(-nll.view_as(wanted[:, piece]))
            if model.aligned:
                looks.append(weights.float())
        mean = torch.stack(chances).logsumexp(0) - math.log(len(chances)) if chances else None
        yield mean, torch.stack(looks).mean(0) if looks else None


def _joined(pieces: Sequence[tuple[Tensor | None, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    """The pieces after each other, (B, T) and (B, T, S), on the CPU."""
    log_probs, weights = ([one for one in column if one is not None] for column in zip(*pieces, strict=True))
    return torch.cat(log_probs, 1).cpu() if log_probs else None, torch.cat(weights, 1).cpu() if weights else None
