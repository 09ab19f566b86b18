"""Sequences with an answer a step: what one is, and your own from a file.

A symbol is text or a whole number; a row of numbers is one number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqapp.data.rows import read_rows
from seqapp.data.splits import SOURCES, Splits, split_by_group
from seqapp.errors import ConfigError, DataError
from seqapp.registry import Probability, Share, suggest

Symbol = int | str
Step = Symbol | tuple[float, ...]
"""What one step reads or answers: a symbol, or one number a channel."""


@dataclass(frozen=True, slots=True)
class Steps:
    """One sequence.

    Args:
        inputs: what is read at each step, all symbols or all rows of numbers of one width.
        targets: the right answer at each step, None where none is asked for.
    """

    inputs: tuple[Step, ...]
    targets: tuple[Step | None, ...]


@SOURCES.register("sequences")
def sequences(
    *,
    train: str,
    validation: str | None = None,
    test: str | None = None,
    inputs: str = "inputs",
    targets: str = "targets",
    validation_share: Share = 0.1,
    test_share: Probability = 0.1,
    seed: int = 0,
    encoding: str = "utf-8",
) -> Splits[Steps]:
    """Your own sequences from JSON Lines files, one a line: `{"inputs": ["a", "b"], "targets": [null, "end"]}`.

    An input is a symbol, a number or a list of numbers; there are as many targets as inputs, null where no answer is
    asked, or one, which is asked at the end. Sequences with equal inputs never stand on both sides of a split that is
    made here. Of those set aside, the first that reads or answers a symbol which no training sequence reads or answers
    goes back to training, so that no symbol is met where it was never learned.

    Args:
        train: the file to learn from; a relative path starts at the current directory.
        validation: the file that chooses between weights; without one, rows of train are set aside.
        test: the file for the final figure; without one, rows of train are set aside.
        inputs: the name that holds what is read.
        targets: the name that holds the answers.
        validation_share: how much of train to set aside if there is no validation file.
        test_share: how much of train to set aside if there is no test file; 0 for no test split.
        seed: of the shuffle that sets rows aside.
        encoding: of the files.

    Raises:
        ConfigError: if the shares leave nothing to train on.
        DataError: naming file and line, what was wrong, and what would fit.
    """
    given = {"validation": validation, "test": test}
    shares = {name: share for name, share in (("validation", validation_share), ("test", test_share))
              if given[name] is None and share > 0}  # fmt: skip
    left = 1 - sum(shares.values())
    if left < 1e-9:
        raise ConfigError(f"shares of {' + '.join(map(str, shares.values()))} leave nothing to train on; "
                          "below 1 together would fit")  # fmt: skip

    def read(path: str) -> list[Steps]:
        return [example for _, example in read_steps(path, inputs=inputs, targets=targets, encoding=encoding)]

    parts = {name: read(path) if path is not None else [] for name, path in given.items()}
    rows = read(train)
    try:
        dealt = split_by_group(rows, lambda row: row.inputs, [left, *shares.values()], seed)
    except DataError as error:
        raise DataError(f"{train}: {error}") from None
    dealt = _known_to_training(rows, dealt)
    for name, part in zip(shares, dealt[1:], strict=True):
        if not part:
            raise DataError(f"{train}: no row is left for {name}: each that was set aside holds a symbol that stands "
                            f"nowhere else; more rows with the same symbols, or a file for {name}, fit")  # fmt: skip
    parts |= dict(zip(["train", *shares], dealt, strict=True))
    how = [f"{name} {share:g}" for name, share in shares.items()]
    return Splits.of(", ".join([f"sequences {Path(train).name}", *how, *([f"seed {seed}"] if how else [])]), parts)


def _known_to_training(rows: Sequence[Steps], dealt: Sequence[Sequence[Steps]]) -> list[list[Steps]]:
    """``dealt``, training first, with every row in training that holds a symbol which would be missing there.

    Args:
        rows: all of them, in the order that each part keeps.
        dealt: the parts; rows with equal inputs stand in one part and stay together.
    """
    train, *others = dealt
    known = {symbol for row in train for symbol in _symbols(row)}
    stay = {row.inputs for row in train}
    for row in (row for part in others for row in part):
        if row.inputs in stay or not _symbols(row) <= known:
            stay.add(row.inputs)
            known |= _symbols(row)
    return [[row for row in rows if row.inputs in stay],
            *([row for row in part if row.inputs not in stay] for part in others)]  # fmt: skip


def _symbols(row: Steps) -> set[tuple[str, Symbol]]:
    """Its symbols, those that are read apart from those that are answered."""
    read = {("read", step) for step in row.inputs if not isinstance(step, tuple)}
    return read | {("answered", step) for step in row.targets if step is not None and not isinstance(step, tuple)}


def read_steps(
    path: str | Path, *, inputs: str = "inputs", targets: str = "targets", encoding: str = "utf-8"
) -> list[tuple[int, Steps]]:
    """Sequences with their answers from a JSON Lines file, each with the line it stands in.

    A line such as ``{"inputs": ["a", "b"], "targets": [null, "end"]}`` or ``{"inputs": [[0.1, 1], [0.7, 0]],
    "targets": [0.8]}``: a symbol, a number or a list of numbers for each step; as many targets as inputs, null where
    no answer is asked, or one target, which is asked at the end.

    Args:
        path: a .jsonl or .ndjson file.
        inputs: the name that holds what is read.
        targets: the name that holds the answers.
        encoding: of the file.

    Raises:
        DataError: naming file and line.
    """
    found = []
    for row in read_rows(path, encoding=encoding):
        place = f"{path}:{row.line}"
        columns = []
        for column in (inputs, targets):
            if column not in row.values:
                raise DataError(f"{place}: nothing is called {column!r}; {suggest(column, list(row.values))}")
            value = row.values[column]
            if not isinstance(value, list) or not value:
                raise DataError(f"{place}: {column!r} is {value!r:.60}; a list with an entry a step fits (JSON Lines)")
            columns.append(value)
        steps, answers = columns
        if len(answers) == 1:
            answers = [*[None] * (len(steps) - 1), *answers]
        if len(answers) != len(steps):
            raise DataError(f"{place}: {len(steps)} inputs and {len(answers)} targets; as many targets, or one, fit")
        if None in steps or answers == [None] * len(steps):
            what = "an input is null" if None in steps else "every target is null"
            raise DataError(f"{place}: {what}; null stands for a target that is not asked")
        try:
            found.append((row.line, Steps(tuple(map(as_step, steps)), tuple(
                None if answer is None else as_step(answer) for answer in answers))))  # fmt: skip
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
    return found


def as_step(value: Any) -> Step:
    """What JSON holds for one step, as a symbol or a row of numbers.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return (value,)
    if isinstance(value, list | tuple) and value and all(type(number) in (int, float) for number in value):
        try:
            return tuple(map(float, value))
        except OverflowError:
            raise ValueError(f"a step is {value!r:.60}; numbers that a float can hold fit") from None
    raise ValueError(f"a step is {value!r:.60}; a symbol (text or whole number), a number or a list of numbers fits")
