"""Multi30k, on small files laid out as the real ones."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from seqapp.data import public
from seqapp.data.download import Content
from seqapp.data.pairs import SentencePair
from seqapp.data.public import PUBLIC, fetch_dataset, read_multi30k
from seqapp.data.splits import SOURCES
from seqapp.errors import ConfigError, DataError

SIZES = {"train": 9, "val": 4, "test_2016_flickr": 3}
CODES = ("en", "de", "fr", "cs")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "multi30k"
    folder.mkdir(parents=True)
    for part, size in SIZES.items():
        for code in CODES:
            # A caption stands twice in training, and one of validation once more.
            text = "".join(f" {code} {part if index else 'same'} {index % 7}.\n" for index in range(size))
            (folder / f"{part}.{code}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder.parent


def test_it_asks_to_be_fetched_and_then_builds(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def content(path: Path) -> tuple[Content, ...]:
        return (Content(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", path.stat().st_size),)

    files = tuple(replace(file, accepts=content(mirror / "multi30k" / file.name)) for file in PUBLIC["multi30k"].files)
    monkeypatch.setitem(public.PUBLIC, "multi30k", replace(PUBLIC["multi30k"], files=files))
    monkeypatch.setenv("SEQAPP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"is not there; run: seqapp data fetch multi30k$"):
        SOURCES.build("multi30k")
    fetch_dataset("multi30k", mirror=mirror)
    splits = SOURCES.build("multi30k")
    assert splits.name == "multi30k en-de"
    assert splits.digests() == SOURCES.build({"kind": "multi30k", "source": "en", "target": "de"}).digests()
    assert splits.digests() == read_multi30k(mirror / "multi30k").digests()


@pytest.mark.parametrize("source", CODES)
@pytest.mark.parametrize("target", CODES)
def test_every_direction_has_the_published_splits_in_order(source: str, target: str, mirror: Path) -> None:
    if source == target:
        with pytest.raises(ConfigError, match=f"target: is the source language, '{source}'; another of en, de, fr, cs"):
            SOURCES.build({"kind": "multi30k", "source": source, "target": target})
        return
    splits = read_multi30k(mirror / "multi30k", source, target)
    for found, (part, size) in zip((splits.train, splits.validation, splits.test), SIZES.items(), strict=True):
        names = [f"{part if index else 'same'} {index % 7}." for index in range(size)]
        expected = [SentencePair(f"{source} {name}", f"{target} {name}", (source, target)) for name in names]
        assert found == expected, "nothing is removed, and nothing moves"


def test_a_language_is_one_of_four() -> None:
    with pytest.raises(ConfigError, match="source: takes one of en, de, fr, cs, not 'english'"):
        SOURCES.build({"kind": "multi30k", "source": "english"})


def test_a_damaged_file_is_not_read_to_its_end(mirror: Path) -> None:
    path = mirror / "multi30k" / "val.de.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"val\.de\.gz:\d+: cannot be read, cut off or damaged"):
        read_multi30k(mirror / "multi30k")
