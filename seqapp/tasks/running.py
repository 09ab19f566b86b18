"""Requests that one model answers side by side: they join and leave a running batch between its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, NamedTuple

from pydantic import BaseModel


class Said(NamedTuple):
    """What came of a step for one input.

    Args:
        key: of the input.
        value: the answer, a ``task.Output``, or the next piece of one that is streamed.
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
