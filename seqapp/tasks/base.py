"""What a task is: wire types, how an example becomes numbers, the loss, and how an answer is made.

Training and serving pass through the same :meth:`Task.encode`, so a model never meets a text prepared otherwise.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from seqapp.data.batching import Length
from seqapp.data.streams import Stream
from seqapp.errors import ConfigError, SeqappError
from seqapp.metrics import Metric
from seqapp.models.registry import MODELS
from seqapp.nn.recurrent import Carry
from seqapp.registry import Registry

if TYPE_CHECKING:
    from seqapp.tasks.running import Running

E = TypeVar("E")
"""One example of a data source."""
I = TypeVar("I")  # noqa: E741
"""One encoded example."""


class InputError(SeqappError):
    """An input of a request or a file cannot be answered; ``index`` tells which.

    Where several cannot, ``problems`` tells what is wrong with each, and ``index`` and ``problem`` are of the first.

    Args:
        index: of the input, from 0.
        problem: what is wrong with it, and what would fit.
    """

    def __init__(self, index: int, problem: str) -> None:
        self.index = index
        self.problem = problem
        self.problems: Mapping[int, str] = {index: problem}
        super().__init__(f"input {index}: {problem}")

    @classmethod
    def of(cls, problems: Mapping[int, str]) -> InputError:
        """One error for every bad input of a call.

        Args:
            problems: index -> what is wrong; at least one.
        """
        first = min(problems)
        error = cls(first, problems[first])
        error.problems = dict(sorted(problems.items()))
        return error


class Matrix(NamedTuple):
    """Numbers in [0, 1] with names, to be drawn.

    Args:
        values: (R, C).
        rows: R names.
        columns: C names.
        title: of the picture.
    """

    values: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    title: str


class Task(ABC, Generic[E, I]):
    """One kind of problem. LAW: ``predict`` answers each input as if it were alone."""

    Input: ClassVar[type[BaseModel]]
    Output: ClassVar[type[BaseModel]]
    example_type: ClassVar[type]
    """The dataclass that a fitting data source yields."""
    model_kind: ClassVar[str]
    """The kind of model this task trains."""
    selection: tuple[str, str]
    """The validation score that chooses between weights, and whether "max" or "min" is better."""
    unit: str = "examples"
    """What examples are called, in the plural."""
    titles: Mapping[str, str] = {"nll": "nll (nats)"}
    """Score -> what a table or a picture calls it, with its unit, where that is not its name."""
    shares: Sequence[str] = ("accuracy", "solved")
    """The scores that are shares of something counted, shown in percent."""
    file_options: Sequence[str] = ("encoding",)
    """The keywords that :meth:`read_examples` takes."""
    line_field: str | None = None
    """The field of ``Input`` that a bare line of text stands for; None where a line is no input."""
    limits: str = "It answers an input unlike those it was trained on with the same confidence."
    """What a person must not expect of the answers, for the model card."""
    carries: bool = False
    """Whether :meth:`loss_carried` is there, for truncated back-propagation through time."""
    streams: bool = False
    """Whether :meth:`encode` gives one :class:`seqapp.data.streams.Stream`, which is read on and on in pieces."""
    weighs_whole: bool = False
    """Whether the loss of a piece is divided by the :meth:`weight` of the whole batch, which each piece then has."""
    calibrates: bool = False
    """Whether answers hold probabilities of classes, and :meth:`logits` is there to fit :attr:`temperature`."""
    temperature: float | None = None
    """What logits are divided by before they become the probabilities of an answer; None leaves them as they are."""

    @property
    def metric_definition(self) -> str:
        """What the score that chooses is: on the same data, equal ones mean scores that compare."""
        return self.selection[0]

    def definition_of(self, scores: Mapping[str, Mapping[str, float]]) -> str:
        """:attr:`metric_definition` of scores that were reached, where these show more of what they mean.

        Args:
            scores: split -> name -> value.
        """
        return self.metric_definition

    @abstractmethod
    def prepare(self, examples: Sequence[E]) -> None:
        """Fit tokenizers and vocabularies, once, on training examples."""

    @abstractmethod
    def encode(self, examples: Sequence[E]) -> Sequence[I] | Stream:
        """Examples -> items, one each, in order; or all of them as one stream, where :attr:`streams` is set.

        Raises:
            InputError: for an example that has no content.
        """

    def augment(self, item: I, chance: random.Random) -> I:
        """A training variation of ``item``, such as a random crop; by default the item itself."""
        return item

    def augmented_length(self, item: I) -> Length:
        """How long ``item`` is after :meth:`augment`, or about that."""
        return self.length(item)

    @abstractmethod
    def length(self, item: I) -> Length:
        """Tokens in ``item``, or in its source and its target."""

    @abstractmethod
    def collate(self, items: Sequence[I]) -> Any:
        """A batch: padded rows (B, T, ...), ``lengths`` (B,), targets."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Metric]]:
        """The mean loss of a batch and its metrics.

        In eval mode "outcomes" is one of them, from here or from :meth:`judge`: a :class:`seqapp.outcomes.Outcomes` of
        the score that chooses, a row each row of the batch. Without it runs are compared without a test.
        """

    def weight(self, batch: Any) -> float:
        """What the mean loss of ``batch`` is a mean over; by default its rows.

        LAW: of the parts of a batch, dealt to processes by rows, the sum of weight x loss is that of the whole.
        """
        return len(batch.lengths)

    def chunks(self, batch: Any, steps: int) -> Iterator[Any]:
        """``batch`` cut along time for truncated back-propagation (Williams & Peng 1990).

        LAW: as many pieces as ceil(T / ``steps``) for the longest row T, in order, each with its ``lengths`` within the
        piece; ``fresh`` is True for the first alone. Rows stand longest first and those that have ended are left out,
        so the rows of a piece are the first rows of the piece before.

        Args:
            batch: what :meth:`collate` made.
            steps: most positions in one piece, at least 1.

        Raises:
            ConfigError: if this task carries no state.
        """
        raise self._carries_nothing()

    def check_carries(self, model: nn.Module) -> None:
        """Refuse a model whose rows cannot be cut, before any run is opened for it.

        Raises:
            ConfigError: if its state cannot be carried on.
        """

    def fit_model(self, model: nn.Module, items: Any) -> None:
        """Let an untrained model see what it needs of the training items, such as how frequent tokens are."""

    def begin_epoch(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Let the model see the batches of an epoch before the first of them is learned from."""

    def judge(self, model: nn.Module, batch: Any) -> dict[str, Metric]:
        """Metrics of the answers that the model gives by itself, where the loss does not tell how good they are."""
        return {}

    def logits(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of the N answers that a batch asks for, and the true classes (N,).

        They are those before :attr:`temperature`, in a task that :attr:`calibrates`.
        """
        raise NotImplementedError(f"{type(self).__name__} answers with no probabilities of classes")

    def sample(self, model: nn.Module, items: Any) -> str | None:
        """What the model says, for a person who watches it learn; None where it says nothing.

        Args:
            model: built by this task.
            items: those of the validation split.
        """
        return None

    def matrices(self, model: nn.Module, items: Any) -> dict[str, Matrix]:
        """What the model looks at, by name, for a person who watches it learn; arguments as of :meth:`sample`."""
        return {}

    def learns(self, batch: Any) -> bool:
        """Whether a piece of a batch asks for an answer; one that does not only carries the state on."""
        return True

    def loss_carried(
        self, model: nn.Module, batch: Any, carry: Carry | None
    ) -> tuple[Tensor, dict[str, Metric], Carry]:
        """The mean loss of a piece that :meth:`chunks` made, its metrics, and the carry after it.

        Args:
            model: built by this task.
            batch: a piece of R rows.
            carry: after the piece before, every leaf (R, ...); None starts afresh.

        Raises:
            ConfigError: if this task carries no state.
        """
        raise self._carries_nothing()

    def _carries_nothing(self) -> ConfigError:
        return ConfigError(
            f"train.truncate: {type(self).__name__} reads each row as a whole and carries no state; 0 would fit"
        )

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """What :meth:`prepare` found and a model needs, such as ``vocabulary_size``."""

    def build_model(self, spec: Mapping[str, Any]) -> nn.Module:
        """The model that ``spec`` describes, with the sizes that :meth:`prepare` found.

        Raises:
            ConfigError: if the spec does not fit, or is of a kind this task does not train.
        """
        if spec.get("kind") != self.model_kind:
            raise ConfigError(f"this task trains a model of kind {self.model_kind!r}, not {spec.get('kind')!r}")
        try:
            return MODELS.build(spec, **self.sizes())
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
        """Answer ``inputs`` (of type ``Input``) in order, in batches of similar length.

        Raises:
            InputError: for an input that cannot be answered.
        """

    def running(self, model: nn.Module) -> Running:
        """A batch of requests that come and go, for a server; by default one is answered after the other.

        Args:
            model: built by this task, in eval mode.
        """
        from seqapp.tasks.running import Alone  # which needs what stands in this file

        return Alone(self, model)

    def effort(self, given: Any) -> int:
        """About how many tokens of work an input is, at least 1; quick, for whoever decides what may wait."""
        return 1

    def written(self, said: Any) -> int:
        """How many tokens an answer, or a piece of one, added to a text; 0 where nothing is written."""
        return 0

    @abstractmethod
    def describe(self) -> str:
        """One sentence on what a prepared task answers, for the model card."""

    @abstractmethod
    def as_input(self, example: E) -> BaseModel:
        """The request that asks about ``example``, with an answer that can be checked."""

    def as_request(self, example: E) -> BaseModel:
        """What a person would ask about ``example``, for measuring how long an answer takes."""
        return self.as_input(example)

    @abstractmethod
    def read_examples(self, path: Path, **columns: Any) -> list[E]:
        """Examples with their answers from a user's file.

        Args:
            path: the file.
            columns: some of :attr:`file_options`.

        Raises:
            DataError: naming file and line.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what :meth:`prepare` fitted, in files that hold no code."""

    @abstractmethod
    def restore(self, directory: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: if a file does not fit.
        """


TASKS: Registry[Task[Any, Any]] = Registry("task")
