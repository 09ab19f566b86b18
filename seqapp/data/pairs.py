"""Sentences and their translations, and your own files of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seqapp.data import rows
from seqapp.data.rows import open_file, read_rows, text_lines
from seqapp.data.splits import SOURCES, Splits, remove_shared, split_by_group, training_share
from seqapp.data.tables import report
from seqapp.data.tmx import read_tmx
from seqapp.errors import DataError
from seqapp.registry import Count, InvalidOption, Probability, Share, Size

Format = Literal[rows.Format, "tmx"]
OnBad = Literal["error", "skip"]

_SIDES = ("source", "target")
_SHOWN = 10
_SPACE = re.compile(r"[ \t\n\v\f\r\u2028\u2029]+")  # no-break spaces are part of the text, in French above all
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff]")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SentencePair:
    """A sentence and its translation.

    Args:
        source: the sentence.
        target: its translation.
        languages: codes as in BCP 47, such as ("en", "de"): of source and target; "" where none is known.
    """

    source: str
    target: str
    languages: tuple[str, str] = ("", "")


class _Found(NamedTuple):
    """A pair as it stands in a file: file and line of source and of target, and what is there."""

    places: tuple[str, str]
    sides: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A pair that fits; ``key`` is equal for sources that differ only in case and spacing."""

    place: str
    key: str
    pair: SentencePair


def read_pairs(
    path: str | Path | Sequence[str | Path],
    *,
    languages: tuple[str, str] = ("", ""),
    columns: Sequence[str | int] | None = None,
    encoding: str = "utf-8",
    format: Format | None = None,
    max_characters: int = 1000,
    on_bad: OnBad = "error",
) -> list[SentencePair]:
    """The pairs of a file, or of two aligned ones, in their order, equal ones included.

    Two files hold a sentence a line, line by line translations of each other. One file is a table with two columns
    (CSV, TSV, JSON Lines, Parquet), or TMX. Hugging Face's ``{"translation": {"en": ..., "de": ...}}`` is read as
    columns ``en`` and ``de``. White space at the ends of a sentence goes, and runs of blanks, tabs and line ends inside
    become one blank. Lines that are blank in both files are passed over.

    Args:
        path: a table or TMX file, or the source file and the target file; each may be gzip-compressed (.gz).
        languages: codes of source and target, such as ("en", "de"); TMX and tables without ``columns`` go by them.
        columns: the names of the source and the target column; or their numbers, from 1, in a .tsv file without a
            header, where quotes are part of the text. By default the languages, or else "source" and "target".
        encoding: of text files; a byte order mark is dropped. TMX tells its own.
        format: what one file holds, where its name does not tell.
        max_characters: the longest sentence that is taken.
        on_bad: whether a side that is empty, too long, no text or holds control characters is an error, or skips the
            pair with a warning.

    Raises:
        DataError: naming file and line, what was wrong, and what would fit; for all pairs that do not fit, together.
    """
    return [one.pair for one in _read(path, languages, columns, encoding, format, max_characters, on_bad)]


@SOURCES.register("pairs")
def own_pairs(
    *,
    train: str | list[str],
    source: str,
    target: str,
    validation: str | list[str] | None = None,
    test: str | list[str] | None = None,
    columns: list[str | Size] | None = None,
    validation_share: Share = 0.05,
    test_share: Probability = 0.05,
    seed: Count = 0,
    max_characters: Size = 1000,
    on_bad: OnBad = "error",
    encoding: str = "utf-8",
    format: Format | None = None,
) -> Splits[SentencePair]:
    """Your own sentences in two languages: two aligned files, or one of CSV, TSV, JSON Lines, Parquet or TMX.

    No source sentence stands in two splits, whatever its case and spacing: it is removed from training, or from
    validation if it is in test as well, and a warning tells how many were. Inside a split equal pairs stay, for how
    often one occurs is part of the data.

    Args:
        train: the file to learn from, or the source file and the target file, a sentence a line; a relative path starts
            at the current directory.
        source: code of the language to translate from, as in BCP 47, such as en or pt-BR.
        target: code of the language to translate into.
        validation: the file or files that choose between weights; without any, pairs of train are set aside.
        test: the file or files for the final figure; without any, pairs of train are set aside.
        columns: names of the source and the target column of a table, or their numbers, from 1, in a .tsv file without
            a header; by default the codes of the languages, or else source and target.
        validation_share: how much of train to set aside if there is no validation file.
        test_share: how much of train to set aside if there is no test file; 0 for no test split.
        seed: of the shuffle that sets pairs aside.
        max_characters: the longest sentence that is taken.
        on_bad: whether a side that is empty, too long, no text or holds control characters is an error, or skips the
            pair with a warning.
        encoding: of text files, such as utf-8, utf-16 or latin-1; TMX tells its own.
        format: what one file holds, where its name does not tell.

    Raises:
        ConfigError: if the shares leave nothing to train on, or the languages or columns are not two.
        DataError: naming file and line, what was wrong, and what would fit.
    """
    for option, code in zip(_SIDES, (source, target), strict=True):
        if not _LANGUAGE.fullmatch(code):
            raise InvalidOption((option,), f"takes the code of a language, such as en, de or pt-BR, not {code!r}")
    if source.lower() == target.lower():
        fits = "two different ones would fit; for two kinds of one language, such as en and en-x-simple"
        raise InvalidOption(("target",), f"is the source language, {source!r}; {fits}")
    given = {"validation": validation, "test": test}
    asked = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in asked.items() if given[name] is None and share > 0}
    left = training_share(shares)
    how = ((source, target), columns, encoding, format, max_characters, on_bad)
    parts = {name: [] if path is None else _read(path, *how) for name, path in {"train": train, **given}.items()}
    remove_shared(parts, "sentence pair")
    name = train if isinstance(train, str) else train[0]
    if shares:
        try:
            dealt = split_by_group(parts["train"], lambda one: one.key, [left, *shares.values()], seed)
        except DataError as error:
            raise DataError(f"{name}: {error}; more pairs, or files of their own, would fit") from None
        parts |= dict(zip(["train", *shares], dealt, strict=True))
    again = len(parts["train"]) - len({one.pair for one in parts["train"]})
    if again:
        _log.info("%s: %d training pair(s) occur more than once, and stay", name, again)
    aside = [f"{part} {share:g}" for part, share in shares.items()]
    title = ", ".join([f"pairs {Path(name).name} {source}-{target}", *aside, *([f"seed {seed}"] if aside else [])])
    return Splits.of(title, {part: [one.pair for one in found] for part, found in parts.items()})


def _read(
    path: str | Path | Sequence[str | Path],
    languages: tuple[str, str],
    columns: Sequence[str | int] | None,
    encoding: str,
    format: Format | None,
    max_characters: int,
    on_bad: OnBad,
) -> list[_Placed]:
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if len(paths) == 2:
        for option, value in (("columns", columns), ("format", format)):
            if value is not None:
                raise InvalidOption((option,), "is for one file; two files hold a sentence a line, and nothing else")
        found = _aligned(paths[0], paths[1], encoding)
    elif len(paths) == 1:
        found = _one_file(paths[0], languages, columns, encoding, format)
    else:
        raise DataError(f"{len(paths)} files are not pairs of sentences; one, or the source and the target file, fit")
    pairs, problems = _checked(found, languages, max_characters)
    if on_bad == "error" or not pairs:
        report(problems)
    elif problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        shown = "\n  ".join([*problems[:_SHOWN], *more])
        _log.warning("%d problem(s), of pairs that are left out:\n  %s", len(problems), shown)
    if not pairs:
        raise DataError(f"{paths[0]}: holds no pair of sentences; at least one is needed")
    same = sum(one.pair.source == one.pair.target for one in pairs)
    if same > len(pairs) / 2:
        what = "pairs the target is the source itself; are these the right files or columns?"
        _log.warning("%s: in %d of %d %s", paths[0], same, len(pairs), what)
    return pairs


def even_spaces(text: str) -> str:
    """``text`` with one blank for each run of blanks, tabs and line ends, as pairs that were read have it."""
    return _SPACE.sub(" ", text)


def _checked(
    found: Iterable[_Found], languages: tuple[str, str], max_characters: int
) -> tuple[list[_Placed], list[str]]:
    """The pairs that fit, and what is wrong with the others."""
    pairs, problems = [], []
    for places, sides in found:
        texts = [even_spaces(side).strip() if isinstance(side, str) else side for side in sides]
        wrong = [_problem(text, max_characters) for text in texts]
        problems += [
            f"{place}: the {side} {what}" for place, side, what in zip(places, _SIDES, wrong, strict=True) if what
        ]
        if not any(wrong):
            source, target = texts
            pairs.append(_Placed(places[0], source.casefold(), SentencePair(source, target, languages)))
    return pairs, problems


def _problem(text: Any, max_characters: int) -> str:
    """What is wrong with one side of a pair, and what would fit; empty if nothing is."""
    if text is None or text == "":
        return f"is {'missing' if text is None else 'empty'}; fill it in, or delete the pair"
    if not isinstance(text, str):
        return f"is {text!r:.60}; it takes a string"
    if len(text) > max_characters:
        return f"has {len(text):,} characters; {max_characters:,} fit (max_characters); split or delete the pair"
    if control := _CONTROL.search(text):
        character = control.group()
        fits = "delete it"
        if "\x80" <= character <= "\x9f":
            fits += "; or read as another encoding, such as cp1252, it would be a letter or a sign"
        name = "a byte order mark" if character == "\ufeff" else "a control character"
        return f"holds {name}, U+{ord(character):04X}, at character {control.start() + 1}; {fits}"
    return ""


def _aligned(source: Path, target: Path, encoding: str) -> Iterator[_Found]:
    """The lines of two files side by side."""
    if source == target:
        raise DataError(f"{source}: given as source and as target; two files that translate each other would fit")
    sizes: tuple[list[int], list[int]] = ([], [])
    with open_file(source) as first, open_file(target) as second:
        lines = [text_lines(source, first, encoding), text_lines(target, second, encoding)]
        while True:
            sides = [next(side, None) for side in lines]
            for size, line in zip(sizes, sides, strict=True):
                if line is not None:
                    size.append(len(line))
            number = len(sizes[0])
            if sides[0] is not None and sides[1] is not None:
                if any(side.strip() for side in sides if side):
                    yield _Found((f"{source}:{number}", f"{target}:{number}"), (sides[0], sides[1]))
            elif sides[0] is None and sides[1] is None:
                break
    if len(sizes[0]) != len(sizes[1]):
        longer, shorter = sorted(sizes, key=len, reverse=True)
        much = len(longer) - len(shorter)
        where = ""
        if 10 * much <= len(shorter):
            file = source if longer is sizes[0] else target
            where = f"; going by lengths, {file} has {much:,} line(s) too many about line {_slip(longer, shorter):,}"
        counts = f"{len(sizes[0]):,} lines, but {target} has {len(sizes[1]):,}"
        raise DataError(f"{source}: {counts}; line by line they must translate each other{where}")


def _slip(longer: Sequence[int], shorter: Sequence[int]) -> int:
    """The line, from 1, where lines left out of ``longer`` make the lengths that stand side by side differ least."""
    much = len(longer) - len(shorter)
    steps = (abs(a - n) - abs(b - n) for a, b, n in zip(longer, longer[much:], shorter, strict=False))
    costs = list(accumulate(steps, initial=0))
    return costs.index(min(costs)) + 1


def _one_file(
    path: Path,
    languages: tuple[str, str],
    columns: Sequence[str | int] | None,
    encoding: str,
    format: Format | None,
) -> Iterator[_Found]:
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = format or name.suffix.lower().removeprefix(".")
    chosen = None if columns is None else _two(columns)
    if kind == "tmx":
        if not all(languages):
            raise DataError(f"{path}: TMX holds many languages; the codes of source and target are needed")
        found: Iterable[tuple[int, Any, Any]] = read_tmx(path, languages)
    elif chosen and isinstance(chosen[0], int):
        if kind != "tsv":
            fits = "name its columns, or save it as .tsv (or give format: tsv)"
            raise DataError(f"{path}: columns are known by number only in a .tsv file without a header; {fits}")
        found = _by_number(path, *chosen, encoding)
    elif format or kind in ("csv", "tsv", "jsonl", "ndjson", "parquet"):
        found = _by_name(path, languages, chosen, encoding, format)
    else:
        what = "its name does not tell what it holds" if path.exists() else "no such file"
        fits = "a name that ends in .csv, .tsv, .jsonl, .parquet or .tmx, the option format, or two aligned files"
        raise DataError(f"{path}: {what}; {fits}, as [SOURCE, TARGET], would fit")
    for line, source, target in found:
        yield _Found((f"{path}:{line}",) * 2, (source, target))


def _two(columns: Sequence[Any]) -> tuple[Any, Any]:
    numbered = [isinstance(column, int) and column > 0 for column in columns]
    named = [isinstance(column, str) for column in columns]
    if len(set(columns)) != 2 or len(columns) != 2 or not (all(numbered) or all(named)):
        raise InvalidOption(("columns",), f"takes two names or two numbers from 1, not {list(columns)}")
    return columns[0], columns[1]


def _by_number(path: Path, source: int, target: int, encoding: str) -> Iterator[tuple[int, str | None, str | None]]:
    enough = False
    with open_file(path) as stream:
        for number, line in enumerate(text_lines(path, stream, encoding), 1):
            if not line.strip():
                continue
            fields: list[str | None] = [*line.rstrip("\r\n").split("\t")]
            lacking = max(source, target) - len(fields)
            if lacking > 0 and not enough:
                what = f"{len(fields)} field(s), but columns are [{source}, {target}]"
                raise DataError(f"{path}:{number}: {what}; a tab between two fields would fit")
            enough = True
            fields += [None] * lacking
            yield number, fields[source - 1], fields[target - 1]


def _by_name(
    path: Path,
    languages: tuple[str, str],
    columns: tuple[str, str] | None,
    encoding: str,
    format: Format | None,
) -> Iterator[tuple[int, Any, Any]]:
    assert format != "tmx"
    checked = False
    for row in read_rows(path, encoding=encoding, format=format):
        nested = row.values.get("translation")
        values = {**nested, **row.values} if isinstance(nested, Mapping) else row.values
        columns = columns or _columns_of(languages, values)
        absent = [column for column in columns if column not in values and not checked]
        if absent:
            known = ", ".join(map(repr, values))
            fits = "columns: [SOURCE, TARGET] names them, or in a .tsv file without a header numbers them from 1"
            what = " and no ".join(f"column {column!r}" for column in absent)
            raise DataError(f"{path}:1: there is no {what}; there are {known}; {fits}")
        checked = True
        yield row.line, values.get(columns[0]), values.get(columns[1])


def _columns_of(languages: tuple[str, str], values: Mapping[str, Any]) -> tuple[str, str]:
    """The languages if the file has them, or else "source" and "target"."""
    if all(languages) and any(code in values for code in languages):
        return languages
    return ("source", "target")
