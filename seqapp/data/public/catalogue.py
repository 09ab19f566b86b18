"""The catalogue of public data sets: where each comes from, and what its files must be.

Nothing is downloaded while a source is built: ``seqapp data fetch NAME`` does that, once and when asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from seqapp.data.download import MIRROR_VARIABLE, Content, Progress, RemoteFile, accepted, cache_dir, fetch
from seqapp.errors import DataError
from seqapp.registry import suggest


@dataclass(frozen=True)
class PublicDataset:
    """One entry of the catalogue.

    Args:
        name: as in ``seqapp data fetch NAME``, and the kind of the data source.
        title: in full.
        task: what it is good for.
        examples: how many, in words.
        licence: a note on what it may be used for.
        citation: the paper to cite.
        homepage: of the publisher.
        files: what to fetch; the first accepted version of each is the publisher's.
    """

    name: str
    title: str
    task: str
    examples: str
    licence: str
    citation: str
    homepage: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class DatasetRow:
    """One line of ``seqapp data list``; ``size`` is in bytes."""

    name: str
    title: str
    examples: str
    size: int
    licence: str
    fetched: bool


PUBLIC: dict[str, PublicDataset] = {}
"""The data sets by name; the file that reads one adds it."""


def packed(url: str, *members: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    """The files of one archive at ``url``, each as (path in it, size in bytes, SHA-256)."""
    return tuple(
        RemoteFile(member.rpartition("/")[2], url, (Content(f"sha256:{sha256}", size),), member)
        for member, size, sha256 in members
    )


def fetch_dataset(
    name: str, *, mirror: str | Path | None = None, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """Fetch the public data set ``name`` and return the folder that holds it.

    Args:
        name: a key of ``PUBLIC``.
        mirror: a folder or http(s) address to fetch from; by default what ``SEQAPP_DATA_MIRROR`` names, or else the
            publisher.
        cache: root of the cache; ``cache_dir()`` by default.
        progress: called with the file name, the bytes done, and the bytes in all or None.

    Raises:
        DataError: if there is no such data set, or it cannot be fetched, verified or stored.
    """
    if name not in PUBLIC:
        raise DataError(f"no public data set is called {name!r}; {suggest(name, list(PUBLIC))}")
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    return fetch(name, PUBLIC[name].files, cache=cache, mirror=mirror, progress=progress)


def describe_datasets(cache: Path | None = None) -> list[DatasetRow]:
    """A row for each public data set.

    Args:
        cache: root of the cache; ``cache_dir()`` by default.
    """
    rows = []
    for name, dataset in PUBLIC.items():
        paths = [((cache or cache_dir()) / name / file.name, file.accepts) for file in dataset.files]
        # sizes tell enough for a list; contents are verified whenever a source is built
        fetched = all(path.is_file() and path.stat().st_size in {one.size for one in fits} for path, fits in paths)
        size = sum(path.stat().st_size if fetched else fits[0].size for path, fits in paths)
        rows.append(DatasetRow(name, dataset.title, dataset.examples, size, dataset.licence, fetched))
    return rows


def fetched_files(name: str) -> tuple[Path, list[Content]]:
    """The folder of a data set, and which version of each file it holds.

    Raises:
        DataError: if a file is not there or damaged.
    """
    folder, versions = cache_dir() / name, []
    for file in PUBLIC[name].files:
        version = accepted(folder / file.name, file)
        if version is None:
            state = "damaged" if (folder / file.name).exists() else "not there"
            raise DataError(f"data set {name!r}: {folder / file.name} is {state}; run: seqapp data fetch {name}")
        versions.append(version)
    return folder, versions
