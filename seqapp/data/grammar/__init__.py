"""An English-German corpus from a grammar: words in tables beside this file, sentence patterns in patterns.py."""

from __future__ import annotations

import random
import zlib
from functools import cache
from importlib import resources
from itertools import islice
from typing import Literal

from seqapp.data.grammar import lexicon
from seqapp.data.grammar.draw import Draw
from seqapp.data.grammar.patterns import OFTEN, PATTERNS, Pattern, examples
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import ConfigError
from seqapp.registry import Count, Size

__all__ = ["bundled_translation", "examples", "held_out", "natural", "size", "tables"]

HELD_OUT = 4  # of 100 combinations, in each of validation and test
SHARE = 20  # validation and test have a pair for so many of training
PATIENCE = 40  # draws for each pair wanted, before the grammar counts as exhausted


@SOURCES.register("bundled_translation")
def bundled_translation(
    pairs: Size = 20_000, seed: Count = 0, source: Literal["en", "de"] = "en"
) -> Splits[SentencePair]:
    """English and German sentences from a grammar, written for this project, and 500 natural pairs as a second test.

    What is held out is combinations of two words. When a pattern draws a sentence it notes which words meet in it: an
    adjective and its noun, a verb and its object, a subject and its verb, a verb and its place, an hour and its
    minutes, a day and its month, and so on. :func:`held_out` keeps a fixed twenty-fifth of all combinations for the
    test, and another one for validation. A sentence of the test has at least one combination of the test and none of
    validation, the other way round for validation; a sentence of training has none of either. So what is asked in the
    test was never seen together, in any pattern, though (from about 5,000 pairs on) each word form of it was seen. No
    sentence of either language stands in two pairs, and the English decides the German.

    Args:
        pairs: sentence pairs to train on; validation and test have a twentieth of it each.
        seed: of the draws; what is held out is the same for every seed.
        source: language that is translated; the other one is the target.

    Raises:
        ConfigError: if the grammar has not so many different sentences.
    """
    chance = random.Random(seed)
    patterns = rotation()
    drawn: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    wanted = {"train": pairs, "validation": max(1, pairs // SHARE), "test": max(1, pairs // SHARE)}
    for turn in range(PATIENCE * (pairs + SHARE)):
        draw = Draw(chance)
        words = patterns[turn % len(patterns)](draw)
        parts = {held_out(combination) for combination in draw.combinations} - {""}
        if len(parts) == 2 or words.english in seen or words.german in seen:
            continue
        part = parts.pop() if parts else "train"
        if part == "train" and len(drawn["train"]) == pairs:
            if all(len(drawn[name]) >= number for name, number in wanted.items()):
                break
            continue
        seen.update((words.english, words.german))
        drawn[part].append((words.english, words.german))
    else:
        most = len(drawn["train"])
        raise ConfigError(f"pairs {pairs}: the grammar gave {most:,} different sentences to train on; fewer would fit")
    known = {form for pair in drawn["train"] for text in pair for form in text.rstrip(".?!").split()}

    def new_forms(pair: tuple[str, str]) -> bool:
        return not all(form in known for text in pair for form in text.rstrip(".?!").split())

    parts_of = {
        name: [
            _pair(*one, source)
            for one in islice(sorted(found, key=new_forms) if name != "train" else found, wanted[name])
        ]
        for name, found in drawn.items()
    }
    further = {"natural": [_pair(*one, source) for one in natural()]}
    return Splits(f"bundled translation, {source} first", **parts_of, further=further)


def rotation() -> list[Pattern]:
    """The patterns in the order in which they are drawn, over and over, some of them several times."""
    return [draws for name, draws in PATTERNS.items() for _ in range(OFTEN.get(name, 1))]


@cache
def held_out(combination: str) -> Literal["", "validation", "test"]:
    """Which split keeps ``combination`` to itself, ``""`` for none: a checksum of the words decides."""
    drawn = zlib.crc32(combination.encode()) % 100
    return "test" if drawn < HELD_OUT else "validation" if drawn < 2 * HELD_OUT else ""


def natural() -> list[tuple[str, str]]:
    """The natural pairs, English and German, written by hand."""
    text = (resources.files("seqapp.data.grammar") / "natural.tsv").read_text(encoding="utf-8")
    return [(english, german) for english, german in (line.split("\t") for line in text.splitlines())]


def size() -> dict[str, int]:
    """How many lexical entries there are of each sort, and how many patterns."""
    return {**lexicon.counts(), "patterns": len(PATTERNS)}


def tables() -> str:
    """The tables of docs/translation-corpus.md: the entries by sort, and each pattern with an example."""
    entries = size()
    rows = ["| entries | |", "|---|---|", *(f"| {sort} | {number} |" for sort, number in entries.items())]
    rows += ["", "| what it shows | English | German |", "|---|---|---|"]
    rows += [f"| {shows.rstrip('.')} | {pair.english} | {pair.german} |" for shows, pair in examples().values()]
    return "\n".join(rows)


def _pair(english: str, german: str, source: Literal["en", "de"]) -> SentencePair:
    if source == "en":
        return SentencePair(english, german, ("en", "de"))
    return SentencePair(german, english, ("de", "en"))
