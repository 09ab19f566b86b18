"""Every tokenizer: offsets point into the text, a saved one answers the same, nothing makes it fall over."""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data.tokenizers import BOS, EOS, PAD, SPECIALS, TOKENIZERS, UNK, Tokenizer
from seqapp.data.vocabulary import Vocabulary
from seqapp.errors import BundleError, DataError

TEXTS = [
    "A good film, don't miss it!",
    "A bad film; I didn’t like it.",
    "Good acting... and a good, good ending?",
    "Größe и кино 映画 5 of 10",
]

ROWS: dict[str, dict[str, Any]] = {
    "word": {"kind": "word"},
    "word cased": {"kind": "word", "lowercase": False},
    "character": {"kind": "character"},
    "character lower": {"kind": "character", "lowercase": True},
    "bpe": {"kind": "subword"},
    "unigram": {"kind": "subword", "algorithm": "unigram"},
    "whitespace": {"kind": "whitespace"},
    "whitespace in a line": {"kind": "whitespace", "newlines": False, "lowercase": True},
    "byte_bpe": {"kind": "byte_bpe"},
}


@functools.cache
def fitted(row: str) -> Tokenizer:
    tokenizer = TOKENIZERS.build(ROWS[row])
    tokenizer.fit(TEXTS * 3)
    return tokenizer


rows = pytest.mark.parametrize("row", ROWS)


def test_every_kind_has_a_row() -> None:
    assert set(TOKENIZERS) == {spec["kind"] for spec in ROWS.values()}


@rows
def test_special_ids_come_first(row: str) -> None:
    tokenizer = fitted(row)
    assert [tokenizer.core.id_to_token(index) for index in range(4)] == SPECIALS
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    assert sorted(tokenizer.core.get_vocab().values()) == list(range(tokenizer.size))


@rows
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(TEXTS), max_size=3).map(" ".join))
def test_offsets_point_into_the_text_in_order(row: str, text: str) -> None:
    encoded = fitted(row).encode(text)
    assert len(encoded.ids) == len(encoded.offsets)
    assert all(0 <= index < fitted(row).size for index in encoded.ids)
    assert not {PAD, BOS, EOS} & set(encoded.ids)
    end = 0
    for start, stop in encoded.offsets:
        assert 0 <= start <= stop <= len(text)
        assert stop >= end
        end = stop


@rows
@given(texts=st.lists(st.text(max_size=30), max_size=5))
def test_a_batch_is_encoded_as_its_texts_alone(row: str, texts: list[str]) -> None:
    assert fitted(row).encode_batch(texts) == [fitted(row).encode(text) for text in texts]


@rows
@pytest.mark.parametrize(
    "text", ["", " ", "\n\t ", "\0", "\ud800", "a\udfffb", "<pad>", "<bos> good <eos>", "😀" * 500]
)
def test_odd_texts_are_no_trouble(row: str, text: str) -> None:
    encoded = fitted(row).encode(text)
    assert all(start <= stop <= len(text) for start, stop in encoded.offsets)


@rows
def test_written_specials_in_a_text_are_not_special(row: str) -> None:
    """A reader who types <pad> or <eos> must not reach the ids of padding and end of sentence."""
    assert not {PAD, BOS, EOS} & set(fitted(row).encode("good <pad> film <bos> <eos>").ids)


@rows
def test_save_and_load_answer_the_same(row: str, tmp_path: Path) -> None:
    fitted(row).save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.size == fitted(row).size
    for text in [*TEXTS, "something never seen 映"]:
        assert loaded.encode(text) == fitted(row).encode(text)
        assert loaded.decode(loaded.encode(text).ids) == fitted(row).decode(fitted(row).encode(text).ids)


@rows
def test_fitted_once(row: str) -> None:
    with pytest.raises(ValueError, match="fitted already"):
        fitted(row).fit(TEXTS)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "unigram"])
def test_fitting_is_deterministic(row: str) -> None:
    again = TOKENIZERS.build(ROWS[row])
    again.fit(TEXTS * 3)
    assert again.core.to_str() == fitted(row).core.to_str()


@pytest.mark.parametrize(
    ("row", "texts"), [*((row, texts) for row in ROWS for texts in ([], [""])), ("word", [" ", "\n\t"])]
)
def test_nothing_to_fit_on(row: str, texts: list[str]) -> None:
    with pytest.raises(DataError, match="empty or white space only"):
        TOKENIZERS.build(ROWS[row]).fit(texts)


def test_options_that_leave_no_token_are_told() -> None:
    for options in ({"max_vocabulary": 4}, {"min_frequency": 99}):
        with pytest.raises(DataError, match="max_vocabulary is not above 4, or min_frequency is too high"):
            TOKENIZERS.build({"kind": "word", **options}).fit(TEXTS)
    with pytest.raises(DataError, match=r"no vocabulary can be made of the training texts: .*not large enough"):
        TOKENIZERS.build({"kind": "subword", "algorithm": "unigram", "max_vocabulary": 5}).fit(TEXTS)


def words(text: str, **options: Any) -> list[str]:
    tokenizer = TOKENIZERS.build({"kind": "word", **options})
    tokenizer.fit([text])
    return [text[start:end] for start, end in tokenizer.encode(text).offsets]


def test_words_and_marks() -> None:
    assert words("Don't stop; it’s 3.5 o_k -- naïve?!") == [
        "Don't", "stop", ";", "it’s", "3", ".", "5", "o_k", "-", "-", "naïve", "?", "!",
    ]  # fmt: skip
    assert words("'quoted' rock'n'roll") == ["'", "quoted", "'", "rock'n", "'", "roll"]


def test_rare_and_unknown_words_become_unk() -> None:
    tokenizer = TOKENIZERS.build({"kind": "word", "min_frequency": 2, "max_vocabulary": 6})
    tokenizer.fit(["a a a b b c c c d"])
    assert tokenizer.size == 6
    a, c = tokenizer.encode("a c").ids
    assert tokenizer.encode("d b a zzz c").ids == [UNK, UNK, a, UNK, c]


def test_lowercase_is_a_choice() -> None:
    assert fitted("word").encode("GOOD").ids == fitted("word").encode("good").ids != [UNK]
    assert fitted("word cased").encode("GOOD").ids == [UNK]


def test_composed_and_decomposed_letters_are_one() -> None:
    composed, decomposed = "Größe", unicodedata.normalize("NFD", "Größe")
    assert composed != decomposed
    for row in ROWS:
        one, other = fitted(row).encode(composed), fitted(row).encode(decomposed)
        assert one.ids == other.ids
        assert other.offsets[-1][1] == len(decomposed)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("row", ["character", "bpe", "unigram", "byte_bpe"])
def test_decoding_gives_the_text_back(row: str, text: str) -> None:
    assert fitted(row).decode(fitted(row).encode(text).ids) == text


def test_characters_are_characters() -> None:
    encoded = fitted("character").encode("a b\nc")
    assert encoded.offsets == [(index, index + 1) for index in range(5)]


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", "[" * 100_000, '{"version": "1.0"}'])
def test_a_foreign_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a readable"):
        Tokenizer.load(path)
    with pytest.raises(BundleError, match=r"none\.json: not a readable"):
        Tokenizer.load(tmp_path / "none.json")


def test_a_tokenizer_of_other_special_ids_or_with_gaps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    fitted("word").save(path)
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    path.write_text(json.dumps({**content, "model": {**content["model"], "vocab": {**vocabulary, last: 10**6}}}))
    with pytest.raises(BundleError, match=f"its ids have gaps; 0 to {fitted('word').size - 1} fit"):
        Tokenizer.load(path)
    swapped = {**vocabulary, "<unk>": vocabulary[last], last: UNK}
    path.write_text(json.dumps({**content, "added_tokens": [], "model": {**content["model"], "vocab": swapped}}))
    with pytest.raises(BundleError, match="the first ids stand for"):
        Tokenizer.load(path)


def test_truncation_and_padding_of_a_foreign_file_are_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = TOKENIZERS.build("word")
    tokenizer.fit(TEXTS)
    tokenizer.core.enable_truncation(2)
    tokenizer.core.enable_padding(length=9)
    tokenizer.save(path)
    assert len(Tokenizer.load(path).encode("a good film").ids) == 3


def test_vocabulary() -> None:
    vocabulary = Vocabulary(["negative", "positive"])
    assert len(vocabulary) == 2
    assert [vocabulary.index(name) for name in vocabulary.names] == [0, 1]
    with pytest.raises(DataError, match=r"no class is called 'positiv'; did you mean 'positive'\? known: negative"):
        vocabulary.index("positiv")
    with pytest.raises(DataError, match="must be distinct"):
        Vocabulary(["a", "a"])
