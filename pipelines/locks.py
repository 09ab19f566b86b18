"""One process at a time on a folder. The system lets go of a lock even if its holder is killed. No locks on Windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqapp.errors import SeqappError

LOCK = "lock"


@contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of ``folder``.

    Args:
        folder: it stands.
        refusal: what a user is told if another process holds it.

    Raises:
        SeqappError: if another process holds it.
        OSError: if the folder cannot be written.
    """
    with (folder / LOCK).open("w") as handle:
        if not _take(handle.fileno(), shared=False):
            raise SeqappError(refusal)
        yield


def is_held(folder: Path) -> bool:
    """Whether another process, or another part of this one, holds the lock of ``folder``."""
    try:
        with (folder / LOCK).open() as handle:
            return not _take(handle.fileno(), shared=True)
    except OSError:
        return False


def _take(descriptor: int, *, shared: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
