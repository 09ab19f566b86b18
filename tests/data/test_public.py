"""The public data sets, on small files laid out as the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data import public
from seqapp.data.download import Content
from seqapp.data.public import (
    PUBLIC,
    Review,
    describe_datasets,
    fetch_dataset,
    parse_tree,
    read_imdb,
    read_mr,
    read_reviews,
    read_sst,
)
from seqapp.data.splits import SOURCES, LabelledText, Splits
from seqapp.errors import ConfigError, DataError

TRAIN = r"""(4 (2 (2 A) (2 gem)) (3 .))
(1 (2 (2 A) (2 gem)) (1 (2 -LRB-) (1 (1 dull\/flat) (2 -RRB-))))
(2 (2 ``) (2 (2 So) (2 '')))
(3 (3 good) (2 film))
(0 (0 bad) (2 film))

"""
DEV = "(3 (3 good) (2 film))\n(2 (2 So) (2 what))\n"
TEST = "(0 (0 bad) (2 film))\n(1 (1 no) (2 .))\n"


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "sst"
    folder.mkdir(parents=True)
    for name, text in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "mr"
    folder.mkdir(parents=True)
    for label in ("pos", "neg"):
        lines = [f"{label} sentence {index // 2 if index < 20 else index} . " for index in range(60)]
        (folder / f"rt-polarity.{label}").write_bytes(
            "\n".join([*lines, "in both", "un caf\xe9 \x85\n"]).encode("latin-1")
        )
    return folder


def reviews_of(movies: int = 12) -> dict[str, str]:
    """Three reviews of each movie and class; some texts occur in two splits, or for two movies."""
    files = {"README": "<br />", "train/unsup/0_0.txt": "no label"}
    for split in ("train", "test"):
        for label, rating in (("pos", 9), ("neg", 1)):
            urls = []
            for index in range(3 * movies):
                urls.append(f"http://www.imdb.com/title/tt{split == 'test':d}{index // 3:06d}/usercomments\n")
                text = f"{split} {label} {index}<br /><br />the end"
                if index % 10 == 0:
                    text = f"{'copy' if index % 20 else split} {label}"
                files[f"{split}/{label}/{index}_{rating}.txt"] = text
            files[f"{split}/urls_{label}.txt"] = "".join(urls)
    return files


def packed(path: Path, files: dict[str, str], backwards: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as pack:
        for name in sorted(files, reverse=backwards):
            info = tarfile.TarInfo(f"aclImdb/{name}")
            info.size = len(files[name].encode())
            pack.addfile(info, io.BytesIO(files[name].encode()))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return packed(tmp_path / "mirror" / "imdb" / "aclImdb_v1.tar.gz", reviews_of())


def share_nothing(splits: Splits[LabelledText]) -> bool:
    texts = [{example.text for example in part} for part in (splits.train, splits.validation, splits.test)]
    return all(texts) and sum(map(len, texts)) == len(set.union(*texts))


def labelled(**texts: str) -> list[LabelledText]:
    return [LabelledText(text, label) for label, joined in texts.items() for text in joined.split("|")]


# --- SST ---


def test_sst_binary_phrases(trees: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        splits = read_sst(trees)
    assert {example.text: example.label for example in splits.train} == {
        ".": "positive",
        "A gem .": "positive",
        "A gem ( dull/flat )": "negative",
        "( dull/flat )": "negative",
        "dull/flat )": "negative",
        "dull/flat": "negative",
        "good": "positive",
        "bad": "negative",
    }
    assert splits.validation == labelled(positive="good film")
    assert list(splits.test) == labelled(negative="bad film|no .")
    assert share_nothing(splits)
    assert "left out 2 training and 0 validation" in caplog.text


def test_sst_fine_sentences(trees: Path) -> None:
    splits = read_sst(trees, "fine", phrases=False)
    assert [(example.text, example.label) for example in splits.train] == [
        ("A gem .", "very positive"),
        ("A gem ( dull/flat )", "negative"),
        ('" So "', "neutral"),
    ]
    assert [example.label for example in splits.validation] == ["positive", "neutral"]
    assert [example.label for example in splits.test] == ["very negative", "negative"]
    assert share_nothing(splits)


def test_every_distinct_phrase_is_there_once(trees: Path) -> None:
    texts = [example.text for example in read_sst(trees, "fine").train]
    assert len(texts) == len(set(texts))
    assert {"A", "A gem", "gem", '"', 'So "', "film"} <= set(texts)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ("(3 (2 a) (2 b)", "column 15: 1 bracket(s) still open"),
        ("(3 (2 a) (2 b)))", "column 16: unexpected ')'"),
        ("(3 (2 a) (5 b))", "column 10: unexpected '(5 b))'"),
        ("(3 (2 a) b)", "column 10: unexpected 'b)'"),
        ("(2 (2 ))", "column 7: unexpected '))'"),
        ("(2 a) (2 b)", "column 6"),
        ("no tree", "column 1"),
    ],
)
def test_a_malformed_tree_is_named_by_file_and_line(trees: Path, tree: str, problem: str) -> None:
    (trees / "dev.txt").write_text(f"{DEV}\n{tree}\n")
    with pytest.raises(DataError) as caught:
        read_sst(trees)
    assert f"{trees / 'dev.txt'}:4: not a tree, {problem}" in str(caught.value)
    assert "expected (LABEL word)" in str(caught.value)


def test_deep_trees_are_no_obstacle() -> None:
    depth = 50_000
    assert parse_tree("(2 " * depth + "(4 word)" + ")" * depth) == [("word", 4)] + [("word", 2)] * depth


@given(
    st.recursive(
        st.tuples(st.integers(0, 4), st.sampled_from(["a", "-LRB-", "``", "8\xa01\\/2", "'s"])),
        lambda nodes: st.tuples(st.integers(0, 4), st.lists(nodes, min_size=1, max_size=3)),
    )
)
def test_a_written_tree_is_read_back(tree: tuple[int, object]) -> None:
    plain = {"-LRB-": "(", "``": '"', "8\xa01\\/2": "8 1/2"}

    def written(node: tuple[int, object]) -> str:
        label, inside = node
        return f"({label} {' '.join(map(written, inside)) if isinstance(inside, list) else inside})"

    def nodes(node: tuple[int, object]) -> list[tuple[str, int]]:
        label, inside = node
        if not isinstance(inside, list):
            return [(plain.get(str(inside), str(inside)), label)]
        below = [nodes(child) for child in inside]
        return [*(pair for child in below for pair in child), (" ".join(child[-1][0] for child in below), label)]

    assert parse_tree(written(tree)) == nodes(tree)


# --- MR ---


def test_mr_folds_share_nothing_and_cover_everything(sentences: Path) -> None:
    tested: list[LabelledText] = []
    for fold in range(10):
        splits = read_mr(sentences, 10, fold)
        assert share_nothing(splits)
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 124
        assert read_mr(sentences, 10, fold).digests() == splits.digests()
        tested += splits.test
    assert len(tested) == 124
    assert sorted(example.label for example in tested) == ["negative"] * 62 + ["positive"] * 62
    assert LabelledText("un café …", "negative") in tested


@pytest.mark.parametrize(("folds", "fold"), [(2, 0), (10, 10), (3, 5)])
def test_mr_refuses_folds_that_are_none(sentences: Path, folds: int, fold: int) -> None:
    with pytest.raises(ConfigError, match="fold"):
        read_mr(sentences, folds, fold)


# --- IMDb ---


def test_imdb_keeps_movies_whole_and_texts_apart(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    movie_of = {review.text: review.movie for review in read_reviews(archive) if "copy" not in review.text}
    with caplog.at_level(logging.INFO):
        splits = read_imdb(archive, archive.with_name("parsed"), 0.25, seed=1)
    assert share_nothing(splits)
    assert len(splits.test) == 72
    left_out = [int(word) for word in caplog.text.split() if word.isdigit()][-2:]
    assert sum(left_out) == 4
    assert len(splits.train) + len(splits.validation) == 72 - 4
    assert 12 <= len(splits.validation) <= 24
    train, validation = ({movie_of.get(e.text) for e in part} - {None} for part in (splits.train, splits.validation))
    assert not train & validation
    assert "train pos 1\nthe end" in {example.text for example in [*splits.train, *splits.validation]}
    assert not any("<br" in example.text for example in splits.test)


def test_imdb_depends_on_the_seed_and_on_nothing_else(archive: Path, tmp_path: Path) -> None:
    parsed = tmp_path / "parsed.jsonl.gz"
    first = read_imdb(archive, parsed).digests()
    other = packed(tmp_path / "other.tar.gz", reviews_of(), backwards=True)
    assert read_imdb(other, tmp_path / "other").digests() == first
    assert read_imdb(archive, parsed, seed=5).digests() != first
    archive.unlink()
    assert read_imdb(archive, parsed).digests() == first


def test_a_damaged_parse_is_made_again(archive: Path, tmp_path: Path) -> None:
    parsed = tmp_path / "parsed.jsonl.gz"
    first = read_imdb(archive, parsed).digests()
    for damage in (parsed.read_bytes()[:-40], b"", gzip.compress(b"[1]\n")):
        parsed.write_bytes(damage)
        assert read_imdb(archive, parsed).digests() == first


def test_reviews_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar.gz", reviews_of(1), backwards=True)
    reviews = read_reviews(path)
    assert reviews[0] == Review("test", "negative", "tt1000000", "test neg")
    assert [review.text.split()[0] for review in reviews] == ["test"] * 6 + ["train"] * 6


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train/urls_pos.txt": "http://www.imdb.com/title/tt0/usercomments\n"}, "line 2 of train/urls_pos.txt"),
        ({"train/urls_pos.txt": "\n" * 40}, "line 1 of train/urls_pos.txt"),
    ],
)
def test_a_review_without_a_movie(tmp_path: Path, changes: dict[str, str], problem: str) -> None:
    path = packed(tmp_path / "a.tar.gz", reviews_of(1) | changes)
    with pytest.raises(DataError, match=problem):
        read_reviews(path)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar.gz", {"README": "nothing else"})
    with pytest.raises(DataError, match="holds no review"):
        read_reviews(path)
    for content in (path.read_bytes()[:-30], b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a part of the IMDb archive"):
            read_reviews(path)


# --- catalogue, cache and sources ---


@pytest.fixture
def small(
    trees: Path, sentences: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    """The catalogue with the checksums of the small files, an empty cache, and the expected number of examples."""
    for name, folder in (("sst", trees), ("mr", sentences), ("imdb", archive.parent)):
        bodies = {file.name: (folder / file.name).read_bytes() for file in PUBLIC[name].files}
        files = tuple(
            replace(
                file,
                accepts=(Content(f"sha256:{hashlib.sha256(bodies[file.name]).hexdigest()}", len(bodies[file.name])),),
            )
            for file in PUBLIC[name].files
        )
        monkeypatch.setitem(public.PUBLIC, name, replace(PUBLIC[name], files=files))
    monkeypatch.setenv("SEQAPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQAPP_DATA_MIRROR", str(tmp_path / "mirror"))
    return {"sst": 11, "mr": 124, "imdb": 140}


@pytest.mark.parametrize("name", ["sst", "mr", "imdb"])
def test_a_source_asks_to_be_fetched_and_then_builds(name: str, small: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"is not there; run: seqapp data fetch {name}$"):
        SOURCES.build(name)
    assert not (tmp_path / "cache").exists()
    assert fetch_dataset(name) == tmp_path / "cache" / name
    splits = SOURCES.build(name)
    assert share_nothing(splits)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == small[name]
    assert SOURCES.build({"kind": name}).digests() == splits.digests()
    path = tmp_path / "cache" / name / PUBLIC[name].files[0].name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=rf"is damaged; run: seqapp data fetch {name}$"):
        SOURCES.build(name)


def test_a_given_mirror_goes_before_the_environment(small: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="elsewhere"):
        fetch_dataset("mr", mirror=tmp_path / "elsewhere")
    assert fetch_dataset("mr", cache=tmp_path / "mine") == tmp_path / "mine" / "mr"


def test_an_unknown_name() -> None:
    with pytest.raises(DataError, match="did you mean 'imdb'"):
        fetch_dataset("imbd")


def test_the_list_tells_what_is_fetched(small: dict[str, int], tmp_path: Path) -> None:
    assert not any(row.fetched for row in describe_datasets())
    fetch_dataset("mr")
    rows = describe_datasets(tmp_path / "cache")
    assert [row.name for row in rows] == list(PUBLIC)
    assert [row.name for row in rows if row.fetched] == ["mr"]
    assert all(row.size > 0 and row.title and row.examples and row.licence for row in describe_datasets())


@pytest.mark.parametrize("name", list(PUBLIC))
def test_the_catalogue_is_complete(name: str) -> None:
    dataset = PUBLIC[name]
    assert dataset.name == name
    assert dataset.homepage.startswith("https://")
    assert all(option.help for option in SOURCES[name].options.values())
    for file in dataset.files:
        assert file.url.startswith("https://")
        lengths = {"sha256": 64, "md5": 32}
        for version in file.accepts:
            algorithm, _, digits = version.checksum.partition(":")
            assert len(digits) == lengths[algorithm]
            assert version.size > 0


def test_nothing_may_be_left_to_train_on() -> None:
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        SOURCES.build({"kind": "imdb", "validation_share": 1.0})
    for options in ({"validation_share": 0.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="takes"):
            SOURCES.build({"kind": "imdb", **options})
