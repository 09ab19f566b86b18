"""Which language a text is in, told from the training texts alone."""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data import languages
from seqapp.data.languages import GRAMS, LanguageProfile, Letters, best, script_of, scripts, words
from seqapp.errors import BundleError

# Two made-up languages: syllables of their own, so that new words of each are like its old ones.
SYLLABLES = {"aa": ["ba", "lo", "mi", "ne", "tu", "sha"], "oo": ["krü", "zig", "ock", "wedd", "pfo", "ig"]}


def texts(language: str, count: int, seed: int) -> list[str]:
    chance = random.Random(seed)

    def word() -> str:
        return "".join(chance.choices(SYLLABLES[language], k=chance.randint(2, 4)))

    return [" ".join(word() for _ in range(chance.randint(6, 12))).capitalize() + "." for _ in range(count)]


@functools.cache
def profile(source: str = "aa", target: str = "oo") -> LanguageProfile:
    return LanguageProfile.fit(texts(source, 300, 0), texts(target, 300, 1), (source, target))


grams = st.text("ab_", min_size=1, max_size=4)


@given(counts=st.dictionaries(grams, st.integers(1, 9), max_size=12), before=st.text("ab_", max_size=3))
def test_the_probabilities_of_the_next_letter_add_up_to_one(counts: dict[str, int], before: str) -> None:
    """Over the letters seen and, each 1/256, those that were not."""
    model = Letters(counts)
    seen = [model._last(before + letter) for letter in "ab_"]
    unseen = model._last(f"{before}?")
    assert sum(seen) + 253 * unseen == pytest.approx(1)


def test_a_word_by_hand() -> None:
    """Witten and Bell's p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a)), for a word of one letter and its edge."""
    model = Letters.of({"a": 1})
    assert dict(model.counts) == {"a": 1, "_": 1, "_a": 1, "a_": 1, "_a_": 1}
    p1 = (1 + 2 / 256) / 4  # of "a", or of "_", after nothing
    p2 = (1 + p1) / 2  # after one letter
    p3 = (1 + p2) / 2  # of "_" after "_a"
    assert model.score(["a"]) == pytest.approx((math.log(p2) + math.log(p3)) / 2)


def test_texts_of_the_language_are_fine_and_others_are_told() -> None:
    assert [text for text in texts("aa", 300, 7) if profile().notice(text)] == []
    told = [profile().notice(text) for text in texts("oo", 300, 8)]
    assert None not in told
    assert told.count("the text looks like oo, the language translated into, and not like aa") > 0.95 * len(told)
    third = "Quick brown foxes jump over many lazy dogs."
    assert profile().notice(third) == "the text is unlike the aa texts of training; its translation may mean nothing"
    assert profile("oo", "aa").notice(third) == profile().notice(third).replace("aa", "oo")  # type: ignore[union-attr]


def test_another_script_comes_first() -> None:
    known = "the aa texts of training are Latin"
    assert profile().notice("Привет, мир! abc") == f"75% of the letters are Cyrillic; {known}"
    assert profile().notice("今") == f"100% of the letters are CJK; {known}"
    assert profile().notice("Balo π mine") is None


@pytest.mark.parametrize("text", ["", " \n", "1, 2 + 3 = ...", "😀", "²", "\ud800", "\0", "q", "Quick fox"])
def test_too_few_letters_tell_nothing(text: str) -> None:
    assert profile().notice(text) is None


@given(text=st.text(max_size=60))
def test_any_text_is_answered(text: str) -> None:
    notice = profile().notice(text)
    assert notice is None or notice.startswith(("the text ", *"123456789"))
    assert best([profile(), profile("oo", "aa")], text) in ((0, 1) if words(text) else (None,))


def test_unnamed_languages_are_told_by_their_part() -> None:
    unnamed = LanguageProfile(("", ""), profile().scripts, profile().source, profile().target)
    assert unnamed.notice(texts("oo", 1, 2)[0]) == (
        "the text looks like the language translated into and not like the one translated from"
    )
    assert unnamed.notice("今") == "100% of the letters are CJK; the source texts of training are Latin"


def test_too_few_words_never_make_a_text_unlike() -> None:
    small = LanguageProfile.fit(["balo mine tu"], ["ock zig"], ("aa", "oo"))
    assert small.source.spread is None
    assert small.notice("Quick brown foxes jump over many lazy dogs.") is None
    empty = LanguageProfile.fit([], [], ("", ""))
    assert empty.notice("abc") == "100% of the letters are Latin; the source texts of training are of no letters"


def test_one_language_on_both_sides_is_no_reason() -> None:
    both = LanguageProfile.fit(texts("aa", 300, 0), texts("aa", 300, 1), ("aa", "aa"))
    assert [text for text in texts("aa", 200, 3) if both.notice(text)] == []


def test_a_long_text_is_told_by_its_beginning() -> None:
    start = " ".join(texts("aa", 100, 3))[:4096]
    assert profile().notice(start + " Привет" * 10**5) is None
    assert profile().notice("Quick brown foxes jump over lazy dogs. " * 10**5) is not None


def test_the_profile_that_fits_best() -> None:
    both = [profile(), profile("oo", "aa")]
    for place, language in enumerate(SYLLABLES):
        assert {best(both, text) for text in texts(language, 50, 4)} == {place}
    assert best(both, "123") is None
    assert best([], "Balo") is None


def test_scripts_and_their_shares() -> None:
    assert [script_of(letter) for letter in "aéДλ今あア한ش"] == [
        "Latin", "Latin", "Cyrillic", "Greek", "CJK", "Hiragana", "Katakana", "Hangul", "Arabic",
    ]  # fmt: skip
    assert scripts("abД") == {"Latin": pytest.approx(2 / 3), "Cyrillic": pytest.approx(1 / 3)}
    assert scripts("") == {}


def test_save_and_load_answer_the_same(tmp_path: Path) -> None:
    path = tmp_path / "languages.json"
    profile().save(path)
    loaded = LanguageProfile.load(path)
    assert (loaded.names, loaded.scripts) == (profile().names, profile().scripts)
    for text in [*texts("aa", 20, 5), *texts("oo", 20, 6), "Quick brown foxes jump over lazy dogs", "今"]:
        assert loaded.notice(text) == profile().notice(text)
        if words(text):
            assert loaded.source.distance(words(text)) == profile().source.distance(words(text))
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    again = LanguageProfile.fit(texts("aa", 300, 0), texts("oo", 300, 1), ("aa", "oo"))
    again.save(path)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_no_more_grams_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "GRAMS", 50)
    few, all_ = Letters.of({"balo": 4, "lomi": 1, "tu": 9}), profile().source.letters
    assert len(few.counts) < 50 < len(all_.counts) <= GRAMS
    assert len(Letters.of(dict.fromkeys(texts("aa", 50, 0), 1)).counts) == 50


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("names",), ["en"], "names.1"),
        (("names",), "en", "names"),
        (("extra",), 1, "extra"),
        (("source", "mean"), "low", "source.mean"),
        (("source", "mean"), 1.0, "source.mean"),
        (("target", "spread"), 0.0, "target.spread"),
        (("target", "grams"), {"0": "a"}, r"target.grams.0"),
        (("target", "grams"), {"1e9": "a"}, "target.grams.1e9"),
        (("target", "grams"), {"1": "abcde"}, "grams have 1 to 4 letters"),
        (("target", "grams"), {"1": ""}, "grams have 1 to 4 letters"),
    ],
)
def test_a_damaged_profile_is_refused(where: tuple[str, ...], value: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "languages.json"
    profile().save(path)
    content = json.loads(path.read_text())
    place = content
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=rf"languages\.json: not .*profile of two languages: .*{told}"):
        LanguageProfile.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 10**5, b" " * (1 << 20) + b"{}"])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "languages.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"languages\.json: not .*profile of two languages"):
        LanguageProfile.load(path)
    with pytest.raises(BundleError, match=r"none\.json: not a readable profile"):
        LanguageProfile.load(tmp_path / "none.json")
