"""Translation memories: TMX 1.1 to 1.4b (LISA 2005), read a unit at a time."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from seqapp.data.rows import FOREIGN, open_file
from seqapp.errors import DataError

_CHUNK = 1 << 16  # bytes
_CODES = ("bpt", "ept", "it", "ph", "ut")
"""Elements of a segment that hold the markup of another format; those not named here, such as hi, hold text."""
_log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """One translation unit: the line it starts at, and its segments by language, as it is written there."""

    line: int
    segments: dict[str, str]


def read_tmx(path: str | Path, languages: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """The segments of two languages, as (line of the unit, source, target), one unit after the other.

    A code such as "en" fits "en-US" as well, but exact ones go first; of several segments that fit, the first counts.
    Markup of other formats inside a segment is left out. Units that lack a language are left out, with a warning.

    Args:
        path: the file; it may be gzip-compressed (.tmx.gz). Its XML declaration tells the encoding.
        languages: codes of source and target, as in BCP 47.

    Raises:
        DataError: naming file and line, if it is no well-formed TMX, if it declares entities of its own, which could
            grow without bound, or if no unit has both languages.
    """
    found, lacking, first = 0, 0, 0
    seen: Counter[str] = Counter()
    for unit in _units(Path(path)):
        seen.update(unit.segments.keys())
        source, target = (_segment(unit, code) for code in languages)
        if source is not None and target is not None:
            found += 1
            yield unit.line, source, target
        else:
            first = first if lacking else unit.line
            lacking += 1
    both = " and ".join(languages)
    if not found:
        there = ", ".join(f"{code} ({count:,})" for code, count in seen.most_common()) or "none"
        raise DataError(f"{path}: no translation unit is in both {both}; the languages in it are {there}")
    if lacking:
        what = "unit(s) left out, for they are not in both"
        _log.warning("%s: %d of %d %s %s; the first in line %d", path, lacking, found + lacking, what, both, first)


def _segment(unit: Unit, wanted: str) -> str | None:
    codes = [(code.lower().replace("_", "-"), segment) for code, segment in unit.segments.items()]
    exact = [segment for code, segment in codes if code == wanted.lower()]
    near = [segment for code, segment in codes if code.startswith(f"{wanted.lower()}-")]
    return next(iter(exact + near), None)


def _units(path: Path) -> Iterator[Unit]:
    with open_file(path) as stream:
        reader, chunk = _Reader(path), b"start"
        started = False
        while chunk:
            try:
                chunk = stream.read(_CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                where = f"{path}:{reader.parser.CurrentLineNumber}"
                raise DataError(f"{where}: cannot be read, cut off or damaged: {error}") from None
            for start, problem in FOREIGN.items():
                if not started and chunk.startswith(start):
                    raise DataError(f"{path}: the file {problem.partition(';')[0]}; TMX, which is XML, would fit")
            started = True
            yield from reader.read(chunk)


class _Reader:
    """What has been read of a file so far: the unit, and in it the language and the segment."""

    def __init__(self, path: Path) -> None:
        self.path, self.units = path, list[Unit]()
        self.unit, self.language = Unit(0, {}), ""
        self.segment: list[str] | None = None
        self.root, self.codes = "", 0
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text
        self.parser.EntityDeclHandler = lambda name, *_: self.refuse(f"the file declares an entity, {name}")
        # Expat skips an unknown entity in silence where a DOCTYPE names a file that could declare it.
        self.parser.SkippedEntityHandler = lambda name, _: self.refuse(f"the entity &{name}; is not known")

    def read(self, chunk: bytes) -> list[Unit]:
        """The units that end in ``chunk``; an empty one is the end of the file."""
        self.units = []
        try:
            self.parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            what = f"{expat.ErrorString(error.code)} (column {error.offset + 1})"
            raise DataError(f"{self.path}:{error.lineno}: not well-formed XML: {what}; TMX would fit") from None
        except (ValueError, LookupError) as error:  # an encoding of several bytes a character, or an unknown one
            raise DataError(f"{self.path}:1: cannot be read: {error}; UTF-8 would fit") from None
        return self.units

    def refuse(self, problem: str) -> None:
        where = f"{self.path}:{self.parser.CurrentLineNumber}"
        raise DataError(f"{where}: {problem}; write the characters themselves, or as &#NUMBER;")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.root and name != "tmx":
            raise DataError(f"{self.path}:{self.parser.CurrentLineNumber}: <{name}> is not TMX; a root <tmx> would fit")
        self.root = self.root or name
        if self.segment is not None:
            self.codes += name in _CODES or self.codes > 0
        elif name == "tu":
            self.unit = Unit(self.parser.CurrentLineNumber, {})
        elif name == "tuv":
            self.language = attributes.get("xml:lang", attributes.get("lang", ""))
        elif name == "seg":
            self.segment = []

    def end(self, name: str) -> None:
        if self.codes:
            self.codes -= 1
        elif name == "seg" and self.segment is not None:
            self.unit.segments.setdefault(self.language, "".join(self.segment))
            self.segment = None
        elif name == "tu":
            self.units.append(self.unit)

    def text(self, characters: str) -> None:
        if self.segment is not None and not self.codes:
            self.segment.append(characters)
