"""Records of a user's file - CSV, TSV, JSON Lines, Parquet - one at a time, each with the line it starts at."""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from seqapp.errors import DataError
from seqapp.registry import suggest

Format = Literal["csv", "tsv", "jsonl", "parquet"]

_EXTENSIONS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
FOREIGN = {
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook, not text; save the sheet as CSV (UTF-8)",
    b"PAR1\x15": "is a Parquet file; format: parquet would fit",
}
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One record: where it starts (physical line, or row of a Parquet file; both from 1) and its values by column.

    Args:
        line: from 1.
        values: by column; none where there is a problem.
        problem: why the record cannot be read, where that is told rather than raised.
        size: characters it takes in a text file.
    """

    line: int
    values: Mapping[str, Any]
    problem: str | None = None
    size: int = field(default=0, compare=False)


def read_rows(
    path: str | Path,
    *,
    encoding: str = "utf-8",
    format: Format | None = None,
    stream: BinaryIO | None = None,
    tell: bool = False,
) -> Iterator[Row]:
    """The records of a file, one at a time; blank lines are skipped.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson or .parquet file; text may be gzip-compressed (.csv.gz).
        encoding: of the text, such as utf-8, utf-16 or latin-1; a byte order mark is dropped.
        format: what the file holds, where its name does not tell.
        stream: what :func:`open_file` gave for ``path``, for who wants to know how far it is read.
        tell: give a line that is no JSON object, or has too few or too many fields, as a row with a ``problem``.

    Raises:
        DataError: naming file and line, what was wrong, and what would fit.
    """
    path = Path(path)
    empty = True
    with open_file(path) if stream is None else contextlib.nullcontext(stream) as stream:
        chosen = file_format(path, format)
        if chosen == "parquet":
            rows = _parquet(path, stream)
        elif chosen == "jsonl":
            rows = _json_lines(path, text_lines(path, stream, encoding), tell)
        else:
            rows = _delimited(path, text_lines(path, stream, encoding), _SEPARATORS[chosen], tell)
        for row in rows:
            empty = False
            yield row
    if empty:
        what = "one JSON object a line" if chosen == "jsonl" else "a header with the names of the columns, then rows"
        raise DataError(f"{path}:1: the file holds no rows; it takes {what}")


def open_file(path: Path) -> BinaryIO:
    """A file to read, unpacked where its name ends in .gz.

    Raises:
        DataError: if there is none, or it cannot be read, naming what stands beside it.
    """
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; name one file{_tables_in(path, '')}") from None
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path.parent.is_dir():
        raise DataError(f"{path}: no such file{_tables_in(path.parent, path.name)}")
    raise DataError(f"{path}: no such file, nor is there a folder {path.parent}")


def _tables_in(folder: Path, name: str) -> str:
    names = sorted(other.name for other in folder.iterdir() if other.is_file())
    tables = [other for other in names if _kind(Path(other))]
    near = difflib.get_close_matches(name, names, n=3) or tables[:_SHOWN]
    return f"; there are {', '.join(near)}" if near else "; there is no table in that folder"


def _kind(path: Path) -> str | None:
    return _EXTENSIONS.get((path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower())


def file_format(path: Path, format: str | None = None) -> str:
    """What a file holds, by its name or as ``format`` says.

    Raises:
        DataError: if neither tells.
    """
    chosen = format or _kind(path)
    known = sorted(set(_EXTENSIONS.values()))
    if chosen is None:
        fits = f"{', '.join(_EXTENSIONS)} or the option format: {', '.join(known)}"
        raise DataError(f"{path}: the extension {path.suffix!r} does not tell what the file holds; {fits} would fit")
    if chosen not in known:
        raise DataError(f"{path}: no format is called {chosen!r}; {suggest(chosen, known)}")
    if chosen == "parquet" and path.suffix.lower() == ".gz":
        raise DataError(f"{path}: Parquet compresses its own columns and is not read through gzip; gunzip it first")
    return chosen


def text_lines(path: Path, stream: BinaryIO, encoding: str) -> Iterator[str]:
    """The physical lines with their ends: LF, CR LF or CR, none of the others that ``str.splitlines`` knows."""
    try:
        "".encode(encoding)  # refuses codecs that are not text, such as hex
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError):
        fits = "such as utf-8, utf-16, latin-1 or cp1252"
        raise DataError(f"{path}: no text encoding is called {encoding!r}; one that Python knows, {fits}") from None
    number, offset, rest, chunk = 0, 0, "", b"start"
    while chunk:
        try:
            chunk = stream.read(1 << 16)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}:{number + 1}: cannot be read, cut off or damaged: {error}") from None
        if offset == 0:
            for start, problem in FOREIGN.items():
                if chunk.startswith(start):
                    raise DataError(f"{path}:1: the file {problem}")
        state = decoder.getstate()
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            decoder.setstate(state)
            good = decoder.decode(chunk[: max(0, error.start - len(state[0]))])
            where = number + len(list(io.StringIO(f"{rest}{good}?", newline="")))
            byte = f"byte {offset - len(state[0]) + error.start} (0x{error.object[error.start]:02x})"
            what = f"{byte} is not {encoding} text: {error.reason}"
            fits = ("" if chunk else "a file that is not cut off, or ") + encodings_that_fit(error.object, encoding)
            raise DataError(f"{path}:{where}: {what}; {fits} would fit") from None
        except UnicodeError as error:  # UTF-16 and UTF-32 without a byte order mark
            fits = f"encoding: {encoding}-le or encoding: {encoding}-be"
            raise DataError(f"{path}:1: byte 0 is not {encoding} text: {error}; {fits} would fit") from None
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(chunk)
        lines = list(io.StringIO(rest + text, newline=""))
        # The last line may go on in the next chunk, and a CR at the end of this one may be half of a CR LF.
        rest = lines.pop() if chunk and lines else ""
        for line in lines:
            number += 1
            if "\0" in line:
                fits = "remove it, or if the file is UTF-16, encoding: utf-16 would fit"
                raise DataError(f"{path}:{number}: a NUL byte, which text does not hold; {fits}")
            yield line


def encodings_that_fit(content: bytes, encoding: str) -> str:
    """Which encodings can read ``content``, as a hint for a config; empty if none of the usual ones can."""
    tried = codecs.lookup(encoding).name
    if tried != "utf-16" and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "encoding: utf-16"
    fitting = []
    for other in ("utf-8", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(other)().decode(content)
            if codecs.lookup(other).name != tried:
                fitting.append(f"encoding: {other}")
    return " or ".join(fitting)


def _delimited(path: Path, lines: Iterator[str], separator: str, tell: bool) -> Iterator[Row]:
    # The limit is the csv module's own, for the whole process; putting it back would race with other threads.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            yield line

    reader = csv.reader(counted(), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        start, size = reader.line_num + 1, 0
        try:
            record = next(reader, None)
        except csv.Error as error:
            fits = 'a field that begins with " ends with " and doubles each " inside; or write the file as .jsonl'
            seen = f"noticed in line {reader.line_num}: {error}"
            raise DataError(f"{path}:{start}: broken quotes ({seen}); {fits}") from None
        if record is None:
            return
        if not record or (len(header) != 1 and len(record) == 1 and not record[0].strip()):
            continue
        if not header:
            header = [name.strip() for name in record]
            _check_header(f"{path}:{start}", header)
        elif len(record) != len(header):
            much = f"too {'few' if len(record) < len(header) else 'many'} fields: {len(record)}"
            fits = f"the header names {len(header)} ({', '.join(header)}); quote a field with {separator!r} inside"
            if not tell:
                raise DataError(f"{path}:{start}: {much}; {fits}")
            yield Row(start, {}, f"line {start}: {much}; {fits}", size)
        else:
            yield Row(start, dict(zip(header, record, strict=True)), None, size)


def _check_header(place: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names, 1):
        if not name:
            fits = "give it one, or leave it out (pandas: to_csv(..., index=False))"
            raise DataError(f"{place}: column {position} of {len(names)} has no name; {fits}")
        if names.index(name) != position - 1:
            raise DataError(f"{place}: two columns are called {name!r}; each needs a name of its own")


def _json_lines(path: Path, lines: Iterator[str], tell: bool) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Row(number, json_object(line), None, len(line))
        except ValueError as error:
            if not tell:
                raise DataError(f"{path}:{number}: {error}") from None
            yield Row(number, {}, f"line {number}: {error}", len(line))


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        ValueError: if it holds none, or a name twice, or half a character.
    """
    fits = 'each line takes one whole JSON object, such as {"text": "...", "label": "..."}'
    try:
        value = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"not valid JSON: {reason}; {fits}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object; {fits}")
    if _HALF_PAIR.search(line):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            what = "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            raise ValueError(f"{what}; write both halves, or the character itself") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return value


def _parquet(path: Path, stream: BinaryIO) -> Iterator[Row]:
    number = 0
    for table in ParquetTables(path, stream).read(4096):
        names = table.column_names
        for values in zip(*(column.to_pylist() for column in table.columns), strict=True):
            number += 1
            yield Row(number, dict(zip(names, values, strict=True)))


class ParquetTables:
    """A Parquet file that is read a piece at a time, so that one of any size fits.

    Args:
        path: what errors call it.
        stream: the open file.

    Attributes:
        names: of the columns.
        rows: in the file.

    Raises:
        DataError: if it is damaged, or has two columns of one name, or pyarrow is not installed.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            fits = "pip install pyarrow, or pip install 'seqapp[train]', or save the table as CSV"
            raise DataError(f"{path}: Parquet needs pyarrow: {fits}") from None
        self.path = path
        with self._damage(0):
            # Buffered, a page of each column at a time is in memory; otherwise a whole group of rows, which may be all.
            self._file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            self.names = list(self._file.schema_arrow.names)
            self.rows = int(self._file.metadata.num_rows)
        _check_header(f"{path}:1", self.names)

    def read(
        self, rows: int, *, size: int | None = None, columns: Sequence[str] | None = None, skip: int = 0
    ) -> Iterator[Any]:
        """The rows as pyarrow tables, all but the last of equal numbers of rows.

        Args:
            rows: of a table, at most.
            size: bytes of a table, at most, where rows are as long as those of the group with the longest.
            columns: only these.
            skip: rows at the beginning that are left out.

        Raises:
            DataError: naming the row where the file is damaged.
        """
        import pyarrow

        if size is not None:
            rows = max(1, min(rows, size // self._longest(columns)))
        held: list[Any] = []
        number = 0
        batches = self._file.iter_batches(batch_size=rows, columns=None if columns is None else list(columns))
        while True:
            with self._damage(number):
                batch = next(batches, None)
            if batch is None:
                break
            number += batch.num_rows
            held.append(batch.slice(max(0, skip - (number - batch.num_rows))))
            # A batch ends where a group of rows does.
            while sum(len(piece) for piece in held) >= rows:
                table = pyarrow.Table.from_batches(held)
                yield table.slice(0, rows)
                held = table.slice(rows).to_batches()
        if any(len(piece) for piece in held):
            yield pyarrow.Table.from_batches(held)

    def _longest(self, columns: Sequence[str] | None) -> int:
        found = 1
        for number in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(number)
            taken = sum(
                group.column(place).total_uncompressed_size
                for place in range(group.num_columns)
                if columns is None or group.column(place).path_in_schema.partition(".")[0] in columns
            )
            found = max(found, taken // max(1, group.num_rows))
        return found

    @contextlib.contextmanager
    def _damage(self, row: int) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{self.path}:{row + 1}: cannot be read as Parquet, cut off or damaged: {reason}") from None
