"""What is said, before it is said in a language: noun phrases and clauses with both wordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from seqapp.data.grammar import english, german
from seqapp.data.grammar.lexicon import Adjective, Case, Gender, Noun, Verb, Words

Tense = Literal["present", "progressive", "past", "perfect", "future", "conditional"]


NOTHING = Words("", "")
AND = Words(" and ", " und ")


class Nominal(Protocol):
    """What can be a subject or an object."""

    @property
    def agreement(self) -> str:
        """Person and number: 1s, 2s, 3s, 1p or 3p."""

    @property
    def gender(self) -> Gender:
        """Of the singular."""

    @property
    def pronoun(self) -> bool:
        """Whether it is as light as a pronoun, and stands where pronouns do."""

    @property
    def indefinite(self) -> bool:
        """Whether negation makes it ``kein``."""

    def english(self, subject: bool = True) -> str:
        """As the subject, or as anything else."""

    def german(self, case: Case) -> str:
        """In ``case``."""

    def denied(self) -> Nominal:
        """The same under negation: ``ein Hund`` -> ``kein Hund``."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A determiner, maybe an adjective, a noun, and maybe what follows, such as a relative clause."""

    noun: Noun
    determiner: str = "the"
    adjective: Adjective | None = None
    plural: bool = False
    following: Words = NOTHING
    superlative: bool = False
    pronoun: bool = False

    @property
    def agreement(self) -> str:
        return "3p" if self.plural else "3s"

    @property
    def gender(self) -> Gender:
        return self.noun.gender

    @property
    def indefinite(self) -> bool:
        return self.determiner in ("a", "")

    def english(self, subject: bool = True) -> str:
        one = self.adjective
        adjective = "" if one is None else one.english_superlative if self.superlative else one.english
        return english.noun_phrase(self.noun, self.determiner, adjective, self.plural) + self.following.english

    def german(self, case: Case) -> str:
        one = self.adjective
        adjective = "" if one is None else one.german_superlative if self.superlative else one.german
        phrase = german.noun_phrase(self.noun, self.determiner, case, adjective, self.plural)
        return phrase + self.following.german

    def denied(self) -> Phrase:
        return replace(self, determiner="no")


@dataclass(frozen=True, slots=True)
class Pronoun:
    """A personal pronoun by its English nominative; ``you`` is one friend, ``du``."""

    word: str
    agreement: str
    gender: Gender
    pronoun: bool = True
    indefinite: bool = False

    def english(self, subject: bool = True) -> str:
        return self.word if subject else english.PRONOUNS[self.word]

    def german(self, case: Case) -> str:
        return german.PRONOUNS[self.word][("nominative", "accusative", "dative").index(case)]

    def denied(self) -> Pronoun:
        return self


ME, YOU, HE, SHE, WE, THEY = PRONOUNS = (
    Pronoun("I", "1s", "m"),
    Pronoun("you", "2s", "m"),
    Pronoun("he", "3s", "m"),
    Pronoun("she", "3s", "f"),
    Pronoun("we", "1p", "m"),
    Pronoun("they", "3p", "m"),
)


@dataclass(frozen=True, slots=True)
class Name:
    """A person by name; ``Herr`` is declined."""

    words: Words
    gender: Gender
    agreement: str = "3s"
    pronoun: bool = False
    indefinite: bool = False

    def english(self, subject: bool = True) -> str:
        return self.words.english

    def german(self, case: Case) -> str:
        return self.words.german if case == "nominative" else self.words.german.replace("Herr ", "Herrn ")

    def denied(self) -> Name:
        return self


@dataclass(frozen=True, slots=True)
class Fixed:
    """A nominal that never changes, such as a relative pronoun or ``who``: as ``words`` say, in any case."""

    words: Words
    agreement: str = "3s"
    gender: Gender = "m"
    pronoun: bool = False
    indefinite: bool = False

    def english(self, subject: bool = True) -> str:
        return self.words.english

    def german(self, case: Case) -> str:
        return self.words.german

    def denied(self) -> Fixed:
        return self


@dataclass(frozen=True, slots=True)
class Both:
    """Two nominals joined by ``and``, or by a pair such as ``neither`` and ``nor``."""

    first: Nominal
    second: Nominal
    conjunction: Words = AND
    lead: Words = NOTHING
    agreement: str = "3p"
    gender: Gender = "m"
    pronoun: bool = False
    indefinite: bool = False

    def english(self, subject: bool = True) -> str:
        return self.lead.english + self.first.english(subject) + self.conjunction.english + self.second.english(subject)

    def german(self, case: Case) -> str:
        return self.lead.german + self.first.german(case) + self.conjunction.german + self.second.german(case)

    def denied(self) -> Both:
        return self


@dataclass(frozen=True, slots=True)
class Clause:
    """Who does what, when and where.

    Args:
        subject: of the verb; a reflexive pronoun and a possessive agree with it.
        verb: with its complements.
        objects: what fills the verb's slots, in their order; ``None`` where a question word or a relative
            pronoun stands for it.
        complement: what closes the German middle field: a place, a direction, a predicate.
        tense: English simple past is the German perfect, but for sein, haben and modals; the progressive is ``gerade``.
        modal: a modal verb by its English name.
        negated: nicht, or kein where the accusative object is indefinite.
        time: at the end in English.
        frequency: before the verb in English.
        particle: German schon or noch, just before where nicht stands.
    """

    subject: Nominal
    verb: Verb
    objects: Sequence[Nominal | None] = ()
    complement: Words | None = None
    tense: Tense = "present"
    modal: str = ""
    negated: bool = False
    time: Words | None = None
    frequency: Words | None = None
    particle: str = ""

    def without_time(self) -> Clause:
        return replace(self, time=None)
