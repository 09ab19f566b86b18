"""The public corpora, on small files laid out as the real ones."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from seqapp.data import public
from seqapp.data.download import Content
from seqapp.data.public import PUBLIC, fetch_dataset, read_names, read_tinyshakespeare, read_wikitext
from seqapp.data.splits import SOURCES, Splits
from seqapp.data.text import Passage
from seqapp.errors import ConfigError, DataError

LANGUAGES = [file.name.removesuffix(".txt") for file in PUBLIC["names"].files]
SMALL, LARGE = "Vietnamese", "Russian"


def joined(splits: Splits[Passage]) -> list[str]:
    return ["".join(one.text for one in part) for part in (splits.train, splits.validation, splits.test)]


def article(title: str) -> str:
    return f" = {title} = \n \n {title} has <unk> lines . \n = x y k = \n\n = = Part = = \n \n a = b \n"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    files = {f"names/{language}.txt": "".join(f"{language}{n}\n" for n in range(30)) for language in LANGUAGES}
    shared = "".join(f"Both{n}\n" for n in range(40))
    files[f"names/{LARGE}.txt"] += shared
    files[f"names/{SMALL}.txt"] += shared.lower() + "Nguye\u0302\u0303n\nNguyễn\nNguyễn \n\n"
    files["tinyshakespeare/input.txt"] = "".join(f"{n % 10}" for n in range(10_005))
    for name, titles in (("valid", range(40)), ("test", range(40, 45))):
        files[f"wikitext-2/{name}.txt"] = " \n" + " \n".join(article(f"Title {n}") for n in titles)
    for name, text in files.items():
        path = tmp_path / "mirror" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "mirror"


@pytest.mark.parametrize("name", ["tinyshakespeare", "names", "wikitext-2"])
def test_a_source_asks_to_be_fetched_and_then_builds(
    name: str, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def content(path: Path) -> tuple[Content, ...]:
        return (Content(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", path.stat().st_size),)

    files = tuple(replace(file, accepts=content(mirror / name / file.name)) for file in PUBLIC[name].files)
    monkeypatch.setitem(public.PUBLIC, name, replace(PUBLIC[name], files=files))
    monkeypatch.setenv("SEQAPP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=rf"is not there; run: seqapp data fetch {name}$"):
        SOURCES.build(name)
    fetch_dataset(name, mirror=mirror)
    splits = SOURCES.build(name)
    assert all(joined(splits))
    assert splits.digests() == SOURCES.build({"kind": name}).digests()


# --- tinyshakespeare ---


def test_the_last_tenth_of_shakespeare_is_for_test(mirror: Path) -> None:
    folder = mirror / "tinyshakespeare"
    text = (folder / "input.txt").read_text()
    train, validation, test = joined(read_tinyshakespeare(folder))
    assert train + validation + test == text
    assert (len(train), len(validation), len(test)) == (9004 - 450, 450, 1001)
    published = read_tinyshakespeare(folder, holdout=0)
    assert joined(published) == [text[:9004], text[9004:], ""]
    assert not any(one.ends for part in (published.train, published.validation) for one in part)


# --- names ---


def test_no_name_stands_in_two_splits(mirror: Path) -> None:
    splits = read_names(mirror / "names", 0.2, 0.1)
    parts = [splits.train, splits.validation, splits.test]
    keys = [{one.text.casefold() for one in part} for part in parts]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 18 * 30 + 40 + 1
    assert sum(map(len, parts)) == 18 * 30 + 2 * 40 + 1, "a name of two languages stands for each"
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        counts = Counter(str(one.condition) for one in part)
        assert set(counts) == set(LANGUAGES)
        assert abs(counts[SMALL] - share * 71) <= 1
        assert abs(counts["Arabic"] - share * 30) <= 1
        assert all(one.ends and one.text == unicodedata.normalize("NFC", one.text).strip() for one in part)
    assert any(one.text == "Nguyễn" for part in parts for one in part)


def test_names_depend_on_the_seed(mirror: Path) -> None:
    folder = mirror / "names"
    assert read_names(folder).digests() == read_names(folder).digests()
    assert read_names(folder).digests() != read_names(folder, seed=1).digests()
    assert list(read_names(folder, test_share=0).test) == []
    with pytest.raises(ConfigError, match=r"validation_share 0.5 \+ test_share 0.5 leaves nothing to train on"):
        read_names(folder, 0.5, 0.5)


# --- WikiText-2 ---


def test_articles_are_documents_and_formulas_are_none(mirror: Path, tmp_path: Path) -> None:
    folder = mirror / "wikitext-2"
    splits = read_wikitext(folder, validation_share=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 8, 5)
    assert all(one.ends and one.text.startswith(" = Title ") for one in [*splits.train, *splits.test])
    assert "".join(joined(splits)).count("a = b") == 45
    own = tmp_path / "wiki.train.tokens"
    own.write_text(f" \n{article('Mine')}")
    given = read_wikitext(folder, own)
    assert joined(given)[0] == article("Mine")
    assert (len(given.validation), given.name) == (40, "wikitext-2")
    own.write_text("no heading\n")
    with pytest.raises(DataError, match=r"wiki\.train\.tokens: holds no article"):
        read_wikitext(folder, own)
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        read_wikitext(folder, validation_share=1)


# --- IMDb ---


def test_reviews_as_text_keep_movies_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = [
        public.Review(split, "positive", f"tt{index // 3}{split}", f"{split} {index}\nend" if index % 10 else "same")
        for split in ("train", "test")
        for index in range(90)
    ]
    monkeypatch.setattr(public.text, "imdb_reviews", lambda: reviews)
    splits = SOURCES.build({"kind": "imdb_text", "validation_share": 0.2, "test_share": 0.1})
    movie_of = {review.text: review.movie for review in reviews}
    movies = [{movie_of[one.text] for one in part if one.text != "same"} for part in
              (splits.train, splits.validation, splits.test)]  # fmt: skip
    assert all(movies)
    assert not any(movies[a] & movies[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert sum("same" in {one.text for one in part} for part in (splits.train, splits.validation, splits.test)) == 1
    assert json.dumps(joined(splits)).count("train ") > 50, "the published split is not kept"
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        SOURCES.build({"kind": "imdb_text", "validation_share": 0.5, "test_share": 0.5})
