"""Text that goes on from a prompt (one to many): language models over characters, subwords or words."""

from __future__ import annotations

import json
import math
import secrets
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from seqapp.data.batching import pad
from seqapp.data.streams import Batch, Stream
from seqapp.data.text import Passage, read_conditioned, read_text
from seqapp.data.tokenizers import BOS, EOS, PAD, TOKENIZERS, UNK, Tokenizer, clean
from seqapp.data.vocabulary import Vocabulary
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
from seqapp.errors import BundleError, DataError
from seqapp.metrics import Metric, Ratio, Surprise
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import Carry, map_carry
from seqapp.registry import Spec
from seqapp.tasks.base import TASKS, InputError, Task

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
SAMPLE_TOKENS, SAMPLE_TEMPERATURE, SAMPLED_CLASSES = 300, 0.8, 20
"""Of what the model says after each epoch."""
PROMPT_CHARACTERS = 100
"""Of the texts a bundle is asked to score when it is loaded."""
LONGEST_ROW = 10_000
"""Most tokens of a text that is learned as one row."""
COUNTED_AT_ONCE = 2**22
"""Tokens of a stream in memory while pairs are counted."""


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
        return self.beam_size is None and self.temperature > 0

    def changes_nothing(self) -> list[str]:
        """Notes on what was asked for and cannot change the answer."""
        if self.samples:
            return []
        neutral = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "seed": None}
        if self.beam_size is not None:
            neutral["temperature"] = 1.0
        names = [name for name, value in neutral.items() if getattr(self, name) != value]
        notes = []
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


@dataclass(frozen=True, eq=False)
class _Request:
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


class Item(NamedTuple):
    """One text of its own: ids, EOS included where it ends; characters; condition (C,) or None."""

    ids: list[int]
    characters: int
    condition: Tensor | None


class _Fitted(BaseModel):
    """What ``conditions.json`` holds: the classes, or how many features."""

    model_config = ConfigDict(extra="forbid", strict=True)

    classes: list[str] = []
    features: int = Field(default=0, ge=0)


@TASKS.register("generation")
class Generation(Task[Passage, Item]):
    """What comes next in a text: characters, subwords or words.

    Args:
        tokenizer: how a text becomes tokens.
        reads: stream: the training text is one long text that is read on and on, the state carried from piece to
            piece, as for a book; rows: each passage is a text of its own; lines: each line of a passage is, as in a
            file with a name a line.
    """

    Input: ClassVar[type[BaseModel]] = GenerationInput
    Output: ClassVar[type[BaseModel]] = GenerationOutput
    example_type = Passage
    model_kind = "language_model"
    selection = ("bits_per_character", "min")
    unit = "passages"
    titles: Mapping[str, str] = {
        "nll": "nll (nats per token)",
        "bits_per_character": "bits per character",
        "unknown": "unknown tokens",
    }
    shares = ("unknown",)
    line_field = "prompt"
    limits = (
        "It goes on in the manner of the text it was trained on, true or not, and may repeat passages of it word for "
        "word.\nPerplexities compare only between models with the same tokens; bits per character compare between all."
    )

    def __init__(
        self,
        *,
        tokenizer: Annotated[Spec, TOKENIZERS] = {"kind": "character"},  # noqa: B006  (copied before use)
        reads: Literal["stream", "rows", "lines"] = "stream",
    ) -> None:
        self.tokenizer: Tokenizer = TOKENIZERS.build(tokenizer)
        self.reads = reads
        self.streams = reads == "stream"
        self.conditions = Vocabulary([])
        self.features = 0

    @property
    def file_options(self) -> Sequence[str]:  # type: ignore[override]
        """The keywords that :meth:`read_examples` takes."""
        if self.features or len(self.conditions):
            return ("text", "condition", "features", "encoding", "format")
        return ("encoding", "pattern")

    @property
    def carries(self) -> bool:  # type: ignore[override]
        """Whether state goes from piece to piece."""
        return self.streams

    def prepare(self, examples: Sequence[Passage]) -> None:
        """Fit the tokenizer, and find the classes or the number of features that texts depend on.

        Raises:
            DataError: if some passages have a condition and others none, or another kind, or a stream has any.
        """
        self.tokenizer.fit(self._text(passage) for passage in examples)
        if self.streams:
            return
        first = examples[0].condition
        width = len(first) if isinstance(first, tuple) else 0
        for index, passage in enumerate(examples):
            found = passage.condition
            if type(found) is not type(first) or (isinstance(found, tuple) and len(found) != width):
                raise DataError(f"example 1 has the condition {first!r:.60} and example {index + 1} {found!r:.60}; "
                                "all classes, all features of one number, or all none fit")  # fmt: skip
        self.features = width
        if isinstance(first, str):
            self.conditions = Vocabulary(sorted({str(passage.condition) for passage in examples}))

    def _text(self, passage: Passage) -> str:
        if self.streams and passage.condition is not None:
            raise DataError("the passages depend on a condition; task.reads: rows fits")
        return passage.text

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": self.tokenizer.size, "classes": self.features or len(self.conditions)}

    def encode(self, examples: Sequence[Passage]) -> Stream | list[Item]:
        if self.streams:
            return self._encode_stream(examples)
        if self.reads == "lines":
            examples = [replace(passage, text=line, ends=True)
                        for passage in examples for line in passage.text.split("\n") if line]  # fmt: skip
        rows = self.tokenizer.encode_batch([passage.text for passage in examples])
        problems, items = {}, []
        for index, (row, passage) in enumerate(zip(rows, examples, strict=True)):
            try:
                condition = self._condition(passage.condition)
            except ValueError as error:
                problems[index] = str(error)
                continue
            ids = [*row.ids, EOS] if passage.ends else row.ids
            if not ids:
                problems[index] = "the text is empty"
                continue
            if len(ids) > LONGEST_ROW:
                problems[index] = (f"{len(ids):,} tokens are too long for one row; at most {LONGEST_ROW:,} fit, or "
                                   "task.reads: lines or stream")  # fmt: skip
                continue
            items.append(Item(ids, len(passage.text), condition))
        if problems:
            raise InputError.of(problems)
        return items

    def _encode_stream(self, examples: Sequence[Passage]) -> Stream:
        characters = 0
        ends: deque[bool] = deque()

        def texts() -> Iterator[str]:
            nonlocal characters
            for passage in examples:
                characters += len(self._text(passage))
                ends.append(passage.ends)
                yield passage.text

        def documents() -> Iterator[Sequence[int] | NDArray[Any]]:
            for ids in self.tokenizer.encode_all(texts()):
                yield ids
                if ends.popleft():
                    yield [EOS]

        stream = Stream.write(documents(), vocabulary_size=self.tokenizer.size)
        if not len(stream):
            raise DataError("the text is empty; one with characters fits")
        return Stream(stream.ids, characters)

    def length(self, item: Item) -> int:
        return len(item.ids)

    def collate(self, items: Sequence[Item]) -> Batch:
        targets, lengths = pad([item.ids for item in items])
        inputs, _ = pad([[BOS, *item.ids[:-1]] for item in items])
        scored = torch.arange(targets.shape[1]) < lengths[:, None]
        conditions = [item.condition for item in items if item.condition is not None]
        condition = torch.stack(conditions) if conditions else None
        return Batch(inputs, lengths, targets, scored, sum(item.characters for item in items), condition)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        loss, totals, _ = self.loss_carried(model, batch, None)
        return loss, totals

    def loss_carried(
        self, model: nn.Module, batch: Batch, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Carry]:
        assert isinstance(model, LanguageModel)
        x, carry = model(batch.inputs, batch.lengths, carry, batch.condition)
        scored = batch.scored
        x, targets = x[scored], batch.targets[scored]
        if model.training:
            loss = model.head.loss(x, targets, previous=batch.inputs[scored])
            # A sampled head's loss is no likelihood, so it must not be shown as one.
            exact = model.head.exact
        else:
            loss, exact = model.head.nll(x, targets).double().mean(), True
        total = loss.detach().double() * len(targets)
        if not exact:
            return loss, {"objective": Ratio("objective", total, len(targets))}, carry
        unknown = Ratio("unknown", (targets == UNK).sum(), len(targets))
        return loss, {"nll": Surprise(total, len(targets), batch.characters), "unknown": unknown}, carry

    def learns(self, batch: Batch) -> bool:
        return bool(batch.scored.any())

    def fit_model(self, model: nn.Module, items: Stream | list[Item]) -> None:
        """Tell the head how frequent tokens and, if it asks, pairs of tokens are."""
        assert isinstance(model, LanguageModel)
        head = model.head
        head.fit(unigrams(items, self.tokenizer.size), bigrams(items) if head.needs_bigrams else None)

    def begin_epoch(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        assert isinstance(model, LanguageModel)
        model.head.begin_epoch(batch.targets[batch.scored] for batch in batches)

    def predict(self, model: nn.Module, inputs: Sequence[GenerationInput]) -> list[GenerationOutput]:
        assert isinstance(model, LanguageModel)
        requests = self._requests(inputs)
        outputs: dict[int, GenerationOutput] = {}
        for group in _alike(requests, lambda one: one.options):
            if group[0].given.beam_size is not None:
                for request, output in zip(group, self._search(model, group), strict=True):
                    outputs[request.index] = output
                continue
            texts: dict[int, list[list[Piece]]] = {one.index: [[] for _ in range(one.given.n)] for one in group}
            rows: dict[int, list[_Row]] = {}
            for request, made, piece in self._sample_texts(model, group):
                texts[request.index][piece.index].append(piece)
                rows[request.index] = made
            for one in group:
                completions = [_completion(*pair) for pair in zip(rows[one.index], texts[one.index], strict=True)]
                outputs[one.index] = self._output(model, one, completions)
        return [outputs[index] for index in range(len(inputs))]

    def stream(self, model: nn.Module, given: GenerationInput) -> Iterator[Piece]:
        """The completions of one prompt as they grow; a search gives each of them whole at its end.

        What is computed follows what is read: closing the iterator stops the work.

        Args:
            model: built by this task.
            given: the request.

        Raises:
            InputError: before the first piece, if the request does not fit this model.
        """
        assert isinstance(model, LanguageModel)
        requests = self._requests([given])
        return self._stream(model, requests[0])

    def _stream(self, model: LanguageModel, request: _Request) -> Iterator[Piece]:
        seed = request.seed if request.given.samples else None
        first: dict[str, Any] = {"notes": request.notes, "prompt_tokens": len(request.ids), "seed": seed}
        for piece in self._pieces(model, request):
            yield piece.model_copy(update=first)
            first = {}

    def _pieces(self, model: LanguageModel, request: _Request) -> Iterator[Piece]:
        given = request.given
        if given.beam_size is None:
            if given.echo:
                scored = self._score_prompt(model, request)
                yield from (Piece(index=index, text=clean(given.prompt), logprobs=scored) for index in range(given.n))
            for _, rows, piece in self._sample_texts(model, [request]):
                row = rows[piece.index]
                last = {"score": row.score, "tokens": row.tokens} if row.ended else {}
                yield piece.model_copy(update={"logprobs": _moved(piece.logprobs, given), **last})
            return
        (output,) = self._search(model, [request])
        for index, one in enumerate(output.completions):
            yield Piece(index=index, text=one.text, logprobs=one.logprobs or [], finish_reason=one.finish_reason,
                        score=one.score, tokens=one.tokens)  # fmt: skip

    def _requests(self, inputs: Sequence[GenerationInput]) -> list[_Request]:
        """Each input encoded and checked against this model.

        Raises:
            InputError: for those that do not fit.
        """
        requests, problems = [], {}
        for index, given in enumerate(inputs):
            try:
                requests.append(self._request(index, given))
            except ValueError as error:
                problems[index] = str(error)
        if problems:
            raise InputError.of(problems)
        return requests

    def _request(self, index: int, given: GenerationInput) -> _Request:
        """Raises ValueError, naming the field, where the request does not fit this model."""
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
        condition = self._condition(given.condition)
        notes = given.changes_nothing()
        unknown = self.tokenizer.unknown(given.prompt)
        if unknown:
            shown = ", ".join(f"{part!r} at {offset}" for offset, part in unknown[:SHOWN_UNKNOWN])
            more = f" and {len(unknown) - SHOWN_UNKNOWN} more" if len(unknown) > SHOWN_UNKNOWN else ""
            notes.append(f"unknown to this model and read as <unk>: {shown}{more}")
        seed = given.seed
        if seed is None and given.samples:
            seed = secrets.randbits(32)
        return _Request(index, given, self.tokenizer.encode(given.prompt).ids, condition, bias, seed, notes)

    def _sample_texts(
        self, model: LanguageModel, requests: Sequence[_Request]
    ) -> Iterator[tuple[_Request, list[_Row], Piece]]:
        """Pieces of every completion of requests with equal ``options``, step by step; rows go with their requests."""
        made = {one.index: [_Row(self.tokenizer, one.given, one.ids) for _ in range(one.given.n)] for one in requests}
        places = [(one, number) for one in requests for number in range(one.given.n)]
        for start in range(0, len(places), ROWS_AT_ONCE):
            part = places[start : start + ROWS_AT_ONCE]
            for place, piece in self._sample_rows(model, part, [made[one.index][number] for one, number in part]):
                one = part[place][0]
                yield one, made[one.index], piece

    def _sample_rows(
        self, model: LanguageModel, places: Sequence[tuple[_Request, int]], rows: Sequence[_Row]
    ) -> Iterator[tuple[int, Piece]]:
        requests = list({id(one): one for one, _ in places}.values())
        given = [one.given for one, _ in places]
        order = [requests.index(one) for one, _ in places]
        copies = len(places) // len(requests)
        if order == [index for index in range(len(requests)) for _ in range(copies)]:
            step, carry, tokens = self._start(model, requests, copies)
        else:
            step, carry, tokens = self._start(model, requests)
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

    def _search(self, model: LanguageModel, requests: Sequence[_Request]) -> list[GenerationOutput]:
        """Beam search for requests with equal ``options``."""
        given = requests[0].given
        beams = given.beam_size or 1
        step, carry, tokens = self._start(model, requests, beams)
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
            output = self._output(model, request, completions)
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

    def _hypothesis(self, request: _Request, found: Hypothesis) -> Completion:
        row = _Row(self.tokenizer, request.given, request.ids)
        pieces = []
        for token, chance in zip([*found.tokens, *[EOS] * found.finished], found.log_probs, strict=True):
            text, scored = row.add(token, chance)
            pieces.append(Piece(index=0, text=text, logprobs=scored))
            if row.ended:
                break
        return _completion(row, pieces)

    def _output(self, model: LanguageModel, request: _Request, completions: list[Completion]) -> GenerationOutput:
        given = request.given
        if given.echo:
            scored = self._score_prompt(model, request)
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

    def _start(
        self, model: LanguageModel, requests: Sequence[_Request], copies: int = 1
    ) -> tuple[StepFn, Carry, Tensor]:
        conditions = [one.condition for one in requests if one.condition is not None]
        condition = torch.stack(conditions).to(model.embedding.weight) if conditions else None
        with torch.inference_mode():
            return model.start([one.ids for one in requests], condition, copies)

    def _processors(self, rows: Sequence[_Request]) -> list[Processor]:
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

    def _score_prompt(self, model: LanguageModel, request: _Request) -> list[ScoredToken]:
        """Each token of the prompt with its log-probability, if the request asks for them."""
        count = request.given.logprobs
        if count is None or not request.ids:
            return []
        device = model.embedding.weight.device
        inputs, targets = (torch.tensor(ids, device=device) for ids in ([BOS, *request.ids[:-1]], request.ids))
        condition = None if request.condition is None else request.condition[None].to(model.embedding.weight)
        chances: list[float] = []
        tops: list[list[TokenChance]] = []
        carry: Carry = None
        with torch.inference_mode():
            parts = torch.split(inputs, SCORED_AT_ONCE), torch.split(targets, SCORED_AT_ONCE)
            for read, wanted in zip(*parts, strict=True):
                x, carry = model(read[None], None, carry, condition)
                chances += (-model.head.nll(x[0], wanted)).tolist()
                if not count:
                    continue
                values, ids = model.head.logits(x[0]).log_softmax(-1).topk(min(count, self.tokenizer.size))
                tops += [
                    [TokenChance(token=self.tokenizer.token_text(i), log_prob=p) for i, p in zip(*row, strict=True)]
                    for row in zip(ids.tolist(), values.tolist(), strict=True)
                ]
        starts = [start for start, _ in self.tokenizer.encode(request.given.prompt).offsets]
        names = [self.tokenizer.token_text(token) for token in request.ids]
        return [
            ScoredToken(token=name, log_prob=chance, offset=start, top=tops[place] if tops else [])
            for place, (name, chance, start) in enumerate(zip(names, chances, starts, strict=True))
        ]

    def sample(self, model: nn.Module) -> str:
        """A text from the start, or one for each class, always with the same random numbers."""
        names: list[Any] = list(self.conditions.names[:SAMPLED_CLASSES])
        if self.features:
            names = [[0.0] * self.features]
        asked = [
            GenerationInput(condition=name, temperature=SAMPLE_TEMPERATURE, max_tokens=SAMPLE_TOKENS, seed=0)
            for name in names or [None]
        ]
        texts = [output.completions[0].text for output in self.predict(model, asked)]
        if not names:
            return texts[0] + "\n"
        return "".join(f"{name}: {text}\n" for name, text in zip(names, texts, strict=True))

    def as_input(self, example: Passage) -> GenerationInput:
        condition = list(example.condition) if isinstance(example.condition, tuple) else example.condition
        # Scores, for which a bundle's answer is checked with tolerance: a choice between near equals has none.
        prompt = example.text[:PROMPT_CHARACTERS]
        return GenerationInput(prompt=prompt, condition=condition, max_tokens=0, echo=True, logprobs=0)

    def describe(self) -> str:
        kind = "Goes on from a prompt, token by token"
        if self.features:
            return f"{kind}, for texts that depend on {self.features} numbers."
        names = f", for texts that are one of {', '.join(self.conditions.names)}" if len(self.conditions) else ""
        return f"{kind}{names}. It knows {self.tokenizer.size:,} tokens."

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory / "tokenizer.json")
        fitted = _Fitted(classes=self.conditions.names, features=self.features)
        text = json.dumps(fitted.model_dump(), ensure_ascii=False, indent=1)
        (directory / "conditions.json").write_text(text + "\n", encoding="utf-8")

    def restore(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.load(directory / "tokenizer.json")
        path = directory / "conditions.json"
        try:
            fitted = _Fitted.model_validate_json(path.read_bytes())
            self.conditions = Vocabulary(fitted.classes)
            if fitted.classes and fitted.features:
                raise DataError("classes and features; one of them fits")
        except (OSError, ValidationError, DataError) as error:
            raise BundleError(f"{path}: not the conditions of a text: {error}") from None
        self.features = fitted.features

    def read_examples(self, path: Path, **columns: Any) -> Sequence[Passage]:  # type: ignore[override]
        if not self.features and not len(self.conditions):
            return read_text(path, **columns)
        if isinstance(columns.get("features"), str):
            columns["features"] = columns["features"].split(",")
        return read_conditioned(path, **columns)

    def _condition(self, given: str | Sequence[float] | None) -> Tensor | None:
        """(C,) one-hot or features, or None for a model without.

        Raises:
            ValueError: if it is not what the model was trained with.
        """
        if self.features:
            if given is None or isinstance(given, str) or len(given) != self.features:
                raise ValueError(f"condition: {self.features} numbers fit, not {given!r:.60}")
            if not all(abs(number) < 1e30 for number in given):
                raise ValueError(f"condition: finite numbers fit, not {given!r:.60}")
            return torch.tensor(given, dtype=torch.float32)
        if len(self.conditions):
            if not isinstance(given, str):
                raise ValueError(f"condition: one of {', '.join(self.conditions.names)} fits, not {given!r:.60}")
            try:
                index = self.conditions.index(given)
            except DataError as error:
                raise ValueError(f"condition: {error}") from None
            return torch.eye(len(self.conditions))[index]
        if given is not None:
            raise ValueError("condition: this model was trained without; null fits")
        return None


def unigrams(items: Stream | Sequence[Item], size: int) -> Tensor:
    """How often each token of a vocabulary of ``size`` is to be predicted: (V,)."""
    counts = numpy.zeros(size, numpy.int64)
    for _, targets in _blocks(items):
        counts += numpy.bincount(targets, minlength=size)
    return torch.from_numpy(counts)


def bigrams(items: Stream | Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Each token with the one after it, (M, 2), and how often they stand so, (M,); the first of a text follows BOS."""
    pairs, counts = numpy.empty(0, numpy.int64), numpy.empty(0, numpy.int64)
    for inputs, targets in _blocks(items):
        found, times = numpy.unique(inputs << 32 | targets, return_counts=True)
        pairs, place = numpy.unique(numpy.concatenate([pairs, found]), return_inverse=True)
        counts = numpy.bincount(place, numpy.concatenate([counts, times]), minlength=len(pairs)).astype(numpy.int64)
    return torch.from_numpy(numpy.stack([pairs >> 32, pairs & 0xFFFFFFFF], 1)), torch.from_numpy(counts)


def _blocks(items: Stream | Sequence[Item]) -> Iterator[tuple[Any, Any]]:
    if isinstance(items, Stream):
        for start in range(0, len(items), COUNTED_AT_ONCE):
            stop = min(start + COUNTED_AT_ONCE, len(items))
            yield items.inputs(start, stop), items.targets(start, stop)
    else:
        rows = [numpy.asarray(item.ids, numpy.int64) for item in items]
        yield numpy.concatenate([[BOS, *row[:-1]] for row in rows]), numpy.concatenate(rows)


def _alike(requests: Sequence[_Request], key: Callable[[_Request], Hashable]) -> list[list[_Request]]:
    groups: dict[Hashable, list[_Request]] = {}
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
