"""A user's own labelled files, and the data source ``table`` made of them."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from seqapp.data.rows import Format, read_rows
from seqapp.data.splits import SOURCES, LabelledText, Splits, remove_shared, split_by_group, training_share
from seqapp.errors import DataError
from seqapp.registry import Probability, Share, suggest

_SHOWN = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a file of texts.

    Args:
        place: file and line.
        text: as it stands there.
        label: without outer spaces.
        key: equal for texts that differ only in case and spacing.
        unit: what a split must not cut: the group, or else the key.
    """

    place: str
    text: str
    label: str
    key: str
    unit: str


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
    examples = read_examples(path, text, label, None, encoding, format, label_required)
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
    left = training_share(shares)
    parts = {"train": read_examples(train, text, label, group if shares else None, encoding, format)}
    for name, path in given.items():
        parts[name] = read_examples(path, text, label, None, encoding, format) if path is not None else []
    _warn_of_contradictions([example for part in parts.values() for example in part])
    remove_shared(parts)
    rows = parts["train"]
    _check_classes(rows, train, group, "validation" in shares)
    if shares:
        parts |= _deal_by_class(rows, {"train": left, **shares}, seed)
        remove_shared(parts)
    _check_parts(parts, shares, train)
    aside = [f"{name} {share:g}" for name, share in shares.items()]
    how = [*aside, f"by {group}" if group else "by text", f"seed {seed}"] if aside else []
    splits = {name: [LabelledText(row.text, row.label) for row in part] for name, part in parts.items()}
    return Splits.of(", ".join([f"table {Path(train).name}", *how]), splits)


def read_examples(
    path: str | Path,
    text: str,
    label: str,
    group: str | None,
    encoding: str,
    format: Format | None,
    label_required: bool = True,
) -> list[Example]:
    """As :func:`read_labelled`, with what is needed to set rows aside; ``group`` is a column or None."""
    needed = {"text": text, **({"label": label} if label_required else {}), **({"group": group} if group else {})}
    examples: list[Example] = []
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
            examples.append(Example(place, content, names["label"], key, names["group"] or key))
    known = list(columns)
    hint = ""
    if len(known) == 1 and (separator := re.search(r"[;,|\t]", known[0])):
        hint = f"; is {separator.group()!r} the separator? format: csv takes ',' and format: tsv takes tabs"
    absent = [(f"{column!r} (option {role})", column) for role, column in needed.items() if column not in columns]
    report([f"{path}:1: no column is called {what}; {suggest(column, known)}{hint}" for what, column in absent])
    report(problems)
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


def report(problems: Sequence[str]) -> None:
    """Raise one DataError for all ``problems``, if there are any."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n  ".join([f"{len(problems)} problems:", *problems[:_SHOWN], *more]))


def _warn_of_contradictions(examples: Sequence[Example]) -> None:
    first: dict[str, Example] = {}
    clashes: dict[str, str] = {}
    for row in examples:
        other = first.setdefault(row.key, row)
        if other.label != row.label:
            clashes.setdefault(row.key, f"{row.place} says {row.label!r}, {other.place} says {other.label!r}")
    if clashes:
        _log.warning("%d text(s) have more than one label; the first: %s", len(clashes), next(iter(clashes.values())))


def _check_classes(rows: Sequence[Example], train: str, group: str | None, set_aside: bool) -> None:
    first: dict[str, Example] = {}
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
    report([f"{first[label].place}: the class {label!r} has {have} in {train}; {fits}" for label in rare])


def _check_parts(parts: Mapping[str, Sequence[Example]], shares: Mapping[str, float], train: str) -> None:
    known = dict.fromkeys(row.label for row in parts["train"])
    strange: dict[str, str] = {}
    for row in (*parts["validation"], *parts["test"]):
        if row.label not in known:
            problem = f"the label {row.label!r} never occurs in the training rows of {train}"
            strange.setdefault(row.label, f"{row.place}: {problem}; {suggest(row.label, list(known))}")
    report(list(strange.values()))
    fits = "more rows, a larger share, another seed, or a file of its own would fit"
    if "test" in shares and not parts["test"]:
        raise DataError(f"{train}: too few rows to set some aside for test; {fits}, or test_share: 0")
    seen = {row.label for row in parts["validation"]}
    unseen = [label for label in known if label not in seen and "validation" in shares]
    report([f"{train}: no row of the class {label!r} was set aside for validation; {fits}" for label in unseen])


def _deal_by_class(rows: Sequence[Example], shares: Mapping[str, float], seed: int) -> dict[str, list[Example]]:
    """Each class on its own, so that every part has its share of it; a unit of several classes goes with the rarest."""
    labels: dict[str, dict[str, None]] = {}
    for row in rows:
        labels.setdefault(row.unit, {})[row.label] = None
    spread = Counter(label for found in labels.values() for label in found)
    strata: dict[str, list[Example]] = {}
    for row in rows:
        strata.setdefault(min(labels[row.unit], key=spread.__getitem__), []).append(row)
    part_of: dict[str, str] = {}
    for members in strata.values():
        part_of.update(_deal(members, shares, seed))
    return {name: [row for row in rows if part_of[row.unit] == name] for name in shares}


def _deal(rows: Sequence[Example], shares: Mapping[str, float], seed: int) -> dict[str, str]:
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
