"""Files of answers: the same however they are cut, stopped or gone on with, and one sentence for what cannot be."""

import csv
import errno
import gc
import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, Field

from pipelines import predict_file
from pipelines.predict import Chunk, Source
from pipelines.predict_file import Written, predict_to
from seqapp import bundle
from seqapp.bundle import Bundle
from seqapp.data.splits import LabelledText
from seqapp.errors import DataError, SeqappError, Stopped
from seqapp.tasks import TASKS, InputError
from tests.pipelines.clusters import ray_here
from tests.pipelines.worlds import Said, World, texts

Seqapp = Callable[..., Said]


class Given(BaseModel):
    """A text, and how often it is said."""

    model_config = ConfigDict(extra="forbid")

    text: str
    times: int = Field(default=1, ge=1)
    target: str | None = None


class Part(BaseModel):
    """A letter."""

    letter: str
    place: int


class Told(BaseModel):
    """What there is to say of a text; every kind of field."""

    label: str
    score: float
    scores: dict[str, float]
    parts: list[Part] = []
    note: str | None = None
    mixed: list[int | str] = []


def tell(given: Given) -> Told:
    said = given.text * given.times
    parts = [Part(letter=letter, place=place) for place, letter in enumerate(said[:2])]
    return Told(label=said[:3] or "-", score=len(said) / 7, scores={"long": len(said) / 7, said[:1]: 0.5}, parts=parts,
                note=given.target, mixed=[len(said), said[:1]])  # fmt: skip


def refuse_blank(inputs: Sequence[Given]) -> list[Told]:
    blank = [place for place, one in enumerate(inputs) if not one.text.strip()]
    if blank:
        raise InputError.of(dict.fromkeys(blank, "the text is empty"))
    return [tell(one) for one in inputs]


def stub(sha: str = "1") -> Any:
    """A bundle that answers exactly and needs no time."""
    task = SimpleNamespace(Input=Given, Output=Told, line_field="text")
    manifest = SimpleNamespace(task="telling", files={"weights.safetensors": sha})
    return SimpleNamespace(task=task, manifest=manifest, predict=refuse_blank)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """``rows`` as a table of the kind that the name tells."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return path
    buffer = io.StringIO(newline="")
    if ".jsonl" in path.name:
        buffer.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif ".txt" in path.name:
        buffer.writelines(f"{row['text']}\n" for row in rows)
    else:
        writer = csv.writer(buffer, delimiter="\t" if ".tsv" in path.name else ",")
        writer.writerows([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])
    content = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, with what is null or empty left out and JSON in cells read."""
    if path.suffix == ".parquet":
        found = parquet.read_table(path).to_pylist()
    else:
        content = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        if ".jsonl" in path.name:
            found = [json.loads(line) for line in content.split("\n")[:-1]]
        else:
            delimiter = "\t" if ".tsv" in path.name else ","
            found = list(csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True))
    for row in found:
        for name in ("score", "scores", "parts", "mixed"):
            if isinstance(row.get(name), str) and row[name]:
                row[name] = json.loads(row[name])
        if isinstance(row.get("scores"), list):
            row["scores"] = dict(row["scores"])
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in found]


def run(file: Path | str, out: Path, loaded: Any = None, **options: Any) -> Written:
    loaded = loaded or stub()
    calls = {name: options.pop(name) for name in ("answered", "restart", "overwrite", "progress") if name in options}
    return predict_to(loaded, Source(str(file), loaded, **options), out, **calls)


# The same answers however a file is cut

INPUTS = ("in.csv", "in.tsv", "in.jsonl", "in.parquet", "in.csv.gz", "in.jsonl.gz", "in.txt", "in.txt.gz")
OUTPUTS = ("out.parquet", "out.csv", "out.tsv", "out.jsonl", "out.csv.gz", "out.jsonl.gz")
TEXTS = ["a film", "", "x" * 50, "two\nlines", 'a "quote", \t and', "größer 東京 🙂\u2028", "  ", "null", "0"]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("out", OUTPUTS)
def test_every_format_holds_the_answers_of_memory(tmp_path: Path, name: str, out: str) -> None:
    given = [text for text in TEXTS if "txt" not in name or "\n" not in text]
    lines = "txt" in name
    rows = [{"id": str(place), "label": "true", "text": text} for place, text in enumerate(given)]
    written = run(write(tmp_path / name, rows), tmp_path / out, rows=2)
    wanted = []
    for row in rows:
        kept = {"text": row["text"]} if lines else {"id": row["id"], "input_label": "true", "text": row["text"]}
        blank = not row["text"].strip()
        told = tell(Given(text=row["text"])).model_dump(exclude_none=True)
        wanted.append({**{name: value for name, value in kept.items() if value != ""},
                       **({"error": "the text is empty"} if blank else told)})  # fmt: skip
    assert read(tmp_path / out) == wanted
    assert (written.rows, written.failed) == (len(given), 2)
    assert written.renamed == ({} if lines else {"label": "input_label"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, out])


SOME_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"text": SOME_TEXT, "times": st.integers(0, 3)}), min_size=1, max_size=20)


@settings(max_examples=15, deadline=None)
@given(ROWS, st.integers(1, 25), st.integers(1, 60), st.sampled_from(["csv", "jsonl", "parquet"]), st.data())
def test_any_cutting_gives_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], most: int, size: int, kind: str, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = write(folder / f"in.{kind}", rows)
    end = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    run(file, folder / f"whole.{end}")
    run(file, folder / f"cut.{end}", rows=most, size=size)
    assert (folder / f"cut.{end}").read_bytes() == (folder / f"whole.{end}").read_bytes()
    found = read(folder / f"cut.{end}")
    assert [("error" in row) for row in found] == [row["times"] < 1 or not row["text"].strip() for row in rows]


@given(st.lists(st.sampled_from(["label", "input_label", "input_input_label", "text", "input_", "line", "error", "id"]),
                unique=True))  # fmt: skip
def test_columns_never_get_one_name(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "one.txt"
    file.write_text("x\n")
    source = Source(str(file), stub())
    called = [source.name(name) for name in names]
    assert len(set(called)) == len(names)
    assert not set(called) & source.reserved
    assert all(new == old or new == f"input_{old}" for new, old in zip(called, names, strict=True))


def test_a_real_model_answers_as_in_memory(tiny: Bundle, tmp_path: Path) -> None:
    asked = [text for text, _ in texts(60, seed=9)]
    file = write(tmp_path / "in.parquet", [{"text": text} for text in asked])
    wanted = tiny.predict([tiny.task.Input(text=text) for text in asked])
    for most in (7, 1000):
        run(file, tmp_path / "out.parquet", tiny, rows=most, overwrite=True)
        found = parquet.read_table(tmp_path / "out.parquet").to_pylist()
        assert [row["label"] for row in found] == [answer.label for answer in wanted]
        for row, answer in zip(found, wanted, strict=True):
            assert dict(row["scores"]) == pytest.approx(answer.scores, abs=1e-5)


def test_no_more_than_some_chunks_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Chunk] = weakref.WeakSet()
    most = 0
    plain = Source.chunks

    def chunks(self: Source, skip: int = 0) -> Iterator[Chunk]:
        for chunk in plain(self, skip):
            alive.add(chunk)
            yield chunk
            del chunk

    def count(rows: int, done: int) -> None:
        nonlocal most
        most = max(most, len(alive))

    monkeypatch.setattr(Source, "chunks", chunks)
    for kind in ("csv", "parquet"):
        file = write(tmp_path / f"in.{kind}", [{"text": f"row {place}"} for place in range(80)])
        gc.collect()
        written = run(file, tmp_path / f"out.{kind}", rows=4, progress=count)
        assert written.rows == 80
    assert 1 <= most <= 2


def test_a_chunk_is_bounded_by_rows_and_by_size(tmp_path: Path) -> None:
    rows = [{"text": "x" * (90 if place % 5 == 0 else 4)} for place in range(40)]
    for name in ("in.csv", "in.jsonl", "in.txt"):
        chunks = list(Source(str(write(tmp_path / name, rows)), stub(), rows=8, size=60).chunks())
        assert [row for chunk in chunks for row in chunk.rows] == list(next(iter(
            Source(str(tmp_path / name), stub()).chunks())).rows)  # fmt: skip
        assert all(len(chunk.rows) == 1 or sum(row.size for row in chunk.rows) <= 60 for chunk in chunks)
        assert max(len(chunk.rows) for chunk in chunks) > 1
    table = pa.table({"text": [str(place) * 100 for place in range(100)]})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=30, use_dictionary=False, compression=None)
    sizes = [len(chunk.rows) for chunk in Source(str(tmp_path / "in.parquet"), stub(), size=2000).chunks()]
    assert sum(sizes) == 100
    assert 5 < max(sizes) < 20
    assert set(sizes[:-1]) == {max(sizes)}


# Killed and gone on with


def killed_at(step: int, call: Callable[[], Any]) -> bool:
    """Whether a process that runs ``call`` was killed at its change number ``step`` of the disk; else it ended."""

    def child() -> None:
        left = step

        def counted(plain: Any) -> Any:
            def change(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return plain(*arguments, **options)

            return change

        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir", "truncate"):
            setattr(os, name, counted(getattr(os, name)))
        call()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def gone_on_with(file: Path, out: Path, loaded: Any = None) -> Written | None:
    """What was written; None if the output stood there, and only what is left of its parts was to be removed."""
    stood = out.exists()
    try:
        return run(file, out, loaded, rows=3)
    except SeqappError as error:
        if not stood or "exists; --overwrite" not in str(error):
            raise
        return None


@pytest.mark.parametrize(("name", "out"), [("in.csv", "out.jsonl"), ("in.jsonl", "out.csv.gz"),
                                           ("in.parquet", "out.parquet")])  # fmt: skip
def test_killed_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path: Path, name: str, out: str) -> None:
    file = write(tmp_path / name, [{"id": place, "text": f"row {place}" if place % 4 else ""} for place in range(11)])
    wanted = run(file, tmp_path / f"whole.{out}", rows=3)
    step = 0
    while killed_at(step, lambda: run(file, tmp_path / out, rows=3)):
        assert gone_on_with(file, tmp_path / out) in (wanted, None)
        assert (tmp_path / out).read_bytes() == (tmp_path / f"whole.{out}").read_bytes()
        assert not (tmp_path / f"{out}.parts").exists()
        (tmp_path / out).unlink()
        step += 1
    assert step > 15


def test_killed_again_and_again_nothing_is_done_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "in.csv", [{"text": f"row {place}"} for place in range(30)])
    log = tmp_path / "asked"

    def logged() -> Any:
        loaded = stub()

        def note(inputs: Sequence[Given]) -> list[Told]:
            with log.open("a") as stream:
                stream.writelines(f"{one.text}\n" for one in inputs)
            return refuse_blank(inputs)

        loaded.predict = note
        return loaded

    kills = 0
    while killed_at(9, lambda: gone_on_with(file, tmp_path / "out.csv", logged())):
        kills += 1
    assert kills > 2
    asked = log.read_text().splitlines()
    # What was asked when the process was killed is asked once more.
    assert len(asked) <= 30 + 3 * kills
    assert list(dict.fromkeys(asked)) == [f"row {place}" for place in range(30)]


def test_a_real_process_with_others_is_killed_and_gone_on_with(
    world: World, tiny: Bundle, seqapp: Seqapp, tmp_path: Path
) -> None:
    file = write(tmp_path / "in.csv", [{"text": text} for text, _ in texts(6000, seed=3, longest=30)])
    out = tmp_path / "out.csv"
    command = world.command("predict", str(tiny.path), str(file), str(out), "--jobs", "2")
    process = subprocess.Popen(command, cwd=tmp_path, env=dict(world.environment()))
    journal = tmp_path / "out.csv.parts" / "journal"
    while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 1):
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
    assert not out.exists()
    said = seqapp("predict", tiny.path, file, out)
    assert (said.status, said.out) == (0, f"{out}: 6,000 rows\n")
    assert [row["text"] for row in read(out)] == [text for text, _ in texts(6000, seed=3, longest=30)]
    wanted = tiny.predict([tiny.task.Input(text=row["text"]) for row in read(out)])
    assert [row["score"] for row in read(out)] == pytest.approx([answer.score for answer in wanted], abs=1e-5)


def stopped(file: Path | str, out: Path, error: BaseException, after: int = 2, **options: Any) -> None:
    """Answer ``after`` chunks of 3 rows, then meet ``error``."""
    loaded = options.pop("loaded", None) or stub()
    source = Source(str(file), loaded, rows=3, **options)

    def answered(skip: int) -> Any:
        for number, pair in enumerate(source.answered(loaded, skip)):
            if number == after:
                raise error
            yield pair

    predict_to(loaded, source, out, answered=answered)


@pytest.fixture
def halfway(tmp_path: Path) -> Path:
    """An input of which 6 of 10 rows are answered, for out.jsonl beside it."""
    file = write(tmp_path / "in.csv", [{"text": f"row {place}"} for place in range(10)])
    with pytest.raises(Stopped, match=r"^stopped after 6 rows; the same command goes on from there"):
        stopped(file, tmp_path / "out.jsonl", KeyboardInterrupt())
    return file


def test_it_does_not_go_on_with_another_input_model_or_choice(halfway: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for options, told in (
        ({"loaded": stub("2")}, "the model is another one"),
        ({"keep": ["text"]}, "the options are other ones"),
        ({"encoding": "latin-1"}, "the options are other ones"),
        ({"only_text": True}, "the options are other ones"),
    ):
        with pytest.raises(SeqappError, match=rf"{told}: 6 rows in .* are answered already.*--restart begins anew"):
            run(halfway, out, **options)
    content = halfway.read_bytes()
    halfway.write_bytes(content.replace(b"row 5", b"row X"))
    with pytest.raises(SeqappError, match=r"the input has changed: 6 rows .*; --restart begins anew"):
        run(halfway, out)
    assert run(halfway, out, restart=True).rows == 10
    assert [row["text"] for row in read(out)][5] == "row X"


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "in.csv", [{"text": f"row {place}"} for place in range(10)])
    with pytest.raises(DataError, match=r"in\.csv: was changed while it was read; --restart answers it anew"):
        run(file, tmp_path / "out.csv", progress=lambda rows, _: file.write_bytes(file.read_bytes() + b"\n"))
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(("place", "content"), [
    ("journal", b"\0" * 40 + b"\n"),
    ("journal", b"[]\n"),
    ("journal", b"{}\n"),
    ("journal", b'{"part": 0}\n'),
    ("journal", b'{"part": 1, "rows": 3, "failed": 0, "done": 9, "names": [], "renamed": {}}\n'),
    ("journal", b"\xff\n"),
    ("state.json", b""),
    ("state.json", b"[]"),
    ("state.json", b"\0" * 300),
    ("state.json", b"7"),
    ("part-00000001.jsonl", b""),
    ("part-00000000.jsonl", None),
])  # fmt: skip
def test_damaged_parts_are_one_sentence(halfway: Path, tmp_path: Path, place: str, content: bytes | None) -> None:
    out, damaged = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts" / place
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    with pytest.raises(SeqappError, match=rf"{place}(:1)?: damaged, .*; --restart begins anew$"):
        run(halfway, out)
    assert run(halfway, out, restart=True).rows == 10
    assert [row["text"] for row in read(out)] == [f"row {place}" for place in range(10)]


def test_what_is_put_in_place_is_on_the_disk_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "in.csv", [{"text": "x"}])
    on_disk: set[int] = set()
    placed: dict[str, bool] = {}
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        on_disk.add(os.fstat(number).st_ino)
        sync(number)

    def replaced(old: Path, new: Path) -> None:
        placed[new.name] = old.stat().st_ino in on_disk
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    run(file, tmp_path / "out.csv")
    assert placed == {"state.json": True, "whole": True, "out.csv": True}


def test_two_at_once_are_refused(halfway: Path, tmp_path: Path) -> None:
    source, out = Source(str(halfway), stub()), tmp_path / "out.jsonl"

    def another(rows: int, done: int) -> None:
        with pytest.raises(SeqappError, match="another process is writing it at this moment"):
            run(halfway, out)

    assert predict_to(stub(), source, out, progress=another).rows == 10


def test_an_output_is_replaced_only_if_it_is_said(halfway: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(SeqappError, match=r"out\.jsonl: exists; --overwrite replaces it"):
        run(halfway, out)
    assert out.read_text() == "mine\n"
    assert run(halfway, out, overwrite=True).rows == 10
    assert len(read(out)) == 10


def test_what_is_no_part_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out.csv.parts"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    file = write(tmp_path / "in.csv", [{"text": "x"}])
    with pytest.raises(SeqappError, match=r"holds 'thesis\.tex', which is no part of answers; move it away"):
        run(file, tmp_path / "out.csv", restart=True)
    assert (folder / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("after", [1, 2, 3, 4, 7, 9, 11])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    file = write(tmp_path / "in.csv", [{"text": f"row {place}"} for place in range(10)])
    left, plain = after, os.fsync

    def full(number: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SeqappError, match=r"cannot be written: No space left.*; make room, and the same command"):
            run(file, tmp_path / "out.csv", rows=3)
    assert not (tmp_path / "out.csv").exists()
    assert run(file, tmp_path / "out.csv", rows=3).rows == 10
    assert [row["text"] for row in read(tmp_path / "out.csv")] == [f"row {place}" for place in range(10)]


# Columns


def test_rows_carry_any_field_of_an_input(tmp_path: Path) -> None:
    rows = [{"text": "ab", "times": 2}, {"text": "ab", "times": None}, {"text": "ab", "times": 0}]
    wanted = ["aba", "ab", "times: Input should be greater than or equal to 1"]
    for name in ("in.csv", "in.jsonl", "in.parquet"):
        file = write(tmp_path / name, rows)
        run(file, tmp_path / "out.jsonl", overwrite=True)
        found = [row.get("label") or row["error"] for row in read(tmp_path / "out.jsonl")]
        assert found == (
            wanted if name != "in.jsonl" else [wanted[0], "times: Input should be a valid integer", wanted[2]]
        )
        run(file, tmp_path / "out.jsonl", only_text=True, overwrite=True)
        assert [row["label"] for row in read(tmp_path / "out.jsonl")] == ["ab"] * 3


def test_a_text_in_a_cell_is_no_json(tmp_path: Path) -> None:
    file = write(tmp_path / "in.csv", [{"text": "[1, 2]", "target": "{}"}])
    run(file, tmp_path / "out.jsonl")
    assert [(row["label"], row["note"]) for row in read(tmp_path / "out.jsonl")] == [("[1,", "{}")]


def test_another_column_is_the_text(tmp_path: Path) -> None:
    file = write(tmp_path / "in.csv", [{"id": "7", "text": "no", "body": "yes"}])
    written = run(file, tmp_path / "out.csv", text="body", keep=["body", "id"])
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (list(row)[:3], row["label"], row["id"]) == (["body", "id", "label"], "yes", "7")
    assert written.renamed == {}


def test_what_failed_before_the_first_answer_stands_in_no_way(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("Text\nfine\n")
    with pytest.raises(DataError, match=r"no column 'text'; did you mean 'Text'\?"):
        run(file, tmp_path / "out.csv")
    assert run(file, tmp_path / "out.csv", text="Text").rows == 1


def test_answers_can_stand_alone(tmp_path: Path) -> None:
    for name in ("in.csv", "in.parquet", "in.txt"):
        file = write(tmp_path / name, [{"text": "ab"}, {"text": "cd"}])
        for out in OUTPUTS:
            run(file, tmp_path / out, keep=[], overwrite=True)
            found = read(tmp_path / out)
            assert [row["label"] for row in found] == ["ab", "cd"]
            assert "text" not in found[0]


def test_types_of_a_parquet_file_are_kept(tmp_path: Path) -> None:
    table = pa.table({
        "text": pa.array(["a", None, "c"], pa.large_string()),
        "way": pa.array(["x", "y", "x"]).dictionary_encode(),
        "none": pa.nulls(3),
        "when": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 3),
        "raw": pa.array([b"\xff", b"", None]),
        "share": pa.array([0.5, float("nan"), None]),
        "times": pa.array([1, None, 2], pa.int8()),
        "deep": [[{"k": 1}], [], None],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    run(tmp_path / "in.parquet", tmp_path / "out.parquet", rows=1)
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).schema == table.schema
    assert str(found.select(table.column_names).to_pylist()) == str(table.to_pylist())
    assert found["error"].to_pylist() == [None, "text: null; a value fits", None]
    assert found.schema.field("parts").type.value_type.num_fields == 2
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["share"] for row in rows] == [0.5, None, None]
    assert [row["raw"] for row in rows] == ["_w==", "", None]
    assert rows[0]["when"].startswith("2026-01-02T00:00:00")
    dictionary = pa.table({"text": pa.array(["ab", "cd"]).dictionary_encode()})
    parquet.write_table(dictionary, tmp_path / "two.parquet")
    run(tmp_path / "two.parquet", tmp_path / "two.csv")
    assert [row["label"] for row in read(tmp_path / "two.csv")] == ["ab", "cd"]


def test_objects_of_many_shapes_become_one_table(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 0.5, "o": {}}, {"text": "c", "n": None, "o": {"k": 1}},
            {"text": "d", "x": [1]}, {"text": "e", "x": "one", "big": 2**80}, {"text": "f", "o": {"l": 2}}]  # fmt: skip
    file = write(tmp_path / "in.jsonl", rows)
    for most in (1, 6):
        run(file, tmp_path / "out.parquet", rows=most, overwrite=True)
        table = parquet.read_table(tmp_path / "out.parquet")
        assert table.column_names[:5] == ["text", "n", "o", "x", "big"]
        assert table["n"].to_pylist() == [1.0, 0.5, None, None, None, None]
        assert table["x"].to_pylist() == [None, None, None, "[1]", "one", None]
        assert table["big"].to_pylist()[4] == str(2**80)
        run(file, tmp_path / "out.csv", rows=most, overwrite=True)
        found = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
        assert list(found[0])[:5] == ["text", "n", "o", "x", "big"]
        assert [row["x"] for row in found] == ["", "", "", "[1]", "one", ""]


def test_lines_that_are_no_rows_are_errors_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"text": "go\n[1]\n\n{"text": "fine"}\n{"body": "x"}\n')
    written = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    labels = [row.get("label") or row["error"] for row in read(tmp_path / "out.jsonl")]
    assert written.failed == 3
    assert [labels[0], labels[3], labels[4]] == ["goo", "fin", "text: Field required"]
    assert labels[1].startswith("line 2: not valid JSON: Invalid control character")
    assert labels[2].startswith("line 3: a JSON list, not an object")
    (tmp_path / "in.csv").write_text("id,text\n1,good\n2,one,two\n3,fine\n")
    run(tmp_path / "in.csv", tmp_path / "out.csv")
    assert [row.get("id") for row in read(tmp_path / "out.csv")] == ["1", None, "3"]
    assert read(tmp_path / "out.csv")[1]["error"].startswith("line 3: too many fields: 3; the header names 2")


def test_an_answer_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    loaded = stub()
    loaded.predict = lambda inputs: [Told(label="x", score=float("nan"), scores={}) for _ in inputs]
    for out in ("out.parquet", "out.jsonl"):
        assert run(write(tmp_path / "in.txt", [{"text": "x"}]), tmp_path / out, loaded).failed == 1
        assert read(tmp_path / out) == [{"text": "x", "error": "the answer holds a number that is not finite"}]


def test_no_lines_are_an_output_without_rows(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("")
    for out in ("out.parquet", "out.csv", "out.jsonl"):
        assert run(tmp_path / "in.txt", tmp_path / out).rows == 0
        assert read(tmp_path / out) == []
    assert parquet.read_table(tmp_path / "out.parquet").column_names == [*Told.model_fields, "error"]


# What cannot be

DAMAGED: dict[str, Callable[[Path], Any]] = {
    "cut.csv.gz": lambda path: path.write_bytes(gzip.compress(b"text\n" + os.urandom(9000).hex().encode())[:-500]),
    "cut.txt.gz": lambda path: path.write_bytes(gzip.compress(os.urandom(9000).hex().encode())[:-500]),
    "cut.parquet": lambda path: path.write_bytes(b"PAR1"),
    "bad.csv": lambda path: path.write_bytes(b"text\ngood\nbl\xe9d\n"),
    "quote.csv": lambda path: path.write_text('text\n"good\n'),
    "empty.csv": lambda path: path.write_text(""),
    "head.csv": lambda path: path.write_text("text\n"),
    "empty.parquet": lambda path: parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path),
    "other.csv": lambda path: path.write_text("body\ngood\n"),
    "other.parquet": lambda path: parquet.write_table(pa.table({"body": ["good"]}), path),
    "other.jsonl": lambda path: path.write_text('{"body": "good"}\n'),
    "folder.csv": lambda path: path.mkdir(),
    "folder": lambda path: path.mkdir(),
    "table.xlsx": lambda path: path.write_bytes(b"PK\x03\x04"),
    "zip.csv": lambda path: path.write_bytes(b"PK\x03\x04"),
    "absent.parquet": lambda path: None,
    "absent.txt": lambda path: None,
}
SAID = {
    "cut.csv.gz": "cut.csv.gz:1: cannot be read, cut off or damaged",
    "cut.txt.gz": "cut.txt.gz:1: cannot be read, cut off or damaged",
    "cut.parquet": "cut.parquet:1: cannot be read as Parquet, cut off or damaged",
    "bad.csv": "bad.csv:3: byte 12 (0xe9) is not utf-8 text",
    "quote.csv": "quote.csv:2: broken quotes",
    "empty.csv": "empty.csv:1: the file holds no rows",
    "head.csv": "head.csv:1: the file holds no rows",
    "empty.parquet": "empty.parquet:1: the file holds no rows",
    "other.csv": "other.csv:2: no column 'text'; known: body; --text names the column of the text",
    "other.parquet": "other.parquet:1: no column 'text'; known: body; --text names the column of the text",
    "other.jsonl": "other.jsonl:1: no column 'text'; known: body",
    "folder.csv": "folder.csv: is a directory; name one file",
    "folder": "folder: is a directory; name one file",
    "table.xlsx": "table.xlsx: the extension '.xlsx' does not tell",
    "zip.csv": "zip.csv:1: the file is a zip archive",
    "absent.parquet": "absent.parquet: no such file",
    "absent.txt": "absent.txt: No such file",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_source_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    DAMAGED[name](Path(name))
    with pytest.raises(SeqappError) as caught:
        run(name, Path("out.csv"))
    assert str(caught.value).startswith(SAID[name])
    assert "\n" not in str(caught.value)
    assert not Path("out.csv").exists()


def test_a_group_of_rows_that_is_damaged_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    table = pa.table({"text": [f"{place:04}" * 20 for place in range(300)]})
    parquet.write_table(table, file, row_group_size=100, use_dictionary=False, compression="gzip")
    content = bytearray(file.read_bytes())
    pages = parquet.read_metadata(file).row_group(2).column(0)
    start, end = pages.data_page_offset + 30, pages.data_page_offset + pages.total_compressed_size
    content[start:end] = bytes(end - start)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.parquet:201: cannot be read as Parquet, cut off or damaged"):
        run(file, tmp_path / "out.csv", rows=50)
    assert (tmp_path / "out.csv.parts" / "journal").read_text().count('"rows": 50') == 4


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("out.xlsx", {}, "out.xlsx: the ending does not tell what to write; .parquet, .csv, .tsv, .jsonl"),
        ("in.csv", {}, "in.csv: is the input itself; another name fits"),
        ("no/out.csv", {}, "no/out.csv: there is no directory no"),
        ("folder.csv", {}, "folder.csv: is a directory; the name of a file fits"),
        ("out.csv", {"keep": ["idd"]}, "in.csv:2: no column 'idd' to keep; did you mean 'id'?"),
        ("out.csv", {"text": "txt"}, "in.csv:2: no column 'txt'; did you mean 'text'?"),
    ],
)
def test_an_output_that_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    write(Path("in.csv"), [{"id": 1, "text": "x"}])
    with pytest.raises(SeqappError) as caught:
        run("in.csv", Path(out), **options)
    assert str(caught.value).startswith(said)


def test_the_command_says_what_was_written(tiny: Bundle, seqapp: Seqapp, tmp_path: Path) -> None:
    file = write(tmp_path / "in.csv", [{"text": "good", "label": "x"}, {"text": " ", "label": "y"}])
    out = tmp_path / "out.parquet"
    said = seqapp("predict", tiny.path, file, out, "--keep", "label, text")
    assert said.status == 1
    assert said.out == f"{out}: 2 rows\n"
    assert said.err.splitlines() == [
        f"the column label of the input is called input_label in {out}",
        "error: 1 row(s) could not be answered; each says why in its column error",
    ]
    assert parquet.read_table(out).column_names[:3] == ["input_label", "text", "label"]
    said = seqapp("predict", tiny.path, "-", tmp_path / "out.jsonl", stdin="größer\nfine\n".encode())
    assert (said.status, said.err) == (0, "")
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["größer", "fine"]
    for arguments, told in (
        ((file, "--jobs", "2"), "--jobs, --restart, --overwrite and --backend are for an OUT file"),
        ((file, tmp_path / "new.csv", "--backend", "spark"), "--backend: no backend is called 'spark'; local or ray"),
        (("-", tmp_path / "new.csv", "--backend", "ray"), "--backend ray: standard input is not read again"),
    ):
        said = seqapp("predict", tiny.path, *arguments)
        assert (said.status, said.out) == (1, "")
        assert said.err.startswith(f"error: {told}")


def test_standard_input_cannot_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, plain = tmp_path / "out.jsonl", predict_file.Parts.add

    def stop(self: Any, source: Any, *rest: Any) -> None:
        plain(self, source, *rest)
        raise KeyboardInterrupt

    def asked() -> Written:
        reading, writing = os.pipe()
        os.write(writing, b"a\nb\n")
        os.close(writing)
        kept = os.dup(0)
        os.dup2(reading, 0)
        try:
            return run("-", out, rows=1)
        finally:
            os.dup2(kept, 0)
            os.close(kept)
            os.close(reading)

    with monkeypatch.context() as patch:
        patch.setattr(predict_file.Parts, "add", stop)
        with pytest.raises(SeqappError, match="stopped after 1 rows"):
            asked()
    with pytest.raises(SeqappError, match="standard input cannot be gone on with; --restart begins anew"):
        asked()


# Ray


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of itself
def test_a_cluster_writes_the_same_file(tiny: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from pipelines import predict_ray

    rows = [{"id": place, "text": text if place % 50 else " "} for place, (text, _) in enumerate(texts(300, seed=4))]
    half = write(tmp_path / "half.jsonl", rows)
    with pytest.raises(SeqappError, match="stopped after 6 rows"):
        stopped(half, tmp_path / "half.parquet", KeyboardInterrupt(), loaded=tiny)
    with ray_here(2, "torch", "ray.data"):
        for file in (half, write(tmp_path / "new.parquet", rows)):
            source, out = Source(str(file), tiny, rows=40), tmp_path / f"{file.stem}.out.parquet"
            if file == half:
                out = tmp_path / "half.parquet"
            done: list[int] = []
            written = predict_to(tiny, source, out, progress=lambda rows, _, done=done: done.append(rows),
                                 answered=partial(predict_ray.on_ray, tiny, source))  # fmt: skip
            assert done[0] == (6 if file == half else 0)
            assert (written.rows, written.failed) == (300, 6)
            run(file, tmp_path / "local.parquet", tiny, rows=40, overwrite=True)
            found, wanted = parquet.read_table(out), parquet.read_table(tmp_path / "local.parquet")
            assert found.schema == wanted.schema
            assert found.drop(["score", "scores"]).equals(wanted.drop(["score", "scores"]))
            scores = [[score or 0 for score in table["score"].to_pylist()] for table in (found, wanted)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a classifier that has learned nothing."""
    task = TASKS.build(TASKS.check("sentiment"))
    task.prepare([LabelledText(*pair) for pair in texts(60)])
    spec = {"kind": "classifier", "embedding_size": 4, "encoder": {"kind": "gru", "hidden_size": 4}}
    path = bundle.save(tmp_path_factory.mktemp("tiny") / "b", task=task, model=task.build_model(spec), metrics={},
                       resolved={"task": TASKS.check("sentiment"), "model": spec}, name="tiny")  # fmt: skip
    return bundle.load(path)
