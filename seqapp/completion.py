"""Texts that go on from a prompt: what is asked, how it is decoded, what is answered.

N rows that grow together, V vocabulary, C condition.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from seqapp.data.batching import pad
from seqapp.data.tokenizers import BOS, EOS, PAD, UNK, Tokenizer, clean
from seqapp.decoding import (
    Bias,
    Hypothesis,
    MinimumLength,
    NoRepeatNgram,
    Processor,
    RepetitionPenalty,
    Sample,
    StepFn,
    StopStrings,
    UsePenalty,
    beam_search,
    forbid,
    stream,
)
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import Carry, map_carry

MOST_TOKENS = 4096
"""Most tokens in one completion."""
MOST_NGRAM = 64
"""Longest n-gram that may be kept from coming twice."""
MOST_BEAMS = 64
"""Most hypotheses kept in a beam search."""
MOST_COMPLETIONS = 64
"""Most completions of one prompt."""
ROWS_AT_ONCE = 256
"""Most completions that grow together."""
SCORED_AT_ONCE = 64
"""Tokens of a prompt that are scored together."""
SHOWN_UNKNOWN = 5
"""Most unknown parts of a prompt named in a note."""


def _class_or_numbers(given: Any) -> Any:
    # Of a union pydantic would tell what is wrong with each part, the first of which was not meant.
    if isinstance(given, str | None):
        return given
    numbers = given if isinstance(given, list | tuple) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < math.inf for n in numbers):
        raise ValueError("a class or a list of finite numbers fits")
    return given


class GenerationInput(BaseModel):
    """A prompt to go on from, and how to choose each next token."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(default="", description="text to go on from; empty starts a new text")
    condition: Annotated[str | list[float] | None, BeforeValidator(_class_or_numbers)] = Field(
        default=None, description="for a model trained with one: the class, or the features, that the text depends on"
    )
    max_tokens: int = Field(default=200, ge=0, le=MOST_TOKENS, description="most tokens to add")
    min_tokens: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="the text does not end before this many, but at a stop text"
    )
    n: int = Field(default=1, ge=1, le=MOST_COMPLETIONS, description="completions wanted")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="equal seeds give equal texts; null draws one")
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="divides the logits before sampling; 0 takes the likeliest token"
    )
    top_k: int | None = Field(default=None, ge=1, description="sample from the k likeliest tokens")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that make up this share (nucleus)"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="sample from tokens at least this share as likely as the likeliest"
    )
    typical_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the most typical tokens that make up this share"
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=100, description="above 1 makes tokens used before rarer")
    frequency_penalty: float = Field(default=0.0, ge=-100, le=100, description="taken off a logit for each earlier use")
    presence_penalty: float = Field(
        default=0.0, ge=-100, le=100, description="taken off the logit of a token used before"
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, le=MOST_NGRAM, description="no n-gram of this size comes twice; 0 allows it"
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, description="added to the logits of tokens, named by their text"
    )
    stop: list[str] = Field(default=[], description="texts before which the completion ends", max_length=16)
    beam_size: int | None = Field(
        default=None, ge=1, le=MOST_BEAMS, description="search with this many hypotheses instead of sampling"
    )
    length_penalty: float = Field(
        default=1.0, ge=-10, le=10, description="beam search ranks by log-probability / length ** this"
    )
    beam_groups: int = Field(default=1, ge=1, le=MOST_BEAMS, description="groups of beams that differ from each other")
    diversity: float = Field(
        default=0.0, ge=0, le=100, description="taken off a logit for each earlier group's beam that chose it"
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="also give each token's log-probability and this many likeliest tokens"
    )
    echo: bool = Field(default=False, description="give the prompt back before the completion, scored with logprobs")
    return_beams: bool = Field(default=False, description="also give every step of the beam search")

    @model_validator(mode="after")
    def _fits_together(self) -> GenerationInput:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")
        if "" in self.stop:
            raise ValueError("a stop text is empty; one with a character or more fits")
        if self.beam_size is None:
            searched = {"return_beams": self.return_beams, "beam_groups": self.beam_groups > 1,
                        "diversity": self.diversity > 0}  # fmt: skip
            if odd := [name for name, asked in searched.items() if asked]:
                raise ValueError(f"{odd[0]} belongs to a beam search; beam_size: 5, say, would fit beside it")
        elif self.n > self.beam_size:
            raise ValueError(f"n is {self.n}, more than the {self.beam_size} hypotheses that beam_size keeps")
        elif self.beam_size % self.beam_groups:
            raise ValueError(f"beam_size {self.beam_size} cannot be shared by {self.beam_groups} beam_groups evenly")
        return self

    @property
    def samples(self) -> bool:
        """Whether chance decides."""
        return self.beam_size is None and self.temperature > 0 and self.max_tokens > 0

    def changes_nothing(self) -> list[str]:
        """Notes on what was asked for and cannot change the answer."""
        if not self.max_tokens:
            return []
        notes = []
        if self.beam_size is None and self.length_penalty != 1:
            notes.append("length_penalty ranks the hypotheses of a beam search and changes nothing without beam_size")
        if self.samples:
            return notes
        neutral = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "seed": None}
        if self.beam_size is not None:
            neutral["temperature"] = 1.0
        names = [name for name, value in neutral.items() if getattr(self, name) != value]
        why = "temperature 0 takes the likeliest token" if self.beam_size is None else "a beam search draws nothing"
        if names:
            notes.append(f"{why}, so {', '.join(names)} change{'s' if len(names) == 1 else ''} nothing")
        if self.beam_size is None and self.n > 1:
            notes.append(f"{why}, so all {self.n} completions are equal")
        return notes


class TokenChance(BaseModel):
    """A token and how likely the model finds it, before temperature and penalties."""

    token: str
    log_prob: float


class ScoredToken(TokenChance):
    """One token of a completion."""

    offset: int = Field(description="of its first character, counted in the completion's text")
    top: list[TokenChance] = Field(default=[], description="the likeliest tokens at its place")


class Completion(BaseModel):
    """One continuation."""

    text: str
    score: float = Field(description="the model's log-probability of the tokens added, end of text included, in nats")
    tokens: int = Field(description="tokens added")
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the text ended or a stop text came; length: max_tokens were added"
    )
    logprobs: list[ScoredToken] | None = None


class BeamNode(BaseModel):
    """One candidate of one step of a beam search."""

    token: str
    parent: int = Field(
        description="index, among the nodes of the step before, of the hypothesis it extends; -1 at first"
    )
    log_prob: float = Field(description="of the token")
    score: float = Field(description="log-probability of the hypothesis up to here")
    group: int = Field(default=0, description="which group of beams considered it")
    kept: bool = Field(description="whether it was searched further or finished; else it was pruned")
    finished: bool = Field(default=False, description="whether it ends its hypothesis")


class GenerationOutput(BaseModel):
    """The completions, the best first where they were searched."""

    completions: list[Completion]
    prompt_tokens: int
    seed: int | None = Field(default=None, description="the seed used, where tokens were sampled")
    notes: list[str] = Field(default=[], description="what a person should know, such as unknown characters")
    beams: list[list[BeamNode]] | None = Field(
        default=None, description="the candidates of each step, with return_beams"
    )


class Piece(BaseModel):
    """A part of a completion as it appears."""

    index: int = Field(description="which completion it belongs to")
    text: str
    logprobs: list[ScoredToken] = []
    finish_reason: Literal["stop", "length"] | None = Field(default=None, description="set in the last piece")
    score: float | None = Field(default=None, description="of the whole completion, in the last piece")
    tokens: int | None = Field(default=None, description="tokens added to the whole completion, in its last piece")
    prompt_tokens: int | None = Field(default=None, description="tokens of the prompt, in the very first piece")
    seed: int | None = Field(default=None, description="the seed used, in the very first piece")
    notes: list[str] = Field(default=[], description="what a person should know, in the very first piece")


class _Row:
    """The text of one completion as it grows.

    Args:
        tokenizer: of the model.
        given: the request.
        after: ids of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, given: GenerationInput, after: Sequence[int]) -> None:
        self._tokenizer, self.given = tokenizer, given
        self._decoding = tokenizer.decoding(after)
        self._stops = StopStrings(given.stop)
        self._decoded = 0
        self._shown = 0
        self._waiting: list[ScoredToken] = []
        self.tokens, self.score = 0, 0.0
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.finish_reason is not None

    def add(self, token: int, log_prob: float, top: Sequence[tuple[int, float]] = ()) -> tuple[str, list[ScoredToken]]:
        """The text that is sure now, and its tokens."""
        self.score += log_prob
        new = "" if token == EOS else self._decoding.add(token)
        if self.given.logprobs is not None:
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
        elif self.tokens >= self.given.max_tokens:
            rest, scored = self._finish("length")
            return self._give(text)[0] + rest, scored
        return self._give(text)

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


@dataclass(frozen=True, eq=False)
class Request:
    """One input, encoded and checked."""

    index: int
    given: GenerationInput
    ids: list[int]
    condition: Tensor | None
    bias: dict[int, float]
    seed: int | None
    notes: list[str]

    @property
    def options(self) -> Hashable:
        """Requests with equal ones are decoded together."""
        given = self.given
        if given.beam_size is None:
            return given.no_repeat_ngram_size
        of_the_rows = {"prompt", "condition", "seed", "stop", "echo", "logprobs", "logit_bias"}
        return given.model_dump_json(exclude=of_the_rows)


class Completer:
    """Answers requests with one model.

    Args:
        tokenizer: of the model.
        model: says how likely each next token is.
    """

    def __init__(self, tokenizer: Tokenizer, model: LanguageModel) -> None:
        self.tokenizer, self.model = tokenizer, model

    def request(self, index: int, given: GenerationInput, condition: Tensor | None) -> Request:
        """``given`` encoded and checked against the model.

        Args:
            index: of the input, by which its answer is found again.
            given: the input.
            condition: (C,), for a model that has one.

        Raises:
            ValueError: naming the field that does not fit this model.
        """
        bias = {}
        for text, value in given.logit_bias.items():
            token = self.tokenizer.token_id(text)
            if token is None:
                raise ValueError(
                    f"logit_bias: no token of this model is {text!r:.60}; logprobs show what they look like"
                )
            bias[token] = value
        if given.beam_size is not None and given.beam_size > self.tokenizer.size:
            raise ValueError(f"beam_size: {given.beam_size} is more than the {self.tokenizer.size} tokens this model "
                             f"knows; at most {self.tokenizer.size} fits")  # fmt: skip
        notes = given.changes_nothing()
        unknown = self.tokenizer.unknown(given.prompt)
        if unknown:
            shown = ", ".join(f"{part!r} at {offset}" for offset, part in unknown[:SHOWN_UNKNOWN])
            more = f" and {len(unknown) - SHOWN_UNKNOWN} more" if len(unknown) > SHOWN_UNKNOWN else ""
            notes.append(f"unknown to this model and read as <unk>: {shown}{more}")
        seed = given.seed
        if seed is None and given.samples:
            seed = secrets.randbits(32)
        return Request(index, given, self.tokenizer.encode(given.prompt).ids, condition, bias, seed, notes)

    def answer(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """What each request is answered, in order and as if it were alone; those with equal options share steps."""
        outputs: dict[int, GenerationOutput] = {}
        for group in _alike(requests, lambda one: one.options):
            if group[0].given.beam_size is not None:
                for request, output in zip(group, self._search(group), strict=True):
                    outputs[request.index] = output
                continue
            texts: dict[int, list[list[Piece]]] = {one.index: [[] for _ in range(one.given.n)] for one in group}
            rows: dict[int, list[_Row]] = {}
            for request, made, piece in self._sample_texts(group):
                texts[request.index][piece.index].append(piece)
                rows[request.index] = made
            for one in group:
                completions = [_completion(*pair) for pair in zip(rows[one.index], texts[one.index], strict=True)]
                outputs[one.index] = self._output(one, completions)
        return [outputs[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Piece]:
        """The completions as they grow; see :meth:`seqapp.tasks.generation.Generation.stream`."""
        seed = request.seed if request.given.samples else None
        first: dict[str, Any] = {"notes": request.notes, "prompt_tokens": len(request.ids), "seed": seed}
        for piece in self._pieces(request):
            yield piece.model_copy(update=first)
            first = {}

    def _pieces(self, request: Request) -> Iterator[Piece]:
        given = request.given
        if given.beam_size is None:
            if given.echo:
                scored = self._score_prompt(request)
                yield from (Piece(index=index, text=clean(given.prompt), logprobs=scored) for index in range(given.n))
            for _, rows, piece in self._sample_texts([request]):
                row = rows[piece.index]
                last = {"score": row.score, "tokens": row.tokens} if row.ended else {}
                yield piece.model_copy(update={"logprobs": _moved(piece.logprobs, given), **last})
            return
        (output,) = self._search([request])
        for index, one in enumerate(output.completions):
            yield Piece(index=index, text=one.text, logprobs=one.logprobs or [], finish_reason=one.finish_reason,
                        score=one.score, tokens=one.tokens)  # fmt: skip

    def _sample_texts(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[_Row], Piece]]:
        """Pieces of every completion of requests with equal ``options``, step by step; rows go with their requests."""
        made = {one.index: [_Row(self.tokenizer, one.given, one.ids) for _ in range(one.given.n)] for one in requests}
        places = [(one, number) for one in requests for number in range(one.given.n)]
        for start in range(0, len(places), ROWS_AT_ONCE):
            part = places[start : start + ROWS_AT_ONCE]
            for place, piece in self._sample_rows(part, [made[one.index][number] for one, number in part]):
                one = part[place][0]
                yield one, made[one.index], piece

    def _sample_rows(self, places: Sequence[tuple[Request, int]], rows: Sequence[_Row]) -> Iterator[tuple[int, Piece]]:
        requests = list({id(one): one for one, _ in places}.values())
        given = [one.given for one, _ in places]
        order = [requests.index(one) for one, _ in places]
        copies = len(places) // len(requests)
        if order == [index for index in range(len(requests)) for _ in range(copies)]:
            step, carry, tokens = self._start(requests, copies)
        else:
            step, carry, tokens = self._start(requests)
            which = torch.tensor(order, device=tokens.device)
            carry, tokens = map_carry(lambda leaf: leaf[which], carry), tokens[which]
        with tokens.device:
            processors = self._processors([one for one, _ in places])
            sampler = Sample(
                [_seed(one.seed or 0, number) for one, number in places],
                temperature=_rows([one.temperature for one in given]),
                top_k=_counts([one.top_k or self.tokenizer.size for one in given], self.tokenizer.size),
                top_p=_rows([one.top_p for one in given]),
                min_p=_rows([one.min_p for one in given]),
                typical_p=_rows([one.typical_p for one in given]),
            )
        asked = [one.logprobs for one in given if one.logprobs is not None]
        steps = stream(
            step,
            carry,
            tokens,
            eos_id=EOS,
            max_steps=max(one.max_tokens for one in given),
            sampler=sampler,
            processors=processors,
            top=max(asked, default=0),
        )
        for place, one in enumerate(given):
            if not one.max_tokens:
                rows[place].finish_reason = "length"
                yield place, Piece(index=places[place][1], text="", finish_reason="length")
        for chosen in steps:
            ids, chances = chosen.tokens.tolist(), chosen.log_probs.tolist()
            tops = [list(zip(*both, strict=True)) for both in zip(chosen.top[1].tolist(), chosen.top[0].tolist(),
                    strict=True)] if chosen.top else None  # fmt: skip
            pieces = []
            for place in [place for place, row in enumerate(rows) if not row.ended]:
                row = rows[place]
                top = tops[place][: given[place].logprobs] if tops else ()
                text, scored = row.add(ids[place], chances[place], top)
                if text or scored or row.ended:
                    number = places[place][1]
                    pieces.append(
                        (place, Piece(index=number, text=text, logprobs=scored, finish_reason=row.finish_reason))
                    )
            if ended := [place for place, row in enumerate(rows) if row.ended]:
                chosen.stop(ended)
            yield from pieces

    def _search(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """Beam search for requests with equal ``options``."""
        given = requests[0].given
        beams = given.beam_size or 1
        step, carry, tokens = self._start(requests, beams)
        with tokens.device:
            processors = self._processors([one for one in requests for _ in range(beams)])
        found = beam_search(
            step,
            carry,
            tokens,
            eos_id=EOS,
            beam_size=beams,
            max_steps=given.max_tokens,
            n_best=given.n,
            length_penalty=given.length_penalty,
            groups=given.beam_groups,
            diversity=given.diversity,
            processors=processors,
            return_tree=given.return_beams,
        )
        outputs = []
        for place, (request, hypotheses) in enumerate(zip(requests, found.rows, strict=True)):
            completions = [self._hypothesis(request, one) for one in hypotheses]
            output = self._output(request, completions)
            if found.trees is not None:
                output.beams = [
                    [
                        BeamNode(
                            token=self.tokenizer.token_text(node.token), parent=node.parent, log_prob=node.log_prob,
                            score=node.total, group=node.group, kept=node.kept, finished=node.finished,
                        )
                        for node in nodes
                    ]
                    for nodes in found.trees[place]
                ]  # fmt: skip
            outputs.append(output)
        return outputs

    def _hypothesis(self, request: Request, found: Hypothesis) -> Completion:
        row = _Row(self.tokenizer, request.given, request.ids)
        tokens, pieces = [*found.tokens, *[EOS] * found.finished], []
        # A search keeps no rivals of the tokens it took, so the text is read once more.
        tops: Sequence[Sequence[tuple[int, float]]] = [()] * len(tokens)
        if count := request.given.logprobs:
            tops = self._score([*request.ids, *tokens], request.condition, count)[1][len(request.ids) :]
        for token, chance, top in zip(tokens, found.log_probs, tops, strict=True):
            text, scored = row.add(token, chance, top)
            pieces.append(Piece(index=0, text=text, logprobs=scored))
            if row.ended:
                break
        return _completion(row, pieces)

    def _output(self, request: Request, completions: list[Completion]) -> GenerationOutput:
        given = request.given
        if given.echo:
            scored = self._score_prompt(request)
            for one in completions:
                one.text = clean(given.prompt) + one.text
                if one.logprobs is not None:
                    one.logprobs = scored + _moved(one.logprobs, given)
        return GenerationOutput(
            completions=completions,
            prompt_tokens=len(request.ids),
            seed=request.seed if given.samples else None,
            notes=request.notes,
        )

    def _start(self, requests: Sequence[Request], copies: int = 1) -> tuple[StepFn, Carry, Tensor]:
        conditions = [one.condition for one in requests if one.condition is not None]
        condition = torch.stack(conditions).to(self.model.embedding.weight) if conditions else None
        with torch.inference_mode():
            return self.model.start([one.ids for one in requests], condition, copies)

    def _processors(self, rows: Sequence[Request]) -> list[Processor]:
        """What changes the logits of these rows, one request each."""
        size, given = self.tokenizer.size, [one.given for one in rows]
        made: list[Processor] = [forbid([PAD, UNK, BOS], size)]
        prompt = None
        looks_back = any(one.repetition_penalty != 1 or one.no_repeat_ngram_size for one in given)
        if looks_back and any(one.ids for one in rows):
            prompt = pad([one.ids[::-1] for one in rows], -1)[0].flip(1)  # so that n-grams go on from it into the text
        if any(one.repetition_penalty != 1 for one in given):
            made.append(RepetitionPenalty(_rows([one.repetition_penalty for one in given]), prompt))
        frequency, presence = (_rows([getattr(one, f"{name}_penalty") for one in given])
                               for name in ("frequency", "presence"))  # fmt: skip
        if isinstance(frequency, Tensor) or isinstance(presence, Tensor) or frequency or presence:
            made.append(UsePenalty(frequency, presence))
        if any(one.bias for one in rows):
            bias = torch.zeros(len(rows), size)
            for row, one in enumerate(rows):
                bias[row, list(one.bias)] = torch.tensor(list(one.bias.values()), dtype=bias.dtype)
            made.append(Bias(bias))
        if given[0].no_repeat_ngram_size:
            made.append(NoRepeatNgram(given[0].no_repeat_ngram_size, prompt))
        if any(one.min_tokens for one in given):
            made.append(MinimumLength(EOS, torch.tensor([one.min_tokens for one in given])))
        return made

    def _score_prompt(self, request: Request) -> list[ScoredToken]:
        """Each token of the prompt with its log-probability, if the request asks for them."""
        if request.given.logprobs is None:
            return []
        chances, tops = self._score(request.ids, request.condition, request.given.logprobs)
        starts = [start for start, _ in self.tokenizer.encode(request.given.prompt).offsets]
        return [
            ScoredToken(
                token=self.tokenizer.token_text(token),
                log_prob=chance,
                offset=start,
                top=[TokenChance(token=self.tokenizer.token_text(rival), log_prob=value) for rival, value in top],
            )
            for token, chance, start, top in zip(request.ids, chances, starts, tops or [[]] * len(chances), strict=True)
        ]

    def _score(
        self, ids: Sequence[int], condition: Tensor | None, count: int
    ) -> tuple[list[float], list[list[tuple[int, float]]]]:
        """The log-probability of each token of a text, and with ``count`` the likeliest tokens at its place."""
        table = self.model.embedding.weight
        inputs, targets = (torch.tensor(row, dtype=torch.int64, device=table.device) for row in ([BOS, *ids[:-1]], ids))
        given = None if condition is None else condition[None].to(table)
        chances: list[float] = []
        tops: list[list[tuple[int, float]]] = []
        carry: Carry = None
        with torch.inference_mode():
            for start in range(0, len(ids), SCORED_AT_ONCE):
                part = slice(start, start + SCORED_AT_ONCE)
                x, carry = self.model(inputs[None, part], None, carry, given)
                chances += (-self.model.head.nll(x[0], targets[part])).tolist()
                if not count:
                    continue
                values, rivals = self.model.head.logits(x[0]).log_softmax(-1).topk(min(count, self.tokenizer.size))
                tops += [list(zip(*row, strict=True)) for row in zip(rivals.tolist(), values.tolist(), strict=True)]
        return chances, tops


def _alike(requests: Sequence[Request], key: Callable[[Request], Hashable]) -> list[list[Request]]:
    groups: dict[Hashable, list[Request]] = {}
    for one in requests:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def _completion(row: _Row, pieces: Sequence[Piece]) -> Completion:
    scored = [one for piece in pieces for one in piece.logprobs]
    return Completion(
        text="".join(piece.text for piece in pieces),
        score=row.score,
        tokens=row.tokens,
        finish_reason=row.finish_reason or "length",
        logprobs=scored if row.given.logprobs is not None else None,
    )


def _moved(scored: Sequence[ScoredToken], given: GenerationInput) -> list[ScoredToken]:
    """The tokens of a completion, counted from the start of the prompt if that is given back."""
    if not given.echo:
        return list(scored)
    return [one.model_copy(update={"offset": one.offset + len(given.prompt)}) for one in scored]


def _rows(values: Sequence[float]) -> float | Tensor:
    """One number where all rows have the same, else (N,)."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values)


def _counts(values: Sequence[int], size: int) -> int | Tensor | None:
    """As :func:`_rows`; None where no row leaves out any of ``size``."""
    if min(values) >= size:
        return None
    return values[0] if len(set(values)) == 1 else torch.tensor(values)


def _seed(seed: int, number: int) -> int:
    """A seed of its own for each completion of a prompt."""
    return int(numpy.random.SeedSequence([seed, number]).generate_state(1, numpy.uint64)[0])
