"""A text of any length -> pieces that a model of sentences can read, and what stands between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import sentencex

from seqapp.data.tokenizers import clean

_WINDOW = 4096  # characters; the library takes the square of them in time for some scripts
_CLAUSE = re.compile(r".*?(?:[,;:–—]\s+|[、，；：]\s*|\Z)", re.DOTALL)
_WORD = re.compile(r"\s*\S+\s*")
_WORDS = re.compile(r".*\S\s", re.DOTALL)


def segments(text: str, language: str, longest: int, length: Callable[[str], int]) -> Iterator[tuple[str, str]]:
    r"""Sentences, each with the white space that follows it; one that is too long in several pieces.

    They are cut as they are asked for, so that nobody need wait for the whole of a long text.
    A piece ends at every line end and at every sentence end. If it is still longer than ``longest``, as many of its
    clauses as fit are a piece, ended by commas and the like; of a clause that is too long by itself as many words; of
    such a word as many letters. A single letter is never cut.

    LAW: "".join(piece + gap for piece, gap in segments(text, ...)) == text. A piece has no white space around it and is
    not empty, but for the first where the text begins with white space; a gap is white space, or "" inside a word and
    where a script has no spaces.

    Args:
        text: any, line ends and all.
        language: its code as in BCP 47, such as "de"; what ends a sentence and what only an abbreviation hangs on it.
        longest: most that ``length`` may tell of a piece.
        length: of a piece, such as its number of tokens; about the same for every letter more.
    """
    end = first = last = 0  # of what was read, and of the piece before
    for line in text.splitlines(keepends=True):
        for sentence in _sentences(line, language.replace("_", "-").partition("-")[0].lower()):
            for part in _fitting(sentence, longest, length, (_CLAUSE.findall, _WORD.findall, list)):
                start = end + len(part) - len(part.lstrip())
                end += len(part)
                if piece := part.strip():
                    if start:
                        yield text[first:last], text[last:start]
                    first, last = start, start + len(piece)
    if text:
        yield text[first:last], text[last:]


def _sentences(line: str, language: str) -> Iterator[str]:
    """The sentences of a line, white space and all."""
    start = 0
    while start < len(line):
        window = line[start : start + _WINDOW]
        parts = [window] if window.isspace() else sentencex.segment(language, clean(window))
        if start + len(window) < len(line):
            # The next window shows where the last sentence ends; one of several windows is cut between words.
            words = _WORDS.match(window)
            parts = parts[:-1] or [words.group() if words else window]
        for part in parts:
            yield line[start : start + len(part)]
            start += len(part)


def _fitting(
    text: str, longest: int, length: Callable[[str], int], cuts: Sequence[Callable[[str], list[str]]]
) -> Iterator[str]:
    """Consecutive parts of ``text`` that fit, each of as many units of the first cut as possible."""
    if not cuts or length(text.strip()) <= longest:
        yield text
        return
    units = [unit for unit in cuts[0](text) if unit]
    first = 0
    while first < len(units):

        def fits(count: int, first: int = first) -> bool:
            return length("".join(units[first : first + count]).strip()) <= longest

        high = 1  # doubled until it is too many, then halved: never the length of the whole rest
        while first + high <= len(units) and fits(high):
            high *= 2
        low, high = high // 2, min(high, len(units) - first + 1)  # low fit, high do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        if low:
            yield "".join(units[first : first + low])
        else:
            yield from _fitting(units[first], longest, length, cuts[1:])
        first += max(1, low)
