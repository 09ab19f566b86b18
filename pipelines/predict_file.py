"""Answers to a file of any size, written to another: in order, in bounded memory, going on where it was stopped.

The answers to each chunk are a file in OUT.parts, and a line in its journal says that they are finished. When all are,
they become OUT at once and the folder goes.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import torch
from pyarrow import parquet

from pipelines.locks import LOCK, held
from pipelines.predict import Chunk, Inputs, Source, answer, records
from pipelines.predict_table import answer_columns, answer_schema, common_schema, fit, row_columns, texts
from seqapp import bundle
from seqapp.bundle import Bundle
from seqapp.data.rows import Row
from seqapp.errors import DataError, SeqappError, Stopped

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
"""What the name of an output may end in."""
GROUP_ROWS, GROUP_BYTES = 1 << 16, 64 << 20
"""A group of rows of an output in Parquet has so many, or so many bytes."""
_EDGE = 1 << 20  # bytes at either end of the input whose digest is kept
_OWN = ("state.json", "state.json.new", "journal", LOCK, "whole", "whole.new")

Answered = Generator[tuple[Chunk, list[dict[str, Any]]]]
"""Each chunk of a source, in order, with the answers to its rows."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Args:
        rows: all.
        failed: those with an error.
        renamed: columns of the input that have another name in the output.
    """

    rows: int
    failed: int
    renamed: Mapping[str, str]


def predict_to(
    loaded: Bundle,
    source: Source,
    out: Path,
    *,
    answered: Callable[[int], Answered] | None = None,
    restart: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda rows, done: None,
) -> Written:
    """Answer every row of a source and write ``out``, which is there once all is written.

    LAW: however often it is stopped, and wherever, the same call goes on, and ``out`` is as if it had not been.

    Args:
        loaded: the bundle of the source.
        source: of the rows.
        out: its name ends in one of :data:`ENDINGS`.
        answered: gives the chunks with their answers from a row on; None for ``source.answered``.
        restart: throw away what an earlier call has finished.
        overwrite: replace what stands at ``out``.
        progress: told how many rows are answered, and how much of the source lies behind, as it grows.

    Raises:
        DataError: if the source cannot be read, or has changed.
        SeqappError: if ``out`` cannot be written, with what to do, or the user stopped it.
    """
    kind = out_format(out)
    _check_out(source.file, out)
    parts = Parts(out, kind, answer_schema(loaded.task.Output))
    state = {"version": 1, "format": kind, "input": fingerprint(source.file), "model": digest(loaded),
             "text": source.inputs.columns, "keep": None if source.keep is None else list(source.keep),
             "encoding": source.encoding}  # fmt: skip
    try:
        with parts.open(state, restart=restart, overwrite=overwrite, again=source.file != "-"):
            progress(parts.rows, parts.done)
            if not parts.complete:
                stream = answered(parts.rows) if answered is not None else source.answered(loaded, parts.rows)
                with closing(stream):
                    for chunk, answers in stream:
                        parts.add(source, chunk, answers)
                        progress(parts.rows, parts.done)
                if fingerprint(source.file) != state["input"]:
                    raise DataError(f"{source.file}: was changed while it was read; --restart answers it anew")
                parts.finish()
            parts.put_together()
    except KeyboardInterrupt:
        again = f"the same command goes on from there; what is finished stands in {parts.folder}"
        raise Stopped(f"stopped after {parts.rows:,} rows; {again}") from None
    except OSError as error:
        room = "; make room, and the same command goes on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        reason = error.strerror or error
        raise SeqappError(f"{error.filename or parts.folder}: cannot be written: {reason}{room}; "
                          f"{parts.rows:,} rows are finished") from None  # fmt: skip
    return Written(parts.rows, parts.failed, parts.renamed)


def out_format(out: Path) -> str:
    """What an output holds, by its name: parquet, csv, tsv or jsonl.

    Raises:
        SeqappError: if the name does not tell.
    """
    if not out.name.lower().endswith(ENDINGS):
        raise SeqappError(f"{out}: the ending does not tell what to write; {', '.join(ENDINGS)} would fit")
    return Path(out.name.lower().removesuffix(".gz")).suffix.removeprefix(".")


def _check_out(file: str, out: Path) -> None:
    if out.is_dir():
        raise SeqappError(f"{out}: is a directory; the name of a file fits")
    if not out.parent.is_dir():
        raise SeqappError(f"{out}: there is no directory {out.parent}")
    if file != "-" and out.exists() and os.path.samefile(file, out):
        raise SeqappError(f"{out}: is the input itself; another name fits")


def digest(loaded: Bundle) -> str:
    """SHA-256 of what makes the answers of a bundle; not of its card and figures."""
    files = {name: sha for name, sha in loaded.manifest.files.items()
             if name not in ("README.md", "metrics.json", "golden.json")}  # fmt: skip
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def fingerprint(file: str) -> dict[str, Any] | None:
    """By what a change of a file is noticed: size, time of change, and a digest of its beginning and end.

    Raises:
        DataError: if it cannot be read.
    """
    if file == "-":
        return None
    try:
        with open(file, "rb") as stream:
            status = os.fstat(stream.fileno())
            sha = hashlib.sha256(stream.read(_EDGE))
            stream.seek(max(0, status.st_size - _EDGE))
            sha.update(stream.read(_EDGE))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha.hexdigest()}


class Parts:
    """The finished parts of an output, in a folder beside it.

    Args:
        out: the output.
        kind: of :func:`out_format`.
        schema: of the answers.

    Attributes:
        folder: OUT.parts.
        rows: answered so far.
        failed: of them, those with an error.
        done: how much of the source lies behind.
        complete: whether all rows are answered.
        renamed: columns of the input that have another name in the output.
    """

    def __init__(self, out: Path, kind: str, schema: pyarrow.Schema) -> None:
        self.out, self.kind, self.schema = out, kind, schema
        self.folder = out.with_name(f"{out.name}.parts")
        self._forget()

    def _forget(self) -> None:
        self.rows = self.failed = self.done = 0
        self.complete = self._whole = False
        self.renamed: dict[str, str] = {}
        self._names: dict[str, None] = {}
        self._count = 0

    @contextmanager
    def open(self, state: Mapping[str, Any], *, restart: bool, overwrite: bool, again: bool) -> Iterator[None]:
        """Take up what an earlier call left, if it answered the same.

        Args:
            state: what must be the same.
            restart: throw it away.
            overwrite: whether an output that stands there may be replaced.
            again: whether the source can be read a second time.

        Raises:
            SeqappError: if the earlier call answered something else, or goes on at this moment, or left damaged parts.
        """
        if self.out.exists() and not overwrite and not self.folder.exists():
            raise SeqappError(f"{self.out}: exists; --overwrite replaces it")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SeqappError(f"{self.folder}: cannot be made: {error.strerror}") from None
        with held(self.folder, f"{self.out}: another process is writing it at this moment"):
            strange = [path.name for path in self.folder.iterdir()
                       if path.name not in _OWN and not path.name.startswith("part-")]  # fmt: skip
            if strange:
                raise SeqappError(f"{self.folder}: holds {strange[0]!r}, which is no part of answers; move it away")
            if restart or not self._begun():
                for path in self.folder.iterdir():
                    if path.name != LOCK:
                        path.unlink()
            else:
                self._take_up(state, again)
            if self.out.exists() and not overwrite and not self._moved():
                if not self.rows:
                    shutil.rmtree(self.folder)
                raise SeqappError(f"{self.out}: exists; --overwrite replaces it")
            if not (self.folder / "state.json").exists():
                with (self.folder / "state.json.new").open("w", encoding="utf-8") as stream:
                    stream.write(json.dumps(state))
                    _sync(stream)
                os.replace(self.folder / "state.json.new", self.folder / "state.json")
            with (self.folder / "journal").open("a", encoding="utf-8") as self._journal:
                yield

    def _begun(self) -> bool:
        """Whether an earlier call has finished a part: where it has not, another choice of options loses nothing."""
        journal = self.folder / "journal"
        return (self.folder / "state.json").exists() and journal.is_file() and b"\n" in journal.read_bytes()

    def _take_up(self, state: Mapping[str, Any], again: bool) -> None:
        journal = self.folder / "journal"
        journal.touch()
        content = journal.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        if torn:  # a line that was not finished when the program ended
            os.truncate(journal, len(content) - len(torn))
        for number, line in enumerate(whole.splitlines(), 1):
            with _undamaged(f"{journal}:{number}"):
                self._learn(json.loads(line))
        for path in self._paths():
            with _undamaged(path):
                if not path.stat().st_size:
                    raise ValueError
        with _undamaged(self.folder / "state.json"):
            before = {**json.loads((self.folder / "state.json").read_text(encoding="utf-8"))}
        anew = f"{self.rows:,} rows in {self.folder} are answered already, and would not fit; --restart begins anew"
        what = {"input": "the input has changed", "model": "the model is another one"}
        for key, value in json.loads(json.dumps(state)).items():
            if before.get(key) != value:
                raise SeqappError(f"{self.out}: {what.get(key, 'the options are other ones')}: {anew}")
        if not again and not self.complete:
            raise SeqappError(f"{self.out}: standard input cannot be gone on with; --restart begins anew")

    def _learn(self, entry: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError, KeyError or TypeError: if it is no entry that may follow those before.
        """
        if not entry.keys() & {"part", "complete", "whole"}:
            raise ValueError
        if "part" in entry:
            if entry["part"] != self._count:
                raise ValueError
            self._count += 1
            self.rows += entry["rows"]
            self.failed += entry["failed"]
            self.done = entry["done"]
            self._names.update(dict.fromkeys(entry["names"]))
            self.renamed.update(entry["renamed"])
        self.complete = self.complete or "complete" in entry
        self._whole = self._whole or "whole" in entry

    def _note(self, **entry: Any) -> None:
        self._journal.write(json.dumps(entry) + "\n")
        _sync(self._journal)
        self._learn(entry)

    def add(self, source: Source, chunk: Chunk, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers to a chunk, finished when this returns.

        Raises:
            OSError: if they cannot be written; nothing of them counts then.
        """
        if self.kind == "parquet":
            rows = [source.kept(row) for row in chunk.rows] if chunk.table is None else []
            kept = row_columns(rows) if chunk.table is None else chunk.table.replace_schema_metadata(None)
            names = kept.column_names
            found = answer_columns(answers, self.schema)
            table = pyarrow.table({**dict(zip(names, kept.columns, strict=True)),
                                   **dict(zip(found.column_names, found.columns, strict=True))},
                                  schema=pyarrow.schema([*kept.schema, *self.schema]))  # fmt: skip
            sink = io.BytesIO()
            parquet.write_table(table, sink)
            content = sink.getvalue()
        else:
            lines = [{**own, **found} for own, found in zip(records(source, chunk), answers, strict=True)]
            names = list(dict.fromkeys(name for line in lines for name in line if name not in self.schema.names))
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(
                "utf-8", "backslashreplace"
            )
        with self._part(self._count).open("wb") as stream:
            stream.write(content)
            _sync(stream)
        columns = chunk.table.column_names if chunk.table is not None else names
        reserved = {f"input_{name}": name for name in source.reserved}
        self._note(
            part=self._count,
            rows=len(answers),
            failed=sum("error" in one for one in answers),
            done=chunk.done,
            names=[name for name in names if name not in self._names],
            renamed={
                reserved[name]: name for name in columns if name in reserved and reserved[name] not in self.renamed
            },
        )

    def finish(self) -> None:
        """Say that all rows are answered."""
        self._note(complete=True)

    def put_together(self) -> None:
        """Make the output of the parts, and remove them.

        Raises:
            OSError: if it cannot be written; the parts stay.
        """
        whole = self.folder / "whole"
        if not self._whole:
            draft = self.folder / "whole.new"
            with draft.open("wb") as stream:
                if self.kind == "parquet":
                    self._write_parquet(stream)
                elif self.out.suffix.lower() == ".gz":
                    with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                        self._write_text(packed)
                else:
                    self._write_text(stream)
                _sync(stream)
            os.replace(draft, whole)
            self._note(whole=True)
        if not self._moved():
            os.replace(whole, self.out)
        (self.folder / "state.json").unlink()  # what is left without it is no longer gone on with
        shutil.rmtree(self.folder)

    def _moved(self) -> bool:
        """Whether the output stands where it belongs, and only the parts are left to remove."""
        return self._whole and not (self.folder / "whole").exists()

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.{'parquet' if self.kind == 'parquet' else 'jsonl'}"

    def _paths(self) -> Iterator[Path]:
        return map(self._part, range(self._count))

    def _write_text(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        if self.kind == "jsonl":
            for path in self._paths():
                stream.write(path.read_bytes())
            return
        names = [*self._names, *self.schema.names]
        text = io.TextIOWrapper(cast(IO[bytes], stream), encoding="utf-8", newline="")
        writer = csv.writer(text, delimiter="\t" if self.kind == "tsv" else ",", lineterminator="\n")
        writer.writerow(names)
        for path in self._paths():
            with path.open(encoding="utf-8") as lines:
                for record in map(json.loads, lines):
                    writer.writerow(texts(record.get(name) for name in names))
        text.flush()
        text.detach()

    def _write_parquet(self, stream: IO[bytes]) -> None:
        found = common_schema(parquet.read_schema(path) for path in self._paths())
        answers = set(self.schema.names)
        schema = pyarrow.schema([*(field for field in found if field.name not in answers), *self.schema])
        held: list[pyarrow.Table] = []
        with parquet.ParquetWriter(stream, schema) as writer:
            for path in self._paths():
                held.append(fit(parquet.read_table(path), schema))
                if sum(map(len, held)) >= GROUP_ROWS or sum(table.nbytes for table in held) >= GROUP_BYTES:
                    writer.write_table(pyarrow.concat_tables(held))
                    held = []
            if held:
                writer.write_table(pyarrow.concat_tables(held))


@contextmanager
def _undamaged(place: str | Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
        raise SeqappError(f"{place}: damaged, so what is finished cannot be trusted; --restart begins anew") from None


def _sync(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


# Several processes

_ANSWER: Callable[[Sequence[Row]], list[dict[str, Any]]]


def in_processes(loaded: Bundle, source: Source, jobs: int) -> Callable[[int], Answered]:
    """``source.answered`` by several processes, each with the bundle and its share of the cores.

    LAW: the chunks and their order are those of one process; no more than twice ``jobs`` of them are in memory.

    Args:
        loaded: the bundle of the source.
        source: of the rows.
        jobs: processes.
    """

    def answered(skip: int) -> Answered:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        choices = (str(loaded.path), threads, source.inputs.text, source.inputs.only_text, source.cells)
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=choices)
        waiting: deque[tuple[Chunk, Future[list[dict[str, Any]]]]] = deque()
        try:
            for chunk in source.chunks(skip):
                waiting.append((chunk, pool.submit(_work, chunk.rows)))
                if len(waiting) == 2 * jobs:
                    first, answers = waiting.popleft()
                    yield first, answers.result()
            while waiting:
                first, answers = waiting.popleft()
                yield first, answers.result()
        except BrokenProcessPool:
            raise SeqappError("a process that answers has ended, perhaps for want of memory; with fewer --jobs the "
                              "same command goes on") from None  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)

    return answered


def _begin(path: str, threads: int, text: str | None, only_text: bool, cells: bool) -> None:
    global _ANSWER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process stops the others
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()  # even if it is killed
    torch.set_num_threads(threads)
    loaded = bundle.load(path)
    inputs = Inputs(loaded, text=text, only_text=only_text)
    _ANSWER = partial(answer, loaded, inputs, cells=cells)


def _work(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return _ANSWER(rows)
