"""Sentiment and any other choice of one class for a text (many to one)."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seqapp.calibration import load_temperature, save_temperature
from seqapp.data.batching import cut_by_tokens, pad
from seqapp.data.splits import LabelledText
from seqapp.data.tables import read_labelled
from seqapp.data.tokenizers import TOKENIZERS, Tokenizer, clean
from seqapp.data.vocabulary import Vocabulary
from seqapp.errors import BundleError, DataError
from seqapp.metrics import Confusion, Metric, Ratio
from seqapp.models.classifier import Classifier
from seqapp.outcomes import Outcomes
from seqapp.registry import Size, Spec
from seqapp.tasks.base import TASKS, InputError, Task
from seqapp.tasks.running import Passes

log = logging.getLogger(__name__)

PREDICT_TOKENS = 16_384
"""Padded tokens in one forward pass of :meth:`Sentiment.predict`."""
EXPLAINED = 4
"""How many times as long an answer takes that is explained."""


class SentimentInput(BaseModel):
    """A text to classify."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(description="the text; any length")
    explain: bool = Field(default=False, description="also say how much each token speaks for the chosen label")


class TokenWeight(BaseModel):
    """How much one token speaks for (+) or against (-) the chosen label."""

    text: str
    start: int = Field(description="offset of the first character in the text")
    end: int = Field(description="offset after the last character")
    weight: float = Field(
        description="gradient times embedding of the log-odds, through the encoder; a bag beside it is not counted"
    )


class SentimentOutput(BaseModel):
    """The label, and how sure the model is of each."""

    label: str
    score: float = Field(description="probability of the label")
    scores: dict[str, float] = Field(description="probability of every label; they sum to 1")
    tokens: list[TokenWeight] | None = None


class Item(NamedTuple):
    """One encoded text."""

    ids: list[int]
    target: int


class Read(NamedTuple):
    """One encoded text to answer; ``offsets`` are there where the answer names tokens."""

    given: SentimentInput
    ids: list[int]
    offsets: list[tuple[int, int]]


class Batch(NamedTuple):
    """ids (B, T) right-padded, lengths (B,), targets (B,)."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


@TASKS.register("sentiment")
class Sentiment(Task[LabelledText, Item]):
    """One of two or more classes for a text.

    Args:
        tokenizer: how a text becomes tokens.
        max_tokens: longest text read, in tokens; the rest is cut and counted in the log. null reads everything.
        crop: in training, a longer text is read from a random place for this many tokens; null reads everything.
    """

    Input: ClassVar[type[BaseModel]] = SentimentInput
    Output: ClassVar[type[BaseModel]] = SentimentOutput
    example_type = LabelledText
    model_kind = "classifier"
    selection = ("accuracy", "max")
    unit = "texts"
    titles: Mapping[str, str] = {"nll": "nll (nats per text)", "macro_f1": "macro F1"}
    shares = ("accuracy",)
    file_options = ("text", "label", "encoding", "format")
    line_field = "text"
    calibrates = True

    def __init__(
        self,
        *,
        tokenizer: Annotated[Spec, TOKENIZERS] = {"kind": "word"},  # noqa: B006  (copied before use)
        max_tokens: Size | None = None,
        crop: Size | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = TOKENIZERS.build(tokenizer)
        self.max_tokens, self.crop = max_tokens, crop
        self.labels = Vocabulary([])

    @property
    def limits(self) -> str:  # type: ignore[override]
        """What a person must not expect of the answers."""
        calibrated = "are not calibrated" if self.temperature is None else "are calibrated for texts like those"
        return (
            "It knows the language and the kind of text it was trained on, and answers any other text with the same "
            "confidence. It\nreads a text as a whole and does not say what an opinion is about. Its probabilities "
            f"{calibrated}."
        )

    def prepare(self, examples: Sequence[LabelledText]) -> None:
        self.tokenizer.fit(example.text for example in examples)
        self.labels = Vocabulary(sorted({example.label for example in examples}))
        if len(self.labels) < 2:
            raise DataError(f"the training examples have {len(self.labels)} label(s); two or more fit")
        counts = Counter(example.label for example in examples)
        log.info("labels: %s", ", ".join(f"{name} {counts[name]}" for name in self.labels.names))

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": self.tokenizer.size, "classes": len(self.labels)}

    def encode(self, examples: Sequence[LabelledText]) -> list[Item]:
        rows = self._rows([example.text for example in examples])
        return [Item(row, self.labels.index(example.label)) for row, example in zip(rows, examples, strict=True)]

    def augment(self, item: Item, chance: random.Random) -> Item:
        if self.crop is None or len(item.ids) <= self.crop:
            return item
        start = chance.randrange(len(item.ids) - self.crop + 1)
        return item._replace(ids=item.ids[start : start + self.crop])

    def augmented_length(self, item: Item) -> int:
        return self.length(item) if self.crop is None else min(self.length(item), self.crop)

    def length(self, item: Item) -> int:
        return len(item.ids)

    def collate(self, items: Sequence[Item]) -> Batch:
        ids, lengths = pad([item.ids for item in items])
        return Batch(ids, lengths, torch.tensor([item.target for item in items]))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        assert isinstance(model, Classifier)
        loss, logits = model.loss(*batch)
        logits = logits.detach()
        nats = cross_entropy(logits, batch.targets, reduction="sum")
        found: dict[str, Metric] = {
            "nll": Ratio("nll", nats.double(), len(batch.targets)),
            "confusion": Confusion.of(logits, batch.targets, self.labels.names),
        }
        if not model.training:
            right = logits.argmax(1) == batch.targets
            scores = {"accuracy": ("ratio", "right", "texts")}
            found["outcomes"] = Outcomes.of(scores, right=right, texts=torch.ones(len(right)))
        return loss, found

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return model(batch.ids, batch.lengths), batch.targets

    def predict(self, model: nn.Module, inputs: Sequence[SentimentInput]) -> list[SentimentOutput]:
        reads = self.read(inputs)
        lengths = [len(one.ids) for one in reads]
        order = sorted(range(len(reads)), key=lambda index: lengths[index])
        outputs: dict[int, SentimentOutput] = {}
        for indices in cut_by_tokens(order, lengths, PREDICT_TOKENS, max_rows=256):
            outputs |= zip(indices, self.answer(model, [reads[index] for index in indices]), strict=True)
        return [outputs[index] for index in range(len(reads))]

    def running(self, model: nn.Module) -> Passes[Read]:
        return Passes(self, model)

    def effort(self, given: SentimentInput) -> int:
        words = 1 + len(given.text) // 5
        return EXPLAINED * words if given.explain else words

    def read(self, inputs: Sequence[SentimentInput]) -> list[Read]:
        """Texts as ids.

        Raises:
            InputError: for texts that are empty.
        """
        rows = self._rows([one.text for one in inputs])
        offsets = (self.tokenizer.encode(one.text).offsets if one.explain else [] for one in inputs)
        return [Read(*read) for read in zip(inputs, rows, offsets, strict=True)]

    def tokens(self, read: Read) -> int:
        """How long a text is."""
        return len(read.ids)

    def apart(self, read: Read) -> bool:
        """Whether a text is to be explained, which takes a backward pass for it alone."""
        return read.given.explain

    def answer(self, model: nn.Module, reads: Sequence[Read]) -> list[SentimentOutput]:
        """The answers to texts, in one forward pass, and a backward pass for each that is to be explained."""
        assert isinstance(model, Classifier)
        device = model.embedding.weight.device
        with torch.inference_mode():
            ids, sizes = pad([one.ids for one in reads])
            even = all(len(one.ids) == ids.shape[1] for one in reads)
            logits = model(ids.to(device), None if even else sizes.to(device)).cpu()
            # The label is that of the logits, which no temperature makes equal.
            labels = logits.argmax(1).tolist()
            probabilities = (logits / (self.temperature or 1.0)).softmax(1).tolist()
        return [
            SentimentOutput(
                label=self.labels.names[best],
                score=chances[best],
                scores=dict(zip(self.labels.names, chances, strict=True)),
                tokens=self._explain(model, one, best) if one.given.explain else None,
            )
            for one, chances, best in zip(reads, probabilities, labels, strict=True)
        ]

    def describe(self) -> str:
        return f"Chooses one of {len(self.labels)} labels for a text: {', '.join(self.labels.names)}."

    def as_input(self, example: LabelledText) -> SentimentInput:
        return SentimentInput(text=example.text)

    def read_examples(self, path: Path, **columns: Any) -> list[LabelledText]:
        return read_labelled(path, **columns)

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory / "tokenizer.json")
        (directory / "labels.json").write_text(
            json.dumps(self.labels.names, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        save_temperature(directory, self.temperature)

    def restore(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.load(directory / "tokenizer.json")
        self.temperature = load_temperature(directory)
        path = directory / "labels.json"
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: not a readable list of labels: {error}") from None
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise BundleError(f"{path}: a list of two or more label names fits, not {str(names)[:80]}")
        try:
            self.labels = Vocabulary(names)
        except DataError as error:
            raise BundleError(f"{path}: {error}") from None

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer.ids(texts)
        empty = [index for index, text in enumerate(texts) if not rows[index] or text.isspace()]
        if empty:
            raise InputError.of(dict.fromkeys(empty, "the text is empty: it holds no word, digit or mark"))
        if self.max_tokens is None:
            return rows
        cut = [len(row) - self.max_tokens for row in rows if len(row) > self.max_tokens]
        if cut:
            log.warning(
                "%d of %d text(s) are longer than max_tokens=%d; %d token(s) at their ends are not read",
                len(cut), len(rows), self.max_tokens, sum(cut),
            )  # fmt: skip
        return [row[: self.max_tokens] for row in rows]

    def _explain(self, model: Classifier, read: Read, label: int) -> list[TokenWeight]:
        """Gradient times input of the label's log-odds against the other labels (Simonyan et al. 2014)."""
        ids, lengths = pad([read.ids])
        device = model.embedding.weight.device
        with torch.enable_grad():
            ids = ids.to(device)
            vectors = model.embed(ids).detach().requires_grad_()
            logits = model.head.logits(model.features(vectors, ids, lengths.to(device)))[0] / (self.temperature or 1.0)
            others = torch.cat([logits[:label], logits[label + 1 :]])
            (gradient,) = torch.autograd.grad(logits[label] - others.logsumexp(0), vectors)
        weights = (gradient * vectors).sum(-1)[0].tolist()
        shown = clean(read.given.text)
        return [
            TokenWeight(text=shown[start:end], start=start, end=end, weight=weight)
            for (start, end), weight in zip(read.offsets, weights, strict=False)  # what was cut has no weight
        ]
