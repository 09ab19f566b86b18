"""Pairs of sentences: the same from every format, refused with file and line, and no source in two splits."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqapp.data import tmx
from seqapp.data.pairs import SentencePair, read_pairs
from seqapp.data.rows import Row
from seqapp.data.splits import SOURCES, Splits
from seqapp.data.tmx import read_tmx
from seqapp.errors import ConfigError, DataError, SeqappError

EN_DE = ("en", "de")
SENTENCE = st.text("ab Ä,.'\"<&>;\xa0\u200b映😀", min_size=1, max_size=12).filter(str.strip).map(str.strip)
SENTENCES = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=6)
PAIRS = [("A dog.", "Ein Hund."), ("Two cats.", "Zwei Katzen."), ("A dog.", "Ein Hund.")]


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def lines(folder: Path, source: str | bytes, target: str | bytes) -> list[Path]:
    return [write(folder / "a.en", source), write(folder / "a.de", target)]


def aligned(folder: Path, pairs: Sequence[tuple[str, str]], **how: str) -> list[Path]:
    end, encoding = how.get("end", "\n"), how.get("encoding", "utf-8")
    return lines(folder, *("".join(f"{pair[side]}{end}" for pair in pairs).encode(encoding) for side in (0, 1)))


def memory(pairs: Sequence[tuple[str, str]], codes: tuple[str, str] = EN_DE) -> str:
    def variant(code: str, text: str) -> str:
        return f'<tuv xml:lang="{code}"><note>no text</note><seg>{escape(text)}</seg></tuv>'

    units = "\n".join(f"<tu>{''.join(map(variant, codes, pair))}</tu>" for pair in pairs)
    return f'<?xml version="1.0"?>\n<tmx version="1.4"><header/><body>\n{units}\n</body></tmx>\n'


def table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, dialect="excel-tab" if path.suffix == ".tsv" else "excel").writerows(rows)
    return path


def sides(pairs: Sequence[SentencePair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


def even(text: str) -> str:
    return " ".join(filter(None, text.split(" ")))


def message(error: type[SeqappError], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


def own(train: Any, **options: Any) -> Splits[SentencePair]:
    def text(path: Any) -> Any:
        return [str(one) for one in path] if isinstance(path, list) else str(path)

    paths = {name: text(options.pop(name)) for name in ("validation", "test") if name in options}
    return SOURCES.build({"kind": "pairs", "train": text(train), "source": "en", "target": "de", **paths, **options})


# --- round trips ---


@given(pairs=SENTENCES)
def test_every_format_gives_the_same_pairs(pairs: list[tuple[str, str]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    expected = [(even(a), even(b)) for a, b in pairs]
    found = {
        "lines": read_pairs(aligned(folder, pairs), languages=EN_DE),
        "CR LF": read_pairs(aligned(folder, pairs, end="\r\n", encoding="utf-8-sig"), languages=EN_DE),
        "UTF-16": read_pairs(aligned(folder, pairs, encoding="utf-16"), languages=EN_DE, encoding="utf-16"),
        "TMX": read_pairs(write(folder / "a.tmx", memory(pairs)), languages=EN_DE),
        "tmx.gz": read_pairs(write(folder / "a.tmx.gz", memory(pairs)), languages=EN_DE),
        "UTF-16 TMX": read_pairs(write(folder / "b.tmx", memory(pairs).encode("utf-16")), languages=EN_DE),
        "codes": read_pairs(table(folder / "a.csv", [("de", "id", "en"), *((b, "7", a) for a, b in pairs)]),
                            languages=EN_DE),
        "names": read_pairs(table(folder / "a.tsv", [("de", "source", "target"), *(("x", *one) for one in pairs)]),
                            languages=EN_DE, columns=("source", "target")),
        "numbers": read_pairs(write(folder / "b.tsv", "".join(f"7\t{b}\t{a}\tCC\n" for a, b in pairs)),
                              languages=EN_DE, columns=(3, 2)),
        "JSON": read_pairs(
            write(folder / "a.jsonl", "\n".join(json.dumps({"source": a, "target": b}) for a, b in pairs)),
            languages=EN_DE),
        "nested": read_pairs(
            write(folder / "a.ndjson.gz", "\n".join(json.dumps({"translation": {"de": b, "en": a}}) for a, b in pairs)),
            languages=EN_DE),
    }  # fmt: skip
    for name, one in found.items():
        assert sides(one) == expected, name
        assert {pair.languages for pair in one} == {EN_DE}, name


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = pyarrow.table({"translation": [{"en": a, "de": b} for a, b in PAIRS]})
    parquet.write_table(content, tmp_path / "train.parquet")
    assert sides(read_pairs(tmp_path / "train.parquet", languages=EN_DE)) == PAIRS


def test_white_space_is_made_even_and_lines_blank_in_both_files_are_passed_over(tmp_path: Path) -> None:
    paths = lines(tmp_path, "\ufeff A dog. \n\nTwo  cats.\n\n", "Ein\xa0Hund.\r\n \r\nZwei\tKatzen.\r\n\t\r\n")
    assert sides(read_pairs(paths)) == [("A dog.", "Ein\xa0Hund."), ("Two cats.", "Zwei Katzen.")]
    spread = write(tmp_path / "a.tmx", memory([("A\n   dog.", "Ein\u2028Hund.\n")]))
    assert sides(read_pairs(spread, languages=EN_DE)) == [("A dog.", "Ein Hund.")]


def test_quotes_are_text_where_columns_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", '"Hi," he said.\t"Hallo", sagte er.\n')
    assert sides(read_pairs(path, columns=(1, 2))) == [('"Hi," he said.', '"Hallo", sagte er.')]


# --- pairs that do not fit ---


def test_each_bad_side_is_told_with_file_and_line(tmp_path: Path) -> None:
    paths = lines(tmp_path, "one\n \nthree\nfo\x85ur\nfive\n", f"eins\nzwei\n\n{'v' * 1001}\nf\ufeffünf\n")
    assert message(DataError, read_pairs, paths).splitlines() == [
        "5 problems:",
        f"  {paths[0]}:2: the source is empty; fill it in, or delete the pair",
        f"  {paths[1]}:3: the target is empty; fill it in, or delete the pair",
        f"  {paths[0]}:4: the source holds a control character, U+0085, at character 3; delete it; or read as another "
        "encoding, such as cp1252, it would be a letter or a sign",
        f"  {paths[1]}:4: the target has 1,001 characters; 1,000 fit (max_characters); split or delete the pair",
        f"  {paths[1]}:5: the target holds a byte order mark, U+FEFF, at character 2; delete it",
    ]
    assert len(read_pairs(lines(tmp_path, "a" * 5, "b" * 7), max_characters=7)) == 1
    many = lines(tmp_path, "\n" * 30, "x\n" * 30)
    said = message(DataError, read_pairs, many).splitlines()
    assert (said[0], said[-1], len(said)) == ("30 problems:", "  ... and 20 more", 12)
    rows = write(tmp_path / "a.jsonl", '{"source": "a", "target": 7}\n\n{"source": "a"}\n')
    said = message(DataError, read_pairs, rows)
    assert f"{rows}:1: the target is 7; it takes a string" in said
    assert f"{rows}:3: the target is missing" in said
    short = write(tmp_path / "a.tsv", "a\tb\n\na\n")
    assert f"{short}:3: the target is missing" in message(DataError, read_pairs, short, columns=(1, 2))


@given(st.lists(st.tuples(SENTENCE, SENTENCE, st.sampled_from(["", "source", "target", "both"])), min_size=1))
def test_skipping_leaves_the_pairs_that_fit(rows: list[tuple[str, str, str]]) -> None:
    bad = [("\x01" if how in ("source", "both") else a, "" if how in ("target", "both") else b) for a, b, how in rows]
    good = [row[:2] for row, (a, b) in zip(rows, bad, strict=True) if row[:2] == (a, b)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqapp.data.pairs.read_rows", lambda *_, **__: iter(numbered(bad)))
        if good:
            assert sides(read_pairs("a.csv", on_bad="skip")) == [(even(a), even(b)) for a, b in good]
        else:
            with pytest.raises(DataError, match=r"a\.csv:1"):
                read_pairs("a.csv", on_bad="skip")


def numbered(pairs: Sequence[tuple[str, str]]) -> list[Row]:
    return [Row(line, {"source": a, "target": b}) for line, (a, b) in enumerate(pairs, 1)]


def test_skipping_says_how_many_and_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = lines(tmp_path, "a\n" * 15, "b\n" + "\n" * 12 + "b\n" * 2)
    assert len(read_pairs(paths, on_bad="skip")) == 3
    (said,) = caplog.messages
    assert said.startswith(f"12 problem(s), of pairs that are left out:\n  {paths[1]}:2: the target is empty")
    assert said.endswith("... and 2 more")


@pytest.mark.parametrize(("start", "much"), [(0, 1), (150, 1), (299, 1), (200, 4)])
@pytest.mark.parametrize("longer", [0, 1])
def test_unequal_counts_are_told_with_the_place_where_the_files_slip(
    start: int, much: int, longer: int, tmp_path: Path
) -> None:
    chance = random.Random(start)
    sizes = [chance.randint(10, 90) for _ in range(300)]
    sides = [["x" * max(1, size + chance.randint(-5, 5)) for size in sizes] for _ in range(2)]
    del sides[1 - longer][start : start + much]
    paths = lines(tmp_path, *("\n".join(side) + "\n" for side in sides))
    said = message(DataError, read_pairs, paths, on_bad="skip")
    counts = [f"{len(side)}" for side in sides]
    assert said.startswith(f"{paths[0]}: {counts[0]} lines, but {paths[1]} has {counts[1]}; ")
    assert f"{paths[longer]} has {much} line(s) too many about line " in said
    assert abs(int(said.rpartition(" ")[2]) - start - 1) <= 2
    wrong = message(DataError, read_pairs, lines(tmp_path, "a\n" * 20, "b\n" * 5))
    assert "20 lines, but" in wrong
    assert "too many" not in wrong


def test_a_target_that_is_the_source_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path / "a.csv", [("source", "target"), ("a", "b"), ("e", "e")])
    read_pairs(path)
    assert not caplog.messages
    table(path, [("source", "target"), ("a", "b"), ("c", "c"), ("e", "e")])
    read_pairs(path)
    assert f"{path}: in 2 of 3 pairs the target is the source itself" in caplog.text
    assert "given as source and as target" in message(DataError, read_pairs, [path, path])


def test_errors_say_what_would_fit(tmp_path: Path) -> None:
    paths = aligned(tmp_path, PAIRS)
    csv_path = table(tmp_path / "a.csv", [("english", "german"), *PAIRS])
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (paths[0], {}, "its name does not tell what it holds; a name that ends in .csv"),
        (tmp_path / "no", {}, "no such file"),
        ([*paths, paths[0]], {}, "3 files are not pairs of sentences"),
        ([], {}, "0 files are not pairs"),
        ([paths[0], tmp_path / "a.d"], {}, "a.d: no such file; there are a.de"),
        (csv_path, {"languages": EN_DE}, "no column 'source' and no column 'target'; there are 'english', 'german'"),
        (csv_path, {"columns": ("english", "deutsch")}, "there is no column 'deutsch'"),
        (csv_path, {"columns": (1, 2)}, "known by number only in a .tsv file"),
        (csv_path, {"format": "tmx", "languages": EN_DE}, "a.csv:1: not well-formed XML"),
        (write(tmp_path / "a.tmx", memory(PAIRS)), {}, "the codes of source and target are needed"),
        (write(tmp_path / "a.tsv", "a b\n"), {"columns": (1, 2)}, "a.tsv:1: 1 field(s), but columns are [1, 2]; a tab"),
    ]
    for path, options, expected in cases:
        assert expected in message(DataError, read_pairs, path, **options)
    assert "a.de:1: byte 0 (0xff) is not utf-8 text" in message(DataError, read_pairs, lines(tmp_path, "a\n", b"\xff"))
    assert "a.en: holds no pair of sentences" in message(DataError, read_pairs, lines(tmp_path, "\n", "\n"))
    for options, expected in (
        ({"columns": ("a", "b")}, "columns: is for one file"),
        ({"format": "csv"}, "format: is for one file"),
    ):
        assert expected in message(ConfigError, read_pairs, paths, **options)
    for columns in ((1,), ("a", 2), ("a", "a"), (1, 1), (0, 1), (2, -1), ("a", "b", "c")):
        assert "columns: takes two" in message(ConfigError, read_pairs, write(tmp_path / "a.tsv", "a\tb\n"),
                                               columns=columns)  # fmt: skip


# --- TMX ---


def units(path: Path, source: str = "en", target: str = "de") -> list[tuple[int, str, str]]:
    return list(read_tmx(path, (source, target)))


def test_a_translation_memory_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "a.tmx",
        """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"><note>seg</note></header><body>
<tu><tuv xml:lang="de-AT"><seg>Gr&#252;\u00df <bpt>&lt;b <sub>no</sub>&gt;</bpt>Gott<ept>&lt;/b&gt;</ept></seg></tuv>
<tuv xml:lang="EN_us"><seg>Hi <hi type="b">there</hi><ph>{1}</ph></seg></tuv></tu>
<tu><tuv xml:lang="en-GB"><seg>Colour</seg></tuv><tuv xml:lang="en"><seg>Color</seg></tuv>
<tuv lang="de"><seg>Farbe</seg></tuv><tuv lang="de"><seg>Farben</seg></tuv></tu>
<tu><tuv xml:lang="fr"><seg>Oui</seg></tuv><tuv xml:lang="en"><seg>Yes</seg></tuv></tu>
<tu><tuv xml:lang="en-CA"><seg>Truck</seg></tuv><tuv xml:lang="en-GB"><seg>Lorry</seg></tuv>
<tuv xml:lang="de-CH"><seg>Lastwagen</seg></tuv></tu>
<tu><tuv xml:lang="eng"><seg>No</seg></tuv><tuv xml:lang="de"><seg>Nein</seg></tuv></tu>
</body></tmx>""".encode("latin-1"),
    )
    assert units(path) == [(4, "Hi there", "Grüß Gott"), (6, "Color", "Farbe"), (9, "Truck", "Lastwagen")]
    assert "2 of 5 unit(s) left out, for they are not in both en and de; the first in line 8" in caplog.text
    assert units(path, "de-AT", "en-us") == [(4, "Grüß Gott", "Hi there")]
    assert units(path, "en-GB", "de") == [(6, "Colour", "Farbe"), (9, "Lorry", "Lastwagen")]
    said = message(DataError, units, path, "en", "cs")
    assert "no translation unit is in both en and cs; the languages in it are" in said
    assert "EN_us (1)" in said


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_cut_into_chunks_gives_the_same_units(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"Ä & {n} <b>", f"映😀 {n}\nx") for n in range(9)]
    path = write(tmp_path / "a.tmx", memory(pairs))
    monkeypatch.setattr(tmx, "_CHUNK", size)
    assert [one[1:] for one in units(path)] == pairs


def test_units_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tmx", memory([("a", "b")] * 5000).replace("</body>", "</wrong>"))
    reader = read_tmx(path, EN_DE)
    assert next(reader) == (3, "a", "b")
    assert "5003: not well-formed XML: mismatched tag" in message(DataError, list, reader)


BOMB = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
FILE = '<!DOCTYPE tmx [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
PARAMETER = '<!DOCTYPE tmx [<!ENTITY % p SYSTEM "http://example.org/a.dtd"> %p;]>'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (memory(PAIRS).replace("<tmx", f"{BOMB}\n<tmx").replace("Hund", "&b;"), ":2: the file declares an entity, a;"),
        (memory(PAIRS).replace("<tmx", f"{FILE}\n<tmx").replace("Hund", "&x;"), ":2: the file declares an entity, x;"),
        (memory(PAIRS).replace("<tmx", f"{PARAMETER}\n<tmx"), ":2: the file declares an entity, p;"),
        (memory(PAIRS).replace("<tmx", '<!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx').replace("Hund", "&nbsp;", 1),
         ":3: the entity &nbsp; is not known"),
        (memory(PAIRS).replace("Hund", "&nbsp;", 1), ":3: not well-formed XML: undefined entity"),
        (memory(PAIRS)[:-9], ":6: not well-formed XML: "),
        ("<html><body/></html>", ":1: <html> is not TMX"),
        ("", ":1: not well-formed XML: no element found"),
        (memory([]), ": no translation unit is in both en and de; the languages in it are none"),
        (memory(PAIRS).replace('"1.0"', '"1.0" encoding="shift_jis"'), ":1: cannot be read: "),
        (memory(PAIRS).replace('"1.0"', '"1.0" encoding="klingon"'), ":1: cannot be read: unknown encoding"),
        (gzip.compress(b"x"), ": the file is compressed with gzip; TMX"),
    ],
)  # fmt: skip
def test_a_memory_that_is_none_or_not_safe_is_refused(content: str | bytes, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tmx", content)
    assert f"{path}{expected}" in message(DataError, units, path)


def test_a_compressed_memory_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tmx.gz", memory(PAIRS))
    path.write_bytes(path.read_bytes()[:-20])
    assert "cut off or damaged" in message(DataError, units, path)


# --- splits ---


@given(
    pairs=st.lists(st.tuples(st.sampled_from("aAbBcdefgh"), st.sampled_from("xyz")), min_size=30, max_size=60),
    data=st.data(),
)
def test_no_source_stands_in_two_splits(pairs: list[tuple[str, str]], data: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("splits")
    pairs = [*pairs, *((f"{n}", f"{n}") for n in range(30))]
    train = table(folder / "train.csv", [("en", "de"), *pairs])
    files = {}
    for name in ("validation", "test"):
        if data.draw(st.booleans()):
            files[name] = table(folder / f"{name}.csv", [("en", "de"), *((f"{name} {n}", "x") for n in range(3)),
                                                         *data.draw(st.permutations(pairs))[:5]])  # fmt: skip
    splits = own(train, **files, validation_share=0.2, test_share=0.2)
    parts = [{pair.source.lower() for pair in part} for part in (splits.train, splits.validation, splits.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    kept = sides(splits.train)
    rest = iter(pairs)
    assert all(pair in rest for pair in kept), "pairs keep their order, and equal ones stay"
    if not files:
        dealt = sides([*splits.train, *splits.validation, *splits.test])
        assert sorted(dealt) == sorted(pairs)


def test_splits_depend_on_the_seed_and_say_how_they_were_made(tmp_path: Path) -> None:
    pairs = [(f"A {n}.", f"Ein {n}.") for n in range(60)]
    paths = aligned(tmp_path, pairs)
    splits = own(paths)
    assert splits.digests() == own(paths).digests()
    assert splits.digests() != own(paths, seed=1).digests()
    assert splits.name == "pairs a.en en-de, validation 0.05, test 0.05, seed 0"
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [54, 3, 3]
    held = write(tmp_path / "b.tmx", memory([("a 1.", "x"), ("new", "neu")]))
    given = own(paths, validation=held, test_share=0)
    assert sides(given.validation) == [("a 1.", "x"), ("new", "neu")]
    assert sides(given.train) == [pair for pair in pairs if pair[0] != "A 1."]
    assert (list(given.test), given.name) == ([], "pairs a.en en-de")


def test_options_that_do_not_fit_are_told(tmp_path: Path) -> None:
    paths = aligned(tmp_path, PAIRS)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": "english"}, "source: takes the code of a language, such as en, de or pt-BR, not 'english'"),
        ({"target": "EN"}, "target: is the source language, 'en'; two different ones would fit"),
        ({"train": 7}, "train: takes text or list of text, not 7"),
        ({"columns": ["a", 0]}, "columns.1: takes"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leaves nothing to train on"),
    ]
    for options, expected in cases:
        said = message(ConfigError, SOURCES.build, {
            "kind": "pairs", "train": [str(path) for path in paths], "source": "en", "target": "de", **options
        })  # fmt: skip
        assert expected in said
    assert "a.en: 2 group(s) in 3 example(s) are too few to split" in message(DataError, own, paths)
    assert "every train sentence pair also stands in validation or test" in message(DataError, own, paths, test=paths)
