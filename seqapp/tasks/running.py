"""Requests that one model answers side by side: they join and leave a running batch between its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel
from torch import nn

from seqapp.tasks.base import InputError, Task

MOST_INSIDE = 256
"""Inputs beyond which a running batch takes no more in, if nothing else is said: they would only wait inside."""
STEP_TOKENS = 4096
"""Padded tokens in one forward pass of :class:`Passes`: a small network reads so many in some tens of milliseconds."""
STEP_ROWS = 32
"""Rows in one forward pass of :class:`Passes`: on a CPU more make a row hardly cheaper, and all wait for the last."""
POOL = 4
"""Passes whose inputs wait inside :class:`Passes`, for those of similar length to find each other."""
SLACK = 16
"""Tokens by which lengths may differ in one pass, whatever their ratio."""

R = TypeVar("R")
"""An input as it was read, ready for a forward pass."""


class Said(NamedTuple):
    """What came of a step for one input.

    Args:
        key: of the input.
        value: the answer, a ``task.Output``, or the next piece of one that is streamed; None where a stream ends and
            nothing is left to tell.
        last: whether the input is answered; it has left.
    """

    key: Hashable
    value: Any
    last: bool


class Failed(NamedTuple):
    """An input that could not be answered; it has left.

    Args:
        key: of the input.
        error: why.
    """

    key: Hashable
    error: Exception


class Running(ABC):
    """Inputs of one model that are answered side by side.

    LAW: each is answered as if it were alone, whoever joins and leaves. Of use in one thread at a time.
    """

    one_step: ClassVar[bool] = False
    """Whether one step answers an input from begin to end, so that until then it has only waited."""

    @property
    def full(self) -> bool:
        """Whether one more input would only wait inside; it may join all the same. Those that pause do not count."""
        return len(self) >= MOST_INSIDE

    def pause(self, key: Hashable, *, paused: bool) -> None:
        """Stop the work of a streamed input whose reader is behind, or go on; it stays inside.

        By default nothing happens: the input goes on, and its stream is cut off if its reader stays behind.
        """
        return

    @abstractmethod
    def join(self, key: Hashable, given: BaseModel, *, stream: bool = False) -> None:
        """Take in an input, which the next step computes.

        Args:
            key: by which its answer is told; none inside has it.
            given: a ``task.Input``.
            stream: tell the answer in pieces as it grows, where the task has such.

        Raises:
            InputError: of index 0, if the input cannot be answered.
        """

    @abstractmethod
    def leave(self, key: Hashable) -> None:
        """Forget an input, and stop its work; nothing happens if it is not inside."""

    @abstractmethod
    def step(self) -> list[Said | Failed]:
        """Compute one step, short beside what a person notices; what one input does wrong fails that one alone."""

    @abstractmethod
    def __len__(self) -> int:
        """How many inputs are inside."""


class OnePass(Protocol[R]):
    """A task that answers each input by one forward pass."""

    def effort(self, given: Any) -> int:
        """About how many tokens an input has; quick."""

    def read(self, inputs: Sequence[Any]) -> list[R]:
        """Inputs encoded, in order.

        Raises:
            InputError: for those that cannot be answered.
        """

    def tokens(self, read: R) -> int:
        """How long the row of an input is."""

    def apart(self, read: R) -> bool:
        """Whether an input costs much more than its row in a forward pass, so that it has steps of its own."""

    def answer(self, model: nn.Module, reads: Sequence[R]) -> list[Any]:
        """The ``task.Output`` of each, computed in one forward pass.

        Raises:
            InputError: for those that cannot be answered.
        """


class Passes(Running, Generic[R]):
    """One forward pass a step: the input that has waited longest, with those whose length is nearest to its own.

    A pass is bounded by padded tokens and by rows; a longer single row is a pass of its own. If it fails, its inputs
    are answered one by one in steps to come, so that the guilty fail alone. Inputs that are answered apart, those and
    such as cost a pass of their own anyway, take turns with the passes of the others.

    Args:
        task: reads inputs and answers what it read.
        model: built by the task, in eval mode.
        max_tokens: most padded tokens of a pass.
        max_rows: most rows of a pass.
    """

    one_step = True

    def __init__(
        self, task: OnePass[R], model: nn.Module, *, max_tokens: int = STEP_TOKENS, max_rows: int = STEP_ROWS
    ) -> None:
        self.task, self.model = task, model
        self.max_tokens, self.max_rows = max_tokens, max_rows
        # In order of arrival: not read yet; read; those of them that are answered one by one.
        self._joined: dict[Hashable, Any] = {}
        self._waiting: dict[Hashable, R] = {}
        self._apart: dict[Hashable, R] = {}
        self._was_apart = False
        # Of all inside, at first as estimated.
        self._tokens: dict[Hashable, int] = {}
        self._total = 0

    @property
    def full(self) -> bool:
        """Whether as much waits inside as some passes answer."""
        return self._total >= POOL * self.max_tokens or len(self._tokens) >= POOL * self.max_rows

    def join(self, key: Hashable, given: BaseModel, *, stream: bool = False) -> None:
        """Take in an input; the next step reads all that have joined at once, and tells which cannot be answered.

        Raises:
            ValueError: if pieces are asked for; a class has none.
        """
        if stream:
            raise ValueError("one forward pass gives the whole answer; without stream it fits")
        self._joined[key] = given
        self._count(key, self.task.effort(given))

    def leave(self, key: Hashable) -> None:
        for inside in (self._joined, self._waiting, self._apart):
            inside.pop(key, None)
        self._total -= self._tokens.pop(key, 0)

    def step(self) -> list[Said | Failed]:
        told = self._read()
        batch = self._choose()
        if not batch:
            return told
        try:
            outputs = self.task.answer(self.model, list(batch.values()))
        except InputError as error:
            return told + self._refuse(list(batch), error)
        except Exception as error:
            if len(batch) > 1:
                self._apart |= batch
                for key in batch:
                    del self._waiting[key]
                return told
            (key,) = batch
            told.append(Failed(key, error))
        else:
            told += [Said(key, output, True) for key, output in zip(batch, outputs, strict=True)]
        for key in batch:
            self.leave(key)
        return told

    def __len__(self) -> int:
        return len(self._tokens)

    def _count(self, key: Hashable, tokens: int) -> None:
        self._total += tokens - self._tokens.get(key, 0)
        self._tokens[key] = tokens

    def _read(self) -> list[Said | Failed]:
        """Encode those that have joined, all at once, and tell which of them cannot be."""
        told: list[Said | Failed] = []
        while self._joined:
            keys = list(self._joined)
            try:
                reads = self.task.read(list(self._joined.values()))
            except InputError as error:
                told += self._refuse(keys, error)
                continue
            except Exception as error:
                if len(keys) > 1:  # found by halves
                    later = {key: self._joined.pop(key) for key in keys[len(keys) // 2 :]}
                    told += self._read()
                    self._joined = later
                else:
                    self.leave(keys[0])
                    told.append(Failed(keys[0], error))
                continue
            for key, read in zip(keys, reads, strict=True):
                (self._apart if self.task.apart(read) else self._waiting)[key] = read
                self._count(key, self.task.tokens(read))
            self._joined.clear()
        return told

    def _refuse(self, keys: Sequence[Hashable], error: InputError) -> list[Said | Failed]:
        for index in error.problems:
            self.leave(keys[index])
        return [Failed(keys[index], InputError(0, problem)) for index, problem in error.problems.items()]

    def _choose(self) -> dict[Hashable, R]:
        self._was_apart = bool(self._apart) and not (self._was_apart and self._waiting)
        if self._was_apart:
            key = next(iter(self._apart))
            return {key: self._apart[key]}
        batch: dict[Hashable, R] = {}
        longest = 0
        first = next((self._tokens[key] for key in self._waiting), 0)
        for key in sorted(self._waiting, key=lambda key: abs(self._tokens[key] - first)):
            tokens = self._tokens[key]
            alike = first // 2 - SLACK <= tokens <= 2 * first + SLACK
            if batch and not (alike and max(longest, tokens) * (len(batch) + 1) <= self.max_tokens):
                continue
            batch[key] = self._waiting[key]
            longest = max(longest, tokens)
            if len(batch) == self.max_rows:
                break
        return batch


class Alone(Running):
    """Inputs of any task, one after the other: each is a step, however long.

    Args:
        task: answers.
        model: built by the task, in eval mode.
    """

    one_step = True

    def __init__(self, task: Task[Any, Any], model: nn.Module) -> None:
        self.task, self.model = task, model
        self._inside: dict[Hashable, BaseModel] = {}

    def join(self, key: Hashable, given: BaseModel, *, stream: bool = False) -> None:
        """Take in an input; what is wrong with it shows when its turn comes.

        Raises:
            ValueError: if pieces are asked for.
        """
        if stream:
            raise ValueError("this task gives no pieces; without stream it fits")
        self._inside[key] = given

    def leave(self, key: Hashable) -> None:
        self._inside.pop(key, None)

    def step(self) -> list[Said | Failed]:
        for key, given in self._inside.items():
            del self._inside[key]
            try:
                (output,) = self.task.predict(self.model, [given])
            except Exception as error:
                return [Failed(key, error)]
            return [Said(key, output, True)]
        return []

    def __len__(self) -> int:
        return len(self._inside)
