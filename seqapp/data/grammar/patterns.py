"""The sentence patterns: each draws what to say and says it in both languages.

``you`` is always one friend (du); the English simple past is the German perfect, except for sein, haben and modals; the
English progressive is ``gerade``, ``will`` is werden. So the English decides the German.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations

from seqapp.data.grammar import english as en
from seqapp.data.grammar import german as de
from seqapp.data.grammar import lexicon
from seqapp.data.grammar.draw import NUMBERS, OWNERS, Draw, verbs_of
from seqapp.data.grammar.lexicon import Adjective, Case, Noun, Verb, Words
from seqapp.data.grammar.phrases import (
    HE,
    ME,
    NOTHING,
    PRONOUNS,
    SHE,
    THEY,
    WE,
    YOU,
    Both,
    Clause,
    Fixed,
    Nominal,
    Phrase,
    Tense,
)

Pattern = Callable[[Draw], Words]
PATTERNS: dict[str, Pattern] = {}
"""Every pattern by name; the first line of its docstring says what it shows."""

BE = lexicon.verb("be", "sein")
HAVE = lexicon.verb("have", "haben")
KNOW = lexicon.verb("know", "wissen")
RELATIVES: dict[Case, tuple[str, str, str, str]] = {**de.DER, "dative": ("dem", "der", "dem", "denen")}  # type: ignore[dict-item]
MOODS = tuple(
    one
    for one in lexicon.adjectives()
    if one.english in {"tired", "ill", "hungry", "thirsty", "happy", "angry", "nervous", "sad"}
)
PLURALS = {
    "Tag": "Tagen",
    "Woche": "Wochen",
    "Monat": "Monaten",
    "Jahr": "Jahren",
    "Stunde": "Stunden",
    "Minute": "Minuten",
}


OFTEN = {"plain": 6}
"""Patterns that are drawn more often than the others, and how many times: what people try first is short."""


def pattern(function: Pattern) -> Pattern:
    """Decorator: one of the patterns of the corpus."""
    PATTERNS[function.__name__] = function
    return function


def sentence(english: str, german: str, mark: str = ".") -> Words:
    """Both with a capital letter and the mark at the end."""
    return Words(*(text[0].upper() + text[1:].removesuffix(",") + mark for text in (english, german)))


def say(clause: Clause, fronted: bool = False) -> Words:
    """The clause as a statement."""
    return sentence(en.statement(clause, fronted), de.statement(clause, fronted))


def ask(clause: Clause, word: Words = NOTHING) -> Words:
    """The clause as a question, after ``word`` if there is one."""
    return sentence(en.question(clause, word.english), de.question(clause, word.german), "?")


def joined(first: Clause, conjunction: Words, second: Clause) -> Words:
    """A main clause and a subordinate one."""
    return sentence(
        f"{en.statement(first)} {conjunction.english} {en.statement(second)}",
        f"{de.statement(first)}, {conjunction.german} {de.subordinate(second)}",
    )


def opened(conjunction: Words, first: Clause, second: Clause) -> Words:
    """A subordinate clause and then the main one, which starts with its verb."""
    return sentence(
        f"{conjunction.english} {en.statement(first)}, {en.statement(second)}",
        f"{conjunction.german} {de.subordinate(first)}, {de.question(second)}",
    )


def conjunction(english: str) -> Words:
    """The conjunction by its English."""
    return next(one for one in lexicon.words("conjunction") if one.english == english)


def said_of(adjective: Adjective, degree: Words = NOTHING) -> Words:
    """The adjective after ``be``."""
    return Words(en.joined([degree.english, adjective.english]), en.joined([degree.german, adjective.german]))


def one_of_them(draw: Draw) -> Nominal:
    """A person that a pronoun can take up again without doubt: no neuter."""
    drawn = draw.chance.random()
    if drawn < 0.25:
        return draw.pronoun()
    if drawn < 0.5:
        return draw.name()
    return draw.until(lambda: draw.person(adjective=0.0), lambda person: person.gender != "n" or person.plural)


def again(person: Nominal) -> Nominal:
    """The pronoun that takes ``person`` up."""
    if person.pronoun:
        return person
    return THEY if person.agreement == "3p" else HE if person.gender == "m" else SHE


def mood(draw: Draw, subject: Nominal, past: bool = False) -> Clause:
    """How ``subject`` feels."""
    adjective = draw.one(MOODS)
    draw.met("mood", adjective.german, subject.german("nominative"))
    return Clause(subject, BE, complement=said_of(adjective), tense="past" if past else "present")


def thing(draw: Draw, adjectives: float = 0.2) -> Phrase:
    """Something definite that one can talk about."""
    noun = draw.noun(
        "clothing",
        "vehicle",
        "device",
        "furniture",
        "thing",
        "bag",
        "text",
        "building",
        "fruit",
        "dish",
        "food",
        "drink",
    )
    return draw.phrase(noun, draw.one(("the", "the", "this")), adjectives, plural=0.25)


def relative(noun: Noun, plural: bool, case: Case) -> str:
    """The relative pronoun for ``noun`` in ``case``."""
    return RELATIVES[case][de.column(noun, plural)]


def number(draw: Draw, tens: bool = True) -> Words:
    """From two to ninety-nine."""
    if not tens or draw.maybe(0.3):
        return draw.word("number")
    ten, unit = draw.one((*lexicon.words("tens"), lexicon.words("number")[-1])), draw.one(lexicon.words("number")[:8])
    draw.met("number", ten.german, unit.german)
    return Words(f"{ten.english}-{unit.english}", f"{unit.german}und{ten.german}")


def clock(draw: Draw) -> Words:
    """A time such as half past three, halb vier."""
    hours = [Words("one", "eins"), *NUMBERS]
    at = int(draw.chance.random() * 12)
    hour, following = hours[at], hours[(at + 1) % 12]
    name, english, german, next_hour = draw.one(
        (
            ("full", "{} o'clock", "{} Uhr", False),
            ("half", "half past {}", "halb {}", True),
            ("quarter past", "quarter past {}", "Viertel nach {}", False),
            ("quarter to", "quarter to {}", "Viertel vor {}", False),
            ("five past", "five past {}", "fünf nach {}", False),
            ("five to", "five to {}", "fünf vor {}", False),
            ("ten past", "ten past {}", "zehn nach {}", False),
            ("ten to", "ten to {}", "zehn vor {}", False),
            ("twenty past", "twenty past {}", "zwanzig nach {}", False),
            ("twenty to", "twenty to {}", "zwanzig vor {}", False),
        )
    )
    draw.met("clock", name, hour.german)
    spoken = "ein" if name == "full" and hour.german == "eins" else (following if next_hour else hour).german
    return Words(english.format(hour.english), german.format(spoken))


def date(draw: Draw) -> tuple[Words, Words]:
    """A day and a month."""
    day, month = draw.word("ordinal"), draw.word("month")
    draw.met("date", day.german, month.german)
    return day, month


# The simple sentence


@pattern
def plain(draw: Draw) -> Words:
    """Present tense and nothing more."""
    return say(draw.clause("going done"))


@pattern
def habit(draw: Draw) -> Words:
    """Present tense: what is done every day."""
    return say(draw.clause("going", time=draw.word("habit")))


@pattern
def frequency(draw: Draw) -> Words:
    """Present tense with an adverb of frequency."""
    return say(draw.clause("going", frequency=draw.word("frequency")))


@pattern
def progressive(draw: Draw) -> Words:
    """What is going on right now: gerade."""
    return say(draw.clause("going", "progressive"))


@pattern
def state(draw: Draw) -> Words:
    """Present tense: what holds."""
    return say(draw.clause("state"))


@pattern
def past(draw: Draw) -> Words:
    """The past: the German perfect, with the participle at the end."""
    return say(draw.clause("going done befalls timed", "past", time=draw.word("past")))


@pattern
def future(draw: Draw) -> Words:
    """The future: werden, with the infinitive at the end."""
    return say(draw.clause("going done befalls timed", "future", time=draw.word("future")))


@pattern
def perfect_already(draw: Draw) -> Words:
    """The present perfect with already: schon."""
    clause = draw.clause(
        "done befalls timed", "perfect", definite=True, frequency=Words("already", ""), particle="schon"
    )
    return say(clause)


@pattern
def perfect_not_yet(draw: Draw) -> Words:
    """The present perfect with not yet: noch nicht."""
    clause = draw.clause(
        "done befalls timed", "perfect", definite=True, time=Words("yet", ""), particle="noch", negated=True
    )
    return say(clause)


@pattern
def past_of_be(draw: Draw) -> Words:
    """The past of sein: war."""
    subject = draw.person() if draw.maybe(0.6) else draw.pronoun()
    place = draw.one(lexicon.places_of(("near", "far", "inside", "meet")))
    draw.met("be and place", subject.german("nominative"), place.at.german)
    return say(Clause(subject, BE, complement=place.at, tense="past", time=draw.word("past")))


@pattern
def past_of_have(draw: Draw) -> Words:
    """The past of haben: hatte."""
    return say(replace(draw.clause(verb=HAVE), tense="past"))


@pattern
def fronted_past(draw: Draw) -> Words:
    """The verb second after a time in front: the past."""
    return say(draw.clause("going done befalls timed", "past", time=draw.word("past")), fronted=True)


@pattern
def fronted_future(draw: Draw) -> Words:
    """The verb second after a time in front: the future."""
    return say(draw.clause("going done befalls timed", "future", time=draw.word("future")), fronted=True)


@pattern
def fronted_habit(draw: Draw) -> Words:
    """The verb second after a time in front: the present."""
    return say(draw.clause("going", time=draw.word("habit")), fronted=True)


# Negation


@pattern
def negated_past(draw: Draw) -> Words:
    """Negation of the past: nicht after a definite object, kein before an indefinite one."""
    return say(draw.clause("going done befalls timed", "past", negated=True, time=draw.word("past")))


@pattern
def negated_state(draw: Draw) -> Words:
    """Negation of the present: nicht or kein."""
    return say(draw.clause("state", negated=True))


@pattern
def negated_future(draw: Draw) -> Words:
    """Negation of the future."""
    return say(draw.clause("going done befalls timed", "future", negated=True, time=draw.word("future")))


@pattern
def no_as_subject(draw: Draw) -> Words:
    """kein as the subject."""
    subject = draw.phrase(draw.noun("job", "young"), "no", 0.0)
    return say(draw.clause("done befalls", "past", subject=subject, definite=True))


@pattern
def neither_nor(draw: Draw) -> Words:
    """weder ... noch."""
    verb = draw.one(verbs_for_two("state", "done"))
    first, second = map(Phrase, two_nouns(draw, verb))
    both = Both(first, second, Words(" nor ", " noch "), Words("neither ", "weder "))
    subject = draw.subject(verb)
    clause = Clause(subject, verb, [both], tense="present" if verb.aspect == "state" else "past")
    return say(clause)


@pattern
def not_but(draw: Draw) -> Words:
    """nicht ... sondern."""
    verb = draw.one(verbs_for_two("done", "going"))
    first, second = map(Phrase, two_nouns(draw, verb))
    clause = Clause(draw.subject(verb), verb, [Both(first, second, Words(" but ", ", sondern "))], tense="past")
    german = replace(clause, objects=[Both(first, second, Words(" but ", ", sondern "), Words("", "nicht "))])
    return sentence(en.statement(replace(clause, negated=True)), de.statement(german))


@cache
def comparable(verb: Verb) -> tuple[tuple[Noun, Noun], ...]:
    """Pairs of different things of one class, in both orders, that can be objects of ``verb``."""
    nouns = [one for one in lexicon.nouns_of(verb.slots[0].classes) if not {"family", "paired"} & one.classes]
    return tuple((one, other) for one, other in permutations(nouns, 2) if one.classes & other.classes)


@cache
def verbs_for_two(*aspects: str) -> tuple[Verb, ...]:
    """The verbs with one object, without a preposition, that can be one of two things."""
    verbs = [one for one in verbs_of(aspects, 1) if "person" in one.subjects and not one.slots[0].preposition]
    return tuple(one for one in verbs if comparable(one))


def two_nouns(draw: Draw, verb: Verb) -> tuple[Noun, Noun]:
    """Two different things, as objects of ``verb``."""
    nouns = draw.one(comparable(verb))
    for one in nouns:
        draw.met("verb and object", verb.german, one.german)
    return nouns


# Modal verbs


@pattern
def modal(draw: Draw) -> Words:
    """A modal verb, the infinitive at the end."""
    chosen = draw.one(("can", "must", "should", "want", "be allowed"))
    return say(draw.clause("going done", modal=chosen, time=draw.word("future") if draw.maybe(0.5) else None))


@pattern
def would_like(draw: Draw) -> Words:
    """A wish: möchte."""
    return say(draw.clause("going done", modal="would like", time=draw.word("future") if draw.maybe(0.5) else None))


@pattern
def modal_past(draw: Draw) -> Words:
    """The past of a modal verb: musste, wollte, durfte."""
    chosen = draw.one(("have", "want", "be allowed"))
    return say(draw.clause("going done", "past", modal=chosen, time=draw.word("past")))


@pattern
def modal_negated(draw: Draw) -> Words:
    """A modal verb negated."""
    chosen = draw.one(("can", "should", "want", "have", "be allowed"))
    return say(draw.clause("going done", modal=chosen, negated=True))


@pattern
def modal_past_negated(draw: Draw) -> Words:
    """The past of a modal verb negated."""
    chosen = draw.one(("can", "want", "have", "be allowed"))
    return say(draw.clause("going done", "past", modal=chosen, negated=True, time=draw.word("past")))


@pattern
def modal_question(draw: Draw) -> Words:
    """A question with a modal verb."""
    chosen = draw.one(("can", "must", "should", "want"))
    if chosen == "must":
        chosen = "have"
    return ask(draw.clause("going done", modal=chosen, definite=True))


# Questions and requests


@pattern
def question_now(draw: Draw) -> Words:
    """A yes-or-no question on what is going on."""
    return ask(draw.clause("going", "progressive"))


@pattern
def question_past(draw: Draw) -> Words:
    """A yes-or-no question on the past."""
    return ask(draw.clause("going done befalls timed", "past", time=draw.word("past") if draw.maybe(0.5) else None))


@pattern
def question_word(draw: Draw) -> Words:
    """A question with where, when or why."""
    word = draw.one(lexicon.words("question")[:3])
    clause = draw.clause("going done", "past", definite=True)
    return (
        ask(replace(clause, complement=None) if clause.verb.where == "(at)" else clause, word)
        if (word.english != "where" or not clause.verb.where)
        else ask(replace(clause, complement=None), Words("where", "wohin" if clause.verb.where == "to" else "wo"))
    )


@pattern
def question_what(draw: Draw) -> Words:
    """A question for the object: what, who."""
    verb = draw.one([one for one in verbs_of(("going", "done"), 1, "person") if one.slots[0].case == "accusative"])
    subject = draw.subject(verb)
    noun = draw.noun(*verb.slots[0].classes)
    person = "person" in noun.classes
    if verb.slots[0].preposition and not person:
        noun, person = draw.noun("job"), True
    word = Words("who", de.after(verb.slots[0].preposition, "wen")) if person else Words("what", "was")
    draw.met("question and verb", word.german, verb.german)
    tense: Tense = "progressive" if verb.aspect == "going" else "past"
    return ask(Clause(subject, verb, [None], tense=tense), word)


@pattern
def question_who(draw: Draw) -> Words:
    """A question for the subject: who."""
    subject = Fixed(Words("who", "wer"), pronoun=True)
    clause = draw.clause("going done befalls", "past", subject=subject, definite=True, time=draw.word("past"))
    return Words(*(text[:-1] + "?" for text in (say(clause).english, say(clause).german)))


@pattern
def question_which(draw: Draw) -> Words:
    """A question with which: welcher in the accusative."""
    verb = draw.one(plain_verbs("going", "done"))
    noun = countable(draw, verb)
    asked = draw.phrase(noun, "which", 0.0, plural=0.3)
    word = Words(asked.english(), asked.german("accusative"))
    return ask(Clause(draw.subject(verb), verb, [None], tense="past"), word)


@pattern
def question_how_many(draw: Draw) -> Words:
    """A question with how many: wie viele."""
    verb = draw.one(
        [one for one in plain_verbs("done", "state") if one.english in ("buy", "sell", "have", "find", "need")]
    )
    noun = countable(draw, verb)
    word = Words(f"how many {noun.english_plural}", f"wie viele {de.decline(noun, 'accusative', plural=True)}")
    tense: Tense = "present" if verb.aspect == "state" else "past"
    return ask(Clause(draw.subject(verb), verb, [None], tense=tense), word)


@pattern
def question_whose(draw: Draw) -> Words:
    """A question with whose: wessen."""
    noun = draw.noun("clothing", "device", "private", "bag", "thing", "instrument", "pet", "text")
    draw.met("pattern and noun", "wessen", noun.german)
    adjective = draw.adjective(noun) if draw.maybe(0.5) else None
    phrase = Phrase(noun, "", adjective)
    return sentence(f"whose {phrase.english()} is this", f"wessen {phrase.german('nominative')} ist das", "?")


@pattern
def question_how(draw: Draw) -> Words:
    """A question with how and an adjective."""
    adjectives = [
        one for one in lexicon.adjectives() if one.english in ("old", "big", "long", "expensive", "fast", "heavy")
    ]
    adjective = draw.one(adjectives)
    noun = draw.one([one for one in lexicon.nouns_of(tuple(sorted(adjective.classes))) if one.german_plural])
    draw.met("adjective and noun", adjective.german, noun.german)
    determiner = draw.one(("my", "your", "his", "her")) if "family" in noun.classes else draw.one(("the", "this"))
    subject = draw.phrase(noun, determiner, 0.0, plural=0.3)
    word = Words(f"how {adjective.english}", f"wie {adjective.german}")
    return ask(Clause(subject, BE, tense=draw.one(("present", "past"))), word)


@pattern
def imperative(draw: Draw) -> Words:
    """A request to a friend."""
    clause = commanded(draw)
    please = draw.maybe(0.4)
    return sentence(
        ("please " if please else "") + en.bare(clause), ("bitte " if please else "") + de.order(clause), "!"
    )


@pattern
def imperative_negated(draw: Draw) -> Words:
    """A request not to do something."""
    clause = replace(commanded(draw), negated=True)
    return sentence(f"don't {en.bare(clause)}", de.order(clause), "!")


@pattern
def let_us(draw: Draw) -> Words:
    """A proposal: lass uns."""
    verb = draw.one([one for one in verbs_of(("going", "done"), None, "person") if not one.reflexive])
    clause = draw.clause(verb=verb, subject=WE, definite=True, time=draw.word("future") if draw.maybe(0.3) else None)
    return sentence(f"let's {en.bare(clause)}", f"lass uns {de.bare(clause)}", "!")


def commanded(draw: Draw) -> Clause:
    """What one may ask a friend to do."""
    return draw.clause("going done", subject=YOU, definite=True)


@cache
def countables(verb: Verb) -> tuple[Noun, ...]:
    """Things that can be the object of ``verb`` and be counted one by one."""
    nouns = lexicon.nouns_of(verb.slots[0].classes)
    return tuple(one for one in nouns if one.german_plural and not {"person", "infant", "paired"} & one.classes)


@cache
def plain_verbs(*aspects: str) -> tuple[Verb, ...]:
    """The verbs with one object, in the accusative, that can be a thing."""
    verbs = [one for one in verbs_of(aspects, 1) if {"person", "adult"} & set(one.subjects)]
    return tuple(
        one for one in verbs if (one.slots[0].case, one.slots[0].preposition) == ("accusative", "") and countables(one)
    )


@cache
def transitive_deeds() -> tuple[Verb, ...]:
    """What can be done to something, on purpose."""
    return tuple(one for one in verbs_of(("done",), None, "person") if one.slots)


def countable(draw: Draw, verb: Verb) -> Noun:
    """A thing that is the object of ``verb``."""
    noun = draw.one(countables(verb))
    draw.met("verb and object", verb.german, noun.german)
    return noun


# Sentences with two clauses


@pattern
def because(draw: Draw) -> Words:
    """weil, the verb last: a mood as the reason."""
    person = one_of_them(draw)
    clause = draw.clause("done befalls", "past", subject=person, time=draw.word("past"))
    return joined(clause, conjunction("because"), mood(draw, again(person), past=True))


@pattern
def because_of_deeds(draw: Draw) -> Words:
    """weil, the verb last: a deed as the reason."""
    person = one_of_them(draw)
    reason = draw.clause("going done", "past", subject=again(person), time=draw.word("past"))
    return joined(mood(draw, person), conjunction("because"), reason)


@pattern
def that(draw: Draw) -> Words:
    """dass, the verb last."""
    verb = draw.one(
        (lexicon.verb("think", "glauben"), KNOW, lexicon.verb("hope", "hoffen"), lexicon.verb("say", "sagen"))
    )
    speaker = one_of_them(draw)
    draw.does(speaker, verb)
    if draw.maybe(0.5):
        return joined(Clause(speaker, verb), conjunction("that"), draw.clause("state"))
    clause = draw.clause("going done befalls timed", "future", time=draw.word("future"))
    return joined(Clause(speaker, verb), conjunction("that"), clause)


@pattern
def whether(draw: Draw) -> Words:
    """ob, the verb last."""
    clause = draw.clause("going done befalls timed", "past", time=draw.word("past"))
    return joined(Clause(one_of_them(draw), KNOW, negated=True), conjunction("whether"), clause)


@pattern
def whether_asked(draw: Draw) -> Words:
    """A question that holds another question: weißt du, wo, wann, warum."""
    word = draw.one((Words("when", "wann"), Words("why", "warum")))
    clause = draw.clause("going done befalls timed", "past", definite=True)
    return sentence(
        f"do you know {word.english} {en.statement(clause)}", f"weißt du, {word.german} {de.subordinate(clause)}", "?"
    )


@pattern
def condition(draw: Draw) -> Words:
    """wenn first, then the main clause with its verb at once."""
    person = one_of_them(draw)
    other = draw.one([one for one in (ME, YOU, WE) if one.agreement[0] != person.agreement[0]])
    first = draw.clause("done", subject=person, definite=True)
    return opened(conjunction("if"), first, draw.clause("going done", "future", subject=other))


@pattern
def wish(draw: Draw) -> Words:
    """What would be: hätte and würde."""
    person = draw.one(PRONOUNS)
    noun = draw.noun("private", "home")
    owned = Phrase(noun, "a", draw.adjective(noun) if draw.maybe(0.5) else None)
    able = ("besuchen", "abholen", "einladen", "reisen", "fahren", "verkaufen", "helfen")
    verb = draw.one([one for one in verbs_of(("going", "done"), None, "person") if one.german in able])
    draw.met("wish", noun.german, verb.german)
    draw.met("verb and object", HAVE.german, noun.german)
    then = draw.clause(verb=verb, tense="conditional", subject=person)
    return sentence(
        f"if {person.english()} had {owned.english()}, {en.statement(then)}",
        f"wenn {person.german('nominative')} {owned.german('accusative')} {de.subjunctive('haben', person.agreement)}, "
        + de.question(then),
    )


@pattern
def although(draw: Draw) -> Words:
    """obwohl first, then the main clause with its verb at once."""
    person = one_of_them(draw)
    deed = draw.clause("going done befalls", "past", subject=again(person), time=draw.word("past"))
    return opened(conjunction("although"), mood(draw, person, past=True), deed)


@pattern
def when_young(draw: Draw) -> Words:
    """als first, then the main clause with its verb at once."""
    person = one_of_them(draw)
    young = Clause(person, BE, complement=Words("young", "jung"), tense="past")
    return opened(
        conjunction("when"),
        young,
        draw.clause("going", "past", subject=again(person), frequency=draw.word("frequency")),
    )


@pattern
def before(draw: Draw) -> Words:
    """bevor, the verb last."""
    person = one_of_them(draw)
    going = draw.clause(verb=lexicon.verb("go", "gehen"), subject=again(person))
    return joined(draw.clause("going", subject=person, frequency=draw.word("frequency")), conjunction("before"), going)


@pattern
def but(draw: Draw) -> Words:
    """Two main clauses with aber."""
    first, second = draw.clause("state"), draw.clause("state", negated=True)
    return sentence(
        f"{en.statement(first)}, but {en.statement(second)}", f"{de.statement(first)}, aber {de.statement(second)}"
    )


@pattern
def and_then(draw: Draw) -> Words:
    """One subject, two deeds, joined by und."""
    subject = draw.person() if draw.maybe(0.5) else draw.pronoun()
    first = draw.clause("done", "past", subject=subject)
    second = draw.until(
        lambda: draw.clause("done", "past", subject=subject),
        lambda clause: clause.verb.auxiliary == first.verb.auxiliary,
    )
    other = en.joined(en.statement(second).split(" ")[len(subject.english().split(" ")) :])
    german = en.joined([*de.middle(second), *de.bracket(second)[1]])
    return sentence(f"{en.statement(first)} and {other}", f"{de.statement(first)} und {german}")


@pattern
def meanwhile(draw: Draw) -> Words:
    """Two subjects, two things going on, joined by und."""
    first, second = draw.clause("going", "progressive"), draw.clause("going", "progressive")
    return sentence(
        f"{en.statement(first)} and {en.statement(second)}", f"{de.statement(first)} und {de.statement(second)}"
    )


# Relative clauses


@pattern
def relative_subject(draw: Draw) -> Words:
    """A relative clause whose pronoun is the subject."""
    noun, plural = draw.noun("job", "young"), draw.maybe(0.25)
    pronoun = Fixed(
        Words("who", relative(noun, plural, "nominative")), "3p" if plural else "3s", noun.gender, pronoun=True
    )
    clause = draw.clause("done befalls", "past", subject=pronoun, definite=True, time=draw.word("past"))
    draw.met("subject and verb", noun.german, clause.verb.german)
    following = Words(f" {en.statement(clause)}", f", {de.subordinate(clause)},")
    person = Phrase(noun, "the", None, plural, following)
    knower = draw.one((ME, WE, THEY, SHE, HE, YOU))
    draw.met("verb and object", "kennen", noun.german)
    return say(Clause(knower, lexicon.verb("know", "kennen"), [person]))


@pattern
def relative_object(draw: Draw) -> Words:
    """A relative clause whose pronoun is the object, inside its sentence."""
    verb = draw.one(plain_verbs("going", "done"))
    noun = countable(draw, verb)
    plural = draw.maybe(0.25)
    clause = Clause(draw.subject(verb), verb, [None], tense="past", time=draw.word("past"))
    following = Words(
        f" that {en.statement(clause)}", f", {relative(noun, plural, 'accusative')} {de.subordinate(clause)},"
    )
    adjective = draw.adjective(noun)
    return say(Clause(Phrase(noun, "the", None, plural, following), BE, complement=said_of(adjective)))


@pattern
def relative_preposition(draw: Draw) -> Words:
    """A relative clause that starts with a preposition."""
    verb = draw.one([one for one in verbs_of(("going", "state"), 1, "person") if one.slots[0].preposition])
    slot = verb.slots[0]
    nouns = [one for one in lexicon.nouns_of(slot.classes) if one.german_plural]
    noun, plural = draw.one(nouns), draw.maybe(0.25)
    draw.met("verb and object", verb.german, noun.german)
    subject = draw.subject(verb)
    clause = Clause(subject, verb, [None], tense="progressive" if verb.aspect == "going" else "present")
    pronoun = relative(noun, plural, slot.case)
    adjective = draw.adjective(noun)
    who = "who" if {"person", "infant"} & noun.classes else "that"
    following = Words(f" {who} {en.statement(clause)}", f", {slot.preposition} {pronoun} {de.subordinate(clause)},")
    return say(Clause(Phrase(noun, "the", None, plural, following), BE, complement=said_of(adjective)))


# Infinitives


@pattern
def infinitive(draw: Draw) -> Words:
    """An infinitive with zu."""
    verb, tense = draw.one(
        (
            (lexicon.verb("try", "versuchen"), "progressive"),
            (lexicon.verb("forget", "vergessen"), "past"),
            (lexicon.verb("decide", "beschließen"), "past"),
            (lexicon.verb("promise", "versprechen"), "past"),
        )
    )
    subject = one_of_them(draw)
    verb = replace(verb, slots=())
    clause = draw.clause("done", subject=subject, definite=True)
    main = Clause(subject, verb, tense=tense)  # type: ignore[arg-type]
    draw.does(subject, verb)
    return sentence(
        f"{en.statement(main)} to {en.bare(clause)}",
        f"{de.statement(main)}, {de.bare(clause, de.to_infinitive(clause.verb))}",
    )


@pattern
def purpose(draw: Draw) -> Words:
    """um ... zu."""
    subject = one_of_them(draw)
    main = draw.clause(verb=lexicon.verb("go", "gehen"), tense="past", subject=subject, time=draw.word("past"))
    clause = draw.clause(verb=draw.one(transitive_deeds()), subject=subject, definite=True)
    return sentence(
        f"{en.statement(main, True)} to {en.bare(clause)}",
        f"{de.statement(main, True)}, um {de.bare(clause, de.to_infinitive(clause.verb))}",
    )


@pattern
def without_doing(draw: Draw) -> Words:
    """ohne ... zu."""
    subject = one_of_them(draw)
    going = draw.one((Words("home", "nach Hause"), Words("to bed", "ins Bett"), Words("to work", "zur Arbeit")))
    main = Clause(subject, lexicon.verb("go", "gehen"), complement=going, tense="past")
    draw.does(subject, main.verb)
    clause = draw.clause(verb=draw.one(transitive_deeds()), subject=subject, definite=True)
    return sentence(
        f"{en.statement(main)} without {en.bare(clause, en.gerund(clause.verb.english))}",
        f"{de.statement(main)}, ohne {de.bare(clause, de.to_infinitive(clause.verb))}",
    )


@pattern
def likes_doing(draw: Draw) -> Words:
    """What somebody likes doing: gern."""
    verb = draw.one(plain_verbs("going"))
    noun = draw.noun(
        *[one for one in verb.slots[0].classes if one not in ("person", "family", "job", "young", "infant")]
    )
    draw.met("verb and object", verb.german, noun.german)
    clause = Clause(
        draw.subject(verb), verb, [Phrase(noun, "", None, bool(noun.german_plural))], frequency=Words("", "gern")
    )
    like = "likes" if clause.subject.agreement == "3s" else "like"
    return sentence(
        f"{clause.subject.english()} {like} {en.bare(clause, en.gerund(verb.english))}", de.statement(clause)
    )


# Adjectives


@pattern
def predicate(draw: Draw) -> Words:
    """An adjective after sein, with very, too, quite."""
    subject = thing(draw, 0.0)
    adjective = draw.adjective(subject.noun, compared=True)
    return say(
        Clause(subject, BE, complement=said_of(adjective, draw.word("degree")), tense=draw.one(("present", "past")))
    )


@pattern
def predicate_negated(draw: Draw) -> Words:
    """An adjective after sein, negated."""
    subject = thing(draw, 0.0)
    adjective = draw.adjective(subject.noun)
    tense: Tense = draw.one(("present", "past"))
    return say(Clause(subject, BE, complement=said_of(adjective), negated=True, tense=tense))


def two_alike(draw: Draw) -> tuple[Adjective, Phrase, Phrase]:
    """An adjective and two things that it can compare."""
    adjective = draw.one([one for one in lexicon.adjectives() if one.english_comparative])
    nouns = [one for one in lexicon.nouns_of(tuple(sorted(adjective.classes))) if one.german_plural]
    first = draw.one(nouns)
    second = draw.one([one for one in nouns if one is not first and one.classes & first.classes] or nouns)
    if first is second:
        return two_alike(draw)
    phrases = []
    for noun in (first, second):
        draw.met("adjective and noun", adjective.german, noun.german)
        owned = "family" in noun.classes
        phrases.append(draw.phrase(noun, draw.one(OWNERS) if owned else "the", 0.0))
    return adjective, phrases[0], phrases[1]


@pattern
def comparative(draw: Draw) -> Words:
    """A comparative: größer als."""
    adjective, first, second = two_alike(draw)
    compared = Words(
        f"{adjective.english_comparative} than {second.english()}",
        f"{adjective.german_comparative} als {second.german('nominative')}",
    )
    return say(Clause(first, BE, complement=compared))


@pattern
def as_as(draw: Draw) -> Words:
    """Equal and unequal: so groß wie."""
    adjective, first, second = two_alike(draw)
    compared = Words(
        f"as {adjective.english} as {second.english()}", f"so {adjective.german} wie {second.german('nominative')}"
    )
    if draw.maybe(0.5):
        return say(Clause(first, BE, complement=compared, negated=True))
    return say(Clause(first, BE, complement=replace(compared, german="genau" + compared.german)))


@pattern
def superlative(draw: Draw) -> Words:
    """A superlative before its noun."""
    moods = {*MOODS, *(one for one in lexicon.adjectives() if one.english in ("curious", "brave", "quiet", "weak"))}
    adjective = draw.one([one for one in lexicon.adjectives() if one.english_superlative and one not in moods])
    nouns = [one for one in lexicon.nouns_of(("building", "sight", "job")) if adjective in lexicon.adjectives_for(one)]
    if not nouns:
        return superlative(draw)
    noun = draw.one(nouns)
    draw.met("adjective and noun", adjective.german, noun.german)
    where = draw.one(lexicon.places_of(("town", "country"))).at
    best = Phrase(noun, "the", adjective, superlative=True, following=Words(f" {where.english}", f" {where.german}"))
    if "job" in noun.classes:
        subject: Nominal = HE if noun.gender == "m" else SHE
    else:
        subject = Fixed(Words("this", "das"))
    return say(Clause(subject, BE, complement=Words(best.english(), best.german("nominative"))))


@pattern
def exclamation(draw: Draw) -> Words:
    """An exclamation: was für ein."""
    noun = draw.noun("building", "animal", "text", "nature", "clothing", "vehicle", "event", "shown", "matter", "jewel")
    adjective = draw.adjective(noun)
    phrase = Phrase(noun, "a", adjective)
    return sentence(f"what {phrase.english()}", f"was für {phrase.german('nominative')}", "!")


@pattern
def this_is(draw: Draw) -> Words:
    """Adjectives after ein and possessives, in the nominative."""
    noun = draw.noun(
        "clothing", "device", "private", "bag", "pet", "instrument", "jewel", "home", "picture", "toy", "written"
    )
    adjective = draw.adjective(noun)
    phrase = Phrase(noun, draw.one(("a", *OWNERS, "their")), adjective)
    return say(Clause(Fixed(Words("this", "das")), BE, complement=Words(phrase.english(), phrase.german("nominative"))))


# Numbers, times, dates


@pattern
def count(draw: Draw) -> Words:
    """A number and a plural."""
    verb = draw.one(
        (HAVE, lexicon.verb("buy", "kaufen"), lexicon.verb("find", "finden"), lexicon.verb("need", "brauchen"))
    )
    noun = countable(draw, verb)
    chosen = draw.one(lexicon.words("number"))
    draw.met("number and noun", chosen.german, noun.german)
    phrase = Phrase(noun, chosen.english, draw.adjective(noun) if draw.maybe(0.3) else None, plural=True)
    return say(Clause(draw.subject(verb), verb, [phrase], tense="past" if verb.aspect == "done" else "present"))


def substance(draw: Draw) -> Noun:
    """Something to eat or to drink that is not counted."""
    return draw.one([one for one in lexicon.nouns_of(("food", "grocery", "drink")) if not one.german_plural])


@pattern
def more_of_it(draw: Draw) -> Words:
    """More of what is not counted."""
    verb, noun = draw.one((lexicon.verb("buy", "kaufen"), lexicon.verb("need", "brauchen"))), substance(draw)
    draw.met("verb and object", verb.german, noun.german)
    more = Fixed(Words(f"more {noun.english}", f"mehr {noun.german}"))
    return say(Clause(draw.subject(verb), verb, [more], modal="should" if verb.aspect == "done" else ""))


@pattern
def any_left(draw: Draw) -> Words:
    """Whether there is something left."""
    noun = substance(draw)
    draw.met("left", "da", noun.german)
    if draw.maybe(0.5):
        return sentence(f"is there any {noun.english} left", f"ist noch {noun.german} da", "?")
    no = Phrase(noun, "no")
    return sentence(f"there is {no.english()} left", f"es ist {no.german('nominative')} mehr da")


@pattern
def quantity(draw: Draw) -> Words:
    """Many, some, several, few, all: with their adjectives."""
    noun = draw.noun("job", "young")
    chosen = draw.word("quantity")
    adjective = draw.adjective(noun) if draw.maybe(0.4) else None
    subject = Phrase(noun, chosen.english, adjective, plural=True)
    return say(draw.clause("state", subject=subject))


@pattern
def every(draw: Draw) -> Words:
    """jeder as the subject."""
    return say(draw.clause("state", subject=draw.phrase(draw.noun("job", "young"), "every", 0.2)))


@pattern
def price(draw: Draw) -> Words:
    """A price."""
    noun = draw.noun("clothing", "bag", "print", "toy", "tool", "dishes", "bloom")
    chosen = number(draw)
    draw.met("price", chosen.german, noun.german)
    subject = draw.phrase(noun, draw.one(("the", "this")), 0.4)
    amount = Words(f"{chosen.english} euros", f"{chosen.german} Euro")
    return say(Clause(subject, lexicon.verb("cost", "kosten"), complement=amount))


@pattern
def age(draw: Draw) -> Words:
    """An age."""
    years = number(draw)
    relatives: tuple[str, ...] = ("sister", "brother", "neighbour", "friend", "colleague", "aunt", "uncle")
    if "-" not in years.english:
        relatives = ("son", "daughter", "nephew", "niece", "grandson", "granddaughter")
    person: Nominal = (
        draw.name() if "-" in years.english and draw.maybe(0.3) else Phrase(draw.noun(*relatives), draw.one(OWNERS))
    )
    draw.met("age", years.german, person.german("nominative"))
    age = Words(f"{years.english} years old", f"{years.german} Jahre alt")
    return say(Clause(person, BE, complement=age))


@pattern
def what_time(draw: Draw) -> Words:
    """The time of day."""
    now = clock(draw)
    return sentence(f"it is {now.english}", f"es ist {now.german}")


@pattern
def starts_at(draw: Draw) -> Words:
    """When something starts, ends, arrives or leaves: separable verbs and the time of day."""
    verb = draw.one([one for one in lexicon.verbs() if one.english in ("start", "end", "arrive", "leave")])
    noun = draw.noun(*[one for one in verb.subjects if one != "person"])
    draw.met("subject and verb", noun.german, verb.german)
    at = clock(draw)
    subject = draw.phrase(noun, "the", 0.0)
    tense: Tense = draw.one(("present", "past"))
    return say(Clause(subject, verb, tense=tense, time=Words(f"at {at.english}", f"um {at.german}")))


@pattern
def at_a_time(draw: Draw) -> Words:
    """What somebody does at a time of day."""
    at = clock(draw)
    verb = draw.one(
        [one for one in verbs_of(("going", "done"), 0, "person") if not one.where and one.english != "arrive"]
    )
    return say(draw.clause(verb=verb, time=Words(f"at {at.english}", f"um {at.german}")))


@pattern
def today_is(draw: Draw) -> Words:
    """A date in the nominative."""
    day, month = date(draw)
    start = draw.one(
        (Words("today is", "heute ist"), Words("yesterday was", "gestern war"), Words("tomorrow is", "morgen ist"))
    )
    return sentence(
        f"{start.english} the {day.english} of {month.english}", f"{start.german} der {day.german}e {month.german}"
    )


@pattern
def on_the_date(draw: Draw) -> Words:
    """A date in the dative: am dritten Mai."""
    day, month = date(draw)
    time = Words(f"on the {day.english} of {month.english}", f"am {day.german}en {month.german}")
    return say(draw.clause("done", "future", time=time))


@pattern
def on_monday(draw: Draw) -> Words:
    """A day of the week: am Montag."""
    day = draw.word("weekday")
    time = Words(f"on {day.english}", f"am {day.german}")
    return say(
        draw.clause("done befalls timed", "past" if draw.maybe(0.5) else "future", time=time), fronted=draw.maybe(0.3)
    )


@pattern
def in_month(draw: Draw) -> Words:
    """A month: im Mai."""
    month = draw.word("month")
    verb = draw.one([one for one in lexicon.verbs() if one.english in ("travel", "fly", "visit", "rent", "plan")])
    return say(draw.clause(verb=verb, tense="future", time=Words(f"in {month.english}", f"im {month.german}")))


@pattern
def born(draw: Draw) -> Words:
    """A year, and the passive of the past: wurde geboren."""
    person = draw.name() if draw.maybe(0.5) else Phrase(draw.noun("family"), draw.one(OWNERS))
    year, town = 1930 + int(draw.chance.random() * 80), draw.one(lexicon.places_of(("town",))).at
    draw.met("born", town.german, person.german("nominative"))
    return sentence(
        f"{person.english()} was born in {year} {town.english}",
        f"{person.german('nominative')} wurde {year} {town.german} geboren",
    )


@pattern
def for_years(draw: Draw) -> Words:
    """What has gone on for some time: seit and the present."""
    verb = draw.one(
        [one for one in lexicon.verbs() if one.german in ("wohnen", "arbeiten", "warten", "suchen", "schlafen")]
    )
    clause = draw.clause(verb=verb, definite=True)
    unit = draw.one(
        [
            one
            for one in lexicon.words("duration")
            if (one.english in ("month", "year")) == (verb.english in ("live", "work"))
        ]
    )
    some = draw.one(NUMBERS)
    draw.met("duration", some.german, unit.german)
    has = "has" if clause.subject.agreement == "3s" else "have"
    german = replace(clause, time=Words("", f"seit {some.german} {PLURALS[unit.german]}"))
    return sentence(
        en.joined([clause.subject.english(), has, "been", en.bare(clause, en.gerund(verb.english))])
        + f" for {some.english} {unit.english}s",
        de.statement(german),
    )


@pattern
def floor(draw: Draw) -> Words:
    """An ordinal number in the dative."""
    storey = draw.one(lexicon.words("ordinal")[:12])
    subject = draw.person() if draw.maybe(0.6) else draw.name()
    draw.does(subject, lexicon.verb("live", "wohnen"))
    draw.met("floor", storey.german, subject.german("nominative"))
    where = Words(f"on the {storey.english} floor", f"im {storey.german}en Stock")
    return say(Clause(subject, lexicon.verb("live", "wohnen"), complement=where))


# Where and whither


@pattern
def there_is(draw: Draw) -> Words:
    """es gibt, with a place in front."""
    noun, place = draw.noun("building", "sight"), draw.one(lexicon.places_of(("town", "country"))).at
    draw.met("there is", noun.german, place.german)
    quantity = draw.one(("a", "a", "many", "no", "two", "three"))
    plural = quantity in ("many", "two", "three")
    phrase = Phrase(noun, quantity, draw.adjective(noun) if draw.maybe(0.4) else None, plural)
    be, gibt = draw.one(((("is", "are"), "gibt"), (("was", "were"), "gab")))
    return sentence(
        f"there {be[plural]} {phrase.english()} {place.english}",
        f"{place.german} {gibt} es {phrase.german('accusative')}",
    )


def spot(draw: Draw, noun: Noun, case: Case) -> Words:
    """A preposition with two cases, and a piece of furniture or a bag that ``noun`` can be on, in or beside."""
    kind = draw.one(("on", "on", "in", "near", "near"))
    if kind == "in" and {"bag", "hollow"} & noun.classes:
        kind = "on"
    classes = {"on": ("surface",), "in": ("hollow",), "near": ("table", "desk", "bed", "sofa", "armchair", "mirror")}
    nouns = [one for one in lexicon.nouns_of(classes[kind]) if one is not noun]
    preposition = draw.word(kind)
    place = draw.phrase(draw.one(nouns), draw.one(("the", "the", "my", "your", "this")), 0.2)
    draw.met("thing and place", noun.german, place.noun.german)
    return Words(
        f"{preposition.english} {place.english(subject=False)}", de.after(preposition.german, place.german(case))
    )


@pattern
def where_it_is(draw: Draw) -> Words:
    """A preposition with the dative: where something stands or lies."""
    verb = draw.one([one for one in verbs_of(("placed",)) if not one.slots])
    noun = draw.noun(*verb.subjects)
    subject = draw.phrase(noun, draw.one(("the", "the", "my", "your", "his", "her")), 0.3, plural=0.25)
    return say(Clause(subject, verb, complement=spot(draw, noun, "dative"), negated=draw.maybe(0.2)))


@pattern
def where_it_goes(draw: Draw) -> Words:
    """A preposition with the accusative: where something is put."""
    verb = draw.one([one for one in verbs_of(("placed",)) if one.slots])
    clause = draw.clause(verb=verb, tense="past", definite=True)
    put = clause.objects[0]
    assert isinstance(put, Phrase)
    return say(replace(clause, complement=spot(draw, put.noun, "accusative")))


@pattern
def whither(draw: Draw) -> Words:
    """Going somewhere: nach, zu, in with the accusative; the perfect with sein."""
    verb = draw.one([one for one in lexicon.verbs() if one.where == "to"])
    tense, kind = draw.one((("past", "past"), ("future", "future"), ("present", "habit")))
    return say(draw.clause(verb=verb, tense=tense, time=draw.word(kind)))  # type: ignore[arg-type]


@pattern
def by_train(draw: Draw) -> Words:
    """Time, means, place: mit dem Zug nach Berlin."""
    verb, means, going = lexicon.verb("travel", "reisen"), draw.word("means"), draw.one(lexicon.places_of(("far",)))
    place = going.to
    assert place is not None
    clause = Clause(draw.subject(verb), verb)
    draw.met("means and place", means.german, place.german)
    draw.met("verb and place", verb.german, going.at.german)
    way = Words(f"{place.english} {means.english}", f"{means.german} {place.german}")
    tense, kind = draw.one((("past", "past"), ("future", "future")))
    return say(replace(clause, complement=way, tense=tense, time=draw.word(kind)))  # type: ignore[arg-type]


@pattern
def origin(draw: Draw) -> Words:
    """Where somebody is from: kommen aus."""
    place = draw.one(lexicon.places_of(("town", "country"))).at
    subject = draw.person() if draw.maybe(0.5) else draw.name()
    draw.met("origin", place.german, subject.german("nominative"))
    where = Words("from" + place.english[2:], "aus" + place.german[2:])
    return say(Clause(subject, lexicon.verb("come", "kommen"), complement=where))


# People and things


@pattern
def dative(draw: Draw) -> Words:
    """Verbs with the dative."""
    verb = draw.one(
        [one for one in lexicon.verbs() if [slot.case for slot in one.slots if not slot.preposition] == ["dative"]]
    )
    if verb.aspect == "state":
        return say(draw.clause(verb=verb, negated=draw.maybe(0.3)))
    return say(draw.clause(verb=verb, tense="past", time=draw.word("past") if draw.maybe(0.5) else None))


@pattern
def dative_and_accusative(draw: Draw) -> Words:
    """Verbs with a dative and an accusative."""
    verb = draw.one(verbs_of(("done", "going"), 2))
    tense, kind = draw.one((("past", "past"), ("future", "future")))
    return say(draw.clause(verb=verb, tense=tense, time=draw.word(kind)))  # type: ignore[arg-type]


@pattern
def pronouns(draw: Draw) -> Words:
    """Pronouns as subject and object, in the accusative and dative."""
    verb = draw.one(
        [one for one in lexicon.verbs() if one.slots and "person" in one.slots[0].classes and "person" in one.subjects]
    )
    subject = draw.one(PRONOUNS)
    other = draw.one([one for one in PRONOUNS if one.agreement[0] != subject.agreement[0]])
    objects: list[Nominal] = [other, *(draw.filler(verb, slot, subject) for slot in range(1, len(verb.slots)))]
    draw.met("verb and object", verb.german, other.word)
    clause = Clause(subject, verb, objects)
    if verb.aspect == "state":
        return say(clause)
    return say(replace(clause, tense="past", time=draw.word("past")))


@pattern
def reflexive(draw: Draw) -> Words:
    """Reflexive verbs, in the accusative and dative."""
    verb = draw.one([one for one in lexicon.verbs() if one.reflexive])
    if verb.aspect == "state":
        return say(draw.clause(verb=verb))
    return say(draw.clause(verb=verb, tense="past", time=draw.word("past")))


@pattern
def prepositional(draw: Draw) -> Words:
    """Verbs with a preposition and its case."""
    verb = draw.one([one for one in lexicon.verbs() if one.slots and one.slots[0].preposition and not one.reflexive])
    tense, kind = draw.one((("past", "past"), ("progressive", ""), ("future", "future")))
    return say(draw.clause(verb=verb, tense=tense, time=draw.word(kind) if kind else None))  # type: ignore[arg-type]


@pattern
def genitive(draw: Draw) -> Words:
    """Whose it is: the genitive."""
    owner, owned = (
        draw.noun("job", "young", "king", "queen", "man", "woman"),
        draw.noun("private", "pet", "bag", "clothing", "home", "device"),
    )
    draw.met("owner and owned", owner.german, owned.german)
    adjective = draw.adjective(owned)
    plural = draw.maybe(0.3)
    phrase = Phrase(owner, "the", None, plural)
    whole = Phrase(owned, "the", following=Words("", f" {phrase.german('genitive')}"))
    subject = Fixed(Words(f"{en.possessor(phrase.english())} {owned.english}", whole.german("nominative")))
    return say(Clause(subject, BE, complement=said_of(adjective), tense=draw.one(("present", "past"))))


@pattern
def name_genitive(draw: Draw) -> Words:
    """Whose it is: a name in the genitive, and the adjective after it."""
    name = draw.name()
    while name.words.english.endswith(("s", "z")) or " " in name.words.english:
        name = draw.name()
    noun = draw.noun("private", "pet", "bag", "clothing", "instrument", "toy", "written")
    draw.met("owner and owned", name.words.german, noun.german)
    thing = draw.phrase(noun, f"{name.words.english}'s", 0.5)
    verb = draw.one([lexicon.verb("see", "sehen"), lexicon.verb("find", "finden"), lexicon.verb("look", "suchen")])
    draw.met("verb and object", verb.german, noun.german)
    subject = draw.one([one for one in PRONOUNS if one.agreement != "3s"])
    return say(Clause(subject, verb, [thing], tense="past", time=draw.word("past")))


@pattern
def belongs_to(draw: Draw) -> Words:
    """gehören: a thing as the subject, a person in the dative."""
    return say(draw.clause(verb=lexicon.verb("belong", "gehören")))


@pattern
def two_things(draw: Draw) -> Words:
    """Two objects joined by und, each with its article."""
    verb = draw.one(verbs_for_two("done", "going"))
    first, second = two_nouns(draw, verb)
    determiner = "the" if not (first.german_plural and second.german_plural) else draw.one(("the", "a"))
    both = Both(draw.phrase(first, determiner, 0.2), draw.phrase(second, determiner, 0.2))
    return say(
        Clause(draw.subject(verb), verb, [both], tense="past", time=draw.word("past") if draw.maybe(0.5) else None)
    )


@pattern
def two_people(draw: Draw) -> Words:
    """Two people as the subject."""
    both = Both(draw.person(0.0), draw.name())
    return say(draw.clause("going done", draw.one(("past", "future")), subject=both, definite=True))


@pattern
def for_somebody(draw: Draw) -> Words:
    """A present for somebody: für."""
    verb = draw.one(
        [
            one
            for one in lexicon.verbs()
            if one.german in ("kaufen", "backen", "kochen", "pflücken", "zeichnen", "malen")
        ]
    )
    clause = draw.clause(verb=verb, tense="past", time=draw.word("past"))
    noun = draw.noun("family")
    person = Phrase(noun, draw.own(clause.subject))
    draw.met("verb and for", verb.german, noun.german)
    return say(replace(clause, complement=Words(f"for {person.english(False)}", f"für {person.german('accusative')}")))


@pattern
def with_somebody(draw: Draw) -> Words:
    """Company: mit and the dative, before the place."""
    clause = draw.clause(verb=lexicon.verb("go", "gehen"), tense="past")
    noun = draw.noun("family")
    person = Phrase(noun, draw.own(clause.subject))
    draw.met("with", noun.german, clause.complement.german if clause.complement else "")
    assert clause.complement is not None
    way = Words(
        f"{clause.complement.english} with {person.english(False)}",
        f"mit {person.german('dative')} {clause.complement.german}",
    )
    return say(replace(clause, complement=way, time=draw.word("past")))


@pattern
def profession(draw: Draw) -> Words:
    """A profession, in German without an article."""
    job = draw.noun("job")
    noun = draw.noun("family")
    if noun.gender != job.gender:
        return profession(draw)
    draw.met("profession", noun.german, job.german)
    person = Phrase(noun, draw.one(OWNERS))
    if draw.maybe(0.6) and noun.english in ("son", "daughter", "nephew", "niece", "grandson", "granddaughter"):
        return sentence(
            f"{person.english()} would like to become {Phrase(job, 'a').english()}",
            f"{person.german('nominative')} möchte {job.german} werden",
        )
    return say(
        Clause(
            person, BE, complement=Words(Phrase(job, "a").english(), job.german), tense=draw.one(("present", "past"))
        )
    )


@pattern
def plays(draw: Draw) -> Words:
    """Instruments and games, in German without an article."""
    if draw.maybe(0.5):
        noun = draw.noun("instrument")
        played = Words(f"the {noun.english}", noun.german)
    else:
        played = draw.word("sport")
    subject = draw.person() if draw.maybe(0.6) else draw.pronoun()
    draw.does(subject, lexicon.verb("play", "spielen"))
    draw.met("plays", played.german, subject.german("nominative"))
    time = draw.word("habit")
    clause = Clause(subject, lexicon.verb("play", "spielen"), complement=played)
    if draw.maybe(0.5):
        return say(replace(clause, frequency=draw.word("frequency")))
    return say(replace(clause, time=time))


@pattern
def speaks(draw: Draw) -> Words:
    """Languages."""
    tongue = draw.word("tongue")
    subject = draw.person() if draw.maybe(0.6) else draw.pronoun()
    draw.does(subject, lexicon.verb("speak", "sprechen"))
    draw.met("speaks", tongue.german, subject.german("nominative"))
    how = draw.one((Words(" very well", "sehr gut "), Words("", ""), Words(" quite well", "ziemlich gut ")))
    said = Words(tongue.english + how.english, how.german + tongue.german)
    return say(Clause(subject, lexicon.verb("speak", "sprechen"), complement=said))


@pattern
def weather(draw: Draw) -> Words:
    """It rains and it snows: es."""
    kind, place = draw.word("weather"), draw.one(lexicon.places_of(("town", "country"))).at
    draw.met("weather", kind.german, place.german)
    if draw.maybe(0.4):
        return sentence(
            f"it is {en.gerund(kind.english)} {place.english}",
            f"es {de.present(kind.german, '3s')} gerade {place.german}",
        )
    if draw.maybe(0.5):
        time = draw.word("past")
        participle = {"regnen": "geregnet", "schneien": "geschneit"}[kind.german]
        return sentence(
            f"it {en.regular_past(kind.english)} {place.english} {time.english}",
            f"es hat {time.german} {place.german} {participle}",
        )
    time = draw.word("future")
    return sentence(
        f"it will {kind.english} {place.english} {time.english}", f"es wird {time.german} {place.german} {kind.german}"
    )


@pattern
def passive(draw: Draw) -> Words:
    """The passive: wurde and wird gerade."""
    verb = draw.one(
        [one for one in plain_verbs("going", "done") if one.tail in ("", *en.PARTICLES) and not one.reflexive]
    )
    noun = countable(draw, verb)
    thing = draw.phrase(noun, "the", 0.3, plural=0.25)
    be = en.BE[thing.agreement]
    if verb.aspect == "going" and draw.maybe(0.4):
        return sentence(
            en.joined([thing.english(), be[0], "being", verb.participle, verb.tail]),
            f"{thing.german('nominative')} {de.present('werden', thing.agreement)} gerade {verb.german_participle}",
        )
    time = draw.word("past")
    return sentence(
        en.joined([thing.english(), be[1], verb.participle, verb.tail, time.english]),
        en.joined(
            [
                thing.german("nominative"),
                de.preterite("werden", thing.agreement),
                time.german,
                verb.german_participle,
            ]
        ),
    )


# Two sentences, where a pronoun takes up a noun


@pattern
def cannot_find_it(draw: Draw) -> Words:
    """A pronoun that agrees with the noun before it, as an object."""
    noun = draw.noun("thing", "carried", "jewel", "clothing")
    plural = draw.maybe(0.25)
    phrase = Phrase(
        noun, draw.one(("the", "my", "our", "your")), draw.adjective(noun) if draw.maybe(0.4) else None, plural
    )
    draw.met("pattern and noun", "wo ist", noun.german)
    it = "sie" if plural else {"m": "ihn", "f": "sie", "n": "es"}[noun.gender]
    first = ask(Clause(phrase, BE), Words("where", "wo"))
    second = Clause(
        draw.one((ME, WE)), lexicon.verb("find", "finden"), [replace_it(it, plural)], modal="can", negated=True
    )
    return both_sentences(first, say(second))


@pattern
def this_is_it(draw: Draw) -> Words:
    """A pronoun that agrees with the noun before it, after what was done with it."""
    verb = draw.one(
        (lexicon.verb("buy", "kaufen"), lexicon.verb("find", "finden"), lexicon.verb("repair", "reparieren"))
    )
    noun = countable(draw, verb)
    it = {"m": "ihn", "f": "sie", "n": "es"}[noun.gender]
    phrase = Phrase(noun, draw.one(("my", "our", "a")), draw.adjective(noun) if draw.maybe(0.5) else None)
    first = Clause(Fixed(Words("this", "das")), BE, complement=Words(phrase.english(), phrase.german("nominative")))
    second = Clause(draw.one((ME, WE)), verb, [replace_it(it, False)], tense="past", time=draw.word("past"))
    return both_sentences(say(first), say(second))


@pattern
def it_is(draw: Draw) -> Words:
    """A pronoun that agrees with the noun before it, as the subject."""
    verb = draw.one([one for one in plain_verbs("done") if one.english in ("buy", "sell", "find", "lose", "rent")])
    noun = countable(draw, verb)
    adjective = draw.adjective(noun)
    first = Clause(draw.subject(verb), verb, [Phrase(noun, "a")], tense="past", time=draw.word("past"))
    it = Fixed(Words("it", {"m": "er", "f": "sie", "n": "es"}[noun.gender]), pronoun=True)
    second = Clause(
        it, BE, complement=said_of(adjective, draw.word("degree") if adjective.english_comparative else NOTHING)
    )
    return both_sentences(say(first), say(second))


def replace_it(german: str, plural: bool) -> Fixed:
    """``it`` or ``them``, and the German pronoun."""
    return Fixed(Words("them" if plural else "it", german), pronoun=True)


def both_sentences(first: Words, second: Words) -> Words:
    """One sentence after the other."""
    return Words(f"{first.english} {second.english}", f"{first.german} {second.german}")


def examples() -> dict[str, tuple[str, Words]]:
    """For each pattern what it shows, and one sentence pair."""
    return {
        name: ((function.__doc__ or "").splitlines()[0], function(Draw(random.Random(name))))
        for name, function in PATTERNS.items()
    }
