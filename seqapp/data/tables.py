"""A user's own labelled files - CSV, TSV, JSON Lines, Parquet - and the data source ``table`` made of them."""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from seqapp.data.splits import SOURCES, LabelledText, Splits, split_by_group
from seqapp.errors import ConfigError, DataError
from seqapp.registry import Probability, Share, suggest

Format = Literal["csv", "tsv", "jsonl", "parquet"]

_EXTENSIONS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_FOREIGN = {
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook, not text; save the sheet as CSV (UTF-8)",
    b"PAR1\x15": "is a Parquet file; format: parquet would fit",
}
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One record: where it starts (physical line, or row of a Parquet file; both from 1) and its values by column."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Example:
    place: str
    text: str
    label: str
    key: str  # equal for texts that differ only in case and spacing
    unit: str  # what a split must not cut: the group, or else the key


def read_rows(path: str | Path, *, encoding: str = "utf-8", format: Format | None = None) -> Iterator[Row]:
    """The records of a file, one at a time; blank lines are skipped.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson or .parquet file; text may be gzip-compressed (.csv.gz).
        encoding: of the text, such as utf-8, utf-16 or latin-1; a byte order mark is dropped.
        format: what the file holds, where its name does not tell.

    Raises:
        DataError: naming file and line, what was wrong, and what would fit.
    """
    path = Path(path)
    empty = True
    with _open(path) as stream:
        chosen = _format(path, format)
        if chosen == "parquet":
            rows = _parquet(path, stream)
        elif chosen == "jsonl":
            rows = _json_lines(path, _lines(path, stream, encoding))
        else:
            rows = _delimited(path, _lines(path, stream, encoding), _SEPARATORS[chosen])
        for row in rows:
            empty = False
            yield row
    if empty:
        what = "one JSON object a line" if chosen == "jsonl" else "a header with the names of the columns, then rows"
        raise DataError(f"{path}:1: the file holds no rows; it takes {what}")


def read_labelled(
    path: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    encoding: str = "utf-8",
    format: Format | None = None,
    label_required: bool = True,
) -> list[LabelledText]:
    """The texts and labels of a file, in its order. Texts stay as they are; labels become text without outer spaces.

    Args:
        path: as for :func:`read_rows`.
        text: the column of the text.
        label: the column of the label: text, whole numbers, or true and false.
        encoding: as for :func:`read_rows`.
        format: as for :func:`read_rows`.
        label_required: if false, a row or a file without a label is fine and its label is ``""``.

    Raises:
        DataError: for a column that is not there, and for all rows that do not fit, together.
    """
    examples = _examples(path, text, label, None, encoding, format, label_required)
    return [LabelledText(example.text, example.label) for example in examples]


@SOURCES.register("table")
def table(
    *,
    train: str,
    validation: str | None = None,
    test: str | None = None,
    text: str = "text",
    label: str = "label",
    group: str | None = None,
    validation_share: Share = 0.1,
    test_share: Probability = 0.1,
    seed: int = 0,
    encoding: str = "utf-8",
    format: Format | None = None,
) -> Splits[LabelledText]:
    """Your own labelled texts from CSV, TSV, JSON Lines or Parquet files.

    No text stands in two splits, whatever its case and spacing: it is removed from training, or from validation if
    it is in test as well, and a warning tells how many were.

    Args:
        train: the file to learn from; a relative path starts at the current directory.
        validation: the file that chooses between weights; without one, rows of train are set aside.
        test: the file for the final figure; without one, rows of train are set aside.
        text: the column of the text.
        label: the column of the class.
        group: the column whose equal values stay together when rows are set aside: a movie, a speaker, a document.
        validation_share: how much of train to set aside if there is no validation file.
        test_share: how much of train to set aside if there is no test file; 0 for no test split.
        seed: of the shuffle that sets rows aside.
        encoding: of text files, such as utf-8, utf-16 or latin-1.
        format: what the files hold, where their names do not tell.

    Raises:
        ConfigError: if the shares leave nothing to train on.
        DataError: naming file and line, what was wrong, and what would fit.
    """
    given = {"validation": validation, "test": test}
    asked = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in asked.items() if given[name] is None and share > 0}
    left = 1 - sum(shares.values())
    if left < 1e-9:
        total = " + ".join(f"{name}_share {share:g}" for name, share in shares.items())
        raise ConfigError(f"{total} leaves nothing to train on; below 1 together would fit")
    parts = {"train": _examples(train, text, label, group if shares else None, encoding, format)}
    for name, path in given.items():
        parts[name] = _examples(path, text, label, None, encoding, format) if path is not None else []
    _warn_of_contradictions([example for part in parts.values() for example in part])
    _remove_shared(parts)
    rows = parts["train"]
    _check_classes(rows, train, group, "validation" in shares)
    if shares:
        parts |= _deal_by_class(rows, {"train": left, **shares}, seed)
        _remove_shared(parts)
    _check_parts(parts, shares, train)
    aside = [f"{name} {share:g}" for name, share in shares.items()]
    how = [*aside, f"by {group}" if group else "by text", f"seed {seed}"] if aside else []
    splits = {name: [LabelledText(row.text, row.label) for row in part] for name, part in parts.items()}
    return Splits(", ".join([f"table {Path(train).name}", *how]), **splits)


def _open(path: Path) -> BinaryIO:
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


def _format(path: Path, format: str | None) -> str:
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


def _lines(path: Path, stream: BinaryIO, encoding: str) -> Iterator[str]:
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
            chunk = stream.read(1 << 20)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}:{number + 1}: cannot be read, cut off or damaged: {error}") from None
        if offset == 0:
            for start, problem in _FOREIGN.items():
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
            fits = ("" if chunk else "a file that is not cut off, or ") + _encodings(error.object, encoding)
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


def _encodings(content: bytes, encoding: str) -> str:
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


def _delimited(path: Path, lines: Iterator[str], separator: str) -> Iterator[Row]:
    # The limit is the csv module's own, for the whole process; putting it back would race with other threads.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
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
            raise DataError(f"{path}:{start}: {much}; {fits}")
        else:
            yield Row(start, dict(zip(header, record, strict=True)))


def _check_header(place: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names, 1):
        if not name:
            fits = "give it one, or leave it out (pandas: to_csv(..., index=False))"
            raise DataError(f"{place}: column {position} of {len(names)} has no name; {fits}")
        if names.index(name) != position - 1:
            raise DataError(f"{place}: two columns are called {name!r}; each needs a name of its own")


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    fits = 'each line takes one whole JSON object, such as {"text": "...", "label": "..."}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{path}:{number}: not valid JSON: {reason}; {fits}") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: a JSON {type(value).__name__}, not an object; {fits}")
        if _HALF_PAIR.search(line):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                what = "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
                raise DataError(f"{path}:{number}: {what}; write both halves, or the character itself") from None
        yield Row(number, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return value


def _parquet(path: Path, stream: BinaryIO) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        fits = "pip install pyarrow, or pip install 'seqapp[train]', or save the table as CSV"
        raise DataError(f"{path}: Parquet needs pyarrow: {fits}") from None
    number = 0
    try:
        file = parquet.ParquetFile(stream)
        names = list(file.schema_arrow.names)
        _check_header(f"{path}:1", names)
        for batch in file.iter_batches(batch_size=4096):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield Row(number, dict(zip(names, values, strict=True)))
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}:{number + 1}: cannot be read as Parquet, cut off or damaged: {reason}") from None


def _examples(
    path: str | Path,
    text: str,
    label: str,
    group: str | None,
    encoding: str,
    format: Format | None,
    label_required: bool = True,
) -> list[_Example]:
    needed = {"text": text, **({"label": label} if label_required else {}), **({"group": group} if group else {})}
    examples: list[_Example] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for row in read_rows(path, encoding=encoding, format=format):
        place = f"{path}:{row.line}"
        columns.update(dict.fromkeys(row.values))
        before = len(problems)
        content = row.values.get(text)
        if content is None or (isinstance(content, str) and not content.strip()):
            problems.append(f"{place}: the text (column {text!r}) is empty; fill it in or delete the row")
        elif not isinstance(content, str):
            problems.append(f"{place}: the text (column {text!r}) is {content!r:.60}; it takes a string")
        names = {}
        for role, column in (("label", label), ("group", group)):
            try:
                names[role] = _name(row.values.get(column)) if column else ""
            except ValueError as error:
                problems.append(f"{place}: the {role} (column {column!r}) is {error}")
            else:
                if not names[role] and role in needed:
                    problems.append(f"{place}: the {role} (column {column!r}) is missing; fill it in or delete the row")
        if len(problems) == before:
            content = cast(str, content)
            key = " ".join(content.casefold().split())
            examples.append(_Example(place, content, names["label"], key, names["group"] or key))
    known = list(columns)
    hint = ""
    if len(known) == 1 and (separator := re.search(r"[;,|\t]", known[0])):
        hint = f"; is {separator.group()!r} the separator? format: csv takes ',' and format: tsv takes tabs"
    absent = [(f"{column!r} (option {role})", column) for role, column in needed.items() if column not in columns]
    _report([f"{path}:1: no column is called {what}; {suggest(column, known)}{hint}" for what, column in absent])
    _report(problems)
    return examples


def _name(value: Any) -> str:
    """A label or group as text, ``""`` for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int):
        return str(value).strip()
    raise ValueError(f"{value!r:.60}; it takes text, a whole number, or true or false")


def _report(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n  ".join([f"{len(problems)} problems:", *problems[:_SHOWN], *more]))


def _warn_of_contradictions(examples: Sequence[_Example]) -> None:
    first: dict[str, _Example] = {}
    clashes: dict[str, str] = {}
    for row in examples:
        other = first.setdefault(row.key, row)
        if other.label != row.label:
            clashes.setdefault(row.key, f"{row.place} says {row.label!r}, {other.place} says {other.label!r}")
    if clashes:
        _log.warning("%d text(s) have more than one label; the first: %s", len(clashes), next(iter(clashes.values())))


def _remove_shared(parts: dict[str, list[_Example]]) -> None:
    for name, others in (("validation", ["test"]), ("train", ["validation", "test"])):
        taken = {example.key for other in others for example in parts[other]}
        kept = [example for example in parts[name] if example.key not in taken]
        removed = len(parts[name]) - len(kept)
        if removed and not kept:
            what = f"every {name} row also stands in {' or '.join(others)}"
            raise DataError(f"{parts[name][0].place}: {what}; files with texts of their own would fit")
        if removed:
            _log.warning("%d %s row(s) removed: their text also stands in %s", removed, name, " or ".join(others))
        parts[name] = kept


def _check_classes(rows: Sequence[_Example], train: str, group: str | None, set_aside: bool) -> None:
    first: dict[str, _Example] = {}
    units: dict[str, set[str]] = {}
    for row in rows:
        first.setdefault(row.label, row)
        units.setdefault(row.label, set()).add(row.unit)
    if len(units) == 1:
        what = f"all {len(rows)} rows have the label {rows[0].label!r}"
        raise DataError(f"{rows[0].place}: {what}; at least two classes are needed")
    have = f"1 value of {group!r}" if group else "1 different text"
    fits = "at least 2 are needed, one to train on and one to validate; add more or give a validation file"
    rare = [label for label, found in units.items() if set_aside and len(found) < 2]
    _report([f"{first[label].place}: the class {label!r} has {have} in {train}; {fits}" for label in rare])


def _check_parts(parts: Mapping[str, Sequence[_Example]], shares: Mapping[str, float], train: str) -> None:
    known = dict.fromkeys(row.label for row in parts["train"])
    strange: dict[str, str] = {}
    for row in (*parts["validation"], *parts["test"]):
        if row.label not in known:
            problem = f"the label {row.label!r} never occurs in the training rows of {train}"
            strange.setdefault(row.label, f"{row.place}: {problem}; {suggest(row.label, list(known))}")
    _report(list(strange.values()))
    fits = "more rows, a larger share, another seed, or a file of its own would fit"
    if "test" in shares and not parts["test"]:
        raise DataError(f"{train}: too few rows to set some aside for test; {fits}, or test_share: 0")
    seen = {row.label for row in parts["validation"]}
    unseen = [label for label in known if label not in seen and "validation" in shares]
    _report([f"{train}: no row of the class {label!r} was set aside for validation; {fits}" for label in unseen])


def _deal_by_class(rows: Sequence[_Example], shares: Mapping[str, float], seed: int) -> dict[str, list[_Example]]:
    """Each class on its own, so that every part has its share of it; a unit of several classes goes with the rarest."""
    labels: dict[str, dict[str, None]] = {}
    for row in rows:
        labels.setdefault(row.unit, {})[row.label] = None
    spread = Counter(label for found in labels.values() for label in found)
    strata: dict[str, list[_Example]] = {}
    for row in rows:
        strata.setdefault(min(labels[row.unit], key=spread.__getitem__), []).append(row)
    part_of: dict[str, str] = {}
    for members in strata.values():
        part_of.update(_deal(members, shares, seed))
    return {name: [row for row in rows if part_of[row.unit] == name] for name in shares}


def _deal(rows: Sequence[_Example], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each unit; no part is empty while there are units, training and validation first."""
    units = list(dict.fromkeys(row.unit for row in rows))
    names = list(shares)[: len(units)]
    wanted = [shares[name] / sum(shares[name] for name in names) for name in names]
    try:
        parts = [[row.unit for row in part] for part in split_by_group(rows, lambda row: row.unit, wanted, seed)]
    except DataError:  # few units, or one with most of the rows: deal by their number, at least one to each part
        counts = [max(1, round(share * len(units))) for share in wanted]
        counts[counts.index(max(counts))] += len(units) - sum(counts)
        parts = split_by_group(units, str, [count / len(units) for count in counts], seed)
    return {unit: name for name, part in zip(names, parts, strict=True) for unit in part}
