"""Text in another language (many to many, delayed): an encoder reads a sentence, a decoder says it again."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from seqapp.data.batching import pad
from seqapp.data.counts import Blocks, bigrams, unigrams
from seqapp.data.languages import LanguageProfile
from seqapp.data.pairs import Format, OnBad, SentencePair, read_pairs
from seqapp.data.subwords import Resegmenter
from seqapp.data.tokenizers import BOS, EOS, TOKENIZERS, Tokenizer
from seqapp.errors import BundleError, ConfigError, DataError
from seqapp.metrics import Metric, Ratio, Surprise
from seqapp.models.translator import Translator
from seqapp.nn.recurrent import valid_mask
from seqapp.registry import Probability, Size, Spec
from seqapp.tasks.base import TASKS, InputError, Matrix, Task
from seqapp.tasks.running import Failed, Running, Said
from seqapp.translation import (
    MOST_BEAMS,
    ROWS_AT_ONCE,
    Interpreter,
    Translating,
    TranslationInput,
    TranslationOutput,
    align,
    limit,
    search,
)
from seqapp.translation_scores import Translations

LONGEST_SIDE = 1_000
"""Most tokens of one side of a pair, and so of a sentence that is read."""
SAMPLES, DRAWN = 8, 3
"""How many sentences a person is shown after each epoch, and how many pictures of attention."""
LOOKED_AT = 100
"""How many sentences of a user's file show whether it is in the language that is translated."""
END_COST = 10
"""What a sentence end counts for in characters: however short, a sentence is searched for 10 tokens and more."""
SENTENCE_END = re.compile(r"[.!?…。！？।\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One pair: ids of both sides, EOS at the end, and the pair itself."""

    source: list[int]
    target: list[int]
    pair: SentencePair


class Rows:
    """What the rows of a batch are made of; no sequence, so that a trainer does not walk through it for tensors.

    Args:
        items: one each.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items


class Batch(NamedTuple):
    """Pairs side by side.

    Args:
        source: ids (B, S).
        source_lengths: (B,).
        inputs: ids (B, T), the target from BOS on.
        targets: ids (B, T), the token after each input.
        lengths: (B,), of the targets.
        rows: what the rows are made of.
    """

    source: Tensor
    source_lengths: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    rows: Rows


class _Fitted(BaseModel):
    """What ``translation.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    languages: tuple[str, str]
    longest: int = Field(ge=1, le=LONGEST_SIDE)


class _FileOptions(BaseModel):
    """What may be said of a user's file of pairs; a command line says it in strings."""

    model_config = ConfigDict(extra="forbid")

    target: Path | None = None
    columns: list[int] | list[str] | None = None
    encoding: str = "utf-8"
    format: Format | None = None
    max_characters: Size = 1000
    on_bad: OnBad = "error"

    @field_validator("columns", mode="before")
    @classmethod
    def _apart(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        columns = value.split(",")
        return [int(column) for column in columns] if all(map(str.isdecimal, columns)) else columns


@TASKS.register("translation")
class Translation(Task[SentencePair, Item]):
    """Sentences of one language said in another.

    Args:
        tokenizer: how a text becomes tokens.
        shared: one vocabulary for both languages; otherwise each has its own of that kind.
        regularisation: how often training cuts words into other pieces than usual (Kudo 2018; Provilkov et al. 2020):
            for bpe the share of merges that are skipped, for unigram that of words that are drawn; for subwords only.
        beam_size: hypotheses kept in the search, for figures and where a request names none.
        length_penalty: rank translations by log-probability / length ** this: 0 favours short ones, 1 takes the mean.
    """

    Input: ClassVar[type[BaseModel]] = TranslationInput
    Output: ClassVar[type[BaseModel]] = TranslationOutput
    example_type = SentencePair
    model_kind = "translator"
    selection = ("bleu", "max")
    unit = "pairs"
    line_field = "text"

    def __init__(
        self,
        *,
        tokenizer: Annotated[Spec, TOKENIZERS] = {"kind": "subword"},  # noqa: B006  (copied before use)
        shared: bool = True,
        regularisation: Probability = 0.0,
        beam_size: Annotated[int, Field(ge=1, le=MOST_BEAMS)] = 5,
        length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0,
    ) -> None:
        self.source_tokenizer: Tokenizer = TOKENIZERS.build(tokenizer)
        self.target_tokenizer = self.source_tokenizer if shared else TOKENIZERS.build(tokenizer)
        self.shared, self.regularisation = shared, regularisation
        self.beam_size, self.length_penalty = beam_size, length_penalty
        self.languages = ("", "")
        self.longest = 1
        self.profile: LanguageProfile | None = None
        self._resegmenters: tuple[Resegmenter, Resegmenter] | None = None

    @property
    def metric_definition(self) -> str:
        """sacreBLEU's signature; the search is part of the model that is measured."""
        return f"bleu|{Translations((), (), ()).details()['bleu']}"

    @property
    def titles(self) -> Mapping[str, str]:  # type: ignore[override]
        """Score -> what a person calls it, and for those of translations the search that found them."""
        beams = f"beam {self.beam_size}"
        return {
            "nll": "nll (nats per token)",
            "bleu": f"BLEU (sacreBLEU 13a), {beams}",
            "bleu_lowercased": f"BLEU (lower-cased, Moses tokens), {beams}",
            "chrf": f"chrF2, {beams}",
            "ter": f"TER, {beams}",
            "bits_per_character": "bits per character",
        }

    @property
    def limits(self) -> str:  # type: ignore[override]
        """What a person must not expect of the answers."""
        return (
            "It translates each sentence by itself and knows nothing of those around it; it may leave out or make up\n"
            "what a sentence says. Texts unlike those it was trained on come out worse. BLEU compares only on the\n"
            f"same test sentences and by the same definition; the figures are those of a beam of {self.beam_size}."
        )

    @property
    def file_options(self) -> Sequence[str]:  # type: ignore[override]
        """The keywords that :meth:`read_examples` takes."""
        return tuple(_FileOptions.model_fields)

    def prepare(self, examples: Sequence[SentencePair]) -> None:
        """Fit vocabularies and the profile of the languages.

        Raises:
            DataError: if the pairs are of several languages, or of one alone.
            ConfigError: if the tokenizer has no pieces to draw for ``regularisation``.
        """
        self.languages = examples[0].languages
        for index, pair in enumerate(examples):
            if pair.languages != self.languages:
                raise DataError(f"example 1 goes from {' to '.join(self.languages)} and example {index + 1} from "
                                f"{' to '.join(pair.languages)}; pairs of one direction fit")  # fmt: skip
        if self.languages[0] == self.languages[1] != "":
            raise DataError(f"both sides are {self.languages[0]!r}; two languages fit")
        sides = [pair.source for pair in examples], [pair.target for pair in examples]
        if self.shared:
            self.source_tokenizer.fit(text for side in sides for text in side)
        else:
            self.source_tokenizer.fit(sides[0])
            self.target_tokenizer.fit(sides[1])
        self.profile = LanguageProfile.fit(*sides, self.languages)
        self.longest = max(len(row.ids) for row in self.source_tokenizer.encode_batch(sides[0]))
        if self.regularisation:
            self._resegment()

    def _resegment(self) -> tuple[Resegmenter, Resegmenter]:
        try:
            source = Resegmenter(self.source_tokenizer, self.regularisation)
            target = source if self.shared else Resegmenter(self.target_tokenizer, self.regularisation)
        except ValueError as error:
            raise ConfigError(f"task.regularisation: {error}") from None
        self._resegmenters = source, target
        return source, target

    def sizes(self) -> dict[str, int]:
        return {"source_size": self.source_tokenizer.size, "vocabulary_size": self.target_tokenizer.size}

    def encode(self, examples: Sequence[SentencePair]) -> list[Item]:
        sources = self.source_tokenizer.encode_batch([pair.source for pair in examples])
        targets = self.target_tokenizer.encode_batch([pair.target for pair in examples])
        items, problems = [], {}
        for index, (source, target, pair) in enumerate(zip(sources, targets, examples, strict=True)):
            for ids, side in ((target.ids, "target"), (source.ids, "source")):
                if not ids:
                    problems[index] = f"the {side} is empty; a sentence fits"
                elif len(ids) > LONGEST_SIDE:
                    problems[index] = f"the {side} has {len(ids):,} tokens; at most {LONGEST_SIDE:,} fit"
            items.append(Item([*source.ids, EOS], [*target.ids, EOS], pair))
        if problems:
            raise InputError.of(problems)
        return items

    def augment(self, item: Item, chance: random.Random) -> Item:
        """The same pair in other pieces."""
        if not self.regularisation:
            return item
        source, target = self._resegmenters or self._resegment()
        pair = item.pair
        return Item([*source.sample(pair.source, chance), EOS], [*target.sample(pair.target, chance), EOS], pair)

    def length(self, item: Item) -> tuple[int, int]:
        return len(item.source), len(item.target)

    def collate(self, items: Sequence[Item]) -> Batch:
        source, source_lengths = pad([item.source for item in items])
        targets, lengths = pad([item.target for item in items])
        inputs, _ = pad([[BOS, *item.target[:-1]] for item in items])
        return Batch(source, source_lengths, inputs, targets, lengths, Rows(items))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        assert isinstance(model, Translator)
        y, _ = model(batch.source, batch.source_lengths, batch.inputs, batch.lengths)
        scored = valid_mask(batch.lengths, y.shape[1])
        y, targets = y[scored], batch.targets[scored]
        if model.training:
            loss, exact = model.head.loss(y, targets, previous=batch.inputs[scored]), model.head.exact
        else:
            loss, exact = model.head.nll(y, targets).double().mean(), True
        total = loss.detach().double() * len(targets)
        if not exact:
            return loss, {"objective": Ratio("objective", total, len(targets))}
        return loss, {"nll": Surprise(total, len(targets), sum(len(item.pair.target) for item in batch.rows.items))}

    def weight(self, batch: Batch) -> float:
        return int(batch.lengths.sum())

    def fit_model(self, model: nn.Module, items: Sequence[Item]) -> None:
        """Tell the head how frequent target tokens and, if it asks, pairs of them are.

        Raises:
            ConfigError: if the model has one table for two vocabularies.
        """
        assert isinstance(model, Translator)
        if not self.shared and model.source_embedding is model.target_embedding:
            raise ConfigError("model.tied: all is one table for both languages, but with task.shared: false each has "
                              "tokens of its own; task.shared: true, or tied: target, fits")  # fmt: skip
        head = model.head
        size = self.target_tokenizer.size
        head.fit(unigrams(_blocks(items), size), bigrams(_blocks(items)) if head.needs_bigrams else None)

    def begin_epoch(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        assert isinstance(model, Translator)
        model.head.begin_epoch(batch.targets[valid_mask(batch.lengths, batch.targets.shape[1])] for batch in batches)

    def judge(self, model: nn.Module, batch: Batch) -> dict[str, Metric]:
        """The translations that the search finds, beside the right ones."""
        assert isinstance(model, Translator)
        said = self._say(model, batch.rows.items)
        pairs = [item.pair for item in batch.rows.items]
        sources, references = tuple(pair.source for pair in pairs), tuple(pair.target for pair in pairs)
        found = Translations(sources, tuple(said), references, self.languages)
        return {"translations": found, "outcomes": found.outcomes()}

    def _say(self, model: Translator, items: Sequence[Item]) -> list[str]:
        sources = [item.source for item in items]
        limits = [limit(len(source)) for source in sources]
        # Lower precision, which a trainer may have switched on, is for products of many rows.
        with torch.autocast(model.source_embedding.weight.device.type, enabled=False):
            found = search([model], sources, limits, self.beam_size, length_penalty=self.length_penalty)
        return [self.target_tokenizer.decode(row[0].tokens) for row in found]

    def predict(self, model: nn.Module, inputs: Sequence[TranslationInput]) -> list[TranslationOutput]:
        return self.translate([model], inputs)

    def translate(
        self,
        models: Sequence[nn.Module],
        inputs: Sequence[TranslationInput],
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[TranslationOutput]:
        """Answer ``inputs`` in order, by the mean of what several models with the same vocabularies say.

        Args:
            models: built by this task, or by others that :meth:`like` this one.
            inputs: texts.
            done: told how many inputs are finished, as they are.

        Raises:
            InputError: for texts that are empty, or too long to be scored as one sentence.
        """
        problems = {index: problem for index, given in enumerate(inputs) if (problem := self.problem(given))}
        if problems:
            raise InputError.of(problems)
        return self._interpreter(models).answer(inputs, done=done)

    def running(self, model: nn.Module) -> Running:
        """Texts whose sentences are searched side by side; a stream of one is refused, for it has no pieces."""
        return _Answers(self, Translating(self._interpreter([model])))

    def effort(self, given: BaseModel) -> int:
        """About how many tokens are searched, at most one of a character."""
        assert isinstance(given, TranslationInput)
        if given.target is not None:
            return len(given.text) + len(given.target)
        beams = max(given.beam_size or self.beam_size, given.alternatives + 1)
        return (len(given.text) + END_COST * (1 + len(SENTENCE_END.findall(given.text)))) * beams

    def problem(self, given: TranslationInput) -> str:
        """What is wrong with an input, and what would fit; empty if nothing is."""
        if not given.text.strip():
            return "text: it is empty; a sentence fits"
        if given.target is None:
            return ""
        if not given.target.strip():
            return "target: it is empty; a translation fits"
        sides = {"text": (given.text, self.source_tokenizer), "target": (given.target, self.target_tokenizer)}
        for side, (text, tokenizer) in sides.items():
            if (size := len(tokenizer.encode(text).ids)) > LONGEST_SIDE:
                return f"{side}: it has {size:,} tokens; at most {LONGEST_SIDE:,} fit where a translation is scored"
        return ""

    def _interpreter(self, models: Sequence[nn.Module]) -> Interpreter:
        return Interpreter(
            self.source_tokenizer,
            self.target_tokenizer,
            [cast(Translator, model) for model in models],
            language=self.languages[0],
            longest=self.longest,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
            profile=self.profile,
        )

    def like(self, other: Translation) -> bool:
        """Whether models of both can answer as one: the same languages and the same tokens."""
        mine, theirs = (
            (task.languages, task.source_tokenizer.core.get_vocab(), task.target_tokenizer.core.get_vocab())
            for task in (self, other)
        )
        return mine == theirs

    def sample(self, model: nn.Module, items: Sequence[Item]) -> str:
        """A few sentences, what the model makes of them, and the right translations."""
        assert isinstance(model, Translator)
        shown = _spread(items, SAMPLES)
        return "\n".join(f"{item.pair.source}\n  says  {said}\n  right {item.pair.target}\n"
                         for item, said in zip(shown, self._say(model, shown), strict=True))  # fmt: skip

    def matrices(self, model: nn.Module, items: Sequence[Item]) -> dict[str, Matrix]:
        """Where the model looks while it says the right translations of a few sentences."""
        assert isinstance(model, Translator)
        if not model.aligned:
            return {}
        shown = _spread(items, DRAWN)
        with torch.autocast(model.source_embedding.weight.device.type, enabled=False):
            weights = align([model], [item.source for item in shown], [item.target[:-1] for item in shown])
        return {
            f"attention/{place + 1}": Matrix(
                found,
                [self.target_tokenizer.token_text(index) for index in item.target],
                [self.source_tokenizer.token_text(index) for index in item.source],
                item.pair.source,
            )
            for place, (item, found) in enumerate(zip(shown, weights, strict=True))
        }

    def as_input(self, example: SentencePair) -> TranslationInput:
        # Of the right translation the score, for which a bundle's answer is checked with tolerance: a search that
        # meets near equals has none.
        return TranslationInput(text=example.source, target=example.target)

    def as_request(self, example: SentencePair) -> TranslationInput:
        return TranslationInput(text=example.source)

    def describe(self) -> str:
        source, target = (name or "unnamed" for name in self.languages)
        known = f"{self.source_tokenizer.size:,}"
        tokens = f"{known} tokens of both" if self.shared else f"{known} and {self.target_tokenizer.size:,} tokens"
        return f"Translates from {source} to {target}. It knows {tokens}."

    def save(self, directory: Path) -> None:
        self.source_tokenizer.save(directory / "tokenizer.json")
        if not self.shared:
            self.target_tokenizer.save(directory / "target_tokenizer.json")
        fitted = _Fitted(languages=self.languages, longest=self.longest)
        (directory / "translation.json").write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if self.profile is not None:
            self.profile.save(directory / "profile.json")

    def restore(self, directory: Path) -> None:
        self.source_tokenizer = Tokenizer.load(directory / "tokenizer.json")
        self.target_tokenizer = (
            self.source_tokenizer if self.shared else Tokenizer.load(directory / "target_tokenizer.json")
        )
        path = directory / "translation.json"
        try:
            fitted = _Fitted.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(f"{path}: not what a translation fitted: {error}") from None
        self.languages, self.longest = fitted.languages, fitted.longest
        self.profile = LanguageProfile.load(directory / "profile.json")

    def read_examples(self, path: Path, **columns: Any) -> list[SentencePair]:
        try:
            options = _FileOptions.model_validate(columns)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r:.60}") from None
        pairs = read_pairs(
            path if options.target is None else [path, options.target],
            languages=self.languages,
            **options.model_dump(exclude={"target"}),
        )
        looked_at = "\n".join(pair.source for pair in pairs[:LOOKED_AT])
        if self.profile is not None and (notice := self.profile.notice(looked_at)):
            log.warning("%s: %s", path, notice)
        return pairs


class _Answers(Running):
    """Texts that are translated side by side.

    Args:
        task: that checks them.
        inside: those that fit.
    """

    def __init__(self, task: Translation, inside: Translating) -> None:
        self._task, self._inside = task, inside

    @property
    def full(self) -> bool:
        """Whether the texts inside, by a sentence of each, have enough for the next steps to choose from."""
        return self._inside.rows >= 2 * ROWS_AT_ONCE

    def join(self, key: Hashable, given: BaseModel, *, stream: bool = False) -> None:
        """Take in a text, which the next steps translate.

        Raises:
            InputError: of index 0, if it cannot be translated.
            ValueError: if pieces are asked for; a translation has none.
        """
        assert isinstance(given, TranslationInput)
        if stream:
            raise ValueError("a translation has no pieces to stream; stream=False fits")
        if problem := self._task.problem(given):
            raise InputError(0, problem)
        self._inside.join(key, given)

    def leave(self, key: Hashable) -> None:
        self._inside.leave(key)

    def step(self) -> list[Said | Failed]:
        return [Failed(key, found) if isinstance(found, Exception) else Said(key, found, True)
                for key, found in self._inside.step()]  # fmt: skip

    def __len__(self) -> int:
        return len(self._inside)


def _blocks(items: Sequence[Item]) -> Blocks:
    for item in items:
        yield numpy.array([BOS, *item.target[:-1]], numpy.int64), numpy.array(item.target, numpy.int64)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Some of the items, evenly from the first to the last."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
