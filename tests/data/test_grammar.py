"""The bundled translation corpus: its German and English by hand-written tables, and what its splits promise."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from seqapp.data import grammar
from seqapp.data.grammar import english, german, lexicon
from seqapp.data.grammar.draw import Draw
from seqapp.data.grammar.lexicon import Case, Words
from seqapp.data.grammar.patterns import PATTERNS
from seqapp.data.grammar.phrases import HE, ME, SHE, THEY, WE, YOU, Both, Clause, Nominal, Phrase, Tense
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs" / "translation-corpus.md").read_text(encoding="utf-8")
CASES: tuple[Case, ...] = ("nominative", "accusative", "dative", "genitive")


@cache
def corpus() -> Splits[SentencePair]:
    return grammar.bundled_translation()


def forms(texts: list[str]) -> set[str]:
    return {form for text in texts for form in text.rstrip(".?!").split()}


def sides(examples: object) -> list[str]:
    return [text for pair in examples for text in (pair.source, pair.target)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("noun", "determiner", "plural", "expected"),
    [
        ("man", "the", False, "der alte Mann, den alten Mann, dem alten Mann, des alten Mannes"),
        ("woman", "the", False, "die alte Frau, die alte Frau, der alten Frau, der alten Frau"),
        ("house", "the", False, "das alte Haus, das alte Haus, dem alten Haus, des alten Hauses"),
        ("house", "the", True, "die alten Häuser, die alten Häuser, den alten Häusern, der alten Häuser"),
        ("man", "a", False, "ein alter Mann, einen alten Mann, einem alten Mann, eines alten Mannes"),
        ("woman", "my", False, "meine alte Frau, meine alte Frau, meiner alten Frau, meiner alten Frau"),
        ("house", "no", False, "kein altes Haus, kein altes Haus, keinem alten Haus, keines alten Hauses"),
        ("house", "our", True, "unsere alten Häuser, unsere alten Häuser, unseren alten Häusern, unserer alten Häuser"),
        ("car", "a", True, "alte Autos, alte Autos, alten Autos, alter Autos"),
        ("wine", "", False, "alter Wein, alten Wein, altem Wein, alten Weines"),
        ("milk", "", False, "alte Milch, alte Milch, alter Milch, alter Milch"),
        ("beer", "", False, "altes Bier, altes Bier, altem Bier, alten Bieres"),
        ("boy", "this", False, "dieser alte Junge, diesen alten Jungen, diesem alten Jungen, dieses alten Jungen"),
        (
            "student",
            "every",
            False,
            "jeder alte Student, jeden alten Studenten, jedem alten Studenten, jedes alten Studenten",
        ),
        ("gentleman", "the", False, "der alte Herr, den alten Herrn, dem alten Herrn, des alten Herrn"),
        ("gentleman", "the", True, "die alten Herren, die alten Herren, den alten Herren, der alten Herren"),
        ("child", "all the", True, "alle alten Kinder, alle alten Kinder, allen alten Kindern, aller alten Kinder"),
        ("child", "many", True, "viele alte Kinder, viele alte Kinder, vielen alten Kindern, vieler alter Kinder"),
        ("dog", "three", True, "drei alte Hunde, drei alte Hunde, drei alten Hunden, drei alter Hunde"),
        ("dog", "Anna's", False, "Annas alter Hund, Annas alten Hund, Annas altem Hund, Annas alten Hundes"),
    ],
)
def test_noun_phrases_agree_in_case_gender_and_number(noun: str, determiner: str, plural: bool, expected: str) -> None:
    one = lexicon.noun(noun)
    assert ", ".join(german.noun_phrase(one, determiner, case, "alt", plural) for case in CASES) == expected


@pytest.mark.parametrize(
    ("adjective", "inflected"),
    [
        ("dunkel", "dunkle"),
        ("teuer", "teure"),
        ("sauer", "saure"),
        ("hoch", "hohe"),
        ("müde", "müde"),
        ("lecker", "leckere"),
    ],
)
def test_stems_of_adjectives_change(adjective: str, inflected: str) -> None:
    assert german.stem(adjective) + "e" == inflected


@pytest.mark.parametrize(
    ("adjective", "degrees"),
    [
        ("old", "older oldest älter ältest"),
        ("good", "better best besser best"),
        ("expensive", "more expensive most expensive teurer teuerst"),
        ("big", "bigger biggest größer größt"),
        ("funny", "funnier funniest lustiger lustigst"),
        ("new", "newer newest neuer neuest"),
        ("exciting", "more exciting most exciting spannender spannendst"),
        ("fresh", "fresher freshest frischer frischest"),
        ("practical", "more practical most practical praktischer praktischst"),
        ("dark", "darker darkest dunkler dunkelst"),
    ],
)
def test_degrees_of_adjectives(adjective: str, degrees: str) -> None:
    one = next(one for one in lexicon.adjectives() if one.english == adjective)
    all_degrees = (one.english_comparative, one.english_superlative, one.german_comparative, one.german_superlative)
    assert " ".join(all_degrees) == degrees


@pytest.mark.parametrize(
    ("infinitive", "third", "expected"),
    [
        ("machen", "", "mache machst macht machen machen"),
        ("arbeiten", "", "arbeite arbeitest arbeitet arbeiten arbeiten"),
        ("öffnen", "", "öffne öffnest öffnet öffnen öffnen"),
        ("wohnen", "", "wohne wohnst wohnt wohnen wohnen"),
        ("lernen", "", "lerne lernst lernt lernen lernen"),
        ("schließen", "", "schließe schließt schließt schließen schließen"),
        ("sitzen", "", "sitze sitzt sitzt sitzen sitzen"),
        ("lesen", "liest", "lese liest liest lesen lesen"),
        ("essen", "isst", "esse isst isst essen essen"),
        ("fahren", "fährt", "fahre fährst fährt fahren fahren"),
        ("laden", "lädt", "lade lädst lädt laden laden"),
        ("bügeln", "bügelt", "bügle bügelst bügelt bügeln bügeln"),
        ("spielen", "", "spiele spielst spielt spielen spielen"),
        ("wandern", "wandert", "wandere wanderst wandert wandern wandern"),
        ("sein", "", "bin bist ist sind sind"),
        ("haben", "", "habe hast hat haben haben"),
        ("werden", "", "werde wirst wird werden werden"),
        ("können", "", "kann kannst kann können können"),
        ("müssen", "", "muss musst muss müssen müssen"),
        ("wollen", "", "will willst will wollen wollen"),
        ("dürfen", "", "darf darfst darf dürfen dürfen"),
        ("wissen", "", "weiß weißt weiß wissen wissen"),
    ],
)
def test_the_present_tense(infinitive: str, third: str, expected: str) -> None:
    assert " ".join(german.present(infinitive, person, third) for person in german.PERSONS) == expected


@pytest.mark.parametrize(
    ("infinitive", "expected"),
    [
        ("sein", "war warst war waren waren"),
        ("haben", "hatte hattest hatte hatten hatten"),
        ("werden", "wurde wurdest wurde wurden wurden"),
        ("müssen", "musste musstest musste mussten mussten"),
        ("können", "konnte konntest konnte konnten konnten"),
    ],
)
def test_the_past_tense(infinitive: str, expected: str) -> None:
    assert " ".join(german.preterite(infinitive, person) for person in german.PERSONS) == expected


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        (("read", "lesen"), "lies"),
        (("help", "helfen"), "hilf"),
        (("forget", "vergessen"), "vergiss"),
        (("see", "sehen"), "sieh"),
        (("carry", "tragen"), "trag"),
        (("open", "öffnen"), "öffne"),
        (("wait", "warten"), "warte"),
        (("iron", "bügeln"), "bügle"),
        (("play", "spielen"), "spiel"),
        (("feed", "füttern"), "füttere"),
        (("apologise", "entschuldigen"), "entschuldige"),
        (("invite", "einladen"), "lade"),
        (("go", "gehen"), "geh"),
    ],
)
def test_the_imperative(verb: tuple[str, str], command: str) -> None:
    assert german.imperative(lexicon.verb(*verb)) == command


@pytest.mark.parametrize(
    ("tense", "modal", "main", "last"),
    [
        ("present", "", "er schaltet das Radio ein", "er das Radio einschaltet"),
        ("past", "", "er hat das Radio eingeschaltet", "er das Radio eingeschaltet hat"),
        ("future", "", "er wird das Radio einschalten", "er das Radio einschalten wird"),
        ("present", "can", "er kann das Radio einschalten", "er das Radio einschalten kann"),
        ("past", "have", "er musste das Radio einschalten", "er das Radio einschalten musste"),
    ],
)
def test_separable_verbs_in_main_and_subordinate_clauses(tense: Tense, modal: str, main: str, last: str) -> None:
    clause = Clause(HE, lexicon.verb("turn", "einschalten"), [Phrase(lexicon.noun("radio"))], tense=tense, modal=modal)
    assert german.statement(clause) == main
    assert german.subordinate(clause) == last


def test_separable_verbs_elsewhere() -> None:
    clause = Clause(YOU, lexicon.verb("turn", "einschalten"), [Phrase(lexicon.noun("radio"))])
    assert german.question(clause) == "schaltest du das Radio ein"
    assert german.order(clause) == "schalte das Radio ein"
    assert german.bare(clause, german.to_infinitive(clause.verb)) == "das Radio einzuschalten"


def test_reflexive_pronouns_and_the_perfect_with_sein() -> None:
    ready = lexicon.verb("hurry", "beeilen")
    subjects = (ME, YOU, SHE, WE, THEY)
    said = [german.statement(Clause(one, ready, tense="past")) for one in subjects]
    assert said == [
        "ich habe mich beeilt",
        "du hast dich beeilt",
        "sie hat sich beeilt",
        "wir haben uns beeilt",
        "sie haben sich beeilt",
    ]
    washing = Clause(ME, lexicon.verb("wash", "waschen"))
    teeth = Clause(ME, next(one for one in lexicon.verbs() if one.fixed == "die Zähne"), time=Words("daily", "täglich"))
    assert washing.verb.german == "waschen"
    assert german.statement(teeth) == "ich putze mir täglich die Zähne"
    assert english.statement(teeth) == "I brush my teeth daily"
    up = Clause(
        Phrase(lexicon.noun("boy")), lexicon.verb("get", "aufstehen"), tense="past", time=Words("today", "heute")
    )
    assert german.statement(up, fronted=True) == "heute ist der Junge aufgestanden"


@pytest.mark.parametrize(
    ("determiner", "expected"),
    [
        ("the", ("he doesn't buy the book", "er kauft das Buch nicht")),
        ("a", ("he doesn't buy a book", "er kauft kein Buch")),
    ],
)
def test_negation(determiner: str, expected: tuple[str, str]) -> None:
    clause = Clause(HE, lexicon.verb("buy", "kaufen"), [Phrase(lexicon.noun("book"), determiner)], negated=True)
    assert (english.statement(clause), german.statement(clause)) == expected


def test_nicht_goes_before_what_has_a_preposition() -> None:
    clause = Clause(SHE, lexicon.verb("wait", "warten"), [], Words("at the lake", "am See"), "past", negated=True)
    assert german.statement(clause) == "sie hat nicht am See gewartet"


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("put", "puts putting"),
        ("write", "writes writing"),
        ("lie", "lies lying"),
        ("carry", "carries carrying"),
        ("travel", "travels travelling"),
        ("visit", "visits visiting"),
        ("wash", "washes washing"),
        ("have", "has having"),
        ("play", "plays playing"),
    ],
)
def test_english_verbs(verb: str, expected: str) -> None:
    assert f"{english.third_person(verb)} {english.gerund(verb)}" == expected


def test_english_past_tenses() -> None:
    pasts = {"plan": "planned", "carry": "carried", "wait": "waited", "bake": "baked", "travel": "travelled"}
    assert {verb: english.regular_past(verb) for verb in pasts} == pasts


def test_half_past_three_is_half_four() -> None:
    clock = PATTERNS["what_time"]
    said = {clock(Draw(random.Random(seed))) for seed in range(2000)}
    assert Words("It is half past three.", "Es ist halb vier.") in said
    assert Words("It is half past twelve.", "Es ist halb eins.") in said
    assert Words("It is one o'clock.", "Es ist ein Uhr.") in said
    assert Words("It is quarter to one.", "Es ist Viertel vor eins.") in said
    assert len(said) == 120


def test_every_class_that_is_named_has_members_and_every_noun_an_adjective() -> None:
    nouns = {name for one in lexicon.nouns() for name in (one.english, *one.classes)}
    places = {name for one in lexicon.places() for name in one.classes}
    for adjective in lexicon.adjectives():
        assert adjective.classes <= nouns, adjective.english
    for verb in lexicon.verbs():
        named = {*verb.subjects, *(name for slot in verb.slots for name in slot.classes)} - {"-"}
        assert named <= nouns, verb.german
        assert set(verb.places) <= places, verb.german
    for noun in lexicon.nouns():
        assert any(one.english_comparative for one in lexicon.adjectives_for(noun)), noun.english


def test_no_noun_has_two_entries() -> None:
    for side in ("english", "german"):
        names = [getattr(one, side) for one in lexicon.nouns()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_makes_whole_sentences(name: str) -> None:
    chance = random.Random(name)
    for _ in range(40):
        pair = PATTERNS[name](Draw(chance))
        for text in (pair.english, pair.german):
            assert re.fullmatch(r"[A-ZÄÖÜ][\w ,'’.?!-]*[\w][.?!]", text), text
            assert not re.search(r"  | ,|,,|\b(None|in dem|zu dem|an dem|von dem|bei dem)\b(?! \w+ \w+)", text), text
        assert pair.english[-1] == pair.german[-1]


def test_an_english_sentence_has_one_german() -> None:
    chance, translations = random.Random(3), dict[str, str]()
    for _ in range(60):
        for function in PATTERNS.values():
            pair = function(Draw(chance))
            assert translations.setdefault(pair.english, pair.german) == pair.german


def test_the_splits_have_the_promised_sizes_and_share_no_sentence() -> None:
    splits = corpus()
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [20_000, 1_000, 1_000]
    assert len(splits.further["natural"]) == 500
    pairs = [*splits.train, *splits.validation, *splits.test]
    for side in ("source", "target"):
        assert len({getattr(pair, side) for pair in pairs}) == len(pairs)


def test_every_word_form_of_validation_and_test_occurs_in_training() -> None:
    splits = corpus()
    known = forms(sides(splits.train))
    assert forms(sides(splits.test)) <= known
    assert forms(sides(splits.validation)) <= known


def test_every_lexical_entry_occurs_in_training() -> None:
    texts = [f" {text.rstrip('.?!').lower().replace(',', '').replace('? ', ' ')} " for text in sides(corpus().train)]
    grams = {
        " ".join(found)
        for words in map(str.split, texts)
        for size in (1, 2, 3)
        for found in zip(*(words[start:] for start in range(size)), strict=False)
    }
    for noun in lexicon.nouns():
        assert {noun.english.lower(), noun.english_plural.lower()} & grams, noun.english
    for adjective in lexicon.adjectives():
        assert adjective.english.lower() in grams, adjective.english
    for verb in lexicon.verbs():
        third = german.present(verb.infinitive, "3s", verb.present)
        assert {verb.german, verb.german_participle, third} & grams, verb.german
    for place in lexicon.places():
        at, _, name = place.at.english.lower().partition(" ")
        assert f"{at} {name}" in grams or name in grams, place


def test_held_out_adjectives_and_nouns_never_meet_in_training() -> None:
    splits = corpus()
    met: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        words = [pair.source.rstrip(".?!").lower().split() for pair in getattr(splits, part)]
        met[part] = {f"{first} {second}" for text in words for first, second in pairwise(text)}
    found: dict[str, set[str]] = {"": set(), "validation": set(), "test": set()}
    verbs = {one.english for one in lexicon.verbs()}  # clean boots, clean the boots
    for noun in lexicon.nouns():
        for adjective in [one for one in lexicon.adjectives_for(noun) if one.english not in verbs]:
            kept = grammar.held_out(f"adjective and noun: {adjective.german} + {noun.german}")
            found[kept].update(f"{adjective.english} {form}".lower() for form in (noun.english, noun.english_plural))
    assert (found["test"] | found["validation"]) & met["train"] == set()
    assert not found["validation"] & met["test"]
    assert not found["test"] & met["validation"]
    assert len(found["test"] & met["test"]) > 20
    assert len(found[""] & met["train"]) > 1_000


def test_what_is_held_out_is_in_every_sentence_of_its_split() -> None:
    """Drawn again, pattern by pattern: a sentence of a split has the combinations that put it there."""
    splits = corpus()
    part_of = {pair.source: name for name in ("train", "validation", "test") for pair in getattr(splits, name)}
    chance, patterns, checked = random.Random(0), grammar.rotation(), 0
    for turn in range(12_000):
        draw = Draw(chance)
        text = patterns[turn % len(patterns)](draw).english
        kept = {grammar.held_out(one) for one in draw.combinations} - {""}
        if text in part_of and len(kept) < 2:
            assert part_of[text] == (kept.pop() if kept else "train"), text
            checked += 1
    assert checked > 8_000


@pytest.mark.parametrize("name", PATTERNS)
def test_whatever_meets_in_a_clause_is_noted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what is held out in one pattern does not slip into training through another."""
    clauses: list[tuple[str, Clause]] = []
    for form in ("statement", "question", "bare"):
        say = getattr(english, form)

        def noting(clause: Clause, *rest: object, form: str = form, say: Callable[..., str] = say) -> str:
            clauses.append((form, clause))
            return say(clause, *rest)

        monkeypatch.setattr(english, form, noting)
    chance = random.Random(name)
    for _ in range(60):
        draw = Draw(chance)
        clauses.clear()
        PATTERNS[name](draw)
        for form, clause in clauses:
            verb = clause.verb.german
            for part in (part for one in clause.objects for part in parts(one)):
                assert f"verb and object: {verb} + {part.noun.german}" in draw.combinations
            if form != "bare" and clause.verb.aspect not in ("help", "placed"):
                for part in parts(clause.subject):
                    assert f"subject and verb: {part.noun.german} + {verb}" in draw.combinations


def parts(nominal: Nominal | None) -> list[Phrase]:
    both = (nominal.first, nominal.second) if isinstance(nominal, Both) else (nominal,)
    return [one for one in both if isinstance(one, Phrase)]


def test_every_pattern_is_in_training_and_nearly_every_one_in_the_test() -> None:
    splits = corpus()
    part_of = {pair.source: name for name in ("train", "test") for pair in getattr(splits, name)}
    chance = random.Random(0)
    seen: dict[str, set[str]] = {name: set() for name in PATTERNS}
    for _ in range(220):
        for function in grammar.rotation():
            seen[function.__name__].add(part_of.get(function(Draw(chance)).english, ""))
    assert [name for name, parts in seen.items() if "train" not in parts] == []
    assert sum("test" in parts for parts in seen.values()) > 0.9 * len(PATTERNS)


def test_equal_seeds_give_equal_corpora_and_others_do_not() -> None:
    first, again, other = (grammar.bundled_translation(300, seed) for seed in (5, 5, 6))
    assert first.digests() == again.digests()
    assert first.digests() != other.digests()
    assert [len(first.train), len(first.validation), len(first.test)] == [300, 15, 15]


@pytest.mark.parametrize("source", ["en", "de"])
def test_either_language_can_be_the_source(source: Literal["en", "de"]) -> None:
    splits = grammar.bundled_translation(50, source=source)
    english_first = grammar.bundled_translation(50)
    for pair, other in zip(splits.train, english_first.train, strict=True):
        assert pair.languages == (source, "de" if source == "en" else "en")
        assert {pair.source, pair.target} == {other.source, other.target}
    assert (splits.train[0].source == english_first.train[0].source) == (source == "en")


def test_a_config_can_name_it() -> None:
    built = SOURCES.build({"kind": "bundled_translation", "pairs": 40, "seed": 1})
    assert len(built.train) == 40


def test_more_pairs_than_the_grammar_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "PATTERNS", {"what_time": PATTERNS["what_time"]})
    with pytest.raises(ConfigError, match=r"pairs 1000: the grammar gave 1.. different sentences"):
        grammar.bundled_translation(1000)


def test_it_is_as_large_as_it_says() -> None:
    size = grammar.size()
    assert sum(size.values()) - size["patterns"] >= 600
    assert size["patterns"] >= 40


def test_the_page_lists_what_the_grammar_has() -> None:
    assert grammar.tables() in PAGE
