"""Downloads against a real HTTP server on loopback that can misbehave, and against folders."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from seqapp.data import download
from seqapp.data.download import Content, RemoteFile, accepted, cache_dir, fetch
from seqapp.errors import DataError

BODY = bytes(range(256)) * 2000
HALF = len(BODY) // 2


@dataclass
class Server:
    """What the server holds, how it misbehaves (each entry of a list serves one request), and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"1"'
    ranges: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    redirect: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.asked.append(wanted)
        if self.stalls:
            time.sleep(self.stalls.pop(0))
        body = self.files.get(handler.path)
        status = self.statuses.pop(0) if self.statuses else 404 if body is None else 302 if self.redirect else 200
        if body is None or status >= 300:
            handler.send_response(status)
            handler.send_header("Location", self.redirect)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start, size = 0, len(body)
        if wanted and self.ranges and handler.headers.get("If-Range", self.etag) == self.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            status = 206 if start < size else 416
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if self.lengths:
            handler.send_header("Content-Length", str(size - start if status != 416 else 0))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        handler.close_connection = True
        part = body[start:][: self.cuts.pop(0) if self.cuts else None] if status != 416 else b""
        self.sent += len(part)
        handler.wfile.write(part)


@pytest.fixture(autouse=True)
def hasty_and_without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        state.files["/toy/a.bin"] = BODY
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def content(body: bytes, algorithm: str = "sha256") -> Content:
    return Content(f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}", len(body))


def remote(server: Server | None = None, body: bytes = BODY, **changes: Any) -> RemoteFile:
    url = f"{server.url}/toy/a.bin" if server else "http://127.0.0.1:9/toy/a.bin"
    return RemoteFile(**{"name": "a.bin", "url": url, "accepts": (content(body),), **changes})


def clean(folder: Path) -> bool:
    """Nothing is left but the file and the lock."""
    return {path.name for path in folder.iterdir()} <= {"a.bin", ".lock"}


def test_fetches_from_the_publisher_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch("toy", [remote(server)], cache=tmp_path, progress=lambda *step: seen.append(step))
    assert folder == tmp_path / "toy"
    assert (folder / "a.bin").read_bytes() == BODY
    assert clean(folder)
    assert seen[0] == ("a.bin", 0, len(BODY))
    assert seen[-1] == ("a.bin", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_verified_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch("toy", [remote(server)], cache=tmp_path)
    assert server.asked == [""]


@pytest.mark.parametrize("damage", [BODY[:100], b"\1" + BODY[1:]])
def test_a_damaged_cached_file_is_replaced(server: Server, tmp_path: Path, damage: bytes) -> None:
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    (folder / "a.bin").write_bytes(damage)
    assert accepted(folder / "a.bin", remote(server)) is None
    fetch("toy", [remote(server)], cache=tmp_path)
    assert accepted(folder / "a.bin", remote(server)) == content(BODY)


def test_a_lost_connection_is_resumed_with_the_rest_only(server: Server, tmp_path: Path) -> None:
    server.cuts = [HALF, 1000]
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    assert (folder / "a.bin").read_bytes() == BODY
    assert server.asked == ["", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.sent == len(BODY)
    assert clean(folder)


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cuts = [HALF] + [0] * 10
    with pytest.raises(DataError, match=rf"gave up after 4 attempts.*resumes after the {HALF:,} bytes.*--mirror"):
        fetch("toy", [remote(server)], cache=tmp_path)
    server.cuts = []
    seen: list[int] = []
    folder = fetch("toy", [remote(server)], cache=tmp_path, progress=lambda name, done, total: seen.append(done))
    assert (folder / "a.bin").read_bytes() == BODY
    assert seen[0] == HALF
    assert server.sent == len(BODY)


def test_bytes_that_keep_coming_are_never_given_up_on(server: Server, tmp_path: Path) -> None:
    step = len(BODY) // 10
    server.cuts = [step] * 10
    fetch("toy", [remote(server)], cache=tmp_path)
    assert server.sent == len(BODY)


def test_a_server_that_ignores_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [HALF]
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    assert (folder / "a.bin").read_bytes() == BODY
    assert server.sent == HALF + len(BODY)


def test_a_file_that_changed_meanwhile_is_started_again(server: Server, tmp_path: Path) -> None:
    server.files["/toy/a.bin"], server.cuts = b"old" * len(BODY), [HALF] + [0] * 3
    with pytest.raises(DataError):
        fetch("toy", [remote(server)], cache=tmp_path)
    server.files["/toy/a.bin"], server.etag = BODY, '"2"'
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    assert (folder / "a.bin").read_bytes() == BODY
    assert server.asked[-1] == f"bytes={HALF}-"


@pytest.mark.parametrize("left", [b"x" * HALF, b"x" * len(BODY), b"x" * (len(BODY) + 1)], ids=["short", "full", "long"])
def test_a_bad_beginning_costs_one_restart(server: Server, tmp_path: Path, left: bytes) -> None:
    server.etag = ""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.bin.part").write_bytes(left)
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    assert (folder / "a.bin").read_bytes() == BODY
    assert server.asked[-1] == ""
    assert clean(folder)


def test_a_finished_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.bin.part").write_bytes(BODY)
    folder = fetch("toy", [remote(server)], cache=tmp_path)
    assert (folder / "a.bin").read_bytes() == BODY
    assert server.asked == []


def test_no_length_is_no_obstacle(server: Server, tmp_path: Path) -> None:
    server.lengths = False
    totals: set[int | None] = set()
    fetch("toy", [remote(server)], cache=tmp_path, progress=lambda name, done, total: totals.add(total))
    assert totals == {None}


def test_corrupted_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.files["/toy/a.bin"] = bad = b"\1" + BODY[1:]
    with pytest.raises(DataError) as caught:
        fetch("toy", [remote(server)], cache=tmp_path)
    assert f"got {content(bad).checksum}" in str(caught.value)
    assert f"expected {content(BODY).checksum}" in str(caught.value)
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {".lock"}
    assert len(server.asked) == 1


def test_a_file_that_never_ends_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.files["/toy/a.bin"] = BODY * 20
    seen: list[int] = []
    with pytest.raises(DataError, match="over "):
        fetch("toy", [remote(server)], cache=tmp_path, progress=lambda name, done, total: seen.append(done))
    assert max(seen) < 2 * len(BODY)


def test_either_accepted_version_is_right(server: Server, tmp_path: Path) -> None:
    file = remote(server, accepts=(content(b"another version", "md5"), content(BODY)))
    assert accepted(fetch("toy", [file], cache=tmp_path) / "a.bin", file) == content(BODY)
    file = remote(server, accepts=(content(BODY, "md5"), content(b"another version")))
    assert accepted(fetch("toy", [file], cache=tmp_path / "2") / "a.bin", file) == content(BODY, "md5")


def test_not_found_is_final_and_names_the_way_out(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DataError, match=r"a\.bin: the server answers 404 .*--mirror or SEQAPP_DATA_MIRROR"):
        fetch("toy", [remote(server)], cache=tmp_path)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    fetch("toy", [remote(server)], cache=tmp_path)
    assert len(server.asked) == 4


def test_a_silent_server_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    server.stalls = [0.3]
    fetch("toy", [remote(server)], cache=tmp_path)
    assert len(server.asked) == 2


def test_unreachable_host(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        file = remote(url=f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin")
    with pytest.raises(DataError, match=r"cannot be reached.*--mirror or SEQAPP_DATA_MIRROR"):
        fetch("toy", [file], cache=tmp_path)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1:9/a.bin", "data:,x"])
def test_a_redirect_leads_to_http_only(server: Server, tmp_path: Path, target: str) -> None:
    server.redirect = target
    with pytest.raises(DataError, match=r"not allowed|unknown url type|answers 302"):
        fetch("toy", [remote(server)], cache=tmp_path)


@pytest.mark.parametrize("mirror", ["ftp://host/data", "file:///data"])
def test_other_schemes_are_refused(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(DataError, match="is not supported; use an http"):
        fetch("toy", [remote()], cache=tmp_path, mirror=mirror)


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a valid address"):
        fetch("toy", [remote()], cache=tmp_path, mirror="http://host:port")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_on_the_web(server: Server, tmp_path: Path, slash: str) -> None:
    folder = fetch("toy", [remote()], cache=tmp_path, mirror=server.url + slash)
    assert (folder / "a.bin").read_bytes() == BODY


def test_a_folder_as_mirror_and_a_cache_as_the_next_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "a.bin").write_bytes(BODY)
    file = remote(member="packed/a.bin")
    seen: list[tuple[str, int, int | None]] = []
    fetch("toy", [file], cache=tmp_path / "1", mirror=tmp_path / "mirror", progress=lambda *step: seen.append(step))
    folder = fetch("toy", [file], cache=tmp_path / "2", mirror=str(tmp_path / "1"))
    assert (folder / "a.bin").read_bytes() == BODY
    assert seen[-1] == ("a.bin", len(BODY), len(BODY))


def test_a_folder_that_lacks_the_file(tmp_path: Path) -> None:
    missing = re.escape(str(tmp_path / "none" / "toy" / "a.bin"))
    with pytest.raises(DataError, match=missing + r": cannot be read .*<mirror>/<data set>/<file name>"):
        fetch("toy", [remote()], cache=tmp_path / "cache", mirror=tmp_path / "none")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, body in files.items():
            pack.writestr(name, body)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as pack:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            pack.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def members(server: Server) -> list[RemoteFile]:
    url = f"{server.url}/toy/packed"
    return [
        RemoteFile(name, url, (content(body),), f"inner/{name}")
        for name, body in (("a.bin", BODY), ("b.bin", b"second"))
    ]


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_of_an_archive(server: Server, tmp_path: Path, pack: Any) -> None:
    server.files["/toy/packed"] = pack({"../evil": b"", "inner/a.bin": BODY, "inner/b.bin": b"second"})
    folder = fetch("toy", members(server), cache=tmp_path)
    assert {path.name for path in folder.iterdir()} == {"a.bin", "b.bin", ".lock"}
    assert (folder / "a.bin").read_bytes() == BODY
    fetch("toy", members(server), cache=tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("archive", "problem"),
    [
        (zipped({"inner/a.bin": BODY, "inner/b.bin": b"SECOND"}), "member inner/b.bin: not the expected file"),
        (zipped({"inner/a.bin": BODY}), "not the expected archive"),
        (tarred({"inner/a.bin": BODY}), "not the expected archive"),
        (tarred({"inner/a.bin": BODY, "inner/b.bin": b"second"})[:-600], "not the expected archive"),
        (b"<html>please log in</html>", "not the expected archive"),
    ],
    ids=["changed", "zip lacks one", "tar lacks one", "cut", "no archive"],
)
def test_a_wrong_archive_is_refused_and_removed(server: Server, tmp_path: Path, archive: bytes, problem: str) -> None:
    server.files["/toy/packed"] = archive
    with pytest.raises(DataError, match=problem):
        fetch("toy", members(server), cache=tmp_path)
    assert not (tmp_path / "toy" / "packed").exists()
    assert not (tmp_path / "toy" / "b.bin").exists()


def test_two_at_a_time_download_once(server: Server, tmp_path: Path) -> None:
    server.stalls = [0.2]
    threads = [
        threading.Thread(target=fetch, args=("toy", [remote(server)]), kwargs={"cache": tmp_path}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [""]
    assert (tmp_path / "toy" / "a.bin").read_bytes() == BODY


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._Tally, "add", full)
    with pytest.raises(DataError, match="disk is full; make room, or set SEQAPP_CACHE"):
        fetch("toy", [remote(server)], cache=tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set SEQAPP_CACHE to a folder you may write to"):
        fetch("toy", [remote()], cache=tmp_path / "file")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SEQAPP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative paths do not count")
    assert cache_dir() == tmp_path / ".cache" / "seqapp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "seqapp"
    monkeypatch.setenv("SEQAPP_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
