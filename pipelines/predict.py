"""Answers for many inputs: in order, a chunk at a time, and an explanation where there is no answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from seqapp.bundle import Bundle
from seqapp.data.rows import read_rows, text_lines
from seqapp.errors import ConfigError, DataError
from seqapp.registry import suggest
from seqapp.tasks import InputError


def predict(loaded: Bundle, inputs: Iterable[Any], *, chunk: int = 1024) -> Iterator[Any]:
    """An answer, or the :class:`InputError` that explains why there is none, for each input, in order.

    Reads ``inputs`` a chunk at a time, so that a source of any size fits.

    Args:
        loaded: a bundle.
        inputs: each a ``task.Input``, or an :class:`InputError` where none could be made, which is handed on.
        chunk: inputs answered together.
    """
    stream = iter(inputs)
    start = 0
    while batch := dict(enumerate(islice(stream, chunk))):
        answers: dict[int, Any] = {place: given for place, given in batch.items() if isinstance(given, InputError)}
        rest = [place for place in batch if place not in answers]
        while rest:
            try:
                answers.update(zip(rest, loaded.predict([batch[place] for place in rest]), strict=True))
                break
            except InputError as error:
                bad = {rest[index]: problem for index, problem in error.problems.items()}
                answers.update({place: InputError(start + place, problem) for place, problem in bad.items()})
                rest = [place for place in rest if place not in bad]
        yield from (answers[place] for place in batch)
        start += len(batch)


def predict_file(
    loaded: Bundle, file: str, *, text: str | None = None, encoding: str = "utf-8"
) -> Iterator[dict[str, Any]]:
    """One record a row: the line it came from and the answer, or an "error".

    Where the task's inputs can be a bare text (``task.line_field``), a line is one, and where they need nothing else,
    so is one column of a table. Otherwise a row is the fields of ``task.Input``: a JSON object a line, or the columns
    of a table of the same names; further columns are passed over, a cell may hold a list as JSON, and an empty cell is
    a value that was not given.

    Args:
        loaded: a bundle.
        file: a table, a text with one input a line, or "-" for standard input.
        text: the column of a table that holds the text; None for "text".
        encoding: of the file.

    Raises:
        DataError: if the file cannot be read.
        ConfigError: if ``text`` is given and the task takes more than a text.
    """
    fields = loaded.task.Input.model_fields
    needed = [name for name, field in fields.items() if field.is_required()]
    bare = loaded.task.line_field
    alone = bare is not None and needed == [bare]
    if text is not None and not alone:
        raise ConfigError(f"the task {loaded.manifest.task!r} takes no text but {', '.join(fields)}; columns of these "
                          "names fit, without --text")  # fmt: skip
    lines: list[int] = []

    def inputs() -> Iterator[Any]:
        if bare is not None and (alone or not _is_table(file)):
            rows: Iterator[tuple[int, Any]] = (
                (line, {bare: value}) for line, value in _texts(file, text or bare, encoding)
            )
        else:
            rows = _records(file, encoding, loaded.task.Input)
        for line, values in rows:
            lines.append(line)
            yield _input(loaded.task.Input, values, len(lines) - 1)

    for number, answer in enumerate(predict(loaded, inputs())):
        if isinstance(answer, InputError):
            yield {"line": lines[number], "error": answer.problem}
        else:
            yield {"line": lines[number], **answer.model_dump(mode="json", exclude_none=True)}


def _input(kind: type[BaseModel], values: Mapping[str, Any] | str, index: int) -> BaseModel | InputError:
    if isinstance(values, str):
        return InputError(index, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = complaints(error, kind)
        return InputError(index, "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else ""))


def complaints(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """What is wrong with the fields of an input of this kind, each in one sentence."""
    told = []
    for each in error.errors():
        name = ".".join(map(str, each["loc"]))
        if each["type"] == "extra_forbidden":
            told.append(f"{name}: there is no such option; {suggest(name, list(kind.model_fields))}")
        elif each["type"] == "value_error":
            told.append(f"{name}: {each['ctx']['error']}".removeprefix(": "))
        else:
            told.append(f"{name or 'input'}: {each['msg']}")
    return told


def _texts(file: str, column: str, encoding: str) -> Iterator[tuple[int, str]]:
    if _is_table(file):
        for row in read_rows(Path(file), encoding=encoding):
            if column not in row.values:
                raise DataError(f"{file}:{row.line}: no column {column!r}; {suggest(column, list(row.values))}")
            yield row.line, str(row.values[column] if row.values[column] is not None else "")
    else:
        yield from lines_of(file, encoding)


def _records(file: str, encoding: str, kind: type[BaseModel]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line and fields of each row, or what is wrong with the row."""
    fields = kind.model_fields
    if _is_table(file):
        for row in read_rows(Path(file), encoding=encoding):
            named = {name: value for name, value in row.values.items() if name in fields}
            if not _is_json(file):
                # A table has a cell in every column, so that an empty one is a value that was not given.
                named = {name: _cell(value) for name, value in named.items() if value is not None and value != ""}
            yield row.line, named
        return
    for number, line in lines_of(file, encoding):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            yield number, {name: value for name, value in values.items() if name in fields}
        else:
            yield number, f"not a JSON object; one with {', '.join(fields)} fits"


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _is_table(file: str) -> bool:
    return file != "-" and Path(file).suffix.lower() not in (".txt", ".text", "")


def _is_json(file: str) -> bool:
    return file.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def lines_of(file: str, encoding: str) -> Iterator[tuple[int, str]]:
    """Each line of a file, or of standard input if it is called "-", with its number, from 1.

    Raises:
        DataError: if it cannot be read, naming the line.
    """
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as stream:
            if "\n".encode(encoding) != b"\n":  # UTF-16 and its like, whose lines do not end at a byte
                for number, text in enumerate(text_lines(Path(file), stream, encoding), 1):
                    yield number, text.rstrip("\r\n")
                return
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
