"""Whatever a server does and whenever the process is killed: entries arrive in order, none is lost, none is double."""

import errno
import json
import logging
import math
import os
import resource
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError

from pipelines import outbox, patience
from pipelines.outbox import JOURNAL, Outbox, RunLogger
from seqapp.errors import SeqappError

RUN = "r" * 32
AWAY = requests.ConnectionError("gone")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "pauses", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr(outbox, "pauses", lambda: iter(lambda: 0.001, None))


class Mlflow:
    """Takes what MLflow's client takes, and fails first as often as it is told.

    Args:
        failures: what each of the first calls raises; None lets it through.
        lossy: a call that fails has been heard all the same.
    """

    def __init__(self, failures: Sequence[Exception | None] = (), *, lossy: bool = False) -> None:
        self.failures, self.lossy = list(failures), lossy
        self.heard: list[Any] = []
        self.largest = 0

    def _hear(self, record: list[Any]) -> None:
        error = self.failures.pop(0) if self.failures else None
        if error is None or self.lossy:
            # As MLflow does: a metric that it has with this key, value, time and step is not entered again.
            self.heard += [entry for entry in record if entry not in self.heard]
        if error is not None:
            raise error

    def log_batch(self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]) -> None:
        assert run_id == RUN
        self.largest = max(self.largest, len(metrics))
        self._hear([*((m.key, m.value, m.timestamp, m.step) for m in metrics), *((p.key, p.value) for p in params),
                    *((t.key, t.value) for t in tags)])  # fmt: skip

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        assert run_id == RUN
        self._hear([(f"{folder or '.'}/{Path(path).name}", Path(path).read_bytes())])


def metric(number: int, key: str = "loss") -> tuple[str, float, int, int]:
    return key, number / 3, 1000 + number, number


def enter(box: Outbox, what: Sequence[str]) -> list[Any]:
    """Enter metrics, texts and tags; what MLflow should hear."""
    expected: list[Any] = []
    for number, kind in enumerate(what):
        if kind == "text":
            box.log_text(RUN, f"text {number}", f"samples/{number}.txt")
            expected.append((f"samples/{number}.txt", f"text {number}".encode()))
        elif kind == "tag":
            box.set_tag(RUN, f"tag {number}", number)
            expected.append((f"tag {number}", str(number)))
        else:
            box.log_batch(RUN, [Metric(*metric(number))])
            expected.append(metric(number))
    return expected


KINDS = st.sampled_from(["metric", "text", "tag"])


@given(st.lists(KINDS, max_size=12), st.lists(st.booleans(), max_size=20), st.booleans())
def test_all_arrives_in_order_and_once_whatever_is_lost(what: list[str], failing: list[bool], lossy: bool) -> None:
    server = Mlflow([AWAY if fails else None for fails in failing], lossy=lossy)
    with tempfile.TemporaryDirectory() as folder:
        box = Outbox(Path(folder) / "outbox", RUN, server)
        expected = enter(box, what)
        box.flush()
        box.close()
        assert server.heard == expected
        assert [path.name for path in (Path(folder) / "outbox").iterdir()] == [JOURNAL]


@given(st.lists(KINDS, min_size=1, max_size=8), st.data())
def test_a_kill_at_any_byte_of_the_journal_loses_whole_last_entries_at_most(what: list[str], data: Any) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = Mlflow([None, None, *[AWAY] * 100_000])
        box = Outbox(folder, RUN, first)
        expected = enter(box, what)
        box.close()
        journal = (folder / JOURNAL).read_bytes()
        cut = data.draw(st.integers(0, len(journal)))
        whole = journal[:cut].count(b"\n")
        entries = sum(b'"entry"' in line for line in journal.split(b"\n")[:whole])
        (folder / JOURNAL).write_bytes(journal[:cut])
        # What was sent before is sent again only if the note of it was cut off; files of what was sent are gone then.
        second = Mlflow()
        for number, entry in enumerate(expected):
            if isinstance(entry[1], bytes):
                path = folder / f"{number:06}" / entry[0].rpartition("/")[2]
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(entry[1])
        again = Outbox(folder, RUN, second)
        again.flush()
        again.log_batch(RUN, [Metric(*metric(99, "after"))])
        again.flush()
        again.close()
        heard = first.heard + [entry for entry in second.heard if entry not in first.heard]
        assert [entry for entry in heard if entry in expected[:entries]] == expected[:entries]
        assert heard[-1] == metric(99, "after")
        assert len(heard) == max(entries, len(first.heard)) + 1


def test_what_was_written_before_sigkill_is_sent_by_the_next_process(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        box = Outbox(tmp_path, RUN, Mlflow([AWAY] * 1_000_000))
        number = 0
        while True:
            enter_one = [Metric(*metric(number))]
            box.log_batch(RUN, enter_one)
            os.write(writing, b".")
            number += 1
    os.close(writing)
    written = 0
    while written < 500:
        written += len(os.read(reading, 100))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 65536):
        written += len(more)
    os.close(reading)
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    box.flush()
    box.close()
    assert server.heard[:written] == [metric(number) for number in range(written)]
    assert len(server.heard) <= written + 1


class Short:
    """A journal on a system that takes some bytes at a time."""

    def __init__(self, journal: Any) -> None:
        self.journal = journal

    def write(self, content: Any) -> int:
        return int(self.journal.write(content[:7]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path: Path) -> None:
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    box._journal = Short(box._journal)  # type: ignore[assignment]
    expected = enter(box, ["metric", "text", "tag"])
    box.flush()
    box.close()
    assert server.heard == expected
    records = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert [record["entry"] for record in records if "entry" in record] == [0, 1, 2]
    assert records[-1] == {"sent": 3}


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_is_told_and_the_journal_stands_when_there_is_room_again(tmp_path: Path, room: int) -> None:
    box = Outbox(tmp_path, RUN, Mlflow([AWAY] * 1_000_000))
    expected = enter(box, ["metric", "text"])
    before = (tmp_path / JOURNAL).read_bytes()
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, kept[1]))  # for the system a disk that ends there
    try:
        with pytest.raises(SeqappError, match=r"journal\.jsonl: cannot be written: a file may not become so large"):
            box.set_tag(RUN, "lost", "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert (tmp_path / JOURNAL).read_bytes() == before
    box.log_batch(RUN, [Metric(*metric(9, "after"))])
    box.close()
    server = Mlflow()
    again = Outbox(tmp_path, RUN, server)
    again.flush()
    again.close()
    assert server.heard == [*expected, metric(9, "after")]


@pytest.mark.parametrize(("code", "why"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
def test_an_artifact_that_finds_no_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    box = Outbox(tmp_path, RUN, server := Mlflow())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(SeqappError, match=rf"000000/a\.txt: cannot be written: {why}; .*--resume"):
            box.log_text(RUN, "text", "texts/a.txt")
    box.log_text(RUN, "text", "texts/a.txt")
    box.flush()
    box.close()
    assert server.heard == [("texts/a.txt", b"text")]


def test_what_cannot_be_noted_as_sent_keeps_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = Outbox(tmp_path, RUN, Mlflow())
    plain = box._journal

    class Full(Short):
        def write(self, content: Any) -> int:
            if b"sent" in bytes(content):
                raise OSError(errno.ENOSPC, "full")
            return int(plain.write(content))

    box._journal = Full(plain)  # type: ignore[assignment]
    expected = enter(box, ["text"])
    box.flush()
    box.close()
    assert "journal.jsonl: cannot be written: the disk is full" in caplog.text
    server = Mlflow()
    again = Outbox(tmp_path, RUN, server)
    again.flush()
    again.close()
    assert server.heard == expected


@pytest.mark.parametrize("rest", [b'{"entry": 1, "me', b'{"entry": 1, "me\n', b"\0" * 50, b"\0" * 50 + b"\n", b"\n"])
def test_a_journal_whose_last_line_is_cut_is_taken_up_without_it(tmp_path: Path, rest: bytes) -> None:
    whole = b'{"entry": 0, "tags": {"a": "b"}}\n'
    (tmp_path / JOURNAL).write_bytes(whole + rest)
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    box.set_tag(RUN, "c", "d")
    box.flush()
    box.close()
    assert server.heard == [("a", "b"), ("c", "d")]
    assert Outbox(tmp_path, RUN, Mlflow()).unsent == 0


def test_while_the_server_is_away_the_journal_is_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[bytes] = []
    plain, first = os.fsync, threading.Event()

    def watched(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, box._journal.fileno()):
            brought.append((tmp_path / JOURNAL).read_bytes())
            first.set()
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    enter(box, ["metric"])
    box.flush()
    assert not brought  # a server that answers has it
    server.failures = [AWAY]
    box.set_tag(RUN, "away", "yes")
    assert first.wait(20)
    assert b'"away"' in brought[0]
    box.flush()
    box.close()


def test_a_resumed_run_does_not_enter_a_step_again(tmp_path: Path) -> None:
    for epochs in (range(3), range(2, 5)):  # the third was cut off after its figures, before its checkpoint
        server = Mlflow()
        box = Outbox(tmp_path, RUN, server)
        logger = RunLogger(box)
        for epoch in epochs:
            logger.log_metrics({"loss": 1 / (epoch + 1), "time": 0.1}, epoch)
        assert box.next_step("lo") == epochs[-1] + 1
        assert box.next_step("nothing") == 0
        box.flush()
        box.close()
        assert [entry[3] for entry in server.heard if entry[0] == "loss"] == [
            epoch for epoch in epochs if epoch != 2 or epochs[0] == 0
        ]
    assert box.history() == {"loss": [(e, 1 / (e + 1)) for e in range(5)], "time": [(e, 0.1) for e in range(5)]}


def test_figures_are_neither_rounded_nor_refused(tmp_path: Path) -> None:
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    values = {"third": 1 / 3, "tiny": 5e-324, "infinite": math.inf, "nan": math.nan}
    RunLogger(box).log_metrics(values, 7)
    box.log_batch(RUN, [Metric("many", number, 5, number) for number in range(2500)], [Param("p", "1")])
    box.flush()
    box.close()
    heard = {entry[0]: entry[1] for entry in server.heard}
    assert math.isnan(heard.pop("nan"))
    assert heard == {**{key: value for key, value in values.items() if key != "nan"}, "many": 2499.0, "p": "1"}
    assert server.largest == outbox.LARGEST_BATCH
    again = Outbox(tmp_path, RUN, Mlflow()).history()
    assert again["tiny"] == [(7, 5e-324)]
    assert math.isnan(again["nan"][0][1])


def test_pictures_and_json_are_artifacts(tmp_path: Path) -> None:
    server = Mlflow()
    box = Outbox(tmp_path, RUN, server)
    matplotlib.use("agg")
    figure = Figure()
    figure.subplots().plot([1, 2])
    box.log_figure(RUN, figure, "attention/1/epoch-003.png")
    box.log_dict(RUN, {"a": 1}, "table.json")
    box.flush()
    box.close()
    (name, picture), (file, text) = server.heard
    assert (name, picture[:4]) == ("attention/1/epoch-003.png", b"\x89PNG")
    assert (file, json.loads(text)) == ("./table.json", {"a": 1})
    with pytest.raises(ValueError, match="of the run rrr"):
        box.set_tag("another", "a", "b")


def test_training_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    answer = threading.Event()

    class Hanging(Mlflow):
        def _hear(self, record: list[Any]) -> None:
            answer.wait()
            super()._hear(record)

    server = Hanging()
    box = Outbox(tmp_path, RUN, server)
    expected = enter(box, ["metric", "text"] * 20)
    assert (server.heard, box.unsent) == ([], 40)
    answer.set()
    box.flush()
    box.close()
    assert server.heard == expected


def test_an_outage_is_told_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pipelines"):
        box = Outbox(tmp_path, RUN, Mlflow([AWAY, None, *[AWAY] * 20]))
        box.log_batch(RUN, [Metric(*metric(0))])
        box.flush()
        assert not caplog.messages  # one call that fails is no outage
        box.log_batch(RUN, [Metric(*metric(1))])
        box.flush()
        box.close()
    lost, *waiting, back = caplog.messages
    assert lost.endswith(f"does not answer (gone); going on, what the run logs is kept in {tmp_path}")
    assert all("waiting for the tracking server" in message for message in waiting)
    assert back == "the tracking server answers again; 1 entries that were kept follow"


def test_a_server_that_stays_away_leaves_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.WAIT, "0.05")
    folder = tmp_path / outbox.FOLDER
    monkeypatch.setattr(outbox, "connect", lambda: Mlflow([AWAY] * 1_000_000))

    def train() -> None:
        with outbox.opened(tmp_path, RUN) as box:
            box.set_tag(RUN, "a", "b")
            box.flush()

    with pytest.raises(patience.Unreachable) as raised:
        train()
    assert str(raised.value).endswith(
        f"does not answer within 0.05 s; 1 entries are kept in {folder}; checkpoints, figures and bundle are safe in "
        f"{tmp_path}, and when it is back, `--resume` sends the rest and finishes the run"
    )
    server = Mlflow()
    box = Outbox(folder, RUN, server)
    box.flush()
    box.close()
    assert server.heard == [("a", "b")]


def test_a_refusal_does_not_end_training_but_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "the run is deleted"})
    box = Outbox(tmp_path, RUN, Mlflow([refused]))
    enter(box, ["metric"] * 3)
    sentence = (
        "refuses what the run logs: INVALID_PARAMETER_VALUE: the run is deleted; 3 entries are kept in .*--resume"
    )
    with pytest.raises(SeqappError, match=sentence):
        box.flush()
    box.close()
    assert sum("refuses" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"metrics": []}', '{"entry": 3, "metrics": [1]}'])
def test_a_damaged_journal_is_told_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / JOURNAL).write_text(f'{{"entry": 0, "tags": {{}}}}\n{line}\n{{"sent": 1}}\n')
    with pytest.raises(SeqappError, match=r"journal\.jsonl, line 2: damaged, .* train without --resume"):
        Outbox(tmp_path, RUN, Mlflow())


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_time_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(patience.WAIT, text)
    with pytest.raises(SeqappError, match=f"SEQAPP_TRACKING_WAIT: a number of seconds from 0 on fits.*'{text}'"):
        Outbox(tmp_path, RUN, Mlflow())


def wrapped(error: Exception, **options: Any) -> MlflowException:
    """As MLflow's client passes on what it caught."""
    try:
        try:
            raise error
        except type(error) as caught:
            raise MlflowException(f"failed: {caught}", **options)  # noqa: B904  (MLflow does so)
    except MlflowException as raised:
        return raised


def response(status: int) -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError("no", response=answer)


def sql(text: str) -> OperationalError:
    error = OperationalError("INSERT", {}, sqlite3.OperationalError(text))
    error.__cause__ = error.orig
    return error


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (wrapped(requests.ConnectionError("refused")), True),
        (wrapped(requests.Timeout("late")), True),
        (wrapped(requests.exceptions.RetryError("too many 503 error responses")), True),
        (ConnectionResetError("reset"), True),
        (wrapped(response(503)), True),
        (wrapped(response(429)), True),
        (wrapped(response(403)), False),
        (wrapped(sql("database is locked")), True),
        (wrapped(sql("attempt to write a readonly database")), False),
        (wrapped(sql("database or disk is full")), False),
        (wrapped(OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}), False),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}), True),
        (MlflowException("a bug"), False),
        (PermissionError("artifacts"), False),
        (ValueError("a bug"), False),
    ],
)
def test_away_is_told_from_refused(error: Exception, away: bool) -> None:
    assert patience.is_away(error) == away


def test_a_refused_call_is_not_made_again() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise RestException({"error_code": "PERMISSION_DENIED", "message": "no"})

    with pytest.raises(MlflowException, match="PERMISSION_DENIED"):
        patience.patiently(refuse)
    assert len(calls) == 1


@given(st.lists(st.sampled_from(["lost before", "lost after"]), max_size=6))
def test_once_makes_one_thing_whenever_the_answer_is_lost(losses: list[str]) -> None:
    made: list[int] = []
    left = list(losses)

    def losing(act: Callable[[], Any]) -> Any:
        loss = left.pop(0) if left else None
        if loss == "lost before":
            raise AWAY
        answer = act()
        if loss:
            raise AWAY
        return answer

    def make() -> int:
        return int(losing(lambda: made.append(len(made)) or len(made)))

    assert patience.once(make, lambda: losing(lambda: len(made) or None)) == 1
    assert made == [0]
