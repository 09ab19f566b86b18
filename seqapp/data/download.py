"""Downloads that resume, are checked against a checksum, and land in the cache whole or not at all.

The cache is laid out as a mirror is, ``<cache>/<data set>/<file name>``, so a copy of one machine's cache is a mirror
for the next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import re
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from seqapp.errors import DataError

log = logging.getLogger(__name__)

CACHE_VARIABLE = "SEQAPP_CACHE"
MIRROR_VARIABLE = "SEQAPP_DATA_MIRROR"
Progress = Callable[[str, int, int | None], None]
"""Called with the file name, the bytes done so far, and the bytes in all (None if the server does not say)."""

_CHUNK = 1 << 16
_TIMEOUT = 30.0  # seconds that a server may stay silent
_ATTEMPTS = 4  # failures in a row without a single new byte
_PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_COPY = f"to use a copy, name a folder or an http(s) address with --mirror or {MIRROR_VARIABLE}"
_LAYOUT = "a mirror is laid out as <mirror>/<data set>/<file name>"


@dataclass(frozen=True, slots=True)
class Content:
    """One version of a file that is accepted: ``sha256:HEX`` or ``md5:HEX``, and its size in bytes."""

    checksum: str
    size: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a public data set.

    Args:
        name: in the cache and in a mirror.
        url: where its publisher offers it, or the archive that holds it.
        accepts: the versions that are the right file.
        member: its path inside the publisher's zip or tar archive; empty if ``url`` is the file itself.
    """

    name: str
    url: str
    accepts: tuple[Content, ...]
    member: str = ""


class _TransferError(Exception):
    """The transfer stopped, and may succeed if it is tried again."""


class _Answer(NamedTuple):
    stream: IO[bytes]
    start: int
    total: int | None
    validator: str


class _Tally:
    """Size and checksums of the bytes seen so far; without ``accepts`` any content is right."""

    def __init__(self, accepts: Sequence[Content]) -> None:
        names = sorted({content.checksum.partition(":")[0] for content in accepts})
        self.size, self.accepts = 0, accepts
        self.hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}

    def add(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """``chunks``, counted as they pass, and cut off once they are longer than any accepted version."""
        for chunk in chunks:
            self.size += len(chunk)
            for hashed in self.hashes.values():
                hashed.update(chunk)
            yield chunk
            if self.too_long:
                return

    def read(self, path: Path) -> None:
        with path.open("rb") as stream:
            for _ in self.add(iter(lambda: stream.read(_CHUNK), b"")):
                pass

    @property
    def too_long(self) -> bool:
        return bool(self.accepts) and self.size > max(content.size for content in self.accepts)

    @property
    def sums(self) -> list[str]:
        return [f"{name}:{hashed.hexdigest()}" for name, hashed in self.hashes.items()]

    def match(self) -> Content | None:
        return next((one for one in self.accepts if one.size == self.size and one.checksum in self.sums), None)

    def mismatch(self, what: str) -> DataError:
        got = f"{', '.join(self.sums)} ({'over ' * self.too_long}{self.size:,} bytes)"
        expected = " or ".join(f"{content.checksum} ({content.size:,} bytes)" for content in self.accepts)
        return DataError(f"{what}: not the expected file, and removed: got {got}, expected {expected}")


def cache_dir() -> Path:
    """Where downloads are kept: ``SEQAPP_CACHE``, or ``seqapp`` in the user's cache folder (XDG base directories)."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "seqapp"


def accepted(path: Path, file: RemoteFile) -> Content | None:
    """The version of ``file`` that ``path`` holds, or None if it is absent, unreadable, unfinished or damaged."""
    tally = _Tally(file.accepts)
    with contextlib.suppress(OSError):
        if path.stat().st_size in {content.size for content in file.accepts}:
            tally.read(path)
    return tally.match()


def fetch(
    dataset: str,
    files: Sequence[RemoteFile],
    *,
    cache: Path | None = None,
    mirror: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring ``files`` into ``<cache>/<dataset>`` and return that folder; what is there and right is left alone.

    Args:
        dataset: name of the folder in the cache and in a mirror.
        files: what to fetch.
        cache: root of the cache; ``cache_dir()`` by default.
        mirror: a folder or http(s) address laid out as ``<mirror>/<dataset>/<file name>``; the publisher by default.
        progress: told of every chunk.

    Raises:
        DataError: if a file cannot be had, differs from every accepted version, or cannot be stored.
    """
    folder = (cache or cache_dir()) / dataset
    report = progress or (lambda name, done, total: None)
    packed: dict[str, list[RemoteFile]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            for file in files:
                if accepted(folder / file.name, file):
                    continue
                if file.member and not mirror:
                    packed.setdefault(file.url, []).append(file)
                else:
                    source = _in_mirror(mirror, dataset, file.name) if mirror else file.url
                    _download(source, folder / file.name, file.accepts, report)
            for url, members in packed.items():
                archive = folder / url.rpartition("/")[2]
                _download(url, archive, (), report)
                _unpack(archive, url, members)
    except OSError as error:  # errors of the network were turned into others: this one is of the local disk
        place = f"{error.filename or folder}: "
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{place}the disk is full; make room, or set {CACHE_VARIABLE} to a roomier folder"
            ) from error
        raise DataError(f"{place}{error.strerror}; set {CACHE_VARIABLE} to a folder you may write to") from error
    return folder


def _in_mirror(mirror: str | Path, dataset: str, name: str) -> str:
    if not _is_url(str(mirror)):
        return str(Path(mirror).expanduser() / dataset / name)
    return f"{str(mirror).rstrip('/')}/{urllib.parse.quote(dataset)}/{urllib.parse.quote(name)}"


def _is_url(location: str) -> bool:
    scheme, separator, _ = location.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise DataError(f"{location}: {scheme}:// is not supported; use an http(s) address or the path of a folder")
    return bool(separator)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock even if its holder is killed. No lock on Windows."""
    with (folder / ".lock").open("w") as handle:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that is fetching it", folder)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _download(location: str, target: Path, accepts: Sequence[Content], report: Progress) -> None:
    part, note = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.version")
    failures = most = 0
    restarted = False
    while True:
        try:
            tally, resumed = _pull(location, part, note, accepts, report)
        except _TransferError as error:
            size = part.stat().st_size if part.exists() else 0
            failures, most = (1 if size > most else failures + 1), max(most, size)
            if failures >= _ATTEMPTS:
                kept = f"the same command resumes after the {size:,} bytes that came; " if size else ""
                raise DataError(f"{location}: gave up after {failures} attempts: {error}; {kept}{_COPY}") from error
            log.info("%s: %s; trying again", location, error)
            time.sleep(_PAUSE * 2 ** (failures - 1))
            continue
        note.unlink(missing_ok=True)
        if tally.match() or not accepts:
            part.replace(target)
            return
        part.unlink()
        if restarted or not resumed:
            raise tally.mismatch(location)
        restarted = True  # the two halves may come from two versions of the file


def _pull(location: str, part: Path, note: Path, accepts: Sequence[Content], report: Progress) -> tuple[_Tally, bool]:
    """One transfer into ``part``, after what it already holds; also whether it held something that was kept."""
    tally = _Tally(accepts)
    if part.exists():
        tally.read(part)
        if tally.match() or tally.too_long:
            return tally, True
    answer = _open(location, tally.size, note.read_text() if note.exists() else "")
    with contextlib.closing(answer.stream), part.open("ab" if answer.start else "wb") as out:
        note.write_text(answer.validator)
        if not answer.start:
            tally = _Tally(accepts)
        report(part.stem, tally.size, answer.total)
        for chunk in tally.add(_chunks(answer.stream)):
            out.write(chunk)
            report(part.stem, tally.size, answer.total)
    if answer.total is not None and tally.size < answer.total and not tally.too_long:
        raise _TransferError(f"the connection was closed after {tally.size:,} of {answer.total:,} bytes")
    return tally, answer.start > 0


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from iter(lambda: stream.read(_CHUNK), b"")
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(f"{type(error).__name__}: {error}") from error


def _open(location: str, start: int, validator: str) -> _Answer:
    """``location`` from byte ``start`` on, or from the beginning where the server does not go along with that."""
    if not _is_url(location):
        try:
            return _Answer(Path(location).open("rb"), 0, Path(location).stat().st_size, "")
        except OSError as error:
            raise DataError(f"{location}: cannot be read ({error.strerror}); {_LAYOUT}") from error
    headers = {"User-Agent": "seqapp"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = _opener().open(urllib.request.Request(location, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return _open(location, 0, "")
        answer = f"the server answers {error.code} {error.reason}"
        if error.code in _TRANSIENT:
            raise _TransferError(answer) from error
        raise DataError(f"{location}: {answer}; {_COPY}; {_LAYOUT}") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise DataError(f"{location}: not a valid address ({error}); {_LAYOUT}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(f"cannot be reached ({getattr(error, 'reason', error)!s})") from error
    etag = response.headers.get("ETag", "W/")
    version = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return _Answer(response, 0, int(length) if length.isdigit() else None, version)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != start:
        response.close()
        return _open(location, 0, "")
    return _Answer(response, start, None if span[2] == "*" else int(span[2]), version)


def _opener() -> urllib.request.OpenerDirector:
    """As ``urllib.request.build_opener`` makes it, less ftp:, file: and data:, so that no redirect leads there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _unpack(archive: Path, url: str, files: Sequence[RemoteFile]) -> None:
    """Put ``files`` out of ``archive`` beside it, each checked, and remove it. No name in it becomes a path."""
    try:
        with contextlib.ExitStack() as stack:
            pack: Any = stack.enter_context((zipfile.ZipFile if zipfile.is_zipfile(archive) else tarfile.open)(archive))
            read = pack.open if isinstance(pack, zipfile.ZipFile) else pack.extractfile
            for file in files:
                target, tally = archive.with_name(file.name), _Tally(file.accepts)
                part = target.with_name(target.name + ".part")
                stream = read(file.member)
                if stream is None:
                    raise KeyError(f"{file.member} is not a file in it")
                with stream, part.open("wb") as out:
                    out.writelines(tally.add(_chunks(stream)))
                if not tally.match():
                    part.unlink()
                    raise tally.mismatch(f"{url}, member {file.member}")
                part.replace(target)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, KeyError, _TransferError) as error:
        raise DataError(f"{url}: not the expected archive, and removed: {error}; {_COPY}") from error
    finally:
        archive.unlink()
