"""Your own text: read in blocks that join to the file, split so that nothing is shared, refused with a reason."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data.splits import SOURCES, Splits, digest
from seqapp.data.text import BLOCK, MANY, Document, Excerpts, Passage, passages, read_conditioned, read_text
from seqapp.errors import ConfigError, DataError

SMALL = 50_000
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis", "iso2022_jp", "utf-7"]
LETTERS = {"cp1252": "aé \n", "shift_jis": "a映画\n ", "iso2022_jp": "a映画\n "}


def joined(found: Sequence[Passage]) -> str:
    return "".join(passage.text for passage in found)


def own(path: Path, **options: Any) -> Splits[Passage]:
    return SOURCES.build({"kind": "text", "train": str(path), **options})


def folder_of(path: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text.encode())
    return path


def library(path: Path, count: int = 40) -> Path:
    return folder_of(path, {f"{index:02}.txt": f"book {index}\n" * 20 for index in range(count)})


# --- blocks ---


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(data=st.data())
def test_the_blocks_of_a_file_join_to_its_text(encoding: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    unit = data.draw(st.text(LETTERS.get(encoding, "aé映😀\n \t"), min_size=1, max_size=30))
    text = (unit * (SMALL // len(unit)))[: data.draw(st.integers(1, SMALL))]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode(encoding))
    document = Document(path, encoding=encoding, block=data.draw(st.integers(1, SMALL)))
    assert document.characters == len(text)
    bounds = list(document.blocks(0, document.characters))
    assert "".join(document.read(index) for index, _, _ in bounds) == text
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    assert joined(Excerpts([(document, start, stop)], ends=True)) == text[start:stop]


def test_blocks_end_where_lines_end(tmp_path: Path) -> None:
    lines = [f"line {index}\n\n  and more" for index in range(20_000)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    found = [
        document.read(index) for document in [Document(path, block=20_000)] for index, _, _ in document.blocks(0, 10**9)
    ]
    assert len(found) > 5
    assert all(one.endswith("and more\n") and one.startswith("line") for one in found[:-1])
    path.write_bytes(b"\n\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    document = Document(path, block=20_000)
    assert joined(read_text(path)) == "\n\n" + "\n".join(lines), "CR LF becomes LF"
    path.write_bytes(b"short now")
    with pytest.raises(DataError, match="was changed while it was in use"):
        document.read(3)


@given(text=st.text("ab \n", max_size=200), block=st.integers(1, 50), ends=st.booleans())
def test_a_text_cut_into_passages_is_the_text(text: str, block: int, ends: bool) -> None:
    found = passages(text, ends=ends, block=block)
    assert joined(found) == text
    assert all(one.text and not one.ends for one in found[:-1])
    assert not found or found[-1].ends == ends
    for one, two in pairwise(found):
        assert one.text.endswith("\n")
        assert not two.text[0].isspace()


def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    def most(copies: int) -> int:
        path = tmp_path / f"{copies}.txt"
        with path.open("w") as out:
            for index in range(copies):
                out.write(f"{index} {'all work and no play ' * 50}\n")
        tracemalloc.start()
        splits = own(path)
        digests = splits.digests()
        assert sum(len(one.text) for one in splits.train) > 0.89 * path.stat().st_size
        assert digests["train"] != digests["test"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = most(2_000), most(16_000)
    assert many < 1.2 * few < 4 * 2_000 * 1_050


def test_a_passage_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words\n" * 40_000)
    found = read_text(path)
    assert len(found) > 2
    assert found[-1] == list(found)[-1]
    assert found[1:] == list(found)[1:]
    assert 0.9 * BLOCK < len(found[0].text) < 1.5 * BLOCK
    with pytest.raises(IndexError):
        found[len(found)]


# --- splits ---


def test_the_end_of_one_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(chr(0x4E00 + index) for index in range(1000))
    path.write_text(text, encoding="utf-16")
    splits = own(path, encoding="utf-16", validation_share=0.1, test_share=0.2)
    assert [joined(part) for part in (splits.train, splits.validation, splits.test)] == [
        text[:700],
        text[700:800],
        text[800:],
    ]
    assert not any(one.ends for part in (splits.train, splits.validation, splits.test) for one in part)
    assert splits.name == "text a.txt, validation 0.1, test 0.2"
    none = own(path, encoding="utf-16", test_share=0)
    assert (joined(none.train), joined(none.validation), len(none.test)) == (text[:950], text[950:], 0)


def test_of_few_files_the_end_of_each_is_set_aside(tmp_path: Path) -> None:
    folder_of(tmp_path, {"b.txt": "B" * 100, "a/a.txt": "A" * 200, "c.md": "C"})
    splits = own(tmp_path)
    assert joined(splits.train) == "A" * 180 + "B" * 90
    assert joined(splits.validation) == joined(splits.test) == "A" * 10 + "B" * 5
    with pytest.raises(DataError, match="too short to set some aside, train would be empty"):
        own(tmp_path, pattern="*.md", validation_share=0.5, test_share=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_of_many_files_whole_ones_are_set_aside(tmp_path: Path, seed: int) -> None:
    library(tmp_path)
    folder_of(tmp_path, {f"copy{index}.txt": "book 7\n" * 20 for index in range(3)})
    splits = own(tmp_path, validation_share=0.2, test_share=0.1, seed=seed)
    parts = [[one.text for one in part] for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == 43
    assert sum(len(set(part)) for part in parts) == len(set().union(*parts)) == 40, "equal documents stay together"
    assert 4 <= len(parts[1]) <= 14
    assert 2 <= len(parts[2]) <= 8
    assert all(one.ends for part in (splits.train, splits.validation, splits.test) for one in part)
    assert splits.digests() == own(tmp_path, validation_share=0.2, test_share=0.1, seed=seed).digests()
    assert splits.digests() != own(tmp_path, validation_share=0.2, test_share=0.1, seed=seed + 9).digests()


def test_files_of_their_own_share_nothing_with_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = library(tmp_path / "train", 5)
    folder_of(tmp_path, {"v.txt": "book 3\r\n" * 20, "t.txt": "other"})
    splits = own(train, validation=str(tmp_path / "v.txt"), test=str(tmp_path / "t.txt"))
    assert [one.text[:6] for one in splits.train] == ["book 0", "book 1", "book 2", "book 4"]
    assert all(one.ends for one in splits.train)
    assert "1 train document(s) removed: their text also stands in validation or test" in caplog.text
    assert joined(splits.test) == "other"
    with pytest.raises(DataError, match=r"v\.txt: every train document also stands in validation or test"):
        own(tmp_path / "v.txt", validation=str(tmp_path / "v.txt"), test_share=0)


def test_a_file_alone_has_no_end_and_files_of_a_folder_have(tmp_path: Path) -> None:
    library(tmp_path, 2)
    assert [one.ends for one in read_text(tmp_path)] == [True, True]
    assert [one.ends for one in read_text(tmp_path / "00.txt")] == [False]
    assert digest(read_text(tmp_path / "00.txt")) == digest([Passage("book 0\n" * 20, ends=False)])


# --- what is refused ---


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (b"", {}, "holds no text"),
        (b" \n\t\r\n", {}, "holds no text"),
        ("\ufeff\n".encode(), {}, "holds no text"),
        (b"one\ntwo \xff\n", {}, r"a\.txt:2: byte 8 \(0xff\) is not utf-8 text: .*; encoding: cp1252 or .* would fit"),
        (b"x" * 40_000 + b"\n\xc3", {}, r"a\.txt:2: byte 40001 \(0xc3\) is not utf-8 text: unexpected end"),
        (b"x" * 16_383 + b"\xc3(", {}, r"a\.txt:1: byte 16383 \(0xc3\)"),
        ("é\n".encode("utf-16"), {}, r"byte 0 \(0xff\).*encoding: utf-16 would fit"),
        ("é\n".encode("utf-16-le"), {"encoding": "utf-16"}, "byte 0 is not utf-16 text: .*encoding: utf-16-le or"),
        (b"a\x00b", {}, r"a\.txt:1: a NUL character"),
        (b"text\n\x89PNG\x00", {"encoding": "latin-1"}, r"a\.txt:2: a NUL character"),
        (b"\x1f\x8b\x08", {"encoding": "latin-1"}, "compressed with gzip"),
        (b"text", {"encoding": "klingon"}, "no text encoding is called 'klingon'; one that Python knows"),
        (b"text", {"encoding": "hex"}, "no text encoding is called 'hex'"),
        (b"text", {"validation_share": 0.001}, "too short to set some aside, validation would be empty"),
        (b"text", {"validation_share": 0.6, "test_share": 0.4}, "leaves nothing to train on"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: bytes, options: dict[str, Any], problem: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=problem):
        own(path, **options)


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in this folder fits pattern '\*\*/\*\.txt'; there is no file at all"):
        own(tmp_path)
    folder_of(tmp_path, {"shakespeare.md": "words", "b.md": "more"})
    with pytest.raises(DataError, match=r"there is 2 \*\.md"):
        own(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder; there is shakespeare\.md"):
        own(tmp_path / "shakespear.md")
    with pytest.raises(DataError, match="no such file, nor is there a folder"):
        own(tmp_path / "none" / "a.txt")
    for pattern in ("/etc/*", ""):
        with pytest.raises(DataError, match="no file can be looked for with pattern"):
            own(tmp_path, pattern=pattern)
    (tmp_path / "private.txt").write_text("text")
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        own(Path("/dev/null"))


def test_blank_files_of_a_folder_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path, {"a.txt": "text", "b.txt": " \n"})
    assert joined(read_text(tmp_path)) == "text"
    assert "1 file(s) left out, for they hold no text; the first: " in caplog.text
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt: the file holds no text"):
        read_text(tmp_path)


# --- texts that depend on a condition ---

ROWS = [{"text": f"{kind} {index}", "condition": kind, "of": f"g{index % 7}"} for kind in "pq" for index in range(30)]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def conditioned(path: str, **options: Any) -> Splits[Passage]:
    return SOURCES.build({"kind": "conditioned", "train": path, **options})


def test_a_class_as_condition(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    splits = conditioned(path, group="of")
    parts = [list(part) for part in (splits.train, splits.validation, splits.test)]
    assert all(one.condition == one.text[0] and one.ends for part in parts for one in part)
    assert sum(map(len, parts)) == 60
    groups = [{int(one.text[2:]) % 7 for one in part} for part in parts]
    assert all(groups)
    assert sum(map(len, groups)) == 7
    assert read_conditioned(path)[0] == Passage("p 0", True, "p")


def test_numbers_as_condition(tmp_path: Path) -> None:
    rows = [{"text": f"t {index}", "condition": [index, 0.5]} for index in range(40)] + [
        {"text": "T 3", "condition": [7, 8]}
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    splits = conditioned(path, validation_share=0.2, test_share=0.2)
    parts = [list(part) for part in (splits.train, splits.validation, splits.test)]
    found = {(one.text, one.condition) for part in parts for one in part}
    assert found == {(row["text"], tuple(map(float, row["condition"]))) for row in rows}
    keys = [{one.text.casefold() for one in part} for part in parts]
    assert sum(map(len, keys)) == 40, "texts equal but for case stay together"
    assert {len(parts[1]), len(parts[2])} <= {7, 8, 9}
    table = tmp_path / "a.csv"
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([["text", "x", "y"], *([row["text"], *row["condition"]] for row in rows)])
    assert read_conditioned(table, features=["x", "y"]) == read_conditioned(path)
    given = conditioned(path, validation=jsonl(tmp_path / "v.jsonl", rows[:5]), test_share=0)
    assert len(given.train) == 35


@pytest.mark.parametrize(
    ("row", "options", "problem"),
    [
        ({"text": "x", "condition": "c"}, {}, r"column 'condition' is 'c'; it takes a list of finite numbers"),
        ({"text": "x", "condition": []}, {}, r"column 'condition' is \[\]"),
        ({"text": "x", "condition": [1, "a"]}, {}, r"it takes a list of finite numbers"),
        ({"text": "x", "condition": [1, float("inf")]}, {}, r"it takes a list of finite numbers"),
        ({"text": "x", "condition": [1, True]}, {}, r"it takes a list of finite numbers"),
        ({"text": "x", "condition": [1]}, {}, r"a\.jsonl:6: 1 numbers, but 2 in .*a\.jsonl:1; the same number"),
        ({"text": "", "condition": [1, 2]}, {}, r"a\.jsonl:6: the text \(column 'text'\) is empty"),
        (
            {"text": "x", "condition": [1, 2]},
            {"features": ["z"]},
            "no column is called .z.; known: text, condition",
        ),
        ({"text": "x", "condition": [1, 2]}, {"validation_share": 0.9, "test_share": 0.1}, "nothing to train on"),
    ],
)
def test_conditions_that_do_not_fit(tmp_path: Path, row: dict[str, Any], options: dict[str, Any], problem: str) -> None:
    rows = [{"text": f"t {index}", "condition": [1, 2]} for index in range(5)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, row])
    with pytest.raises((DataError, ConfigError), match=problem):
        conditioned(path, **options)


def test_every_option_has_a_line_of_help() -> None:
    for kind in ("text", "conditioned"):
        assert all(option.help for option in SOURCES[kind].options.values())
    assert MANY == 20, "the help of text names this number"
