"""Files round-trip, splits share nothing, and every error names the file, the line and what would fit."""

import csv
import gzip
import json
import logging
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqapp.data.rows import Row, read_rows
from seqapp.data.splits import SOURCES, LabelledText
from seqapp.data.tables import read_labelled, table
from seqapp.errors import ConfigError, DataError, SeqappError
from seqapp.registry import InvalidOption

COLUMNS = ("text", "label")
TEXT = st.one_of(st.text(), st.text(alphabet="a\"',\t\r\n\\ \u2028\x85\x1cé🙂"))
PLAIN = TEXT.map(lambda text: text.replace("\0", ""))
QUICK = settings(deadline=None, max_examples=40)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = COLUMNS) -> str:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, dialect="excel-tab" if path.suffix == ".tsv" else "excel")
        writer.writerows([header, *rows])
    return str(path)


def values(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values.values()) for row in read_rows(path, **options)]


def message(error: type[SeqappError], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


def problem(path: Path, content: str | bytes, **options: Any) -> str:
    """What reading the file says after its own name, which must come first."""
    said = message(DataError, lambda: list(read_rows(write(path, content), **options)))
    assert said.startswith(f"{path}:")
    return said.removeprefix(f"{path}:")


# Round trips


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".TSV"])
@QUICK
@given(rows=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=6), ending=st.sampled_from(["\n", "\r\n"]))
def test_delimited_text_round_trips(suffix: str, rows: list[tuple[str, str]], ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        opener = gzip.open if suffix.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8", newline="") as stream:
            separator = "\t" if "tsv" in suffix.lower() else ","
            writer = csv.writer(stream, delimiter=separator, lineterminator=ending, quoting=csv.QUOTE_ALL)
            writer.writerows([COLUMNS, *rows])
        assert values(path) == rows


@QUICK
@given(rows=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=6))
def test_minimal_quoting_round_trips_with_the_physical_line_of_each_record(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        write_csv(path, rows)
        found = list(read_rows(path))
        assert [tuple(row.values.values()) for row in found] == rows
        line = 2
        for row, fields in zip(found, rows, strict=True):
            assert row.line == line
            line += 1 + len(re.findall(r"\r\n|\r|\n", "\0".join(fields)))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz"])
@QUICK
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_json_lines_round_trip(suffix: str, ascii_only: bool, rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        opener = gzip.open if suffix.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8", newline="\n") as stream:
            for row in rows:
                stream.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=ascii_only) + "\n")
        assert values(path) == rows
        assert [row.line for row in read_rows(path)] == list(range(1, len(rows) + 1))


@QUICK
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_parquet_round_trips(rows: list[tuple[str, str]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        parquet.write_table(pyarrow.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
        assert values(path) == rows
        assert [row.line for row in read_rows(path)] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "shift_jis"])
def test_encodings_and_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    text = {"latin-1": "déjà", "shift_jis": "日本語"}.get(encoding, "déjà 日本 🙂")
    path = write(tmp_path / "a.csv", f"text,label\r\n{text},1\r\n".encode(encoding))
    chosen = "utf-8" if encoding == "utf-8-sig" else encoding
    assert values(path, encoding=chosen) == [(text, "1")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_mark_before_the_text_is_no_part_of_the_first_name(tmp_path: Path, encoding: str) -> None:
    for name, content in (("a.csv", "text,label\na,b\n"), ("a.jsonl", '{"text": "a", "label": "b"}\n')):
        path = write(tmp_path / name, f"\ufeff{content}".encode(encoding))
        assert [row.values for row in read_rows(path, encoding=encoding)] == [{"text": "a", "label": "b"}]


def test_lines_are_counted_through_blank_lines_and_quoted_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\n text , label\n\n"two\r\nlines",x\n   \nb,y\rc,z')
    assert list(read_rows(path)) == [
        Row(4, {"text": "two\r\nlines", "label": "x"}),
        Row(7, {"text": "b", "label": "y"}),
        Row(8, {"text": "c", "label": "z"}),
    ]
    path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n  \n{"b": [2]}')
    assert list(read_rows(path)) == [Row(2, {"a": 1}), Row(4, {"b": [2]})]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_texts_longer_than_the_limit_of_the_csv_module_and_than_a_chunk(tmp_path: Path, name: str) -> None:
    long = "é" * 1_500_000 + "\u2028end"
    if "csv" in name:
        content = f'text,label\r\n"{long}",1\r\nb,2\r\n'.encode()
    else:
        content = "".join(f"{json.dumps({'text': text, 'label': '1'})}\n" for text in (long, "b")).encode()
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert [row[0] for row in values(path)] == [long, "b"]


def test_line_ends_on_the_border_of_a_chunk(tmp_path: Path) -> None:
    for extra in range(-3, 4):
        filler = "x" * ((1 << 20) - len("text,label\r\n,1\r\n") + extra)
        path = write(tmp_path / "a.csv", f"text,label\r\n{filler},1\r\nb,2\r\n")
        assert [(row.line, row.values["label"]) for row in read_rows(path)] == [(2, "1"), (3, "2")]


# Files that cannot be read


def test_undecodable_bytes_name_line_byte_and_a_fitting_encoding(tmp_path: Path) -> None:
    said = problem(tmp_path / "a.csv", "text,label\r\ncafé,1\r\n".encode("latin-1"))
    assert said.startswith("2: byte 15 (0xe9) is not utf-8 text")
    assert "encoding: cp1252 or encoding: latin-1 would fit" in said
    said = problem(tmp_path / "b.csv", "text,label\ncafé,1\n".encode(), encoding="ascii")
    assert said.startswith("2: byte 14 (0xc3)")
    assert "encoding: utf-8" in said
    said = problem(tmp_path / "c.csv", b"text,label\na,\x81\n")
    assert "encoding: latin-1 would fit" in said
    assert "cp1252" not in said


def test_undecodable_bytes_far_into_a_file(tmp_path: Path) -> None:
    good = "text,label\n" + f"{'🙂' * 200},1\n" * 2000
    content = good.encode() + b"a\xff,1\n"
    said = problem(tmp_path / "a.csv", content)
    assert said.startswith(f"2002: byte {len(good.encode()) + 1} (0xff)")
    path = write(tmp_path / "a.csv.gz", gzip.compress(content))
    assert f"{path}:2002: byte {len(good.encode()) + 1} " in message(DataError, lambda: list(read_rows(path)))
    cut = good.encode() + "🙂".encode()[:2]
    assert problem(tmp_path / "b.csv", cut).startswith(f"2002: byte {len(good.encode())} (0xf0)")


def test_utf_16_read_as_something_else(tmp_path: Path) -> None:
    content = "text,label\na,1\n".encode("utf-16")
    assert "encoding: utf-16 would fit" in problem(tmp_path / "a.csv", content)
    said = problem(tmp_path / "b.csv", content[2:])
    assert said.startswith("1: a NUL byte")
    assert "encoding: utf-16 would fit" in said
    said = problem(tmp_path / "c.csv", content[2:], encoding="utf-16")
    assert said.startswith("1: byte 0 ")
    assert "encoding: utf-16-le" in said
    said = problem(tmp_path / "d.csv", content[:-1], encoding="utf-16")
    assert said.startswith("2: byte 30 ")
    assert "a file that is not cut off" in said


@pytest.mark.parametrize(("name", "line"), [("a.csv", 3), ("a.tsv", 3), ("a.jsonl", 3)])
def test_nul_bytes(tmp_path: Path, name: str, line: int) -> None:
    row = '{"text": "a"}\n' if name == "a.jsonl" else "a\n"
    said = problem(tmp_path / name, f"{row}{row}b\0\n")
    assert said.startswith(f"{line}: a NUL byte")
    assert "remove it" in said


@pytest.mark.parametrize(
    ("name", "content", "line", "hint"),
    [
        ("a.csv", "text,label\na,1\n\nb\n", 4, "too few fields: 1; the header names 2 (text, label)"),
        ("a.csv", 'text,label\n"a\nb",1\nwell, no,2\n', 4, "too many fields: 3; the header names 2 (text, label)"),
        ("a.csv", "text,label\na, b,2\n", 2, "quote a field with ',' inside"),
        ("a.tsv", "text\tlabel\na\tb\t2\n", 2, r"quote a field with '\t' inside"),
        ("a.csv", 'text,label\na,1\n"b,2\nc,3\n', 3, "broken quotes"),
        ("a.csv", 'text,label\n"a"b,1\n', 2, 'doubles each " inside'),
        ("a.csv", "text,,label\na,b,c\n", 1, "column 2 of 3 has no name"),
        ("a.csv", ",text,label\n0,b,c\n", 1, "index=False"),
        ("a.csv", "\ntext,label, text\na,b,c\n", 2, "two columns are called 'text'"),
        ("a.csv", "", 1, "no rows; it takes a header"),
        ("a.csv", "\n\n", 1, "no rows"),
        ("a.tsv", "text\tlabel\n\n", 1, "then rows"),
        ("a.jsonl", "\n", 1, "no rows; it takes one JSON object a line"),
        ("a.csv.gz", gzip.compress(b"text,label\n"), 1, "no rows"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', 3, "each line takes one whole JSON object"),
        ("a.jsonl", '{"text": "a"} x\n', 1, "not valid JSON: Extra data in column 15"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', 2, "a JSON list, not an object"),
        ("a.jsonl", "null\n", 1, "not an object; each line takes"),
        ("a.jsonl", '[\n{"text": "a"}\n]', 1, "not valid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "not valid JSON"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}\n", 1, "not valid JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', 1, "'text' stands twice"),
        ("a.jsonl", '{"text": "\\ud83d\\ude42"}\n{"text": "\\uD83D"}\n', 2, "write both halves"),
        ("a.csv", gzip.compress(b"text,label\na,b\n"), 1, "ends in .gz"),
        ("a.csv", b"PK\x03\x04rest", 1, "save the sheet as CSV"),
        ("a.csv", b"PAR1\x15rest", 1, "format: parquet would fit"),
        ("a.csv.gz", b"text,label\na,b\n", 1, "damaged"),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n")[:-12], 1, "cut off"),
        ("a.parquet", b"PAR1 and nothing more", 1, "cannot be read as Parquet"),
        ("a.parquet", b"", 1, "cannot be read as Parquet"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path: Path, name: str, content: str | bytes, line: int, hint: str) -> None:
    said = problem(tmp_path / name, content)
    assert said.startswith(f"{line}: ")
    assert hint in said


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    for name in ("reviews.csv", "other.tsv", "notes.md"):
        write(tmp_path / name, "")
    said = message(DataError, list, read_rows(tmp_path / "review.csv"))
    assert said == f"{tmp_path / 'review.csv'}: no such file; there are reviews.csv"
    assert "there are other.tsv, reviews.csv" in message(DataError, list, read_rows(tmp_path / "zzzzzzzzzzzz"))
    said = message(DataError, list, read_rows(tmp_path / "no" / "a.csv"))
    assert said.endswith(f"nor is there a folder {tmp_path / 'no'}")
    (tmp_path / "bare").mkdir()
    assert message(DataError, list, read_rows(tmp_path / "bare" / "a.csv")).endswith("there is no table in that folder")
    assert "cannot be read" in message(DataError, list, read_rows(tmp_path / "other.tsv" / "a.csv"))


def test_a_directory_names_the_tables_inside(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "")
    said = message(DataError, list, read_rows(tmp_path))
    assert said == f"{tmp_path}: is a directory; name one file; there are a.csv"


def test_unknown_extension_and_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text,label\na,b\n")
    said = message(DataError, list, read_rows(path))
    assert said.startswith(f"{path}: the extension '.txt'")
    assert "option format: csv, jsonl, parquet, tsv" in said
    assert values(path, format="csv") == [("a", "b")]
    assert "did you mean 'csv'" in message(DataError, list, read_rows(path, format="cvs"))  # type: ignore[arg-type]
    path = write(tmp_path / "a.parquet.gz", b"")
    assert message(DataError, list, read_rows(path)).startswith(f"{path}: Parquet")


@pytest.mark.parametrize("encoding", ["utf8x", "hex", "undefined"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.csv", "text\na\n")
    said = message(DataError, list, read_rows(path, encoding=encoding))
    assert said.startswith(f"{path}: no text encoding is called {encoding!r}")
    assert "such as utf-8, utf-16" in said


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", b"PAR1")
    said = message(DataError, list, read_rows(path))
    assert said.startswith(f"{path}: ")
    assert "pip install pyarrow" in said


def test_parquet_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    texts = pyarrow.array(["a", "b", "c", "d", ""]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": texts, "label": [1.0, 0.0, None, 0.5, 1.0]}), path)
    said = message(DataError, read_labelled, path)
    for line, what in ((3, "label (column 'label') is missing"), (4, "is 0.5; it takes"), (5, "text (column 'text')")):
        assert re.search(rf"{re.escape(str(path))}:{line}: the .*{re.escape(what)}", said)
    parquet.write_table(pyarrow.table([[1], [2]], names=["text", "text"]), path)
    assert message(DataError, list, read_rows(path)).startswith(f"{path}:1: two columns are called 'text'")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert "no rows" in message(DataError, list, read_rows(path))


# Columns and labels


def test_labels_become_text(tmp_path: Path) -> None:
    labels = ["  pos ", 1, 1.0, -2.0, True, False, 10**30]
    lines = [json.dumps({"body": " keep  me ", "class": label, "more": []}) for label in labels]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    found = read_labelled(path, text="body", label="class")
    assert found == [LabelledText(" keep  me ", name) for name in ("pos", "1", "1", "-2", "true", "false", str(10**30))]


def test_missing_columns_are_listed_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Text,lable\na,1\n")
    said = message(DataError, read_labelled, path)
    assert f"{path}:1: no column is called 'text' (option text); did you mean 'Text'? known: Text, lable" in said
    assert f"{path}:1: no column is called 'label' (option label); did you mean 'lable'?" in said
    path = write(tmp_path / "b.csv", "text;label\na;1\n")
    assert "is ';' the separator?" in message(DataError, read_labelled, path)
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "note": 1}\n')
    assert "known: text, note" in message(DataError, read_labelled, path)


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path) -> None:
    good, bad = {"text": "a", "label": "x"}, [{"text": " ", "label": "x"}, {"text": "a"}, {"text": "a", "label": None}]
    bad += [{"text": 5, "label": "x"}, {"text": "a", "label": 1.5}, {"text": "a", "label": ["x"]}, {"label": "\t"}]
    bad += [{"text": "a", "label": float("nan")}, {"text": "a", "label": float("inf")}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in [good, *bad, *bad]))
    said = message(DataError, read_labelled, path).splitlines()
    assert said[0] == "20 problems:"
    assert said[-1].strip() == "... and 10 more"
    assert [int(line.split(":")[1]) for line in said[1:-1]] == [2, 3, 4, 5, 6, 7, 8, 8, 9, 10]
    assert all(line.strip().startswith(f"{path}:") and "; " in line for line in said[1:-1])
    assert "(column 'text') is 5; it takes a string" in said[4]
    assert "fill it in or delete the row" in said[1]


def test_a_label_may_be_absent_where_none_is_required(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\na\n")
    assert read_labelled(path, label_required=False) == [LabelledText("a", "")]
    path = write(tmp_path / "b.csv", "text,label\na,\nb,x\n")
    assert [row.label for row in read_labelled(path, label_required=False)] == ["", "x"]
    assert message(DataError, read_labelled, path).startswith(f"{path}:2: the label (column 'label') is missing")


# The data source


def rows_of(count: int, labels: Sequence[str] = ("neg", "pos")) -> list[tuple[str, str]]:
    return [(f"text {index}", labels[index % len(labels)]) for index in range(count)]


def test_the_source_is_chosen_by_name_and_documents_its_options(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", rows_of(40))
    splits = SOURCES.build({"kind": "table", "train": path})
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [32, 4, 4]
    assert splits.name == "table a.csv, validation 0.1, test 0.1, by text, seed 0"
    options = SOURCES["table"].options
    assert all(option.help for option in options.values())
    assert options["format"].type_name == "one of csv, tsv, jsonl, parquet or null"
    with pytest.raises(InvalidOption, match="test_share"):
        SOURCES.check({"kind": "table", "train": path, "test_share": 1.0})


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "a.csv", rows_of(40))
    monkeypatch.chdir(tmp_path)
    assert len(table(train="a.csv", test_share=0.0).train) == 36
    assert message(DataError, table, train="b.csv").startswith("b.csv: no such file; there are a.csv")


def test_splits_depend_on_the_seed_only_and_keep_shares_by_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", rows_of(200, ["a"] * 9 + ["b"]))
    splits = table(train=path, validation_share=0.2, test_share=0.1)
    assert splits.digests() == table(train=path, validation_share=0.2, test_share=0.1).digests()
    assert splits.digests() != table(train=path, validation_share=0.2, test_share=0.1, seed=1).digests()
    for part, size in ((splits.train, 140), (splits.validation, 40), (splits.test, 20)):
        assert Counter(row.label for row in part) == {"a": size * 9 // 10, "b": size // 10}
        assert [row.text for row in part] == sorted((row.text for row in part), key=lambda text: int(text.split()[1]))


def texts(part: Sequence[LabelledText]) -> set[str]:
    return {" ".join(row.text.casefold().split()) for row in part}


SPREAD = st.dictionaries(st.sampled_from("pqr"), st.lists(st.integers(1, 9), min_size=3, max_size=12), min_size=2)


@QUICK
@given(
    copies=SPREAD,
    share=st.sampled_from([0.05, 0.3, 0.6]),
    test_share=st.sampled_from([0.0, 0.1, 0.35]),
    seed=st.integers(0, 99),
)
def test_splits_by_text_are_disjoint_and_cover_all_rows(
    copies: dict[str, list[int]], share: float, test_share: float, seed: int
) -> None:
    variants = ["the {} {}", "The  {} {}", " the {}\n{} "]
    rows = [
        (variants[copy % 3].format(label, index), label)
        for label, counts in copies.items()
        for index, count in enumerate(counts)
        for copy in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "a.csv", rows)
        splits = table(train=path, validation_share=share, test_share=test_share, seed=seed)
    parts = [splits.train, splits.validation, splits.test]
    assert Counter((row.text, row.label) for part in parts for row in part) == Counter(rows)
    assert sum(len(texts(part)) for part in parts) == len(set.union(*map(texts, parts)))
    for part in parts[: 3 if test_share else 2]:
        assert {row.label for row in part} == set(copies)


@QUICK
@given(
    sizes=SPREAD,
    mixed=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("pqr")), max_size=20),
    test_share=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_splits_by_group_are_disjoint_and_cover_all_rows(
    sizes: dict[str, list[int]], mixed: list[tuple[int, str]], test_share: float, seed: int
) -> None:
    groups = [
        (f"{label}{movie}", label)
        for label, counts in sizes.items()
        for movie, count in enumerate(counts)
        for _ in range(count)
    ]
    groups += [(f"mixed{movie}", label) for movie, label in mixed if label in sizes]
    rows = [(f"{movie}: {index}", label, movie) for index, (movie, label) in enumerate(groups)]
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "a.tsv", rows, (*COLUMNS, "movie"))
        splits = table(train=path, group="movie", validation_share=0.2, test_share=test_share, seed=seed)
    parts = [splits.train, splits.validation, splits.test]
    assert Counter((row.text, row.label) for part in parts for row in part) == Counter(row[:2] for row in rows)
    movies = [{row.text.split(":")[0] for row in part} for part in parts]
    assert sum(map(len, movies)) == len(set.union(*movies))
    for part in parts[: 3 if test_share else 2]:
        assert {row.label for row in part} == set(sizes)


def test_classes_that_are_whole_groups_reach_every_split(tmp_path: Path) -> None:
    books = [(author, f"{author}{book}") for author in "abcde" for book in range(4)]
    rows = [(f"{book} {page}", author, book) for author, book in books for page in range(9)]
    path = write_csv(tmp_path / "a.csv", rows, (*COLUMNS, "book"))
    splits = table(train=path, group="book")
    for part in (splits.train, splits.validation, splits.test):
        assert {row.label for row in part} == set("abcde")


@pytest.mark.parametrize("copies", [1, 500])
def test_small_classes_and_one_huge_duplicate_still_reach_validation(tmp_path: Path, copies: int) -> None:
    rows = [("same", "big")] * copies + [(f"big {index}", "big") for index in range(6)]
    rows += [("one", "small"), ("two", "small")]
    splits = table(train=write_csv(tmp_path / "a.csv", rows))
    assert {row.label for row in splits.train} == {row.label for row in splits.validation} == {"big", "small"}
    assert {row.label for row in splits.test} == {"big"}


def test_shared_texts_of_several_groups_leave_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"{group} {index}", "ab"[index % 2], group) for group in range(20) for index in range(6)]
    rows += [(" Same  text", "a", group) for group in range(20)]
    splits = table(train=write_csv(tmp_path / "a.csv", rows, (*COLUMNS, "speaker")), group="speaker")
    assert not texts(splits.train) & (texts(splits.validation) | texts(splits.test))
    assert "train row(s) removed" in caplog.text


def test_given_files_take_their_texts_out_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_csv(tmp_path / "train.csv", [*rows_of(20), ("TEXT  100", "neg"), ("text 200 ", "pos")])
    validation = write_csv(tmp_path / "validation.csv", [("text 100", "neg"), ("text 101", "pos"), ("text 201", "pos")])
    test = write_csv(tmp_path / "test.csv", [("text 200", "pos"), ("Text 201", "pos")])
    with caplog.at_level(logging.WARNING):
        splits = table(train=train, validation=validation, test=test)
    assert [row.text for row in splits.train] == [f"text {index}" for index in range(20)]
    assert [row.text for row in splits.validation] == ["text 100", "text 101"]
    assert [row.text for row in splits.test] == ["text 200", "Text 201"]
    assert "2 train row(s) removed: their text also stands in validation or test" in caplog.text
    assert "1 validation row(s) removed: their text also stands in test" in caplog.text
    assert splits.name == "table train.csv"


@pytest.mark.parametrize("name", ["validation", "test"])
def test_one_given_file_and_one_part_set_aside(tmp_path: Path, name: str) -> None:
    train = write_csv(tmp_path / "train.csv", rows_of(100))
    other = write_csv(tmp_path / "other.csv", [("text 0", "neg"), ("text 1", "pos"), ("new", "pos")])
    splits = table(train=train, **{name: other})  # type: ignore[arg-type]
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    assert [row.text for row in parts.pop(name)] == ["text 0", "text 1", "new"]
    assert sorted(len(part) for part in parts.values()) == [10, 88]
    assert set.union(*map(texts, parts.values())) == {f"text {index}" for index in range(2, 100)}


def test_contradicting_labels_are_kept_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*rows_of(40), ("TEXT 0", "pos"), ("text  0", "pos"), ("text 3", "neg")]
    path = write_csv(tmp_path / "a.csv", rows)
    splits = table(train=path)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 43
    assert "2 text(s) have more than one label; the first: " in caplog.text
    assert f"{path}:42 says 'pos', {path}:2 says 'neg'" in caplog.text


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", rows_of(20))
    other = write_csv(tmp_path / "other.csv", [("a", "pos"), ("b", "posi"), ("c", "posi"), ("d", "new")])
    for options in ({"validation": other}, {"test": other}):
        said = message(DataError, table, train=train, **options)
        assert f"{other}:3: the label 'posi' never occurs in the training rows of {train}; did you mean 'pos'?" in said
        assert f"{other}:5: the label 'new' never occurs" in said
        assert said.startswith("2 problems:")


def test_classes_that_are_too_small(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*rows_of(20), ("x", "rare"), ("X ", "rare"), ("y", "rarer")])
    said = message(DataError, table, train=path)
    assert f"{path}:22: the class 'rare' has 1 different text in {path}; at least 2 are needed" in said
    assert f"{path}:24: the class 'rarer' has 1 different text" in said
    rows = [(text, label, label if label == "neg" else text) for text, label in rows_of(20)]
    path = write_csv(tmp_path / "b.csv", rows, (*COLUMNS, "movie"))
    said = message(DataError, table, train=path, group="movie")
    assert said.startswith(f"{path}:2: the class 'neg' has 1 value of 'movie'")
    assert said.endswith("add more or give a validation file")


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", rows_of(20, ["pos"]))
    said = message(DataError, table, train=path)
    assert said == f"{path}:2: all 20 rows have the label 'pos'; at least two classes are needed"


def test_parts_without_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", rows_of(20))
    said = message(DataError, table, train=path, validation=path)
    assert said.startswith(f"{path}:2: every train row also stands in validation or test")
    tiny = write_csv(tmp_path / "tiny.csv", rows_of(4))
    assert "too few rows to set some aside for test" in message(DataError, table, train=tiny)
    assert len(table(train=tiny, test_share=0.0).validation) == 2
    said = message(ConfigError, table, train=path, validation_share=0.5, test_share=0.5)
    assert said == "validation_share 0.5 + test_share 0.5 leaves nothing to train on; below 1 together would fit"


def test_group_column(tmp_path: Path) -> None:
    rows = [(text, label, "" if index == 3 else "m") for index, (text, label) in enumerate(rows_of(6))]
    path = write_csv(tmp_path / "a.csv", rows, (*COLUMNS, "movie"))
    assert "no column is called 'movies' (option group); did you mean 'movie'?" in message(
        DataError, table, train=path, group="movies"
    )
    said = message(DataError, table, train=path, group="movie")
    assert said.startswith(f"{path}:5: the group (column 'movie') is missing")


def test_a_large_file_is_read_in_order(tmp_path: Path) -> None:
    rows = rows_of(30_000)
    random.Random(0).shuffle(rows)
    path = write_csv(tmp_path / "a.csv", rows)
    assert [(row.text, row.label) for row in read_labelled(path)] == rows
