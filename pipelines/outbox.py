"""What a training logs: written to the run's folder first, and sent to MLflow by a thread, in order and once.

So training neither waits for the tracking server nor fails because of it. The journal is a file of JSON lines, each an
entry of metrics, params and tags or the name of an artifact whose content stands in a file beside it, or the number of
entries that MLflow has taken. A run that goes on after a kill sends what is left first. An entry may be sent twice,
when the kill comes between sending and noting so; MLflow keeps a metric once by its key, step, time and value, and all
else is replaced by itself.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from time import time
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from pytorch_lightning.loggers import Logger

from pipelines.patience import Unreachable, away, is_away, longest_wait, pauses
from seqapp.errors import SeqappError
from seqapp.references import connect, reason

log = logging.getLogger(__name__)

FOLDER, JOURNAL = "outbox", "journal.jsonl"
LARGEST_BATCH = 1000
"""Metrics that MLflow takes in one call."""
SOON = 5.0
"""Seconds for the last entries of a run that ends by an error, and until a wait is worth a word."""

Entry = dict[str, Any]


class Outbox:
    """The way of one run's entries to MLflow; the methods called ``log_...`` are those of an MLflow client.

    Args:
        folder: of the journal; made if need be. Entries that an earlier process left there are sent first, and a metric
            whose step is in the journal already is not entered again: a resumed run repeats the epoch that was cut off.
        run_id: of the MLflow run.
        client: of MLflow; without one, :func:`seqapp.references.connect` makes it.

    Raises:
        SeqappError: if the journal is damaged.
    """

    def __init__(self, folder: Path, run_id: str, client: Any = None) -> None:
        longest_wait()  # a wrong value is told now, not hours later
        self.folder, self.run_id = folder, run_id
        self._client = client or connect()
        self.refusal: Exception | None = None
        self._history: dict[str, dict[int, float]] = {}
        self._entries = 0
        self._pending: deque[Entry] = deque()
        self._closing = False
        self._failures = 0
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._recall()
        self._earlier = {name: frozenset(steps) for name, steps in self._history.items()}
        self._journal = (folder / JOURNAL).open("ab", buffering=0)
        self._thread = threading.Thread(target=self._run, daemon=True, name="outbox")
        self._thread.start()

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        """Enter metrics, params and tags."""
        self._check(run_id)
        new = [[m.key, float(m.value), m.timestamp, m.step] for m in metrics
               if m.step not in self._earlier.get(m.key, ())]  # fmt: skip
        for start in range(0, len(new), LARGEST_BATCH):
            self._enter({"metrics": new[start : start + LARGEST_BATCH]})
        if params or tags:
            self._enter({"params": {p.key: p.value for p in params}, "tags": {t.key: t.value for t in tags}})

    def log_metric(self, run_id: str, key: str, value: float, timestamp: int | None = None, step: int = 0) -> None:
        """Enter one metric."""
        self.log_batch(run_id, [Metric(key, value, now() if timestamp is None else timestamp, step)])

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        """Enter a tag."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Enter a text as an artifact."""
        self._enter_file(run_id, artifact_file, lambda path: path.write_text(text, encoding="utf-8"))

    def log_dict(self, run_id: str, dictionary: Mapping[str, Any], artifact_file: str) -> None:
        """Enter JSON as an artifact."""
        self.log_text(run_id, json.dumps(dictionary, indent=2), artifact_file)

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        """Enter a figure of matplotlib as an artifact."""
        self._enter_file(run_id, artifact_file, figure.savefig)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the run, sent or not: name -> (step, value), one value a step, in order."""
        with self._changed:
            return {name: sorted(points.items()) for name, points in self._history.items()}

    def next_step(self, prefix: str) -> int:
        """The step after the last one of all metrics whose name begins so."""
        return max((points[-1][0] + 1 for name, points in self.history().items() if name.startswith(prefix)), default=0)

    def flush(self) -> None:
        """Wait until MLflow has everything, as long as it does not stand still for :func:`longest_wait`.

        Raises:
            Unreachable: if the server does not answer.
            SeqappError: if it refuses an entry.
        """
        limit = longest_wait()
        with self._changed:
            self._hurry.set()
            self._changed.wait_for(lambda: self._over() or self._failures > 1, SOON)
            if not self._over():
                log.warning("waiting for the tracking server, %.0f s at most: %d entries are to be sent",
                            limit, self.unsent)  # fmt: skip
            while not self._over():
                if not self._moves(limit):
                    raise Unreachable(f"{away()} within {limit:g} s; {self.unsent} entries are kept in {self.folder}")
            if self.refusal is not None:
                raise SeqappError(f"the tracking server refuses what the run logs: {reason(self.refusal)}; "
                                  f"{self.unsent} entries are kept in {self.folder}, and `--resume` sends them again"
                                  )  # fmt: skip

    def close(self) -> None:
        """End the thread. While the server answers, a few seconds are spent on what is still to be sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._hurry.set()
            self._changed.wait_for(lambda: self._over() or self._failures > 0, SOON)
        self._thread.join(SOON)
        # A call that hangs ends with the process; what it would have noted is sent again by the next one.
        if not self._thread.is_alive():
            self._journal.close()

    @property
    def unsent(self) -> int:
        """Entries that MLflow has not taken yet."""
        return len(self._pending)

    def _moves(self, limit: float) -> bool:
        """Whether an entry is sent within ``limit`` seconds."""
        left = self.unsent
        return self._changed.wait_for(lambda: self.unsent < left or self._over(), limit)

    def _over(self) -> bool:
        return not self._pending or self.refusal is not None

    def _check(self, run_id: str) -> None:
        if run_id != self.run_id:
            raise ValueError(f"this outbox is of the run {self.run_id}, not of {run_id}")

    def _enter_file(self, run_id: str, name: str, write: Callable[[Path], Any]) -> None:
        self._check(run_id)
        with self._changed:
            path = self._file(self._entries, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
            except OSError as error:
                raise _unwritable(path, error) from None
            self._enter({"file": name})

    def _enter(self, entry: Entry) -> None:
        with self._changed:
            entry = {"entry": self._entries, **entry}
            self._write(entry)
            self._take(entry)
            self._changed.notify_all()

    def _take(self, entry: Entry) -> None:
        self._entries = entry["entry"] + 1
        self._pending.append(entry)
        for key, value, _, step in entry.get("metrics", ()):
            self._history.setdefault(key, {})[step] = value

    def _write(self, record: Mapping[str, Any]) -> None:
        # Unbuffered and at the end, so that a kill leaves whole lines, or at worst a last one without its end.
        before = os.fstat(self._journal.fileno()).st_size
        left = memoryview(json.dumps(record).encode() + b"\n")
        try:
            while left:
                left = left[self._journal.write(left) :]
        except OSError as error:
            # Half a line would spoil the next one, once there is room again.
            self._journal.truncate(before)
            raise _unwritable(self.folder / JOURNAL, error) from None

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"{number:06}" / PurePosixPath(name).name

    def _recall(self) -> None:
        """Read the journal, and cut off a last line that has no end or, after a power cut, is no JSON."""
        path = self.folder / JOURNAL
        if not path.exists():
            return
        content = path.read_bytes()
        *lines, rest = content.split(b"\n")
        if not rest and lines and not _is_json(lines[-1]):
            rest = lines.pop() + b"\n"
        if rest:
            os.truncate(path, len(content) - len(rest))
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if "sent" not in record:
                    self._take(record)
                while "sent" in record and self._pending and self._pending[0]["entry"] < record["sent"]:
                    self._pending.popleft()
            except (ValueError, KeyError, TypeError):
                raise SeqappError(f"{path}, line {number}: damaged, so the run cannot go on from here; train without "
                                  "--resume") from None  # fmt: skip

    def _run(self) -> None:
        rest = pauses()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pending) or self._closing)
                if not self._pending:
                    return
                batch = self._next()
            try:
                self._send(batch)
                with self._changed:
                    self._note(batch)
                rest = pauses()
            except Exception as error:
                with self._changed:
                    self._kept(error)
                    if self._closing or self.refusal is not None:
                        return
                self._hurry.wait(next(rest))
                self._hurry.clear()

    def _note(self, batch: Sequence[Entry]) -> None:
        if self._failures > 1:
            log.warning("the tracking server answers again; %d entries that were kept follow", self.unsent)
        self._failures = 0
        for _ in batch:
            self._pending.popleft()
        self._changed.notify_all()
        try:
            self._write({"sent": batch[-1]["entry"] + 1})
        except SeqappError as error:
            log.warning("%s; what MLflow has taken is sent again by `--resume`", error)
            return
        # Only now: what is not noted is sent again.
        for entry in batch:
            if "file" in entry:
                shutil.rmtree(self._file(entry["entry"], entry["file"]).parent, ignore_errors=True)

    def _kept(self, error: Exception) -> None:
        if not is_away(error):
            self.refusal = error
            log.warning("the tracking server refuses what the run logs: %s; going on, it is kept in %s",
                        reason(error), self.folder)  # fmt: skip
            self._changed.notify_all()
            return
        self._failures += 1
        # Not at the first: a server may close a connection just when it is used again.
        if self._failures == 2:
            log.warning("%s (%s); going on, what the run logs is kept in %s", away(), reason(error), self.folder)
        with suppress(OSError):  # of a full disk the next write tells
            os.fsync(self._journal.fileno())  # it is the only copy now
        self._changed.notify_all()

    def _next(self) -> list[Entry]:
        """The first entry that waits, and as many metrics after it as one call takes."""
        batch: list[Entry] = []
        count = 0
        for entry in self._pending:
            count += len(entry.get("metrics", ()))
            if batch and ("metrics" not in entry or count > LARGEST_BATCH):
                break
            batch.append(entry)
            if "metrics" not in entry:
                break
        return batch

    def _send(self, batch: Sequence[Entry]) -> None:
        if "file" in batch[0]:
            name = batch[0]["file"]
            folder = str(PurePosixPath(name).parent)
            path = self._file(batch[0]["entry"], name)
            self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)
            return
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(*metric) for entry in batch for metric in entry.get("metrics", ())],
            params=[Param(key, value) for entry in batch for key, value in entry.get("params", {}).items()],
            tags=[RunTag(key, value) for entry in batch for key, value in entry.get("tags", {}).items()],
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _unwritable(path: Path, error: OSError) -> SeqappError:
    full = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of this user is used up",
            errno.EFBIG: "a file may not become so large here"}  # fmt: skip
    why = full.get(error.errno or 0, error.strerror or str(error))
    return SeqappError(f"{path}: cannot be written: {why}; what was logged before is kept, and `--resume` goes on once "
                       "that is mended")  # fmt: skip


@contextmanager
def opened(directory: Path, run_id: str) -> Iterator[Outbox]:
    """The outbox of the run in ``directory``, closed at the end whatever happens.

    Raises:
        Unreachable: of what is done inside, saying how to go on.
    """
    outbox = Outbox(directory / FOLDER, run_id)
    try:
        yield outbox
    except Unreachable as error:
        raise Unreachable(f"{error}; checkpoints, figures and bundle are safe in {directory}, and when it is back, "
                          "`--resume` sends the rest and finishes the run") from None  # fmt: skip
    except BaseException:
        outbox.close()
        if outbox.unsent:
            log.warning("%d entries are not sent; `--resume` sends them from %s", outbox.unsent, outbox.folder)
        raise
    finally:
        outbox.close()


class RunLogger(Logger):
    """Lightning's way into an :class:`Outbox`; of several processes only the first has one."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    @property
    def name(self) -> str:
        """Part of folder names that Lightning would make."""
        return "mlflow"

    @property
    def version(self) -> str:
        """The id of the run."""
        return self._outbox.run_id

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._outbox.run_id

    @property
    def experiment(self) -> Outbox:
        """Takes the calls ``log_batch``, ``log_metric``, ``log_text``, ... of an MLflow client."""
        return self._outbox

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Enter figures as they are, without rounding to float32."""
        moment = now()
        self._outbox.log_batch(self.run_id, [Metric(key, value, moment, step or 0) for key, value in metrics.items()])

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing: the whole config is logged when the run begins."""


def now() -> int:
    """Milliseconds since 1970, as MLflow counts them."""
    return int(1000 * time())
