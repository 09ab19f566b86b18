"""Choosing what to say: nouns, verbs and adjectives that make sense together, and which of them met."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from seqapp.data.grammar import lexicon
from seqapp.data.grammar.lexicon import Adjective, Noun, Verb, Words
from seqapp.data.grammar.phrases import PRONOUNS, Both, Clause, Name, Nominal, Phrase, Pronoun, Tense

T = TypeVar("T")

OWNED = {"family", "pet", "device", "clothing", "bag", "carried", "vehicle", "instrument", "home", "written", "toy"} | {
    "furniture",
    "jewel",
    "picture",
    "thing",
    "idea",
    "plan",
}
OWNERS = ("my", "your", "his", "her", "our")
NUMBERS = lexicon.words("number")[:11]


@cache
def verbs_of(aspects: tuple[str, ...], slots: int | None = None, subject: str = "") -> tuple[Verb, ...]:
    """The verbs of one of ``aspects``; with so many ``slots``, and with subjects of class ``subject``, if given."""
    return tuple(
        verb
        for verb in lexicon.verbs()
        if verb.aspect in aspects
        and (slots is None or len(verb.slots) == slots)
        and (not subject or subject in verb.subjects)
    )


@cache
def kinds(noun: Noun) -> tuple[str, ...]:
    """The determiners that the noun may have as an object; the plain ones more often than the others."""
    owned = ("own", "own") if OWNED & noun.classes else ()
    if "family" in noun.classes:
        return (*owned, "my", "your", "his", "her", "our")
    if not noun.german_plural:
        return ("", "", "", "the")
    return ("the", "the", "a", "a", "a", "this", *owned)


def _others(pronoun: Pronoun, subject: Nominal) -> bool:
    """Whether the two are different people, as the words alone tell."""
    person, other = pronoun.agreement, subject.agreement
    return (person, pronoun.gender) != (other, subject.gender) if person[0] == "3" else person[0] != other[0]


class Draw:
    """Random choices, and the combinations of words that came of them.

    Args:
        chance: makes every choice.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.combinations: list[str] = []

    def one(self, of: Sequence[T]) -> T:
        return of[int(self.chance.random() * len(of))]

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    def until(self, make: Callable[[], T], fits: Callable[[T], bool]) -> T:
        """The first that ``fits``; combinations of the others are forgotten."""
        kept = len(self.combinations)
        while not fits(made := make()):
            del self.combinations[kept:]
        return made

    def met(self, sort: str, first: str, second: str) -> None:
        """Note that two words stand together in what is said."""
        self.combinations.append(f"{sort}: {first} + {second}")

    def word(self, kind: str) -> Words:
        return self.one(lexicon.words(kind))

    def noun(self, *classes: str) -> Noun:
        return self.one(lexicon.nouns_of(classes))

    def adjective(self, noun: Noun, compared: bool = False) -> Adjective:
        """One that goes with ``noun``, and has a comparative if ``compared``."""
        found = lexicon.adjectives_for(noun)
        adjective = self.one([one for one in found if one.english_comparative] if compared else found)
        self.met("adjective and noun", adjective.german, noun.german)
        return adjective

    def phrase(self, noun: Noun, determiner: str = "the", adjective: float = 0.3, plural: bool | float = 0.0) -> Phrase:
        """``noun`` with an adjective and in the plural, each with its probability."""
        many = "paired" in noun.classes or self.maybe(plural)
        many = many and bool(noun.german_plural) and determiner != "every" and "single" not in noun.classes
        return Phrase(noun, determiner, self.adjective(noun) if self.maybe(adjective) else None, many)

    def pronoun(self) -> Pronoun:
        return self.one(PRONOUNS)

    def name(self) -> Name:
        kind = self.one(("woman", "man", "woman", "man", "woman", "man", "mister", "missis"))
        return Name(self.word(kind), "f" if kind in ("woman", "missis") else "m")

    def person(self, adjective: float = 0.15) -> Phrase:
        """Somebody known: the baker, my sister."""
        noun = self.noun("person")
        if "family" in noun.classes:
            return self.phrase(noun, self.one(OWNERS), adjective)
        return self.phrase(noun, "the", adjective, plural=0.25)

    def subject(self, verb: Verb) -> Nominal:
        """What may be the subject of ``verb``."""
        if {"person", "adult"} & set(verb.subjects):
            drawn = self.chance.random()
            if drawn < 0.25:
                return self.pronoun()
            if drawn < 0.4:
                return self.name()
        noun = self.noun(*verb.subjects)
        determiner = self.one(OWNERS) if "family" in noun.classes else "the"
        subject = self.phrase(noun, determiner, 0.2, plural=0.25)
        self.met("subject and verb", noun.german, verb.german)
        return subject

    def does(self, subject: Nominal, verb: Verb) -> None:
        """Note that the nouns of ``subject`` meet ``verb``."""
        for one in (subject.first, subject.second) if isinstance(subject, Both) else (subject,):
            if isinstance(one, Phrase):
                self.met("subject and verb", one.noun.german, verb.german)

    def filler(self, verb: Verb, slot: int, subject: Nominal, definite: bool = False) -> Nominal:
        """What may fill the slot of ``verb``; never the same person as ``subject``."""
        classes = verb.slots[slot].classes
        if "person" in classes and self.maybe(0.3):
            pronoun = self.pronoun()
            if _others(pronoun, subject):
                self.met("verb and object", verb.german, pronoun.word)
                return pronoun
            if not isinstance(subject, Name):
                return self.name()
        noun = self.noun(*classes)
        while isinstance(subject, Phrase) and noun is subject.noun:
            noun = self.noun("person", *classes)
        determiner = self.one(kinds(noun))
        if determiner == "own" and verb.english in ("buy", "rent", "steal"):
            determiner = "a"
        if definite and determiner in ("a", ""):
            determiner = "the"
        if determiner == "own":
            determiner = self.own(subject)
        phrase = self.phrase(noun, determiner, 0.3, plural=0 if "family" in noun.classes else 0.25)
        self.met("verb and object", verb.german, noun.german)
        return phrase

    def own(self, subject: Nominal) -> str:
        """The possessive of the subject: my, his, ..."""
        if subject.agreement == "3s":
            return {"m": "his", "f": "her", "n": "my"}[subject.gender]
        return {"1s": "my", "2s": "your", "1p": "our", "3p": "their"}[subject.agreement]

    def clause(
        self,
        aspects: str = "going done",
        tense: Tense = "present",
        *,
        verb: Verb | None = None,
        subject: Nominal | None = None,
        definite: bool = False,
        **more: object,
    ) -> Clause:
        """A clause with everything its verb needs.

        Args:
            aspects: which verbs fit.
            tense: of the clause.
            verb: the verb, if it is known already.
            subject: the subject, if it is known already; then it is a person.
            definite: whether objects must be definite.
            more: other arguments of :class:`Clause`.
        """
        if verb is None:
            wanted = tuple(aspects.split())
            verb = self.one(verbs_of(wanted, None, "person" if subject else ""))
        if subject is None:
            subject = self.subject(verb)
        else:
            self.does(subject, verb)
        objects = [self.filler(verb, slot, subject, definite) for slot in range(len(verb.slots))]
        return Clause(subject, verb, objects, self.place(verb), tense, **more)  # type: ignore[arg-type]

    def place(self, verb: Verb) -> Words | None:
        """Where or whither, if the verb has it."""
        if not verb.where or (verb.where == "(at)" and self.maybe(0.4)):
            return None
        place = self.one(lexicon.places_of(verb.places))
        while verb.where == "to" and place.to is None:
            place = self.one(lexicon.places_of(verb.places))
        self.met("verb and place", verb.german, place.at.german)
        return place.to if verb.where == "to" else place.at
