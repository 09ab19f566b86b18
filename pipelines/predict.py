"""Answers for many inputs: in order, a chunk at a time, and an explanation where there is no answer."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from seqapp.bundle import Bundle
from seqapp.data.rows import ParquetTables, Row, file_format, json_object, open_file, read_rows, text_lines
from seqapp.errors import ConfigError, DataError
from seqapp.registry import suggest
from seqapp.tasks import InputError

CHUNK_ROWS = 1024
"""Most rows of a file that are answered together."""
CHUNK_BYTES = 4 << 20
"""Most characters of them, about; a row that is longer is a chunk by itself."""


def predict(loaded: Bundle, inputs: Iterable[Any], *, chunk: int = CHUNK_ROWS) -> Iterator[Any]:
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


class Inputs:
    """Makes inputs of a task of the rows of a file.

    A row may carry any field of ``task.Input``, under its name. In a table an empty cell is a value that was not given,
    and a cell of a field that is no text may hold JSON.

    Args:
        loaded: the bundle whose task it is.
        text: the column that holds the text; None for the field's own name.
        only_text: whether columns called like other fields are passed over.

    Raises:
        ConfigError: if ``text`` or ``only_text`` is given and the task takes no text.
    """

    def __init__(self, loaded: Bundle, *, text: str | None = None, only_text: bool = False) -> None:
        self.kind, self.line = loaded.task.Input, loaded.task.line_field
        fields = self.kind.model_fields
        if self.line is None and (text is not None or only_text):
            raise ConfigError(f"the task {loaded.manifest.task!r} takes no text but {', '.join(fields)}; columns of "
                              f"these names fit, without "
                              f"{'--only-text' if text is None else '--text'}")  # fmt: skip
        self.text, self.only_text = text or self.line, only_text
        fitting = [name for name in fields if name != self.line and not only_text]
        self.columns = {**({self.text: self.line} if self.text and self.line else {}),
                        **{name: name for name in fitting if name != self.text}}  # fmt: skip
        """Column -> field."""
        self._texts = {name for name, field in fields.items() if str in (field.annotation, *get_args(field.annotation))}

    def check(self, place: str, names: Iterable[str]) -> None:
        """Refuse a table that cannot hold inputs.

        Args:
            place: file and line.
            names: its columns.

        Raises:
            DataError: if a column that every row needs is not there.
        """
        names = list(names)
        for column, name in self.columns.items():
            # A prompt, say, need not be given, but a table in which nothing is a field was meant otherwise.
            if column not in names and (
                self.kind.model_fields[name].is_required() or (name == self.line and not self._any(names))
            ):
                hint = "; --text names the column of the text" if name == self.line else ""
                raise DataError(f"{place}: no column {column!r}; {suggest(column, names)}{hint}")

    def _any(self, names: Iterable[str]) -> bool:
        return any(name in self.columns for name in names)

    def read(self, row: Row, *, cells: bool) -> BaseModel | InputError:
        """The input that a row holds, or what is wrong with it.

        Args:
            row: of a file.
            cells: whether it is of a table with a cell in each column, rather than an object with what was given.
        """
        if row.problem is not None:
            return InputError(0, row.problem)
        values = {}
        for column, name in self.columns.items():
            if column not in row.values:
                continue
            value = row.values[column]
            if not cells or (name == self.line and value is not None):
                values[name] = value
            elif value is None and self.kind.model_fields[name].is_required():
                return InputError(0, f"{column}: null; a value fits")
            elif value is not None and value != "":
                values[name] = value if name in self._texts else _cell(value)
        try:
            return self.kind.model_validate(values)
        except ValidationError as error:
            named = {name: column for column, name in self.columns.items()}
            told = complaints(error, self.kind, named)
            return InputError(0, "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else ""))


def answer(loaded: Bundle, inputs: Inputs, rows: Sequence[Row], *, cells: bool) -> list[dict[str, Any]]:
    """The fields of the answer to each row, or its "error".

    Args:
        loaded: a bundle.
        inputs: of its task.
        rows: of a file, answered together.
        cells: as for :meth:`Inputs.read`.
    """
    given = (inputs.read(row, cells=cells) for row in rows)
    return [
        {"error": one.problem}
        if isinstance(one, InputError)
        else finite(one.model_dump(mode="json", exclude_none=True))
        for one in predict(loaded, given, chunk=max(1, len(rows)))
    ]


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """``record``, or its "line" with an "error" if it holds a number that is not finite."""
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        line = {"line": record["line"]} if "line" in record else {}
        return {**line, "error": "the answer holds a number that is not finite"}
    return record


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Chunk:
    """Rows that follow each other.

    Args:
        rows: with what the inputs need; of a text file, with all columns.
        done: how much of the source lies behind when they are answered, in its ``unit``.
        table: of a Parquet file, the columns to keep, as a pyarrow table.
    """

    rows: Sequence[Row]
    done: int
    table: Any = None


class Source:
    """A file of inputs that is read a chunk at a time, so that one of any size fits in memory.

    Args:
        file: a table, a text with one input a line, or "-" for standard input.
        loaded: the bundle that answers them.
        text: as for :class:`Inputs`.
        only_text: as for :class:`Inputs`.
        keep: the columns that go on into the output; None for all.
        encoding: of the file.
        rows: most in a chunk.
        size: most characters of a chunk.

    Attributes:
        total: how much there is to read, in ``unit``; None if it is not known.
        unit: "rows" or "bytes".

    Raises:
        ConfigError: if an option does not fit the task.
        DataError: if the file is not there or its name does not tell what it holds.
    """

    def __init__(
        self,
        file: str,
        loaded: Bundle,
        *,
        text: str | None = None,
        only_text: bool = False,
        keep: Sequence[str] | None = None,
        encoding: str = "utf-8",
        rows: int = CHUNK_ROWS,
        size: int = CHUNK_BYTES,
    ) -> None:
        self.file, self.keep, self.encoding = file, keep, encoding
        self.rows, self.size = rows, size
        self.inputs = Inputs(loaded, text=text, only_text=only_text)
        self.reserved = {"line", "error", *loaded.task.Output.model_fields}
        self.format = file_format(Path(file)) if _is_table(file) else "text"
        if self.format == "text" and text is not None:
            raise ConfigError(f"--text {text}: {file} holds a text a line and no columns; without --text it fits")
        self.total, self.unit = None, "rows"
        if file == "-":
            return
        if self.format == "parquet":
            with open_file(Path(file)) as stream:
                self.total = ParquetTables(Path(file), stream).rows
        else:
            with open_text(file) as stream:
                self.total, self.unit = _raw(stream).seek(0, 2), "bytes"

    @property
    def cells(self) -> bool:
        """Whether each row has a cell in each column."""
        return self.format not in ("jsonl", "text")

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        """The rows from number ``skip`` on.

        Raises:
            DataError: naming file and line, if the file cannot be read or lacks a column.
        """
        return self._tables(skip) if self.format == "parquet" else self._texts(skip)

    def answered(self, loaded: Bundle, skip: int = 0) -> Generator[tuple[Chunk, list[dict[str, Any]]]]:
        """Each chunk with its answers, as of :func:`answer`."""
        for chunk in self.chunks(skip):
            yield chunk, answer(loaded, self.inputs, chunk.rows, cells=self.cells)

    def kept(self, row: Row) -> dict[str, Any]:
        """The columns of a row of a text file that go on into the output, by their names there."""
        if self.keep is None:
            return {self.name(column): value for column, value in row.values.items()}
        return {self.name(column): row.values[column] for column in self.keep if column in row.values}

    def name(self, column: str) -> str:
        """What a column of the input is called in the output, where the fields of answers have their names.

        LAW: two columns never get one name, and the name of one does not depend on the others.
        """
        rest = column
        while rest.startswith("input_") and rest not in self.reserved:
            rest = rest.removeprefix("input_")
        return f"input_{column}" if rest in self.reserved else column

    def _check(self, place: str, names: Sequence[str]) -> None:
        self.inputs.check(place, names)
        for column in self.keep or ():
            if column not in names:
                raise DataError(f"{place}: no column {column!r} to keep; {suggest(column, names)}")

    def _tables(self, skip: int) -> Iterator[Chunk]:
        with open_file(Path(self.file)) as stream:
            tables = ParquetTables(Path(self.file), stream)
            if not tables.rows:
                raise DataError(f"{self.file}:1: the file holds no rows")
            self._check(f"{self.file}:1", tables.names)
            given = [name for name in tables.names if name in self.inputs.columns]
            kept = tables.names if self.keep is None else list(self.keep)
            done = skip
            for table in tables.read(self.rows, size=self.size, columns=[*given, *kept], skip=skip):
                rows = [Row(done + place, values) for place, values in enumerate(table.select(given).to_pylist(), 1)]
                done += len(rows)
                own = table.select(kept).rename_columns([self.name(name) for name in kept])
                yield Chunk(rows, done, own)

    def _texts(self, skip: int) -> Iterator[Chunk]:
        with open_text(self.file) as stream:
            rows = self._lines(stream) if self.format == "text" else self._table_rows(stream)
            held: list[Row] = []
            size = 0
            for row in islice(rows, skip, None):
                if held and size + row.size > self.size:
                    yield Chunk(held, _position(stream))
                    held, size = [], 0
                held.append(row)
                size += row.size
                if len(held) == self.rows:
                    yield Chunk(held, _position(stream))
                    held, size = [], 0
            if held:
                yield Chunk(held, _position(stream))

    def _table_rows(self, stream: BinaryIO) -> Iterator[Row]:
        checked = False
        for row in read_rows(self.file, encoding=self.encoding, stream=stream, tell=True):
            if not checked and row.problem is None:
                self._check(f"{self.file}:{row.line}", list(row.values))
                checked = True
            yield row

    def _lines(self, stream: BinaryIO) -> Iterator[Row]:
        bare = self.inputs.line
        if bare is not None:
            for column in self.keep or ():
                if column != bare:
                    raise DataError(f"{self.file}: no column {column!r} to keep; a line is a {bare}")
        for number, line in lines_of(self.file, self.encoding, stream):
            if bare is not None:
                yield Row(number, {bare: line}, None, len(line))
            elif line.strip():
                try:
                    yield Row(number, json_object(line), None, len(line))
                except ValueError:
                    fits = f"not a JSON object; one with {', '.join(self.inputs.kind.model_fields)} fits"
                    yield Row(number, {}, fits, len(line))


def predict_file(
    loaded: Bundle,
    file: str,
    *,
    text: str | None = None,
    only_text: bool = False,
    keep: Sequence[str] = (),
    encoding: str = "utf-8",
    done: Callable[[Source, int], None] = lambda source, done: None,
) -> Iterator[dict[str, Any]]:
    """One record a row: the line it came from, the columns to keep, and the answer or an "error".

    Where the task's inputs can be a bare text (``task.line_field``), a line of a text file is one; where they cannot, a
    line is a JSON object. A row of a table holds the fields of ``task.Input`` in columns of the same names.

    Args:
        loaded: a bundle.
        file: a table, a text with one input a line, or "-" for standard input.
        text: the column of a table that holds the text; None for the field's own name.
        only_text: whether columns called like other fields are passed over.
        keep: columns of the input that stand in the record too.
        encoding: of the file.
        done: told, with the source, how much of it lies behind.

    Raises:
        DataError: if the file cannot be read.
        ConfigError: if ``text`` or ``only_text`` does not fit the task.
    """
    source = Source(file, loaded, text=text, only_text=only_text, keep=keep, encoding=encoding)
    done(source, 0)
    for chunk, answers in source.answered(loaded):
        kept = records(source, chunk)
        for row, own, found in zip(chunk.rows, kept, answers, strict=True):
            yield {"line": row.line, **own, **found}
        done(source, chunk.done)


def records(source: Source, chunk: Chunk) -> list[dict[str, Any]]:
    """The columns to keep of each row of a chunk, as JSON knows them: times as text, bytes in base64, no NaN."""
    rows = [source.kept(row) for row in chunk.rows] if chunk.table is None else chunk.table.to_pylist()
    return cast(list[dict[str, Any]], to_jsonable_python(rows, inf_nan_mode="null", bytes_mode="base64", fallback=str))


def complaints(error: ValidationError, kind: type[BaseModel], names: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with the fields of an input of this kind, each in one sentence.

    Args:
        error: of the input.
        kind: of the input.
        names: field -> what the user calls it, where that is another name.
    """
    told = []
    for each in error.errors():
        first, *rest = each["loc"] or ("",)
        name = ".".join(map(str, [(names or {}).get(str(first), first), *rest]))
        if each["type"] == "extra_forbidden":
            told.append(f"{name}: there is no such option; {suggest(name, list(kind.model_fields))}")
        elif each["type"] == "value_error":
            told.append(f"{name}: {each['ctx']['error']}".removeprefix(": "))
        else:
            told.append(f"{name or 'input'}: {each['msg']}")
    return told


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _is_table(file: str) -> bool:
    return file != "-" and Path(file.lower().removesuffix(".gz")).suffix not in (".txt", ".text", "")


def open_text(file: str) -> AbstractContextManager[BinaryIO]:
    """A file to read, unpacked where its name ends in .gz, or standard input if it is called "-".

    Raises:
        DataError: if it cannot be opened.
    """
    if file != "-" and (_is_table(file) or Path(file).is_dir()):
        return open_file(Path(file))
    try:
        if file.lower().endswith(".gz"):
            return cast(BinaryIO, gzip.open(file, "rb"))
        return open(0 if file == "-" else file, "rb", closefd=file != "-")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


def _raw(stream: BinaryIO) -> BinaryIO:
    """The file itself, below what unpacks it."""
    return cast(BinaryIO, getattr(stream, "fileobj", stream))


def _position(stream: BinaryIO) -> int:
    return _raw(stream).tell() if _raw(stream).seekable() else 0


def lines_of(file: str, encoding: str, stream: BinaryIO | None = None) -> Iterator[tuple[int, str]]:
    """Each line of a file, or of standard input if it is called "-", with its number, from 1.

    Args:
        file: its name.
        encoding: of the file.
        stream: what :func:`open_text` gave for it, for who wants to know how far it is read.

    Raises:
        DataError: if it cannot be read, naming the line.
    """
    if stream is None:
        with open_text(file) as stream:
            yield from lines_of(file, encoding, stream)
        return
    number = 0
    try:
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
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}:{number + 1}: cannot be read, cut off or damaged: "
                        f"{getattr(error, 'strerror', None) or error}") from None  # fmt: skip
    except LookupError:
        raise DataError(f"{file}: no encoding is called {encoding!r}; utf-8, latin-1 or cp1252 would fit") from None
