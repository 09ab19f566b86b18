"""One answer a step, or one at the end: sequences of symbols or of numbers, and how long a network remembers.

B batch, T time, I channels, C classes, O values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from seqapp.calibration import load_temperature, save_temperature
from seqapp.data.batching import cut_by_tokens
from seqapp.data.memory import Rows
from seqapp.data.steps import Step, Steps, Symbol, as_step, read_steps
from seqapp.errors import BundleError, ConfigError, DataError
from seqapp.metrics import Metric, Ratio
from seqapp.models.in_step import InStep, Kind
from seqapp.nn.recurrent import Carry, NotFinite
from seqapp.outcomes import Outcomes
from seqapp.registry import Positive
from seqapp.tasks.base import TASKS, InputError, Task

PREDICT_STEPS = 16_384
"""Padded steps in one forward pass of :meth:`Memory.predict`."""

_SHOWN = 20


def _checked(value: Any) -> Any:
    # The four types of a step would each complain; a person wants one complaint.
    try:
        as_step(value)
    except ValueError as error:
        raise PydanticCustomError("step", "{problem}", {"problem": str(error)}) from None
    return value


class MemoryInput(BaseModel):
    """A sequence to answer."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[
        Annotated[StrictInt | StrictFloat | StrictStr | list[StrictInt | StrictFloat], BeforeValidator(_checked)]
    ] = Field(
        description="what is read at each step: a symbol (text or whole number), or the numbers of all channels "
        "(a bare number where there is one channel)",
        examples=[[0, 1, 1, 0]],
    )


class MemoryOutput(BaseModel):
    """What the model answers, at every step or at the end."""

    at: Literal["every step", "end"] = Field(description="whether there is an answer a step, or one at the end")
    outputs: list[StrictInt | StrictStr | list[float]] = Field(
        description="the likeliest symbol, or the value of every channel; an answer each"
    )
    probabilities: list[float] | None = Field(
        default=None, description="probability of each symbol answered; null where numbers are"
    )


class Item(NamedTuple):
    """One encoded sequence: inputs (T,) ids or (T, I), targets (T,) ids or (T, O), asked (T,)."""

    inputs: Tensor
    targets: Tensor
    asked: Tensor


class Batch(NamedTuple):
    """Right-padded sequences, or a piece of them.

    Args:
        inputs: ids (B, T) or values (B, T, I).
        lengths: (B,).
        targets: ids (B, T) or values (B, T, O); what stands where nothing is asked or trained means nothing.
        asked: (B, T), True where an answer counts.
        trained: (B, T), True where the loss looks.
        fed: (B, T), True where an input is the answer to the step before.
        answers: how many answers of the whole batch are trained, by which the loss of each piece is divided.
        open_loop: whether a right answer stands at every step.
        fresh: whether this is the first piece of its rows.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    asked: Tensor
    trained: Tensor
    fed: Tensor
    answers: int
    open_loop: bool
    fresh: bool = True


class _Fitted(BaseModel):
    """What ``memory.json`` holds; lists of symbols, or None and numbers of channels and values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    symbols: list[StrictInt | StrictStr] | None = None
    channels: int = Field(default=0, ge=0)
    classes: list[StrictInt | StrictStr] | None = None
    variances: list[float] = []
    at_end: bool = False


@TASKS.register("memory")
class Memory(Task[Steps, Item]):
    """One answer a step of a sequence, or one at its end: symbols or numbers in, symbols or numbers out.

    Weights are chosen by the validation nll where symbols are answered, by the mean squared error where numbers are:
    "solved" stays at 0 until late and could not tell the epochs before apart. With `loss_at: end` the scores count
    fewer answers than they do otherwise, so they have names of their own ("nll_end") and are compared with none else.

    Args:
        loss_at: where training looks. asked: wherever the data asks; end: only at the last step, and nothing else is
            answered; every: at every step, where the next answer due is the target, though only those that the data
            asks for count (as in phoneme recognition, where what is said before the end is ignored).
        next_symbol: inputs go on with the right answer: what is asked at a step is the next input. Symbols in and out
            then share one list, and the model's teacher_forcing applies.
        tolerance: largest error of a number that counts as solved (Hochreiter & Schmidhuber 1997: 0.04); null leaves
            out the score.
    """

    Input: ClassVar[type[BaseModel]] = MemoryInput
    Output: ClassVar[type[BaseModel]] = MemoryOutput
    example_type = Steps
    model_kind = "in_step"
    selection = ("nll", "min")
    unit = "sequences"
    file_options = ("inputs", "targets", "encoding")
    titles: Mapping[str, str] = {
        "nll": "nll (nats per answer)",
        "accuracy": "right answers",
        "solved": "sequences all right",
        "mse": "mean squared error",
        "relative_mse": "mse / variance",
        "nll_end": "nll at the end (nats per answer)",
        "accuracy_end": "right at the end",
        "solved_end": "sequences right at the end",
        "mse_end": "mean squared error at the end",
        "relative_mse_end": "mse / variance at the end",
    }
    shares = ("accuracy", "solved", "accuracy_end", "solved_end")
    limits = (
        "It was trained on sequences of the lengths its data holds; whether it goes on to longer ones is a question "
        "of its own.\nWhere training never asks for an answer, what it answers means nothing."
    )
    carries = True
    weighs_whole = True

    def __init__(
        self,
        *,
        loss_at: Literal["asked", "end", "every"] = "asked",
        next_symbol: bool = False,
        tolerance: Positive | None = 0.04,
    ) -> None:
        self.loss_at, self.next_symbol, self.tolerance = loss_at, next_symbol, tolerance
        self._set(_Fitted())

    @property
    def reads(self) -> Kind:
        """What a row is made of."""
        return "numbers" if self.fitted.symbols is None else "symbols"

    @property
    def answers(self) -> Kind:
        """What is answered."""
        return "numbers" if self.fitted.classes is None else "symbols"

    @property
    def calibrates(self) -> bool:  # type: ignore[override]
        """Whether answers are symbols, with a probability each."""
        return self.answers == "symbols"

    def prepare(self, examples: Sequence[Steps]) -> None:
        """Find symbols, channels and variances, and whether anything but the end is ever asked.

        Raises:
            DataError: if the examples are no sequences, mix symbols and numbers, or are not what `next_symbol` says.
        """
        inputs = [step for example in examples for step in example.inputs]
        targets = [step for example in examples for step in example.targets if step is not None]
        if not inputs or not targets:
            raise DataError(f"{len(examples)} training example(s) ask for no answer; sequences with targets fit")
        fitted = _Fitted(at_end=self.loss_at == "end" or all(set(e.targets[:-1]) <= {None} for e in examples))
        fitted.symbols, fitted.channels = _alphabet(inputs, "inputs")
        fitted.classes, values = _alphabet(targets, "targets")
        if self.next_symbol:
            if fitted.symbols is None or fitted.classes is None:
                raise DataError("next_symbol needs symbols in and out, not numbers; false fits")
            fitted.symbols = fitted.classes = _ordered({*fitted.symbols, *fitted.classes})
        if fitted.classes is None:
            found = _vectors(targets, values).double().var(0, correction=0)
            fitted.variances = torch.where(found > 0, found, torch.ones_like(found)).tolist()
        self._set(fitted)
        for example in examples:
            self._check_next(example)

    def sizes(self) -> dict[str, int]:
        fitted = self.fitted
        return {
            "vocabulary_size": fitted.channels if fitted.symbols is None else len(fitted.symbols),
            "classes": len(fitted.variances) if fitted.classes is None else len(fitted.classes),
        }

    def build_model(self, spec: Mapping[str, Any]) -> nn.Module:
        model = super().build_model(spec)
        assert isinstance(model, InStep)
        for option, came, fits in (("reads", model.reads, self.reads), ("answers", model.answers, self.answers)):
            if came != fits:
                raise ConfigError(f"model.{option}: {came}, but the data holds {fits}")
        if self.next_symbol and not model.causal:
            raise ConfigError("model.encoder: with task.next_symbol an encoder that reads both ways sees the answers; "
                              "a causal one fits")  # fmt: skip
        if model.teaching is not None and not self.next_symbol and not model.opens_loop:
            raise ConfigError("model.teacher_forcing: no answer is read again; null fits, or task.next_symbol: true, "
                              "or a narx with an output for each value")  # fmt: skip
        return model

    def encode(self, examples: Sequence[Steps]) -> list[Item]:
        inputs = self._encode_inputs([example.inputs for example in examples])
        items = []
        for index, (row, example) in enumerate(zip(inputs, examples, strict=True)):
            if len(example.targets) != len(example.inputs):
                raise InputError(index, f"{len(example.inputs)} inputs and {len(example.targets)} targets; as many fit")
            if set(example.targets) <= {None}:
                raise InputError(index, "no answer is asked; a target that is not null fits")
            if self.loss_at == "end" and example.targets[-1] is None:
                raise InputError(index, "no answer is asked at the last step, which loss_at: end looks at")
            self._check_next(example)
            items.append(Item(row, *self._encode_targets(example.targets)))
        return items

    def length(self, item: Item) -> int:
        return len(item.inputs)

    def collate(self, items: Sequence[Item]) -> Batch:
        lengths = torch.tensor([len(item.inputs) for item in items])
        padded = [pad_sequence([item[part] for item in items], batch_first=True) for part in range(3)]
        return self._batch(padded[0], lengths, padded[1], padded[2])

    def batch(self, rows: Rows) -> Batch:
        """A batch of sequences drawn as tensors, past :meth:`encode`.

        Args:
            rows: of a kind whose symbols, all of them, were among those :meth:`prepare` saw.
        """
        return self._batch(rows.inputs, rows.lengths, rows.targets, rows.asked)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        loss, scores, outputs, _ = self._run(model, batch, None)
        right = self._right(outputs, batch)
        if right is not None:
            solved = (right | ~batch.asked).all(1)
            scores |= self._named(solved=(solved.sum(dtype=torch.float64), len(solved)))
        if not model.training:
            scores["outcomes"] = self._outcomes(outputs, batch)
        return loss, scores

    def chunks(self, batch: Batch, steps: int) -> Iterator[Batch]:
        """``batch`` cut along time.

        LAW: the losses of the pieces add up to the loss of the whole, and so do their metrics; "solved", which is of
        whole sequences, is not among them.
        """
        order = batch.lengths.argsort(descending=True, stable=True)
        lengths = batch.lengths[order]
        for start in range(0, int(lengths[0]), steps):
            rows = int((lengths > start).sum())
            left = (lengths[:rows] - start).clamp(max=steps)
            place = order[:rows], slice(start, start + int(left[0]))
            inputs, targets, asked, trained, fed = (
                whole[place[0]][:, place[1]]
                for whole in (batch.inputs, batch.targets, batch.asked, batch.trained, batch.fed)
            )
            yield Batch(inputs, left, targets, asked, trained, fed, batch.answers, batch.open_loop, start == 0)

    def weight(self, batch: Batch) -> float:
        return batch.answers

    def learns(self, batch: Batch) -> bool:
        return bool(batch.trained.any())

    def loss_carried(
        self, model: nn.Module, batch: Batch, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Carry]:
        assert isinstance(model, InStep)
        self.check_carries(model)
        loss, scores, _, carry = self._run(model, batch, carry)
        return loss, scores, carry

    def check_carries(self, model: nn.Module) -> None:
        """Refuse a model whose rows cannot be cut, before any run is opened for it.

        Raises:
            ConfigError: if its encoder reads both ways.
        """
        assert isinstance(model, InStep)
        if not model.causal:
            raise ConfigError("train.truncate: an encoder that reads both ways carries no state; 0, or a causal "
                              "encoder, would fit")  # fmt: skip

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs, _ = model(batch.inputs, batch.lengths)
        return outputs[batch.asked], batch.targets[batch.asked]

    def predict(self, model: nn.Module, inputs: Sequence[MemoryInput]) -> list[MemoryOutput]:
        assert isinstance(model, InStep)
        rows = self._encode_inputs([given.inputs for given in inputs])
        lengths = [len(row) for row in rows]
        order = sorted(range(len(inputs)), key=lambda index: lengths[index])
        outputs: dict[int, MemoryOutput] = {}
        with torch.inference_mode():
            for indices in cut_by_tokens(order, lengths, PREDICT_STEPS, max_rows=256):
                answers = zip(indices, self._answer(model, [rows[index] for index in indices]), strict=True)
                outputs.update({index: self._output(answer) for index, answer in answers if answer is not None})
        if len(outputs) < len(inputs):
            problem = "the network's numbers grow without bound on this sequence; smaller numbers or fewer steps fit"
            raise InputError.of({index: problem for index in range(len(inputs)) if index not in outputs})
        return [outputs[index] for index in range(len(inputs))]

    def _answer(self, model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor | None]:
        """Logits or values (T, C) of each row, of its end alone where only that is answered; None if not finite."""
        device = next(model.parameters()).device
        sizes = torch.tensor([len(row) for row in rows])
        try:
            outputs, _ = model(pad_sequence(list(rows), batch_first=True).to(device), sizes.to(device))
        except NotFinite:
            return [None] if len(rows) == 1 else [self._answer(model, [row])[0] for row in rows]
        parts = (row[size - 1 : size] if self.fitted.at_end else row[:size]
                 for row, size in zip(outputs.float().cpu(), sizes.tolist(), strict=True))  # fmt: skip
        return [part if bool(part.isfinite().all()) else None for part in parts]

    def describe(self) -> str:
        where = "the end" if self.fitted.at_end else "every step"
        size = self.sizes()["vocabulary_size"]
        reads = f"{size} symbols" if self.reads == "symbols" else f"{size} number(s) a step"
        gives = f"{len(self.fitted.variances)} number(s)"
        if self.fitted.classes is not None:
            gives = f"one of {len(self.fitted.classes)} symbols ({_listed(self.fitted.classes)})"
        return f"Reads a sequence of {reads} and answers {gives} at {where}."

    def as_input(self, example: Steps) -> MemoryInput:
        return MemoryInput(inputs=[list(step) if isinstance(step, tuple) else step for step in example.inputs])

    def read_examples(self, path: Path, **columns: Any) -> list[Steps]:
        examples = []
        for line, example in read_steps(path, **columns):
            try:
                self.encode([example])
            except InputError as error:
                raise DataError(f"{path}:{line}: {error.problem}") from None
            except DataError as error:
                raise DataError(f"{path}:{line}: {error}") from None
            examples.append(example)
        return examples

    def save(self, directory: Path) -> None:
        (directory / "memory.json").write_text(self.fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
        save_temperature(directory, self.temperature)

    def restore(self, directory: Path) -> None:
        path = directory / "memory.json"
        try:
            fitted = _Fitted.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BundleError(f"{path}: not what the task memory writes: {reason}") from None
        for names in (fitted.symbols, fitted.classes):
            if names is not None and (not names or len(set(names)) < len(names)):
                raise BundleError(f"{path}: a list of different symbols fits, not {str(names)[:80]}")
        if (fitted.symbols is None) != (fitted.channels > 0) or (fitted.classes is None) != bool(fitted.variances):
            raise BundleError(f"{path}: symbols or channels, and classes or variances, one of each pair, fit")
        if not all(value > 0 for value in fitted.variances):
            raise BundleError(f"{path}: variances above 0 fit, not {str(fitted.variances)[:80]}")
        self._set(fitted)
        self.temperature = load_temperature(directory)

    def _set(self, fitted: _Fitted) -> None:
        self.fitted = fitted
        self.selection = (self._name("mse" if self.answers == "numbers" else "nll"), "min")
        self._symbols = {name: index for index, name in enumerate(fitted.symbols or [])}
        self._classes = {name: index for index, name in enumerate(fitted.classes or [])}

    def _run(
        self, model: nn.Module, batch: Batch, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Tensor, Carry]:
        assert isinstance(model, InStep)
        if model.training:
            targets = batch.targets if batch.open_loop and self.answers == "numbers" else None
            outputs, carry = model.teach(batch.inputs, batch.lengths, carry, fed=batch.fed, targets=targets)
        else:
            outputs, carry = model(batch.inputs, batch.lengths, carry)
        loss = self._error(outputs[batch.trained], batch.targets[batch.trained]).sum() / batch.answers
        with torch.no_grad():
            return loss, self._scores(outputs.detach(), batch), outputs.detach(), carry

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each of N answers (N, C) costs: nats, or the mean over its values of the squared error."""
        if self.answers == "numbers":
            return (outputs.float() - targets).square().mean(-1)
        return cross_entropy(outputs.float(), targets, reduction="none")

    def _scores(self, outputs: Tensor, batch: Batch) -> dict[str, Metric]:
        answered, targets = outputs[batch.asked], batch.targets[batch.asked]
        count = len(targets)
        costs = self._error(answered, targets).double().sum()
        if self.answers == "symbols":
            right = (answered.argmax(-1) == targets).sum(dtype=torch.float64)
            return self._named(nll=(costs, count), accuracy=(right, count))
        variances = torch.tensor(self.fitted.variances, dtype=torch.float64, device=targets.device)
        relative = ((answered.double() - targets).square() / variances).mean(-1).sum()
        return self._named(mse=(costs, count), relative_mse=(relative, count))

    def _outcomes(self, outputs: Tensor, batch: Batch) -> Outcomes:
        """What each sequence adds to the score that chooses, and to one that says more: right answers, or variance."""
        with torch.no_grad():
            answered, targets = outputs[batch.asked], batch.targets[batch.asked]
            costs = self._error(answered, targets).double()
            more = "accuracy" if self.answers == "symbols" else "relative_mse"
            if self.answers == "symbols":
                further = (answered.argmax(-1) == targets).double()
            else:
                variances = torch.tensor(self.fitted.variances, dtype=torch.float64, device=targets.device)
                further = ((answered.double() - targets).square() / variances).mean(-1)
        rows = batch.asked.nonzero()[:, 0].cpu().numpy()
        costs_of, further_of = (numpy.bincount(rows, each.cpu().numpy(), len(batch.asked)) for each in (costs, further))
        first = self.selection[0]
        scores = {first: ("ratio", "cost", "answers"), self._name(more): ("ratio", more, "answers")}
        return Outcomes.of(scores, cost=costs_of, answers=batch.asked.sum(1), **{more: further_of})

    def _named(self, **sums: tuple[Tensor, int]) -> dict[str, Metric]:
        return {self._name(score): Ratio(self._name(score), *sum_and_count) for score, sum_and_count in sums.items()}

    def _name(self, score: str) -> str:
        """What ``score`` is called: of all that is asked, or of the last answer alone."""
        return f"{score}_end" if self.loss_at == "end" else score

    def _right(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        if self.answers == "symbols":
            return outputs.argmax(-1) == batch.targets
        if self.tolerance is None:
            return None
        return ((outputs - batch.targets).abs() < self.tolerance).all(-1)

    def _batch(self, inputs: Tensor, lengths: Tensor, targets: Tensor, asked: Tensor) -> Batch:
        time = torch.arange(asked.shape[1])
        inside = time < lengths[:, None]
        fed = torch.zeros_like(asked)
        if self.next_symbol:
            fed[:, 1:] = asked[:, :-1] & inside[:, 1:]
        trained = asked
        if self.loss_at == "end":
            trained = asked = asked & (time == lengths[:, None] - 1)
        elif self.loss_at == "every":
            # The place of the next answer at or after each step, len(time) where there is none.
            due = torch.where(asked, time, len(time)).flip(1).cummin(1).values.flip(1)
            trained = due < len(time)
            index = due.clamp(max=len(time) - 1)
            targets = targets.gather(1, index if targets.dim() == 2 else index[..., None].expand_as(targets))
        open_loop = bool((asked == inside).all())
        return Batch(inputs, lengths, targets, asked, trained, fed, int(trained.sum()), open_loop)

    def _encode_inputs(self, rows: Sequence[Sequence[Any]]) -> list[Tensor]:
        encoded = []
        problems: dict[int, str] = {}
        for index, row in enumerate(rows):
            try:
                if not row:
                    raise ValueError("the sequence is empty; one step or more fits")
                if self.reads == "symbols":
                    encoded.append(torch.tensor([_id(step, self._symbols, "symbol") for step in row]))
                else:
                    encoded.append(_vectors(row, self.fitted.channels))
            except ValueError as error:
                problems[index] = str(error)
        if problems:
            raise InputError.of(problems)
        return encoded

    def _encode_targets(self, targets: Sequence[Step | None]) -> tuple[Tensor, Tensor]:
        asked = torch.tensor([step is not None for step in targets])
        try:
            if self.answers == "symbols":
                ids = [0 if step is None else _id(step, self._classes, "answer") for step in targets]
                return torch.tensor(ids), asked
            width = len(self.fitted.variances)
            return _vectors([(0.0,) * width if step is None else step for step in targets], width), asked
        except ValueError as error:
            raise DataError(f"targets: {error}") from None

    def _check_next(self, example: Steps) -> None:
        if not self.next_symbol:
            return
        for place, (answer, read) in enumerate(zip(example.targets[:-1], example.inputs[1:], strict=True)):
            if answer is not None and answer != read:
                what = f"step {place + 1} asks for {answer!r} but step {place + 2} reads {read!r}"
                raise DataError(f"next_symbol: {what}; the same symbol fits, or null, or next_symbol: false")

    def _output(self, answers: Tensor) -> MemoryOutput:
        at: Literal["every step", "end"] = "end" if self.fitted.at_end else "every step"
        if self.fitted.classes is None:
            return MemoryOutput(at=at, outputs=answers.tolist())
        # The symbol is that of the logits, which no temperature makes equal.
        ids = answers.argmax(-1)
        chances = (answers / (self.temperature or 1.0)).softmax(-1).amax(-1)
        names: list[Any] = [self.fitted.classes[index] for index in ids.tolist()]
        return MemoryOutput(at=at, outputs=names, probabilities=chances.tolist())


def _alphabet(steps: Sequence[Step], what: str) -> tuple[list[Symbol] | None, int]:
    """All symbols in order, or None and the width of the rows of numbers."""
    numbers = [step for step in steps if isinstance(step, tuple)]
    if not numbers:
        return _ordered({step for step in steps if not isinstance(step, tuple)}), 0
    width = len(numbers[0])
    try:
        _vectors(steps, width)
    except ValueError as error:
        raise DataError(f"{what}: {error}") from None
    return None, width


def _ordered(symbols: set[Symbol]) -> list[Symbol]:
    return sorted(symbols, key=lambda name: (isinstance(name, str), name))


def _id(step: Any, known: Mapping[Symbol, int], what: str) -> int:
    if isinstance(step, bool | float | list | tuple) or step not in known:
        raise ValueError(f"no {what} is {_short(step)}; known from training: {_listed(list(known))}")
    return known[step]


def _vectors(steps: Sequence[Any], width: int) -> Tensor:
    """(T, width) float32.

    Raises:
        ValueError: as :func:`_numbers`.
    """
    if all(isinstance(step, tuple) and len(step) == width for step in steps):
        made = torch.tensor(steps, dtype=torch.float32)
        if bool(made.isfinite().all()):
            return made
    return torch.tensor([_numbers(step, width) for step in steps], dtype=torch.float32)


def _numbers(step: Any, width: int) -> list[float]:
    """The numbers of one step; a bare number stands for a row of one.

    Raises:
        ValueError: if it is a text, of another width, or holds a number that is not finite.
    """
    # An int may be a symbol, but a task of numbers knows that it is none.
    row = as_step([step] if isinstance(step, int) and not isinstance(step, bool) else step)
    if not isinstance(row, tuple):
        raise ValueError(f"a step is {_short(row)}; {width} number(s) fit")
    if len(row) != width:
        raise ValueError(f"a step has {len(row)} number(s): {_short(list(row))}; {width} fit")
    if not all(abs(number) <= torch.finfo(torch.float32).max for number in row):  # False for NaN
        raise ValueError(f"a step is {_short(list(row))}; finite numbers fit")
    return list(row)


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _listed(names: Sequence[Symbol]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
