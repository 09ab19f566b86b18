"""Answers for many inputs: in order, a chunk at a time, and an explanation where there is no answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from seqapp.bundle import Bundle
from seqapp.data.rows import read_rows
from seqapp.errors import DataError
from seqapp.registry import suggest
from seqapp.tasks import InputError


def predict(loaded: Bundle, inputs: Iterable[Any], *, chunk: int = 1024) -> Iterator[Any]:
    """An answer, or the :class:`InputError` that explains why there is none, for each input, in order.

    Reads ``inputs`` a chunk at a time, so that a source of any size fits.
    """
    stream = iter(inputs)
    start = 0
    while batch := dict(enumerate(islice(stream, chunk))):
        answers: dict[int, Any] = {}
        rest = list(batch)
        while rest:
            try:
                answers.update(zip(rest, loaded.predict([batch[place] for place in rest]), strict=True))
                break
            except InputError as error:
                bad = rest.pop(error.index)
                answers[bad] = InputError(start + bad, error.problem)
        yield from (answers[place] for place in batch)
        start += len(batch)


def predict_file(loaded: Bundle, file: str, *, text: str, encoding: str) -> Iterator[dict[str, Any]]:
    """One record a row: the line it came from and the answer, or an "error".

    Args:
        loaded: a bundle.
        file: a table, a text with one input a line, or "-" for standard input.
        text: the column of a table that holds the text.
        encoding: of the file.

    Raises:
        DataError: if the file cannot be read.
    """
    lines: list[int] = []

    def inputs() -> Iterator[Any]:
        for line, value in _texts(file, text, encoding):
            lines.append(line)
            yield loaded.task.Input(text=value)

    for number, answer in enumerate(predict(loaded, inputs())):
        if isinstance(answer, InputError):
            yield {"line": lines[number], "error": answer.problem}
        else:
            yield {"line": lines[number], **answer.model_dump(mode="json", exclude_none=True)}


def _texts(file: str, column: str, encoding: str) -> Iterator[tuple[int, str]]:
    if file != "-" and Path(file).suffix.lower() not in (".txt", ".text", ""):
        for row in read_rows(Path(file), encoding=encoding):
            if column not in row.values:
                raise DataError(f"{file}:{row.line}: no column {column!r}; {suggest(column, list(row.values))}")
            yield row.line, str(row.values[column] if row.values[column] is not None else "")
        return
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode(encoding).removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{file}:{number}: byte {error.start} is not {encoding}; --encoding names another"
                                    ) from None  # fmt: skip
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except LookupError:
        raise DataError(f"{file}: no encoding is called {encoding!r}; utf-8, latin-1 or cp1252 would fit") from None
