"""Text that goes on from a prompt (one to many): language models over characters, subwords or words."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from seqapp.completer import Completer, Completions
from seqapp.completion import GenerationInput, GenerationOutput, Piece
from seqapp.completion_rows import Request
from seqapp.data.batching import pad
from seqapp.data.counts import Blocks, bigrams, unigrams
from seqapp.data.streams import Batch, Stream
from seqapp.data.text import Passage, read_conditioned, read_text
from seqapp.data.tokenizers import BOS, EOS, TOKENIZERS, UNK, Tokenizer
from seqapp.data.vocabulary import Vocabulary
from seqapp.errors import BundleError, DataError
from seqapp.metrics import Metric, Ratio, Surprise
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import Carry
from seqapp.outcomes import Outcomes
from seqapp.registry import Spec
from seqapp.tasks.base import TASKS, InputError, Task
from seqapp.tasks.running import Failed, Running, Said

SAMPLE_TOKENS, SAMPLE_TEMPERATURE, SAMPLED_CLASSES = 300, 0.8, 20
"""Of what the model says after each epoch."""
PROMPT_CHARACTERS = 100
"""Of the texts a bundle is asked to score when it is loaded."""
REQUEST_TOKENS = 64
"""Added to a prompt when the time of an answer is measured."""
READ_FOR_ONE = 4
"""Characters of a prompt that are about as much work as a token to write."""
LONGEST_ROW = 10_000
"""Most tokens of a text that is learned as one row."""
PARTS = 100
"""Of a text that is one stream, for how certain a figure is: fewer would tell little of that, since the spread of n
parts is known to about 1 in the square root of 2 n, more would be so short that neighbours hang together."""
_SPACE = re.compile(r"(?<=\S) (?=\S)")
COUNTED_AT_ONCE = 2**22
"""Tokens of a stream in memory while pairs are counted."""


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
        "word.\nPerplexities compare only between models with the same tokens; bits per character compare between all "
        "that know every character."
    )

    def __init__(
        self,
        *,
        tokenizer: Annotated[Spec, TOKENIZERS] = {"kind": "character"},  # noqa: B006  (copied before use)
        reads: Literal["stream", "rows", "lines"] = "stream",
    ) -> None:
        self.tokenizer: Tokenizer = TOKENIZERS.build(tokenizer)
        self.tokenizer_kind = tokenizer["kind"]
        self.reads = reads
        self.streams = reads == "stream"
        self.conditions = Vocabulary([])
        self.features = 0

    @property
    def metric_definition(self) -> str:
        """How the text is read decides which tokens count and how much each has before it."""
        return f"bits_per_character, read as {self.reads}"

    def definition_of(self, scores: Mapping[str, Mapping[str, float]]) -> str:
        """An unknown token stands for many texts and is easily told, so that few tokens would make a good score."""
        if not any(part.get("unknown", 0) > 0 for part in scores.values()):
            return self.metric_definition
        return (f"{self.metric_definition}, unknown tokens as one of {self.tokenizer.size:,} of the tokenizer "
                f"{self.tokenizer_kind}")  # fmt: skip

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
        characters = sum(len(self._text(passage)) for passage in examples)
        waiting: deque[tuple[int, int, bool]] = deque()
        counts: list[tuple[int, int, int]] = []

        def texts() -> Iterator[str]:
            before = 0
            for passage in examples:
                for text, ends in _cut(passage.text, before, characters):
                    waiting.append((PARTS * before // max(1, characters), len(text), ends and passage.ends))
                    before += len(text)
                    yield text

        def documents() -> Iterator[Sequence[int] | NDArray[Any]]:
            for ids in self.tokenizer.encode_all(texts()):
                part, size, ends = waiting.popleft()
                counts.append((part, len(ids) + ends, size))
                yield ids
                if ends:
                    yield [EOS]

        stream = Stream.write(documents(), vocabulary_size=self.tokenizer.size)
        if not len(stream):
            raise DataError("the text is empty; one with characters fits")
        return Stream(stream.ids, characters, _added(counts))

    def length(self, item: Item) -> int:
        return len(item.ids)

    def collate(self, items: Sequence[Item]) -> Batch:
        targets, lengths = pad([item.ids for item in items])
        inputs, _ = pad([[BOS, *item.ids[:-1]] for item in items])
        scored = torch.arange(targets.shape[1]) < lengths[:, None]
        conditions = [item.condition for item in items if item.condition is not None]
        condition = torch.stack(conditions) if conditions else None
        worth = torch.tensor([[item.characters / len(item.ids)] for item in items], dtype=torch.float64)
        characters = sum(item.characters for item in items)
        return Batch(inputs, lengths, targets, scored, characters, condition, worth=worth)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        loss, totals, _ = self.loss_carried(model, batch, None)
        return loss, totals

    def loss_carried(
        self, model: nn.Module, batch: Batch, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Carry]:
        assert isinstance(model, LanguageModel)
        x, carry = model(batch.inputs, batch.lengths, carry, batch.condition)
        scored = batch.scored
        outcomes: dict[str, Metric] = {}
        x, targets = x[scored], batch.targets[scored]
        if model.training:
            loss = model.head.loss(x, targets, previous=batch.inputs[scored])
            # A sampled head's loss is no likelihood, so it must not be shown as one.
            exact = model.head.exact
        else:
            each = model.head.nll(x, targets).double()
            loss, exact = each.mean(), True
            outcomes["outcomes"] = told(each.detach().cpu().numpy(), batch)
        total = loss.detach().double() * len(targets)
        if not exact:
            return loss, {"objective": Ratio("objective", total, len(targets))}, carry
        unknown = Ratio("unknown", (targets == UNK).sum(), len(targets))
        return loss, {"nll": Surprise(total, len(targets), batch.characters), "unknown": unknown, **outcomes}, carry

    def weight(self, batch: Batch) -> float:
        return int(batch.scored.sum())

    def learns(self, batch: Batch) -> bool:
        return bool(batch.scored.any())

    def fit_model(self, model: nn.Module, items: Stream | list[Item]) -> None:
        """Tell the head how frequent tokens and, if it asks, pairs of tokens are."""
        assert isinstance(model, LanguageModel)
        head = model.head
        head.fit(unigrams(blocks(items), self.tokenizer.size), bigrams(blocks(items)) if head.needs_bigrams else None)

    def begin_epoch(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        assert isinstance(model, LanguageModel)
        model.head.begin_epoch(batch.targets[batch.scored] for batch in batches)

    def predict(self, model: nn.Module, inputs: Sequence[GenerationInput]) -> list[GenerationOutput]:
        assert isinstance(model, LanguageModel)
        completer = Completer(self.tokenizer, model)
        return completer.answer(self._requests(completer, inputs))

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
        completer = Completer(self.tokenizer, model)
        return completer.stream(self._requests(completer, [given])[0])

    def _requests(self, completer: Completer, inputs: Sequence[GenerationInput]) -> list[Request]:
        """Each input encoded and checked against this model.

        Raises:
            InputError: for those that do not fit.
        """
        requests, problems = [], {}
        for index, given in enumerate(inputs):
            try:
                requests.append(self._request(completer, given))
            except ValueError as error:
                problems[index] = str(error)
        if problems:
            raise InputError.of(problems)
        return requests

    def _request(self, completer: Completer, given: GenerationInput) -> Request:
        return completer.request(given, self._condition(given.condition))

    def running(self, model: nn.Module) -> Running:
        """Completions that grow side by side, whatever their options; see :class:`seqapp.completer.Completions`.

        Args:
            model: built by this task, in eval mode.
        """
        assert isinstance(model, LanguageModel)
        return RunningGeneration(self, model)

    def effort(self, given: GenerationInput) -> int:
        """Tokens to write and, since many are read at once, a share of the characters to read."""
        scored = given.echo and given.logprobs is not None
        read = len(given.prompt) // (1 if scored else READ_FOR_ONE)
        return 1 + read + given.max_tokens * (given.beam_size or given.n)

    def written(self, said: GenerationOutput | Piece) -> int:
        """Tokens of all completions, or of a piece."""
        if isinstance(said, Piece):
            return said.tokens
        return sum(one.tokens for one in said.completions)

    def sample(self, model: nn.Module, items: Any = None) -> str:
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

    def as_request(self, example: Passage) -> GenerationInput:
        # As many tokens whatever the model says, so that models can be compared.
        given = {"prompt": example.text[:PROMPT_CHARACTERS], "max_tokens": REQUEST_TOKENS, "min_tokens": REQUEST_TOKENS}
        return self.as_input(example).model_copy(update={**given, "echo": False, "logprobs": None, "temperature": 0.0})

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


class RunningGeneration(Running):
    """Completions of many requests that grow side by side.

    Args:
        task: prepared.
        model: built by the task, in eval mode.
    """

    def __init__(self, task: Generation, model: LanguageModel) -> None:
        self._task, self._completer = task, Completer(task.tokenizer, model)
        self._batch = Completions(self._completer)

    @property
    def full(self) -> bool:
        return self._batch.full

    def join(self, key: Hashable, given: BaseModel, *, stream: bool = False) -> None:
        assert isinstance(given, GenerationInput)
        try:
            request = self._task._request(self._completer, given)
        except ValueError as error:
            raise InputError(0, str(error)) from None
        self._batch.join(key, request, stream=stream)

    def leave(self, key: Hashable) -> None:
        self._batch.leave(key)

    def pause(self, key: Hashable, *, paused: bool) -> None:
        self._batch.pause(key, paused=paused)

    def step(self) -> list[Said | Failed]:
        return [
            Failed(key, value) if isinstance(value, Exception) else Said(key, value, last)
            for key, value, last in self._batch.step()
        ]

    def __len__(self) -> int:
        return len(self._batch)


def _cut(text: str, before: int, characters: int) -> Iterator[tuple[str, bool]]:
    """``text`` cut where a part of the whole text ends, each with whether it is the last.

    LAW: the tokens of the pieces are those of the text: it is cut before a single space alone, which no token spans.

    Args:
        text: a passage.
        before: characters of the whole text that stand before it.
        characters: of the whole text.
    """
    start = 0
    while True:
        # The first place at which PARTS * (before + place) // characters is one more.
        part = PARTS * (before + start) // max(1, characters)
        place = max(start + 1, -(-characters * (part + 1) // PARTS) - before)
        found = _SPACE.search(text, place) if place < len(text) else None
        yield text[start : found.start() if found else None], not found
        if not found:
            return
        start = found.start()


def _added(counts: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(part, tokens, characters) of pieces in order -> tokens and characters of each part."""
    parts: dict[int, tuple[int, int]] = {}
    spare = 0  # white space that is no token, which the part after it takes
    for part, tokens, characters in counts:
        spare += characters
        if tokens:
            before = parts.get(part, (0, 0))
            parts[part], spare = (before[0] + tokens, before[1] + spare), 0
    found = list(parts.values())
    return [*found[:-1], (found[-1][0], found[-1][1] + spare)]


def told(nats: NDArray[numpy.float64], batch: Batch) -> Outcomes:
    """What each text, or part of a text, adds to bits per character.

    Args:
        nats: (n,) of the scored targets, row by row.
        batch: where they stand.
    """
    scored = batch.scored.cpu().numpy()
    index = scored.nonzero()[0] if batch.parts is None else batch.parts.cpu().numpy()[scored]
    worth = numpy.full((1, 1), batch.characters / len(nats)) if batch.worth is None else batch.worth.cpu().numpy()
    return surprises(nats, index, numpy.broadcast_to(worth, scored.shape)[scored], rows=batch.parts is None)


def surprises(
    nats: NDArray[numpy.float64], index: NDArray[numpy.int64], characters: NDArray[numpy.float64], *, rows: bool
) -> Outcomes:
    """Outcomes of n tokens, added up by the item they are of.

    Args:
        nats: (n,).
        index: (n,), the item that each is of.
        characters: (n,) that each stands for.
        rows: items are the rows of a batch, each with a token or more, and are counted from 0.
    """
    items, place = numpy.unique(index, return_inverse=True)
    scores = {"bits_per_character": ("bits", "nats", "characters")}
    return Outcomes.of(
        scores,
        items=None if rows else items,
        nats=numpy.bincount(place, nats),
        tokens=numpy.bincount(place),
        characters=numpy.bincount(place, characters),
    )


def blocks(items: Stream | Sequence[Item]) -> Blocks:
    """Inputs and targets of all items, a part of them at a time."""
    if isinstance(items, Stream):
        for start in range(0, len(items), COUNTED_AT_ONCE):
            stop = min(start + COUNTED_AT_ONCE, len(items))
            yield items.inputs(start, stop), items.targets(start, stop)
    else:
        rows = [numpy.asarray(item.ids, numpy.int64) for item in items]
        yield numpy.concatenate([[BOS, *row[:-1]] for row in rows]), numpy.concatenate(rows)
