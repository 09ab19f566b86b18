"""A task that is no text: running sums of numbers, in step, by squared error; its network has a ``progress``."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from seqapp.data.rows import read_rows
from seqapp.data.splits import Splits
from seqapp.metrics import Metric, Ratio
from seqapp.nn.recurrent import RECURRENT, Carry, valid_mask
from seqapp.registry import Kind, Size, Spec
from seqapp.tasks import InputError, Task

CONFIG = """
task: {kind: toy}
model: {kind: toy, layer: {kind: elman, hidden_size: 5}}
data: {kind: toy, count: 50}
train: {epochs: 2, batch_rows: 8, learning_rate: 1e-2, schedule: constant, warmup: 0}
"""


@dataclass(frozen=True)
class Series:
    """Some numbers; what is asked is the sum so far, at each."""

    values: tuple[float, ...]


class ToyInput(BaseModel):
    """Numbers to add up."""

    model_config = ConfigDict(extra="forbid")

    values: list[float]
    negate: bool = False


class ToyOutput(BaseModel):
    """The sum up to each of the numbers."""

    sums: list[float]


class Batch(NamedTuple):
    """values (B, T), targets (B, T), lengths (B,)."""

    values: Tensor
    targets: Tensor
    lengths: Tensor
    fresh: bool = True


class ToyModel(nn.Module):
    """x (B, T) -> y (B, T)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.read_out = layer, nn.Linear(layer.output_size, 1)
        self.progress = 0.0

    def forward(self, x: Tensor, lengths: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        y, after = self.layer(x[..., None], lengths, carry)
        return self.read_out(y)[..., 0], after


class Toy(Task[Series, Series]):
    """Running sums."""

    Input, Output = ToyInput, ToyOutput
    example_type = Series
    model_kind = "toy"
    unit = "series"
    titles = {"mse": "squared error"}  # noqa: RUF012
    limits = "It adds up small numbers only."
    carries = True

    def __init__(self) -> None:
        self.selection = ("mse", "min")

    def prepare(self, examples: Sequence[Series]) -> None:
        pass

    def encode(self, examples: Sequence[Series]) -> list[Series]:
        empty = [index for index, example in enumerate(examples) if not example.values]
        if empty:
            raise InputError.of(dict.fromkeys(empty, "no numbers"))
        return list(examples)

    def length(self, item: Series) -> int:
        return len(item.values)

    def collate(self, items: Sequence[Series]) -> Batch:
        rows = [torch.tensor(item.values) for item in items]
        values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Batch(values, values.cumsum(1), torch.tensor([len(row) for row in rows]))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        loss, found, _ = self.loss_carried(model, batch, None)
        return loss, found

    def chunks(self, batch: Batch, steps: int) -> Iterator[Batch]:
        order = batch.lengths.argsort(descending=True, stable=True)
        values, targets, lengths = (part[order] for part in batch[:3])
        for start in range(0, int(lengths[0]), steps):
            rows = int((lengths > start).sum())
            piece = slice(start, start + steps)
            left = (lengths[:rows] - start).clamp(max=steps)
            yield Batch(values[:rows, piece], targets[:rows, piece], left, start == 0)

    def loss_carried(
        self, model: nn.Module, batch: Batch, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Carry]:
        size = int(batch.lengths.max())
        y, after = model(batch.values[:, :size], batch.lengths, carry)
        mask = valid_mask(batch.lengths, size)
        errors = (y - batch.targets[:, :size])[mask].square()
        near = torch.where(mask, (y - batch.targets[:, :size]).abs(), 0).amax(1) < 1
        scores = {
            "mse": Ratio("mse", errors.detach().double().sum(), len(errors)),
            "solved": Ratio("solved", near.double().sum(), len(near)),
        }
        return errors.mean(), scores, after

    def sizes(self) -> dict[str, int]:
        return {}

    def predict(self, model: nn.Module, inputs: Sequence[ToyInput]) -> list[ToyOutput]:
        outputs = []
        for item, given in zip(self.encode([Series(tuple(given.values)) for given in inputs]), inputs, strict=True):
            batch = self.collate([item])
            with torch.inference_mode():
                sums = model(batch.values, batch.lengths)[0][0]
            outputs.append(ToyOutput(sums=(-sums if given.negate else sums).tolist()))
        return outputs

    def describe(self) -> str:
        return "Adds up numbers."

    def as_input(self, example: Series) -> ToyInput:
        return ToyInput(values=list(example.values))

    def read_examples(self, path: Path, *, encoding: str = "utf-8") -> list[Series]:
        return [Series(tuple(row.values["values"])) for row in read_rows(path, encoding=encoding)]

    def save(self, directory: Path) -> None:
        pass

    def restore(self, directory: Path) -> None:
        pass


def build_model(vocabulary_size: int = 0, classes: int = 0, *, layer: Annotated[Spec, RECURRENT]) -> ToyModel:
    """The network of the toy.

    Args:
        layer: the recurrent layer.
    """
    return ToyModel(RECURRENT.build(layer, input_size=1))


def source(*, count: Size = 50) -> Splits[Series]:
    """Rows of 3 to 11 numbers.

    Args:
        count: of the training rows.
    """
    chance = random.Random(0)

    def rows(number: int) -> list[Series]:
        return [Series(tuple(chance.uniform(-1, 1) for _ in range(chance.randint(3, 11)))) for _ in range(number)]

    return Splits("toy sums", rows(count), rows(20), rows(20))


KINDS = {"tasks": Kind("toy", Toy, ()), "models": Kind("toy", build_model, ("vocabulary_size", "classes")),
         "sources": Kind("toy", source, ())}  # fmt: skip


def losses(model: nn.Module, task: Toy, pieces: Sequence[Any]) -> list[Tensor]:
    """The loss of each piece, the carry handed on as it is: the readable truth beside what the learner does."""
    found, carry = [], None
    for piece in pieces:
        if carry is not None:
            carry = carry[: len(piece.lengths)]
        loss, _, carry = task.loss_carried(model, piece, carry)
        found.append(loss)
    return found
