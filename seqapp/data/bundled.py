"""Data that comes with seqapp, or with Python: nothing to download."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from importlib import import_module, resources

from seqapp.data.splits import SOURCES, LabelledText, Splits
from seqapp.data.text import Passage
from seqapp.errors import DataError


@SOURCES.register("reviews")
def reviews() -> Splits[LabelledText]:
    """English review sentences on films, restaurants, products and travel, written by hand for this project."""
    folder = resources.files("seqapp.data") / "reviews"
    parts: dict[str, list[LabelledText]] = {}
    for name in ("train", "validation", "test"):
        lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        parts[name] = [LabelledText(row["text"], row["label"]) for row in rows]
    return Splits.of("bundled reviews", parts)


_RUN = 12  # words in a row that two topics may not share across splits
_SALT = "481"  # of the first thousands the one with shares nearest to 80/10/10, in Python 3.11 to 3.13


@SOURCES.register("documentation")
def documentation() -> Splits[Passage]:
    """The language reference that every Python carries as ``pydoc_data.topics``: English prose, grammar and examples.

    Each topic is a document. A topic most of which stands in a longer one is left out, and topics that share twelve
    words in a row are in one split. The split is fixed by the topics' names, about 80/10/10 by characters, so that
    other versions of Python, whose texts differ a little, are split alike.

    Raises:
        DataError: if this Python was installed without its documentation.
    """
    try:
        topics: Mapping[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        fits = "a complete Python has it (Debian and Ubuntu: the package libpython3-stdlib)"
        raise DataError(f"this Python was installed without its documentation, pydoc_data.topics; {fits}") from None
    parts: dict[str, list[Passage]] = {"train": [], "validation": [], "test": []}
    for name, group in sorted(_grouped(topics).items()):
        drawn = hashlib.sha256(f"{_SALT} {group}".encode()).digest()[0]
        part = "train" if drawn < 205 else "validation" if drawn < 231 else "test"
        parts[part].append(Passage(topics[name]))
    return Splits.of("bundled documentation", parts)


def _grouped(topics: Mapping[str, str]) -> dict[str, str]:
    """The topics that no longer one holds, each with a name for the group of those it shares a run of words with."""
    runs = {}
    for name, text in topics.items():
        words = text.split()
        runs[name] = {tuple(words[start : start + _RUN]) for start in range(max(1, len(words) - _RUN + 1))}
    group: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        if any(2 * len(runs[name] & runs[other]) > len(runs[name]) for other in group):
            continue
        joined = {group[other] for other in group if runs[name] & runs[other]} | {name}
        group[name] = name
        group = {other: min(joined) if old in joined else old for other, old in group.items()}
    return group
