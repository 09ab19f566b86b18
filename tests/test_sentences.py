"""A text in pieces: nothing is lost, every piece fits, and no place is cut that need not be."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data import sentences

# What ends sentences, lines and clauses, stands between words, or is no text at all.
PARTS = [
    "a",
    "word",
    "Dr.",
    "z. B.",
    "3.",
    "E.S.E.",
    "“",
    "”",
    "«",
    "(",
    ")",
    '"',
    "?",
    "!",
    "…",
    ",",
    ";",
    "—",
    " ",
    "  ",
]
PARTS += ["\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\u2028", "\xa0", "\u200b", "\0", "\ud800", "😀", "e\u0301"]
PARTS += ["今天很好", "。", "，", "है।", "Größe", "abcdefghijklmnop"]


def segments(text: str, language: str, longest: int, length: Callable[[str], int]) -> list[tuple[str, str]]:
    return list(sentences.segments(text, language, longest, length))


texts = st.lists(st.sampled_from(PARTS), max_size=40).map("".join) | st.text(max_size=60)


@given(text=texts, language=st.sampled_from(["en", "de", "de-AT", "zh", "xx", ""]), longest=st.integers(1, 20))
def test_the_pieces_and_gaps_joined_are_the_text(text: str, language: str, longest: int) -> None:
    found = segments(text, language, longest, len)
    assert "".join(piece + gap for piece, gap in found) == text
    assert all(len(piece) <= longest for piece, _ in found)
    assert all(piece == piece.strip() and not gap.strip() for piece, gap in found)
    assert all(piece for piece, _ in found[1:])
    assert not found or found[0][0] or found[0][1]


@given(words=st.lists(st.text("abcdeé", min_size=1, max_size=12), min_size=1, max_size=30), longest=st.integers(12, 30))
def test_a_word_that_fits_is_not_cut_and_no_more_words_would_fit(words: list[str], longest: int) -> None:
    found = segments(" ".join(words), "en", longest, len)
    assert [word for piece, _ in found for word in piece.split()] == words
    for (piece, _), (after, _) in itertools.pairwise(found):
        assert len(f"{piece} {after.split()[0]}") > longest


def test_sentences_and_lines_end_a_piece_whatever_is_short() -> None:
    text = "Dr. Smith came. He left!\r\n\r\n  A title\nIs it? "
    assert segments(text, "en", 99, len) == [
        ("Dr. Smith came.", " "),
        ("He left!", "\r\n\r\n  "),
        ("A title", "\n"),
        ("Is it?", " "),
    ]


def test_abbreviations_are_those_of_the_language() -> None:
    text = "Das ist z. B. gut. Am 3. Mai kam er."
    for language in ("de", "de-AT", "de_CH", "DE"):
        assert [piece for piece, _ in segments(text, language, 99, len)] == ["Das ist z. B. gut.", "Am 3. Mai kam er."]
    assert len(segments(text, "xx", 99, len)) > 2


def test_white_space_at_the_start_follows_an_empty_piece() -> None:
    assert segments("", "en", 9, len) == []
    assert segments(" \n ", "en", 9, len) == [("", " \n ")]
    assert segments("\n\n a", "en", 9, len) == [("", "\n\n "), ("a", "")]


def test_a_long_sentence_is_cut_at_clauses_then_words_then_letters() -> None:
    text = "one, two, three four five six; 1,000 abcdefghijklm, x"
    pieces = [piece for piece, _ in segments(text, "en", 10, len)]
    assert pieces == ["one, two,", "three four", "five six;", "1,000", "abcdefghij", "klm,", "x"]
    assert segments("今天很好，我们去。天气", "zh", 5, len) == [("今天很好，", ""), ("我们去。", ""), ("天气", "")]


def test_the_length_is_what_the_caller_counts() -> None:
    by_words = segments("a b c d e f g.", "en", 3, lambda piece: len(piece.split()))
    assert [piece for piece, _ in by_words] == ["a b c", "d e f", "g."]
    # What cannot fit is cut as far as can be, and kept.
    assert segments("abc d", "en", 1, lambda piece: 2 * len(piece)) == [("a", ""), ("b", ""), ("c", " "), ("d", "")]


@pytest.mark.parametrize("unit", ["a", "今", "word ", "Hi, ", "\n", " ", "(a.", '"a. B'])
def test_the_work_grows_as_the_text_does(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    segment = sentencex.segment

    def counted(language: str, text: str) -> list[str]:
        seen.append(text)
        return segment(language, text)

    def length(piece: str) -> int:
        seen.append(piece)
        return len(piece)

    monkeypatch.setattr(sentencex, "segment", counted)
    text = unit * (10_000 // len(unit))
    assert "".join(piece + gap for piece, gap in segments(text, "en", 100, length)) == text
    assert sum(map(len, seen)) < 25 * len(text)
    assert max(map(len, seen), default=0) < len(text)


def test_a_sentence_of_several_windows_is_cut_between_words() -> None:
    words = [f"word{number}" for number in range(3_000)]
    pieces = segments("  " + " ".join(words), "en", 100, lambda piece: len(piece.split()))
    assert [word for piece, _ in pieces for word in piece.split()] == words


def test_a_sentence_across_a_window_is_not_cut() -> None:
    text = "This is a sentence of Dr. Smith and of nobody else. " * 500
    pieces = segments(text, "en", 999, len)
    assert len(pieces) == 500
    assert {re.sub(r"\W+$", "", piece) for piece, _ in pieces} == {"This is a sentence of Dr. Smith and of nobody else"}
