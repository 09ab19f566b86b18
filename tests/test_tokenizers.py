"""Every tokenizer: offsets point into the text, a saved one answers the same, nothing makes it fall over."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import trainers

from seqapp.data.tokenizers import BOS, EOS, PAD, SPECIALS, TOKENIZERS, UNK, Tokenizer, clean
from seqapp.data.vocabulary import Vocabulary
from seqapp.errors import BundleError, ConfigError, DataError

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


KNOWN = "".join(sorted(set("".join(TEXTS))))
HOSTILE = [
    "<pad>",
    "<eos>",
    "\n",
    "\n\n",
    "    ",
    "\t",
    "\r\n",
    "def f(x):\n\n    return x\n",
    "é",
    "e\u0301",
    "😀",
    "\ufffd",
]
anything = st.text(max_size=60) | st.lists(st.sampled_from([*TEXTS, *HOSTILE]), max_size=6).map("".join)
known = st.text(KNOWN, max_size=60)


@pytest.mark.parametrize("row", ["character", "character lower"])
@given(text=known)
def test_what_is_known_by_character_comes_back(row: str, text: str) -> None:
    folded = unicodedata.normalize("NFC", text.lower() if row == "character lower" else text)
    if fitted(row).unknown(text):
        assert row == "character lower", "all of its characters were seen"
    else:
        assert fitted(row).decode(fitted(row).encode(text).ids) == folded == fitted(row).normalise(text)


@given(text=anything)
def test_bytes_know_every_text(text: str) -> None:
    tokenizer = fitted("byte_bpe")
    assert tokenizer.unknown(text) == []
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFC", clean(text))


@pytest.mark.parametrize("row", ["bpe", "unigram"])
@given(text=st.lists(st.sampled_from([*TEXTS, *" \n<>"]), max_size=6).map("".join))
def test_subwords_lose_only_a_first_space(row: str, text: str) -> None:
    tokenizer = fitted_with_spaces(row)
    back = tokenizer.decode(tokenizer.encode(text).ids)
    assert back == text or (text.startswith(" ") and back == text[1:])


@functools.cache
def fitted_with_spaces(row: str) -> Tokenizer:
    tokenizer = TOKENIZERS.build(ROWS[row])
    tokenizer.fit([*TEXTS, "\n  <a>  \n"] * 3)
    return tokenizer


@given(
    text=st.lists(
        st.sampled_from(["good", "film", " ", "  ", "\t", "\n", "\r\n", "<unk>", "<pad", "."]), max_size=12
    ).map("".join)
)
def test_white_space_between_tokens_is_all_that_changes(text: str) -> None:
    for newlines in (True, False):
        tokenizer = TOKENIZERS.build({"kind": "whitespace", "newlines": newlines})
        tokenizer.fit([f"x {text}"])
        lines = [" ".join(word for word in line.split() if word != "<unk>") for line in text.split("\n")]
        plain = "\n".join(lines) if newlines else " ".join(filter(None, lines))
        assert tokenizer.decode(tokenizer.encode(text).ids) == plain


def test_an_unk_written_in_a_corpus_is_ours_and_other_specials_are_not() -> None:
    tokenizer = TOKENIZERS.build("whitespace")
    tokenizer.fit(["the <unk> cat <eos> sat\n"])
    assert tokenizer.size == 4 + len({"the", "cat", "<", "eos>", "sat", "\n"})
    ids = tokenizer.encode("the <unk> cat <eos>\n").ids
    assert (ids.count(UNK), EOS in ids) == (1, False)
    assert tokenizer.decode(ids) == "the cat < eos>\n"


def test_words_are_spaced_as_in_english() -> None:
    text = 'Don\'t "stop" (now), it\u2019s 5 % [of] all: yes; no... {a}? b!'
    tokenizer = TOKENIZERS.build({"kind": "word", "lowercase": False})
    tokenizer.fit([text])
    assert (
        tokenizer.decode(tokenizer.encode(text).ids)
        == 'Don\'t " stop " (now), it\u2019s 5% [of] all: yes; no... {a}? b!'
    )


@rows
@given(text=anything, cut=st.integers(0, 20))
def test_one_id_at_a_time_gives_the_text_of_all(row: str, text: str, cut: int) -> None:
    """LAW of Decoding, after a prompt too: nothing is given twice, nothing taken back, no character in halves."""
    tokenizer = fitted(row)
    ids = [BOS, *tokenizer.encode(text).ids, EOS]
    for after in ([], [BOS, *tokenizer.encode(text[:cut]).ids]):
        decoding = tokenizer.decoding(after)
        parts = [decoding.add(index) for index in ids]
        assert "".join([tokenizer.decode(after), *parts, decoding.finish()]) == tokenizer.decode([*after, *ids])
        if "\ufffd" not in text:
            assert "\ufffd" not in "".join(parts)


@given(ids=st.lists(st.integers(0, fitted("byte_bpe").size - 1), max_size=12))
def test_bytes_that_are_no_text_are_decoded_alike_at_once_and_one_at_a_time(ids: list[int]) -> None:
    decoding = fitted("byte_bpe").decoding()
    assert "".join(map(decoding.add, ids)) + decoding.finish() == fitted("byte_bpe").decode(ids)


@rows
def test_every_token_has_a_text_of_its_own(row: str) -> None:
    tokenizer = fitted(row)
    shown = [tokenizer.token_text(index) for index in range(tokenizer.size)]
    assert shown[:4] == SPECIALS
    assert [tokenizer.token_id(text) for text in shown] == list(range(tokenizer.size))
    assert tokenizer.token_id("no token is this long") is None
    for index in (-1, tokenizer.size):
        with pytest.raises(ValueError, match=f"no token has the id {index}; 0 to {tokenizer.size - 1} fit"):
            tokenizer.token_text(index)


@pytest.mark.parametrize("row", ["character", "byte_bpe", "bpe", "unigram"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_joined_are_the_text(row: str, text: str) -> None:
    tokenizer = fitted(row)
    joined = "".join(map(tokenizer.token_text, tokenizer.encode(text).ids))
    assert joined == (f" {text}" if row in ("bpe", "unigram") else text)


def test_a_cut_character_is_shown_by_its_bytes() -> None:
    tokenizer = fitted("byte_bpe")
    ids = tokenizer.encode("☃").ids
    assert [tokenizer.token_text(index) for index in ids] == ["<0xE2>", "<0x98>", "<0x83>"]
    decoding = tokenizer.decoding()
    assert [decoding.add(index) for index in ids] == ["", "", "☃"]


@rows
def test_unknown_parts_are_named_with_their_place(row: str) -> None:
    found = fitted(row).unknown("good ☃ good")
    assert found == ([] if row == "byte_bpe" else [(5, "☃")])
    assert fitted(row).unknown("") == []


@given(text=anything)
def test_a_piece_stays_within_a_word_or_a_run(text: str) -> None:
    tokenizer = TOKENIZERS.build({"kind": "byte_bpe", "min_frequency": 1, "max_vocabulary": 400})
    tokenizer.fit([text, "a"])
    for index in range(260, tokenizer.size):
        piece = re.sub(r"(<0x..>)+", "é", tokenizer.token_text(index))
        piece = re.sub("[\x1c-\x1f]", "-", piece)  # separators of records: white space to re, not to the library
        assert re.fullmatch(r" ?(\d+|[^\W\d_]\S*|\S+)|\n+|[^\S\n]+", piece) or not piece.isascii(), piece


def test_a_vocabulary_that_cannot_hold_the_bytes_is_told() -> None:
    with pytest.raises(ConfigError, match="max_vocabulary: takes at least 260"):
        TOKENIZERS.build({"kind": "byte_bpe", "max_vocabulary": 259})
    small = TOKENIZERS.build({"kind": "byte_bpe", "max_vocabulary": 260})
    small.fit(TEXTS)
    assert len(small.encode("映").ids) == 3


@rows
@given(texts=st.lists(anything, max_size=4))
def test_all_ids_of_many_texts_are_those_of_each(row: str, texts: list[str]) -> None:
    found = list(fitted(row).encode_all(iter(texts)))
    assert [ids.tolist() for ids in found] == [fitted(row).encode(text).ids for text in texts]


def test_encoding_and_fitting_read_texts_as_they_are_needed() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield "good film " * 1000

    first = next(fitted("word").encode_all(texts()))
    assert len(first) == 2000
    assert read < 50
    TOKENIZERS.build("word").fit(texts())


@given(texts=st.lists(anything.filter(bool), min_size=1, max_size=4), lowercase=st.booleans(), rare=st.integers(1, 3))
def test_characters_are_counted_as_the_library_does(texts: list[str], lowercase: bool, rare: int) -> None:
    options = {"lowercase": lowercase, "min_frequency": rare, "max_vocabulary": 12}
    ours, theirs = (TOKENIZERS.build({"kind": "character", **options}) for _ in range(2))
    trainer = trainers.WordLevelTrainer(vocab_size=12, min_frequency=rare, special_tokens=SPECIALS, show_progress=False)
    theirs.core.train_from_iterator(map(clean, texts), trainer=trainer)
    try:
        ours.fit(texts)
    except DataError:
        assert theirs.size == 4
    else:
        assert ours.core.to_str() == theirs.core.to_str()


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
