"""Whether a text is in the language that a translator reads: told by its letters, from the training texts alone.

A gram is up to four letters of a word in lower case, where "_" stands for the edges of the word.
"""

from __future__ import annotations

import functools
import math
import random
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seqapp.data.tokenizers import clean
from seqapp.errors import BundleError

GRAMS = 20_000
"""Most grams kept of a language, the most frequent first."""
SURE = 20
"""Letters from which on a text can be told to be unlike a language."""

_ORDER = 4  # letters of the longest grams
_READ = 4096  # characters of a text that are looked at
_UNIFORM = 1 / 256  # probability of a letter of which nothing is known
_FOLDS = 10
_DRAWN = 1000  # made-up texts
_LENGTH = 40  # letters of each
_LONG = 80  # letters from which on a text is judged alike
_QUANTILE = 0.01
_FEW = 30  # words, too few to make texts of
_MARGIN = 6.0  # nats by which the other language must be the more likely one
_RARE = 0.01  # share of the letters of training below which their script is not one of them
_LARGEST = 1 << 20  # bytes
_WORD = re.compile(r"[^\W\d_]+")


def words(text: str) -> list[str]:
    """The words of the first 4096 characters of a text, letters composed (NFC) and in lower case."""
    return _WORD.findall(unicodedata.normalize("NFC", clean(text[:_READ])).lower())


@functools.lru_cache(1 << 12)
def script_of(letter: str) -> str:
    """The script of a letter by its name in Unicode: Latin, Greek, Cyrillic, Arabic, Hangul, CJK, ..."""
    first = unicodedata.name(letter, "unnamed").split()[0]
    return first if first == "CJK" else first.capitalize()


def scripts(letters: Iterable[str]) -> dict[str, float]:
    """The share of each script in ``letters``, the largest first."""
    counts = Counter(map(script_of, letters))
    return {script: count / counts.total() for script, count in counts.most_common()}


class Letters:
    """How likely the words of a language are, letter by letter, from counts of its grams.

    p(a | h) = (c(ha) + t(h) p(a | h')) / (c(h) + t(h)), where h are the letters before a, h' all of them but the first,
    c counts, and t is how many letters were seen after h (Witten & Bell 1991, interpolated); in the end 1/256.

    Args:
        counts: of the grams.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = counts
        self._after, self._kinds = Counter[str](), Counter[str]()
        for gram, count in counts.items():
            self._after[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1
        self._word = functools.lru_cache(1 << 14)(self._log_probability)

    @classmethod
    def of(cls, frequencies: Mapping[str, int]) -> Letters:
        """From words, each as often as the square root of its frequency, so that the subject of the texts counts less.

        Args:
            frequencies: of the words.
        """
        sums: dict[str, float] = defaultdict(float)
        for word, frequency in frequencies.items():
            for gram in _grams(word):
                for start in range(len(gram)):
                    sums[gram[start:]] += math.sqrt(frequency)
        kept = sorted(sums, key=lambda gram: (-sums[gram], len(gram), gram))[:GRAMS]
        return cls({gram: round(sums[gram]) for gram in kept})

    def score(self, words: Sequence[str]) -> float:
        """Mean log-likelihood of a letter of ``words`` in nats, where the end of a word is a letter as well."""
        return sum(map(self._word, words)) / sum(len(word) + 1 for word in words)

    def _log_probability(self, word: str) -> float:
        return sum(math.log(self._last(gram)) for gram in _grams(word))

    def _last(self, gram: str) -> float:
        """The probability of the last letter after the others."""
        probability = _UNIFORM
        for start in range(len(gram) - 1, -1, -1):
            before = gram[start:-1]
            kinds = self._kinds[before]
            if not kinds:
                break
            probability = (self.counts.get(gram[start:], 0) + kinds * probability) / (self._after[before] + kinds)
        return probability


@dataclass(frozen=True)
class Language:
    """A language as training showed it, and how far texts of it may be from what was seen.

    Args:
        letters: of all words of training.
        mean: nats a letter that ``letters`` gives to made-up texts of words it has not seen.
        spread: by how much the lowest hundredth of such texts of 40 letters is below; None where words were too few.
    """

    letters: Letters
    mean: float
    spread: float | None

    @classmethod
    def of(cls, texts: Iterable[str]) -> Language:
        """From texts of the language. A tenth of the words is set aside to find what unseen words are like."""
        frequencies = Counter(word for text in texts for word in words(text))
        held = sorted(word for word in frequencies if zlib.crc32(word.encode()) % _FOLDS == 0)
        letters = Letters.of(frequencies)
        if len(held) < _FEW:
            return cls(letters, 0.0, None)
        seen = Letters.of({word: count for word, count in frequencies.items() if zlib.crc32(word.encode()) % _FOLDS})
        chance = random.Random(0)
        scores = sorted(seen.score(_made_up(held, chance)) for _ in range(_DRAWN))
        mean = sum(scores) / _DRAWN
        return cls(letters, mean, mean - scores[int(_QUANTILE * _DRAWN)])

    def distance(self, words: Sequence[str]) -> float:
        """How unlike this language ``words`` are: 1 is as far as one in a hundred texts of it whose words are all new.

        A mean of few letters varies more, by the square root of their number, so a short text has to be further off; a
        long one need not be much nearer, for its subject may be another.
        """
        if self.spread is None:
            return 0.0
        size = min(sum(map(len, words)), _LONG)
        return (self.mean - self.letters.score(words)) / self.spread * math.sqrt(size / _LENGTH)


class LanguageProfile:
    """Tells when a text does not fit a translator.

    Args:
        names: codes of the languages translated from and into; "" where nobody named them.
        scripts: of the source texts.
        source: the language translated from.
        target: the language translated into.
    """

    def __init__(self, names: tuple[str, str], scripts: Sequence[str], source: Language, target: Language) -> None:
        self.names, self.scripts = names, tuple(scripts)
        self.source, self.target = source, target

    @classmethod
    def fit(cls, source_texts: Sequence[str], target_texts: Iterable[str], names: tuple[str, str]) -> LanguageProfile:
        """Learn both languages from the training texts; the same texts give the same profile."""
        shares = scripts(letter for text in source_texts for letter in text[:_READ] if letter.isalpha())
        common = [script for script, share in shares.items() if share >= _RARE]
        return cls(names, common, Language.of(source_texts), Language.of(target_texts))

    def notice(self, text: str) -> str | None:
        """A sentence on why ``text`` may be no text to translate, or None.

        Most of its letters are of a script that training did not show; or it looks like the target language; or, with
        20 letters and more, it is unlike the training texts, far more than other subjects are. Its first 4096
        characters are looked at.
        """
        found = words(text)
        letters = [letter for word in found for letter in word if letter.isalpha()]
        if not letters:
            return None
        source, target = self.names
        script, share = next(iter(scripts(letters).items()))
        if script not in self.scripts and share > 0.5:
            known = " and ".join(self.scripts) or "of no letters"
            return f"{share:.0%} of the letters are {script}; the {source or 'source'} texts of training are {known}"
        size = sum(len(word) + 1 for word in found)
        likelier = (self.target.letters.score(found) - self.source.letters.score(found)) * size
        if likelier > _MARGIN and self.target.distance(found) < 1:
            into = f"{target}, the language translated into," if target else "the language translated into"
            return f"the text looks like {into} and not like {source or 'the one translated from'}"
        if len(letters) >= SURE and self.source.distance(found) > 1:
            return f"the text is unlike the {source or 'source'} texts of training; its translation may mean nothing"
        return None

    def save(self, path: Path) -> None:
        """Write the profile as JSON."""
        stored = _Profile(
            names=self.names,
            scripts=list(self.scripts),
            source=_Language.of(self.source),
            target=_Language.of(self.target),
        )
        path.write_text(stored.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LanguageProfile:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: if the file cannot be read or holds something else.
        """
        try:
            with path.open("rb") as stream:
                content = stream.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise ValueError(f"longer than {_LARGEST} bytes")
            stored = _Profile.model_validate_json(content)
            return cls(stored.names, stored.scripts, stored.source.language(), stored.target.language())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleError(f"{path}: not the profile of two languages: {where or 'JSON'}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: not a readable profile of two languages: {error}") from None


def best(profiles: Sequence[LanguageProfile], text: str) -> int | None:
    """Which profile's source language ``text`` fits best, or None if the text has no letters or there is no profile."""
    found = words(text)
    if not found:
        return None
    likelihoods = [profile.source.letters.score(found) for profile in profiles]
    return max(range(len(profiles)), key=likelihoods.__getitem__, default=None)


class _Language(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    mean: Annotated[float, Field(ge=-100, le=0)]
    spread: Annotated[float, Field(gt=0, le=100)] | None
    grams: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")], str]
    """The grams that occur so many times, a space between them."""

    @classmethod
    def of(cls, language: Language) -> _Language:
        grams: dict[str, list[str]] = {}
        for gram, count in language.letters.counts.items():
            grams.setdefault(str(count), []).append(gram)
        joined = {count: " ".join(alike) for count, alike in grams.items()}
        return cls(mean=language.mean, spread=language.spread, grams=joined)

    def language(self) -> Language:
        counts = {gram: int(count) for count, alike in self.grams.items() for gram in alike.split(" ")}
        if any(not 1 <= len(gram) <= _ORDER for gram in counts):
            raise ValueError(f"grams have 1 to {_ORDER} letters")
        return Language(Letters(counts), self.mean, self.spread)


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    names: tuple[str, str]
    scripts: list[str]
    source: _Language
    target: _Language


def _grams(word: str) -> Iterator[str]:
    """For each letter of a word and its end the longest gram that ends there."""
    edged = f"_{word}_"
    return (edged[max(0, end - _ORDER) : end] for end in range(2, len(edged) + 1))


def _made_up(words: Sequence[str], chance: random.Random) -> list[str]:
    text: list[str] = []
    while sum(map(len, text)) < _LENGTH:
        text.append(chance.choice(words))
    return text
