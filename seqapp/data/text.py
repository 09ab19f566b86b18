"""Text to learn to continue: passages of a corpus, your own files of it, and texts that depend on a condition."""

from __future__ import annotations

import bisect
import codecs
import difflib
import hashlib
import io
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

from seqapp.data.rows import FOREIGN, Format, encodings_that_fit, read_rows
from seqapp.data.splits import SOURCES, Splits, remove_shared, split_by_group, training_share
from seqapp.data.tables import read_examples, read_labelled, report, table
from seqapp.errors import DataError
from seqapp.registry import Count, Probability, Share, suggest

BLOCK = 1 << 17
"""Characters in one passage of a long text, about."""
MANY = 20
"""Documents from which on whole ones are set aside."""
_CHUNK = 1 << 14  # bytes
_LINE_END = re.compile(r"\n(?=\S)")  # and no run of white space, which may be one token
_SHOWN = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text; the passages of a split follow each other.

    Args:
        text: the piece.
        ends: whether a document ends here; False if the next passage goes on with it.
        condition: a class, or a vector of features, that the text depends on.
    """

    text: str
    ends: bool = True
    condition: str | tuple[float, ...] | None = None


def passages(text: str, *, ends: bool = True, block: int = BLOCK) -> list[Passage]:
    """A text as passages of about ``block`` characters, cut where a line ends if one does.

    Args:
        text: one document.
        ends: whether it ends, or is part of a longer one.
        block: characters of a passage.
    """
    found, start = [], 0
    while len(text) - start > block:
        line_end = _LINE_END.search(text, start + block)
        if line_end is None:
            break
        found.append(Passage(text[start : line_end.end()], ends=False))
        start = line_end.end()
    return [*found, *([Passage(text[start:], ends=ends)] if start < len(text) else [])]


class _Mark(NamedTuple):
    """Where a block begins: ``skip`` characters after what a decoder in ``state`` finds from byte ``offset`` on."""

    offset: int
    state: tuple[bytes, int]
    skip: int
    character: int


class Document:
    """A text file, checked from end to end once, then read a block at a time; line ends become LF, a BOM is dropped.

    A block ends where a line ends, if one does, and in any encoding never inside a character.

    Args:
        path: the file.
        encoding: such as utf-8, utf-16 or latin-1.
        block: about how many characters one block has.

    Raises:
        DataError: for a byte that the encoding does not know, with its offset and line, or a file that is no text.
    """

    def __init__(self, path: Path, *, encoding: str = "utf-8", block: int = BLOCK) -> None:
        self.path, self.encoding = path, encoding
        self.characters, self.blank = 0, True
        sha = hashlib.sha256()
        decoder = self._decoder()
        self._marks = [_Mark(0, decoder.getstate(), 0, 0)]
        with self._open() as stream:
            offset, line, chunk = 0, 1, b"start"
            while chunk:
                chunk, state = stream.read(_CHUNK), decoder.getstate()
                text = self._decode(decoder, chunk, offset, line)
                if offset == 0 and text.startswith("\ufeff"):
                    self._marks = [_Mark(0, state, 1, 0)]
                    self.characters = -1
                if "\0" in text:
                    where = f"{path}:{line + text[: text.index(chr(0))].count(chr(10))}"
                    fits = "a text file, or for UTF-16 encoding: utf-16, would fit"
                    raise DataError(f"{where}: a NUL character, which text does not hold; {fits}")
                sha.update(text.encode("utf-8", "surrogatepass"))
                if self.characters + len(text) - self._marks[-1].character >= block:
                    cut = max((found.end() for found in _LINE_END.finditer(text, 1)), default=len(text))
                    self._marks.append(_Mark(offset, state, cut, self.characters + cut))
                self.characters += len(text)
                self.blank = self.blank and not text.strip("\ufeff \t\r\n")
                line += text.count("\n")
                offset += len(chunk)
        if len(self._marks) > 1 and self._marks[-1].character == self.characters:
            self._marks.pop()
        self.key, self.place = sha.hexdigest(), str(path)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Characters ``start`` to ``stop`` as (block, first character in it, end in it)."""
        bounds = [*(mark.character for mark in self._marks), self.characters]
        for index in range(bisect.bisect_right(bounds, start) - 1, len(self._marks)):
            first, end = max(start, bounds[index]), min(stop, bounds[index + 1])
            if first < end:
                yield index, first - bounds[index], end - bounds[index]

    def read(self, index: int) -> str:
        """Block ``index``.

        Raises:
            DataError: if the file cannot be read any more, or has become shorter.
        """
        mark = self._marks[index]
        after = self._marks[index + 1] if index + 1 < len(self._marks) else None
        with self._open() as stream:
            stream.seek(mark.offset)
            content = stream.read(after.offset + _CHUNK - mark.offset if after else -1)
        decoder = self._decoder()
        decoder.setstate(mark.state)
        size = (after.character if after else self.characters) - mark.character
        try:
            text = decoder.decode(content, final=after is None)[mark.skip : mark.skip + size]
        except UnicodeError:
            text = ""
        if len(text) != size:
            raise DataError(f"{self.path}: the file was changed while it was in use; start again")
        return text

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _decoder(self) -> io.IncrementalNewlineDecoder:
        try:
            "".encode(self.encoding)  # refuses codecs that are not text, such as hex
            return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(self.encoding)(), translate=True)
        except (LookupError, ValueError):
            fits = "one that Python knows, such as utf-8, utf-16, latin-1 or cp1252"
            raise DataError(f"{self.path}: no text encoding is called {self.encoding!r}; {fits}") from None

    def _decode(self, decoder: io.IncrementalNewlineDecoder, chunk: bytes, offset: int, line: int) -> str:
        if offset == 0:
            for start, problem in FOREIGN.items():
                if chunk.startswith(start):
                    raise DataError(f"{self.path}: the file {problem.partition(';')[0]}; plain text would fit")
        state = decoder.getstate()
        try:
            return decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            held = len(state[0])
            decoder.setstate(state)
            line += decoder.decode(chunk[: max(0, error.start - held)]).count("\n")
            byte = f"byte {offset - held + error.start} (0x{error.object[error.start]:02x})"
            fits = encodings_that_fit(error.object, self.encoding) or "a file that is not cut off"
            what = f"{byte} is not {self.encoding} text: {error.reason}; {fits} would fit"
            raise DataError(f"{self.path}:{line}: {what}") from None
        except UnicodeError as error:  # UTF-16 and UTF-32 without a byte order mark
            fits = f"encoding: {self.encoding}-le or encoding: {self.encoding}-be"
            raise DataError(f"{self.path}:1: byte 0 is not {self.encoding} text: {error}; {fits} would fit") from None


class Excerpts(Sequence[Passage]):
    """Parts of documents as passages, each read from its file when it is asked for.

    Args:
        spans: document, first character, and the one after the last.
        ends: whether the end of a document ends its last passage.
    """

    def __init__(self, spans: Iterable[tuple[Document, int, int]], *, ends: bool) -> None:
        self._blocks: list[tuple[Document, int, int, int, bool]] = []
        for document, start, stop in spans:
            blocks = list(document.blocks(start, stop))
            last = len(blocks) - 1 if ends and stop == document.characters else -1
            self._blocks += [(document, *block, index == last) for index, block in enumerate(blocks)]

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        document, block, start, stop, ends = self._blocks[index]
        return Passage(document.read(block)[start:stop], ends)


def read_text(path: str | Path, *, encoding: str = "utf-8", pattern: str = "**/*.txt") -> Excerpts:
    """The text of a file, which has no end, or of the files of a folder in the order of their paths, which do end.

    Args:
        path: a file or a folder.
        encoding: of the files, such as utf-8, utf-16 or latin-1; a byte order mark is dropped, line ends become LF.
        pattern: which files of a folder.

    Raises:
        DataError: naming the file, what was wrong, and what would fit.
    """
    documents = _documents(path, pattern, encoding)
    return Excerpts(((one, 0, one.characters) for one in documents), ends=len(documents) > 1)


@SOURCES.register("text")
def own_text(
    *,
    train: str,
    validation: str | None = None,
    test: str | None = None,
    pattern: str = "**/*.txt",
    encoding: str = "utf-8",
    validation_share: Share = 0.05,
    test_share: Probability = 0.05,
    seed: Count = 0,
) -> Splits[Passage]:
    """Your own text: a file, or a folder of files, each a document. Files of any size take the same memory.

    Without a file for validation or test, a share of the characters of train is set aside: of 20 documents and more
    some whole ones, equal ones together; of fewer the end of each, test last. Documents that are cut, and a single one,
    are modelled without an end; whole ones, of several, with one. A document of train that equals one of validation or
    test is removed, and one of validation that equals one of test.

    Args:
        train: the file or folder to learn from; a relative path starts at the current directory.
        validation: the file or folder that chooses between weights; without one, a part of train is set aside.
        test: the file or folder for the final figure; without one, a part of train is set aside.
        pattern: which files of a folder.
        encoding: of the files, such as utf-8, utf-16 or latin-1; a byte order mark is dropped, line ends become LF.
        validation_share: how much of train to set aside if there is no validation.
        test_share: how much of train to set aside if there is no test; 0 for no test split.
        seed: decides which whole documents are set aside.

    Raises:
        ConfigError: if the shares leave nothing to train on.
        DataError: naming the file, what was wrong, and what would fit.
    """
    paths = {"train": train, "validation": validation, "test": test}
    asked = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in asked.items() if paths[name] is None and share > 0}
    left = training_share(shares)
    parts = {name: _documents(path, pattern, encoding) if path is not None else [] for name, path in paths.items()}
    remove_shared(parts, "document")
    whole = not shares or len(parts["train"]) >= MANY
    how = [f"{name} {share:g}" for name, share in shares.items()] + [f"seed {seed}"] * (whole and bool(shares))
    if whole and shares:
        parts |= _deal(parts["train"], shares, seed)
    spans = {part: [(one, 0, one.characters) for one in documents] for part, documents in parts.items()}
    if not whole:
        edges = [0.0, *accumulate(shares.values(), initial=left)]
        for part, low, high in zip(["train", *shares], edges, edges[1:], strict=False):
            spans[part] = [(one, round(low * one.characters), round(high * one.characters)) for one in parts["train"]]
    ends = whole and len(parts["train"]) > 1
    splits = {part: Excerpts(found, ends=ends) for part, found in spans.items()}
    for part in ("train", *shares):
        if not splits[part]:
            fits = "a longer text, another share, or a file of its own would fit"
            raise DataError(f"{train}: too short to set some aside, {part} would be empty; {fits}")
    return Splits.of(", ".join([f"text {Path(train).name}", *how]), splits)


def _documents(path: str | Path, pattern: str, encoding: str) -> list[Document]:
    """The files that hold more than white space, in the order of their paths."""
    path = Path(path)
    if not path.is_dir():
        return [_told_if_blank(Document(_present(path), encoding=encoding))]
    try:
        files = sorted((file for file in path.glob(pattern) if file.is_file()), key=Path.as_posix)
    except (ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{path}: no file can be looked for with pattern {pattern!r}: {error}") from None
    if not files:
        kinds = Counter(f"*{file.suffix}" for file in path.rglob("*") if file.is_file()).most_common(_SHOWN)
        there = ", ".join(f"{count} {kind}" for kind, count in kinds) or "no file at all"
        raise DataError(f"{path}: no file in this folder fits pattern {pattern!r}; there is {there}")
    documents = [Document(file, encoding=encoding) for file in files]
    blank = [document for document in documents if document.blank]
    if len(blank) == len(documents):
        _told_if_blank(blank[0])
    if blank:
        _log.warning("%d file(s) left out, for they hold no text; the first: %s", len(blank), blank[0].path)
    return [document for document in documents if not document.blank]


def _present(path: Path) -> Path:
    if path.is_file():
        return path
    if path.exists():
        raise DataError(f"{path}: neither a file nor a folder; one of them would fit")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such file, nor is there a folder {path.parent}")
    names = sorted(other.name for other in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3) or names[:_SHOWN]
    raise DataError(f"{path}: no such file or folder; there is {', '.join(near) or 'nothing'}")


def _told_if_blank(document: Document) -> Document:
    if document.blank:
        raise DataError(f"{document.path}: the file holds no text; one with some characters would fit")
    return document


def _deal(documents: Sequence[Document], shares: Mapping[str, float], seed: int) -> dict[str, list[Document]]:
    """Whole documents, equal ones together, at random to each part until it has its share of the characters."""
    sizes = Counter[str]()
    for document in documents:
        sizes[document.key] += document.characters
    room = {part: share * sizes.total() for part, share in shares.items()}
    part_of = dict.fromkeys(sizes, "train")
    for key in random.Random(seed).sample(sorted(sizes), len(sizes)):
        part = next((part for part, left in room.items() if sizes[key] / 2 <= left), None)
        if part:
            room[part] -= sizes[key]
            part_of[key] = part
    return {part: [one for one in documents if part_of[one.key] == part] for part in ("train", *shares)}


@SOURCES.register("conditioned")
def conditioned(
    *,
    train: str,
    validation: str | None = None,
    test: str | None = None,
    text: str = "text",
    condition: str = "condition",
    features: list[str] = [],  # noqa: B006  (never changed)
    group: str | None = None,
    validation_share: Share = 0.1,
    test_share: Probability = 0.1,
    seed: Count = 0,
    encoding: str = "utf-8",
    format: Format | None = None,
) -> Splits[Passage]:
    """Your own texts that depend on a class or on numbers, from CSV, TSV, JSON Lines or Parquet files.

    No text stands in two splits, whatever its case and spacing: it is removed from training, or from validation if it
    is in test as well, and a warning tells how many were.

    Args:
        train: the file to learn from; a relative path starts at the current directory.
        validation: the file that chooses between weights; without one, rows of train are set aside.
        test: the file for the final figure; without one, rows of train are set aside.
        text: the column of the text.
        condition: the column of the class, or of a list of numbers.
        features: columns of one number each, in place of condition.
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
    if not (features or _lists(train, condition, encoding, format)):
        found = table(
            train=train,
            validation=validation,
            test=test,
            text=text,
            label=condition,
            group=group,
            validation_share=validation_share,
            test_share=test_share,
            seed=seed,
            encoding=encoding,
            format=format,
        )
        labelled = (found.train, found.validation, found.test)
        return Splits(found.name, *([Passage(one.text, True, one.label) for one in part] for part in labelled))
    given = {"validation": validation, "test": test}
    asked = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in asked.items() if given[name] is None and share > 0}
    left = training_share(shares)
    parts = {
        name: _measured(path, text, condition, features, group if name == "train" else None, encoding, format)
        if path is not None
        else []
        for name, path in {"train": train, **given}.items()
    }
    _check_widths([row for part in parts.values() for row in part])
    remove_shared(parts)
    if shares:
        try:
            dealt = split_by_group(parts["train"], lambda row: row.unit, [left, *shares.values()], seed)
        except DataError as error:
            raise DataError(f"{train}: {error}; more rows, or files of their own, would fit") from None
        parts |= dict(zip(["train", *shares], dealt, strict=True))
        remove_shared(parts)
    how = [f"{name} {share:g}" for name, share in shares.items()]
    name = ", ".join([f"table {Path(train).name}", *how, *([f"by {group or 'text'}", f"seed {seed}"] if how else [])])
    return Splits.of(
        name, {part: [Passage(row.text, True, row.numbers) for row in rows] for part, rows in parts.items()}
    )


def read_conditioned(
    path: str | Path,
    *,
    text: str = "text",
    condition: str = "condition",
    features: Sequence[str] = (),
    encoding: str = "utf-8",
    format: Format | None = None,
) -> list[Passage]:
    """The texts and conditions of a file, in its order.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson or .parquet file; text may be gzip-compressed (.csv.gz).
        text: the column of the text.
        condition: the column of the class, or of a list of numbers.
        features: columns of one number each, in place of condition.
        encoding: of the text, such as utf-8, utf-16 or latin-1; a byte order mark is dropped.
        format: what the file holds, where its name does not tell.

    Raises:
        DataError: for a column that is not there, and for all rows that do not fit, together.
    """
    if features or _lists(path, condition, encoding, format):
        rows = _measured(path, text, condition, features, None, encoding, format)
        _check_widths(rows)
        return [Passage(row.text, True, row.numbers) for row in rows]
    labelled = read_labelled(path, text=text, label=condition, encoding=encoding, format=format)
    return [Passage(one.text, True, one.label) for one in labelled]


@dataclass(frozen=True, slots=True)
class _Measured:
    """A row whose condition is numbers; the other names as in :class:`seqapp.data.tables.Example`."""

    place: str
    text: str
    key: str
    unit: str
    numbers: tuple[float, ...]


def _lists(path: str | Path, condition: str, encoding: str, format: Format | None) -> bool:
    """Whether the first condition of a file is a list."""
    return isinstance(next(read_rows(path, encoding=encoding, format=format)).values.get(condition), list)


def _measured(
    path: str | Path,
    text: str,
    condition: str,
    features: Sequence[str],
    group: str | None,
    encoding: str,
    format: Format | None,
) -> list[_Measured]:
    problems, found = [], []
    examples = read_examples(path, text, "", group, encoding, format, label_required=False)
    rows = list(read_rows(path, encoding=encoding, format=format))
    known = list({name: None for row in rows for name in row.values})
    report(
        [f"{path}:1: no column is called {name!r}; {suggest(name, known)}" for name in features if name not in known]
    )
    for example, row in zip(examples, rows, strict=True):
        named = {name: row.values.get(name) for name in features} or {condition: row.values.get(condition)}
        try:
            numbers = tuple(number for name, value in named.items() for number in _numbers(name, value, bool(features)))
            found.append(_Measured(example.place, example.text, example.key, example.unit, numbers))
        except ValueError as error:
            problems.append(f"{example.place}: {error}")
    report(problems)
    return found


def _check_widths(rows: Sequence[_Measured]) -> None:
    for row in rows:
        if len(row.numbers) != len(rows[0].numbers):
            what = f"{len(row.numbers)} numbers, but {len(rows[0].numbers)} in {rows[0].place}"
            raise DataError(f"{row.place}: {what}; the same number of them everywhere would fit")


def _numbers(column: str, value: object, single: bool) -> Iterator[float]:
    fits = "a finite number" if single else "a list of finite numbers"
    if isinstance(value, list) == single or value == []:
        raise ValueError(f"column {column!r} is {value!r:.60}; it takes {fits}")
    for one in value if isinstance(value, list) else [value]:
        try:
            number = float(one) if isinstance(one, str | int | float) and not isinstance(one, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"column {column!r} is {value!r:.60}; it takes {fits}")
        yield number
