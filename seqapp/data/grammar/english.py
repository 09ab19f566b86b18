"""English: inflection, noun phrases, and clauses in their order of words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqapp.data.grammar.lexicon import Adjective, Noun
    from seqapp.data.grammar.phrases import Clause

PRONOUNS = {"I": "me", "you": "you", "he": "him", "she": "her", "it": "it", "we": "us", "they": "them"}
DOUBLED = {"travel", "forget", "begin"}
PARTICLES = {"up", "on", "off", "in", "away", "along"}
MODALS = {  # an auxiliary or a verb, and what stands between it and the infinitive
    "can": ("can", []),
    "must": ("must", []),
    "should": ("should", []),
    "would like": ("would", ["like", "to"]),
    "be allowed": ("be", ["allowed", "to"]),
    "want": ("want", ["to"]),
    "have": ("have", ["to"]),
}
LEXICAL = {"want": "wanted", "have": "had"}  # modals that need "do"
BE = {"1s": ("am", "was"), "2s": ("are", "were"), "3s": ("is", "was"), "1p": ("are", "were"), "3p": ("are", "were")}
POSSESSIVES = {"1s": "my", "2s": "your", "1p": "our", "3p": "their"}
_VOWELS = "aeiou"


def regular_plural(noun: str) -> str:
    """``box`` -> ``boxes``; verbs end so in the third person too."""
    if noun.endswith(("s", "sh", "ch", "x", "z")):
        return noun + "es"
    if noun[-1] == "y" and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(verb: str) -> str:
    """``read`` -> ``reads``."""
    return {"have": "has", "be": "is", "go": "goes", "do": "does"}.get(verb) or regular_plural(verb)


def regular_past(verb: str) -> str:
    """``carry`` -> ``carried``."""
    if verb.endswith("e"):
        return verb + "d"
    if verb[-1] == "y" and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return _doubled(verb) + "ed"


def gerund(verb: str) -> str:
    """``write`` -> ``writing``."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith("ee") and verb != "be":
        return verb[:-1] + "ing"
    return _doubled(verb) + "ing"


def _doubled(verb: str) -> str:
    """The last consonant twice after a short stressed vowel."""
    return verb + verb[-1] if verb in DOUBLED or re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb) else verb


def compared(adjective: str) -> tuple[str, str]:
    """Comparative and superlative of a short adjective: ``big`` -> ``bigger``, ``biggest``."""
    if adjective[-1] == "y" and adjective[-2] not in _VOWELS:
        stem = adjective[:-1] + "i"
    elif adjective[-1] == "e":
        stem = adjective[:-1]
    else:
        stem = _doubled(adjective)
    return stem + "er", stem + "est"


def article(following: str) -> str:
    """``a`` or ``an``, by how the next word starts."""
    return "an" if following[0].lower() in _VOWELS and not following.startswith(("uni", "eu")) else "a"


def noun_phrase(noun: Noun, determiner: str, adjective: str = "", plural: bool = False) -> str:
    """``the``, ``this``, a possessive, a number or ``""``, then the adjective and the noun."""
    words = [adjective] if adjective else []
    words.append(noun.english_plural if plural else noun.english)
    if determiner == "a":
        determiner = article(words[0]) if noun.german_plural and not plural else ""
    elif determiner == "this" and plural:
        determiner = "these"
    return " ".join([determiner, *words] if determiner else words)


def possessor(phrase: str) -> str:
    """``the boys`` -> ``the boys'``, ``Anna`` -> ``Anna's``."""
    return phrase + ("'" if phrase.endswith("s") else "'s")


def possessive(clause: Clause) -> str:
    """``my``, ``his``, ...: of the subject."""
    subject = clause.subject
    if subject.agreement != "3s":
        return POSSESSIVES[subject.agreement]
    return "her" if subject.english() == "girl" else {"m": "his", "f": "her", "n": "its"}[subject.gender]


def negative(auxiliary: str) -> str:
    """``can`` -> ``can't``."""
    irregular = {"am": "am not", "will": "won't", "can": "can't"}
    return irregular.get(auxiliary, auxiliary + "n't")


def predicate(clause: Clause, inverted: bool = False) -> tuple[str, list[str]]:
    """(auxiliary or ``""``, the other words of the verb), ``do`` included where negation or inversion needs it."""
    verb, agreement, past = clause.verb, clause.subject.agreement, clause.tense == "past"
    if clause.modal:
        head, after = MODALS[clause.modal]
        rest = [*after, verb.english]
        if head == "be":
            return BE[agreement][past], rest
        if clause.modal not in LEXICAL:
            return ("could" if past else head), rest
        forms = (head, LEXICAL[clause.modal])
    elif clause.tense == "progressive":
        return BE[agreement][0], [gerund(verb.english)]
    elif clause.tense == "perfect":
        return ("has" if agreement == "3s" else "have"), [verb.participle]
    elif clause.tense in ("future", "conditional"):
        return ("will" if clause.tense == "future" else "would"), [verb.english]
    elif verb.english == "be":
        return BE[agreement][past], []
    else:
        forms, rest = (verb.english, verb.past), []
    if clause.negated or inverted:
        return ("did" if past else "does" if agreement == "3s" else "do"), [forms[0], *rest]
    return "", [forms[1] if past else third_person(forms[0]) if agreement == "3s" else forms[0], *rest]


def complements(clause: Clause) -> list[str]:
    """What follows the verb: its tail, the objects, the place."""
    tail = clause.verb.tail.replace("one's", possessive(clause)) if "one's" in clause.verb.tail else clause.verb.tail
    objects = [one.english(subject=False) for one in clause.objects if one]
    if len(clause.verb.slots) == 2:
        words = [*objects[1:], tail, objects[0]] if tail else objects
    elif tail in PARTICLES and objects and objects[0] in PRONOUNS.values():
        words = [*objects, tail]
    else:
        words = [tail, *objects]
    return [*words, clause.complement.english if clause.complement else ""]


def statement(clause: Clause, fronted: bool = False) -> str:
    """Subject, verb, complements, time; the time first if ``fronted``."""
    auxiliary, verb = predicate(clause)
    auxiliary = negative(auxiliary) if clause.negated else auxiliary
    often = clause.frequency.english if clause.frequency else ""
    time = clause.time.english if clause.time else ""
    words = [clause.subject.english(), auxiliary, often, *verb, *complements(clause)]
    return joined([time, *words] if fronted else [*words, time])


def question(clause: Clause, word: str = "") -> str:
    """The auxiliary before the subject, after the question word if there is one."""
    auxiliary, verb = predicate(clause, inverted=True)
    often = clause.frequency.english if clause.frequency else ""
    time = clause.time.english if clause.time else ""
    return joined([word, auxiliary, clause.subject.english(), often, *verb, *complements(clause), time])


def bare(clause: Clause, form: str = "") -> str:
    """The clause without its subject and tense: its verb as it is in ``form``, or the base form."""
    return joined([form or clause.verb.english, *complements(clause), clause.time.english if clause.time else ""])


def joined(words: Sequence[str]) -> str:
    """The words that are not empty, with spaces between."""
    return " ".join(filter(None, words))


def comparison(adjective: Adjective) -> str:
    """``bigger than``."""
    return f"{adjective.english_comparative} than"
