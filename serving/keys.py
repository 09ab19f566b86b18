"""The keys of those who may call, and the file that knows them.

A key is 256 random bits, so nobody can guess it, and a plain SHA-256 of it tells nothing. Slow hashes (bcrypt, argon2)
are for passwords, of which an attacker who has the hash can try likely ones; no key is likelier than another. A slow
hash would only make each request cost milliseconds.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from seqapp.errors import SeqappError
from seqapp.registry import suggest

log = logging.getLogger(__name__)

PREFIX = "seqapp_"
"""Begins every key, so that programs that look for leaked keys find it."""
MOST_CHARACTERS = 256
"""A longer key is not hashed, since it is none of ours."""
FRESH_SECONDS = 1.0
"""So long a key that was taken out of the file may still work."""
ROLES = ("user", "admin")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Key(NamedTuple):
    """What is known of a key; the key itself is not."""

    name: str
    digest: str
    role: str
    expires: date | None

    @property
    def expired(self) -> bool:
        """Whether its last day (UTC) is over."""
        return self.expires is not None and datetime.now(UTC).date() > self.expires

    def __str__(self) -> str:
        return f"{self.name} {self.digest} {self.role} {self.expires or 'never'}"


class Keys:
    """The keys of a file, read again when it changes: one line each, ``NAME SHA256 ROLE EXPIRES``; # begins a comment.

    Args:
        file: made by ``python -m serving key new``.

    Raises:
        SeqappError: if it cannot be read, holds no key, has a line that does not fit, or may be written by others.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stamp: tuple[int, ...] = ()
        self._checked = monotonic()
        keys, wrong = self._read()
        if wrong:
            raise SeqappError(wrong[0])
        if not keys:
            raise SeqappError(f"{file} holds no key; `python -m serving key new NAME --keys {file}` makes one")
        self._table = _table(keys)

    def find(self, presented: str) -> Key | None:
        """Whose key it is, if it is one and has not expired."""
        now = monotonic()
        if now - self._checked >= FRESH_SECONDS:
            self._checked = now
            self._refresh()
        if len(presented) > MOST_CHARACTERS:
            return None
        digest = _digest(presented)
        # The table is entered by a few bits of the digest, which a caller cannot choose; the rest takes constant time.
        for key in self._table.get(digest[:8], ()):
            if compare_digest(key.digest, digest):
                return None if key.expired else key
        return None

    def _refresh(self) -> None:
        """Read the file again if it is another. What cannot be read lets nobody in: a key may have been revoked."""
        try:
            if self._stamp == _stamp(self.file):
                return
            keys, wrong = self._read()
        except (OSError, SeqappError) as error:
            keys, wrong, self._stamp = [], [f"no key is taken: {error}"], ()
            if not self._table:
                return
        for problem in wrong:
            log.error("%s", problem)
        log.info("%s: %d keys", self.file, len(keys))
        self._table = _table(keys)

    def _read(self) -> tuple[list[Key], list[str]]:
        """The keys, and what is wrong with other lines."""
        try:
            stamp = _stamp(self.file)
            text = self.file.read_text(encoding="utf-8")
            mode = self.file.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise SeqappError(f"the file of keys {self.file} cannot be read: {error}; "
                              "`python -m serving key new NAME` makes one") from None  # fmt: skip
        if mode & 0o022:
            raise SeqappError(f"{self.file} may be written by other users, who could add keys; `chmod 600` mends it")
        keys, wrong = parse(text, str(self.file))
        self._stamp = stamp
        return keys, wrong


def parse(text: str, where: str) -> tuple[list[Key], list[str]]:
    """The keys of a file's text, and a sentence for each line that does not fit.

    Args:
        text: the lines.
        where: what a sentence calls the file.
    """
    keys: dict[str, Key] = {}
    wrong = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key(words)
            if key.name in keys:
                raise ValueError(f"{key.name} stands there twice")
            keys[key.name] = key
        except ValueError as error:
            wrong.append(f"{where}, line {number}: {error}; NAME SHA256 user|admin YYYY-MM-DD|never fits")
    return list(keys.values()), wrong


def _key(words: Sequence[str]) -> Key:
    if len(words) != 4:
        raise ValueError(f"{len(words)} words")
    name, digest, role, expires = words
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name; letters, digits, points, - and _ fit")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("the second word is no SHA-256 of 64 hexadecimal digits")
    if role not in ROLES:
        raise ValueError(f"no role is called {role[:80]!r}; {suggest(role[:80], ROLES)}")
    return Key(name, digest, role, None if expires == "never" else date.fromisoformat(expires))


def _table(keys: Iterable[Key]) -> dict[str, list[Key]]:
    table: dict[str, list[Key]] = {}
    for key in keys:
        table.setdefault(key.digest[:8], []).append(key)
    return table


def _digest(presented: str) -> str:
    return hashlib.sha256(presented.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def main(arguments: Sequence[str], program: str = "python -m serving") -> int:
    """``python -m serving key new|list|revoke``.

    Args:
        arguments: those after ``key``.
        program: what was typed before ``key``.

    Returns:
        0, or 1 with a sentence on stderr.
    """
    parser = argparse.ArgumentParser(prog=f"{program} key", description="The keys of those who may call.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key; it is shown once, and only its SHA-256 is kept")
    new.add_argument("name", metavar="NAME", help="who will use it, as logs and limits call them")
    new.add_argument("--admin", action="store_true", help="it may also reload models")
    new.add_argument("--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="last day (UTC); default: never")
    listed = commands.add_parser("list", help="show names, roles and last days")
    revoke = commands.add_parser("revoke", help="take a key away; running servers notice within a second")
    revoke.add_argument("name", metavar="NAME")
    for command in (new, listed, revoke):
        command.add_argument("--keys", type=Path, default=os.environ.get("SEQAPP_KEYS") or "keys", metavar="FILE",
                             help="the file (default: SEQAPP_KEYS, or keys in this folder)")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        file = Path(given.keys)
        if given.command == "new":
            print(create(file, given.name, admin=given.admin, expires=given.expires))
            print(f"This is the only time the key is shown. {file} keeps its SHA-256.", file=sys.stderr)
        elif given.command == "revoke":
            remove(file, given.name)
        else:
            for key in _known(file):
                print(f"{key.name}\t{key.role}\t{key.expires or 'never'}" + ("\texpired" if key.expired else ""))
    except (SeqappError, OSError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    return 0


def create(file: Path, name: str, *, admin: bool = False, expires: date | None = None) -> str:
    """Make a key and add it to ``file``, which appears with mode 600 if it is not there.

    Args:
        file: of the keys.
        name: who will use it.
        admin: it may also reload models.
        expires: the last day it works, UTC.

    Returns:
        the key, which nothing keeps.

    Raises:
        SeqappError: if the name does not fit or is taken, the last day is over, or the file does not fit.
    """
    if not _NAME.fullmatch(name):
        raise SeqappError(f"{name[:80]!r} is no name of a key; letters, digits, points, - and _ fit, 64 at most")
    presented = f"{PREFIX}{secrets.token_urlsafe(32)}"
    key = Key(name, _digest(presented), ROLES[admin], expires)
    if key.expired:
        raise SeqappError(f"the last day of the key would be {expires}, which is over; {datetime.now(UTC).date()} or "
                          "a later day fits")  # fmt: skip
    with _locked(file, os.O_CREAT) as descriptor:
        if any(known.name == name for known in _known(file)):
            raise SeqappError(f"{file} has a key called {name!r} already; revoke it first, or choose another name")
        whole = file.read_bytes()[-1:] in (b"", b"\n")
        # One small write at the end: a server reads whole lines.
        os.write(descriptor, f"{'' if whole else chr(10)}{key}\n".encode())
    return presented


def remove(file: Path, name: str) -> None:
    """Take the key called ``name`` out of ``file``, which keeps its owner and its mode.

    Raises:
        SeqappError: if there is none, or the file does not fit.
    """
    with _locked(file):
        names = [key.name for key in _known(file)]
        if name not in names:
            raise SeqappError(f"{file} has no key called {name[:80]!r}; {suggest(name[:80], names)}")
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        _replace(file.resolve(), "".join(line for line in lines if line.split()[:1] != [name]))


@contextmanager
def _locked(file: Path, flags: int = 0) -> Iterator[int]:
    """``file``, open to be added to, while nobody else edits it; a server reads it all the same."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            raise SeqappError(f"the file of keys {file} cannot be edited: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            there = False
            with suppress(FileNotFoundError):
                there = os.path.samestat(os.fstat(descriptor), file.stat())
            if there:  # and has not been replaced since it was opened
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _known(file: Path) -> list[Key]:
    try:
        keys, wrong = parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SeqappError(f"the file of keys {file} cannot be read: {error}") from None
    if wrong:
        raise SeqappError(wrong[0])
    return keys


def _replace(file: Path, text: str) -> None:
    """Write ``file`` whole or not at all; a server may read it at this moment, as another user."""
    before = file.stat()
    descriptor, draft = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)  # of mode 600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            try:
                os.fchown(descriptor, before.st_uid, before.st_gid)
            except PermissionError:
                raise SeqappError(f"{file} belongs to another user or group, and would not any more; its owner "
                                  "or root may edit it") from None  # fmt: skip
            os.fchmod(descriptor, before.st_mode & 0o7777)
            out.write(text)
            out.flush()
            os.fsync(descriptor)
        os.replace(draft, file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
