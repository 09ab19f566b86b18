"""A task whose running batch does what a test says, and a bundle of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import nn

from seqapp.tasks import InputError
from seqapp.tasks.running import Failed, Running, Said


@dataclass(eq=False)
class Scripted(Running):
    """Every input has as many steps as its script says, all inside advance in each.

    An input is a ``(kind, steps)``: "ok" says each number from 1 to ``steps`` or, as a whole, their list; "odd" does
    not fit; "bad" fails at its last step. Others are answered by ``script``, a generator of pieces.

    Args:
        room: inputs inside beyond which it is full.
        script: input -> pieces.
        held: each step waits for ``gate``, which is closed at first.
        pauses: whether it can pause.
    """

    room: int = 1000
    script: Callable[[Any], Iterator[Any]] | None = None
    held: bool = False
    pauses: bool = True
    one_step: bool = False  # type: ignore[misc]
    steps: int = 0
    computed: dict[Any, int] = field(default_factory=dict)
    threads: set[str] = field(default_factory=set)
    began: threading.Event = field(default_factory=threading.Event)
    inside: dict[Hashable, tuple[Any, Iterator[Any], bool, list[Any]]] = field(default_factory=dict)
    paused: set[Hashable] = field(default_factory=set)
    broken: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not self.held:
            self.gate.set()

    @property
    def full(self) -> bool:
        return len(self) - len(self.paused) >= self.room

    def join(self, key: Hashable, given: Any, *, stream: bool = False) -> None:
        if isinstance(given, tuple) and given[0] == "odd":
            raise InputError(0, f"odd {given[1]}")
        self.inside[key] = given, (self.script or _numbers)(given), stream, []

    def leave(self, key: Hashable) -> None:
        self.inside.pop(key, None)
        self.paused.discard(key)

    def pause(self, key: Hashable, *, paused: bool) -> None:
        if self.pauses and key in self.inside:
            (self.paused.add if paused else self.paused.discard)(key)

    def step(self) -> list[Said | Failed]:
        self.threads.add(threading.current_thread().name)
        self.began.set()
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        self.steps += 1
        told: list[Said | Failed] = []
        for key, (given, pieces, stream, said) in list(self.inside.items()):
            if key in self.paused:
                continue
            name = given if isinstance(given, tuple) else "text"
            self.computed[name] = self.computed.get(name, 0) + 1
            try:
                piece = next(pieces)
            except StopIteration:
                told.append(Said(key, None if stream else said, True))
                self.leave(key)
            except Exception as error:
                told.append(Failed(key, error))
                self.leave(key)
            else:
                said.append(piece)
                if stream:
                    told.append(Said(key, piece, False))
        return told

    def __len__(self) -> int:
        return len(self.inside)


def _numbers(given: tuple[str, int]) -> Iterator[int]:
    kind, steps = given
    for number in range(1, steps + 1):
        if kind == "bad" and number == steps:
            raise RuntimeError(f"bad {steps}")
        yield number


MakeApp = tuple[Scripted, Callable[..., Any]]
"""A running batch, and what makes an application whose language model answers by it."""


def bundle_of(running: Callable[[], Running]) -> Any:
    """What an engine needs of a bundle, whose task makes running batches by ``running``."""
    task = SimpleNamespace(
        running=lambda model: running(),
        effort=lambda given: min(given[1], 1000) if isinstance(given, tuple) else 1,
        written=lambda said: 1 if isinstance(said, int) else len(said),
    )
    return SimpleNamespace(task=task, model=nn.Identity(), manifest=SimpleNamespace(task="scripted", name="scripted"))
