"""From a text to its translation: sentence by sentence, by beam search, by one model or several.

B sources, N rows searched, S source length, T target length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from seqapp.data.batching import pad
from seqapp.data.languages import LanguageProfile
from seqapp.data.pairs import even_spaces
from seqapp.data.sentences import segments
from seqapp.data.tokenizers import BOS, EOS, SPECIALS, UNK, Tokenizer
from seqapp.decoding import Ensemble, Hypothesis, StepFn, beam_search
from seqapp.models.translator import Translator
from seqapp.nn.recurrent import Carry

MOST_BEAMS = 64
"""Most hypotheses kept in a search."""
MOST_TOKENS = 1024
"""Most tokens of the translation of one sentence."""
ROWS_AT_ONCE = 320
"""Most hypotheses that grow together, of one sentence at least."""
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
    """Sentences that are searched alike."""

    beam_size: int
    n_best: int
    length_penalty: float
    coverage_penalty: float


@dataclass(slots=True)
class _Part:
    """A sentence of an input: ids, EOS included; what follows it in the text; what was found.

    ``weights`` holds the attention (T + 1, S) of those of ``found``, by their places, for which it is needed.
    """

    text: str
    gap: str
    ids: list[int]
    found: list[Hypothesis]
    weights: dict[int, Tensor] = field(default_factory=dict)


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

        Sentences of all inputs are searched together, those of similar length side by side.

        Args:
            inputs: that fit this model.
            done: told how many inputs are finished, as they are.
        """
        texts = [self._parts(given) for given in inputs]
        waiting = [len(parts) for parts in texts]
        groups: dict[Searched, list[tuple[int, _Part]]] = {}
        for index, (given, parts) in enumerate(zip(inputs, texts, strict=True)):
            searched = [(index, part) for part in parts if len(part.ids) > 1 and given.target is None]
            if given.target is not None:
                self._score(given, parts[0])
            elif searched:
                groups.setdefault(self._asked(given), []).extend(searched)
            waiting[index] = len(searched)
            if done is not None and not searched:
                done(1)
        for asked, jobs in groups.items():
            jobs.sort(key=lambda job: len(job[1].ids))
            together = max(1, ROWS_AT_ONCE // asked.beam_size)
            for first in range(0, len(jobs), together):
                batch = jobs[first : first + together]
                limits = [limit(len(part.ids), inputs[index].max_tokens) for index, part in batch]
                rows = search(self.models, [part.ids for _, part in batch], limits, *asked)
                for (index, part), row in zip(batch, rows, strict=True):
                    part.found = row
                    waiting[index] -= 1
                self._look([(part, inputs[index]) for index, part in batch])
                if done is not None:
                    done(sum(not waiting[index] for index in {index for index, _ in batch}))
        return [self._output(given, parts) for given, parts in zip(inputs, texts, strict=True)]

    def _asked(self, given: TranslationInput) -> Searched:
        beam_size = self.beam_size if given.beam_size is None else given.beam_size
        penalty = self.length_penalty if given.length_penalty is None else given.length_penalty
        return Searched(max(beam_size, given.alternatives + 1), given.alternatives + 1, penalty, given.coverage_penalty)

    def _parts(self, given: TranslationInput) -> list[_Part]:
        if given.target is not None:
            return [_Part(given.text, "", [*self.source.encode(self._plain(given.text)).ids, EOS], [])]

        def length(piece: str) -> int:
            return len(self.source.encode(self._plain(piece)).ids)

        return [_Part(piece, gap, [*self.source.encode(self._plain(piece)).ids, EOS], [])
                for piece, gap in segments(given.text, self.language, self.longest, length)]  # fmt: skip

    def _plain(self, text: str) -> str:
        """``text`` with the white space that training had: a blank for a run of it, and for an unknown no-break one."""
        text = even_spaces(text)
        for space in NO_BREAK:
            if space in text and any(space in part for _, part in self.source.unknown(text)):
                text = text.replace(space, " ")
        return text

    def _score(self, given: TranslationInput, part: _Part) -> None:
        assert given.target is not None
        tokens = self.target.encode(given.target).ids
        (log_probs,) = score(self.models, [part.ids], [tokens])
        total, (*_, penalty, weight) = sum(log_probs), self._asked(given)
        ranked = total / len(log_probs) ** penalty
        if self.looking and (given.return_attention or weight):
            (part.weights[0],) = align(self.looking, [part.ids], [tokens])
            ranked += float(coverage(part.weights[0].sum(0)[None], weight))
        part.found = [Hypothesis(tokens, log_probs, total, total, ranked, True)]

    def _look(self, parts: Sequence[tuple[_Part, TranslationInput]]) -> None:
        """Find the attention of the translations that need it: to be given, or to replace unknown tokens."""
        wanted = [
            (part, place)
            for part, given in parts
            for place, one in enumerate(part.found)
            if (given.return_attention and place == 0) or (given.replace_unknown and UNK in one.tokens)
        ]
        if wanted and self.looking:
            targets = [part.found[place].tokens for part, place in wanted]
            found = align(self.looking, [part.ids for part, _ in wanted], targets)
            for (part, place), weights in zip(wanted, found, strict=True):
                part.weights[place] = weights

    def _output(self, given: TranslationInput, parts: Sequence[_Part]) -> TranslationOutput:
        sentences = [self._sentence(given, part) for part in parts if part.found]
        translated = iter(sentences)
        ways = [""] * (given.alternatives + 1)
        for part in parts:
            sentence = next(translated) if part.found else None
            for way in range(len(ways)):
                # A sentence with fewer alternatives keeps its last.
                said = part.text if sentence is None else [sentence.translation, *(
                    one.text for one in sentence.alternatives)][: way + 1][-1]  # fmt: skip
                ways[way] += said + part.gap
        scores = [sentence.score for sentence in sentences]
        return TranslationOutput(
            text=ways[0],
            alternatives=[way for way in dict.fromkeys(ways[1:]) if way != ways[0]],
            score=sum(scores) / len(scores) if scores else 0.0,
            sentences=sentences,
            notices=self._notices(given, sentences),
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

    def _notices(self, given: TranslationInput, sentences: Sequence[Sentence]) -> list[str]:
        notices = []
        if given.coverage_penalty and not self.looking:
            notices.append("the model has no attention, so coverage_penalty changes nothing")
        if self.profile is not None and (notice := self.profile.notice(given.text)):
            notices.append(notice)
        unknown = list(
            dict.fromkeys(
                part for sentence in sentences for _, part in self.source.unknown(self._plain(sentence.source))
            )
        )
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
    looking = [coverage_penalty > 0 and model.aligned for model in models]
    started = [model.start(sources, beam_size, coverage=looks) for model, looks in zip(models, looking, strict=True)]
    step: StepFn
    step, carry, tokens = started[0]
    if len(models) > 1:
        step, carry = Ensemble([one for one, _, _ in started]), tuple(carry for _, carry, _ in started)

    def covered(carry: Carry) -> Tensor:
        each = [carry] if len(models) == 1 else carry
        seen = [one[1] for one, looks in zip(each, looking, strict=True) if looks]
        return coverage(torch.stack(seen).mean(0), coverage_penalty)

    return beam_search(
        step,
        carry,
        tokens,
        eos_id=EOS,
        beam_size=beam_size,
        max_steps=limits,
        n_best=n_best,
        length_penalty=length_penalty,
        bonus=covered if any(looking) else None,
    ).rows


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
    device = models[0].source_embedding.weight.device
    source, source_lengths = (part.to(device) for part in pad(sources))
    inputs, lengths = (part.to(device) for part in pad([[BOS, *target] for target in targets]))
    wanted = pad([[*target, EOS] for target in targets])[0].to(device)
    each = []
    for model in models:
        y, _ = model(source, source_lengths, inputs, lengths)
        each.append(-model.head.nll(y.flatten(0, 1), wanted.flatten()).view_as(wanted))
    rows = torch.stack(each).logsumexp(0) - math.log(len(models))
    return [row[: len(target) + 1] for row, target in zip(rows.tolist(), targets, strict=True)]


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
    device = models[0].source_embedding.weight.device
    source, source_lengths = (part.to(device) for part in pad(sources))
    inputs, lengths = (part.to(device) for part in pad([[BOS, *target] for target in targets]))
    weights = torch.stack([model(source, source_lengths, inputs, lengths)[1].float() for model in models]).mean(0)
    return [row[: len(target) + 1, : len(ids)].cpu()
            for row, target, ids in zip(weights, targets, sources, strict=True)]  # fmt: skip
