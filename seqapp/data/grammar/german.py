"""German: inflection, noun phrases, and clauses in their order of words.

Tables by Duden, Die Grammatik (2016): declension of nouns, articles and adjectives; a clause is the sentence bracket,
with the finite verb second, first or last, and the middle field between it and what closes the bracket.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from seqapp.data.grammar.english import joined
from seqapp.data.grammar.lexicon import Case, Noun, Verb, words

if TYPE_CHECKING:
    from seqapp.data.grammar.phrases import Clause

# Endings for masculine, feminine, neuter and plural.
DER = {
    "nominative": ("der", "die", "das", "die"),
    "accusative": ("den", "die", "das", "die"),
    "dative": ("dem", "der", "dem", "den"),
    "genitive": ("des", "der", "des", "der"),
}
DIESER = {  # also jeder and welcher
    "nominative": ("er", "e", "es", "e"),
    "accusative": ("en", "e", "es", "e"),
    "dative": ("em", "er", "em", "en"),
    "genitive": ("es", "er", "es", "er"),
}
EIN = {**DIESER, "nominative": ("", "e", "", "e"), "accusative": ("en", "e", "", "e")}  # also kein, mein, ...
STRONG = {**DIESER, "genitive": ("en", "er", "en", "er")}
WEAK = {
    "nominative": ("e", "e", "e", "en"),
    "accusative": ("en", "e", "e", "en"),
    "dative": ("en", "en", "en", "en"),
    "genitive": ("en", "en", "en", "en"),
}
MIXED = {**WEAK, "nominative": ("er", "e", "es", "en"), "accusative": ("en", "e", "es", "en")}

DETERMINERS = {
    "a": "ein",
    "no": "kein",
    "my": "mein",
    "your": "dein",
    "his": "sein",
    "her": "ihr",
    "its": "sein",
    "our": "unser",
    "their": "ihr",
    "this": "dies",
    "every": "jed",
    "which": "welch",
}
PRONOUNS = {
    "I": ("ich", "mich", "mir"),
    "you": ("du", "dich", "dir"),
    "he": ("er", "ihn", "ihm"),
    "she": ("sie", "sie", "ihr"),
    "it": ("es", "es", "ihm"),
    "we": ("wir", "uns", "uns"),
    "they": ("sie", "sie", "ihnen"),
}
REFLEXIVES = {
    "1s": ("mich", "mir"),
    "2s": ("dich", "dir"),
    "3s": ("sich", "sich"),
    "1p": ("uns", "uns"),
    "3p": ("sich", "sich"),
}
MODALS = {
    "can": "können",
    "must": "müssen",
    "have": "müssen",
    "should": "sollten",
    "would like": "möchten",
    "want": "wollen",
    "be allowed": "dürfen",
}
PERSONS = ("1s", "2s", "3s", "1p", "3p")
PRESENT = {  # ich, du, er, wir, sie
    "sein": ("bin", "bist", "ist", "sind", "sind"),
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "werden": ("werde", "wirst", "wird", "werden", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
    "mögen": ("mag", "magst", "mag", "mögen", "mögen"),
    "können": ("kann", "kannst", "kann", "können", "können"),
    "müssen": ("muss", "musst", "muss", "müssen", "müssen"),
    "wollen": ("will", "willst", "will", "wollen", "wollen"),
    "dürfen": ("darf", "darfst", "darf", "dürfen", "dürfen"),
    "sollten": ("sollte", "solltest", "sollte", "sollten", "sollten"),
    "möchten": ("möchte", "möchtest", "möchte", "möchten", "möchten"),
}
PRETERITE = {
    "haben": "hatte",
    "werden": "wurde",
    "wissen": "wusste",
    "mögen": "mochte",
    "können": "konnte",
    "müssen": "musste",
    "wollen": "wollte",
    "dürfen": "durfte",
}
SUBJUNCTIVE = {"haben": "hätte", "sein": "wäre", "werden": "würde"}
CONTRACTED = {
    "in das": "ins",
    "in dem": "im",
    "an das": "ans",
    "an dem": "am",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
    "bei dem": "beim",
}
_NEEDS_E = re.compile(r"([dt]|(ch|[bdfgkpt])[nm])$")  # arbeit-est, zeichn-est


def column(noun: Noun, plural: bool) -> int:
    """Where the tables above keep the endings that go with ``noun``."""
    return 3 if plural else "mfn".index(noun.gender)


def decline(noun: Noun, case: Case, plural: bool = False) -> str:
    """The noun alone: dative plurals end in -n, weak masculines in -(e)n outside the nominative."""
    if plural:
        form = noun.german_plural
        return form + "n" if case == "dative" and not form.endswith(("n", "s")) else form
    if case == "genitive" or (noun.weak and case != "nominative"):
        return noun.german + noun.genitive.lstrip("-")
    return noun.german


def stem(adjective: str) -> str:
    """What takes endings: ``dunkl`` of ``dunkel``, ``teur`` of ``teuer``, ``hoh`` of ``hoch``, ``müd`` of ``müde``."""
    if adjective == "hoch":
        return "hoh"
    if adjective.endswith("e"):
        return adjective[:-1]
    return re.sub(r"e(l)$|(?<=[ae]u)e(r)$", r"\1\2", adjective)


def compared(adjective: str) -> tuple[str, str]:
    """Comparative and superlative stems of a regular adjective: ``teuer`` -> ``teurer``, ``teuerst``."""
    ending = "est" if re.search(r"([dtsßz]|sch|eu)$", adjective) else "st"
    if re.search(r"end$|[aeiou].*isch$", adjective):
        ending = "st"
    return stem(adjective) + "er", adjective + ending


def determiner_and_endings(
    determiner: str, case: Case, at: int, bare: bool
) -> tuple[str, dict[str, tuple[str, str, str, str]]]:
    """(the German of ``determiner``, the adjective endings after it); ``bare`` if nothing stands for ``a``."""
    if determiner == "the":
        return DER[case][at], WEAK
    if determiner == "" or (determiner == "a" and bare):
        return "", STRONG
    if determiner in ("this", "every", "which"):
        return DETERMINERS[determiner] + DIESER[case][at], WEAK
    if determiner in DETERMINERS:
        return DETERMINERS[determiner] + EIN[case][at], MIXED
    if determiner.endswith("'s"):
        return determiner[:-2] + "s", STRONG
    return _quantity(determiner, case)


def _quantity(determiner: str, case: Case) -> tuple[str, dict[str, tuple[str, str, str, str]]]:
    quantity = QUANTITIES.get(determiner)
    if quantity is None:
        return NUMBERS[determiner], STRONG
    word = quantity + {"dative": "n", "genitive": "r"}.get(case, "")
    return word, WEAK if quantity == "alle" else STRONG


QUANTITIES = {one.english: one.german for one in words("quantity")}
NUMBERS = {one.english: one.german for kind in ("number", "tens") for one in words(kind)}


def noun_phrase(noun: Noun, determiner: str, case: Case, adjective: str = "", plural: bool = False) -> str:
    """Determiner, adjective (its uninflected form is given) and noun, agreeing with one another."""
    at = column(noun, plural)
    word, endings = determiner_and_endings(determiner, case, at, plural or not noun.german_plural)
    adjective = stem(adjective) + endings[case][at] if adjective else ""
    return joined([word, adjective, decline(noun, case, plural)])


def after(preposition: str, phrase: str) -> str:
    """``in`` and ``das Haus`` -> ``ins Haus``."""
    together = f"{preposition} {phrase}" if preposition else phrase
    start = " ".join(together.split(" ", 2)[:2])
    return CONTRACTED[start] + together[len(start) :] if start in CONTRACTED else together


def root(infinitive: str) -> str:
    """``lesen`` -> ``les``, ``wandern`` -> ``wander``."""
    return infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]


def present(infinitive: str, person: str, third: str = "") -> str:
    """``third`` is the third person singular of a verb whose stem changes there."""
    if infinitive in PRESENT:
        return PRESENT[infinitive][PERSONS.index(person)]
    base = root(infinitive)
    if person in ("1p", "3p"):
        return infinitive
    if person == "1s":
        return (base[:-2] + "l" if infinitive.endswith("eln") else base) + "e"
    if third:
        return third if person == "3s" else _second(third[:-1])
    base += "e" if _NEEDS_E.search(base) else ""
    return base + "t" if person == "3s" else _second(base)


def _second(base: str) -> str:
    return base + ("t" if base.endswith(("s", "ß", "z", "x")) else "st")


def preterite(infinitive: str, person: str) -> str:
    """Of sein, haben, werden, wissen and the modals."""
    if infinitive == "sein":
        return {"2s": "warst", "1p": "waren", "3p": "waren"}.get(person, "war")
    return _weak_past(PRETERITE[infinitive], person)


def subjunctive(infinitive: str, person: str) -> str:
    """The second subjunctive of haben, sein and werden: what would be."""
    return _weak_past(SUBJUNCTIVE[infinitive], person)


def _weak_past(form: str, person: str) -> str:
    return form + {"2s": "st", "1p": "n", "3p": "n"}.get(person, "")


def imperative(verb: Verb) -> str:
    """To one person, without the separable prefix: ``lies``, ``warte``, ``geh``."""
    base = root(verb.infinitive)
    if "i" in verb.present and "i" not in base:
        return verb.present[:-1]
    if verb.infinitive.endswith("eln"):
        return base[:-2] + "le"
    return base + "e" if _NEEDS_E.search(base) or base.endswith(("er", "ig")) else base


def to_infinitive(verb: Verb) -> str:
    """``zu lesen``, ``aufzustehen``."""
    return f"{verb.prefix}zu{verb.infinitive}" if verb.prefix else f"zu {verb.infinitive}"


def bracket(clause: Clause) -> tuple[str, list[str]]:
    """(finite verb, what closes the sentence bracket)."""
    verb, person = clause.verb, clause.subject.agreement
    infinitive = verb.german
    if clause.modal:
        modal = MODALS[clause.modal]
        return (preterite if clause.tense == "past" else present)(modal, person), [infinitive]
    if clause.tense == "future":
        return present("werden", person), [infinitive]
    if clause.tense == "conditional":
        return subjunctive("werden", person), [infinitive]
    if clause.tense == "past" and verb.infinitive in ("sein", "haben", "wissen"):
        return preterite(verb.infinitive, person), []
    if clause.tense in ("past", "perfect"):
        return present(verb.auxiliary, person), [verb.german_participle]
    return present(verb.infinitive, person, verb.present), [verb.prefix]


def middle(clause: Clause) -> list[str]:
    """The middle field: pronouns, time, objects, nicht, what has a preposition, place."""
    pronouns, objects, later = [], [], []
    denied = clause.negated
    if clause.verb.reflexive:
        pronouns.append(REFLEXIVES[clause.subject.agreement][clause.verb.reflexive == "dative"])
    for slot, one in zip(clause.verb.slots, clause.objects, strict=False):
        if one is None:
            continue
        if slot.preposition:
            later.append(after(slot.preposition, one.german(slot.case)))
        elif one.pronoun:
            pronouns.append(one.german(slot.case))
        elif denied and one.indefinite:
            objects.append(one.denied().german(slot.case))
            denied = False
        else:
            objects.append(one.german(slot.case))
    return [
        *pronouns,
        "gerade" if clause.tense == "progressive" and not clause.negated else "",
        clause.time.german if clause.time else "",
        clause.frequency.german if clause.frequency else "",
        *objects,
        clause.verb.fixed,
        clause.particle,
        "nicht" if denied else "",
        *later,
        clause.complement.german if clause.complement else "",
    ]


def after_verb(clause: Clause) -> list[str]:
    """Subject and middle field where the subject is not first: a reflexive pronoun goes before a noun."""
    subject, rest = clause.subject.german("nominative"), middle(clause)
    if clause.verb.reflexive and not clause.subject.pronoun:
        return [rest[0], subject, *rest[1:]]
    return [subject, *rest]


def statement(clause: Clause, fronted: bool = False) -> str:
    """The finite verb second, after the subject or the time."""
    finite, closing = bracket(clause)
    if not fronted:
        return joined([clause.subject.german("nominative"), finite, *middle(clause), *closing])
    assert clause.time is not None
    return joined([clause.time.german, finite, *after_verb(clause.without_time()), *closing])


def question(clause: Clause, word: str = "") -> str:
    """The finite verb first, or after the question word."""
    finite, closing = bracket(clause)
    return joined([word, finite, *after_verb(clause), *closing])


def subordinate(clause: Clause) -> str:
    """The finite verb last; a separable prefix joins it."""
    finite, closing = bracket(clause)
    if closing and closing == [clause.verb.prefix]:
        return joined([*after_verb(clause), closing[0] + finite])
    return joined([*after_verb(clause), *closing, finite])


def bare(clause: Clause, form: str = "") -> str:
    """The clause without subject and tense, and its verb last: as ``form``, or the infinitive."""
    return joined([*middle(clause), form or clause.verb.german])


def order(clause: Clause) -> str:
    """An imperative to one person."""
    return joined([imperative(clause.verb), *middle(clause), clause.verb.prefix])
