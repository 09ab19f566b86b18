"""The words of the bundled corpus: what the tables beside this file say, read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from seqapp.data.grammar import english as en

Gender = Literal["m", "f", "n"]
Case = Literal["nominative", "accusative", "dative", "genitive"]

GENDERS: dict[str, Gender] = {"der": "m", "die": "f", "das": "n"}
CASES: dict[str, Case] = {"acc": "accusative", "dat": "dative"}


@dataclass(frozen=True, slots=True)
class Words:
    """The same in both languages."""

    english: str
    german: str


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """``german`` is the nominative singular; without a plural (``""``) it names a substance."""

    english: str
    english_plural: str
    german: str
    gender: Gender
    genitive: str
    german_plural: str
    classes: frozenset[str]

    @property
    def weak(self) -> bool:
        """Ends in -n or -en in every case but the nominative: der Junge, den Jungen."""
        return self.gender == "m" and self.genitive in ("-n", "-en")


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """Comparatives and superlatives are stems; ``""`` where there is none."""

    english: str
    english_comparative: str
    english_superlative: str
    german: str
    german_comparative: str
    german_superlative: str
    classes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Slot:
    """One complement of a verb: a noun phrase in ``case``, after ``preposition`` if any."""

    case: Case
    preposition: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb with its complements.

    Args:
        english: base form.
        past: English past tense.
        participle: English past participle.
        tail: what follows the English verb: a preposition, a particle, a noun; ``one's`` stands for a possessive.
        prefix: the separable prefix of the German verb.
        infinitive: of the German verb, without the separable prefix.
        present: German third person singular where the stem changes, else ``""``.
        german_participle: with its prefix.
        auxiliary: of the German perfect, haben or sein.
        reflexive: the case of the German reflexive pronoun, if there is one.
        fixed: German words that stand where an accusative does, such as "die Hände".
        aspect: going, done, befalls, timed, state, or what only some patterns use.
        subjects: classes of what may be the subject.
        slots: noun phrases that complete it.
        where: how a place completes it: ``at``, ``to``, ``(at)`` when it may, or ``""``.
        places: classes of those places.
    """

    english: str
    past: str
    participle: str
    tail: str
    prefix: str
    infinitive: str
    present: str
    german_participle: str
    auxiliary: str
    reflexive: Case | None
    fixed: str
    aspect: str
    subjects: tuple[str, ...]
    slots: tuple[Slot, ...]
    where: str
    places: tuple[str, ...]

    @property
    def german(self) -> str:
        """The infinitive with its prefix."""
        return self.prefix + self.infinitive


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Two adverbials: where something is, and where it goes (``None`` where nothing does)."""

    at: Words
    to: Words | None
    classes: frozenset[str]


@cache
def nouns() -> tuple[Noun, ...]:
    """Every noun."""
    return tuple(_noun(*row) for row in _rows("nouns.tsv"))


@cache
def nouns_of(classes: tuple[str, ...]) -> tuple[Noun, ...]:
    """The nouns that are of one of ``classes``, or are named there in English."""
    wanted = set(classes)
    return tuple(noun for noun in nouns() if wanted & noun.classes or noun.english in wanted)


@cache
def noun(english: str) -> Noun:
    """The noun by its English singular."""
    return next(noun for noun in nouns() if noun.english == english)


@cache
def adjectives() -> tuple[Adjective, ...]:
    """Every adjective."""
    return tuple(_adjective(*row) for row in _rows("adjectives.tsv"))


@cache
def adjectives_for(noun: Noun) -> tuple[Adjective, ...]:
    """The adjectives that make sense with ``noun``."""
    return tuple(one for one in adjectives() if noun.classes & one.classes or noun.english in one.classes)


@cache
def verbs() -> tuple[Verb, ...]:
    """Every verb."""
    return tuple(_verb(*row) for row in _rows("verbs.tsv"))


@cache
def verb(english: str, german: str) -> Verb:
    """The verb by its English base form and its German infinitive."""
    return next(verb for verb in verbs() if (verb.english, verb.german) == (english, german))


@cache
def places() -> tuple[Place, ...]:
    """Every place."""
    return tuple(
        Place(Words(at, dort), Words(to, dorthin) if to != "-" else None, frozenset(classes.split()))
        for at, dort, to, dorthin, classes in _rows("places.tsv")
    )


@cache
def places_of(classes: tuple[str, ...]) -> tuple[Place, ...]:
    """The places that are of one of ``classes``."""
    wanted = set(classes)
    return tuple(place for place in places() if wanted & place.classes)


@cache
def words(kind: str) -> tuple[Words, ...]:
    """The words of ``kind`` in words.tsv, such as ``weekday``."""
    return tuple(Words(english, german) for english, german, of in _rows("words.tsv") if of == kind)


def counts() -> dict[str, int]:
    """How many entries there are of each sort."""
    return {
        "nouns": len(nouns()),
        "verbs": len(verbs()),
        "adjectives": len(adjectives()),
        "places": len(places()),
        "other words": len(list(_rows("words.tsv"))),
    }


def _rows(name: str) -> Iterator[list[str]]:
    text = (resources.files("seqapp.data.grammar") / name).read_text(encoding="utf-8")
    return (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))


def _noun(english: str, german: str, genitive: str, plural: str, classes: str) -> Noun:
    singular, _, irregular = english.partition("/")
    article, _, german = german.partition(" ")
    german_plural = "" if plural == "-" else plural
    tags = frozenset(classes.split())
    if "person" in tags and not tags & {"young", "pupil"}:
        tags |= {"adult"}
    return Noun(
        singular,
        irregular or en.regular_plural(singular),
        german,
        GENDERS[article],
        genitive,
        german_plural,
        tags,
    )


def _adjective(english: str, german: str, classes: str) -> Adjective:
    from seqapp.data.grammar import german as de  # it reads the numbers from here

    base, *degrees = english.split("/")
    stem, *stems = german.split("/")
    if degrees in (["-"], ["more"]):
        degrees = ["", ""] if degrees == ["-"] else [f"more {base}", f"most {base}"]
    comparative, superlative = degrees or en.compared(base)
    german_comparative, german_superlative = ["", ""] if not comparative else stems or de.compared(stem)
    tags = frozenset(classes.split(","))
    return Adjective(base, comparative, superlative, stem, german_comparative, german_superlative, tags)


def _verb(english: str, german: str, complements: str, aspect: str, subjects: str, objects: str) -> Verb:
    head, _, tail = english.partition(" ")
    base, *irregular = head.split("/")
    forms = german.split()
    reflexive: Case | None = None
    if forms[0] in ("sich", "sich3"):
        reflexive = "accusative" if forms.pop(0) == "sich" else "dative"
    fixed = forms.pop(0).replace("_", " ") if "_" in forms[0] else ""
    auxiliary = "sein" if forms[-1] == "sein" and len(forms) > 2 else "haben"
    forms = forms[:-1] if auxiliary == "sein" else forms
    prefix, _, infinitive = forms[0].rpartition("|")
    slots, where = [], ""
    at: tuple[str, ...] = ()
    for complement, classes in zip(complements.split(), objects.split(), strict=True):
        if complement in ("at", "(at)", "to"):
            where, at = complement, tuple(classes.split(","))
        elif complement != "-":
            preposition, _, case = complement.rpartition("+")
            slots.append(Slot(CASES[case], preposition, tuple(classes.split(","))))
    return Verb(
        base,
        irregular[0] if irregular else en.regular_past(base),
        irregular[1] if irregular else en.regular_past(base),
        tail,
        prefix,
        infinitive,
        forms[1] if len(forms) == 3 else "",
        forms[-1],
        auxiliary,
        reflexive,
        fixed,
        aspect,
        tuple(subjects.split(",")),
        tuple(slots),
        where,
        at,
    )
