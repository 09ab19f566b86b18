"""A table of words and a memory of sentences stand beside every translator."""

import itertools
import math
import random

import pytest

from pipelines import baselines, lexical
from pipelines.baselines import BASELINES, TranslationMemory, run_baseline
from pipelines.lexical import EMPTY, Lexicon, WordByWord, ibm_model_1
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import LabelledText, Splits
from seqapp.data.text import Passage
from seqapp.tasks.sentiment import Sentiment
from seqapp.translation_scores import Translations

TASK = Sentiment()
"""Which task it is does not matter: a pair says all there is to know."""
NAMES = [name for name, method in BASELINES.items() if method.example_type is SentencePair]
KOEHN = ([row.split() for row in ("das Haus", "das Buch", "ein Buch")],
         [row.split() for row in ("the house", "the book", "a book")])  # fmt: skip


@pytest.mark.parametrize(
    ("rounds", "wanted"),
    [
        (0, {"das": (0.25, 0.25, 0.25), "Buch": (0.25, 0.25, 0.25), "ein": (0.25, 0.25)}),
        (1, {"das": (0.5, 0.25, 0.25), "Buch": (0.25, 0.5, 0.25), "ein": (0.5, 0.5)}),
        (2, {"das": (0.6364, 0.1818, 0.1818), "Buch": (0.1818, 0.6364, 0.1818), "ein": (0.4286, 0.5714)}),
        (3, {"das": (0.7479, 0.1313, 0.1208), "Buch": (0.1208, 0.7479, 0.1313), "ein": (0.3466, 0.6534)}),
        (200, {"das": (1, 0, 0), "Buch": (0, 1, 0), "ein": (0, 1)}),
    ],
)
def test_the_worked_example_of_the_literature(rounds: int, wanted: dict[str, tuple[float, ...]]) -> None:
    # Koehn 2010, figure 4.4.
    p = ibm_model_1(*KOEHN, rounds=rounds, empty=False).p
    words = {"das": ("the", "house", "book"), "Buch": ("the", "book", "a"), "ein": ("book", "a")}
    for source, values in wanted.items():
        assert [p[source][target] for target in words[source]] == pytest.approx(
            values, abs=2e-2 if rounds > 3 else 6e-5
        )
    assert set(p) == {"das", "Haus", "Buch", "ein"}


def brute_force(sources: list[list[str]], targets: list[list[str]], rounds: int) -> Lexicon:
    """Model 1 from its definition: an expectation over every alignment of every pair of sentences."""
    words = {word for row in targets for word in row}
    p = {s: {t: 1 / len(words) for row, target in zip(sources, targets, strict=True) if s in row for t in target}
         for s in itertools.chain(*sources)}  # fmt: skip
    log_likelihoods = []
    for _ in range(rounds + 1):
        counts = {s: dict.fromkeys(row, 0.0) for s, row in p.items()}
        log_likelihoods.append(0.0)
        for source, target in zip(sources, targets, strict=True):
            alignments = list(itertools.product(source, repeat=len(target)))
            weights = [math.prod(p[s][t] for s, t in zip(chosen, target, strict=True)) for chosen in alignments]
            log_likelihoods[-1] += math.log(sum(weights) / len(source) ** len(target))
            for chosen, weight in zip(alignments, weights, strict=True):
                for s, t in zip(chosen, target, strict=True):
                    counts[s][t] += weight / sum(weights)
        if len(log_likelihoods) <= rounds:
            p = {s: {t: count / sum(row.values()) for t, count in row.items()} for s, row in counts.items()}
    return Lexicon(p, log_likelihoods)


@pytest.mark.parametrize("empty", [True, False])
def test_expectations_are_those_over_all_alignments(empty: bool) -> None:
    # A word twice in a sentence, on either side, and sides of other lengths.
    sources = [row.split() for row in ("a b", "b", "a a c", "c b")]
    targets = [row.split() for row in ("x y", "y z", "x x w x", "w")]
    for rounds in (0, 1, 4):
        found = ibm_model_1(sources, targets, rounds=rounds, empty=empty)
        wanted = brute_force([[EMPTY, *row] if empty else row for row in sources], targets, rounds)
        assert found.log_likelihoods == pytest.approx(wanted.log_likelihoods)
        assert found.p.keys() == wanted.p.keys()
        for word, row in wanted.p.items():
            assert found.p[word] == pytest.approx(row)


def test_no_round_lowers_the_likelihood() -> None:
    chance = random.Random(5)
    rows = [[chance.choices("abcdefg", k=chance.randint(1, 6)) for _ in range(30)] for _ in range(2)]
    lexicon = ibm_model_1(*rows, rounds=12)
    assert len(lexicon.log_likelihoods) == 13
    assert all(a < b for a, b in itertools.pairwise(lexicon.log_likelihoods))
    assert [sum(row.values()) for row in lexicon.p.values()] == pytest.approx([1.0] * len(lexicon.p))


def test_pairs_without_words_on_both_sides_count_for_nothing() -> None:
    lone = ibm_model_1([["a"], [], ["b"]], [["x"], ["y"], []], rounds=2)
    assert lone == ibm_model_1([["a"]], [["x"]], rounds=2)
    with pytest.raises(ValueError, match="no pair of sentences has words on both sides"):
        ibm_model_1([["a"], []], [[], ["b"]], rounds=1)
    with pytest.raises(ValueError, match="zip"):
        ibm_model_1([["a"]], [], rounds=1)


def test_more_pairs_than_can_be_held_are_cut_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Cells with the empty word: 6 for each pair.
    monkeypatch.setattr(lexical, "MOST_CELLS", 12)
    cut = ibm_model_1(*KOEHN, rounds=3)
    assert "the table of words is that of the first 2 of 3 sentence pairs" in caplog.text
    monkeypatch.undo()
    assert cut == ibm_model_1(*(side[:2] for side in KOEHN), rounds=3)


def test_words_are_replaced_and_spelled_as_in_the_targets() -> None:
    sources = ["the house, the book", "The house", "a book", "the tree", "House of trees"]
    targets = ["Das Haus, das Buch", "Das Haus", "Ein Buch", "Das Bäumchen", "Haus Bäumchen"]
    model = WordByWord(sources, targets, rounds=30)
    assert model.translate("the BOOK, the house", least=0) == "Das Buch, das Haus"
    assert model.translate("a  Zebra-crossing house", least=0) == "Ein  Zebra-crossing Haus"
    assert model.translate("", least=0) == ""
    assert model.translate("the house", least=1.1) == ""
    small = WordByWord(sources, [text.lower() for text in targets], rounds=30)
    assert small.translate("The book", least=0) == "das buch"


def test_the_memory_answers_what_it_has_seen() -> None:
    # No two have the same words: their order does not count.
    texts = [" ".join(words) for words in itertools.combinations(["alpha", "beta", "gamma", "delta", "epsilon"], 3)]
    pairs = [SentencePair(text, text.upper()) for text in texts]
    found = TranslationMemory(pairs).translate([pair.source for pair in pairs], (0.0, 0.5, 1.0))
    assert found == [[pair.target for pair in pairs]] * 3
    # Only letters tell an unseen form of a word.
    memory = TranslationMemory([SentencePair("one thing", "1"), SentencePair("houses there", "2")])
    assert memory.translate(["housing"], (0.0, 1.0)) == [["1"], ["2"]]


WHICH = {"every": "jede", "one": "eine", "my": "meine", "your": "deine"}
NOUNS = {"woman": "Frau", "cat": "Katze", "duck": "Ente", "mouse": "Maus", "lamp": "Lampe", "flower": "Blume"}
VERBS = {"sees": "sieht", "hears": "hört", "finds": "findet", "seeks": "sucht"}


def splits(*, further: bool = False) -> Splits[SentencePair]:
    chance = random.Random(4)
    words = [WHICH, NOUNS, VERBS, WHICH, NOUNS]
    rows = [[chance.choice(list(part.items())) for part in words] for _ in range(170)]
    pairs = [
        SentencePair(
            *(f"{text[:1].upper()}{text[1:]}." for text in map(" ".join, zip(*row, strict=True))), ("en", "de")
        )
        for row in rows
    ]
    return Splits("made up", pairs[:120], pairs[120:145], pairs[145:], further={"other": pairs[:7]} if further else {})


@pytest.mark.parametrize("name", NAMES)
def test_a_grammar_is_learned(name: str) -> None:
    result = run_baseline(name, TASK, splits())
    assert set(result.scores) == {"validation", "test"}
    assert set(result.scores["test"]) == {"bleu", "chrf", "ter", "bleu_lowercased"}
    for scores in result.scores.values():
        assert scores["bleu_lowercased"] > (90 if name == "word-by-word" else 20)
    assert set(run_baseline(name, TASK, splits(), test=False).scores) == {"validation"}


def test_scores_are_those_of_what_the_method_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SENTENCES", 4)
    given = splits()
    sources, references = (tuple(getattr(pair, side) for pair in given.test) for side in ("source", "target"))
    memory = run_baseline("translation-memory", TASK, given)
    (found,) = TranslationMemory(given.train).translate(sources, (memory.strength,))
    assert memory.scores["test"] == Translations(sources, tuple(found), references, ("en", "de")).scores()
    words = run_baseline("word-by-word", TASK, given)
    model = WordByWord([p.source for p in given.train], [p.target for p in given.train], rounds=baselines.ROUNDS)
    said = tuple(model.translate(text, least=words.strength) for text in sources)
    assert words.scores["test"] == Translations(sources, said, references, ("en", "de")).scores()


@pytest.mark.parametrize("name", NAMES)
def test_the_strength_is_chosen_on_validation_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = splits()
    result = run_baseline(name, TASK, given)
    wrong = [SentencePair(pair.source, pair.source, pair.languages) for pair in given.test]
    other = run_baseline(name, TASK, Splits("made up", given.train, given.validation, wrong))
    assert (other.strength, other.scores["validation"]) == (result.strength, result.scores["validation"])
    assert other.scores["test"]["bleu"] < result.scores["test"]["bleu"]
    grid = "LETTERS" if name == "translation-memory" else "SURE"
    alone = {}
    for strength in getattr(baselines, grid):
        with monkeypatch.context() as patch:
            patch.setattr(baselines, grid, (strength,))
            alone[strength] = run_baseline(name, TASK, given, test=False).scores["validation"]["bleu"]
    assert result.strength == max(alone, key=alone.__getitem__)


def test_further_test_splits_are_scored_by_themselves() -> None:
    result = run_baseline("translation-memory", TASK, splits(further=True))
    assert set(result.scores) == {"validation", "test", "other"}
    # They were taken from the training data.
    assert result.scores["other"]["bleu"] == pytest.approx(100)
    assert set(run_baseline("translation-memory", TASK, splits(further=True), test=False).scores) == {"validation"}


def test_each_method_is_for_one_sort_of_example() -> None:
    assert sorted(NAMES) == ["translation-memory", "word-by-word"]
    assert {method.example_type for method in BASELINES.values()} == {LabelledText, Passage, SentencePair}
