"""What a tracking server has told and given is kept, so that a server can start while it is down.

    CACHE/models/REGISTRY/bundles/NAME-VERSION-KEY/   bundles, the last few of each name
    CACHE/models/REGISTRY/meant/KEY.json              what a MODEL reference last meant, and when that was told

Several processes may use one cache: what is written appears whole or not at all. A bundle is read by its digests only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from seqapp import bundle, references
from seqapp.data.download import cache_dir
from seqapp.errors import BundleError, SeqappError
from seqapp.references import Target, Unreachable, tracking_uri

log = logging.getLogger(__name__)

T = TypeVar("T")

DRAFT = ".draft-"
LEFT_BEHIND = 86_400
"""Seconds after which a draft is one that a killed process has left."""


class Cache:
    """The cache of the tracking server that ``MLFLOW_TRACKING_URI`` names.

    Args:
        folder: where to keep things; by default ``models`` in ``SEQAPP_CACHE`` or the user's cache folder.
        keep: how many versions of one name.

    Raises:
        SeqappError: if no folder is given, and the user has none.
    """

    def __init__(self, folder: Path | None = None, keep: int = 5) -> None:
        try:
            self._root = (folder or cache_dir() / "models") / _digest(tracking_uri())
        except RuntimeError:
            raise SeqappError("there is no home folder to keep models in; SEQAPP_CACHE names another") from None
        self._keep = keep
        self.trouble = ""
        """Why the tracking server did not answer when it was last asked in vain."""

    def locate(self, reference: str) -> tuple[Target, str]:
        """What ``reference`` means, and since when nobody could say more: "" if the tracking server says it now.

        Raises:
            ReferenceNotFound: if the tracking server does not know it.
            Unreachable: if it does not answer and never told.
        """
        told, since = self._asked(reference, lambda: asdict(references.locate(reference)))
        try:
            return Target(**told), since
        except TypeError:
            raise Unreachable(f"{self.trouble}; what the cache knows of {reference} is damaged") from None

    def champions(self) -> tuple[list[str], str]:
        """As :meth:`locate`, ``name@champion`` of every registered model that has one."""
        told, since = self._asked("every champion", references.champions)
        if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
            raise Unreachable(f"{self.trouble}; what the cache knows of champions is damaged")
        return told, since

    def fetch(self, target: Target) -> Path:
        """The bundle directory of ``target``, downloaded unless it is here and sound.

        Raises:
            BundleError: if what was downloaded is damaged.
            ReferenceNotFound: if there is no such bundle.
            Unreachable: if it is not here and cannot be had.
        """
        folder = self._root / "bundles"
        path = folder / f"{_plain(target.name)}-{target.version}-{_digest(f'{target.uri} {target.stamp}')}"
        damaged = ""
        if path.is_dir():
            try:
                bundle.verify(path)
                with suppress(OSError):
                    os.utime(path)
                return path
            except BundleError as error:
                damaged = f"the copy in the cache is damaged ({error}), and "
                log.warning("%s is fetched again: %s", target.uri, error)
                shutil.rmtree(path, ignore_errors=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
        except OSError as error:
            log.warning("%s is not kept for a time without tracking server: %s", target.uri, error)
            return references.download(target)
        try:
            found = references.download(target, draft)
            bundle.verify(found)
            try:
                os.replace(found, path)
            except OSError:  # another process was quicker
                bundle.verify(path)
        except Unreachable as error:
            raise Unreachable(f"{damaged}{error}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._forget_old(path)
        return path

    def _asked(self, what: str, ask: Callable[[], T]) -> tuple[T, str]:
        file = self._root / "meant" / f"{_digest(what)}.json"
        try:
            told = ask()
        except Unreachable as error:
            self.trouble = str(error)
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
                return kept["told"], kept["when"]
            except (OSError, ValueError, KeyError, TypeError):
                pass
            raise
        try:
            _write(file, {"what": what, "told": told, "when": datetime.now(UTC).isoformat(timespec="seconds")})
        except OSError as error:
            log.warning("what %r means is not kept for a time without tracking server: %s", what, error)
        return told, ""

    def _forget_old(self, newest: Path) -> None:
        """Remove all but the last few versions of the name of ``newest``; a loaded model needs no files any more."""
        name = newest.name.rsplit("-", 2)[0]
        with suppress(OSError):
            age = {path: path.stat().st_mtime for path in newest.parent.iterdir()}
            same = [path for path in age if path.name.rsplit("-", 2)[0] == name]
            left = [path for path in age if path.name.startswith(DRAFT) and time.time() - age[path] > LEFT_BEHIND]
            for path in [*sorted(same, key=age.__getitem__, reverse=True)[self._keep :], *left]:
                shutil.rmtree(path, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(name: str) -> str:
    """``name`` as part of a file name; names that come out alike are told apart by the key behind them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80].lstrip(".")


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=DRAFT, dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        os.replace(draft, file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
